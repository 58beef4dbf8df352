"""Convolutions whose gradients are fast inside compiled loops on a CPU.

XLA's CPU compiler has no fast code for the gradients of a convolution inside a loop
such as `jax.lax.scan`: there a training step takes 10 to 20 times as long as outside
(jax-ml/jax issue 12868). So on a CPU these convolutions, and with them their gradients,
are matrix products. On other devices they are JAX's own convolutions.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax

from stein_jax import checks
from stein_jax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolution(
  x: Array,
  kernel: Array,
  window_strides: Sequence[int] = (1, 1),
  padding: Any = "SAME",
  *,
  lhs_dilation: Sequence[int] = (1, 1),
  rhs_dilation: Sequence[int] = (1, 1),
  dimension_numbers: Any = _LAYOUT,
  feature_group_count: int = 1,
  precision: Any = None,
) -> Array:
  """`jax.lax.conv_general_dilated` for pictures with channels last and "SAME" padding.

  It has the arguments with which flax calls it, so that a layer may use it:

  >>> import jax
  >>> layer = nn.Conv(8, (5, 5), strides=2, conv_general_dilated=convolution)
  >>> x = jnp.zeros((10, 28, 28, 1))
  >>> y, params = layer.init_with_output(jax.random.key(0), x)
  >>> y.shape
  (10, 14, 14, 8)

  Args:
    x: `[n, h, w, c]`.
    kernel: `[k, k', c, c']`.
    window_strides: s, s', the strides along height and width.
    padding: "SAME".
    lhs_dilation: (1, 1).
    rhs_dilation: (1, 1).
    dimension_numbers: those of channels last, ("NHWC", "HWIO", "NHWC").
    feature_group_count: 1.
    precision: as in `jax.lax.conv_general_dilated`; a CPU has one precision only.

  Returns:
    `[n, ⌈h/s⌉, ⌈w/s'⌉, c']`.

  Raises:
    ValueError: another padding, dilation, layout or number of groups.
  """
  strides = tuple(window_strides)
  layout = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
  supported = (
    padding == "SAME"
    and {*lhs_dilation, *rhs_dilation, feature_group_count} == {1}
    and layout == lax.conv_dimension_numbers(x.shape, kernel.shape, _LAYOUT)
  )
  if not supported:
    raise ValueError(
      'convolution needs padding "SAME", no dilation, one group of features and '
      f"channels last, got {padding=}, {lhs_dilation=}, {rhs_dilation=}, "
      f"{feature_group_count=}, {dimension_numbers=}."
    )
  native = partial(
    lax.conv_general_dilated,
    window_strides=strides,
    padding=padding,
    dimension_numbers=_LAYOUT,
    precision=precision,
  )
  return lax.platform_dependent(
    x, kernel, cpu=partial(_by_matrix_product, strides=strides), default=native
  )


def _by_matrix_product(x: Array, kernel: Array, *, strides: tuple[int, ...]) -> Array:
  """The patch of x under every output pixel, as a row, times the kernel as a matrix."""
  size, features = kernel.shape[:2], kernel.shape[-1]
  n, height, width, c = x.shape
  down, across = strides
  rows, columns = -(-height // down), -(-width // across)
  if size == strides and (height, width) == (rows * down, columns * across):
    # The patches do not overlap: they are a reshaped x.
    patches = x.reshape(n, rows, down, columns, across, c).swapaxes(2, 3)
    patches = patches.reshape(n, rows, columns, -1)
  else:
    padding = lax.padtype_to_pads((height, width), size, strides, "SAME")
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    shifted = [
      padded[:, i : i + down * rows : down, j : j + across * columns : across]
      for i in range(size[0])
      for j in range(size[1])
    ]
    patches = jnp.concatenate(shifted, axis=-1)
  return patches @ kernel.reshape(-1, features)


def deconvolution(x: Array, kernel: Array) -> Array:
  """The transpose of a 5×5 convolution of stride 2.

  out[o] = Σₛ x[s] kernel[o − 2s + 1], along both axes

  It equals `jax.lax.conv_transpose(x, W, (2, 2), "SAME")` with W the kernel rotated
  by 180°.

  Args:
    x: `[n, h, w, c]`.
    kernel: `[5, 5, c, c']`.

  Returns:
    `[n, 2h, 2w, c']`.

  Raises:
    ValueError: x or a kernel of another shape.
  """
  if x.ndim != 4:
    raise ValueError(f"x must be [n, h, w, c], got shape {x.shape}.")
  # Output pixels have four phases: even or odd, along both axes. The pixels of one
  # phase are a convolution of x by every second tap of the kernel. All four together
  # are one convolution by 3×3 taps with 4c' channels.
  n, h, w, c = x.shape
  if kernel.shape[:3] != (5, 5, c):
    raise ValueError(f"kernel must be [5, 5, {c}, c'], got shape {kernel.shape}.")
  taps = jnp.pad(kernel, ((1, 0), (1, 0), (0, 0), (0, 0)))
  taps = taps.reshape(3, 2, 3, 2, c, -1)[::-1, :, ::-1]
  phases = convolution(x, taps.transpose(0, 2, 4, 1, 3, 5).reshape(3, 3, c, -1))
  phases = phases.reshape(n, h, w, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
  return phases.reshape(n, 2 * h, 2 * w, -1)


class Deconv(nn.Module):
  """A `deconvolution` and a bias. (`flax.linen.ConvTranspose` is slow in loops on CPU.)

  Attributes:
    features: c'.
    kernel_init: the initializer of the kernel; LeCun's by default.
    dtype: of the computation; by default the type to which input and parameters
      promote.
  """

  features: int
  kernel_init: nn.initializers.Initializer | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    checks.at_least_one("features", self.features)
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """`[n, h, w, c]` -> `[n, 2h, 2w, features]`."""
    shape = (5, 5, x.shape[-1], self.features)
    kernel_init = self.kernel_init or nn.initializers.lecun_normal()
    kernel = self.param("kernel", kernel_init, shape)
    bias = self.param("bias", nn.initializers.zeros, shape[-1:])
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
    return deconvolution(x, kernel) + bias.reshape(1, 1, 1, -1)
