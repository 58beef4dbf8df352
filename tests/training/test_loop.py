"""`fit` equals a hand-written NumPy loop, and equals itself when killed and resumed."""

import errno
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax.training import TrainingDiverged, chunks, feeds, fit, unit_interval
from stein_jax.types import Algorithm
from tests.training.helpers import as_numbers, assert_same_bits, rows_in, untimed

KEY = jax.random.key(3)
LEARNING_RATE = 0.1


class State(NamedTuple):
  params: Any
  step: Any


class Counter:
  """Least squares by SGD; counts how often its update is traced."""

  def __init__(self, diverges_at=None):
    self.traces = 0
    self.diverges_at = diverges_at
    self.algorithm = Algorithm(self.init, self.update)

  def init(self, key, params, batch):
    return State(params, 0)  # a weakly typed zero, as users write it

  def update(self, key, state, batch):
    self.traces += 1
    x, y = batch[:, :-1], batch[:, -1]

    def loss_fn(w):
      return 0.5 * jnp.mean((x @ w - y) ** 2)

    loss, gradient = jax.value_and_grad(loss_fn)(state.params)
    params = state.params - LEARNING_RATE * gradient
    metrics = {"loss": loss, "after": jnp.sum(params)}
    if self.diverges_at is not None:
      late = {"loss": 0, "after": 1}
      metrics = {
        name: jnp.where(state.step >= self.diverges_at + late[name], jnp.nan, value)
        for name, value in metrics.items()
      }
    return State(params, state.step + jnp.int32(1)), metrics


LEAST_SQUARES = Counter().algorithm


def recorder():
  """An algorithm whose metrics are its batch: one number per example."""

  def update(key, state, batch):
    metrics = {f"{i:03}": row for i, row in enumerate(batch)}
    return state, metrics

  return Algorithm(lambda key, params, batch: State(params, 0), update)


def noisy():
  """A nonlinear algorithm that uses its key, and has Adam's state and its own key."""
  optimizer = optax.adam(0.03)

  class Noisy(NamedTuple):
    params: Any
    opt_state: Any
    key: Any

  def init(key, params, batch):
    return Noisy(params, optimizer.init(params), key)

  def update(key, state, batch):
    own_key, new_key = jax.random.split(state.key)

    def loss_fn(params):
      hidden = jnp.tanh(batch @ params["a"] + jax.random.normal(key, (7, 8)))
      hidden *= jax.random.bernoulli(own_key, 0.9, (7, 8))
      return jnp.mean(jnp.logaddexp(0.0, (hidden @ params["b"]) ** 2 - 1.0))

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    return Noisy(params, opt_state, new_key), {"loss": loss}

  return Algorithm(init, update)


NOISY = noisy()
NOISY_PARAMS = {
  "a": 0.3 * np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32),
  "b": np.random.default_rng(1).normal(size=8).astype(np.float32),
}


def normals(n=30, d=4, dtype=np.float32):
  return np.random.default_rng(0).normal(size=(n, d)).astype(dtype)


def run(algorithm=None, data=None, key=KEY, params=None, **options):
  """`fit` with small defaults."""
  algorithm = LEAST_SQUARES if algorithm is None else algorithm
  params = jnp.zeros(3) if params is None else params
  defaults = {"num_steps": 20, "batch_size": 7, "log_every": 5, "progress": False}
  return fit(
    key, algorithm, params, normals() if data is None else data, **defaults | options
  )


def run_noisy(**options):
  return run(NOISY, params=NOISY_PARAMS, **options)


def batches_of(n, batch_size, num_steps, key=KEY):
  """The documented schedule, in NumPy: rows of the data at each step."""
  _, data_key, _ = jax.random.split(key, 3)
  for t in range(num_steps):
    epoch, i = divmod(t, n // batch_size)
    epoch_key = jax.random.fold_in(data_key, epoch)
    draws = jax.random.bits(epoch_key, (n,), jnp.uint32)
    order = np.argsort(np.asarray(draws), kind="stable")
    yield order[i * batch_size : (i + 1) * batch_size]


# The steps


def test_equals_a_numpy_loop():
  data = normals(30)
  w = np.zeros(3)
  losses = []
  for rows in batches_of(30, 7, 20):
    x, y = data[rows, :-1].astype(np.float64), data[rows, -1]
    residual = x @ w - y
    losses.append(0.5 * np.mean(residual**2))
    w = w - LEARNING_RATE * x.T @ residual / 7
  state, history = run(data=data, num_steps=20)
  np.testing.assert_allclose(state.params, w, rtol=1e-5)
  assert state.step == 20
  means = np.reshape(losses, (4, 5)).mean(1)
  np.testing.assert_allclose([row["loss"] for row in history], means, rtol=1e-5)
  assert [row["step"] for row in history] == [5, 10, 15, 20]


def test_an_epoch_visits_each_example_once_and_epochs_differ():
  data = np.arange(100, 112, dtype=np.float32)
  _, history = run(recorder(), data, num_steps=12, batch_size=4, log_every=1)
  seen = np.array([[row[f"{i:03}"] for i in range(4)] for row in history])
  epochs = seen.reshape(4, 12)
  for epoch in epochs:
    assert sorted(epoch) == list(data)
  assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize(
  ("n", "batch_size", "lengths"),
  [
    (7, 3, (1, 1, 3, 2)),  # leaves out one example; begins and ends inside an epoch
    (8, 2, (2, 1, 2, 3, 8)),  # within an epoch; to its end; two whole epochs
    (3, 3, (4, 1)),  # one epoch in each step
    (1, 1, (2,)),
  ],
)
def test_chunks_of_any_length_follow_the_documented_schedule(n, batch_size, lengths):
  _, data_key, _ = jax.random.split(KEY, 3)
  _, step, epoch, order = chunks.first_carry((), 0, n)
  seen = []
  for length in lengths:
    rows, epoch, order = feeds.chunk_rows(
      step, epoch, order, data_key, batch_size, length
    )
    assert rows.shape == (length, batch_size)
    seen.append(rows)
    step += length
  want = list(batches_of(n, batch_size, sum(lengths)))
  np.testing.assert_array_equal(np.concatenate(seen), want)


def test_step_keys_are_folded_from_the_step():
  algorithm = Algorithm(
    lambda key, params, batch: jax.random.key_data(key),
    lambda key, state, batch: (state, {"draw": jax.random.uniform(key)}),
  )
  state, history = run(algorithm, num_steps=6, log_every=1)
  init_key, _, step_key = jax.random.split(KEY, 3)
  want = [jax.random.uniform(jax.random.fold_in(step_key, t)) for t in range(6)]
  np.testing.assert_array_equal([row["draw"] for row in history], want)
  np.testing.assert_array_equal(state, jax.random.key_data(init_key))


def test_chunks_do_not_change_the_run():
  whole = run_noisy(num_steps=20, log_every=20)
  pieces = run_noisy(num_steps=20, log_every=5)
  assert_same_bits(whole.state, pieces.state)


def test_init_sees_the_first_transformed_batch():
  data = np.random.default_rng(0).integers(0, 256, (30, 5), dtype=np.uint8)
  algorithm = Algorithm(lambda key, params, batch: batch, lambda k, s, b: (s, {}))
  state, _ = run(algorithm, data, num_steps=1)
  want = data[next(batches_of(30, 7, 1))] / np.float32(255)
  np.testing.assert_allclose(state, want, rtol=1e-6)


def test_works_outside_the_main_thread():
  with ThreadPoolExecutor(1) as pool:
    inside = pool.submit(run).result()
  assert_same_bits(inside.state, run().state)


def test_legacy_keys_work():
  legacy = jax.random.key_data(KEY)
  assert_same_bits(run().state, run(key=legacy).state)


def test_float64_states(tmp_path):
  with jax.enable_x64(True):
    data = normals(dtype=np.float64)
    options = {"data": data, "params": jnp.zeros(3), "workdir": tmp_path}
    run(**options, num_steps=10)
    state, _ = run(**options, num_steps=20)
    w = np.zeros(3)
    for rows in batches_of(30, 7, 20):
      x, y = data[rows, :-1], data[rows, -1]
      w = w - LEARNING_RATE * x.T @ (x @ w - y) / 7
    assert state.params.dtype == jnp.float64
    np.testing.assert_allclose(state.params, w, rtol=1e-13)


# The data


def test_unit_interval_scales_only_uint8_images():
  x = np.arange(256, dtype=np.uint8)
  got = jax.jit(unit_interval)(x)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, np.arange(256) / 255, rtol=1e-6)
  assert got.min() == 0.0
  assert got.max() == 1.0
  floats = jnp.array([3.0, -1.0])
  assert unit_interval(floats) is floats
  batch = unit_interval({"x": jnp.array(x), "context": jnp.array(x)})
  np.testing.assert_array_equal(batch["x"], unit_interval(jnp.array(x)))
  np.testing.assert_array_equal(batch["context"], x)
  assert batch["context"].dtype == jnp.uint8


def test_dict_data_keep_their_rows_together():
  x = np.arange(12, dtype=np.uint8)

  def update(key, state, batch):
    gap = jnp.abs(255 * batch["x"] + 1 - batch["context"]).max()
    return state, {"gap": gap, "label": batch["context"].sum()}

  algorithm = Algorithm(lambda key, params, batch: batch["context"], update)
  data = {"x": x, "context": (x + 1).astype(np.int32)}
  state, history = run(algorithm, data, num_steps=3, batch_size=4, log_every=1)
  assert state.dtype == jnp.int32
  assert max(row["gap"] for row in history) < 1e-4
  assert sum(row["label"] for row in history) == sum(range(1, 13))


def test_the_callers_arrays_are_not_consumed():
  params = jnp.ones(3)
  twice = Algorithm(
    lambda key, params, batch: (params, params),
    lambda key, state, batch: ((state[0] + 1, state[1] + 2), {}),
  )
  state, _ = run(twice, params=params, num_steps=10)
  np.testing.assert_array_equal(params, np.ones(3))
  np.testing.assert_array_equal(state, np.stack([11 * np.ones(3), 21 * np.ones(3)]))


# Compilation and transfers


def test_one_trace_serves_all_chunks_and_runs():
  counter = Counter()
  data = jnp.asarray(normals())
  run(counter.algorithm, data, num_steps=20)
  assert counter.traces == 1
  run(counter.algorithm, data, num_steps=20, key=jax.random.key(8))
  assert counter.traces == 1
  run(counter.algorithm, data, num_steps=23)  # a shorter chunk at the end
  assert counter.traces == 2


@pytest.mark.parametrize("resumed", [False, True])
def test_nothing_compiles_after_the_first_chunk(compilations, tmp_path, resumed):
  algorithm = Counter().algorithm
  if resumed:
    run(algorithm, num_steps=5, workdir=tmp_path)
  counts = []

  def evaluate(state):
    counts.append(len(compilations))
    return {}

  options = {"workdir": tmp_path} if resumed else {}
  run(algorithm, num_steps=25, evaluate=evaluate, eval_every=5, **options)
  # Counted in each evaluation, beginning with the one after the first chunk.
  after = counts[-4:]
  assert after[0] > 0
  assert len(set(after)) == 1


def test_no_transfer_inside_a_chunk(monkeypatch):
  run_chunk = chunks.run_chunk
  calls = []

  def guarded(*args, **kwargs):
    calls.append(kwargs["length"])
    with jax.transfer_guard("disallow"):
      return run_chunk(*args, **kwargs)

  guarded.trace = run_chunk.trace
  monkeypatch.setattr(chunks, "run_chunk", guarded)
  run_noisy(num_steps=12)
  assert calls == [5, 5, 2]


def test_the_state_is_donated():
  algorithm = Counter().algorithm
  carry = chunks.first_carry(State(jnp.zeros(3), 0), 0, 30)
  chunks.run_chunk(
    carry,
    data=jnp.asarray(normals()),
    data_key=KEY,
    step_key=KEY,
    algorithm=algorithm,
    transform=unit_interval,
    batch_size=7,
    length=5,
  )
  assert carry.state.params.is_deleted()


# The history


def test_evaluations_before_during_and_after_the_run():
  seen = []

  def evaluate(state):
    seen.append(state)  # may be kept: evaluations get a copy
    return {"at": state.step, "w": jnp.sum(state.params)}

  result = run(num_steps=23, log_every=10, evaluate=evaluate, eval_every=5)
  assert [int(state.step) for state in seen] == [0, 5, 10, 15, 20, 23]
  rows = {row["step"]: row for row in result.history}
  assert list(rows) == [0, 5, 10, 15, 20, 23]
  assert all(row["at"] == step for step, row in rows.items())
  assert [step for step, row in rows.items() if "loss" in row] == [10, 20, 23]
  np.testing.assert_array_equal(seen[-1].params, result.state.params)


def test_observe_is_called_when_evaluate_is_and_once_for_each_step(tmp_path):
  seen = []
  options = {
    "observe": lambda step, state: seen.append((step, int(state.step))),
    "eval_every": 5,
    "log_every": 10,
    "workdir": tmp_path,
  }
  run(num_steps=10, **options)
  assert seen == [(0, 0), (5, 5), (10, 10)]
  resumed = run(num_steps=13, **options)
  assert seen[3:] == [(13, 13)]
  assert [row["step"] for row in resumed.history] == [0, 5, 10, 13]


def test_evaluations_without_eval_every_are_the_first_and_the_last():
  evaluate = {
    "double": lambda state: {"step": 2 * state.step},
    "half": lambda state: {"step": np.float64(state.step) / 2},
  }
  _, history = run(num_steps=12, log_every=12, evaluate=evaluate)
  assert history[0] == {"step": 0, "double/step": 0.0, "half/step": 0.0}
  assert history[1]["double/step"] == 24.0
  assert history[1]["half/step"] == 6.0
  assert len(history) == 2


def test_ms_per_step_leaves_out_chunks_that_may_compile():
  _, history = run(num_steps=25, log_every=10)
  assert [row["ms_per_step"] is None for row in history] == [True, False, True]
  assert 0 < history[1]["ms_per_step"] < 1e3


def test_metrics_are_written_as_json_lines(tmp_path):
  _, history = run(workdir=tmp_path, evaluate=lambda state: {"at": state.step})
  assert rows_in(tmp_path) == history


def test_progress_bar(capsys):
  evaluate = {"test": lambda state: {"at": state.step}}
  run(progress=True, label="least squares", evaluate=evaluate, eval_every=10)
  err = capsys.readouterr().err
  assert "least squares" in err
  assert "20/20" in err
  assert "loss=" in err
  assert "test/at=20" in err
  run(progress=False, label="least squares")
  assert capsys.readouterr() == ("", "")


# Checkpoints


@pytest.mark.parametrize("stops", [[10], [13, 14, 20]])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, stops):
  whole = run_noisy(num_steps=30)
  for stop in stops:
    run_noisy(num_steps=stop, workdir=tmp_path)
  resumed = run_noisy(num_steps=30, workdir=tmp_path)
  assert type(resumed.state) is type(whole.state)
  assert_same_bits(whole.state, resumed.state)
  ends = sorted({5, 10, 15, 20, 25, 30, *stops})
  assert [row["step"] for row in resumed.history] == ends
  assert rows_in(tmp_path) == resumed.history


def test_a_finished_run_returns_at_once(tmp_path):
  first = run_noisy(workdir=tmp_path)
  calls = []
  again = run_noisy(workdir=tmp_path, evaluate=lambda state: calls.append(state) or {})
  assert_same_bits(first.state, again.state)
  assert again.history == first.history
  assert not calls


class Killed(Exception):
  pass


def killed_at(step, error=Killed):
  def evaluate(state):
    if as_numbers(state.opt_state[0].count) == step:
      raise error
    return {"a": jnp.sum(state.params["a"])}

  return evaluate


def test_killed_between_checkpoints(tmp_path):
  options = {"num_steps": 30, "eval_every": 6, "checkpoint_every": 12}
  with pytest.raises(Killed):
    run_noisy(evaluate=killed_at(18), workdir=tmp_path, **options)
  assert [row["step"] for row in rows_in(tmp_path)] == [0, 5, 6, 10, 12, 15]
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 1')  # half a line

  resumed = run_noisy(evaluate=killed_at(None), workdir=tmp_path, **options)
  whole = run_noisy(evaluate=killed_at(None), workdir=tmp_path / "b", **options)
  assert_same_bits(whole.state, resumed.state)
  # The rows too, though 12 is in the middle of the window from 10 to 15.
  assert untimed(resumed.history) == untimed(whole.history)
  assert rows_in(tmp_path) == resumed.history


def test_only_the_last_checkpoints_are_kept(tmp_path):
  run(workdir=tmp_path, checkpoint_every=5)
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["15", "20"]


def test_resume_false_starts_again(tmp_path):
  run_noisy(workdir=tmp_path)
  other_file = tmp_path / "checkpoints" / "notes.txt"
  other_file.write_text("mine")
  other = run_noisy(workdir=tmp_path, resume=False, key=jax.random.key(9), num_steps=10)
  alone = run_noisy(key=jax.random.key(9), num_steps=10)
  assert_same_bits(other.state, alone.state)
  assert [row["step"] for row in rows_in(tmp_path)] == [5, 10]
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "notes.txt"]


def test_a_resume_that_cannot_rewrite_the_rows_loses_none(tmp_path, monkeypatch):
  run(workdir=tmp_path)
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 1')  # half a line
  before = (tmp_path / "metrics.jsonl").read_text()
  names = set(os.listdir(tmp_path))

  def fail(*args):
    raise OSError(errno.ENOSPC, "the disk is full")

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match=r"cannot write .*metrics\.jsonl.* disk is full"):
    run(workdir=tmp_path, num_steps=25)
  assert (tmp_path / "metrics.jsonl").read_text() == before
  assert set(os.listdir(tmp_path)) == names


def test_rows_without_a_checkpoint_are_dropped(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 5}\n')
  (tmp_path / "run.json").write_text("{}")  # killed before its first checkpoint
  run(workdir=tmp_path)
  assert [row["step"] for row in rows_in(tmp_path)] == [5, 10, 15, 20]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"batch_size": 6}, "batch_size was 7, expected 6"),
    ({"data": normals(29)}, r"data was float32\[30,4\], expected float32\[29,4\]"),
    ({"key": jax.random.key(4)}, r"key was \[0, 3\], expected \[0, 4\]"),
    (
      {"params": jnp.zeros(2), "data": normals(d=3)},
      r"state\.params was float32\[3\], expected float32\[2\]",
    ),
    ({"num_steps": 10}, r"20 is beyond num_steps=10"),
  ],
)
def test_the_workdir_of_another_run_is_an_error(tmp_path, change, message):
  run(workdir=tmp_path)
  before = rows_in(tmp_path)
  with pytest.raises(ValueError, match=message) as error:
    run(workdir=tmp_path, **change)
  assert "use another workdir or resume=False" in str(error.value).replace("Use", "use")
  assert rows_in(tmp_path) == before


# Early ends


@pytest.mark.parametrize("at", [4, 12, 14])
def test_divergence_names_its_step_and_a_good_checkpoint(tmp_path, at):
  algorithm = Counter(diverges_at=at).algorithm
  with pytest.raises(TrainingDiverged, match=f"loss is nan at step {at + 1}") as caught:
    run(algorithm, workdir=tmp_path, checkpoint_every=5)
  error = caught.value
  assert isinstance(error, FloatingPointError)
  assert error.step == at + 1  # updates count from 1 in the history
  assert error.metric == "loss"
  assert np.isnan(error.value)
  good = at // 5 * 5
  assert [row["step"] for row in rows_in(tmp_path)] == list(range(5, good + 1, 5))
  if good == 0:
    assert error.checkpoint is None
    assert os.listdir(tmp_path / "checkpoints") == []
  else:
    assert error.checkpoint == str(tmp_path / "checkpoints" / str(good))
    state, _ = run(algorithm, workdir=tmp_path, num_steps=good)
    assert state.step == good
    assert_same_bits(state, run(num_steps=good).state)


def test_parameters_that_overflow_behind_finite_metrics_are_not_saved(tmp_path):
  class Bare(NamedTuple):
    params: Any
    best: Any

  algorithm = Algorithm(
    lambda key, params, batch: Bare(params, jnp.inf),  # infinite on purpose
    lambda key, state, batch: (
      Bare(jnp.where(state.params[0] < 9, state.params + 1, jnp.inf), state.best),
      {"one": 1.0},
    ),
  )
  with pytest.raises(TrainingDiverged, match="params is nan at step 10") as caught:
    run(algorithm, workdir=tmp_path, checkpoint_every=5)
  assert caught.value.checkpoint.endswith("5")
  assert os.listdir(tmp_path / "checkpoints") == ["5"]


def test_interrupt_in_a_chunk_saves_the_chunk(tmp_path, request):
  def interrupt(step):
    if step == 7:
      os.kill(os.getpid(), signal.SIGINT)

  inner = Counter().algorithm

  def update(key, state, batch):
    jax.debug.callback(interrupt, state.step)
    return inner.update(key, state, batch)

  algorithm = Algorithm(inner.init, update)
  # Background jobs of a shell start without this handler.
  handler = signal.default_int_handler
  before = signal.signal(signal.SIGINT, handler)
  request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
  with pytest.raises(KeyboardInterrupt):
    run(algorithm, workdir=tmp_path, log_every=20, eval_every=5, evaluate=lambda s: {})
  assert signal.getsignal(signal.SIGINT) is handler
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "5"]
  resumed = run(
    algorithm, workdir=tmp_path, log_every=20, eval_every=5, evaluate=lambda s: {}
  )
  whole = run(inner, log_every=20, eval_every=5, evaluate=lambda s: {})
  assert_same_bits(resumed.state, whole.state)
  assert untimed(resumed.history) == untimed(whole.history)


def test_interrupt_in_an_evaluation_loses_no_row(tmp_path):
  options = {"num_steps": 20, "eval_every": 10, "checkpoint_every": 20}
  with pytest.raises(KeyboardInterrupt):
    run_noisy(evaluate=killed_at(10, KeyboardInterrupt), workdir=tmp_path, **options)
  assert os.listdir(tmp_path / "checkpoints") == ["10"]
  resumed = run_noisy(evaluate=killed_at(None), workdir=tmp_path, **options)
  whole = run_noisy(evaluate=killed_at(None), workdir=tmp_path / "b", **options)
  assert_same_bits(resumed.state, whole.state)
  assert untimed(resumed.history) == untimed(whole.history)


def test_interrupt_without_a_workdir_is_only_raised():
  with pytest.raises(KeyboardInterrupt):
    run_noisy(evaluate=killed_at(10, KeyboardInterrupt), eval_every=10)


# Errors


def constant(metrics):
  return Algorithm(lambda key, params, batch: params, lambda k, s, b: (s, metrics))


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    ({"num_steps": 0}, ValueError, "num_steps must be an integer of at least 1"),
    ({"log_every": 0}, ValueError, "log_every must be .* got 0"),
    ({"eval_every": -1}, ValueError, "eval_every must be .* got -1"),
    ({"checkpoint_every": 2.5}, ValueError, "checkpoint_every must be .* got 2.5"),
    ({"checkpoint_every": 5}, ValueError, "needs a workdir"),
    ({"batch_size": 0}, ValueError, "batch_size must be .* got 0"),
    ({"batch_size": 31}, ValueError, "batch_size=31 exceeds the 30 examples"),
    (
      {"data": {"x": normals(30), "context": np.zeros(29)}},
      ValueError,
      r"one leading axis.*\(29,\).*\(30, 4\)",
    ),
    ({"data": np.float32(1.0)}, ValueError, "one leading axis"),
    ({"data": {}}, ValueError, "one leading axis"),
    ({"key": 0}, TypeError, "key must be one PRNG key"),
    ({"key": jax.random.split(KEY)}, TypeError, "key must be one PRNG key"),
    ({"algorithm": optax.adam(1e-3)}, TypeError, "optax optimizer"),
    ({"algorithm": lambda batch: batch}, TypeError, "it has no init"),
    (
      {"algorithm": constant({"loss": jnp.ones(3)})},
      ValueError,
      r"metric loss must be a scalar, got shape \(3,\)",
    ),
    (
      {"algorithm": constant({"loss": {"a": 1.0}})},
      ValueError,
      "metric loss must be a scalar, got dict",
    ),
    ({"algorithm": constant(1.0)}, TypeError, "metrics must be a dict"),
    ({"algorithm": constant({"step": 1.0})}, ValueError, "rename the metric"),
    (
      {"evaluate": {"test": lambda state: {"v": state.params}}},
      ValueError,
      r"test/v must be a scalar, got \(3,\)",
    ),
    (
      {"evaluate": lambda state: {"loss": 1.0}},
      ValueError,
      "loss is the name of another entry",
    ),
  ],
)
def test_errors_name_the_argument(options, error, message):
  with pytest.raises(error, match=message):
    run(**options)


def test_errors_delete_nothing(tmp_path):
  run(workdir=tmp_path)
  before = rows_in(tmp_path)
  with pytest.raises(ValueError, match="must be a scalar"):
    run(constant({"loss": jnp.ones(3)}), workdir=tmp_path, resume=False)
  assert rows_in(tmp_path) == before
  assert "20" in os.listdir(tmp_path / "checkpoints")
