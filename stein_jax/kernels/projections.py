"""Kernels on the data's leading principal components."""

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from stein_jax import checks
from stein_jax.kernels.base import Kernel
from stein_jax.kernels.features import OnFeatures, on_features
from stein_jax.pairs.points import as_matrix, matmul, widened
from stein_jax.types import Array, Particles, PyTree


def _projected(mean: Array, components: Array, x: PyTree) -> Array:
  return matmul(components, ravel_pytree(x)[0] - mean)


def on_principal_components(
  kernel: Kernel, data: Particles, num_components: int
) -> OnFeatures:
  """The kernel on the leading principal components of the data.

  k(Ax, Ay), with the rows of A the unit eigenvectors of the data's covariance that have
  the largest eigenvalues. In many dimensions distances between points hold mostly
  noise, and every kernel of them is nearly constant or nearly a delta; along the
  leading components the data differ by more than noise.

  >>> import jax
  >>> from stein_jax import kernels
  >>> x = jax.random.normal(jax.random.key(0), (1000, 50))
  >>> kernel = kernels.on_principal_components(kernels.rbf(2.0), x, 5)
  >>> kernel.matrix(x[:3]).shape
  (3, 3)

  Args:
    kernel: of the components; a bandwidth policy sees them.
    data: `[n, ...]`, or a pytree of such, of d numbers in all.
    num_components: how many, from 1 to d.

  Raises:
    TypeError: no kernel, or data that are not floating-point.
    ValueError: num_components outside its range, or fewer than two points.
  """
  n = checks.num_particles(data, "data")
  checks.at_least_one("num_components", num_components)
  x, _ = as_matrix(widened(data))
  if n < 2 or num_components > x.shape[1]:
    raise ValueError(
      f"{num_components} principal components need as many dimensions and at least 2 "
      f"points, got {n} points of {x.shape[1]} dimensions."
    )
  mean = x.mean(axis=0, keepdims=True)
  _, vectors = jnp.linalg.eigh(matmul((x - mean).T, x - mean) / n)
  components = vectors[:, ::-1][:, :num_components].T
  return on_features(kernel, Partial(_projected, mean[0], components), affine=True)
