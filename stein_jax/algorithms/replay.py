"""A buffer of chains, of which every step continues some."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from stein_jax import checks
from stein_jax.algorithms.energy import check_batch
from stein_jax.parallel import axes
from stein_jax.samplers import noise
from stein_jax.types import Array, Batch, Key, Metrics, Numeric


class ReplayBuffer(NamedTuple):
  """Points of chains that later steps continue, in slots.

  Row i of m in a batch owns the slots i·B/m, ..., (i + 1)·B/m − 1. So a device that has
  the rows has their slots, and rows never share a slot.

  Attributes:
    points: `[B, ...]`, or `{"x": ..., "context": ...}` of a conditional energy. What a
      slot holds before its first use is never read; it is a point of the first batch.
    filled: whether a slot was used, `[B]`.
  """

  points: Batch
  filled: Array


def empty(batch: Batch, size: int) -> ReplayBuffer:
  """A buffer of `size` unused slots.

  Raises:
    ValueError: the number of points does not divide the size.
  """
  per_row = _slots_per_row(size, check_batch(batch))
  points = jax.tree.map(lambda leaf: jnp.repeat(leaf, per_row, axis=0), batch)
  return ReplayBuffer(points, jnp.zeros(size, bool))


def _slots_per_row(size: int, m: int) -> int:
  if size % m:
    raise ValueError(
      f"the buffer's size must be a multiple of the number of points of a batch, got "
      f"{size} slots for {m} points: take {max(size // m, 1) * m}."
    )
  return size // m


def draw(
  keys: tuple[Key, Key],
  buffer: ReplayBuffer,
  new: Batch,
  restart_probability: Numeric,
  axis_name: str | None,
) -> tuple[Batch, Array, Metrics]:
  """Where the chains of a step begin: at a random slot of each row, or at a new point.

  Args:
    keys: for the slots and for the restarts; row i draws by `fold_in` of its index.
    buffer: this device's slots.
    new: for each row, where its chain begins if its slot is unused or restarts.
    restart_probability: of a used slot.
    axis_name: the axis over which slots and rows are sharded.

  Returns:
    The chains `[m, ...]`, their slots `[m]`, and the metric `restarted`: the fraction
    of chains that begin at new points.

  Raises:
    ValueError: points of other shapes than those of the buffer, or of a number that
      does not divide its size.
  """
  m = check_batch(new)
  checks.same_event(new, buffer.points, ("the batch", "the buffer"))
  per_row = _slots_per_row(len(buffer.filled), m)
  slot_key, restart_key = keys
  slots = jnp.arange(m) * per_row + noise.integers(slot_key, m, per_row, axis_name)
  u = noise.uniform(restart_key, m, jnp.float32, axis_name)
  begins = (u < restart_probability) | ~buffer.filled[slots]

  def choose(new: Array, points: Array) -> Array:
    return jax.vmap(jnp.where)(begins, new.astype(points.dtype), points[slots])

  chains = jax.tree.map(choose, jax.tree.map(jnp.asarray, new), buffer.points)
  return chains, slots, {"restarted": axes.mean(begins.mean(), axis_name)}


def write(buffer: ReplayBuffer, slots: Array, chains: Batch) -> ReplayBuffer:
  """The buffer with the chains in their slots, which are in increasing order."""

  def put(leaf: Array, rows: Array | bool) -> Array:
    return leaf.at[slots].set(rows, indices_are_sorted=True, unique_indices=True)

  points = jax.tree.map(put, buffer.points, chains)
  return ReplayBuffer(points, put(buffer.filled, True))
