"""A kernel that follows the model, that is computed again every few updates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from stein_jax import checks
from stein_jax.algorithms.descent import DescentState
from stein_jax.types import Algorithm, Array, Batch, Key, Metrics, Params, PyTree


class RefreshedState(NamedTuple):
  """As `DescentState`, with the kernel.

  Attributes:
    params: θ.
    opt_state: the optimizer's.
    kernel: of the next update: a kernel or a `Direction`.
    step: the number of updates done.
  """

  params: Params
  opt_state: optax.OptState
  kernel: PyTree
  step: Array


def refreshed(
  rule: Callable[..., Algorithm],
  kernel_fn: Callable[[Params], Any],
  optimizer: optax.GradientTransformation,
  *,
  refresh: int,
) -> Algorithm:
  """A rule whose kernel is `kernel_fn(θ)`, computed in every `refresh`-th update.

  A rule that is given `kernel_fn` itself computes the kernel in every update. Where
  that is expensive, as it is for a whitened kernel on the model's own features, which
  move slowly, here it need not be:

  >>> import jax, jax.numpy as jnp, optax
  >>> from functools import partial
  >>> from jax.tree_util import Partial
  >>> from stein_jax import Direction, energies, kernels, refreshed, stein_cd, whiten
  >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
  >>> energy = energies.MLP((16,), base="diagonal")
  >>> def kernel_fn(params):
  ...   features = Partial(energy.features, params)
  ...   kernel = kernels.on_features(kernels.rbf("median_no_log"), features)
  ...   return Direction(whiten(kernel, x, num_centers=20), leave_one_out=True)
  >>> rule = partial(stein_cd, energy.apply, step_size=0.1, symmetric=True)
  >>> rule = refreshed(rule, kernel_fn, optax.adam(1e-3), refresh=100)
  >>> params = energy.init_from_data(jax.random.key(1), x)
  >>> state = rule.init(jax.random.key(2), params, x[:100])
  >>> state, metrics = rule.update(jax.random.key(3), state, x[:100])
  >>> state.kernel.kernel.centers.shape
  (20, 2)

  Args:
    rule: `rule(kernel=..., optimizer=...)` -> an Algorithm whose state is a
      `DescentState`, such as `stein_cd` without persistent points or
      `stein_score_matching`.
    kernel_fn: θ -> a kernel or a `Direction`, always of one form; θ is constant under
      differentiation. Over several devices it computes the same on each.
    optimizer: an optax optimizer.
    refresh: every how many updates; 1 is every one.

  Returns:
    An Algorithm with the rule's metrics, whose state is a `RefreshedState`.

  Raises:
    TypeError: a rule or kernel_fn that is no function; in `init`, a rule with another
      state.
    ValueError: refresh below 1.

  Source: ours.
  """
  checks.function("rule", rule)
  checks.function("kernel_fn", kernel_fn, "params")
  checks.optimizer(optimizer)
  checks.at_least_one("refresh", refresh)

  # Two functions that are the same in every update, which is then compiled once.
  def kernel_at(params: Params, old: Any = None) -> Any:
    del old
    return kernel_fn(jax.lax.stop_gradient(params))

  def kept(params: Params, old: Any) -> Any:
    del params
    return old

  def init(key: Key, params: Params, batch: Batch) -> RefreshedState:
    kernel = kernel_at(params)
    state = rule(kernel=kernel, optimizer=optimizer).init(key, params, batch)
    if not isinstance(state, DescentState):
      raise TypeError(
        "refreshed needs a rule whose state is a DescentState, got "
        f"{type(state).__name__}."
      )
    return RefreshedState(*state, kernel, jnp.zeros((), jnp.int32))

  def update(
    key: Key, state: RefreshedState, batch: Batch
  ) -> tuple[RefreshedState, Metrics]:
    is_due = (state.step > 0) & (state.step % refresh == 0)
    kernel = jax.lax.cond(is_due, kernel_at, kept, state.params, state.kernel)
    algorithm = rule(kernel=kernel, optimizer=optimizer)
    inner = DescentState(state.params, state.opt_state)
    inner, metrics = algorithm.update(key, inner, batch)
    params, opt_state = inner
    return RefreshedState(params, opt_state, kernel, state.step + 1), metrics

  return Algorithm(init, update)
