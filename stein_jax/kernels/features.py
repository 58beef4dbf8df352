"""Kernels on features, with the exact repulsion through them."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, register_dataclass

from stein_jax import checks
from stein_jax.kernels.base import Kernel, values_and_gradients
from stein_jax.pairs import points as pairwise
from stein_jax.parallel import axes
from stein_jax.types import Array, Particles, Precision, PyTree


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
  def may_go_round(self) -> bool:
    """As in `Kernel`; who is nearest is known only among all."""
    return self.num_neighbors is None and self.base.may_go_round

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """base(F(x), F(y))."""
    return self.base.pair(self.feature_fn(x), self.feature_fn(y))

  def matrix(self, queries: Particles, sources: Particles) -> Array:
    """As in `Kernel`: the base's matrix of the features."""
    features = jax.vmap(self.feature_fn)
    z = features(sources)
    return self.base.matrix(z if queries is sources else features(queries), z)

  def resolve(
    self,
    particles: Particles,
    *,
    block_size: int | None = None,
    axis_name: str | None = None,
    ring: bool = False,
  ) -> "OnFeatures":
    """The same kernel with its bandwidth taken of the features."""
    features = jax.vmap(self.feature_fn)(particles)
    base = self.base.resolve(
      features, block_size=block_size, axis_name=axis_name, ring=ring
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
    ring: bool = False,
    precision: Precision = "highest",
  ) -> tuple[Particles, Array]:
    """As in `Kernel`, with z = F(x) and ∇_{yⱼ} k(yⱼ, xᵢ) = J(yⱼ)ᵀ ∇_{zⱼ} base(zⱼ, zᵢ).

    Every pair has a product of its own with Jᵀ. F is linearised once, at the sources:
    a pull-back through it serves the n pairs of one query, and with fewer features than
    queries the pull-backs of the features themselves serve all pairs. Where F is affine
    J is the same everywhere, and one pull-back of the sums does.
    """
    if ring:
      return self._sums_in_ring(queries, scores, block_size, axis_name, precision)
    if queries is sources or axis_name is not None:
      self = self.resolve(queries, block_size=block_size, axis_name=axis_name)
    features, pull_back = jax.vjp(jax.vmap(self.feature_fn), sources)
    z_queries, pull_back_queries = features, pull_back
    if queries is not sources:
      z_queries, pull_back_queries = jax.vjp(jax.vmap(self.feature_fn), queries)
    attraction, mass = self._attraction(
      z_queries, features, scores, block_size, precision
    )
    if self.affine:
      sums = self._feature_repulsion(z_queries, features, block_size)
      (repulsion,) = pull_back_queries(sums)
    elif self.num_neighbors is not None:
      own = None
      if queries is sources or axis_name is not None:
        own = axes.global_indices(len(mass), axis_name)
      repulsion = self._repulsion_of_nearest(z_queries, features, sources, own)
    else:
      repulsion = self._repulsion(z_queries, features, pull_back, block_size)
    return jax.tree.map(jnp.add, attraction, repulsion), mass

  def _attraction(
    self,
    z_queries: Particles,
    features: Particles,
    scores: Particles,
    block_size: int | None,
    precision: Precision,
  ) -> tuple[Particles, Array]:
    """Σⱼ kᵢⱼ scoreⱼ and Σⱼ kᵢⱼ."""
    s, unravel = pairwise.as_matrix(scores)

    def at_query(z_query: PyTree) -> tuple[Array, Array]:
      one_query = jax.tree.map(lambda z: z[None], z_query)
      weights = self.base.matrix(one_query, features)[0]
      return pairwise.matmul(weights, s, precision=precision), weights.sum()

    rows = block_size or self.base.rows_in_flight
    sums, mass = pairwise.map_rows(at_query, z_queries, len(s), rows)
    return unravel(sums), mass

  def _feature_repulsion(
    self, z_queries: Particles, features: Particles, block_size: int | None = None
  ) -> Particles:
    """Σⱼ ∇_{zⱼ} base(zⱼ, zᵢ), which affine features pull back as a whole."""
    no_scores = jax.tree.map(jnp.zeros_like, features)
    sums, _ = self.base.stein_sums(
      z_queries, features, no_scores, block_size=block_size
    )
    return sums

  def _repulsion(
    self,
    z_queries: Particles,
    features: Particles,
    pull_back: Callable[[Particles], tuple[Particles]],
    block_size: int | None,
  ) -> Particles:
    """Σⱼ J(yⱼ)ᵀ cᵢⱼ, cᵢⱼ = ∇_{zⱼ} base(zⱼ, zᵢ)."""

    def cotangents(z_query: PyTree) -> Particles:
      return values_and_gradients(self.base, features, z_query)[1]

    z, unravel = pairwise.as_matrix(features)
    n, num_features = z.shape
    num_queries = jax.tree.leaves(z_queries)[0].shape[0]
    cotangents_fit = num_queries * n * num_features <= _HELD_COTANGENTS
    if num_features >= num_queries or not cotangents_fit:

      def at_query(z_query: PyTree) -> PyTree:
        (gradients,) = pull_back(cotangents(z_query))
        return jax.tree.map(lambda g: g.sum(axis=0), gradients)

      rows = block_size or self.rows_in_flight
      return pairwise.map_rows(at_query, z_queries, n, rows)

    c = jax.vmap(lambda z_query: pairwise.as_matrix(cotangents(z_query))[0])(z_queries)
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

    places = jnp.arange(num_features)
    return jax.lax.scan(add, of_feature(places[0]), places[1:])[0]

  def _repulsion_of_nearest(
    self,
    z_queries: Particles,
    features: Particles,
    sources: Particles,
    own: Array | None,
  ) -> Particles:
    """The sum over the `num_neighbors` sources of greatest k, a query's own left out.

    Args:
      z_queries: the queries' features.
      features: the sources'.
      sources: y.
      own: the place of every query among the sources, or None.
    """
    table = self.base.matrix(z_queries, features)
    num_queries, n = table.shape
    k = min(self.num_neighbors or n, n if own is None else n - 1)
    if own is not None:
      table = jnp.where(jnp.arange(n)[None] == own[:, None], -jnp.inf, table)
    nearest = jax.lax.top_k(table, k)[1].ravel()
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
    sums = self._feature_repulsion(features, features)
    factor, unravel = pairwise.as_matrix(sums)
    return factor, lambda factor: pull_back(unravel(factor))[0]


_HELD_COTANGENTS = 2**26


def on_features(
  kernel: Kernel,
  feature_fn: Callable[[PyTree], PyTree],
  *,
  affine: bool = False,
  num_neighbors: int | None = None,
) -> OnFeatures:
  """k(x, y) = kernel(F(x), F(y)), with the exact gradient through the features F.

  The exact repulsion of n points costs n pull-backs of all n points through F, or one
  for each feature where these are fewer.

  Args:
    kernel: a kernel of feature vectors; a bandwidth policy looks at the features.
    feature_fn: one point -> its features. Features with parameters are given as
      `jax.tree_util.Partial(fn, params)`, whose parameters are leaves of the kernel:
      new values then need no new compilation.
    affine: promises that F(x) = Ax + a, which spares n² pull-backs through F. It is
      not checked: the repulsion is wrong where the promise is.
    num_neighbors: only so many nearest points (of greatest k) repel each point: one
      pull-back of that many times n points. An approximation of the SVGD direction,
      with attraction as it is; n − 1 neighbours are exact. The authors' code takes 1.
      None: all.

  Raises:
    TypeError: no kernel.
    ValueError: num_neighbors below 1, or for affine features, which do not need it.

  Source: Liu & Wang (2017), section 5.2.
  """
  if not isinstance(kernel, Kernel):
    raise TypeError(f"on_features needs a kernel such as rbf(), got {kernel!r}.")
  if num_neighbors is not None:
    checks.at_least_one("num_neighbors", num_neighbors)
    if affine:
      raise ValueError("affine features are exact at no cost: leave num_neighbors out.")
  is_partial = isinstance(feature_fn, Partial)
  feature_fn = feature_fn if is_partial else Partial(feature_fn)
  return OnFeatures(kernel, feature_fn, affine, num_neighbors)
