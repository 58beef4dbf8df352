"""DCGAN's losses in closed form, its step by hand, and its discriminator by layers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import lax

from stein_jax import discriminators, generators, training
from stein_jax.algorithms.dcgan import (
  dcgan,
  discriminator_loss,
  generator_loss,
)
from stein_jax.networks.discriminators import DCGANDiscriminator
from stein_jax.networks.generators import DCGANGenerator
from tests.devices import SAME, SHARDED, WAYS, Normalized, on_devices
from tests.networks.test_generators import (
  labels,
  noise,
  sample,
  started,
  trained,
)

KEY = jax.random.key(0)
NOISE = np.random.default_rng(0).normal(size=(6, 2))
DATA = np.random.default_rng(1).normal(size=(6, 3)) + 1
LEVELS = np.array([0.0, 1.0, 2.0, 0.0, 1.0, 2.0])


# --------------------------------------------------------------------- the losses


@pytest.mark.usefixtures("x64")
def test_losses_are_cross_entropies():
  real, generated = np.array([0.3, -2.0, 5.0]), np.array([1.5, -0.7])
  sigmoid = lambda logit: 1 / (1 + np.exp(-logit))  # noqa: E731
  want = -np.log(sigmoid(real)).mean() - np.log(1 - sigmoid(generated)).mean()
  np.testing.assert_allclose(discriminator_loss(real, generated), want)
  np.testing.assert_allclose(
    generator_loss(generated), -np.log(sigmoid(generated)).mean()
  )
  # The discriminator raises the logits of data and lowers those of samples; the
  # generator raises the latter.
  up, down = jax.grad(discriminator_loss, argnums=(0, 1))(real, generated)
  np.testing.assert_allclose(up, -(1 - sigmoid(real)) / 3)
  np.testing.assert_allclose(down, sigmoid(generated) / 2)
  raised = jax.grad(generator_loss)(generated)
  np.testing.assert_allclose(raised, -(1 - sigmoid(generated)) / 2)


@pytest.mark.usefixtures("x64")
def test_the_best_discriminator_is_the_log_ratio_of_densities():
  # Of 8 data points 1, 2 and 5 are at three points; of 8 samples 4, 2 and 2.
  at_data, at_samples = np.repeat([0, 1, 2], [1, 2, 5]), np.repeat([0, 1, 2], [4, 2, 2])
  p, q = np.array([1, 2, 5]) / 8, np.array([4, 2, 2]) / 8

  def loss(logits):
    return discriminator_loss(logits[at_data], logits[at_samples])

  best = jnp.log(p / q)
  np.testing.assert_allclose(jax.grad(loss)(best), 0, atol=1e-12)
  middle = (p + q) / 2
  divergence = ((p * np.log(p / middle)).sum() + (q * np.log(q / middle)).sum()) / 2
  np.testing.assert_allclose(loss(best), np.log(4) - 2 * divergence)
  np.testing.assert_allclose(loss(jnp.zeros(3)), np.log(4))
  eigenvalues = np.linalg.eigvalsh(jax.hessian(loss)(best))
  assert eigenvalues.min() > 0


def test_losses_of_a_certain_discriminator_stay_finite():
  sure = jnp.array([1e4, -1e4])
  np.testing.assert_allclose(discriminator_loss(sure, sure), 1e4)
  np.testing.assert_allclose(generator_loss(sure), 5e3)
  np.testing.assert_allclose(jax.grad(generator_loss)(sure), [0, -0.5])


# ----------------------------------------------------------------------- the step


def linear(eta, stats, noise, context):
  """x = Wξ + w + the context, and how often it was called."""
  shift = 0.0 if context is None else context[:, None]
  return noise @ eta["W"].T + eta["w"][None] + shift, stats + 1


def tanh_logits(theta, stats, x, context):
  """Logits that are not linear in x, and the sum of the means of all its inputs."""
  bias = 0.0 if context is None else theta["c"] * context
  logits = jnp.tanh(x @ theta["V"]).sum(axis=1) + theta["v"] + bias
  return logits, stats + x.mean()


def start():
  rng = np.random.default_rng(2)
  generator = {"W": rng.normal(size=(3, 2)), "w": rng.normal(size=3)}
  discriminator = {"V": rng.normal(size=(3, 4)), "v": np.array(0.3), "c": np.array(0.7)}
  both = {"discriminator": discriminator, "generator": generator}
  return jax.tree.map(jnp.asarray, both)


def gan(discriminate=tanh_logits, generate=linear, **options):
  return dcgan(
    discriminate,
    generate,
    lambda key, m: jax.random.normal(key, (m, 2)),
    optax.sgd(0.1),
    optax.sgd(0.2),
    discriminator_stats=jnp.zeros(()),
    generator_stats=jnp.zeros(()),
    **options,
  )


def assert_same(got, want, rtol=1e-10, atol=1e-12):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), got, want)


@pytest.mark.parametrize("context", [None, LEVELS])
@pytest.mark.usefixtures("x64")
def test_a_step_descends_the_discriminator_s_loss_and_then_the_generator_s(context):
  batch = DATA if context is None else {"x": DATA, "context": context}
  algorithm = gan()
  state = algorithm.init(KEY, start(), batch)
  new, metrics = jax.jit(algorithm.update)(KEY, state, batch)

  theta, eta = start()["discriminator"], start()["generator"]
  noise = jax.random.normal(KEY, (6, 2))

  def probability(theta, x):  # that x is data
    return jax.nn.sigmoid(tanh_logits(theta, 0.0, x, context)[0])

  def generated(eta):
    return linear(eta, 0.0, noise, context)[0]

  def against(theta):
    real, fake = probability(theta, DATA), probability(theta, generated(eta))
    return -jnp.mean(jnp.log(real)) - jnp.mean(jnp.log(1 - fake))

  loss, gradient = jax.value_and_grad(against)(theta)
  moved = jax.tree.map(lambda p, g: p - 0.1 * g, theta, gradient)

  def deceived(eta):  # the updated discriminator is deceived
    return -jnp.mean(jnp.log(probability(moved, generated(eta))))

  gen_loss, generator_gradient = jax.value_and_grad(deceived)(eta)
  want = {
    "discriminator": moved,
    "generator": jax.tree.map(lambda p, g: p - 0.2 * g, eta, generator_gradient),
  }
  assert_same(new.params, want)
  want = {
    "loss": loss,
    "generator_loss": gen_loss,
    "logit_data": tanh_logits(theta, 0.0, DATA, context)[0].mean(),
    "logit_generated": tanh_logits(theta, 0.0, generated(eta), context)[0].mean(),
    "gradient_norm": np.sqrt(sum((g**2).sum() for g in gradient.values())),
    "generator_gradient_norm": np.sqrt(
      sum((g**2).sum() for g in generator_gradient.values())
    ),
  }
  assert set(metrics) == set(want)
  assert_same(metrics, want)
  # The samples were drawn once; the discriminator keeps the statistics of data only.
  assert new.generator_stats == 1
  np.testing.assert_allclose(new.discriminator_stats, DATA.mean())
  assert new.generator_average == ()


@pytest.mark.usefixtures("x64")
def test_the_average_is_that_of_a_loop_over_the_generators():
  algorithm = gan(average=0.9)
  state = algorithm.init(KEY, start(), DATA)
  want = {name: np.array(leaf) for name, leaf in start()["generator"].items()}
  assert_same(state.generator_average, want)
  update = jax.jit(algorithm.update)
  for step in range(4):
    state, _ = update(jax.random.key(step), state, DATA)
    for name, leaf in state.params["generator"].items():
      want[name] = 0.9 * want[name] + 0.1 * np.asarray(leaf)
  assert_same(state.generator_average, want)
  assert abs(want["w"] - np.asarray(state.params["generator"]["w"])).max() > 1e-3
  plain = gan()
  alone = plain.init(KEY, start(), DATA)
  for step in range(4):
    alone, _ = jax.jit(plain.update)(jax.random.key(step), alone, DATA)
  assert_same(state.params, alone.params)


class Features(nn.Module):
  """The logit of a point of the plane: linear in x and its products."""

  @nn.compact
  def __call__(self, x, train=True):
    products = jnp.stack([x[:, 0] ** 2, x[:, 1] ** 2, x[:, 0] * x[:, 1]], axis=1)
    return nn.Dense(1)(jnp.concatenate([x, products / 4], axis=1))[:, 0]


@pytest.mark.slow
def test_a_dense_generator_finds_a_gaussian():
  rng = np.random.default_rng(3)
  mean, factor = np.array([1.5, -1.0]), np.array([[0.8, 0.0], [0.5, 0.4]])
  data = (mean + rng.normal(size=(2000, 2)) @ factor.T).astype(np.float32)
  generator, discriminator = nn.Dense(2), Features()
  noise_fn = lambda key, m: jax.random.normal(key, (m, 2))  # noqa: E731
  params = {
    "generator": generator.init(KEY, jnp.zeros((1, 2)))["params"],
    "discriminator": discriminator.init(KEY, jnp.zeros((1, 2)))["params"],
  }
  algorithm = dcgan(
    discriminators.discriminate_fn(discriminator),
    lambda eta, stats, noise, context: (generator.apply({"params": eta}, noise), stats),
    noise_fn,
    optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.2)),
    optax.sgd(0.1),
    discriminator_stats={},
    average=0.99,
  )
  fit = training.fit(
    KEY,
    algorithm,
    params,
    data,
    num_steps=1500,
    batch_size=100,
    log_every=500,
    progress=False,
  )
  eta = fit.state.generator_average
  found = np.asarray(eta["kernel"])
  np.testing.assert_allclose(eta["bias"], mean, atol=0.15)
  np.testing.assert_allclose(found.T @ found, factor @ factor.T, atol=0.15)
  np.testing.assert_allclose(fit.history[-1]["loss"], np.log(4), atol=0.05)
  np.testing.assert_allclose(fit.history[-1]["generator_loss"], np.log(2), atol=0.05)


@pytest.mark.parametrize("average", [-0.1, 1.0, 1.5])
def test_an_average_outside_its_range_is_an_error(average):
  with pytest.raises(ValueError, match="average must lie"):
    gan(average=average)


def test_arguments_out_of_range_are_an_error():
  with pytest.raises(ValueError, match="discriminator"):
    gan().init(KEY, start()["generator"], DATA)
  with pytest.raises(ValueError, match="energy"):
    gan().init(KEY, {"energy": 0, "generator": 0}, DATA)
  state = gan().init(KEY, start(), DATA)
  with pytest.raises(ValueError, match="the generator's samples"):
    gan().update(KEY, state, DATA[:, :2])
  columns = gan(lambda *args: (tanh_logits(*args)[0][:, None], 0.0))
  with pytest.raises(ValueError, match=r"shape \(6, 1\)"):
    columns.update(KEY, state, DATA)
  with pytest.raises(TypeError, match="the batch must be floating-point"):
    gan().update(KEY, state, DATA.astype(np.uint8))


# -------------------------------------------------------------- the discriminator


CONDITIONAL = DCGANDiscriminator(width=1 / 64, num_classes=3)


def pictures(m, size, channels=3, dtype=np.float32):
  x = np.random.default_rng(7).uniform(-1, 1, (m, size, size, channels))
  return x.astype(dtype)


@pytest.mark.parametrize(("size", "last"), [(32, 4_096), (64, 16_384)])
def test_the_discriminator_has_table_1_s_17_million_parameters(size, last):
  def shapes(num_classes, *label):
    module = DCGANDiscriminator(num_classes=num_classes)
    params, _ = jax.eval_shape(
      lambda: generators.initialize(KEY, module, pictures(2, size), *label)
    )
    kernels = [leaf["kernel"].shape for leaf in params.values() if "kernel" in leaf]
    return sorted(kernels), sum(leaf.size for leaf in jax.tree.leaves(params))

  kernels, count = shapes(None)
  layers = [(5, 5, 128, 256), (5, 5, 256, 512), (5, 5, 512, 1024)]
  assert kernels == [(5, 5, 3, 128), *layers, (last, 1)]
  # 5×5 layers, dense layer, biases, and gains and shifts of all but the first
  assert count == 17_212_800 + last + 1_921 + 2 * 1_792
  assert round(count / 1e6) == 17
  conditional, _ = shapes(10, jnp.zeros(2, int))
  assert conditional == [(5, 5, 13, 128), *layers, (last + 10, 1)]


def logits_by_hand(params, x, given):
  """The network in training, layer for layer, with one-hot vectors given."""
  maps = jnp.ones((*x.shape[:3], 1)) * given[:, None, None, :]
  x = jnp.concatenate([x, maps], axis=-1)
  for layer in range(4):
    weights = params[f"Conv_{layer}"]
    x = lax.conv_general_dilated(
      x, weights["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x += weights["bias"].reshape(1, 1, 1, -1)
    if layer > 0:
      norm = params[f"BatchNorm_{layer - 1}"]
      mean, var = (f((0, 1, 2), keepdims=True) for f in (x.mean, x.var))
      x = (x - mean) / jnp.sqrt(var + 1e-5) * norm["scale"].reshape(1, 1, 1, -1)
      x += norm["bias"].reshape(1, 1, 1, -1)
    x = jnp.where(x > 0, x, 0.2 * x)
  x = jnp.concatenate([x.reshape(len(x), -1), given], axis=1)
  return x @ params["Dense_0"]["kernel"][:, 0] + params["Dense_0"]["bias"]


@pytest.mark.usefixtures("x64")
def test_discriminator_is_its_layers_by_hand():
  module = CONDITIONAL
  x, label = pictures(6, 32, dtype=np.float64), labels(6)
  params, stats = started(module, x, label, dtype=np.float64)
  logits, _ = trained(module, params, stats, x, label)
  assert logits.shape == (6,)
  want = jax.jit(logits_by_hand)(params, x, np.eye(3)[label])
  np.testing.assert_allclose(logits, want, rtol=1e-8, atol=1e-10)


def test_both_networks_of_the_gan_get_the_label():
  module, x = CONDITIONAL, pictures(8, 32)
  params, stats = started(module, x, labels(8))
  deaf = {name: dict(leaf) for name, leaf in params.items()}
  for name in ("Conv_0", "Dense_0"):
    deaf[name]["kernel"] = deaf[name]["kernel"].at[..., -3:, :].set(0)

  def change(params):
    one, other = (
      sample(module, params, stats, x, jnp.full(8, label)) for label in (0, 2)
    )
    return abs(one - other).max()

  assert change(deaf) == 0
  assert change(deaf | {"Conv_0": params["Conv_0"]}) > 1e-4
  assert change(deaf | {"Dense_0": params["Dense_0"]}) > 1e-4


def test_discriminator_trains_on_batch_statistics_and_evaluates_with_running_ones():
  module, x, label = CONDITIONAL, pictures(8, 32), labels(8)
  params, stats = started(module, x, label)
  logits, new = trained(module, params, stats, x, label)
  for before, after in zip(jax.tree.leaves(stats), jax.tree.leaves(new)):
    assert abs(before - after).max() > 0
  for _ in range(100):
    _, new = trained(module, params, new, x, label)
  settled = sample(module, params, new, x, label)
  np.testing.assert_allclose(settled, logits, atol=2e-2)
  others = np.concatenate([x[:1], 0 * x[1:]])
  apart = sample(module, params, new, others, label)
  np.testing.assert_allclose(apart[0], settled[0], atol=1e-5)


def test_bfloat16_activations_with_float32_parameters():
  exact, x, label = CONDITIONAL, pictures(8, 32), labels(8)
  rounded = exact.clone(dtype=jnp.bfloat16)
  first = jax.eval_shape(lambda: generators.initialize(KEY, rounded, x, label))
  params, stats = started(rounded, x, label)
  logits, new = trained(rounded, params, stats, x, label)

  def loss(params):
    discriminate = discriminators.discriminate_fn(rounded)
    return generator_loss(discriminate(params, stats, x, label)[0])

  gradient = jax.eval_shape(jax.grad(loss), params)
  for leaf in jax.tree.leaves((first, gradient, logits, new)):
    assert leaf.dtype == jnp.float32
  want, _ = trained(exact, params, stats, x, label)
  assert 1e-4 < abs(logits - want).mean() / abs(want).mean() < 0.1


@pytest.mark.parametrize("options", [{"width": -1.0}, {"num_classes": 0}])
def test_numbers_outside_their_range_are_an_error(options):
  with pytest.raises(ValueError, match=next(iter(options))):
    DCGANDiscriminator(**options)


@pytest.mark.parametrize(
  ("num_classes", "shape", "label", "message"),
  [
    (None, (2, 32, 32, 3), [jnp.zeros(2, int)], "a label needs num_classes"),
    (3, (2, 32, 32, 3), [], "needs a label"),
    (3, (2, 32, 32, 3), [jnp.zeros(2)], "float32"),
    (None, (2, 28, 28, 1), [], "crop or scale"),
    (None, (2, 32, 64, 1), [], "crop or scale"),
    (None, (32, 32, 3), [], "crop or scale"),
  ],
)
def test_images_and_labels_of_wrong_shapes_are_an_error(
  num_classes, shape, label, message
):
  module = DCGANDiscriminator(width=1 / 64, num_classes=num_classes)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: generators.initialize(KEY, module, jnp.zeros(shape), *label))


# ------------------------------------------------------------------- all together


class Judge(nn.Module):
  """Logits of points [3] with batch norm over all devices' points."""

  axis_name: str | None = None

  @nn.compact
  def __call__(self, x, train=True):
    norm = nn.BatchNorm(not train, axis_name=self.axis_name, param_dtype=jnp.float64)
    hidden = jnp.tanh(nn.Dense(4, param_dtype=jnp.float64)(x))
    return nn.Dense(1, param_dtype=jnp.float64)(norm(hidden))[:, 0]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_many_devices_step_as_one():
  noise_fn = lambda key, m: jax.random.normal(key, (m, 2))  # noqa: E731
  batch = np.random.default_rng(5).normal(size=(16, 3))
  eta, generator_stats = started(Normalized(), noise(16)[:, :2], dtype=np.float64)
  theta, stats = started(Judge(), batch, dtype=np.float64)

  def algorithm(axis_name=None):
    return dcgan(
      discriminators.discriminate_fn(Judge(axis_name)),
      generators.generate_fn(Normalized(axis_name)),
      noise_fn,
      optax.sgd(1.0),
      optax.sgd(1.0),
      discriminator_stats=stats,
      generator_stats=generator_stats,
      average=0.5,
      axis_name=axis_name,
    )

  one, many = algorithm(), algorithm("i")
  state = one.init(KEY, {"discriminator": theta, "generator": eta}, batch)
  want = jax.jit(one.update)(KEY, state, batch)
  moved = jax.tree.map(lambda a, b: abs(a - b).max(), state[:3], want[0][:3])
  for path, distance in jax.tree_util.tree_leaves_with_path(moved):
    name = jax.tree_util.keystr(path)
    # Batch norm cancels the bias of the layer before it.
    assert distance > 1e-6 or "['generator']['Dense_0']['bias']" in name, name
  for how in WAYS:
    got = on_devices(
      how, many.update, (KEY, state, batch), (SAME, SAME, SHARDED), (SAME, SAME)
    )
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_statistics_that_devices_do_not_share_are_averaged():
  def generate(*args):
    samples, _ = linear(*args)
    return samples, args[1] + samples.mean()

  context, x = np.arange(16.0) % 3, np.random.default_rng(5).normal(size=(16, 3))
  batch = {"x": x, "context": context}
  one, many = gan(generate=generate), gan(generate=generate, axis_name="i")
  state = one.init(KEY, start(), batch)
  want = jax.jit(one.update)(KEY, state, batch)
  np.testing.assert_allclose(want[0].discriminator_stats, x.mean())
  specs = {"x": SHARDED, "context": SHARDED}
  for how in WAYS:
    got = on_devices(
      how, many.update, (KEY, state, batch), (SAME, SAME, specs), (SAME, SAME)
    )
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_networks_normalize_by_the_statistics_of_all_devices():
  generator = DCGANGenerator(32, width=1 / 128, num_classes=3)
  discriminator = DCGANDiscriminator(width=1 / 128, num_classes=3)
  xi, x, label = noise(16, np.float64), pictures(16, 32, dtype=np.float64), labels(16)
  eta, generator_stats = started(generator, xi, label, dtype=np.float64)
  theta, stats = started(discriminator, x, label, dtype=np.float64)

  def both(axis_name, xi, x, label):
    generate = generators.generate_fn(generator.clone(axis_name=axis_name))
    discriminate = discriminators.discriminate_fn(
      discriminator.clone(axis_name=axis_name)
    )
    samples, new = generate(eta, generator_stats, xi, label)
    logits, seen = discriminate(theta, stats, x, label)
    return (samples, logits), (new, seen)

  want = jax.jit(both, static_argnums=0)(None, xi, x, label)
  got = on_devices(
    "shard_map",
    functools.partial(both, "i"),
    (xi, x, label),
    (SHARDED, SHARDED, SHARDED),
    (SHARDED, SAME),
  )
  chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_a_step_of_the_networks_keeps_every_shape_and_type(dtype):
  """A compiled loop needs this of a state. Traced only, at full width."""
  generator = DCGANGenerator(64, num_classes=10, dtype=dtype)
  discriminator = DCGANDiscriminator(num_classes=10, dtype=dtype)
  noise_fn = generators.uniform_noise()
  batch = {"x": jnp.zeros((4, 64, 64, 3)), "context": jnp.zeros(4, jnp.uint8)}

  def step(key):
    noise = noise_fn(key, 4)
    eta, generator_stats = generators.initialize(
      key, generator, noise, batch["context"]
    )
    theta, stats = generators.initialize(
      key, discriminator, batch["x"], batch["context"]
    )
    algorithm = dcgan(
      discriminators.discriminate_fn(discriminator),
      generators.generate_fn(generator),
      noise_fn,
      optax.adam(2e-4, b1=0.5),
      optax.adam(2e-4, b1=0.5),
      discriminator_stats=stats,
      generator_stats=generator_stats,
      average=0.999,
    )
    state = algorithm.init(key, {"discriminator": theta, "generator": eta}, batch)
    return state, *algorithm.update(key, state, batch)

  state, new, metrics = jax.eval_shape(step, KEY)
  assert state == new
  assert {leaf.shape for leaf in jax.tree.leaves(metrics)} == {()}
  assert {leaf.dtype for leaf in jax.tree.leaves((new.params, metrics))} == {
    jnp.dtype(jnp.float32)
  }
