"""Argument validation, before any work is done."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from stein_jax.types import Batch, EnergyFn, Params, Particles


def positive(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is a number above zero that JAX's floats hold.

  A traced value is not known yet and passes: the check is for eager calls, and for
  numbers that are fixed when an algorithm is built.
  """
  if isinstance(value, jax.core.Tracer):
    return
  if not (_is_real(value) and np.isfinite(np.asarray(value)) and float(value) > 0):
    raise ValueError(f"{name} must be a finite number above 0, got {value!r}.")
  value = float(value)  # within a traced function, JAX would trace the comparisons
  if 1.2e-38 <= value <= 3.4e38:
    return
  floats = jnp.finfo(jnp.result_type(float))  # float64 with jax_enable_x64
  if not float(floats.tiny) <= value <= float(floats.max):  # a denormal counts as 0
    raise ValueError(
      f"{name} must lie between {floats.tiny:.1e} and {floats.max:.1e}, the range of "
      f"{floats.dtype}, got {value!r}; use other units."
    )


def not_negative(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is a finite number of at least 0."""
  if not (_is_real(value) and 0 <= float(value) < np.inf):
    raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}.")


def between(name: str, value: Any, low: float, high: float) -> None:
  """Raises ValueError unless `value` is a number with low < value < high."""
  if not (_is_real(value) and low < float(value) < high):
    raise ValueError(f"{name} must lie between {low} and {high}, got {value!r}.")


def integer(name: str, value: Any, *, least: int) -> None:
  """Raises ValueError unless `value` is an integer of at least `least`."""
  is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
  if not is_integer or value < least:
    raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def at_least_one(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is an integer of at least 1."""
  integer(name, value, least=1)


def boolean(name: str, value: Any) -> None:
  """Raises TypeError unless `value` is True or False."""
  if not isinstance(value, (bool, np.bool_)):
    raise TypeError(f"{name} must be True or False, got {value!r}.")


def function(name: str, value: Any) -> None:
  """Raises TypeError unless `value` is a function that JAX can compile and find again.

  A linen module is not: its `apply` is.
  """
  fn = value.func if isinstance(value, jax.tree_util.Partial) else value
  if isinstance(fn, nn.Module):
    raise TypeError(
      f"{name} must be a function, got the module {type(fn).__name__}: pass a "
      "method of it, such as module.apply."
    )
  if not callable(fn):
    raise TypeError(f"{name} must be a function, got {described(fn)}.")
  try:
    hash(fn)
  except TypeError:
    if not jax.tree_util.all_leaves([fn]):
      return  # a pytree, whose arrays are arguments of what is compiled
    raise TypeError(
      f"{name} must be hashable, which a {type(fn).__name__} is not: make it a frozen "
      "dataclass, or pass a plain function or jax.tree_util.Partial(fn, params)."
    ) from None


def activation(value: Any) -> None:
  """Raises TypeError unless `value` is callable, a function or a linen module."""
  if not callable(value):
    raise TypeError(
      f"activation must be a function such as jax.nn.silu, got {described(value)}."
    )


def finite(name: str, value: Any) -> None:
  """Raises ValueError for NaN or infinity. A traced array is not known and passes."""
  if _is_known(value) and not np.isfinite(value).all():
    raise ValueError(f"{name} must be finite, but holds NaN or infinity.")


def module(name: str, value: Any) -> None:
  """Raises TypeError unless `value` is a linen module."""
  if not isinstance(value, nn.Module):
    raise TypeError(f"{name} must be a linen module, got {described(value)}.")


def key(value: Any) -> None:
  """Raises TypeError unless `value` is one PRNG key."""
  dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
  if dtype is not None:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ():
      return
    if dtype == np.uint32 and shape is not None and len(shape) == 1:
      return  # of the old kind, jax.random.PRNGKey
  raise TypeError(
    f"key must be one PRNG key such as jax.random.key(0), got {described(value)}."
  )


def described(value: Any) -> str:
  """A value in a few words: an array by shape and dtype, otherwise its repr or type."""
  if hasattr(value, "dtype") and hasattr(value, "shape"):
    return f"an array of shape {value.shape} and dtype {value.dtype}"
  if isinstance(value, (tuple, list, dict)):
    return f"a {type(value).__name__}"  # of arrays, perhaps
  text = repr(value)
  return text if len(text) <= 60 else f"a {type(value).__name__}"


def decay(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is None or lies between 0 and 1."""
  if value is not None:
    between(name, value, 0, 1)


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
    TypeError: a leaf that is no array, or not of a floating-point type.
  """
  leaves = jax.tree.leaves(particles)
  if not leaves:
    raise ValueError(f"{name} must hold at least one array, got {particles!r}.")
  arrays(name, particles)
  if any(leaf.shape == () for leaf in leaves):
    raise ValueError(f"{name} must have a leading axis, [n, ...], got a scalar.")
  floating(name, particles)
  lengths = {leaf.shape[0] for leaf in leaves}
  if len(lengths) > 1:
    raise ValueError(f"leaves of {name} must share one leading axis, got {lengths}.")
  if 0 in lengths:
    raise ValueError(f"{name} must hold at least one point, got none.")
  return lengths.pop()


def arrays(name: str, tree: Any) -> None:
  """Raises TypeError unless every leaf of a pytree is an array."""
  for leaf in jax.tree.leaves(tree):
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape"):
      continue
    got = described(leaf)
    if leaf is not tree:
      got = f"a {type(tree).__name__} that holds {got}"
    nested = isinstance(tree, (list, tuple))
    remedy = "; pass jnp.asarray(...)" if nested else ""
    raise TypeError(
      f"{name} must be an array or a pytree of arrays, got {got}{remedy}."
    )


def array(name: str, value: Any) -> None:
  """Raises TypeError for a tuple, a dict or another object in place of one array.

  Numbers and lists of them pass.
  """
  if isinstance(value, (tuple, dict, str)) or value is None or callable(value):
    raise TypeError(f"{name} must be one array, got {described(value)}.")


def floating(name: str, tree: Any) -> None:
  """Raises TypeError unless every array of a pytree is of a floating-point type."""
  for leaf in jax.tree.leaves(tree):
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
      remedy = "cast or scale them first"
      if isinstance(tree, (tuple, list, dict)):
        remedy += '; a batch with labels is {"x": ..., "context": labels}'
      raise TypeError(f"{name} must be floating-point, got {dtype}; {remedy}.")


def images(value: Any) -> None:
  """Raises an error unless `value` is a batch of images `[n, h, w, c]`, as floats."""
  if jnp.ndim(value) != 4:
    raise ValueError(f"images must be [n, h, w, c], got shape {jnp.shape(value)}.")
  floating("images", value)


def particles_and_scores(particles: Particles, scores: Particles) -> None:
  """Raises an error unless the scores are floats shaped like the particles.

  Raises:
    ValueError: particles as in `num_particles`, or scores of another shape.
    TypeError: particles or scores that are no arrays, or no floating-point numbers.
  """
  num_particles(particles)
  arrays("scores", scores)
  same_shapes(particles, scores, ("particles", "scores"))
  floating("scores", scores)


def context(tree: Any, n: int) -> None:
  """Raises ValueError unless every leaf of a context has one row for each point."""
  shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
  if any(shape[:1] != (n,) for shape in shapes):
    raise ValueError(
      f"the context must have one row for each of the {n} points, [{n}, ...], got "
      f"shape {_brief(shapes)}."
    )


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


def scalar(call: str, value: Any) -> None:
  """Raises ValueError unless what a call returned is one floating-point number."""
  dtype = getattr(value, "dtype", type(value))
  if jnp.shape(value) != () or not jnp.issubdtype(dtype, jnp.floating):
    raise ValueError(
      f"{call} must return a floating-point scalar, got shape {jnp.shape(value)} of "
      f"{getattr(dtype, '__name__', dtype)}."
    )


def labels(label: Any, num_classes: int) -> None:
  """Raises ValueError unless all labels are within 0, ..., num_classes − 1.

  Traced labels are not known yet and pass.
  """
  if not _is_known(label) or np.size(label) == 0:
    return
  lowest, highest = np.min(np.asarray(label)), np.max(np.asarray(label))
  if lowest < 0 or highest >= num_classes:
    raise ValueError(
      f"labels must be within 0, ..., {num_classes - 1} for num_classes={num_classes}, "
      f"got {lowest if lowest < 0 else highest}."
    )


def scalar_energy(energy_fn: EnergyFn, params: Params, *point: Batch) -> None:
  """Raises an error unless `energy_fn(params, *point)` is a scalar.

  Raises:
    TypeError: `energy_fn` is no function.
    ValueError: it returns something else.
  """
  function("energy_fn", energy_fn)
  energy = jax.eval_shape(energy_fn, params, *point)
  if getattr(energy, "shape", None) != ():
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(point[0])]
    raise ValueError(
      "energy_fn(params, x) must return a scalar, the energy of one point; for a point "
      f"of shape {_brief(shapes)} it returned {energy}. Batches are made by vmap."
    )


def _brief(shapes: list[Any]) -> Any:
  return shapes[0] if len(shapes) == 1 else shapes


def _is_real(value: Any) -> bool:
  """Whether it is one number, not complex and not a bool."""
  if np.ndim(value) != 0:
    return False
  dtype = np.asarray(value).dtype
  return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _is_known(value: Any) -> bool:
  """Whether this process has all numbers of an array: it is not traced, nor remote."""
  if isinstance(value, jax.core.Tracer):
    return False
  return getattr(value, "is_fully_addressable", True)
