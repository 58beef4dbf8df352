"""Kernels of the distance alone, whose sums are products of matrices."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass, register_static

from stein_jax import checks
from stein_jax.kernels import bandwidths
from stein_jax.kernels.bandwidths import Bandwidth, MedianBandwidth
from stein_jax.kernels.base import Kernel
from stein_jax.pairs import points as pairwise
from stein_jax.pairs import tiles
from stein_jax.types import Array, Particles, Precision, PyTree

Profile = Callable[[Array], tuple[Array, Array, Array]]
"""t = ‖x − y‖²/h -> ρ(t), ρ'(t), ρ''(t) of a radial kernel k = ρ(t)."""


def _rbf_profile(t: Array) -> tuple[Array, Array, Array]:
  value = jnp.exp(-t)
  return value, -value, value


@register_static
@dataclasses.dataclass(frozen=True)
class _ImqProfile:
  exponent: float

  def __call__(self, t: Array) -> tuple[Array, Array, Array]:
    a = self.exponent
    base = 1 + t
    return base**a, a * base ** (a - 1), a * (a - 1) * base ** (a - 2)


def _constant_profile(t: Array) -> tuple[Array, Array, Array]:
  return jnp.ones_like(t), jnp.zeros_like(t), jnp.zeros_like(t)


@partial(register_dataclass, data_fields=["bandwidth"], meta_fields=["profile"])
@dataclasses.dataclass(frozen=True)
class Radial(Kernel):
  """k(x, y) = ρ(‖x − y‖²/h), whose sums are matrix products."""

  rows_in_flight: ClassVar[int | None] = None
  bandwidth: Any
  profile: Profile

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """ρ(‖x − y‖²/h) of two points."""
    differences = jax.tree.map(lambda a, b: jnp.square(a - b).sum(), x, y)
    return self.profile(sum(jax.tree.leaves(differences)) / self._number())[0]

  def resolve(
    self,
    particles: Particles,
    *,
    block_size: int | None = None,
    axis_name: str | None = None,
    ring: bool = False,
  ) -> "Radial":
    """The same kernel with h as a number."""
    if not isinstance(self.bandwidth, MedianBandwidth):
      return self
    h = bandwidths.of_particles(
      particles,
      policy=self.bandwidth,
      block_size=block_size,
      axis_name=axis_name,
      ring=ring,
    )
    return dataclasses.replace(self, bandwidth=h)

  def _number(self, dtype: Any = None) -> Array:
    """h; in the particles' precision, which a float64 h does not change."""
    if isinstance(self.bandwidth, MedianBandwidth):
      raise ValueError(
        "this kernel's bandwidth is a policy; kernel.resolve(particles) gives it a "
        "number."
      )
    return jnp.asarray(self.bandwidth, dtype)

  def matrix(self, queries: Particles, sources: Particles) -> Array:
    """As in `Kernel`, by one matrix product."""
    x, _ = pairwise.as_matrix(queries)
    y, _ = pairwise.as_matrix(sources)
    return self._table(x, y)[0]

  def _table(self, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """ρ, ρ' and ρ'' of every pair, each `[b, n]`."""
    table = tiles.of_points(x, y, block_size=max(len(x), len(y)))
    h = self._number(x.dtype)
    squared = table.resolving(h).at((0, 0, 0))[: len(x), : len(y)]
    return self.profile(squared / h)

  def stein_sums(
    self,
    queries: Particles,
    sources: Particles,
    scores: Particles,
    *,
    block_size: int | None = None,
    axis_name: str | None = None,
    ring: bool = False,
    precision: Precision = "highest",
  ) -> tuple[Particles, Array]:
    """As in `Kernel`, by matrix products over the table of pairs.

    With t = ‖x − y‖²/h and ∇_y k(y, x) = (2/h) ρ'(t) (y − x), the repulsion is
    Σⱼ ∇_{yⱼ} k(yⱼ, xᵢ) = (2/h) [Σⱼ ρ'ᵢⱼ yⱼ − xᵢ Σⱼ ρ'ᵢⱼ].
    """
    distances, h = self._distances(queries, sources, block_size, axis_name, ring)
    s, unravel = pairwise.as_matrix(scores)
    x, y = distances.points()
    checks.same_shapes(y, s, ("sources", "scores"))
    one = jnp.ones_like(y[:, :1])
    if self.profile is _rbf_profile:  # ρ' = −ρ: both sums in one product
      weighted = (jnp.concatenate([s - (2 / h) * y, one], axis=1),)
      (sums,) = tiles.products(
        distances,
        lambda t: (self.profile(t / h)[0],),
        weighted,
        precision=precision,
      )
      sums, mass = sums[:, :-1], sums[:, -1]
      return unravel(sums + (2 / h) * x * mass[:, None]), mass
    both = tuple(jnp.concatenate([part, one], axis=1) for part in (s, y))
    attraction, repulsion = tiles.products(
      distances, lambda t: self.profile(t / h)[:2], both, precision=precision
    )
    slopes = repulsion[:, :-1] - x * repulsion[:, -1:]
    return unravel(attraction[:, :-1] + (2 / h) * slopes), attraction[:, -1]

  def _distances(
    self,
    queries: Particles,
    sources: Particles,
    block_size: int | None,
    axis_name: str | None,
    ring: bool,
  ) -> tuple[tiles.Tiles, Array]:
    """The table of pairs, and h, which a policy makes of the same table."""
    y, _ = pairwise.as_matrix(sources)
    x = y if queries is sources else pairwise.as_matrix(queries)[0]
    distances = tiles.of_points(
      x, y, block_size=block_size, axis_name=axis_name, ring=ring
    )
    policy = self.bandwidth
    if not isinstance(policy, MedianBandwidth):
      h = self._number(x.dtype)
      return distances.resolving(h), h
    if not distances.symmetric and axis_name is None:
      self._number()  # raises: no policy can tell what these queries are part of
    of_all = policy.subsample is None or policy.subsample >= distances.num_points
    if distances.may_be_held() and of_all:
      distances = distances.hold()
    h = bandwidths.of_points(
      jax.lax.stop_gradient(x),
      policy,
      block_size=block_size,
      axis_name=axis_name,
      ring=ring,
      distances=jax.lax.stop_gradient(distances),
    )
    return distances.resolving(h), h

  def repulsion(self, particles: Particles) -> tuple[Array, Callable[[Array], PyTree]]:
    """As in `Kernel`: V = (2/h) (P − diag(P 1)) x with Pᵢⱼ = ρ'ᵢⱼ, so that r = n."""
    x, unravel = pairwise.as_matrix(particles)
    x = x - pairwise.mean_point(x)
    _, slope, _ = self._table(x, x)
    factor = (2 / self._number(x.dtype)) * (slope - jnp.diag(slope.sum(axis=1)))
    return factor, lambda mixed: unravel(pairwise.matmul(mixed, x))

  def stein_kernel_sums(
    self,
    queries: Particles,
    query_scores: Particles,
    sources: Particles,
    scores: Particles,
    *,
    block_size: int | None = None,
    axis_name: str | None = None,
    ring: bool = False,
  ) -> tuple[Array, Array]:
    """As in `Kernel`, with the derivatives of ρ written out.

    sₓᵀ∇_y k + s_yᵀ∇ₓ k = (2/h) ρ' (sₓ − s_y)ᵀ(y − x), and
    tr ∇ₓ∇_y k = −(2d/h) ρ' − (4/h) t ρ''.
    """
    if queries is sources and query_scores is not scores:
      raise ValueError("queries that are the sources must have the sources' scores.")
    distances, h = self._distances(queries, sources, block_size, axis_name, ring)
    sy = distances.cut_columns(pairwise.as_matrix(scores)[0])
    sx = sy
    if not distances.symmetric:
      sx = distances.cut_rows(pairwise.as_matrix(query_scores)[0])
    x = distances.rows
    along_x, along_y = (sx * x).sum(axis=2), (sy * distances.columns).sum(axis=2)
    d = x.shape[2]

    def tile(
      table: tiles.Tiles, of_columns: Any, place: tiles.Place, squared: Array
    ) -> Array:
      _, i, j = place
      y, (sy, along_y) = table.columns, of_columns
      t = squared / h
      k, slope, curvature = self.profile(t)
      along = (
        pairwise.matmul(sx[i], y[j].T)
        + pairwise.matmul(x[i], sy[j].T)
        - along_x[i][:, None]
        - along_y[j][None]
      )
      trace = -(2 * d / h) * slope - (4 / h) * t * curvature
      return pairwise.matmul(sx[i], sy[j].T) * k + (2 / h) * slope * along + trace

    k, slope, _ = self.profile(jnp.zeros((), h.dtype))
    itself = jnp.square(sx).sum() * k - distances.num_rows * (2 * d / h) * slope
    return tiles.sum_over_pairs(distances, tile, (sy, along_y)), itself


def rbf(
  bandwidth: Bandwidth = "median",
  *,
  multiple: float = 1.0,
  subsample: int | None = None,
) -> Radial:
  """The RBF kernel exp(−‖x − y‖²/h) of the paper's section 5.1.

  Args:
    bandwidth: h above 0, in units of squared distance, or a policy: a name out of
      `BANDWIDTHS` or a `MedianBandwidth`.
    multiple: a factor on h.
    subsample: how many particles a median is taken of; None for all.

  Raises:
    ValueError: a bandwidth that is neither a number above 0 nor a known name.
  """
  return Radial(
    bandwidths.policy(bandwidth, multiple=multiple, subsample=subsample), _rbf_profile
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
  if not -1 < exponent < 0:
    raise ValueError(f"exponent must lie between -1 and 0, got {exponent!r}.")
  return Radial(
    bandwidths.policy(bandwidth, multiple=multiple, subsample=subsample),
    _ImqProfile(exponent),
  )


def constant() -> Radial:
  """k = 1: every particle gets the mean score, without repulsion.

  This is not "kernel off", which is `kernel=None` and leaves each particle its own
  score; the paper's "effectively" (section 5.1) is loose here.
  """
  return Radial(1.0, _constant_profile)
