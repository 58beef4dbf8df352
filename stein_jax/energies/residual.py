"""A convolutional energy of images: a quadratic part and a residual network."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from stein_jax import checks
from stein_jax.energies.base import KINDS, Base, init_from_data
from stein_jax.energies.context import context_vector
from stein_jax.networks.layers import convolution
from stein_jax.types import Array, Key, Params

NORMALIZATIONS = ("group", "none")
_GROUP = 16
"""Channels of a group, where their number is a multiple of it."""


class Residual(nn.Module):
  """E(x) = (confinement/2)‖z‖² + net(z) of an image, with a convolutional network.

  z is x itself or, with `base`, x in coordinates whose mean and scale are learned. The
  network halves height and width at the start of every stage, and each stage has one
  residual block,

    y ← y + conv(a(norm(conv(a(norm(y)))))),

  with an activation a and 3×3 convolutions. The last features are averaged over the
  pixels. Activations are smooth, so that scores have derivatives, and normalisation is
  within one image: an energy is a function of one point.

  Flat points are images too, if `image_shape` is given:

  >>> energy = Residual(widths=(8, 16), image_shape=(28, 28, 1), base="diagonal")
  >>> x = jax.random.normal(jax.random.key(0), (100, 784))
  >>> params = energy.init_from_data(jax.random.key(1), x)
  >>> energy.apply(params, x[0]).shape, energy.features(params, x[0]).shape
  ((), (16,))

  Attributes:
    widths: the number of channels of each stage. Three suit 28×28 pixels, four 64×64.
    image_shape: [h, w, c] of a point; None: points are images already.
    activation: a, smooth.
    normalization: "group": groups of 16 channels over all pixels, or one group where
      their number is no multiple of 16; or "none". The rough energy that "none" gives
      learns more slowly; groups do not see the contrast of a stage's input.
    confinement: twice the coefficient of ‖z‖², positive.
    base: z(x). "isotropic": x. "diagonal": (x − μ)/σ with μ and log σ among the
      parameters, one for each number of the image.
    num_classes: as in `MLP`; the context is added to the channels of the first stage.
  """

  widths: Sequence[int] = (32, 64, 64)
  image_shape: tuple[int, int, int] | None = None
  activation: Callable[[Array], Array] = nn.silu
  normalization: str = "group"
  confinement: float = 1.0
  base: str = "isotropic"
  num_classes: int | None = None

  def __post_init__(self) -> None:
    if not isinstance(self.widths, Sequence) or isinstance(self.widths, str):
      raise TypeError(
        f"widths must be a sequence of integers, such as (32, 64), got {self.widths!r}."
      )
    if not self.widths:
      raise ValueError("widths must hold at least one width, got none.")
    for width in self.widths:
      checks.at_least_one("each of widths", width)
    if self.image_shape is not None:
      if not isinstance(self.image_shape, Sequence) or len(self.image_shape) != 3:
        raise ValueError(
          f"image_shape must be (height, width, channels), got {self.image_shape!r}."
        )
      for side in self.image_shape:
        checks.at_least_one("each of image_shape", side)
      object.__setattr__(self, "image_shape", tuple(self.image_shape))
    checks.activation(self.activation)
    checks.one_of("normalization", self.normalization, NORMALIZATIONS)
    checks.positive("confinement", self.confinement)
    if self.base == "full":
      raise ValueError(
        'base="full" would have a parameter for each pair of pixels: take "diagonal".'
      )
    checks.one_of("base", self.base, KINDS)
    if self.num_classes is not None:
      checks.at_least_one("num_classes", self.num_classes)
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Array, context: Array | None = None) -> Array:
    """E(x) of one image `[h, w, c]`, or with image_shape of one point, a scalar.

    Args:
      x: one point.
      context: as in `MLP`.

    Raises:
      TypeError: x is not one array.
      ValueError: x is no image of this shape, or the context does not fit num_classes.
    """
    z, features = self._features(x, context)
    net = nn.Dense(1, param_dtype=features.dtype, precision="highest")(features)[0]
    return 0.5 * self.confinement * jnp.sum(z**2) + net

  @nn.nowrap
  def init_from_data(self, key: Key, data: Array, context: Any = None) -> Params:
    """Initial parameters, with the base at the mean and scale of the data.

    Args:
      key: a PRNG key; the network is the same as that of `init(key, ...)`.
      data: points `[n, ...]`.
      context: of one point, if the energy is conditional.

    Raises:
      ValueError: fewer than two points, or points that are not finite.
      TypeError: data that is not an array of floats.
    """
    return init_from_data(self, key, data, context, self.base)

  @nn.nowrap
  def features(self, params: Params, x: Array, context: Any = None) -> Array:
    """The channels of the last stage, averaged over the pixels, of one point."""
    return jnp.asarray(self.apply(params, x, context, method="_last_features"))

  @nn.compact
  def _last_features(self, x: Array, context: Array | None) -> Array:
    return self._features(x, context)[1]

  @nn.nowrap
  def _features(self, x: Array, context: Array | None) -> tuple[Array, Array]:
    checks.array("x", x)
    x = jnp.asarray(x)
    shape = self.image_shape or x.shape
    if len(shape) != 3 or math.prod(shape) != x.size:
      wanted = "[height, width, channels]" if self.image_shape is None else str(shape)
      raise ValueError(
        f"one point must be an image {wanted}, got shape {x.shape}. For flat points "
        "give image_shape; for a batch use jax.vmap."
      )
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    z = Base(self.base, name="base")(x.reshape(-1).astype(dtype))
    conv = partial(
      nn.Conv,
      kernel_size=(3, 3),
      param_dtype=dtype,
      precision=jax.lax.Precision.HIGHEST,  # losses are differences of energies
      conv_general_dilated=convolution,
    )
    y = z.reshape(1, *shape)
    extra = context_vector(context, self.num_classes).astype(dtype)
    for stage, width in enumerate(self.widths):
      y = conv(width, strides=2)(y)
      if stage == 0 and extra.size:
        y += nn.Dense(width, param_dtype=dtype)(extra)[None, None, None]
      change = conv(width)(self._activated(y))
      y += conv(width)(self._activated(change))
    return z, self._activated(y).mean(axis=(0, 1, 2))

  @nn.nowrap
  def _activated(self, y: Array) -> Array:
    """a(norm(y))."""
    if self.normalization == "group":
      channels = y.shape[-1]
      groups = 1 if channels % _GROUP else channels // _GROUP
      y = nn.GroupNorm(groups, param_dtype=y.dtype)(y)
    return self.activation(y)
