"""Markov chains that move particles towards a density."""

from stein_jax.samplers.unadjusted import MalaResult, langevin, mala

__all__ = ["langevin", "mala", "MalaResult"]
