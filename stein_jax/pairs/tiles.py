"""Geometry: points in blocks of equal size, and the square tiles of their pairs.

A tile is the b × b pairs of two blocks. It fits into the cache of a CPU, so what is
computed from its distances is used while it is there. A symmetric table needs only the
tiles on and above the diagonal: the tile at (j, i) is the transpose of that at (i, j).
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass, register_static

from stein_jax.pairs.points import mean_point, num_rows
from stein_jax.parallel import axes
from stein_jax.types import Array, Exchange, Particles, Precision, PyTree

HELD_PAIRS = 2**24
"""Tables of at most this many pairs (n = 4096) may be held whole."""

_EDGE = 512
_ACCELERATOR_EDGE = 8192


@register_static
@dataclasses.dataclass(frozen=True)
class Streaming:
  """How sums over pairs are computed. No option changes the result.

  Attributes:
    block_size: the largest edge of a tile, or the number of rows computed at once. None
      chooses by size and device.
    precision: of the products of kernel values with other numbers. Distances always
      have the highest.
    axis_name: the axis over which the points are sharded.
    ring: whether blocks of points travel around the ring of devices. Otherwise every
      device holds all points.
  """

  block_size: int | None = None
  precision: Precision = "highest"
  axis_name: str | None = None
  ring: bool = False

  def sources(self, particles: Particles, values: PyTree) -> tuple[Particles, PyTree]:
    """The sources of sums at these particles, and the values that belong to them.

    All devices' particles and values where they are gathered. Otherwise None, which
    says that the queries are the sources, and the values as they are.
    """
    if self.axis_name is None or self.ring:
      return None, values
    return axes.gather((particles, values), self.axis_name)


DEFAULTS = Streaming()


def streamed(
  particles: Particles,
  *,
  block_size: int | None = None,
  precision: Precision = "highest",
  axis_name: str | None = None,
  exchange: Exchange | None = None,
) -> Streaming:
  """How sums over these particles are computed, as options of a `Direction` say.

  By default the particles are gathered on every device if its table of pairs is small
  enough to be held, and otherwise travel around the ring.
  """
  n = num_rows(particles)
  large = n * n * axes.size(axis_name) > HELD_PAIRS
  ring = exchange == "ring" if exchange is not None else large
  return Streaming(block_size, precision, axis_name, ring and axis_name is not None)


class Tile(NamedTuple):
  """Indices of a tile, or of several."""

  position: Any  # in a list of all tiles, as `Tiles.diagonal` and `above` make it
  row: Any
  column: Any


@partial(
  register_dataclass, data_fields=["points", "norms", "first"], meta_fields=["count"]
)
@dataclasses.dataclass(frozen=True)
class Blocks:
  """Points in blocks of equal size, padded with zeros.

  Attributes:
    points: `[B, b, d]`.
    norms: ‖x‖² of the points, `[B, b]`.
    first: the index of the first point among the points of all devices.
    count: the number of points, without the padding.
  """

  points: Array
  norms: Array
  first: Array
  count: int

  @property
  def edge(self) -> int:
    """b, the number of points in a block."""
    return self.points.shape[1]

  def split(self, rows: Array) -> Array:
    """`[count, r]` padded and split like the points, `[B, b, r]`.

    Raises:
      ValueError: another number of rows, which the padding would hide.
    """
    if len(rows) != self.count:
      raise ValueError(
        f"there must be one row for each of {self.count} points, got {len(rows)}."
      )
    return _split(rows, self.edge)

  def joined(self, blocks: Array) -> Array:
    """The inverse of `split`: `[B, b, r]` -> `[count, r]`."""
    return blocks.reshape(-1, blocks.shape[2])[: self.count]

  def indices(self, block: Array) -> tuple[Array, Array]:
    """Of one block: its points' indices among all points, and which are not padding."""
    local = block * self.edge + jnp.arange(self.edge)
    return self.first + local, local < self.count


@partial(register_dataclass, data_fields=["rows", "columns"], meta_fields=["symmetric"])
@dataclasses.dataclass(frozen=True)
class Tiles:
  """The table of all pairs of two sets of points.

  Attributes:
    rows: this device's points.
    columns: the points that they are paired with.
    symmetric: whether both are the same points, so that tiles below the diagonal are
      not computed.
  """

  rows: Blocks
  columns: Blocks
  symmetric: bool

  def diagonal(self) -> Tile:
    """The tiles on the diagonal; all tiles if the table is not symmetric."""
    num_rows, num_columns = len(self.rows.points), len(self.columns.points)
    if self.symmetric:
      return Tile(*[np.arange(num_rows)] * 3)
    i, j = (index.ravel() for index in np.indices((num_rows, num_columns)))
    return Tile(np.arange(len(i)), i, j)

  def above(self) -> Tile:
    """The tiles above the diagonal, each of which stands for two; maybe none."""
    if not self.symmetric:
      return Tile(*[np.zeros(0, int)] * 3)
    num_rows = len(self.rows.points)
    i, j = np.triu_indices(num_rows, k=1)
    return Tile(num_rows + np.arange(len(i)), i, j)

  def all(self) -> Tile:
    """Those on the diagonal and those above it, in the order of their positions."""
    return Tile(*map(np.concatenate, zip(self.diagonal(), self.above())))

  @property
  def is_single(self) -> bool:
    """Whether there is one tile only."""
    return len(self.rows.points) == len(self.columns.points) == 1

  def indices(self, tile: Tile) -> tuple[Array, Array, Array]:
    """The indices of a tile's points, `[a, 1]` and `[1, b]`, and which pairs are no
    padding, `[a, b]`."""
    row, in_rows = self.rows.indices(tile.row)
    column, in_columns = self.columns.indices(tile.column)
    return row[:, None], column[None], in_rows[:, None] & in_columns[None]

  def against(self, columns: Blocks) -> "Tiles":
    """The table of this device's points with those of another device."""
    return Tiles(self.rows, columns, symmetric=False)


def of_points(
  points: Array,
  sources: Array | None = None,
  streaming: Streaming = DEFAULTS,
  *,
  centered: bool = True,
) -> Tiles:
  """The tiles of points `[n, d]`.

  Args:
    points: this device's points.
    sources: the points they are paired with. None: the points themselves.
    streaming: the edge of the tiles, and how points are sharded. With `axis_name`, and
      no ring, the sources are the points of all devices.
    centered: whether the mean of all points is subtracted, which keeps the digits of
      distances that are computed by matrix products.
  """
  all_points = points if sources is None else sources
  centre = jnp.zeros_like(points[:1])
  if centered:
    centre = mean_point(all_points, streaming.axis_name if streaming.ring else None)
  first = axes.global_indices(len(points), streaming.axis_name)[0]
  rows = _blocks(points - centre, first, streaming)
  if sources is None:
    # Norms of their own: XLA's loop over tiles is a third slower on a CPU if it reads
    # the norms of both sides from one array.
    norms = jnp.square(rows.points).sum(axis=2)
    columns = dataclasses.replace(rows, norms=norms)
    return Tiles(rows, columns, symmetric=True)
  columns = _blocks(sources - centre, jnp.zeros_like(first), streaming)
  return Tiles(rows, columns, symmetric=False)


def _blocks(points: Array, first: Array, streaming: Streaming) -> Blocks:
  edge = streaming.block_size
  if edge is None:
    edge = _EDGE if jax.default_backend() == "cpu" else _ACCELERATOR_EDGE
  # As few blocks as this edge needs, all of one size, with little padding.
  count = len(points)
  edge = -(-count // -(-count // edge))
  blocks = _split(points, edge)
  return Blocks(blocks, jnp.square(blocks).sum(axis=2), first, count)


def _split(rows: Array, edge: int) -> Array:
  padding = -len(rows) % edge
  return jnp.pad(rows, ((0, padding), (0, 0))).reshape(-1, edge, rows.shape[1])
