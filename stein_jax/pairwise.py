"""Reductions over pairs of points: rows in blocks, distances, order statistics."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from stein_jax import axes
from stein_jax.types import Array, Particles, PyTree

# A table of 2²⁴ pairs (n = 4096) is held whole; beyond it, rows are taken in blocks of
# about 2²² pairs, so that memory stays linear in n.
_DENSE_PAIRS = 2**24
_BLOCK_PAIRS = 2**22

# Pairs are counted in int32.
_MAX_POINTS = 2**16


def as_matrix(particles: Particles) -> tuple[Array, Callable[[Array], Particles]]:
  """Points as the rows of a matrix `[n, d]`, and the way back to their own shape."""
  rows = jax.vmap(lambda point: ravel_pytree(point)[0])(particles)
  _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], particles))
  return rows, jax.vmap(unravel)


def mean_point(points: Array) -> Array:
  """The mean of the rows, `[n, d]` -> `[1, d]`; exact where all rows are equal."""
  first = points[:1]
  return first + (points - first).mean(axis=0, keepdims=True)


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


def matmul(a: Array, b: Array) -> Array:
  """The product at the highest precision.

  Accelerators multiply float32 in lower precision by default, which would drown the
  differences of large terms that distances and kernel sums are.
  """
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def squared_distances(x: Array, points: Array, squared_norms: Array) -> Array:
  """‖x − yⱼ‖² from one point `[d]` to all rows of `points [n, d]`, as `[n]`.

  In gram form, ‖x‖² + ‖y‖² − 2xᵀy, which under vmap is one matrix product. Points
  should be centred: the form loses digits far from the origin. Lower precision, the
  default of accelerators, would ruin the difference.
  """
  product = matmul(points, x)
  return jnp.maximum(jnp.square(x).sum() + squared_norms - 2 * product, 0)


def middle_squared_distances(
  points: Array,
  ranks: tuple[int, int],
  *,
  block_size: int | None = None,
  axis_name: str | None = None,
) -> tuple[Array, Array]:
  """Two neighbouring order statistics of ‖xᵢ − xⱼ‖² over the pairs i < j, exactly.

  Nothing is sorted. A nonnegative float and the integer with the same bits are in the
  same order, so the value at a rank is built from its highest bit down: a bit is set
  when the number of pairs below the trial value does not exceed the rank.

  Args:
    points: `[n, d]`, this device's rows.
    ranks: two ranks, counted from 0, equal or successive.
    block_size: rows in flight; None chooses by size. With blocks the distances are
      computed anew for every bit, in memory linear in n.
    axis_name: the axis over which the rows are spread.

  Returns:
    The two values, of the points' dtype.

  Raises:
    ValueError: more than 65 536 points, beyond which the count of pairs overflows.
  """
  everyone = axes.gather(points, axis_name)
  n = everyone.shape[0]
  if n > _MAX_POINTS:
    raise ValueError(
      f"the exact median counts pairs in int32, enough for {_MAX_POINTS} particles, "
      f"got {n}. Take the bandwidth of a subsample (`subsample=4096`)."
    )
  centre = mean_point(everyone)
  centred = everyone - centre
  norms = jnp.square(centred).sum(axis=1)
  indices = axes.global_indices(points.shape[0], axis_name)

  def by_products() -> tuple[Array, Array]:
    def distances(x: Array) -> Array:
      return squared_distances(x, centred, norms)

    rows = (indices, points - centre)
    return _select(distances, rows, n, ranks, block_size, axis_name)

  def by_differences() -> tuple[Array, Array]:
    def distances(x: Array) -> Array:
      return jnp.square(everyone - x[None]).sum(axis=1)

    return _select(distances, (indices, points), n, ranks, block_size, axis_name)

  # A product of rows is wrong by some ulps of ‖x‖², so that coinciding points may look
  # apart. Where the result is small beside the points themselves (duplicates, far
  # outliers), it is taken again of differences, which are exact at 0 but slower.
  low, high = by_products()
  accurate = low >= 1e-2 * axes.greatest(norms.max(), axis_name)
  return jax.lax.cond(accurate, lambda: (low, high), by_differences)


def _select(
  distances: Callable[[Array], Array],
  rows: tuple[Array, Array],
  n: int,
  ranks: tuple[int, int],
  block_size: int | None,
  axis_name: str | None,
) -> tuple[Array, Array]:
  """Two order statistics of `distances(x) [n]` over the pairs above the diagonal."""
  dtype = rows[1].dtype
  integer = jnp.dtype(f"int{8 * dtype.itemsize}")
  highest = jnp.iinfo(integer).max

  def bits(row: tuple[Array, Array]) -> Array:
    index, x = row
    upper = jnp.arange(n) > index
    return jnp.where(
      upper, jax.lax.bitcast_convert_type(distances(x), integer), highest
    )

  streamed = block_size is not None or rows[1].shape[0] * n > _DENSE_PAIRS
  table = None if streamed else jax.vmap(bits)(rows)

  def per_row(fn: Callable[[Array], Array]) -> Array:
    if table is not None:
      return jax.vmap(fn)(table)
    return map_rows(lambda row: fn(bits(row)), rows, n, block_size)

  def count_below(value: Array) -> Array:
    counts = per_row(lambda row: jnp.sum(row < value, dtype=jnp.int32))
    return axes.total(counts.sum(dtype=jnp.int32), axis_name)

  def set_bit(step: Array, value: Array) -> Array:
    trial = value | (jnp.ones((), integer) << (num_bits - 1 - step).astype(integer))
    return jnp.where(count_below(trial) <= ranks[0], trial, value)

  num_bits = 8 * dtype.itemsize - 1
  # The loop's first value is made of a count, so that it varies over devices as the
  # later ones do.
  zero = (0 * count_below(jnp.zeros((), integer))).astype(integer)
  low = jax.lax.fori_loop(0, num_bits, set_bit, zero)

  above = per_row(lambda row: jnp.min(jnp.where(row > low, row, highest))).min()
  above = axes.least(above, axis_name)
  high = jnp.where(count_below(low + 1) > ranks[1], low, above)
  low, high = (jax.lax.bitcast_convert_type(v, dtype) for v in (low, high))
  return low, high
