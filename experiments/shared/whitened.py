"""The kernel of whitened SteinCD in the experiments."""

from typing import Any

import jax.numpy as jnp

from stein_jax import kernels


def whitened_kernel(
  data: Any, *, components: int = 20, multiple: float = 1.0
) -> kernels.Whitened:
  """The whitened kernel on the data's principal components, or all if there are fewer.

  Args:
    data: `[n, d]`.
    components: how many.
    multiple: a factor on the squared median distance along them, the bandwidth.
  """
  x = jnp.asarray(data)
  kernel = kernels.on_principal_components(
    kernels.rbf("median_no_log", multiple=multiple), x, min(components, x.shape[1])
  )
  return kernels.whiten(kernel, x, num_centers=min(200, len(x)))
