"""`fit` on a stream equals `fit` on arrays and a hand-written loop."""

import os
import signal
import threading
import time
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax.training import Stream, TrainingDiverged, feeds, fit, unit_interval
from stein_jax.types import Algorithm
from tests.training.helpers import assert_same_bits, rows_in, untimed

KEY = jax.random.key(3)
N, M = 30, 7


class State(NamedTuple):
  params: Any
  step: Any
  key: Any


def perceptron(diverges_at=None):
  """A nonlinear algorithm that uses its key, and keeps another."""

  def init(key, params, batch):
    return State(params + 0.1 * jnp.mean(batch["x"], axis=0), jnp.int32(0), key)

  def update(key, state, batch):
    own_key, new_key = jax.random.split(state.key)

    def loss_fn(params):
      noise = jax.random.normal(key, (M,)) + jax.random.normal(own_key, (M,))
      return jnp.mean(jnp.tanh(batch["x"] @ params + noise - batch["context"]) ** 2)

    loss, gradient = jax.value_and_grad(loss_fn)(state.params)
    if diverges_at is not None:
      loss = jnp.where(state.step >= diverges_at, jnp.nan, loss)
    metrics = {"loss": loss, "first": batch["x"][0, 0]}
    return State(state.params - 0.1 * gradient, state.step + 1, new_key), metrics

  return Algorithm(init, update)


PERCEPTRON = perceptron()


def pictures(n=N, d=4, seed=0):
  """Pictures uint8 [n, d], and labels."""
  rng = np.random.default_rng(seed)
  x = rng.integers(0, 256, (n, d), dtype=np.uint8)
  return {"x": x, "context": rng.integers(0, 3, n).astype(np.int32)}


def rows_of(step, n=N, seed=0):
  """The rows of a step in epochs of NumPy's permutations."""
  epoch, i = divmod(step, n // M)
  return np.random.default_rng([seed, epoch]).permutation(n)[i * M : (i + 1) * M]


class Shuffled:
  """A stream over arrays; it records its calls as (thread, first step, length)."""

  def __init__(self, data=None, rows=rows_of, at_call=lambda first_step: None):
    self.data = pictures() if data is None else data
    self.num_examples = len(jax.tree.leaves(self.data)[0])
    self.rows, self.at_call, self.calls = rows, at_call, []

  def batches(self, first_step, length, batch_size):
    assert batch_size == M
    self.calls.append((threading.current_thread().name, first_step, length))
    self.at_call(first_step)
    rows = np.stack([self.rows(first_step + i) for i in range(length)])
    return jax.tree.map(lambda x: x[rows], self.data)


def run(stream=None, algorithm=PERCEPTRON, key=KEY, **options):
  """`fit` with small defaults."""
  stream = Shuffled() if stream is None else stream
  params = jnp.zeros(4, jnp.result_type(float))
  defaults = {"num_steps": 20, "batch_size": M, "log_every": 5, "progress": False}
  return fit(key, algorithm, params, stream, **defaults | options)


def threads_left():
  return [t.name for t in threading.enumerate() if t.name.startswith("stein_jax")]


# The steps


def test_equals_a_hand_written_loop():
  data = pictures()
  init_key, _, step_key = jax.random.split(KEY, 3)

  def batch_at(step):
    rows = rows_of(step)
    x = jnp.asarray(data["x"][rows] / np.float32(255))
    return {"x": x, "context": jnp.asarray(data["context"][rows])}

  state = PERCEPTRON.init(init_key, jnp.zeros(4), batch_at(0))
  update = jax.jit(PERCEPTRON.update)
  losses = []
  for t in range(23):
    state, metrics = update(jax.random.fold_in(step_key, t), state, batch_at(t))
    losses.append(float(metrics["loss"]))

  got, history = run(num_steps=23)
  np.testing.assert_allclose(got.params, state.params, rtol=1e-4)
  assert got.step == 23
  assert [row["step"] for row in history] == [5, 10, 15, 20, 23]
  means = [np.mean(losses[a : a + 5]) for a in range(0, 23, 5)]
  np.testing.assert_allclose([row["loss"] for row in history], means, rtol=1e-4)


def test_a_stream_in_the_order_of_arrays_is_the_same_run():
  _, data_key, _ = jax.random.split(KEY, 3)

  def rows(step):  # the schedule that loop.py documents for arrays
    epoch, i = divmod(step, N // M)
    draws = jax.random.bits(jax.random.fold_in(data_key, epoch), (N,), jnp.uint32)
    return np.argsort(np.asarray(draws), kind="stable")[i * M : (i + 1) * M]

  streamed = run(Shuffled(rows=rows), num_steps=13)
  held = run(pictures(), num_steps=13)
  assert_same_bits(streamed.state, held.state)
  assert untimed(streamed.history) == untimed(held.history)


def test_plain_arrays_and_the_transform_on_the_device():
  seen = []

  def doubled(x):
    seen.append(isinstance(x, jax.Array))  # traced
    return 2.0 * unit_interval(x)

  stream = Shuffled(pictures()["x"])
  algorithm = Algorithm(
    lambda key, params, batch: batch,
    lambda key, state, batch: (state, {"mean": jnp.mean(batch)}),
  )
  state, history = run(stream, algorithm, transform=doubled, num_steps=4, log_every=1)
  want = [2 * np.mean(stream.data[rows_of(t)]) / 255 for t in range(4)]
  np.testing.assert_allclose([row["mean"] for row in history], want, rtol=1e-6)
  np.testing.assert_allclose(state, stream.data[rows_of(0)] / 127.5, rtol=1e-6)
  assert all(seen)


def test_float64_streams(x64):
  stream = Shuffled({"x": pictures()["x"] / 255, "context": pictures()["context"]})
  algorithm = Algorithm(
    lambda key, params, batch: params,
    lambda key, state, batch: (state, {"sum": jnp.sum(batch["x"])}),
  )
  _, history = run(stream, algorithm, num_steps=3, log_every=1)
  want = [np.sum(stream.data["x"][rows_of(t)]) for t in range(3)]
  np.testing.assert_allclose([row["sum"] for row in history], want, rtol=1e-14)


# Fetching


def test_each_step_is_fetched_once_and_off_the_main_thread():
  stream = Shuffled()
  assert isinstance(stream, Stream)
  run(stream, num_steps=23)
  assert [call[1:] for call in stream.calls] == [
    (0, 1),  # for init, and for the shapes of all batches
    (0, 5),
    (5, 5),
    (10, 5),
    (15, 5),
    (20, 3),
  ]
  fetchers = {name for name, *_ in stream.calls[1:]}
  assert len(fetchers) == 1
  assert fetchers.pop().startswith("stein_jax-stream")
  assert threads_left() == []


def test_the_next_chunk_is_fetched_while_this_one_runs():
  asked = {step: threading.Event() for step in (0, 5, 10)}
  stream = Shuffled(at_call=lambda first_step: asked[first_step].set())
  update = PERCEPTRON.update

  def waiting(key, state, batch):
    def wait(step):
      if step in (0, 5):  # within the chunk from 0 to 4, and from 5 to 9
        assert asked[int(step) + 5].wait(20)

    jax.debug.callback(wait, state.step)
    return update(key, state, batch)

  run(stream, Algorithm(PERCEPTRON.init, waiting), num_steps=15)


@pytest.mark.parametrize(
  ("length", "bytes_per_step", "want"),
  [
    (100, 1_228_800, 100),  # batches of 100 pictures of 64x64x3
    (1000, 1_228_800, 100),
    (500, 2**27 // 249, 125),  # 249 batches stay within the bound, 250 do not
    (500, 2**27 // 250, 250),
    (101, 2**22, 1),
    (7, 2**30, 1),  # at least one batch, however large
    (7, 0, 7),
  ],
)
def test_chunks_are_the_longest_that_fit_and_divide(length, bytes_per_step, want):
  assert feeds.longest_chunk(length, bytes_per_step) == want


def test_shorter_chunks_do_not_change_the_run(monkeypatch):
  whole = run(log_every=20)
  monkeypatch.setattr(feeds, "_STREAM_BYTES", 6 * M * (4 + 4))  # six steps
  stream = Shuffled()
  pieces = run(stream, log_every=20)
  assert [call[1:] for call in stream.calls[1:]] == [(s, 5) for s in range(0, 20, 5)]
  assert_same_bits(whole.state, pieces.state)
  np.testing.assert_allclose(whole.history[0]["loss"], pieces.history[0]["loss"])


@pytest.mark.parametrize("resumed", [False, True])
def test_one_trace_and_no_compilation_after_the_first_chunk(
  compilations, tmp_path, resumed
):
  chex.clear_trace_counter()
  update = chex.assert_max_traces(perceptron().update, n=1)
  algorithm = Algorithm(PERCEPTRON.init, update)
  options = {"workdir": tmp_path} if resumed else {}
  if resumed:
    run(algorithm=algorithm, num_steps=5, **options)
  counts = []

  def evaluate(state):
    counts.append(len(compilations))
    return {}

  options |= {"evaluate": evaluate, "eval_every": 5}
  run(algorithm=algorithm, num_steps=25, **options)
  assert counts[-4] > 0
  assert len(set(counts[-4:])) == 1


# Errors of the stream


def test_an_error_in_the_thread_reaches_the_caller(tmp_path):
  def fail(first_step):
    if first_step == 10:
      raise OSError("the disk is gone")

  options = {"workdir": tmp_path, "checkpoint_every": 5}
  with pytest.raises(OSError, match="the disk is gone") as caught:
    run(Shuffled(at_call=fail), **options)
  assert any(entry.name == "fail" for entry in caught.traceback)
  assert threads_left() == []
  # The steps before it are done, and a repaired stream continues from there.
  assert [row["step"] for row in rows_in(tmp_path)] == [5, 10]
  repaired = run(Shuffled(), **options)
  assert_same_bits(repaired.state, run().state)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda b, length: b | {"x": b["x"][..., :3]}, r"\(5, 7, 4\).*\(5, 7, 3\)"),
    (lambda b, length: b | {"x": b["x"].astype(int)}, "uint8.*got.*int64"),
    (lambda b, length: jax.tree.map(lambda x: x[1:], b), r"got.*\(4, 7, 4\)"),
    (lambda b, length: b["x"], r"got \{'batches': "),
  ],
)
def test_batches_of_other_types_or_shapes_are_an_error(change, message):
  class Changing(Shuffled):
    def batches(self, first_step, length, batch_size):
      batches = super().batches(first_step, length, batch_size)
      return change(batches, length) if first_step == 5 else batches

  with pytest.raises(ValueError, match=message) as caught:
    run(Changing())
  assert "of 5 steps from step 5 on must be" in str(caught.value)


def test_a_first_batch_without_the_axis_of_steps_is_an_error():
  class Flat(Shuffled):
    def batches(self, first_step, length, batch_size):
      return super().batches(first_step, length, batch_size)["x"][0]

  with pytest.raises(
    ValueError, match=r"1 steps from step 0 .*\(1, 7\).*got.*\(7, 4\)"
  ):
    run(Flat())


def test_errors_name_the_argument():
  with pytest.raises(ValueError, match="batch_size=31 exceeds the 30 examples"):
    run(batch_size=31)
  with pytest.raises(ValueError, match="one leading axis, or a Stream"):
    run(object())


# Checkpoints


@pytest.mark.parametrize("stops", [[10], [13, 14, 20]])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, stops):
  whole = run(num_steps=30)
  for stop in stops:
    run(num_steps=stop, workdir=tmp_path)
  stream = Shuffled()
  resumed = run(stream, num_steps=30, workdir=tmp_path)
  assert_same_bits(whole.state, resumed.state)
  assert min(step for _, step, _ in stream.calls[1:]) == stops[-1]
  ends = sorted({5, 10, 15, 20, 25, 30, *stops})
  assert [row["step"] for row in resumed.history] == ends
  assert rows_in(tmp_path) == resumed.history


def test_a_finished_run_fetches_only_the_first_batch(tmp_path):
  first = run(workdir=tmp_path)
  stream = Shuffled()
  again = run(stream, workdir=tmp_path)
  assert_same_bits(first.state, again.state)
  assert [call[1:] for call in stream.calls] == [(0, 1)]


@pytest.mark.parametrize(
  ("stream", "message"),
  [
    (lambda: Shuffled(rows=lambda t: rows_of(t, seed=1)), "checksum of the first"),
    (lambda: Shuffled(pictures(seed=1)), "checksum of the first batch was"),
    (lambda: Shuffled(pictures(31), rows_of), "30 examples, expected a stream of 31"),
    (lambda: Shuffled(pictures()["x"]), r"batch\['x'\] was uint8\[7,4\], .* absent"),
    (pictures, "data was a stream of 30 examples, expected absent"),
  ],
)
def test_the_workdir_of_another_stream_is_an_error(tmp_path, stream, message):
  run(workdir=tmp_path)
  algorithm = Algorithm(
    lambda key, params, batch: State(params, jnp.int32(0), key),
    lambda key, state, batch: (state, {"loss": jnp.float32(0)}),
  )
  with pytest.raises(ValueError, match=message) as caught:
    run(stream(), algorithm, workdir=tmp_path)
  assert "Use another workdir or resume=False" in str(caught.value)


# Early ends


def test_divergence_names_its_step_and_a_good_checkpoint(tmp_path):
  algorithm = perceptron(diverges_at=12)
  with pytest.raises(TrainingDiverged, match="loss is nan at step 13") as caught:
    run(algorithm=algorithm, workdir=tmp_path, checkpoint_every=5)
  assert caught.value.checkpoint == str(tmp_path / "checkpoints" / "10")
  assert threads_left() == []


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_ctrl_c_saves_and_resumes(tmp_path, request, seconds):
  """While the chunk before step 10 runs, or while `fit` waits for the next batches."""
  # Background jobs of a shell start without this handler.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

  def interrupt(first_step):
    if first_step == 10:
      time.sleep(seconds)
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(0.2)

  with pytest.raises(KeyboardInterrupt):
    run(Shuffled(at_call=interrupt), workdir=tmp_path, checkpoint_every=20)
  assert threads_left() == []
  (saved,) = os.listdir(tmp_path / "checkpoints")
  assert saved == "10" if seconds else saved in ("5", "10")
  resumed = run(workdir=tmp_path, checkpoint_every=20)
  whole = run()
  assert_same_bits(resumed.state, whole.state)
  assert untimed(resumed.history) == untimed(whole.history)
