"""DCGAN, the paper's baseline: a generator against a discriminator."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stein_jax import checks
from stein_jax.algorithms.descent import DescentState, apply_gradient
from stein_jax.algorithms.energy import check_batch, split_batch
from stein_jax.algorithms.generation import check_functions, draw_noise, generate
from stein_jax.parallel import axes
from stein_jax.types import (
  Algorithm,
  Array,
  Batch,
  GenerateFn,
  Key,
  Metrics,
  NoiseFn,
  Params,
  Particles,
  PyTree,
)

DiscriminateFn = Callable[[Params, PyTree, Particles, PyTree], tuple[Array, PyTree]]
"""`discriminate_fn(params, stats, x, context) -> (logits [m], stats)`.

All points of a batch at once. A logit above 0 classifies a point as data. `stats` are
the running statistics of batch norm; a discriminator without them passes an empty tree
through.
"""


@jax.jit
def discriminator_loss(logits_real: Array, logits_generated: Array) -> Array:
  """mean softplus(−D(x)) + mean softplus(D(G(ξ))), in nats.

  The cross-entropy of classifying data against samples, with σ(D) the probability of
  data. Its minimum, log 4 − 2 JSD(p_data ‖ p_G), is at D = log p_data − log p_G.

  Args:
    logits_real: D of data, `[m]`.
    logits_generated: D of samples, `[m']`.

  Returns:
    A scalar, at least 0.

  Source: Goodfellow et al. (2014), equation 1 and theorem 1.
  """
  real, generated = jax.nn.softplus(-logits_real), jax.nn.softplus(logits_generated)
  return real.mean() + generated.mean()


@jax.jit
def generator_loss(logits_generated: Array) -> Array:
  """mean softplus(−D(G(ξ))) = −mean log σ(D(G(ξ))), in nats.

  The non-saturating loss: its gradient is large where the discriminator is confident.

  Args:
    logits_generated: D of samples, `[m]`.

  Returns:
    A scalar, at least 0.

  Source: Goodfellow et al. (2014), section 3.
  """
  return jax.nn.softplus(-logits_generated).mean()


class DCGANState(NamedTuple):
  """Both networks, their statistics and their optimizers' states."""

  params: Params  # {"discriminator": θ, "generator": η}
  generator_stats: PyTree
  discriminator_stats: PyTree
  discriminator_opt_state: optax.OptState
  generator_opt_state: optax.OptState
  generator_average: Params  # the moving average of η; an empty tuple if there is none


def dcgan(
  discriminate_fn: DiscriminateFn,
  generate_fn: GenerateFn,
  noise_fn: NoiseFn,
  discriminator_optimizer: optax.GradientTransformation,
  generator_optimizer: optax.GradientTransformation,
  *,
  discriminator_stats: PyTree = (),
  generator_stats: PyTree = (),
  average: float | None = None,
  axis_name: str | None = None,
) -> Algorithm:
  """DCGAN: a discriminator learns to classify data against a generator's samples.

  Every step draws samples G(η; ξ) once. The discriminator descends
  `discriminator_loss` of batch and samples. Then the generator descends
  `generator_loss` of the same samples under the updated discriminator.

  Batch norm: the discriminator normalises the batch and the samples separately, each by
  its own statistics. The running statistics that are kept are the generator's after the
  samples and the discriminator's after the batch. Samples do not change the latter.

  `params` of `init` is `{"discriminator": θ, "generator": η}`. A batch is `[m, ...]` or
  `{"x", "context"}`; sample i then has the context of point i.

  Args:
    discriminate_fn: D, such as `discriminators.discriminate_fn(module)`.
    generate_fn: G, such as `generators.generate_fn(module)`; samples shaped like data.
    noise_fn: draws ξ for a number of samples.
    discriminator_optimizer: an optax optimizer for θ.
    generator_optimizer: an optax optimizer for η.
    discriminator_stats: the statistics that the discriminator starts with.
    generator_stats: the statistics that the generator starts with.
    average: the decay a of a moving average of the generator's parameters,
      `generator_average` ← a · `generator_average` + (1 − a) · η, which starts at the
      first η. None: there is no average. `generator_stats` are not averaged.
    axis_name: the axis over which the batch is sharded. Every device draws all noise
      and keeps its own part. Networks with batch norm need the same axis_name.

  Returns:
    An Algorithm with the metrics "loss" (the discriminator's, before its step),
    "generator_loss" (before its step, under the updated discriminator), the mean logits
    "logit_data" and "logit_generated", "gradient_norm" (the discriminator's) and
    "generator_gradient_norm".

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer.
    ValueError: an average outside (0, 1); at the first step, samples or logits of
      another shape than data.

  Source: Goodfellow et al. (2014), algorithm 1 with one inner step; Radford et al.
    (2016).
  """
  checks.function("discriminate_fn", discriminate_fn, "params, stats, points, context")
  check_functions(generate_fn, noise_fn)
  checks.optimizer(discriminator_optimizer, "discriminator_optimizer")
  checks.optimizer(generator_optimizer, "generator_optimizer")
  checks.decay("average", average)

  def init(key: Key, params: Params, batch: Batch) -> DCGANState:
    del key, batch
    checks.networks(params, ("discriminator", "generator"))
    checks.params(params)
    theta, eta = params["discriminator"], params["generator"]
    return DCGANState(
      params,
      generator_stats,
      discriminator_stats,
      discriminator_optimizer.init(theta),
      generator_optimizer.init(eta),
      # A copy: a state may be donated, and each buffer only once.
      () if average is None else jax.tree.map(jnp.array, eta),
    )

  def update(key: Key, state: DCGANState, batch: Batch) -> tuple[DCGANState, Metrics]:
    theta, eta = state.params["discriminator"], state.params["generator"]
    x, given = split_batch(batch)
    context = given[0] if given else None
    m = check_batch(batch)
    noise = draw_noise(noise_fn, key, m, axis_name)
    samples, pull_back, stats = jax.vjp(
      lambda p: generate(generate_fn, p, state.generator_stats, noise, context),
      axes.local(eta, axis_name),
      has_aux=True,
    )
    checks.same_shapes(x, samples, ("the batch", "the generator's samples"))

    def logits(p: Params, points: Particles) -> tuple[Array, PyTree]:
      returned = discriminate_fn(p, state.discriminator_stats, points, context)
      checks.pair("discriminate_fn", returned, "logits, stats")
      logits, new = returned
      if logits.shape != (m,):
        raise ValueError(
          f"discriminate_fn must return one logit for each of {m} points, [{m}], got "
          f"shape {logits.shape}."
        )
      return logits, new

    def loss(p: Params) -> tuple[Array, tuple[Array, Array, PyTree]]:
      (real, new), (generated, _) = logits(p, x), logits(p, samples)
      means = real.mean(), generated.mean()
      return discriminator_loss(real, generated), (*means, new)

    (value, (real, generated, data_stats)), gradient = axes.mean(
      jax.value_and_grad(loss, has_aux=True)(axes.local(theta, axis_name)), axis_name
    )
    theta, opt_state = apply_gradient(
      DescentState(theta, state.discriminator_opt_state),
      gradient,
      discriminator_optimizer,
    )

    generator_value, to_samples = jax.value_and_grad(
      lambda points: generator_loss(logits(theta, points)[0])
    )(samples)
    generator_value, generator_gradient = axes.mean(
      (generator_value, pull_back(to_samples)[0]), axis_name
    )
    eta, generator_opt_state = apply_gradient(
      DescentState(eta, state.generator_opt_state),
      generator_gradient,
      generator_optimizer,
    )

    generator_average = state.generator_average
    if average is not None:
      generator_average = optax.incremental_update(
        eta, generator_average, step_size=1 - average
      )
    metrics = {
      "loss": value,
      "generator_loss": generator_value,
      "logit_data": real,
      "logit_generated": generated,
      "gradient_norm": optax.tree.norm(gradient),
      "generator_gradient_norm": optax.tree.norm(generator_gradient),
    }
    return DCGANState(
      {"discriminator": theta, "generator": eta},
      axes.mean(stats, axis_name),
      data_stats,
      opt_state,
      generator_opt_state,
      generator_average,
    ), metrics

  return Algorithm(init, update)
