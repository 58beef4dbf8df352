"""With `axis_name`, eight devices give what one gives, by pmap and by shard_map.

Every function is called in the body of a mapped function, with its leading axes sharded
over the devices. The results are compared with one call without `axis_name`.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import stein_jax
from stein_jax import Direction, generators, kernels, ksd_squared, svgd_direction
from stein_jax.kernels.bandwidths import of_particles
from stein_jax.pairs.tiles import streamed
from tests import quick
from tests.devices import SAME, SHARDED, WAYS, Normalized, on_devices


def points(*shape, dtype=np.float64):
  return np.random.default_rng(0).normal(size=(2, *shape)).astype(dtype)


# ------------------------------------------------------------ functions of arrays


def feature(weights, x):
  return jnp.tanh(x @ weights)


def not_radial(y, x):
  return (1 + y @ x) ** 2 * jnp.exp(-jnp.sum((y - x) ** 2))


def all_kernels(dtype):
  weights = np.random.default_rng(1).normal(size=(3, 2)).astype(dtype)
  return {
    "rbf": kernels.rbf(1.5),
    "imq": kernels.imq(2.0),
    "pairwise": kernels.from_pairwise(not_radial),
    "features": kernels.on_features(kernels.rbf(1.5), Partial(feature, weights)),
    "nearest": kernels.on_features(
      kernels.rbf(), Partial(feature, weights), num_neighbors=3
    ),
    "whitened": kernels.whiten(
      kernels.rbf(1.5),
      np.random.default_rng(2).normal(size=(40, 3)).astype(dtype),
      num_centers=6,
    ),
  }


def directions(x, s, axis_name=None):
  phi = {
    name: svgd_direction(x, s, kernel, block_size=2, axis_name=axis_name)
    for name, kernel in all_kernels(x.dtype).items()
  }
  phi["by rows"] = svgd_direction(
    x, s, kernels.imq(2.0), row_normalized=True, axis_name=axis_name
  )
  phi["median"] = svgd_direction(x, s, kernels.rbf(), axis_name=axis_name)
  exchanges = (None,) if axis_name is None else ("all_gather", "ring")
  phi["whitened, own left out"] = sum(
    Direction(all_kernels(x.dtype)["whitened"], leave_one_out=True, exchange=exchange)(
      x, s, axis_name, reference=(x[:2] * 0 + 1, s[:2] * 0 - 1)
    )
    / len(exchanges)
    for exchange in exchanges
  )
  phi["off"] = svgd_direction(x, s, None, axis_name=axis_name)
  return phi


def discrepancies(x, s, axis_name=None):
  v = {
    name: ksd_squared(x, s, kernel, axis_name=axis_name)
    for name, kernel in all_kernels(x.dtype).items()
  }
  direction = Direction(kernels.rbf(2.0), block_size=2)
  u = ksd_squared(x, s, direction, statistic="U", axis_name=axis_name)
  return v | {"U": u}


def bandwidths(x, axis_name=None):
  found = {
    str(options): kernels.median_bandwidth(x, **options, axis_name=axis_name)
    for options in [
      {"log": "m+1", "diagonal": True, "multiple": 3.0},
      {"subsample": 7},
    ]
  }
  streaming = streamed(x, block_size=2, axis_name=axis_name)
  policy = kernels.MedianBandwidth(log="none")
  return found | {"in blocks": of_particles(x, policy, streaming)}


@pytest.mark.usefixtures("x64")
def test_directions():
  x, s = points(16, 3)
  want = jax.jit(directions)(x, s)
  for how in WAYS:
    got = on_devices(
      how, lambda x, s: directions(x, s, "i"), (x, s), (SHARDED, SHARDED), SHARDED
    )
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_discrepancies():
  x, s = points(16, 3)
  want = jax.jit(discrepancies)(x, s)
  for how in WAYS:
    got = on_devices(
      how, lambda x, s: discrepancies(x, s, "i"), (x, s), (SHARDED, SHARDED), SAME
    )
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_bandwidths():
  x, _ = points(8, 3)  # one particle on each device
  want = jax.jit(bandwidths)(x)
  for how in WAYS:
    got = on_devices(how, lambda x: bandwidths(x, "i"), (x,), (SHARDED,), SAME)
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=0)


@pytest.mark.usefixtures("x64")
def test_particles_that_are_pytrees():
  x, s = points(16, 5)

  def tree(flat):
    return {"a": flat[:, :4].reshape(-1, 2, 2), "b": flat[:, 4]}

  def both(x, s, axis_name=None):
    kernel = kernels.rbf(1.7)
    phi = svgd_direction(x, s, kernel, axis_name=axis_name)
    return phi, ksd_squared(x, s, kernel, axis_name=axis_name)

  args = tree(x), tree(s)
  want = both(*args)
  for how in WAYS:
    got = on_devices(
      how, lambda x, s: both(x, s, "i"), args, (SHARDED, SHARDED), (SHARDED, SAME)
    )
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_float32_agrees_within_reordering():
  x, s = points(16, 10, dtype=np.float32)
  coinciding = x.copy()
  coinciding[:14] = x[0]

  def everything(x, s, coinciding, axis_name=None):
    kernel = kernels.rbf()
    return (
      svgd_direction(x, s, kernel, axis_name=axis_name),
      ksd_squared(x, s, kernel, axis_name=axis_name),
      kernels.median_bandwidth(coinciding, axis_name=axis_name),
    )

  got = on_devices(
    "shard_map",
    lambda *args: everything(*args, "i"),
    (x, s, coinciding),
    (SHARDED, SHARDED, SHARDED),
    (SHARDED, SAME, SAME),
  )
  chex.assert_trees_all_close(got, everything(x, s, coinciding), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------- gradients, algorithms


def gaussian(params, x):
  """½e^λ‖x − μ‖²: log Z = ½d(log 2π − λ), samples μ + e^{−λ/2} z."""
  return jnp.exp(params["log_precision"]) * jnp.sum((x - params["mean"]) ** 2) / 2


def gaussian_log_partition(params):
  d = params["mean"].size
  return d * (jnp.log(2 * jnp.pi) - params["log_precision"]) / 2


def gaussian_samples(key, params, n):
  z = jax.random.normal(key, (n, *params["mean"].shape))
  return params["mean"][None] + jnp.exp(-params["log_precision"] / 2) * z


def bent(params, x, context=0.0):
  """A Gaussian's energy, a bump of tanh, and a wave as high as the label."""
  bump = jnp.sum(jnp.tanh(x @ params["weights"]))
  return gaussian(params, x) + bump + context * jnp.sin(x).sum()


def start():
  rng = np.random.default_rng(2)
  return {
    "mean": jnp.asarray(rng.normal(size=3)),
    "log_precision": jnp.asarray(0.3),
    "weights": jnp.asarray(rng.normal(size=(3, 2))),
  }


def own_features(params):
  return kernels.on_features(kernels.rbf(1.5), Partial(feature, params["weights"]))


def affine_features(params):
  features = Partial(jnp.matmul, b=params["weights"])
  return kernels.on_features(kernels.rbf(), features, affine=True)


def estimated_log_partition(key, params):
  x = 2 * jax.random.normal(key, (50, 3))
  log_q = jax.scipy.stats.norm.logpdf(x, 0, 2).sum(axis=1)
  log_weights = -jax.vmap(lambda x: gaussian(params, x))(x) - log_q
  return jax.nn.logsumexp(log_weights) - jnp.log(50)


SGD = optax.sgd(1.0)  # the parameters move by the whole gradient


def of_mix(axis):
  """Three rules, with chains and with log Z."""
  q = stein_jax.densities.gaussian(np.zeros(3), width=1.5)
  rules = {
    "replay": partial(
      stein_jax.contrastive_divergence,
      bent,
      num_steps=2,
      step_size=0.2,
      start="replay",
      buffer_size=48,
      axis_name=axis,
    ),
    "noise": partial(stein_jax.noise_contrastive, bent, q, axis_name=axis),
    "stein": partial(
      stein_jax.stein_cd, bent, kernels.rbf(1.5), step_size=0.1, axis_name=axis
    ),
  }
  return {name: (rule, 0.5) for name, rule in rules.items()}


ALGORITHMS = {
  "stein_cd": lambda axis: stein_jax.stein_cd(
    bent, kernels.rbf(1.5), SGD, step_size=0.1, axis_name=axis
  ),
  "stein_cd symmetric": lambda axis: stein_jax.stein_cd(
    bent, own_features, SGD, step_size=0.1, symmetric=True, axis_name=axis
  ),
  "stein_cd regularised": lambda axis: stein_jax.stein_cd(
    bent,
    Direction(own_features, regularization=0.3),
    SGD,
    step_size=0.1,
    num_steps=2,
    axis_name=axis,
  ),
  "stein_cd affine": lambda axis: stein_jax.stein_cd(
    bent,
    Direction(affine_features, regularization=0.3),
    SGD,
    step_size=0.1,
    num_steps=2,
    axis_name=axis,
  ),
  "stein_cd persistent": lambda axis: stein_jax.stein_cd(
    bent,
    Direction(kernels.rbf(), regularization=0.3),
    SGD,
    step_size=0.1,
    num_steps=2,
    persistent=True,
    axis_name=axis,
  ),
  "stein_score_matching regularised": lambda axis: stein_jax.stein_score_matching(
    bent, Direction(kernels.rbf(1.5), regularization=0.3), SGD, axis_name=axis
  ),
  "cd antithetic": lambda axis: stein_jax.contrastive_divergence(
    bent, SGD, num_steps=2, step_size=0.2, antithetic=True, axis_name=axis
  ),
  "cd noise": lambda axis: stein_jax.contrastive_divergence(
    bent,
    SGD,
    num_steps=2,
    step_size=0.2,
    start="noise",
    restart_density=stein_jax.densities.gaussian(jnp.ones(3)),
    temperature=2.0,
    score_clip=0.5,
    energy_penalty=0.3,
    axis_name=axis,
  ),
  "cd replay": lambda axis: stein_jax.contrastive_divergence(
    bent,
    SGD,
    num_steps=2,
    step_size=0.2,
    start="replay",
    antithetic="last",
    buffer_size=48,
    restart_probability=0.3,
    restart_density=stein_jax.densities.gaussian(jnp.ones(3)),
    axis_name=axis,
  ),
  "cd replay metropolis": lambda axis: stein_jax.contrastive_divergence(
    bent,
    SGD,
    num_steps=2,
    step_size=0.2,
    start="replay",
    metropolis=True,
    buffer_size=32,
    restart_probability=0.3,
    axis_name=axis,
  ),
  "maximum_likelihood estimated": lambda axis: stein_jax.maximum_likelihood(
    gaussian, estimated_log_partition, SGD, axis_name=axis
  ),
  "stein_score_matching": lambda axis: stein_jax.stein_score_matching(
    bent, own_features, SGD, axis_name=axis
  ),
  "cd": lambda axis: stein_jax.contrastive_divergence(
    bent, SGD, num_steps=2, step_size=0.2, axis_name=axis
  ),
  "cd persistent metropolis": lambda axis: stein_jax.contrastive_divergence(
    bent,
    SGD,
    num_steps=2,
    step_size=0.2,
    persistent=True,
    metropolis=True,
    axis_name=axis,
  ),
  "maximum_likelihood": lambda axis: stein_jax.maximum_likelihood(
    gaussian, gaussian_log_partition, SGD, axis_name=axis
  ),
  "sampled_maximum_likelihood": lambda axis: stein_jax.sampled_maximum_likelihood(
    gaussian, gaussian_samples, SGD, axis_name=axis
  ),
  "score_matching": lambda axis: stein_jax.score_matching(bent, SGD, axis_name=axis),
  "score_matching hutchinson": lambda axis: stein_jax.score_matching(
    bent, SGD, num_probes=2, axis_name=axis
  ),
  "sliced_score_matching": lambda axis: stein_jax.sliced_score_matching(
    bent, SGD, variance_reduced=False, axis_name=axis
  ),
  "denoising_score_matching": lambda axis: stein_jax.denoising_score_matching(
    bent, SGD, sigma=(0.3, 0.7, 1.1), axis_name=axis
  ),
  "noise_contrastive": lambda axis: stein_jax.noise_contrastive(
    bent,
    stein_jax.densities.gaussian(np.zeros(3), width=1.5),
    SGD,
    num_noise=2,
    axis_name=axis,
  ),
  "conditional_noise": lambda axis: stein_jax.conditional_noise_contrastive(
    bent, SGD, noise_scale=0.6, num_noise=2, axis_name=axis
  ),
  "energy_discrepancy": lambda axis: stein_jax.energy_discrepancy(
    bent, SGD, time=0.6, num_samples=3, axis_name=axis
  ),
  "averaged cd replay": lambda axis: stein_jax.averaged(
    of_mix(axis)["replay"][0](optimizer=SGD), 0.9
  ),
  "refreshed": lambda axis: stein_jax.refreshed(
    partial(stein_jax.stein_score_matching, bent, axis_name=axis),
    lambda params: Direction(
      kernels.whiten(own_features(params), points(40, 3)[0], num_centers=6),
      leave_one_out=True,
    ),
    SGD,
    refresh=2,
  ),
  "mix with cd replay": lambda axis: stein_jax.mix(of_mix(axis), SGD),
  "mix with cd replay, drawn": lambda axis: stein_jax.mix(of_mix(axis), SGD, draw=True),
  "score_matching closed form": lambda axis: stein_jax.score_matching(
    gaussian,
    SGD,
    divergence_fn=lambda params, x: -x.size * jnp.exp(params["log_precision"]),
    axis_name=axis,
  ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  "name",
  quick.only(
    ALGORITHMS.keys()
    - {"stein_cd affine", "stein_cd persistent", "cd replay metropolis"},
    ALGORITHMS,
  ),
)
def test_algorithms(name):
  one, many = ALGORITHMS[name](None), ALGORITHMS[name]("i")
  key, (batch, first) = jax.random.key(5), points(16, 3)
  conditional = ("stein_cd", "cd", "cd replay", "conditional_noise")
  if name in (*conditional, "energy_discrepancy"):
    context = np.random.default_rng(4).normal(size=16)
    batch, first = {"x": batch, "context": context}, {"x": first, "context": context}
  state = one.init(key, start(), first)
  update = jax.jit(one.update)
  if "replay" in name:  # so that some slots are filled
    state, _ = update(jax.random.key(6), state, first)
  want = update(key, state, batch)
  before, after = state.params, want[0].params
  assert abs(after["mean"] - before["mean"]).min() > 1e-4
  assert abs(after["log_precision"] - before["log_precision"]) > 1e-4

  specs = jax.tree.map(lambda _: SAME, state)
  if hasattr(state, "particles"):
    specs = specs._replace(particles=SHARDED)
  for how in WAYS:
    got = on_devices(
      how, many.update, (key, state, batch), (SAME, specs, SHARDED), (specs, SAME)
    )
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


def test_langevin_noise_in_float32_is_that_of_one_device():
  x = np.zeros((16, 3), np.float32)

  def chains(x, axis_name=None):
    return stein_jax.samplers.langevin(
      jax.random.key(0),
      x,
      jnp.negative,
      num_steps=2,
      step_size=0.5,
      axis_name=axis_name,
    )

  want = chains(x)
  for how in WAYS:
    got = on_devices(how, lambda x: chains(x, "i"), (x,), (SHARDED,), SHARDED)
    chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_gradients_are_averaged_once():
  params, (x, _) = start(), points(16, 3)

  def gradients(params, x, axis_name=None):
    kernel = kernels.rbf(1.5)
    return {
      "stein_cd": stein_jax.stein_cd_gradient(
        params, gaussian, x, kernel, step_size=0.1, axis_name=axis_name
      ),
      "stein_score_matching": stein_jax.stein_score_matching_gradient(
        params, gaussian, x, kernel, axis_name=axis_name
      ),
    }

  want = gradients(params, x)
  for how in WAYS:
    got = on_devices(
      how, lambda p, x: gradients(p, x, "i"), (params, x), (SAME, SHARDED), SAME
    )
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_svgd_moves_sharded_particles():
  x, _ = points(16, 3)

  def moved(x, axis_name=None):
    algorithm = stein_jax.svgd(
      lambda x: -(x**3), kernels.rbf(1.5), optax.adam(0.1), axis_name=axis_name
    )
    state, metrics = algorithm.update(None, algorithm.init(None, x, None), None)
    return state.particles, metrics

  want = moved(x)
  for how in WAYS:
    got = on_devices(how, lambda x: moved(x, "i"), (x,), (SHARDED,), (SHARDED, SAME))
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_learned_stein_discrepancy():
  def critic(params, x):
    return jnp.tanh(params @ x)

  key, (batch, _) = jax.random.key(5), points(16, 3)

  def algorithm(axis_name=None):
    return stein_jax.learned_stein_discrepancy(
      bent, critic, SGD, optax.adam(0.1), critic_steps=2, axis_name=axis_name
    )

  one, many = algorithm(), algorithm("i")
  weights = jnp.asarray(np.random.default_rng(3).normal(size=(3, 3)))
  state = one.init(key, {"energy": start(), "critic": weights}, batch)
  want = jax.jit(one.update)(key, state, batch)
  moved = jax.tree.map(lambda a, b: abs(a - b).max(), want[0].params, state.params)
  assert min(jax.tree.leaves(moved)) > 1e-4
  for how in WAYS:
    got = on_devices(
      how, many.update, (key, state, batch), (SAME, SAME, SHARDED), (SAME, SAME)
    )
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  "mix", [0.5] + [pytest.param(mix, marks=pytest.mark.slow) for mix in (0.0, 1.0)]
)
def test_stein_gan_with_batch_norm_over_all_devices(mix):
  def noise_fn(key, m):
    return jax.random.normal(key, (m, 2))

  key, (batch, _) = jax.random.key(5), points(16, 3)
  generator_params, stats = generators.initialize(key, Normalized(), noise_fn(key, 16))

  def algorithm(axis_name=None):
    return stein_jax.stein_gan(
      bent,
      generators.generate_fn(Normalized(axis_name)),
      noise_fn,
      kernels.rbf(),
      SGD,
      SGD,
      generator_stats=stats,
      mix=mix,
      num_inner_steps=2,
      axis_name=axis_name,
    )

  one, many = algorithm(), algorithm("i")
  state = one.init(key, {"energy": start(), "generator": generator_params}, batch)
  want = one.update(key, state, batch)
  moved = jax.tree.map(lambda a, b: abs(a - b).max(), want[0].params, state.params)
  assert max(jax.tree.leaves(moved["generator"])) > 1e-4
  for how in WAYS:
    got = on_devices(
      how, many.update, (key, state, batch), (SAME, SAME, SHARDED), (SAME, SAME)
    )
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_mnist_generator_normalizes_by_the_statistics_of_all_devices():
  noise = generators.uniform_noise()(jax.random.key(3), 16)
  module = generators.MNISTGenerator(width=1 / 64)
  params, stats = generators.initialize(jax.random.key(4), module, noise)
  want = generators.generate_fn(module)(params, stats, noise, None)
  alone = generators.generate_fn(module)(params, stats, noise[:2], None)
  assert abs(alone[0] - want[0][:2]).max() > 1e-3  # one device's statistics differ
  sharded = generators.generate_fn(module.clone(axis_name="i"))
  for how in WAYS:
    got = on_devices(
      how,
      lambda *arguments: sharded(*arguments, None),
      (params, stats, noise),
      (SAME, SAME, SHARDED),
      (SHARDED, SAME),
    )
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_energies_of_images():
  """Transposed convolutions and labels, in the gradients that SteinGAN needs."""
  energy = stein_jax.energies.JointAutoencoder(
    stein_jax.energies.Autoencoder(
      (stein_jax.energies.Layer(4, 3), stein_jax.energies.Layer(4, 2, 2))
    ),
    num_classes=3,
  )
  x = np.random.default_rng(0).normal(size=(8, 4, 4, 3))
  batch = {"x": x, "context": np.arange(8) % 3}
  params = energy.init(jax.random.key(1), x[0], 0)
  params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

  def gradient(params, batch, axis_name=None):
    return stein_jax.stein_cd_gradient(
      params, energy.apply, batch, kernels.rbf(50.0), step_size=0.1, axis_name=axis_name
    )

  want = jax.jit(gradient)(params, batch)
  got = on_devices(
    "shard_map",
    lambda p, b: gradient(p, b, "i"),
    (params, batch),
    (SAME, SHARDED),
    SAME,
  )
  chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)
