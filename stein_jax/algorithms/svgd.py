"""Stein variational gradient descent: particles that move to a given density."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stein_jax import checks, kernels
from stein_jax.algorithms.particle_optimizer import update_particles
from stein_jax.kernels import KernelLike
from stein_jax.parallel import axes
from stein_jax.stein.direction import svgd_direction
from stein_jax.types import (
  Algorithm,
  Array,
  Batch,
  Exchange,
  Key,
  Metrics,
  Particles,
  ScoreFn,
)


class SVGDState(NamedTuple):
  """The particles and their optimizer's state."""

  particles: Particles
  opt_state: optax.OptState


def svgd(
  score_fn: ScoreFn,
  kernel: KernelLike,
  optimizer: optax.GradientTransformation,
  *,
  regularization: float | Array | None = None,
  block_size: int | None = None,
  axis_name: str | None = None,
  exchange: Exchange | None = None,
) -> Algorithm:
  """Moves particles to a given density: xᵢ ← xᵢ + ε φ*(xᵢ).

  An optax optimizer descends −φ*, so `optax.sgd(ε)` is the paper's update and
  `optax.adagrad` the authors' usual one. `init(key, particles, batch)` takes the
  particles in the place of parameters; key and batch are not used.

  Args:
    score_fn: x -> ∇ log p(x) of one point.
    kernel: out of `kernels`, None, or `kernel_fn(particles) -> kernel`, called on
      this device's particles.
    optimizer: an optax optimizer. With `axis_name`, one that mixes particles (such as
      `optax.clip_by_global_norm` or `optax.lamb`) is applied to all particles by every
      device, so that the result is that of one device.
    regularization: η of the regularised Stein direction, as in `svgd_direction`.
    block_size: as in `svgd_direction`.
    axis_name: as in `svgd_direction`.
    exchange: as in `svgd_direction`.

  Raises:
    ValueError: a regularisation that is not above 0, or without a kernel.

  Source: Liu & Wang (2017), equation 5.
  """
  checks.regularization(regularization, kernel)

  def init(key: Key, params: Particles, batch: Batch = None) -> SVGDState:
    del key, batch
    checks.num_particles(params)
    return SVGDState(params, optimizer.init(params))

  def update(
    key: Key, state: SVGDState, batch: Batch = None
  ) -> tuple[SVGDState, Metrics]:
    del key, batch
    direction = svgd_direction(
      state.particles,
      jax.vmap(score_fn)(state.particles),
      kernels.at(kernel, state.particles),
      regularization=regularization,
      block_size=block_size,
      axis_name=axis_name,
      exchange=exchange,
    )
    descent = jax.tree.map(jnp.negative, direction)
    updates, opt_state = update_particles(
      optimizer, descent, state.opt_state, state.particles, axis_name
    )
    particles = optax.apply_updates(state.particles, updates)
    n = jax.tree.leaves(direction)[0].shape[0]
    squared_norm = optax.tree.norm(direction, squared=True) / n
    metrics = {"direction_norm": jnp.sqrt(axes.mean(squared_norm, axis_name))}
    return SVGDState(particles, opt_state), metrics

  return Algorithm(init, update)
