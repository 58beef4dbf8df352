"""The quadratic part of energies, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax.energies import MLP, Base
from stein_jax.energies.base import KINDS

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
DATA = (RNG.normal(size=(2000, 3)) @ RNG.normal(size=(3, 3)) * 4 + 50).astype(
  np.float32
)


def base_params(kind, data=DATA):
  return MLP(widths=(4,), base=kind).init_from_data(KEY, data)["params"].get("base", {})


def z_of(kind, data=DATA):
  params = {"params": base_params(kind, data)}
  return np.asarray(jax.vmap(Base(kind).apply, (None, 0))(params, data), np.float64)


def test_z_is_its_formula():
  x = DATA[0]
  np.testing.assert_array_equal(Base("isotropic").apply({}, x), x)
  p = {key: np.float64(v) for key, v in base_params("diagonal").items()}
  want = (x - p["mean"]) / np.exp(p["log_scale"])
  np.testing.assert_allclose(z_of("diagonal")[0], want, rtol=1e-5)
  p = {key: np.float64(v) for key, v in base_params("full").items()}
  want = p["whitening"] @ (x - p["mean"])
  np.testing.assert_allclose(z_of("full")[0], want, rtol=1e-4)


def test_data_are_standardised_or_whitened():
  z = z_of("diagonal")
  np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
  np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-4)
  z = z_of("full")
  np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-3)
  np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=2e-3)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_a_constant_coordinate_has_a_finite_scale(kind):
  data = DATA.copy()
  data[:, 1] = 7
  z = z_of(kind, data)
  assert np.isfinite(z).all()
  np.testing.assert_allclose(z[:, 1], 0, atol=1e-3)
  same = np.full((5, 3), 2.0, np.float32)
  assert np.isfinite(z_of(kind, same)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_without_data_z_is_x(kind):
  params = Base(kind).init(KEY, DATA[0])
  np.testing.assert_allclose(Base(kind).apply(params, DATA[0]), DATA[0], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_energy_with_a_base_by_hand(kind):
  energy = MLP(widths=(5,), base=kind, confinement=1.7, activation=jnp.tanh)
  params = energy.init_from_data(KEY, DATA)
  p = jax.tree.map(np.float64, params["params"])
  z = z_of(kind)[0]
  hidden = np.tanh(z @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
  net = hidden @ p["Dense_1"]["kernel"][:, 0] + p["Dense_1"]["bias"][0]
  want = 0.5 * 1.7 * np.square(z).sum() + net
  assert float(energy.apply(params, DATA[0])) == pytest.approx(want, rel=1e-5)
  np.testing.assert_allclose(energy.features(params, DATA[0]), hidden, atol=1e-5)
  # The base is learned like all else.
  gradient = jax.jit(jax.grad(energy.apply))(params, DATA[0])["params"]
  assert ("base" in gradient) == (kind != "isotropic")
  assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient.get("base")))


def test_the_network_is_that_of_init():
  energy = MLP(widths=(5,), base="diagonal")
  from_data, plain = energy.init_from_data(KEY, DATA), energy.init(KEY, DATA[0])
  for layer in ("Dense_0", "Dense_1"):
    np.testing.assert_array_equal(
      from_data["params"][layer]["kernel"], plain["params"][layer]["kernel"]
    )


def test_features_of_a_conditional_energy():
  energy = MLP(widths=(4, 6), num_classes=3, base="diagonal")
  params = energy.init_from_data(KEY, DATA, 0)
  found = [energy.features(params, DATA[0], label) for label in (0, 2)]
  assert found[0].shape == (6,)
  assert not np.array_equal(*found)


@pytest.mark.parametrize(
  ("data", "error", "message"),
  [
    (DATA[:1], ValueError, "with n > 1"),
    (np.where(DATA > 60, np.nan, DATA), ValueError, "finite"),
    (DATA.astype(int), TypeError, "data must be floating-point"),
    ("data", TypeError, "data must be"),
  ],
)
def test_bad_data(data, error, message):
  with pytest.raises(error, match=message):
    MLP(widths=(4,), base="diagonal").init_from_data(KEY, data)


def test_an_unknown_base_is_named():
  with pytest.raises(ValueError, match="base must be"):
    MLP(base="round")
