"""The DCGAN generator against its layers computed by JAX operations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from stein_jax import generators
from stein_jax.networks.generators import DCGANGenerator

KEY = jax.random.key(0)
NARROW = 1 / 64
CONDITIONAL = DCGANGenerator(32, width=NARROW, num_classes=3)


def started(module, x, *label, dtype=np.float32):
  """Random parameters around their initial values, initial statistics; no compiling."""
  shapes = jax.eval_shape(lambda: generators.initialize(KEY, module, x, *label))
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    first = path[-1].key in ("scale", "var")
    spread = 0 if path[-1].key in ("mean", "var") else 0.1
    return jnp.asarray(first + spread * rng.normal(size=leaf.shape), dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=0)
def trained(module, params, stats, x, label):
  """The output of the module in training, and its updated statistics."""
  return generators.generate_fn(module)(params, stats, x, label)


sample = jax.jit(generators.sample, static_argnums=0)


def noise(m, dtype=np.float32):
  return np.random.default_rng(2).uniform(-1, 1, (m, 100)).astype(dtype)


def labels(m):
  return jnp.arange(m) % 3


def sizes(params):
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def kernels_of(params):
  return sorted(leaf["kernel"].shape for leaf in params.values() if "kernel" in leaf)


@pytest.mark.parametrize(
  ("size", "maps"), [(32, (512, 256, 128)), (64, (1024, 512, 256, 128))]
)
@pytest.mark.parametrize("num_classes", [None, 10])
def test_layer_shapes_are_those_of_the_authors(size, maps, num_classes):
  generator = DCGANGenerator(size, num_classes=num_classes)
  label = () if num_classes is None else (jnp.zeros(2, int),)
  params, stats = jax.eval_shape(
    lambda: generators.initialize(KEY, generator, jnp.zeros((2, 100)), *label)
  )
  given = num_classes or 0
  steps = zip(maps, (*maps[1:], 3))
  want = [(100 + given, 16 * maps[0]), *((5, 5, a + given, b) for a, b in steps)]
  assert kernels_of(params) == sorted(want)
  biases = 16 * maps[0] + sum(maps[1:]) + 3
  norms = 2 * (16 * maps[0] + sum(maps[1:]))
  weights = sum(int(np.prod(shape)) for shape in want)
  assert sizes(params) == weights + biases + norms
  assert sizes(stats) == norms


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_their_size_and_channels(size, channels):
  generator = DCGANGenerator(size, channels=channels, width=NARROW)
  params, stats = jax.eval_shape(
    lambda: generators.initialize(KEY, generator, noise(2))
  )
  drawn = jax.eval_shape(
    functools.partial(generators.sample, generator), params, stats, noise(5)
  )
  assert (drawn.shape, drawn.dtype) == ((5, size, size, channels), jnp.float32)


def test_the_number_of_parameters_is_that_of_the_authors():
  def count(size):
    generator = DCGANGenerator(size)
    return sizes(
      jax.eval_shape(
        lambda: generators.initialize(KEY, generator, jnp.zeros((2, 100)))
      )[0]
    )

  # dense, 5×5 layers, then biases, gains and shifts
  assert count(32) == 819_200 + 4_105_600 + 8_579 + 2 * 8_576
  assert count(64) == 1_638_400 + 17_212_800 + 17_283 + 2 * 17_280


def by_hand(params, noise, given, size):
  """The network in training, layer by layer, with one-hot vectors `given`."""
  x = jnp.concatenate([noise, given], axis=1)
  x = x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
  layer = 0
  while True:
    axes = tuple(range(x.ndim - 1))
    x = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + 1e-5)
    norm = jax.tree.map(
      lambda p: p.reshape((1,) * (x.ndim - 1) + (-1,)),  # noqa: B023
      params[f"BatchNorm_{layer}"],
    )
    x = jnp.maximum(x * norm["scale"] + norm["bias"], 0)
    x = x.reshape(len(x), 4, 4, -1) if layer == 0 else x
    maps = jnp.ones((*x.shape[:3], 1)) * given[:, None, None, :]
    x = jnp.concatenate([x, maps], axis=-1)
    weights = params[f"Deconv_{layer}"]
    x = lax.conv_transpose(x, weights["kernel"][::-1, ::-1], (2, 2), "SAME")
    x += weights["bias"].reshape(1, 1, 1, -1)
    layer += 1
    if x.shape[1] == size:
      return jnp.tanh(x)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.usefixtures("x64")
def test_generator_equals_its_layers_computed_by_jax_operations(size):
  generator = DCGANGenerator(size, width=NARROW, num_classes=3)
  xi, label = noise(6, np.float64), labels(6)
  params, stats = started(generator, xi, label, dtype=np.float64)
  samples, _ = trained(generator, params, stats, xi, label)
  assert samples.shape == (6, size, size, 3)
  want = jax.jit(by_hand, static_argnums=3)(params, xi, np.eye(3)[label], size)
  np.testing.assert_allclose(samples, want, rtol=1e-8, atol=1e-10)


def test_initial_weights_are_small_and_biases_zero():
  params, _ = generators.initialize(
    KEY, DCGANGenerator(32, width=1 / 8), jnp.zeros((2, 100))
  )
  kernels = [leaf["kernel"].ravel() for leaf in params.values() if "kernel" in leaf]
  assert len(kernels) == 4
  weights = np.concatenate(kernels)
  assert abs(weights.mean()) < 4 * 0.02 / np.sqrt(weights.size)
  for kernel in kernels:
    np.testing.assert_allclose(kernel.std(), 0.02, rtol=5 / np.sqrt(kernel.size))
  for leaf in params.values():
    assert not leaf["bias"].any()
    assert (leaf.get("scale", jnp.ones(1)) == 1).all()


def test_every_layer_depends_on_the_label():
  generator = CONDITIONAL
  params, stats = started(generator, noise(8), labels(8))

  def without_label(but):
    """Zero weights for the last three inputs, the label, in all kernels but one."""
    return {
      name: leaf | {"kernel": leaf["kernel"].at[..., -3:, :].set(0)}
      if "kernel" in leaf and name != but
      else leaf
      for name, leaf in params.items()
    }

  def change(params):
    one, other = (
      sample(generator, params, stats, noise(8), jnp.full(8, label)) for label in (0, 2)
    )
    return abs(one - other).max()

  assert change(without_label(None)) == 0
  for name in params:
    if "kernel" in params[name]:
      assert change(without_label(name)) > 1e-4, name


def test_training_uses_batch_statistics_and_sampling_running_ones():
  generator, xi, label = CONDITIONAL, noise(8), labels(8)
  params, stats = started(generator, xi, label)
  samples, new = trained(generator, params, stats, xi, label)
  assert -1 <= samples.min() < -0.1 < 0.1 < samples.max() <= 1
  for before, after in zip(jax.tree.leaves(stats), jax.tree.leaves(new)):
    assert abs(before - after).max() > 0
  for _ in range(100):
    _, new = trained(generator, params, new, xi, label)
  drawn = sample(generator, params, new, xi, label)
  # The running statistics have converged to those of the batch.
  np.testing.assert_allclose(drawn, samples, atol=2e-2)
  others = np.concatenate([xi[:1], 0 * xi[1:]])
  apart = sample(generator, params, new, others, label)
  np.testing.assert_allclose(apart[0], drawn[0], atol=1e-5)


def test_bfloat16_computation_with_float32_parameters():
  exact, xi, label = CONDITIONAL, noise(8), labels(8)
  rounded = exact.clone(dtype=jnp.bfloat16)
  first = jax.eval_shape(lambda: generators.initialize(KEY, rounded, xi, label))
  params, stats = started(rounded, xi, label)
  samples, new = trained(rounded, params, stats, xi, label)

  def loss(params):
    return generators.generate_fn(rounded)(params, stats, xi, label)[0].sum()

  gradient = jax.eval_shape(jax.grad(loss), params)
  for leaf in jax.tree.leaves((first, gradient, samples, new)):
    assert leaf.dtype == jnp.float32
  want, _ = trained(exact, params, stats, xi, label)
  assert 1e-4 < abs(samples - want).mean() / abs(want).mean() < 0.1
  lines = str(jax.make_jaxpr(loss)(params)).splitlines()
  products = [line for line in lines if "dot_general[" in line or "conv_gen" in line]
  assert products
  assert all("bf16[" in line.split("=")[0] for line in products)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"size": 48}, "size must be one of"),
    ({"size": 32, "channels": 0}, "channels"),
    ({"size": 32, "width": 0.0}, "width"),
    ({"size": 64, "num_classes": 0}, "num_classes"),
  ],
)
def test_numbers_outside_their_range_are_errors(options, message):
  with pytest.raises(ValueError, match=message):
    DCGANGenerator(**options)


@pytest.mark.parametrize(
  ("num_classes", "label", "message"),
  [
    (None, [jnp.zeros(2, int)], "a label needs num_classes"),
    (3, [], "needs a label"),
    (3, [jnp.zeros(4, int)], "2 integers"),
    (3, [jnp.zeros(2)], "float32"),
    (3, [jnp.zeros((2, 3), int)], "2 integers"),
  ],
)
def test_wrong_labels_are_errors(num_classes, label, message):
  generator = DCGANGenerator(32, width=NARROW, num_classes=num_classes)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      lambda: generators.initialize(KEY, generator, jnp.zeros((2, 100)), *label)
    )
