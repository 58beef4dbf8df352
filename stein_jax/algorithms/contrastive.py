"""Contrastive learning of energies: the loss, CD-k, and exact maximum likelihood."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from stein_jax import checks, samplers
from stein_jax.algorithms.descent import (
  DescentState,
  apply_gradient,
  descend,
)
from stein_jax.algorithms.energy import (
  check_batch,
  check_energy,
  energies,
  score_of,
  split_batch,
  with_points,
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
  PyTree,
)


def _check_loss(positives: Batch, negatives: Batch, discount: Numeric) -> None:
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


@compiled(_check_loss)
def contrastive_loss(
  params: Params,
  energy_fn: EnergyFn,
  positives: Batch,
  negatives: Batch,
  *,
  discount: Numeric = 0.0,
) -> Array:
  """mean E(positives) − (1 − γ) · mean E(negatives).

  Its gradient in θ, with the negatives held constant, is the common form of
  contrastive divergence (11), SteinCD (13), maximum likelihood (8) and SteinGAN (23),
  which differ in where the negatives come from.

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point.
    positives: data, `[m, ...]`.
    negatives: the model's side, `[m', ...]`; constants under differentiation.
    discount: γ of section 5.2, "Stabilization", from 0 to 1.

  Returns:
    A scalar.

  Raises:
    ValueError: points of different shapes, a discount outside its range, or an energy
      that is not a scalar.

  Source: Liu & Wang (2017), equations 8, 11, 13, 17 and 23.
  """
  negatives = jax.lax.stop_gradient(negatives)
  positive = energies(params, energy_fn, positives).mean()
  negative = energies(params, energy_fn, negatives).mean()
  return positive - (1 - discount) * negative


def _check_likelihood(
  energy_fn: EnergyFn, data: Batch, log_partition_fn: LogPartitionFn
) -> None:
  checks.function("energy_fn", energy_fn)
  checks.function("log_partition_fn", log_partition_fn)
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
) -> Array:
  """−(1/m) Σᵢ log p(xᵢ; θ) = mean E(xᵢ; θ) + log Z(θ), in nats.

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point.
    data: `[m, ...]`.
    log_partition_fn: θ -> log Z(θ).

  Raises:
    ValueError: a batch with a context, on which log Z would depend; an energy or a
      log Z that is not a scalar.

  Source: Liu & Wang (2017), equation 7.
  """
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
  """Exact maximum likelihood (8), for energies whose log Z is known.

  The gradient of log Z is −E_p[∇E], the expectation that negatives estimate elsewhere.

  Args:
    energy_fn: E(x; θ) of one point.
    log_partition_fn: θ -> log Z(θ).
    optimizer: an optax optimizer.
    axis_name: the axis over which the batch is sharded.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer.

  Source: Liu & Wang (2017), equation 8.
  """
  check_energy(energy_fn)
  checks.function("log_partition_fn", log_partition_fn, "params")

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    del key
    loss, gradient = axes.value_and_gradient(
      lambda p: negative_log_likelihood(p, energy_fn, batch, log_partition_fn),
      params,
      axis_name,
    )
    return gradient, {"loss": loss}

  return descend(gradient_fn, optimizer)


NegativesFn = Callable[[Key, Params, Batch], tuple[Batch, Metrics]]
"""`negatives_fn(key, params, start) -> (negatives, metrics)`: the model's side."""


def learn_from_negatives(
  energy_fn: EnergyFn,
  negatives_fn: NegativesFn,
  optimizer: optax.GradientTransformation,
  *,
  persistent: bool = False,
  axis_name: str | None = None,
) -> Algorithm:
  """Descends the contrastive loss with negatives from any function.

  CD-k, persistent CD and maximum likelihood by samples are this rule. So is a rule with
  a transition of your own, such as an RBM's Gibbs sampler.

  Args:
    energy_fn: E(x; θ) of one point.
    negatives_fn: `(key, params, start)` -> negatives and metrics. `start` is the batch
      or, with `persistent`, the negatives of the previous step, whose shapes they keep.
      Over several devices the key is the same on each: draw each point's noise by its
      index among all points, and return metrics that are equal on all devices.
    optimizer: an optax optimizer.
    persistent: continue from the negatives of the previous step (Tieleman, 2008). They
      start as the first batch.
    axis_name: the axis over which the batch is sharded.

  Returns:
    An Algorithm whose metrics are those of `negatives_fn`, `loss`, `gradient_norm`
    and `negatives_spread`: the distance of the negatives from the mean of the
    positives, √(mean ‖x⁻ − x̄‖² / mean ‖x⁺ − x̄‖²), about 1 for a good model.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer; in
      `update`, a negatives_fn that does not return a pair.

  Source: Liu & Wang (2017), equations 8, 10 and 11.
  """
  check_energy(energy_fn)
  checks.function("negatives_fn", negatives_fn, "key, params, start")
  checks.optimizer(optimizer)
  checks.boolean("persistent", persistent)

  def contrast(
    key: Key, params: Params, batch: Batch, start: Batch
  ) -> tuple[Params, Batch, Metrics]:
    returned = negatives_fn(key, params, start)
    checks.pair("negatives_fn", returned, "negatives, metrics")
    negatives, metrics = returned
    checks.metrics("negatives_fn", metrics)
    if persistent:
      checks.same_shapes(
        start, negatives, ("start", "negatives_fn(key, params, start)")
      )
    loss, gradient = axes.value_and_gradient(
      lambda p: contrastive_loss(p, energy_fn, batch, negatives), params, axis_name
    )
    spread = negatives_spread(batch, negatives, axis_name)
    found = {"loss": loss, "negatives_spread": spread}
    return gradient, negatives, found | metrics

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    gradient, _, metrics = contrast(key, params, batch, batch)
    return gradient, metrics

  if not persistent:
    return descend(gradient_fn, optimizer)

  def init(key: Key, params: Params, batch: Batch) -> PersistentState:
    del key
    checks.params(params)
    # A copy: a training loop may donate state and batch to one compiled call.
    chains = jax.tree.map(jnp.array, batch)
    return PersistentState(params, optimizer.init(params), chains)

  def update(
    key: Key, state: PersistentState, batch: Batch
  ) -> tuple[PersistentState, Metrics]:
    params, opt_state, chains = state
    checks.same_shapes(batch, chains, ("the batch", "the chains"))
    gradient, chains, metrics = contrast(key, params, batch, chains)
    descent = apply_gradient(DescentState(params, opt_state), gradient, optimizer)
    metrics |= {"gradient_norm": optax.tree.norm(gradient)}
    return PersistentState(*descent, chains), metrics

  return Algorithm(init, update)


class PersistentState(NamedTuple):
  """As `DescentState`, with the chains that continue from step to step.

  A chain of a conditional energy keeps the context that it started with.
  """

  params: Params
  opt_state: optax.OptState
  particles: Batch


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
    m = checks.num_particles(batch)
    n = m * axes.size(axis_name)
    samples = sample_fn(key, params, n)
    got = checks.num_particles(samples, "samples")
    if got != n:
      raise ValueError(
        f"sample_fn(key, params, {n}) must return {n} samples, got {got}."
      )
    of_sample = [leaf.size // n for leaf in jax.tree.leaves(samples)]
    of_point = [leaf.size // m for leaf in jax.tree.leaves(batch)]
    if of_sample != of_point:
      given, wanted = (", ".join(map(str, sizes)) for sizes in (of_sample, of_point))
      raise ValueError(
        f"one sample of sample_fn must have {wanted} numbers, as a point of the batch "
        f"has, got {given}."
      )
    mine = axes.own(samples, m, axis_name)
    return jax.tree.map(lambda s, x: s.reshape(x.shape), mine, batch), {}

  return learn_from_negatives(energy_fn, negatives_fn, optimizer, axis_name=axis_name)


def contrastive_divergence(
  energy_fn: EnergyFn,
  optimizer: optax.GradientTransformation,
  *,
  num_steps: int,
  step_size: float,
  persistent: bool = False,
  metropolis: bool = False,
  antithetic: bool = False,
  axis_name: str | None = None,
) -> Algorithm:
  """CD-k (11): negatives are the data after k Langevin steps towards the model.

  Args:
    energy_fn: E(x; θ) of one point.
    optimizer: an optax optimizer.
    num_steps: k.
    step_size: ε of the Langevin steps, in units of squared distance.
    persistent: continue the chains of the previous step instead of starting at the
      data (Tieleman, 2008). They start as the first batch.
    metropolis: use MALA, whose steps leave the model invariant exactly.
    antithetic: start two chains at every point, one with the noise z and one with −z.
      Terms that are odd in the noise cancel. There are twice as many negatives as
      positives.
    axis_name: the axis over which the batch is sharded.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer.
    ValueError: num_steps below 1, a step size that is not above 0, or antithetic with
      persistent or metropolis, which would separate the pairs.

  Source: Liu & Wang (2017), equations 10 and 11; Hinton (2002).
  """
  check_energy(energy_fn)
  checks.at_least_one("num_steps", num_steps)
  checks.positive("step_size", step_size)
  for name, value in (("metropolis", metropolis), ("antithetic", antithetic)):
    checks.boolean(name, value)
  if antithetic and (persistent or metropolis):
    raise ValueError(
      "antithetic excludes persistent and metropolis, which would separate its pairs."
    )
  # Made once: with a new function in each update the chain would be compiled each time.
  score_fn = partial(score_of, energy_fn)
  log_density_fn = partial(_log_density, energy_fn)

  def negatives_fn(key: Key, params: Params, start: Batch) -> tuple[Batch, Metrics]:
    x, context = split_batch(start)
    options: dict[str, Any] = {
      "num_steps": num_steps,
      "step_size": step_size,
      "context": context[0] if context else None,
      "axis_name": axis_name,
    }
    if metropolis:
      result = samplers.mala(key, x, Partial(log_density_fn, params), **options)
      metrics = {"acceptance_rate": result.acceptance_rate}
      return with_points(start, result.particles), metrics
    moved = samplers.langevin(
      key, x, Partial(score_fn, params), antithetic=antithetic, **options
    )
    if antithetic:  # both chains of a point have its context
      start = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), start)
    return with_points(start, moved), {}

  return learn_from_negatives(
    energy_fn, negatives_fn, optimizer, persistent=persistent, axis_name=axis_name
  )


def _log_density(
  energy_fn: EnergyFn, params: Params, x: PyTree, *context: PyTree
) -> Array:
  checks.scalar_energy(energy_fn, params, x, *context)
  return -energy_fn(params, x, *context)
