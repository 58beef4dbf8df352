"""Kernels of the distance alone, whose sums are matrix products."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import register_dataclass

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.kernels import bandwidths
from stein_jax.kernels.bandwidths import Bandwidth, MedianBandwidth
from stein_jax.kernels.base import Kernel, check_apply, check_matrix
from stein_jax.pairs.distances import Distances
from stein_jax.pairs.points import as_matrix, matmul, mean_point, widened
from stein_jax.pairs.sums import products, sum_over_pairs
from stein_jax.pairs.tiles import DEFAULTS, Streaming, Tile, Tiles, of_points
from stein_jax.types import Array, Particles, PyTree


@dataclasses.dataclass(frozen=True)
class Profile:
  """ρ of a radial kernel k(x, y) = ρ(t), t = ‖x − y‖²/h.

  Attributes:
    derivatives: t -> ρ(t), ρ'(t), ρ''(t), for each t by itself.
    slope_factor: c, if ρ' = c ρ for a number c. One sum then serves both the attraction
      and the repulsion of a direction. None: there is no such number.
  """

  derivatives: Callable[[Array], tuple[Array, Array, Array]]
  slope_factor: float | None = None

  def __call__(self, t: Array) -> tuple[Array, Array, Array]:
    """ρ(t), ρ'(t) and ρ''(t)."""
    return self.derivatives(t)


def _exponential(t: Array) -> tuple[Array, Array, Array]:
  value = jnp.exp(-t)
  return value, -value, value


@dataclasses.dataclass(frozen=True)
class _Power:
  """(1 + t)^a."""

  exponent: float

  def __call__(self, t: Array) -> tuple[Array, Array, Array]:
    a = self.exponent
    base = 1 + t
    return base**a, a * base ** (a - 1), a * (a - 1) * base ** (a - 2)


def _one(t: Array) -> tuple[Array, Array, Array]:
  return jnp.ones_like(t), jnp.zeros_like(t), jnp.zeros_like(t)


@partial(register_dataclass, data_fields=["bandwidth"], meta_fields=["profile"])
@dataclasses.dataclass(frozen=True)
class Radial(Kernel):
  """k(x, y) = ρ(‖x − y‖²/h), whose sums are matrix products."""

  rows_at_once: ClassVar[int | None] = None
  bandwidth: Any
  profile: Profile

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """ρ(‖x − y‖²/h) of two points."""
    differences = jax.tree.map(lambda a, b: jnp.square(a - b).sum(), x, y)
    return self.profile(sum(jax.tree.leaves(differences)) / self._number())[0]

  def resolve(self, particles: Particles, streaming: Streaming = DEFAULTS) -> "Radial":
    """The same kernel with h as a number."""
    if not isinstance(self.bandwidth, MedianBandwidth):
      return self
    h = bandwidths.of_particles(particles, self.bandwidth, streaming)
    return dataclasses.replace(self, bandwidth=h)

  def _number(self, dtype: Any = None) -> Array:
    """h, in the precision of the particles."""
    if isinstance(self.bandwidth, MedianBandwidth):
      raise ValueError(
        "this kernel's bandwidth is a policy; kernel.resolve(particles) gives it a "
        "number."
      )
    return jnp.asarray(self.bandwidth, dtype)

  @compiled(check_apply, static=("leave_one_out",))
  def apply(
    self,
    queries: Particles,
    sources: Particles | None,
    values: PyTree,
    *,
    streaming: Streaming = DEFAULTS,
    leave_one_out: bool = False,
  ) -> PyTree:
    """As in `Kernel`, by matrix products."""
    distances, h = self._distances(widened(queries), widened(sources), streaming)
    c, unravel = as_matrix(values)
    (sums,) = products(
      distances,
      lambda squared: self.profile(squared / h)[:1],
      (widened(c),),
      streaming=streaming,
      leave_one_out=leave_one_out,
    )
    return unravel(sums.astype(c.dtype))

  @compiled(check_matrix)
  def matrix(self, queries: Particles, sources: Particles | None = None) -> Array:
    """As in `Kernel`, by one matrix product."""
    x, _ = as_matrix(widened(queries))
    y = None if sources is None else as_matrix(widened(sources))[0]
    return self._table(x, y)[0]

  def _table(self, x: Array, y: Array | None) -> tuple[Array, Array, Array]:
    """ρ, ρ' and ρ'' of every pair, each `[m, n]`."""
    n = len(x) if y is None else len(y)
    tiles = of_points(x, y, Streaming(block_size=max(len(x), n)))
    h = self._number(x.dtype)
    return self.profile(Distances(tiles).resolving(h).at(Tile(0, 0, 0)) / h)

  def stein_sums(
    self,
    queries: Particles,
    sources: Particles | None,
    scores: Particles,
    *,
    streaming: Streaming = DEFAULTS,
    leave_one_out: bool = False,
  ) -> tuple[Particles, Array]:
    """As in `Kernel`, by matrix products over the table of pairs.

    With t = ‖x − y‖²/h and ∇_y k(y, x) = (2/h) ρ'(t) (y − x), the repulsion is
    Σⱼ ∇_{yⱼ} k(yⱼ, xᵢ) = (2/h) [Σⱼ ρ'ᵢⱼ yⱼ − xᵢ Σⱼ ρ'ᵢⱼ].
    """
    distances, h = self._distances(queries, sources, streaming)
    s, unravel = as_matrix(scores)
    tiles = distances.tiles
    x = tiles.rows.joined(tiles.rows.points)  # around the mean of all points
    y = tiles.columns.joined(tiles.columns.points)
    checks.same_shapes(y, s, ("sources", "scores"))
    one = jnp.ones_like(y[:, :1])
    sums_of = partial(
      products, distances, streaming=streaming, leave_one_out=leave_one_out
    )
    c = self.profile.slope_factor
    if c is not None:  # Σⱼ ρᵢⱼ [scoreⱼ + (2c/h) yⱼ] − (2c/h) xᵢ Σⱼ ρᵢⱼ
      columns = jnp.concatenate([s + (2 * c / h) * y, one], axis=1)
      (sums,) = sums_of(lambda squared: self.profile(squared / h)[:1], (columns,))
      sums, mass = sums[:, :-1], sums[:, -1]
      return unravel(sums - (2 * c / h) * x * mass[:, None]), mass
    both = tuple(jnp.concatenate([part, one], axis=1) for part in (s, y))
    attraction, repulsion = sums_of(lambda squared: self.profile(squared / h)[:2], both)
    slopes = repulsion[:, :-1] - x * repulsion[:, -1:]
    return unravel(attraction[:, :-1] + (2 / h) * slopes), attraction[:, -1]

  def _distances(
    self, queries: Particles, sources: Particles | None, streaming: Streaming
  ) -> tuple[Distances, Array]:
    """The distances of all pairs, and h, which a policy computes from them."""
    x, _ = as_matrix(queries)
    y = None if sources is None else as_matrix(sources)[0]
    distances = Distances(of_points(x, y, streaming))
    policy = self.bandwidth
    if not isinstance(policy, MedianBandwidth):
      h = self._number(x.dtype)
      return distances.resolving(h, ring=streaming.ring), h
    if y is not None and streaming.axis_name is None:
      self._number()  # raises: the policy needs all particles, these are some queries
    n = distances.tiles.columns.count
    of_all = policy.subsample is None or policy.subsample >= n
    if of_all and distances.may_be_held and not streaming.ring:
      distances = distances.held()
    h, resolved = bandwidths.of_points(
      jax.lax.stop_gradient(x),
      policy,
      jax.lax.stop_gradient(y),
      distances=jax.lax.stop_gradient(distances),
      streaming=streaming,
    )
    if resolved is None:
      return distances.resolving(h, ring=streaming.ring), h
    return distances.with_values_of(resolved), h

  def repulsion(self, particles: Particles) -> tuple[Array, Callable[[Array], PyTree]]:
    """As in `Kernel`: V = (2/h) (P − diag(P 1)) x with Pᵢⱼ = ρ'ᵢⱼ, so that r = n."""
    x, unravel = as_matrix(particles)
    x = x - mean_point(x)
    _, slope, _ = self._table(x, None)
    factor = (2 / self._number(x.dtype)) * (slope - jnp.diag(slope.sum(axis=1)))
    return factor, lambda mixed: unravel(matmul(mixed, x))

  def stein_kernel_sums(
    self,
    queries: Particles,
    query_scores: Particles,
    sources: Particles | None = None,
    scores: Particles | None = None,
    *,
    weights: Array | None = None,
    source_weights: Array | None = None,
    streaming: Streaming = DEFAULTS,
  ) -> tuple[Array, Array]:
    """As in `Kernel`, with the derivatives of ρ written out.

    sₓᵀ∇_y k + s_yᵀ∇ₓ k = (2/h) ρ' (sₓ − s_y)ᵀ(y − x), and
    tr ∇ₓ∇_y k = −(2d/h) ρ' − (4/h) t ρ''.
    """
    distances, h = self._distances(queries, sources, streaming)
    rows, columns = distances.tiles.rows, distances.tiles.columns
    sx = rows.split(as_matrix(query_scores)[0])
    sy = sx if sources is None else columns.split(as_matrix(scores)[0])
    x = rows.points
    along_x, along_y = (sx * x).sum(axis=2), (sy * columns.points).sum(axis=2)
    d = x.shape[2]

    def values_of(
      tiles: Tiles, column_values: Any, tile: Tile, squared: Array
    ) -> Array:
      _, i, j = tile
      y, (sy, along_y) = tiles.columns.points, column_values
      t = squared / h
      k, slope, curvature = self.profile(t)
      along = (
        matmul(sx[i], y[j].T)
        + matmul(x[i], sy[j].T)
        - along_x[i][:, None]
        - along_y[j][None]
      )
      trace = -(2 * d / h) * slope - (4 / h) * t * curvature
      return matmul(sx[i], sy[j].T) * k + (2 / h) * slope * along + trace

    k, slope, _ = self.profile(jnp.zeros((), h.dtype))
    both = None
    if weights is None:
      itself = jnp.square(sx).sum() * k - rows.count * (2 * d / h) * slope
    else:
      others = weights if source_weights is None else source_weights
      both = (rows.split(weights), columns.split(others))
      of_each = jnp.square(sx).sum(axis=2) * k - (2 * d / h) * slope
      squares = jnp.square(both[0].astype(of_each.dtype))  # 0 in the padding
      itself = (squares * of_each[:, :, None]).sum(axis=(0, 1))
    total = sum_over_pairs(
      distances, values_of, (sy, along_y), weights=both, streaming=streaming
    )
    return total, itself

  def stein_kernel_row(
    self, x: PyTree, score_x: PyTree, sources: Particles, scores: Particles
  ) -> Array:
    """As in `Kernel`, with the derivatives of ρ written out: O(n d)."""
    y, s_y = as_matrix(sources)[0], as_matrix(scores)[0]
    x, s_x = (ravel_pytree(point)[0] for point in (x, score_x))
    h = self._number(y.dtype)
    away = y - x[None]
    t = jnp.square(away).sum(axis=1) / h
    k, slope, curvature = self.profile(t)
    along = ((s_x[None] - s_y) * away).sum(axis=1)
    trace = -(2 * x.size / h) * slope - (4 / h) * t * curvature
    return matmul(s_y, s_x) * k + (2 / h) * slope * along + trace


def rbf(
  bandwidth: Bandwidth = "median",
  *,
  multiple: float = 1.0,
  subsample: int | None = None,
) -> Radial:
  """The RBF kernel exp(−‖x − y‖²/h) of the paper's section 5.1.

  Args:
    bandwidth: h above 0, in units of squared distance, or a policy: a name from
      `BANDWIDTHS` or a `MedianBandwidth`.
    multiple: a factor on h.
    subsample: how many particles a median is taken of; None for all.

  Raises:
    ValueError: a bandwidth that is neither a number above 0 nor a known name.
  """
  return Radial(
    bandwidths.policy(bandwidth, multiple=multiple, subsample=subsample),
    Profile(_exponential, slope_factor=-1.0),
  )


def imq(
  bandwidth: Bandwidth = "median",
  *,
  exponent: float = -0.5,
  multiple: float = 1.0,
  subsample: int | None = None,
) -> Radial:
  """The inverse multiquadric (1 + ‖x − y‖²/h)^exponent (Gorham & Mackey, 2017).

  Args:
    bandwidth: as in `rbf`.
    exponent: between −1 and 0, where the discrepancy it makes controls convergence.
    multiple: as in `rbf`.
    subsample: as in `rbf`.

  Raises:
    ValueError: an exponent outside (−1, 0), or a bandwidth as in `rbf`.
  """
  checks.between("exponent", exponent, -1, 0)
  return Radial(
    bandwidths.policy(bandwidth, multiple=multiple, subsample=subsample),
    Profile(_Power(float(exponent))),
  )


def constant() -> Radial:
  """k = 1: every particle gets the mean score, without repulsion.

  This is not "kernel off", which is `kernel=None` and leaves each particle its own
  score; the paper's "effectively" (section 5.1) is loose here.
  """
  return Radial(1.0, Profile(_one, slope_factor=0.0))
