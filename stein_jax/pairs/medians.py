"""Order statistics of the distances between points, exactly and without sorting."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stein_jax.pairs import selection
from stein_jax.pairs.distances import Distances, in_any_lane, resolution
from stein_jax.pairs.selection import TwoLeast
from stein_jax.pairs.sums import over_tables, over_tiles
from stein_jax.pairs.tiles import DEFAULTS, Streaming, Tile, Tiles, of_points
from stein_jax.parallel import axes
from stein_jax.types import Array

MAX_POINTS = 2**20
"""The largest number of points whose pairs are counted."""

_SAMPLE = 2**17


def middle_squared_distances(
  points: Array,
  ranks: tuple[int | Array, int | Array],
  sources: Array | None = None,
  *,
  distances: Distances | None = None,
  scale: float = 1.0,
  streaming: Streaming = DEFAULTS,
) -> tuple[Array, Array, Distances]:
  """Two neighbouring order statistics of ‖xᵢ − xⱼ‖² over the pairs i < j, exactly.

  Args:
    points: `[n, d]`, this device's rows.
    ranks: two ranks, counted from 0, equal or successive.
    sources: all devices' points, if they are gathered.
    distances: those of the points, if they are known already.
    scale: a factor on the result, for the accuracy of the returned distances.
    streaming: how the points are sharded.

  Returns:
    The two values, of the points' dtype, and the distances. If these are held in
    memory, they are now right to within a small part of `scale` times the result.

  Raises:
    ValueError: more than 2²⁰ points.
  """
  n = len(points) * axes.size(streaming.axis_name)
  if n > MAX_POINTS:
    raise ValueError(
      f"the exact median counts the pairs of up to {MAX_POINTS} particles, got "
      f"{n}. Take the bandwidth of a subsample (`subsample=4096`)."
    )
  if distances is None:
    distances = Distances(of_points(points, sources, streaming))
    if distances.may_be_held and not streaming.ring:
      distances = distances.held()
  num_pairs = n * (n - 1) // 2
  limbs = selection.limbs_for(num_pairs)
  counts = (selection.as_count(ranks[0], limbs), selection.as_count(ranks[1], limbs))
  total = selection.as_count(num_pairs, limbs)
  first = _first_pivots(distances, counts[0], total, n, streaming)

  def select(distances: Distances) -> tuple[Array, Array]:
    bits = selection.neighbours(
      *_counters(distances, limbs, streaming), counts, total, first, points.dtype
    )
    low, high = (selection.of_bits(b, points.dtype) for b in bits)
    return low, high

  # A matrix product is wrong by some ulps of ‖x‖², so that coinciding points may seem
  # apart. Where the result is small compared with the points themselves (duplicates,
  # distant outliers), it is selected from differences of the points as they are, which
  # are exact at 0, but slower.
  largest_norm = axes.maximum(distances.tiles.rows.norms.max(), streaming.axis_name)
  limit = max(1e-2, resolution(points.dtype) / scale) * largest_norm
  exact = Distances(
    of_points(points, sources, streaming, centered=False), by_differences=True
  )
  if distances.table is None:
    low, high = select(distances)
    coarse = in_any_lane(low < limit)
    low, high = jax.lax.cond(coarse, lambda: select(exact), lambda: (low, high))
    return low, high, distances

  # Counting tells beforehand, so that the selection is compiled once.
  table = distances.table
  below = _count_below(distances.tiles, table, limit, limbs, streaming)
  coarse = in_any_lane(~selection.at_most(below, counts[0]))
  table = jax.lax.cond(coarse, lambda: exact.held().table, lambda: table)
  distances = dataclasses.replace(distances, table=table)
  return *select(distances), distances


def _count_below(
  tiles: Tiles, table: Array, limit: Array, limbs: int, streaming: Streaming
) -> Array:
  """How many pairs in a table `[T, a, b]` of all tiles are below a limit, a count."""
  row, column, inside = jax.vmap(tiles.indices)(tiles.all())
  near = inside & (row < column) & (table < limit)
  lanes = near.sum(axis=1, dtype=jnp.int32)
  return _total_over_devices(
    selection.summed(lanes.ravel(), limbs), streaming.axis_name
  )


def _counters(
  distances: Distances, limbs: int, streaming: Streaming
) -> tuple[Callable, Callable]:
  """How many distances are below a pivot, and the two least from a pivot on."""
  points = distances.tiles.rows.points
  beyond = selection.beyond(points.dtype)
  edge = distances.tiles.columns.edge

  def bits_of(distances: Distances, tile: Tile, counted: Array) -> Array:
    """The distances of the counted pairs as integers; the others are beyond all."""
    return jnp.where(counted, selection.ordered_bits(distances.at(tile)), beyond)

  def over_all(step: Callable[[Any, Array], Any], start: Any) -> Any:
    """The last carry of step(carry, bits of a tile), with each pair once."""

    def over_table(
      carry: Any, distances: Distances, _: Any, counted: Array | None
    ) -> Any:
      tiles = distances.tiles

      def on_diagonal(carry: Any, tile: Tile) -> tuple[Any, None]:
        row, column, inside = tiles.indices(tile)
        once = row < column if counted is None else counted
        return step(carry, bits_of(distances, tile, inside & once)), None

      def above(carry: Any, tile: Tile) -> tuple[Any, None]:
        return step(carry, bits_of(distances, tile, _inside(tiles, tile))), None

      carry = over_tiles(on_diagonal, carry, tiles.diagonal())
      return over_tiles(above, carry, tiles.above())

    start = axes.varying_as(points, start)
    return over_tables(distances, over_table, start, streaming=streaming)

  # The carry has a lane for every column of a tile, and is reduced once at the end. A
  # lane counts up to n²/edge pairs, which int32 can hold for 2²⁰ points.
  def counts_below(pivots: Array) -> Array:
    def add(found: Array, bits: Array) -> Array:
      return _over_rows(
        lambda found, row: found + (row[None] < pivots[:, None]), found, bits
      )

    lanes = over_all(add, jnp.zeros((len(pivots), edge), jnp.int32))
    counts = selection.summed(lanes.T, limbs)
    return _total_over_devices(counts, streaming.axis_name)

  def two_least_from(pivot: Array) -> TwoLeast:
    def lower(least: TwoLeast, bits: Array) -> TwoLeast:
      def merge(least: TwoLeast, row: Array) -> TwoLeast:
        row = jnp.where(row < pivot, beyond, row)
        return selection.merge_two_least(least, (row, beyond))

      return _over_rows(merge, least, bits)

    lanes = jnp.full(edge, beyond)
    least = selection.two_least(over_all(lower, (lanes, lanes)))
    return _least_over_devices(least, streaming.axis_name)

  return counts_below, two_least_from


def _inside(tiles: Tiles, tile: Tile) -> Array:
  """Which pairs of a tile above the diagonal are not padding: its columns decide."""
  if tiles.columns.count % tiles.columns.edge == 0:
    return jnp.ones((), bool)
  return tiles.columns.indices(tile.column)[1][None]


def _over_rows(step: Callable[[Any, Array], Any], start: Any, table: Array) -> Any:
  """The last carry of a loop over the rows of `[a, b]`, several in a step.

  The carry has a lane for every column. A CPU counts ten times as fast like this as by
  XLA's reduction of the whole table.
  """
  group = max(k for k in range(1, 9) if len(table) % k == 0)
  groups = table.reshape(-1, group, table.shape[1])

  def steps(k: Array, carry: Any) -> Any:
    for row in range(group):
      carry = step(carry, groups[k, row])
    return carry

  return jax.lax.fori_loop(0, len(groups), steps, start)


def _least_over_devices(least: TwoLeast, axis_name: str | None) -> TwoLeast:
  if axis_name is None:
    return least
  of_all = tuple(axes.gather(number[None], axis_name) for number in least)
  found = selection.two_least(of_all)
  return axes.minimum(found[0], axis_name), axes.minimum(found[1], axis_name)


def _total_over_devices(counts: Array, axis_name: str | None) -> Array:
  total = axes.total(counts, axis_name)
  return selection.plus(total, jnp.zeros_like(total))  # carries what a limb cannot hold


def _first_pivots(
  distances: Distances, rank: Array, total: Array, n: int, streaming: Streaming
) -> Array:
  """Where the search starts: around the mean, or in the bracket of a sample.

  Without a table in memory, every pass computes all distances again. Then a sample of
  pairs saves several passes.
  """
  tiles = distances.tiles
  if distances.table is not None or tiles.is_single:
    squares = axes.total(tiles.rows.norms.sum(), streaming.axis_name)
    factors = jnp.array([0.3, 0.6, 0.8, 0.9, 1.0, 1.1, 1.3, 2.0], squares.dtype)
    return selection.ordered_bits(2 * squares / n * factors)
  columns = tiles.columns
  points = columns.points.reshape(-1, columns.points.shape[2])
  key, other_key = jax.random.split(jax.random.key(0))
  i = jax.random.randint(key, (_SAMPLE,), 0, columns.count)
  offset = jax.random.randint(other_key, (_SAMPLE,), 1, columns.count)
  j = (i + offset) % columns.count
  sample = selection.ordered_bits(
    jax.lax.map(
      lambda pair: jnp.square(points[pair[0]] - points[pair[1]]).sum(),
      (i, j),
      batch_size=4096,
    )
  )
  nothing = jnp.zeros_like(total)
  quantile = selection.minus(rank, nothing) / selection.minus(total, nothing)
  deviation = 1.5 * _SAMPLE**0.5  # three times that of the rank of a median
  ends = quantile * _SAMPLE + jnp.array([-1, 1]) * deviation
  ends = jnp.clip(ends, 0, _SAMPLE - 1)

  guess = selection.ordered_bits(jnp.asarray([0.5, 1.0, 2.0, 4.0], points.dtype))
  # Constants of the loop and branch in `neighbours` vary over devices as the sample.
  guess, beyond = axes.varying_as(sample, (guess, selection.beyond(points.dtype)))

  def at_rank(rank: Array) -> Array:
    wanted = selection.as_count(rank, 1)
    return selection.neighbours(
      lambda pivots: selection.summed(
        (sample[:, None] < pivots[None]).astype(jnp.int32), 1
      ),
      lambda pivot: selection.two_least_from(sample, pivot, beyond),
      (wanted, wanted),
      selection.as_count(_SAMPLE, 1),
      guess,
      points.dtype,
    )[0]

  low, high = jax.vmap(at_rank)(ends.astype(jnp.int32))
  steps = jnp.arange(selection.NUM_PIVOTS) / (selection.NUM_PIVOTS - 1)
  first = low + (steps * (high - low).astype(float)).astype(low.dtype)
  return axes.minimum(first, streaming.axis_name)
