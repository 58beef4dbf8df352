"""Tables of pairs in square tiles: a symmetric one by half, and none held whole.

A tile of b × b pairs fits into the cache: its distances are one product, what is made
of them is used while it is there, and of a symmetric table the tile at (j, i) is the
transpose of that at (i, j).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from stein_jax import checks
from stein_jax.pairs import points as pairwise
from stein_jax.parallel import axes, ring
from stein_jax.types import Array, Exchange, Particles, Precision

T = TypeVar("T")
Parts = tuple[Array, ...]
Place = tuple[Any, Any, Any]
"""Of a tile: its place in `Tiles.held`, its row and its column."""

Places = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of several tiles likewise."""


@functools.partial(
  register_dataclass,
  data_fields=[
    "rows",
    "columns",
    "row_norms",
    "column_norms",
    "first_row",
    "first_column",
    "counted",
    "held",
    "coarse",
  ],
  meta_fields=["n", "num_rows", "symmetric", "by_differences", "axis_name", "ring"],
)
@dataclasses.dataclass(frozen=True)
class Tiles:
  """The squared distances between points, tile by tile.

  Attributes:
    rows: `[R, a, d]`, this device's points around the mean of all, filled up with
      zeros; a is b where the table is symmetric.
    columns: `[C, b, d]`, all points likewise; the rows themselves on one device, and in
      a ring; a visitor's while there is one.
    row_norms: `[R, a]`, squared.
    column_norms: `[C, b]`.
    first_row: the place of the first row among all points.
    first_column: that of the first column.
    n: the number of points in the columns.
    num_rows: the number of this device's points.
    symmetric: whether only tiles on and above the diagonal are reckoned.
    by_differences: whether distances are sums of squared differences, exact for near
      points, in the place of products of rows, which are many times as fast.
    held: `[T, a, b]`, all tiles, or None where each is reckoned when it is needed.
    coarse: whether products of rows are too coarse for what is made of the distances,
      which is known when it runs; None where that is settled.
    axis_name: the axis over which the rows are spread.
    ring: whether the other devices' points come as visitors (`over_tables`).
    counted: of a visitor's table, whether this device counts the pairs where both
      devices meet them; None of other tables.
  """

  rows: Array
  columns: Array
  row_norms: Array
  column_norms: Array
  first_row: Array
  first_column: Array
  n: int
  num_rows: int
  symmetric: bool
  by_differences: bool = False
  held: Array | None = None
  coarse: Array | None = None
  axis_name: str | None = None
  ring: bool = False
  counted: Array | None = None

  @property
  def num_points(self) -> int:
    """The number of all devices' points."""
    return self.n * axes.size(self.axis_name) if self.ring else self.n

  @property
  def width(self) -> int:
    """b, the number of a tile's columns."""
    return self.columns.shape[1]

  def places(self) -> tuple[Places, Places]:
    """The tiles on the diagonal, and those above it, which stand for two.

    Without symmetry all count as the former.
    """
    shape = (len(self.rows), len(self.columns))
    if not self.symmetric:
      i, j = (index.ravel() for index in np.indices(shape))
      nothing = np.zeros(0, int)
      return (np.arange(len(i)), i, j), (nothing, nothing, nothing)
    diagonal = np.arange(len(self.rows))
    i, j = np.triu_indices(len(self.rows), k=1)
    return (diagonal, diagonal, diagonal), (len(diagonal) + np.arange(len(i)), i, j)

  def at(self, place: Place) -> Array:
    """‖xᵢ − xⱼ‖² of one tile's pairs, `[a, b]`."""
    k, i, j = place
    if self.held is not None:
      return self.held[k]
    x, y = self.rows[i], self.columns[j]
    norms = self.row_norms[i][:, None] + self.column_norms[j][None]
    squared = norms - 2 * pairwise.matmul(x, y.T)
    if self.by_differences:
      # The derivatives are the product's, which are as right and need no memory.
      nothing = squared - jax.lax.stop_gradient(squared)
      squared = _by_differences(x, y) + nothing
    return jnp.maximum(squared, 0)

  def resolving(self, scale: Array) -> "Tiles":
    """The same, with distances right to within a small part of `scale`.

    A product of rows is wrong by some ulps of ‖x‖². Where that is much beside the
    scale, as between points of clusters far apart, differences take its place.

    Args:
      scale: a squared distance, such as a bandwidth.
    """
    # Two points are near only where both are as far from the mean.
    norm = jnp.minimum(self.row_norms.max(), self.column_norms.max())
    coarse = in_any_lane(jnp.finfo(norm.dtype).eps * norm > 1e-4 * scale)
    if self.ring or (self.held is None and len(self.places()[0][0]) > 1):
      return dataclasses.replace(self, coarse=coarse)
    # The distances alone: what a branch looks at is copied, at every training step.
    exact = dataclasses.replace(self, by_differences=True, held=None)
    held = self if self.held is not None else self.hold()
    distances = jax.lax.cond(coarse, lambda: exact.hold().held, lambda: held.held)
    return dataclasses.replace(self, held=distances)

  def either(self, fn: Callable[["Tiles"], T]) -> T:
    """fn of these tiles, or of exact ones where `coarse` turns out to hold."""
    if self.coarse is None:
      return fn(self)
    plain = dataclasses.replace(self, coarse=None)
    # All tiles, since the sums of transposed ones would take memory of their own.
    exact = dataclasses.replace(plain, by_differences=True, symmetric=False)
    return jax.lax.cond(self.coarse, lambda: fn(exact), lambda: fn(plain))

  def may_be_held(self) -> bool:
    """Whether all tiles fit into 2²⁴ numbers or so, as for n = 4096."""
    return not self.ring and self.num_rows * self.n <= _HELD_PAIRS

  def hold(self) -> "Tiles":
    """The same with all tiles held."""
    places = tuple(np.concatenate(indices) for indices in zip(*self.places()))
    return dataclasses.replace(self, held=jax.lax.map(self.at, places))

  def cut_columns(self, of_points: Array) -> Array:
    """`[n, r]` filled up with zeros and cut as the columns are, `[C, b, r]`."""
    return _cut(of_points, self.width)

  def cut_rows(self, of_points: Array) -> Array:
    """`[num_rows, r]` likewise as the rows are, `[R, a, r]`."""
    return _cut(of_points, self.rows.shape[1])

  def points(self) -> tuple[Array, Array]:
    """The centred points of the rows, `[num_rows, d]`, and of the columns, `[n, d]`."""
    d = self.rows.shape[2]
    rows = self.rows.reshape(-1, d)[: self.num_rows]
    return rows, self.columns.reshape(-1, d)[: self.n]

  def indices(self, place: Place) -> tuple[Array, Array, Array]:
    """The points `[a, 1]` and `[1, b]` of a tile's rows and columns, and what is no
    filling, `[a, b]`."""
    _, i, j = place
    height = self.rows.shape[1]
    row = (i * height + jnp.arange(height))[:, None]
    column = (j * self.width + jnp.arange(self.width))[None]
    inside = (row < self.num_rows) & (column < self.n)
    return self.first_row + row, self.first_column + column, inside

  def above_diagonal(self, place: Place) -> Array:
    """Which pairs of a tile are above the diagonal of the table of all, `[a, b]`.

    Of a visitor's table those below stand for their twins above.
    """
    row, column, inside = self.indices(place)
    return inside & (row < column if self.counted is None else self.counted)

  def visited_by(
    self, columns: Array, column_norms: Array, origin: Array, mutual: bool
  ) -> "Tiles":
    """The table of this device's points with those of another one."""
    first_column = origin * self.num_rows
    return dataclasses.replace(
      self,
      columns=columns,
      column_norms=column_norms,
      first_column=first_column,
      symmetric=False,
      held=None,
      counted=mutual | (self.first_row < first_column),
    )


def of_points(
  rows: Array,
  columns: Array,
  *,
  block_size: int | None = None,
  axis_name: str | None = None,
  ring: bool = False,
) -> Tiles:
  """The tiles of points `[n, d]`.

  Args:
    rows: this device's points.
    columns: all points; the same object on one device and in a ring, where symmetry is
      used.
    block_size: the most of a and b. None: as large as serves the cache of a CPU, or
      the units of an accelerator.
    axis_name: the axis over which the rows are spread.
    ring: whether other devices' points come as visitors.
  """
  if block_size is None:
    block_size = _EDGE if jax.default_backend() == "cpu" else _ACCELERATOR_EDGE
  n, num_rows = len(columns), len(rows)
  centre = pairwise.mean_point(columns, axis_name if ring else None)
  own = _cut(rows - centre, _edge(num_rows, block_size))
  symmetric = rows is columns
  everyone = own if symmetric else _cut(columns - centre, _edge(n, block_size))
  first_row = axes.global_indices(num_rows, axis_name)[0]
  return Tiles(
    own,
    everyone,
    jnp.square(own).sum(axis=2),
    jnp.square(everyone).sum(axis=2),
    first_row,
    first_row if ring else jnp.zeros_like(first_row),
    n,
    num_rows,
    symmetric,
    axis_name=axis_name,
    ring=ring,
  )


def over_tables(
  tiles: Tiles,
  step: Callable[[T, Tiles, Any], T],
  start: T,
  of_columns: Any = (),
) -> T:
  """The last carry over the tables in which this device meets all points.

  There is one, or in a ring one for every visitor as well.

  Args:
    tiles: of the points.
    step: (carry, table, of_columns) -> carry.
    start: the first carry, which varies over devices as data do.
    of_columns: arrays of the columns' points, which travel with them.
  """
  carry = step(start, tiles, of_columns)
  if not tiles.ring:
    return carry

  def meet(carry: T, visitor: Any, origin: Array, mutual: bool) -> tuple[T, tuple]:
    columns, norms, of_columns = visitor
    table = tiles.visited_by(columns, norms, origin, mutual)
    return step(carry, table, of_columns), ()

  block = (tiles.columns, tiles.column_norms, of_columns)
  return ring.half_way(meet, carry, block, (), tiles.axis_name)[0]


def goes_round(
  particles: Particles, exchange: Exchange | None, axis_name: str | None
) -> bool:
  """Whether particles go round the ring of devices, and are not gathered.

  By default they do where a device's table of pairs is too large to be held.

  Raises:
    ValueError: an unknown exchange.
  """
  if exchange is not None:
    checks.one_of("exchange", exchange, get_args(Exchange))
  if axis_name is None:
    return False
  if exchange is not None:
    return exchange == "ring"
  n = checks.num_particles(particles)
  return n * n * axes.size(axis_name) > _HELD_PAIRS


def in_any_lane(truth: Array) -> Array:
  """A condition that all lanes of a vmap share, true where it is for one of them.

  `cond` on a condition of each lane's own would run both sides for all of them.
  """
  return _any(jax.lax.stop_gradient(truth))


@jax.custom_batching.custom_vmap
def _any(truth: Array) -> Array:
  return truth


@_any.def_vmap
def _any_of_batch(
  axis_size: int, is_batched: list[bool], truth: Array
) -> tuple[Array, bool]:
  del axis_size, is_batched
  return _any(truth.any()), False


def products(
  tiles: Tiles,
  matrices_of: Callable[[Array], tuple[Array, ...]],
  columns: tuple[Array, ...],
  *,
  precision: Precision = "highest",
) -> tuple[Array, ...]:
  """Σⱼ Mᵢⱼ cⱼ of symmetric matrices M = f(D), for this device's rows i.

  In full, and with all of D in memory: `tuple(M @ c for M, c in zip(f(D), columns))`.

  Args:
    tiles: D.
    matrices_of: f, of every distance by itself: `[b, b]` -> a tile of each M.
    columns: c, for each M an array `[n, r]`.
    precision: of the products M c; distances have the highest in any case.

  Returns:
    For each M an array `[num_rows, r]`.
  """
  parts = tuple(tiles.cut_columns(c) for c in columns)

  def add(sums: Array, i: Array, term: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(sums, sums[i] + term, i, axis=0)

  def own(
    sums: Parts, parts: Parts, matrices: tuple, i: Array, j: Array
  ) -> tuple[Array, ...]:
    """sumᵢ + M cⱼ of every M."""
    return tuple(
      add(s, i, pairwise.matmul(m, c[j], precision=precision))
      for s, m, c in zip(sums, matrices, parts)
    )

  def one_way(sums: Parts, tiles: Tiles, places: Places, parts: Parts) -> Parts:
    """Adds M c to the sums of the rows."""

    def step(sums: Parts, place: Place) -> tuple[Parts, None]:
      _, i, j = place
      return own(sums, parts, matrices_of(tiles.at(place)), i, j), None

    return scan(step, sums, places)

  # The transposed tiles' sums are apart, since two updates of one array in a step would
  # make XLA copy the array, and they are kept as rows, (Mᵀ c)ᵀ = cᵀ M, since a product
  # that turns its tile around takes a CPU several times as long.
  def both_ways(
    sums: Parts, tiles: Tiles, places: Places, parts: Parts, of_rows: Parts
  ) -> tuple[Parts, Parts]:
    """The same, and Mᵀ c of the columns, with the rows' c."""
    as_rows = tuple(c.mT for c in of_rows)

    def step(both: tuple[Parts, Parts], place: Place) -> tuple[Any, None]:
      _, i, j = place
      matrices = matrices_of(tiles.at(place))
      transposed = tuple(
        add(s, j, pairwise.matmul(c[i], m, precision=precision))
        for s, m, c in zip(both[1], matrices, as_rows)
      )
      return (own(both[0], parts, matrices, i, j), transposed), None

    sums, transposed = scan(step, (sums, tuple(s.mT for s in start)), places)
    return sums, tuple(s.mT for s in transposed)

  def sums_of(tiles: Tiles) -> Parts:
    diagonal, above = tiles.places()
    sums = one_way(start, tiles, diagonal, parts)
    if len(above[0]):
      sums, transposed = both_ways(sums, tiles, above, parts, parts)
      sums = tuple(s + t for s, t in zip(sums, transposed))
    return sums

  def meet(
    sums: Parts, visitor: Any, origin: Array, mutual: bool
  ) -> tuple[Parts, Parts]:
    columns, norms, theirs = visitor
    table = tiles.visited_by(columns, norms, origin, mutual)
    places, _ = table.places()
    if not mutual:
      return table.either(lambda t: one_way(sums, t, places, theirs)), start
    return table.either(lambda t: both_ways(sums, t, places, theirs, parts))

  shape = tiles.rows.shape[:2]
  start = tuple(jnp.zeros((*shape, c.shape[2]), c.dtype) for c in parts)
  start = axes.varying_as(tiles.rows, start)
  sums = tiles.either(sums_of)
  if tiles.ring:
    block = (tiles.columns, tiles.column_norms, parts)
    sums, owed = ring.half_way(meet, sums, block, start, tiles.axis_name)
    sums = tuple(s + due for s, due in zip(sums, owed))
  return tuple(s.reshape(-1, s.shape[2])[: tiles.num_rows] for s in sums)


def sum_over_pairs(
  tiles: Tiles,
  values_of: Callable[[Tiles, Any, Place, Array], Array],
  of_columns: Any = (),
) -> Array:
  """Σ over the pairs of this device's points with all others of a symmetric function.

  In a ring a pair that two devices share may be in the one's sum for both.

  Args:
    tiles: of the points.
    values_of: a table, what belongs to its columns, a tile's place and its distances ->
      the function's values, `[a, b]`.
    of_columns: arrays of the columns' points, cut as these are.
  """

  def total_of(tiles: Tiles, of_columns: Any) -> Array:
    def adding(factor: int) -> Callable:
      def step(total: Array, place: Place) -> tuple[Array, None]:
        row, column, inside = tiles.indices(place)
        values = values_of(tiles, of_columns, place, tiles.at(place))
        values = jnp.where(inside & (row != column), values, 0)
        return total + factor * values.sum(), None

      return step

    diagonal, above = tiles.places()
    start = axes.varying_as(tiles.rows, jnp.zeros((), tiles.rows.dtype))
    if tiles.counted is not None:
      return jnp.where(tiles.counted, scan(adding(2), start, diagonal), 0)
    return scan(adding(2), scan(adding(1), start, diagonal), above)

  def step(total: Array, table: Tiles, of_columns: Any) -> Array:
    return total + table.either(lambda t: total_of(t, of_columns))

  start = axes.varying_as(tiles.rows, jnp.zeros((), tiles.rows.dtype))
  return over_tables(tiles, step, start, of_columns)


def scan(step: Callable, start: Any, places: Places) -> Any:
  """The last carry of a scan over tiles; a single tile needs no loop."""
  if not len(places[0]):
    return start
  # A derivative needs what a step made of its tile: made again, and not kept for all.
  step = jax.checkpoint(step)
  return jax.lax.scan(step, start, places, unroll=len(places[0]) == 1)[0]


_HELD_PAIRS = 2**24
_EDGE = 512
_ACCELERATOR_EDGE = 8192


def _edge(count: int, block_size: int) -> int:
  """Of as few tiles as `block_size` asks for, all of one size: with little filling."""
  return -(-count // -(-count // block_size))


def _by_differences(x: Array, y: Array) -> Array:
  """‖xᵢ − yⱼ‖² of two sets of points, `[a, d]` and `[b, d]`, a coordinate at a time."""
  x, y = jax.lax.stop_gradient((x.T, y.T))

  def add(k: Array, total: Array) -> Array:
    return total + jnp.square(x[k][:, None] - y[k][None])

  nothing = 0 * (x[0][:, None] + y[0][None])
  return jax.lax.fori_loop(0, len(x), add, nothing)


def _cut(rows: Array, edge: int) -> Array:
  """`[n, r]` -> `[⌈n/b⌉, b, r]`, filled up with zeros."""
  filling = -len(rows) % edge
  return jnp.pad(rows, ((0, filling), (0, 0))).reshape(-1, edge, rows.shape[1])
