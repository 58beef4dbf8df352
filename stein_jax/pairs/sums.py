"""Sums over all pairs of points, one tile at a time, on one device or in a ring."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from stein_jax.pairs.distances import Distances
from stein_jax.pairs.points import matmul
from stein_jax.pairs.tiles import DEFAULTS, Blocks, Streaming, Tile, Tiles
from stein_jax.parallel import axes, ring
from stein_jax.types import Array

T = TypeVar("T")
Sums = tuple[Array, ...]


def products(
  distances: Distances,
  weights_of: Callable[[Array], Sums],
  values: Sums,
  *,
  streaming: Streaming = DEFAULTS,
  leave_one_out: bool = False,
) -> Sums:
  """Σⱼ Wᵢⱼ vⱼ for symmetric matrices W = f(D) of the squared distances D.

  With all of D in memory: `tuple(W @ v for W, v in zip(f(D), values))`.

  Args:
    distances: D.
    weights_of: f, which acts on each distance by itself: a tile of D -> that of each W.
    values: v, for each W an array `[n, r]` of the columns' points.
    streaming: the precision of the products, and how the points are sharded.
    leave_one_out: whether a point is left out of its own sum, Σ_{j≠i}.

  Returns:
    For each W an array `[m, r]` of the rows' points.
  """
  tiles = distances.tiles
  values = tuple(tiles.columns.split(v) for v in values)

  def product(a: Array, b: Array) -> Array:
    return matmul(a, b, precision=streaming.precision)

  def add(sums: Array, i: Array, term: Array) -> Array:
    if len(sums) == 1:
      return sums + term[None]
    return jax.lax.dynamic_update_index_in_dim(sums, sums[i] + term, i, axis=0)

  def one_way(sums: Sums, distances: Distances, values: Sums, own: bool) -> Sums:
    """Adds W v, of the tiles that are not computed for both sides."""

    def step(sums: Sums, tile: Tile) -> tuple[Sums, None]:
      weights = weights_of(distances.at(tile))
      if leave_one_out and own:
        row, column, _ = distances.tiles.indices(tile)
        weights = tuple(jnp.where(row == column, 0, w) for w in weights)
      return tuple(
        add(s, tile.row, product(w, v[tile.column]))
        for s, w, v in zip(sums, weights, values)
      ), None

    return over_tiles(step, sums, distances.tiles.diagonal())

  def both_ways(
    sums: Sums, distances: Distances, tiles: Tile, values: Sums, row_values: Sums
  ) -> tuple[Sums, Sums]:
    """Adds W v, and returns the sums Wᵀ v of the columns' points as well."""
    # The transposed sums are a separate array: two updates of one array in a step make
    # XLA copy it. They are rows, (Wᵀv)ᵀ = vᵀW: a product that transposes its left
    # factor takes a CPU several times as long.
    transposed_values = tuple(v.mT for v in row_values)

    def step(both: tuple[Sums, Sums], tile: Tile) -> tuple[Any, None]:
      weights = weights_of(distances.at(tile))
      rows = tuple(
        add(s, tile.row, product(w, v[tile.column]))
        for s, w, v in zip(both[0], weights, values)
      )
      columns = tuple(
        add(s, tile.column, product(v[tile.row], w))
        for s, w, v in zip(both[1], weights, transposed_values)
      )
      return (rows, columns), None

    sums, columns = over_tiles(step, (sums, tuple(s.mT for s in start)), tiles)
    return sums, tuple(s.mT for s in columns)

  def own_sums(distances: Distances) -> Sums:
    sums = one_way(start, distances, values, own=True)
    above = distances.tiles.above()
    if not len(above.row):
      return sums
    sums, columns = both_ways(sums, distances, above, values, values)
    return tuple(s + c for s, c in zip(sums, columns))

  def remote_sums(
    sums: Sums, remote: tuple[Blocks, Sums], origin: Array, mutual: bool
  ) -> tuple[Sums, Sums]:
    del origin
    blocks, remote_values = remote
    pairs = against(distances, blocks)
    if not mutual:
      return pairs.either(lambda d: one_way(sums, d, remote_values, own=False)), start
    return pairs.either(
      lambda d: both_ways(sums, d, d.tiles.diagonal(), remote_values, values)
    )

  shape = tiles.rows.points.shape[:2]
  start = tuple(
    jnp.zeros((*shape, v.shape[2]), jnp.result_type(v, tiles.rows.points))
    for v in values
  )
  start = axes.varying_as((tiles.rows.points, values), start)
  sums = distances.either(own_sums)
  if streaming.ring:
    block = (tiles.columns, values)
    sums, partial = ring.half_ring(remote_sums, sums, block, start, streaming.axis_name)
    sums = tuple(s + p for s, p in zip(sums, partial))
  return tuple(tiles.rows.joined(s) for s in sums)


def sum_over_pairs(
  distances: Distances,
  values_of: Callable[[Tiles, Any, Tile, Array], Array],
  column_values: Any = (),
  *,
  weights: tuple[Array, Array] | None = None,
  streaming: Streaming = DEFAULTS,
) -> Array:
  """The sum of a symmetric function over the pairs of two different points.

  It is this device's part: the parts of all devices add up to the whole. In a ring, a
  pair of two devices may be counted twice by one of them and not by the other.

  Args:
    distances: of the points.
    values_of: the tiles, the values that belong to their columns, a tile and its
      squared distances -> the function's values, `[a, b]`.
    column_values: arrays that belong to the columns, split as these are.
    weights: w of the rows' and of the columns' points, each split as these are,
      `[blocks, b, B]`, of any dtype. The result is then Σ wᵢ wⱼ uᵢⱼ for each of the B
      weightings, `[B]`.
    streaming: how the points are sharded.
  """

  def weighted(values: Array, tile: Tile, column_weights: Array | None) -> Array:
    if weights is None or column_weights is None:
      return values.sum()
    # Only a tile's weights are converted: all of them would take several times the
    # memory of int8.
    rows, columns = (
      w[block].astype(values.dtype)
      for w, block in ((weights[0], tile.row), (column_weights, tile.column))
    )
    return (matmul(values, columns, precision=streaming.precision) * rows).sum(axis=0)

  def total_of(distances: Distances, column_values: Any) -> Array:
    column_values, column_weights = column_values

    def adding(factor: int) -> Callable:
      def step(total: Array, tile: Tile) -> tuple[Array, None]:
        row, column, inside = distances.tiles.indices(tile)
        values = values_of(distances.tiles, column_values, tile, distances.at(tile))
        values = jnp.where(inside & (row != column), values, 0)
        return total + factor * weighted(values, tile, column_weights), None

      return step

    total = over_tiles(adding(1), start, distances.tiles.diagonal())
    return over_tiles(adding(2), total, distances.tiles.above())

  def step(total: Array, pairs: Distances, column_values: Any, counted: Any) -> Array:
    found = pairs.either(lambda d: total_of(d, column_values))
    return total + (found if counted is None else jnp.where(counted, 2 * found, 0))

  points = distances.tiles.rows.points
  dtype = jnp.result_type(points, *jax.tree.leaves(column_values))
  shape = () if weights is None else weights[0].shape[2:]
  start = axes.varying_as((points, column_values, weights), jnp.zeros(shape, dtype))
  values = (column_values, None if weights is None else weights[1])
  return over_tables(distances, step, start, values, streaming=streaming)


def over_tables(
  distances: Distances,
  step: Callable[[T, Distances, Any, Array | None], T],
  carry: T,
  column_values: Any = (),
  *,
  streaming: Streaming,
) -> T:
  """The final carry after all tables of this device's points with other points.

  That is one table, or in a ring one table for each remote block.

  Args:
    distances: of the points.
    step: (carry, distances, column values, counted) -> carry. `counted` is None for the
      device's own table. For that of a remote block it tells whether this device counts
      the pairs, for both devices; the remote device computes the same table, if both
      meet each other.
    carry: the first carry, which varies over devices as the points do.
    column_values: arrays that belong to the columns' points and travel with them.
    streaming: how the points are sharded.
  """
  carry = step(carry, distances, column_values, None)
  if not streaming.ring:
    return carry
  here = axes.index(streaming.axis_name)

  def remote(carry: T, block: Any, origin: Array, mutual: bool) -> tuple[T, tuple]:
    columns, values = block
    counted = mutual | (here < origin)
    return step(carry, against(distances, columns), values, counted), ()

  block = (distances.tiles.columns, column_values)
  return ring.half_ring(remote, carry, block, (), streaming.axis_name)[0]


def against(distances: Distances, columns: Blocks) -> Distances:
  """The distances of this device's points to those of another device."""
  tiles = distances.tiles.against(columns)
  return Distances(
    tiles, coarse=distances.coarse, by_differences=distances.by_differences
  )


def over_tiles(step: Callable, start: Any, tiles: Tile) -> Any:
  """The last carry of a scan over tiles. A single tile needs no loop."""
  if not len(tiles.row):
    return start
  # A derivative computes a tile's values again, so that they are not kept for all.
  step = jax.checkpoint(step)
  if len(tiles.row) == 1:
    return step(start, Tile(*(int(index[0]) for index in tiles)))[0]
  return jax.lax.scan(step, start, tiles)[0]
