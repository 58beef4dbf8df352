"""Whether a function treats the rows of its arguments one by one.

Then each device may apply it to its own rows, and the result is that of one device.
The answer is read off the function's jaxpr, the list of JAX's operations that make it.
It is True only where every operation is known to keep rows apart. Where it is False,
the function must be applied to all rows together, which is right for every function.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import jax
from jax.extend import core

# fmt: off
_ELEMENTWISE = frozenset({
  "abs", "add", "and", "atan2", "cbrt", "ceil", "clamp", "convert_element_type", "copy",
  "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor",
  "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt", "max",
  "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision", "rem",
  "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan",
  "tanh", "xor",
})
# fmt: on
"""Operations that compute each entry from the same entry of their arguments."""

_CALLS = {"jit", "closed_call", "custom_jvp_call", "custom_vjp_call"}
"""Operations that apply one inner function to their arguments."""


class _Role(Enum):
  """How an array is made."""

  ROWS = "[n, ...]: row i from row i of the arguments, and from what all rows share"
  EQUAL_ROWS = "[n, ...]: without the rows of the arguments, and all rows are equal"
  SHARED = "without the rows of the arguments"


class _Mixed(Exception):
  """An operation may use one row for another."""


def treats_rows_alone(
  fn: Callable[..., Any],
  arguments: Sequence[Any],
  in_axes: Sequence[int | None],
  out_axes: Sequence[int | None],
) -> bool:
  """Whether row i of the results depends on row i of the arguments only.

  Args:
    fn: a function of arrays or pytrees. A number that it computes in Python from the
      number of rows is not noticed.
    arguments: its arguments, or their types and shapes.
    in_axes: for each array of the arguments, the axis of its rows, or None where it has
      none: then all rows share it. With an axis other than 0 the answer is False.
    out_axes: the same for the results. Those without rows must not depend on any.
  """
  if not {*in_axes, *out_axes} <= {0, None}:
    return False
  jaxpr = jax.make_jaxpr(fn)(*arguments).jaxpr
  roles = [_Role.SHARED if axis is None else _Role.ROWS for axis in in_axes]
  try:
    results = _results(jaxpr, roles)
  except _Mixed:
    return False
  unwanted = {0: _Role.SHARED, None: _Role.ROWS}
  return all(role != unwanted[axis] for role, axis in zip(results, out_axes))


def _results(jaxpr: core.Jaxpr, arguments: Sequence[_Role]) -> list[_Role]:
  """The roles of a jaxpr's results, given those of its arguments."""
  roles = dict(zip(jaxpr.invars, arguments))

  def role(x: Any) -> _Role:
    # What is not listed is a constant.
    return _Role.SHARED if isinstance(x, core.Literal) else roles.get(x, _Role.SHARED)

  for equation in jaxpr.eqns:
    found = _of_equation(equation, [role(x) for x in equation.invars])
    roles.update(zip(equation.outvars, found))
  return [role(x) for x in jaxpr.outvars]


def _of_equation(equation: core.JaxprEqn, roles: list[_Role]) -> list[_Role]:
  """The roles of an equation's results, given those of its arguments."""
  name, params = equation.primitive.name, equation.params
  if name == "cond":
    predicate, *others = roles
    if predicate != _Role.SHARED:
      raise _Mixed
    branches = [_results(branch.jaxpr, others) for branch in params["branches"]]
    return [_combined(set(of_branches)) for of_branches in zip(*branches)]
  if name in _CALLS:
    inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
    return _results(getattr(inner, "jaxpr", inner), roles)
  if name in _ELEMENTWISE:
    arrays = {r for x, r in zip(equation.invars, roles) if _shape(x)}
    return [_combined(arrays or {_Role.SHARED})]
  # Equal rows too: their sum, say, depends on the number of rows.
  if _Role.ROWS in roles or _Role.EQUAL_ROWS in roles:
    raise _Mixed
  new_rows = name == "broadcast_in_dim" and 0 not in params["broadcast_dimensions"]
  return [_Role.EQUAL_ROWS if new_rows else _Role.SHARED] * len(equation.outvars)


def _shape(x: Any) -> tuple[int, ...]:
  return x.aval.shape


def _combined(roles: set[_Role]) -> _Role:
  """The role of what is made entry by entry from arrays of these roles."""
  if roles >= {_Role.ROWS, _Role.SHARED}:
    raise _Mixed  # the shared array has other numbers for other rows
  order = (_Role.ROWS, _Role.SHARED, _Role.EQUAL_ROWS)
  return next(role for role in order if role in roles)
