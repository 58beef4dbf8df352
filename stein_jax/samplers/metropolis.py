"""Chains with a Metropolis-Hastings test, which leave p invariant exactly."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.parallel import axes
from stein_jax.samplers import noise
from stein_jax.samplers.unadjusted import (
  at_particles,
  at_temperature,
  check,
  check_clip,
  clipped,
  langevin_step,
)
from stein_jax.types import Array, Key, LogDensityFn, Particles, PyTree


class MetropolisResult(NamedTuple):
  """The result of a chain with a Metropolis-Hastings test.

  Attributes:
    particles: the moved particles, `[n, ...]`.
    acceptance_rate: the fraction of accepted proposals, over all particles and steps.
  """

  particles: Particles
  acceptance_rate: Array


def check_tempered(
  key: Key,
  particles: Particles,
  log_density_fn: LogDensityFn,
  num_steps: int,
  step_size: float | Array,
  temperature: float | Array,
  context: PyTree,
) -> None:
  """Validates the arguments of a chain at a temperature, as `check` does."""
  check(key, particles, num_steps, step_size, context)
  checks.function("log_density_fn", log_density_fn)
  checks.positive("temperature", temperature)


def tempered(
  log_density_fn: LogDensityFn,
  x: Particles,
  context: PyTree,
  temperature: float | Array,
) -> tuple[Array, Particles]:
  """log p/T of every particle, `[n]`, and its gradient."""

  def log_density(x: PyTree, *context: PyTree) -> Array:
    log_p = log_density_fn(x, *context)
    checks.scalar("log_density_fn(x)", log_p)
    return log_p

  found = at_particles(jax.value_and_grad(log_density), x, context)
  return at_temperature(found, temperature)


def metropolis_chain(
  key: Key,
  particles: Particles,
  evaluate: Callable[[Particles], tuple[Array, Particles]],
  propose: Callable[[Key, tuple], tuple[tuple, Array]],
  *,
  num_steps: int,
  axis_name: str | None,
) -> MetropolisResult:
  """A chain of proposals, each accepted with probability min(1, r) or rejected.

  Args:
    key: as in `langevin`.
    particles: where the chain starts.
    evaluate: particles -> log p of each, `[n]`, and its gradient.
    propose: (key, (x, log p, scores)) -> such a triple at the proposals, and log r,
      `[n]`. A NaN counts as r = 0.
    num_steps: how many proposals.
    axis_name: as in `langevin`.
  """

  def step(carry: tuple, step_key: Key) -> tuple[tuple, Array]:
    proposal_key, accept_key = jax.random.split(step_key)
    proposal, log_ratio = propose(proposal_key, carry)
    u = noise.uniform(accept_key, len(log_ratio), log_ratio.dtype, axis_name)
    accepted = jnp.log(u) < log_ratio  # False where the ratio is NaN

    def choose(new: Array, old: Array) -> Array:
      return jax.vmap(jnp.where)(accepted, new, old)

    return jax.tree.map(choose, proposal, carry), accepted.mean()

  start = (particles, *evaluate(particles))
  (moved, _, _), accepted = jax.lax.scan(step, start, jax.random.split(key, num_steps))
  return MetropolisResult(moved, axes.mean(accepted.mean(), axis_name))


def _check_mala(
  key: Key,
  particles: Particles,
  log_density_fn: LogDensityFn,
  num_steps: int,
  step_size: float | Array,
  temperature: float | Array,
  score_clip: float | Array | None,
  context: PyTree,
) -> None:
  check_tempered(
    key, particles, log_density_fn, num_steps, step_size, temperature, context
  )
  check_clip(score_clip)


@compiled(_check_mala, static=("num_steps", "axis_name"))
def mala(
  key: Key,
  particles: Particles,
  log_density_fn: LogDensityFn,
  *,
  num_steps: int,
  step_size: float | Array,
  temperature: float | Array = 1.0,
  score_clip: float | Array | None = None,
  context: PyTree = None,
  axis_name: str | None = None,
) -> MetropolisResult:
  """The Metropolis-adjusted Langevin algorithm: Langevin proposals, some rejected.

  A proposal x' = x + ε ∇ log p(x) + √(2ε) z is accepted with probability
  min(1, p(x') q(x | x') / (p(x) q(x' | x))), q(x' | x) = N(x + ε ∇ log p(x), 2ε I).
  A proposal whose density is NaN is rejected.

  Args:
    key: as in `langevin`.
    particles: as in `langevin`.
    log_density_fn: x -> log p(x) of one point, up to a constant; with a context,
      (x, context) -> the same.
    num_steps: k, the number of proposals for each particle.
    step_size: ε, in units of squared distance.
    temperature: T; the chain samples p^(1/T).
    score_clip: as in `langevin`. The clipped score is that of the proposal, so that p
      stays invariant.
    context: as in `langevin`.
    axis_name: as in `langevin`.

  Returns:
    The moved particles, and the acceptance rate over all particles and steps.

  Raises:
    ValueError: num_steps below 1, a step size, temperature or score_clip that is not
      above 0, or a log density that is not a scalar.
    TypeError: a key that is not a PRNG key, or log_density_fn is not a function.

  Source: Roberts & Tweedie (1996); with score_clip it is their MALTA.
  """

  def evaluate(x: Particles) -> tuple[Array, Particles]:
    log_p, scores = tempered(log_density_fn, x, context, temperature)
    return log_p, scores if score_clip is None else clipped(scores, score_clip)

  def log_q(to: Particles, x: Particles, scores: Particles) -> Array:
    squared = jax.tree.map(
      lambda t, x, s: jnp.square(t - x - step_size * s).reshape(len(x), -1).sum(axis=1),
      to,
      x,
      scores,
    )
    return -functools.reduce(jnp.add, jax.tree.leaves(squared)) / (4 * step_size)

  def propose(key: Key, current: tuple) -> tuple[tuple, Array]:
    x, log_p, scores = current
    z = noise.normal_like(key, x, axis_name)
    proposal = langevin_step(x, scores, z, step_size)
    log_p_new, scores_new = evaluate(proposal)
    log_ratio = (
      log_p_new - log_p + log_q(x, proposal, scores_new) - log_q(proposal, x, scores)
    )
    return (proposal, log_p_new, scores_new), log_ratio

  return metropolis_chain(
    key, particles, evaluate, propose, num_steps=num_steps, axis_name=axis_name
  )
