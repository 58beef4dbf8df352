"""The convolutional energy against layers of NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal
from flax import linen as nn

from stein_jax import contrastive_divergence, score_matching
from stein_jax.energies import Residual

KEY = jax.random.key(0)


def images(n, *shape, seed=0):
  return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def silu(x):
  return x / (1 + np.exp(-x))


def convolved(x, params, stride):
  """A 3×3 convolution, "SAME", by SciPy; x `[h, w, c]`."""
  kernel, bias = np.float64(params["kernel"]), np.float64(params["bias"])
  h, w, c = x.shape
  whole = np.zeros((h, w, kernel.shape[-1]))
  for i in range(c):
    for j in range(kernel.shape[-1]):
      whole[..., j] += scipy.signal.correlate2d(x[..., i], kernel[..., i, j], "same")
  if stride == 2:
    # "SAME" begins where the padding on both sides is most equal: at 1 for even sides.
    whole = whole[1 - h % 2 :: 2, 1 - w % 2 :: 2]
  return whole + bias


def normalized(x, params):
  """One group over all channels and pixels."""
  out = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
  return out * np.float64(params["scale"]) + np.float64(params["bias"])


def by_hand(params, x, norm):
  p = params["params"]
  z, k = np.float64(x), 0
  y = z
  for stage in range(2):
    y = convolved(y, p[f"Conv_{3 * stage}"], 2)
    change = y
    for i in (1, 2):
      change = silu(normalized(change, p[f"GroupNorm_{k}"]) if norm else change)
      change = convolved(change, p[f"Conv_{3 * stage + i}"], 1)
      k += 1
    y = y + change
  last = silu(normalized(y, p[f"GroupNorm_{k}"]) if norm else y)
  features = last.mean(axis=(0, 1))
  net = features @ np.float64(p["Dense_0"]["kernel"])[:, 0]
  net += np.float64(p["Dense_0"]["bias"][0])
  return 0.5 * np.square(z).sum() + net, features


@pytest.mark.parametrize("shape", [(8, 8, 2), (7, 10, 1)])
@pytest.mark.parametrize("normalization", ["group", "none"])
def test_energy_is_that_of_layers_by_hand(normalization, shape):
  energy = Residual(widths=(3, 5), normalization=normalization)
  (x,) = images(1, *shape)
  params = energy.init(KEY, x)
  # Scales and biases away from 1 and 0.
  keys = iter(jax.random.split(KEY, 100))
  params = jax.tree.map(
    lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), params
  )
  want, features = by_hand(params, x, normalization == "group")
  assert float(energy.apply(params, x)) == pytest.approx(want, rel=1e-5)
  np.testing.assert_allclose(energy.features(params, x), features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [28, 32, 64])
def test_flat_points_are_images_and_batches_are_independent(side):
  shape = (side, side, 1)
  flat = Residual(widths=(4, 4, 16), image_shape=shape)
  x = images(3, side * side)
  params = flat.init(KEY, x[0])
  of_images = Residual(widths=(4, 4, 16))
  energies = jax.vmap(flat.apply, (None, 0))(params, x)
  for point, energy in zip(x, energies):
    assert float(of_images.apply(params, point.reshape(shape))) == pytest.approx(
      float(energy), rel=1e-5
    )
  np.testing.assert_allclose(
    jax.vmap(flat.apply, (None, 0))(params, x[:1]), energies[:1], rtol=1e-5
  )


def test_the_base_has_the_moments_of_the_data():
  x = 5 + 3 * images(500, 4, 4, 1)
  energy = Residual(widths=(4,), base="diagonal")
  params = energy.init_from_data(KEY, x)
  base = params["params"]["base"]
  flat = x.reshape(500, -1)
  np.testing.assert_allclose(base["mean"], flat.mean(axis=0), rtol=1e-4)
  np.testing.assert_allclose(np.exp(base["log_scale"]), flat.std(axis=0), rtol=1e-4)
  z = (x[0].reshape(-1) - flat.mean(axis=0)) / flat.std(axis=0)
  network = Residual(widths=(4,)).apply(
    {"params": {k: v for k, v in params["params"].items() if k != "base"}},
    z.reshape(4, 4, 1),
  )
  assert float(energy.apply(params, x[0])) == pytest.approx(float(network), rel=1e-4)


@pytest.mark.parametrize("normalization", ["group", "none"])
def test_rules_can_learn_it(normalization):
  x = images(8, 9, 9, 1)
  energy = Residual(widths=(4, 4), normalization=normalization)
  params = energy.init(KEY, x[0])
  for rule in (
    score_matching(energy.apply, optax.sgd(1e-3), num_probes=1),
    contrastive_divergence(energy.apply, optax.sgd(1e-3), num_steps=2, step_size=0.1),
  ):
    state, metrics = rule.update(KEY, rule.init(KEY, params, x), x)
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), state.params, params)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(moved))
    assert max(jax.tree.leaves(moved)) > 0


def test_a_label_matters():
  energy = Residual(widths=(4,), num_classes=3)
  (x,) = images(1, 6, 6, 1)
  params = energy.init(KEY, x, 0)
  values = [float(energy.apply(params, x, label)) for label in range(3)]
  assert len(set(values)) == 3
  one_hot = float(energy.apply(params, x, jnp.eye(3)[2]))
  assert one_hot == pytest.approx(values[2], rel=1e-6)
  with pytest.raises(ValueError, match="num_classes=3 needs a context"):
    energy.apply(params, x)


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (lambda: Residual(widths=()), ValueError, "at least one width"),
    (lambda: Residual(widths=8), TypeError, "sequence of integers"),
    (lambda: Residual(widths=(0,)), ValueError, "each of widths"),
    (lambda: Residual(image_shape=(28, 28)), ValueError, "image_shape must be"),
    (lambda: Residual(image_shape=(28, 0, 1)), ValueError, "each of image_shape"),
    (lambda: Residual(normalization="batch"), ValueError, "normalization must be"),
    (lambda: Residual(base="full"), ValueError, "a parameter for each pair"),
    (lambda: Residual(base="round"), ValueError, "base must be"),
    (lambda: Residual(confinement=0), ValueError, "confinement must be"),
    (lambda: Residual(activation="silu"), TypeError, "activation must be"),
    (lambda: Residual().init(KEY, images(1, 784)[0]), ValueError, "give image_shape"),
    (
      lambda: Residual(image_shape=(28, 28, 1)).init(KEY, images(1, 3, 784)[0]),
      ValueError,
      r"an image \(28, 28, 1\), got shape \(3, 784\)",
    ),
    (lambda: Residual().init(KEY, {"a": 1}), TypeError, "x must be"),
    (
      lambda: Residual((4,)).init_from_data(KEY, images(1, 4, 4, 1)),
      ValueError,
      "with n > 1",
    ),
  ],
)
def test_bad_input(make, error, message):
  with pytest.raises(error, match=message):
    make()


def test_the_default_activation_is_smooth():
  assert Residual().activation is nn.silu
