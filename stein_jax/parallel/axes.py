"""Collectives over `axis_name`, the named axis over which leading axes are sharded.

With `axis_name=None` there is one device, and every function is the identity or its
equivalent. All are right under both `jax.pmap` and `jax.shard_map`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stein_jax import checks
from stein_jax.types import Array, Params, PyTree


def gather(tree: PyTree, axis_name: str | None) -> PyTree:
  """All devices' rows, `[n/P, ...]` -> `[n, ...]`, in global order."""
  if axis_name is None:
    return tree
  return jax.tree.map(
    lambda leaf: jax.lax.all_gather(leaf, axis_name, axis=0, tiled=True), tree
  )


def gather_at(rows: Array, indices: np.ndarray, axis_name: str | None) -> Array:
  """Some of all devices' rows, `[n/P, d]` -> `[len(indices), d]`, the same on each.

  Each device contributes the rows that it has, and no device holds all of them.
  """
  if axis_name is None:
    return rows[indices]
  n = len(rows)
  local = indices - global_indices(n, axis_name)[0]
  is_here = (local >= 0) & (local < n)
  found = jnp.where(is_here[:, None], rows[jnp.clip(local, 0, n - 1)], 0)
  return total(found, axis_name)


def own(tree: PyTree, n: int, axis_name: str | None) -> PyTree:
  """This device's n rows of all devices' rows, the inverse of `gather`."""
  if axis_name is None:
    return tree
  indices = global_indices(n, axis_name)
  return jax.tree.map(lambda leaf: leaf[indices], tree)


def mean(tree: PyTree, axis_name: str | None) -> PyTree:
  """The mean over devices, the same on each."""
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def total(tree: PyTree, axis_name: str | None) -> PyTree:
  """The sum over devices, the same on each."""
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def minimum(value: Array, axis_name: str | None) -> Array:
  """The minimum over devices, the same on each."""
  return value if axis_name is None else jax.lax.pmin(value, axis_name)


def maximum(value: Array, axis_name: str | None) -> Array:
  """The maximum over devices, the same on each."""
  return value if axis_name is None else jax.lax.pmax(value, axis_name)


def size(axis_name: str | None) -> int:
  """How many devices share the axis.

  Raises:
    ValueError: there is no such axis here.
  """
  if axis_name is None:
    return 1
  try:
    return jax.lax.axis_size(axis_name)
  except NameError:
    raise ValueError(
      f"axis_name={axis_name!r} is no axis of devices here. Give fit a mesh= with "
      "this axis, call parallel.distribute, or map the function over it by "
      "jax.shard_map; on one device leave axis_name out."
    ) from None


def index(axis_name: str | None) -> Array:
  """The index of this device."""
  if axis_name is None:
    return jnp.zeros((), int)
  size(axis_name)  # for its error
  return jax.lax.axis_index(axis_name)


def global_indices(n: int, axis_name: str | None) -> Array:
  """The indices `[n]` of this device's rows among all devices' rows."""
  return index(axis_name) * n + jnp.arange(n)


def local(params: Params, axis_name: str | None) -> Params:
  """Replicated params as this device's own copy, so that a gradient stays local.

  Under shard_map the gradient of a replicated value is silently summed over the
  devices; under pmap it is not. A copy marked as varying has a local gradient under
  both, and `mean` then averages it once.
  """
  if axis_name is None:
    return params
  size(axis_name)  # for its error
  return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis_name, to="varying"), params)


def varying_as(data: PyTree, tree: PyTree) -> PyTree:
  """The same values, marked as varying over the device axes over which data vary.

  Under shard_map a loop over data needs a first carry of the type of the later ones.
  """
  axes_of_data = frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(data)))

  def mark(leaf: Array) -> Array:
    missing = tuple(sorted(axes_of_data - _varying(leaf)))
    return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

  return jax.tree.map(mark, tree)


def _varying(x: Any) -> frozenset[str]:
  """The device axes over which JAX knows that a value varies, inside shard_map."""
  kind = jax.typeof(x)
  if hasattr(kind, "manual_axis_type"):  # from JAX 0.10.2 on
    return kind.manual_axis_type.varying
  return getattr(kind, "vma", frozenset())


def value_and_gradient(
  loss_fn: Callable[[Params], Array], params: Params, axis_name: str | None
) -> tuple[Array, Any]:
  """The loss and its gradient, averaged over the devices' shares of the batch.

  Raises:
    TypeError: parameters that are not floating-point arrays.
  """
  checks.params(params)
  return mean(jax.value_and_grad(loss_fn)(local(params, axis_name)), axis_name)
