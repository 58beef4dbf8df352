"""Chains sharded over devices are those of one device, in the same order."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from stein_jax.samplers import hmc, langevin, mala
from tests import quick

KEY = jax.random.key(0)
N = 16


def sharded(wrapper, num_devices, run, particles, context):
  """`run(particles, context, axis_name)` over this many devices, gathered again."""

  def local(x, c):
    return run(x, c, "i")

  if wrapper == "shard_map":
    mesh = jax.make_mesh(
      (num_devices,), ("i",), axis_types=(jax.sharding.AxisType.Auto,)
    )
    specs = PartitionSpec("i")
    body = jax.shard_map(local, mesh=mesh, in_specs=(specs, specs), out_specs=specs)
    return jax.jit(body)(particles, context)
  split, join = (
    lambda leaf: leaf.reshape(num_devices, -1, *leaf.shape[1:]),
    lambda leaf: leaf.reshape(-1, *leaf.shape[2:]),
  )
  devices = jax.devices()[:num_devices]
  out = jax.pmap(local, "i", devices=devices)(
    *jax.tree.map(split, (particles, context))
  )
  return jax.tree.map(join, out)


def points():
  rng = np.random.default_rng(0)
  particles = {
    "a": rng.normal(size=(N, 3)).astype(np.float32),
    "b": rng.normal(size=N).astype(np.float32),
  }
  return particles, rng.normal(size=N).astype(np.float32)


def score(x, context):
  return {"a": context - x["a"] ** 3, "b": context * x["b"]}


def log_density(x, context):
  return -jnp.sum(x["a"] ** 4) / 4 - context**2 * x["b"] ** 2


def run_langevin(x, c, axis_name=None, antithetic=False, averaged_noise=False):
  return langevin(
    KEY,
    x,
    score,
    num_steps=3,
    step_size=0.1,
    antithetic=antithetic,
    averaged_noise=averaged_noise,
    context=c,
    axis_name=axis_name,
  )


def run_antithetic(x, c, axis_name=None):
  return run_langevin(x, c, axis_name, antithetic=True)


def run_last(x, c, axis_name=None):
  return run_langevin(x, c, axis_name, antithetic="last")


def run_averaged(x, c, axis_name=None):
  return run_langevin(x, c, axis_name, antithetic="last", averaged_noise=True)


def run_mala(x, c, axis_name=None):
  return mala(
    KEY, x, log_density, num_steps=3, step_size=0.1, context=c, axis_name=axis_name
  ).particles


def run_hmc(x, c, axis_name=None):
  return hmc(
    KEY, x, log_density, num_steps=2, step_size=0.3, context=c, axis_name=axis_name
  ).particles


@pytest.mark.parametrize("num_devices", quick.only([2, 8], [1, 2, 4, 8]))
@pytest.mark.parametrize("wrapper", ["pmap", "shard_map"])
@pytest.mark.parametrize(
  "run", [run_langevin, run_antithetic, run_last, run_averaged, run_mala, run_hmc]
)
def test_many_devices_give_what_one_gives(run, wrapper, num_devices):
  particles, context = points()
  got = sharded(wrapper, num_devices, run, particles, context)
  chex.assert_trees_all_close(got, run(particles, context), rtol=1e-5, atol=1e-6)
