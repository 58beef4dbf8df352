"""A small image classifier, for scores that are computed from its outputs."""

import functools

from flax import linen as nn

from stein_jax import checks
from stein_jax.networks.layers import convolution
from stein_jax.types import Array


class DigitClassifier(nn.Module):
  """Two 5×5 convolutions of stride 2, then two dense layers, with ReLU in between.

  images [n, h, w, c] → ⌈h/2⌉×⌈w/2⌉×32 → ⌈h/4⌉×⌈w/4⌉×64 → 128 → num_classes

  >>> import jax, jax.numpy as jnp
  >>> classifier = DigitClassifier()
  >>> images = jnp.zeros((5, 28, 28, 1))
  >>> params = classifier.init(jax.random.key(0), images)
  >>> classifier.apply(params, images).shape
  (5, 10)
  >>> classifier.apply(params, images, method="features").shape
  (5, 128)

  Attributes:
    num_classes: the number of classes.
  """

  num_classes: int = 10

  def __post_init__(self) -> None:
    checks.at_least_one("num_classes", self.num_classes)
    super().__post_init__()

  def setup(self) -> None:
    """Defines the layers."""
    conv = functools.partial(nn.Conv, strides=2, conv_general_dilated=convolution)
    self.conv_1 = conv(32, (5, 5))
    self.conv_2 = conv(64, (5, 5))
    self.dense = nn.Dense(128)
    self.head = nn.Dense(self.num_classes)

  def __call__(self, images: Array) -> Array:
    """Logits `[n, num_classes]` of images `[n, h, w, c]` in [0, 1]."""
    return self.head(self.features(images))

  def features(self, images: Array) -> Array:
    """The last hidden layer, `[n, 128]`, of images `[n, h, w, c]` in [0, 1]."""
    checks.images(images)
    x = nn.relu(self.conv_1(images))
    x = nn.relu(self.conv_2(x))
    return nn.relu(self.dense(x.reshape(len(x), -1)))
