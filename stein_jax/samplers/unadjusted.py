"""Markov chains that move particles towards a density: Langevin and MALA."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jax.tree_util import Partial

from stein_jax import checks
from stein_jax.parallel import axes
from stein_jax.types import Array, Key, LogDensityFn, Particles, PyTree, ScoreFn


def langevin(
  key: Key,
  particles: Particles,
  score_fn: ScoreFn,
  *,
  num_steps: int,
  step_size: float | Array,
  antithetic: bool = False,
  context: PyTree = None,
  axis_name: str | None = None,
) -> Particles:
  """Unadjusted Langevin dynamics: x ← x + ε ∇ log p(x) + √(2ε) z, z ~ N(0, I).

  Args:
    key: a PRNG key, the same on every device. Particle i draws from `fold_in` of its
      place among all particles, so that many devices draw what one draws.
    particles: `[n, ...]`, or a pytree of such.
    score_fn: x -> ∇ log p(x) of one point; with a context, (x, context) -> the same.
      A function with parameters is best given as `jax.tree_util.Partial(fn, params)`:
      new values then need no new compilation.
    num_steps: k, how many steps.
    step_size: ε, in units of squared distance.
    antithetic: start two chains at every particle, one with the noise z, the other
      with −z.
    context: what belongs to each particle and is not moved, `[n, ...]`, or None.
    axis_name: the axis over which the particles are spread.

  Returns:
    The moved particles, `[n, ...]`; antithetic: `[2n, ...]`, the chains with −z last.

  Raises:
    ValueError: num_steps below 1, a step size that is not above 0, or a score whose
      shape is not the particles'.

  Source: Liu & Wang (2017), section 5.1 (the Markov chain of CD-1 and CD-10).
  """
  _check(particles, num_steps, step_size)
  return _langevin(
    key,
    particles,
    _as_partial(score_fn),
    context,
    step_size,
    num_steps=num_steps,
    antithetic=antithetic,
    axis_name=axis_name,
  )


@partial(jax.jit, static_argnames=("num_steps", "antithetic", "axis_name"))
def _langevin(
  key: Key,
  particles: Particles,
  score_fn: Partial,
  context: PyTree,
  step_size: Array,
  *,
  num_steps: int,
  antithetic: bool,
  axis_name: str | None,
) -> Particles:
  start = particles

  def both(chains: PyTree, others: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), chains, others)

  if antithetic:
    particles, context = both(particles, particles), both(context, context)

  def step(x: Particles, step_key: Key) -> tuple[Particles, None]:
    scores = _per_particle(score_fn, x, context)
    checks.same_shapes(x, scores, ("particles", "scores"))
    z = _noise(step_key, start, axis_name)
    if antithetic:
      z = both(z, jax.tree.map(jnp.negative, z))
    return _langevin_move(x, scores, z, step_size), None

  return jax.lax.scan(step, particles, jax.random.split(key, num_steps))[0]


class MalaResult(NamedTuple):
  """Moved particles, and the share of proposals that were accepted."""

  particles: Particles
  acceptance_rate: Array


def mala(
  key: Key,
  particles: Particles,
  log_density_fn: LogDensityFn,
  *,
  num_steps: int,
  step_size: float | Array,
  context: PyTree = None,
  axis_name: str | None = None,
) -> MalaResult:
  """Langevin dynamics with a Metropolis test, which leaves p invariant exactly.

  A proposal x' = x + ε ∇ log p(x) + √(2ε) z is taken with probability
  min(1, p(x') q(x | x') / (p(x) q(x' | x))), q(x' | x) = N(x + ε ∇ log p(x), 2ε I).

  Args:
    key: as in `langevin`.
    particles: as in `langevin`.
    log_density_fn: x -> log p(x) of one point, up to a constant; with a context,
      (x, context) -> the same.
    num_steps: k, how many proposals for each particle.
    step_size: ε, in units of squared distance.
    context: as in `langevin`.
    axis_name: as in `langevin`.

  Returns:
    The moved particles, and the acceptance rate over all particles and steps.

  Raises:
    ValueError: as in `langevin`.

  Source: Roberts & Tweedie (1996).
  """
  _check(particles, num_steps, step_size)
  return _mala(
    key,
    particles,
    _as_partial(log_density_fn),
    context,
    step_size,
    num_steps=num_steps,
    axis_name=axis_name,
  )


@partial(jax.jit, static_argnames=("num_steps", "axis_name"))
def _mala(
  key: Key,
  particles: Particles,
  log_density_fn: Partial,
  context: PyTree,
  step_size: Array,
  *,
  num_steps: int,
  axis_name: str | None,
) -> MalaResult:
  def look(x: Particles) -> tuple[Array, Particles]:
    return _per_particle(jax.value_and_grad(log_density_fn), x, context)

  def log_q(to: Particles, x: Particles, scores: Particles) -> Array:
    squared = jax.tree.map(
      lambda t, x, s: jnp.square(t - x - step_size * s).reshape(len(x), -1).sum(axis=1),
      to,
      x,
      scores,
    )
    return -sum(jax.tree.leaves(squared)) / (4 * step_size)

  def step(carry: tuple, step_key: Key) -> tuple[tuple, Array]:
    x, log_p, scores = carry
    noise_key, accept_key = jax.random.split(step_key)
    proposal = _langevin_move(x, scores, _noise(noise_key, x, axis_name), step_size)
    log_p_new, scores_new = look(proposal)
    log_ratio = (
      log_p_new - log_p + log_q(x, proposal, scores_new) - log_q(proposal, x, scores)
    )
    u = _uniform(accept_key, log_p, axis_name)
    accepted = jnp.log(u) < log_ratio  # a NaN ratio is a rejection

    def choose(new: Array, old: Array) -> Array:
      return jax.vmap(jnp.where)(accepted, new, old)

    carry = jax.tree.map(choose, (proposal, log_p_new, scores_new), carry)
    return carry, accepted.mean()

  start = (particles, *look(particles))
  (moved, _, _), accepted = jax.lax.scan(step, start, jax.random.split(key, num_steps))
  return MalaResult(moved, axes.mean(accepted.mean(), axis_name))


def _langevin_move(
  x: Particles, scores: Particles, z: Particles, step_size: Array
) -> Particles:
  return jax.tree.map(
    lambda x, s, z: (x + step_size * s + jnp.sqrt(2 * step_size) * z).astype(x.dtype),
    x,
    scores,
    z,
  )


def _per_particle(fn: Callable[..., PyTree], x: Particles, context: PyTree) -> PyTree:
  return jax.vmap(fn)(x) if context is None else jax.vmap(fn)(x, context)


def _particle_keys(key: Key, n: int, axis_name: str | None) -> Key:
  indices = axes.global_indices(n, axis_name)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def _noise(key: Key, particles: Particles, axis_name: str | None) -> Particles:
  leaves, structure = jax.tree.flatten(particles)
  keys = _particle_keys(key, leaves[0].shape[0], axis_name)

  def draw(particle_key: Key) -> list[Array]:
    # One leaf draws from the key itself: a split would cost as much as a small point.
    one = len(leaves) == 1
    leaf_keys = [particle_key] if one else jax.random.split(particle_key, len(leaves))
    return [
      _normal(k, leaf.shape[1:], leaf.dtype) for k, leaf in zip(leaf_keys, leaves)
    ]

  return jax.tree.unflatten(structure, jax.vmap(draw)(keys))


def _normal(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
  """Standard normal numbers, two of every threefry block (Box & Muller, 1958).

  z₁ = r cos α and z₂ = r sin α with r = √(−2 log u), u uniform in (0, 1] and α in a
  full turn. `jax.random.normal` makes a block for each number, and an inverse of erf:
  the noise is most of what a Langevin step costs.
  """
  if dtype != jnp.float32 or str(jax.random.key_impl(key)) != "threefry2x32":
    return jax.random.normal(key, shape, dtype)
  size = math.prod(shape)
  counters = jnp.arange(size + size % 2, dtype=jnp.uint32)
  radii, angles = jnp.split(threefry_2x32(jax.random.key_data(key), counters), 2)
  u = ((radii >> 1).astype(jnp.int32).astype(jnp.float32) + 1) * 2.0**-31
  radius = jnp.sqrt(-2 * jnp.log(u))
  cosine, sine = _cosine_and_sine(angles)
  return jnp.concatenate([radius * cosine, radius * sine])[:size].reshape(shape)


def _cosine_and_sine(turns: Array) -> tuple[Array, Array]:
  """Of the angles 2π · turns/2³², to within 5e-7, for uint32 turns.

  The first two bits are a quadrant, the others an angle within ±π/4 of its middle,
  where a few terms of the power series do.
  """
  quadrant = turns >> 30
  inside = jax.lax.bitcast_convert_type((turns << 2) + jnp.uint32(2**31), jnp.int32)
  angle = inside.astype(jnp.float32) * (math.pi * 2.0**-33)
  square = angle * angle
  sine = angle * _polynomial(square, (1, -1 / 6, 1 / 120, -1 / 5040))
  cosine = _polynomial(square, (1, -1 / 2, 1 / 24, -1 / 720, 1 / 40320))
  # The middle of the first quadrant is at π/4.
  cosine, sine = (cosine - sine) * math.sqrt(0.5), (cosine + sine) * math.sqrt(0.5)
  turned = quadrant & 1 == 1
  cosine, sine = jnp.where(turned, -sine, cosine), jnp.where(turned, cosine, sine)
  sign = jnp.where(quadrant > 1, -1.0, 1.0).astype(jnp.float32)
  return sign * cosine, sign * sine


def _polynomial(x: Array, coefficients: Sequence[float]) -> Array:
  """Σₖ coefficientₖ xᵏ, by Horner's rule."""
  value = jnp.zeros_like(x)
  for coefficient in reversed(coefficients):
    value = value * x + coefficient
  return value


def _uniform(key: Key, like: Array, axis_name: str | None) -> Array:
  keys = _particle_keys(key, like.shape[0], axis_name)
  return jax.vmap(lambda k: jax.random.uniform(k, (), like.dtype))(keys)


def _as_partial(fn: ScoreFn | LogDensityFn) -> Partial:
  return fn if isinstance(fn, Partial) else Partial(fn)


def _check(particles: Particles, num_steps: int, step_size: float | Array) -> None:
  checks.num_particles(particles)
  checks.at_least_one("num_steps", num_steps)
  checks.positive("step_size", step_size)
