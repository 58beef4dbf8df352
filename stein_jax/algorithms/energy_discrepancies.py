"""Energy discrepancy: learning from energies alone, without scores or sampling."""

import jax
import jax.numpy as jnp
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


def _check_numbers(time: Numeric, num_samples: int, stabilization: Numeric) -> None:
  checks.positive("time", time)
  checks.at_least_one("num_samples", num_samples)
  checks.not_negative("stabilization", stabilization)


def _check(
  key: Key, data: Batch, time: Numeric, num_samples: int, stabilization: Numeric
) -> None:
  checks.key(key)
  check_batch(data, "data")
  _check_numbers(time, num_samples, stabilization)


@compiled(_check, static=("num_samples", "axis_name"))
def energy_discrepancy_loss(
  key: Key,
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  *,
  time: Numeric,
  num_samples: int = 16,
  stabilization: Numeric = 1.0,
  axis_name: str | None = None,
) -> Array:
  """Energies of the data against those of points that were blurred and blurred back.

  (1/m) Σᵢ log(w/M + (1/M) Σⱼ exp(E(xᵢ) − E(yᵢⱼ))),  yᵢⱼ = xᵢ + √t ξᵢ + √t ξ'ᵢⱼ,

  with ξ, ξ' ~ N(0, I), one ξ for each point and M of ξ' around it. No derivative in x
  is needed, so that energies that are not smooth can be learned as well.

  For M → ∞ the sum over j tends to an integral, and the loss to

    E(xᵢ) + log ∫ N(u; xᵢ + √t ξᵢ, t I) exp(−E(u)) du.

  Then, for t → 0, it is t · J(θ) + O(t²), with J of `score_matching_loss`; for t → ∞ it
  is the negative log-likelihood E(x) + log Z(θ), plus a term without θ.

  Args:
    key: a PRNG key, the same on every device.
    params: θ.
    energy_fn: E(x; θ) of one point.
    data: `[m, ...]`, or `{"x": ..., "context": ...}`.
    time: t, in units of squared distance. A large t sees the weights of far modes, and
      needs more samples.
    num_samples: M.
    stabilization: w ≥ 0. It bounds the logarithm from below by log(w/M), without which
      few samples let E(y) grow without end. Its bias falls as 1/M.
    axis_name: the axis over which the data is sharded; the loss is the mean over this
      device's data.

  Returns:
    A scalar, in nats. log(1 + w/M) for a constant energy.

  Raises:
    TypeError: a key that is none.
    ValueError: a time that is not above 0, num_samples below 1, a negative
      stabilization, or an energy that is not a scalar.

  >>> from stein_jax import energies
  >>> energy = energies.MLP(base="diagonal")
  >>> x = jax.random.normal(jax.random.key(0), (100, 2))
  >>> params = energy.init_from_data(jax.random.key(1), x)
  >>> key = jax.random.key(2)
  >>> energy_discrepancy_loss(key, params, energy.apply, x, time=0.3).shape
  ()

  Source: Schröder et al. (2023).
  """
  x, _ = split_batch(data)
  z = normals(key, x, 1 + num_samples, axis_name)  # ξ first, then the M of ξ'
  root = jnp.sqrt(time)
  y = jax.tree.map(
    lambda x, z: x[:, None] + (root * (z[:, :1] + z[:, 1:])).astype(x.dtype), x, z
  )
  gaps = energies(params, energy_fn, data)[:, None] - energies_of_copies(
    params, energy_fn, data, y
  )
  floor = jnp.full_like(gaps[:, :1], jnp.log(stabilization))
  terms = jnp.concatenate([floor, gaps], axis=1)
  return (jax.nn.logsumexp(terms, axis=1) - jnp.log(num_samples)).mean()


def energy_discrepancy(
  energy_fn: EnergyFn,
  optimizer: optax.GradientTransformation,
  *,
  time: Numeric,
  num_samples: int = 16,
  stabilization: Numeric = 1.0,
  axis_name: str | None = None,
) -> Algorithm:
  """Descends `energy_discrepancy_loss` on every batch, with new noise each time.

  Args:
    energy_fn: E(x; θ) of one point.
    optimizer: an optax optimizer.
    time: t, in units of squared distance.
    num_samples: M, the number of perturbed points for each data point.
    stabilization: w ≥ 0.
    axis_name: the axis over which the batch is sharded.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer.
    ValueError: a time that is not above 0, num_samples below 1, or a negative
      stabilization.

  Source: Schröder et al. (2023).
  """
  check_energy(energy_fn)
  _check_numbers(time, num_samples, stabilization)

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    loss, gradient = axes.value_and_gradient(
      lambda p: energy_discrepancy_loss(
        key,
        p,
        energy_fn,
        batch,
        time=time,
        num_samples=num_samples,
        stabilization=stabilization,
        axis_name=axis_name,
      ),
      params,
      axis_name,
    )
    return gradient, {"loss": loss}

  return descend(gradient_fn, optimizer)
