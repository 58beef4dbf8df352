"""Several noisy copies of every point, and their energies."""

import jax

from stein_jax import checks
from stein_jax.algorithms.energy import energies, split_batch, with_points
from stein_jax.samplers.noise import normal_like
from stein_jax.types import Array, Batch, EnergyFn, Key, Params, Particles


def normals(key: Key, x: Particles, num: int, axis_name: str | None) -> Particles:
  """Standard normal numbers `[m, num, ...]`, `num` of them for each of `[m, ...]`."""
  copies = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((len(leaf), num, *leaf.shape[1:]), leaf.dtype), x
  )
  return normal_like(key, copies, axis_name)


def energies_of_copies(
  params: Params, energy_fn: EnergyFn, data: Batch, copies: Particles
) -> Array:
  """E of copies `[m, num, ...]` with the context of their points: `[m, num]`."""
  x, _ = split_batch(data)
  m = checks.num_particles(x)
  num = jax.tree.leaves(copies)[0].shape[1]
  flat = jax.tree.map(lambda c, x: c.reshape(m * num, *x.shape[1:]), copies, x)
  repeated = jax.tree.map(lambda leaf: leaf.repeat(num, axis=0), data)
  return energies(params, energy_fn, with_points(repeated, flat)).reshape(m, num)
