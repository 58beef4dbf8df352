"""Points as rows of a matrix, and what is computed for every row, block by block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from stein_jax.parallel import axes
from stein_jax.types import Array, Particles, Precision, PyTree

# A table of 2²⁴ pairs (n = 4096) is held whole. Beyond it, rows are taken in blocks of
# about 2²² pairs, so that memory stays linear in n.
_DENSE_PAIRS = 2**24
_BLOCK_PAIRS = 2**22


def as_matrix(particles: Particles) -> tuple[Array, Callable[[Array], Particles]]:
  """Points as the rows of a matrix `[n, d]`, and the function that restores them."""
  rows = jax.vmap(lambda point: ravel_pytree(point)[0])(particles)
  _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], particles))
  return rows, jax.vmap(unravel)


def num_rows(tree: PyTree) -> int:
  """n, the length of the leading axis of a pytree of arrays `[n, ...]`."""
  return jax.tree.leaves(tree)[0].shape[0]


def joined(first: PyTree, second: PyTree) -> PyTree:
  """The rows of two pytrees, one after another, in the dtypes of the first."""
  return jax.tree.map(
    lambda a, b: jnp.concatenate([a, jnp.asarray(b, a.dtype)]), first, second
  )


def widened(tree: PyTree) -> PyTree:
  """The same arrays in one dtype of at least 32 bits, as sums over many points need."""
  dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(tree))
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def mean_point(points: Array, axis_name: str | None = None) -> Array:
  """The mean of the rows, `[n, d]` -> `[1, d]`; exact where all rows are equal.

  With `axis_name` it is the mean of all devices' rows.
  """
  first = points[:1]
  if axis_name is not None:
    is_first = jax.lax.axis_index(axis_name) == 0
    first = axes.total(jnp.where(is_first, first, 0), axis_name)
  return first + axes.mean((points - first).mean(axis=0, keepdims=True), axis_name)


def map_rows(
  fn: Callable[[PyTree], PyTree], rows: PyTree, num_columns: int, block_size: int | None
) -> PyTree:
  """Applies `fn` to every row, `block_size` rows at a time.

  Args:
    fn: maps one row to its result; it may use all `num_columns` points.
    rows: a pytree of arrays `[n, ...]`.
    num_columns: how many points each row is paired with.
    block_size: how many rows are computed at once. None: all rows while the table of
      pairs has at most 2²⁴ entries, otherwise as many as make 2²² entries.

  Returns:
    What `fn` returned, stacked along a leading axis n.
  """
  n = num_rows(rows)
  if block_size is None:
    dense = n * num_columns <= _DENSE_PAIRS
    block_size = n if dense else max(1, _BLOCK_PAIRS // num_columns)
  if block_size >= n:
    return jax.vmap(fn)(rows)
  return jax.lax.map(fn, rows, batch_size=block_size)


def matmul(a: Array, b: Array, *, precision: Precision = "highest") -> Array:
  """The matrix product, at the highest precision by default.

  Accelerators multiply float32 in a lower precision by default. Distances and kernel
  sums are differences of large terms and would be lost in it.
  """
  return jnp.matmul(a, b, precision=precision)
