"""One step of an optimizer, on states of any rule."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import DescentState, apply_gradient

PARAMS = jnp.array([1.0, -2.0])
GRADIENT = jnp.array([0.5, 3.0])


class Own(NamedTuple):
  params: Any
  opt_state: Any
  particles: Any


def test_the_steps_are_those_of_momentum_in_numpy():
  optimizer = optax.sgd(0.1, momentum=0.9)
  state = DescentState(PARAMS, optimizer.init(PARAMS))
  params, velocity = np.array(PARAMS), np.zeros(2)
  for factor in (1.0, -2.0, 0.5):
    state = apply_gradient(state, factor * GRADIENT, optimizer)
    velocity = 0.9 * velocity + factor * np.array(GRADIENT)
    params = params - 0.1 * velocity
    np.testing.assert_allclose(state.params, params, rtol=1e-6)


def test_other_fields_and_the_type_stay():
  optimizer = optax.adam(0.1)
  state = Own(PARAMS, optimizer.init(PARAMS), jnp.arange(3))
  after = apply_gradient(state, GRADIENT, optimizer)
  assert type(after) is Own
  assert after.particles is state.particles
  plain = apply_gradient(DescentState(*state[:2]), GRADIENT, optimizer)
  np.testing.assert_array_equal(after.params, plain.params)


def test_bad_input():
  optimizer = optax.sgd(0.1)
  state = DescentState(PARAMS, optimizer.init(PARAMS))
  with pytest.raises(ValueError, match="params and the gradient must have the same"):
    apply_gradient(state, GRADIENT[:1], optimizer)
  with pytest.raises(TypeError, match="NamedTuple with the fields params and opt_st"):
    apply_gradient({"params": PARAMS}, GRADIENT, optimizer)
