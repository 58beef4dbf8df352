"""The learning rules by name: their negatives and their particles."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments.rbm import methods, runs
from experiments.rbm import settings as rbm_settings
from stein_jax import Direction, kernels, stein_moves
from stein_jax.energies import GaussianBernoulliRBM

METHODS = methods.METHODS

RULES = rbm_settings.Rules(
  optimizer="sgd",
  learning_rate=1.0,
  step_size=0.1,
  regularization=0.1,
  stein_steps=2,
  stein_step_size=0.5,
  refresh_steps=1,
  langevin_steps=[1, 2],
  langevin_step_size=[0.5],
  antithetic_steps=[1],
)


DATA = np.random.default_rng(1).uniform(size=(20, 6)).astype(np.float32)


def rbm_runs():
  return methods.runs(METHODS, GaussianBernoulliRBM(4), RULES)


def built(run, rules=RULES):
  return run.build(runs.Setup(rules, rules.energy_optimizer(), data=lambda: DATA))


def test_each_method_has_the_negatives_of_its_name():
  """One update of plain SGD moves b by mean(data) − mean(negatives)."""
  rbm = GaussianBernoulliRBM(4)
  x = np.random.default_rng(1).uniform(size=(20, 6)).astype(np.float32)
  params = rbm.init_from_data(jax.random.key(0), x)
  key = jax.random.key(1)
  builds = {run.name: built(run) for run in rbm_runs()}

  def negatives_mean(name):
    algorithm = builds[name]
    state, _ = algorithm.update(key, algorithm.init(key, params, x), x)
    return x.mean(axis=0) - (state.params["params"]["b"] - params["params"]["b"])

  gibbs = rbm.gibbs(key, params, x).mean(axis=0)
  np.testing.assert_allclose(negatives_mean("gibbs"), gibbs, atol=1e-4)
  # antithetic, one step of a score: the noise cancels in the mean
  drift = 0.5 * np.mean([rbm.score(params, p) for p in x], axis=0)
  np.testing.assert_allclose(
    negatives_mean("cd_1_antithetic"), x.mean(axis=0) + drift, atol=1e-4
  )
  kernel = kernels.on_features(
    kernels.rbf("median_no_log"), Partial(rbm.features, params)
  )
  direction = Direction(kernel, regularization=0.1)
  moved = stein_moves(params, rbm.apply, x, direction, step_size=0.5, num_steps=2)
  score = np.mean([rbm.score(params, p) for p in np.asarray(moved)], axis=0)
  np.testing.assert_allclose(
    negatives_mean("stein_cd_refreshed"), moved.mean(axis=0) + 0.5 * score, atol=1e-4
  )
  np.testing.assert_allclose(
    negatives_mean("stein_cd_regularized_persistent"), moved.mean(axis=0), atol=1e-4
  )
  # from the data the contrast is divided by kε
  one_step = dataclasses.replace(RULES, stein_steps=1)
  builds = {run.name: built(run, one_step) for run in rbm_runs()}
  moved = stein_moves(params, rbm.apply, x, direction, step_size=0.5, num_steps=1)
  contrast = x.mean(axis=0) - moved.mean(axis=0)
  np.testing.assert_allclose(
    x.mean(axis=0) - negatives_mean("stein_cd_regularized"), contrast / 0.5, atol=1e-4
  )


@pytest.mark.parametrize("name", ["stein_cd_regularized_persistent", "pcd_1", "pcd_2"])
def test_persistent_methods_keep_their_particles(name):
  rbm = GaussianBernoulliRBM(4)
  x = np.random.default_rng(1).uniform(size=(20, 6)).astype(np.float32)
  (algorithm,) = (built(run) for run in rbm_runs() if run.name == name)
  params = rbm.init(jax.random.key(0), x[0])
  state = algorithm.init(jax.random.key(1), params, x)
  state, _ = algorithm.update(jax.random.key(2), state, x)
  once = np.asarray(state.particles)
  state, _ = algorithm.update(jax.random.key(2), state, 0 * x)
  assert abs(state.particles - once).max() > 1e-3
  assert abs(state.particles.mean()) > 0.01  # they did not start at the new batch


def test_every_method_can_be_built():
  rules = rbm_settings.Rules(langevin_steps=[1])
  found = methods.algorithms(METHODS, GaussianBernoulliRBM(2), rules, data=lambda: DATA)
  assert len(found) == len(METHODS)  # no two have one label


def test_a_whitened_direction_needs_data():
  setup = runs.Setup(RULES, RULES.energy_optimizer())
  (run,) = methods.runs(["mix_stein"], GaussianBernoulliRBM(4), RULES)
  with pytest.raises(ValueError, match="needs data"):
    run.build(setup)


@pytest.mark.parametrize("local", ["stein_cd_whitened", "score_matching"])
def test_the_mixes_are_sums_of_their_parts(local):
  """One update of plain SGD with the weight 2."""
  rbm = GaussianBernoulliRBM(4)
  params = rbm.init_from_data(jax.random.key(0), DATA)
  rules = dataclasses.replace(RULES, local_weight=2.0)

  def moved(name, key):
    (run,) = methods.runs([name], rbm, rules)
    algorithm = built(run, rules)
    state = algorithm.init(key, params, DATA)
    return algorithm.update(key, state, DATA)[0].params["params"]["B"]

  key = jax.random.key(1)
  start = params["params"]["B"]
  name = "mix_stein" if local == "stein_cd_whitened" else "mix_score_matching"
  step = moved(name, key) - moved("chains", key)
  np.testing.assert_allclose(
    step, 2 * (moved(local, key) - start), rtol=1e-3, atol=1e-5
  )
