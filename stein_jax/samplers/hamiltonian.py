"""Hamiltonian Monte Carlo, whose steps travel far where Langevin steps diffuse."""

import functools

import jax
import jax.numpy as jnp

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.parallel import axes
from stein_jax.samplers import noise
from stein_jax.samplers.metropolis import (
  MetropolisResult,
  check_tempered,
  metropolis_chain,
  tempered,
)
from stein_jax.types import Array, Key, LogDensityFn, Particles, PyTree


def _check(
  key: Key,
  particles: Particles,
  log_density_fn: LogDensityFn,
  num_steps: int,
  step_size: float | Array,
  num_leapfrog: int,
  temperature: float | Array,
  context: PyTree,
) -> None:
  check_tempered(
    key, particles, log_density_fn, num_steps, step_size, temperature, context
  )
  checks.at_least_one("num_leapfrog", num_leapfrog)


@compiled(_check, static=("num_steps", "num_leapfrog", "axis_name"))
def hmc(
  key: Key,
  particles: Particles,
  log_density_fn: LogDensityFn,
  *,
  num_steps: int,
  step_size: float | Array,
  num_leapfrog: int = 10,
  temperature: float | Array = 1.0,
  context: PyTree = None,
  axis_name: str | None = None,
) -> MetropolisResult:
  """Hamiltonian Monte Carlo with unit mass and a fixed number of leapfrog steps.

  A proposal draws a momentum v ~ N(0, I) and makes L leapfrog steps of size δ,

    v ← v + (δ/2) ∇ log p(x),  x ← x + δ v,  v ← v + (δ/2) ∇ log p(x).

  It is accepted with probability min(1, exp(H − H')), H = −log p(x) + ½‖v‖². A proposal
  whose density is NaN is rejected. One leapfrog step is MALA with ε = δ²/2.

  A trajectory of length Lδ near a multiple of 2π s comes back to where it began, in a
  direction of standard deviation s. Choose Lδ well below that: about the smallest s to
  a few times it.

  >>> import jax, jax.numpy as jnp
  >>> log_density_fn = lambda x: -0.5 * jnp.sum((x - 3) ** 2)
  >>> start = jnp.zeros((100, 2))
  >>> options = {"num_steps": 20, "step_size": 0.3, "num_leapfrog": 5}
  >>> moved = hmc(jax.random.key(0), start, log_density_fn, **options)
  >>> round(moved.particles.mean().item())
  3

  Args:
    key: as in `langevin`.
    particles: as in `langevin`.
    log_density_fn: as in `mala`.
    num_steps: the number of proposals for each particle.
    step_size: δ, in units of distance, unlike the ε of `mala`.
    num_leapfrog: L.
    temperature: T; the chain samples p^(1/T).
    context: as in `langevin`.
    axis_name: as in `langevin`.

  Returns:
    The moved particles, and the acceptance rate over all particles and steps.

  Raises:
    ValueError: num_steps or num_leapfrog below 1, a step size or temperature that is
      not above 0, or a log density that is not a scalar.
    TypeError: a key that is not a PRNG key, or log_density_fn is not a function.

  Source: Duane et al. (1987); Neal (2011).
  """

  def kick(v: Particles, scores: Particles, size: Array) -> Particles:
    return jax.tree.map(lambda v, s: (v + size * s).astype(v.dtype), v, scores)

  def kinetic(v: Particles) -> Array:
    squares = [
      jnp.square(leaf).reshape(len(leaf), -1).sum(axis=1) for leaf in jax.tree.leaves(v)
    ]
    return functools.reduce(jnp.add, squares) / 2

  delta = jnp.asarray(step_size)

  def evaluate(x: Particles) -> tuple[Array, Particles]:
    return tempered(log_density_fn, x, context, temperature)

  def propose(key: Key, current: tuple) -> tuple[tuple, Array]:
    x, log_p, scores = current
    v = noise.normal_like(key, x, axis_name)

    def leapfrog(_: Array, state: tuple) -> tuple:
      x, v, _, scores = state
      v = kick(v, scores, delta / 2)
      x = kick(x, v, delta)
      log_p, scores = evaluate(x)
      return x, kick(v, scores, delta / 2), log_p, scores

    start = axes.varying_as(x, (x, v, log_p, scores))
    y, w, log_p_new, scores_new = jax.lax.fori_loop(0, num_leapfrog, leapfrog, start)
    log_ratio = (log_p_new - kinetic(w)) - (log_p - kinetic(v))
    return (y, log_p_new, scores_new), log_ratio

  return metropolis_chain(
    key, particles, evaluate, propose, num_steps=num_steps, axis_name=axis_name
  )
