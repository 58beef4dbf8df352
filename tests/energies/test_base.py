"""The quadratic part of an energy against NumPy, and its start from data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax.energies import MLP, Base
from stein_jax.energies.base import KINDS

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=3).astype(np.float32)
# Correlated, of different means and scales.
DATA = RNG.normal(size=(500, 3)) @ np.array([[9.0, 0, 0], [2, 0.5, 0], [1, 0, 0.1]])
DATA = (DATA + np.array([40.0, -3, 0.2])).astype(np.float32)


def random_like(params):
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype), params)


def z_of(kind, data):
  """z of data with the moments of the data, through an energy."""
  energy = MLP(widths=(4,), base=kind)
  theta = energy.init_from_data(KEY, data)["params"]
  base = {"params": theta["base"]} if "base" in theta else {}
  points = data.reshape(len(data), -1)
  return np.asarray(jax.vmap(Base(kind).apply, (None, 0))(base, points), np.float64)


def test_isotropic_is_the_point_without_parameters():
  base = Base("isotropic")
  assert base.init(KEY, X) == {}
  np.testing.assert_array_equal(base.apply({}, X), X)


def test_diagonal_equals_numpy():
  base = Base("diagonal")
  start = base.init(KEY, X)
  np.testing.assert_array_equal(base.apply(start, X), X)
  params = random_like(start)
  theta = params["params"]
  want = (X - theta["mean"]) / np.exp(theta["log_scale"])
  np.testing.assert_allclose(base.apply(params, X), want, rtol=1e-5)


def test_full_equals_numpy():
  base = Base("full")
  start = base.init(KEY, X)
  np.testing.assert_array_equal(base.apply(start, X), X)
  params = random_like(start)
  theta = params["params"]
  want = theta["whitening"] @ (X - theta["mean"])
  np.testing.assert_allclose(base.apply(params, X), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_jit_vmap_and_gradients(kind):
  base = Base(kind)
  params = random_like(base.init(KEY, X))
  points = DATA[:4]
  got = jax.jit(jax.vmap(base.apply, (None, 0)))(params, points)
  want = np.stack([base.apply(params, x) for x in points])
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  # z is affine: its Jacobian is that of differences.
  jacobian = jax.jacrev(base.apply, argnums=1)(params, X)
  basis = np.eye(3, dtype=np.float32)
  differences = [base.apply(params, X + e) - base.apply(params, X) for e in basis]
  np.testing.assert_allclose(jacobian, np.stack(differences, 1), rtol=1e-3, atol=1e-4)


def test_diagonal_takes_mean_and_scale_of_the_data():
  z = z_of("diagonal", DATA)
  np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
  np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-5)
  assert np.abs(np.corrcoef(z.T) - np.eye(3)).max() > 0.1


def test_full_whitens_the_data():
  z = z_of("full", DATA)
  np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-3)
  # A floor of 10⁻³ of the largest scale is added, so that W exists.
  np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=0.02)


@pytest.mark.parametrize("shape", [(1,), (2, 2)])
@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_points_of_any_shape(kind, shape):
  data = 5 + 3 * np.random.default_rng(2).normal(size=(300, *shape)).astype(np.float32)
  z = z_of(kind, data)
  np.testing.assert_allclose(np.atleast_2d(np.cov(z.T)).diagonal(), 1, rtol=0.01)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
@pytest.mark.parametrize("constant", [[1], [0, 1, 2]], ids=["one", "all"])
def test_constant_coordinates_have_a_scale(kind, constant):
  data = DATA.copy()
  data[:, constant] = 7.0
  z = z_of(kind, data)
  assert np.isfinite(z).all()
  np.testing.assert_allclose(z[:, constant], 0, atol=1e-3)
  energy = MLP(widths=(4,), base=kind)
  params = energy.init_from_data(KEY, data)
  energies, slopes = jax.vmap(jax.value_and_grad(energy.apply, 1), (None, 0))(
    params, data
  )
  assert np.isfinite(energies).all()
  assert np.isfinite(slopes).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bad_data(kind):
  energy = MLP(widths=(4,), base=kind)
  with_nan = DATA.copy()
  with_nan[3, 1] = np.nan
  for data, error, message in (
    (DATA[:1], ValueError, r"points \[n, \.\.\.\] with n > 1, got \(1, 3\)"),
    (with_nan, ValueError, "data must be finite"),
    (DATA.astype(int), TypeError, "data must be floating-point"),
    ({"x": DATA}, TypeError, "data must be one array"),
    (None, TypeError, "data must be one array, got None"),
    ([[1.0, 2.0]] * 3, TypeError, "data must be an array"),
  ):
    with pytest.raises(error, match=message):
      energy.init_from_data(KEY, data)


def test_an_unknown_kind():
  message = r"must be one of \('isotropic', 'diagonal', 'full'\), got 'diag'"
  with pytest.raises(ValueError, match=f"base {message}"):
    MLP(base="diag")
  with pytest.raises(ValueError, match=f"kind {message}"):
    Base("diag")


def test_batches_are_noticed():
  for kind in ("diagonal", "full"):
    base = Base(kind)
    params = base.init(KEY, X)
    with pytest.raises(ValueError, match=r"a flat point \[d\], got shape \(5, 3\)"):
      base.apply(params, DATA[:5])


def test_doubles_stay_doubles():
  with jax.enable_x64(True):
    energy = MLP(widths=(4,), base="full")
    params = energy.init_from_data(KEY, DATA.astype(np.float64))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float64")}
