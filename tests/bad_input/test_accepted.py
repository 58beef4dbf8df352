"""Input that is right although it looks odd: it is not refused, and not warned of."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import (
  Direction,
  contrastive_divergence,
  contrastive_loss,
  descend,
  kernels,
  learn_from_negatives,
  stein_cd,
  stein_gan,
  svgd,
  svgd_direction,
)
from stein_jax.training import TrainingDiverged, fit
from stein_jax.types import Algorithm

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
W = np.ones(2, np.float32)
SGD = optax.sgd(0.01)


def energy(params, x):
  return jnp.sum(jnp.square(x - params))


def train(algorithm, params=W, data=X, **options):
  options = {"num_steps": 4, "batch_size": 8, "progress": False} | options
  return fit(KEY, algorithm, params, data, **options)


def cd(energy_fn=energy):
  return contrastive_divergence(energy_fn, SGD, num_steps=1, step_size=0.1)


def test_known_scalars_of_jax_within_jit():
  half = jnp.float32(0.5)
  within = jax.jit(lambda p: contrastive_loss(p, energy, X, X + 1, discount=half))
  want = contrastive_loss(W, energy, X, X + 1, discount=0.5)
  np.testing.assert_allclose(within(W), want, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_points_of_16_bits_whose_squares_would_overflow(dtype):
  data = (60 * np.random.default_rng(0).normal(size=(64, 400))).astype(dtype)
  zeros = jnp.zeros(400)
  step = contrastive_divergence(energy, optax.sgd(1e-6), num_steps=1, step_size=1e-4)
  _, history = train(step, zeros, data, log_every=2)
  assert 0.9 < history[-1]["negatives_spread"] < 1.1
  _, history = train(svgd(jnp.negative, None, SGD), data, None, log_every=2)
  np.testing.assert_allclose(history[0]["direction_norm"], 60 * 20, rtol=0.05)


def test_particles_that_leave_a_saddle_without_data():
  slow = svgd(lambda x: x - x**3, None, optax.sgd(0.1))
  state, _ = train(slow, 1e-7 * X, None, num_steps=300, log_every=10)
  np.testing.assert_allclose(np.abs(state.particles), 1, atol=1e-3)


def test_runaway_is_the_reason_that_is_given():
  growing = descend(lambda key, p, x: (-p, {"loss": -jnp.sum(p)}), optax.sgd(5.0))
  with pytest.raises(TrainingDiverged, match=r"more than 10000 times its size at the"):
    train(growing, num_steps=40, log_every=4, on_runaway="stop")


def test_a_runaway_is_seen_by_a_run_that_is_resumed_all_the_time(tmp_path):
  growing = descend(lambda key, p, x: (-p, {"loss": -jnp.sum(p)}), optax.sgd(0.3))
  options = {"log_every": 10, "checkpoint_every": 10, "workdir": tmp_path}
  train(growing, num_steps=30, **options)

  def resumed():
    for num_steps in (40, 50, 60):
      train(growing, num_steps=num_steps, **options)

  with pytest.warns(RuntimeWarning, match=r"loss is .* at step \d+, more than"):
    resumed()


def with_temperature(fn):
  @functools.wraps(fn)
  def wrapped(params, x):
    return fn(1.0, params, x)

  return wrapped


@with_temperature
def tempered(temperature, params, x):
  return energy(params, x) / temperature


def without_unused(fn):
  @functools.wraps(fn)
  def wrapped(*args):
    return fn(*args[:2])

  return wrapped


def test_decorators_that_add_or_drop_arguments():
  for energy_fn in (tempered, without_unused(energy)):
    algorithm = stein_cd(energy_fn, kernels.rbf(1.0), SGD, step_size=0.1)
    train(algorithm)


@dataclasses.dataclass
class Saver:
  """A callback with a state, which has no hash."""

  steps: list

  def __call__(self, step, state):
    self.steps.append(step)


@dataclasses.dataclass
class Judge:
  scale: float

  def __call__(self, state):
    return {"size": self.scale * jnp.abs(state.params).max()}


def test_callbacks_without_a_hash():
  saver = Saver([])
  _, history = train(cd(), observe=saver, evaluate=Judge(2.0), eval_every=2)
  assert saver.steps == [0, 2, 4]
  assert "size" in history[-1]


def test_integers_where_the_gradient_is_the_caller_s_own():
  params = {"w": jnp.ones(2), "n": jnp.int32(3)}
  optimizer = optax.multi_transform(
    {"move": SGD, "keep": optax.set_to_zero()}, {"w": "move", "n": "keep"}
  )
  rule = descend(lambda key, p, x: (p, {"loss": jnp.sum(p["w"])}), optimizer)
  state, _ = train(rule, params)
  assert state.params["n"] == 3
  assert state.params["w"][0] < 1


def test_a_transform_may_change_the_number_of_rows():
  state, _ = train(cd(), transform=lambda x: jnp.concatenate([x, -x]))
  assert np.isfinite(state.params).all()


@pytest.mark.parametrize("empty", [(), None, {}])
def test_a_generator_without_statistics_returns_any_empty_tree(empty):
  def generate(params, stats, noise, context):
    return noise + params[None], empty

  def noise_fn(key, m):
    return jax.random.normal(key, (m, 2))

  rule = stein_gan(energy, generate, noise_fn, kernels.rbf(1.0), SGD, SGD)
  train(rule, {"energy": W, "generator": W})


def test_a_run_without_data_has_no_batch(tmp_path):
  rule = svgd(jnp.negative, kernels.rbf(1.0), SGD)
  options = {"workdir": tmp_path, "log_every": 2}
  train(rule, X, None, **options)
  _, history = train(rule, X, None, num_steps=6, batch_size=3, **options)
  assert [row["step"] for row in history] == [2, 4, 6]
  bad = svgd(lambda x: x / 0, None, SGD)
  with pytest.raises(TrainingDiverged) as caught:
    train(bad, X, None, workdir=tmp_path / "bad")
  assert caught.value.batch is None


@pytest.mark.parametrize("precision", ["BF16_BF16_F32", "highest", "bfloat16", None])
def test_precisions_of_jax(precision):
  assert Direction(kernels.rbf(1.0), precision=precision).precision == precision


class IteratedStream:
  """A Stream that can also be iterated over."""

  num_examples = 16

  def batches(self, first_step, length, batch_size):
    return np.ones((length, batch_size, 2), np.float32)

  def __iter__(self):
    return self

  def __next__(self):
    return np.ones((8, 2), np.float32)


def test_a_stream_that_is_an_iterator_too():
  train(cd(), data=IteratedStream())


class Changing(kernels.Kernel):
  """A kernel whose numbers can change unseen."""

  def __init__(self, h):
    self.h = h

  def pair(self, x, y):
    return jnp.exp(-jnp.square(x - y).sum() / self.h)


class Fixed(kernels.Kernel):
  """A kernel without numbers."""

  def pair(self, x, y):
    return jnp.exp(-jnp.square(x - y).sum())


def test_a_kernel_whose_numbers_can_change_is_not_taken_for_a_constant():
  with pytest.raises(TypeError, match=r"Changing must be a pytree, or hashed by its"):
    svgd_direction(X, -X, Changing(1.0))
  got = svgd_direction(X, -X, Fixed())
  np.testing.assert_allclose(got, svgd_direction(X, -X, kernels.rbf(1.0)), atol=1e-5)


def test_a_rule_of_one_s_own_with_metrics_of_its_own():
  def negatives_fn(key, params, start):
    return start + 1, {"mine": jnp.zeros(())}

  _, history = train(learn_from_negatives(energy, negatives_fn, SGD), log_every=2)
  assert {"mine", "loss", "negatives_spread"} <= set(history[0])
  json.dumps(history)


def test_an_algorithm_without_params_or_particles():
  rule = Algorithm(
    lambda key, params, batch: {"sum": jnp.zeros(())},
    lambda key, state, batch: (
      {"sum": state["sum"] + batch.sum()},
      {"sum": state["sum"]},
    ),
  )
  state, _ = train(rule)
  assert np.isfinite(state["sum"])
