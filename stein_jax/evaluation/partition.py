"""log Z of an unnormalised density, with an error: on a grid, by importance sampling,
and by annealing from both sides.

Every function takes f through `log_density_fn`, x -> log f(x) of one point, and returns
an estimate of log Z = log ∫ f(x) dx in nats. For an energy f = exp(−E):

  log_density_fn = Partial(lambda params, x: -energy_fn(params, x), params)
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.densities import Density
from stein_jax.parallel import axes
from stein_jax.types import Array, Key, LogDensityFn, Particles, PyTree

TransitionFn = Callable[[Key, Particles, LogDensityFn], Any]
"""`transition(key, particles, log_density_fn)` -> moved particles, or a result with a
field `particles`. It leaves the density invariant, as `samplers.mala` does:
`functools.partial(samplers.mala, num_steps=1, step_size=0.1)`."""


class LogPartition(NamedTuple):
  """An estimate of log Z, in nats.

  Attributes:
    value: log of the mean weight, or minus that for weights of 1/Z.
    standard_error: of the value, √(1/ESS − 1/n). It knows only of what the samples saw.
    effective_sample_size: ESS = (Σ w)² / Σ w², from 1 to n.
    log_weights: log w of each sample, `[n]`.
  """

  value: Array
  standard_error: Array
  effective_sample_size: Array
  log_weights: Array


def _of_weights(log_weights: Array, *, sign: int = 1) -> LogPartition:
  n = len(log_weights)
  largest = jax.lax.stop_gradient(log_weights.max())
  weights = jnp.exp(log_weights - largest)
  size = jnp.minimum(jnp.square(weights.sum()) / jnp.square(weights).sum(), n)
  variance = 1 / size - 1 / n
  is_positive = variance > 0  # the square root has no derivative at 0
  error = jnp.where(is_positive, jnp.sqrt(jnp.where(is_positive, variance, 1)), 0)
  value = sign * (largest + jnp.log(weights.mean()))
  return LogPartition(value, error, size, log_weights)


def log_partition_on_grid(
  log_density_fn: LogDensityFn,
  lower: float | Sequence[float],
  upper: float | Sequence[float],
  *,
  num_points: int = 1000,
) -> Array:
  """log ∫ f over a box in one or two dimensions, by sums over a regular grid.

  A smooth f that has vanished at the edge is summed with an error that falls faster
  than any power of the spacing.

  >>> import jax.numpy as jnp
  >>> log_z = log_partition_on_grid(lambda x: -0.5 * jnp.sum(x**2), [-9, -9], [9, 9])
  >>> bool(jnp.isclose(log_z, jnp.log(2 * jnp.pi)))
  True

  Args:
    log_density_fn: x `[d]` -> log f(x).
    lower: the box's lower corner, d numbers; d is 1 or 2.
    upper: its upper corner.
    num_points: along each axis.

  Raises:
    ValueError: corners of other dimensions, or an upper one that is not above the
      lower one.

  Warns:
    RuntimeWarning: f at the edge is above 10⁻⁴ of its maximum: mass is outside.
  """
  corners = [np.atleast_1d(np.asarray(c, np.float64)) for c in (lower, upper)]
  low, high = corners
  if low.shape != high.shape or low.ndim != 1 or len(low) not in (1, 2):
    raise ValueError(
      f"lower and upper must have one or two numbers each, got {lower!r} and {upper!r}."
    )
  if not (high > low).all():
    raise ValueError(f"upper must be above lower, got {lower!r} and {upper!r}.")
  checks.at_least_one("num_points", num_points)
  if num_points < 2:
    raise ValueError(f"num_points must be at least 2, got {num_points}.")
  dtype = jnp.result_type(float)
  sides = [jnp.linspace(a, b, int(num_points), dtype=dtype) for a, b in zip(low, high)]
  value, edge = _grid_sum(log_density_fn, *sides)
  log_cell = np.log((high - low) / (num_points - 1)).sum()
  if not isinstance(edge, jax.core.Tracer) and edge > math.log(1e-4):
    warnings.warn(
      f"the density at the edge of the grid is {math.exp(edge):.2g} of its maximum: "
      "choose a larger box.",
      RuntimeWarning,
      stacklevel=2,
    )
  return value + log_cell


@compiled()
def _grid_sum(log_density_fn: LogDensityFn, *sides: Array) -> tuple[Array, Array]:
  """log Σ f with weight ½ at an edge, and log of f's largest share there."""
  first, rest = sides[0], sides[1:]

  def row(a: Array) -> Array:
    points = jnp.stack(jnp.meshgrid(a[None], *rest, indexing="ij"), axis=-1)
    return jax.vmap(log_density_fn)(points.reshape(-1, len(sides)))

  table = jax.lax.map(row, first)
  edges = [table[0], table[-1]] + ([table[:, 0], table[:, -1]] if rest else [])
  edge = jnp.max(jnp.concatenate(edges)) - table.max()
  for axis, n in enumerate(table.shape):
    if n > 1:  # a one-dimensional table has one column
      ends = jnp.zeros(n, table.dtype).at[jnp.array([0, n - 1])].set(-math.log(2))
      table += jnp.expand_dims(ends, 1 - axis)
  return jax.nn.logsumexp(table), edge


def _check_importance(num_samples: int, batch_size: int | None) -> None:
  checks.at_least_one("num_samples", num_samples)
  if batch_size is not None:
    checks.at_least_one("batch_size", batch_size)


@compiled(_check_importance, static=("num_samples", "batch_size", "axis_name"))
def importance_log_partition(
  key: Key,
  log_density_fn: LogDensityFn,
  proposal: Density,
  *,
  num_samples: int,
  batch_size: int | None = 1000,
  axis_name: str | None = None,
) -> LogPartition:
  """log (1/n) Σᵢ f(xᵢ)/q(xᵢ), xᵢ ~ q: importance sampling.

  The estimate of Z is unbiased. That of log Z is low where q misses mass of f: a
  `densities.mixture` of a truth and a broad Gaussian sees also the modes that a model
  has invented.

  Args:
    key: a PRNG key.
    log_density_fn: x -> log f(x) of one point.
    proposal: q.
    num_samples: n, over all devices.
    batch_size: how many points are evaluated at once; None: all.
    axis_name: the axis of devices over which the samples are sharded.

  Returns:
    LogPartition, the same on all devices.

  Raises:
    ValueError: num_samples or batch_size below 1.
  """
  x = _own(proposal.sample_fn(key, num_samples), num_samples, axis_name)
  return of_samples(x, log_density_fn, proposal, batch_size, axis_name)


@partial(jax.jit, static_argnames=("batch_size", "axis_name"))
def of_samples(
  x: Particles,
  log_density_fn: LogDensityFn,
  proposal: Density,
  batch_size: int | None,
  axis_name: str | None = None,
) -> LogPartition:
  """The estimate of `importance_log_partition` from these samples of the proposal."""

  def log_weight(x: PyTree) -> Array:
    return log_density_fn(x) - proposal.log_density_fn(x)

  log_weights = jax.lax.map(log_weight, x, batch_size=batch_size)
  return _of_weights(axes.gather(log_weights, axis_name))


def _own(samples: Particles, num_samples: int, axis_name: str | None) -> Particles:
  """This device's part of samples that all devices have drawn."""
  num_devices = axes.size(axis_name)
  if num_samples % num_devices:
    raise ValueError(f"{num_samples} samples do not divide over {num_devices} devices.")
  return axes.own(samples, num_samples // num_devices, axis_name)


def _check_annealed(num_chains: int, num_temperatures: int) -> None:
  checks.at_least_one("num_chains", num_chains)
  checks.at_least_one("num_temperatures", num_temperatures)


@compiled(_check_annealed, static=("num_chains", "num_temperatures", "axis_name"))
def annealed_log_partition(
  key: Key,
  log_density_fn: LogDensityFn,
  base: Density,
  *,
  num_chains: int,
  num_temperatures: int,
  transition: TransitionFn,
  samples: Particles | None = None,
  axis_name: str | None = None,
) -> LogPartition:
  """Annealed importance sampling along q^(1−β) f^β, forward or in reverse.

  Forward, chains start at samples of the base q. At β₁ < ... < β_T = 1, evenly spaced,

    log w += (βₜ − βₜ₋₁) log f(x)/q(x),  then x moves by a transition at βₜ.

  The mean of w estimates Z without bias, so that log Z is low on average: a lower
  bound. In reverse, chains start at `samples` of f and go back to q. Their weights
  estimate 1/Z, and minus the log of their mean is high on average: an upper bound.
  Together the two contain log Z, if the samples are exact.

  Args:
    key: a PRNG key.
    log_density_fn: x -> log f(x) of one point.
    base: q.
    num_chains: how many chains; in reverse the number of samples.
    num_temperatures: T.
    transition: `(key, particles, log_density_fn) -> particles`, or a result with a
      field `particles`; it leaves the given density invariant. With `axis_name` it must
      know of it.
    samples: `[num_chains, ...]`, exact samples of f, for the reverse direction; with
      `axis_name` this device's.
    axis_name: the axis of devices over which the chains are sharded.

  Returns:
    LogPartition. In reverse its `log_weights` are those of 1/Z.

  Raises:
    ValueError: num_chains or num_temperatures below 1, or another number of samples.

  Source: Neal (2001); Burda, Grosse & Salakhutdinov (2015).
  """
  start_key, key = jax.random.split(key)
  if samples is None:
    x = _own(base.sample_fn(start_key, num_chains), num_chains, axis_name)
  else:
    x = samples
    n = checks.num_particles(x, "samples") * axes.size(axis_name)
    if n != num_chains:
      raise ValueError(f"num_chains={num_chains}, but there are {n} samples.")
  size = 1 / num_temperatures

  def log_ratio(x: Particles) -> Array:
    return jax.vmap(lambda x: log_density_fn(x) - base.log_density_fn(x))(x)

  def moved(key: Key, x: Particles, beta: Array) -> Particles:
    tempered = Partial(_tempered, log_density_fn, base.log_density_fn, beta)
    result = transition(key, x, tempered)
    return getattr(result, "particles", result)

  def forward(carry: tuple, step: tuple[Key, Array]) -> tuple[tuple, None]:
    (x, log_weights), (key, beta) = carry, step
    log_weights += size * log_ratio(x)
    return (moved(key, x, beta), log_weights), None

  def backward(carry: tuple, step: tuple[Key, Array]) -> tuple[tuple, None]:
    (x, log_weights), (key, beta) = carry, step
    x = moved(key, x, beta)
    return (x, log_weights - size * log_ratio(x)), None

  keys = jax.random.split(key, num_temperatures)
  start = (x, jnp.zeros_like(log_ratio(x)))
  betas = jnp.arange(1, num_temperatures + 1, dtype=start[1].dtype) * size
  if samples is None:
    (_, log_weights), _ = jax.lax.scan(forward, start, (keys, betas))
  else:
    (_, log_weights), _ = jax.lax.scan(backward, start, (keys, betas[::-1]))
  sign = 1 if samples is None else -1
  return _of_weights(axes.gather(log_weights, axis_name), sign=sign)


def _tempered(
  log_density_fn: LogDensityFn, base_fn: LogDensityFn, beta: Array, x: PyTree
) -> Array:
  """(1 − β) log q(x) + β log f(x)."""
  return (1 - beta) * base_fn(x) + beta * log_density_fn(x)
