"""Metrics of several rules, against NumPy, on one device and on many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from stein_jax.algorithms.metrics import direction_norm, negatives_spread

RNG = np.random.default_rng(0)


def spread_by_hand(x, y):
  flat_x, flat_y = x.reshape(len(x), -1), y.reshape(len(y), -1)
  center = flat_x.mean(0)
  return np.sqrt(
    ((flat_y - center) ** 2).sum(1).mean() / ((flat_x - center) ** 2).sum(1).mean()
  )


@pytest.mark.parametrize("shape", [(40,), (40, 3), (8, 2, 5)])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_spread_is_that_of_numpy(shape, scale):
  x = scale * (RNG.normal(size=shape) + 2)
  y = scale * (3 * RNG.normal(size=(2 * shape[0], *shape[1:])))
  found = negatives_spread(jnp.float32(x), jnp.float32(y), None)
  np.testing.assert_allclose(found, spread_by_hand(x, y), rtol=1e-5)


def test_spread_of_a_pytree_with_a_context():
  x = {"a": RNG.normal(size=(9, 3)), "b": RNG.normal(size=9)}
  y = {"a": RNG.normal(size=(9, 3)), "b": RNG.normal(size=9)}
  wanted = spread_by_hand(*(np.column_stack([t["a"], t["b"]]) for t in (x, y)))
  batches = ({"x": t, "context": jnp.zeros(9)} for t in (x, y))
  np.testing.assert_allclose(negatives_spread(*batches, None), wanted, rtol=1e-5)


def test_spread_of_one_point_is_a_distance():
  x = jnp.ones((1, 2))
  np.testing.assert_allclose(negatives_spread(x, x + 3, None), 3 * np.sqrt(2))


def test_on_many_devices():
  x, y = (RNG.normal(size=(16, 3)).astype(np.float32) for _ in range(2))
  mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
  rows, same = PartitionSpec("i"), PartitionSpec()

  def both(x, y):
    return negatives_spread(x, y, "i"), direction_norm(y, "i")

  found = jax.shard_map(both, mesh=mesh, in_specs=(rows, rows), out_specs=same)(x, y)
  wanted = [spread_by_hand(x, y), np.sqrt((y**2).sum(1).mean())]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
