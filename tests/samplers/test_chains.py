"""What Langevin and MALA have in common: independence, dtypes, arguments, tracing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from stein_jax.samplers import langevin, mala

KEY = jax.random.key(0)


def log_normal(x):
  return -0.5 * jnp.sum(jnp.square(x))


def run_langevin(x, step_size=0.1, num_steps=2):
  return langevin(KEY, x, jnp.negative, num_steps=num_steps, step_size=step_size)


def run_mala(x, step_size=0.1, num_steps=2):
  return mala(KEY, x, log_normal, num_steps=num_steps, step_size=step_size).particles


both = pytest.mark.parametrize("run", [run_langevin, run_mala])


@both
def test_a_particle_does_not_depend_on_the_others(run):
  x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
  path = run(x)
  others_elsewhere = x.copy()
  others_elsewhere[3:] *= -7
  np.testing.assert_allclose(run(others_elsewhere)[:3], path[:3], rtol=1e-6)
  np.testing.assert_allclose(run(x[:3]), path[:3], rtol=1e-6)


@both
def test_noise_differs_between_particles_and_between_steps(run):
  x = np.asarray(run(jnp.zeros((4, 2)), num_steps=1))
  assert len(np.unique(x)) == x.size
  y = np.asarray(run(jnp.asarray(x), num_steps=2))
  assert len(np.unique(np.concatenate([x, y]))) == 2 * x.size


@both
def test_chains_run_under_jit_and_vmap(run):
  x = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
  step_sizes = jnp.array([0.1, 0.5])
  got = jax.jit(jax.vmap(run, in_axes=(None, 0)))(x, step_sizes)
  for path, step_size in zip(got, step_sizes):
    np.testing.assert_allclose(path, run(x, step_size), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=4, database=None)
@given(
  shape=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
  dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
  run=st.sampled_from([run_langevin, run_mala]),
)
def test_chains_keep_shape_and_dtype(shape, dtype, run):
  got = run(jnp.ones(shape, dtype))
  assert (got.shape, got.dtype) == (shape, jnp.dtype(dtype))


@both
def test_a_step_size_of_another_dtype_does_not_change_the_particles_dtype(run):
  half = jnp.ones((3, 2), jnp.bfloat16)
  assert run(half, step_size=jnp.float32(0.1)).dtype == jnp.bfloat16


def test_new_parameters_in_a_partial_are_not_traced_again():
  traces = []

  def log_density(centre, x):
    traces.append(centre)
    return -0.5 * jnp.square(x - centre)

  arguments = {"num_steps": 1, "step_size": 0.1}
  score = jax.grad(log_density, argnums=1)
  for centre in (0.0, 1.0, 2.0):
    langevin(KEY, jnp.zeros(3), Partial(score, centre), **arguments)
    mala(KEY, jnp.zeros(3), Partial(log_density, centre), **arguments)
    if centre == 0.0:
      first = len(traces)
  assert len(traces) == first


@both
@pytest.mark.parametrize("step_size", [0.0, -0.1, np.nan, np.inf, [0.1, 0.2]])
def test_a_step_size_that_is_not_above_zero_is_an_error(run, step_size):
  with pytest.raises(ValueError, match="step_size must be a finite number above 0"):
    run(np.ones((2, 2)), step_size=step_size)


@both
@pytest.mark.parametrize("num_steps", [0, -1, 2.5, True, "3"])
def test_num_steps_below_one_or_not_an_integer_is_an_error(run, num_steps):
  message = f"num_steps must be an integer of at least 1, got {num_steps!r}"
  with pytest.raises(ValueError, match=message):
    run(np.ones((2, 2)), num_steps=num_steps)


@both
@pytest.mark.parametrize(
  ("particles", "error", "message"),
  [
    (np.ones((3, 2), int), TypeError, "floating-point, got int"),
    (np.float32(1.0), ValueError, "leading axis"),
    (np.ones((0, 2)), ValueError, "at least one point"),
  ],
)
def test_particles_of_the_wrong_kind_are_an_error(run, particles, error, message):
  with pytest.raises(error, match=message):
    run(particles)
