"""Squared distances of all pairs, tile by tile, accurate for near points too.

‖x − y‖² = ‖x‖² + ‖y‖² − 2 xᵀy is one matrix product for all pairs. Its rounding error
is some units in the last place of ‖x‖². If clusters of points are far apart, this
error can be larger than the distance between two near points. Then sums of squared
differences are used instead: they are accurate, and many times slower.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from stein_jax.pairs import tiles as geometry
from stein_jax.pairs.points import matmul
from stein_jax.pairs.tiles import Tile, Tiles
from stein_jax.types import Array

T = TypeVar("T")

_FEW_COORDINATES = 8
"""Up to this dimension, a sum of one term for each coordinate is 20 times as fast."""


@partial(
  register_dataclass,
  data_fields=["tiles", "table", "coarse"],
  meta_fields=["by_differences"],
)
@dataclasses.dataclass(frozen=True)
class Distances:
  """‖xᵢ − yⱼ‖² of all pairs.

  Attributes:
    tiles: the points.
    table: all tiles, `[T, a, b]`; None: each tile is computed when it is needed.
    coarse: a boolean array, true if matrix products are not accurate enough for what
      is computed from the distances. None: they are accurate enough.
    by_differences: whether tiles are computed by differences.
  """

  tiles: Tiles
  table: Array | None = None
  coarse: Array | None = None
  by_differences: bool = False

  def at(self, tile: Tile) -> Array:
    """The squared distances of one tile, `[a, b]`."""
    if self.table is not None:
      return self.table[tile.position]
    rows, columns = self.tiles.rows, self.tiles.columns
    x, y = rows.points[tile.row], columns.points[tile.column]
    if self.by_differences:
      return squared_differences(x, y)
    norms = rows.norms[tile.row][:, None] + columns.norms[tile.column][None]
    squared = norms - 2 * matmul(x, y.T)
    # Rounding below 0 must not set the derivative to 0.
    return _with_tangent_of(jnp.maximum(squared, 0), squared)

  @property
  def may_be_held(self) -> bool:
    """Whether the whole table is small enough to be held."""
    return self.tiles.rows.count * self.tiles.columns.count <= geometry.HELD_PAIRS

  def held(self) -> "Distances":
    """These distances, with all tiles in memory."""
    if self.table is not None:
      return self
    if self.tiles.is_single:
      table = self.at(Tile(0, 0, 0))[None]
    else:
      table = jax.lax.map(self.at, self.tiles.all())
    return dataclasses.replace(self, table=table)

  def exact(self) -> "Distances":
    """These distances, computed by differences."""
    return dataclasses.replace(self, table=None, coarse=None, by_differences=True)

  def resolving(self, scale: Array, *, ring: bool = False) -> "Distances":
    """These distances, with an error that is small compared with `scale`.

    Args:
      scale: a squared distance, such as a bandwidth.
      ring: whether tables of remote blocks follow, for which `coarse` is kept.
    """
    rows, columns = self.tiles.rows, self.tiles.columns
    # Two points can only be near if both are equally far from the mean.
    norm = jnp.minimum(rows.norms.max(), columns.norms.max())
    coarse = in_any_lane(resolution(norm.dtype) * norm > scale)
    if ring or (self.table is None and not self.tiles.is_single):
      return dataclasses.replace(self, coarse=coarse)
    # Only the table: XLA copies the operands of a branch at every training step.
    table = self.held().table
    table = jax.lax.cond(coarse, lambda: self.exact().held().table, lambda: table)
    return dataclasses.replace(self, table=table)

  def either(self, fn: Callable[["Distances"], T]) -> T:
    """fn of these distances, or of exact ones where `coarse` is true at run time."""
    if self.coarse is None:
      return fn(self)
    # All tiles, since the sums of transposed tiles would need memory of their own.
    tiles = dataclasses.replace(self.tiles, symmetric=False)
    exact = dataclasses.replace(self.exact(), tiles=tiles)
    plain = dataclasses.replace(self, coarse=None)
    return jax.lax.cond(self.coarse, lambda: fn(exact), lambda: fn(plain))

  def with_values_of(self, other: "Distances") -> "Distances":
    """The table of the other distances, with the derivatives of these."""
    table = _with_tangent_of(other.table, self.table)
    return dataclasses.replace(self, table=table)


def resolution(dtype: jnp.dtype) -> float:
  """The smallest accurate squared distance, as a fraction of ‖x‖².

  Matrix products give it with a relative error of at most 1e-4.
  """
  return 1e4 * float(jnp.finfo(dtype).eps)


@jax.custom_jvp
def squared_differences(x: Array, y: Array) -> Array:
  """‖xᵢ − yⱼ‖² of two sets of points, `[a, d]` and `[b, d]`, by differences.

  Exact where points coincide. Differentiated as ‖x‖² + ‖y‖² − 2 xᵀy, which needs no
  memory beyond the result.
  """
  if x.shape[1] > _FEW_COORDINATES:  # XLA sums without holding [a, b, d]
    return jnp.square(x[:, None] - y[None]).sum(axis=2)
  return sum(
    (jnp.square(xk[:, None] - yk[None]) for xk, yk in zip(x.T, y.T)),
    start=jnp.zeros((), x.dtype),
  )


@squared_differences.defjvp
def _squared_differences_jvp(
  primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
  (x, y), (dx, dy) = primals, tangents
  own = (x * dx).sum(axis=1)[:, None] + (y * dy).sum(axis=1)[None]
  return squared_differences(x, y), 2 * (own - matmul(dx, y.T) - matmul(x, dy.T))


@jax.custom_jvp
def _with_tangent_of(value: Array, other: Array) -> Array:
  del other
  return value


@_with_tangent_of.defjvp
def _with_tangent_of_jvp(
  primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
  return primals[0], tangents[1]


def in_any_lane(truth: Array) -> Array:
  """A condition shared by all lanes of a vmap: true where it is true for one of them.

  With a condition for every lane, `cond` would compute both branches for all of them.
  """
  return _any(jax.lax.stop_gradient(truth))


@jax.custom_batching.custom_vmap
def _any(truth: Array) -> Array:
  return truth


@_any.def_vmap
def _any_of_batch(
  axis_size: int, is_batched: list[bool], truth: Array
) -> tuple[Array, bool]:
  del axis_size, is_batched
  return _any(truth.any()), False
