"""Amortised SVGD and SteinGAN against the chain rule by hand and their limits."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import Direction, generators, kernels, stein_cd, training
from stein_jax.algorithms.stein_gan import (
  AUTHORS_ALIGNMENT,
  AlignmentController,
  amortized_svgd_gradient,
  amortized_svgd_loss,
  stein_gan,
)
from tests import oracles

KEY = jax.random.key(0)
NOISE = np.random.default_rng(0).normal(size=(6, 2))
DATA = np.random.default_rng(1).normal(size=(6, 3)) + 1


def linear(eta, stats, noise, context):
  """x = Wξ + w, and a counter as the statistics."""
  shift = 0.0 if context is None else context[:, None]
  return noise @ eta["W"].T + eta["w"][None] + shift, stats + 1


def linear_params():
  rng = np.random.default_rng(2)
  return {"W": rng.normal(size=(3, 2)), "w": rng.normal(size=3)}


def energy(theta, x, *context):
  level = context[0] if context else 0.0
  return 0.5 * theta["a"] * jnp.sum((x - theta["mean"] - level) ** 2)


def theta():
  return {"a": jnp.asarray(1.3), "mean": jnp.asarray([0.2, -0.4, 0.1])}


def score(x):
  return -1.3 * (x - jnp.asarray([0.2, -0.4, 0.1]))


assert_same = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-12)


def samples_by_hand(eta):
  return NOISE @ eta["W"].T + eta["w"]


@pytest.mark.parametrize("name", ["rbf", "off"])
@pytest.mark.usefixtures("x64")
def test_gradient_is_the_chain_rule_by_hand(name):
  eta = linear_params()
  x = samples_by_hand(eta)
  s = np.array([score(p) for p in x])
  kernel, phi = None, s
  if name == "rbf":
    kernel, phi = kernels.rbf(2.0), oracles.svgd_direction(x, s, *oracles.rbf(2.0))
  got, generated = amortized_svgd_gradient(
    eta, linear, NOISE, score, kernel, generator_stats=jnp.zeros(())
  )
  want = {"W": -phi.T @ NOISE / 6, "w": -phi.mean(axis=0)}
  assert_same(got, want)
  assert_same(generated.samples, x)
  assert_same(generated.scores, s)
  assert_same(generated.direction, phi)
  assert generated.generator_stats == 1


@pytest.mark.usefixtures("x64")
def test_gradient_is_that_of_the_regression_at_its_start():
  eta, step_size = linear_params(), 0.3
  got, generated = amortized_svgd_gradient(
    eta, linear, NOISE, score, kernels.rbf(2.0), generator_stats=jnp.zeros(())
  )
  targets = generated.samples + step_size * generated.direction

  def loss(eta):
    return amortized_svgd_loss(
      eta, linear, NOISE, targets, step_size=step_size, generator_stats=jnp.zeros(())
    )[0]

  assert_same(got, jax.grad(loss)(eta), rtol=1e-8)
  h = 1e-6
  for name in eta:
    for index in np.ndindex(eta[name].shape):
      up, down = ({k: np.array(v) for k, v in eta.items()} for _ in range(2))
      up[name][index] += h
      down[name][index] -= h
      difference = (loss(up) - loss(down)) / (2 * h)
      np.testing.assert_allclose(got[name][index], difference, rtol=1e-5, atol=1e-7)
  by_hand = np.square(generated.samples - targets).sum() / (2 * step_size * 6)
  np.testing.assert_allclose(loss(eta), by_hand)


@pytest.mark.usefixtures("x64")
def test_without_kernel_it_is_ascent_on_log_p():
  eta = linear_params()

  def mean_energy(eta):
    x, _ = linear(eta, 0.0, NOISE, None)
    return jax.vmap(lambda p: energy(theta(), p))(x).mean()

  got, _ = amortized_svgd_gradient(
    eta, linear, NOISE, score, None, generator_stats=jnp.zeros(())
  )
  assert_same(got, jax.grad(mean_energy)(eta))


@pytest.mark.usefixtures("x64")
def test_permuting_the_noise_permutes_the_direction_and_keeps_the_gradient():
  order = np.random.default_rng(3).permutation(6)
  run = lambda noise: amortized_svgd_gradient(  # noqa: E731
    linear_params(), linear, noise, score, kernels.rbf(), generator_stats=jnp.zeros(())
  )
  (gradient, one), (permuted, other) = run(NOISE), run(NOISE[order])
  assert_same(gradient, permuted)
  assert_same(one.direction[order], other.direction)


def gan(**options):
  return stein_gan(
    energy,
    linear,
    lambda key, m: jax.random.normal(key, (m, 2)),
    options.pop("kernel", kernels.rbf(2.0)),
    optax.sgd(0.1),
    optax.sgd(0.2),
    generator_stats=jnp.zeros(()),
    **options,
  )


def start():
  return {"energy": theta(), "generator": jax.tree.map(jnp.asarray, linear_params())}


def energy_gradient_by_hand(x):
  mean = np.array([0.2, -0.4, 0.1])
  return {
    "a": 0.5 * np.square(x - mean).sum(axis=1).mean(),
    "mean": -1.3 * (x - mean).mean(axis=0),
  }


@pytest.mark.parametrize("discount", [0.0, 0.7])
@pytest.mark.usefixtures("x64")
def test_plain_steingan_is_algorithm_2(discount):
  algorithm = gan(discount=discount)
  state = algorithm.init(KEY, start(), DATA)
  new, metrics = algorithm.update(KEY, state, DATA)
  noise = np.asarray(jax.random.normal(jax.random.split(KEY)[0], (6, 2)))
  eta = linear_params()
  x = noise @ eta["W"].T + eta["w"]
  phi = oracles.svgd_direction(x, np.array([score(p) for p in x]), *oracles.rbf(2.0))
  want_eta = {
    "W": eta["W"] + 0.2 * phi.T @ noise / 6,
    "w": eta["w"] + 0.2 * phi.mean(axis=0),
  }
  assert_same(new.params["generator"], want_eta)
  # The negatives are the samples drawn before the generator moved.
  positive, negative = energy_gradient_by_hand(DATA), energy_gradient_by_hand(x)
  for name, before in theta().items():
    gradient = positive[name] - (1 - discount) * negative[name]
    np.testing.assert_allclose(new.params["energy"][name], before - 0.1 * gradient)
  assert new.generator_stats == 1
  assert metrics["discount"] == discount
  assert metrics["mixed"] == 0


@pytest.mark.usefixtures("x64")
def test_with_mix_one_the_energy_follows_stein_cd_alone():
  mixed = gan(mix=1.0, discount=0.7)
  alone = stein_cd(energy, kernels.rbf(2.0), optax.sgd(0.1), step_size=0.1)
  state, only = mixed.init(KEY, start(), DATA), alone.init(KEY, theta(), DATA)
  for step in range(3):
    key, batch = jax.random.key(step), DATA + 0.1 * step
    state, metrics = mixed.update(key, state, batch)
    only, _ = alone.update(key, only, batch)
    assert metrics["mixed"] == 1
  assert_same(state.params["energy"], only.params)
  assert abs(state.params["generator"]["w"] - start()["generator"]["w"]).min() > 1e-3


@pytest.mark.usefixtures("x64")
def test_stein_cd_is_mixed_in_with_the_probability_mix_and_scaled():
  algorithm = gan(mix=0.25, mix_scale=3.0)
  state = algorithm.init(KEY, start(), DATA)
  update = jax.jit(algorithm.update)
  coins = [bool(update(jax.random.key(i), state, DATA)[1]["mixed"]) for i in range(200)]
  assert 25 <= sum(coins) <= 75  # four standard deviations
  alone = stein_cd(energy, kernels.rbf(2.0), optax.sgd(0.3), step_size=0.1)
  want, _ = alone.update(KEY, alone.init(KEY, theta(), DATA), DATA)
  new, _ = update(jax.random.key(coins.index(True)), state, DATA)
  assert_same(new.params["energy"], want.params)
  plain, _ = gan().update(jax.random.key(coins.index(False)), state, DATA)
  new, _ = update(jax.random.key(coins.index(False)), state, DATA)
  assert_same(new.params["energy"], plain.params["energy"])


@pytest.mark.usefixtures("x64")
def test_the_controller_raises_gamma_while_real_energy_is_higher():
  algorithm = gan(discount=AlignmentController(0.6, 0.8))
  state = algorithm.init(KEY, start(), DATA)
  for shift, gamma in ((100.0, 0.8), (0.0, 0.6)):
    _, metrics = algorithm.update(KEY, state, DATA * 0 + shift)
    higher = metrics["energy_data"] > metrics["energy_generated"]
    assert higher == (gamma == 0.8)
    np.testing.assert_allclose(metrics["discount"], gamma)


@pytest.mark.usefixtures("x64")
def test_the_authors_alignment_lowers_gamma_instead():
  algorithm = gan(discount=AUTHORS_ALIGNMENT)
  state = algorithm.init(KEY, start(), DATA)
  for shift, gamma in ((100.0, 0.7), (0.0, 0.9)):
    _, metrics = algorithm.update(KEY, state, DATA * 0 + shift)
    np.testing.assert_allclose(metrics["discount"], gamma)


@pytest.mark.usefixtures("x64")
def test_the_generator_s_moving_average():
  algorithm = gan(average=0.8)
  state = algorithm.init(KEY, start(), DATA)
  want = linear_params()
  for step in range(4):
    state, _ = algorithm.update(jax.random.key(step), state, DATA)
    eta = state.params["generator"]
    want = {name: 0.8 * want[name] + 0.2 * np.asarray(eta[name]) for name in want}
  assert_same(state.generator_average, want)
  assert gan().init(KEY, start(), DATA).generator_average == ()


@pytest.mark.usefixtures("x64")
def test_the_share_of_repulsion_is_reported():
  state = gan().init(KEY, start(), DATA)
  _, metrics = gan(report_repulsion=True).update(KEY, state, DATA)
  noise = np.asarray(jax.random.normal(jax.random.split(KEY)[0], (6, 2)))
  eta = linear_params()
  x = noise @ eta["W"].T + eta["w"]
  s = np.array([score(p) for p in x])
  k = np.exp(-np.square(x[:, None] - x[None]).sum(axis=2) / 2)
  attraction = k @ s / 6
  repulsion = oracles.svgd_direction(x, s, *oracles.rbf(2.0)) - attraction
  norms = np.linalg.norm(attraction), np.linalg.norm(repulsion)
  np.testing.assert_allclose(metrics["repulsion_share"], norms[1] / sum(norms))
  assert "repulsion_share" not in gan().update(KEY, state, DATA)[1]
  without = gan(kernel=None, report_repulsion=True).update(KEY, state, DATA)[1]
  assert without["repulsion_share"] == 0


@pytest.mark.parametrize(
  "kernel",
  [lambda x, s: s, Direction(kernels.rbf(), regularization=0.1)],
  ids=["function", "regularised"],
)
def test_no_share_of_repulsion_where_there_is_none(kernel):
  with pytest.raises(ValueError, match="report_repulsion needs"):
    gan(kernel=kernel, report_repulsion=True)


@pytest.mark.usefixtures("x64")
def test_inner_steps_approach_the_same_targets():
  algorithm = gan(num_inner_steps=3, step_size=0.5)
  new, _ = algorithm.update(KEY, algorithm.init(KEY, start(), DATA), DATA)
  noise = np.asarray(jax.random.normal(jax.random.split(KEY)[0], (6, 2)))
  eta = linear_params()
  x = noise @ eta["W"].T + eta["w"]
  phi = oracles.svgd_direction(x, np.array([score(p) for p in x]), *oracles.rbf(2.0))
  target = x + 0.5 * phi
  for _ in range(3):
    residual = (noise @ eta["W"].T + eta["w"] - target) / (0.5 * 6)
    eta = {
      "W": eta["W"] - 0.2 * residual.T @ noise,
      "w": eta["w"] - 0.2 * residual.sum(axis=0),
    }
  assert_same(new.params["generator"], eta)
  assert new.generator_stats == 3


@pytest.mark.usefixtures("x64")
def test_contexts_reach_generator_energy_and_negatives():
  batch = {"x": DATA, "context": np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])}
  algorithm = gan(kernel=None)
  new, metrics = algorithm.update(KEY, algorithm.init(KEY, start(), batch), batch)
  noise = np.asarray(jax.random.normal(jax.random.split(KEY)[0], (6, 2)))
  eta, level = linear_params(), batch["context"][:, None]
  x = noise @ eta["W"].T + eta["w"] + level
  mean = np.array([0.2, -0.4, 0.1])
  phi = -1.3 * (x - mean - level)
  want = {
    "W": eta["W"] + 0.2 * phi.T @ noise / 6,
    "w": eta["w"] + 0.2 * phi.mean(axis=0),
  }
  assert_same(new.params["generator"], want)
  energies = 0.65 * np.square(x - mean - level).sum(axis=1)
  np.testing.assert_allclose(metrics["energy_generated"], energies.mean())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"mix": 1.5}, "mix must lie"),
    ({"mix_scale": 0.0}, "mix_scale"),
    ({"step_size": -1.0}, "step_size"),
    ({"discount": 1.0}, "discount"),
    ({"discount": AlignmentController(0.5, 1.2)}, "discount"),
    ({"average": 1.0}, "average must lie between 0 and 1"),
    ({"num_inner_steps": 0}, "num_inner_steps"),
  ],
)
def test_numbers_outside_their_range_are_an_error(options, message):
  with pytest.raises(ValueError, match=message):
    gan(**options)


def test_params_of_another_form_are_an_error():
  with pytest.raises(ValueError, match="energy"):
    gan().init(KEY, theta(), DATA)


# ------------------------------------------------------------------ the generator


def test_mnist_generator_has_the_papers_layers():
  generator = generators.MNISTGenerator()
  noise = generators.uniform_noise()(KEY, 4)
  params, stats = jax.eval_shape(lambda: generators.initialize(KEY, generator, noise))
  shapes = sorted(leaf["kernel"].shape for leaf in params.values())
  assert shapes == [(5, 5, 64, 1), (5, 5, 128, 64), (100, 1024), (1024, 6272)]
  assert set(stats) == {"batch_stats"}
  assert abs(noise).max() <= 1
  assert noise.shape == (4, 100)


def test_generator_trains_on_batch_statistics_and_samples_on_running_ones():
  generator = generators.MNISTGenerator(width=1 / 64)
  noise_fn = generators.uniform_noise(5)
  noise = noise_fn(KEY, 50)
  params, stats = generators.initialize(KEY, generator, noise)
  generate = generators.generate_fn(generator)
  samples, new = generate(params, stats, noise, None)
  assert samples.shape == (50, 28, 28, 1)
  assert 0 < samples.min() < samples.max() < 1
  changed = jax.tree.map(lambda a, b: float(abs(a - b).max()), stats, new)
  assert min(jax.tree.leaves(changed)) > 0
  for _ in range(100):
    _, new = generate(params, new, noise, None)
  # The running statistics are now those of the batch, so that both agree.
  np.testing.assert_allclose(
    generators.sample(generator, params, new, noise),
    generate(params, new, noise, None)[0],
    atol=2e-2,
  )
  one = generators.sample(generator, params, new, noise[:1])
  np.testing.assert_allclose(
    one, generators.sample(generator, params, new, noise)[:1], atol=1e-5
  )


@pytest.mark.slow
def test_steingan_with_the_mnist_generator_learns_the_mean_image():
  generator = generators.MNISTGenerator(width=1 / 64)
  noise_fn = generators.uniform_noise(5)
  params, stats = generators.initialize(KEY, generator, noise_fn(KEY, 20))
  target = np.zeros((28, 28, 1), np.float32)
  target[8:20, 8:20] = 1

  def fixed_energy(theta, x):
    return theta * 0 + 0.5 * jnp.sum(jnp.square(x - target))

  algorithm = stein_gan(
    fixed_energy,
    generators.generate_fn(generator),
    noise_fn,
    None,
    optax.sgd(0.0),
    optax.adam(1e-2),
    generator_stats=stats,
  )
  data = np.zeros((40, 28, 28, 1), np.float32)
  fit = training.fit(
    KEY,
    algorithm,
    {"energy": jnp.zeros(()), "generator": params},
    data,
    num_steps=60,
    batch_size=20,
    log_every=10,
    progress=False,
  )
  energies = [row["energy_generated"] for row in fit.history]
  samples, _ = generators.generate_fn(generator)(
    fit.state.params["generator"], fit.state.generator_stats, noise_fn(KEY, 20), None
  )
  error = np.square(np.asarray(samples) - target[None]).sum(axis=(1, 2, 3)).mean() / 2
  assert error < 0.6 * energies[0], (error, energies)
