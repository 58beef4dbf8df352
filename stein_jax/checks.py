"""Argument validation, before any work is done."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stein_jax.types import Batch, EnergyFn, Params, Particles


def positive(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is a finite number above zero.

  A traced value is not known yet and passes: the check is for eager calls, and for
  numbers that are fixed when an algorithm is built.
  """
  if isinstance(value, jax.core.Tracer):
    return
  is_number = np.ndim(value) == 0 and jnp.issubdtype(np.asarray(value).dtype, np.number)
  if not (is_number and np.isfinite(value) and value > 0):
    raise ValueError(f"{name} must be a finite number above 0, got {value!r}.")


def at_least_one(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is an integer of at least 1."""
  if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
    raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def decay(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is None or lies between 0 and 1."""
  if value is not None and not 0 < value < 1:
    raise ValueError(f"{name} must lie between 0 and 1, got {value!r}.")


def networks(params: Any, names: tuple[str, str]) -> None:
  """Raises ValueError unless `params` is a dict of two networks' parameters."""
  if not (isinstance(params, dict) and set(params) == set(names)):
    wanted = ", ".join(f'"{name}": ...' for name in names)
    raise ValueError(
      f"params must be {{{wanted}}}, got "
      f"{sorted(params) if isinstance(params, dict) else type(params).__name__}."
    )


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
  """Raises ValueError unless `value` is one of `allowed`."""
  if value not in allowed:
    raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")


def num_particles(particles: Particles, name: str = "particles") -> int:
  """Returns n, the length of the leading axis that all leaves `[n, ...]` share.

  Raises:
    ValueError: no leaves, a leaf without a leading axis, or different lengths.
    TypeError: a leaf that is not of a floating-point type.
  """
  leaves = jax.tree.leaves(particles)
  if not leaves:
    raise ValueError(f"{name} must hold at least one array, got {particles!r}.")
  for leaf in leaves:
    if jnp.ndim(leaf) == 0:
      raise ValueError(f"{name} must have a leading axis, [n, ...], got a scalar.")
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      raise TypeError(
        f"{name} must be floating-point, got {jnp.result_type(leaf)}; "
        "cast or scale them first."
      )
  lengths = {jnp.shape(leaf)[0] for leaf in leaves}
  if len(lengths) > 1:
    raise ValueError(f"leaves of {name} must share one leading axis, got {lengths}.")
  if 0 in lengths:
    raise ValueError(f"{name} must hold at least one point, got none.")
  return lengths.pop()


def same_shapes(a: Any, b: Any, names: tuple[str, str]) -> None:
  """Raises ValueError unless two pytrees agree in structure and in every shape.

  Otherwise a `[n]` and a `[n, 1]` would silently broadcast.
  """
  structure_a: Any = jax.tree.structure(a)
  structure_b: Any = jax.tree.structure(b)
  if structure_a != structure_b:
    raise ValueError(
      f"{names[0]} and {names[1]} must have one structure, "
      f"got {structure_a} and {structure_b}."
    )
  shapes_a, shapes_b = (
    [jnp.shape(leaf) for leaf in jax.tree.leaves(t)] for t in (a, b)
  )
  if shapes_a != shapes_b:
    raise ValueError(
      f"{names[0]} and {names[1]} must have the same shape, "
      f"got {_brief(shapes_a)} and {_brief(shapes_b)}."
    )


def same_event(a: Particles, b: Particles, names: tuple[str, str]) -> None:
  """Raises ValueError unless the points `[n, ...]` of a and b have one shape."""
  events = [
    (jax.tree.structure(t), [jnp.shape(leaf)[1:] for leaf in jax.tree.leaves(t)])
    for t in (a, b)
  ]
  if events[0] != events[1]:
    raise ValueError(
      f"one point of {names[0]} and one of {names[1]} must have the same shape, "
      f"got {_brief(events[0][1])} and {_brief(events[1][1])}."
    )


def scalar_energy(energy_fn: EnergyFn, params: Params, *point: Batch) -> None:
  """Raises ValueError unless `energy_fn(params, *point)` is a scalar."""
  energy = jax.eval_shape(energy_fn, params, *point)
  if getattr(energy, "shape", None) != ():
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(point[0])]
    raise ValueError(
      "energy_fn(params, x) must return a scalar, the energy of one point; for a point "
      f"of shape {_brief(shapes)} it returned {energy}. Batches are made by vmap."
    )


def _brief(shapes: list[Any]) -> Any:
  return shapes[0] if len(shapes) == 1 else shapes
