"""Stein contrastive divergence: negatives are the data after one SVGD step."""

from functools import partial

import jax
import optax

from stein_jax import axes, checks, kernels
from stein_jax.contrastive import contrastive_loss
from stein_jax.descent import descend
from stein_jax.kernels import Kernel, KernelLike
from stein_jax.scores import scores, split_batch, with_points
from stein_jax.svgd import svgd_direction
from stein_jax.types import Algorithm, Array, Batch, EnergyFn, Key, Metrics, Params


def stein_cd_gradient(
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  kernel: Kernel | None,
  *,
  step_size: float | Array,
  symmetric: bool = False,
  axis_name: str | None = None,
) -> Params:
  """The SteinCD gradient, a finite-difference estimate of ∇θ ½D²(q₀ ‖ p).

  forward (13):    ∇θ {mean E(x) − mean E(x + εφ*(x))} / ε
  symmetric (17):  ∇θ {mean E(x − εφ*(x)) − mean E(x + εφ*(x))} / (2ε)

  The moved points are constants. Both tend to Stein score matching (15) as ε → 0, with
  errors of order ε and ε². The paper leaves the division by ε to the learning rate;
  here it is done, so that the gradient does not shrink with ε (under Adam, or mixed
  with other gradients, that matters).

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point.
    data: positives, `[m, ...]`, or `{"x": ..., "context": ...}`.
    kernel: out of `kernels`; None takes φ = score.
    step_size: ε, in units of squared distance. Rounding sets the lower end: in float32
      differences of energies lose all their digits for ε far below 1e-3.
    symmetric: the two-sided difference.
    axis_name: the axis over which the data is spread.

  Returns:
    The gradient, shaped like params; a descent direction of ½D².

  Raises:
    ValueError: a step size that is not above 0, an energy that is not a scalar, or
      fewer than two points with a median bandwidth.

  Source: Liu & Wang (2017), equations 13, 16 and 17; algorithm 1.
  """
  checks.positive("step_size", step_size)
  kernel = kernels.checked(kernel)
  return _value_and_gradient(
    params,
    energy_fn,
    data,
    kernel,
    step_size,
    symmetric=symmetric,
    axis_name=axis_name,
  )[1]


@partial(jax.jit, static_argnames=("energy_fn", "symmetric", "axis_name"))
def _value_and_gradient(
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  kernel: Kernel | None,
  step_size: float | Array,
  *,
  symmetric: bool,
  axis_name: str | None,
) -> tuple[Array, Params]:
  x, _ = split_batch(data)
  direction = svgd_direction(
    x, scores(params, energy_fn, data), kernel, axis_name=axis_name
  )

  def moved(epsilon: float | Array) -> Batch:
    points = jax.tree.map(lambda x, phi: x + epsilon * phi, x, direction)
    return with_points(data, jax.lax.stop_gradient(points))

  positives = moved(-step_size) if symmetric else data
  distance = 2 * step_size if symmetric else step_size
  return axes.value_and_gradient(
    lambda p: contrastive_loss(p, energy_fn, positives, moved(step_size)) / distance,
    params,
    axis_name,
  )


def stein_cd(
  energy_fn: EnergyFn,
  kernel: KernelLike,
  optimizer: optax.GradientTransformation,
  *,
  step_size: float,
  symmetric: bool = False,
  axis_name: str | None = None,
) -> Algorithm:
  """SteinCD, algorithm 1: descends `stein_cd_gradient` on every batch.

  Args:
    energy_fn: E(x; θ) of one point.
    kernel: out of `kernels`, None, or `kernel_fn(params) -> kernel`.
    optimizer: an optax optimizer; its learning rate is the paper's μ.
    step_size: ε, as in `stein_cd_gradient`.
    symmetric: the two-sided difference (17).
    axis_name: the axis over which the batch is spread.

  Raises:
    ValueError: a step size that is not above 0.

  Source: Liu & Wang (2017), algorithm 1.
  """
  checks.positive("step_size", step_size)

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    del key  # SteinCD draws nothing at random
    loss, gradient = _value_and_gradient(
      params,
      energy_fn,
      batch,
      kernels.at(kernel, params),
      step_size,
      symmetric=symmetric,
      axis_name=axis_name,
    )
    return gradient, {"loss": loss}

  return descend(gradient_fn, optimizer)
