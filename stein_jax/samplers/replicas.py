"""Replica exchange: chains at several temperatures that trade their places."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.parallel import axes
from stein_jax.samplers import noise
from stein_jax.samplers.metropolis import MetropolisResult, mala
from stein_jax.samplers.unadjusted import at_particles
from stein_jax.types import Array, Key, LogDensityFn, Particles, PyTree


class TemperingResult(NamedTuple):
  """The result of `tempering`.

  Attributes:
    particles: the chains at temperature 1, `[n, ...]`.
    replicas: the chains at all temperatures, `[T, n, ...]`, to be continued from.
    acceptance_rate: of the moves at each temperature, `[T]`.
    swap_rate: how many of the proposed exchanges between neighbours are accepted,
      `[T − 1]`; NaN for a pair without a proposal. Below about 0.1 the temperatures
      are too far apart.
  """

  particles: Particles
  replicas: Particles
  acceptance_rate: Array
  swap_rate: Array


_MALA = partial(mala, num_steps=1)


def _check(
  particles: Particles,
  temperatures: Sequence[float] | Array,
  num_rounds: int,
  step_size: float | Array,
  replicas: Particles | None,
) -> dict[str, Array]:
  checks.num_particles(particles)
  checks.at_least_one("num_rounds", num_rounds)
  if np.ndim(step_size) == 0:
    checks.positive("step_size", step_size)
  elif np.shape(step_size) != np.shape(temperatures):
    raise ValueError(
      "step_size must be one number, or one for each temperature, got shape "
      f"{np.shape(step_size)} for {np.shape(temperatures)} temperatures."
    )
  else:
    checks.all_positive("step_size", step_size)
  if not isinstance(temperatures, jax.core.Tracer):
    t = np.asarray(temperatures, np.float64)
    if t.ndim != 1 or len(t) < 2 or t[0] != 1 or not (np.diff(t) > 0).all():
      raise ValueError(
        "temperatures must be at least two increasing numbers, of which the first is "
        f"1, got {temperatures!r}."
      )
    if not np.isfinite(t).all():
      raise ValueError(f"temperatures must be finite, got {temperatures!r}.")
  if replicas is not None:
    like = jax.tree.map(lambda leaf: leaf[0], replicas)
    checks.same_shapes(particles, like, ("particles", "one temperature of replicas"))
    count = len(jax.tree.leaves(replicas)[0])
    if count != np.shape(temperatures)[0]:
      raise ValueError(
        f"replicas must have one row for each of {np.shape(temperatures)[0]} "
        f"temperatures, got {count}."
      )
  return {"temperatures": jnp.asarray(temperatures, jnp.result_type(float))}


@compiled(_check, static=("num_rounds", "axis_name"))
def tempering(
  key: Key,
  particles: Particles,
  log_density_fn: LogDensityFn,
  sampler: Callable[..., MetropolisResult] = _MALA,
  *,
  temperatures: Sequence[float] | Array,
  num_rounds: int,
  step_size: float | Array,
  replicas: Particles | None = None,
  context: PyTree = None,
  axis_name: str | None = None,
) -> TemperingResult:
  """Replica exchange (parallel tempering): it crosses barriers that chains do not.

  Every particle has one chain for each temperature, which samples p^(1/T). In a round
  all chains move by the sampler, with step sizes ε T; then neighbours a, b (the even
  and the odd pairs in turn, a random one first) exchange their points with probability

    min(1, exp((1/T_a − 1/T_b) (log p(x_b) − log p(x_a)))).

  The joint law of the chains stays invariant, and at T = 1 they sample p.

  >>> import jax, jax.numpy as jnp
  >>> from stein_jax import densities, samplers
  >>> truth = densities.two_modes(2, weights=(0.25, 0.75))
  >>> start = truth.sample(jax.random.key(0), 500)[:1].repeat(500, axis=0)
  >>> found = samplers.tempering(
  ...   jax.random.key(1), start, truth.log_density_fn,
  ...   temperatures=[1, 2, 4, 8, 16], num_rounds=300, step_size=0.5,
  ... )
  >>> masses = truth.modes(found.particles).mean(axis=0)
  >>> bool(abs(masses[1] - 0.75) < 0.1)
  True

  Args:
    key: as in `langevin`.
    particles: `[n, ...]`, where the chains at all temperatures start.
    log_density_fn: as in `mala`.
    sampler: `(key, particles, log_density_fn, step_size=, temperature=, context=,
      axis_name=)` -> MetropolisResult, such as `functools.partial(hmc, num_steps=1)`.
      Make it once.
    temperatures: 1 = T₁ < ... < T_K. A geometric sequence up to where the modes
      connect is a good first choice.
    num_rounds: how many rounds of moves and exchanges.
    step_size: ε of the sampler at T = 1, which is multiplied by T; or one for each
      temperature, `[K]`, such as 0.3 √T for `hmc`, whose steps are distances.
    replicas: the state of an earlier call, `[K, n, ...]`, to continue; None: copies of
      the particles.
    context: as in `langevin`.
    axis_name: as in `langevin`.

  Raises:
    ValueError: temperatures that do not increase from 1, num_rounds below 1, step
      sizes that are not above 0, or replicas of another shape.

  Source: Swendsen & Wang (1986); Geyer (1991).
  """
  betas = 1 / jnp.asarray(temperatures)
  num_temperatures = len(betas)
  n = len(jax.tree.leaves(particles)[0])
  if replicas is None:
    replicas = jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf[None], (num_temperatures, *leaf.shape)),
      particles,
    )
  steps = jnp.asarray(step_size, betas.dtype)
  steps = steps / betas if steps.ndim == 0 else steps

  def move(key: Key, x: Particles, beta: Array, size: Array) -> MetropolisResult:
    return sampler(
      key,
      x,
      log_density_fn,
      step_size=size,
      temperature=1 / beta,
      context=context,
      axis_name=axis_name,
    )

  def log_densities(x: Particles) -> Array:
    return jax.vmap(lambda x: at_particles(log_density_fn, x, context))(x)

  index = np.arange(num_temperatures)

  def one_round(x: Particles, step: tuple[Key, Array]) -> tuple[Particles, tuple]:
    key, odd = step
    move_key, swap_key = jax.random.split(key)
    keys = jax.random.split(move_key, num_temperatures)
    moved = jax.vmap(move)(keys, x, betas, steps)
    x = moved.particles
    log_p = log_densities(x)  # [K, n]
    # The pairs (0, 1), (2, 3), ... or (1, 2), (3, 4), ...: the partner of each.
    parity = (index + odd) % 2
    partner = jnp.where(parity == 0, index + 1, index - 1)
    alone = (partner < 0) | (partner >= num_temperatures)
    partner = jnp.where(alone, index, partner)
    lower = jnp.minimum(index, partner)
    log_ratio = (betas[lower] - betas[jnp.maximum(index, partner)])[:, None] * (
      log_p[jnp.maximum(index, partner)] - log_p[lower]
    )
    swap_keys = jax.random.split(swap_key, num_temperatures)
    u = jax.vmap(lambda k: noise.uniform(k, n, log_p.dtype, axis_name))(swap_keys)
    # Both of a pair see the number of the lower one.
    swapped = (jnp.log(u[lower]) < log_ratio) & ~alone[:, None]

    def exchange(leaf: Array) -> Array:
      return jax.vmap(jax.vmap(jnp.where))(swapped, leaf[partner], leaf)

    proposed = (parity == 0) & ~alone
    accepted = axes.mean(swapped.mean(axis=1), axis_name) * proposed
    return jax.tree.map(exchange, x), (moved.acceptance_rate, accepted, proposed)

  # Short calls, one after the other, begin with either parity.
  parity_key, key = jax.random.split(key)
  first = jax.random.bernoulli(parity_key).astype(int)
  odd = (jnp.arange(num_rounds) + first) % 2
  keys = jax.random.split(key, num_rounds)
  replicas, (rates, accepted, proposed) = jax.lax.scan(one_round, replicas, (keys, odd))
  swap_rate = accepted.sum(axis=0) / proposed.sum(axis=0)  # 0/0 is NaN
  at_one = jax.tree.map(lambda leaf: leaf[0], replicas)
  return TemperingResult(at_one, replicas, rates.mean(axis=0), swap_rate[:-1])
