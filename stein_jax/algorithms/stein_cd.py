"""Stein contrastive divergence: negatives are the data after a Stein move."""

from functools import partial

import jax
import optax

from stein_jax import checks, kernels
from stein_jax.algorithms.contrastive import contrastive_loss, learn_from_negatives
from stein_jax.algorithms.descent import descend
from stein_jax.algorithms.energy import (
  scores,
  split_batch,
  with_points,
)
from stein_jax.kernels import Kernel, KernelLike
from stein_jax.pairs import tiles
from stein_jax.parallel import axes
from stein_jax.stein.direction import svgd_direction
from stein_jax.types import (
  Algorithm,
  Array,
  Batch,
  EnergyFn,
  Exchange,
  Key,
  Metrics,
  Params,
  Particles,
)


def stein_cd_gradient(
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  kernel: Kernel | None,
  *,
  step_size: float | Array,
  symmetric: bool = False,
  num_steps: int = 1,
  regularization: float | Array | None = None,
  axis_name: str | None = None,
  exchange: Exchange | None = None,
) -> Params:
  """The SteinCD gradient, a finite-difference estimate of ∇θ ½D²(q₀ ‖ p).

  forward (13):    ∇θ {mean E(x) − mean E(x + εφ*(x))} / ε
  symmetric (17):  ∇θ {mean E(x − εφ*(x)) − mean E(x + εφ*(x))} / (2ε)

  The moved points are constants. Both tend to Stein score matching (15) as ε → 0, with
  errors of order ε and ε². The paper leaves the division by ε to the learning rate;
  here it is done, so that the gradient does not shrink with ε (under Adam, or mixed
  with other gradients, that matters).

  With `num_steps=k` the points are moved k times, each time along the direction that
  they then have, and the contrast is divided by kε: no longer a derivative of D², but
  a Stein variant of CD-k. With `regularization=η` they move along the regularised Stein
  direction of `svgd_direction`, which does not fade in high dimensions.

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point.
    data: positives, `[m, ...]`, or `{"x": ..., "context": ...}`.
    kernel: out of `kernels`; None takes φ = score.
    step_size: ε, in units of squared distance. Above, the difference's own error grows
      as ε (symmetric: ε²); below, rounding takes over as 1/ε. On the RBM of section 5.1
      float32 does best at ε = 0.1 (relative error 5e-4; symmetric: ε = 1, 2e-5 to 6e-5)
      and is useless below 1e-4; `experiments.epsilon_sweep` measures it.
    symmetric: the two-sided difference, of one move.
    num_steps: k, how many moves.
    regularization: η above 0; None moves along φ*.
    axis_name: the axis over which the data is spread.
    exchange: as in `svgd_direction`.

  Returns:
    The gradient, shaped like params; a descent direction of ½D².

  Raises:
    ValueError: a step size or a regularisation that is not above 0, a regularisation
      without a kernel, num_steps below 1 or, where symmetric, above 1, an energy that
      is not a scalar, or fewer than two points with a median bandwidth.

  Source: Liu & Wang (2017), equations 13, 16 and 17; algorithm 1.
  """
  kernel = kernels.checked(kernel)
  _check(step_size, num_steps, regularization, kernel)
  _check_symmetric(symmetric, num_steps)
  return _value_and_gradient(
    params,
    energy_fn,
    data,
    kernel,
    step_size,
    regularization,
    symmetric=symmetric,
    num_steps=num_steps,
    axis_name=axis_name,
    exchange=exchange,
  )[1]


@partial(
  jax.jit,
  static_argnames=("energy_fn", "symmetric", "num_steps", "axis_name", "exchange"),
)
def _value_and_gradient(
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  kernel: Kernel | None,
  step_size: float | Array,
  regularization: float | Array | None,
  *,
  symmetric: bool,
  num_steps: int,
  axis_name: str | None,
  exchange: Exchange | None,
) -> tuple[Array, Params]:
  if symmetric:
    direction = _direction(
      params,
      energy_fn,
      data,
      kernel,
      regularization=regularization,
      axis_name=axis_name,
      exchange=exchange,
    )
    positives = _along(data, direction, -step_size)
    negatives = _along(data, direction, step_size)
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
      regularization=regularization,
      axis_name=axis_name,
      exchange=exchange,
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
  kernel: Kernel | None,
  *,
  regularization: float | Array | None,
  axis_name: str | None,
  exchange: Exchange | None,
) -> Particles:
  return svgd_direction(
    split_batch(batch)[0],
    scores(params, energy_fn, batch),
    kernel,
    regularization=regularization,
    axis_name=axis_name,
    exchange=exchange,
  )


def _along(batch: Batch, direction: Particles, epsilon: float | Array) -> Batch:
  x, _ = split_batch(batch)
  points = jax.tree.map(
    lambda x, phi: (x + epsilon * phi).astype(x.dtype), x, direction
  )
  return with_points(batch, jax.lax.stop_gradient(points))


def stein_moves(
  params: Params,
  energy_fn: EnergyFn,
  start: Batch,
  kernel: Kernel | None,
  *,
  step_size: float | Array,
  num_steps: int = 1,
  regularization: float | Array | None = None,
  axis_name: str | None = None,
  exchange: Exchange | None = None,
) -> Batch:
  """Points after k Stein moves towards the model: x ← x + ε φ(x), φ anew each time.

  What SteinCD takes as negatives, and what other negatives may begin with: a Langevin
  step after the moves, say, gives back the noise that they take away.

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point.
    start: `[m, ...]`, or `{"x": ..., "context": ...}`.
    kernel: out of `kernels`; None takes φ = score. A bandwidth policy looks at the
      points where they start.
    step_size: ε, in units of squared distance.
    num_steps: k.
    regularization: η of the regularised Stein direction; None moves along φ*.
    axis_name: the axis over which the points are spread.
    exchange: as in `svgd_direction`.

  Returns:
    The moved points, as a batch like `start`; constants under differentiation.

  Raises:
    ValueError: as in `stein_cd_gradient`.

  Source: Liu & Wang (2017), equations 5 and 16.
  """
  kernel = kernels.checked(kernel)
  _check(step_size, num_steps, regularization, kernel)
  return _moves(
    params,
    energy_fn,
    start,
    kernel,
    step_size,
    regularization,
    num_steps=num_steps,
    axis_name=axis_name,
    exchange=exchange,
  )


@partial(jax.jit, static_argnames=("energy_fn", "num_steps", "axis_name", "exchange"))
def _moves(
  params: Params,
  energy_fn: EnergyFn,
  start: Batch,
  kernel: Kernel | None,
  step_size: float | Array,
  regularization: float | Array | None,
  *,
  num_steps: int,
  axis_name: str | None,
  exchange: Exchange | None,
) -> Batch:
  if kernel is not None:
    x, _ = split_batch(start)
    ring = tiles.goes_round(x, exchange, axis_name)
    kernel = kernel.resolve(x, axis_name=axis_name, ring=ring)

  def move(_: Array, batch: Batch) -> Batch:
    direction = _direction(
      params,
      energy_fn,
      batch,
      kernel,
      regularization=regularization,
      axis_name=axis_name,
      exchange=exchange,
    )
    return _along(batch, direction, step_size)

  return jax.lax.fori_loop(0, num_steps, move, start)


def stein_cd(
  energy_fn: EnergyFn,
  kernel: KernelLike,
  optimizer: optax.GradientTransformation,
  *,
  step_size: float,
  symmetric: bool = False,
  num_steps: int = 1,
  regularization: float | None = None,
  persistent: bool = False,
  axis_name: str | None = None,
  exchange: Exchange | None = None,
) -> Algorithm:
  """SteinCD, algorithm 1: descends `stein_cd_gradient` on every batch.

  On the RBM of section 5.1 the paper's φ* with a kernel on the pixels stays below
  maximum likelihood; three regularised moves with a kernel on the features that the
  hidden units see reach it (README):

  >>> def kernel_fn(params):
  ...   features = jax.tree_util.Partial(rbm.features, params)
  ...   return on_features(rbf("median_no_log"), features, affine=True)
  >>> options = {"step_size": 0.5, "num_steps": 3, "regularization": 0.1}
  >>> algorithm = stein_cd(rbm.apply, kernel_fn, optimizer, **options)

  Args:
    energy_fn: E(x; θ) of one point.
    kernel: out of `kernels`, None, or `kernel_fn(params) -> kernel`.
    optimizer: an optax optimizer; its learning rate is the paper's μ.
    step_size: ε, as in `stein_cd_gradient`.
    symmetric: the two-sided difference (17).
    num_steps: k, how many moves a step.
    regularization: η of the regularised Stein direction.
    persistent: let the moved points live on from step to step, as in persistent CD, in
      place of starting at the data; they begin at the first batch. The gradient is then
      the contrast itself, not divided by ε.
    axis_name: the axis over which the batch is spread.
    exchange: as in `svgd_direction`.

  Raises:
    ValueError: as in `stein_cd_gradient`, or symmetric and persistent together.

  Source: Liu & Wang (2017), algorithm 1.
  """
  _check(step_size, num_steps, regularization, kernel)
  _check_symmetric(symmetric, num_steps)
  if persistent and symmetric:
    raise ValueError("persistent excludes symmetric: the moves do not begin at data.")

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    del key  # SteinCD draws nothing at random
    loss, gradient = _value_and_gradient(
      params,
      energy_fn,
      batch,
      kernels.at(kernel, params),
      step_size,
      regularization,
      symmetric=symmetric,
      num_steps=num_steps,
      axis_name=axis_name,
      exchange=exchange,
    )
    return gradient, {"loss": loss}

  def negatives_fn(key: Key, params: Params, start: Batch) -> tuple[Batch, Metrics]:
    del key
    negatives = stein_moves(
      params,
      energy_fn,
      start,
      kernels.at(kernel, params),
      step_size=step_size,
      num_steps=num_steps,
      regularization=regularization,
      axis_name=axis_name,
      exchange=exchange,
    )
    return negatives, {}

  if persistent:
    return learn_from_negatives(
      energy_fn, negatives_fn, optimizer, persistent=True, axis_name=axis_name
    )
  return descend(gradient_fn, optimizer)


def _check(
  step_size: float | Array,
  num_steps: int,
  regularization: float | Array | None,
  kernel: KernelLike,
) -> None:
  checks.positive("step_size", step_size)
  checks.at_least_one("num_steps", num_steps)
  checks.regularization(regularization, kernel)


def _check_symmetric(symmetric: bool, num_steps: int) -> None:
  if symmetric and num_steps > 1:
    raise ValueError(
      f"symmetric is the difference of one move each way, got num_steps={num_steps}."
    )
