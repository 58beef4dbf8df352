"""Kernels on features: the exact repulsion, cheap or not, and its approximations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from stein_jax import kernels, svgd_direction
from tests import oracles


def weights(num_features, seed=3):
  return np.random.default_rng(seed).normal(size=(4, num_features))


def features_with(matrix, x):
  return jnp.sin(x @ matrix) + jnp.sum(x**2)


def numpy_features(matrix):
  return (
    lambda x: np.sin(x @ matrix) + np.sum(x**2),
    lambda x: np.cos(x @ matrix)[:, None] * matrix.T + 2 * x[None],
  )


def points(n, seed=0):
  return np.random.default_rng(seed).normal(size=(2, n, 4))


def on_features(matrix, base, **options):
  return kernels.on_features(
    base, Partial(features_with, jnp.asarray(matrix)), **options
  )


BASES = {
  "rbf": (kernels.rbf(3.0), oracles.rbf(3.0)),
  "imq": (kernels.imq(2.0, exponent=-0.3), oracles.imq(2.0, -0.3)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_features", [2, 9])  # fewer than the points, and more
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("block_size", [None, 2])
def test_the_exact_repulsion_equals_the_double_loop(num_features, base, block_size):
  x, s = points(6)
  matrix = weights(num_features)
  kernel, oracle = BASES[base]
  got = svgd_direction(x, s, on_features(matrix, kernel), block_size=block_size)
  oracle = oracles.on_features(oracle, *numpy_features(matrix))
  want = oracles.svgd_direction(x, s, *oracle)
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_features", [2, 9])
def test_the_exact_repulsion_equals_that_of_the_composed_kernel(num_features):
  x, s = points(6, seed=1)
  kernel = on_features(weights(num_features), kernels.rbf(2.0))
  composed = kernels.from_pairwise(kernel.pair)
  np.testing.assert_allclose(
    svgd_direction(x, s, kernel), svgd_direction(x, s, composed), rtol=1e-10, atol=1e-13
  )


def test_few_features_need_one_pull_back_each():
  x, s = points(6)

  def loops(num_features):
    kernel = on_features(weights(num_features), kernels.rbf(2.0))
    jaxpr = jax.make_jaxpr(lambda x: svgd_direction(x, s, kernel))(x)
    return str(jaxpr)

  assert "length=1" in loops(2)  # one feature, and then the other
  assert "length=6" in loops(9)  # query by query


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_neighbors", [1, 2, 5, 50])
def test_nearest_neighbors_equal_the_double_loop_over_them(num_neighbors):
  x, s = points(6)
  matrix, h = weights(3), 4.0
  got = svgd_direction(
    x, s, on_features(matrix, kernels.rbf(h), num_neighbors=num_neighbors)
  )
  feature, jacobian = numpy_features(matrix)
  k, grad_k = oracles.on_features(oracles.rbf(h), feature, jacobian)
  want = np.zeros_like(x)
  for i in range(6):
    others = [j for j in range(6) if j != i]
    others.sort(key=lambda j: np.sum((feature(x[j]) - feature(x[i])) ** 2))
    for j in range(6):
      want[i] += k(x[j], x[i]) * s[j]
    for j in others[:num_neighbors]:
      want[i] += grad_k(x[j], x[i])
  np.testing.assert_allclose(got, want / 6, rtol=1e-10, atol=1e-13)


def test_all_neighbors_are_the_exact_direction():
  x, s = points(7).astype(np.float32)
  matrix = weights(20)
  kernel = kernels.rbf("median")
  exact = svgd_direction(x, s, on_features(matrix, kernel))
  near = svgd_direction(x, s, on_features(matrix, kernel, num_neighbors=6))
  np.testing.assert_allclose(near, exact, rtol=1e-4, atol=1e-6)


def test_neighbors_are_checked():
  with pytest.raises(ValueError, match="num_neighbors must be an integer of at least"):
    kernels.on_features(kernels.rbf(), jnp.sin, num_neighbors=0)
  with pytest.raises(ValueError, match="omit num_neighbors"):
    kernels.on_features(kernels.rbf(), jnp.sin, affine=True, num_neighbors=1)


def test_bandwidths_on_features_are_the_paper_s_and_the_code_s():
  x = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
  med_squared = float(kernels.rbf("median_no_log").resolve(x).bandwidth)
  paper = kernels.rbf("features").resolve(x).bandwidth
  np.testing.assert_allclose(paper, med_squared * (0.5 / np.log(9)) ** 2, rtol=1e-5)
  code = kernels.rbf("features_authors").resolve(x).bandwidth
  np.testing.assert_allclose(code, med_squared / (4 * np.log(10)), rtol=1e-5)


@pytest.mark.parametrize("row_normalized", [False, True])
def test_affine_features_need_no_pull_back_for_each_pair(x64, row_normalized):
  rng = np.random.default_rng(6)
  x, s = rng.normal(size=(2, 9, 5))
  A, a = rng.normal(size=(5, 3)), rng.normal(size=3)
  features = Partial(lambda A, a, x: x @ A + a, A, a)
  for base, oracle in (
    (kernels.rbf(1.7), oracles.rbf(1.7)),
    (kernels.imq(1.7), oracles.imq(1.7, -0.5)),
  ):
    kernel = kernels.on_features(base, features, affine=True)
    composed = oracles.on_features(oracle, lambda x: x @ A + a, lambda x: A.T)
    want = oracles.svgd_direction(x, s, *composed, row_normalized=row_normalized)
    for block_size in (None, 2):
      got = svgd_direction(
        x, s, kernel, row_normalized=row_normalized, block_size=block_size
      )
      np.testing.assert_allclose(got, want, rtol=1e-9)


def test_affine_features_of_trees(x64):
  rng = np.random.default_rng(7)
  x, s = rng.normal(size=(2, 8, 4))

  def tree(flat):
    return {"a": flat[:, :3], "b": flat[:, 3]}

  def feature(x):
    return {"u": 2 * x["a"] - 1, "v": x["b"] - x["a"].sum()}

  want = svgd_direction(tree(x), tree(s), kernels.on_features(kernels.rbf(), feature))
  got = svgd_direction(
    tree(x), tree(s), kernels.on_features(kernels.rbf(), feature, affine=True)
  )
  for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=1e-14)
