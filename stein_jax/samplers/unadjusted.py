"""Unadjusted Langevin dynamics, and its single step, which other chains propose."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.samplers import noise
from stein_jax.types import Array, Key, Particles, PyTree, ScoreFn

Antithetic = bool | Literal["last"]
"""Pairs of chains with opposite noise: no, in all steps, or in the last step only."""


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


def check_antithetic(value: Any) -> None:
  """Raises TypeError unless `value` is True, False or "last"."""
  is_last = isinstance(value, str) and value == "last"
  if not (is_last or isinstance(value, (bool, np.bool_))):
    raise TypeError(f'antithetic must be True, False or "last", got {value!r}.')


def check_clip(score_clip: Any) -> None:
  """Raises ValueError unless the limit is None or a number above 0."""
  if score_clip is not None:
    checks.positive("score_clip", score_clip)


def _check(
  key: Key,
  particles: Particles,
  score_fn: ScoreFn,
  num_steps: int,
  step_size: float | Array,
  temperature: float | Array,
  score_clip: float | Array | None,
  antithetic: Antithetic,
  averaged_noise: bool,
  context: PyTree,
) -> dict[str, None]:
  check(key, particles, num_steps, step_size, context)
  checks.boolean("averaged_noise", averaged_noise)
  checks.function("score_fn", score_fn)
  checks.positive("temperature", temperature)
  check_clip(score_clip)
  check_antithetic(antithetic)
  is_traced = isinstance(temperature, jax.core.Tracer)
  is_one = not is_traced and float(temperature) == 1
  return {"temperature": None} if is_one else {}  # no division in the usual program


@compiled(_check, static=("num_steps", "antithetic", "averaged_noise", "axis_name"))
def langevin(
  key: Key,
  particles: Particles,
  score_fn: ScoreFn,
  *,
  num_steps: int,
  step_size: float | Array,
  temperature: float | Array = 1.0,
  score_clip: float | Array | None = None,
  antithetic: Antithetic = False,
  averaged_noise: bool = False,
  context: PyTree = None,
  axis_name: str | None = None,
) -> Particles:
  """Unadjusted Langevin dynamics: x ← x + ε ∇ log p(x)/T + √(2ε) z, z ~ N(0, I).

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
    temperature: T; the chain samples p^(1/T).
    score_clip: the largest norm of a point's ∇ log p(x)/T, in units of 1/distance; a
      longer one keeps its direction. So one step drifts by ε · score_clip at most.
      None: no limit.
    antithetic: start two chains at every particle, one with the noise z and one
      with −z. With "last" the pair separates in the last step only: one chain makes
      all steps before it.
    averaged_noise: every step has the mean of two successive noises,

        x ← x + ε ∇ log p(x)/T + √(2ε) (z + z')/2,

      where z' is the z of the next step. The bias of the stationary law is then of
      order ε² in place of ε, at the same cost: on a Gaussian its variance is exact,
      where the plain chain has σ²/(1 − ε/2σ²). It is for long chains, and for those
      that continue; a few steps from exact samples have less bias without it. The
      particles are points before their half of a noise: the first step is taken from
      x + √(ε/2) z. With "last" the mean of a pair is such a point, from which the
      chain continues.
    context: what belongs to each particle and is not moved, `[n, ...]`, or None.
    axis_name: the axis over which the particles are sharded.

  Returns:
    The moved particles, `[n, ...]`. With `antithetic`, `[2n, ...]`: rows 2i and 2i + 1
    are the two chains of particle i, the one with +z first.

  Raises:
    ValueError: num_steps below 1, a step size, temperature or score_clip that is not
      above 0, or a score whose shape differs from its point's.
    TypeError: a key that is not a PRNG key, an antithetic that is not one of those
      above, or a score_fn that is not a function or does not return floats.

  Source: Liu & Wang (2017), section 5.1 (the Markov chain of CD-1 and CD-10);
  Leimkuhler & Matthews (2013) for the averaged noise.
  """
  last_only = antithetic == "last"
  all_steps = bool(antithetic) and not last_only
  start = particles
  if all_steps:
    particles, context = (_interleave(t, t) for t in (particles, context))
  pair = last_only and not averaged_noise  # two chains come out of the last step
  half = jnp.sqrt(step_size / 2)

  def drawn(step_key: Key) -> tuple[Particles, Particles]:
    z = noise.normal_like(step_key, start, axis_name)
    opposite = jax.tree.map(jnp.negative, z) if antithetic else z
    return (_interleave(z, opposite) if all_steps else z), opposite

  def step(carry: tuple[Particles, ...], step_key: Key) -> tuple[tuple, None]:
    x = carry[0]
    z, opposite = drawn(step_key)
    here = _plus(x, half, z) if averaged_noise else x
    scores = at_particles(score_fn, here, context)
    checks.particles_and_scores(x, scores)
    if temperature is not None:
      scores = at_temperature(scores, temperature)
    if score_clip is not None:
      scores = clipped(scores, score_clip)
    moved = langevin_step(x, scores, z, step_size)
    if pair:
      return (moved, langevin_step(x, scores, opposite, step_size)), None
    return (moved,), None

  carry = (particles, particles) if pair else (particles,)
  carry, _ = jax.lax.scan(step, carry, jax.random.split(key, num_steps))
  if averaged_noise:
    x = carry[0]
    z, opposite = drawn(jax.random.fold_in(key, num_steps))
    carry = (_plus(x, half, z),)
    if last_only:
      carry += (_plus(x, half, opposite),)
  return _interleave(*carry) if last_only else carry[0]


def at_temperature(tree: PyTree, temperature: float | Array) -> PyTree:
  """Log densities or scores of p as those of p^(1/T), in their dtypes."""
  return jax.tree.map(lambda leaf: (leaf / temperature).astype(leaf.dtype), tree)


def clipped(scores: Particles, limit: float | Array) -> Particles:
  """The scores `[n, ...]`, each point's shortened to the norm `limit` if it is longer.

  Each is first divided by its largest number, so that no square overflows.
  """

  def of_point(score: PyTree) -> PyTree:
    largest = functools.reduce(
      jnp.maximum, [jnp.abs(leaf).max() for leaf in jax.tree.leaves(score)]
    )
    scale = jnp.where(largest > 0, largest, 1)
    unit = jax.tree.map(lambda leaf: leaf / scale, score)
    squares = [jnp.square(leaf).sum() for leaf in jax.tree.leaves(unit)]
    length = jnp.minimum(scale, limit / jnp.sqrt(jnp.maximum(sum(squares), 1)))
    is_long = length < scale
    return jax.tree.map(
      lambda leaf, u: jnp.where(is_long, u * length, leaf).astype(leaf.dtype),
      score,
      unit,
    )

  return jax.vmap(of_point)(scores)


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


def _plus(x: Particles, factor: Array, z: Particles) -> Particles:
  """x + factor · z, in the dtype of x."""
  return jax.tree.map(lambda x, z: (x + factor * z).astype(x.dtype), x, z)


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
