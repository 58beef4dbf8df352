"""Densities with a shape: rings, moons, pinwheel, board, banana, funnel, ICA."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from stein_jax import checks
from stein_jax.densities.density import (
  Density,
  check_point,
  mixture,
  of_components,
  weights_for,
)
from stein_jax.densities.gaussians import gaussian_mixture
from stein_jax.types import Array, Key

_LOG_2PI = math.log(2 * math.pi)


def rings(
  radii: Sequence[float] = (1.0, 3.0),
  *,
  weights: Sequence[float] | None = None,
  width: float = 0.2,
) -> Density:
  """Circles in the plane, blurred by N(0, σ² I).

  A point is R (cos a, sin a) + σz with a uniform angle a. With r = ‖x‖ and the Bessel
  function I₀ its density is

    p(x) = 1/(2πσ²) exp(−(r² + R²)/(2σ²)) I₀(rR/σ²).

  Args:
    radii: R of each ring.
    weights: of the rings, which are divided by their sum; None: equal ones.
    width: σ.

  Returns:
    A Density of points `[2]`, whose modes are the rings.
  """
  checks.all_positive("radii", radii)
  checks.positive("width", width)
  w = weights_for(weights, len(radii), "radii")
  arrays = (jnp.log(w), jnp.asarray(radii, w.dtype), jnp.asarray(width, w.dtype))
  return of_components(
    Partial(_ring_joint, arrays),
    Partial(_ring_samples, arrays),
    f"{len(radii)} rings",
    w,
  )


def _ring_joint(arrays: tuple[Array, Array, Array], x: Array) -> Array:
  log_weights, radii, width = arrays
  check_point(x, 2, "density of rings")
  squared = jnp.square(x).sum()
  # The square root has no derivative at 0, where I₀'s is 0 as well.
  r = jnp.sqrt(jnp.where(squared > 0, squared, 1))
  r = jnp.where(squared > 0, r, 0)
  scaled = r * radii / width**2
  # I₀(t) = e^t i0e(t), of which e^t makes the square complete.
  log_bessel = jnp.log(jax.scipy.special.i0e(scaled))
  squares = jnp.square((r - radii) / width)
  return log_weights - 0.5 * squares + log_bessel - _LOG_2PI - 2 * jnp.log(width)


def _ring_samples(
  arrays: tuple[Array, Array, Array], key: Key, num_samples: int
) -> Array:
  log_weights, radii, width = arrays
  keys = jax.random.split(key, 3)
  k = jax.random.categorical(keys[0], log_weights, shape=(num_samples,))
  angle = 2 * jnp.pi * jax.random.uniform(keys[1], (num_samples,), radii.dtype)
  circle = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
  noise = jax.random.normal(keys[2], (num_samples, 2), radii.dtype)
  return radii[k][:, None] * circle + width * noise


def two_moons(noise: float = 0.1) -> Density:
  """Two interleaved half circles of radius 1, blurred by N(0, σ² I).

  The upper one is (cos a, sin a), the lower one (1 − cos a, ½ − sin a), 0 < a < π. Each
  is made of Gaussians at equal angles, at most half a σ apart, so that log density and
  samples are those of one and the same mixture.

  Args:
    noise: σ.

  Returns:
    A Density of points `[2]`, whose modes are the upper and the lower moon.
  """
  checks.positive("noise", noise)
  n = max(32, math.ceil(2 * math.pi / float(noise)))
  angle = (np.arange(n) + 0.5) * (math.pi / n)
  upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  lower = np.array([[1.0, 0.5]]) - upper
  moons = [gaussian_mixture(means, width=noise) for means in (upper, lower)]
  return dataclasses.replace(mixture(moons, [1, 1]), name="two moons")


def pinwheel(
  num_arms: int = 5,
  *,
  radial_width: float = 0.3,
  tangential_width: float = 0.1,
  twist: float = 0.5,
) -> Density:
  """Gaussian arms around the origin, twisted into a pinwheel (Johnson et al., 2016).

  The arms are N(uₖ, Cₖ) with unit vectors uₖ at equal angles, a standard deviation
  `radial_width` along uₖ, and `tangential_width` across. A point y of theirs is rotated
  by an angle that grows with its distance from the origin,

    x = R(c ‖y‖²) y.

  This keeps areas, so that the density is that of the arms at y = R(−c ‖x‖²) x.

  Args:
    num_arms: how many arms.
    radial_width: the standard deviation along an arm.
    tangential_width: the standard deviation across.
    twist: c, in radians; 0 leaves the arms straight.

  Returns:
    A Density of points `[2]`, whose modes are the arms.
  """
  checks.at_least_one("num_arms", num_arms)
  checks.positive("radial_width", radial_width)
  checks.positive("tangential_width", tangential_width)
  checks.finite("twist", twist)
  angle = 2 * math.pi * np.arange(num_arms) / num_arms
  along = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  across = np.stack([-np.sin(angle), np.cos(angle)], axis=1)
  frames = np.stack([along * radial_width, across * tangential_width], axis=2)
  covariances = frames @ frames.swapaxes(1, 2)
  arms = gaussian_mixture(along, covariances=covariances)
  c = jnp.asarray(twist, jnp.result_type(float))
  return Density(
    Partial(_at_untwisted, arms.log_density_fn, c),
    Partial(_twisted_samples, arms.sample_fn, c),
    f"pinwheel of {num_arms} arms",
    arms.mode_masses,
    Partial(_at_untwisted, arms.modes_fn, c),
  )


def _twisted(points: Array, twist: Array) -> Array:
  """R(c ‖x‖²) x of points `[..., 2]`."""
  angle = twist * jnp.square(points).sum(axis=-1)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  x, y = points[..., 0], points[..., 1]
  return jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def _at_untwisted(fn: Callable[[Array], Array], twist: Array, x: Array) -> Array:
  check_point(x, 2, "pinwheel")
  return fn(_twisted(jnp.asarray(x), -twist))


def _twisted_samples(
  sample_fn: Callable[[Key, int], Array], twist: Array, key: Key, num_samples: int
) -> Array:
  return _twisted(sample_fn(key, num_samples), twist)


def checkerboard(num_per_side: int = 4, *, width: float = 2.0) -> Density:
  """Uniform on the dark squares of a board around the origin.

  The square of column i and row j is dark if i + j is even; the one of the lower left
  corner is. log p is constant on the dark squares and −∞ elsewhere. The score is 0
  inside of a dark square and does not exist elsewhere, where `score` returns 0 as well.
  At the edges p jumps, so that Stein's identity does not hold: discrepancies with this
  density as the model see nothing.

  Args:
    num_per_side: squares along a side.
    width: the length of a square's side.

  Returns:
    A Density of points `[2]`.
  """
  checks.at_least_one("num_per_side", num_per_side)
  checks.positive("width", width)
  columns, rows = np.indices((num_per_side, num_per_side))
  dark = (columns + rows) % 2 == 0
  dtype = jnp.result_type(float)
  corners = np.stack([columns[dark], rows[dark]], axis=1) - num_per_side / 2
  arrays = (jnp.asarray(corners, dtype), jnp.asarray(width, dtype))
  return Density(
    Partial(_board_log_density, arrays),
    Partial(_board_samples, arrays),
    f"checkerboard of {len(corners)} squares",
  )


def _board_log_density(arrays: tuple[Array, Array], x: Array) -> Array:
  corners, width = arrays
  check_point(x, 2, "checkerboard")
  shift = x[None] / width - corners
  inside = ((shift >= 0) & (shift < 1)).all(axis=1).any()
  return jnp.where(inside, -jnp.log(len(corners) * width**2), -jnp.inf)


def _board_samples(arrays: tuple[Array, Array], key: Key, num_samples: int) -> Array:
  corners, width = arrays
  which, where = jax.random.split(key)
  k = jax.random.randint(which, (num_samples,), 0, len(corners))
  u = jax.random.uniform(where, (num_samples, 2), corners.dtype)
  # Rounding must not move a point at an edge into the next square.
  margin = 4 * float(jnp.finfo(u.dtype).eps) * len(corners)
  return width * (corners[k] + jnp.clip(u, margin, 1 - margin))


def banana(
  dimension: int = 2, *, curvature: float = 0.1, width: float = 5.0
) -> Density:
  """x₁ ~ N(0, s²), x₂ ~ N(c (x₁² − s²), 1), and standard normal x₃, ..., x_d.

  Haario, Saksman & Tamminen (1999).

  Args:
    dimension: d, at least 2.
    curvature: c.
    width: s.
  """
  checks.positive("curvature", curvature)
  checks.positive("width", width)
  _at_least_two(dimension)
  dtype = jnp.result_type(float)
  arrays = (jnp.asarray(curvature, dtype), jnp.asarray(width, dtype))
  name = f"banana, d = {dimension}"
  samples = Partial(_banana_samples, arrays, jnp.zeros(dimension, dtype))
  log_density_fn = Partial(_banana_log_density, arrays, jnp.zeros(dimension, dtype))
  return Density(log_density_fn, samples, name)


def _bend(arrays: tuple[Array, Array], first: Array) -> Array:
  curvature, width = arrays
  return curvature * (jnp.square(first) - width**2)


def _banana_log_density(arrays: tuple[Array, Array], zeros: Array, x: Array) -> Array:
  check_point(x, zeros.size, "banana")
  x = jnp.asarray(x)
  z = x.at[0].divide(arrays[1]).at[1].add(-_bend(arrays, x[0]))
  return -0.5 * jnp.square(z).sum() - jnp.log(arrays[1]) - 0.5 * x.size * _LOG_2PI


def _banana_samples(
  arrays: tuple[Array, Array], zeros: Array, key: Key, num_samples: int
) -> Array:
  z = jax.random.normal(key, (num_samples, zeros.size), zeros.dtype)
  first = arrays[1] * z[:, 0]
  return z.at[:, 0].set(first).at[:, 1].add(_bend(arrays, first))


def funnel(dimension: int = 10, *, width: float = 3.0) -> Density:
  """v = x₁ ~ N(0, s²), and xᵢ ~ N(0, eᵛ) for i > 1 (Neal, 2003).

  Args:
    dimension: d, at least 2.
    width: s.
  """
  _at_least_two(dimension)
  checks.positive("width", width)
  dtype = jnp.result_type(float)
  s = jnp.asarray(width, dtype)
  zeros = jnp.zeros(dimension, dtype)
  return Density(
    Partial(_funnel_log_density, s, zeros),
    Partial(_funnel_samples, s, zeros),
    f"funnel, d = {dimension}",
  )


def _funnel_log_density(width: Array, zeros: Array, x: Array) -> Array:
  check_point(x, zeros.size, "funnel")
  v, rest = x[0], x[1:]
  squares = jnp.square(v / width) + jnp.exp(-v) * jnp.square(rest).sum()
  return -0.5 * (squares + rest.size * v + x.size * _LOG_2PI) - jnp.log(width)


def _funnel_samples(width: Array, zeros: Array, key: Key, num_samples: int) -> Array:
  z = jax.random.normal(key, (num_samples, zeros.size), zeros.dtype)
  v = width * z[:, 0]
  rest = jnp.exp(v / 2)[:, None] * z[:, 1:]
  return jnp.concatenate([v[:, None], rest], axis=1)


def independent_components(dimension: int = 10, *, seed: int = 0) -> Density:
  """x = W s with independent Laplace sources s: linear ICA.

  log p(x) = Σᵢ [−|(W⁻¹x)ᵢ| − log 2] − log |det W|.  W is a random matrix whose
  condition number is below d, as in Grathwohl et al. (2020). The score jumps where a
  source is 0.

  Args:
    dimension: d, at least 2.
    seed: of W.
  """
  _at_least_two(dimension)
  rng = np.random.default_rng(seed)
  # A Gaussian matrix of many dimensions is never so well conditioned: its singular
  # values are moved into [1, d/2].
  left, singular, right = np.linalg.svd(rng.normal(size=(dimension, dimension)))
  singular = 1 + (dimension / 2 - 1) * singular / singular.max()
  mix = (left * singular) @ right
  dtype = jnp.result_type(float)
  log_determinant = jnp.asarray(np.log(singular).sum(), dtype)
  arrays = (jnp.asarray(np.linalg.inv(mix), dtype), log_determinant)
  return Density(
    Partial(_ica_log_density, arrays),
    Partial(_ica_samples, jnp.asarray(mix, dtype)),
    f"independent components, d = {dimension}",
  )


def _ica_log_density(arrays: tuple[Array, Array], x: Array) -> Array:
  unmix, log_determinant = arrays
  check_point(x, len(unmix), "density")
  sources = jnp.matmul(unmix, x, precision=jax.lax.Precision.HIGHEST)
  return -jnp.abs(sources).sum() - x.size * math.log(2) - log_determinant


def _ica_samples(mix: Array, key: Key, num_samples: int) -> Array:
  sources = jax.random.laplace(key, (num_samples, len(mix)), mix.dtype)
  return jnp.matmul(sources, mix.T, precision=jax.lax.Precision.HIGHEST)


def _at_least_two(dimension: int) -> None:
  checks.at_least_one("dimension", dimension)
  if dimension < 2:
    raise ValueError(f"dimension must be at least 2, got {dimension}.")
