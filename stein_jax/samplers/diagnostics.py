"""How many independent draws chains are worth, and whether they agree."""

import jax
import jax.numpy as jnp
import numpy as np

from stein_jax.types import Array


def effective_sample_size(chains: Array) -> Array:
  """How many independent draws have the same error of the mean.

  ESS = m n / (1 + 2 Σₜ ρₜ), with the autocorrelations ρₜ of m chains of n draws, summed
  as long as the sums of neighbouring pairs are positive and decrease (Geyer, 1992).
  Chains that disagree have a large ρₜ, and a small ESS.

  Args:
    chains: `[m, n, ...]`: m chains of n draws. A loop over a sampler that collects its
      particles makes `[n, m, ...]`: swap the first two axes.

  Returns:
    For each number of a draw its ESS, `[...]`; NaN where all draws are equal, or one is
    not finite.

  Raises:
    ValueError: fewer than four draws.

  Source: Gelman et al., Bayesian Data Analysis (2013), section 11.5; Stan.
  """
  x = _check(chains)
  m, n = x.shape[:2]
  x = x - x.mean(axis=(0, 1), keepdims=True)
  scale = jnp.abs(x).max(axis=(0, 1), keepdims=True)  # so that squares do not overflow
  x = x / jnp.where(scale > 0, scale, 1)
  centered = x - x.mean(axis=1, keepdims=True)
  # Autocovariances by the Fourier transform, padded so that it does not wrap around.
  transformed = jnp.fft.rfft(centered, n=2 * n, axis=1)
  power = jnp.square(jnp.abs(transformed))
  covariance = jnp.fft.irfft(power, n=2 * n, axis=1)[:, :n] / n
  mean_covariance = covariance.mean(axis=0)
  within = mean_covariance[0] * n / (n - 1)
  total = mean_covariance[0]
  if m > 1:
    total = total + x.mean(axis=1).var(axis=0, ddof=1)
  rho = 1 - (within[None] - mean_covariance) / total[None]
  rho = rho.at[0].set(1)
  pairs = rho[: n // 2 * 2].reshape(n // 2, 2, *rho.shape[1:]).sum(axis=1)
  is_positive = jnp.cumprod(pairs > 0, axis=0)
  monotone = jax.lax.associative_scan(jnp.minimum, pairs, axis=0)
  time = 2 * jnp.sum(jnp.where(is_positive == 1, monotone, 0), axis=0) - 1
  # At most m n log₁₀(m n), as Stan does for chains that are better than independent.
  time = jnp.maximum(time, 1 / np.log10(m * n))
  return jnp.where(total > 0, m * n / time, jnp.nan)


def split_r_hat(chains: Array) -> Array:
  """R̂ of chains that are split in halves: 1 if they agree; above 1.01 they do not yet.

  R̂² = (W (n − 1)/n + B)/W, with the mean W of the variances within the half chains of n
  draws and the variance B of their means.

  Args:
    chains: `[m, n, ...]`: m chains of n draws; the middle one of an odd number is left
      out.

  Returns:
    For each number of a draw its R̂, `[...]`.

  Raises:
    ValueError: fewer than four draws.

  Source: Gelman et al., Bayesian Data Analysis (2013), section 11.4.
  """
  x = _check(chains)
  half = x.shape[1] // 2
  halves = jnp.concatenate([x[:, :half], x[:, -half:]])
  within = halves.var(axis=1, ddof=1).mean(axis=0)
  between = halves.mean(axis=1).var(axis=0, ddof=1)
  return jnp.sqrt((within * (half - 1) / half + between) / within)


def _check(chains: Array) -> Array:
  x = jnp.asarray(chains)
  if x.ndim < 2 or x.shape[1] < 4:
    raise ValueError(
      f"chains must be [m, n, ...] with at least four draws n, got shape {x.shape}."
    )
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f"chains must be floating-point, got {x.dtype}.")
  return x
