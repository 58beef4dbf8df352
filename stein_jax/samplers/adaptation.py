"""The step size at which a chain accepts as many proposals as it should."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.samplers.metropolis import MetropolisResult
from stein_jax.types import Array, Key, LogDensityFn, Particles


class Adapted(NamedTuple):
  """The result of `adapt_step_size`.

  Attributes:
    particles: the moved particles, `[n, ...]`.
    step_size: for the chains that follow.
    acceptance_rate: of the last round.
  """

  particles: Particles
  step_size: Array
  acceptance_rate: Array


def _check(step_size: float | Array, num_rounds: int, target: float) -> None:
  checks.positive("step_size", step_size)
  checks.at_least_one("num_rounds", num_rounds)
  checks.decay("target", target)


@compiled(_check, static=("num_rounds",))
def adapt_step_size(
  key: Key,
  particles: Particles,
  log_density_fn: LogDensityFn,
  sampler: Callable[..., MetropolisResult],
  *,
  step_size: float | Array,
  num_rounds: int = 50,
  target: float = 0.65,
) -> Adapted:
  """Moves particles while the step size approaches a target acceptance rate.

  In round t, log ε ← log ε + 2 t^(−0.6) (acceptance − target): Robbins & Monro (1951).
  All particles share ε, so that their acceptance rate is known well in each round. The
  chain of these rounds is not invariant: start the one that counts afterwards.

  >>> import functools, jax, jax.numpy as jnp
  >>> from stein_jax import samplers
  >>> sampler = functools.partial(samplers.mala, num_steps=5)
  >>> found = samplers.adapt_step_size(
  ...   jax.random.key(0), jnp.zeros((100, 2)), lambda x: -50 * jnp.sum(x**2), sampler,
  ...   step_size=1.0, target=0.57,
  ... )
  >>> 0.003 < float(found.step_size) < 0.03
  True

  Args:
    key: a PRNG key.
    particles: `[n, ...]`.
    log_density_fn: x -> log p(x) of one point, up to a constant.
    sampler: `(key, particles, log_density_fn, step_size=...)` -> MetropolisResult, such
      as `functools.partial(hmc, num_steps=1)`. Make it once. With sharded particles it
      knows the axis_name.
    step_size: the first one.
    num_rounds: how often ε is changed.
    target: the acceptance rate; about 0.57 is best for `mala`, 0.65 for `hmc`.

  Raises:
    ValueError: a step size that is not above 0, num_rounds below 1, or a target outside
      (0, 1).

  Source: Roberts & Rosenthal (1998) and Beskos et al. (2013) for the targets.
  """

  def one_round(carry: tuple, step: tuple[Key, Array]) -> tuple[tuple, Array]:
    (x, log_step), (key, t) = carry, step
    result = sampler(key, x, log_density_fn, step_size=jnp.exp(log_step))
    change = 2 * t**-0.6 * (result.acceptance_rate - target)
    log_step = (log_step + change).astype(log_step.dtype)
    return (result.particles, log_step), result.acceptance_rate

  keys = jax.random.split(key, num_rounds)
  times = jnp.arange(1, num_rounds + 1, dtype=jnp.result_type(float))
  start = (particles, jnp.log(jnp.asarray(step_size, jnp.result_type(float))))
  (x, log_step), rates = jax.lax.scan(one_round, start, (keys, times))
  return Adapted(x, jnp.exp(log_step), rates[-1])
