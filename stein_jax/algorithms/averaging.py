"""A moving average of what a rule learns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stein_jax import checks
from stein_jax.types import Algorithm, Array, Batch, Key, Metrics, Params, PyTree


class AveragedState(NamedTuple):
  """The average, and the state of the rule whose parameters are averaged.

  Attributes:
    params: the moving average of θ.
    inner: the rule's own state, with θ in `inner.params`. Its `particles`, where it has
      them, are `()` there.
    particles: those of the rule, sharded by rows over devices; `()` if it has none.
    step: the number of updates done.
  """

  params: Params
  inner: Any
  particles: PyTree
  step: Array


def averaged(algorithm: Algorithm, decay: float) -> Algorithm:
  """The same rule, whose state's `params` are an exponential moving average of θ.

  θ̄ₜ₊₁ = dₜ θ̄ₜ + (1 − dₜ) θₜ₊₁,  dₜ = min(decay, (1 + t)/(10 + t)),  θ̄₀ = θ₀

  What is evaluated, as by `fit`, is the average; the rule itself does not see it, and
  learns as it does without. The average is less noisy than the last θ of a rule with
  random negatives. dₜ is small at first, so that θ₀ is soon forgotten.

  >>> import jax, jax.numpy as jnp, optax
  >>> from stein_jax import averaged, contrastive_divergence
  >>> energy_fn = lambda mean, x: 0.5 * jnp.sum((x - mean) ** 2)
  >>> rule = contrastive_divergence(
  ...   energy_fn, optax.sgd(0.5), num_steps=1, step_size=0.1
  ... )
  >>> rule = averaged(rule, 0.99)
  >>> data = jnp.ones((10, 2))
  >>> state = rule.init(jax.random.key(0), jnp.zeros(2), data)
  >>> state, metrics = rule.update(jax.random.key(1), state, data)
  >>> bool(jnp.allclose(state.params, 0.9 * state.inner.params))  # d₀ = 0.1
  True

  Args:
    algorithm: any rule whose state has `params`, of one network or of several.
    decay: the largest d, in (0, 1); about 1/(1 − decay) steps are averaged. Common
      values are 0.99 to 0.9999. The average is kept in the parameters' dtype: with 16
      bits, steps of a decay above 0.99 are lost to rounding.

  Returns:
    An Algorithm with the rule's metrics, whose state is an `AveragedState`. The running
    statistics of a generator are in `inner`, and not averaged. With `fit`'s
    on_nonfinite="rollback" the average's steps are halved, not those of the rule.

  Raises:
    TypeError: no algorithm; in `init`, one whose state is no NamedTuple with `params`.
    ValueError: a decay that is not between 0 and 1.

  Source: Polyak & Juditsky (1992), for the mean of iterates. In energy-based models Du
  & Mordatch (2019) evaluate such an exponential average.
  """
  checks.algorithm(algorithm)
  checks.between("decay", decay, 0, 1)

  def init(key: Key, params: Params, batch: Batch) -> AveragedState:
    inner = algorithm.init(key, params, batch)
    if "params" not in getattr(inner, "_fields", ()):
      raise TypeError(
        "averaged needs a rule whose state is a NamedTuple with a field params, got "
        f"{type(inner).__name__}."
      )
    # A copy: a donated state cannot give one buffer away twice.
    average = jax.tree.map(jnp.array, inner.params)
    return _state(average, inner, jnp.zeros((), jnp.int32))

  def update(
    key: Key, state: AveragedState, batch: Batch
  ) -> tuple[AveragedState, Metrics]:
    inner = state.inner
    if hasattr(inner, "particles"):
      inner = inner._replace(particles=state.particles)
    inner, metrics = algorithm.update(key, inner, batch)
    t = state.step.astype(float)
    d = jnp.minimum(decay, (1 + t) / (10 + t))

    def moved(average: Array, new: Array) -> Array:
      return (average + (1 - d) * (new - average)).astype(new.dtype)

    average = jax.tree.map(moved, state.params, inner.params)
    return _state(average, inner, state.step + 1), metrics

  return Algorithm(init, update)


def _state(average: Params, inner: Any, step: Array) -> AveragedState:
  """The state, with the rule's particles in the field that is sharded."""
  if not hasattr(inner, "particles"):
    return AveragedState(average, inner, (), step)
  particles = inner.particles
  return AveragedState(average, inner._replace(particles=()), particles, step)
