"""The exact trace of Fisher score matching, in blocks of directions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from stein_jax import score_matching_loss

pytestmark = pytest.mark.optimized


def energy(params, x):
  """A small network on a bowl, of points of any shape."""
  x = x.reshape(-1)
  return 0.5 * x @ x + jnp.sum(jnp.sin(params["out"] * jnp.tanh(params["in"] @ x)))


def make(m, d, dtype, width=5):
  rng = np.random.default_rng(0)
  params = {"in": rng.normal(size=(width, d)) / 5, "out": rng.normal(size=width)}
  data = rng.normal(size=(m, d))
  return jax.tree.map(lambda a: a.astype(dtype), (params, data))


def loss_by_full_jacobians(params, data):
  def at(x):
    score = jax.grad(lambda x: -energy(params, x))
    return score(x) @ score(x) / 2 + jnp.trace(jax.jacfwd(score)(x))

  return jax.vmap(at)(data).mean()


# m, d: one block of directions, several with a remainder, and blocks of one direction
SHAPES = [(3, 50), (3, 701), (2, 800), (200, 31), (40_000, 30)]


@pytest.mark.parametrize(("m", "d"), SHAPES)
@pytest.mark.usefixtures("x64")
def test_loss_and_gradient_are_those_of_full_jacobians(m, d):
  params, data = make(m, d, np.float64)
  got = jax.value_and_grad(score_matching_loss)(params, energy, data)
  expected = jax.jit(jax.value_and_grad(loss_by_full_jacobians))(params, data)
  chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("wrapper", ["pmap", "shard_map"])
@pytest.mark.usefixtures("x64")
def test_blocks_on_many_devices_are_those_of_one(wrapper):
  params, data = make(8, 601, np.float64)

  def local(data):
    # A local batch of 4 × 601 needs several blocks.
    loss = score_matching_loss(params, energy, data, axis_name="i")
    return jax.lax.pmean(loss, "i")

  if wrapper == "pmap":
    devices = jax.devices()[:2]
    got = jax.pmap(local, "i", devices=devices)(data.reshape(2, 4, 601))[0]
  else:
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    body = jax.shard_map(
      local, mesh=mesh, in_specs=PartitionSpec("i"), out_specs=PartitionSpec()
    )
    got = jax.jit(body)(data)
  np.testing.assert_allclose(got, score_matching_loss(params, energy, data), rtol=1e-11)


@pytest.mark.parametrize("differentiated", [False, True])
def test_memory_is_far_below_that_of_all_directions(differentiated):
  m, d, width = 20, 768, 32
  params, data = make(m, d, np.float32, width)

  def loss(params, data):
    return score_matching_loss(params, energy, data)

  fn = jax.value_and_grad(loss) if differentiated else loss
  memory = jax.jit(fn).lower(params, data).compile().memory_analysis()
  all_directions = 4 * m * d * d  # bytes: 47 MB
  assert memory.temp_size_in_bytes < all_directions / 3
