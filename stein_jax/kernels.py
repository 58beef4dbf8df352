"""Kernels k(x, x') and their bandwidths.

A kernel is a small pytree: its bandwidth is a leaf or a named policy, its form is
static. RBF is exp(−‖x − x'‖²/h), as in the paper (Liu & Wang, 2017, section 5.1), so h
has the units of a squared distance.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass, register_static

from stein_jax import axes, bandwidths, checks, pairwise, tiles
from stein_jax.bandwidths import BANDWIDTHS as BANDWIDTHS
from stein_jax.bandwidths import Bandwidth as Bandwidth
from stein_jax.bandwidths import MedianBandwidth as MedianBandwidth
from stein_jax.bandwidths import median_bandwidth as median_bandwidth
from stein_jax.types import Array, Params, Particles, PyTree

T = TypeVar("T")


class Kernel:
  """A symmetric kernel; `pair` alone defines it, the sums follow by differentiation.

  Subclasses with more structure (radial kernels, kernels on features) override the
  sums with faster ones that agree with these.

  Attributes:
    rows_in_flight: the block size that suits the sums, None to choose by size. Here a
      row of pairs holds n points, not n numbers: rows go one by one.
  """

  rows_in_flight: ClassVar[int | None] = 1

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """k(x, y) of two points, a scalar."""
    raise TypeError(f"{type(self).__name__} does not define k(x, y).")

  def resolve(
    self,
    particles: Particles,
    *,
    block_size: int | None = None,
    axis_name: str | None = None,
  ) -> "Kernel":
    """The same kernel with its bandwidth policy turned into a number."""
    del particles, block_size, axis_name
    return self

  def matrix(self, queries: Particles, sources: Particles) -> Array:
    """The matrix k(xᵢ, yⱼ), `[b, n]`, held whole."""
    row = jax.vmap(self.pair, in_axes=(None, 0))
    return jax.vmap(row, in_axes=(0, None))(queries, sources)

  def stein_sums(
    self,
    queries: Particles,
    sources: Particles,
    scores: Particles,
    *,
    block_size: int | None = None,
    axis_name: str | None = None,
  ) -> tuple[Particles, Array]:
    """n times the SVGD direction (5) at the queries, and the kernel's row sums.

    Args:
      queries: the points xᵢ where the direction is wanted, `[b, ...]`. Where they are
        the sources, given as the same object, symmetry spares half of the pairs.
      sources: the points yⱼ it is made of, `[n, ...]`.
      scores: ∇ log p(yⱼ), shaped like the sources.
      block_size: queries in flight; None chooses by size.
      axis_name: the axis over which the queries are spread; a bandwidth policy looks
        at all of them.

    Returns:
      Σⱼ [k(yⱼ, xᵢ) scoreⱼ + ∇_{yⱼ} k(yⱼ, xᵢ)], shaped like the queries, and
      Σⱼ k(yⱼ, xᵢ), `[b]`.
    """

    del axis_name

    def at_query(x: PyTree) -> tuple[PyTree, Array]:
      values, gradients = _values_and_gradients(self, sources, x)
      return _stein_sum(values, gradients, scores), values.sum()

    num_columns = jax.tree.leaves(sources)[0].shape[0]
    return pairwise.map_rows(
      at_query, queries, num_columns, block_size or self.rows_in_flight
    )

  def repulsion(self, particles: Particles) -> tuple[Array, Callable[[Array], PyTree]]:
    """The repulsion Vᵢ = Σⱼ ∇_{xⱼ} k(xⱼ, xᵢ), factored.

    Returns:
      R, `[n, r]`, and a linear function `pull_back` with V = pull_back(R), shaped like
      the particles. It acts on every row alike, so M V = pull_back(M R).
    """
    no_scores = jax.tree.map(jnp.zeros_like, particles)
    return pairwise.as_matrix(self.stein_sums(particles, particles, no_scores)[0])

  def stein_kernel_sums(
    self,
    queries: Particles,
    query_scores: Particles,
    sources: Particles,
    scores: Particles,
    *,
    block_size: int | None = None,
    axis_name: str | None = None,
  ) -> tuple[Array, Array]:
    """Sums of the Stein kernel, whose mean over pairs is the squared discrepancy.

    u_p(x, y) = sₓᵀs_y k + sₓᵀ∇_y k + s_yᵀ∇ₓ k + tr ∇ₓ∇_y k (Liu, Lee & Jordan, 2016).

    Args:
      queries: x, `[b, ...]`; as in `stein_sums`, the sources or this device's of them.
      query_scores: sₓ.
      sources: y, `[n, ...]`.
      scores: s_y; the same object as sₓ where the queries are the sources.
      block_size: queries in flight; None chooses by size.
      axis_name: as in `stein_sums`.

    Returns:
      The sum over this device's pairs of different points, and that over the pairs of a
      point with itself.
    """
    kernel = self.resolve(queries, block_size=block_size, axis_name=axis_name)
    num_rows = jax.tree.leaves(queries)[0].shape[0]
    n = jax.tree.leaves(sources)[0].shape[0]

    def row_sums(row: tuple[Array, PyTree, PyTree]) -> tuple[Array, Array]:
      index, x, score_x = row
      u = kernel._stein_kernel_row(x, score_x, sources, scores)
      return jnp.where(jnp.arange(n) == index, 0, u).sum(), u[index]

    rows = (axes.global_indices(num_rows, axis_name), queries, query_scores)
    sums = pairwise.map_rows(row_sums, rows, n, block_size or self.rows_in_flight)
    return sums[0].sum(), sums[1].sum()

  def _stein_kernel_row(
    self, x: PyTree, score_x: PyTree, sources: Particles, scores: Particles
  ) -> Array:
    """The Stein kernel u_p(x, yⱼ) of one point with all sources, `[n]`."""
    x, unravel = jax.flatten_util.ravel_pytree(x)
    score_x, _ = jax.flatten_util.ravel_pytree(score_x)
    sources, _ = pairwise.as_matrix(sources)
    scores, _ = pairwise.as_matrix(scores)

    def k(x: Array, y: Array) -> Array:
      return self.pair(unravel(x), unravel(y))

    def u(y: Array, score_y: Array) -> Array:
      def gradient_y(x: Array) -> Array:
        return jax.grad(k, argnums=1)(x, y)

      trace = jnp.trace(jax.jacfwd(gradient_y)(x))
      return (
        score_x @ score_y * k(x, y)
        + score_x @ gradient_y(x)
        + score_y @ jax.grad(k)(x, y)
        + trace
      )

    return jax.vmap(u)(sources, scores)


def _values_and_gradients(
  kernel: Kernel, sources: Particles, x: PyTree
) -> tuple[Array, Particles]:
  """k(yⱼ, x) and ∇_{yⱼ} k(yⱼ, x) for all sources, by differentiation."""
  return jax.vmap(lambda y: jax.value_and_grad(kernel.pair)(y, x))(sources)


def _stein_sum(values: Array, gradients: Particles, scores: Particles) -> PyTree:
  """Σⱼ [valueⱼ scoreⱼ + gradientⱼ], the sum of (5) at one query."""
  return jax.tree.map(
    lambda g, s: g.sum(axis=0) + jnp.tensordot(values, s, axes=1), gradients, scores
  )


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
  ) -> "Radial":
    """The same kernel with h as a number."""
    if not isinstance(self.bandwidth, MedianBandwidth):
      return self
    h = bandwidths.of_particles(
      particles, policy=self.bandwidth, block_size=block_size, axis_name=axis_name
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
    return self._whole(x, y, lambda k, slope: k)

  def _whole(self, x: Array, y: Array, of_profile: Callable[[Array, Array], T]) -> T:
    """What is made of ρ and ρ' of every pair, each `[b, n]` and held whole."""
    table = tiles.of_points(x, y, block_size=max(len(x), len(y)))
    h = self._number(x.dtype)

    def made(table: tiles.Tiles) -> T:
      k, slope, _ = self.profile(table.at((0, 0, 0))[: len(x), : len(y)] / h)
      return of_profile(k, slope)

    return tiles.resolving(made, table, h)

  def stein_sums(
    self,
    queries: Particles,
    sources: Particles,
    scores: Particles,
    *,
    block_size: int | None = None,
    axis_name: str | None = None,
  ) -> tuple[Particles, Array]:
    """As in `Kernel`, by matrix products over the table of pairs.

    With t = ‖x − y‖²/h and ∇_y k(y, x) = (2/h) ρ'(t) (y − x), the repulsion is
    Σⱼ ∇_{yⱼ} k(yⱼ, xᵢ) = (2/h) [Σⱼ ρ'ᵢⱼ yⱼ − xᵢ Σⱼ ρ'ᵢⱼ].
    """
    distances, h = self._distances(queries, sources, block_size, axis_name)
    s, unravel = pairwise.as_matrix(scores)
    x, y = distances.points()
    checks.same_shapes(y, s, ("sources", "scores"))
    one = jnp.ones_like(y[:, :1])
    if self.profile is _rbf_profile:  # ρ' = −ρ: both sums in one product
      weighted = (jnp.concatenate([s - (2 / h) * y, one], axis=1),)
      (sums,) = tiles.resolving(
        lambda table: tiles.products(
          table, lambda t: (self.profile(t / h)[0],), weighted
        ),
        distances,
        h,
      )
      sums, mass = sums[:, :-1], sums[:, -1]
      return unravel(sums + (2 / h) * x * mass[:, None]), mass
    both = tuple(jnp.concatenate([part, one], axis=1) for part in (s, y))
    attraction, repulsion = tiles.resolving(
      lambda table: tiles.products(table, lambda t: self.profile(t / h)[:2], both),
      distances,
      h,
    )
    slopes = repulsion[:, :-1] - x * repulsion[:, -1:]
    return unravel(attraction[:, :-1] + (2 / h) * slopes), attraction[:, -1]

  def _distances(
    self,
    queries: Particles,
    sources: Particles,
    block_size: int | None,
    axis_name: str | None,
  ) -> tuple[tiles.Tiles, Array]:
    """The table of pairs, and h, which a policy makes of the same table."""
    y, _ = pairwise.as_matrix(sources)
    x = y if queries is sources else pairwise.as_matrix(queries)[0]
    distances = tiles.of_points(x, y, block_size=block_size, axis_name=axis_name)
    policy = self.bandwidth
    if not isinstance(policy, MedianBandwidth):
      return distances, self._number(x.dtype)
    if not distances.symmetric and axis_name is None:
      self._number()  # raises: no policy can tell what these queries are part of
    of_all = policy.subsample is None or policy.subsample >= distances.n
    if distances.may_be_held() and of_all:
      distances = distances.hold()
    h = bandwidths.of_points(
      jax.lax.stop_gradient(x),
      policy,
      block_size=block_size,
      axis_name=axis_name,
      distances=jax.lax.stop_gradient(distances),
    )
    return distances, h

  def repulsion(self, particles: Particles) -> tuple[Array, Callable[[Array], PyTree]]:
    """As in `Kernel`: V = (2/h) (P − diag(P 1)) x with Pᵢⱼ = ρ'ᵢⱼ, so that r = n."""
    x, unravel = pairwise.as_matrix(particles)
    x = x - pairwise.mean_point(x)
    slope = self._whole(x, x, lambda k, slope: slope)
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
  ) -> tuple[Array, Array]:
    """As in `Kernel`, with the derivatives of ρ written out.

    sₓᵀ∇_y k + s_yᵀ∇ₓ k = (2/h) ρ' (sₓ − s_y)ᵀ(y − x), and
    tr ∇ₓ∇_y k = −(2d/h) ρ' − (4/h) t ρ''.
    """
    if queries is sources and query_scores is not scores:
      raise ValueError("queries that are the sources must have the sources' scores.")
    distances, h = self._distances(queries, sources, block_size, axis_name)
    sy = distances.cut_columns(pairwise.as_matrix(scores)[0])
    sx = sy
    if not distances.symmetric:
      sx = distances.cut_rows(pairwise.as_matrix(query_scores)[0])
    x, y = distances.rows, distances.columns
    along_x, along_y = (sx * x).sum(axis=2), (sy * y).sum(axis=2)
    d = x.shape[2]

    def tile(table: tiles.Tiles, place: tiles.Place) -> Array:
      _, i, j = place
      t = table.at(place) / h
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
    of_pairs = tiles.resolving(
      lambda table: tiles.sum_over_pairs(table, partial(tile, table)), distances, h
    )
    return of_pairs, itself


@partial(register_dataclass, data_fields=[], meta_fields=["k"])
@dataclasses.dataclass(frozen=True)
class Pairwise(Kernel):
  """A kernel given by any symmetric function of two points."""

  k: Callable[[PyTree, PyTree], Array]

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """k(x, y)."""
    return self.k(x, y)


@partial(register_dataclass, data_fields=["base", "feature_fn"], meta_fields=["affine"])
@dataclasses.dataclass(frozen=True)
class OnFeatures(Kernel):
  """k(x, y) = base(F(x), F(y)), with the exact repulsion through F."""

  base: Kernel
  feature_fn: Any
  affine: bool = False

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """base(F(x), F(y))."""
    return self.base.pair(self.feature_fn(x), self.feature_fn(y))

  def matrix(self, queries: Particles, sources: Particles) -> Array:
    """As in `Kernel`: the base's matrix of the features."""
    features = jax.vmap(self.feature_fn)
    return self.base.matrix(features(queries), features(sources))

  def resolve(
    self,
    particles: Particles,
    *,
    block_size: int | None = None,
    axis_name: str | None = None,
  ) -> "OnFeatures":
    """The same kernel with its bandwidth taken of the features."""
    base = self.base.resolve(
      jax.vmap(self.feature_fn)(particles), block_size=block_size, axis_name=axis_name
    )
    return dataclasses.replace(self, base=base)

  def stein_sums(
    self,
    queries: Particles,
    sources: Particles,
    scores: Particles,
    *,
    block_size: int | None = None,
    axis_name: str | None = None,
  ) -> tuple[Particles, Array]:
    """As in `Kernel`; the features are linearised once, at the sources.

    ∇_{yⱼ} k(yⱼ, xᵢ) = J_F(yⱼ)ᵀ ∇_z base(zⱼ, F(xᵢ)): every query sends its own
    cotangents through the one linearisation. Where F is affine, J_F is the same
    everywhere and comes before the sum: Σⱼ ∇_{yⱼ} k(yⱼ, xᵢ) = J_Fᵀ Σⱼ ∇_z base(zⱼ, zᵢ).
    """
    if queries is sources or axis_name is not None:
      self = self.resolve(queries, block_size=block_size, axis_name=axis_name)
    if self.affine:
      return self._affine_stein_sums(queries, sources, scores, block_size=block_size)
    features, pull_back = jax.vjp(jax.vmap(self.feature_fn), sources)

    def at_query(z_query: PyTree) -> tuple[PyTree, Array]:
      values, cotangents = _values_and_gradients(self.base, features, z_query)
      (gradients,) = pull_back(cotangents)
      return _stein_sum(values, gradients, scores), values.sum()

    num_columns = jax.tree.leaves(sources)[0].shape[0]
    query_features = jax.vmap(self.feature_fn)(queries)
    return pairwise.map_rows(
      at_query, query_features, num_columns, block_size or self.rows_in_flight
    )

  def _affine_stein_sums(
    self,
    queries: Particles,
    sources: Particles,
    scores: Particles,
    *,
    block_size: int | None,
  ) -> tuple[Particles, Array]:
    query_features, pull_back = jax.vjp(jax.vmap(self.feature_fn), queries)
    same = queries is sources
    features = query_features if same else jax.vmap(self.feature_fn)(sources)
    no_scores = jax.tree.map(jnp.zeros_like, features)
    repulsion, mass = self.base.stein_sums(
      query_features, features, no_scores, block_size=block_size
    )
    s, unravel = pairwise.as_matrix(scores)

    def weighted_scores(z_query: PyTree) -> Array:
      one_query = jax.tree.map(lambda z: z[None], z_query)
      return pairwise.matmul(self.base.matrix(one_query, features)[0], s)

    attraction = pairwise.map_rows(
      weighted_scores,
      query_features,
      s.shape[0],
      block_size or self.base.rows_in_flight,
    )
    sums = jax.tree.map(jnp.add, unravel(attraction), pull_back(repulsion)[0])
    return sums, mass

  def repulsion(self, particles: Particles) -> tuple[Array, Callable[[Array], PyTree]]:
    """As in `Kernel`; of affine features, V = R A with R the features' repulsion."""
    if not self.affine:
      return super().repulsion(particles)
    features, pull_back = jax.vjp(jax.vmap(self.feature_fn), particles)
    no_scores = jax.tree.map(jnp.zeros_like, features)
    sums, _ = self.base.stein_sums(features, features, no_scores)
    factor, unravel = pairwise.as_matrix(sums)
    return factor, lambda factor: pull_back(unravel(factor))[0]


KernelLike: TypeAlias = "Kernel | Callable[[Params], Kernel | None] | None"
"""A kernel, None ("kernel off"), or `kernel_fn(params) -> kernel`."""


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


def from_pairwise(k: Callable[[PyTree, PyTree], Array]) -> Pairwise:
  """Any symmetric positive definite k(x, y) of two points, differentiated by JAX.

  Slower than the radial kernels, which work by matrix products. `k` should be a
  function defined once: a fresh lambda for every call is compiled anew every time.
  """
  return Pairwise(k)


def on_features(
  kernel: Kernel, feature_fn: Callable[[PyTree], PyTree], *, affine: bool = False
) -> OnFeatures:
  """k(x, y) = kernel(F(x), F(y)), with the exact gradient through the features F.

  Args:
    kernel: a kernel of feature vectors; a bandwidth policy looks at the features.
    feature_fn: one point -> its features. Features with parameters are given as
      `jax.tree_util.Partial(fn, params)`, whose parameters are leaves of the kernel:
      new values then need no new compilation.
    affine: promises that F(x) = Ax + a, which spares n² pull-backs through F. It is
      not checked: the repulsion is wrong where the promise is.

  Source: Liu & Wang (2017), section 5.2.
  """
  if not isinstance(kernel, Kernel):
    raise TypeError(f"on_features needs a kernel such as rbf(), got {kernel!r}.")
  is_partial = isinstance(feature_fn, Partial)
  feature_fn = feature_fn if is_partial else Partial(feature_fn)
  return OnFeatures(kernel, feature_fn, affine)


def at(kernel: KernelLike, params: Params) -> Kernel | None:
  """The kernel of an algorithm at its current parameters, which it holds constant.

  Raises:
    TypeError: neither a kernel, nor None, nor a function that returns one.
  """
  if kernel is not None and not isinstance(kernel, Kernel):
    if not callable(kernel):
      raise TypeError(
        f"kernel must be a kernel, None or kernel_fn(params) -> kernel, got {kernel!r}."
      )
    kernel = kernel(jax.lax.stop_gradient(params))
  return checked(kernel)


def checked(kernel: Kernel | None) -> Kernel | None:
  """The same kernel.

  Raises:
    TypeError: neither a kernel nor None; a function that makes one is not one.
  """
  if kernel is not None and not isinstance(kernel, Kernel):
    raise TypeError(
      f"kernel must be a kernel such as kernels.rbf(), or None, got {kernel!r}."
    )
  return kernel
