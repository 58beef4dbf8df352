"""Whitened kernels: κ(x, y) = k(x, Z) W k(Z, y), W = (C + η K_ZZ)⁻¹."""

import dataclasses

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from stein_jax import (
  Direction,
  kernels,
  ksd_squared,
  stein_cd_gradient,
  stein_score_matching_gradient,
  svgd_direction,
  whitened_ksd_squared,
)
from stein_jax.kernels import whitening
from tests import oracles, quick
from tests.kernels.cases import ALL_KERNELS, points

ETA = 1e-2
NAMES = ["rbf", "imq", "few features", "affine features", "not radial"]
"""Of `ALL_KERNELS`."""


def data(n=60, d=2):
  return 1.5 * np.random.default_rng(7).normal(size=(n, d)) + 0.3


def whitened(name, r=8, eta=ETA):
  """A kernel and its oracle (κ, ∇κ), from definitions."""
  kernel, (k, grad_k) = ALL_KERNELS[name]
  got = kernels.whiten(kernel, data(), num_centers=r, eta=eta)
  z = data()[np.arange(r) * 60 // r]
  values = oracles.matrix(data(), z, k)
  weights = np.linalg.inv(values.T @ values / 60 + eta * oracles.matrix(z, z, k))

  def at(x):
    return weights @ np.array([k(x, c) for c in z])

  def grad_kappa(y, x):
    return np.sum([grad_k(y, c) * a for c, a in zip(z, at(x))], axis=0)

  return got, (lambda y, x: np.array([k(y, c) for c in z]) @ at(x), grad_kappa)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_direction_equals_the_double_loop(name, leave_one_out):
  kernel, oracle = whitened(name)
  x, s = points(7, 2)
  got = Direction(kernel, leave_one_out=leave_one_out)(x, s)
  want = oracles.svgd_direction(x, s, *oracle, leave_one_out=leave_one_out)
  np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", quick.only(["rbf", "few features"], NAMES))
def test_sums_of_the_kernel_equal_the_double_loop(name):
  kernel, (kappa, grad_kappa) = whitened(name)
  x, s = points(6, 2)
  matrix = oracles.matrix(x, x, kappa)
  np.testing.assert_allclose(kernel.matrix(x), matrix, rtol=1e-7)
  np.testing.assert_allclose(kernel.pair(x[0], x[1]), matrix[0, 1], rtol=1e-7)
  np.testing.assert_allclose(kernel.apply(x, None, s), matrix @ s, rtol=1e-7)
  others = matrix - np.diag(np.diag(matrix))
  got = kernel.apply(x, None, s, leave_one_out=True)
  np.testing.assert_allclose(got, others @ s, rtol=1e-6, atol=1e-9)
  row = [
    oracles.stein_kernel(x[0], s[0], y, t, kappa, grad_kappa) for y, t in zip(x, s)
  ]
  got = kernel.stein_kernel_row(x[0], s[0], x, s)
  np.testing.assert_allclose(got, row, rtol=1e-6, atol=1e-8)
  signs = np.array([[1, -1, 1, 1, -1, 1]]).T
  got = kernel.stein_kernel_sums(x, s, weights=signs)
  plain = kernel.stein_kernel_sums(x, np.asarray(s), weights=np.ones_like(signs))
  chex.assert_trees_all_close(
    jax.tree.map(lambda leaf: leaf[0], plain), kernel.stein_kernel_sums(x, s), rtol=1e-6
  )
  table = np.array([kernel.stein_kernel_row(a, b, x, s) for a, b in zip(x, s)])
  np.fill_diagonal(table, 0)
  np.testing.assert_allclose(got[0], signs.T @ table @ signs.ravel(), rtol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("statistic", ["V", "U"])
@pytest.mark.parametrize("name", ["rbf", "imq", "affine features"])
def test_discrepancy_equals_the_double_loop(name, statistic):
  kernel, oracle = whitened(name)
  x, s = points(6, 2)
  got = whitened_ksd_squared(x, s, kernel, statistic=statistic)
  want = oracles.ksd_squared(x, s, *oracle, statistic)
  np.testing.assert_allclose(got, want, rtol=1e-7)
  assert got == ksd_squared(x, s, kernel, statistic=statistic)


@pytest.mark.usefixtures("x64")
def test_the_direction_maximises_its_objective():
  # φ = Σ_z k(·, z) A_z, found by a general optimizer; its terms by JAX's derivatives.
  base = kernels.rbf(2.0)
  kernel = kernels.whiten(base, data(), num_centers=6, eta=ETA)
  x, s = points(9, 2)
  z = kernel.centers

  def phi(A, x):
    return jax.vmap(lambda c: base.pair(x, c))(z) @ A

  def objective(flat):
    A = flat.reshape(6, 2)
    stein = jax.vmap(
      lambda x, s: phi(A, x) @ s + jnp.trace(jax.jacfwd(lambda x: phi(A, x))(x))
    )(x, s).mean()
    size = jax.vmap(lambda x: jnp.sum(phi(A, x) ** 2))(jnp.asarray(data())).mean()
    norm = jnp.trace(A.T @ base.matrix(z) @ A)
    return -(stein - size / 2 - ETA / 2 * norm)

  found = scipy.optimize.minimize(
    jax.jit(objective), np.zeros(12), jac=jax.jit(jax.grad(objective)), tol=1e-13
  )
  want = jax.vmap(lambda x: phi(jnp.asarray(found.x).reshape(6, 2), x))(x)
  np.testing.assert_allclose(Direction(kernel)(x, s), want, rtol=2e-4, atol=1e-5)
  discrepancy = whitened_ksd_squared(x, s, kernel)
  np.testing.assert_allclose(discrepancy / 2, -found.fun, rtol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", quick.only(["affine features"], NAMES))
def test_a_particle_left_out_is_absent_from_its_own_sum(name):
  kernel, _ = whitened(name)
  x, s = points(7, 2)
  got = Direction(kernel, leave_one_out=True)(x, s)
  for i in range(7):
    others = np.arange(7) != i
    sums, _ = kernel.stein_sums(x[i : i + 1], x[others], s[others])
    np.testing.assert_allclose(got[i], sums[0] / 6, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_for_a_large_eta_it_is_the_direction_of_svgd():
  # With all data as centres; the particles are these.
  x = data(12)
  s = points(12, 2)[1]
  kernel = kernels.whiten(kernels.rbf(2.0), x, num_centers=12, eta=1e9)
  np.testing.assert_allclose(
    1e9 * Direction(kernel)(x, s),
    svgd_direction(x, s, kernels.rbf(2.0)),
    rtol=1e-5,
    atol=1e-7,
  )


@pytest.mark.usefixtures("x64")
def test_for_a_small_eta_it_is_the_score_minus_a_kernel_estimate_of_the_data_s():
  # −K⁻¹V estimates the score of the data (Li & Turner, 2018).
  x = data(12)
  s = points(12, 2)[1]
  base = kernels.rbf(0.7)
  kernel = kernels.whiten(base, x, num_centers=12, eta=1e-13)
  repulsion = 12 * svgd_direction(x, np.zeros_like(s), base)
  estimate = -np.linalg.solve(base.matrix(x), repulsion)
  np.testing.assert_allclose(Direction(kernel)(x, s), s - estimate, rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_stein_score_matching_descends_half_the_discrepancy():
  kernel, _ = whitened("imq")
  x, _ = points(7, 2)

  def energy_fn(params, x):
    return jnp.sum(jnp.tanh(x @ params)) + jnp.sum(x**2) / 2

  params = jnp.asarray(points(2, 3)[0])

  def loss(params, statistic):
    scores = -jax.vmap(jax.grad(energy_fn, argnums=1), (None, 0))(params, x)
    return whitened_ksd_squared(x, scores, kernel, statistic=statistic) / 2

  for out, statistic in ((False, "V"), (True, "U")):
    direction = Direction(kernel, leave_one_out=out)
    want = jax.grad(loss)(params, statistic)
    got = stein_score_matching_gradient(params, energy_fn, x, direction)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    got = stein_cd_gradient(
      params, energy_fn, x, direction, step_size=1e-4, symmetric=True
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_reference_points():
  kernel, oracle = whitened("rbf")
  x, s = points(9, 2)
  direction = Direction(kernel, leave_one_out=True)
  got = direction(x[:5], s[:5], reference=(x[5:], s[5:]))
  want = oracles.svgd_direction(x, s, *oracle, leave_one_out=True)
  np.testing.assert_allclose(got, want[:5], rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_pytrees():
  x, s = points(7, 3)
  all_data = data(60, 3)

  def tree(x):
    return {"a": x[:, :1], "b": x[:, 1:]}

  one, two = (
    Direction(kernels.whiten(kernels.rbf(), d, num_centers=8), leave_one_out=True)
    for d in (all_data, tree(all_data))
  )
  chex.assert_trees_all_close(two(tree(x), tree(s)), tree(one(x, s)), rtol=1e-9)
  np.testing.assert_allclose(
    whitened_ksd_squared(tree(x), tree(s), two.kernel),
    whitened_ksd_squared(x, s, one.kernel),
  )


def test_float32_is_near_float64():
  all_data = np.random.default_rng(3).normal(size=(5000, 4))

  def direction(dtype):
    x = all_data.astype(dtype)
    s = -2 * x[:100]
    # Of an η that outweighs the directions that only float64 keeps.
    kernel = kernels.whiten(kernels.rbf("median_no_log"), x, num_centers=150, eta=0.1)
    return Direction(kernel, leave_one_out=True)(x[:100], s)

  got = np.asarray(direction(np.float32))
  assert got.dtype == np.float32
  with jax.enable_x64(True):
    want = np.asarray(direction(np.float64))
  error = np.linalg.norm(got - want) / np.linalg.norm(want)
  assert error < 2e-2, error


def test_many_points_in_blocks_are_the_mean_over_all():
  x = np.random.default_rng(3).normal(size=(9001, 2)).astype(np.float32)
  kernel = kernels.whiten(kernels.rbf(3.0), x, num_centers=5, eta=0.5)
  values = np.asarray(kernel.base.matrix(x, kernel.centers), np.float64)
  K = np.asarray(kernel.base.matrix(kernel.centers), np.float64)
  want = np.linalg.inv(values.T @ values / 9001 + 0.5 * K)
  root = np.asarray(kernel.root, np.float64)
  np.testing.assert_allclose(root @ root.T, want, rtol=2e-3, atol=1e-4)


def test_within_jit():
  x, s = (a.astype(np.float32) for a in points(7, 2))
  all_data = data().astype(np.float32)

  @jax.jit
  def direction(all_data, x, s):
    kernel = kernels.whiten(kernels.rbf(), all_data, num_centers=8)
    return Direction(kernel, leave_one_out=True)(x, s)

  kernel = kernels.whiten(kernels.rbf(), all_data, num_centers=8)
  want = Direction(kernel, leave_one_out=True)(x, s)
  np.testing.assert_allclose(direction(all_data, x, s), want, rtol=1e-4, atol=1e-5)


def test_a_direction_with_a_whitening_can_be_made_within_jit():
  x, s = (a.astype(np.float32) for a in points(7, 2))
  kernel = kernels.rbf(2.0)
  found = kernels.whiten(kernel, data().astype(np.float32), num_centers=8)

  @jax.jit
  def direction(h, x, s):
    given = svgd_direction(x, s, kernel, whitening=found)
    return given, svgd_direction(x, s, kernels.rbf(h), whitening=found)

  want = Direction(found)(x, s)
  chex.assert_trees_all_close(direction(2.0, x, s), (want, want), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("x64")
def test_float32_data_where_float64_is_allowed():
  kernel = kernels.whiten(kernels.rbf(2.0), data().astype(np.float32), num_centers=8)
  assert kernel.root.dtype == np.float32


def test_features_need_not_be_defined_at_zero():
  x = np.random.default_rng(0).normal(size=(5000, 2)).astype(np.float32)
  unit = kernels.on_features(kernels.rbf(2.0), lambda x: x / jnp.linalg.norm(x))
  assert np.isfinite(kernels.whiten(unit, x, num_centers=8).root).all()


def test_centres_of_many_points_are_at_equal_distances():
  x = np.arange(3_000_000, dtype=np.float32)[:, None]
  chosen = whitening._some(x, 2000)
  np.testing.assert_allclose(chosen[:, 0], 1500.0 * np.arange(2000))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_sources", quick.only([9], [5, 9]))
def test_leave_one_out_of_other_sources_leaves_out_those_of_the_same_index(num_sources):
  kernel, _ = whitened("imq")
  x, y = points(9, 2)[0][:5], points(9, 2)[1][:num_sources]
  s = np.cos(y)
  base = super(kernels.Whitened, kernel)
  for got, want in (
    (
      kernel.stein_sums(x, y, s, leave_one_out=True),
      base.stein_sums(x, y, s, leave_one_out=True),
    ),
    (
      kernel.apply(x, y, s, leave_one_out=True),
      base.apply(x, y, s, leave_one_out=True),
    ),
  ):
    chex.assert_trees_all_close(got, want, rtol=1e-7, atol=1e-9)


def test_a_direction_with_a_whitening_is_that_of_the_whitened_kernel():
  x, s = points(7, 2)
  kernel = kernels.rbf("median_no_log", multiple=0.2)
  found = kernels.whiten(kernel, data(), num_centers=8)
  direction = Direction(kernel, whitening=found, leave_one_out=True)
  want = Direction(found, leave_one_out=True)
  assert direction == want
  assert dataclasses.replace(direction, block_size=4).kernel is found
  chex.assert_trees_all_equal(direction(x, s), want(x, s))
  chex.assert_trees_all_equal(
    svgd_direction(x, s, kernel, whitening=found, leave_one_out=True), want(x, s)
  )


def test_wrong_options_are_errors():
  kernel = kernels.rbf(2.0)
  found = kernels.whiten(kernel, data(), num_centers=8)
  with pytest.raises(ValueError, match="that of another kernel"):
    Direction(kernels.rbf(3.0), whitening=found)
  with pytest.raises(ValueError, match="that of another kernel"):
    Direction(kernels.imq(2.0), whitening=found)
  with pytest.raises(TypeError, match="what whiten"):
    Direction(kernel, whitening=kernel)
  with pytest.raises(TypeError, match="let it return"):
    Direction(lambda params: kernel, whitening=found)
  with pytest.raises(ValueError, match="regularization and whitening exclude"):
    Direction(kernel, whitening=found, regularization=0.1)
  with pytest.raises(ValueError, match="regularization and whitening exclude"):
    Direction(found, regularization=0.1)
  with pytest.raises(ValueError, match="row_normalized divides"):
    Direction(kernels.on_features(found, jnp.sin), row_normalized=True)
  with pytest.raises(TypeError, match="not yet whitened"):
    kernels.whiten(kernels.on_features(found, jnp.sin), data(), num_centers=8)
  sine, cosine = (kernels.on_features(kernel, fn) for fn in (jnp.sin, jnp.cos))
  with pytest.raises(ValueError, match="that of another kernel"):
    Direction(cosine, whitening=kernels.whiten(sine, data(), num_centers=8))
  first, second = (
    kernels.from_pairwise(lambda x, y, h=h: jnp.exp(-jnp.sum((x - y) ** 2) / h))
    for h in (1.0, 2.0)
  )
  with pytest.raises(ValueError, match="that of another kernel"):
    Direction(second, whitening=kernels.whiten(first, data(), num_centers=8))
  with pytest.raises(ValueError, match="the data that whitened the kernel"):
    Direction(found)(*points(7, 3))
  with pytest.raises(ValueError, match="row_normalized divides"):
    Direction(found, row_normalized=True)
  with pytest.raises(ValueError, match="at most the number of points"):
    kernels.whiten(kernel, data(), num_centers=61)
  with pytest.raises(ValueError, match="eta must be"):
    kernels.whiten(kernel, data(), num_centers=8, eta=0.0)
  with pytest.raises(TypeError, match="not yet whitened"):
    kernels.whiten(found, data(), num_centers=8)
  nearest = kernels.on_features(kernel, jnp.sin, num_neighbors=1)
  with pytest.raises(ValueError, match="leave num_neighbors out"):
    kernels.whiten(nearest, data(), num_centers=8)
  with pytest.raises(TypeError, match="whitened_ksd_squared needs"):
    whitened_ksd_squared(*points(7, 2), kernel)


@hypothesis.settings(max_examples=8, deadline=None)
@hypothesis.given(
  seed=st.integers(0, 2**31), n=st.integers(2, 9), eta=st.floats(1e-3, 10.0)
)
def test_properties(seed, n, eta):
  """κ is positive, D² is not negative, and the own part is what leave_one_out takes."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(seed)
    x, s = rng.normal(size=(2, n, 3))
    kernel = kernels.whiten(
      kernels.imq(rng.uniform(0.5, 5)), rng.normal(size=(40, 3)), num_centers=6, eta=eta
    )
    matrix = np.asarray(kernel.matrix(x))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9 * matrix.max())
    assert np.linalg.eigvalsh(matrix)[0] > -1e-9 * matrix.max()
    assert whitened_ksd_squared(x, s, kernel) >= 0
    left_out, whole = (
      Direction(kernel, leave_one_out=out)(x, s) for out in (True, False)
    )
    own = jnp.stack(
      [Direction(kernel)(x[i : i + 1], s[i : i + 1])[0] for i in range(n)]
    )
    np.testing.assert_allclose(n * whole, (n - 1) * left_out + own, atol=1e-8)


# --------------------------------------------------------- principal components


def test_principal_components_are_those_of_the_singular_values():
  x = np.random.default_rng(0).normal(size=(500, 6)) * [5, 4, 3, 1, 1, 1]
  x = x.astype(np.float32)
  kernel = kernels.on_principal_components(kernels.rbf(3.0), x, 3)
  _, _, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
  projected = x[:20] @ rows[:3].T
  want = oracles.matrix(projected, projected, *oracles.rbf(3.0))
  np.testing.assert_allclose(kernel.matrix(x[:20]), want, rtol=1e-3, atol=1e-6)


def test_principal_components_of_all_dimensions_keep_distances():
  x = data().astype(np.float32)
  kernel = kernels.on_principal_components(kernels.rbf(3.0), x, 2)
  want = kernels.rbf(3.0).matrix(x)
  np.testing.assert_allclose(kernel.matrix(x), want, rtol=1e-4)
  phi = svgd_direction(x, -x, kernel)
  np.testing.assert_allclose(phi, svgd_direction(x, -x, kernels.rbf(3.0)), atol=1e-4)


@pytest.mark.parametrize("num_components", [0, 3])
def test_a_wrong_number_of_components_is_an_error(num_components):
  with pytest.raises(ValueError, match="components"):
    kernels.on_principal_components(kernels.rbf(), data(), num_components)
