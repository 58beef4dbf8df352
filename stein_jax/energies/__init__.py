"""Energies: linen modules whose `apply` is an `energy_fn(params, x)`, for one point."""

from stein_jax.energies.autoencoder import (
  CELEB_A_LAYERS,
  CIFAR10_LAYERS,
  Autoencoder,
  JointAutoencoder,
  Layer,
)
from stein_jax.energies.base import Base
from stein_jax.energies.mlp import MLP
from stein_jax.energies.rbm import GaussianBernoulliRBM
from stein_jax.energies.residual import Residual

__all__ = [
  "GaussianBernoulliRBM",
  "Autoencoder",
  "Base",
  "JointAutoencoder",
  "Layer",
  "CIFAR10_LAYERS",
  "CELEB_A_LAYERS",
  "MLP",
  "Residual",
]
