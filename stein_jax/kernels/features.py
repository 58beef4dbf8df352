"""Kernels on features, with the exact repulsion through them."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass

from stein_jax import checks
from stein_jax.kernels.base import Kernel, registered, values_and_gradients
from stein_jax.pairs.points import as_matrix, map_rows, num_rows
from stein_jax.pairs.tiles import DEFAULTS, Streaming
from stein_jax.parallel import axes
from stein_jax.types import Array, Particles, PyTree


@partial(
  register_dataclass,
  data_fields=["base", "feature_fn"],
  meta_fields=["affine", "num_neighbors"],
)
@dataclasses.dataclass(frozen=True)
class OnFeatures(Kernel):
  """k(x, y) = base(F(x), F(y)), with the exact repulsion through F."""

  base: Kernel
  feature_fn: Any
  affine: bool = False
  num_neighbors: int | None = None

  @property
  def sums_by_blocks(self) -> bool:
    """As in `Kernel`; the nearest neighbours are only known among all points."""
    return self.num_neighbors is None and self.base.sums_by_blocks

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """base(F(x), F(y))."""
    return self.base.pair(self.feature_fn(x), self.feature_fn(y))

  def matrix(self, queries: Particles, sources: Particles | None = None) -> Array:
    """As in `Kernel`: the base's matrix of the features."""
    return self.base.matrix(self._features(queries), self._features(sources))

  def resolve(
    self, particles: Particles, streaming: Streaming = DEFAULTS
  ) -> "OnFeatures":
    """The same kernel, its bandwidth computed from the features."""
    base = self.base.resolve(self._features(particles), streaming)
    return dataclasses.replace(self, base=base)

  def apply(
    self,
    queries: Particles,
    sources: Particles | None,
    values: PyTree,
    *,
    streaming: Streaming = DEFAULTS,
    leave_one_out: bool = False,
  ) -> PyTree:
    """As in `Kernel`: the base's sums over the features."""
    return self.base.apply(
      self._features(queries),
      self._features(sources),
      values,
      streaming=streaming,
      leave_one_out=leave_one_out,
    )

  def _features(self, particles: Particles | None) -> Particles | None:
    return None if particles is None else jax.vmap(self.feature_fn)(particles)

  def stein_sums(
    self,
    queries: Particles,
    sources: Particles | None,
    scores: Particles,
    *,
    streaming: Streaming = DEFAULTS,
    leave_one_out: bool = False,
  ) -> tuple[Particles, Array]:
    """As in `Kernel`, with z = F(x) and ∇_{yⱼ} k(yⱼ, xᵢ) = J(yⱼ)ᵀ ∇_{zⱼ} base(zⱼ, zᵢ).

    Every pair has a product with Jᵀ of its own. F is linearised once, at the sources.
    One pull-back through it serves the n pairs of one query. With fewer features than
    queries, the pull-backs of the features themselves serve all pairs. If F is affine,
    J is the same everywhere, and one pull-back of the sums is enough.
    """
    is_own = sources is None or streaming.axis_name is not None
    kernel = self.resolve(queries, streaming) if is_own else self
    options: dict[str, Any] = {"streaming": streaming, "leave_one_out": leave_one_out}
    if streaming.ring:
      return kernel._in_ring(kernel.stein_sums, queries, scores, **options)
    features, pull_back = jax.vjp(
      jax.vmap(self.feature_fn), queries if sources is None else sources
    )
    z_queries, z_sources, pull_back_queries = features, None, pull_back
    if sources is not None:
      z_sources = features
      z_queries, pull_back_queries = jax.vjp(jax.vmap(self.feature_fn), queries)
    attraction, mass = kernel.base.attraction(z_queries, z_sources, scores, **options)
    own = None
    if leave_one_out or (is_own and self.num_neighbors is not None):
      own = axes.global_indices(num_rows(queries), streaming.axis_name)
    if self.affine:
      sums = kernel._feature_repulsion(z_queries, z_sources, **options)
      (repulsion,) = pull_back_queries(sums)
    elif self.num_neighbors is not None:
      y = queries if sources is None else sources
      repulsion = kernel._repulsion_of_nearest(z_queries, features, y, own, streaming)
    else:
      repulsion = kernel._repulsion(z_queries, features, pull_back, own, streaming)
    return jax.tree.map(jnp.add, attraction, repulsion), mass

  def _feature_repulsion(
    self, z_queries: Particles, z_sources: Particles | None, **options: Any
  ) -> Particles:
    """Σⱼ ∇_{zⱼ} base(zⱼ, zᵢ), which affine features pull back as a whole."""
    features = z_queries if z_sources is None else z_sources
    no_scores = jax.tree.map(jnp.zeros_like, features)
    return self.base.stein_sums(z_queries, z_sources, no_scores, **options)[0]

  def _repulsion(
    self,
    z_queries: Particles,
    features: Particles,
    pull_back: Callable[[Particles], tuple[Particles]],
    own: Array | None,
    streaming: Streaming,
  ) -> Particles:
    """Σⱼ J(yⱼ)ᵀ cᵢⱼ, cᵢⱼ = ∇_{zⱼ} base(zⱼ, zᵢ), without the j given by `own`."""
    z, unravel = as_matrix(features)
    n, num_features = z.shape
    num_queries = num_rows(z_queries)

    def cotangents(query: tuple[PyTree, Array | None]) -> Particles:
      z_query, index = query
      gradients = values_and_gradients(self.base, features, z_query)[1]
      if index is None:
        return gradients
      is_other = jnp.arange(n) != index
      return jax.tree.map(
        lambda g: jax.vmap(lambda g, other: jnp.where(other, g, 0))(g, is_other),
        gradients,
      )

    held = num_queries * n * num_features <= _HELD_COTANGENTS
    if num_features >= num_queries or not held:

      def at_query(query: tuple[PyTree, Array | None]) -> PyTree:
        (gradients,) = pull_back(cotangents(query))
        return jax.tree.map(lambda g: g.sum(axis=0), gradients)

      rows = streaming.block_size or self.rows_at_once
      return map_rows(at_query, (z_queries, own), n, rows)

    c = jax.vmap(lambda query: as_matrix(cotangents(query))[0])((z_queries, own))
    unit = axes.varying_as(z, jnp.eye(num_features, dtype=z.dtype))

    # Σⱼ J(yⱼ)ᵀ cᵢⱼ = Σ_f Σⱼ cᵢⱼ[f] J(yⱼ)ᵀ e_f
    def of_feature(f: Array) -> Particles:
      (rows,) = pull_back(unravel(jnp.broadcast_to(unit[f], z.shape)))
      return jax.tree.map(
        lambda r: jnp.tensordot(c[:, :, f], r, 1, precision=jax.lax.Precision.HIGHEST),
        rows,
      )

    def add(total: Particles, f: Array) -> tuple[Particles, None]:
      return jax.tree.map(jnp.add, total, of_feature(f)), None

    indices = jnp.arange(num_features)
    return jax.lax.scan(add, of_feature(indices[0]), indices[1:])[0]

  def _repulsion_of_nearest(
    self,
    z_queries: Particles,
    features: Particles,
    sources: Particles,
    own: Array | None,
    streaming: Streaming,
  ) -> Particles:
    """The sum over the `num_neighbors` sources of greatest k, without the query itself.

    Args:
      z_queries: the queries' features.
      features: the sources'.
      sources: y.
      own: the index of every query among the sources, or None.
      streaming: how many rows are computed at once.
    """
    num_queries, n = num_rows(z_queries), num_rows(features)
    k = min(self.num_neighbors or n, n if own is None else n - 1)

    def nearest_to(query: tuple[PyTree, Array | None]) -> Array:
      z_query, index = query
      (row,) = self.base.matrix(jax.tree.map(lambda z: z[None], z_query), features)
      if index is not None:
        row = jnp.where(jnp.arange(n) == index, -jnp.inf, row)
      return jax.lax.top_k(row, k)[1]

    rows = streaming.block_size or self.base.rows_at_once
    nearest = map_rows(nearest_to, (z_queries, own), n, rows).ravel()
    near = jax.tree.map(lambda y: y[nearest], sources)
    z, pull_back = jax.vjp(jax.vmap(self.feature_fn), near)
    z_repeated = jax.tree.map(lambda z: jnp.repeat(z, k, axis=0), z_queries)
    (gradients,) = pull_back(jax.vmap(jax.grad(self.base.pair))(z, z_repeated))
    return jax.tree.map(
      lambda g: g.reshape(num_queries, k, *g.shape[1:]).sum(axis=1), gradients
    )

  def repulsion(self, particles: Particles) -> tuple[Array, Callable[[Array], PyTree]]:
    """As in `Kernel`; of affine features, V = R A with R the features' repulsion."""
    if not self.affine:
      return super().repulsion(particles)
    features, pull_back = jax.vjp(jax.vmap(self.feature_fn), particles)
    factor, unravel = as_matrix(self._feature_repulsion(features, None))
    return factor, lambda factor: pull_back(unravel(factor))[0]


_HELD_COTANGENTS = 2**24
"""The largest number of cotangents, of pairs times features, that is held."""


def on_features(
  kernel: Kernel,
  feature_fn: Callable[[PyTree], PyTree],
  *,
  affine: bool = False,
  num_neighbors: int | None = None,
) -> OnFeatures:
  """k(x, y) = kernel(F(x), F(y)), with the exact gradient through the features F.

  The exact repulsion of n points costs n pull-backs of all n points through F, or one
  for each feature if there are fewer features than points.

  Args:
    kernel: a kernel of feature vectors; a bandwidth policy sees the features.
    feature_fn: one point -> its features. Features with parameters are given as
      `jax.tree_util.Partial(fn, params)`, whose parameters are leaves of the kernel:
      new values then need no new compilation.
    affine: promises that F(x) = Ax + a, which saves n² pull-backs through F. It is not
      checked: the repulsion is wrong if the promise is.
    num_neighbors: only this many nearest points (of greatest k) repel each point, which
      costs one pull-back of that many times n points. It approximates the repulsion,
      not the attraction. With a radial kernel, n − 1 neighbours are exact. The authors'
      code takes 1. None: all.

  Raises:
    TypeError: no kernel, or features that are no function.
    ValueError: num_neighbors below 1, or for affine features, which do not need it.

  Source: Liu & Wang (2017), section 5.2.
  """
  if not isinstance(kernel, Kernel):
    raise TypeError(f"on_features needs a kernel such as rbf(), got {kernel!r}.")
  registered(kernel)
  checks.function("feature_fn", feature_fn)
  checks.boolean("affine", affine)
  if num_neighbors is not None:
    checks.at_least_one("num_neighbors", num_neighbors)
    if affine:
      raise ValueError("affine features are exact at no cost: omit num_neighbors.")
  is_partial = isinstance(feature_fn, Partial)
  feature_fn = feature_fn if is_partial else Partial(feature_fn)
  return OnFeatures(kernel, feature_fn, affine, num_neighbors)
