"""`refreshed`: a kernel that is computed again every few updates."""

from functools import partial

import chex
import jax
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from stein_jax import (
  Direction,
  energies,
  kernels,
  refreshed,
  stein_cd,
  stein_score_matching,
  whiten,
)

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
ENERGY = energies.MLP((4,))
SGD = optax.sgd(0.5)


def kernel_fn(params):
  features = Partial(ENERGY.features, params)
  kernel = kernels.on_features(kernels.rbf("median_no_log"), features)
  return Direction(whiten(kernel, X, num_centers=5), leave_one_out=True)


def rule(**options):
  return partial(stein_score_matching, ENERGY.apply, **options)


def updates(algorithm, count):
  state = algorithm.init(KEY, ENERGY.init(KEY, X[0]), X[:20])
  states = [state]
  for i in range(count):
    state, _ = jax.jit(algorithm.update)(KEY, state, X[20 * i : 20 * (i + 1)])
    states.append(state)
  return states


def test_every_update_is_the_rule_with_a_function_of_params():
  got = updates(refreshed(rule(), kernel_fn, SGD, refresh=1), 4)
  want = updates(rule()(kernel=kernel_fn, optimizer=SGD), 4)
  chex.assert_trees_all_close(got[-1].params, want[-1].params, rtol=1e-3, atol=1e-5)


def test_between_refreshes_the_kernel_stays():
  states = updates(refreshed(rule(), kernel_fn, SGD, refresh=3), 5)
  # The kernel of the state before update t is that of θ at the last multiple of 3.
  for t, of in ((1, 0), (2, 0), (3, 0), (4, 3), (5, 3)):
    want = kernel_fn(states[of].params)
    chex.assert_trees_all_close(states[t].kernel, want, rtol=1e-3, atol=1e-5)
  # Every update is one of the rule with that kernel.
  algorithm = rule()(kernel=kernel_fn(states[3].params), optimizer=SGD)
  inner = algorithm.init(KEY, states[4].params, X[:20])
  inner, _ = algorithm.update(KEY, inner, X[80:100])
  chex.assert_trees_all_close(inner.params, states[5].params, rtol=1e-3, atol=1e-5)
  assert states[5].step == 5


@pytest.mark.parametrize("jitted", [True, False])
def test_it_is_compiled_once(jitted, compilations):
  algorithm = refreshed(rule(), kernel_fn, SGD, refresh=2)
  state = algorithm.init(KEY, ENERGY.init(KEY, X[0]), X[:20])
  update = jax.jit(algorithm.update) if jitted else algorithm.update
  state, _ = update(KEY, state, X[:20])
  before = len(compilations)
  for _ in range(4):
    state, _ = update(KEY, state, X[:20])
  assert len(compilations) == before


def test_bad_arguments_are_errors():
  with pytest.raises(ValueError, match="refresh must be"):
    refreshed(rule(), kernel_fn, SGD, refresh=0)
  with pytest.raises(TypeError, match="kernel_fn"):
    refreshed(rule(), kernels.rbf(), SGD, refresh=2)
  chains = partial(stein_cd, ENERGY.apply, step_size=0.1, persistent=True)
  algorithm = refreshed(chains, kernel_fn, SGD, refresh=2)
  with pytest.raises(TypeError, match="DescentState, got"):
    algorithm.init(KEY, ENERGY.init(KEY, X[0]), X[:20])
