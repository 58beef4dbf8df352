"""`averaged`: the moving average against its recursion in NumPy."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import (
  averaged,
  kernels,
  learned_stein_discrepancy,
  mix,
  parallel,
  svgd,
)
from stein_jax.training import fit
from tests.algorithms.test_mixing import (
  BATCH,
  DATA,
  KEY,
  NOISE,
  PARAMS,
  REPLAY,
  STEIN,
  energy,
  steps,
)
from tests.training.helpers import assert_same_bits

ADAM = optax.adam(0.1)

RULES = {
  "replay": REPLAY(optimizer=ADAM),
  "noise contrastive": NOISE(optimizer=ADAM),
  "mix": mix({"replay": (REPLAY, 1.0), "stein": (STEIN, 1.0)}, ADAM),
}


@pytest.mark.parametrize("decay", [0.5, 0.999])
@pytest.mark.parametrize("name", RULES)
def test_the_average_is_that_of_numpy_and_the_rule_learns_as_without(name, decay):
  rule = averaged(RULES[name], decay)
  first = rule.init(KEY, PARAMS, BATCH)
  alone = RULES[name].init(KEY, PARAMS, BATCH)
  assert_same_bits(first.inner.params, alone.params)
  mean = jax.tree.map(np.float64, PARAMS)
  both = zip(steps(rule, first, 12), steps(RULES[name], alone, 12))
  for t, ((state, metrics), (want, want_metrics)) in enumerate(both):
    d = min(decay, (1 + t) / (10 + t))
    mean = jax.tree.map(
      lambda m, p, d=d: d * m + (1 - d) * np.float64(p), mean, want.params
    )
    chex.assert_trees_all_close(state.params, mean, rtol=1e-5)
    chex.assert_trees_all_close(metrics, want_metrics, rtol=1e-4, atol=1e-5)
    inner = state.inner
    if hasattr(inner, "particles"):
      assert inner.particles == ()
      inner = inner._replace(particles=state.particles)
    else:
      assert state.particles == ()
    chex.assert_trees_all_close(inner, want, rtol=1e-4, atol=1e-6)
    assert state.step == t + 1


def test_two_networks():
  rule = learned_stein_discrepancy(energy, lambda p, x: p * x, ADAM, ADAM)
  params = {"energy": PARAMS, "critic": jnp.ones(2)}
  averages = averaged(rule, 0.9)
  state = averages.init(KEY, params, BATCH)
  ((state, _),) = steps(averages, state, 1)
  want = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, params, state.inner.params)
  chex.assert_trees_all_close(state.params, want, rtol=1e-6)


def test_fit_evaluates_the_average_and_resumes(tmp_path):
  rule = averaged(RULES["replay"], 0.95)

  def run(num_steps, workdir=None):
    return fit(
      KEY,
      rule,
      PARAMS,
      DATA,
      num_steps=num_steps,
      batch_size=8,
      log_every=4,
      evaluate=lambda state: {"mean": state.params["mean"].sum()},
      workdir=workdir,
      progress=False,
    )

  whole = run(12)
  run(4, tmp_path)
  resumed = run(12, tmp_path)
  assert_same_bits(whole.state, resumed.state)
  assert type(resumed.state) is type(whole.state)
  mean, last = (s.params["mean"].sum() for s in (whole.state, whole.state.inner))
  np.testing.assert_allclose(whole.history[-1]["mean"], mean, rtol=1e-6)
  assert abs(mean - last) > 1e-3


@pytest.mark.usefixtures("x64")
def test_fit_on_a_mesh_is_fit_on_one_device():
  def state(axis_name=None, mesh=None):
    rule = averaged(partial(REPLAY, axis_name=axis_name)(optimizer=ADAM), 0.9)
    params = jax.tree.map(lambda leaf: leaf.astype(float), PARAMS)
    data = DATA.astype(float)
    options = {"num_steps": 6, "batch_size": 8, "mesh": mesh, "progress": False}
    return fit(KEY, rule, params, data, **options).state

  many = state(parallel.AXIS, parallel.make_mesh(4))
  spec = jax.sharding.PartitionSpec(parallel.AXIS)
  assert many.particles.points.sharding.spec == spec
  chex.assert_trees_all_close(parallel.local(many), state(), rtol=1e-9, atol=1e-12)


def test_bad_input():
  with pytest.raises(TypeError, match="algorithm is an optax optimizer"):
    averaged(ADAM, 0.9)
  for decay in (0, 1.0, -0.1, "0.9", None, np.nan):
    with pytest.raises(ValueError, match="decay must lie between 0 and 1, got"):
      averaged(RULES["replay"], decay)
  rule = averaged(svgd(jnp.negative, kernels.rbf(), ADAM), 0.9)
  with pytest.raises(TypeError, match="a NamedTuple with a field params, got"):
    rule.init(KEY, jnp.ones((4, 2)), None)
