"""Energies: linen modules whose `apply` is an `energy_fn(params, x)` of one point."""

from stein_jax.energies.mlp import MLP
from stein_jax.energies.rbm import GaussianBernoulliRBM

__all__ = ["MLP", "GaussianBernoulliRBM"]
