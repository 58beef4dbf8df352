"""Points as rows of a matrix, and what is made of every row, block by block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from stein_jax.parallel import axes
from stein_jax.types import Array, Particles, Precision, PyTree

# A table of 2²⁴ pairs (n = 4096) is held whole; beyond it, rows are taken in blocks of
# about 2²² pairs, so that memory stays linear in n.
_DENSE_PAIRS = 2**24
_BLOCK_PAIRS = 2**22


def as_matrix(particles: Particles) -> tuple[Array, Callable[[Array], Particles]]:
  """Points as the rows of a matrix `[n, d]`, and the way back to their own shape."""
  rows = jax.vmap(lambda point: ravel_pytree(point)[0])(particles)
  _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], particles))
  return rows, jax.vmap(unravel)


def widened(particles: Particles) -> Particles:
  """The same points in 32 bits at least: sums over many need them."""
  return jax.tree.map(
    lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), particles
  )


def mean_point(points: Array, axis_name: str | None = None) -> Array:
  """The mean of the rows, `[n, d]` -> `[1, d]`; exact where all rows are equal.

  With `axis_name` it is that of all devices' rows.
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
    fn: one row -> what belongs to it; it may look at all `num_columns` points.
    rows: a pytree of arrays `[n, ...]`.
    num_columns: the number of points that each row meets.
    block_size: how many rows are in flight. None: all of them while the table of
      pairs has at most 2²⁴ entries, then as many as make 2²² entries.

  Returns:
    What `fn` returned, stacked along a leading axis n.
  """
  num_rows = jax.tree.leaves(rows)[0].shape[0]
  if block_size is None:
    dense = num_rows * num_columns <= _DENSE_PAIRS
    block_size = num_rows if dense else max(1, _BLOCK_PAIRS // num_columns)
  if block_size >= num_rows:
    return jax.vmap(fn)(rows)
  return jax.lax.map(fn, rows, batch_size=block_size)


def matmul(a: Array, b: Array, *, precision: Precision = "highest") -> Array:
  """The product, at the highest precision unless asked otherwise.

  Accelerators multiply float32 in lower precision by default, which would drown the
  differences of large terms that distances and kernel sums are.
  """
  return jnp.matmul(a, b, precision=precision)
