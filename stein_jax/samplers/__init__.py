"""Markov chains that move particles towards a density."""

from stein_jax.samplers.metropolis import MalaResult, mala
from stein_jax.samplers.unadjusted import langevin

__all__ = ["langevin", "mala", "MalaResult"]
