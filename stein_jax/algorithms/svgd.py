"""Stein variational gradient descent: particles that move to a given density."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stein_jax import checks
from stein_jax.algorithms.metrics import direction_norm
from stein_jax.algorithms.particle_optimizer import update_particles
from stein_jax.stein.direction import DirectionLike, as_direction, call, check_kernel
from stein_jax.types import (
  Algorithm,
  Batch,
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
  kernel: DirectionLike,
  optimizer: optax.GradientTransformation,
  *,
  axis_name: str | None = None,
) -> Algorithm:
  """Moves particles to a given density: xᵢ ← xᵢ + ε φ*(xᵢ).

  An optax optimizer descends −φ*, so that `optax.sgd(ε)` is the paper's update and
  `optax.adagrad` the authors' usual one. `init(key, params)` takes the particles
  as `params`; key and batch are not used.

  Args:
    score_fn: x -> ∇ log p(x) of one point.
    kernel: from `kernels`, None, a `Direction`, or `fn(particles)` that returns one,
      called with this device's particles.
    optimizer: an optax optimizer. With `axis_name`, one that mixes particles (such as
      `optax.clip_by_global_norm` or `optax.lamb`) is applied to all particles by every
      device, so that the result is that of one device.
    axis_name: the axis over which the particles are sharded.

  Raises:
    TypeError: a kernel of another type than those above; an argument that is not a
      function, or not an optax optimizer.

  Source: Liu & Wang (2017), equation 5.
  """
  checks.function("score_fn", score_fn, "x")
  check_kernel(kernel, axis_name)
  checks.optimizer(optimizer)

  def init(key: Key, params: Particles, batch: Batch = None) -> SVGDState:
    del key, batch
    checks.num_particles(params)
    return SVGDState(params, optimizer.init(params))

  def update(
    key: Key, state: SVGDState, batch: Batch = None
  ) -> tuple[SVGDState, Metrics]:
    del key, batch
    x = state.particles
    phi = call(as_direction(kernel, x), x, jax.vmap(score_fn)(x), axis_name)
    descent = jax.tree.map(jnp.negative, phi)
    updates, opt_state = update_particles(
      optimizer, descent, state.opt_state, x, axis_name
    )
    metrics = {"direction_norm": direction_norm(phi, axis_name)}
    return SVGDState(optax.apply_updates(x, updates), opt_state), metrics

  return Algorithm(init, update)
