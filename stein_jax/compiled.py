"""One decorator for public array functions: validate the arguments, then compile."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
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
    parameters = signature.parameters
    run = jax.jit(fn, static_argnames=static)

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
      return run(*bound.args, **bound.kwargs)

    return call

  return decorate


def _is_leaf(value: Any) -> bool:
  """Whether JAX sees a leaf. A kernel, say, may be callable and is a pytree."""
  return jax.tree_util.all_leaves([value])
