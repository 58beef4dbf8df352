"""Markov chains that move particles towards a density."""

from stein_jax.samplers.adaptation import Adapted, adapt_step_size
from stein_jax.samplers.diagnostics import effective_sample_size, split_r_hat
from stein_jax.samplers.hamiltonian import hmc
from stein_jax.samplers.metropolis import MetropolisResult, mala
from stein_jax.samplers.replicas import TemperingResult, tempering
from stein_jax.samplers.unadjusted import langevin

__all__ = [
  "Adapted",
  "MetropolisResult",
  "TemperingResult",
  "adapt_step_size",
  "effective_sample_size",
  "hmc",
  "langevin",
  "mala",
  "split_r_hat",
  "tempering",
]
