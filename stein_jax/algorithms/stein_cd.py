"""Stein contrastive divergence: negatives are the data after a Stein move."""

import dataclasses
from typing import Any

import jax
import optax

from stein_jax import checks
from stein_jax.algorithms.contrastive import contrastive_loss, learn_from_negatives
from stein_jax.algorithms.descent import descend, gradient_only
from stein_jax.algorithms.energy import (
  check_batch,
  check_energy,
  check_reference,
  check_reference_source,
  scores,
  split_batch,
  with_points,
)
from stein_jax.compiled import compiled
from stein_jax.pairs.points import joined, num_rows
from stein_jax.parallel import axes
from stein_jax.stein.direction import (
  Direction,
  DirectionFn,
  DirectionLike,
  as_direction,
  call,
  check_kernel,
)
from stein_jax.types import (
  Algorithm,
  Array,
  Batch,
  EnergyFn,
  Key,
  Metrics,
  Numeric,
  Params,
  Particles,
  ReferenceLike,
)


def _check_moves(
  params: Params,
  start: Batch,
  kernel: DirectionLike,
  step_size: Numeric,
  num_steps: int,
  reference: Batch | None,
) -> dict[str, DirectionFn]:
  check_batch(start, "the points")
  check_reference(start, reference)
  checks.positive("step_size", step_size)
  checks.at_least_one("num_steps", num_steps)
  return {"kernel": as_direction(kernel, params)}


def _check_gradient(
  params: Params,
  data: Batch,
  kernel: DirectionLike,
  step_size: Numeric,
  symmetric: bool,
  num_steps: int,
  reference: Batch | None,
) -> dict[str, DirectionFn]:
  checks.params(params)
  found = _check_moves(params, data, kernel, step_size, num_steps, reference)
  _check_symmetric(symmetric, num_steps)
  return found


def _check_symmetric(symmetric: bool, num_steps: int) -> None:
  checks.boolean("symmetric", symmetric)
  if symmetric and num_steps > 1:
    raise ValueError(
      f"symmetric is the difference of one move each way, got num_steps={num_steps}."
    )


@gradient_only
@compiled(_check_gradient, static=("symmetric", "num_steps", "axis_name"))
def stein_cd_gradient(
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  kernel: DirectionLike,
  *,
  step_size: Numeric,
  symmetric: bool = False,
  num_steps: int = 1,
  reference: Batch | None = None,
  axis_name: str | None = None,
) -> tuple[Array, Params]:
  """The SteinCD gradient, a finite-difference estimate of ∇θ ½D²(q₀ ‖ p).

  forward (13):    ∇θ {mean E(x) − mean E(x + εφ*(x))} / ε
  symmetric (17):  ∇θ {mean E(x − εφ*(x)) − mean E(x + εφ*(x))} / (2ε)

  The moved points are constants. Both tend to Stein score matching (15) as ε → 0, with
  errors of order ε and ε². The paper leaves the division by ε to the learning rate.
  Here it is done, so that the gradient does not shrink with ε, which matters under Adam
  or where gradients are mixed.

  With `num_steps=k` the points are moved k times, each time along the direction that
  they then have, and the contrast is divided by kε. This is no longer a derivative of
  D², but a Stein variant of CD-k.

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point.
    data: positives, `[m, ...]`, or `{"x": ..., "context": ...}`.
    kernel: from `kernels`, None for φ = score, a `Direction` (regularised, say, which
      does not vanish in high dimensions), or `fn(params)` that returns one of these.
    step_size: ε, in units of squared distance. For larger ε the error of the difference
      grows as ε (symmetric: ε²); for smaller ε rounding takes over as 1/ε. On the RBM
      of section 5.1 float32 is best at ε = 0.1 (relative error 5e-4; symmetric: ε = 1,
      2e-5 to 6e-5) and useless below 1e-4; `experiments.epsilon_sweep` measures it.
    symmetric: the two-sided difference, of one move.
    num_steps: k, the number of moves.
    reference: more data, `[r, ...]` or `{"x": ..., "context": ...}`, for the sums of φ
      as in `Direction.__call__`: φ at the m points has less noise, for r scores more
      and r more terms for each point. The same on every device. With k > 1 the
      reference points move too, which takes the sums of m + r points; over several
      devices each of them computes all of these.
    axis_name: the axis over which the data is sharded.

  Returns:
    The gradient, shaped like params; a descent direction of ½D².
    `stein_cd_gradient.with_loss(...)` returns the contrast and its gradient.

  Raises:
    TypeError: a kernel of another type than those above.
    ValueError: a step size that is not above 0, num_steps below 1 or, if symmetric,
      above 1, an energy that is not a scalar, fewer than two points with a median
      bandwidth, or reference points that are not like the data, or without a kernel.

  Source: Liu & Wang (2017), equations 13, 16 and 17; algorithm 1.
  """
  if symmetric:
    phi = _direction(params, energy_fn, data, kernel, axis_name, reference)
    positives, negatives = (_moved(data, phi, sign * step_size) for sign in (-1, 1))
    distance = 2 * step_size
  else:
    positives = data
    negatives = stein_moves(
      params,
      energy_fn,
      data,
      kernel,
      step_size=step_size,
      num_steps=num_steps,
      reference=reference,
      axis_name=axis_name,
    )
    distance = num_steps * step_size
  return axes.value_and_gradient(
    lambda p: contrastive_loss(p, energy_fn, positives, negatives) / distance,
    params,
    axis_name,
  )


def _direction(
  params: Params,
  energy_fn: EnergyFn,
  batch: Batch,
  direction: Any,
  axis_name: str | None,
  reference: Batch | None = None,
) -> Particles:
  x, _ = split_batch(batch)
  more = None
  if reference is not None:
    reference = axes.varying_as(batch, reference)
    more = split_batch(reference)[0], scores(params, energy_fn, reference)
  return call(direction, x, scores(params, energy_fn, batch), axis_name, more)


def _moved(batch: Batch, direction: Particles, epsilon: Numeric) -> Batch:
  """x + ε φ as constants, with the context of the batch."""
  x, _ = split_batch(batch)
  points = jax.tree.map(
    lambda x, phi: (x + epsilon * phi).astype(x.dtype), x, direction
  )
  return with_points(batch, jax.lax.stop_gradient(points))


@compiled(_check_moves, static=("num_steps", "axis_name"))
def stein_moves(
  params: Params,
  energy_fn: EnergyFn,
  start: Batch,
  kernel: DirectionLike,
  *,
  step_size: Numeric,
  num_steps: int = 1,
  reference: Batch | None = None,
  axis_name: str | None = None,
) -> Batch:
  """Points after k Stein moves towards the model: x ← x + ε φ(x), with φ of each step.

  These are SteinCD's negatives. Other negatives may start from them: a Langevin step
  after the moves, for example, returns the noise that the moves take away.

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point.
    start: `[m, ...]`, or `{"x": ..., "context": ...}`.
    kernel: as in `stein_cd_gradient`. A bandwidth policy sees the points before the
      first move, reference points included.
    step_size: ε, in units of squared distance.
    num_steps: k.
    reference: as in `stein_cd_gradient`.
    axis_name: the axis over which the points are sharded.

  Returns:
    The moved points, as a batch like `start`; constants under differentiation.

  Raises:
    TypeError, ValueError: as in `stein_cd_gradient`.

  Source: Liu & Wang (2017), equations 5 and 16.
  """
  direction: Any = kernel
  if reference is None:
    if isinstance(direction, Direction):
      direction = direction.resolve(split_batch(start)[0], axis_name)
    return _steps(params, energy_fn, start, direction, step_size, num_steps, axis_name)

  # All points on every device, where those of reference move as the others do.
  every = joined(axes.gather(start, axis_name), axes.varying_as(start, reference))
  alone = direction
  if isinstance(direction, Direction):
    alone = dataclasses.replace(direction, exchange=None)
    alone = alone.resolve(split_batch(every)[0])
    direction = dataclasses.replace(direction, kernel=alone.kernel)
  if num_steps > 1:
    every = _steps(params, energy_fn, every, alone, step_size, num_steps - 1, None)
    n = num_rows(start)
    first = n * axes.size(axis_name)
    start = axes.own(jax.tree.map(lambda leaf: leaf[:first], every), n, axis_name)
    reference = jax.tree.map(lambda leaf: leaf[first:], every)
  phi = _direction(params, energy_fn, start, direction, axis_name, reference)
  return _moved(start, phi, step_size)


def _steps(
  params: Params,
  energy_fn: EnergyFn,
  start: Batch,
  direction: Any,
  step_size: Numeric,
  num_steps: int,
  axis_name: str | None,
) -> Batch:
  def move(_: Array, batch: Batch) -> Batch:
    phi = _direction(params, energy_fn, batch, direction, axis_name)
    return _moved(batch, phi, step_size)

  return jax.lax.fori_loop(0, num_steps, move, start)


def stein_cd(
  energy_fn: EnergyFn,
  kernel: DirectionLike,
  optimizer: optax.GradientTransformation,
  *,
  step_size: float,
  symmetric: bool = False,
  num_steps: int = 1,
  persistent: bool = False,
  reference: ReferenceLike = None,
  axis_name: str | None = None,
) -> Algorithm:
  """SteinCD, algorithm 1: descends `stein_cd_gradient` on every batch.

  On the RBM of section 5.1 the paper's φ* with a kernel on the pixels stays below
  maximum likelihood. Three regularised moves with a kernel on the features that the
  hidden units see reach it (README):

  >>> import optax
  >>> from jax.tree_util import Partial
  >>> from stein_jax import Direction, energies, kernels, stein_cd
  >>> rbm = energies.GaussianBernoulliRBM(10)
  >>> def kernel_fn(params):
  ...   features = Partial(rbm.features, params)
  ...   return kernels.on_features(kernels.rbf("median_no_log"), features, affine=True)
  >>> direction = Direction(kernel_fn, regularization=0.1)
  >>> optimizer = optax.adam(3e-4)
  >>> rule = stein_cd(rbm.apply, direction, optimizer, step_size=0.5, num_steps=3)

  On a network the plain form fails. Its φ holds the term k(xᵢ, xᵢ) s(xᵢ)/m of the point
  itself, by which D² contains ‖s(xᵢ)‖²: a flexible energy lowers it by flattening
  itself at the data, and the more so the higher the dimension. Three things help, and
  `experiments.known_density` measures them: leave the point out of its own sum, with a
  bandwidth far below the squared median distance or with a kernel that was whitened by
  the data (`whiten`); reference points, more data than the batch, against the noise
  that is left; and a base at the mean and scale of the data. Even so it sees shapes and
  not the weights of separated modes: for those, `mix` it with chains.

  >>> import jax
  >>> x = jax.random.normal(jax.random.key(0), (2000, 10))
  >>> energy = energies.MLP(base="diagonal")
  >>> params = energy.init_from_data(jax.random.key(1), x)
  >>> kernel = kernels.rbf("median_no_log", multiple=0.15)
  >>> rule = stein_cd(
  ...   energy.apply, Direction(kernel, leave_one_out=True), optimizer, step_size=0.5,
  ...   reference=lambda key: jax.random.choice(key, x, (400,)),
  ... )
  >>> state = rule.init(jax.random.key(2), params, x[:100])
  >>> state, metrics = rule.update(jax.random.key(3), state, x[:100])

  Args:
    energy_fn: E(x; θ) of one point.
    kernel: from `kernels`, None, a `Direction`, or `fn(params)` that returns one.
    optimizer: an optax optimizer; its learning rate is the paper's μ.
    step_size: ε, as in `stein_cd_gradient`.
    symmetric: the two-sided difference (17).
    num_steps: k, the number of moves a step.
    persistent: move the same points on from step to step, as in persistent CD, instead
      of starting at the data. They start as the first batch. The gradient is then the
      contrast itself, not divided by ε.
    reference: more data for the sums of φ in every step, as in `stein_cd_gradient`:
      points, or a function of the step's key that draws them, such as
      `lambda key: data[jax.random.choice(key, len(data), (400,), replace=False)]`.
    axis_name: the axis over which the batch is sharded.

  Raises:
    TypeError, ValueError: as in `stein_cd_gradient`, or persistent with symmetric or
      with reference points.

  Source: Liu & Wang (2017), algorithm 1.
  """
  check_energy(energy_fn)
  check_kernel(kernel, axis_name)
  check_reference_source(reference)
  checks.optimizer(optimizer)
  checks.positive("step_size", step_size)
  checks.at_least_one("num_steps", num_steps)
  checks.boolean("persistent", persistent)
  _check_symmetric(symmetric, num_steps)
  if persistent and symmetric:
    raise ValueError("persistent excludes symmetric: the moves do not start at data.")
  if persistent and reference is not None:
    raise ValueError(
      "persistent excludes reference: data that stay do not belong to the distribution "
      "of points that have moved."
    )

  options: dict[str, Any] = {
    "step_size": step_size,
    "num_steps": num_steps,
    "axis_name": axis_name,
  }

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    more = reference(key) if callable(reference) else reference
    loss, gradient = stein_cd_gradient.with_loss(
      params, energy_fn, batch, kernel, symmetric=symmetric, reference=more, **options
    )
    return gradient, {"loss": loss}

  def negatives_fn(key: Key, params: Params, start: Batch) -> tuple[Batch, Metrics]:
    del key
    return stein_moves(params, energy_fn, start, kernel, **options), {}

  if persistent:
    return learn_from_negatives(
      energy_fn, negatives_fn, optimizer, persistent=True, axis_name=axis_name
    )
  return descend(gradient_fn, optimizer)
