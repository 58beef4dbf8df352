"""Discriminators: networks that tell pictures from generated ones."""

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

  All maps times width. Leaky ReLU of slope 0.2 after every convolution, and before it,
  from the second on, batch norm with gain and bias. Weights N(0, 0.02), biases 0. With
  num_classes the label's one-hot vector joins the picture as constant maps, and the
  input of the dense layer. At width 1 there are 17 million parameters, as in table 1.

  `generators.initialize(key, discriminator, x, label)` makes params and statistics;
  `generators.sample(discriminator, params, stats, x, label)` gives the logits by the
  running statistics.

  >>> discriminator = DCGANDiscriminator(width=1 / 64)
  >>> x = jnp.zeros((5, 32, 32, 3))
  >>> params, stats = generators.initialize(jax.random.key(0), discriminator, x)
  >>> generators.sample(discriminator, params, stats, x).shape
  (5,)

  Attributes:
    width: a factor on the maps.
    num_classes: if given, every picture needs an integer label below it.
    axis_name: the device axis over which the batch statistics are averaged.
    dtype: what is computed in, such as `jnp.bfloat16`; by default what pictures and
      parameters promote to. Parameters and running statistics are float32 in any case,
      and so is the dense layer, lest the logits be rounded.

  Raises:
    ValueError: numbers outside their range.

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
    """Logits `[m]`, above 0 for what looks like data, of pictures `[m, h, w, c]`.

    Args:
      x: pictures in [−1, 1] of 32×32 or 64×64 pixels.
      label: integers `[m]` below num_classes; None without num_classes.
      train: whether batch norm takes the batch's own statistics, and updates the
        running ones; False takes the running ones.

    Raises:
      ValueError: pictures of another shape; a label without num_classes, none with it,
        or one of another form.
    """
    if x.ndim != 4 or x.shape[1] not in _SIZES or x.shape[2] != x.shape[1]:
      raise ValueError(
        "pictures must be [m, 32, 32, c] or [m, 64, 64, c], got shape "
        f"{x.shape}: crop or scale them."
      )
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
    # No dtype: beside its float32 parameters even rounded x is multiplied in float32.
    return nn.Dense(1, kernel_init=init)(x)[:, 0]


def discriminate_fn(discriminator: nn.Module) -> Callable[..., tuple[Array, PyTree]]:
  """The `discriminate_fn(params, stats, x, context)` of a linen module, for training.

  It returns the logits `[m]` and the statistics after them. The module is called as
  `discriminator(x, train=True)`, with a context as `discriminator(x, context,
  train=True)`. Keep the function: each one is compiled anew.
  """
  return generators.generate_fn(discriminator)
