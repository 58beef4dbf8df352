"""Meshes of devices, and algorithms and arrays on them.

`distribute` wraps any algorithm that was made with the `axis_name` of a mesh:

  mesh = parallel.make_mesh()
  rule = stein_cd(energy_fn, kernels.rbf(), optimizer, step_size=.1, axis_name=AXIS)
  rule = parallel.distribute(rule, mesh)
  state, metrics = jax.jit(rule.update)(key, state, batch)

Batches and the field `particles` of a state are sharded over the devices by rows, and
with the particles what their optimizer keeps for each of them. All else is replicated.
The results are those of one device, up to rounding.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stein_jax import checks
from stein_jax.parallel.rows import particle_axes
from stein_jax.types import Algorithm, Array, Batch, Key, Metrics, Particles, PyTree

AXIS = "devices"
"""The name of the axis of `make_mesh`."""


def make_mesh(num_devices: int | None = None) -> Mesh:
  """A mesh with one axis, `AXIS`, of all devices, or of some.

  Args:
    num_devices: the number of devices, the same number in every process.

  Raises:
    ValueError: there are fewer devices, or the number of processes does not divide the
      number of devices.
  """
  devices, num_processes = jax.devices(), jax.process_count()
  if num_devices is None:
    num_devices = len(devices)
  checks.at_least_one("num_devices", num_devices)
  if not 1 <= num_devices <= len(devices):
    raise ValueError(
      f"num_devices={num_devices}, but there are only {len(devices)} "
      f"{devices[0].platform} devices. "
      "XLA_FLAGS=--xla_force_host_platform_device_count=8 divides a CPU into eight."
    )
  if num_devices % num_processes:
    raise ValueError(
      f"num_devices={num_devices} cannot be shared by {num_processes} processes: "
      "each process must have the same number of devices."
    )
  per_process = num_devices // num_processes
  chosen = [
    device
    for k in range(num_processes)
    for device in [d for d in devices if d.process_index == k][:per_process]
  ]
  kinds = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((len(chosen),), (AXIS,), kinds, devices=chosen)


def _axis(mesh: Mesh) -> str:
  """The name of the only axis of a mesh.

  Raises:
    TypeError: no mesh.
    ValueError: a mesh of several axes.
  """
  if not isinstance(mesh, Mesh):
    raise TypeError(
      f"mesh must be a mesh of devices, as from parallel.make_mesh(), got {mesh!r}."
    )
  if len(mesh.axis_names) != 1:
    raise ValueError(f"the mesh must have one axis, got {mesh.axis_names}.")
  return str(mesh.axis_names[0])


def check_divides(name: str, count: int, mesh: Mesh) -> None:
  """Raises ValueError unless `count` rows can be sharded evenly over a mesh."""
  _axis(mesh)
  if count % mesh.size:
    below = count // mesh.size * mesh.size
    nearest = [str(n) for n in (below, below + mesh.size) if n]
    raise ValueError(
      f"{name}={count} cannot be sharded evenly over {mesh.size} devices: take "
      f"{' or '.join(nearest)}."
    )


def distribute(algorithm: Algorithm, mesh: Mesh) -> Algorithm:
  """The same algorithm, with batches and particles sharded over a mesh of one axis.

  Args:
    algorithm: made with the mesh's axis as `axis_name`. Its networks must have it too
      where they use batch norm: a network without it normalises each device's share
      by itself.
    mesh: from `make_mesh`, or any other of one axis.

  Returns:
    An Algorithm of global arrays. `init` makes the state on one device of this
    process. `spread` moves it to the mesh; otherwise the first `update` does.

  Raises:
    TypeError: an argument that is not an algorithm, or not a mesh.
    ValueError: a mesh of several axes; in `update`, rows that cannot be sharded
      evenly, or an algorithm that was made without the axis.
  """
  checks.algorithm(algorithm)
  _axis(mesh)
  return _distributed(algorithm, mesh)


@functools.lru_cache  # `fit` compiles once for every algorithm object
def _distributed(algorithm: Algorithm, mesh: Mesh) -> Algorithm:
  axis = _axis(mesh)

  def update(key: Key, state: Any, batch: Batch) -> tuple[Any, Metrics]:
    for name, tree in (("batch_size", batch), ("particles", _particles(state))):
      for leaf in jax.tree.leaves(tree):
        check_divides(name, len(leaf), mesh)
    specs = _specs(algorithm, state, batch, axis)
    body = jax.shard_map(
      algorithm.update,
      mesh=mesh,
      in_specs=(PartitionSpec(), specs, PartitionSpec(axis)),
      out_specs=(specs, PartitionSpec()),
    )
    try:
      return body(key, state, batch)
    except (ValueError, TypeError, NameError) as error:
      differ = ("out_specs", f"V:{axis}", "varying manual axes")
      signs = (*differ, "unbound axis", "no axis of devices")
      if not any(sign in str(error) for sign in signs):
        raise
      said = "The devices' results differ where they must be equal"
      if not any(sign in str(error) for sign in differ):
        said = f"The algorithm uses another axis than the mesh's {axis!r}"
      raise ValueError(
        f"{said}: make the algorithm, and networks with batch norm, with "
        f"axis_name={axis!r}."
      ) from error

  return Algorithm(algorithm.init, update)


def shardings(
  algorithm: Algorithm, state: Any, mesh: Mesh, *, batch: Batch = None
) -> Any:
  """The sharding of each array of a state: `particles` by rows, the rest replicated.

  Where the particles are what is learned (the state has no `params`), arrays of the
  optimizer that have an axis for the particles are sharded along it. To find them,
  shapes of `algorithm.init` are compared for two numbers of particles.

  Args:
    algorithm: the state's algorithm.
    state: arrays, or their types and shapes.
    mesh: of one axis.
    batch: what `algorithm.init` takes, if it needs one.

  Returns:
    A tree of shardings like the state.
  """
  axis = _axis(mesh)
  for leaf in jax.tree.leaves(_particles(state)):
    check_divides("particles", len(leaf), mesh)
  return jax.tree.map(
    lambda spec: NamedSharding(mesh, spec),
    _specs(algorithm, state, batch, axis),
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )


def by_rows(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
  """The sharding of arrays along one axis, such as a batch's leading one."""
  name = _axis(mesh)
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, name))


def same(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays that are replicated on every device."""
  return NamedSharding(mesh, PartitionSpec())


def spread(tree: PyTree, sharding: Any) -> PyTree:
  """Makes global arrays of arrays that are equal in every process.

  Each device gets its own part only, and no more is read of a memory-mapped array.

  Args:
    tree: of NumPy or JAX arrays.
    sharding: one for all, or a tree of them.
  """

  def put(x: Any, sharding: NamedSharding) -> Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = put(jax.random.key_data(x), sharding)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    host = x if isinstance(x, np.ndarray) else np.asarray(x)
    return jax.make_array_from_callback(
      host.shape, sharding, lambda index: np.asarray(host[index])
    )

  if isinstance(sharding, NamedSharding):
    return jax.tree.map(lambda x: put(x, sharding), tree)
  return jax.tree.map(put, tree, sharding)


def spread_rows(data: Batch, mesh: Mesh) -> Batch:
  """Data `[N, ...]` sharded by rows, with rows of zeros at the end as padding.

  The padding makes the number of rows a multiple of the number of devices.
  """

  def put(x: Any) -> Array:
    num_rows = len(x) + -len(x) % mesh.size

    def rows(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(num_rows)
      own = np.asarray(x[start : min(stop, len(x))])
      missing = stop - start - len(own)
      return np.pad(own, [(0, missing)] + [(0, 0)] * (own.ndim - 1))

    shape = (num_rows, *x.shape[1:])
    return jax.make_array_from_callback(shape, by_rows(mesh), rows)

  return jax.tree.map(put, data)


def own_rows(num_rows: int, mesh: Mesh) -> np.ndarray:
  """Which of `num_rows` rows are on this process's devices, by their indices."""
  slices = by_rows(mesh).addressable_devices_indices_map((num_rows,)).values()
  return np.sort(np.concatenate([np.arange(num_rows)[index] for index in slices]))


def take(data: Batch, rows: Array, mesh: Mesh) -> Batch:
  """`data[rows]` of data from `spread_rows`, again sharded by rows.

  Each device contributes the rows that it has, so that only a batch is communicated.

  Args:
    data: `[N, ...]`.
    rows: indices `[m]`, the same on all devices; m is a multiple of their number.
    mesh: the mesh of the data.
  """
  axis = _axis(mesh)

  def of_shard(data: Batch, rows: Array) -> Batch:
    def taken(x: Array) -> Array:
      local = rows - jax.lax.axis_index(axis) * len(x)
      is_here = (local >= 0) & (local < len(x))
      found = x[jnp.clip(local, 0, len(x) - 1)]
      found = jnp.where(is_here.reshape(-1, *[1] * (x.ndim - 1)), found, 0)
      found = found.astype(jnp.uint8) if x.dtype == bool else found  # for the sum
      return jax.lax.psum_scatter(found, axis, tiled=True).astype(x.dtype)

    return jax.tree.map(taken, data)

  spec = PartitionSpec(axis)
  body = jax.shard_map(
    of_shard, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec
  )
  return body(data, rows)


def local(tree: PyTree) -> PyTree:
  """Gathers global arrays, whole, on one device of this process.

  For code that does not know the mesh, such as an evaluation. All processes must call
  it together.
  """

  def whole(x: Any) -> Any:
    if not isinstance(x, Array) or len(x.sharding.device_set) == 1:
      return x
    if not x.is_fully_replicated:
      x = _replicated(cast(NamedSharding, x.sharding).mesh)(x)
    return x.addressable_data(0)

  return jax.tree.map(whole, tree)


@functools.lru_cache
def _replicated(mesh: Mesh) -> Callable[[Array], Array]:
  return jax.jit(lambda x: x, out_shardings=same(mesh))


def _particles(state: Any) -> Any:
  return getattr(state, "particles", None)


def _specs(algorithm: Algorithm, state: Any, batch: Batch, axis: str) -> Any:
  """PartitionSpecs of a state's arrays."""
  replicated = jax.tree.map(lambda _: PartitionSpec(), state)
  particles = _particles(state)
  if particles is None:
    return replicated
  if hasattr(state, "params"):
    rows = jax.tree.map(lambda _: PartitionSpec(axis), particles)
    return replicated._replace(particles=rows)

  # The particles are what is learned, so the optimizer has numbers for each of them.
  def init(particles: Particles) -> Any:
    return algorithm.init(jax.random.key(0), particles, batch)

  specs = [
    PartitionSpec() if k is None else PartitionSpec(*[None] * k, axis)
    for k in particle_axes(init, particles)
  ]
  return jax.tree.unflatten(jax.tree.structure(state), specs)
