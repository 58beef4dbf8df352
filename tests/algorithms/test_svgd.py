"""SVGD as an algorithm: the paper's update, its fixed points, trees of particles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import Direction, kernels, svgd, svgd_direction
from tests.kernels.cases import points


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kernel", [kernels.rbf(), None], ids=["rbf", "off"])
def test_sgd_is_the_papers_update(kernel):
  x, _ = points(6, 2)
  algorithm = svgd(lambda x: -3 * x, kernel, optax.sgd(0.1))
  state = algorithm.init(None, x, None)
  new_state, metrics = algorithm.update(None, state, None)
  phi = svgd_direction(x, -3 * x, kernel)
  np.testing.assert_allclose(new_state.particles, x + 0.1 * phi, rtol=1e-12)
  rms = np.sqrt(np.mean(np.sum(np.square(phi), axis=1)))
  np.testing.assert_allclose(metrics["direction_norm"], rms, rtol=1e-12)


def run(algorithm, particles, num_steps):
  @jax.jit
  def scan(state):
    return jax.lax.scan(
      lambda state, _: algorithm.update(None, state, None), state, None, num_steps
    )

  return scan(algorithm.init(None, particles, None))


MEAN = np.array([1.0, -2.0])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
PRECISION = np.linalg.inv(COVARIANCE)


@pytest.mark.usefixtures("x64")
def test_a_linear_kernel_finds_mean_and_covariance_of_a_gaussian_exactly():
  # Liu & Wang (2018, "SVGD as moment matching"): with k = xᵀy + 1 every fixed point
  # has the Gaussian's mean and covariance.
  x, _ = points(12, 2)
  kernel = kernels.from_pairwise(lambda y, x: 1 + y @ x)
  algorithm = svgd(lambda x: PRECISION @ (MEAN - x), kernel, optax.sgd(0.05))
  state, metrics = run(algorithm, x, 3000)
  assert metrics["direction_norm"][-1] < 1e-6
  np.testing.assert_allclose(state.particles.mean(axis=0), MEAN, atol=1e-5)
  np.testing.assert_allclose(
    np.cov(state.particles.T, bias=True), COVARIANCE, atol=1e-5
  )


def test_rbf_particles_get_the_moments_of_the_gaussian():
  x, _ = points(40, 2).astype(np.float32)
  algorithm = svgd(
    lambda x: jnp.asarray(PRECISION, x.dtype) @ (jnp.asarray(MEAN, x.dtype) - x),
    kernels.rbf(),
    optax.adagrad(0.5),
  )
  state, _ = run(algorithm, x + 5, 600)
  np.testing.assert_allclose(state.particles.mean(axis=0), MEAN, atol=0.03)
  np.testing.assert_allclose(np.cov(state.particles.T), COVARIANCE, atol=0.2)


@pytest.mark.usefixtures("x64")
def test_the_algorithm_moves_pytrees():
  flat, _ = points(5, 3)
  tree = {"a": flat[:, :2], "b": flat[:, 2]}
  algorithm = svgd(
    lambda x: {"a": -x["a"], "b": 1 - x["b"]}, kernels.rbf(1.5), optax.sgd(0.2)
  )
  state, _ = run(algorithm, tree, 3)
  flat_algorithm = svgd(
    lambda x: jnp.array([0.0, 0.0, 1.0]) - x, kernels.rbf(1.5), optax.sgd(0.2)
  )
  want, _ = run(flat_algorithm, flat, 3)
  np.testing.assert_allclose(state.particles["a"], want.particles[:, :2], rtol=1e-10)
  np.testing.assert_allclose(state.particles["b"], want.particles[:, 2], rtol=1e-10)


def test_a_score_of_another_shape_is_an_error():
  x = np.zeros((4, 1), np.float32)
  algorithm = svgd(lambda x: -x[0], kernels.rbf(1.0), optax.sgd(0.1))
  with pytest.raises(ValueError, match=r"\(4, 1\) and \(4,\)"):
    algorithm.update(None, algorithm.init(None, x, None), None)


def test_svgd_along_the_regularised_direction(x64):
  x, _ = points(9, 2)
  direction = Direction(kernels.rbf(1.5), regularization=0.3)
  algorithm = svgd(lambda x: -x, direction, optax.sgd(0.2))
  state, _ = algorithm.update(None, algorithm.init(None, x, None), None)
  phi = svgd_direction(x, -x, kernels.rbf(1.5), regularization=0.3)
  np.testing.assert_allclose(state.particles, x + 0.2 * phi, rtol=1e-12)
  with pytest.raises(ValueError, match="regularization must be a finite number"):
    svgd(lambda x: -x, Direction(kernels.rbf(), regularization=-1.0), optax.sgd(0.2))
