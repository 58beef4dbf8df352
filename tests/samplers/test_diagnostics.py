"""Diagnostics of chains, against blackjax and chains whose answer is known."""

import blackjax.diagnostics
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax.samplers import effective_sample_size, split_r_hat
from tests.quick import only


def autoregressive(rho, m, n, seed=0):
  """x_t = ρ x_{t−1} + √(1 − ρ²) z, `[m, n]`."""
  rng = np.random.default_rng(seed)
  x = np.empty((m, n))
  x[:, 0] = rng.normal(size=m)
  for t in range(1, n):
    x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=m)
  return x


@pytest.mark.parametrize("rho", only([0.5], [0.0, 0.5, 0.9]))
@pytest.mark.parametrize("m", [1, 4])
def test_ess_of_an_autoregressive_chain(rho, m):
  n = 8000
  want = m * n * (1 - rho) / (1 + rho)
  got = effective_sample_size(jnp.float32(autoregressive(rho, m, n)))
  np.testing.assert_allclose(got, want, rtol=0.15)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_ess_is_that_of_blackjax(rho):
  x = autoregressive(rho, 4, 500)
  want = blackjax.diagnostics.effective_sample_size(x)
  np.testing.assert_allclose(effective_sample_size(x), want, rtol=0.05)


def test_ess_of_chains_that_disagree_is_small():
  x = autoregressive(0.0, 4, 1000) + np.arange(4)[:, None] * 10
  assert effective_sample_size(jnp.float32(x)) < 20


def test_alternating_chains_are_worth_more_than_independent_ones():
  assert effective_sample_size(jnp.float32(autoregressive(-0.5, 2, 2000))) > 8000


@pytest.mark.usefixtures("x64")
def test_r_hat_is_that_of_blackjax_on_halves():
  x = autoregressive(0.3, 3, 200)[..., None] * np.array([1.0, 2.0])
  halves = np.concatenate([x[:, :100], x[:, 100:]])
  want = blackjax.diagnostics.potential_scale_reduction(halves)
  np.testing.assert_allclose(split_r_hat(x), want, rtol=1e-10)
  np.testing.assert_allclose(split_r_hat(x), 1, atol=0.05)


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_ess_at_any_scale(scale):
  x = autoregressive(0.5, 4, 1000)
  want = effective_sample_size(jnp.float32(x))
  got = effective_sample_size(jnp.float32(scale * x))
  np.testing.assert_allclose(got, want, rtol=1e-3)


def test_ess_of_chains_that_stand_still_or_are_nan_is_nan():
  x = np.stack([autoregressive(0.0, 4, 50), np.ones((4, 50))], axis=-1)
  got = effective_sample_size(jnp.float32(x))
  assert np.isfinite(got[0])
  assert np.isnan(got[1])
  x[0, 0] = np.nan
  assert np.isnan(effective_sample_size(jnp.float32(x))).all()


def test_r_hat_sees_a_trend_and_a_shift():
  x = autoregressive(0.0, 4, 400)
  assert split_r_hat(jnp.float32(x + np.linspace(0, 5, 400))) > 1.2
  assert split_r_hat(jnp.float32(x + np.arange(4)[:, None])) > 1.2


@pytest.mark.parametrize("fn", [effective_sample_size, split_r_hat])
@pytest.mark.parametrize(
  ("chains", "message"),
  [
    (np.zeros(5, np.float32), "at least four draws"),
    (np.zeros((2, 3), np.float32), r"got shape \(2, 3\)"),
    (np.zeros((2, 8), int), "floating-point"),
  ],
)
def test_bad_chains(fn, chains, message):
  with pytest.raises(ValueError, match=message):
    fn(chains)
