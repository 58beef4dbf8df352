"""The residual network for small colour images, an accurate classifier for scores."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from stein_jax import checks
from stein_jax.networks.layers import convolution
from stein_jax.types import Array

_STAGES = (16, 32, 64)  # channels, at width 1


class ResNet(nn.Module):
  """The residual network of He et al. for CIFAR-10, of depth 6n + 2.

  images [m, h, w, c] → h×w×16 → n blocks with 16 channels → n with 32, at half the
  height and width → n with 64, at a quarter → mean over all pixels → num_classes

  A block is relu(x + norm(conv(relu(norm(conv(x)))))) with 3×3 convolutions. In the
  first block of the second and third stage the shortcut takes every other pixel and
  pads the missing channels with zeros (option A of the source), so that it has no
  parameters. ResNet-20 has 0.27 million parameters.

  >>> import jax
  >>> network = ResNet(depth=20)
  >>> images = jnp.zeros((5, 32, 32, 3))
  >>> variables = network.init(jax.random.key(0), images)
  >>> network.apply(variables, images).shape
  (5, 10)
  >>> network.apply(variables, images, method="features").shape
  (5, 64)

  Its variables are {"params": ..., "batch_stats": ...}. For training, apply it with
  `train=True, mutable=["batch_stats"]`.

  Attributes:
    depth: 6n + 2: 8, 14, 20, 32, 44, 56, 110, ...
    width: a factor on the numbers of channels.
    num_classes: the number of classes.
    dtype: of the activations, such as `jnp.bfloat16`; parameters, batch statistics,
      features and logits are float32.

  Raises:
    ValueError: depth is not 6n + 2, width is not above 0, num_classes is below 1, or
      images that are not [m, h, w, c].
    TypeError: images that are not floats.

  Source: He et al. (2016), section 4.2.
  """

  depth: int = 20
  width: float = 1.0
  num_classes: int = 10
  dtype: Any = jnp.float32

  def __post_init__(self) -> None:
    checks.at_least_one("depth", self.depth)
    if self.depth < 8 or (self.depth - 2) % 6:
      raise ValueError(
        f"depth must be 6n + 2 with n at least 1 (8, 14, 20, 32, ...), got {self.depth}"
      )
    checks.positive("width", self.width)
    checks.at_least_one("num_classes", self.num_classes)
    super().__post_init__()

  def setup(self) -> None:
    """Defines the layers."""
    maps = [max(1, round(self.width * stage)) for stage in _STAGES]
    self.stem = _NormalizedConv(maps[0], dtype=self.dtype)
    self.blocks = [
      _Block(width, stride=2 if stage > 0 and i == 0 else 1, dtype=self.dtype)
      for stage, width in enumerate(maps)
      for i in range((self.depth - 2) // 6)
    ]
    self.head = nn.Dense(self.num_classes)

  def __call__(self, images: Array, train: bool = False) -> Array:
    """Logits `[m, num_classes]` of images `[m, h, w, c]` in [0, 1].

    Args:
      images: as floats.
      train: True: batch norm uses the statistics of the batch, and updates the running
        ones; False: it uses the running ones.
    """
    return self.head(self.features(images, train))

  def features(self, images: Array, train: bool = False) -> Array:
    """The last block's mean over all pixels, `[m, 64·width]`."""
    checks.images(images)
    # CIFAR-10's pixels have mean 0.47 and standard deviation 0.25.
    x = ((images - 0.5) / 0.25).astype(self.dtype)
    x = nn.relu(self.stem(x, train))
    for block in self.blocks:
      x = block(x, train)
    return x.astype(jnp.float32).mean(axis=(1, 2))


class _NormalizedConv(nn.Module):
  """A 3×3 convolution and batch norm, which would cancel a bias of the convolution."""

  maps: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """`[m, h, w, c]` -> `[m, ⌈h/stride⌉, ⌈w/stride⌉, maps]`."""
    shape = (3, 3, x.shape[-1], self.maps)
    kernel = self.param("kernel", nn.initializers.he_normal(), shape)
    x = convolution(x, kernel.astype(self.dtype), (self.stride, self.stride))
    norm = nn.BatchNorm(
      use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype
    )
    return norm(x)


class _Block(nn.Module):
  """Two convolutions, added to a shortcut."""

  maps: int
  stride: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    """`[m, h, w, c]` -> `[m, ⌈h/stride⌉, ⌈w/stride⌉, maps]`."""
    inner = nn.relu(_NormalizedConv(self.maps, self.stride, self.dtype)(x, train))
    inner = _NormalizedConv(self.maps, dtype=self.dtype)(inner, train)
    # The shortcut takes the pixels at the centres of the kernels. If an even height or
    # width is halved, these have odd indices.
    row, column = ((extent + 1) % self.stride for extent in x.shape[1:3])
    shortcut = x[:, row :: self.stride, column :: self.stride]
    missing = self.maps - x.shape[-1]
    shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, missing)))
    return nn.relu(shortcut + inner)
