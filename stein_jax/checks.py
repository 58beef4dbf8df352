"""Argument validation, before any work is done."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from stein_jax.types import Algorithm, Batch, EnergyFn, Params, Particles, PyTree


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


def all_positive(name: str, values: Any) -> None:
  """Raises ValueError unless every number of an array is as in `positive`."""
  if not isinstance(values, jax.core.Tracer):
    for value in np.ravel(np.asarray(values, np.float64)):
      positive(name, value)


def not_negative(name: str, value: Any) -> None:
  """Raises ValueError unless `value` is a finite number of at least 0.

  A traced value is not known yet and passes.
  """
  if isinstance(value, jax.core.Tracer):
    return
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


def function(name: str, value: Any, *arguments: str, is_compiled: bool = True) -> None:
  """Raises TypeError unless `value` is a function that JAX can compile and find again.

  A linen module is not: its `apply` is.

  Args:
    name: of the argument.
    value: the function.
    arguments: what the function is called with, such as "params, x"; alternatives if
      there are several. Without any, the number of its arguments is not checked.
    is_compiled: whether JAX compiles it, and so has to find it again by its hash.
  """
  wanted = " or ".join(f"{name}({given})" for given in arguments)
  wanted = f"a function {wanted}" if wanted else "a function"
  fn = value.func if isinstance(value, jax.tree_util.Partial) else value
  if isinstance(fn, nn.Module):
    raise TypeError(
      f"{name} must be {wanted}, got the module {type(fn).__name__}: pass a "
      "method of it, such as module.apply."
    )
  if not callable(fn):
    raise TypeError(f"{name} must be {wanted}, got {described(fn)}.")
  if arguments:
    _check_signature(name, value, arguments, wanted)
  if not is_compiled:
    return
  try:
    hash(fn)
  except TypeError:
    if not jax.tree_util.all_leaves([fn]):
      return  # a pytree, whose arrays are arguments of what is compiled
    raise TypeError(
      f"{name} must be hashable, which a {type(fn).__name__} is not: make it a frozen "
      "dataclass, or pass a plain function or jax.tree_util.Partial(fn, params)."
    ) from None


def _check_signature(
  name: str, value: Any, arguments: tuple[str, ...], wanted: str
) -> None:
  # A decorated function may have other arguments than the one that it wraps.
  for follow in (False, True):
    try:
      signature = inspect.signature(value, follow_wrapped=follow)
    except (TypeError, ValueError):
      return  # it does not tell
    for given in arguments:
      try:
        signature.bind(*given.split(", "))
      except TypeError:
        continue
      return
  raise TypeError(f"{name} must be {wanted}, got {described(value)} with {signature}.")


def num_arguments(fn: Any) -> int | None:
  """How many arguments a function must be given by position; None if it is not known.

  Those with a default do not count.
  """
  try:
    parameters = inspect.signature(fn).parameters.values()
  except (TypeError, ValueError):
    return None
  if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
    return None
  kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
  return sum(p.kind in kinds and p.default is p.empty for p in parameters)


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
    number = float(value)  # within a traced function, JAX would trace the comparisons
    above = number >= 0 if interval[0] == "[" else number > 0
    below = number <= 1 if interval[-1] == "]" else number < 1
    if above and below:
      return
  raise ValueError(f"{name} must lie in {interval}, got {value!r}.")


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
  _returned(name, value, 2, f"a pair ({parts})")


def triple(name: str, value: Any, parts: str) -> None:
  """Raises TypeError unless what a function returned is a tuple of three."""
  _returned(name, value, 3, f"three parts ({parts})")


def _returned(name: str, value: Any, count: int, wanted: str) -> None:
  if not (isinstance(value, (tuple, list)) and len(value) == count):
    got = "an array" if _is_array(value) else type(value).__name__
    got += f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    raise TypeError(f"{name} must return {wanted}, got {got}.")


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


def common_rows(name: str, tree: PyTree) -> None:
  """Raises ValueError unless the arrays that a function returned share their rows."""
  shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
  if len({shape[:1] for shape in shapes}) != 1 or shapes[0] == ():
    got = f"shape {_brief(shapes)}" if shapes else repr(tree)
    raise ValueError(
      f"{name} must return arrays [n, ...] of one number of rows, got {got}."
    )


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
    _check_leaf(where, leaf)
    if not jnp.issubdtype(_dtype(leaf), jnp.inexact):
      raise TypeError(
        f"{where} is {_dtype(leaf)}, and only floating-point numbers have gradients: "
        "cast it, or keep integers out of params (close over them)."
      )


_ARRAYS_ONLY = (
  "Parameters are arrays: of an equinox module take params, static = "
  "eqx.partition(model, eqx.is_array), and in the function eqx.combine(params, static)."
)


def leaves(name: str, tree: PyTree) -> None:
  """Raises TypeError unless all leaves are arrays or numbers."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    _check_leaf(name + jax.tree_util.keystr(path), leaf)


def _check_leaf(where: str, leaf: Any) -> None:
  if not _is_array(leaf):
    raise TypeError(f"{where} must be an array, got {leaf!r}. {_ARRAYS_ONLY}")


def _is_array(x: Any) -> bool:
  """Whether JAX can compute with it: an array, its shape and type, or a number."""
  if hasattr(x, "dtype") and hasattr(x, "shape"):
    return getattr(x.dtype, "kind", "V") not in "OUSMm"
  return isinstance(x, (bool, int, float, complex))


def _dtype(x: Any) -> Any:
  return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
  """Raises ValueError unless `value` is one of `allowed`."""
  if isinstance(value, (np.ndarray, jax.Array)) or value not in allowed:
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
    if hasattr(leaf, "dtype") and _is_array(leaf):
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
    dtype = _dtype(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
      remedy = (
        "cast or scale them first (in fit by transform, whose default, "
        "training.unit_interval, scales uint8 images)"
      )
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
    TypeError: particles or scores that are not arrays of floating-point numbers.
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
  """Raises an error unless `energy_fn(params, *point)` is a scalar that uses x."""
  function("energy_fn", energy_fn)
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
