"""From a gradient to an Algorithm: what most learning rules share."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import optax

from stein_jax import checks
from stein_jax.types import Algorithm, Array, Batch, Key, Metrics, Params

P = ParamSpec("P")
S = TypeVar("S")

GradientFn = Callable[[Key, Params, Batch], tuple[Params, Metrics]]
"""`gradient_fn(key, params, batch) -> (gradient, metrics)`."""


class GradientWithLoss(Protocol[P]):
  """A function that returns a gradient, and with `with_loss` the loss as well."""

  def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Params:
    """The gradient, shaped like params."""

  def with_loss(self, *args: P.args, **kwargs: P.kwargs) -> tuple[Array, Params]:
    """The loss and its gradient, as `jax.value_and_grad` returns them."""


def gradient_only(
  loss_and_gradient: Callable[P, tuple[Array, Params]],
) -> GradientWithLoss[P]:
  """A decorator: the function returns the gradient alone, its `with_loss` both."""

  @functools.wraps(loss_and_gradient)
  def gradient(*args: P.args, **kwargs: P.kwargs) -> Params:
    return loss_and_gradient(*args, **kwargs)[1]

  signature = inspect.signature(loss_and_gradient).replace(return_annotation=Params)
  gradient.__signature__ = signature  # type: ignore[attr-defined]
  gradient.with_loss = loss_and_gradient  # type: ignore[attr-defined]
  return cast(GradientWithLoss[P], gradient)


class DescentState(NamedTuple):
  """The parameters and their optimizer's state: what most learning rules keep.

  The states of other rules have these two fields first, and their own after them.

  Attributes:
    params: θ.
    opt_state: what the optax optimizer keeps for θ, as `optimizer.init(params)` makes
      it.
  """

  params: Params
  opt_state: optax.OptState


def descend(
  gradient_fn: GradientFn, optimizer: optax.GradientTransformation
) -> Algorithm:
  """The Algorithm that gives a gradient to an optax optimizer.

  Args:
    gradient_fn: `(key, params, batch) -> (gradient, metrics)`, where the gradient is
      of a loss to be descended.
    optimizer: an optax optimizer.

  Returns:
    An Algorithm whose metrics are the gradient's own and `gradient_norm`.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer; in
      `init`, parameters that are not arrays; in `update`, a gradient_fn that does not
      return a pair.
    ValueError: in `update`, a gradient that is not shaped like the parameters.
  """
  checks.function("gradient_fn", gradient_fn, "key, params, batch")
  checks.optimizer(optimizer)

  def init(key: Key, params: Params, batch: Batch) -> DescentState:
    del key, batch
    checks.leaves("params", params)
    return DescentState(params, optimizer.init(params))

  def update(
    key: Key, state: DescentState, batch: Batch
  ) -> tuple[DescentState, Metrics]:
    returned = gradient_fn(key, state.params, batch)
    checks.pair("gradient_fn", returned, "gradient, metrics")
    gradient, metrics = returned
    checks.metrics("gradient_fn", metrics)
    state = apply_gradient(state, gradient, optimizer)
    return state, metrics | {"gradient_norm": optax.tree.norm(gradient)}

  return Algorithm(init, update)


def apply_gradient(
  state: S, gradient: Params, optimizer: optax.GradientTransformation
) -> S:
  """One optimizer step along a gradient: the last line of a learning rule.

  θ ← θ + u, where (u, o) = `optimizer.update(gradient, o, θ)` and o is its state.

  >>> import jax.numpy as jnp
  >>> optimizer = optax.sgd(0.1)
  >>> params = jnp.array([1.0, 2.0])
  >>> state = DescentState(params, optimizer.init(params))
  >>> state = apply_gradient(state, 2 * params, optimizer)  # of the loss Σ θ²
  >>> [round(x, 3) for x in state.params.tolist()]
  [0.8, 1.6]

  Args:
    state: a `DescentState`, or another NamedTuple with the fields `params` and
      `opt_state`. Its other fields stay as they are.
    gradient: of a loss to be descended, shaped like the parameters.
    optimizer: the optax optimizer that `opt_state` belongs to.

  Returns:
    The state with new `params` and `opt_state`, of the same type.

  Raises:
    TypeError: a state that is no NamedTuple with these fields.
    ValueError: a gradient that is not shaped like the parameters.
  """
  old: Any = state
  if not {"params", "opt_state"} <= set(getattr(old, "_fields", ())):
    raise TypeError(
      "state must be a NamedTuple with the fields params and opt_state, such as "
      f"DescentState(params, optimizer.init(params)), got {checks.described(state)}."
    )
  checks.same_shapes(old.params, gradient, ("params", "the gradient"))
  updates, opt_state = optimizer.update(gradient, old.opt_state, old.params)
  params = optax.apply_updates(old.params, updates)
  return old._replace(params=params, opt_state=opt_state)
