"""The middle of all distances between points, exactly and without sorting."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stein_jax.pairs import selection
from stein_jax.pairs.selection import Count
from stein_jax.pairs.tiles import (
  Place,
  Tiles,
  in_any_lane,
  over_tables,
  scan,
)
from stein_jax.parallel import axes
from stein_jax.types import Array

MAX_POINTS = 2**20
"""The most points whose pairs are counted."""

_SAMPLE = 2**17


def middle_squared_distances(
  points: Array, ranks: tuple[int | Array, int | Array], tiles: Tiles
) -> tuple[Array, Array]:
  """Two neighbouring order statistics of ‖xᵢ − xⱼ‖² over the pairs i < j, exactly.

  Args:
    points: `[n, d]`, this device's rows.
    ranks: two ranks, counted from 0, equal or successive.
    tiles: of these points.

  Returns:
    The two values, of the points' dtype.

  Raises:
    ValueError: more than 2²⁰ points.
  """
  n = tiles.num_points
  if n > MAX_POINTS:
    raise ValueError(
      f"the exact median counts the pairs of up to {MAX_POINTS} particles, got "
      f"{n}. Take the bandwidth of a subsample (`subsample=4096`)."
    )
  counts = (selection.as_count(ranks[0]), selection.as_count(ranks[1]))
  total = selection.as_count(n * (n - 1) // 2)
  first = _first_pivots(tiles, counts[0], total)

  def middle(counts_below: Callable, two_least_from: Callable) -> tuple[Array, Array]:
    low, high = selection.neighbours(
      counts_below, two_least_from, counts, total, first, points.dtype
    )
    return selection.of_bits(low, points.dtype), selection.of_bits(high, points.dtype)

  low, high = middle(*_of_tiles(tiles))
  # A product of rows is wrong by some ulps of ‖x‖², so that coinciding points may look
  # apart. Where the result is small beside the points themselves (duplicates, far
  # outliers), it is taken again of differences, which are exact at 0 but slower.
  farthest = axes.greatest(tiles.row_norms.max(), tiles.axis_name)

  def by_differences() -> tuple[Array, Array]:
    everyone = axes.gather(points, None if tiles.ring else tiles.axis_name)
    exact = dataclasses.replace(
      tiles,
      rows=tiles.cut_rows(points),
      columns=tiles.cut_columns(everyone),
      by_differences=True,
      held=None,
    )
    return middle(*_of_tiles(exact))

  return jax.lax.cond(
    in_any_lane(low < 1e-2 * farthest), by_differences, lambda: (low, high)
  )


def _of_tiles(tiles: Tiles) -> tuple[Callable, Callable]:
  """How many distances are below some, and the two least from one on, by tiles."""
  beyond = selection.beyond(tiles.rows.dtype)

  def bits_on_diagonal(tiles: Tiles, place: Place) -> Array:
    bits = selection.ordered_bits(tiles.at(place))
    return jnp.where(tiles.above_diagonal(place), bits, beyond)

  def bits_above(tiles: Tiles, place: Place) -> Array:
    bits = selection.ordered_bits(tiles.at(place))
    if tiles.n % tiles.width == 0:
      return bits
    columns = place[2] * tiles.width + jnp.arange(tiles.width)
    return jnp.where((columns < tiles.n)[None], bits, beyond)

  def over_all(step: Callable[[Any, Array], Any], start: Any) -> Any:
    """The last carry of step(carry, bits of a tile), each pair being there once."""

    def over_table(carry: Any, tiles: Tiles, _: Any) -> Any:
      def of(bits_of: Callable[[Tiles, Place], Array]) -> Callable:
        return lambda carry, place: (step(carry, bits_of(tiles, place)), None)

      diagonal, above = tiles.places()
      carry = scan(of(bits_on_diagonal), carry, diagonal)
      return scan(of(bits_above), carry, above)

    return over_tables(tiles, over_table, axes.varying_as(tiles.rows, start))

  def counts_below(pivots: Array) -> Count:
    def adding(counts: Count, bits: Array) -> Count:
      found = jnp.zeros((len(pivots), tiles.width), jnp.int32)
      found = _over_rows(
        lambda found, row: found + (row[None] < pivots[:, None]),
        axes.varying_as(tiles.rows, found),
        bits,
      )
      return selection.plus(counts, selection.summed(found.T))

    nothing = selection.as_count(jnp.zeros(pivots.shape, jnp.int32))
    return _over_devices(over_all(adding, nothing), tiles.axis_name)

  def two_least_from(pivot: Array) -> tuple[Array, Array]:
    def lowering(least: tuple[Array, Array], bits: Array) -> tuple[Array, Array]:
      def lower(least: tuple[Array, Array], row: Array) -> tuple[Array, Array]:
        row = jnp.where(row < pivot, beyond, row)
        return selection.two_least_of(least, (row, beyond))

      return _over_rows(lower, least, bits)

    lanes = jnp.full(tiles.width, beyond)
    least = over_all(lowering, (lanes, lanes))
    least = selection.two_least(jnp.stack(least), pivot, beyond)
    return _least_over_devices(least, tiles.axis_name)

  return counts_below, two_least_from


def _over_rows(step: Callable[[Any, Array], Any], start: Any, table: Array) -> Any:
  """The last carry of a loop over the rows of `[b, c]`, several in a step.

  The carry's lanes are the columns: a CPU counts so ten times as fast as by XLA's
  reduction of the whole table.
  """
  group = max(k for k in range(1, 17) if len(table) % k == 0)
  groups = table.reshape(-1, group, table.shape[1])

  def steps(k: Array, carry: Any) -> Any:
    for row in range(group):
      carry = step(carry, groups[k, row])
    return carry

  return jax.lax.fori_loop(0, len(groups), steps, start)


def _least_over_devices(
  least: tuple[Array, Array], axis_name: str | None
) -> tuple[Array, Array]:
  if axis_name is None:
    return least
  of_all = axes.gather(jnp.stack(least), axis_name)
  found = selection.two_least(of_all, of_all.min(), of_all.max())
  return axes.least(found[0], axis_name), axes.least(found[1], axis_name)


def _over_devices(counts: Count, axis_name: str | None) -> Count:
  high, low = axes.total(tuple(counts), axis_name)
  return selection.plus(Count(high, jnp.zeros_like(low)), selection.as_count(low))


def _first_pivots(tiles: Tiles, rank: Count, total: Count) -> Array:
  """Where the search begins: around the mean, or in a sample's bracket.

  Where no tile is held every look at the table costs its products anew; a sample of
  pairs then saves several.
  """
  if tiles.held is not None or len(tiles.places()[0][0]) == 1:
    spread = axes.total(tiles.row_norms.sum(), tiles.axis_name)
    factors = jnp.array([0.3, 0.6, 0.8, 0.9, 1.0, 1.1, 1.3, 2.0], spread.dtype)
    return selection.ordered_bits(2 * spread / tiles.num_points * factors)
  points = tiles.columns.reshape(-1, tiles.columns.shape[2])
  key, other_key = jax.random.split(jax.random.key(0))
  i = jax.random.randint(key, (_SAMPLE,), 0, tiles.n)
  j = (i + jax.random.randint(other_key, (_SAMPLE,), 1, tiles.n)) % tiles.n
  sample = selection.ordered_bits(
    jax.lax.map(
      lambda pair: jnp.square(points[pair[0]] - points[pair[1]]).sum(),
      (i, j),
      batch_size=4096,
    )
  )
  beyond = selection.beyond(points.dtype)
  place = (rank - selection.as_count(0)) / (total - selection.as_count(0))
  deviation = 1.5 * _SAMPLE**0.5  # three times that of the rank of a median
  ends = jnp.clip(place * _SAMPLE + jnp.array([-1, 1]) * deviation, 0, _SAMPLE - 1)

  def at_rank(rank: Array) -> Array:
    wanted = selection.as_count(rank)
    return selection.neighbours(
      lambda pivots: selection.summed(
        (sample[:, None] < pivots[None]).astype(jnp.int32)
      ),
      lambda pivot: selection.two_least(sample, pivot, beyond),
      (wanted, wanted),
      selection.as_count(_SAMPLE),
      selection.ordered_bits(jnp.asarray([0.5, 1.0, 2.0, 4.0], points.dtype)),
      points.dtype,
    )[0]

  low, high = jax.vmap(at_rank)(ends.astype(jnp.int32))
  steps = jnp.arange(selection.NUM_PIVOTS) / (selection.NUM_PIVOTS - 1)
  first = low + (steps * (high - low).astype(float)).astype(low.dtype)
  return axes.least(first, tiles.axis_name)
