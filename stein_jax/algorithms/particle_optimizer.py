"""An optimizer's step on particles that are sharded over devices, as on one device.

Most optimizers treat each number by itself, so that every device can update its own
particles. Some mix particles: `optax.clip_by_global_norm` and `optax.lamb` use a norm
of all of them, `optax.adafactor` uses means over them, and `optax.noisy_sgd` draws
noise for all at once. On a device's share of the particles these would give other
numbers, without any error.
"""

import jax
import jax.numpy as jnp
import optax

from stein_jax.parallel import axes
from stein_jax.parallel.row_wise import treats_rows_alone
from stein_jax.parallel.rows import particle_axes, with_rows
from stein_jax.types import Array, Particles


def update_particles(
  optimizer: optax.GradientTransformation,
  gradient: Particles,
  opt_state: optax.OptState,
  particles: Particles,
  axis_name: str | None,
) -> tuple[Particles, optax.OptState]:
  """`optimizer.update(gradient, opt_state, particles)`, as on a single device.

  The result is that of a single device. An optimizer that may mix particles is applied
  to all of them by every device, which then keeps its own. Others cost nothing more
  than on one device.

  Args:
    optimizer: an optax optimizer.
    gradient: of this device's particles, `[n/P, ...]`.
    opt_state: this device's share of `optimizer.init(all particles)`. Arrays that have
      an axis for the particles are sharded along it, and all others are replicated.
    particles: this device's, `[n/P, ...]`.
    axis_name: the axis of the devices, or None.

  Returns:
    (updates, opt_state), sharded like the arguments.

  Raises:
    ValueError: opt_state does not have the shapes of this device's share.
  """
  size = axes.size(axis_name)
  if axis_name is None or size == 1:
    return optimizer.update(gradient, opt_state, particles)

  n = len(jax.tree.leaves(particles)[0])
  all_particles = with_rows(particles, size * n)
  all_states = jax.eval_shape(optimizer.init, all_particles)
  in_state = particle_axes(optimizer.init, all_particles)
  of_particles: list[int | None] = [0] * len(jax.tree.leaves(particles))
  in_axes = [*of_particles, *in_state, *of_particles]
  out_axes = [*of_particles, *in_state]
  _check_share(opt_state, all_states, in_state, size)

  arguments = (gradient, opt_state, particles)
  all_arguments = (with_rows(gradient, size * n), all_states, all_particles)
  if treats_rows_alone(optimizer.update, all_arguments, in_axes, out_axes):
    return optimizer.update(*arguments)

  # shard_map must know that what follows is the same on all devices; vmap cannot.
  is_manual = axis_name in jax.sharding.get_abstract_mesh().manual_axes
  to = "invarying" if is_manual else "varying"

  def gathered(x: Array, axis: int | None) -> Array:
    if axis is None:
      return x
    return jax.lax.all_gather(x, axis_name, axis=axis, tiled=True, to=to)

  def own(x: Array, axis: int | None) -> Array:
    if axis is None:
      return x
    length = x.shape[axis] // size
    start = jax.lax.axis_index(axis_name) * length
    return jax.lax.dynamic_slice_in_dim(x, start, length, axis)

  leaves, structure = jax.tree.flatten(arguments)
  leaves = [gathered(x, axis) for x, axis in zip(leaves, in_axes)]
  updated = optimizer.update(*jax.tree.unflatten(structure, leaves))
  leaves, structure = jax.tree.flatten(updated)
  return jax.tree.unflatten(
    structure, [own(x, axis) for x, axis in zip(leaves, out_axes)]
  )


def _check_share(
  opt_state: optax.OptState,
  all_states: optax.OptState,
  in_state: list[int | None],
  size: int,
) -> None:
  """Raises ValueError unless a state is a device's share of that for all particles."""

  def share(x: jax.ShapeDtypeStruct, axis: int | None) -> tuple[int, ...]:
    return tuple(m // size if k == axis else m for k, m in enumerate(x.shape))

  wanted = [share(x, axis) for x, axis in zip(jax.tree.leaves(all_states), in_state)]
  got = [jnp.shape(x) for x in jax.tree.leaves(opt_state)]
  if got != wanted:
    raise ValueError(
      "with axis_name, opt_state must be a device's share of optimizer.init(all "
      f"particles), with arrays of shapes {wanted}, got {got}: make the state outside "
      "of the mapped function, as parallel.distribute does."
    )
