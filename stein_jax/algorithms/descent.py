"""An Algorithm out of a gradient: the frame that most learning rules share."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from stein_jax.types import Algorithm, Batch, Key, Metrics, Params

GradientFn = Callable[[Key, Params, Batch], tuple[Params, Metrics]]
"""`gradient_fn(key, params, batch) -> (gradient, metrics)`."""


class DescentState(NamedTuple):
  """The parameters and their optimizer's state."""

  params: Params
  opt_state: optax.OptState


def descend(
  gradient_fn: GradientFn, optimizer: optax.GradientTransformation
) -> Algorithm:
  """The Algorithm that hands a gradient to an optax optimizer.

  Args:
    gradient_fn: `(key, params, batch) -> (gradient, metrics)`, where the gradient is
      of a loss to be descended.
    optimizer: an optax optimizer.

  Returns:
    An Algorithm whose metrics are the gradient's own and `gradient_norm`.
  """

  def init(key: Key, params: Params, batch: Batch) -> DescentState:
    del key, batch
    return DescentState(params, optimizer.init(params))

  def update(
    key: Key, state: DescentState, batch: Batch
  ) -> tuple[DescentState, Metrics]:
    gradient, metrics = gradient_fn(key, state.params, batch)
    state = apply_gradient(state, gradient, optimizer)
    return state, metrics | {"gradient_norm": optax.tree.norm(gradient)}

  return Algorithm(init, update)


def apply_gradient(
  state: DescentState, gradient: Params, optimizer: optax.GradientTransformation
) -> DescentState:
  """One optimizer step along a gradient."""
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  return DescentState(optax.apply_updates(state.params, updates), opt_state)
