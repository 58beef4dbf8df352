"""Kernels k(x, x') and their bandwidths.

A kernel is a small pytree: its bandwidth is a leaf or a named policy, its form is
static. RBF is exp(−‖x − x'‖²/h), as in the paper (Liu & Wang, 2017, section 5.1), so h
has the units of a squared distance.
"""

from stein_jax.kernels.bandwidths import (
  BANDWIDTHS,
  Bandwidth,
  MedianBandwidth,
  median_bandwidth,
)
from stein_jax.kernels.base import Kernel, Pairwise, from_pairwise
from stein_jax.kernels.features import OnFeatures, on_features
from stein_jax.kernels.projections import on_principal_components
from stein_jax.kernels.radial import Profile, Radial, constant, imq, rbf
from stein_jax.kernels.whitening import Whitened, whiten

__all__ = [
  "rbf",
  "imq",
  "constant",
  "from_pairwise",
  "on_features",
  "on_principal_components",
  "whiten",
  "median_bandwidth",
  "BANDWIDTHS",
  "Bandwidth",
  "MedianBandwidth",
  "Kernel",
  "Radial",
  "Profile",
  "Pairwise",
  "OnFeatures",
  "Whitened",
]
