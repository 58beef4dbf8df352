"""Several learning rules that share their parameters, as one rule."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from stein_jax import checks
from stein_jax.algorithms.descent import apply_gradient
from stein_jax.types import Algorithm, Array, Batch, Key, Metrics, Params, PyTree

Rule: TypeAlias = Callable[..., Algorithm]
"""`rule(optimizer=...)` -> an Algorithm."""

Weight: TypeAlias = float | Callable[[Array], Array]
"""A number of at least 0, or a schedule of optax: step -> number."""


class MixState(NamedTuple):
  """As `DescentState`, with what each rule keeps besides the parameters.

  Attributes:
    params: θ, shared by all rules.
    opt_state: the optimizer's.
    parts: of each rule by name, its own state without `params`, `opt_state` and
      `particles`, which are `()` there.
    particles: of each rule that has them, by name. Sharded by rows over devices.
    step: the number of updates done.
  """

  params: Params
  opt_state: optax.OptState
  parts: dict[str, Any]
  particles: dict[str, PyTree]
  step: Array


def _recorder() -> optax.GradientTransformation:
  """An optimizer that moves nothing, and whose state is the last gradient."""

  def update(
    gradient: Params, state: Params, params: Params = None
  ) -> tuple[Params, Params]:
    del state, params
    return optax.tree.zeros_like(gradient), gradient

  return optax.GradientTransformation(optax.tree.zeros_like, update)


_EXPECTED = (
  "a function of an optimizer that returns an Algorithm, such as functools.partial("
  "contrastive_divergence, energy_fn, num_steps=1, step_size=0.1)"
)


def _check(rules: Any, draw: bool) -> None:
  checks.boolean("draw", draw)
  if not isinstance(rules, Mapping) or not rules:
    raise TypeError(
      "rules must be a dict {name: (rule, weight)} of at least one rule, got "
      f"{rules if rules == {} else checks.described(rules)}."
    )
  for name, entry in rules.items():
    if not isinstance(name, str):
      raise TypeError(f"the names of rules must be strings, got {name!r}.")
    if not (isinstance(entry, tuple) and len(entry) == 2) or hasattr(entry, "_fields"):
      raise TypeError(
        f"rules[{name!r}] must be a pair (rule, weight), got {checks.described(entry)}."
      )
    rule, weight = entry
    if callable(weight):
      checks.function(f"the weight of {name!r}", weight, "step")
    else:
      checks.not_negative(f"the weight of {name!r}", weight)
    if not _takes_optimizer(rule):
      raise TypeError(
        f"the rule {name!r} must be {_EXPECTED}; got {checks.described(rule)}. Its "
        "optimizer is passed as the argument `optimizer`."
      )
  weights = [weight for _, weight in rules.values()]
  if not any(callable(weight) or float(weight) > 0 for weight in weights):
    raise ValueError("at least one rule must have a weight above 0, got only zeros.")


def _takes_optimizer(rule: Any) -> bool:
  if not callable(rule):
    return False
  try:
    inspect.signature(rule).bind(optimizer=None)
  except TypeError:
    return False
  except ValueError:
    pass  # it does not tell
  return True


def mix(
  rules: Mapping[str, tuple[Rule, Weight]],
  optimizer: optax.GradientTransformation,
  *,
  draw: bool = False,
) -> Algorithm:
  """Several rules that share θ: one optimizer gets their gradients' weighted sum.

  Σₖ wₖ gₖ(θ), or with `draw` one gₖ(θ) a step, k drawn with probability wₖ / Σⱼ wⱼ.

  A rule is given as a function of its optimizer. It may be any rule of this package
  with one set of parameters, or one of your own, and keeps what else it has: chains, a
  replay buffer, the log Z of noise-contrastive estimation with its own optimizer.

  >>> import jax, jax.numpy as jnp, optax
  >>> from functools import partial
  >>> from stein_jax import contrastive_divergence, kernels, mix, stein_cd
  >>> energy_fn = lambda mean, x: 0.5 * jnp.sum((x - mean) ** 2)
  >>> cd = partial(contrastive_divergence, energy_fn, num_steps=1, step_size=0.1)
  >>> stein = partial(stein_cd, energy_fn, kernels.rbf(), step_size=0.1)
  >>> rule = mix({"cd": (cd, 1.0), "stein": (stein, 0.5)}, optax.adam(0.1))
  >>> data = 3 + jax.random.normal(jax.random.key(0), (100, 2))
  >>> state = rule.init(jax.random.key(1), jnp.zeros(2), data)
  >>> for key in jax.random.split(jax.random.key(2), 100):
  ...   state, metrics = rule.update(key, state, data)
  >>> [round(mean.item()) for mean in state.params]
  [3, 3]
  >>> sorted(metrics)[:3]
  ['cd/gradient_norm', 'cd/loss', 'cd/negatives_spread']

  Gradients of different rules differ in size, and so do the weights that balance them:
  `<name>/gradient_norm` tells.

  Args:
    rules: `{name: (rule, weight)}`. `rule(optimizer=...)` returns an Algorithm whose
      state is a NamedTuple with `params` and `opt_state`, and which gives its optimizer
      one gradient of all parameters in each update. On several devices every rule is
      made with the same axis_name. A weight is a number of at least 0, or a function
      of the step (0, 1, ...) that returns one, such as a schedule of optax.
    optimizer: an optax optimizer of θ. Optimizers with which rules were built before
      are not used.
    draw: let one rule make the step instead of all. Its gradient is not multiplied by
      its weight, which is its share of the steps; the rules that are not drawn keep
      their states. One of the weights must be above 0 in every step.

  Returns:
    An Algorithm whose state is a `MixState`. Rule k draws its randomness by
    `fold_in(key, k)`. Its metrics are `gradient_norm`, and `<name>/<metric>` of every
    rule. With `draw` they include `<name>/drawn`, 1 or 0, and the metrics of a rule
    that was not drawn are 0: in a row of `fit`, the mean loss of a rule over the steps
    that it made is `<name>/loss` / `<name>/drawn`.

  Raises:
    TypeError: rules that are no such dict, or a rule that is no function of an
      optimizer; in `init`, a rule whose state lacks `params` or `opt_state`.
    ValueError: a weight below 0, or only zeros; in `init`, a rule that gives its
      optimizer a part of the parameters only. So rules of two networks, such as
      `stein_gan` and `learned_stein_discrepancy`, cannot be mixed; `stein_gan` has its
      own mix with SteinCD.

  Source: Liu & Wang (2017), section 5, where SteinCD and SteinGAN share an energy.
  """
  _check(rules, draw)
  checks.optimizer(optimizer)
  names = list(rules)
  weights = [weight for _, weight in rules.values()]
  algorithms = {}
  for name, (rule, _) in rules.items():
    algorithms[name] = rule(optimizer=_recorder())
    if not isinstance(algorithms[name], Algorithm):
      raise TypeError(
        f"the rule {name!r} must be {_EXPECTED}; it returned "
        f"{checks.described(algorithms[name])}."
      )

  def init(key: Key, params: Params, batch: Batch) -> MixState:
    checks.params(params)
    parts, particles = {}, {}
    for k, (name, algorithm) in enumerate(algorithms.items()):
      state = algorithm.init(jax.random.fold_in(key, k), params, batch)
      _check_state(name, state, params)
      if hasattr(state, "particles"):
        particles[name] = state.particles
      parts[name] = _stripped(state)
    step = jnp.zeros((), jnp.int32)
    return MixState(params, optimizer.init(params), parts, particles, step)

  def updated(
    name: str, key: Key, state: MixState, batch: Batch
  ) -> tuple[Params, Any, Metrics]:
    """One rule's gradient, its new state, and its metrics."""
    part = state.parts[name]._replace(params=state.params)
    if name in state.particles:
      part = part._replace(particles=state.particles[name])
    key = jax.random.fold_in(key, names.index(name))
    part, metrics = algorithms[name].update(key, part, batch)
    # Of the parameters' type, so that all rules' gradients have one.
    gradient = jax.tree.map(
      lambda p, g: g.astype(p.dtype), state.params, part.opt_state
    )
    return gradient, part, {f"{name}/{metric}": x for metric, x in metrics.items()}

  def summed(
    key: Key, state: MixState, batch: Batch
  ) -> tuple[Params, MixState, Metrics]:
    total, following = optax.tree.zeros_like(state.params), state
    all_metrics: Metrics = {}
    for name, weight in zip(names, _values(weights, state.step)):
      gradient, part, metrics = updated(name, key, state, batch)
      total = jax.tree.map(
        lambda t, g: t + (weight * g).astype(t.dtype),  # noqa: B023
        total,
        gradient,
      )
      following = _with_part(following, name, part)
      all_metrics |= metrics
    return total, following, all_metrics

  def drawn(
    key: Key, state: MixState, batch: Batch
  ) -> tuple[Params, MixState, Metrics]:
    log_weights = jnp.log(jnp.stack(_values(weights, state.step)))
    draw_key = jax.random.fold_in(key, len(names))
    index = jax.random.categorical(draw_key, log_weights)
    of_rules = {
      name: jax.eval_shape(lambda s, n=name: updated(n, key, s, batch)[2], state)
      for name in names
    }
    zeros = {
      metric: jnp.zeros(x.shape, x.dtype)
      for metrics in of_rules.values()
      for metric, x in metrics.items()
    }

    def branch(name: str) -> Callable[[MixState], Any]:
      def step(state: MixState) -> tuple[Params, Any, Any, Metrics]:
        gradient, part, metrics = updated(name, key, state, batch)
        state = _with_part(state, name, part)
        return gradient, state.parts, state.particles, zeros | metrics

      return step

    branches = [branch(name) for name in names]
    gradient, parts, particles, metrics = jax.lax.switch(index, branches, state)
    state = state._replace(parts=parts, particles=particles)
    shares = {
      f"{name}/drawn": (index == k).astype(jnp.float32) for k, name in enumerate(names)
    }
    return gradient, state, metrics | shares

  def update(key: Key, state: MixState, batch: Batch) -> tuple[MixState, Metrics]:
    gradient, state, metrics = (drawn if draw else summed)(key, state, batch)
    state = apply_gradient(state, gradient, optimizer)
    metrics["gradient_norm"] = optax.tree.norm(gradient)
    return state._replace(step=state.step + 1), metrics

  return Algorithm(init, update)


def _check_state(name: str, state: Any, params: Params) -> None:
  if not {"params", "opt_state"} <= set(getattr(state, "_fields", ())):
    raise TypeError(
      f"the state of the rule {name!r} must be a NamedTuple with the fields params and "
      f"opt_state, got {type(state).__name__}."
    )
  structures: list[Any] = [
    jax.tree.structure(tree) for tree in (params, state.opt_state)
  ]
  if structures[0] != structures[1]:
    raise ValueError(
      f"the rule {name!r} does not give its optimizer all of params, got "
      f"{structures[1]} of {structures[0]}: rules of two networks cannot be mixed."
    )


def _stripped(state: Any) -> Any:
  """A rule's state without what the `MixState` has in other fields."""
  shared = {"params", "opt_state", "particles"} & set(state._fields)
  return state._replace(**dict.fromkeys(shared, ()))


def _with_part(state: MixState, name: str, part: Any) -> MixState:
  """The state with one rule's new state in its place."""
  if name in state.particles:
    particles = state.particles | {name: part.particles}
    state = state._replace(particles=particles)
  return state._replace(parts=state.parts | {name: _stripped(part)})


def _values(weights: list[Weight], step: Array) -> list[Array]:
  """The weights at a step, as floats."""
  return [
    jnp.asarray(weight(step) if callable(weight) else weight, float)
    for weight in weights
  ]
