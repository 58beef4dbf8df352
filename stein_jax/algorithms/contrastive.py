"""Learning from positives and negatives: the loss, its descent, maximum likelihood."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from stein_jax import checks
from stein_jax.algorithms.descent import (
  DescentState,
  apply_gradient,
  descend,
)
from stein_jax.algorithms.energy import (
  check_batch,
  check_energy,
  energies,
  split_batch,
)
from stein_jax.algorithms.metrics import negatives_spread
from stein_jax.compiled import compiled
from stein_jax.parallel import axes
from stein_jax.types import (
  Algorithm,
  Array,
  Batch,
  EnergyFn,
  Key,
  LogPartitionFn,
  Metrics,
  Numeric,
  Params,
  Particles,
)


def penalty(value: Numeric | None) -> Numeric | None:
  """A valid α of `contrastive_loss`; 0 as None.

  So no penalty costs nothing, and 0 · E² is not NaN where E² overflows.
  """
  if value is None:
    return None
  checks.not_negative("energy_penalty", value)
  is_off = not isinstance(value, jax.core.Tracer) and float(value) == 0
  return None if is_off else value


def _check_loss(
  positives: Batch,
  negatives: Batch,
  discount: Numeric,
  energy_penalty: Numeric | None,
) -> dict[str, Numeric | None]:
  checks.share("discount", discount)
  x, context = split_batch(positives)
  x_negative, context_negative = split_batch(negatives)
  check_batch(positives, "positives")
  check_batch(negatives, "negatives")
  checks.same_event(x, x_negative, ("positives", "negatives"))
  if len(context) != len(context_negative):
    raise ValueError(
      'either both of positives and negatives have a context, {"x": ..., "context": '
      "...}, or neither."
    )
  return {"energy_penalty": penalty(energy_penalty)}


@compiled(_check_loss)
def contrastive_loss(
  params: Params,
  energy_fn: EnergyFn,
  positives: Batch,
  negatives: Batch,
  *,
  discount: Numeric = 0.0,
  energy_penalty: Numeric | None = 0.0,
) -> Array:
  """mean E(x⁺) − (1 − γ) mean E(x⁻) + α (mean E(x⁺)² + mean E(x⁻)²).

  x⁺ are the positives and x⁻ the negatives. Without α, its gradient in θ, with the
  negatives held constant, is the common form of contrastive divergence (11), SteinCD
  (13), maximum likelihood (8) and SteinGAN (23), which differ in where the negatives
  come from.

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point.
    positives: data, `[m, ...]`.
    negatives: the model's side, `[m', ...]`; constants under differentiation.
    discount: γ of section 5.2, "Stabilization", from 0 to 1.
    energy_penalty: α, which keeps energies near 0, in units of 1/energy. It fixes the
      constant that the contrast leaves free, and bounds energies of networks without
      weight decay; it also biases them. None is 0.

  Returns:
    A scalar.

  Raises:
    ValueError: points of different shapes, a discount outside its range, a negative
      penalty, or an energy that is not a scalar.

  Source: Liu & Wang (2017), equations 8, 11, 13, 17 and 23; the penalty is that of Du &
  Mordatch (2019), section 3.3.
  """
  negatives = jax.lax.stop_gradient(negatives)
  positive = energies(params, energy_fn, positives)
  negative = energies(params, energy_fn, negatives)
  loss = positive.mean() - (1 - discount) * negative.mean()
  if energy_penalty is None:
    return loss
  squares = jnp.square(positive).mean() + jnp.square(negative).mean()
  return loss + energy_penalty * squares


def contrast(
  params: Params,
  energy_fn: EnergyFn,
  positives: Batch,
  negatives: Batch,
  energy_penalty: Numeric | None,
  axis_name: str | None,
) -> tuple[Array, Params]:
  """The contrastive loss and its gradient, averaged over devices."""
  return axes.value_and_gradient(
    lambda p: contrastive_loss(
      p, energy_fn, positives, negatives, energy_penalty=energy_penalty
    ),
    params,
    axis_name,
  )


def _takes_key(log_partition_fn: LogPartitionFn) -> bool:
  """Whether it must be given two arguments, (key, params)."""
  return checks.num_arguments(log_partition_fn) == 2


def _check_likelihood(
  energy_fn: EnergyFn, data: Batch, log_partition_fn: LogPartitionFn, key: Key | None
) -> None:
  checks.function("energy_fn", energy_fn)
  checks.function("log_partition_fn", log_partition_fn)
  if _takes_key(log_partition_fn):
    if key is None:
      raise TypeError(
        "log_partition_fn(key, params) needs a key, got None: pass "
        "key=jax.random.key(0), or a function log_partition_fn(params)."
      )
    checks.key(key)
  _check_no_context(data)


def _check_no_context(data: Batch) -> None:
  check_batch(data, "data")
  if split_batch(data)[1]:
    raise ValueError(
      "exact maximum likelihood has one log Z and one set of samples for all points; "
      "the batch has a context, got {'x', 'context'}."
    )


@compiled(_check_likelihood)
def negative_log_likelihood(
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  log_partition_fn: LogPartitionFn,
  *,
  key: Key | None = None,
) -> Array:
  """−(1/m) Σᵢ log p(xᵢ; θ) = mean E(xᵢ; θ) + log Z(θ), in nats.

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point.
    data: `[m, ...]`.
    log_partition_fn: θ -> log Z(θ), or (key, θ) -> an estimate of it, as in
      `maximum_likelihood`. It is given the key if it must have two arguments.
    key: a PRNG key, the same on every device, for an estimate.

  Raises:
    ValueError: a batch with a context, on which log Z would depend; an energy or a
      log Z that is not a scalar.
    TypeError: an argument that is not a function, or no key for an estimate.

  Source: Liu & Wang (2017), equation 7.
  """
  if _takes_key(log_partition_fn):
    log_z = log_partition_fn(key, params)
    checks.scalar("log_partition_fn(key, params)", log_z)
  else:
    log_z = log_partition_fn(params)
    checks.scalar("log_partition_fn(params)", log_z)
  return energies(params, energy_fn, data).mean() + log_z


def maximum_likelihood(
  energy_fn: EnergyFn,
  log_partition_fn: LogPartitionFn,
  optimizer: optax.GradientTransformation,
  *,
  axis_name: str | None = None,
) -> Algorithm:
  """Exact maximum likelihood (8), for energies whose log Z is known or estimated.

  The gradient of log Z is −E_p[∇E], the expectation that negatives estimate elsewhere.

  In few dimensions log Z can be estimated by importance sampling. With fixed samples
  xⱼ of a density q, log Ẑ(θ) = log (1/n) Σⱼ exp(−E(xⱼ; θ))/q(xⱼ): its gradient flows
  through the energies and is −Σⱼ wⱼ ∇E(xⱼ; θ), wⱼ ∝ exp(−E(xⱼ; θ))/q(xⱼ). By Jensen's
  inequality log Ẑ is too low on average; q has to reach all that the model reaches.

  >>> import jax, jax.numpy as jnp, optax
  >>> from stein_jax import densities, maximum_likelihood
  >>> q = densities.gaussian(jnp.zeros(2), width=2.0)
  >>> energy_fn = lambda precision, x: 0.5 * precision * jnp.sum(x**2)
  >>> def log_partition_fn(key, precision):
  ...   x = q.sample(key, 1000)
  ...   log_weights = -jax.vmap(lambda x: energy_fn(precision, x))(x) - q.log_density(x)
  ...   return jax.nn.logsumexp(log_weights) - jnp.log(1000)
  >>> rule = maximum_likelihood(energy_fn, log_partition_fn, optax.adam(0.1))
  >>> data = 0.5 * jax.random.normal(jax.random.key(0), (100, 2))
  >>> state = rule.init(jax.random.key(1), jnp.array(1.0), data)
  >>> for key in jax.random.split(jax.random.key(2), 100):
  ...   state, metrics = rule.update(key, state, data)
  >>> bool(3.0 < state.params < 5.0)  # 1/variance is 4
  True

  Args:
    energy_fn: E(x; θ) of one point.
    log_partition_fn: θ -> log Z(θ), or (key, θ) -> an estimate of it. Which one is told
      by the number of arguments that it must be given. Over several devices the key is
      the same on each, and so is the estimate.
    optimizer: an optax optimizer.
    axis_name: the axis over which the batch is sharded.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer.

  Source: Liu & Wang (2017), equation 8.
  """
  check_energy(energy_fn)
  checks.function("log_partition_fn", log_partition_fn, "params", "key, params")

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    loss, gradient = axes.value_and_gradient(
      lambda p: negative_log_likelihood(p, energy_fn, batch, log_partition_fn, key=key),
      params,
      axis_name,
    )
    return gradient, {"loss": loss}

  return descend(gradient_fn, optimizer)


NegativesFn = Callable[..., tuple[Any, ...]]
"""The model's side: `negatives_fn(key, params, start) -> (negatives, metrics)`, or
`negatives_fn(key, params, batch, chains) -> (negatives, chains, metrics)`.
"""

ChainsFn = Callable[[Key, Params, Batch], Particles]
"""`chains_fn(key, params, batch) -> chains`: where they are before the first step."""


class PersistentState(NamedTuple):
  """As `DescentState`, with the chains that continue from step to step.

  A chain of a conditional energy keeps the context that it started with.

  Attributes:
    params: θ.
    opt_state: the optimizer's.
    particles: the chains: the negatives of persistent CD, a `ReplayBuffer`, or what
      `chains_fn` of `learn_from_negatives` returns. Sharded by rows over devices.
  """

  params: Params
  opt_state: optax.OptState
  particles: Particles


def learn_from_negatives(
  energy_fn: EnergyFn,
  negatives_fn: NegativesFn,
  optimizer: optax.GradientTransformation,
  *,
  chains_fn: ChainsFn | None = None,
  persistent: bool = False,
  energy_penalty: float = 0.0,
  axis_name: str | None = None,
) -> Algorithm:
  """Descends the contrastive loss with negatives from any function.

  CD-k, persistent CD and maximum likelihood by samples are this rule. So is a rule with
  a transition of your own, such as an RBM's Gibbs sampler. With `chains_fn` the state
  keeps chains of any number and form, and each step decides which of them it moves and
  which points are its negatives:

  >>> import jax, jax.numpy as jnp, optax
  >>> from stein_jax import learn_from_negatives
  >>> def chains_fn(key, params, batch):
  ...   return jax.random.normal(key, (16, 2))
  >>> def negatives_fn(key, params, batch, chains):  # exact, so only for show
  ...   chains = params + jax.random.normal(key, chains.shape)
  ...   return chains, chains, {"chains_mean": chains.mean()}
  >>> energy_fn = lambda mean, x: 0.5 * jnp.sum((x - mean) ** 2)
  >>> rule = learn_from_negatives(
  ...   energy_fn, negatives_fn, optax.sgd(0.1), chains_fn=chains_fn
  ... )
  >>> state = rule.init(jax.random.key(0), jnp.array(0.0), jnp.ones((4, 2)))
  >>> state, metrics = rule.update(jax.random.key(1), state, jnp.ones((4, 2)))
  >>> state.particles.shape
  (16, 2)

  Args:
    energy_fn: E(x; θ) of one point.
    negatives_fn: `(key, params, start)` -> negatives and metrics. `start` is the batch
      or, with `persistent`, the negatives of the previous step, whose shapes they keep.
      With `chains_fn`, `(key, params, batch, chains)` -> negatives, chains of the same
      shapes, and metrics.
      Over several devices the key is the same on each: draw each point's noise by its
      index among all points, and return metrics that are equal on all devices.
    optimizer: an optax optimizer.
    chains_fn: `(key, params, batch)` -> the first chains: a pytree of arrays that share
      their leading axis. Over several devices they are sharded by rows, and a device
      sees its own.
    persistent: continue from the negatives of the previous step (Tieleman, 2008). They
      start as the first batch.
    energy_penalty: α of `contrastive_loss`.
    axis_name: the axis over which the batch is sharded.

  Returns:
    An Algorithm whose metrics are those of `negatives_fn`, `loss`, `gradient_norm`
    and `negatives_spread`: the distance of the negatives from the mean of the
    positives, √(mean ‖x⁻ − x̄‖² / mean ‖x⁺ − x̄‖²), about 1 for a good model. With chains
    its state is a `PersistentState`.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer; in
      `update`, a negatives_fn that does not return a pair, or with chains three parts.
    ValueError: a negative penalty, or chains_fn with persistent; in `init`, chains
      without a common leading axis; in `update`, chains of other shapes than before.

  Source: Liu & Wang (2017), equations 8, 10 and 11.
  """
  check_energy(energy_fn)
  arguments = (
    "key, params, start" if chains_fn is None else "key, params, batch, chains"
  )
  checks.function("negatives_fn", negatives_fn, arguments)
  checks.optimizer(optimizer)
  checks.boolean("persistent", persistent)
  alpha = penalty(energy_penalty)
  if chains_fn is not None:
    checks.function("chains_fn", chains_fn, "key, params, batch")
    if persistent:
      raise ValueError(
        "chains_fn excludes persistent, whose chains start as the first batch: leave "
        "one of the two out."
      )

  def gradient_of(
    params: Params, batch: Batch, negatives: Batch, metrics: Metrics
  ) -> tuple[Params, Metrics]:
    checks.metrics("negatives_fn", metrics)
    loss, gradient = contrast(params, energy_fn, batch, negatives, alpha, axis_name)
    spread = negatives_spread(batch, negatives, axis_name)
    return gradient, {"loss": loss, "negatives_spread": spread} | metrics

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    returned = negatives_fn(key, params, batch)
    checks.pair("negatives_fn", returned, "negatives, metrics")
    return gradient_of(params, batch, *returned)

  if chains_fn is None and not persistent:
    return descend(gradient_fn, optimizer)

  def init(key: Key, params: Params, batch: Batch) -> PersistentState:
    checks.params(params)
    chains = batch if chains_fn is None else chains_fn(key, params, batch)
    if chains_fn is not None:
      checks.common_rows("chains_fn", chains)
    # A copy: a training loop may donate state and batch to one compiled call.
    chains = jax.tree.map(jnp.array, chains)
    return PersistentState(params, optimizer.init(params), chains)

  def continued(
    key: Key, params: Params, batch: Batch, chains: Particles
  ) -> tuple[Batch, Particles, Metrics]:
    """The form with chains, of either form."""
    if chains_fn is not None:
      returned = negatives_fn(key, params, batch, chains)
      checks.triple("negatives_fn", returned, "negatives, chains, metrics")
      checks.same_shapes(chains, returned[1], ("chains", "negatives_fn's chains"))
      return tuple(returned)
    checks.same_shapes(batch, chains, ("the batch", "the chains"))
    returned = negatives_fn(key, params, chains)
    checks.pair("negatives_fn", returned, "negatives, metrics")
    negatives, metrics = returned
    names = ("start", "negatives_fn(key, params, start)")
    checks.same_shapes(chains, negatives, names)
    return negatives, negatives, metrics

  def update(
    key: Key, state: PersistentState, batch: Batch
  ) -> tuple[PersistentState, Metrics]:
    params, opt_state, chains = state
    negatives, chains, metrics = continued(key, params, batch, chains)
    gradient, metrics = gradient_of(params, batch, negatives, metrics)
    descent = apply_gradient(DescentState(params, opt_state), gradient, optimizer)
    metrics |= {"gradient_norm": optax.tree.norm(gradient)}
    return PersistentState(*descent, chains), metrics

  return Algorithm(init, update)


def sampled_maximum_likelihood(
  energy_fn: EnergyFn,
  sample_fn: Callable[[Key, Params, int], Particles],
  optimizer: optax.GradientTransformation,
  *,
  axis_name: str | None = None,
) -> Algorithm:
  """Maximum likelihood (8) with exact samples of the model as negatives.

  Args:
    energy_fn: E(x; θ) of one point.
    sample_fn: `(key, params, n)` -> n exact samples, each with as many numbers as a
      point of the batch.
    optimizer: an optax optimizer.
    axis_name: the axis over which the batch is sharded. Every device draws all
      samples and keeps its own.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer.
    ValueError: in `update`, samples of another number or size than the batch.
  """
  check_energy(energy_fn)
  checks.function("sample_fn", sample_fn, "key, params, n")

  def negatives_fn(key: Key, params: Params, batch: Batch) -> tuple[Batch, Metrics]:
    _check_no_context(batch)
    samples = own_samples(
      lambda n: sample_fn(key, params, n), batch, axis_name, "sample_fn", "key, params"
    )
    return samples, {}

  return learn_from_negatives(energy_fn, negatives_fn, optimizer, axis_name=axis_name)


def own_samples(
  draw: Callable[[int], Particles],
  points: Particles,
  axis_name: str | None,
  name: str,
  arguments: str,
) -> Particles:
  """As many samples as there are points, in the points' shapes.

  Every device draws the samples of all devices and keeps its own.

  Args:
    draw: n -> n samples, the same on every device.
    points: `[m, ...]`, of this device.
    axis_name: the axis over which the points are sharded.
    name: of the function, for errors.
    arguments: what it is given before n, for errors.

  Raises:
    ValueError: samples of another number or size than the points.
  """
  m = checks.num_particles(points)
  n = m * axes.size(axis_name)
  samples = draw(n)
  got = checks.num_particles(samples, "samples")
  if got != n:
    raise ValueError(f"{name}({arguments}, {n}) must return {n} samples, got {got}.")
  of_sample = [leaf.size // n for leaf in jax.tree.leaves(samples)]
  of_point = [leaf.size // m for leaf in jax.tree.leaves(points)]
  if of_sample != of_point:
    given, wanted = (", ".join(map(str, sizes)) for sizes in (of_sample, of_point))
    raise ValueError(
      f"one sample of {name} must have {wanted} numbers, as a point of the batch has, "
      f"got {given}."
    )
  mine = axes.own(samples, m, axis_name)
  return jax.tree.map(lambda s, x: s.reshape(x.shape), mine, points)
