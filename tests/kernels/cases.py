"""Kernels of every kind, each with its formula in NumPy."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from stein_jax import kernels
from tests import oracles


def points(*shape, seed=0):
  """Particles and scores."""
  return np.random.default_rng(seed).normal(size=(2, *shape))


def polynomial_rbf(y, x):
  """(yᵀx + 0.7)² exp(−‖y − x‖²/1.3): symmetric, not radial."""
  return (y @ x + 0.7) ** 2 * jnp.exp(-jnp.sum((y - x) ** 2) / 1.3)


WEIGHTS = np.array([[1.0, -0.5, 0.3, 0.8], [0.2, 0.9, -1.1, 0.4]])


def feature(x):
  """Nonlinear features of a point [2], as [4]."""
  # JAX remembers a NumPy array inside jit in the precision that it had first, which
  # another test may have chosen. A list has no precision.
  weights = jnp.array(WEIGHTS.tolist(), x.dtype)
  return jnp.tanh(x @ weights) + 0.1 * jnp.sum(x**2)


def feature_np(x):
  return np.tanh(x @ WEIGHTS) + 0.1 * np.sum(x**2)


def feature_jacobian_np(x):
  slope = 1 - np.tanh(x @ WEIGHTS) ** 2
  return slope[:, None] * WEIGHTS.T + 0.2 * x[None, :]


KERNELS = {
  "rbf": (kernels.rbf(1.7), oracles.rbf(1.7)),
  "imq": (kernels.imq(0.9, exponent=-0.3), oracles.imq(0.9, -0.3)),
  "constant": (kernels.constant(), oracles.constant()),
  "not radial": (
    kernels.from_pairwise(polynomial_rbf),
    oracles.polynomial_rbf(0.7, 1.3),
  ),
  "on features": (
    kernels.on_features(kernels.rbf(1.7), feature),
    oracles.on_features(oracles.rbf(1.7), feature_np, feature_jacobian_np),
  ),
}
"""name -> kernel of points [2], and the oracle's k and ∇k."""


MATRIX = np.random.default_rng(11).normal(size=(2, 9))


def wave(matrix, x):
  """Features of a point, one for each column of the matrix."""
  return jnp.sin(x @ matrix)


def _on_waves(num_features, base, oracle):
  matrix = MATRIX[:, :num_features]
  return (
    kernels.on_features(base, Partial(wave, matrix)),
    oracles.on_features(
      oracle,
      lambda x: np.sin(x @ matrix),
      lambda x: np.cos(x @ matrix)[:, None] * matrix.T,
    ),
  )


def _affine(num_features, base, oracle):
  matrix, shift = MATRIX[:, :num_features], MATRIX[0, :num_features]
  features = Partial(lambda A, a, x: x @ A + a, matrix, shift)
  return (
    kernels.on_features(base, features, affine=True),
    oracles.on_features(oracle, lambda x: x @ matrix + shift, lambda x: matrix.T),
  )


ALL_KERNELS = {
  **KERNELS,
  # The repulsion is computed in another way if features are fewer than points.
  "few features": _on_waves(2, kernels.imq(1.3), oracles.imq(1.3, -0.5)),
  "many features": _on_waves(9, kernels.rbf(1.7), oracles.rbf(1.7)),
  "affine features": _affine(3, kernels.rbf(2.5), oracles.rbf(2.5)),
  # Here a point's gradient of k with itself is not zero.
  "not radial, few features": _on_waves(2, *KERNELS["not radial"]),
  "not radial, many features": _on_waves(9, *KERNELS["not radial"]),
  "not radial, affine features": _affine(3, *KERNELS["not radial"]),
}
"""The same, and all kinds of kernels on features."""
