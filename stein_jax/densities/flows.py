"""A random normalising flow: a smooth density without any simple structure."""

import math

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from stein_jax import checks
from stein_jax.densities.density import Density, check_point
from stein_jax.types import Array, Key, Params

_LOG_2PI = math.log(2 * math.pi)


def affine_coupling_flow(
  key: Key,
  dimension: int,
  *,
  num_layers: int = 4,
  width: int = 32,
  strength: float = 1.0,
) -> Density:
  """z ~ N(0, I), pushed through random affine couplings (RealNVP; Dinh et al., 2017).

  Each layer keeps one half u of the coordinates and maps the other half,
  v -> v exp(s(u)) + t(u), with small random networks s in (−½, ½) and t; layers take
  turns at the halves. The inverse and its log determinant are exact.

  Args:
    key: of the networks' weights.
    dimension: d, at least 2.
    num_layers: how many couplings.
    width: the number of hidden units of the networks.
    strength: a factor on the networks' outputs; 0 leaves N(0, I).

  Raises:
    ValueError: a number outside its range.
  """
  checks.at_least_one("dimension", dimension)
  checks.at_least_one("num_layers", num_layers)
  checks.at_least_one("width", width)
  if dimension < 2:
    raise ValueError(f"dimension must be at least 2, got {dimension}.")
  if not strength >= 0:
    raise ValueError(f"strength must not be negative, got {strength!r}.")
  half = dimension // 2
  layers = [
    _layer(key, half if i % 2 == 0 else dimension - half, dimension, width, strength)
    for i, key in enumerate(jax.random.split(key, num_layers))
  ]
  zeros = jnp.zeros(dimension)
  return Density(
    Partial(_log_density, layers, zeros),
    Partial(_samples, layers, zeros),
    f"coupling flow, d = {dimension}",
  )


def _layer(
  key: Key, num_kept: int, dimension: int, width: int, strength: float
) -> Params:
  first, last = jax.random.split(key)
  num_moved = dimension - num_kept
  return {
    "first": jax.random.normal(first, (num_kept, width)) / math.sqrt(num_kept),
    "last": strength
    * jax.random.normal(last, (width, 2 * num_moved))
    / math.sqrt(width),
  }


def _halves(x: Array, index: int) -> tuple[Array, Array]:
  """The coordinates that layer `index` keeps, and those that it moves."""
  half = x.shape[-1] // 2
  a, b = x[..., :half], x[..., half:]
  return (a, b) if index % 2 == 0 else (b, a)


def _joined(kept: Array, moved: Array, index: int) -> Array:
  parts = (kept, moved) if index % 2 == 0 else (moved, kept)
  return jnp.concatenate(parts, axis=-1)


def _scale_and_shift(layer: Params, kept: Array) -> tuple[Array, Array]:
  precision = jax.lax.Precision.HIGHEST
  hidden = jnp.tanh(jnp.matmul(kept, layer["first"], precision=precision))
  out = jnp.matmul(hidden, layer["last"], precision=precision)
  scale, shift = jnp.split(out, 2, axis=-1)
  return 0.5 * jnp.tanh(scale), shift


def _samples(layers: list[Params], zeros: Array, key: Key, num_samples: int) -> Array:
  x = jax.random.normal(key, (num_samples, zeros.size), zeros.dtype)
  for i, layer in enumerate(layers):
    kept, moved = _halves(x, i)
    scale, shift = _scale_and_shift(layer, kept)
    x = _joined(kept, moved * jnp.exp(scale) + shift, i)
  return x


def _log_density(layers: list[Params], zeros: Array, x: Array) -> Array:
  check_point(x, zeros.size, "flow")
  log_determinant = jnp.zeros((), x.dtype)
  for i, layer in reversed(list(enumerate(layers))):
    kept, moved = _halves(x, i)
    scale, shift = _scale_and_shift(layer, kept)
    log_determinant += scale.sum()
    x = _joined(kept, (moved - shift) * jnp.exp(-scale), i)
  return -0.5 * (jnp.square(x).sum() + x.size * _LOG_2PI) - log_determinant
