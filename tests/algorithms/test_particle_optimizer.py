"""SVGD over several devices, by any optimizer, moves particles as on one device."""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from stein_jax import kernels, parallel, svgd

SCHEDULE = optax.cosine_decay_schedule(0.1, 10)


def noisy():
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a later optax will ask for the key
    return optax.noisy_sgd(0.1, seed=3)


def table_of_rates():
  """Eight learning rates, one for each step: no array of the eight particles."""

  def init(params):
    return jnp.linspace(0.1, 0.8, 8), jnp.zeros((), int)

  def update(updates, state, params=None):
    rates, count = state
    return jax.tree.map(lambda u: -rates[count] * u, updates), (rates, count + 1)

  return optax.GradientTransformation(init, update)


# They treat each number by itself.
SEPARATE = {
  "sgd": optax.sgd(0.1),
  "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
  "adam": optax.adam(0.1),
  "adagrad": optax.adagrad(0.1),
  "rmsprop": optax.rmsprop(0.1),
  "adamw": optax.adamw(0.1),
  "lion": optax.lion(0.1),
  "amsgrad": optax.amsgrad(0.1),
  "clip": optax.chain(optax.clip(0.5), optax.sgd(0.1)),
  "schedule": optax.adam(SCHEDULE),
  "weight decay": optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)),
  "masked": optax.masked(optax.sgd(0.1, momentum=0.9), {"x": True, "y": False}),
  "inject_hyperparams": optax.inject_hyperparams(optax.adam)(SCHEDULE),
  "every second step": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
  "table of rates": table_of_rates(),
}

# They use one particle for another, or draw for all at once.
MIXING = {
  "clip_by_global_norm": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.1)),
  "clip_by_block_rms": optax.chain(optax.clip_by_block_rms(0.01), optax.sgd(0.1)),
  "lamb": optax.lamb(0.1),
  "lars": optax.lars(0.1, momentum=0.9),
  "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=3),
  "sm3": optax.sm3(0.1),
  "novograd": optax.novograd(0.1),
  "noisy_sgd": noisy(),
  "apply_if_finite": optax.apply_if_finite(optax.adam(0.1), 3),
  "lbfgs": optax.chain(optax.scale_by_lbfgs(memory_size=3), optax.sgd(0.1)),
}
ALL = SEPARATE | MIXING


def particles(n=8):
  rng = np.random.default_rng(0)
  return {"x": rng.normal(size=(n, 4)), "y": 3 * rng.normal(size=n)}


def score(point):
  return {"x": -(point["x"] ** 3), "y": -point["y"]}


def rule(optimizer, axis_name=None, kernel=None):
  """Without a kernel each particle follows its score, and nothing else is gathered."""
  return svgd(score, kernel, optimizer, axis_name=axis_name)


def moved(rule, x, num_steps=4):
  state = rule.init(None, x, None)

  def step(state, _):
    return rule.update(jax.random.key(0), state, jnp.zeros(8))

  return jax.lax.scan(step, state, length=num_steps)


def assert_same(got, want):
  got, want = (jax.tree.map(numbers, tree) for tree in (got, want))
  chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


def numbers(x):
  is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.random.key_data(x) if is_key else x


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ALL)
def test_several_devices_give_what_one_gives(name):
  want = moved(rule(ALL[name]), particles())
  many = parallel.distribute(rule(ALL[name], parallel.AXIS), parallel.make_mesh(4))
  program = jax.jit(lambda x: moved(many, x)).lower(particles())
  assert_same(program.compile()(particles()), want)
  # Only optimizers that mix particles gather them.
  assert ("all_gather" in program.as_text()) == (name in MIXING)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["adam", "lamb"])
@pytest.mark.parametrize("how", ["shard_map", "pmap", "vmap"])
def test_with_a_kernel_and_a_state_made_on_each_device(how, name):
  def last(x, axis_name=None):
    return moved(rule(ALL[name], axis_name, kernels.rbf(2.0)), x)[0].particles

  x = particles()
  if how == "shard_map":
    rows = PartitionSpec(parallel.AXIS)
    got = jax.shard_map(
      lambda x: last(x, parallel.AXIS),
      mesh=parallel.make_mesh(4),
      in_specs=rows,
      out_specs=rows,
    )(x)
  else:
    split = jax.tree.map(lambda leaf: leaf.reshape(4, 2, *leaf.shape[1:]), x)
    mapped = jax.pmap if how == "pmap" else jax.vmap
    got = mapped(lambda x: last(x, "i"), axis_name="i")(split)
    got = jax.tree.map(lambda leaf: leaf.reshape(8, *leaf.shape[2:]), got)
  assert_same(got, last(x))


@pytest.mark.usefixtures("x64")
def test_a_state_of_other_shapes_is_an_error():
  """Adafactor's for two particles has another layout than that for eight."""
  rows = PartitionSpec(parallel.AXIS)
  body = jax.shard_map(
    lambda x: moved(rule(ALL["adafactor"], parallel.AXIS), x)[0].particles,
    mesh=parallel.make_mesh(4),
    in_specs=rows,
    out_specs=rows,
  )
  with pytest.raises(ValueError, match="make the state outside of the mapped function"):
    body(particles())
