"""Convolutions as matrix products against JAX's own convolutions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from scipy.signal import correlate2d

from stein_jax.networks import layers

LAYOUT = ("NHWC", "HWIO", "NHWC")


def draws(key, *shapes):
  keys = jax.random.split(jax.random.key(key), len(shapes))
  return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes)]


@settings(deadline=None, max_examples=3)
@given(
  height=st.integers(1, 9),
  width=st.integers(1, 9),
  size=st.integers(1, 5),
  strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_convolution_and_its_gradients_are_jax_s(height, width, size, strides):
  x, kernel = draws(0, (2, height, width, 3), (size, size, 3, 4))
  expected, pull_back = jax.vjp(
    lambda x, w: lax.conv_general_dilated(
      x, w, strides, "SAME", dimension_numbers=LAYOUT
    ),
    x,
    kernel,
  )
  result, pull_own = jax.vjp(lambda x, w: layers.convolution(x, w, strides), x, kernel)
  (cotangent,) = draws(1, expected.shape)
  np.testing.assert_allclose(result, expected, atol=2e-5)
  for own, other in zip(pull_own(cotangent), pull_back(cotangent)):
    np.testing.assert_allclose(own, other, atol=5e-5)


def test_convolution_is_scipy_s_correlation():
  x, kernel = draws(2, (6, 7), (3, 3))
  result = layers.convolution(x[None, ..., None], kernel[..., None, None])
  expected = correlate2d(np.asarray(x), np.asarray(kernel), mode="same")
  np.testing.assert_allclose(result[0, ..., 0], expected, atol=1e-5)


def test_deconvolution_is_a_sum_over_its_inputs():
  x, kernel = (np.asarray(a) for a in draws(3, (2, 3, 4, 2), (5, 5, 2, 3)))
  expected = np.zeros((2, 6, 8, 3))
  for row, column in np.ndindex(3, 4):
    for i, j in np.ndindex(5, 5):
      o, p = 2 * row + i - 1, 2 * column + j - 1
      if 0 <= o < 6 and 0 <= p < 8:
        expected[:, o, p] += x[:, row, column] @ kernel[i, j]
  np.testing.assert_allclose(layers.deconvolution(x, kernel), expected, atol=1e-5)


def test_deconvolution_and_its_gradients_are_jax_s():
  x, kernel = draws(4, (2, 5, 3, 4), (5, 5, 4, 2))
  expected, pull_back = jax.vjp(
    lambda x, w: lax.conv_transpose(
      x, w[::-1, ::-1], (2, 2), "SAME", dimension_numbers=LAYOUT
    ),
    x,
    kernel,
  )
  result, pull_own = jax.vjp(layers.deconvolution, x, kernel)
  (cotangent,) = draws(5, expected.shape)
  np.testing.assert_allclose(result, expected, atol=2e-5)
  for own, other in zip(pull_own(cotangent), pull_back(cotangent)):
    np.testing.assert_allclose(own, other, atol=5e-5)


@pytest.mark.parametrize(
  ("layer", "shape"),
  [
    (nn.Conv(6, (3, 3), 2, conv_general_dilated=layers.convolution), (2, 3, 3, 6)),
    (layers.Deconv(6), (2, 10, 10, 6)),
  ],
)
def test_layers_add_a_bias(layer, shape):
  (x,) = draws(6, (2, 5, 5, 3))
  params = layer.init(jax.random.key(0), x)
  plain = layer.apply(params, x)
  assert plain.shape == shape
  params["params"]["bias"] = jnp.arange(6.0)
  shifted = layer.apply(params, x)
  np.testing.assert_allclose(
    shifted - plain, np.broadcast_to(np.arange(6), shape), atol=1e-5
  )


@pytest.mark.parametrize("strides", [1, 2, (1, 3)])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_flax_s_layer_has_the_same_parameters_and_results_with_it(strides, dtype):
  (x,) = draws(7, (2, 6, 9, 3))
  own, flax_s = (
    nn.Conv(4, (3, 3), strides, dtype=dtype, conv_general_dilated=function)
    for function in (layers.convolution, None)
  )
  params = own.init(jax.random.key(0), x)
  chex.assert_trees_all_equal(params, flax_s.init(jax.random.key(0), x))
  got, expected = own.apply(params, x), flax_s.apply(params, x)
  chex.assert_trees_all_equal_dtypes(got, expected)
  tolerance = 1e-5 if dtype is None else 0.02
  np.testing.assert_allclose(
    got.astype(jnp.float32), expected.astype(jnp.float32), atol=tolerance
  )


@pytest.mark.parametrize(
  "options",
  [
    {"padding": "VALID"},
    {"padding": 1},
    {"kernel_dilation": 2},
    {"input_dilation": 2},
    {"feature_group_count": 3},
  ],
)
def test_a_convolution_of_another_kind_is_an_error(options):
  layer = nn.Conv(3, (3, 3), conv_general_dilated=layers.convolution, **options)
  with pytest.raises(ValueError, match='convolution needs padding "SAME"'):
    layer.init(jax.random.key(0), jnp.zeros((1, 5, 5, 3)))


def test_channels_first_are_an_error():
  with pytest.raises(ValueError, match="channels last"):
    layers.convolution(
      jnp.zeros((1, 3, 5, 5)),
      jnp.zeros((3, 3, 3, 4)),
      dimension_numbers=("NCHW", "HWIO", "NCHW"),
    )


def test_deconvolution_needs_a_5_by_5_kernel():
  with pytest.raises(ValueError, match=r"\[5, 5, 2, c'\].*\(3, 3, 2, 4\)"):
    layers.deconvolution(jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 4)))
