"""Denoising score matching: the score of the data blurred by noise."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from stein_jax import checks
from stein_jax.algorithms.descent import descend
from stein_jax.algorithms.energy import check_batch, check_energy, score, split_batch
from stein_jax.compiled import compiled
from stein_jax.parallel import axes
from stein_jax.samplers.noise import normal_like, uniform
from stein_jax.types import (
  Algorithm,
  Array,
  Batch,
  EnergyFn,
  Key,
  Metrics,
  Numeric,
  Params,
  PyTree,
)


def _check_sigma(sigma: Any) -> None:
  if np.ndim(sigma) == 0:
    checks.positive("sigma", sigma)
    return
  if np.ndim(sigma) > 1 or not len(sigma):
    raise ValueError(
      "sigma must be a number or a sequence of numbers, one for each level of noise, "
      f"got shape {np.shape(sigma)}."
    )
  for value in sigma:
    checks.positive("each of sigma", value)


def _check(key: Key, data: Batch, sigma: Any) -> dict[str, Array]:
  checks.key(key)
  check_batch(data, "data")
  _check_sigma(sigma)
  if np.ndim(sigma) and split_batch(data)[1]:
    raise ValueError(
      "with several levels of noise the energy's context is sigma, and the batch has "
      "a context of its own; give one number as sigma, or put both into the point."
    )
  return {"sigma": jnp.asarray(sigma)}


@compiled(_check, static=("axis_name",))
def denoising_score_matching_loss(
  key: Key,
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  *,
  sigma: Numeric | Sequence[Numeric],
  axis_name: str | None = None,
) -> Array:
  """How far the model's score is from that of the data blurred by N(0, σ² I).

  (1/m) Σᵢ (σᵢ²/2) ‖s(xᵢ + σᵢzᵢ) + zᵢ/σᵢ‖²,  s = ∇ₓ log p = −∇ₓE,  zᵢ ~ N(0, I)

  For one σ it is σ²/2 times the Fisher divergence from the blurred data, plus a
  constant: the best energy is that of the blurred data, not of the data. No second
  derivative in x is needed, and none has to exist. The factor σ² makes the loss of all
  levels equally large, about d/2 for s = 0.

  Args:
    key: a PRNG key, the same on every device.
    params: θ.
    energy_fn: E(x; θ) of one point, twice differentiable. With several levels of noise
      it is `energy_fn(params, x, sigma)`, conditional on the level, a scalar.
    data: `[m, ...]`, or for one level also `{"x": ..., "context": ...}`.
    sigma: σ, the noise's standard deviation in the units of x. Of a sequence every
      point draws one number, all with the same probability.
    axis_name: the axis over which the data is sharded; the loss is the mean over this
      device's data.

  Returns:
    A scalar.

  Raises:
    TypeError: a key that is none.
    ValueError: a sigma that is not above 0, several of them and a batch with a context,
      or an energy that is not a scalar.

  >>> from stein_jax import energies
  >>> energy = energies.MLP(base="diagonal")
  >>> x = jax.random.normal(jax.random.key(0), (100, 2))
  >>> params = energy.init_from_data(jax.random.key(1), x, 0.1)  # σ is a context
  >>> loss = denoising_score_matching_loss(
  ...   jax.random.key(2), params, energy.apply, x, sigma=(0.1, 0.3, 1.0)
  ... )
  >>> loss.shape
  ()

  Source: Vincent (2011), equation 9; Song & Ermon (2019), equations 5 and 6.
  """
  x, context = split_batch(data)
  m = checks.num_particles(x)
  sigma = jnp.asarray(sigma, jnp.result_type(float))
  if sigma.ndim:
    key, level_key = jax.random.split(key)
    level = len(sigma) * uniform(level_key, m, sigma.dtype, axis_name)
    # A product just below len(sigma) may be rounded up.
    sigma = sigma[jnp.minimum(level.astype(int), len(sigma) - 1)]
    context = (sigma,)

  def at_point(x: PyTree, z: PyTree, sigma: Array, *context: PyTree) -> Array:
    blurred = jax.tree.map(lambda x, z: x + sigma.astype(x.dtype) * z, x, z)
    s = score(params, energy_fn, blurred, *context)
    residual = jax.tree.map(lambda s, z: sigma * s + z, s, z)
    return optax.tree.norm(residual, squared=True) / 2

  z = normal_like(key, x, axis_name)
  return jax.vmap(at_point)(x, z, jnp.broadcast_to(sigma, (m,)), *context).mean()


def denoising_score_matching(
  energy_fn: EnergyFn,
  optimizer: optax.GradientTransformation,
  *,
  sigma: Numeric | Sequence[Numeric],
  axis_name: str | None = None,
) -> Algorithm:
  """Descends `denoising_score_matching_loss` on every batch, with new noise each time.

  Args:
    energy_fn: E(x; θ) of one point; of several levels of noise E(x; θ, σ).
    optimizer: an optax optimizer.
    sigma: σ, one number or a sequence of them.
    axis_name: the axis over which the batch is sharded.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer.
    ValueError: a sigma that is not above 0; in `update`, several of them and a batch
      with a context.

  Source: Vincent (2011); Song & Ermon (2019).
  """
  check_energy(energy_fn)
  _check_sigma(sigma)

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    loss, gradient = axes.value_and_gradient(
      lambda p: denoising_score_matching_loss(
        key, p, energy_fn, batch, sigma=sigma, axis_name=axis_name
      ),
      params,
      axis_name,
    )
    return gradient, {"loss": loss}

  return descend(gradient_fn, optimizer)
