"""With default settings no rule diverges, on truths with modes that are far apart."""

import math

import jax
import numpy as np
import optax
import pytest

from stein_jax import (
  conditional_noise_contrastive,
  contrastive_divergence,
  critics,
  denoising_score_matching,
  densities,
  energies,
  energy_discrepancy,
  evaluation,
  learned_stein_discrepancy,
  noise_contrastive,
  score_matching_loss,
  sliced_score_matching,
)
from stein_jax.training import fit

pytestmark = [pytest.mark.slow, pytest.mark.optimized]

ENERGY = energies.MLP(widths=(64, 64), base="diagonal")
ADAM = optax.adam(1e-3)
BATCH = 100

# Each truth with the standard deviation within its modes.
TRUTHS = {
  "two modes, d = 2": (densities.two_modes(2, separation=6.0, weights=(1, 3)), 1.0),
  "two modes, d = 10": (densities.two_modes(10, separation=6.0, weights=(1, 3)), 1.0),
  "gmm40": (densities.gmm40(), math.log1p(math.e)),
}


def chains(sd, **options):
  return contrastive_divergence(
    ENERGY.apply, ADAM, num_steps=10, step_size=0.1 * sd**2, **options
  )


# Each rule, as a function of the standard deviation within modes and of the data.
RULES = {
  "denoising": lambda sd, x: denoising_score_matching(
    ENERGY.apply, ADAM, sigma=0.3 * sd
  ),
  "sliced": lambda sd, x: sliced_score_matching(ENERGY.apply, ADAM),
  "noise contrastive": lambda sd, x: noise_contrastive(
    ENERGY.apply, evaluation.broad_gaussian(x), ADAM
  ),
  "conditional noise": lambda sd, x: conditional_noise_contrastive(
    ENERGY.apply, ADAM, noise_scale=0.3 * sd
  ),
  "energy discrepancy": lambda sd, x: energy_discrepancy(
    ENERGY.apply, ADAM, time=(0.3 * sd) ** 2
  ),
  "learned Stein": lambda sd, x: learned_stein_discrepancy(
    ENERGY.apply, critics.VectorMLP((64, 64)).apply, ADAM, ADAM
  ),
  "cd, data": lambda sd, x: chains(sd),
  "cd, persistent": lambda sd, x: chains(sd, persistent=True),
  "cd, replay": lambda sd, x: chains(sd, start="replay", buffer_size=10 * BATCH),
}


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_does_not_diverge(rule, truth):
  density, sd = TRUTHS[truth]
  data_key, held_out_key, energy_key, critic_key = jax.random.split(
    jax.random.key(0), 4
  )
  x = density.sample(data_key, 10_000)
  held_out = density.sample(held_out_key, 2000)
  algorithm = RULES[rule](sd, x)
  start = params = ENERGY.init_from_data(energy_key, x)
  if rule == "learned Stein":
    critic = critics.VectorMLP((64, 64)).init(critic_key, x[0])
    params = {"energy": start, "critic": critic}

  # Of the truth the loss is about −d/(2 sd²), and of the start nearer to 0. Where modes
  # are far from each other, a rule learns slowly and not exactly by this loss.
  margin = 0.02 * x.shape[1] / (2 * sd**2)

  def loss(params):
    return float(score_matching_loss(params, ENERGY.apply, held_out))

  for seed in range(3):
    run = fit(
      jax.random.key(seed),
      algorithm,
      params,
      x,
      num_steps=1000,
      batch_size=BATCH,
      progress=False,
    )
    found = run.state.params
    found = found["energy"] if rule == "learned Stein" else found
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.state))
    assert loss(found) < loss(start) + margin
