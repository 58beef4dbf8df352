"""The training loop: compiled chunks of steps, metrics, checkpoints and guards.

`fit` is handed an `Algorithm` and knows none by name.

A run is a pure function of its key and the step. With N examples and batches of m,

  init_key, data_key, step_key = split(key, 3)
  order of epoch e = argsort(bits(fold_in(data_key, e), [N], uint32))
  epoch, i = divmod(t, N // m),  batch t = data[order of the epoch][i·m : (i + 1)·m]
  state, metrics = update(fold_in(step_key, t), state, transform(batch t))

for t = 0, 1, ... So an epoch visits no example twice, its last N mod m are left out,
and a resumed run continues exactly as the uninterrupted one.

Data larger than memory come as a `Stream`, whose batch t takes the place of
data[...] above; all else is the same.

So it is over a mesh of devices, of one process or of several: the data and every batch
are spread over them by rows, and the numbers are those of one device but for rounding.
"""

import contextlib
import functools
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from stein_jax import parallel
from stein_jax.training.records import (
  Record,
  Row,
  interrupts_delayed,
  is_array_of,
)
from stein_jax.types import Algorithm, Array, Batch, Key, Metrics, Params, PyTree

_RESERVED = ("step", "ms_per_step")

_STREAM_BYTES = 2**27
"""Of a stream's batches in a chunk; one is on the device while the next is fetched."""

EvaluateFn = Callable[[Any], Mapping[str, Any]]
"""`evaluate(state)` -> named scalars."""

ObserveFn = Callable[[int, Any], None]
"""`observe(step, state)`: looks at a run, to save samples of it, say."""


@runtime_checkable
class Stream(Protocol):
  """Batches of data larger than memory, by their place in the run.

  A stream keeps no position: the step is the position, and so a resumed run continues
  exactly. `fit` calls `batches` in a thread of its own, one call at a time, for the
  next chunk of steps while the device runs the present one.

  Attributes:
    num_examples: N, of which an epoch visits each once, the last N mod m excepted.

  With several processes `batches` takes `rows=`, too, numbers from 0 to m − 1, and
  returns only these rows of every batch: the process's own.
  """

  num_examples: int

  def batches(self, first_step: int, length: int, batch_size: int) -> Batch:
    """The batches of the steps first_step, first_step + 1, ...

    Args:
      first_step: counted from 0.
      length: how many steps.
      batch_size: m.

    Returns: NumPy arrays `[length, m, ...]`, or a dict of such, of the same types and
      event shapes in every call. They depend on the arguments alone, batch t on t and
      m alone, and nobody writes to them afterwards.
    """


class Fit(NamedTuple):
  """The end of a run: the last state, and the rows of its history."""

  state: Any
  history: list[Row]


class TrainingDiverged(FloatingPointError):
  """A metric, or the parameters, ceased to be finite.

  Attributes:
    step: the update that showed it, counted from 1 as the rows of the history are.
    metric: the name of the metric; "params", "particles" or "generator_stats" where
      those overflowed behind finite metrics.
    value: what it was.
    checkpoint: the last good checkpoint's folder, or None.
  """

  def __init__(self, step: int, metric: str, value: float, checkpoint: str | None):
    self.step, self.metric = step, metric
    self.value, self.checkpoint = value, checkpoint
    saved = f"is {checkpoint}" if checkpoint else "does not exist"
    super().__init__(
      f"{metric} is {value} at step {step}. The last good checkpoint {saved}. "
      "Try a lower learning rate or a smaller step_size."
    )


def unit_interval(batch: Batch) -> Batch:
  """Maps uint8 images to float32 in [0, 1], x / 255; leaves all else as it is.

  In a dict only "x" is an image: a context of uint8 is labels, and stays.
  """
  if isinstance(batch, Mapping):
    return {k: unit_interval(v) if k == "x" else v for k, v in batch.items()}
  return jax.tree.map(
    lambda x: x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x, batch
  )


def fit(
  key: Key,
  algorithm: Algorithm,
  params: Params,
  data: Batch | Stream,
  *,
  num_steps: int,
  batch_size: int = 100,
  transform: Callable[[Batch], Batch] = unit_interval,
  log_every: int = 100,
  evaluate: EvaluateFn | Mapping[str, EvaluateFn] | None = None,
  eval_every: int | None = None,
  observe: ObserveFn | None = None,
  workdir: str | os.PathLike[str] | None = None,
  checkpoint_every: int | None = None,
  resume: bool = True,
  progress: bool = True,
  label: str = "",
  mesh: Mesh | None = None,
) -> Fit:
  """Runs `num_steps` updates of an algorithm on batches of the data.

  The data live on the device. Steps run in compiled chunks, as long as the greatest
  common divisor of log_every, eval_every and checkpoint_every. Runs that share the
  algorithm object, the transform and the shapes share the compilation.

  A `Stream`'s batches are fetched a chunk ahead, in a thread. Where a chunk of them
  would exceed 128 MiB, chunks are as long as the greatest divisor that keeps within:
  choose numbers of steps that have some.

  Every log_every steps, and at the end, the history gets a row `{"step": ...,
  "<metric>": its mean since the last row, "ms_per_step": ...}`; in `workdir` it is a
  line of metrics.jsonl. ms_per_step counts waiting for a stream; it leaves out
  evaluations, checkpoints and, because it may compile, the first chunk of each length
  in this call; it is None (null) where that leaves nothing.

  Args:
    key: a PRNG key; all randomness of the run comes from it.
    algorithm: `Algorithm(init, update)`.
    params: what `algorithm.init` takes.
    data: `[N, ...]`, or a dict of such; or a `Stream`, whose first batch is the same
      in a resumed run or the run is refused as another.
    num_steps: updates in all, those before a resume included.
    batch_size: m.
    transform: batch -> batch, on the device, in every step. A new lambda in each call
      compiles anew.
    log_every: steps between rows.
    evaluate: state -> dict of scalars, called before the first step, every eval_every
      steps and after the last; its results join the step's row. Or a dict of such
      functions, whose names then prefix the results: "name/result".
    eval_every: steps between evaluations; None: only before and after the run.
    observe: called with the step and the state at the same steps as evaluate, which
      get a row also without evaluate. It is not called again for a step that a resumed
      run has done.
    workdir: a folder for metrics.jsonl and checkpoints/; None: nothing is written.
    checkpoint_every: steps between checkpoints, of which the last two are kept; None:
      eval_every or else 10 log_every. One is saved at the end, and at Ctrl-C where
      there is one process.
    resume: continue from the newest checkpoint in workdir, if there is one, and drop
      the rows after it. False starts anew: it deletes this workdir's checkpoints and
      metrics.
    progress: whether to show a progress bar, on stderr.
    label: the progress bar's name.
    mesh: the devices to train on, as of `parallel.make_mesh`; the algorithm was made
      with the `axis_name` of it. `evaluate` and `observe` get states on one device.
      Of several processes all call `fit` with the same arguments, of which the data
      may be memory-mapped: each reads its own rows. All evaluate; the first alone
      observes, shows the bar and writes files, in a workdir that all can read.

  Returns:
    Fit(state, history), earlier rows included. With a mesh the state is spread over it
    as `parallel.shardings` says; `parallel.local` brings it together.

  Raises:
    TrainingDiverged: a metric or a parameter is not finite.
    ValueError, TypeError: arguments that cannot be meant, or a workdir that holds
      another run.
    Whatever a stream raises, at the chunk whose batches it was asked for.
  """
  _check_arguments(key, algorithm, data, batch_size)
  if mesh is not None:
    parallel.check_divides("batch_size", batch_size, mesh)
    parallel.wait_for_all("fit")
    algorithm = parallel.distribute(algorithm, mesh)
  _check_counts(
    num_steps=num_steps,
    log_every=log_every,
    eval_every=eval_every,
    checkpoint_every=checkpoint_every,
  )
  if workdir is None and checkpoint_every is not None:
    raise ValueError("checkpoint_every needs a workdir to save to")
  watched = evaluate is not None or observe is not None
  if not watched:
    eval_every = None
  if workdir is not None and checkpoint_every is None:
    checkpoint_every = eval_every or 10 * log_every
  chunk = math.gcd(log_every, eval_every or 0, checkpoint_every or 0)

  init_key, data_key, step_key = jax.random.split(key, 3)
  feed: _Arrays | _Ahead
  if isinstance(data, Stream):
    feed = _Ahead(data, batch_size, mesh)
    chunk = _shorter(chunk, feed.bytes_per_step)
  else:
    feed = _Arrays(data, data_key, batch_size, mesh)
  state = algorithm.init(init_key, params, transform(feed.first))
  start = _own(state, 0, feed.num_ordered)
  carry = _over(mesh, start)
  run: dict[str, Any] = {"data_key": data_key, "step_key": step_key}
  if mesh is not None:
    run = parallel.spread(run, parallel.same(mesh))
  run |= {"algorithm": algorithm, "transform": transform, "batch_size": batch_size}
  run |= {"mesh": mesh}
  # Costs no second trace: the first chunk finds this one in jit's cache.
  length = min(chunk, num_steps)
  like = feed.like(length)
  shapes = _run_chunk.eval_shape(carry, data=like, **run, length=length)[1]
  _check_metrics(shapes)

  fingerprint = {
    "key": str(jax.random.key_data(key).tolist()),
    "batch_size": str(batch_size),
    **feed.described,
    **_describe("state", start.state),
  }
  with contextlib.ExitStack() as stack:
    stack.callback(feed.close)
    record = stack.enter_context(Record(workdir, fingerprint))
    step, state = record.restore(start.state, resume)
    parallel.check_alike("the steps and rows so far", [step, len(record.history)])
    if step > num_steps:
      raise ValueError(
        f"{record.checkpoint} is beyond num_steps={num_steps}: ask for more steps, "
        "use another workdir or resume=False"
      )
    carry = _over(mesh, _own(state, step, feed.num_ordered))
    del state, start  # carry has its own copy
    silent = not (progress and parallel.is_first_process())
    bar = stack.enter_context(
      tqdm(total=num_steps, initial=step, desc=label or None, disable=silent)
    )

    def due(every: int | None) -> bool:
      return step == num_steps or (every is not None and step % every == 0)

    def length_from(step: int) -> int:
      return min(chunk - step % chunk, num_steps - step)

    shown: Row = {}
    lengths: set[int] = set()
    try:
      while True:
        if not record.has(step):
          logged = step > 0 and due(log_every)
          evaluated = watched and (step == 0 or due(eval_every))
          results: Row = {}
          if evaluated:
            # A copy, since the next chunk consumes the state's own buffers.
            copy = _copy(parallel.local(carry.state))
            results = _evaluate(evaluate or {}, copy, taken=shapes)
            if observe is not None and parallel.is_first_process():
              observe(step, copy)
            parallel.wait_for_all("observed")
            del copy
            shown |= results
            bar.set_postfix(_brief(shown), refresh=False)
          if evaluated or logged:
            record.write(step, results, logged)
        if step > 0 and due(checkpoint_every):
          record.save(step, carry.state)
        if step == num_steps:
          return Fit(carry.state, record.history)

        length = length_from(step)
        start = time.perf_counter()
        # May wait for a stream, and then be interrupted: nothing has begun.
        batches = feed.take(step, length, length_from(step + length))
        with interrupts_delayed():
          carry, metrics, finite = _run_chunk(carry, data=batches, **run, length=length)
          del batches
          metrics, finite = jax.device_get((metrics, finite))
          seconds = time.perf_counter() - start
          _check_finite(step, metrics, finite, length, record.checkpoint)
          step += length
          record.add(metrics, length, seconds if length in lengths else None)
        lengths.add(length)
        shown |= _last_loss(metrics)
        bar.set_postfix(_brief(shown), refresh=False)
        bar.update(length)
    except KeyboardInterrupt:
      if step > 0 and jax.process_count() == 1:  # alone, others would be waited for
        record.save(step, carry.state)
      raise


class _Carry(NamedTuple):
  """What a chunk hands to the next."""

  state: Any
  step: Array  # updates done
  epoch: Array  # whose order is at hand; -1: none yet
  order: Array | None  # [N]; None: a stream has put its batches in order


class _Arrays:
  """Data on the device, where each chunk gathers its own batches."""

  def __init__(self, data: Batch, data_key: Key, batch_size: int, mesh: Mesh | None):
    self.num_ordered = len(jax.tree.leaves(data)[0])
    rows = _order(data_key, 0, self.num_ordered)[:batch_size]
    if mesh is None:
      self._data = jax.tree.map(jnp.asarray, data)
      self.first = _take(self._data, rows)
    else:
      self._data = parallel.spread_rows(data, mesh)
      self.first = jax.tree.map(lambda x: jnp.asarray(x[np.asarray(rows)]), data)
    self.described = _describe(
      "data",
      jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((self.num_ordered, *x.shape[1:]), x.dtype),
        self.first,
      ),
    )

  def like(self, length: int) -> Batch:
    """The types and shapes of what `take` returns."""
    return self._data

  def take(self, step: int, length: int, after: int) -> Batch:
    """All examples, [N, ...], at any step."""
    return self._data

  def close(self) -> None:
    """Has nothing to end."""


class _Ahead:
  """A stream's batches on the device, the next chunk's being fetched in a thread."""

  num_ordered = None

  def __init__(self, stream: Stream, batch_size: int, mesh: Mesh | None):
    self._stream, self._batch_size, self._mesh = stream, batch_size, mesh
    self._rows: dict[str, np.ndarray] = {}
    first = stream.batches(0, 1, batch_size)
    self._events = {name: (t, shape[2:]) for name, (t, shape) in _hosted(first).items()}
    self._check(first, 0, 1)
    self.bytes_per_step = sum(x.nbytes for x in jax.tree.leaves(first))
    self.first = jax.tree.map(lambda x: jnp.asarray(x[0]), first)
    checksum = 0
    for x in jax.tree.leaves(first):
      checksum = zlib.crc32(np.asarray(x).tobytes(), checksum)
    self.described = {
      "data": f"a stream of {stream.num_examples} examples",
      # What the stream reads, and its own seed, show in its batches alone.
      "checksum of the first batch": f"{checksum:08x}",
      **_describe("batch", self.first),
    }
    # Of several processes each fetches its own rows of every batch.
    if mesh is not None and jax.process_count() > 1:
      self._rows = {"rows": parallel.own_rows(batch_size, mesh)}
    self._pool = ThreadPoolExecutor(1, thread_name_prefix="stein_jax-stream")
    self._next: Future[Batch] | None = None

  def like(self, length: int) -> Batch:
    """The types and shapes of what `take` returns."""
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((length, *x.shape), x.dtype), self.first
    )

  def take(self, step: int, length: int, after: int) -> Batch:
    """Batches [length, m, ...] from `step` on; starts to fetch the `after` next."""
    fetched = self._next or self._pool.submit(self._fetch, step, length)
    batches = fetched.result()
    self._next = None
    if after:
      self._next = self._pool.submit(self._fetch, step + length, after)
    if self._mesh is None:
      return jax.tree.map(jnp.asarray, batches)
    sharding = parallel.by_rows(self._mesh, axis=1)
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batches
    )

  def close(self) -> None:
    """Waits for the fetch under way, whose result nobody will take."""
    self._pool.shutdown(cancel_futures=True)

  def _fetch(self, step: int, length: int) -> Batch:
    batches = self._stream.batches(step, length, self._batch_size, **self._rows)
    self._check(batches, step, length)
    return batches

  def _check(self, batches: Batch, step: int, length: int) -> None:
    """Another type or shape would be another program, or other numbers."""
    rows = self._rows.get("rows")
    lead = (length, self._batch_size if rows is None else len(rows))
    expected = {name: (t, lead + event) for name, (t, event) in self._events.items()}
    if (got := _hosted(batches)) != expected:
      raise ValueError(
        f"the stream's batches of {length} steps from step {step} on must be "
        f"{expected}, got {got}"
      )


def _hosted(batches: Batch) -> dict[str, tuple[str, tuple[int, ...]]]:
  """The type and shape of each array, without JAX, whose types differ by thread."""
  leaves = jax.tree_util.tree_leaves_with_path(batches)
  return {
    "batches" + jax.tree_util.keystr(path): (str(np.asarray(x).dtype), np.shape(x))
    for path, x in leaves
  }


def _shorter(length: int, bytes_per_step: int) -> int:
  """The greatest divisor of a chunk's length that keeps within `_STREAM_BYTES`."""
  most = max(1, _STREAM_BYTES // max(1, bytes_per_step))
  return next(n for n in range(min(length, most), 0, -1) if length % n == 0)


@functools.partial(
  jax.jit,
  static_argnames=("algorithm", "transform", "batch_size", "length", "mesh"),
  donate_argnames="carry",
)
def _run_chunk(
  carry: _Carry,
  *,
  data: Batch,
  data_key: Key,
  step_key: Key,
  algorithm: Algorithm,
  transform: Callable[[Batch], Batch],
  batch_size: int,
  length: int,
  mesh: Mesh | None = None,
) -> tuple[_Carry, Metrics, dict[str, Array]]:
  """Returns the carry after `length` steps, their metrics [length], and `_finite`.

  The data are all examples [N, ...], or, where the carry has no order, the batches of
  these very steps [length, m, ...].
  """
  steps = carry.step + jnp.arange(length, dtype=jnp.int32)
  if carry.order is None:
    batches, epoch, order = data, carry.epoch, None
  else:
    batches, epoch, order = _rows(carry, data_key, batch_size, length)

  def one_step(state: Any, step_and_batch: tuple[Array, Any]) -> tuple[Any, Metrics]:
    step, batch = step_and_batch
    if order is not None:  # the batch is a list of rows as yet
      batch = _take(data, batch) if mesh is None else parallel.take(data, batch, mesh)
    key = jax.random.fold_in(step_key, step)
    return algorithm.update(key, state, transform(batch))

  state, metrics = jax.lax.scan(one_step, carry.state, (steps, batches))
  carry = _Carry(state, carry.step + length, epoch, order)
  found = (metrics, _finite(state))
  if mesh is not None:  # as it came, so that the next chunk is the same program
    carry = jax.lax.with_sharding_constraint(carry, _places(mesh, carry))
    found = jax.lax.with_sharding_constraint(found, parallel.same(mesh))
  return carry, *found


def _rows(
  carry: _Carry, data_key: Key, batch_size: int, length: int
) -> tuple[Array, Array, Array]:
  """Returns the examples of each step of a chunk, [length, m], its epoch and order.

  All orders that the chunk touches are laid end to end before its first step, so that
  a step only reads its row; an order is sorted once, in the chunk where it begins.
  """
  assert carry.order is not None
  num_examples = len(carry.order)
  num_batches = num_examples // batch_size  # of an epoch
  first, skipped = jnp.divmod(carry.step, num_batches)
  last = (carry.step + length - 1) // num_batches

  def next_order(known: tuple[Array, Array], epoch: Array) -> tuple[Any, Array]:
    known = jax.lax.cond(
      (known[0] < epoch) & (epoch <= last),
      lambda: (epoch, _order(data_key, epoch, num_examples)),
      lambda: known,
    )
    return known, known[1][: num_batches * batch_size].reshape(-1, batch_size)

  # Enough epochs for a chunk that begins at the last batch of one.
  num_epochs = -(-(num_batches - 1 + length) // num_batches)
  epochs = first + jnp.arange(num_epochs, dtype=jnp.int32)
  known, batches = jax.lax.scan(next_order, (carry.epoch, carry.order), epochs)
  batches = batches.reshape(-1, batch_size)
  return jax.lax.dynamic_slice_in_dim(batches, skipped, length), *known


def _order(data_key: Key, epoch: Array | int, num_examples: int) -> Array:
  """The order of an epoch, [N]: each example once.

  Half the time of `jax.random.permutation`, which sorts twice lest equal draws (of a
  pair: once in 2³²) keep their places.
  """
  epoch_key = jax.random.fold_in(data_key, epoch)
  draws = jax.random.bits(epoch_key, (num_examples,), jnp.uint32)
  return jnp.argsort(draws).astype(jnp.int32)


def _take(data: Batch, rows: Array) -> Batch:
  return jax.tree.map(lambda x: x[rows], data)


def _finite(state: Any) -> dict[str, Array]:
  """Whether what is learned is finite; other fields may hold an honest infinity."""
  return {
    name: jax.tree.reduce(
      lambda ok, x: ok & jnp.isfinite(x).all(),
      [x for x in jax.tree.leaves(getattr(state, name)) if is_array_of(x, jnp.inexact)],
      jnp.array(True),
    )
    for name in ("params", "particles", "generator_stats")
    if hasattr(state, name)
  }


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _over(mesh: Mesh | None, carry: _Carry) -> _Carry:
  """The same carry, spread over the mesh where there is one."""
  return carry if mesh is None else parallel.spread(carry, _places(mesh, carry))


def _places(mesh: Mesh, carry: _Carry) -> Any:
  places = jax.tree.map(lambda _: parallel.same(mesh), carry)
  return places._replace(state=parallel.shardings(carry.state, mesh))


@functools.partial(jax.jit, static_argnames="num_examples")
def _own(state: Any, step: Array | int, num_examples: int | None) -> _Carry:
  """Returns the first carry, which shares no buffer with the caller's arrays.

  num_examples is how many there are to put in order; None: a stream has its own order.

  One compiled function makes all of it, so that its arrays are alike: bound to a
  device or not, and strongly typed. Else the second chunk would compile again.
  """

  def own(x: Array) -> Array:
    x = jnp.copy(x)
    return jax.lax.convert_element_type(x, x.dtype) if is_array_of(x, np.number) else x

  state = jax.tree.map(own, state)
  order = None if num_examples is None else jnp.zeros(num_examples, jnp.int32)
  return _Carry(state, jnp.asarray(step, jnp.int32), jnp.int32(-1), order)


def _evaluate(evaluate: Any, state: Any, taken: Mapping[str, Any]) -> Row:
  if isinstance(evaluate, Mapping):
    found = [(name + "/", function(state)) for name, function in evaluate.items()]
  else:
    found = [("", evaluate(state))]
  results = {prefix + name: v for prefix, part in found for name, v in part.items()}
  for name, value in results.items():
    if np.shape(value) != ():
      raise ValueError(f"evaluate: {name} must be a scalar, got {np.shape(value)}")
    if name in taken or name in _RESERVED:
      raise ValueError(f"evaluate: {name} is the name of another entry of the row")
  return {name: float(value) for name, value in results.items()}


def _last_loss(metrics: Metrics) -> Row:
  """What the bar shows: the loss, or else the first metric."""
  name = "loss" if "loss" in metrics else next(iter(metrics), None)
  return {} if name is None else {name: float(metrics[name][-1])}


def _brief(values: Row) -> dict[str, str]:
  """Six digits for the bar, where log-likelihoods differ in the fifth."""
  return {name: f"{value:.6g}" for name, value in values.items()}


def _check_finite(
  step: int, metrics: Metrics, finite: Metrics, length: int, checkpoint: str | None
) -> None:
  """Raises TrainingDiverged at the first step of the chunk that is not finite."""
  bad = {name: ~np.isfinite(values) for name, values in metrics.items()}
  firsts = [(int(where.argmax()), name) for name, where in bad.items() if where.any()]
  if firsts:
    index, name = min(firsts)
    value = float(metrics[name][index])
    raise TrainingDiverged(step + index + 1, name, value, checkpoint)
  for name, is_finite in finite.items():
    if not is_finite:
      raise TrainingDiverged(step + length, name, math.nan, checkpoint)


def _check_metrics(metrics: Any) -> None:
  """Checks the metrics of a chunk, [length] each, before any step is run."""
  if not isinstance(metrics, dict):
    raise TypeError(f"metrics must be a dict of scalars, got {type(metrics).__name__}")
  for name, value in metrics.items():
    shape = getattr(value, "shape", None)
    if shape is None or len(shape) != 1:
      got = type(value).__name__ if shape is None else f"shape {shape[1:]}"
      raise ValueError(f"the metric {name} must be a scalar, got {got}")
    if name in _RESERVED:
      raise ValueError(f"the history has its own {name}: rename the metric")


def _check_counts(**counts: int | None) -> None:
  for name, value in counts.items():
    if value is not None and (not isinstance(value, int) or value < 1):
      raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def _check_arguments(
  key: Any, algorithm: Any, data: Batch | Stream, batch_size: int
) -> None:
  typed = is_array_of(key, jax.dtypes.prng_key) and key.ndim == 0
  if not typed and not (is_array_of(key, np.uint32) and key.ndim == 1):
    raise TypeError(f"key must be one PRNG key, as of jax.random.key(0), got {key!r}")
  if isinstance(algorithm, optax.GradientTransformation):
    raise TypeError(
      "algorithm is an optax optimizer, which knows no energy and no loss: hand it to "
      "an algorithm, for example contrastive_divergence(energy_fn, optimizer, ...)"
    )
  for name in ("init", "update"):
    if not callable(getattr(algorithm, name, None)):
      raise TypeError(f"algorithm must be an Algorithm(init, update): it has no {name}")
  _check_counts(batch_size=batch_size)
  if isinstance(data, Stream):
    num_examples = int(data.num_examples)
  else:
    num_examples = _count_examples(data)
  if batch_size > num_examples:
    raise ValueError(f"batch_size={batch_size} exceeds the {num_examples} examples")


def _count_examples(data: Batch) -> int:
  leaves = jax.tree_util.tree_leaves_with_path(data)
  shapes = {"data" + jax.tree_util.keystr(path): np.shape(x) for path, x in leaves}
  sizes = {shape[:1] for shape in shapes.values()}
  if len(sizes) != 1 or () in sizes:
    raise ValueError(
      f"data must be arrays with one leading axis, or a Stream, got {shapes}"
    )
  ((num_examples,),) = sizes
  return num_examples


def _describe(name: str, tree: PyTree) -> dict[str, str]:
  """Names each leaf with its type and shape: {"state.params['w']": "float32[3]"}."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    name + jax.tree_util.keystr(path): jax.typeof(x).str_short() for path, x in leaves
  }
