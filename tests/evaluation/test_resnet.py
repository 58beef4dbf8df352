"""The residual network against NumPy's loops and the paper's parameter counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax.evaluation import ResNet


def shapes(network, images=(2, 32, 32, 3)):
  return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(images))


# He et al. (2016), table 6: millions of parameters
@pytest.mark.parametrize(
  ("depth", "millions"),
  [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")],
)
def test_as_many_parameters_as_in_the_paper(depth, millions):
  params = shapes(ResNet(depth=depth))["params"]
  count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  assert f"{count / 1e6:.2f}".startswith(millions)


def test_one_more_layer_of_weights_than_convolutions_makes_the_depth():
  params = shapes(ResNet(depth=32))["params"]
  weights = [leaf for leaf in jax.tree.leaves(params) if len(leaf.shape) > 1]
  assert len(weights) == 32


def test_width_scales_the_maps():
  params = shapes(ResNet(depth=8, width=0.25, num_classes=3))["params"]
  assert params["stem"]["kernel"].shape == (3, 3, 3, 4)
  assert params["head"]["kernel"].shape == (16, 3)


def convolved(x, kernel, stride):
  """Zeros around, as "SAME" has it: at stride 2 none before an even extent."""
  _, h, w, _ = x.shape
  before = [0 if stride == 2 and extent % 2 == 0 else 1 for extent in (h, w)]
  padded = np.pad(x, ((0, 0), *((b, 2 - b) for b in before), (0, 0)))
  taps = [padded[:, i : i + h, j : j + w] @ kernel[i, j] for i, j in np.ndindex(3, 3)]
  return sum(taps)[:, ::stride, ::stride]


def normalized_conv(x, params, stats, stride=1, train=False):
  x = convolved(x, params["kernel"], stride)
  norm, running = params["BatchNorm_0"], stats["BatchNorm_0"]
  mean = x.mean(axis=(0, 1, 2)) if train else running["mean"]
  variance = x.var(axis=(0, 1, 2)) if train else running["var"]
  return (x - mean) / np.sqrt(variance + 1e-5) * norm["scale"] + norm["bias"]


def forward(images, variables, train=False):
  """ResNet-8 in float64: the last maps' means, and the logits."""
  variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
  params, stats = variables["params"], variables["batch_stats"]
  x = np.maximum(
    normalized_conv(4 * images - 2, params["stem"], stats["stem"], train=train), 0
  )
  for block in range(3):
    name, stride = f"blocks_{block}", 1 if block == 0 else 2
    first, second = (f"_NormalizedConv_{i}" for i in range(2))
    inner = normalized_conv(x, params[name][first], stats[name][first], stride, train)
    inner = normalized_conv(
      np.maximum(inner, 0), params[name][second], stats[name][second], train=train
    )
    shortcut = np.zeros_like(inner)
    # the pixels under the kernels' centres
    rows, columns = (
      (slice(None, None, 2) if extent % 2 else slice(1, None, 2))
      if stride == 2
      else slice(None)
      for extent in x.shape[1:3]
    )
    shortcut[..., : x.shape[-1]] = x[:, rows, columns]
    x = np.maximum(shortcut + inner, 0)
  features = x.mean(axis=(1, 2))
  return features, features @ params["head"]["kernel"] + params["head"]["bias"]


@pytest.fixture(scope="module")
def small():
  network = ResNet(depth=8, width=0.2, num_classes=4)
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(3, 12, 9, 3)).astype(np.float32)

  def drawn(leaf):  # kernels around 0; scales, biases, means and variances around 1
    kernel = len(leaf.shape) > 1
    x = rng.normal(0, 0.2, leaf.shape) if kernel else rng.uniform(0.5, 1.5, leaf.shape)
    return jnp.asarray(x, leaf.dtype)

  return network, jax.tree.map(drawn, shapes(network, images.shape)), images


def test_forward_pass_is_numpy_s(small):
  network, variables, images = small
  features, logits = forward(images, variables)
  np.testing.assert_allclose(
    network.apply(variables, images, method="features"), features, rtol=2e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    network.apply(variables, images), logits, rtol=2e-4, atol=1e-4
  )


def test_training_takes_the_batch_s_statistics_and_keeps_them(small):
  network, variables, images = small
  logits, new = network.apply(variables, images, train=True, mutable=["batch_stats"])
  _, expected = forward(images, variables, train=True)
  np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
  kernel = np.asarray(variables["params"]["stem"]["kernel"], np.float64)
  of_batch = convolved(4.0 * images - 2, kernel, 1).mean(axis=(0, 1, 2))
  before = variables["batch_stats"]["stem"]["BatchNorm_0"]["mean"]
  np.testing.assert_allclose(
    new["batch_stats"]["stem"]["BatchNorm_0"]["mean"],
    0.9 * before + 0.1 * of_batch,
    rtol=1e-4,
    atol=1e-5,
  )


def test_half_precision_is_inside_only(small):
  network, variables, images = small
  half = network.clone(dtype=jnp.bfloat16)
  logits = jax.jit(half.apply)(variables, images)
  assert logits.dtype == jnp.float32
  assert jax.tree.map(jnp.dtype, shapes(half)) == jax.tree.map(
    jnp.dtype, shapes(network)
  )
  expected = np.asarray(network.apply(variables, images))
  assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("depth", [2, 9, 18, 21])
def test_depths_other_than_6n_plus_2_are_rejected(depth):
  with pytest.raises(ValueError, match=r"6n \+ 2"):
    ResNet(depth=depth)


@pytest.mark.parametrize("width", [0, -1.0, float("nan")])
def test_a_width_that_is_not_positive_is_rejected(width):
  with pytest.raises(ValueError, match="width must be a finite number above 0"):
    ResNet(width=width)
