"""stein_jax: train, sample and evaluate energy-based models in JAX.

The public names. The method is that of Liu & Wang (2017), *Learning Deep Energy Models:
Contrastive Divergence vs. Amortized MLE*.
"""

from stein_jax import (
  densities,
  energies,
  evaluation,
  kernels,
  parallel,
  samplers,
  training,
)
from stein_jax.algorithms.averaging import AveragedState, averaged
from stein_jax.algorithms.cd import (
  contrastive_divergence,
  contrastive_divergence_gradient,
)
from stein_jax.algorithms.conditional_noise import (
  conditional_noise_contrastive,
  conditional_noise_contrastive_loss,
)
from stein_jax.algorithms.contrastive import (
  PersistentState,
  contrastive_loss,
  learn_from_negatives,
  maximum_likelihood,
  negative_log_likelihood,
  sampled_maximum_likelihood,
)
from stein_jax.algorithms.dcgan import dcgan
from stein_jax.algorithms.denoising import (
  denoising_score_matching,
  denoising_score_matching_loss,
)
from stein_jax.algorithms.descent import DescentState, apply_gradient, descend
from stein_jax.algorithms.energy import score, scores
from stein_jax.algorithms.energy_discrepancies import (
  energy_discrepancy,
  energy_discrepancy_loss,
)
from stein_jax.algorithms.learned_stein import (
  learned_stein_discrepancy,
  learned_stein_discrepancy_loss,
)
from stein_jax.algorithms.mixing import MixState, mix
from stein_jax.algorithms.noise_contrastive import (
  noise_contrastive,
  noise_contrastive_loss,
)
from stein_jax.algorithms.refreshing import RefreshedState, refreshed
from stein_jax.algorithms.replay import ReplayBuffer
from stein_jax.algorithms.score_matching import (
  score_matching,
  score_matching_loss,
  sliced_score_matching,
  sliced_score_matching_loss,
  stein_score_matching,
  stein_score_matching_gradient,
)
from stein_jax.algorithms.stein_cd import (
  stein_cd,
  stein_cd_gradient,
  stein_moves,
)
from stein_jax.algorithms.stein_gan import (
  AlignmentController,
  amortized_svgd_gradient,
  amortized_svgd_loss,
  stein_gan,
)
from stein_jax.algorithms.svgd import svgd
from stein_jax.kernels.whitening import whiten
from stein_jax.networks import critics, discriminators, generators
from stein_jax.stein.direction import (
  Direction,
  as_direction,
  repulsion_share,
  svgd_direction,
)
from stein_jax.stein.discrepancy import ksd_squared, whitened_ksd_squared
from stein_jax.stein.goodness_of_fit import (
  SteinTest,
  fssd_test,
  ksd_aggregated_test,
  ksd_test,
)
from stein_jax.stein.thinning import stein_thinning
from stein_jax.types import Algorithm

__version__ = "0.1.0"

__all__ = [
  "Algorithm",
  "AlignmentController",
  "AveragedState",
  "DescentState",
  "Direction",
  "MixState",
  "PersistentState",
  "RefreshedState",
  "ReplayBuffer",
  "SteinTest",
  "amortized_svgd_gradient",
  "amortized_svgd_loss",
  "apply_gradient",
  "as_direction",
  "averaged",
  "conditional_noise_contrastive",
  "conditional_noise_contrastive_loss",
  "contrastive_divergence",
  "contrastive_divergence_gradient",
  "contrastive_loss",
  "critics",
  "dcgan",
  "denoising_score_matching",
  "denoising_score_matching_loss",
  "densities",
  "descend",
  "discriminators",
  "energies",
  "energy_discrepancy",
  "energy_discrepancy_loss",
  "evaluation",
  "fssd_test",
  "generators",
  "kernels",
  "ksd_aggregated_test",
  "ksd_squared",
  "ksd_test",
  "learn_from_negatives",
  "learned_stein_discrepancy",
  "learned_stein_discrepancy_loss",
  "maximum_likelihood",
  "mix",
  "negative_log_likelihood",
  "noise_contrastive",
  "noise_contrastive_loss",
  "parallel",
  "refreshed",
  "repulsion_share",
  "samplers",
  "sampled_maximum_likelihood",
  "score",
  "score_matching",
  "score_matching_loss",
  "scores",
  "sliced_score_matching",
  "sliced_score_matching_loss",
  "stein_cd",
  "stein_cd_gradient",
  "stein_gan",
  "stein_moves",
  "stein_score_matching",
  "stein_score_matching_gradient",
  "stein_thinning",
  "svgd",
  "svgd_direction",
  "training",
  "whiten",
  "whitened_ksd_squared",
]
