"""The quadratic part of an energy, which keeps its density normalisable."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from stein_jax import checks
from stein_jax.types import Array, Key, Params

KINDS = ("isotropic", "diagonal", "full")
_HIGHEST = jax.lax.Precision.HIGHEST
_SMALLEST_SCALE = 1e-3
"""Of a coordinate, relative to the root mean square of all: constant ones have none."""


class Base(nn.Module):
  """z(x), in whose coordinates the quadratic part of an energy is ½‖z‖²: a Gaussian.

  isotropic:  z = x
  diagonal:   z = (x − μ) / σ, with μ and log σ learned, `[d]`
  full:       z = W(x − μ), with μ `[d]` and W `[d, d]` learned

  Attributes:
    kind: one of these.
  """

  kind: str

  def __post_init__(self) -> None:
    checks.one_of("kind", self.kind, KINDS)
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """z of one flat point `[d]`.

    Raises:
      ValueError: x is not flat.
    """
    if jnp.ndim(x) != 1:
      raise ValueError(
        f"x must be a flat point [d], got shape {jnp.shape(x)}: ravel it, and use "
        "jax.vmap for a batch."
      )
    if self.kind == "isotropic":
      return x
    mean = self.param("mean", nn.initializers.zeros, x.shape, x.dtype)
    if self.kind == "diagonal":
      log_scale = self.param("log_scale", nn.initializers.zeros, x.shape, x.dtype)
      return (x - mean) * jnp.exp(-log_scale)
    whitening = self.param("whitening", _identity, (x.size, x.size), x.dtype)
    return jnp.matmul(whitening, x - mean, precision=_HIGHEST)


def _identity(key: Any, shape: tuple[int, int], dtype: Any) -> Array:
  del key
  return jnp.eye(*shape, dtype=dtype)


def init_from_data(
  energy: nn.Module, key: Key, data: Array, context: Any, kind: str
) -> Params:
  """The first parameters of an energy, with its base at mean and scale of the data.

  Args:
    energy: a module whose part named "base" is a `Base`.
    key: a PRNG key, for `energy.init`.
    data: points `[n, ...]`.
    context: of one point, or None.
    kind: of the base.

  Raises:
    ValueError: fewer than two points, or points that are not finite.
    TypeError: data that is not an array of floats.
  """
  checks.array("data", data)
  checks.arrays("data", data)
  checks.floating("data", data)
  checks.finite("data", data)
  if np.ndim(data) == 0 or len(data) < 2:
    raise ValueError(f"data must be points [n, ...] with n > 1, got {np.shape(data)}.")
  params = energy.init(key, data[0], *([] if context is None else [context]))
  if kind == "isotropic":
    return params
  x = np.asarray(data, np.float64).reshape(len(data), -1)
  mean = x.mean(axis=0)
  floor = max(_SMALLEST_SCALE * x.std(axis=0).max(), float(np.finfo(np.float32).tiny))
  if kind == "diagonal":
    values = {"mean": mean, "log_scale": np.log(np.maximum(x.std(axis=0), floor))}
  else:
    # W of Wᵀ W = C⁻¹: the inverse of C's Cholesky factor.
    covariance = np.atleast_2d(np.cov(x.T)) + floor**2 * np.eye(x.shape[1])
    values = {"mean": mean, "whitening": np.linalg.inv(np.linalg.cholesky(covariance))}
  theta = params["params"]
  base = jax.tree.map(
    lambda old, new: jnp.asarray(new, old.dtype), theta["base"], values
  )
  return {**params, "params": {**theta, "base": base}}
