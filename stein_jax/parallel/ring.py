"""A ring of devices, in which blocks of rows travel half way round.

Every two devices then meet once: the block at home and the visiting one serve both,
what is owed to the visitor travels with it, and no device holds more than two others'.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from stein_jax.parallel import axes
from stein_jax.types import Array, PyTree

T = TypeVar("T")

Meet = Callable[[T, PyTree, Array, bool], tuple[T, PyTree]]
"""`meet(carry, visitor, origin, mutual) -> (carry, due)`.

The origin is the visitor's device. `mutual` is False in the last round of an even
number of devices, where the origin meets this device's block as well, and nothing is
due.
"""


def half_way(
  meet: Meet, carry: T, block: PyTree, owed: PyTree, axis_name: str | None
) -> tuple[T, PyTree]:
  """Takes every device's block half way round the ring.

  A block is sent on before it is made use of, so that the links and the device are
  busy together.

  Args:
    meet: called for every visitor.
    carry: of this device.
    block: this device's, a pytree of arrays alike on all devices.
    owed: zeros, alike what `meet` finds due to a visitor.
    axis_name: the devices' axis; None: there is one device, and nobody to visit.

  Returns:
    The last carry, and the sum of what others found due to this device's block.
  """
  size = axes.size(axis_name)
  rounds = size // 2
  if rounds == 0:
    return carry, owed
  here = jax.lax.axis_index(axis_name)

  def send(tree: PyTree, places: int = 1) -> PyTree:
    ways = [(device, (device + places) % size) for device in range(size)]
    return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axis_name, ways), tree)

  def one_round(state: tuple[T, PyTree, PyTree], k: Array) -> tuple[Any, None]:
    carry, visitor, owed = state
    following, owed = send((visitor, owed))
    carry, due = meet(carry, visitor, (here - k) % size, True)
    return (carry, following, jax.tree.map(jnp.add, owed, due)), None

  start = (carry, send(block), owed)
  carry, visitor, owed = jax.lax.scan(one_round, start, jnp.arange(1, rounds))[0]
  mutual = size % 2 == 1
  carry, due = meet(carry, visitor, (here - rounds) % size, mutual)
  if mutual:
    owed = jax.tree.map(jnp.add, send(owed), due)
  return carry, send(owed, -rounds if mutual else 1 - rounds)
