"""Gaussians and their mixtures; the mixture that an RBM is."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from stein_jax import checks
from stein_jax.densities.density import (
  Density,
  check_point,
  of_components,
  weights_for,
)
from stein_jax.types import Array, Key, Params

HIGHEST = jax.lax.Precision.HIGHEST


def gaussian(
  mean: Array | Sequence[float],
  *,
  width: float | ArrayLike = 1.0,
  covariance: ArrayLike | None = None,
) -> Density:
  """N(mean, width² I), or N(mean, covariance).

  Args:
    mean: `[d]`.
    width: the standard deviation, one for all coordinates or `[d]`.
    covariance: `[d, d]`; it replaces `width`.

  Raises:
    ValueError: a mean that is no vector, a width that is not above 0, or a covariance
      that is not positive definite.
  """
  mean = _points(mean, 1, "mean")
  d = len(mean)
  name = f"Gaussian, d = {d}"
  one = jnp.ones(1)
  if covariance is not None:
    return _full(one, mean[None], _factors(covariance, (d, d), mean)[None], name, False)
  _check_width(width, ((), (d,)))
  width = jnp.broadcast_to(jnp.asarray(width, mean.dtype), (d,))
  return _spherical(one, mean[None], width[None], name, False)


def gaussian_mixture(
  means: ArrayLike | Sequence[Sequence[float]],
  *,
  weights: Sequence[float] | Array | None = None,
  width: float | ArrayLike = 1.0,
  covariances: ArrayLike | None = None,
  name: str | None = None,
) -> Density:
  """Σₖ wₖ N(μₖ, σₖ² I), or Σₖ wₖ N(μₖ, Cₖ).

  Args:
    means: μₖ, `[K, d]`.
    weights: wₖ, `[K]`, which are divided by their sum; None: equal ones.
    width: σ, one number or one for each component, `[K]`.
    covariances: Cₖ, `[K, d, d]`, or one for all, `[d, d]`; they replace `width`.
    name: of the density.

  Raises:
    ValueError: shapes that do not fit, weights or widths that are not positive, or
      covariances that are not positive definite.

  Returns:
    A Density whose modes are the components.
  """
  means = _points(means, 2, "means")
  k, d = means.shape
  w = weights_for(weights, k, "means")
  name = f"mixture of {k} Gaussians, d = {d}" if name is None else name
  if covariances is not None:
    shape = (d, d) if np.ndim(covariances) == 2 else (k, d, d)
    factors = jnp.broadcast_to(_factors(covariances, shape, means), (k, d, d))
    return _full(w, means, factors, name, True)
  _check_width(width, ((), (k,)))
  width = jnp.broadcast_to(jnp.asarray(width, means.dtype), (k,))
  return _spherical(w, means, width[:, None], name, True)


def two_modes(
  dimension: int,
  *,
  weights: tuple[float, float] = (0.25, 0.75),
  separation: float = 10.0,
) -> Density:
  """Two Gaussians of width 1, at ±separation/2 along the diagonal (1, ..., 1)/√d.

  With the default separation a local sampler never changes the mode: the density
  between them is e^−12.5 of that at the modes.
  """
  checks.at_least_one("dimension", dimension)
  checks.positive("separation", separation)
  center = np.full(dimension, separation / 2 / math.sqrt(dimension))
  name = f"two modes, d = {dimension}"
  return gaussian_mixture(np.stack([-center, center]), weights=weights, name=name)


def grid_modes(
  num_per_side: int = 5, *, spacing: float = 2.0, width: float = 0.1, dimension: int = 2
) -> Density:
  """Equal Gaussians on a regular grid around the origin, num_per_sideᵈ of them."""
  checks.at_least_one("num_per_side", num_per_side)
  checks.at_least_one("dimension", dimension)
  checks.positive("spacing", spacing)
  side = (np.arange(num_per_side) - (num_per_side - 1) / 2) * spacing
  means = np.stack(np.meshgrid(*[side] * dimension), axis=-1).reshape(-1, dimension)
  name = f"grid of {len(means)} modes, d = {dimension}"
  return gaussian_mixture(means, width=width, name=name)


def gmm40(dimension: int = 2, *, seed: int = 0) -> Density:
  """Forty equal Gaussians with means uniform in [−40, 40]ᵈ and width log(1 + e) = 1.31.

  The benchmark of samplers of Midgley et al. (2023), in any dimension. The means are
  NumPy's draw of this seed, not the one of their code.
  """
  checks.at_least_one("dimension", dimension)
  means = np.random.default_rng(seed).uniform(-40, 40, size=(40, dimension))
  name = f"gmm40, d = {dimension}"
  return gaussian_mixture(means, width=math.log1p(math.e), name=name)


class _RBM(Protocol):
  def mixture(self, params: Params) -> tuple[Array, Array]:
    """log w [2^ℓ] and the means [2^ℓ, d]."""


def of_rbm(rbm: _RBM, params: Params, *, pixel_noise: float = 1.0) -> Density:
  """Σ_h w_h N(b + Bh, σ² I), the mixture of 2^ℓ Gaussians that an RBM is.

  An RBM that was fitted to images is a truth like images, of which everything is known.
  σ = 1 is the RBM itself; a smaller σ makes images with less noise.

  Args:
    rbm: a `GaussianBernoulliRBM` of so few units that `rbm.mixture` works.
    params: of the RBM.
    pixel_noise: σ.

  Raises:
    ValueError: a pixel_noise that is not above 0.

  Returns:
    A Density of points `[d]`, whose modes are the 2^ℓ components.
  """
  checks.positive("pixel_noise", pixel_noise)
  theta = params["params"]
  log_weights, means = rbm.mixture(params)
  states = _states(theta["B"].shape[1], means.dtype)
  # In an orthonormal basis of the columns of B, where all means are: ‖x − b − Bh‖² is a
  # sum of two squares, and no difference of large numbers.
  basis, triangle = jnp.linalg.qr(theta["B"].astype(means.dtype))
  centers = jnp.matmul(states, triangle.T, precision=HIGHEST)
  noise = jnp.asarray(pixel_noise, means.dtype)
  arrays = (log_weights, theta["b"], basis, centers, noise)
  d, num_hidden = theta["B"].shape
  return of_components(
    Partial(_rbm_joint, arrays),
    Partial(_rbm_samples, arrays),
    f"RBM of {num_hidden} units, d = {d}",
    jnp.exp(log_weights),
  )


def _check_width(width: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
  if np.shape(width) not in shapes:
    wanted = " or ".join(str(list(shape)) for shape in shapes[1:])
    raise ValueError(
      f"width must be one number or {wanted}, got shape {np.shape(width)}."
    )
  checks.all_positive("width", width)


def _points(value: Any, ndim: int, name: str) -> Array:
  points = jnp.asarray(value)
  if not jnp.issubdtype(points.dtype, jnp.floating):
    points = points.astype(jnp.result_type(float))
  if points.ndim != ndim or 0 in points.shape:
    shape = "[d]" if ndim == 1 else "[K, d]"
    raise ValueError(f"{name} must be {shape}, got shape {points.shape}.")
  return points


def _factors(covariances: Any, shape: tuple[int, ...], means: Array) -> Array:
  """The Cholesky factors of covariances, computed in float64."""
  if np.shape(covariances) != shape:
    raise ValueError(
      f"the covariances must have the shape {shape}, got {np.shape(covariances)}."
    )
  if isinstance(covariances, jax.core.Tracer):
    return jnp.linalg.cholesky(covariances.astype(means.dtype))
  c = np.asarray(covariances, np.float64)
  if not np.allclose(c, np.swapaxes(c, -1, -2), rtol=1e-5, atol=1e-6 * np.abs(c).max()):
    raise ValueError("the covariances must be symmetric.")
  try:
    factors = np.linalg.cholesky(c)
  except np.linalg.LinAlgError:
    raise ValueError("the covariances must be positive definite.") from None
  return jnp.asarray(factors, means.dtype)


def _spherical(
  weights: Array, means: Array, width: Array, name: str, has_modes: bool
) -> Density:
  """Components of a width for each, `[K, 1]`, or for each coordinate, `[K, d]`."""
  arrays = (jnp.log(weights).astype(means.dtype), means, width)
  masses = jnp.exp(arrays[0]) if has_modes else None
  return of_components(
    Partial(_spherical_joint, arrays), Partial(_spherical_samples, arrays), name, masses
  )


def _full(
  weights: Array, means: Array, factors: Array, name: str, has_modes: bool
) -> Density:
  inverses = jax.vmap(_inverse)(factors)
  arrays = (jnp.log(weights).astype(means.dtype), means, factors, inverses)
  masses = jnp.exp(arrays[0]) if has_modes else None
  return of_components(
    Partial(_full_joint, arrays), Partial(_full_samples, arrays), name, masses
  )


# Each family has a function of its arrays and a point: log wₖ + log pₖ(x), [K].


def _spherical_joint(arrays: tuple[Array, ...], x: Array) -> Array:
  log_weights, means, width = arrays
  check_point(x, means.shape[1], "Gaussian")
  squares = jnp.square((x[None] - means) / width).sum(axis=1)
  log_widths = jnp.broadcast_to(jnp.log(width), means.shape).sum(axis=1)
  return log_weights - 0.5 * squares - log_widths - x.size * _HALF_LOG_2PI


def _spherical_samples(arrays: tuple[Array, ...], key: Key, num_samples: int) -> Array:
  log_weights, means, width = arrays
  k, z = _component_and_noise(key, log_weights, means, num_samples)
  return means[k] + width[k] * z


def _full_joint(arrays: tuple[Array, ...], x: Array) -> Array:
  log_weights, means, factors, inverses = arrays
  check_point(x, means.shape[1], "Gaussian")
  # By the inverses: under vmap over points a triangular solve would copy the factors.
  z = jnp.einsum("kij,kj->ki", inverses, x[None] - means, precision=HIGHEST)
  log_determinants = jax.vmap(lambda f: jnp.log(jnp.diagonal(f)).sum())(factors)
  squares = jnp.square(z).sum(axis=1)
  return log_weights - 0.5 * squares - log_determinants - x.size * _HALF_LOG_2PI


def _full_samples(arrays: tuple[Array, ...], key: Key, num_samples: int) -> Array:
  log_weights, means, factors, _ = arrays
  k, z = _component_and_noise(key, log_weights, means, num_samples)

  def one(shifts: Array, component: tuple[Array, Array]) -> tuple[Array, None]:
    index, factor = component
    own = jnp.matmul(z, factor.T, precision=HIGHEST)
    return jnp.where((k == index)[:, None], own, shifts), None

  # One component after the other: their factors are not copied for every sample.
  components = (jnp.arange(len(means)), factors)
  return means[k] + jax.lax.scan(one, jnp.zeros_like(z), components)[0]


def _inverse(factor: Array) -> Array:
  identity = jnp.eye(len(factor), dtype=factor.dtype)
  return jax.scipy.linalg.solve_triangular(factor, identity, lower=True)


def _rbm_joint(arrays: tuple[Array, ...], x: Array) -> Array:
  log_weights, b, basis, centers, noise = arrays
  if x.size != b.size:
    raise ValueError(f"a point of this RBM has {b.size} numbers, got shape {x.shape}.")
  shift = x.reshape(b.shape) - b
  along = jnp.matmul(shift, basis, precision=HIGHEST)
  rest = shift - jnp.matmul(basis, along, precision=HIGHEST)
  squares = jnp.square(along[None] - centers).sum(axis=1) + jnp.square(rest).sum()
  log_noise = b.size * (jnp.log(noise) + _HALF_LOG_2PI)
  return log_weights - 0.5 * squares / noise**2 - log_noise


def _rbm_samples(arrays: tuple[Array, ...], key: Key, num_samples: int) -> Array:
  log_weights, b, basis, centers, noise = arrays
  k, z = _component_and_noise(key, log_weights, b[None], num_samples)
  return b[None] + jnp.matmul(centers[k], basis.T, precision=HIGHEST) + noise * z


def _component_and_noise(
  key: Key, log_weights: Array, means: Array, num_samples: int
) -> tuple[Array, Array]:
  which, noise = jax.random.split(key)
  k = jax.random.categorical(which, log_weights, shape=(num_samples,))
  return k, jax.random.normal(noise, (num_samples, means.shape[1]), means.dtype)


def _states(num_hidden: int, dtype: Any) -> Array:
  """All h in {±1}^ℓ, `[2^ℓ, ℓ]`, in the order of `rbm.mixture`."""
  return jnp.asarray(list(itertools.product((-1, 1), repeat=num_hidden)), dtype)


_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
