"""Known truths: distributions whose log density, score and exact samples are known."""

from stein_jax.densities.density import Density, mixture
from stein_jax.densities.flows import affine_coupling_flow
from stein_jax.densities.gaussians import (
  gaussian,
  gaussian_mixture,
  gmm40,
  grid_modes,
  of_rbm,
  two_modes,
)
from stein_jax.densities.shapes import (
  banana,
  checkerboard,
  funnel,
  independent_components,
  pinwheel,
  rings,
  two_moons,
)

__all__ = [
  "Density",
  "affine_coupling_flow",
  "banana",
  "checkerboard",
  "funnel",
  "gaussian",
  "gaussian_mixture",
  "gmm40",
  "grid_modes",
  "independent_components",
  "mixture",
  "of_rbm",
  "pinwheel",
  "rings",
  "two_moons",
  "two_modes",
]
