"""One meaning for `axis_name`: the leading axis is spread over a named device axis.

Every function here is the identity of one device when `axis_name` is None, and is right
under both `jax.pmap` and `jax.shard_map`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stein_jax.types import Array, Params, PyTree


def gather(tree: PyTree, axis_name: str | None) -> PyTree:
  """All devices' rows, `[n/P, ...]` -> `[n, ...]`, in global order."""
  if axis_name is None:
    return tree
  return jax.tree.map(
    lambda leaf: jax.lax.all_gather(leaf, axis_name, axis=0, tiled=True), tree
  )


def gather_at(rows: Array, places: np.ndarray, axis_name: str | None) -> Array:
  """Some of all devices' rows, `[n/P, d]` -> `[len(places), d]`, the same on each.

  Each device gives what it has; nobody holds all rows.
  """
  if axis_name is None:
    return rows[places]
  n = len(rows)
  local = places - global_indices(n, axis_name)[0]
  mine = (local >= 0) & (local < n)
  given = jnp.where(mine[:, None], rows[jnp.clip(local, 0, n - 1)], 0)
  return total(given, axis_name)


def own(tree: PyTree, n: int, axis_name: str | None) -> PyTree:
  """This device's n rows out of all devices' rows: what `gather` undoes."""
  if axis_name is None:
    return tree
  mine = global_indices(n, axis_name)
  return jax.tree.map(lambda leaf: leaf[mine], tree)


def mean(tree: PyTree, axis_name: str | None) -> PyTree:
  """The mean over devices, the same on each."""
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def total(tree: PyTree, axis_name: str | None) -> PyTree:
  """The sum over devices, the same on each."""
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def least(value: Array, axis_name: str | None) -> Array:
  """The minimum over devices, the same on each."""
  return value if axis_name is None else jax.lax.pmin(value, axis_name)


def greatest(value: Array, axis_name: str | None) -> Array:
  """The maximum over devices, the same on each."""
  return value if axis_name is None else jax.lax.pmax(value, axis_name)


def size(axis_name: str | None) -> int:
  """How many devices share the axis."""
  return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def global_indices(n: int, axis_name: str | None) -> Array:
  """The places `[n]` of this device's rows among all devices' rows."""
  first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * n
  return first + jnp.arange(n)


def local(params: Params, axis_name: str | None) -> Params:
  """Replicated params as this device's own copy, so that a gradient stays local.

  Under shard_map the gradient with respect to a replicated value is summed over the
  devices in silence; under pmap it is not. A copy marked as varying has a local
  gradient under both, and `mean` then averages it once.
  """
  if axis_name is None:
    return params
  return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis_name, to="varying"), params)


def varying_as(data: Array, tree: PyTree) -> PyTree:
  """The same values, of the type that they have where data come into them.

  A loop over data under shard_map needs a start that varies over devices as data do.
  """
  nothing = data.ravel()[0] > jnp.inf  # never, not even for NaN
  return jax.tree.map(lambda leaf: leaf + nothing.astype(leaf.dtype), tree)


def value_and_gradient(
  loss_fn: Callable[[Params], Array], params: Params, axis_name: str | None
) -> tuple[Array, Any]:
  """The loss and its gradient, averaged over the devices' shares of the batch."""
  return mean(jax.value_and_grad(loss_fn)(local(params, axis_name)), axis_name)
