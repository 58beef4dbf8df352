"""Contrastive divergence: negatives are points after Langevin steps to the model."""

from collections.abc import Callable
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from stein_jax import checks, samplers
from stein_jax.algorithms import replay
from stein_jax.algorithms.contrastive import (
  contrast,
  learn_from_negatives,
  own_samples,
  penalty,
)
from stein_jax.algorithms.descent import gradient_only
from stein_jax.algorithms.energy import (
  check_batch,
  check_energy,
  score_of,
  split_batch,
  with_points,
)
from stein_jax.algorithms.replay import ReplayBuffer
from stein_jax.compiled import compiled
from stein_jax.samplers.unadjusted import Antithetic, check_antithetic, check_clip
from stein_jax.types import (
  Algorithm,
  Array,
  Batch,
  EnergyFn,
  HasSamples,
  Key,
  Metrics,
  Numeric,
  Params,
  Particles,
  PyTree,
)

SampleFn = Callable[[Key, int], Particles]


def _check_chain(
  num_steps: int,
  step_size: Numeric,
  metropolis: bool,
  antithetic: Antithetic,
  temperature: Numeric,
  score_clip: Numeric | None,
  averaged_noise: bool,
) -> None:
  checks.at_least_one("num_steps", num_steps)
  checks.positive("step_size", step_size)
  checks.boolean("metropolis", metropolis)
  check_antithetic(antithetic)
  checks.positive("temperature", temperature)
  check_clip(score_clip)
  checks.boolean("averaged_noise", averaged_noise)
  if antithetic and metropolis:
    raise ValueError(
      "antithetic excludes metropolis, whose test could reject one chain of a pair."
    )
  if averaged_noise and metropolis:
    raise ValueError("averaged_noise excludes metropolis, which has no such bias.")


def _sample_fn(start: str, restart_density: HasSamples | None) -> SampleFn | None:
  """A density's samples as a function that is a pytree; None without a density.

  Raises:
    TypeError: the density has no samples.
    ValueError: a density that is missing, or that is not used.
  """
  if restart_density is None:
    if start == "noise":
      raise ValueError(
        'start="noise" needs a restart_density, such as densities.gaussian(mean).'
      )
    return None
  if start == "data":
    raise ValueError(
      'restart_density goes with start="noise" or "replay"; with start="data" the '
      "chains start at the batch."
    )
  method = getattr(restart_density, "sample", None)
  sample_fn = getattr(restart_density, "sample_fn", method)
  if not callable(sample_fn) or isinstance(restart_density, type):
    raise TypeError(
      "restart_density must be a density such as densities.gaussian(mean), or have a "
      f"method sample(key, n), got {checks.described(restart_density)}."
    )
  checks.function("restart_density.sample", sample_fn, "key, n")
  return Partial(sample_fn) if jax.tree_util.all_leaves([sample_fn]) else sample_fn


def _check_gradient(
  key: Key,
  params: Params,
  data: Batch,
  num_steps: int,
  step_size: Numeric,
  start: str,
  restart_density: HasSamples | None,
  metropolis: bool,
  antithetic: Antithetic,
  temperature: Numeric,
  score_clip: Numeric | None,
  averaged_noise: bool,
  energy_penalty: Numeric | None,
) -> dict[str, Any]:
  checks.key(key)
  checks.params(params)
  check_batch(data, "data")
  checks.one_of("start", start, ("data", "noise"))
  _check_chain(
    num_steps,
    step_size,
    metropolis,
    antithetic,
    temperature,
    score_clip,
    averaged_noise,
  )
  return {
    "restart_density": _sample_fn(start, restart_density),
    "energy_penalty": penalty(energy_penalty),
  }


@gradient_only
@compiled(
  _check_gradient,
  static=(
    *("num_steps", "start", "metropolis", "antithetic", "averaged_noise"),
    "axis_name",
  ),
)
def contrastive_divergence_gradient(
  key: Key,
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  *,
  num_steps: int,
  step_size: Numeric,
  start: Literal["data", "noise"] = "data",
  restart_density: HasSamples | None = None,
  metropolis: bool = False,
  antithetic: Antithetic = False,
  averaged_noise: bool = False,
  temperature: Numeric = 1.0,
  score_clip: Numeric | None = None,
  energy_penalty: Numeric | None = 0.0,
  axis_name: str | None = None,
) -> tuple[Array, Params]:
  """The CD-k gradient (11): ∇θ {mean E(x) − mean E(x⁻)}, x⁻ after k Langevin steps.

  The negatives x⁻ are constants. It is no gradient of any function, but tends to that
  of −log p(x; θ) as the chains tend to the model.

  >>> import jax, jax.numpy as jnp
  >>> from stein_jax import contrastive_divergence_gradient
  >>> energy_fn = lambda mean, x: 0.5 * jnp.sum((x - mean) ** 2)
  >>> data = 3 + jax.random.normal(jax.random.key(0), (1000, 2))
  >>> gradient = contrastive_divergence_gradient(
  ...   jax.random.key(1), jnp.zeros(2), energy_fn, data, num_steps=50, step_size=0.1
  ... )
  >>> [round(g.item()) for g in gradient]  # the mean of the model minus that of data
  [-3, -3]

  Args:
    key: a PRNG key, the same on every device.
    params: θ.
    energy_fn: E(x; θ) of one point.
    data: positives, `[m, ...]`, or `{"x": ..., "context": ...}`.
    num_steps: k.
    step_size: ε, as in `contrastive_divergence`, like all that follow.
    start: "data" or "noise". The starts with a state have no gradient function.
    restart_density: with "noise".
    metropolis: use MALA.
    antithetic: pairs of chains.
    averaged_noise: for long chains.
    temperature: T.
    score_clip: the largest norm of a score.
    energy_penalty: α of `contrastive_loss`.
    axis_name: the axis over which the data is sharded.

  Returns:
    The gradient, shaped like params.
    `contrastive_divergence_gradient.with_loss(...)` returns the loss and it.

  Raises:
    TypeError, ValueError: as in `contrastive_divergence`.

  Source: Liu & Wang (2017), equations 10 and 11; Hinton (2002).
  """
  first = data
  if restart_density is not None:
    sample_key, key = jax.random.split(key)
    sample_fn = cast(SampleFn, restart_density)  # by the check
    first = _samples(sample_key, data, sample_fn, axis_name)
  negatives, _ = _moved(
    key,
    params,
    energy_fn,
    first,
    metropolis=metropolis,
    antithetic=antithetic,
    averaged_noise=averaged_noise,
    num_steps=num_steps,
    step_size=step_size,
    temperature=temperature,
    score_clip=score_clip,
    axis_name=axis_name,
  )
  return contrast(params, energy_fn, data, negatives, energy_penalty, axis_name)


def _samples(
  key: Key, batch: Batch, sample_fn: SampleFn, axis_name: str | None
) -> Batch:
  """The batch with samples in place of its points."""
  return with_points(
    batch,
    own_samples(
      lambda n: sample_fn(key, n),
      split_batch(batch)[0],
      axis_name,
      "restart_density.sample",
      "key",
    ),
  )


def _moved(
  key: Key,
  params: Params,
  energy_fn: EnergyFn,
  start: Batch,
  *,
  metropolis: bool,
  antithetic: Antithetic,
  averaged_noise: bool,
  **options: Any,
) -> tuple[Batch, Metrics]:
  """The points of chains after their steps, and metrics."""
  x, context = split_batch(start)
  options["context"] = context[0] if context else None
  # Equal in every update, as a `functools.partial` is not, so compiled once.
  is_function = jax.tree_util.all_leaves([energy_fn])
  energy_fn = Partial(energy_fn) if is_function else energy_fn
  if metropolis:
    log_density_fn = Partial(_log_density, energy_fn, params)
    result = samplers.mala(key, x, log_density_fn, **options)
    metrics = {"acceptance_rate": result.acceptance_rate}
    return with_points(start, result.particles), metrics
  score_fn = Partial(score_of, energy_fn, params)
  moved = samplers.langevin(
    key,
    x,
    score_fn,
    antithetic=antithetic,
    averaged_noise=averaged_noise,
    **options,
  )
  if antithetic:  # both chains of a point have its context
    start = jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), start)
  return with_points(start, moved), {}


def _log_density(
  energy_fn: EnergyFn, params: Params, x: PyTree, *context: PyTree
) -> Array:
  checks.scalar_energy(energy_fn, params, x, *context)
  return -energy_fn(params, x, *context)


def _check_state(
  start: str,
  persistent: bool,
  antithetic: Antithetic,
  averaged_noise: bool,
  buffer_size: int | None,
  restart_probability: float,
) -> None:
  """Validates what only the Algorithm has: chains that continue."""
  checks.one_of("start", start, ("data", "noise", "replay"))
  checks.boolean("persistent", persistent)
  checks.share("restart_probability", restart_probability)
  if persistent and start != "data":
    raise ValueError(
      f'persistent goes with start="data", got start={start!r}: leave persistent out. '
      'With start="replay" chains continue anyway.'
    )
  if start == "replay":
    checks.at_least_one("buffer_size", buffer_size)
  elif buffer_size is not None or restart_probability:
    raise ValueError(
      'buffer_size and restart_probability go with start="replay", got '
      f"start={start!r}."
    )
  if antithetic and antithetic != "last" and (persistent or start == "replay"):
    raise ValueError(
      'antithetic excludes persistent and start="replay", which would separate its '
      'pairs; antithetic="last" goes with both.'
    )
  if averaged_noise and not antithetic and (persistent or start == "replay"):
    raise ValueError(
      "chains that continue with averaged_noise need the mean of a pair: add "
      'antithetic="last".'
    )


def contrastive_divergence(
  energy_fn: EnergyFn,
  optimizer: optax.GradientTransformation,
  *,
  num_steps: int,
  step_size: float,
  start: Literal["data", "noise", "replay"] = "data",
  persistent: bool = False,
  metropolis: bool = False,
  antithetic: Antithetic = False,
  averaged_noise: bool = False,
  buffer_size: int | None = None,
  restart_probability: float = 0.0,
  restart_density: HasSamples | None = None,
  temperature: float = 1.0,
  score_clip: float | None = None,
  energy_penalty: float = 0.0,
  axis_name: str | None = None,
) -> Algorithm:
  """CD-k (11): negatives are points after k Langevin steps towards the model.

  The chains of a step, one for each point of the batch, start at

    "data":    the batch (Hinton, 2002), or with `persistent` where they ended in the
               previous step (Tieleman, 2008). They see no mode that the data lacks,
               and with few steps not how much mass each mode has.
    "noise":   samples of `restart_density` (Nijkamp et al., 2019).
    "replay":  random slots of a buffer of B past chains (Du & Mordatch, 2019). A slot
               that is unused, or restarts, gives the batch's point, or a sample of
               `restart_density` if there is one. After the steps the chain goes back
               to its slot. A broad density finds modes that the data lacks, and long
               chains learn how much mass each mode has.

  >>> import jax, jax.numpy as jnp, optax
  >>> from stein_jax import contrastive_divergence, densities
  >>> energy_fn = lambda mean, x: 0.5 * jnp.sum((x - mean) ** 2)
  >>> rule = contrastive_divergence(
  ...   energy_fn, optax.adam(0.1), num_steps=10, step_size=0.1, start="replay",
  ...   buffer_size=1000, restart_probability=0.05,
  ...   restart_density=densities.gaussian(jnp.zeros(2), width=5.0),
  ... )
  >>> data = 3 + jax.random.normal(jax.random.key(0), (100, 2))
  >>> state = rule.init(jax.random.key(1), jnp.zeros(2), data)
  >>> for key in jax.random.split(jax.random.key(2), 100):
  ...   state, metrics = rule.update(key, state, data)
  >>> [round(mean.item()) for mean in state.params]
  [3, 3]
  >>> state.particles.points.shape, state.particles.filled.shape
  ((1000, 2), (1000,))

  Args:
    energy_fn: E(x; θ) of one point.
    optimizer: an optax optimizer.
    num_steps: k.
    step_size: ε of the Langevin steps, in units of squared distance.
    start: where chains start, as above.
    persistent: with start="data", continue the chains of the previous step. They start
      as the first batch.
    metropolis: use MALA, whose steps leave the model invariant exactly.
    antithetic: start two chains at every point, one with the noise z and one with −z.
      Terms that are odd in the noise cancel. There are twice as many negatives as
      positives. With "last" only the last step is taken both ways, which costs the
      second half of the negatives' energies; the half with +z continues where chains
      persist or are in the buffer.
    averaged_noise: steps whose stationary law has a bias of order ε², as in
      `samplers.langevin`. It is for chains that continue, which need antithetic="last"
      and go on from the mean of each pair; these may take several times as long steps,
      and so find the weights of modes sooner. A few steps from data are better without.
    buffer_size: B, with start="replay"; a multiple of the number m of points of a
      batch. Row i of the batch owns the slots i·B/m, ..., (i + 1)·B/m − 1, of which
      each step draws one. In a conditional energy a slot keeps its context until it
      restarts; then it has that of the batch's row.
    restart_probability: with start="replay", of a used slot in each step, from 0 to 1.
    restart_density: a `densities.Density`, or an object with `sample(key, n)` -> n
      points, for start="noise" or "replay". Samples have the batch's numbers for each
      point. Every device draws all samples and keeps its own.
    temperature: T; chains sample exp(−E/T) (their noise is that of T = 1).
    score_clip: the largest norm of a point's ∇E/T in the steps, in units of 1/distance.
      None: no limit.
    energy_penalty: α of `contrastive_loss`.
    axis_name: the axis over which the batch is sharded.

  Returns:
    An Algorithm as from `learn_from_negatives`, with the metric `acceptance_rate` of
    MALA, and `restarted` of a buffer: the fraction of chains that began at new points.
    The field `particles` of its state, where chains continue, is a batch of them, or a
    `ReplayBuffer`.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer, or a
      restart_density without samples.
    ValueError: an unknown start; num_steps below 1; a step size, temperature or
      score_clip that is not above 0; a negative penalty; a restart_probability outside
      its range; an option that goes with another start, or is missing; antithetic or
      averaged_noise with metropolis, or in a form that chains cannot continue from. In
      `init` and `update`, a batch whose number of points does not divide buffer_size.

  Source: Liu & Wang (2017), equations 10 and 11; Hinton (2002); Tieleman (2008); Du &
  Mordatch (2019); Nijkamp et al. (2019); Leimkuhler & Matthews (2013).
  """
  check_energy(energy_fn)
  checks.optimizer(optimizer)
  chain: dict[str, Any] = {
    "num_steps": num_steps,
    "step_size": step_size,
    "metropolis": metropolis,
    "antithetic": antithetic,
    "averaged_noise": averaged_noise,
    "temperature": temperature,
    "score_clip": score_clip,
  }
  _check_chain(**chain)
  _check_state(
    start, persistent, antithetic, averaged_noise, buffer_size, restart_probability
  )
  sample_fn = _sample_fn(start, restart_density)

  def moved(key: Key, params: Params, first: Batch) -> tuple[Batch, Metrics]:
    return _moved(key, params, energy_fn, first, axis_name=axis_name, **chain)

  def living(negatives: Batch) -> Batch:
    """The chains that continue: of a pair, the one with +z, or the mean."""
    if not antithetic:
      return negatives
    firsts = jax.tree.map(lambda leaf: leaf[::2], negatives)
    if not averaged_noise:
      return firsts
    means = jax.tree.map(
      lambda a, b: (a / 2 + b / 2).astype(a.dtype),
      split_batch(firsts)[0],
      jax.tree.map(lambda leaf: leaf[1::2], split_batch(negatives)[0]),
    )
    return with_points(firsts, means)

  def from_noise(key: Key, params: Params, batch: Batch) -> tuple[Batch, Metrics]:
    assert sample_fn is not None
    sample_key, key = jax.random.split(key)
    return moved(key, params, _samples(sample_key, batch, sample_fn, axis_name))

  def from_last(
    key: Key, params: Params, batch: Batch, chains: Batch
  ) -> tuple[Batch, Batch, Metrics]:
    checks.same_shapes(batch, chains, ("the batch", "the chains"))
    negatives, metrics = moved(key, params, chains)
    return negatives, living(negatives), metrics

  def from_buffer(
    key: Key, params: Params, batch: Batch, buffer: ReplayBuffer
  ) -> tuple[Batch, ReplayBuffer, Metrics]:
    slot_key, restart_key, sample_key, key = jax.random.split(key, 4)
    if sample_fn is not None:
      batch = _samples(sample_key, batch, sample_fn, axis_name)
    chains, slots, restarted = replay.draw(
      (slot_key, restart_key), buffer, batch, restart_probability, axis_name
    )
    negatives, metrics = moved(key, params, chains)
    buffer = replay.write(buffer, slots, living(negatives))
    return negatives, buffer, metrics | restarted

  def first_buffer(key: Key, params: Params, batch: Batch) -> ReplayBuffer:
    del key, params
    return replay.empty(batch, buffer_size or 0)

  options: dict[str, Any] = {"energy_penalty": energy_penalty, "axis_name": axis_name}
  if start == "replay":
    options["chains_fn"] = first_buffer
    return learn_from_negatives(energy_fn, from_buffer, optimizer, **options)
  if persistent:
    options["chains_fn"] = lambda key, params, batch: batch
    return learn_from_negatives(energy_fn, from_last, optimizer, **options)
  negatives_fn = moved if start == "data" else from_noise
  return learn_from_negatives(energy_fn, negatives_fn, optimizer, **options)
