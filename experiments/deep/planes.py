"""Densities in the plane, and everything exact about an energy there, by a grid."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stein_jax import densities, ksd_squared
from stein_jax.algorithms.energy import scores
from stein_jax.densities import Density
from stein_jax.kernels import imq
from stein_jax.types import Array, EnergyFn, Key, Params

SHAPES: dict[str, Callable[[], Density]] = {
  "two_moons": densities.two_moons,
  "rings": lambda: densities.rings([1.0, 2.0, 3.0], width=0.12),
  "pinwheel": densities.pinwheel,
  "checkerboard": lambda: densities.checkerboard(4, width=1.0),
  "two_modes": lambda: densities.two_modes(2, separation=5.0),
  "grid": lambda: densities.grid_modes(3, spacing=2.0, width=0.3),
  "gmm40": densities.gmm40,
  "banana": lambda: densities.banana(width=2.0),
  "funnel": lambda: densities.funnel(2, width=1.0),
}
"""name -> a density of points in the plane."""


@dataclasses.dataclass(frozen=True)
class Plane:
  """A truth in the plane, points of it, and a grid that covers it.

  Attributes:
    truth: the density.
    train: points to learn from, `[n, 2]`.
    test: points to judge by.
    lower, upper: the corners of the grid.
    num_points: of the grid, along each axis.
  """

  truth: Density
  train: Array
  test: Array
  lower: np.ndarray
  upper: np.ndarray
  num_points: int

  @property
  def centers(self) -> Array:
    """The centres of the grid's cells, `[num_points², 2]`, x first."""
    n = self.num_points
    sides = [
      a + (np.arange(n) + 0.5) * (b - a) / n for a, b in zip(self.lower, self.upper)
    ]
    x, y = np.meshgrid(*sides, indexing="ij")
    return jnp.asarray(np.stack([x, y], axis=-1).reshape(-1, 2), jnp.float32)

  @property
  def log_cell(self) -> float:
    """log of a cell's area."""
    return float(np.log((self.upper - self.lower) / self.num_points).sum())

  def as_picture(self, values: Array) -> np.ndarray:
    """Values at the centres as rows of an image, the lowest y first."""
    return np.asarray(values).reshape(self.num_points, self.num_points).T


def plane(
  truth: Density, key: Key, *, num_train: int, num_test: int, num_points: int = 200
) -> Plane:
  """Draws the points, and lays the grid: all of them, and half their extent more."""
  train_key, test_key = jax.random.split(key)
  train, test = truth.sample(train_key, num_train), truth.sample(test_key, num_test)
  both = np.concatenate([train, test])
  low, high = both.min(axis=0), both.max(axis=0)
  margin = 0.25 * (high - low)
  return Plane(truth, train, test, low - margin, high + margin, num_points)


@dataclasses.dataclass(frozen=True)
class Judge:
  """What is known exactly about an energy in the plane.

  Attributes:
    energy_fn: E(x; θ) of one point.
    plane: the truth.
    num_ksd: test points of the kernelised Stein discrepancy.
  """

  energy_fn: EnergyFn
  plane: Plane
  num_ksd: int = 500

  def __call__(self, params: Params) -> dict[str, Array]:
    """The mean log-likelihood of test points, and their KSD² (U-statistic)."""
    return self._compiled(params)

  def __post_init__(self) -> None:
    object.__setattr__(self, "_compiled", jax.jit(self._judged))
    object.__setattr__(self, "_compiled_grid", jax.jit(self._log_density))
    log_truth = self.plane.truth.log_density(self.plane.test)
    object.__setattr__(self, "log_truth", log_truth)

  _compiled: Callable[[Params], dict[str, Array]] = dataclasses.field(init=False)
  _compiled_grid: Callable[[Params], Array] = dataclasses.field(init=False)
  log_truth: Array = dataclasses.field(init=False)
  """log p* at the test points."""

  def _energies(self, params: Params, x: Array) -> Array:
    return jax.lax.map(partial(self.energy_fn, params), x, batch_size=2000)

  def _log_density(self, params: Params) -> Array:
    values = -self._energies(params, self.plane.centers)
    return values - jax.nn.logsumexp(values) - self.plane.log_cell

  def log_density_on_grid(self, params: Params) -> Array:
    """log p at the centres of the grid, normalised over the grid."""
    return self._compiled_grid(params)

  def _judged(self, params: Params) -> dict[str, Array]:
    on_grid = -self._energies(params, self.plane.centers)
    log_z = jax.nn.logsumexp(on_grid) + self.plane.log_cell
    log_p = -self._energies(params, self.plane.test) - log_z
    x = self.plane.test[: self.num_ksd]
    ksd = ksd_squared(x, scores(params, self.energy_fn, x), imq(), statistic="U")
    difference = self.log_truth - log_p
    return {
      "log_likelihood": log_p.mean(),
      "kl": difference.mean(),
      "kl_error": difference.std() / math.sqrt(len(difference)),
      "ksd_squared": ksd,
    }

  def samples(self, key: Key, params: Params, n: int) -> Array:
    """Exact samples, up to the size of a cell, within which they are uniform."""
    cell_key, within_key = jax.random.split(key)
    log_p = self.log_density_on_grid(params)
    cells = jax.random.categorical(cell_key, log_p, shape=(n,))
    size = (self.plane.upper - self.plane.lower) / self.plane.num_points
    shift = jax.random.uniform(within_key, (n, 2)) - 0.5
    return self.plane.centers[cells] + shift * jnp.asarray(size, jnp.float32)[None]

  def mass_at_edge(self, params: Params) -> float:
    """The share of the model in the outermost tenth of the grid, along either axis."""
    n, rim = self.plane.num_points, self.plane.num_points // 20
    p = np.exp(self.plane.as_picture(self.log_density_on_grid(params)))
    inner = p[rim : n - rim, rim : n - rim].sum()
    return float(1 - inner / p.sum())


def truth_on_grid(of: Plane) -> Any:
  """log p* at the centres of the grid."""
  return of.truth.log_density(of.centers)
