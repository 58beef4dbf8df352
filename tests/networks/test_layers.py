"""Convolutions as products of matrices against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from scipy.signal import correlate2d

from stein_jax.networks import layers as convolutions

LAYOUT = ("NHWC", "HWIO", "NHWC")


def draws(key, *shapes):
  keys = jax.random.split(jax.random.key(key), len(shapes))
  return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes)]


@settings(deadline=None, max_examples=3)
@given(
  height=st.integers(1, 9),
  width=st.integers(1, 9),
  size=st.integers(1, 5),
  stride=st.integers(1, 3),
)
def test_convolution_and_its_gradients_are_jax_s(height, width, size, stride):
  x, kernel = draws(0, (2, height, width, 3), (size, size, 3, 4))
  expected, pull_back = jax.vjp(
    lambda x, w: lax.conv_general_dilated(
      x, w, (stride, stride), "SAME", dimension_numbers=LAYOUT
    ),
    x,
    kernel,
  )
  result, pull_own = jax.vjp(
    lambda x, w: convolutions.convolution(x, w, stride=stride), x, kernel
  )
  (cotangent,) = draws(1, expected.shape)
  np.testing.assert_allclose(result, expected, atol=2e-5)
  for own, other in zip(pull_own(cotangent), pull_back(cotangent)):
    np.testing.assert_allclose(own, other, atol=5e-5)


def test_convolution_is_scipy_s_correlation():
  x, kernel = draws(2, (6, 7), (3, 3))
  result = convolutions.convolution(x[None, ..., None], kernel[..., None, None])
  expected = correlate2d(np.asarray(x), np.asarray(kernel), mode="same")
  np.testing.assert_allclose(result[0, ..., 0], expected, atol=1e-5)


def test_deconvolution_is_the_sum_over_its_inputs():
  x, kernel = (np.asarray(a) for a in draws(3, (2, 3, 4, 2), (5, 5, 2, 3)))
  expected = np.zeros((2, 6, 8, 3))
  for row, column in np.ndindex(3, 4):
    for i, j in np.ndindex(5, 5):
      o, p = 2 * row + i - 1, 2 * column + j - 1
      if 0 <= o < 6 and 0 <= p < 8:
        expected[:, o, p] += x[:, row, column] @ kernel[i, j]
  np.testing.assert_allclose(convolutions.deconvolution(x, kernel), expected, atol=1e-5)


def test_deconvolution_and_its_gradients_are_jax_s():
  x, kernel = draws(4, (2, 5, 3, 4), (5, 5, 4, 2))
  expected, pull_back = jax.vjp(
    lambda x, w: lax.conv_transpose(
      x, w[::-1, ::-1], (2, 2), "SAME", dimension_numbers=LAYOUT
    ),
    x,
    kernel,
  )
  result, pull_own = jax.vjp(convolutions.deconvolution, x, kernel)
  (cotangent,) = draws(5, expected.shape)
  np.testing.assert_allclose(result, expected, atol=2e-5)
  for own, other in zip(pull_own(cotangent), pull_back(cotangent)):
    np.testing.assert_allclose(own, other, atol=5e-5)


@pytest.mark.parametrize(
  ("layer", "shape"),
  [
    (convolutions.Conv(6, size=3, stride=2), (2, 3, 3, 6)),
    (convolutions.Deconv(6), (2, 10, 10, 6)),
  ],
)
def test_layers_add_a_bias_of_their_own(layer, shape):
  (x,) = draws(6, (2, 5, 5, 3))
  params = layer.init(jax.random.key(0), x)
  plain = layer.apply(params, x)
  assert plain.shape == shape
  params["params"]["bias"] = jnp.arange(6.0)
  shifted = layer.apply(params, x)
  np.testing.assert_allclose(
    shifted - plain, np.broadcast_to(np.arange(6), shape), atol=1e-5
  )


def test_deconvolution_takes_5_by_5_kernels_alone():
  with pytest.raises(ValueError, match=r"\[5, 5, 2, c'\].*\(3, 3, 2, 4\)"):
    convolutions.deconvolution(jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 2, 4)))
