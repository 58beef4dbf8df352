"""The sources of batches: arrays on the device, or a stream of larger data.

Both sources have the same members, the only ones that the loop uses:

  first: the batch of step 0.
  described: names and types that identify the data, for the record of the run.
  like(length), take(step, length, after): the data of a chunk of steps.
  batch(step, batch_size, data_key): the batch of one step, to look at.
  close(): waits for a fetch that is still running, and stops the thread.
"""

import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stein_jax import parallel
from stein_jax.training.identity import data_checksum, describe
from stein_jax.types import Array, Batch, Key

_STREAM_BYTES = 2**27
"""The most that a stream's batches of one chunk may take, 128 MiB.

Twice this is in use: one chunk is on the device while the next is fetched.
"""


_CHECKED = 2**22
"""How many numbers of the data are checked at once."""


@runtime_checkable
class Stream(Protocol):
  """Batches of data larger than memory, addressed by the step.

  A stream keeps no position of its own, so a resumed run continues exactly. `fit`
  calls `batches` in a thread, one call at a time: while the device runs one chunk of
  steps, the batches of the next are fetched.

  Attributes:
    num_examples: N. An epoch visits each example once, except the last N mod m.

  With several processes `batches` also takes `rows=`, an array of numbers from 0 to
  m − 1, and returns only these rows of every batch: those of this process.
  """

  num_examples: int

  def batches(self, first_step: int, length: int, batch_size: int) -> Batch:
    """The batches of the steps first_step, first_step + 1, ...

    Args:
      first_step: counted from 0.
      length: the number of steps.
      batch_size: m.

    Returns: NumPy arrays `[length, m, ...]`, or a dict of them, with the same types
      and event shapes in every call. They depend on the arguments alone, and batch t
      only on t and m. They are not written to afterwards.
    """


def unit_interval(batch: Batch) -> Batch:
  """Maps uint8 images to float32 in [0, 1], x / 255, and leaves all else unchanged.

  In a dict only "x" is an image: a context of type uint8 holds labels, and stays.
  """
  if isinstance(batch, Mapping):
    return {k: unit_interval(v) if k == "x" else v for k, v in batch.items()}
  return jax.tree.map(
    lambda x: x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x, batch
  )


def count_examples(data: Batch | Stream) -> int:
  """N.

  Raises:
    ValueError: data that are neither a stream nor arrays with one leading axis, or that
      hold no example.
    TypeError: an iterator, or arrays of another type than numbers.
  """
  if isinstance(data, Iterator) and not isinstance(data, Stream):
    raise TypeError(
      "data must be arrays or a Stream, got an iterator, which a resumed run could not "
      "continue: write a training.Stream, whose batches are asked for by their step."
    )
  if isinstance(data, Stream):
    if isinstance(data, type):
      raise TypeError(f"data must be a Stream, got its class {data!r}: call it.")
    return int(data.num_examples)
  leaves = jax.tree_util.tree_leaves_with_path(data)
  for path, x in leaves:
    where = "data" + jax.tree_util.keystr(path)
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
      raise ValueError(
        "data must be arrays with one leading axis, or a Stream, got "
        f"{type(x).__name__} as {where}: make an array, as by np.asarray."
      )
    if getattr(x.dtype, "kind", "V") in "OUSMm":
      raise TypeError(f"{where} must be an array of numbers, got dtype {x.dtype}.")
  shapes = {"data" + jax.tree_util.keystr(path): np.shape(x) for path, x in leaves}
  sizes = {shape[:1] for shape in shapes.values()}
  if len(sizes) != 1 or () in sizes:
    raise ValueError(
      f"data must be arrays with one leading axis, or a Stream, got {shapes}"
    )
  ((num_examples,),) = sizes
  if num_examples == 0:
    raise ValueError(f"data must hold at least one example, got none: {shapes}")
  return num_examples


def check_finite(data: Batch, name: str) -> None:
  """Raises ValueError if an array `[N, ...]` holds a number that is not finite."""
  for path, x in jax.tree_util.tree_leaves_with_path(data):
    xp = jnp if isinstance(x, jax.Array) else np  # an array of the host stays there
    if not jnp.issubdtype(x.dtype, jnp.inexact):
      continue
    block = max(1, _CHECKED // max(1, x[0].size))
    for start in range(0, len(x), block):
      rows = x[start : start + block]
      bad = ~xp.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
      if bad.any():
        raise ValueError(
          f"{name}{jax.tree_util.keystr(path)} has NaN or infinity in row "
          f"{start + int(bad.argmax())}: repair such rows, or leave them out"
        )


# ------------------------------------------------------------------------- arrays


class ArrayFeed:
  """Data on the device, from which each chunk gathers its own batches."""

  def __init__(self, data: Batch, data_key: Key, batch_size: int, mesh: Mesh | None):
    self.num_ordered = count_examples(data)
    rows = epoch_order(data_key, 0, self.num_ordered)[:batch_size]
    if mesh is None:
      self._data = jax.tree.map(jnp.asarray, data)
      self.first = take_rows(self._data, rows)
    else:
      self._data = parallel.spread_rows(data, mesh)
      self.first = jax.tree.map(lambda x: jnp.asarray(x[np.asarray(rows)]), data)
    self._given = data

  @property
  def described(self) -> dict[str, str]:
    """Names and values that identify the data; only a run with a folder needs them."""
    whole = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((self.num_ordered, *x.shape[1:]), x.dtype),
      self.first,
    )
    checksum = data_checksum(self._given)
    return describe("data", whole) | {"data checksum": checksum}

  def like(self, length: int) -> Batch:
    """Arrays of the types and shapes that `take` returns."""
    return self._data

  def take(self, step: int, length: int, after: int) -> Batch:
    """All examples, [N, ...], at any step."""
    return self._data

  def batch(self, step: int, batch_size: int, data_key: Key) -> Batch:
    """The batch of one step."""
    epoch, i = divmod(step, self.num_ordered // batch_size)
    order = epoch_order(data_key, epoch, self.num_ordered)
    return take_rows(self._data, order[i * batch_size : (i + 1) * batch_size])

  def close(self) -> None:
    """Does nothing: no thread is running."""


def epoch_order(data_key: Key, epoch: Array | int, num_examples: int) -> Array:
  """The order of an epoch, [N]: each example once.

  `jax.random.permutation` would take twice as long. It sorts a second time, to break
  ties between equal draws at random; two given draws are equal once in 2³².
  """
  epoch_key = jax.random.fold_in(data_key, epoch)
  draws = jax.random.bits(epoch_key, (num_examples,), jnp.uint32)
  return jnp.argsort(draws).astype(jnp.int32)


def chunk_rows(
  step: Array, epoch: Array, order: Array, data_key: Key, batch_size: int, length: int
) -> tuple[Array, Array, Array]:
  """The examples of each step of a chunk, by their row numbers.

  The orders of all epochs that the chunk reaches are joined before its first step, so
  that a step only reads its row. An order is sorted once, in the chunk where its epoch
  begins.

  Args:
    step: the chunk's first step.
    epoch: the epoch of `order`, or −1 where there is no order yet.
    order: [N].
    data_key: the key of all orders.
    batch_size: m.
    length: the number of steps.

  Returns:
    (rows [length, m], epoch, order), the last two as of the chunk's last step.
  """
  num_examples = len(order)
  num_batches = num_examples // batch_size  # in an epoch
  first, skipped = jnp.divmod(step, num_batches)
  last = (step + length - 1) // num_batches

  def next_order(
    known: tuple[Array, Array], epoch: Array
  ) -> tuple[tuple[Array, Array], Array]:
    known = jax.lax.cond(
      (known[0] < epoch) & (epoch <= last),
      lambda: (epoch, epoch_order(data_key, epoch, num_examples)),
      lambda: known,
    )
    return known, known[1][: num_batches * batch_size].reshape(-1, batch_size)

  # Enough epochs for a chunk that begins at the last batch of one.
  num_epochs = -(-(num_batches - 1 + length) // num_batches)
  epochs = first + jnp.arange(num_epochs, dtype=jnp.int32)
  (epoch, order), batches = jax.lax.scan(next_order, (epoch, order), epochs)
  batches = batches.reshape(-1, batch_size)
  return jax.lax.dynamic_slice_in_dim(batches, skipped, length), epoch, order


def take_rows(data: Batch, rows: Array) -> Batch:
  """`data[rows]`, of every array."""
  return jax.tree.map(lambda x: x[rows], data)


# ------------------------------------------------------------------------ no data


class NoFeed:
  """For algorithms that use no data: every batch is None."""

  num_ordered = None
  first = None

  @property
  def described(self) -> dict[str, str]:
    """Nothing identifies what is not there."""
    return {}

  def like(self, length: int) -> Batch:
    """None."""

  def take(self, step: int, length: int, after: int) -> Batch:
    """None."""

  def batch(self, step: int, batch_size: int, data_key: Key) -> Batch:
    """None."""

  def close(self) -> None:
    """Does nothing: no thread is running."""


# ------------------------------------------------------------------------ streams


class StreamFeed:
  """A stream's batches on the device; a thread fetches those of the next chunk."""

  num_ordered = None  # the stream puts its own examples in order

  def __init__(self, stream: Stream, batch_size: int, mesh: Mesh | None):
    self._stream, self._batch_size, self._mesh = stream, batch_size, mesh
    self._rows: dict[str, np.ndarray] = {}
    first = stream.batches(0, 1, batch_size)
    self._events = {name: (t, shape[2:]) for name, (t, shape) in _types(first).items()}
    self._check(first, 0, 1)
    self.bytes_per_step = sum(x.nbytes for x in jax.tree.leaves(first))
    self.first = jax.tree.map(lambda x: jnp.asarray(x[0]), first)
    checksum = 0
    for x in jax.tree.leaves(first):
      checksum = zlib.crc32(np.asarray(x).tobytes(), checksum)
    self.described = {
      "data": f"a stream of {stream.num_examples} examples",
      # Which files a stream reads, and its seed, show only in its batches.
      "checksum of the first batch": f"{checksum:08x}",
      **describe("batch", self.first),
    }
    # With several processes each fetches its own rows of every batch.
    if mesh is not None and jax.process_count() > 1:
      self._rows = {"rows": parallel.own_rows(batch_size, mesh)}
    self._pool = ThreadPoolExecutor(1, thread_name_prefix="stein_jax-stream")
    self._next: tuple[tuple[int, int], Future[Batch]] | None = None

  def like(self, length: int) -> Batch:
    """The types and shapes of what `take` returns."""
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((length, *x.shape), x.dtype), self.first
    )

  def take(self, step: int, length: int, after: int) -> Batch:
    """Batches [length, m, ...] from `step` on; starts to fetch the `after` next."""
    wanted, fetched = self._next or (None, None)
    if fetched is None or wanted != (step, length):  # at the start, or after a rollback
      fetched = self._pool.submit(self._fetch, step, length)
    batches = fetched.result()
    self._next = None
    if after:
      following = (step + length, after)
      self._next = (following, self._pool.submit(self._fetch, *following))
    if self._mesh is None:
      return jax.tree.map(jnp.asarray, batches)
    sharding = parallel.by_rows(self._mesh, axis=1)
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batches
    )

  def batch(self, step: int, batch_size: int, data_key: Key) -> Batch:
    """The batch of one step."""
    return jax.tree.map(lambda x: x[0], self._stream.batches(step, 1, batch_size))

  def close(self) -> None:
    """Waits for the fetch that is running. Its result is not used."""
    self._pool.shutdown(cancel_futures=True)

  def _fetch(self, step: int, length: int) -> Batch:
    batches = self._stream.batches(step, length, self._batch_size, **self._rows)
    self._check(batches, step, length)
    check_finite(batches, f"the batches from step {step} on: batches")
    return batches

  def _check(self, batches: Batch, step: int, length: int) -> None:
    """Raises ValueError where types or shapes are not those of the first batch."""
    rows = self._rows.get("rows")
    lead = (length, self._batch_size if rows is None else len(rows))
    expected = {name: (t, lead + event) for name, (t, event) in self._events.items()}
    if (got := _types(batches)) != expected:
      raise ValueError(
        f"the stream's batches of {length} steps from step {step} on must be "
        f"{expected}, got {got}"
      )


def _types(batches: Batch) -> dict[str, tuple[str, tuple[int, ...]]]:
  """The type and shape of each array.

  By NumPy: JAX would report float32 for float64 in a thread without `enable_x64`.
  """
  leaves = jax.tree_util.tree_leaves_with_path(batches)
  return {
    "batches" + jax.tree_util.keystr(path): (str(np.asarray(x).dtype), np.shape(x))
    for path, x in leaves
  }


def longest_chunk(length: int, bytes_per_step: int) -> int:
  """The greatest divisor of a chunk's length that stays within `_STREAM_BYTES`."""
  most = max(1, _STREAM_BYTES // max(1, bytes_per_step))
  return next(n for n in range(min(length, most), 0, -1) if length % n == 0)
