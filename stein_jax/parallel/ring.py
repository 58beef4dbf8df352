"""Half-ring exchange: blocks of rows travel half way around a ring of devices.

After it every two devices have been paired once. The device's own block and the remote
one are used for both, the partial sums for the remote block travel with it, and no
device holds more than two blocks of others.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from stein_jax.parallel import axes
from stein_jax.types import Array, PyTree

T = TypeVar("T")

PairFn = Callable[[T, PyTree, Array, bool], tuple[T, PyTree]]
"""`pair(carry, block, origin, mutual) -> (carry, partial sums for the block)`.

`origin` is the index of the device that the block comes from. `mutual` is False in the
last round of an even number of devices: there the origin pairs itself with this
device's block too, and the partial sums are zeros.
"""


def half_ring(
  pair: PairFn, carry: T, block: PyTree, partial_sums: PyTree, axis_name: str | None
) -> tuple[T, PyTree]:
  """Sends every device's block half way around the ring.

  A block is sent on before it is used, so that links and devices work at once.

  Args:
    pair: called for every remote block.
    carry: of this device.
    block: this device's, a pytree of arrays of the same shapes on all devices.
    partial_sums: zeros, of the shapes that `pair` returns for a block.
    axis_name: the axis of the devices. None: one device, and no remote blocks.

  Returns:
    The last carry, and the total of the partial sums for this device's block.
  """
  size = axes.size(axis_name)
  rounds = size // 2
  if rounds == 0:
    return carry, partial_sums
  here = axes.index(axis_name)

  def send(tree: PyTree, distance: int = 1) -> PyTree:
    routes = [(device, (device + distance) % size) for device in range(size)]
    return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axis_name, routes), tree)

  def one_round(state: tuple[T, PyTree, PyTree], k: Array) -> tuple[Any, None]:
    carry, remote, sums = state
    following, sums = send((remote, sums))
    carry, new = pair(carry, remote, (here - k) % size, True)
    return (carry, following, jax.tree.map(jnp.add, sums, new)), None

  start = (carry, send(block), partial_sums)
  carry, remote, sums = jax.lax.scan(one_round, start, jnp.arange(1, rounds))[0]
  mutual = size % 2 == 1
  carry, new = pair(carry, remote, (here - rounds) % size, mutual)
  if mutual:
    sums = jax.tree.map(jnp.add, send(sums), new)
  return carry, send(sums, -rounds if mutual else 1 - rounds)
