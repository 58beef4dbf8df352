"""One decorator for public array functions: validate the arguments, then compile."""

import dataclasses
import functools
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from stein_jax import checks

P = ParamSpec("P")
R = TypeVar("R")

Check = Callable[..., Mapping[str, Any] | None]
"""Validates arguments; returns None, or the arguments to replace, by name."""


def compiled(
  check: Check | None = None, *, static: Iterable[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
  """A decorator: calls `check` on the concrete arguments, then the compiled function.

  The check runs outside `jax.jit`: a wrong argument is an error before anything is
  traced, and a check that needs the value of a number sees the value, not a tracer.
  (Inside another transformation the arguments may be tracers there too.)

  >>> import jax.numpy as jnp
  >>> def _check(power):
  ...   if power < 0:
  ...     raise ValueError(f"power must not be negative, got {power}.")
  >>> @compiled(_check, static=("power",))
  ... def mean_power(x, *, power=2):
  ...   return jnp.mean(x**power)
  >>> mean_power(jnp.array([1.0, 3.0])).item()
  5.0

  Functions among the other arguments need not be static. Each is passed as
  `jax.tree_util.Partial(function)`, a pytree without leaves that equals another one of
  the same function, so the same function is not traced again. A caller who passes
  `Partial(function, params)` can change `params` without a new compilation. A linen
  module and an unhashable function are a TypeError.

  Args:
    check: called by keyword with those arguments of the decorated function that the
      parameters of `check` name, defaults included. It raises, or returns None, or
      returns a dict of arguments to replace, such as a normalised one.
    static: names of the arguments that are compile-time constants. They are hashable.

  Returns:
    A decorator, which keeps the name, the docstring and the signature of the function.

  Raises:
    TypeError: when decorating, if `check` or `static` names an argument that the
      function does not have.
  """
  static = tuple(static)
  wanted = () if check is None else tuple(inspect.signature(check).parameters)

  def decorate(fn: Callable[P, R]) -> Callable[P, R]:
    signature = inspect.signature(fn)
    unknown = {*wanted, *static} - set(signature.parameters)
    if unknown:
      raise TypeError(f"{fn.__name__} has no argument named {sorted(unknown)}.")
    traces = _Traces(fn.__qualname__)

    @functools.wraps(fn)
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
      traces.count += 1  # only while JAX traces
      return fn(*args, **kwargs)

    parameters = signature.parameters
    run = jax.jit(traced, static_argnames=static)

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
      try:
        bound = signature.bind(*args, **kwargs)
      except TypeError as error:
        raise TypeError(f"{fn.__qualname__}: {error}") from None
      bound.apply_defaults()
      arguments = bound.arguments
      if check is not None:
        arguments.update(check(**{name: arguments[name] for name in wanted}) or {})
      for name, value in arguments.items():
        is_function = name not in static and callable(value) and _is_leaf(value)
        needs_one = name.endswith("_fn") and value is not parameters[name].default
        if is_function or needs_one:
          checks.function(name, value)
        if is_function:
          arguments[name] = Partial(value)
      before = traces.count
      result = run(*bound.args, **bound.kwargs)
      traces.after_call(traces.count > before, arguments)
      return result

    return call

  return decorate


_TRACES_IN_A_ROW = 8
"""After how many calls in a row that were compiled for like arguments to warn."""


@dataclasses.dataclass
class _Traces:
  """How often a function was traced, and whether every call of a loop is.

  Attributes:
    name: of the function.
    count: how often JAX traced it.
  """

  name: str
  count: int = 0
  _like: str | None = None  # the arguments, without the addresses of functions
  _in_a_row: int = 0
  _has_warned: bool = False

  def after_call(self, was_traced: bool, arguments: Mapping[str, Any]) -> None:
    """Warns once if many calls in a row differ in the addresses of functions only."""
    if not was_traced:
      self._in_a_row = 0
      return
    # With jit disabled nothing is compiled; inside of another jit it is once for all.
    is_inside = isinstance(jnp.zeros(()), jax.core.Tracer)
    if self._has_warned or is_inside or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
      return
    leaves, structure = jax.tree.flatten(dict(arguments))
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
      return  # within grad or vmap
    kinds = [_kind(leaf) for leaf in leaves]
    like = re.sub(r" at 0x[0-9a-f]+", "", f"{structure} {kinds}")
    self._in_a_row = self._in_a_row + 1 if like == self._like else 1
    self._like = like
    if self._in_a_row == _TRACES_IN_A_ROW:
      self._has_warned = True
      warnings.warn(
        f"{self.name} was compiled in each of the last {_TRACES_IN_A_ROW} calls, for "
        "arguments of the same shapes: a function among them is a new object every "
        "time, such as a lambda that is made in a loop. Make it once, before the loop; "
        "if its parameters change, pass jax.tree_util.Partial(function, params).",
        RuntimeWarning,
        stacklevel=_level_of_caller(),
      )


def _level_of_caller() -> int:
  """The stack level, as `warnings.warn` counts it, of the first foreign code."""
  level, frame = 1, sys._getframe(1)
  while frame.f_back and frame.f_globals["__name__"].startswith("stein_jax."):
    level, frame = level + 1, frame.f_back
  return level


def _kind(leaf: Any) -> Any:
  """What a compiled program depends on: shape and dtype, or a static value."""
  if hasattr(leaf, "shape"):
    return leaf.shape, str(leaf.dtype)
  return leaf if isinstance(leaf, (int, str)) else type(leaf).__name__


def _is_leaf(value: Any) -> bool:
  """Whether JAX sees a leaf. A kernel, say, may be callable and is a pytree."""
  return jax.tree_util.all_leaves([value])
