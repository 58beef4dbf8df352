"""The training loop: compiled chunks of steps, metrics, evaluations and checkpoints.

`fit` works with any `Algorithm`.

A run is a pure function of its key and the step. With N examples and batches of m,

  init_key, data_key, step_key = split(key, 3)
  order of epoch e = argsort(bits(fold_in(data_key, e), [N], uint32))
  epoch, i = divmod(t, N // m),  batch t = data[order of the epoch][i·m : (i + 1)·m]
  state, metrics = update(fold_in(step_key, t), state, transform(batch t))

for t = 0, 1, ... An epoch uses each example at most once and leaves out the last N
mod m. A resumed run continues exactly as the uninterrupted one.

Data larger than memory come as a `Stream`, whose batch t replaces data[...] above; all
else is the same.

On a mesh of devices, of one process or of several, the data and every batch are sharded
by rows. The numbers are those of one device, up to rounding.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stein_jax import checks, parallel
from stein_jax.training import chunks, feeds, health, identity
from stein_jax.training.chunks import TrainingDiverged
from stein_jax.training.feeds import Stream, unit_interval
from stein_jax.training.interrupts import PATIENCE, Interrupts, Terminated, wait
from stein_jax.training.records import Record, Row
from stein_jax.types import Algorithm, Batch, Key, Metrics, Params

EvaluateFn = Callable[[Any], Mapping[str, Any]]
"""`evaluate(state)` -> named scalars."""

ObserveFn = Callable[[int, Any], None]
"""`observe(step, state)`, for what an evaluation cannot return: saving samples, say."""


class Fit(NamedTuple):
  """The result of a run: the last state, and the rows of its history."""

  state: Any
  history: list[Row]


def fit(
  key: Key,
  algorithm: Algorithm,
  params: Params,
  data: Batch | Stream | None,
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
  run: Mapping[str, Any] | None = None,
  on_nonfinite: str = "stop",
  on_runaway: str = "warn",
  progress: bool = True,
  label: str = "",
  mesh: Mesh | None = None,
) -> Fit:
  """Runs `num_steps` updates of an algorithm on batches of the data.

  The data are kept on the device. Steps run in compiled chunks, whose length is the
  greatest common divisor of log_every, eval_every and checkpoint_every. Runs with the
  same algorithm object, transform and shapes use the same compiled program.

  A `Stream`'s batches are fetched one chunk ahead, in a thread. Where the batches of a
  chunk would exceed 128 MiB, its length is the greatest divisor that does not: choose
  numbers of steps that have some.

  Every log_every steps, and at the end, the history gets a row `{"step": ...,
  "<metric>": its mean since the last such row, "ms_per_step": ...}`. With a workdir,
  the row is also a line of its metrics.jsonl. ms_per_step includes waiting for a
  stream. It excludes evaluations, checkpoints, and the first chunk of each length in
  this call, which may compile. It is None (null) where nothing is left.

  At the first Ctrl-C the running chunk is finished and, with a workdir and one process,
  saved; then KeyboardInterrupt is raised. A second Ctrl-C raises it at once; the run
  can be resumed from its last checkpoint. Compilation cannot be interrupted. SIGTERM,
  which schedulers send, does the same, ends the program with the exit code 143, and
  waits no longer than five seconds for a chunk.

  Args:
    key: a PRNG key, the source of all randomness of the run.
    algorithm: `Algorithm(init, update)`.
    params: what `algorithm.init` takes.
    data: `[N, ...]`, or a dict of such arrays; or a `Stream`. A resumed run must have
      the same stream: its first batch is compared. None for an algorithm that uses no
      data, such as `svgd`; batch_size and transform are then not used.
    num_steps: the number of updates, including those before a resume.
    batch_size: m.
    transform: batch -> batch, on the device, in every step. Pass the same function
      object in every call: a new lambda is compiled again.
    log_every: steps between rows.
    evaluate: state -> dict of scalars, called before the first step, every eval_every
      steps and after the last. Its results join the step's row. Or a dict of such
      functions, whose names then precede those of the results: "name/result".
    eval_every: steps between evaluations; None: only before and after the run.
    observe: called with the step and the state at the same steps as evaluate, also
      without evaluate. These steps get a row. A resumed run does not call it again for
      a step whose row exists.
    workdir: a folder for metrics.jsonl, checkpoints/ and run.json, which marks it as a
      run's; None: nothing is written. While the run is alive no other can use it.
    checkpoint_every: steps between checkpoints, of which the last two are kept; None:
      eval_every, or else 10 log_every. One is also saved at the end.
    resume: continue from the newest checkpoint in workdir that can be read, if there is
      one, and drop the rows after it. Damaged ones are moved to damaged_checkpoints/.
      The checkpoint must be of the same run: the same key, data (by a checksum of some
      rows), batch size, first state, and the same program of the update and of
      `transform`, with all numbers in it. Programs are only compared on as many devices
      of the same kind and with the same versions of jax, flax, optax and stein_jax.
      What shows in none of these, such as what a host callback does, or which rows of
      the data changed, is told apart by `run`. False starts again: it deletes the
      checkpoints and metrics of this workdir.
    run: names and values of the caller's own that identify the run, such as a
      configuration. They are stored, and a resumed run must have the same ones.
    on_nonfinite: what happens when a metric, what is learned or an evaluation is not
      finite. "stop": TrainingDiverged; the last good checkpoint and the batch, in
      nonfinite_batch.npz, stay in workdir. "rollback": the run goes back to that
      checkpoint, with other random numbers and half the learning rate, up to three
      times, each said on stderr; rows then have an entry "rollbacks".
    on_runaway: "warn" once, "stop" (TrainingDiverged) or "ignore", when a metric named
      loss, energy_gap, gradient_norm or direction_norm stays finite but exceeds 10⁴
      times its size in the first row, and 10⁴ d for points of d numbers; or when
      negatives_spread exceeds 10⁴ and 10⁴ times its size in the first row.
    progress: whether to show a progress bar, on stderr.
    label: the name of the progress bar.
    mesh: the devices to train on, as from `parallel.make_mesh`. The algorithm must be
      made with the `axis_name` of the mesh. `evaluate` and `observe` get states on one
      device. Several processes all call `fit` with the same arguments; each reads its
      own rows of the data, which may be memory-mapped. All processes evaluate. Only
      the first observes, shows the bar and writes files, in a workdir that all can
      read.

  Returns:
    Fit(state, history), with the rows from before a resume. With a mesh the state is
    sharded as `parallel.shardings` says; `parallel.local` gathers it.

  Raises:
    TrainingDiverged: a metric, what is learned or an evaluation is not finite, or with
      on_runaway="stop" a metric runs away.
    AnotherRun: a ValueError; the workdir holds another run. It names what differs.
    WorkdirInUse: another process that is still alive writes to the workdir.
    ValueError, TypeError: impossible arguments, data that is not finite, or a workdir
      with rows or checkpoints that no run wrote, or of a run without its checkpoints.
    OSError: a workdir that cannot be written to.
    Any error of a stream, at the chunk whose batches were asked for.
  """
  functions = {"transform": transform, "evaluate": evaluate, "observe": observe}
  _check_arguments(key, algorithm, functions)
  _check_names(workdir, run, label)
  checks.boolean("resume", resume)
  checks.boolean("progress", progress)
  checks.one_of("on_nonfinite", on_nonfinite, ("stop", "rollback"))
  checks.one_of("on_runaway", on_runaway, ("warn", "stop", "ignore"))
  if on_nonfinite == "rollback" and workdir is None:
    raise ValueError('on_nonfinite="rollback" needs a workdir, to go back to')
  counts = {"num_steps": num_steps, "batch_size": batch_size, "log_every": log_every}
  optional = {"eval_every": eval_every, "checkpoint_every": checkpoint_every}
  counts |= {name: n for name, n in optional.items() if n is not None}
  for name, count in counts.items():
    checks.at_least_one(name, count)
  if data is not None:
    num_examples = feeds.count_examples(data)
    if batch_size > num_examples:
      raise ValueError(f"batch_size={batch_size} exceeds the {num_examples} examples")
  if workdir is None and checkpoint_every is not None:
    raise ValueError("checkpoint_every needs a workdir to save to")
  if mesh is not None:
    distributed = parallel.distribute(algorithm, mesh)
    if data is not None:
      parallel.check_divides("batch_size", batch_size, mesh)
    parallel.wait_for_all("fit")
    algorithm = distributed

  watched = evaluate is not None or observe is not None
  if not watched:
    eval_every = None
  if workdir is not None and checkpoint_every is None:
    checkpoint_every = eval_every or 10 * log_every
  chunk = math.gcd(log_every, eval_every or 0, checkpoint_every or 0)

  init_key, data_key, step_key = jax.random.split(key, 3)
  feed: feeds.ArrayFeed | feeds.StreamFeed | feeds.NoFeed
  if data is None:
    feed = feeds.NoFeed()
    transform = _unchanged
  elif isinstance(data, Stream):
    feed = feeds.StreamFeed(data, batch_size, mesh)
    chunk = feeds.longest_chunk(chunk, feed.bytes_per_step)
  else:
    feeds.check_finite(data, "data")
    feed = feeds.ArrayFeed(data, data_key, batch_size, mesh)
  first_batch = transform(feed.first)
  if data is not None and not jax.tree.leaves(first_batch):
    raise ValueError(f"transform must return a batch of arrays, got {first_batch!r}.")
  state = algorithm.init(init_key, params, first_batch)
  checks.leaves("state", state)
  first = chunks.first_carry(state, 0, feed.num_ordered)
  options: dict[str, Any] = {"data_key": data_key, "step_key": step_key}
  if mesh is not None:
    options = parallel.spread(options, parallel.same(mesh))
  options |= {"algorithm": algorithm, "transform": transform, "batch_size": batch_size}
  shardings = None
  if mesh is not None:
    shardings = chunks.carry_shardings(first, algorithm, first_batch, mesh)
  options |= {"mesh": mesh, "shardings": shardings}
  carry = chunks.sharded(first, shardings)
  # Costs no second trace: jit remembers this one for the first chunk.
  length = min(chunk, num_steps)
  like = feed.like(length)
  traced = chunks.run_chunk.trace(carry, data=like, **options, length=length)
  metric_shapes = traced.out_info[1]

  fingerprint = None
  if workdir is not None:
    described = {
      "key": str(jax.random.key_data(key).tolist()),
      **({} if data is None else {"batch_size": str(batch_size)}),
      **feed.described,
      **identity.describe("state", first.state),
    }
    fingerprint = identity.Fingerprint(
      described,
      {str(name): str(value) for name, value in (run or {}).items()},
      identity.state_values(first.state),
      identity.environment(None if mesh is None else mesh.size),
      *identity.program(traced.jaxpr),
    )
  interrupts = Interrupts()
  saves_at_interrupt = workdir is not None and jax.process_count() == 1
  doing = "finishing the running chunk of steps, then "
  doing += "saving" if saves_at_interrupt else "stopping"
  with contextlib.ExitStack() as stack:
    stack.enter_context(interrupts.terminable())
    stack.callback(feed.close)
    record = stack.enter_context(Record(workdir, fingerprint, interrupts))
    step, state = record.restore(first.state, resume)
    parallel.check_alike("the steps and rows so far", [step, len(record.history)])
    if step > num_steps:
      raise ValueError(
        f"{record.checkpoint} is beyond num_steps={num_steps}: ask for more steps, "
        "use another workdir or resume=False"
      )
    visible = progress and parallel.is_first_process()
    bar = stack.enter_context(_progress_bar(label, step, num_steps, visible))
    runaway = health.Runaway(
      health.dimension(first.state, first_batch), on_runaway, record.history
    )
    first_state = first.state if on_nonfinite == "rollback" else None
    del first
    shown: Row = {}

    def is_due(step: int, every: int | None) -> bool:
      return step == num_steps or (every is not None and step % every == 0)

    def length_from(step: int) -> int:
      return int(min(chunk - step % chunk, num_steps - step))

    def evaluated(step: int, state: Any) -> Row:
      copy = _copy(parallel.local(state))  # since the next chunk consumes the state
      results = _evaluate(evaluate or {}, copy, metric_shapes)
      if observe is not None and parallel.is_first_process():
        observe(step, copy)
      parallel.wait_for_all("observed")
      return results

    def advance(step: int, state: Any, options: dict[str, Any]) -> Fit:
      """From a step to the last one, or to a number that is not finite."""
      carry = chunks.first_carry(state, step, feed.num_ordered)
      carry = chunks.sharded(carry, shardings)
      del state  # the carry has its own copy
      lengths: set[int] = set()
      try:
        while True:
          if not record.has(step):
            logged = step > 0 and is_due(step, log_every)
            seen = watched and (step == 0 or is_due(step, eval_every))
            results = evaluated(step, carry.state) if seen else {}
            shown.update(results)
            bar.set_postfix(_brief(shown), refresh=False)
            if seen or logged:
              row = record.write(step, results, logged)
              health.check_results(step, results, record.checkpoint)
              runaway.check(step, row, record.checkpoint)
          if step > 0 and is_due(step, checkpoint_every):
            record.save(step, carry.state)
          if step == num_steps:
            return Fit(carry.state, record.history)

          length = length_from(step)
          start = time.perf_counter()
          # May wait for a stream. Ctrl-C need not be delayed: no chunk is running.
          batches = feed.take(step, length, length_from(step + length))
          with interrupts.delayed(doing, PATIENCE):
            following, *found = chunks.run_chunk(
              carry, data=batches, **options, length=length
            )
            del batches
            wait((following.step, found))
            metrics, finite = jax.device_get(found)
            seconds = time.perf_counter() - start
            chunks.check_finite(step, metrics, finite, length, record.checkpoint)
            carry = following
            step += length
            record.add(metrics, length, seconds if length in lengths else None)
          lengths.add(length)
          shown.update(_last_loss(metrics))
          bar.set_postfix(_brief(shown), refresh=False)
          bar.update(length)
      except (KeyboardInterrupt, Terminated):
        interrupts.first_came = True  # a second one stops the following at once
        if step > 0 and saves_at_interrupt and not interrupts.at_once:
          record.save(step, carry.state)
        raise

    while True:
      rules = _after_rollbacks(options, record.rollbacks)
      try:
        return advance(step, state, rules)
      except TrainingDiverged as error:
        is_kept = data is not None and workdir is not None and error.step > 0
        if is_kept and jax.process_count() == 1:
          batch = feed.batch(error.step - 1, batch_size, rules["data_key"])
          error.batch = record.keep_batch(error.step, batch)
        again = on_nonfinite == "rollback" and record.rollbacks < health.MAX_ROLLBACKS
        if not again:
          raise
        record.rollbacks += 1
        step, state = record.restore(first_state, True)
        print(
          f"{error.metric} is {error.value} at step {error.step}: back to step {step}, "
          f"with {0.5**record.rollbacks:g} times the learning rate "
          f"({record.rollbacks} of {health.MAX_ROLLBACKS} times)",
          file=sys.stderr,
        )
        bar.n = step


def _after_rollbacks(options: dict[str, Any], rollbacks: int) -> dict[str, Any]:
  """The options of the chunks: other random numbers, and smaller steps."""
  if not rollbacks:
    return options
  keys = {
    name: jax.random.fold_in(options[name], rollbacks)
    for name in ("data_key", "step_key")
  }
  algorithm = health.damped(options["algorithm"], 0.5**rollbacks)
  return options | keys | {"algorithm": algorithm}


def _unchanged(batch: Batch) -> Batch:
  return batch


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _progress_bar(label: str, step: int, num_steps: int, visible: bool) -> Any:
  from tqdm import tqdm  # here, since only `fit` needs it

  return tqdm(total=num_steps, initial=step, desc=label or None, disable=not visible)


def _evaluate(evaluate: Any, state: Any, taken: Mapping[str, Any]) -> Row:
  if isinstance(evaluate, Mapping):
    found = [(name + "/", function(state)) for name, function in evaluate.items()]
  else:
    found = [("", evaluate(state))]
  for prefix, part in found:
    if not isinstance(part, Mapping) or not all(isinstance(n, str) for n in part):
      raise TypeError(
        f"evaluate must return a dict of named scalars, {prefix or 'it'} returned "
        f"{part!r}"
      )
  results = {prefix + name: v for prefix, part in found for name, v in part.items()}
  for name, value in results.items():
    kind = getattr(value, "dtype", None) or np.asarray(value).dtype
    is_number = jnp.issubdtype(kind, jnp.number) or jnp.issubdtype(kind, jnp.bool_)
    if not is_number or jnp.issubdtype(kind, jnp.complexfloating):
      raise TypeError(f"evaluate: {name} must be a number, got {value!r}")
    if np.shape(value) != ():
      raise ValueError(f"evaluate: {name} must be a scalar, got {np.shape(value)}")
    if name in taken or name in chunks.RESERVED:
      raise ValueError(f"evaluate: {name} is the name of another entry of the row")
  return {name: float(value) for name, value in results.items()}


def _last_loss(metrics: Metrics) -> Row:
  """What the bar shows: the loss, or else the first metric."""
  name = "loss" if "loss" in metrics else next(iter(metrics), None)
  return {} if name is None else {name: float(metrics[name][-1])}


def _brief(values: Row) -> dict[str, str]:
  """Six digits for the bar, since log-likelihoods differ in the fifth."""
  return {name: f"{value:.6g}" for name, value in values.items()}


def _check_arguments(key: Any, algorithm: Any, functions: Mapping[str, Any]) -> None:
  checks.key(key)
  checks.algorithm(algorithm)
  checks.function("transform", functions["transform"], "batch")
  evaluate, observe = functions["evaluate"], functions["observe"]
  if isinstance(evaluate, Mapping):
    for name, function in evaluate.items():
      if not isinstance(name, str):
        raise TypeError(f"the names in evaluate must be strings, got {name!r}.")
      checks.function(f"evaluate[{name!r}]", function, "state", is_compiled=False)
  elif evaluate is not None:
    checks.function("evaluate", evaluate, "state", is_compiled=False)
  if observe is not None:
    checks.function("observe", observe, "step, state", is_compiled=False)


def _check_names(workdir: Any, run: Any, label: Any) -> None:
  for name, value, kind, wanted in (
    ("workdir", workdir, (str, os.PathLike, NoneType), "a path or None"),
    ("run", run, (Mapping, NoneType), "a dict of names and values, or None"),
    ("label", label, (str, NoneType), "a string"),
  ):
    if not isinstance(value, kind):
      raise TypeError(f"{name} must be {wanted}, got {value!r}.")
