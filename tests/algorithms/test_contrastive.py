"""The contrastive loss, CD-k and maximum likelihood against gradients by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from stein_jax import (
  PersistentState,
  contrastive_divergence,
  contrastive_loss,
  learn_from_negatives,
  maximum_likelihood,
  negative_log_likelihood,
  sampled_maximum_likelihood,
  samplers,
)
from tests import oracles

KEY = jax.random.key(0)
RATE = 0.3
POSITIVES = np.random.default_rng(0).normal(size=(6, 2)) + 1.5
NEGATIVES = np.random.default_rng(1).normal(size=(4, 2))


def energy(params, x):
  """A Gaussian's: ½ exp(λ) ‖x − μ‖²."""
  squared = jnp.sum(jnp.square(x - params["mean"]))
  return 0.5 * jnp.exp(params["log_precision"]) * squared


def log_partition(params):
  d = params["mean"].size
  return 0.5 * d * (jnp.log(2 * jnp.pi) - params["log_precision"])


def gaussian(mean=(0.4, -0.7), log_precision=0.6):
  return {"mean": jnp.array(mean), "log_precision": jnp.float32(log_precision)}


def energy_gradient(params, x):
  """The mean over x of ∂E/∂μ = −exp(λ)(x − μ) and of ∂E/∂λ = E, in NumPy."""
  mean, precision = np.asarray(params["mean"]), np.exp(params["log_precision"])
  centred = np.asarray(x) - mean[None]
  energies = 0.5 * precision * np.square(centred).sum(axis=1)
  return {"mean": -precision * centred.mean(axis=0), "log_precision": energies.mean()}


def contrast(params, positives, negatives, weight=1.0):
  positive, negative = (energy_gradient(params, x) for x in (positives, negatives))
  return {name: positive[name] - weight * negative[name] for name in positive}


def assert_same(got, expected, rtol=1e-4, atol=1e-5):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), got, expected)


def assert_one_step(new, old, gradient):
  """optax.sgd(RATE) moves by −RATE · gradient."""
  expected = {name: np.asarray(old[name]) - RATE * gradient[name] for name in old}
  assert_same(new, expected)


def langevin_by_hand(key, x, params, num_steps, step_size):
  mean, precision = np.asarray(params["mean"]), np.exp(params["log_precision"])
  x = np.asarray(x, np.float64)
  for step_key in jax.random.split(key, num_steps):
    z = oracles.langevin_noise(step_key, len(x), x.shape[1:])
    x = x - step_size * precision * (x - mean[None]) + np.sqrt(2 * step_size) * z
  return x


# ------------------------------------------------------------ contrastive loss


@settings(deadline=None, max_examples=6, database=None)
@given(
  event=st.lists(st.integers(1, 3), max_size=3).map(tuple),
  m=st.integers(1, 4),
  n=st.integers(1, 4),
  discount=st.floats(0, 1),
)
def test_contrastive_loss_is_a_difference_of_mean_energies(event, m, n, discount):
  rng = np.random.default_rng(0)
  mean, positives = rng.normal(size=event), rng.normal(size=(m, *event))
  negatives = rng.normal(size=(n, *event))

  def mean_energy(x):
    return np.mean([0.5 * np.exp(0.6) * np.sum((p - mean) ** 2) for p in x])

  params = {"mean": jnp.asarray(mean), "log_precision": 0.6}
  got = contrastive_loss(params, energy, positives, negatives, discount=discount)
  expected = mean_energy(positives) - (1 - discount) * mean_energy(negatives)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("discount", [0.0, 0.7])
def test_gradient_of_the_contrastive_loss_in_closed_form(discount):
  got = jax.grad(contrastive_loss)(
    gaussian(), energy, POSITIVES, NEGATIVES, discount=discount
  )
  assert_same(got, contrast(gaussian(), POSITIVES, NEGATIVES, weight=1 - discount))


def test_negatives_are_constants():
  """Even if they depend on the parameters, as after SVGD or a generator."""

  def loss(params):
    return contrastive_loss(params, energy, POSITIVES, NEGATIVES + params["mean"][None])

  frozen = NEGATIVES + np.asarray(gaussian()["mean"])[None]
  assert_same(jax.grad(loss)(gaussian()), contrast(gaussian(), POSITIVES, frozen))
  through = jax.grad(
    lambda scale: contrastive_loss(gaussian(), energy, POSITIVES, scale * NEGATIVES)
  )
  assert through(2.0) == 0


def test_contrastive_loss_pairs_points_with_their_contexts():
  def conditional(params, x, context):
    return context["weight"] * jnp.sum(jnp.square(x - params[context["label"]]))

  centres = np.random.default_rng(2).normal(size=(3, 2))
  rng = np.random.default_rng(3)

  def batch(x):
    weight, label = rng.uniform(size=len(x)), rng.integers(0, 3, len(x))
    return {"x": x, "context": {"weight": weight, "label": label}}

  def mean_energy(batch):
    x, (weight, label) = batch["x"], batch["context"].values()
    return np.mean(weight * np.square(x - centres[label]).sum(axis=1))

  positives, negatives = batch(POSITIVES), batch(NEGATIVES)
  got = contrastive_loss(
    jnp.asarray(centres), conditional, positives, negatives, discount=0.2
  )
  expected = mean_energy(positives) - 0.8 * mean_energy(negatives)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_points_may_be_trees():
  def tree_energy(scale, point):
    return scale * jnp.sum(point["a"]) + point["b"] ** 2

  a, b = np.ones((2, 3)), np.array([1.0, 2.0])
  positives = {"a": a, "b": b}
  negatives = {"a": 2 * a[:1], "b": b[1:]}
  got = contrastive_loss(5.0, tree_energy, positives, negatives)
  np.testing.assert_allclose(got, (15 + 2.5) - (30 + 4))


def test_contrastive_loss_under_jit_and_vmap():
  many = jax.vmap(gaussian)(jnp.arange(6.0).reshape(3, 2), jnp.array([0.0, 0.5, 1.0]))

  def loss(params, discount):
    return contrastive_loss(params, energy, POSITIVES, NEGATIVES, discount=discount)

  discounts = jnp.array([0.0, 0.3, 0.6])
  got = jax.jit(jax.vmap(loss))(many, discounts)
  for i in range(3):
    one = {name: leaf[i] for name, leaf in many.items()}
    np.testing.assert_allclose(got[i], loss(one, discounts[i]), rtol=1e-5)


def test_positives_and_negatives_of_different_shape_are_an_error():
  message = r"positives and one of negatives .* shape, got \(2,\) and \(2, 1\)"
  with pytest.raises(ValueError, match=message):
    contrastive_loss(gaussian(), energy, POSITIVES, NEGATIVES[:, :, None])
  labelled = {"x": POSITIVES, "context": np.zeros(6)}
  with pytest.raises(ValueError, match=r"same shape, got \(2,\) and \(3,\)"):
    contrastive_loss(gaussian(), energy, labelled, np.ones((4, 3)))


def test_an_energy_that_is_not_a_scalar_is_an_error():
  def vector_energy(params, x):
    return x - params["mean"]

  message = r"must return a scalar.* shape \(2,\) it returned .*\(2,\)"
  with pytest.raises(ValueError, match=message):
    contrastive_loss(gaussian(), vector_energy, POSITIVES, NEGATIVES)
  for metropolis in (False, True):  # both samplers give the library's message
    algorithm = contrastive_divergence(
      vector_energy, optax.sgd(RATE), num_steps=1, step_size=0.1, metropolis=metropolis
    )
    state = algorithm.init(KEY, gaussian(), POSITIVES)
    with pytest.raises(ValueError, match=message):
      algorithm.update(KEY, state, POSITIVES)


# ---------------------------------------------------------- maximum likelihood


def test_negative_log_likelihood_equals_scipy():
  sd = np.exp(-0.3)
  expected = -scipy.stats.norm.logpdf(POSITIVES, [[0.4, -0.7]], sd).sum(axis=1).mean()
  got = negative_log_likelihood(gaussian(), energy, POSITIVES, log_partition)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def likelihood_gradient(params, x):
  """∂/∂μ and ∂/∂λ of ½ exp(λ) mean ‖x − μ‖² − ½ dλ."""
  gradient = energy_gradient(params, x)
  gradient["log_precision"] -= x.shape[1] / 2
  return gradient


def test_maximum_likelihood_descends_the_gradient_in_closed_form():
  algorithm = maximum_likelihood(energy, log_partition, optax.sgd(RATE))
  state = algorithm.init(KEY, gaussian(), POSITIVES)
  new, metrics = algorithm.update(KEY, state, POSITIVES)
  gradient = likelihood_gradient(gaussian(), POSITIVES)
  assert_one_step(new.params, gaussian(), gradient)
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values()))
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
  loss = negative_log_likelihood(gaussian(), energy, POSITIVES, log_partition)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def test_maximum_likelihood_in_a_scan_ends_at_the_sample_moments():
  algorithm = maximum_likelihood(energy, log_partition, optax.sgd(RATE))
  state = algorithm.init(KEY, gaussian(), POSITIVES)

  @jax.jit
  def train(state):
    def step(state, key):
      return algorithm.update(key, state, jnp.asarray(POSITIVES))

    return jax.lax.scan(step, state, jax.random.split(KEY, 300))

  state, metrics = train(state)
  variance = np.square(POSITIVES - POSITIVES.mean(axis=0)[None]).mean()
  expected = {"mean": POSITIVES.mean(axis=0), "log_precision": -np.log(variance)}
  assert_same(state.params, expected, rtol=1e-3)
  assert np.all(np.diff(metrics["loss"]) < 1e-6)


def estimate(key, params, n=50):
  """log Z by importance sampling from N(0, 4 I)."""
  x = 2 * jax.random.normal(key, (n, 2))
  log_q = jax.scipy.stats.norm.logpdf(x, 0, 2).sum(axis=1)
  log_weights = -jax.vmap(lambda x: energy(params, x))(x) - log_q
  return jax.nn.logsumexp(log_weights) - jnp.log(n)


def test_an_estimate_of_log_z_has_the_gradient_of_weighted_energies():
  """∇ log Ẑ = −Σⱼ wⱼ ∇E(xⱼ), with the normalised weights."""
  key, params = jax.random.key(3), gaussian()
  x = 2 * np.asarray(jax.random.normal(key, (50, 2)))
  mean, precision = np.asarray(params["mean"]), np.exp(params["log_precision"])
  energies = 0.5 * precision * np.square(x - mean[None]).sum(axis=1)
  weights = np.exp(-energies) / scipy.stats.norm.pdf(x, 0, 2).prod(axis=1)
  loss = energy_gradient(params, POSITIVES)["log_precision"] + np.log(weights.mean())
  weights /= weights.sum()
  gradient = energy_gradient(params, POSITIVES)
  gradient["mean"] = gradient["mean"] + precision * weights @ (x - mean[None])
  gradient["log_precision"] -= weights @ energies
  algorithm = maximum_likelihood(energy, estimate, optax.sgd(RATE))
  state = algorithm.init(KEY, params, POSITIVES)
  new, metrics = algorithm.update(key, state, POSITIVES)
  assert_one_step(new.params, params, gradient)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)
  got = negative_log_likelihood(params, energy, POSITIVES, estimate, key=key)
  np.testing.assert_allclose(got, loss, rtol=1e-4)


def test_a_log_z_takes_a_key_if_it_must_be_given_two_arguments():
  value = negative_log_likelihood(gaussian(), energy, POSITIVES, log_partition)
  for fn in (
    lambda params, scale=1.0: scale * log_partition(params),
    lambda *params: log_partition(*params),
    jax.tree_util.Partial(lambda scale, params: scale * log_partition(params), 1.0),
    jax.jit(log_partition),
    lambda key, params: log_partition(params) + 0 * jax.random.normal(key),
  ):
    got = negative_log_likelihood(gaussian(), energy, POSITIVES, fn, key=KEY)
    np.testing.assert_allclose(got, value, rtol=1e-6)


def exact_samples(key, params, n):
  z = jax.random.normal(key, (n, params["mean"].size))
  return params["mean"].reshape(1, -1) + jnp.exp(-params["log_precision"] / 2) * z


def test_sampled_maximum_likelihood_uses_the_samples_as_negatives():
  algorithm = sampled_maximum_likelihood(energy, exact_samples, optax.sgd(RATE))
  state = algorithm.init(KEY, gaussian(), POSITIVES)
  key = jax.random.key(5)
  new, metrics = algorithm.update(key, state, POSITIVES)
  negatives = exact_samples(key, gaussian(), 6)
  assert_one_step(new.params, gaussian(), contrast(gaussian(), POSITIVES, negatives))
  expected = contrastive_loss(gaussian(), energy, POSITIVES, negatives)
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_sampled_maximum_likelihood_is_unbiased_also_for_images():
  """Samples come flat, [n, d]; points of the batch are [2, 1]."""
  images, n = POSITIVES.reshape(6, 2, 1), 4_000
  params = gaussian(mean=[[0.4], [-0.7]])
  algorithm = sampled_maximum_likelihood(energy, exact_samples, optax.sgd(1.0))
  state = algorithm.init(KEY, params, images)

  @jax.jit
  @jax.vmap
  def one_step(key):
    return algorithm.update(key, state, images)[0].params

  new = one_step(jax.random.split(KEY, n))
  gradient = jax.tree.map(lambda old, new: np.asarray(old)[None] - new, params, new)
  expected = likelihood_gradient(gaussian(), POSITIVES)
  for name, draws in gradient.items():
    draws = np.asarray(draws, np.float64).reshape(n, -1)
    standard_error = draws.std(axis=0) / np.sqrt(n)
    bias = draws.mean(axis=0) - np.ravel(expected[name])
    assert np.all(np.abs(bias) < 5 * standard_error), name
    assert np.all(standard_error > 0)


@pytest.mark.parametrize("n", [1, 3, 9])
def test_another_number_of_samples_than_requested_is_an_error(n):
  """An index past the end would silently repeat the last sample."""
  algorithm = sampled_maximum_likelihood(
    energy, lambda key, params, _: exact_samples(key, params, n), optax.sgd(RATE)
  )
  state = algorithm.init(KEY, gaussian(), POSITIVES)
  with pytest.raises(ValueError, match=rf"sample_fn.* 6 samples, got {n}"):
    algorithm.update(KEY, state, POSITIVES)


# ------------------------------------------------------- contrastive divergence


def test_cd_descends_the_contrast_of_the_data_and_its_chain():
  algorithm = contrastive_divergence(
    energy, optax.sgd(RATE), num_steps=3, step_size=0.2
  )
  state = algorithm.init(KEY, gaussian(), POSITIVES)
  key = jax.random.key(3)
  new, metrics = algorithm.update(key, state, POSITIVES)
  negatives = langevin_by_hand(key, POSITIVES, gaussian(), 3, 0.2)
  gradient = contrast(gaussian(), POSITIVES, negatives)
  assert_one_step(new.params, gaussian(), gradient)
  # E = ∂E/∂λ: the loss is one component of the gradient.
  np.testing.assert_allclose(metrics["loss"], gradient["log_precision"], rtol=1e-4)
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradient.values()))
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)


def test_cd_starts_at_each_batch_and_persistent_cd_at_its_last_points():
  batches = [POSITIVES, POSITIVES[::-1] * 2 - 1]
  keys = jax.random.split(jax.random.key(4), 2)
  for persistent in (False, True):
    algorithm = contrastive_divergence(
      energy, optax.sgd(RATE), num_steps=2, step_size=0.2, persistent=persistent
    )
    state, chains = algorithm.init(KEY, gaussian(), batches[0]), batches[0]
    for key, batch in zip(keys, batches):
      old = state.params
      chains = langevin_by_hand(key, chains if persistent else batch, old, 2, 0.2)
      state, metrics = algorithm.update(key, state, batch)
      gradient = contrast(old, batch, chains)
      assert_one_step(state.params, old, gradient)
      np.testing.assert_allclose(metrics["loss"], gradient["log_precision"], rtol=1e-3)
      if persistent:
        np.testing.assert_allclose(state.particles, chains, rtol=1e-4, atol=1e-5)


def test_metropolis_draws_negatives_by_mala_from_minus_the_energy():
  params = gaussian(log_precision=2.0)
  algorithm = contrastive_divergence(
    energy, optax.sgd(RATE), num_steps=4, step_size=0.2, metropolis=True
  )
  key = jax.random.key(6)
  state = algorithm.init(KEY, params, POSITIVES)
  new, metrics = algorithm.update(key, state, POSITIVES)
  chain = samplers.mala(
    key, POSITIVES, lambda x: -energy(params, x), num_steps=4, step_size=0.2
  )
  assert 0.1 < chain.acceptance_rate < 0.9
  np.testing.assert_allclose(metrics["acceptance_rate"], chain.acceptance_rate)
  assert_one_step(new.params, params, contrast(params, POSITIVES, chain.particles))


@pytest.mark.parametrize(
  ("persistent", "metropolis"), [(False, False), (True, False), (True, True)]
)
def test_cd_in_a_scan_finds_the_mean_of_the_data(persistent, metropolis):
  """A mean under CD-1 is an AR(1) process about the sample mean, of known variance.

  With ε = ½ and m points: μ ← μ + r [½ (x̄ − μ) − z̄], z̄ ~ N(0, 1/m).
  """
  m, rate, num_steps = 400, 0.1, 400
  data = np.random.default_rng(7).normal(size=(m, 2)) + np.array([[3.0, -2.0]])
  algorithm = contrastive_divergence(
    lambda mean, x: 0.5 * jnp.sum(jnp.square(x - mean)),
    optax.sgd(rate),
    num_steps=1,
    step_size=0.5,
    persistent=persistent,
    metropolis=metropolis,
  )
  state = algorithm.init(KEY, jnp.zeros(2), jnp.asarray(data))

  @jax.jit
  def train(state):
    def step(state, key):
      state, _ = algorithm.update(key, state, jnp.asarray(data))
      return state, state.params

    return jax.lax.scan(step, state, jax.random.split(KEY, num_steps))[1]

  late = np.asarray(train(state))[num_steps // 2 :]
  sd = rate / np.sqrt(m) / np.sqrt(1 - (1 - rate / 2) ** 2)
  # The average over 200 steps, correlated over about 1/(rate/2) = 20 steps each way.
  error = late.mean(axis=0) - data.mean(axis=0)
  assert np.all(np.abs(error) < 5 * 2 * sd * np.sqrt(2 * 20 / 200))
  if not persistent and not metropolis:
    assert 0.5 * sd < np.sqrt(np.mean(late.var(axis=0))) < 1.5 * sd


def test_cd_moves_each_point_in_its_own_context():
  def conditional(means, x, label):
    return 0.5 * jnp.sum(jnp.square(x - means[label]))

  means = jnp.array([[0.0, 0.0], [9.0, 9.0], [-9.0, 5.0]])
  labels = np.array([2, 0, 1, 1, 2, 2])
  batch = {"x": POSITIVES, "context": labels}
  key = jax.random.key(8)
  z = oracles.langevin_noise(jax.random.split(key, 1)[0], 6, (2,))
  drift = -0.1 * (POSITIVES - np.asarray(means)[labels])
  moved = POSITIVES + drift + np.sqrt(0.2) * z
  expected = np.array(means)
  for label in range(3):  # ∂/∂μ_c: −Σ (x − x')/m over the points of class c
    change = (POSITIVES - moved)[labels == label].sum(axis=0) / 6
    expected[label] += RATE * change
  for persistent in (False, True):
    algorithm = contrastive_divergence(
      conditional, optax.sgd(RATE), num_steps=1, step_size=0.1, persistent=persistent
    )
    state = algorithm.init(KEY, means, batch)
    new, _ = algorithm.update(key, state, batch)
    np.testing.assert_allclose(new.params, expected, rtol=1e-4, atol=1e-5)


def test_persistent_chains_with_a_batch_of_another_size_are_an_error():
  algorithm = contrastive_divergence(
    energy, optax.sgd(RATE), num_steps=1, step_size=0.1, persistent=True
  )
  state = algorithm.init(KEY, gaussian(), POSITIVES)
  with pytest.raises(ValueError, match=r"batch and the chains .*\(4, 2\) and \(6, 2\)"):
    algorithm.update(KEY, state, NEGATIVES)


@pytest.mark.parametrize("step_size", [0.0, -1.0, np.nan])
def test_a_cd_step_size_that_is_not_above_zero_is_an_error(step_size):
  with pytest.raises(ValueError, match="step_size must be a finite number above 0"):
    contrastive_divergence(energy, optax.sgd(1.0), num_steps=1, step_size=step_size)


@pytest.mark.parametrize("num_steps", [0, 2.5])
def test_a_number_of_cd_steps_below_one_is_an_error(num_steps):
  with pytest.raises(ValueError, match=f"integer of at least 1, got {num_steps}"):
    contrastive_divergence(energy, optax.sgd(1.0), num_steps=num_steps, step_size=0.1)


# ----------------------------------------------------------------- compilation


@pytest.mark.parametrize(
  "build",
  [
    lambda e, o: contrastive_divergence(e, o, num_steps=2, step_size=0.1),
    lambda e, o: contrastive_divergence(
      e, o, num_steps=2, step_size=0.1, metropolis=True
    ),
    lambda e, o: contrastive_divergence(
      e, o, num_steps=2, step_size=0.1, persistent=True
    ),
    lambda e, o: maximum_likelihood(e, log_partition, o),
    lambda e, o: sampled_maximum_likelihood(e, exact_samples, o),
  ],
  ids=["cd", "metropolis", "persistent", "ml", "sampled_ml"],
)
def test_eager_updates_are_traced_once(build):
  num_traces = 0

  def counted(params, x):
    nonlocal num_traces
    num_traces += 1
    return energy(params, x)

  algorithm = build(counted, optax.sgd(RATE))
  state = algorithm.init(KEY, gaussian(), POSITIVES)
  state, _ = algorithm.update(KEY, state, POSITIVES)
  after_one = num_traces
  for key in jax.random.split(KEY, 2):
    state, _ = algorithm.update(key, state, POSITIVES)
  assert num_traces == after_one


def test_persistent_chains_keep_the_context_they_began_with():
  """A chain at label 1 stays a negative of label 1, whatever the next labels are."""

  def energy_fn(params, x, context):
    return 0.5 * jnp.square(x - params * context).sum()

  optimizer = optax.sgd(0.0)
  algorithm = contrastive_divergence(
    energy_fn, optimizer, num_steps=200, step_size=0.1, persistent=True
  )
  first = {"x": jnp.zeros((4, 1)), "context": jnp.array([1.0, -1.0, 1.0, -1.0])}
  other = {"x": jnp.zeros((4, 1)), "context": -first["context"]}
  state = algorithm.init(jax.random.key(0), jnp.asarray(50.0), first)
  state, _ = algorithm.update(jax.random.key(1), state, other)
  np.testing.assert_array_equal(state.particles["context"], first["context"])
  moved = np.sign(state.particles["x"][:, 0])
  np.testing.assert_array_equal(moved, first["context"])


def test_maximum_likelihood_with_a_context_is_an_error():
  def energy_fn(params, x, context):
    return 0.5 * jnp.square(x - params * context).sum()

  batch = {"x": jnp.zeros((4, 1)), "context": jnp.ones(4)}
  params = jnp.asarray(1.0)
  for algorithm in (
    maximum_likelihood(energy_fn, lambda params: params, optax.sgd(1.0)),
    sampled_maximum_likelihood(energy_fn, lambda k, p, n: None, optax.sgd(1.0)),
  ):
    state = algorithm.init(jax.random.key(0), params, batch)
    with pytest.raises(ValueError, match="context"):
      algorithm.update(jax.random.key(0), state, batch)


# ----------------------------------------------------------- antithetic, own negatives


def test_antithetic_cd_contrasts_the_data_with_both_chains():
  algorithm = contrastive_divergence(
    energy, optax.sgd(RATE), num_steps=2, step_size=0.2, antithetic=True
  )
  key = jax.random.key(3)
  new, _ = algorithm.update(key, algorithm.init(KEY, gaussian(), POSITIVES), POSITIVES)
  mean, precision = np.asarray(gaussian()["mean"]), np.exp(gaussian()["log_precision"])
  negatives = []
  for sign in (1, -1):
    x = POSITIVES
    for step_key in jax.random.split(key, 2):
      z = sign * oracles.langevin_noise(step_key, 6, (2,))
      x = x - 0.2 * precision * (x - mean[None]) + np.sqrt(0.4) * z
    negatives.append(x)
  gradient = contrast(gaussian(), POSITIVES, np.concatenate(negatives))
  assert_one_step(new.params, gaussian(), gradient)


def test_antithetic_pairs_cancel_what_is_odd_in_the_noise():
  """The gradient in a Gaussian's mean is linear in the noise, which cancels."""

  def mean_gradient(antithetic, seed):
    algorithm = contrastive_divergence(
      energy, optax.sgd(1.0), num_steps=3, step_size=0.2, antithetic=antithetic
    )
    state = algorithm.init(KEY, gaussian(), POSITIVES)
    new, _ = algorithm.update(jax.random.key(seed), state, POSITIVES)
    return np.asarray(gaussian()["mean"]) - np.asarray(new.params["mean"])

  plain = [mean_gradient(False, seed) for seed in range(4)]
  paired = [mean_gradient(True, seed) for seed in range(4)]
  assert np.std(plain, axis=0).min() > 0.01
  assert np.std(paired, axis=0).max() < 1e-6


def test_antithetic_chains_keep_their_contexts():
  def conditional(means, x, label):
    return 0.5 * jnp.sum(jnp.square(x - means[label]))

  means = jnp.array([[0.0, 0.0], [9.0, 9.0]])
  labels = np.array([0, 1, 1, 0, 1, 0])
  batch = {"x": POSITIVES, "context": labels}
  algorithm = contrastive_divergence(
    conditional, optax.sgd(1.0), num_steps=1, step_size=0.1, antithetic=True
  )
  new, _ = algorithm.update(KEY, algorithm.init(KEY, means, batch), batch)
  # ±z cancel: ∂/∂μ_c = −Σ (x − x')/m with x' = x + ε (μ_c − x) on average
  for label in range(2):
    mine = labels == label
    drift = 0.1 * (np.asarray(means)[label] - POSITIVES[mine]).sum(axis=0) / 6
    np.testing.assert_allclose(new.params[label], means[label] - drift, rtol=1e-4)


@pytest.mark.parametrize("other", ["persistent", "metropolis"])
def test_antithetic_excludes_options_that_would_separate_the_pairs(other):
  with pytest.raises(ValueError, match="antithetic excludes"):
    contrastive_divergence(
      energy,
      optax.sgd(RATE),
      num_steps=1,
      step_size=0.1,
      antithetic=True,
      **{other: True},
    )


def test_persistent_negatives_of_another_number_are_an_error():
  doubled = lambda key, params, start: (jnp.concatenate([start, start]), {})  # noqa: E731
  algorithm = learn_from_negatives(energy, doubled, optax.sgd(RATE), persistent=True)
  state = algorithm.init(KEY, gaussian(), POSITIVES)
  with pytest.raises(ValueError, match="negatives_fn"):
    algorithm.update(KEY, state, POSITIVES)


@pytest.mark.parametrize("persistent", [False, True])
def test_the_caller_s_own_negatives_are_contrasted_with_the_batch(persistent):
  def halved(key, params, start):
    return start / 2 + params["mean"][None], {"seen": start.sum()}

  algorithm = learn_from_negatives(
    energy, halved, optax.sgd(RATE), persistent=persistent
  )
  state, batches = algorithm.init(KEY, gaussian(), POSITIVES), (POSITIVES, -POSITIVES)
  chains = POSITIVES
  for batch in batches:
    params = jax.tree.map(np.asarray, state.params)
    start = chains if persistent else batch
    state, metrics = algorithm.update(KEY, state, batch)
    chains = start / 2 + params["mean"][None]
    gradient = contrast(params, batch, chains)
    assert_one_step(state.params, params, gradient)
    np.testing.assert_allclose(metrics["seen"], start.sum(), rtol=1e-5)
    norm = np.sqrt(sum(np.square(g).sum() for g in gradient.values()))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)


def test_chains_may_be_of_another_number_and_form_than_the_batch():
  def chains_fn(key, params, batch):
    return {"x": jax.random.normal(key, (10, 2)), "age": jnp.zeros(10, int)}

  def negatives_fn(key, params, batch, chains):
    """Half of the chains, moved to a mean of the batch, are negatives."""
    x = chains["x"].at[:5].add(batch.mean(axis=0, keepdims=True))
    chains = {"x": x, "age": chains["age"].at[:5].add(1)}
    return chains["x"][:5], chains, {"oldest": chains["age"].max()}

  algorithm = learn_from_negatives(
    energy, negatives_fn, optax.sgd(RATE), chains_fn=chains_fn
  )
  batch = jnp.asarray(POSITIVES, jnp.float32)
  state = algorithm.init(KEY, gaussian(), batch)
  assert isinstance(state, PersistentState)
  x = np.array(jax.random.normal(KEY, (10, 2)))
  for k in range(2):
    params = jax.tree.map(np.asarray, state.params)
    state, metrics = algorithm.update(KEY, state, batch)
    x[:5] += POSITIVES.mean(axis=0)[None]
    assert_one_step(state.params, params, contrast(params, POSITIVES, x[:5]))
    np.testing.assert_allclose(state.particles["x"], x, rtol=1e-5)
    assert metrics["oldest"] == k + 1
  np.testing.assert_array_equal(state.particles["age"], [2] * 5 + [0] * 5)
