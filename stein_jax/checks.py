"""Argument validation, before any work is done."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from stein_jax.types import Algorithm, Batch, EnergyFn, Params, Particles, PyTree


def positive(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is a finite number above zero.

  A traced value is not known yet and passes: the check is for eager calls, and for
  numbers that are fixed when an algorithm is built.
  """
  if isinstance(value, jax.core.Tracer):
    return
  if not (_is_real(value) and np.isfinite(np.asarray(value)) and float(value) > 0):
    raise ValueError(f"{name} must be a finite number above 0, got {value!r}.")


def at_least_one(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is an integer of at least 1."""
  if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
    raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def share(name: str, value: Any, interval: str = "[0, 1]") -> None:
  """Raises ValueError unless `value` is a number of an interval from 0 to 1.

  Args:
    name: of the argument.
    value: the number; a traced one is not known yet and passes.
    interval: "[0, 1]", or with a round bracket where an end is left out.
  """
  if isinstance(value, jax.core.Tracer):
    return
  if _is_real(value):
    above = value >= 0 if interval[0] == "[" else value > 0
    below = value <= 1 if interval[-1] == "]" else value < 1
    if above and below:
      return
  raise ValueError(f"{name} must lie in {interval}, got {value!r}.")


def flag(name: str, value: Any) -> None:
  """Raises TypeError unless `value` is True or False."""
  if not isinstance(value, (bool, np.bool_)):
    raise TypeError(f"{name} must be True or False, got {value!r}.")


def key(value: Any) -> None:
  """Raises TypeError unless `value` is one PRNG key."""
  kind, shape = getattr(value, "dtype", object), np.shape(value)
  is_typed = jnp.issubdtype(kind, jax.dtypes.prng_key) and shape == ()
  is_legacy = jnp.issubdtype(kind, np.uint32) and len(shape) == 1
  if not (is_typed or is_legacy):
    raise TypeError(
      f"key must be one PRNG key, as from jax.random.key(0), got {value!r}"
    )


def function(name: str, value: Any, *arguments: str) -> None:
  """Raises TypeError unless `value` is a function of these arguments.

  Args:
    name: of the argument.
    value: the function.
    arguments: what the function is called with, such as "params, x"; alternatives if
      there are several. Without any, only whether it is a function is checked.
  """
  wanted = " or ".join(f"{name}({given})" for given in arguments)
  wanted = f"a function {wanted}" if wanted else "a function"
  if callable(getattr(value, "apply", None)) and callable(getattr(value, "init", None)):
    raise TypeError(
      f"{name} must be {wanted}, got a module {type(value).__name__}: pass "
      "module.apply, or a function that calls it."
    )
  if not callable(value):
    raise TypeError(f"{name} must be {wanted}, got {value!r}.")
  if not arguments:
    return
  try:
    signature = inspect.signature(value)
  except (TypeError, ValueError):
    return  # it does not tell
  for given in arguments:
    try:
      signature.bind(*given.split(", "))
    except TypeError:
      continue
    return
  raise TypeError(f"{name} must be {wanted}, got {value!r} with {signature}.")


def optimizer(value: Any, name: str = "optimizer") -> None:
  """Raises TypeError unless `value` is an optax optimizer."""
  has_both = all(callable(getattr(value, part, None)) for part in ("init", "update"))
  if not has_both or isinstance(value, (Algorithm, type)):
    raise TypeError(
      f"{name} must be an optax optimizer such as optax.adam(1e-3), got {value!r}."
    )


def algorithm(value: Any) -> None:
  """Raises TypeError unless `value` is an Algorithm."""
  if isinstance(value, optax.GradientTransformation):
    raise TypeError(
      "algorithm is an optax optimizer, which has no energy and no loss: pass it to an "
      "algorithm, for example contrastive_divergence(energy_fn, optimizer, ...)"
    )
  for part in ("init", "update"):
    if not callable(getattr(value, part, None)) or isinstance(value, type):
      raise TypeError(
        f"algorithm must be an Algorithm(init, update): it has no {part}, got {value!r}"
      )


def pair(name: str, value: Any, parts: str) -> None:
  """Raises TypeError unless what a function returned is a tuple of two."""
  if not (isinstance(value, (tuple, list)) and len(value) == 2):
    got = "an array" if _is_array(value) else type(value).__name__
    got += f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    raise TypeError(f"{name} must return a pair ({parts}), got {got}.")


def metrics(name: str, value: Any) -> None:
  """Raises an error unless the metrics that a function returned are named scalars."""
  if not isinstance(value, dict):
    raise TypeError(
      f"metrics must be a dict of scalars, got {type(value).__name__} from {name}."
    )
  for metric, x in value.items():
    if not isinstance(metric, str):
      raise TypeError(f"the names of metrics must be strings, got {metric!r}.")
    if not _is_array(x) or np.shape(x) != ():
      got = f"shape {np.shape(x)}" if _is_array(x) else type(x).__name__
      raise ValueError(f"the metric {metric} must be a scalar, got {got}")


def rows(name: str, tree: PyTree, n: int) -> None:
  """Raises ValueError unless each array that a function returned has n rows."""
  shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
  if not shapes or any(shape[:1] != (n,) for shape in shapes):
    got = f"shape {_brief(shapes)}" if shapes else repr(tree)
    raise ValueError(f"{name} must return {n} rows, [{n}, ...], got {got}.")


def params(value: Params, name: str = "params") -> None:
  """Raises TypeError unless parameters are arrays that have gradients."""
  leaves = jax.tree.leaves(value)
  if not leaves:
    raise ValueError(f"{name} must hold at least one array, got {value!r}.")
  for leaf in leaves:
    if not (_is_array(leaf) and jnp.issubdtype(_dtype(leaf), jnp.inexact)):
      break
  else:
    return
  for path, leaf in jax.tree_util.tree_leaves_with_path(value):
    where = name + jax.tree_util.keystr(path)
    if not _is_array(leaf):
      raise TypeError(
        f"{where} must be an array, got {leaf!r}: keep what is no array out of the "
        "parameters; for a module of equinox, params, static = eqx.partition(model, "
        "eqx.is_array), and eqx.combine(params, static) in the function."
      )
    if not jnp.issubdtype(_dtype(leaf), jnp.inexact):
      raise TypeError(
        f"{where} is {_dtype(leaf)}, and only floating-point numbers have gradients: "
        "cast it, or keep integers out of params (close over them)."
      )


def arrays(name: str, tree: PyTree) -> None:
  """Raises TypeError unless all leaves are arrays or numbers."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if not _is_array(leaf):
      where = name + jax.tree_util.keystr(path)
      raise TypeError(f"{where} must be an array, got {leaf!r}.")


def _is_array(x: Any) -> bool:
  """Whether JAX can compute with it: an array, its shape and type, or a number."""
  if hasattr(x, "dtype") and hasattr(x, "shape"):
    return getattr(x.dtype, "kind", "V") not in "OUSMm"
  return isinstance(x, (bool, int, float, complex))


def _dtype(x: Any) -> Any:
  return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def _is_real(x: Any) -> bool:
  """Whether it is one real number; True and False are not."""
  if isinstance(x, (int, float)):
    return not isinstance(x, bool)
  if np.ndim(x) != 0:
    return False
  kind = np.asarray(x).dtype
  return jnp.issubdtype(kind, np.floating) or jnp.issubdtype(kind, np.integer)


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
  if isinstance(value, (np.ndarray, jax.Array)) or value not in allowed:
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
    if not _is_array(leaf):
      raise TypeError(f"{name} must be arrays, got {leaf!r}.")
    if jnp.ndim(leaf) == 0:
      hint = "" if hasattr(leaf, "shape") else ": make an array, as by jnp.asarray"
      raise ValueError(
        f"{name} must have a leading axis, [n, ...], got a scalar{hint}."
      )
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
      raise TypeError(
        f"{name} must be floating-point, got {jnp.result_type(leaf)}; cast or scale "
        "them first (in fit by transform, whose default, training.unit_interval, "
        f"scales uint8 images).{_on_labels(particles)}"
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
  """Raises an error unless `energy_fn(params, *point)` is a scalar that uses x."""
  function("energy_fn", energy_fn, "params, x" + ", context" * (len(point) - 1))
  try:
    jaxpr, energy = jax.make_jaxpr(energy_fn, return_shape=True)(params, *point)
  except Exception as error:
    if note := _on_labels(point[0]):
      error.add_note(note)
    raise
  if getattr(energy, "shape", None) != ():
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(point[0])]
    raise ValueError(
      "energy_fn(params, x) must return a scalar, the energy of one point; for a point "
      f"of shape {_brief(shapes)} it returned {energy}. Batches are made by vmap."
    )

  if not jnp.issubdtype(energy.dtype, jnp.floating):
    raise TypeError(
      f"energy_fn(params, x) must return a floating-point number, got {energy.dtype}, "
      "which has no gradient."
    )
  before = len(jax.tree.leaves(params))
  of_point = jaxpr.jaxpr.invars[before : before + len(jax.tree.leaves(point[0]))]
  used = {id(x) for e in jaxpr.jaxpr.eqns for x in e.invars}
  used |= {id(x) for x in jaxpr.jaxpr.outvars}
  if not any(id(x) in used for x in of_point):
    raise ValueError(
      "energy_fn(params, x) does not use the point x: its score is 0, and nothing can "
      "be learned. The parameters are its first argument, the point its second."
    )


def _on_labels(points: Any) -> str:
  """A hint where points are several arrays, of which one may be meant as labels."""
  if not isinstance(points, (tuple, list, dict)):
    return ""
  parts = sorted(points) if isinstance(points, dict) else f"{len(points)} parts"
  return (
    f" The points are a {type(points).__name__} of {parts}, and all of it is moved: "
    'labels go in as {"x": ..., "context": ...}.'
  )


def _brief(shapes: list[Any]) -> Any:
  return shapes[0] if len(shapes) == 1 else shapes
