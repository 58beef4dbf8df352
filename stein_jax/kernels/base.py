"""What a kernel is, and a kernel given by any function of two points."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from stein_jax.pairs import points as pairwise
from stein_jax.parallel import axes
from stein_jax.parallel.ring import half_way
from stein_jax.types import Array, Params, Particles, Precision, PyTree


class Kernel:
  """A symmetric kernel; `pair` alone defines it, the sums follow by differentiation.

  Subclasses with more structure (radial kernels, kernels on features) override the
  sums with faster ones that agree with these.

  Attributes:
    rows_in_flight: the block size that suits the sums, None to choose by size. Here a
      row of pairs holds n points, not n numbers: rows go one by one.
  """

  rows_in_flight: ClassVar[int | None] = 1

  @property
  def may_go_round(self) -> bool:
    """Whether sums over some of the sources add up to that over all."""
    return True

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """k(x, y) of two points, a scalar."""
    raise TypeError(f"{type(self).__name__} does not define k(x, y).")

  def resolve(
    self,
    particles: Particles,
    *,
    block_size: int | None = None,
    axis_name: str | None = None,
    ring: bool = False,
  ) -> "Kernel":
    """The same kernel with its bandwidth policy turned into a number."""
    del particles, block_size, axis_name, ring
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
    ring: bool = False,
    precision: Precision = "highest",
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
      ring: the sources are the queries, and the other devices' come round.
      precision: of the products of kernel values with scores, where there are such.

    Returns:
      Σⱼ [k(yⱼ, xᵢ) scoreⱼ + ∇_{yⱼ} k(yⱼ, xᵢ)], shaped like the queries, and
      Σⱼ k(yⱼ, xᵢ), `[b]`.
    """

    if ring:
      return self._sums_in_ring(queries, scores, block_size, axis_name, precision)
    del axis_name, precision  # neither a policy nor a product of matrices

    def at_query(x: PyTree) -> tuple[PyTree, Array]:
      values, gradients = values_and_gradients(self, sources, x)
      return _stein_sum(values, gradients, scores), values.sum()

    num_columns = jax.tree.leaves(sources)[0].shape[0]
    return pairwise.map_rows(
      at_query, queries, num_columns, block_size or self.rows_in_flight
    )

  def _sums_in_ring(
    self,
    particles: Particles,
    scores: Particles,
    block_size: int | None,
    axis_name: str | None,
    precision: Precision,
  ) -> tuple[Particles, Array]:
    """`stein_sums` over this device's particles and every visitor's."""
    kernel = self.resolve(
      particles, block_size=block_size, axis_name=axis_name, ring=True
    )
    sums = partial(kernel.stein_sums, block_size=block_size, precision=precision)
    own = sums(particles, particles, scores)

    def meet(carry: PyTree, visitor: PyTree, origin: Array, mutual: bool) -> Any:
      del origin
      carry = jax.tree.map(jnp.add, carry, sums(particles, *visitor))
      return carry, sums(visitor[0], particles, scores) if mutual else None

    nothing = jax.tree.map(jnp.zeros_like, own)
    found = half_way(meet, own, (particles, scores), nothing, axis_name)
    return jax.tree.map(jnp.add, *found)

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
    ring: bool = False,
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
      ring: as in `stein_sums`.

    Returns:
      The sum over this device's pairs of different points, and that over the pairs of a
      point with itself. In a ring a pair that two devices share may be in the one's sum
      for both.
    """
    kernel = self.resolve(
      queries, block_size=block_size, axis_name=axis_name, ring=ring
    )
    if ring:
      return kernel._stein_kernel_sums_in_ring(
        queries, query_scores, block_size, axis_name
      )
    num_rows = jax.tree.leaves(queries)[0].shape[0]
    n = jax.tree.leaves(sources)[0].shape[0]

    def row_sums(row: tuple[Array, PyTree, PyTree]) -> tuple[Array, Array]:
      index, x, score_x = row
      u = kernel._stein_kernel_row(x, score_x, sources, scores)
      return jnp.where(jnp.arange(n) == index, 0, u).sum(), u[index]

    rows = (axes.global_indices(num_rows, axis_name), queries, query_scores)
    sums = pairwise.map_rows(row_sums, rows, n, block_size or self.rows_in_flight)
    return sums[0].sum(), sums[1].sum()

  def _stein_kernel_sums_in_ring(
    self,
    particles: Particles,
    scores: Particles,
    block_size: int | None,
    axis_name: str | None,
  ) -> tuple[Array, Array]:
    """`stein_kernel_sums` over this device's particles and every visitor's."""
    own, itself = self.stein_kernel_sums(
      particles, scores, particles, scores, block_size=block_size
    )
    here = jax.lax.axis_index(axis_name)
    n = jax.tree.leaves(particles)[0].shape[0]

    def meet(total: Array, visitor: PyTree, origin: Array, mutual: bool) -> Any:
      sums = pairwise.map_rows(
        lambda row: self._stein_kernel_row(*row, *visitor).sum(),
        (particles, scores),
        n,
        block_size or self.rows_in_flight,
      )
      counted = mutual | (here < origin)  # else the other device counts it
      return total + jnp.where(counted, 2 * sums.sum(), 0), ()

    return half_way(meet, own, (particles, scores), (), axis_name)[0], itself

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


@partial(register_dataclass, data_fields=[], meta_fields=["k"])
@dataclasses.dataclass(frozen=True)
class Pairwise(Kernel):
  """A kernel given by any symmetric function of two points."""

  k: Callable[[PyTree, PyTree], Array]

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """k(x, y)."""
    return self.k(x, y)


KernelLike: TypeAlias = "Kernel | Callable[[Params], Kernel | None] | None"
"""A kernel, None ("kernel off"), or `kernel_fn(params) -> kernel`."""


def from_pairwise(k: Callable[[PyTree, PyTree], Array]) -> Pairwise:
  """Any symmetric positive definite k(x, y) of two points, differentiated by JAX.

  Slower than the radial kernels, which work by matrix products. `k` should be a
  function defined once: a fresh lambda for every call is compiled anew every time.
  """
  return Pairwise(k)


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
