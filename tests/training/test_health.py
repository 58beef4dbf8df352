"""Bad numbers: in the data, in a step, in an evaluation, and those that run away."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import (
  Direction,
  contrastive_divergence,
  kernels,
  score_matching,
  stein_cd,
)
from stein_jax.algorithms.metrics import negatives_spread
from stein_jax.energies import MLP
from stein_jax.training import TrainingDiverged, fit
from stein_jax.training.health import damped
from stein_jax.types import Algorithm
from tests.training.helpers import assert_same_bits, rows_in

KEY = jax.random.key(0)
DATA = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)


def energy(params, x):
  return 0.5 * jnp.exp(params["s"]) * jnp.square(x - params["mean"]).sum()


PARAMS = {"mean": jnp.zeros(2), "s": jnp.zeros(())}


def cd(optimizer):
  return contrastive_divergence(energy, optimizer, num_steps=1, step_size=0.1)


def train(algorithm=None, data=DATA, workdir=None, num_steps=40, **options):
  options = {"batch_size": 20, "log_every": 5} | options
  if workdir is not None:
    options = {"checkpoint_every": 5} | options
  return fit(
    KEY,
    cd(optax.adam(0.01)) if algorithm is None else algorithm,
    PARAMS,
    data,
    num_steps=num_steps,
    workdir=workdir,
    progress=False,
    **options,
  )


# -------------------------------------------------------------------------- the data


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_data_that_is_not_finite_is_named_before_the_first_step(value, kind, tmp_path):
  data = DATA.copy()
  data[17, 1] = value
  for given, name in ((kind(data), r"data has"), ({"x": kind(data)}, r"data\['x'\]")):
    with pytest.raises(ValueError, match=rf"{name}.* NaN or infinity in row 17"):
      train(data=given, workdir=tmp_path / "run")
  assert not (tmp_path / "run").exists()


class BadStream:
  num_examples = 60

  def batches(self, first_step, length, batch_size):
    found = np.ones((length, batch_size, 2), np.float32)
    if first_step >= 5:
      found[2] = np.nan
    return found


def test_a_stream_s_bad_batch_is_named():
  with pytest.raises(ValueError, match=r"batches from step 5 on.*NaN.* in row 2"):
    train(data=BadStream())


# ---------------------------------------------------------------------------- a step


class State(NamedTuple):
  params: Any
  step: Any


def failing(at, keys=()):
  """Adds 1 in every step. From step `at` on the loss is NaN, except with some keys."""

  def update(key, state, batch):
    draw = jax.random.key_data(key)
    jump = jnp.mean(batch) * 0 + 1.0
    fails = (state.step == at) & (state.params["mean"][0] == at)
    loss = jnp.where(fails, jnp.nan, jump + 0 * draw[0])
    params = jax.tree.map(lambda x: x + jump, state.params)
    return State(params, state.step + 1), {"loss": loss}

  return Algorithm(lambda key, params, batch: State(params, jnp.int32(0)), update)


def test_the_batch_of_a_bad_step_is_kept(tmp_path):
  with pytest.raises(TrainingDiverged, match=r"Its batch is in .*nonfinite") as caught:
    train(failing(12), workdir=tmp_path)
  with np.load(caught.value.batch) as kept:
    assert kept["step"] == 13
    order = np.argsort(
      jax.random.bits(
        jax.random.fold_in(jax.random.split(KEY, 3)[1], 12 // 3), (60,), jnp.uint32
      )
    )
    np.testing.assert_array_equal(kept["batch"], DATA[order[:20]])
  assert caught.value.checkpoint.endswith("10")


def test_a_rollback_continues_with_half_the_learning_rate(tmp_path, capfd):
  state, history = train(failing(12), workdir=tmp_path, on_nonfinite="rollback")
  # Ten whole steps, and then thirty halves.
  np.testing.assert_allclose(state.params["mean"], 10 + 30 / 2)
  assert [row.get("rollbacks") for row in history] == 2 * [None] + 6 * [1]
  assert [row["step"] for row in rows_in(tmp_path)] == list(range(5, 41, 5))
  said = capfd.readouterr().err
  assert said.count("back to step 10, with 0.5 times the learning rate (1 of 3") == 1


class Ones:
  """A stream whose batch tells its step."""

  num_examples = 60

  def batches(self, first_step, length, batch_size):
    steps = np.arange(first_step, first_step + length, dtype=np.float32)
    return np.broadcast_to(steps[:, None, None], (length, batch_size, 2))


def test_after_a_rollback_a_stream_is_read_from_the_checkpoint_on(tmp_path):
  def update(key, state, batch):
    step = state.step
    fails = (step == 12) & (state.params["mean"][0] == 12)
    right = jnp.all(batch == step)
    loss = jnp.where(fails, jnp.nan, right.astype(jnp.float32))
    params = jax.tree.map(lambda x: x + 1.0, state.params)
    return State(params, step + 1), {"loss": loss}

  algorithm = Algorithm(lambda key, params, batch: State(params, jnp.int32(0)), update)
  _, history = train(algorithm, Ones(), tmp_path, on_nonfinite="rollback")
  assert [row["loss"] for row in history] == 8 * [1.0]
  assert history[-1]["rollbacks"] == 1


def test_a_run_after_a_rollback_is_continued_as_it_was(tmp_path):
  options = {"on_nonfinite": "rollback"}
  train(failing(12), workdir=tmp_path / "cut", num_steps=20, **options)
  cut = train(failing(12), workdir=tmp_path / "cut", **options)
  whole = train(failing(12), workdir=tmp_path / "whole", **options)
  assert_same_bits(cut.state, whole.state)


def test_rollbacks_are_bounded(tmp_path, capfd):
  def update(key, state, batch):
    loss = jnp.where(state.step == 7, jnp.nan, 1.0)
    return State(state.params, state.step + 1), {"loss": loss}

  algorithm = Algorithm(lambda key, params, batch: State(params, jnp.int32(0)), update)
  with pytest.raises(TrainingDiverged, match="loss is nan at step 8"):
    train(algorithm, workdir=tmp_path, on_nonfinite="rollback")
  assert capfd.readouterr().err.count("back to step 5") == 3


def test_before_the_first_checkpoint_it_goes_back_to_the_start(tmp_path):
  state, _ = train(failing(3), workdir=tmp_path, on_nonfinite="rollback")
  np.testing.assert_allclose(state.params["mean"], 40 / 2)


def test_half_the_step_is_half_the_learning_rate():
  batch = jnp.asarray(DATA)
  for optimizer in (optax.sgd, optax.adam):
    whole = cd(optimizer(0.02))
    half = cd(optimizer(0.01))
    state = whole.init(KEY, PARAMS, batch)
    got, _ = damped(whole, 0.5).update(KEY, state, batch)
    want, _ = half.update(KEY, half.init(KEY, PARAMS, batch), batch)
    np.testing.assert_allclose(got.params["mean"], want.params["mean"], rtol=1e-5)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"on_nonfinite": "rollback"}, "needs a workdir"),
    ({"on_nonfinite": "ignore"}, "on_nonfinite must be one of"),
    ({"on_runaway": "rollback"}, "on_runaway must be one of"),
  ],
)
def test_unknown_choices(options, message):
  with pytest.raises(ValueError, match=message):
    train(**options)


# --------------------------------------------------------------------- an evaluation


def test_an_evaluation_that_is_not_finite_stops_with_its_name(tmp_path):
  def evaluate(state):
    return {"likelihood": np.nan if state.opt_state[0].count >= 10 else 1.0}

  with pytest.raises(TrainingDiverged, match="likelihood is nan at step 10") as caught:
    train(workdir=tmp_path, evaluate=evaluate, eval_every=5)
  assert caught.value.checkpoint.endswith("checkpoints/5")
  assert rows_in(tmp_path)[-1]["likelihood"] is None


# ------------------------------------------------------------------------- runaway


def two_moons(n, seed=0):
  rng = np.random.default_rng(seed)
  angle, upper = np.pi * rng.uniform(size=n), rng.integers(0, 2, size=n)
  x = np.stack(
    [
      np.where(upper, 1 - np.cos(angle), np.cos(angle)),
      np.where(upper, 0.5 - np.sin(angle), np.sin(angle)),
    ],
    axis=1,
  )
  return (x + 0.1 * rng.normal(size=(n, 2))).astype(np.float32)


MOONS = two_moons(2000)


def train_mlp(rule, **options):
  """A small deep energy on two moons."""
  mlp = MLP((64, 64))
  params = mlp.init(jax.random.key(1), MOONS[0])
  algorithm = rule(mlp.apply, optax.adam(1e-3))
  options = {"num_steps": 600, "progress": False} | options
  return fit(KEY, algorithm, params, MOONS, **options)


def regularised(energy_fn, optimizer):
  """The regularised rule of the README, which runs away on a deep energy."""
  direction = Direction(kernels.rbf(), regularization=0.1)
  return stein_cd(energy_fn, direction, optimizer, step_size=0.1)


@pytest.mark.slow
def test_an_energy_that_runs_away_is_warned_of_once():
  with pytest.warns(RuntimeWarning, match="loss is .* training runs away") as caught:
    _, history = train_mlp(regularised, num_steps=1000)
  assert len(caught) == 1
  assert all(np.isfinite(row["loss"]) for row in history)
  assert abs(history[-1]["loss"]) > 1e6  # without a word before


def test_a_runaway_can_stop_the_run(tmp_path):
  with pytest.raises(TrainingDiverged, match=r"at step \d00"):
    train_mlp(regularised, on_runaway="stop", workdir=tmp_path)


@pytest.mark.slow
def test_a_runaway_can_be_ignored():
  train_mlp(regularised, on_runaway="ignore")


@pytest.mark.parametrize("name", ["cd", "stein_cd", "score matching", "symmetric"])
def test_rules_that_do_not_run_away_are_not_warned_of(name):
  rules = {
    "cd": lambda e, o: contrastive_divergence(e, o, num_steps=5, step_size=0.05),
    "stein_cd": lambda e, o: stein_cd(e, kernels.rbf(), o, step_size=0.1),
    "symmetric": lambda e, o: stein_cd(
      e, kernels.rbf(), o, step_size=0.1, symmetric=True
    ),
    "score matching": score_matching,
  }
  train_mlp(rules[name])


def test_chains_that_leave_the_data_are_warned_of():
  """The energy is −‖x‖², whose Langevin chains fly off; the loss may stay small."""

  def update(key, state, batch):
    grown = State(jax.tree.map(lambda x: x * 3, state.params), state.step + 1)
    negatives = batch + grown.params["s"]
    spread = negatives_spread(batch, negatives, None)
    return grown, {"loss": jnp.zeros(()), "negatives_spread": spread}

  start = {"mean": jnp.zeros(2), "s": jnp.ones(())}
  algorithm = Algorithm(lambda key, params, batch: State(params, 0), update)
  with pytest.warns(RuntimeWarning, match="negatives_spread is .* at step 15"):
    fit(
      KEY,
      algorithm,
      start,
      DATA,
      num_steps=20,
      batch_size=20,
      log_every=5,
      progress=False,
    )
