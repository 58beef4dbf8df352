"""Energies of images: the reconstruction errors of autoencoders (section 5.2)."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from stein_jax import checks
from stein_jax.networks.layers import convolution
from stein_jax.types import Array, Params


class Layer(NamedTuple):
  """A convolution of the encoder; the decoder has its transpose.

  Attributes:
    features: the number of output channels.
    size: the side of its square window.
    stride: the factor by which height and width shrink.
  """

  features: int
  size: int
  stride: int = 1


CIFAR10_LAYERS = (
  Layer(128, 3),
  Layer(128, 2, 2),
  Layer(256, 3),
  Layer(256, 4, 4),
  Layer(512, 3),
  Layer(512, 4, 4),
)
"""The authors' encoder for 32×32 images: 512 features."""

CELEB_A_LAYERS = (
  Layer(64, 3),
  Layer(128, 5, 4),
  Layer(128, 3),
  Layer(256, 5, 4),
  Layer(256, 3),
  Layer(256, 4, 4),
)
"""The authors' encoder for 64×64 images, of CelebA and LSUN: 256 features."""

NORMALIZATIONS = ("group", "layer", "weight", "none")
NORMS = ("l2", "l1_l2")

_SMOOTHING = 1e-6


def _layer(layer: Any) -> Layer:
  if not (isinstance(layer, (tuple, list)) and len(layer) in (2, 3)):
    raise TypeError(
      f"layers must be a sequence of Layer(features, size, stride), not of {layer!r}."
    )
  layer = Layer(*layer)
  for name, value in layer._asdict().items():
    checks.at_least_one(f"{name} of a layer", value)
  return layer


class Autoencoder(nn.Module):
  """E(x) = ‖x − decode(encode(x))‖, and p(x) ∝ exp(−E(x)).

  The encoder is a sequence of convolutions. The decoder consists of their transposes in
  reverse order, with the encoder's kernels (tied) or with kernels of its own. The
  decoder ends in tanh, so its images are within [−1, 1]: the energy grows with ‖x‖, and
  p can be normalised. The norm is √(‖·‖² + 10⁻⁶), which is smooth at zero.

  An energy is a function of one point. So there is no batch norm and no dropout;
  normalisation between layers is over the channels and pixels of one image.

  `init(key, x)` and `apply(params, x)` are linen's, for one image `[h, w, c]`.

  >>> energy = Autoencoder(layers=(Layer(8, 3), Layer(16, 4, 4)))
  >>> params = energy.init(jax.random.key(0), jnp.zeros((32, 32, 3)))
  >>> energy.apply(params, jnp.ones((32, 32, 3))).shape
  ()
  >>> energy.features(params, jnp.ones((32, 32, 3))).shape
  (1024,)

  Attributes:
    layers: of the encoder. The output of the last one, without activation or
      normalisation, is the code, and the features of the feature kernel.
    width: a factor on the numbers of channels.
    channels: of the images.
    activation: between layers. It should be smooth: where ReLU is not differentiable,
      finite differences and derivatives of the score disagree.
    tied: whether the decoder uses the encoder's kernels.
    normalization: between layers. "group": groups of 16 channels over all pixels, if
      the number of channels is a multiple of 16; "layer": all channels over all pixels;
      "weight": the kernel of every output channel has norm 1 times a gain; or "none".
    norm: "l2"; or "l1_l2", the authors' √‖·‖₁ + ‖·‖₂ for CelebA and LSUN.
    kernel_init: the initializer of the kernels; by default the paper's N(0, 0.02).
    dtype: of the convolutions, such as bfloat16. Parameters are float32; the norm is
      computed in the image's dtype.

  Source: Liu & Wang (2017), equation 24. The layers are those of the authors' code.
  """

  layers: tuple[Layer, ...] = CIFAR10_LAYERS
  width: float = 1.0
  channels: int = 3
  activation: Callable[[Array], Array] = nn.silu
  tied: bool = True
  normalization: str = "group"
  norm: str = "l2"
  kernel_init: nn.initializers.Initializer | None = None
  dtype: Any = None

  def __post_init__(self) -> None:
    if isinstance(self.layers, Layer):
      raise TypeError(f"layers must be a sequence of Layer, got one: {self.layers}.")
    if not self.layers:
      raise ValueError("layers must hold at least one layer, got none.")
    checks.one_of("normalization", self.normalization, NORMALIZATIONS)
    checks.one_of("norm", self.norm, NORMS)
    checks.positive("width", self.width)
    checks.at_least_one("channels", self.channels)
    checks.activation(self.activation)
    checks.boolean("tied", self.tied)
    object.__setattr__(self, "layers", tuple(map(_layer, self.layers)))
    super().__post_init__()

  def setup(self) -> None:
    """Defines the kernel, the two biases and the normalisation of each layer."""
    made = [max(1, round(layer.features * self.width)) for layer in self.layers]
    seen = [self.channels, *made[:-1]]
    kernel = functools.partial(
      _Kernel,
      kernel_init=self.kernel_init or nn.initializers.normal(0.02),
      normalized=self.normalization == "weight",
    )
    shapes = [
      (layer.size, layer.size, a, b) for layer, a, b in zip(self.layers, seen, made)
    ]
    self.encoder = [kernel(shape) for shape in shapes]
    self.decoder = self.encoder if self.tied else [kernel(shape) for shape in shapes]
    self.encoder_biases = [_Bias(c) for c in made]
    self.decoder_biases = [_Bias(c) for c in seen]
    # The output of each layer is normalised, except for the decoded image. The code is
    # normalised at the start of the decoder.
    self.encoder_norms = [_Normalizer(self.normalization) for _ in made]
    self.decoder_norms = [_Normalizer(self.normalization) for _ in seen[1:]]

  def __call__(self, x: Array) -> Array:
    """E(x) of one image `[h, w, c]`, a scalar."""
    return self.distance(x, self.encode(x))

  def distance(self, x: Array, code: Array) -> Array:
    """‖x − decode(code)‖ of an image and its code."""
    squared = jnp.square(x - self.decode(code, x.shape))
    l2 = jnp.sqrt(squared.sum() + _SMOOTHING)
    if self.norm == "l2":
      return l2
    return jnp.sqrt(jnp.sqrt(squared + _SMOOTHING).sum()) + l2

  def encode(self, x: Array) -> Array:
    """The code of one image, `[h', w', c']`.

    Raises:
      ValueError: x is not an image with the right number of channels.
      TypeError: x is not one array of floats.
    """
    checks.array("an image", x)
    checks.arrays("an image", x)
    checks.floating("an image", x)
    if x.ndim != 3 or x.shape[-1] != self.channels:
      raise ValueError(
        f"an image must be [height, width, {self.channels}], got shape {x.shape}."
      )
    dtype = self.dtype or x.dtype
    y = x.astype(dtype)
    for k, layer in enumerate(self.layers):
      if k:
        y = self.activation(self.encoder_norms[k - 1](y))
      y = convolution(y[None], self.encoder[k](dtype), (layer.stride, layer.stride))[0]
      y = self.encoder_biases[k](y)
    return y.astype(x.dtype)

  def decode(self, code: Array, shape: tuple[int, ...]) -> Array:
    """The image of a code, of this shape and within (−1, 1)."""
    dtype = self.dtype or code.dtype
    extents = [shape[:2]]
    for layer in self.layers:
      extents.append(tuple(-(-extent // layer.stride) for extent in extents[-1]))
    y = self.activation(self.encoder_norms[-1](code.astype(dtype)))
    for k in reversed(range(len(self.layers))):
      stride = self.layers[k].stride
      y = _transposed(y, self.decoder[k](dtype), stride, extents[k])
      y = self.decoder_biases[k](y)
      if k:
        y = self.activation(self.decoder_norms[k - 1](y))
    return jnp.tanh(y.astype(code.dtype))

  def reconstruct(self, x: Array) -> Array:
    """decode(encode(x)) of one image: `apply(params, x, method="reconstruct")`."""
    return self.decode(self.encode(x), x.shape)

  @nn.nowrap
  def features(self, params: Params, x: Array) -> Array:
    """The flattened code of one image, for the feature kernel of section 5.2."""
    return jnp.asarray(self.apply(params, x, method="encode")).ravel()


class JointAutoencoder(nn.Module):
  """E(x, y) = ‖x − decode(encode(x))‖ + max[m, σ(y, encode(x))], y the label of x.

  σ is the cross entropy, in nats, of a dense softmax layer on the code. Once σ is below
  m, the second term is constant: it changes neither the parameters nor a sample. With
  the paper's m = 1 this is the case if p(y | x) ≥ e⁻¹. At σ = m the energy is not
  differentiable; JAX's gradient there is half of that of σ.

  A conditional energy: `apply(params, x, label)`, an integer label.

  Attributes:
    autoencoder: the first term.
    num_classes: the number of labels.
    margin: m, in nats.

  Source: Liu & Wang (2017), equation 25.
  """

  autoencoder: Autoencoder
  num_classes: int = 10
  margin: float = 1.0

  def __post_init__(self) -> None:
    if not isinstance(self.autoencoder, Autoencoder):
      raise TypeError(
        f"autoencoder must be an Autoencoder(), got {self.autoencoder!r}."
      )
    checks.at_least_one("num_classes", self.num_classes)
    checks.not_negative("margin", self.margin)
    super().__post_init__()

  def setup(self) -> None:
    """Defines the output layer."""
    self.head = nn.Dense(self.num_classes)

  def __call__(self, x: Array, label: Array) -> Array:
    """E(x, y) of one image `[h, w, c]` and its integer label, a scalar.

    In `jit` and `vmap`, where a label is not known, it is NaN if the label is not one
    of 0, ..., num_classes − 1.

    Raises:
      ValueError: the label is not one integer, or is known and not one of these.
    """
    label = jnp.asarray(label)
    if label.shape != () or not jnp.issubdtype(label.dtype, jnp.integer):
      raise ValueError(
        f"a label must be one integer, got shape {label.shape} of {label.dtype}."
      )
    checks.labels(label, self.num_classes)
    code = self.autoencoder.encode(x)
    log_p = nn.log_softmax(self.head(self.autoencoder.activation(code.ravel())))
    known = (label >= 0) & (label < self.num_classes)
    cross_entropy = -jnp.where(known, log_p[label], jnp.nan)
    penalty = jnp.maximum(cross_entropy, self.margin)
    return self.autoencoder.distance(x, code) + penalty

  def encode(self, x: Array) -> Array:
    """The code of one image."""
    return self.autoencoder.encode(x)

  def reconstruct(self, x: Array) -> Array:
    """decode(encode(x)) of one image."""
    return self.autoencoder.reconstruct(x)

  def logits(self, x: Array) -> Array:
    """The output layer's log p(y | x) for one image, up to a constant."""
    code = self.autoencoder.encode(x)
    return self.head(self.autoencoder.activation(code.ravel()))

  @nn.nowrap
  def features(self, params: Params, x: Array) -> Array:
    """The flattened code of one image."""
    return jnp.asarray(self.apply(params, x, method="encode")).ravel()


class _Kernel(nn.Module):
  """A convolution's kernel; if normalised, every output channel's has norm `gain`."""

  shape: tuple[int, ...]
  kernel_init: nn.initializers.Initializer
  normalized: bool

  @nn.compact
  def __call__(self, dtype: Any) -> Array:
    kernel = self.param("kernel", self.kernel_init, self.shape)
    if self.normalized:
      gain = self.param("gain", nn.initializers.ones, (1, 1, 1, self.shape[-1]))
      squared_norm = jnp.square(kernel).sum(axis=(0, 1, 2), keepdims=True)
      kernel = gain * kernel * jax.lax.rsqrt(squared_norm + 1e-12)
    return jnp.asarray(kernel, dtype)


class _Bias(nn.Module):
  """Adds a number to every channel of `[h, w, c]`."""

  channels: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    bias = self.param("bias", nn.initializers.zeros, (1, 1, self.channels))
    return x + jnp.asarray(bias, x.dtype)


class _Normalizer(nn.Module):
  """Normalises the channels of one image; see `Autoencoder.normalization`."""

  kind: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.kind not in ("group", "layer"):
      return x
    channels = x.shape[-1]
    groups = math.gcd(channels, max(1, channels // 16)) if self.kind == "group" else 1
    return nn.GroupNorm(groups, dtype=x.dtype)(x[None])[0]


def _transposed(y: Array, kernel: Array, stride: int, extent: tuple[int, ...]) -> Array:
  """The transpose of a `convolution` of images with this height and width."""
  # Only its type is used. It depends on y, so that in shard_map its type is also that
  # of an array that varies over devices.
  picture = jnp.full((1, *extent, kernel.shape[2]), y.ravel()[0])
  transpose = jax.linear_transpose(
    lambda x: convolution(x, kernel, (stride, stride)), picture
  )
  return transpose(y[None])[0][0]
