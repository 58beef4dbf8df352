"""Noise-contrastive estimation: the energy learns to tell data from known noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stein_jax import checks
from stein_jax.algorithms.descent import DescentState, apply_gradient
from stein_jax.algorithms.energy import check_batch, check_energy, energies, split_batch
from stein_jax.compiled import compiled
from stein_jax.densities.density import Density
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
  Particles,
)

_FIRST_POINTS = 1000
"""From how many points of the noise log Z is first estimated."""


def _check_density(noise_density: Density) -> None:
  if not isinstance(noise_density, Density):
    raise TypeError(
      "noise_density must be a Density such as densities.gaussian(mean, covariance), "
      f"got {checks.described(noise_density)}."
    )


def _check_data(data: Batch) -> int:
  m = check_batch(data, "data")
  if split_batch(data)[1]:
    raise ValueError(
      "noise-contrastive estimation learns one log Z for all points; the batch has a "
      "context, got {'x', 'context'}."
    )
  return m


def _check(data: Batch, noise_points: Particles, noise_density: Density) -> None:
  _check_density(noise_density)
  _check_data(data)
  checks.num_particles(noise_points, "noise_points")
  checks.same_event(data, noise_points, ("data", "noise_points"))


@compiled(_check)
def noise_contrastive_loss(
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  noise_points: Particles,
  noise_density: Density,
  *,
  log_partition: Numeric,
) -> Array:
  """The logistic loss of telling data from noise by their densities.

  −(1/m) Σᵢ log h(xᵢ) − (1/m) Σⱼ log(1 − h(yⱼ)),  h(u) = p(u) / (p(u) + ν q(u))

  with log p(u) = −E(u) − c, noise points yⱼ of the density q, and ν = m'/m of them for
  each data point. For many points it is least where p is the density of the data, so
  that c = log Z(θ): c is learned as a parameter, and no integral is computed.

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point.
    data: `[m, ...]`.
    noise_points: y, `[m', ...]`, samples of the noise.
    noise_density: q. Where data lie it must not be 0.
    log_partition: c, in nats.

  Returns:
    A scalar, in nats. 2 log 2 for ν = 1 and p = q.

  Raises:
    TypeError: noise that is no `Density`.
    ValueError: a batch with a context, noise points of another shape than data, or an
      energy that is not a scalar.

  >>> from stein_jax import densities
  >>> q = densities.gaussian([0.0, 0.0])
  >>> x, y = q.sample(jax.random.key(0), 10), q.sample(jax.random.key(1), 10)
  >>> def energy_fn(params, x):
  ...   return params * x @ x
  >>> log_z = jnp.log(2 * jnp.pi)  # of the energy x @ x / 2: p = q
  >>> loss = noise_contrastive_loss(0.5, energy_fn, x, y, q, log_partition=log_z)
  >>> round(float(loss / jnp.log(2)), 3)
  2.0

  Source: Gutmann & Hyvärinen (2012).
  """
  ratio = checks.num_particles(noise_points) / checks.num_particles(data)

  def log_odds(points: Particles) -> Array:  # log h − log(1 − h)
    log_p = -energies(params, energy_fn, points) - log_partition
    log_q = jax.vmap(noise_density.log_density_fn)(points)
    return log_p - log_q - jnp.log(ratio)

  of_data = jax.nn.softplus(-log_odds(data)).mean()
  of_noise = jax.nn.softplus(log_odds(noise_points)).mean()
  return of_data + ratio * of_noise


class NoiseContrastiveState(NamedTuple):
  """As `DescentState`, with c ≈ log Z(θ) and its own optimizer's state."""

  params: Params
  opt_state: optax.OptState
  log_partition: Array
  log_partition_opt_state: optax.OptState


def noise_contrastive(
  energy_fn: EnergyFn,
  noise_density: Density,
  optimizer: optax.GradientTransformation,
  *,
  num_noise: int = 1,
  log_partition_optimizer: optax.GradientTransformation | None = None,
  axis_name: str | None = None,
) -> Algorithm:
  """Descends `noise_contrastive_loss` on every batch, with new noise each time.

  The state's `log_partition`, also a metric, is c: at the optimum −E(x) − c is a
  normalised log density. It starts as log mean exp(−E(y) − log q(y)) over 1000 points
  of the noise, an estimate of log Z at the first θ.

  Args:
    energy_fn: E(x; θ) of one point.
    noise_density: q, any density of `stein_jax.densities`. The closer it is to the
      data, the fewer steps are needed; a Gaussian of the data's mean and covariance is
      a simple choice.
    optimizer: an optax optimizer of θ.
    num_noise: ν, the number of noise points for each data point. More are better.
    log_partition_optimizer: an optax optimizer of c. None: gradient descent of rate
      1/(1 + ν), which cannot overshoot, since the second derivative of the loss in c is
      at most (1 + ν)/4, and which follows as log Z moves with θ.
    axis_name: the axis over which the batch is sharded. Every device draws all noise
      points and keeps its own.

  Raises:
    TypeError: noise that is no `Density`, or an argument that is not a function, or not
      an optax optimizer.
    ValueError: num_noise below 1; in `init` and `update`, a batch with a context, or
      noise of another shape than data.

  Source: Gutmann & Hyvärinen (2012).
  """
  check_energy(energy_fn)
  _check_density(noise_density)
  checks.optimizer(optimizer)
  checks.at_least_one("num_noise", num_noise)
  if log_partition_optimizer is None:
    log_partition_optimizer = optax.sgd(1 / (1 + num_noise))
  checks.optimizer(log_partition_optimizer, "log_partition_optimizer")
  of_log_z = log_partition_optimizer

  def init(key: Key, params: Params, batch: Batch) -> NoiseContrastiveState:
    checks.params(params)
    _check_data(batch)
    y = noise_density.sample_fn(key, _FIRST_POINTS)
    checks.same_event(batch, y, ("the batch", "noise_density"))
    log_q = jax.vmap(noise_density.log_density_fn)(y)
    log_ratios = -energies(params, energy_fn, y) - log_q
    log_z = jax.nn.logsumexp(log_ratios) - jnp.log(_FIRST_POINTS)
    return NoiseContrastiveState(
      params, optimizer.init(params), log_z, of_log_z.init(log_z)
    )

  def update(
    key: Key, state: NoiseContrastiveState, batch: Batch
  ) -> tuple[NoiseContrastiveState, Metrics]:
    n = _check_data(batch) * num_noise
    y = noise_density.sample_fn(key, n * axes.size(axis_name))
    y = axes.own(y, n, axis_name)
    loss, (gradient, slope) = axes.value_and_gradient(
      lambda p: noise_contrastive_loss(
        p[0], energy_fn, batch, y, noise_density, log_partition=p[1]
      ),
      (state.params, state.log_partition),
      axis_name,
    )
    params, opt_state = apply_gradient(
      DescentState(state.params, state.opt_state), gradient, optimizer
    )
    log_z, log_z_opt_state = apply_gradient(
      DescentState(state.log_partition, state.log_partition_opt_state), slope, of_log_z
    )
    metrics = {
      "loss": loss,
      "log_partition": log_z,
      "gradient_norm": optax.tree.norm(gradient),
    }
    return NoiseContrastiveState(params, opt_state, log_z, log_z_opt_state), metrics

  return Algorithm(init, update)
