"""The regularised Stein direction: by brute force, by its equation, in its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from stein_jax import Direction, kernels, svgd_direction
from tests import oracles


def regularised_by_brute_force(x, s, h, eta):
  """Maximises E[T_p φ] − ½E‖φ‖² − (η/2n)‖φ‖² over the span that holds the maximum.

  By the representer theorem φ_c lies in the span of k(xᵢ, ·) and ∂_c k(xᵢ, ·). The
  Gram matrix of those functions gives values, derivatives and norm of any member.
  """
  n, d = x.shape
  difference = x[:, None] - x[None]
  k = np.exp(-np.square(difference).sum(axis=2) / h)
  values = np.empty_like(x)
  for c in range(d):
    r = difference[:, :, c]
    slope = 2 / h * r * k  # [i, j]: ⟨k(xᵢ, ·), ∂_c k(xⱼ, ·)⟩
    curvature = (2 / h - 4 / h**2 * r**2) * k
    gram = np.block([[k, slope], [slope.T, curvature]])
    linear = (gram[:, :n] @ s[:, c] + gram[:, n:].sum(axis=1)) / n
    quadratic = (gram[:, :n] @ gram[:n] + eta * gram) / n
    coefficients = np.linalg.lstsq(quadratic, linear, rcond=1e-13)[0]
    values[:, c] = gram[:n] @ coefficients
  return values


@pytest.mark.parametrize("eta", [0.1, 1.0, 10.0])
def test_regularised_direction_is_the_maximum_by_brute_force(x64, eta):
  x, s = np.random.default_rng(3).normal(size=(2, 9, 2))
  want = regularised_by_brute_force(x, s, h=1.7, eta=eta)
  for kernel in (
    kernels.rbf(1.7),
    kernels.from_pairwise(kernels.rbf(1.7).pair),
    kernels.on_features(kernels.rbf(1.7), _identity),
  ):
    got = svgd_direction(x, s, kernel, regularization=eta)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("d", [2, 30])
def test_regularised_direction_solves_its_equation_in_float32(d):
  x, s = np.random.default_rng(8).normal(size=(2, 12, d)).astype(np.float32)
  h, eta = 2.0 * d, 0.05
  k, grad_k = oracles.rbf(h)
  K = np.array([[k(y, z) for y in x.astype(float)] for z in x.astype(float)])
  sums = 12 * oracles.svgd_direction(x, s, k, grad_k)
  want = np.linalg.solve(K + eta * np.eye(12), sums)
  got = svgd_direction(x, s, kernels.rbf(h), regularization=eta)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", [kernels.rbf(1.7), kernels.imq(), kernels.constant()])
def test_regularised_direction_on_affine_features(x64, base):
  rng = np.random.default_rng(6)
  x, s = rng.normal(size=(2, 9, 5))
  A, a = rng.normal(size=(5, 3)), rng.normal(size=3)
  features = Partial(lambda A, a, x: x @ A + a, A, a)
  want, got = (
    svgd_direction(
      x, s, kernels.on_features(base, features, affine=affine), regularization=0.2
    )
    for affine in (False, True)
  )
  np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_regularised_direction_in_half_precision():
  x, s = np.random.default_rng(8).normal(size=(2, 12, 5))
  x16, s16 = jnp.asarray(x, jnp.bfloat16), jnp.asarray(s, jnp.bfloat16)
  got = svgd_direction(x16, s16, kernels.rbf(3.0), regularization=0.3)
  assert got.dtype == jnp.bfloat16
  want = svgd_direction(
    x16.astype(np.float32), s16.astype(np.float32), kernels.rbf(3.0), regularization=0.3
  )
  np.testing.assert_allclose(got.astype(np.float32), want, atol=0.1)


def test_weak_regularisation_gives_the_score_minus_an_estimate_of_the_data_s(x64):
  """η → 0: Φ = S + K⁻¹V, and −K⁻¹V estimates the score of what x was drawn from."""
  rng = np.random.default_rng(9)
  x = rng.normal(size=(400, 1)) * 1.5 + 0.3
  few, few_scores = np.linspace(-2, 2, 9)[:, None], rng.normal(size=(9, 1))
  k, grad_k = oracles.rbf(0.5)
  K = np.array([[k(y[0], z[0]) for y in few] for z in few])
  V = np.array([[sum(grad_k(y[0], z[0]) for y in few)] for z in few])
  got = svgd_direction(few, few_scores, kernels.rbf(0.5), regularization=1e-9)
  np.testing.assert_allclose(got, few_scores + np.linalg.solve(K, V), rtol=1e-5)
  no_scores = np.zeros_like(x)
  estimate = -svgd_direction(x, no_scores, kernels.rbf(4.0), regularization=0.1)
  truth = -(x - 0.3) / 1.5**2
  assert np.square(estimate - truth).mean() < 0.15 * np.square(truth).mean()


def _identity(x):
  return x


def test_strong_regularisation_is_the_svgd_direction(x64):
  x, s = np.random.default_rng(4).normal(size=(2, 12, 3))
  eta = 1e7
  got = svgd_direction(x, s, kernels.rbf(), regularization=eta) * eta / len(x)
  np.testing.assert_allclose(got, svgd_direction(x, s, kernels.rbf()), rtol=1e-5)


def test_regularised_direction_of_trees_and_devices(x64):
  x, s = np.random.default_rng(5).normal(size=(2, 16, 3))
  want = svgd_direction(x, s, kernels.rbf(), regularization=0.3)
  tree = {"a": x[:, :2], "b": x[:, 2]}
  got = svgd_direction(
    tree, {"a": s[:, :2], "b": s[:, 2]}, kernels.rbf(), regularization=0.3
  )
  np.testing.assert_allclose(got["a"], want[:, :2], rtol=1e-9)
  np.testing.assert_allclose(got["b"], want[:, 2], rtol=1e-9)
  sharded = jax.pmap(
    lambda x, s: svgd_direction(x, s, kernels.rbf(), regularization=0.3, axis_name="i"),
    axis_name="i",
  )(x.reshape(8, 2, 3), s.reshape(8, 2, 3))
  np.testing.assert_allclose(sharded.reshape(16, 3), want, rtol=1e-9)


def test_regularisation_is_checked():
  x = np.zeros((3, 2), np.float32)
  with pytest.raises(ValueError, match="regularization must be a finite number"):
    svgd_direction(x, x, kernels.rbf(1.0), regularization=0.0)
  with pytest.raises(ValueError, match="regularization needs a kernel"):
    svgd_direction(x, x, None, regularization=1.0)
  for other in ("row_normalized", "leave_one_out"):
    message = f"regularization and {other} exclude each other"
    with pytest.raises(ValueError, match=message):
      svgd_direction(x, x, kernels.rbf(1.0), regularization=1.0, **{other: True})
    with pytest.raises(ValueError, match=message):
      Direction(kernels.rbf(), regularization=1.0, **{other: True})
