"""Which axis of an array belongs to the particles."""

from collections.abc import Callable
from typing import Any

import jax

from stein_jax.types import Particles, PyTree


def with_rows(particles: Particles, n: int) -> Particles:
  """The types and shapes of n such particles, `[n, ...]`."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), particles
  )


def particle_axes(
  init_fn: Callable[[Particles], PyTree], particles: Particles
) -> list[int | None]:
  """For each leaf of `init_fn(particles)`, the axis along which it has the particles.

  It is the axis whose length changes with the number of particles. An array that has
  the particles' shape by coincidence is not taken for theirs. Nothing is computed:
  only shapes are evaluated.

  Args:
    init_fn: particles `[n, ...]` -> a pytree of arrays, such as an optimizer's state.
    particles: arrays, or their types and shapes.

  Returns:
    An axis, or None, for each leaf in the order of `jax.tree.leaves`.

  Raises:
    ValueError: the number of arrays or of axes depends on the number of particles.
  """
  n = len(jax.tree.leaves(particles)[0])

  def leaves(count: int) -> list[Any]:
    return jax.tree.leaves(jax.eval_shape(init_fn, with_rows(particles, count)))

  given = leaves(n)
  # Some optimizers change their layout at some size: it has n on one side at least.
  for other in (n + 1, n - 1):
    compared = leaves(other) if other else []
    if len(compared) == len(given):
      axes = [_axis(a.shape, b.shape, n, other) for a, b in zip(given, compared)]
      if -1 not in axes:
        return axes
  raise ValueError(
    f"the arrays made for {n} particles and for {n + 1} differ by more than one axis "
    "each, so that they cannot be sharded with the particles."
  )


def _axis(a: tuple[int, ...], b: tuple[int, ...], n: int, other: int) -> int | None:
  """The axis along which a shape changes from n to another number; −1: otherwise."""
  if len(a) != len(b):
    return -1
  changed = [k for k, lengths in enumerate(zip(a, b)) if lengths[0] != lengths[1]]
  if not changed:
    return None
  return changed[0] if [(a[k], b[k]) for k in changed] == [(n, other)] else -1
