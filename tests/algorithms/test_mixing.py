"""`mix`: the gradients of several rules in one optimizer."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import (
  contrastive_divergence,
  denoising_score_matching,
  densities,
  kernels,
  learned_stein_discrepancy,
  maximum_likelihood,
  mix,
  noise_contrastive,
  parallel,
  stein_cd,
  stein_cd_gradient,
  stein_score_matching,
  stein_score_matching_gradient,
  svgd,
)
from stein_jax.training import fit
from tests.training.helpers import assert_same_bits

KEY = jax.random.key(7)
DATA = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32) + 1
BATCH = DATA[:8]


def energy(params, x):
  centred = x - params["mean"]
  return jnp.exp(params["log_precision"]) * centred @ centred / 2


PARAMS = {"mean": jnp.array([0.3, -0.2]), "log_precision": jnp.array(0.1)}

CD = partial(contrastive_divergence, energy, num_steps=2, step_size=0.1)
REPLAY = partial(CD, start="replay", buffer_size=16, restart_probability=0.2)
STEIN = partial(stein_cd, energy, kernels.rbf(1.5), step_size=0.1)
MATCHING = partial(stein_score_matching, energy, kernels.rbf(1.5))
NOISE = partial(
  noise_contrastive,
  energy,
  densities.gaussian(np.zeros(2), width=1.5),
  log_partition_optimizer=optax.adam(0.1),
)
RULES = {
  "cd": CD,
  "replay": REPLAY,
  "persistent": partial(CD, persistent=True),
  "stein": STEIN,
  "denoising": partial(denoising_score_matching, energy, sigma=0.4),
  "noise contrastive": NOISE,
}


def steps(rule, state, num_steps=4):
  update = jax.jit(rule.update)
  for t in range(num_steps):
    state, metrics = update(jax.random.key(100 + t), state, BATCH)
    yield state, metrics


@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_one_rule_of_weight_one_is_that_rule(name, draw):
  optimizer = optax.adam(0.1)
  alone = RULES[name](optimizer=optimizer)
  mixed = mix({"only": (RULES[name], 1.0)}, optimizer, draw=draw)
  want = alone.init(jax.random.fold_in(KEY, 0), PARAMS, BATCH)
  update_alone = jax.jit(alone.update)
  first = mixed.init(KEY, PARAMS, BATCH)
  for t, (got, metrics) in enumerate(steps(mixed, first)):
    key = jax.random.fold_in(jax.random.key(100 + t), 0)
    want, want_metrics = update_alone(key, want, BATCH)
    chex.assert_trees_all_close(got.params, want.params, rtol=1e-6)
    chex.assert_trees_all_close(got.opt_state, want.opt_state, rtol=1e-5)
    assert got.step == t + 1
    for metric, value in want_metrics.items():
      np.testing.assert_allclose(metrics[f"only/{metric}"], value, rtol=1e-5)
    own = want._asdict()
    if "particles" in own:
      chex.assert_trees_all_close(got.particles["only"], own["particles"], rtol=1e-6)
    else:
      assert got.particles == {}
    for field in own.keys() - {"params", "opt_state", "particles"}:
      chex.assert_trees_all_close(
        getattr(got.parts["only"], field), own[field], rtol=1e-5
      )


@pytest.mark.usefixtures("x64")
def test_the_sum_is_that_of_the_weighted_gradients():
  params = jax.tree.map(lambda leaf: leaf.astype(float), PARAMS)
  x = BATCH.astype(np.float64)
  rule = mix({"a": (STEIN, 0.7), "b": (MATCHING, 2.5)}, optax.sgd(1.0))
  state, metrics = rule.update(KEY, rule.init(KEY, params, x), x)
  kernel = kernels.rbf(1.5)
  of_a = stein_cd_gradient(params, energy, x, kernel, step_size=0.1)
  of_b = stein_score_matching_gradient(params, energy, x, kernel)
  want = jax.tree.map(lambda p, a, b: p - 0.7 * a - 2.5 * b, params, of_a, of_b)
  chex.assert_trees_all_close(state.params, want, rtol=1e-12)
  total = optax.tree.norm(jax.tree.map(jnp.subtract, params, want))
  np.testing.assert_allclose(metrics["gradient_norm"], total, rtol=1e-12)
  np.testing.assert_allclose(metrics["a/gradient_norm"], optax.tree.norm(of_a))
  assert metrics.keys() == {
    *("a/loss", "a/gradient_norm", "b/loss", "b/gradient_norm", "gradient_norm")
  }


def test_weights_follow_schedules_of_the_step():
  ramp = optax.linear_schedule(0.0, 1.0, 2)
  rule = mix({"a": (STEIN, lambda step: 1 - ramp(step)), "b": (MATCHING, ramp)}, SGD)
  state = rule.init(KEY, PARAMS, BATCH)
  kernel = kernels.rbf(1.5)
  for weight, (after, _) in zip((0.0, 0.5, 1.0, 1.0), steps(rule, state)):
    of_a = stein_cd_gradient(state.params, energy, BATCH, kernel, step_size=0.1)
    of_b = stein_score_matching_gradient(state.params, energy, BATCH, kernel)
    want = jax.tree.map(
      lambda p, a, b, w=weight: p - 0.1 * ((1 - w) * a + w * b),
      state.params,
      of_a,
      of_b,
    )
    chex.assert_trees_all_close(after.params, want, rtol=1e-5)
    state = after


SGD = optax.sgd(0.1)


def test_drawn_rules_take_turns_and_the_others_rest():
  rule = mix({"replay": (REPLAY, 1.0), "noise": (NOISE, 3.0)}, SGD, draw=True)
  state = rule.init(KEY, PARAMS, BATCH)
  counts = {"replay": 0, "noise": 0}
  for after, metrics in steps(rule, state, 200):
    (name,) = (n for n in counts if metrics[f"{n}/drawn"] == 1)
    other = "noise" if name == "replay" else "replay"
    assert metrics[f"{other}/drawn"] == metrics[f"{other}/loss"] == 0
    assert metrics[f"{name}/loss"] != 0
    assert metrics["gradient_norm"] == metrics[f"{name}/gradient_norm"] > 0
    if name == "replay":
      assert_same_bits(after.parts["noise"], state.parts["noise"])
      assert not np.array_equal(
        after.particles["replay"].points, state.particles["replay"].points
      )
    else:
      assert_same_bits(after.particles, state.particles)
      part = after.parts["noise"]
      assert part.log_partition != state.parts["noise"].log_partition
    counts[name] += 1
    state = after
  # 150 ± 6.1 of 200: four standard deviations
  assert abs(counts["noise"] - 150) < 25


def test_the_step_of_a_drawn_rule_is_its_own():
  mixed = mix({"a": (STEIN, 0.5), "b": (MATCHING, 0.1)}, SGD, draw=True)
  state = mixed.init(KEY, PARAMS, BATCH)
  seen = set()
  for after, metrics in steps(mixed, state, 20):
    name = "a" if metrics["a/drawn"] else "b"
    alone = {"a": STEIN, "b": MATCHING}[name](optimizer=SGD)
    own = alone.init(KEY, state.params, BATCH)
    want, _ = alone.update(KEY, own, BATCH)
    chex.assert_trees_all_close(after.params, want.params, rtol=1e-5, atol=1e-6)
    state = after
    seen.add(name)
  assert seen == {"a", "b"}


def test_a_weight_of_zero_is_never_drawn():
  weights = {"a": (STEIN, 0.0), "b": (MATCHING, optax.constant_schedule(0.2))}
  rule = mix(weights, SGD, draw=True)
  for _, metrics in steps(rule, rule.init(KEY, PARAMS, BATCH), 20):
    assert metrics["b/drawn"] == 1


def test_log_z_within_a_mix_tends_to_the_truth():
  rule = mix(
    {"noise": (partial(NOISE, num_noise=5), 1.0), "cd": (CD, 0.5)}, optax.adam(0.02)
  )
  data = densities.gaussian(np.ones(2), width=0.7).sample(jax.random.key(3), 2000)
  state, _ = fit(KEY, rule, PARAMS, data, num_steps=800, batch_size=200, progress=False)
  want = np.log(2 * np.pi) - state.params["log_precision"]
  np.testing.assert_allclose(state.parts["noise"].log_partition, want, atol=0.1)
  np.testing.assert_allclose(state.params["mean"], 1, atol=0.1)
  np.testing.assert_allclose(np.exp(-state.params["log_precision"] / 2), 0.7, atol=0.1)


def test_a_mix_of_a_mix():
  inner = partial(mix, {"stein": (STEIN, 1.0), "matching": (MATCHING, 2.0)})
  nested = mix({"inner": (inner, 0.5), "again": (STEIN, 1.0)}, SGD)
  flat = mix({"stein": (STEIN, 1.5), "matching": (MATCHING, 1.0)}, SGD)
  states = (rule.init(KEY, PARAMS, BATCH) for rule in (nested, flat))
  both = (steps(rule, state) for rule, state in zip((nested, flat), states))
  for (got, metrics), (want, _) in zip(*both):
    chex.assert_trees_all_close(got.params, want.params, rtol=1e-5, atol=1e-6)
    assert metrics["inner/stein/loss"] == metrics["again/loss"]


@pytest.mark.parametrize("draw", [False, True])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, draw):
  rule = mix({"r": (REPLAY, 1.0), "n": (NOISE, 0.5)}, optax.adam(0.05), draw=draw)

  def run(num_steps, workdir=None):
    return fit(
      KEY,
      rule,
      PARAMS,
      DATA,
      num_steps=num_steps,
      batch_size=8,
      log_every=4,
      workdir=workdir,
      progress=False,
    )

  whole = run(12)
  run(4, tmp_path)
  resumed = run(12, tmp_path)
  assert type(resumed.state) is type(whole.state)
  assert_same_bits(whole.state, resumed.state)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("draw", [False, True])
def test_fit_on_a_mesh_is_fit_on_one_device(draw):
  def states(axis_name=None, mesh=None):
    rules = {
      name: (partial(rule, axis_name=axis_name), 1.0)
      for name, rule in {"replay": REPLAY, "stein": STEIN, "noise": NOISE}.items()
    }
    rule = mix(rules, optax.adam(0.05), draw=draw)
    params = jax.tree.map(lambda leaf: leaf.astype(float), PARAMS)
    return fit(
      KEY,
      rule,
      params,
      DATA.astype(float),
      num_steps=6,
      batch_size=8,
      mesh=mesh,
      progress=False,
    ).state

  many = states(parallel.AXIS, parallel.make_mesh(4))
  points = many.particles["replay"].points
  assert points.sharding.spec == jax.sharding.PartitionSpec(parallel.AXIS)
  chex.assert_trees_all_close(parallel.local(many), states(), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------- bad input


def of_weight(weight):
  return {"a": (STEIN, weight)}


def log_z(params):
  return params["log_precision"]


BAD = {
  "no dict": ([(CD, 1.0)], TypeError, r"rules must be a dict {name: \(rule, weight\)}"),
  "empty": ({}, TypeError, "of at least one rule"),
  "names": ({CD: (CD, 1.0)}, TypeError, "names of rules must be strings"),
  "no pair": ({"a": CD}, TypeError, r"rules\['a'\] must be a pair \(rule, weight\)"),
  "an algorithm as the pair": (
    {"a": CD(optimizer=SGD)},
    TypeError,
    r"rules\['a'\] must be a pair",
  ),
  "an algorithm": (
    {"a": (CD(optimizer=SGD), 1.0)},
    TypeError,
    "the rule 'a' must be a function of an optimizer.*functools.partial",
  ),
  "no argument": (
    {"a": (lambda o: CD(optimizer=o), 1.0)},
    TypeError,
    "passed as the argument `optimizer`",
  ),
  "arguments missing": (
    {"a": (partial(contrastive_divergence, energy), 1.0)},
    TypeError,
    "the rule 'a' must be a function of an optimizer",
  ),
  "returns": (
    {"a": (lambda optimizer: None, 1.0)},
    TypeError,
    "the rule 'a' must be .*; it returned None",
  ),
  "negative": (of_weight(-1.0), ValueError, "weight of 'a' must be a finite number of"),
  "nan": (of_weight(np.nan), ValueError, "weight of 'a' must be a finite number of"),
  "text": (of_weight("1"), ValueError, "weight of 'a' must be a finite number of"),
  "schedule": (of_weight(lambda: 1.0), TypeError, r"a function .*\(step\)"),
  "zeros": (of_weight(0), ValueError, "at least one rule must have a weight above 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rules(name):
  rules, error, message = BAD[name]
  with pytest.raises(error, match=message):
    mix(rules, SGD)


def test_bad_options():
  with pytest.raises(TypeError, match="optimizer must be an optax optimizer"):
    mix(of_weight(1.0), 0.1)
  with pytest.raises(TypeError, match="draw must be True or False"):
    mix(of_weight(1.0), SGD, draw="yes")


def test_rules_without_the_same_parameters():
  critic = partial(
    learned_stein_discrepancy, energy, lambda p, x: p * x, critic_optimizer=SGD
  )
  rule = mix({"critic": (critic, 1.0)}, SGD)
  params = {"energy": PARAMS, "critic": jnp.ones(2)}
  with pytest.raises(ValueError, match="'critic' does not give its optimizer all of"):
    rule.init(KEY, params, BATCH)
  rule = mix({"svgd": (partial(svgd, jnp.negative, kernels.rbf()), 1.0)}, SGD)
  with pytest.raises(TypeError, match="NamedTuple with the fields params and opt_st"):
    rule.init(KEY, jnp.ones((8, 2)), BATCH)
  exact = partial(maximum_likelihood, energy, log_z)
  with pytest.raises(TypeError, match="params must be an array"):
    mix({"exact": (exact, 1.0)}, SGD).init(KEY, "params", BATCH)
