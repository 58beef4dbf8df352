"""A learned energy against a known density: divergences, log Z, modes, with errors."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from stein_jax import checks
from stein_jax.densities import Density, gaussian, mixture
from stein_jax.evaluation.partition import LogPartition, of_samples
from stein_jax.evaluation.samples import Estimate, sliced_wasserstein_distance
from stein_jax.types import Array, EnergyFn, Key, Params, PyTree


class Comparison(NamedTuple):
  """How far p(x) ∝ exp(−E(x)) is from the truth p*. Logarithms are in nats.

  Attributes:
    kl: KL(p* ‖ p) = E_{p*}[log p* + E] + log Z. Its error contains that of log Z.
    log_partition: log Z by importance sampling; the `kl` is only as good as its
      effective sample size.
    fisher: E_{p*} ‖∇ log p − ∇ log p*‖², blind to the weights of separated modes.
    variance: Var_{p*}[E + log p*], 0 for p = p*, without any log Z.
    slope: of the regression of E on −log p* under p*: 1 for p = p*, below 1 if p is too
      flat, as at a high temperature.
    mode_masses: the masses of the truth's modes under p, `[K]`, or None.
    mode_mass_standard_errors: of these, `[K]`, or None.
    mode_mass_error: the total variation of the masses from the truth's, ½ Σ |m − m*|,
      or None. For p = p* it is not 0, but of the size of the standard errors.
    sliced_wasserstein: the mean over directions of the Wasserstein distance W₁ between
      projections of p and p*; its error is that over directions.
    sliced_wasserstein_floor: the same distance between two samples of p* itself, one
      of as many points as the weights of p are worth: what p = p* would give.
  """

  kl: Estimate
  log_partition: LogPartition
  fisher: Estimate
  variance: Estimate
  slope: float
  mode_masses: np.ndarray | None
  mode_mass_standard_errors: np.ndarray | None
  mode_mass_error: float | None
  sliced_wasserstein: Estimate
  sliced_wasserstein_floor: float


def compare_with_truth(
  density: Density,
  energy_fn: EnergyFn,
  params: Params,
  key: Key,
  *,
  num_samples: int = 20_000,
  proposal: Density | None = None,
  batch_size: int = 1000,
) -> Comparison:
  """Compares a learned energy with the truth by samples of the truth.

  What is under p (log Z, masses of modes, the sliced distance) is by importance
  sampling from the proposal, with self-normalised weights.

  >>> import jax
  >>> from stein_jax import densities, evaluation
  >>> truth = densities.two_modes(2, separation=4.0)
  >>> def energy_fn(params, x):
  ...   return params - truth.log_density_fn(x)
  >>> found = evaluation.compare_with_truth(truth, energy_fn, 7.0, jax.random.key(0))
  >>> round(abs(found.kl.value), 1), round(float(found.log_partition.value))
  (0.0, -7)

  Args:
    density: the truth p*, of points `[d]`.
    energy_fn: E(x; θ) of one point.
    params: θ.
    key: a PRNG key.
    num_samples: of the truth, and as many of the proposal.
    proposal: None: two thirds of the truth and one third of a Gaussian with the
      truth's mean and 1.2² times its covariance, which sees modes that p has invented
      not too far from the truth.
    batch_size: how many points are evaluated at once.

  Raises:
    ValueError: fewer than 10 samples, or an energy that is not a scalar.

  Source: the divergences are equations 2 and 18 of Liu & Wang (2017).
  """
  checks.at_least_one("num_samples", num_samples)
  checks.at_least_one("batch_size", batch_size)
  if num_samples < 10:
    raise ValueError(f"num_samples must be at least 10, got {num_samples}.")
  truth_key, broad_key, proposal_key, direction_key = jax.random.split(key, 4)
  x = density.sample(truth_key, num_samples)
  checks.scalar_energy(energy_fn, params, jax.tree.map(lambda leaf: leaf[0], x))
  again = density.sample(broad_key, num_samples)
  if proposal is None:
    proposal = mixture([density, broad_gaussian(again)], [2, 1])

  log_truth, energy, squares = (
    np.asarray(values, np.float64)
    for values in _at_truth(density, energy_fn, params, x, batch_size=batch_size)
  )
  _check_energies(energy)
  log_density_fn = Partial(_minus_energy, _as_pytree(energy_fn), params)
  y = proposal.sample(proposal_key, num_samples)
  log_z = of_samples(y, log_density_fn, proposal, batch_size)
  log_weights = np.asarray(log_z.log_weights, np.float64)
  _check_energies(log_weights)
  weights = np.exp(log_weights - log_weights.max())
  weights /= weights.sum()

  difference = energy + log_truth
  n = num_samples
  error = math.sqrt(difference.var() / n + float(log_z.standard_error) ** 2)
  kl = Estimate(float(difference.mean() + np.float64(log_z.value)), error)
  fisher = Estimate(float(squares.mean()), float(squares.std() / math.sqrt(n)))
  deviations = np.square(difference - difference.mean())
  variance = Estimate(
    float(deviations.sum() / (n - 1)), float(deviations.std() / math.sqrt(n))
  )
  slope = np.cov(energy, -log_truth)[0, 1] / log_truth.var(ddof=1)
  masses, mass_errors, mass_error = None, None, None
  if density.modes_fn is not None:
    modes = np.asarray(_modes(density.modes_fn, y, batch_size=batch_size), np.float64)
    masses = weights @ modes
    mass_errors = np.sqrt(np.square(weights) @ np.square(modes - masses[None]))
    truth_masses = np.asarray(density.mode_masses, np.float64)
    mass_error = float(np.abs(masses - truth_masses).sum() / 2)
  sliced = sliced_wasserstein_distance(direction_key, x, y, other_weights=weights)
  worth = max(2, round(float(log_z.effective_sample_size)))
  floor = sliced_wasserstein_distance(direction_key, x, again[:worth]).value
  return Comparison(
    kl,
    log_z,
    fisher,
    variance,
    float(slope),
    masses,
    mass_errors,
    mass_error,
    sliced,
    floor,
  )


def _check_energies(values: np.ndarray) -> None:
  if not np.isfinite(values).all():
    raise ValueError(
      f"energy_fn(params, x) is not finite at {np.sum(~np.isfinite(values))} of "
      f"{len(values)} points."
    )


def _as_pytree(fn: EnergyFn) -> Any:
  """The function as an argument of compiled code, equal for equal functions."""
  return Partial(fn) if jax.tree_util.all_leaves([fn]) else fn


def broad_gaussian(points: Array, *, factor: float = 1.2) -> Density:
  """A Gaussian with the points' mean and factor² times their covariance.

  Args:
    points: `[n, d]`.
    factor: how much wider it is than the points.
  """
  checks.positive("factor", factor)
  x = np.asarray(points, np.float64)
  if x.ndim != 2 or len(x) < 2:
    raise ValueError(f"points must be [n, d] with n of at least 2, got {x.shape}.")
  covariance = np.atleast_2d(np.cov(x.T)) * factor**2
  # Fewer points than dimensions leave directions without any variance.
  largest = np.linalg.norm(covariance, 2)
  ridge = max(1e-6 * float(largest), float(np.finfo(np.float32).tiny))
  covariance += ridge * np.eye(x.shape[1])
  mean = jnp.asarray(x.mean(axis=0), jnp.asarray(points).dtype)
  return gaussian(mean, covariance=covariance)


def _minus_energy(energy_fn: EnergyFn, params: Params, x: PyTree) -> Array:
  return -energy_fn(params, x)


@partial(jax.jit, static_argnames="batch_size")
def _modes(
  modes_fn: Callable[[PyTree], Array], points: Array, *, batch_size: int
) -> Array:
  return jax.lax.map(modes_fn, points, batch_size=batch_size)


@partial(jax.jit, static_argnames=("energy_fn", "batch_size"))
def _at_truth(
  density: Density, energy_fn: EnergyFn, params: Params, x: Array, *, batch_size: int
) -> tuple[Array, Array, Array]:
  """log p*, E, and ‖∇ log p − ∇ log p*‖² of each point, `[n]`."""

  def at(x: Array) -> tuple[Array, Array, Array]:
    log_truth, score = jax.value_and_grad(density.log_density_fn)(x)
    energy, slope = jax.value_and_grad(energy_fn, argnums=1)(params, x)
    return log_truth, energy, jnp.square(slope + score).sum()

  return jax.lax.map(at, x, batch_size=batch_size)
