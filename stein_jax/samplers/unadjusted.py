"""Unadjusted Langevin dynamics, and its single step, which other chains propose."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.samplers import noise
from stein_jax.types import Array, Key, Particles, PyTree, ScoreFn


def check(
  key: Key,
  particles: Particles,
  num_steps: int,
  step_size: float | Array,
  context: PyTree,
) -> None:
  """Validates the arguments that all chains have.

  Raises:
    ValueError: num_steps below 1, a step size that is not above 0, or a context of
      another length than the particles.
    TypeError: a key that is not a PRNG key, or particles that are not floating-point.
  """
  checks.key(key)
  n = checks.num_particles(particles)
  checks.at_least_one("num_steps", num_steps)
  checks.positive("step_size", step_size)
  checks.context(context, n)


def _check(
  key: Key,
  particles: Particles,
  score_fn: ScoreFn,
  num_steps: int,
  step_size: float | Array,
  antithetic: bool,
  context: PyTree,
) -> None:
  check(key, particles, num_steps, step_size, context)
  checks.function("score_fn", score_fn)
  checks.boolean("antithetic", antithetic)


@compiled(_check, static=("num_steps", "antithetic", "axis_name"))
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

  >>> import jax, jax.numpy as jnp
  >>> start = jnp.zeros((100, 2))
  >>> score_fn = lambda x: 3 - x  # of N(3, I)
  >>> x = langevin(jax.random.key(0), start, score_fn, num_steps=50, step_size=0.1)
  >>> x.shape, round(x.mean().item())
  ((100, 2), 3)

  Args:
    key: a PRNG key, the same on every device. In every step particle i draws from
      `fold_in` of its index among all particles, so that many devices draw what one
      device draws.
    particles: `[n, ...]`, or a pytree of such.
    score_fn: x -> ∇ log p(x) of one point; with a context, (x, context) -> the same.
      Pass a function with parameters as `jax.tree_util.Partial(fn, params)`: then new
      parameters need no new compilation.
    num_steps: k, the number of steps.
    step_size: ε, in units of squared distance.
    antithetic: start two chains at every particle, one with the noise z and one
      with −z.
    context: what belongs to each particle and is not moved, `[n, ...]`, or None.
    axis_name: the axis over which the particles are sharded.

  Returns:
    The moved particles, `[n, ...]`. With `antithetic`, `[2n, ...]`: rows 2i and 2i + 1
    are the two chains of particle i, the one with +z first.

  Raises:
    ValueError: num_steps below 1, a step size that is not above 0, or a score whose
      shape differs from its point's.
    TypeError: a key that is not a PRNG key, or a score_fn that is not a function or
      does not return floats.

  Source: Liu & Wang (2017), section 5.1 (the Markov chain of CD-1 and CD-10).
  """
  start = particles
  if antithetic:
    particles, context = (_interleave(t, t) for t in (particles, context))

  def step(x: Particles, step_key: Key) -> tuple[Particles, None]:
    scores = at_particles(score_fn, x, context)
    checks.particles_and_scores(x, scores)
    z = noise.normal_like(step_key, start, axis_name)
    if antithetic:
      z = _interleave(z, jax.tree.map(jnp.negative, z))
    return langevin_step(x, scores, z, step_size), None

  return jax.lax.scan(step, particles, jax.random.split(key, num_steps))[0]


def langevin_step(
  x: Particles, scores: Particles, z: Particles, step_size: float | Array
) -> Particles:
  """x + ε · score + √(2ε) z, in the dtype of x."""
  return jax.tree.map(
    lambda x, s, z: (x + step_size * s + jnp.sqrt(2 * step_size) * z).astype(x.dtype),
    x,
    scores,
    z,
  )


def at_particles(fn: Callable[..., PyTree], x: Particles, context: PyTree) -> PyTree:
  """`fn(x)`, or `fn(x, context)`, of every particle; a context of None is left out."""
  return jax.vmap(fn)(x) if context is None else jax.vmap(fn)(x, context)


def _interleave(a: PyTree, b: PyTree) -> PyTree:
  """Two trees of `[n, ...]` as `[2n, ...]`: a₀, b₀, a₁, b₁, ...

  The rows of one device stay together, so sharded particles keep their global order.
  """
  return jax.tree.map(
    lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *jnp.shape(a)[1:]), a, b
  )
