"""Where CD's chains start, and their options, against steps by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import (
  ReplayBuffer,
  contrastive_divergence,
  contrastive_divergence_gradient,
  densities,
  parallel,
)
from stein_jax.samplers import noise
from stein_jax.training import fit
from tests.algorithms.test_contrastive import (
  KEY,
  POSITIVES,
  RATE,
  assert_one_step,
  assert_same,
  contrast,
  energy,
  gaussian,
  langevin_by_hand,
)
from tests.training.helpers import assert_same_bits

SGD = optax.sgd(RATE)
BROAD = densities.gaussian(jnp.zeros(2), width=3.0)
M = len(POSITIVES)


def cd(energy_fn=energy, optimizer=SGD, num_steps=2, step_size=0.2, **options):
  return contrastive_divergence(
    energy_fn, optimizer, num_steps=num_steps, step_size=step_size, **options
  )


def replay(**options):
  return cd(**({"start": "replay", "buffer_size": 3 * M} | options))


def one_update(algorithm, key, params=None, batch=POSITIVES):
  params = gaussian() if params is None else params
  return algorithm.update(key, algorithm.init(KEY, params, batch), batch)


# ----------------------------------------------------------------------- starts


def test_chains_from_noise_start_at_samples_of_the_density():
  key = jax.random.key(3)
  new, _ = one_update(cd(start="noise", restart_density=BROAD), key)
  sample_key, chain_key = jax.random.split(key)
  first = BROAD.sample(sample_key, M)
  negatives = langevin_by_hand(chain_key, first, gaussian(), 2, 0.2)
  assert_one_step(new.params, gaussian(), contrast(gaussian(), POSITIVES, negatives))


def test_any_object_with_samples_is_a_density():
  class Corner:
    def sample(self, key, n):
      return jnp.full((n, 2), 9.0)

  key = jax.random.key(3)
  new, _ = one_update(cd(start="noise", restart_density=Corner()), key)
  chain_key = jax.random.split(key)[1]
  negatives = langevin_by_hand(chain_key, np.full((M, 2), 9.0), gaussian(), 2, 0.2)
  assert_one_step(new.params, gaussian(), contrast(gaussian(), POSITIVES, negatives))


@pytest.mark.parametrize("density", [None, BROAD])
def test_a_replay_buffer_by_hand(density):
  """Five steps on 3 slots a row, with restarts, against a loop over rows."""
  probability, rng = 0.4, np.random.default_rng(0)
  algorithm = replay(restart_probability=probability, restart_density=density)
  state = algorithm.init(KEY, gaussian(), POSITIVES)
  assert not state.particles.filled.any()
  points, filled = np.full((3 * M, 2), np.nan), np.zeros(3 * M, bool)
  seen = {"unused": 0, "continued": 0, "restarted": 0}
  for key in jax.random.split(jax.random.key(1), 5):
    batch, old = rng.normal(size=(M, 2)), jax.tree.map(np.asarray, state.params)
    slot_key, restart_key, sample_key, chain_key = jax.random.split(key, 4)
    new = batch if density is None else np.asarray(density.sample(sample_key, M))
    chains, slots, num_new = np.zeros((M, 2)), [], 0
    for i in range(M):
      slot = 3 * i + int(jax.random.randint(jax.random.fold_in(slot_key, i), (), 0, 3))
      u = float(jax.random.uniform(jax.random.fold_in(restart_key, i), (), jnp.float32))
      how = "unused"
      if filled[slot]:
        how = "restarted" if u < probability else "continued"
      chains[i] = points[slot] if how == "continued" else new[i]
      seen[how] += 1
      num_new += how != "continued"
      slots.append(slot)
    moved = langevin_by_hand(chain_key, chains, old, 2, 0.2)
    points[slots], filled[slots] = moved, True
    state, metrics = algorithm.update(key, state, batch)
    assert_one_step(state.params, old, contrast(old, batch, moved))
    np.testing.assert_array_equal(state.particles.filled, filled)
    got = np.asarray(state.particles.points)[filled]
    np.testing.assert_allclose(got, points[filled], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["restarted"], num_new / M, rtol=1e-6)
  assert min(seen.values()) > 0


def test_integers_are_uniform_over_the_slots():
  draws = np.asarray(noise.integers(KEY, 6_000, 3))
  counts = np.bincount(draws, minlength=3)
  assert len(counts) == 3
  assert abs(counts - 2_000).max() < 5 * np.sqrt(6_000 * 2 / 9)


def test_a_slot_keeps_its_context_until_it_restarts():
  """Energies of label c pull to 50 c: a chain's sign tells the label it moved in."""

  def energy_fn(scale, x, label):
    return 0.5 * jnp.square(x - scale * label).sum()

  labels = np.array([1.0, -1.0, 1.0, -1.0], np.float32)
  first = {"x": np.zeros((4, 1), np.float32), "context": labels}
  other = {"x": np.zeros((4, 1), np.float32), "context": -labels}
  for probability, kept in ((0.0, labels), (1.0, -labels)):
    algorithm = cd(
      energy_fn,
      optax.sgd(0.0),
      num_steps=100,
      step_size=0.1,
      start="replay",
      buffer_size=4,
      restart_probability=probability,
    )
    state = algorithm.init(KEY, jnp.asarray(50.0), first)
    for k, batch in enumerate([first, other]):
      state, _ = algorithm.update(jax.random.key(k), state, batch)
    points = state.particles.points
    np.testing.assert_array_equal(points["context"], kept)
    np.testing.assert_array_equal(np.sign(points["x"][:, 0]), kept)


def mixture_energy(a, x):
  """−log (e^a N(x; −h, 1) + N(x; h, 1)): modes of the odds e^a."""
  left, right = -0.5 * (x + HALF) ** 2, -0.5 * (x - HALF) ** 2
  return -jnp.logaddexp(a + left, right)


HALF = 2.5


def test_the_mass_of_modes_is_learned_by_long_chains_from_a_broad_density():
  """CD-k from data sees hardly more than noise of it: few chains change their mode."""
  m, rng = 400, np.random.default_rng(0)
  truth = np.where(rng.uniform(size=m) < 0.25, -HALF, HALF) + rng.normal(size=m)
  truth = jnp.asarray(truth, jnp.float32)

  class Broad:
    def sample(self, key, n):
      return 5 * jax.random.normal(key, (n,))

  options = {
    "energy_fn": mixture_energy,
    "optimizer": optax.sgd(0.1),
    "num_steps": 10,
    "step_size": 0.1,
  }
  buffer = {
    "start": "replay",
    "buffer_size": 2 * m,
    "restart_probability": 0.005,
    "restart_density": Broad(),
  }
  left = {}
  for name, more in {"data": {}, "buffer": buffer}.items():
    algorithm = cd(**options, **more)
    state = algorithm.init(KEY, jnp.zeros(()), truth)

    @jax.jit
    def train(state, update=algorithm.update):
      def step(state, key):
        return update(key, state, truth)

      return jax.lax.scan(step, state, jax.random.split(KEY, 300))[0]

    left[name] = jax.nn.sigmoid(train(state).params).item()
  assert left["data"] > 0.38
  assert abs(left["buffer"] - 0.25) < 0.08


def test_a_spurious_mode_is_seen_from_noise_and_not_from_data():
  """The truth is the right mode only; the gradient in a is about the left's mass."""
  data = 8 + jax.random.normal(KEY, (500,))

  def energy_fn(a, x):
    return -jnp.logaddexp(a - 0.5 * (x + 8) ** 2, -0.5 * (x - 8) ** 2)

  class Broad:
    def sample(self, key, n):
      return 10 * jax.random.normal(key, (n,))

  a, options = jnp.zeros(()), {"num_steps": 20, "step_size": 0.1}
  from_data, from_noise = (
    contrastive_divergence_gradient(KEY, a, energy_fn, data, **options, **start)
    for start in ({}, {"start": "noise", "restart_density": Broad()})
  )
  assert abs(from_data) < 1e-6
  assert abs(from_noise - 0.5) < 5 * 0.5 / np.sqrt(500)


# ---------------------------------------------------------------------- options


def test_temperature_and_clip_by_hand():
  key, params, x = jax.random.key(3), gaussian(), POSITIVES
  algorithm = cd(num_steps=3, temperature=2.0, score_clip=1.2)
  new, _ = one_update(algorithm, key)
  mean, precision = np.asarray(params["mean"]), np.exp(params["log_precision"])
  num_clipped = 0
  for step_key in jax.random.split(key, 3):
    z = noise.normal_like(step_key, jnp.zeros((M, 2)))
    score = -precision * (x - mean[None]) / 2.0
    norm = np.linalg.norm(score, axis=1, keepdims=True)
    num_clipped += int((norm > 1.2).sum())
    x = x + 0.2 * score * np.minimum(1, 1.2 / norm) + np.sqrt(0.4) * np.asarray(z)
  assert 0 < num_clipped < 3 * M
  assert_one_step(new.params, params, contrast(params, POSITIVES, x))


def test_the_energy_penalty_by_hand():
  """E = ½e^λ r² has ∂E²/∂λ = 2E² and ∂E²/∂μ = −2E e^λ (x − μ)."""
  key, params, alpha = jax.random.key(3), gaussian(), 0.3
  negatives = langevin_by_hand(key, POSITIVES, params, 2, 0.2)
  expected = contrast(params, POSITIVES, negatives)
  mean, precision = np.asarray(params["mean"]), np.exp(params["log_precision"])
  for x in (POSITIVES, negatives):
    centred = x - mean[None]
    e = 0.5 * precision * np.square(centred).sum(axis=1)
    expected["log_precision"] += alpha * 2 * np.mean(e**2)
    slope = -2 * alpha * precision * (e[:, None] * centred).mean(axis=0)
    expected["mean"] = expected["mean"] + slope
  new, _ = one_update(cd(energy_penalty=alpha), key)
  assert_one_step(new.params, params, expected)
  got = contrastive_divergence_gradient(
    key,
    params,
    energy,
    POSITIVES,
    num_steps=2,
    step_size=0.2,
    energy_penalty=jnp.float32(alpha),
  )
  assert_same(got, expected)


def test_without_a_penalty_a_square_that_overflows_does_no_harm():
  huge = lambda scale, x: 1e25 * scale + 0.5 * jnp.sum(x**2)  # noqa: E731
  _, metrics = one_update(cd(huge), KEY, jnp.ones(()))
  assert np.isfinite(metrics["loss"])


def test_a_last_antithetic_step_cancels_the_noise_of_that_step():
  """The gradient in a Gaussian's mean is linear in the noise."""

  def mean_gradients(num_steps, antithetic):
    return np.array(
      [
        contrastive_divergence_gradient(
          jax.random.key(seed),
          gaussian(),
          energy,
          POSITIVES,
          num_steps=num_steps,
          step_size=0.2,
          antithetic=antithetic,
        )["mean"]
        for seed in range(4)
      ]
    )

  assert mean_gradients(1, False).std(axis=0).min() > 0.01
  assert mean_gradients(1, "last").std(axis=0).max() < 1e-6
  key = jax.random.key(0)
  # After two steps: the drift of the last step from the points of the first.
  precision = np.exp(gaussian()["log_precision"])
  mean = np.asarray(gaussian()["mean"])
  z = np.asarray(noise.normal_like(jax.random.split(key, 2)[0], jnp.zeros((M, 2))))
  first = POSITIVES - 0.2 * precision * (POSITIVES - mean[None]) + np.sqrt(0.4) * z
  drifted = first - 0.2 * precision * (first - mean[None])
  expected = precision * (drifted - POSITIVES).mean(axis=0)
  np.testing.assert_allclose(mean_gradients(2, "last")[0], expected, rtol=1e-4)


@pytest.mark.parametrize("how", ["persistent", "replay"])
def test_the_first_of_a_last_pair_continues(how):
  options = {"persistent": True} if how == "persistent" else {"start": "replay"}
  options |= {"buffer_size": M} if how == "replay" else {}
  algorithm = cd(num_steps=3, antithetic="last", **options)
  state, chains = algorithm.init(KEY, gaussian(), POSITIVES), POSITIVES
  for key in jax.random.split(jax.random.key(2), 2):
    old = jax.tree.map(np.asarray, state.params)
    chain_key = key if how == "persistent" else jax.random.split(key, 4)[3]
    *_, last_key = jax.random.split(chain_key, 3)
    z = np.asarray(noise.normal_like(last_key, jnp.zeros((M, 2))))
    chains = langevin_by_hand(chain_key, chains, old, 3, 0.2)
    both = np.concatenate([chains, chains - 2 * np.sqrt(0.4) * z])
    state, _ = algorithm.update(key, state, POSITIVES)
    assert_one_step(state.params, old, contrast(old, POSITIVES, both))
    kept = state.particles if how == "persistent" else state.particles.points
    np.testing.assert_allclose(kept, chains, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["persistent", "replay"])
def test_with_averaged_noise_the_mean_of_a_pair_continues(how):
  options = {"persistent": True} if how == "persistent" else {"start": "replay"}
  options |= {"buffer_size": M} if how == "replay" else {}
  algorithm = cd(num_steps=2, antithetic="last", averaged_noise=True, **options)
  state, x = algorithm.init(KEY, gaussian(), POSITIVES), POSITIVES
  half = np.sqrt(0.1)  # √(ε/2)
  for key in jax.random.split(jax.random.key(2), 2):
    old = jax.tree.map(np.asarray, state.params)
    precision, mean = np.exp(old["log_precision"]), old["mean"]
    chain_key = key if how == "persistent" else jax.random.split(key, 4)[3]
    for step_key in jax.random.split(chain_key, 2):
      z = np.asarray(noise.normal_like(step_key, jnp.zeros((M, 2))))
      x = x - 0.2 * precision * (x + half * z - mean[None]) + 2 * half * z
    last = jax.random.fold_in(chain_key, 2)
    z = np.asarray(noise.normal_like(last, jnp.zeros((M, 2))))
    both = np.concatenate([x + half * z, x - half * z])
    state, _ = algorithm.update(key, state, POSITIVES)
    assert_one_step(state.params, old, contrast(old, POSITIVES, both))
    kept = state.particles if how == "persistent" else state.particles.points
    np.testing.assert_allclose(kept, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"metropolis": True},
    {"antithetic": True},
    {"antithetic": "last", "averaged_noise": True},
    {"start": "noise", "restart_density": BROAD, "energy_penalty": 0.1},
  ],
)
def test_the_gradient_is_that_of_the_rule(options):
  key = jax.random.key(3)
  new, metrics = one_update(cd(**options), key)
  arguments = (key, gaussian(), energy, POSITIVES)
  options = {"num_steps": 2, "step_size": 0.2} | options
  gradient = contrastive_divergence_gradient(*arguments, **options)
  assert_one_step(new.params, gaussian(), jax.tree.map(np.asarray, gradient))
  loss, same = contrastive_divergence_gradient.with_loss(*arguments, **options)
  assert_same_bits(same, gradient)
  np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-5)


# ---------------------------------------------------------- state, devices, errors


def long_replay(axis_name=None):
  return replay(
    optimizer=optax.adam(0.01),
    buffer_size=40,
    restart_probability=0.1,
    restart_density=BROAD,
    antithetic="last",
    axis_name=axis_name,
  )


DATA = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)


def test_a_run_with_a_buffer_resumes_bit_for_bit(tmp_path):
  algorithm = long_replay()

  def train(workdir, num_steps):
    return fit(
      KEY,
      algorithm,
      gaussian(),
      DATA,
      num_steps=num_steps,
      batch_size=20,
      log_every=2,
      checkpoint_every=2,
      workdir=tmp_path / workdir,
      progress=False,
    )

  whole = train("whole", 8)
  train("parts", 4)
  resumed = train("parts", 8)
  assert isinstance(whole.state.particles, ReplayBuffer)
  assert 20 < whole.state.particles.filled.sum() <= 40
  assert_same_bits(resumed.state, whole.state)


def test_a_distributed_buffer_equals_that_of_one_device():
  one = long_replay()
  many = parallel.distribute(long_replay(parallel.AXIS), parallel.make_mesh(4))
  states = [rule.init(KEY, gaussian(), DATA[:20]) for rule in (one, many)]
  updates = [jax.jit(rule.update) for rule in (one, many)]
  for k in range(4):
    batch, key = DATA[10 * k : 10 * k + 20], jax.random.key(k)
    states = [update(key, s, batch)[0] for update, s in zip(updates, states)]
  want, got = (jax.tree.map(np.asarray, state) for state in states)
  np.testing.assert_array_equal(got.particles.filled, want.particles.filled)
  points = [s.particles.points for s in (got, want)]
  np.testing.assert_allclose(*points, rtol=1e-4, atol=1e-5)
  assert_same(got.params, want.params)


def test_eager_updates_with_a_buffer_are_traced_once():
  num_traces = 0

  def counted(params, x):
    nonlocal num_traces
    num_traces += 1
    return energy(params, x)

  algorithm = replay(energy_fn=counted, restart_density=BROAD)
  state = algorithm.init(KEY, gaussian(), POSITIVES)
  state, _ = algorithm.update(KEY, state, POSITIVES)
  after_one = num_traces
  for key in jax.random.split(KEY, 2):
    state, _ = algorithm.update(key, state, POSITIVES)
  assert num_traces == after_one


ERRORS = {
  "an unknown start": (
    {"start": "zeros"},
    r"start must be one of \('data', 'noise', 'replay'\), got 'zeros'",
  ),
  "no size": ({"start": "replay"}, "buffer_size must be an integer .* got None"),
  "a size of 0": (
    {"start": "replay", "buffer_size": 0},
    "buffer_size must be an integer of at least 1, got 0",
  ),
  "a size without a buffer": (
    {"buffer_size": 12},
    'buffer_size and restart_probability go with start="replay"',
  ),
  "restarts without a buffer": (
    {"restart_probability": 0.1},
    "restart_probability go with start=\"replay\", got start='data'",
  ),
  "a probability": (
    {"start": "replay", "buffer_size": 12, "restart_probability": 1.5},
    r"restart_probability must lie in \[0, 1\], got 1.5",
  ),
  "noise without a density": ({"start": "noise"}, "needs a restart_density"),
  "a density without use": (
    {"restart_density": BROAD},
    'restart_density goes with start="noise" or "replay"',
  ),
  "no density": (
    {"start": "noise", "restart_density": 3.0},
    r"restart_density must be a density .* sample\(key, n\), got 3.0",
  ),
  "persistent noise": (
    {"start": "noise", "restart_density": BROAD, "persistent": True},
    "persistent goes with start=\"data\", got start='noise'",
  ),
  "persistent replay": (
    {"start": "replay", "buffer_size": 12, "persistent": True},
    "persistent goes with start=\"data\", got start='replay'",
  ),
  "pairs in a buffer": (
    {"start": "replay", "buffer_size": 12, "antithetic": True},
    'antithetic excludes persistent and start="replay".*"last" goes with both',
  ),
  "a last pair with a test": (
    {"antithetic": "last", "metropolis": True},
    "antithetic excludes metropolis",
  ),
  "averaged noise with a test": (
    {"averaged_noise": True, "metropolis": True},
    "averaged_noise excludes metropolis",
  ),
  "averaged noise without a pair": (
    {"averaged_noise": True, "persistent": True},
    'need the mean of a pair: add antithetic="last"',
  ),
  "averaged noise": ({"averaged_noise": 1}, "averaged_noise must be True or False"),
  "antithetic": ({"antithetic": "first"}, "True, False or \"last\", got 'first'"),
  "temperature": ({"temperature": 0.0}, "temperature must be .* above 0, got 0.0"),
  "clip": ({"score_clip": 0.0}, "score_clip must be .* above 0, got 0.0"),
  "penalty": (
    {"energy_penalty": -1.0},
    "energy_penalty must be a finite number of at least 0, got -1.0",
  ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_bad_combination_is_an_error_before_any_work(name):
  options, message = ERRORS[name]
  with pytest.raises((ValueError, TypeError), match=message):
    cd(**options)


def test_the_gradient_has_the_same_errors():
  def gradient(**options):
    options = {"num_steps": 1, "step_size": 0.1} | options
    return contrastive_divergence_gradient(
      KEY, gaussian(), energy, POSITIVES, **options
    )

  for options, message in (
    ({"start": "replay"}, r"one of \('data', 'noise'\), got 'replay'"),
    ({"start": "noise"}, "needs a restart_density"),
    ({"antithetic": True, "metropolis": True}, "antithetic excludes metropolis"),
    ({"temperature": -1.0}, "temperature must be"),
    ({"energy_penalty": -1.0}, "energy_penalty must be"),
  ):
    with pytest.raises(ValueError, match=message):
      gradient(**options)


def test_a_buffer_that_is_no_multiple_of_the_batch_is_an_error():
  message = "must be a multiple .* got 10 slots for 6 points: take 6"
  with pytest.raises(ValueError, match=message):
    replay(buffer_size=10).init(KEY, gaussian(), POSITIVES)
  algorithm = replay(buffer_size=2 * M)
  state = algorithm.init(KEY, gaussian(), POSITIVES)
  with pytest.raises(ValueError, match="got 12 slots for 5 points"):
    algorithm.update(KEY, state, POSITIVES[:5])
  with pytest.raises(ValueError, match="the batch and one of the buffer"):
    algorithm.update(KEY, state, POSITIVES[:, :1])


def test_samples_of_another_size_are_an_error():
  algorithm = cd(start="noise", restart_density=densities.gaussian(jnp.zeros(3)))
  with pytest.raises(ValueError, match=r"one sample of restart_density\.sample"):
    one_update(algorithm, KEY)
