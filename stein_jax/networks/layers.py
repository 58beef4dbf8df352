"""Convolutions whose gradients stay fast inside compiled loops.

XLA's CPU compiler has no fast form for the gradients of a convolution inside a loop
such as `jax.lax.scan`: a training step takes 10 to 20 times as long there as outside
(jax-ml/jax issue 12868). On CPU these are therefore products of matrices, forwards and
backwards; elsewhere they are the device's own convolutions.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax

from stein_jax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(x: Array, kernel: Array, *, stride: int = 1) -> Array:
  """`lax.conv_general_dilated(x, kernel, (stride, stride), "SAME")`, channels last.

  Args:
    x: `[n, h, w, c]`.
    kernel: `[k, k', c, c']`.
    stride: of both axes.

  Returns:
    `[n, ⌈h/stride⌉, ⌈w/stride⌉, c']`.
  """
  native = partial(
    lax.conv_general_dilated,
    window_strides=(stride, stride),
    padding="SAME",
    dimension_numbers=_LAYOUT,
  )
  return lax.platform_dependent(
    x, kernel, cpu=partial(_by_matrix_product, stride=stride), default=native
  )


def deconvolution(x: Array, kernel: Array) -> Array:
  """The transpose of a 5×5 convolution of stride 2.

  out[o] = Σₛ x[s] kernel[o − 2s + 1], along both axes

  `lax.conv_transpose(x, W, (2, 2), "SAME")` with W the kernel turned by 180°.

  Args:
    x: `[n, h, w, c]`.
    kernel: `[5, 5, c, c']`.

  Returns:
    `[n, 2h, 2w, c']`.

  Raises:
    ValueError: a kernel of another shape.
  """
  # The pixels of each of four phases (o even or odd, along both axes) are a convolution
  # of x by every second tap; together they are one by 3×3 taps with 4c' channels.
  n, h, w, c = x.shape
  if kernel.shape[:3] != (5, 5, c):
    raise ValueError(f"kernel must be [5, 5, {c}, c'], got shape {kernel.shape}.")
  taps = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
  taps = taps.reshape(3, 2, 3, 2, c, -1)[::-1, :, ::-1]
  phases = convolution(x, taps.transpose(0, 2, 4, 1, 3, 5).reshape(3, 3, c, -1))
  phases = phases.reshape(n, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
  return phases.reshape(n, 2 * h, 2 * w, -1)


class Conv(nn.Module):
  """A `convolution` with a bias.

  Attributes:
    features: c'.
    size: k, the kernel's extent along both axes.
    stride: of both axes.
    kernel_init: the initializer of the kernel; LeCun's by default.
    dtype: what is computed in; by default what input and parameters promote to.
  """

  features: int
  size: int
  stride: int = 1
  kernel_init: nn.initializers.Initializer | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[n, h, w, c]` -> `[n, ⌈h/stride⌉, ⌈w/stride⌉, features]`."""
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel, bias = _parameters(self, shape, self.kernel_init)
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
    return convolution(x, kernel, stride=self.stride) + bias


class Deconv(nn.Module):
  """A `deconvolution` with a bias.

  Attributes:
    features: c'.
    kernel_init: the initializer of the kernel; LeCun's by default.
    dtype: what is computed in; by default what input and parameters promote to.
  """

  features: int
  kernel_init: nn.initializers.Initializer | None = None
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[n, h, w, c]` -> `[n, 2h, 2w, features]`."""
    shape = (5, 5, x.shape[-1], self.features)
    kernel, bias = _parameters(self, shape, self.kernel_init)
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
    return deconvolution(x, kernel) + bias


def _parameters(
  layer: nn.Module, shape: tuple[int, ...], kernel_init: Any
) -> tuple[Array, Array]:
  """A kernel of this shape, and a bias as `[1, 1, 1, c']`."""
  kernel_init = kernel_init or nn.initializers.lecun_normal()
  kernel = layer.param("kernel", kernel_init, shape)
  bias = layer.param("bias", nn.initializers.zeros, shape[-1:])
  return kernel, bias.reshape(1, 1, 1, -1)


def _by_matrix_product(x: Array, kernel: Array, *, stride: int) -> Array:
  """Every output pixel's patch of x, as a row, times the kernel as a matrix."""
  size, features = kernel.shape[:2], kernel.shape[-1]
  n, *extents, c = x.shape
  if size == (stride, stride) and not any(extent % stride for extent in extents):
    rows, columns = (extent // stride for extent in extents)  # no pixel is seen twice
    patches = x.reshape(n, rows, stride, columns, stride, c).swapaxes(2, 3)
    patches = patches.reshape(n, rows, columns, -1)
    return patches @ kernel.reshape(-1, features)
  padding = lax.padtype_to_pads(x.shape[1:3], size, (stride, stride), "SAME")
  padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  rows, columns = (-(-extent // stride) for extent in x.shape[1:3])
  shifted = [
    padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
    for i in range(size[0])
    for j in range(size[1])
  ]
  patches = jnp.concatenate(shifted, axis=-1)
  return patches @ kernel.reshape(-1, features)
