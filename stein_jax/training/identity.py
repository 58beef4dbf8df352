"""What tells one run from another: its data, its first state, and its program.

None of it depends on the process: a run is recognised after a restart of Python.
"""

import collections
import dataclasses
import hashlib
import importlib.metadata
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stein_jax.types import Batch, PyTree

_ROWS = 256
_WHOLE_BYTES = 2**24
_TOLERANCE = 1e-4


def describe(name: str, tree: PyTree) -> dict[str, str]:
  """Names each leaf with its type and shape: {"state.params['w']": "float32[3]"}."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    name + jax.tree_util.keystr(path): jax.typeof(x).str_short() for path, x in leaves
  }


def data_checksum(data: Batch) -> str:
  """A checksum of 256 evenly spaced rows of every array, and of all labels.

  Only these rows are read, also of arrays that are memory-mapped. An array of numbers,
  `[N]`, is read whole if it is not larger than 16 MiB.
  """
  checksum = 0
  for x in jax.tree.leaves(data):
    is_small = np.ndim(x) == 1 and x.size * x.dtype.itemsize <= _WHOLE_BYTES
    if not is_small:
      rows = np.linspace(0, len(x) - 1, min(len(x), _ROWS)).astype(int)
      x = x[np.unique(rows)]
    x = np.asarray(jnp.asarray(x))  # of the type that the device gets
    checksum = zlib.crc32(np.ascontiguousarray(x).tobytes(), checksum)
  return f"{checksum:08x}"


# ---------------------------------------------------------------------- the state


def state_values(state: PyTree) -> dict[str, list[float]]:
  """Two numbers for every leaf of numbers: its norm, and its product with a pattern.

  They change with any value by much more than by rounding, so that a state that
  another device computed is recognised; see `other_values`.
  """
  found = {}
  for path, x in jax.tree_util.tree_leaves_with_path(state):
    if jnp.issubdtype(x.dtype, jnp.number) and x.is_fully_addressable:
      flat = np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64).ravel()
      pattern = np.cos(1.0 + np.arange(flat.size))
      numbers = [float(np.linalg.norm(flat)), float(np.real(flat @ pattern))]
      found["state" + jax.tree_util.keystr(path)] = numbers
  return found


def other_values(
  before: Mapping[str, list[float]], now: Mapping[str, list[float]]
) -> list[str]:
  """The leaves whose values differ, by name, as texts with both norms."""
  found = []
  for name in sorted(before.keys() & now.keys()):
    scale = _TOLERANCE * max(before[name][0], now[name][0])
    differ = (
      abs(a - b) > scale and not (math.isnan(a) and math.isnan(b))
      for a, b in zip(before[name], now[name])
    )
    if any(differ):
      found.append(
        f"the first value of {name} had the norm {before[name][0]:.6g}, it has "
        f"{now[name][0]:.6g}"
      )
  return found


# -------------------------------------------------------------------- the program


def environment(num_devices: int | None) -> str:
  """What a program depends on apart from the algorithm.

  Programs of different environments cannot be compared.

  Args:
    num_devices: of the mesh; None: there is no mesh.
  """
  packages = ("jax", "optax", "flax", "stein_jax")
  versions = [f"{name} {_version(name)}" for name in packages]
  mesh = "no mesh" if num_devices is None else f"a mesh of {num_devices}"
  place = f"{mesh} on {jax.default_backend()}"
  return ", ".join([*versions, place])


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "unknown"


def program(chunk: Any) -> tuple[str, list[float]]:
  """A hash of one step's program, and the numbers in it, such as the learning rate.

  Args:
    chunk: the jaxpr, with its constants, of a chunk that scans over steps. What
      surrounds the scan depends on the chunk's length, which is not part of a run.

  Returns:
    The hash of all operations, shapes and constants, and the scalar
    constants in increasing order.
  """
  numbers: list[float] = []
  digest = hashlib.sha256()
  for word in _words(_step_of(chunk.jaxpr), numbers):
    digest.update(word.encode())
  for constant in chunk.consts:
    for word in _constant(constant, numbers):
      digest.update(word.encode())
  return digest.hexdigest()[:16], sorted(numbers)


def _step_of(jaxpr: Any) -> Any:
  """The body of the last scan: one step."""
  scans = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == "scan":
      scans.append(equation.params["jaxpr"].jaxpr)
    elif "jaxpr" in equation.params:
      inner = equation.params["jaxpr"]
      found = _step_of(getattr(inner, "jaxpr", inner))
      scans += [found] if found is not None else []
  return scans[-1] if scans else None


def _words(jaxpr: Any, numbers: list[float]) -> Iterator[str]:
  """A jaxpr as words that do not depend on the process.

  Its printed form has addresses of functions, which do.
  """
  names: dict[Any, str] = {}

  def name(variable: Any) -> str:
    return names.setdefault(variable, f"v{len(names)}:{variable.aval.str_short()}")

  for variable in (*jaxpr.constvars, *jaxpr.invars):
    yield name(variable)
  for equation in jaxpr.eqns:
    yield equation.primitive.name
    for variable in equation.invars:
      if hasattr(variable, "val"):
        yield from _constant(variable.val, numbers)
      else:
        yield name(variable)
    for key in sorted(equation.params):
      yield key
      yield from _parameter(equation.params[key], numbers)
    for variable in equation.outvars:
      yield name(variable)
  for variable in jaxpr.outvars:
    if hasattr(variable, "val"):
      yield from _constant(variable.val, numbers)
    else:
      yield name(variable)


def _parameter(value: Any, numbers: list[float]) -> Iterator[str]:
  if hasattr(value, "eqns"):
    yield from _words(value, numbers)
  elif hasattr(value, "jaxpr") and hasattr(value, "consts"):
    yield from _words(value.jaxpr, numbers)
    for constant in value.consts:
      yield from _constant(constant, numbers)
  elif isinstance(value, (tuple, list)):
    for part in value:
      yield from _parameter(part, numbers)
  elif isinstance(value, (np.ndarray, np.generic, jax.Array)):
    yield from _constant(value, numbers)
  else:
    text = repr(value)
    yield type(value).__name__ if " at 0x" in text or callable(value) else text


def _constant(value: Any, numbers: list[float]) -> Iterator[str]:
  if jnp.issubdtype(
    getattr(value, "dtype", np.asarray(value).dtype), jax.dtypes.prng_key
  ):
    value = jax.random.key_data(value)
  array = np.asarray(value)
  yield f"{array.dtype}{array.shape}{zlib.crc32(np.ascontiguousarray(array).tobytes())}"
  is_float = array.shape == () and jnp.issubdtype(array.dtype, jnp.floating)
  if is_float and np.isfinite(array.astype(float)):
    numbers.append(float(f"{float(array):.6g}"))


# ---------------------------------------------------------------- the fingerprint


@dataclasses.dataclass(frozen=True)
class Fingerprint:
  """What identifies a run.

  Attributes:
    described: names and values that must be the same.
    run: the caller's own, likewise.
    values: of the first state, as from `state_values`.
    environment: where the program was made.
    program: its hash.
    numbers: the scalar constants in it.
  """

  described: Mapping[str, str]
  run: Mapping[str, str]
  values: Mapping[str, list[float]]
  environment: str
  program: str
  numbers: list[float]

  def as_json(self) -> dict[str, Any]:
    """As it is stored in a checkpoint."""
    own = dataclasses.asdict(self)
    return {**own.pop("described"), _OWN: own}

  def differences(self, before: Mapping[str, Any]) -> list[str]:
    """What differs from a stored one, as texts with both values.

    What an earlier version did not store is not compared.
    """
    before = dict(before)
    own = before.pop(_OWN, None) or {}
    found = _changed(before, self.described, known_only=_ADDED if not own else ())
    if not own:
      return found
    found += [f"run: {text}" for text in _changed(own["run"], self.run)]
    found += other_values(own["values"], self.values)
    if own["environment"] == self.environment and own["program"] != self.program:
      found.append(_changed_program(own["numbers"], self.numbers))
    return found


_OWN = "identity"
_ADDED = ("data checksum",)


def _changed(
  before: Mapping[str, str], now: Mapping[str, str], known_only: Iterable[str] = ()
) -> list[str]:
  return [
    f"{name} was {before.get(name, 'absent')}, expected {now.get(name, 'absent')}"
    for name in sorted(before.keys() | now.keys())
    if before.get(name) != now.get(name) and name not in known_only
  ]


def _changed_program(before: list[float], now: list[float]) -> str:
  counts = collections.Counter(before), collections.Counter(now)
  gone, new = ([f"{x:g}" for x in sorted(a - b)] for a, b in (counts, reversed(counts)))
  text = "the update or the transform is another program"
  if gone or new:
    was, there = ", ".join(gone) or "none", ", ".join(new) or "none"
    text += f" (numbers only in the earlier one: {was}; only in this one: {there})"
  return text
