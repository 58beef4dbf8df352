"""Discriminators: networks that distinguish data from generated images."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from stein_jax import checks
from stein_jax.networks import generators
from stein_jax.networks.layers import convolution
from stein_jax.types import Array, PyTree

_MAPS = (128, 256, 512, 1024)
_SIZES = (32, 64)


class DCGANDiscriminator(nn.Module):
  """DCGAN's discriminator: four 5×5 convolutions of stride 2 and a dense layer.

  64×64×c → 32×32×128 → 16×16×256 → 8×8×512 → 4×4×1024 → one logit
  32×32×c → 16×16×128 → 8×8×256 → 4×4×512 → 2×2×1024 → one logit

  The numbers of channels are multiplied by `width`. Every convolution is followed by a
  leaky ReLU of slope 0.2; from the second convolution on, there is a batch norm with
  gain and bias in between. Weights start at N(0, 0.02), biases at 0. With
  `num_classes`, the one-hot vector of the label is appended to the image as constant
  channels, and to the input of the dense layer. At width 1 there are 17 million
  parameters, as in table 1.

  `generators.initialize(key, discriminator, x, label)` returns parameters and
  statistics; `generators.sample(discriminator, params, stats, x, label)` returns the
  logits, computed with the running statistics.

  >>> import jax, jax.numpy as jnp
  >>> discriminator = DCGANDiscriminator(width=1 / 64)
  >>> x = jnp.zeros((5, 32, 32, 3))
  >>> params, stats = generators.initialize(jax.random.key(0), discriminator, x)
  >>> generators.sample(discriminator, params, stats, x).shape
  (5,)

  Attributes:
    width: a factor on the numbers of channels.
    num_classes: if given, every image needs an integer label below it.
    axis_name: the device axis over which the batch statistics are averaged.
    dtype: of the computation, such as `jnp.bfloat16`; by default the type to which
      images and parameters promote. Parameters, running statistics and the dense layer
      are always float32, so that the logits are not rounded.

  Raises:
    ValueError: width is not above 0, or num_classes is below 1.

  Source: Radford et al. (2016), section 3; Liu & Wang (2017), section 5.2 and table 1.
  """

  width: float = 1.0
  num_classes: int | None = None
  axis_name: str | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    checks.positive("width", self.width)
    if self.num_classes is not None:
      checks.at_least_one("num_classes", self.num_classes)
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Array, label: Array | None = None, train: bool = True) -> Array:
    """Logits `[m]` of images `[m, h, w, c]`; above 0: more probably data.

    Args:
      x: images in [−1, 1] of 32×32 or 64×64 pixels.
      label: integers `[m]` below num_classes; None without num_classes.
      train: True: batch norm uses the statistics of the batch, and updates the running
        ones; False: it uses the running ones.

    Raises:
      ValueError: images of another shape; a label without num_classes, a missing label
        with num_classes, or a label of another shape or type.
      TypeError: images that are not floats.
    """
    if x.ndim != 4 or x.shape[1] not in _SIZES or x.shape[2] != x.shape[1]:
      raise ValueError(
        "images must be [m, 32, 32, c] or [m, 64, 64, c], got shape "
        f"{x.shape}: crop or scale them."
      )
    checks.floating("images", x)
    init = nn.initializers.normal(0.02)
    given = generators.one_hot(label, self.num_classes, len(x))
    x = generators.with_label(x, given)
    for layer, maps in enumerate(_MAPS):
      features = max(1, round(maps * self.width))
      conv = nn.Conv(
        features,
        (5, 5),
        strides=2,
        kernel_init=init,
        dtype=self.dtype,
        conv_general_dilated=convolution,
      )
      x = conv(x)
      if layer > 0:
        norm = nn.BatchNorm(
          use_running_average=not train,
          momentum=0.9,
          dtype=self.dtype,
          axis_name=self.axis_name,
        )
        x = norm(x)
      x = nn.leaky_relu(x, 0.2)
    x = generators.with_label(x.reshape(len(x), -1), given)
    # Without a dtype the float32 parameters make this product float32, for any x.
    return nn.Dense(1, kernel_init=init)(x)[:, 0]


def discriminate_fn(discriminator: nn.Module) -> Callable[..., tuple[Array, PyTree]]:
  """The `discriminate_fn(params, stats, x, context)` of a linen module, for training.

  It returns the logits `[m]` and the updated statistics. The module is called as
  `discriminator(x, train=True)`, with a context as `discriminator(x, context,
  train=True)`. Call this once and keep the result: every new function is compiled
  again.

  Raises:
    TypeError: no linen module.
  """
  checks.module("discriminator", discriminator)
  return generators.generate_fn(discriminator)
