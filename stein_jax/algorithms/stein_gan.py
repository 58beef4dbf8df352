"""SteinGAN: a generator learns to sample an energy by amortised SVGD, and the energy
learns from the generator's samples."""

import numbers
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from stein_jax import checks
from stein_jax.algorithms.contrastive import contrastive_loss
from stein_jax.algorithms.descent import DescentState, apply_gradient
from stein_jax.algorithms.energy import (
  check_batch,
  check_energy,
  energies,
  score_of,
  split_batch,
  with_points,
)
from stein_jax.algorithms.generation import check_functions, draw_noise, generate
from stein_jax.algorithms.metrics import direction_norm, negatives_spread
from stein_jax.algorithms.stein_cd import stein_cd_gradient
from stein_jax.compiled import compiled
from stein_jax.parallel import axes
from stein_jax.stein.direction import (
  DirectionFn,
  DirectionLike,
  as_direction,
  call,
  check_kernel,
  is_direction_fn,
  repulsion_share,
)
from stein_jax.types import (
  Algorithm,
  Array,
  Batch,
  EnergyFn,
  GenerateFn,
  Key,
  Metrics,
  NoiseFn,
  Numeric,
  Params,
  Particles,
  PyTree,
  ScoreFn,
)


class Generated(NamedTuple):
  """What was computed on the way to the generator's gradient, so that it runs once."""

  samples: Particles  # xᵢ = G(η; ξᵢ)
  generator_stats: PyTree  # the statistics after them
  scores: Particles  # ∇ log p(xᵢ)
  direction: Particles  # φ(xᵢ)


def _check_amortized(
  generator_params: Params, kernel: DirectionLike
) -> dict[str, DirectionFn]:
  checks.params(generator_params, "generator_params")
  return {"kernel": as_direction(kernel, generator_params)}


@compiled(_check_amortized, static=("axis_name",))
def amortized_svgd_gradient(
  generator_params: Params,
  generate_fn: GenerateFn,
  noise: PyTree,
  score_fn: ScoreFn,
  kernel: DirectionLike,
  *,
  generator_stats: PyTree = (),
  context: PyTree = None,
  axis_name: str | None = None,
) -> tuple[Params, Generated]:
  """The gradient along which a generator follows its samples' SVGD direction.

  −(1/m) Σᵢ [∂_η G(η; ξᵢ)]ᵀ φ(xᵢ),  xᵢ = G(η; ξᵢ)

  φ is a constant for η. Descending this gradient is the paper's ascent (21), with
  algorithm 2's 1/m. It is also the gradient of `amortized_svgd_loss` at the η that made
  the samples.

  Args:
    generator_params: η.
    generate_fn: the generator G.
    noise: ξ, `[m, ...]`.
    score_fn: x -> ∇ log p(x) of one point; with a context, (x, context) -> the same.
    kernel: from `kernels`, None for φ = score ("kernel off"), a `Direction`, or
      `fn(generator_params)` that returns one of these.
    generator_stats: the generator's running statistics.
    context: what belongs to each sample, such as a label, `[m, ...]`, or None.
    axis_name: the axis over which the noise is sharded.

  Returns:
    The gradient, shaped like generator_params, to be descended; and what was generated.

  Raises:
    TypeError: a kernel of another type than those above.

  Source: Liu & Wang (2017), equation 21 and algorithm 2.
  """
  samples, pull_back, generator_stats = jax.vjp(
    lambda eta: generate(generate_fn, eta, generator_stats, noise, context),
    axes.local(generator_params, axis_name),
    has_aux=True,
  )
  m = checks.num_particles(samples, "samples")
  given = () if context is None else (context,)
  scores = jax.vmap(score_fn)(samples, *given)
  phi = call(kernel, samples, scores, axis_name)
  generated = Generated(samples, generator_stats, scores, phi)
  generated = jax.lax.stop_gradient(generated)
  (gradient,) = pull_back(jax.tree.map(lambda phi: -phi / m, generated.direction))
  return axes.mean(gradient, axis_name), generated


def amortized_svgd_loss(
  generator_params: Params,
  generate_fn: GenerateFn,
  noise: PyTree,
  targets: Particles,
  *,
  step_size: Numeric,
  generator_stats: PyTree = (),
  context: PyTree = None,
) -> tuple[Array, PyTree]:
  """The squared distance of the generator's samples to their SVGD targets.

  1/(2εm) Σᵢ ‖G(η; ξᵢ) − targetᵢ‖²,  targetᵢ = xᵢ + ε φ(xᵢ), a constant

  Args:
    generator_params: η.
    generate_fn: the generator G.
    noise: ξ, `[m, ...]`.
    targets: shaped like the samples.
    step_size: ε, in units of squared distance.
    generator_stats: the generator's running statistics.
    context: as in `amortized_svgd_gradient`.

  Returns:
    The loss and the statistics after the samples.

  Raises:
    ValueError: a step size that is not above 0, or targets of another shape.

  Source: Liu & Wang (2017), equation 20.
  """
  checks.positive("step_size", step_size)
  samples, generator_stats = generate(
    generate_fn, generator_params, generator_stats, noise, context
  )
  checks.same_shapes(samples, targets, ("samples", "targets"))
  m = checks.num_particles(samples, "samples")
  difference = jax.tree.map(
    lambda x, target: x - jax.lax.stop_gradient(target), samples, targets
  )
  loss = optax.tree.norm(difference, squared=True) / (2 * step_size * m)
  return loss, generator_stats


class AlignmentController(NamedTuple):
  """γ of section 5.2, "Stabilization": `low`, or `high` while real energy is higher.

  γ is `high` while the mean energy of the real batch exceeds that of the generated one,
  so that generated negatives count less for the energy.

  The authors' code does the opposite, here `AUTHORS_ALIGNMENT`: γ = 0.7 while the real
  energy is higher, and 0.9 otherwise, so that generated negatives count more while the
  energy is wrong. (It also multiplies the energy's learning rate by 5 then, which is
  not done here.)
  """

  low: float = 0.7
  high: float = 0.9


AUTHORS_ALIGNMENT = AlignmentController(low=0.9, high=0.7)


class SteinGANState(NamedTuple):
  """Energy and generator, their optimizers' states, and the generator's statistics."""

  params: Params  # {"energy": θ, "generator": η}
  generator_stats: PyTree
  energy_opt_state: optax.OptState
  generator_opt_state: optax.OptState
  generator_average: Params = ()  # the moving average of η; () if there is none


def stein_gan(
  energy_fn: EnergyFn,
  generate_fn: GenerateFn,
  noise_fn: NoiseFn,
  kernel: DirectionLike,
  energy_optimizer: optax.GradientTransformation,
  generator_optimizer: optax.GradientTransformation,
  *,
  generator_stats: PyTree = (),
  mix: float = 0.0,
  mix_scale: float = 1.0,
  step_size: float = 0.1,
  discount: float | AlignmentController = 0.0,
  num_inner_steps: int = 1,
  average: float | None = None,
  report_repulsion: bool = False,
  axis_name: str | None = None,
) -> Algorithm:
  """SteinGAN, algorithm 2, and its mix with SteinCD.

  Every step draws samples x = G(η; ξ) and moves η along `amortized_svgd_gradient`; the
  energy then descends mean E(data) − (1 − γ) mean E(x), the x drawn before η moved.
  With probability `mix` (one coin a step) the energy descends instead
  `mix_scale` · `stein_cd_gradient` of the data. mix = 1 is SteinCD's trajectory of θ.

  The two gradients of θ differ in size, and one optimizer gets both. SteinCD's is a
  rate, divided by ε. SteinGAN's is a difference between distributions, and much larger
  while the generator is bad. `mix_scale` balances them. (`stein_jax.mix` mixes rules
  that have θ alone; here the generator moves in every step, whichever the coin picks.)

  `params` of `init` is `{"energy": θ, "generator": η}`.

  Args:
    energy_fn: E(x; θ) of one point.
    generate_fn: the generator; it gets the context of the batch.
    noise_fn: draws ξ for a number of samples.
    kernel: from `kernels`, None ("kernel off"), a `Direction`, or `fn(θ)` that returns
      one of these.
    energy_optimizer: an optax optimizer for θ.
    generator_optimizer: an optax optimizer for η.
    generator_stats: the statistics that the generator starts with.
    mix: α, from 0 (plain SteinGAN) to 1.
    mix_scale: a factor on SteinCD's gradient; without effect if mix is 0 or 1.
    step_size: ε of SteinCD, and of the regression if num_inner_steps is above 1.
    discount: γ, a number in [0, 1) or an `AlignmentController`. It applies to generated
      negatives only.
    num_inner_steps: how many optimizer steps η takes towards the same targets
      x + εφ(x), by `amortized_svgd_loss` (20); one step is (21).
    average: the decay, in (0, 1), of an exponential moving average of the generator's
      parameters, the state's `generator_average`, which starts at the first η. None:
      there is no average. `generator_stats` are not averaged.
    report_repulsion: add `repulsion_share` of φ to the metrics, which costs another sum
      over all pairs of samples.
    axis_name: the axis over which the batch is sharded. Every device draws all noise
      and keeps its own part. A generator with batch norm needs the same axis_name.

  Raises:
    TypeError: a kernel of another type than those above; an argument that is not a
      function, or not an optax optimizer.
    ValueError: numbers outside their ranges, or report_repulsion of a direction that is
      no sum of attraction and repulsion; at the first step, noise or samples of another
      shape than data.

  Source: Liu & Wang (2017), algorithm 2, equations 20 to 23 and section 5.
  """
  _check(mix, mix_scale, step_size, discount, num_inner_steps, average)
  check_energy(energy_fn)
  check_functions(generate_fn, noise_fn)
  checks.optimizer(energy_optimizer, "energy_optimizer")
  checks.optimizer(generator_optimizer, "generator_optimizer")
  checks.boolean("report_repulsion", report_repulsion)
  check_kernel(kernel, axis_name)
  if report_repulsion and (
    is_direction_fn(kernel) or getattr(kernel, "regularization", None) is not None
  ):
    raise ValueError(
      "report_repulsion needs a direction that is a sum of attraction and repulsion: a "
      f"kernel, or a Direction without regularization; got {kernel!r}."
    )
  first_stats = generator_stats
  score_fn = partial(score_of, energy_fn)

  def init(key: Key, params: Params, batch: Batch) -> SteinGANState:
    del key, batch
    checks.networks(params, ("energy", "generator"))
    checks.params(params)
    return SteinGANState(
      params,
      first_stats,
      energy_optimizer.init(params["energy"]),
      generator_optimizer.init(params["generator"]),
      # A copy: a donated state cannot give one buffer away twice.
      () if average is None else jax.tree.map(jnp.array, params["generator"]),
    )

  def energy_gradient(
    theta: Params,
    batch: Batch,
    negatives: Batch,
    gamma: Array,
    coin: Array,
    direction: DirectionFn,
  ) -> Params:
    def plain() -> Params:
      return axes.value_and_gradient(
        lambda p: contrastive_loss(p, energy_fn, batch, negatives, discount=gamma),
        theta,
        axis_name,
      )[1]

    def stein_cd() -> Params:
      return stein_cd_gradient(
        theta, energy_fn, batch, direction, step_size=step_size, axis_name=axis_name
      )

    if mix in (0, 1):
      return stein_cd() if mix else plain()
    return jax.lax.cond(
      coin, lambda: jax.tree.map(lambda g: mix_scale * g, stein_cd()), plain
    )

  def update(
    key: Key, state: SteinGANState, batch: Batch
  ) -> tuple[SteinGANState, Metrics]:
    noise_key, coin_key = jax.random.split(key)
    theta, eta = state.params["energy"], state.params["generator"]
    x, given = split_batch(batch)
    context = given[0] if given else None
    m = check_batch(batch)
    noise = draw_noise(noise_fn, noise_key, m, axis_name)
    direction: Any = as_direction(kernel, theta)
    gradient, generated = amortized_svgd_gradient(
      eta,
      generate_fn,
      noise,
      Partial(score_fn, theta),
      direction,
      generator_stats=state.generator_stats,
      context=context,
      axis_name=axis_name,
    )
    checks.same_shapes(x, generated.samples, ("the batch", "the generator's samples"))
    generator_norm = optax.tree.norm(gradient)
    targets = jax.tree.map(
      lambda x, phi: x + step_size * phi, generated.samples, generated.direction
    )
    stats, generator_opt_state = generated.generator_stats, state.generator_opt_state
    for inner in range(num_inner_steps):
      if inner:
        (_, stats), gradient = axes.mean(
          jax.value_and_grad(
            lambda p: amortized_svgd_loss(
              p,
              generate_fn,
              noise,
              targets,
              step_size=step_size,
              generator_stats=stats,  # noqa: B023
              context=context,
            ),
            has_aux=True,
          )(axes.local(eta, axis_name)),
          axis_name,
        )
      eta, generator_opt_state = apply_gradient(
        DescentState(eta, generator_opt_state), gradient, generator_optimizer
      )

    negatives = with_points(batch, generated.samples)
    energy_data = axes.mean(energies(theta, energy_fn, batch).mean(), axis_name)
    energy_generated = axes.mean(
      energies(theta, energy_fn, negatives).mean(), axis_name
    )
    gamma = _gamma(discount, energy_data, energy_generated)
    coin = jax.random.uniform(coin_key) < mix
    gradient = energy_gradient(theta, batch, negatives, gamma, coin, direction)
    theta, energy_opt_state = apply_gradient(
      DescentState(theta, state.energy_opt_state), gradient, energy_optimizer
    )
    metrics = {
      "energy_gap": energy_data - energy_generated,
      "energy_data": energy_data,
      "energy_generated": energy_generated,
      "discount": gamma,
      "mixed": coin.astype(energy_data.dtype),
      "gradient_norm": optax.tree.norm(gradient),
      "generator_gradient_norm": generator_norm,
      "direction_norm": direction_norm(generated.direction, axis_name),
      "negatives_spread": negatives_spread(batch, negatives, axis_name),
    }
    if report_repulsion:
      metrics["repulsion_share"] = repulsion_share(
        generated.samples,
        generated.scores,
        generated.direction,
        direction,
        axis_name=axis_name,
      )
    generator_average = state.generator_average
    if average is not None:
      generator_average = optax.incremental_update(eta, generator_average, 1 - average)
    params = {"energy": theta, "generator": eta}
    stats = axes.mean(stats, axis_name)
    state = SteinGANState(
      params, stats, energy_opt_state, generator_opt_state, generator_average
    )
    return state, metrics

  return Algorithm(init, update)


def _gamma(
  discount: float | AlignmentController, energy_data: Array, energy_generated: Array
) -> Array:
  dtype = energy_data.dtype
  if isinstance(discount, AlignmentController):
    is_higher = energy_data > energy_generated
    return jnp.where(is_higher, discount.high, discount.low).astype(dtype)
  return jnp.asarray(discount, dtype)


def _check(
  mix: float,
  mix_scale: float,
  step_size: float,
  discount: float | AlignmentController,
  num_inner_steps: int,
  average: float | None,
) -> None:
  checks.share("mix", mix)
  checks.positive("mix_scale", mix_scale)
  checks.positive("step_size", step_size)
  checks.at_least_one("num_inner_steps", num_inner_steps)
  checks.decay("average", average)
  if isinstance(discount, AlignmentController):
    checks.share("discount.low", discount.low, "[0, 1)")
    checks.share("discount.high", discount.high, "[0, 1)")
  elif not isinstance(discount, numbers.Real | np.number | jax.Array):
    raise TypeError(
      f"discount must be a number in [0, 1) or an AlignmentController(), got "
      f"{discount!r}."
    )
  else:
    checks.share("discount", discount, "[0, 1)")
