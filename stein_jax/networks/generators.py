"""Generators: networks from noise to samples, with explicit batch statistics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.networks.layers import Deconv
from stein_jax.types import Array, Key, Params, PyTree

_MAPS = {32: (512, 256, 128), 64: (1024, 512, 256, 128)}


class MNISTGenerator(nn.Module):
  """The generator of section 5.1: two dense and two 5×5 deconvolution layers.

  noise [m, 100] → 1024·width → 7×7×128·width → 14×14×64·width → 28×28×1, sigmoid

  Every layer but the last is followed by batch norm without gain and bias, then ReLU,
  as in the authors' code. Weights start at N(0, 0.02).

  Attributes:
    width: a factor on the widths of the layers.
    axis_name: the device axis over which the batch statistics are averaged.
  """

  width: float = 1.0
  axis_name: str | None = None

  def __post_init__(self) -> None:
    checks.positive("width", self.width)
    super().__post_init__()

  @nn.compact
  def __call__(self, noise: Array, train: bool = True) -> Array:
    """Samples `[m, 28, 28, 1]` in (0, 1) of noise `[m, d]`.

    Args:
      noise: ξ.
      train: True: batch norm uses the statistics of the batch, and updates the running
        ones; False: it uses the running ones.

    Raises:
      ValueError: noise of another shape.
    """
    _check_noise(noise)

    def normalized(x: Array) -> Array:
      norm = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        use_bias=False,
        use_scale=False,
        axis_name=None if self.is_initializing() else self.axis_name,
      )
      return nn.relu(norm(x))

    def wide(channels: int) -> int:
      return max(1, round(channels * self.width))

    init = nn.initializers.normal(0.02)
    x = normalized(nn.Dense(wide(1024), kernel_init=init)(noise))
    x = normalized(nn.Dense(49 * wide(128), kernel_init=init)(x))
    x = x.reshape(-1, 7, 7, wide(128))
    x = Deconv(wide(64), kernel_init=init)(x)
    x = Deconv(1, kernel_init=init)(normalized(x))
    return nn.sigmoid(x)


class DCGANGenerator(nn.Module):
  """The generator of section 5.2 and DCGAN: a dense layer and 5×5 deconvolutions.

  size 64: noise [m, 100] → 4×4×1024 → 8×8×512 → 16×16×256 → 32×32×128 → 64×64×channels
  size 32: noise [m, 100] → 4×4×512 → 8×8×256 → 16×16×128 → 32×32×channels

  The numbers of channels, except for the last, are multiplied by `width`. Every layer
  but the last is followed by batch norm with gain and bias, then ReLU; the last one is
  followed by tanh. Batch norm is per unit after the dense layer, and per channel after
  a deconvolution. Weights start at N(0, 0.02), biases at 0. With `num_classes`, the
  one-hot vector of the label is appended to the noise, and as constant channels to the
  input of every deconvolution. This is the authors' code, except that their gains start
  at N(1, 0.02), and here they start at 1.

  >>> generator = DCGANGenerator(32, width=1 / 64, num_classes=10)
  >>> noise, label = uniform_noise()(jax.random.key(0), 5), jnp.arange(5)
  >>> params, stats = initialize(jax.random.key(1), generator, noise, label)
  >>> sample(generator, params, stats, noise, label).shape
  (5, 32, 32, 3)

  Attributes:
    size: the height and width of the images, 32 or 64.
    channels: of the images, 3 for colours.
    width: a factor on the numbers of channels.
    num_classes: if given, every sample needs an integer label below it.
    axis_name: the device axis over which the batch statistics are averaged.
    dtype: of the computation, such as `jnp.bfloat16`; by default the type of the
      parameters. Parameters, running statistics and samples are always float32.

  Raises:
    ValueError: another size, width not above 0, or channels or num_classes below 1.

  Source: Radford et al. (2016), section 3; Liu & Wang (2017), section 5.2.
  """

  size: int
  channels: int = 3
  width: float = 1.0
  num_classes: int | None = None
  axis_name: str | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    checks.one_of("size", self.size, tuple(_MAPS))
    checks.at_least_one("size", self.size)  # not 32.0
    checks.at_least_one("channels", self.channels)
    checks.positive("width", self.width)
    if self.num_classes is not None:
      checks.at_least_one("num_classes", self.num_classes)
    super().__post_init__()

  @nn.compact
  def __call__(
    self, noise: Array, label: Array | None = None, train: bool = True
  ) -> Array:
    """Samples `[m, size, size, channels]` in [−1, 1] of noise `[m, d]`.

    Args:
      noise: ξ.
      label: integers `[m]` below num_classes; None without num_classes.
      train: True: batch norm uses the statistics of the batch, and updates the running
        ones; False: it uses the running ones.

    Raises:
      ValueError: noise of another shape, a label without num_classes, a missing label
        with num_classes, or a label of another shape or type.
    """
    _check_noise(noise)

    def normalized(x: Array) -> Array:
      norm = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        dtype=self.dtype,
        axis_name=self.axis_name,
      )
      return nn.relu(norm(x))

    def deconvolved(x: Array, features: int) -> Array:
      layer = Deconv(features, kernel_init=init, dtype=self.dtype)
      return layer(with_label(x, given))

    init = nn.initializers.normal(0.02)
    given = one_hot(label, self.num_classes, len(noise))
    first, *others = [max(1, round(maps * self.width)) for maps in _MAPS[self.size]]
    dense = nn.Dense(16 * first, kernel_init=init, dtype=self.dtype)
    x = normalized(dense(with_label(noise, given))).reshape(-1, 4, 4, first)
    for features in others:
      x = normalized(deconvolved(x, features))
    x = deconvolved(x, self.channels)
    return jnp.tanh(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


def one_hot(label: Array | None, num_classes: int | None, m: int) -> Array:
  """Labels `[m]` as one-hot vectors `[m, num_classes]`; `[m, 0]` without labels.

  Args:
    label: integers below num_classes, or None.
    num_classes: None for a network without labels.
    m: the expected number of labels.

  Raises:
    ValueError: a label without num_classes, a missing label with num_classes, or a
      label that is not m integers below num_classes. In `jit`, where labels are not
      known, another integer counts as no label.
  """
  if num_classes is None:
    if label is not None:
      raise ValueError(
        "a label needs num_classes, which is None: set it, or pass no label."
      )
    return jnp.zeros((m, 0))
  if label is None:
    raise ValueError(f"num_classes={num_classes} needs a label for each of {m} points.")
  label = jnp.asarray(label)
  if label.shape != (m,) or not jnp.issubdtype(label.dtype, jnp.integer):
    raise ValueError(
      f"label must be {m} integers, one for each point, got shape {label.shape} of "
      f"{label.dtype}."
    )
  checks.labels(label, num_classes)
  return jax.nn.one_hot(label, num_classes)


def _check_noise(noise: Array) -> None:
  if jnp.ndim(noise) != 2:
    raise ValueError(f"noise must be [m, d], got shape {jnp.shape(noise)}.")


def with_label(x: Array, vectors: Array) -> Array:
  """x `[m, ..., c]` with vectors `[m, k]` as constant channels: `[m, ..., c + k]`."""
  m, k = vectors.shape
  maps = vectors.astype(x.dtype).reshape(m, *(1,) * (x.ndim - 2), k)
  maps = jnp.broadcast_to(maps, (*x.shape[:-1], k))
  return jnp.concatenate([x, maps], axis=-1)


def generate_fn(generator: nn.Module) -> Callable[..., tuple[Array, PyTree]]:
  """The `generate_fn(params, stats, noise, context)` of a linen module, for training.

  The module is called as `generator(noise, train=True)`, with a context as
  `generator(noise, context, train=True)`. Call this once and keep the result: every new
  function is compiled again.

  Raises:
    TypeError: no linen module.
  """
  checks.module("generator", generator)

  def generate(
    params: Params, stats: PyTree, noise: Array, context: PyTree
  ) -> tuple[Array, PyTree]:
    inputs = (noise,) if context is None else (noise, context)
    samples, new = generator.apply(
      {"params": params, **stats}, *inputs, train=True, mutable=list(stats)
    )
    return samples, new

  return generate


def _check_generator(generator: nn.Module) -> None:
  checks.module("generator", generator)


@compiled(_check_generator, static=("generator",))
def initialize(
  key: Key, generator: nn.Module, noise: Array, *context: Any
) -> tuple[Params, PyTree]:
  """Returns the initial parameters and statistics of a linen generator."""
  variables = dict(generator.init(key, noise, *context, train=True))
  return variables.pop("params"), variables


def sample(
  generator: nn.Module, params: Params, stats: PyTree, noise: Array, *context: Any
) -> Array:
  """Samples computed with the running statistics, independently of each other."""
  checks.module("generator", generator)
  variables = {"params": params, **stats}
  return jnp.asarray(generator.apply(variables, noise, *context, train=False))


def uniform_noise(dimension: int = 100) -> Callable[[Key, int], Array]:
  """`noise_fn(key, m)`: ξ ~ Uniform[−1, 1]^dimension, as in section 5."""
  checks.at_least_one("dimension", dimension)

  def noise(key: Key, m: int) -> Array:
    checks.key(key)
    checks.integer("m", m, least=0)
    return jax.random.uniform(key, (m, dimension), jnp.float32, -1.0, 1.0)

  return noise
