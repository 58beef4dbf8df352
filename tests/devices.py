"""Functions of sharded arguments on several virtual devices, by both of JAX's ways."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec

SHARDED, SAME = PartitionSpec("i"), PartitionSpec()
WAYS = ("shard_map", "pmap")


def mesh(size):
  """A mesh of the first devices, with the axis "i"."""
  kinds = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((size,), ("i",), kinds, devices=jax.devices()[:size])


def on_devices(how, fn, args, in_specs, out_specs, *, size=8):
  """`fn(*args)` in a mapped body with the axis "i".

  Args:
    how: "shard_map" or "pmap".
    fn: the body.
    args: its arguments, of all devices.
    in_specs: for each argument SHARDED (its rows are split) or SAME, or a tree of such.
    out_specs: of the result, in the same way. What is SAME must be equal on all
      devices.
    size: the number of devices.
  """
  if how == "shard_map":
    body = jax.shard_map(fn, mesh=mesh(size), in_specs=in_specs, out_specs=out_specs)
    return jax.jit(body)(*args)

  def split(spec, tree):
    if spec == SAME:
      return tree
    return jax.tree.map(lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]), tree)

  def join(spec, tree):
    if spec == SAME:
      for leaf in map(np.asarray, jax.tree.leaves(tree)):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[0], leaf.shape))
      return jax.tree.map(lambda leaf: leaf[0], tree)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)

  in_axes = jax.tree.map(lambda spec: 0 if spec == SHARDED else None, in_specs)
  mapped = jax.pmap(fn, axis_name="i", in_axes=in_axes, devices=jax.devices()[:size])
  out = mapped(*jax.tree.map(split, in_specs, args))
  return jax.tree.map(join, out_specs, out)


class Normalized(nn.Module):
  """A generator of points [3] with batch norm over all devices' noise."""

  axis_name: str | None = None

  @nn.compact
  def __call__(self, noise, train=True):
    axis_name = None if self.is_initializing() else self.axis_name
    norm = nn.BatchNorm(not train, axis_name=axis_name, param_dtype=jnp.float64)
    hidden = nn.Dense(4, param_dtype=jnp.float64)(noise)
    return nn.Dense(3, param_dtype=jnp.float64)(jnp.tanh(norm(hidden)))
