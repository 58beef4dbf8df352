"""Conditional noise-contrastive estimation: to tell data from noisy copies of it."""

import jax
import optax

from stein_jax import checks
from stein_jax.algorithms.descent import descend
from stein_jax.algorithms.energy import check_batch, check_energy, energies, split_batch
from stein_jax.algorithms.perturbed import energies_of_copies, normals
from stein_jax.compiled import compiled
from stein_jax.parallel import axes
from stein_jax.types import (
  Algorithm,
  Array,
  Batch,
  EnergyFn,
  Key,
  Metrics,
  Numeric,
  Params,
)


def _check(key: Key, data: Batch, noise_scale: Numeric, num_noise: int) -> None:
  checks.key(key)
  check_batch(data, "data")
  checks.positive("noise_scale", noise_scale)
  checks.at_least_one("num_noise", num_noise)


@compiled(_check, static=("num_noise", "axis_name"))
def conditional_noise_contrastive_loss(
  key: Key,
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  *,
  noise_scale: Numeric,
  num_noise: int = 1,
  axis_name: str | None = None,
) -> Array:
  """The logistic loss of telling each point from its noisy copies.

  (2/(mν)) Σᵢⱼ log(1 + exp(−Gᵢⱼ)),  Gᵢⱼ = E(yᵢⱼ) − E(xᵢ),  yᵢⱼ = xᵢ + σzᵢⱼ,

  with zᵢⱼ ~ N(0, I).

  The noise is symmetric: its density cancels, and so does log Z. For many points the
  loss is least where p is the density of the data, for every σ.

  The gradient is that of SteinCD with random moves σz in place of εφ: a contrast
  ∇θ[E(x) − E(y)] of data and moved data, here with the weight 2/(1 + exp(G)), which is
  1 for G = 0. So it shows what the Stein direction adds.

  For σ → 0 it is sliced score matching along z. With s = −∇ₓE,

    2 log(1 + exp(−G)) = 2 log 2 + σ zᵀs + (σ²/2) [½(zᵀs)² + zᵀ∇s z] + O(σ³).

  The term in σ, and all odd ones, have the mean 0: (2/σ²) (loss − 2 log 2) has the mean
  J(θ) + O(σ²), with J of `score_matching_loss`. Its variance grows as 1/σ².

  Args:
    key: a PRNG key, the same on every device.
    params: θ.
    energy_fn: E(x; θ) of one point.
    data: `[m, ...]`, or `{"x": ..., "context": ...}`.
    noise_scale: σ, in the units of x. About the scale of the data's finest structure.
    num_noise: ν, the number of copies of each point.
    axis_name: the axis over which the data is sharded; the loss is the mean over this
      device's data.

  Returns:
    A scalar, in nats. 2 log 2 for a constant energy.

  Raises:
    TypeError: a key that is none.
    ValueError: a noise_scale that is not above 0, num_noise below 1, or an energy that
      is not a scalar.

  >>> from stein_jax import energies
  >>> energy = energies.MLP(base="diagonal")
  >>> x = jax.random.normal(jax.random.key(0), (100, 2))
  >>> params = energy.init_from_data(jax.random.key(1), x)
  >>> loss = conditional_noise_contrastive_loss(
  ...   jax.random.key(2), params, energy.apply, x, noise_scale=0.3
  ... )
  >>> loss.shape
  ()

  Source: Ceylan & Gutmann (2018).
  """
  x, _ = split_batch(data)
  z = normals(key, x, num_noise, axis_name)
  y = jax.tree.map(lambda x, z: x[:, None] + (noise_scale * z).astype(x.dtype), x, z)
  gaps = (
    energies_of_copies(params, energy_fn, data, y)
    - energies(params, energy_fn, data)[:, None]
  )
  return 2 * jax.nn.softplus(-gaps).mean()


def conditional_noise_contrastive(
  energy_fn: EnergyFn,
  optimizer: optax.GradientTransformation,
  *,
  noise_scale: Numeric,
  num_noise: int = 1,
  axis_name: str | None = None,
) -> Algorithm:
  """Descends `conditional_noise_contrastive_loss` on every batch, with new noise.

  Args:
    energy_fn: E(x; θ) of one point.
    optimizer: an optax optimizer.
    noise_scale: σ, in the units of x.
    num_noise: ν, the number of noisy copies of each point.
    axis_name: the axis over which the batch is sharded.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer.
    ValueError: a noise_scale that is not above 0, or num_noise below 1.

  Source: Ceylan & Gutmann (2018).
  """
  check_energy(energy_fn)
  checks.positive("noise_scale", noise_scale)
  checks.at_least_one("num_noise", num_noise)

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    loss, gradient = axes.value_and_gradient(
      lambda p: conditional_noise_contrastive_loss(
        key,
        p,
        energy_fn,
        batch,
        noise_scale=noise_scale,
        num_noise=num_noise,
        axis_name=axis_name,
      ),
      params,
      axis_name,
    )
    return gradient, {"loss": loss}

  return descend(gradient_fn, optimizer)
