"""The base class `Kernel`, and `from_pairwise`, for any function of two points."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import all_leaves, register_dataclass, register_static

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.pairs.points import as_matrix, map_rows, num_rows, widened
from stein_jax.pairs.tiles import DEFAULTS, Streaming
from stein_jax.parallel import axes
from stein_jax.parallel.ring import half_ring
from stein_jax.types import Array, Exchange, Particles, PyTree


def registered(self: Any) -> None:
  """Makes a kernel a pytree, if its class is not registered as one: a constant.

  Raises:
    TypeError: an instance with numbers that is not hashed by their values, and so
      cannot be a constant.
  """
  if not all_leaves([self]):
    return
  kind = type(self)
  # Python's own hash is that of the object: its numbers could change unseen.
  by_value = kind.__hash__ not in (None, object.__hash__)
  if not by_value and (kind.__hash__ is None or vars(self)):
    raise TypeError(
      f"the kernel {kind.__name__} must be a pytree, or hashed by its values: decorate "
      "its class with @jax.tree_util.register_dataclass and "
      "@dataclasses.dataclass(frozen=True)."
    )
  register_static(kind)


def check_matrix(self: Any, queries: Particles, sources: Particles | None) -> None:
  """Validates the arguments of `Kernel.matrix`.

  Raises:
    TypeError: points that are not floating-point, or an unhashable kernel.
    ValueError: queries and sources of different shapes.
  """
  registered(self)
  checks.num_particles(queries, "queries")
  if sources is not None:
    checks.num_particles(sources, "sources")
    checks.same_event(queries, sources, ("queries", "sources"))


def check_apply(
  self: Any,
  queries: Particles,
  sources: Particles | None,
  values: PyTree,
  leave_one_out: bool,
) -> None:
  """Validates the arguments of `Kernel.apply`, as `check_matrix` does."""
  check_matrix(self, queries, sources)
  checks.arrays("values", values)
  checks.floating("values", values)
  checks.boolean("leave_one_out", leave_one_out)


class Kernel:
  """A symmetric kernel k(x, y).

  `pair` alone defines it: all sums follow from it by differentiation. Subclasses with
  more structure (radial kernels, kernels on features) override the sums with faster
  ones that agree with these.

  A subclass that is not registered as a pytree is a constant of what is compiled. With
  numbers that change, or that are differentiated, register it:
  `jax.tree_util.register_dataclass`.

  Wherever a sum takes `queries` xᵢ and `sources` yⱼ, `sources=None` says that the
  queries are the sources; the sums of a symmetric table then need half the work.
  With `streaming.axis_name` the queries are this device's points and the sources those
  of all devices; in a ring the sources are None and remote blocks come in turn.

  Attributes:
    rows_at_once: the number of queries computed at once, None to choose by size. A row
      of this class holds n points, not n numbers, so that rows go one by one.
    default_exchange: what a `Direction` of this kernel takes if its `exchange` is None;
      None: it chooses by size.
  """

  rows_at_once: ClassVar[int | None] = 1
  default_exchange: ClassVar[Exchange | None] = None

  @property
  def sums_by_blocks(self) -> bool:
    """Whether sums over blocks of the sources add up to the sum over all."""
    return True

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """k(x, y) of two points, a scalar."""
    raise TypeError(f"{type(self).__name__} does not define k(x, y).")

  def resolve(self, particles: Particles, streaming: Streaming = DEFAULTS) -> "Kernel":
    """The same kernel with a number in place of its bandwidth policy."""
    del particles, streaming
    return self

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
    """Σⱼ k(xᵢ, yⱼ) cⱼ, without holding the table of all pairs.

    Args:
      queries: xᵢ, `[m, ...]`.
      sources: yⱼ, `[n, ...]`, or None: the queries.
      values: cⱼ, `[n, ...]`, or a pytree of such.
      streaming: how the sums are computed.
      leave_one_out: whether a point is left out of its own sum: the source of the
        query's own index, where sources are given.

    Returns:
      `[m, ...]`, shaped like the values and of their dtype. 16 bits are summed in 32.
    """

    def row(x: PyTree, keep: Array | None, y: Particles, c: PyTree) -> PyTree:
      weights = _masked(jax.vmap(lambda y: self.pair(x, y))(y), keep)
      return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), c)

    x, y, c = widened((queries, sources, values))
    sums = self._sum_rows(row, x, y, c, streaming, leave_one_out)
    return jax.tree.map(lambda leaf, c: leaf.astype(c.dtype), sums, values)

  def attraction(
    self,
    queries: Particles,
    sources: Particles | None,
    scores: Particles,
    **options: Any,
  ) -> tuple[Particles, Array]:
    """Σⱼ k(xᵢ, yⱼ) scoreⱼ and Σⱼ k(xᵢ, yⱼ), `[m]`, by one `apply` with its options."""
    one = jnp.ones((num_rows(scores), 1), jax.tree.leaves(scores)[0].dtype)
    attraction, mass = self.apply(queries, sources, (scores, one), **options)
    return attraction, mass[:, 0]

  @compiled(check_matrix)
  def matrix(self, queries: Particles, sources: Particles | None = None) -> Array:
    """The matrix k(xᵢ, yⱼ), `[m, n]`, held whole."""
    sources = queries if sources is None else sources
    row = jax.vmap(self.pair, in_axes=(None, 0))
    return jax.vmap(row, in_axes=(0, None))(queries, sources)

  def stein_sums(
    self,
    queries: Particles,
    sources: Particles | None,
    scores: Particles,
    *,
    streaming: Streaming = DEFAULTS,
    leave_one_out: bool = False,
  ) -> tuple[Particles, Array]:
    """n times the SVGD direction (5) at the queries, and the kernel's row sums.

    Args:
      queries: the points xᵢ where the direction is computed, `[m, ...]`.
      sources: the points yⱼ of the sums, `[n, ...]`, or None: the queries.
      scores: ∇ log p(yⱼ), shaped like the sources.
      streaming: how the sums are computed.
      leave_one_out: as in `apply`.

    Returns:
      Σⱼ [k(yⱼ, xᵢ) scoreⱼ + ∇_{yⱼ} k(yⱼ, xᵢ)], shaped like the queries, and
      Σⱼ k(yⱼ, xᵢ), `[m]`.
    """

    def row(
      x: PyTree, keep: Array | None, y: Particles, s: Particles
    ) -> tuple[PyTree, Array]:
      values, gradients = _masked(values_and_gradients(self, y, x), keep)
      return _stein_sum(values, gradients, s), values.sum()

    return self._sum_rows(row, queries, sources, scores, streaming, leave_one_out)

  def repulsion(self, particles: Particles) -> tuple[Array, Callable[[Array], PyTree]]:
    """The repulsion Vᵢ = Σⱼ ∇_{xⱼ} k(xⱼ, xᵢ), factored.

    Returns:
      R, `[n, r]`, and a linear function `pull_back` with V = pull_back(R), shaped like
      the particles. It applies the same linear map to every row, so that
      M V = pull_back(M R).
    """
    no_scores = jax.tree.map(jnp.zeros_like, particles)
    return as_matrix(self.stein_sums(particles, None, no_scores)[0])

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
    """Sums of the Stein kernel, whose mean over pairs is the squared discrepancy.

    u_p(x, y) = sₓᵀs_y k + sₓᵀ∇_y k + s_yᵀ∇ₓ k + tr ∇ₓ∇_y k (Liu, Lee & Jordan, 2016).

    Args:
      queries: x, `[m, ...]`.
      query_scores: sₓ.
      sources: y, `[n, ...]`, all devices' points where the queries are this device's;
        None: the queries.
      scores: s_y; None if `sources` is None.
      weights: B weights of each query, `[m, B]`, such as signs as int8. The sums are
        then Σ wᵢ wⱼ u_p(xᵢ, xⱼ), for each of the B weightings in one pass over the
        pairs.
      source_weights: those of the sources, `[n, B]`; None if `sources` is None.
      streaming: how the sums are computed.

    Returns:
      The sum over this device's pairs of two different points, and the sum over the
      pairs of a point with itself: scalars, or `[B]` with weights. In a ring, the pairs
      of two devices may be counted by one of them for both.
    """
    kernel = self.resolve(queries, streaming)
    own = (queries, query_scores, weights)
    others = own if sources is None else (sources, scores, source_weights)
    n = num_rows(others)
    rows_at_once = streaming.block_size or self.rows_at_once

    def weighted(u: Array, w: Array | None, others: Array | None) -> Array:
      if w is None or others is None:
        return u.sum()
      return w.astype(u.dtype) * jnp.matmul(
        u, others.astype(u.dtype), precision=streaming.precision
      )

    def row_sums(row: tuple[Array, tuple]) -> tuple[Array, Array]:
      index, (x, score_x, w) = row
      u = kernel.stein_kernel_row(x, score_x, *others[:2])
      different = jnp.where(jnp.arange(n) == index, 0, u)
      return weighted(different, w, others[2]), u[index]

    first_axis = None if streaming.ring else streaming.axis_name
    indices = axes.global_indices(num_rows(queries), first_axis)
    pairs, itself = map_rows(row_sums, (indices, own), n, rows_at_once)
    total = pairs.sum(axis=0)
    if weights is not None:
      itself = jnp.square(weights.astype(itself.dtype)) * itself[:, None]
    if not streaming.ring:
      return total, itself.sum(axis=0)
    here = axes.index(streaming.axis_name)

    def remote(total: Array, block: tuple, origin: Array, mutual: bool) -> Any:
      def row_sum(row: tuple) -> Array:
        x, score_x, w = row
        return weighted(kernel.stein_kernel_row(x, score_x, *block[:2]), w, block[2])

      sums = map_rows(row_sum, own, n, rows_at_once)
      counted = mutual | (here < origin)  # otherwise the other device counts the pairs
      return total + jnp.where(counted, 2 * sums.sum(axis=0), 0), ()

    total, _ = half_ring(remote, total, own, (), streaming.axis_name)
    return total, itself.sum(axis=0)

  def _sum_rows(
    self,
    row: Callable[[PyTree, Array | None, Particles, PyTree], PyTree],
    queries: Particles,
    sources: Particles | None,
    values: PyTree,
    streaming: Streaming,
    leave_one_out: bool,
  ) -> PyTree:
    """row(x, keep, sources, values) of every query.

    `keep` is false for the source that is x itself; None: all sources are used.
    """

    def rows(
      x: Particles,
      y: Particles | None,
      c: PyTree,
      *,
      streaming: Streaming,
      leave_one_out: bool,
    ) -> PyTree:
      indices = None
      if leave_one_out:
        indices = axes.global_indices(num_rows(x), streaming.axis_name)
      y = x if y is None else y
      n = num_rows(y)

      def at_query(query: tuple[PyTree, Array | None]) -> PyTree:
        x, index = query
        keep = None if index is None else jnp.arange(n) != index
        return row(x, keep, y, c)

      rows_at_once = streaming.block_size or self.rows_at_once
      return map_rows(at_query, (x, indices), n, rows_at_once)

    options: dict[str, Any] = {"streaming": streaming, "leave_one_out": leave_one_out}
    if streaming.ring:
      return self._in_ring(rows, queries, values, **options)
    return rows(queries, sources, values, **options)

  def _in_ring(
    self,
    sums_of: Callable[..., PyTree],
    queries: Particles,
    values: PyTree,
    *,
    streaming: Streaming,
    leave_one_out: bool,
  ) -> PyTree:
    """sums_of(queries, sources, values) over this device's points and remote blocks."""
    alone = dataclasses.replace(streaming, axis_name=None, ring=False)
    own = sums_of(queries, None, values, streaming=alone, leave_one_out=leave_one_out)
    sums_of = partial(sums_of, streaming=alone, leave_one_out=False)

    def remote(sums: PyTree, block: PyTree, origin: Array, mutual: bool) -> Any:
      del origin
      sums = jax.tree.map(jnp.add, sums, sums_of(queries, *block))
      return sums, sums_of(block[0], queries, values) if mutual else None

    zeros = jax.tree.map(jnp.zeros_like, own)
    sums = half_ring(remote, own, (queries, values), zeros, streaming.axis_name)
    return jax.tree.map(jnp.add, *sums)

  def stein_kernel_row(
    self, x: PyTree, score_x: PyTree, sources: Particles, scores: Particles
  ) -> Array:
    """The Stein kernel u_p(x, yⱼ) of one point with all sources, `[n]`.

    The bandwidth must be a number, as `resolve` makes it.
    """
    x, unravel = ravel_pytree(x)
    score_x, _ = ravel_pytree(score_x)
    sources, _ = as_matrix(sources)
    scores, _ = as_matrix(scores)

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


def values_and_gradients(
  kernel: Kernel, sources: Particles, x: PyTree
) -> tuple[Array, Particles]:
  """k(yⱼ, x) and ∇_{yⱼ} k(yⱼ, x) for all sources, by differentiation."""
  return jax.vmap(lambda y: jax.value_and_grad(kernel.pair)(y, x))(sources)


def _stein_sum(values: Array, gradients: Particles, scores: Particles) -> PyTree:
  """Σⱼ [valueⱼ scoreⱼ + gradientⱼ], the sum of (5) at one query."""
  return jax.tree.map(
    lambda g, s: g.sum(axis=0) + jnp.tensordot(values, s, axes=1), gradients, scores
  )


def _masked(tree: PyTree, keep: Array | None) -> PyTree:
  """Rows `[n, ...]` with zeros where `keep` is false."""
  if keep is None:
    return tree
  return jax.tree.map(
    lambda leaf: jnp.where(keep.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0), tree
  )


@partial(register_dataclass, data_fields=[], meta_fields=["k"])
@dataclasses.dataclass(frozen=True)
class Pairwise(Kernel):
  """A kernel given by any symmetric function of two points."""

  k: Callable[[PyTree, PyTree], Array]

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """k(x, y)."""
    value = self.k(x, y)
    checks.scalar("k(x, y) of from_pairwise", value)
    return value


def from_pairwise(k: Callable[[PyTree, PyTree], Array]) -> Pairwise:
  """Any symmetric positive definite k(x, y) of two points, differentiated by JAX.

  Slower than the radial kernels, which work by matrix products. `k` should be a
  function that is defined once: a new lambda in each call is compiled each time.

  Raises:
    TypeError: `k` is no function.
  """
  checks.function("k", k)
  return Pairwise(k)
