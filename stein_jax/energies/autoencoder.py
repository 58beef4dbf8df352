"""Energies of pictures: how badly an autoencoder gives one back (section 5.2)."""

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
  """A square convolution of the encoder, whose transpose the decoder has.

  Attributes:
    features: channels that it makes.
    size: of its window.
    stride: by which it shrinks the picture.
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
"""The authors' encoder of 32×32 pictures: 512 features."""

CELEB_A_LAYERS = (
  Layer(64, 3),
  Layer(128, 5, 4),
  Layer(128, 3),
  Layer(256, 5, 4),
  Layer(256, 3),
  Layer(256, 4, 4),
)
"""Their encoder of the 64×64 pictures of CelebA and LSUN: 256 features."""

NORMALIZATIONS = ("group", "layer", "weight", "none")
NORMS = ("l2", "l1_l2")

_SMOOTHING = 1e-6


class Autoencoder(nn.Module):
  """E(x) = ‖x − D(E(x))‖, and p(x) ∝ exp(−E(x)).

  The encoder E is a row of convolutions; the decoder D is their transposes in reverse,
  with the encoder's own kernels (tied) or others. tanh keeps D(·) within the range of
  pictures, [−1, 1]: so the energy grows with ‖x‖ and p can be normalised. The norm is
  √(‖·‖² + 10⁻⁶), smooth at zero.

  An energy speaks about one point, so nothing here looks at a batch: no batch norm, no
  dropout. Between layers the channels of the one picture are normalised.

  `init(key, x)` and `apply(params, x)` are linen's, for one picture `[h, w, c]`.

  >>> energy = Autoencoder(layers=(Layer(8, 3), Layer(16, 4, 4)))
  >>> params = energy.init(jax.random.key(0), jnp.zeros((32, 32, 3)))
  >>> energy.apply(params, jnp.ones((32, 32, 3))).shape
  ()
  >>> energy.features(params, jnp.ones((32, 32, 3))).shape
  (1024,)

  Attributes:
    layers: of the encoder; the last one's channels are the features, as they are.
    width: a factor on the channels.
    channels: of the pictures.
    activation: between layers; a smooth one, since at the kinks of ReLU differences and
      derivatives of the score disagree.
    tied: whether D has E's kernels.
    normalization: between layers, of one picture: "group" (16 channels together, where
      they divide by 16, over all pixels), "layer" (all channels), "weight" (kernels to
      norm 1 for every channel they make, with a gain) or "none".
    norm: "l2", or "l1_l2", the authors' √‖·‖₁ + ‖·‖₂ of CelebA and LSUN.
    kernel_init: the kernels' initializer, the paper's N(0, 0.02) by default.
    dtype: of the convolutions, such as bfloat16; parameters are float32, the norm is of
      the picture's own type.

  Source: Liu & Wang (2017), equation 24; the layers are the authors' code's.
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
    if not self.layers:
      raise ValueError("layers must hold at least one layer, got none.")
    checks.one_of("normalization", self.normalization, NORMALIZATIONS)
    checks.one_of("norm", self.norm, NORMS)
    checks.positive("width", self.width)
    object.__setattr__(self, "layers", tuple(Layer(*layer) for layer in self.layers))
    super().__post_init__()

  def setup(self) -> None:
    """Makes the parameters: a kernel and two biases a layer, and what normalises."""
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
    # of every layer's output but the picture; the code's comes before the decoder
    self.encoder_norms = [_Normalizer(self.normalization) for _ in made]
    self.decoder_norms = [_Normalizer(self.normalization) for _ in seen[1:]]

  def __call__(self, x: Array) -> Array:
    """E(x) of one picture `[h, w, c]`, a scalar."""
    return self.distance(x, self.encode(x))

  def distance(self, x: Array, code: Array) -> Array:
    """‖x − D(code)‖ of a picture and its code."""
    squared = jnp.square(x - self.decode(code, x.shape))
    l2 = jnp.sqrt(squared.sum() + _SMOOTHING)
    if self.norm == "l2":
      return l2
    return jnp.sqrt(jnp.sqrt(squared + _SMOOTHING).sum()) + l2

  def encode(self, x: Array) -> Array:
    """The code E(x) of one picture, `[h', w', c']`.

    Raises:
      ValueError: no picture, or one of another number of channels.
    """
    if x.ndim != 3 or x.shape[-1] != self.channels:
      raise ValueError(
        f"a picture must be [height, width, {self.channels}], got shape {x.shape}."
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
    """D(code), a picture of this shape in (−1, 1)."""
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
    """D(E(x)) of one picture: `energy.apply(params, x, method="reconstruct")`."""
    return self.decode(self.encode(x), x.shape)

  @nn.nowrap
  def features(self, params: Params, x: Array) -> Array:
    """E(x) of one picture, flat: what the kernel of section 5.2 looks at."""
    return jnp.asarray(self.apply(params, x, method="encode")).ravel()


class JointAutoencoder(nn.Module):
  """E(x, y) = ‖x − D(E(x))‖ + max[m, σ(y, E(x))] of a picture and its label.

  σ is the cross entropy, in nats, of a dense softmax layer on the code. Below m a label
  is right enough: it costs the same m as a better one, and neither θ nor a sample x is
  driven further. m = 1, the paper's, is met where p(y | x) ≥ e⁻¹. max is taken as it
  stands, the one kink of this energy; at the kink the gradient is half of σ's.

  A conditional energy: `apply(params, x, label)`, an integer label.

  Attributes:
    autoencoder: the first term.
    num_classes: how many labels there are.
    margin: m, in nats.

  Source: Liu & Wang (2017), equation 25.
  """

  autoencoder: Autoencoder
  num_classes: int = 10
  margin: float = 1.0

  def setup(self) -> None:
    """Makes the output layer."""
    self.head = nn.Dense(self.num_classes)

  def __call__(self, x: Array, label: Array) -> Array:
    """E(x, y) of one picture `[h, w, c]` and its integer label, a scalar.

    NaN where the label is none of 0 to num_classes − 1.

    Raises:
      ValueError: a label that is not one integer.
    """
    label = jnp.asarray(label)
    if label.shape != () or not jnp.issubdtype(label.dtype, jnp.integer):
      raise ValueError(
        f"a label must be one integer, got shape {label.shape} of {label.dtype}."
      )
    code = self.autoencoder.encode(x)
    log_p = nn.log_softmax(self.head(self.autoencoder.activation(code.ravel())))
    known = (label >= 0) & (label < self.num_classes)
    cross_entropy = -jnp.where(known, log_p[label], jnp.nan)
    penalty = jnp.maximum(cross_entropy, self.margin)
    return self.autoencoder.distance(x, code) + penalty

  def encode(self, x: Array) -> Array:
    """The code of one picture."""
    return self.autoencoder.encode(x)

  def reconstruct(self, x: Array) -> Array:
    """D(E(x)) of one picture."""
    return self.autoencoder.reconstruct(x)

  def logits(self, x: Array) -> Array:
    """The output layer's log p(y | x) of one picture, up to a constant."""
    code = self.autoencoder.encode(x)
    return self.head(self.autoencoder.activation(code.ravel()))

  @nn.nowrap
  def features(self, params: Params, x: Array) -> Array:
    """E(x) of one picture, flat."""
    return jnp.asarray(self.apply(params, x, method="encode")).ravel()


class _Kernel(nn.Module):
  """A convolution's kernel; normalised, every channel it makes has norm `gain`."""

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
  """Normalises the channels of one picture, as `Autoencoder.normalization` says."""

  kind: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    if self.kind not in ("group", "layer"):
      return x
    channels = x.shape[-1]
    groups = math.gcd(channels, max(1, channels // 16)) if self.kind == "group" else 1
    return nn.GroupNorm(groups, dtype=x.dtype)(x[None])[0]


def _transposed(y: Array, kernel: Array, stride: int, extent: tuple[int, ...]) -> Array:
  """The transpose of a `convolution` that shrank pictures of this extent."""
  # Of its type alone use is made; under shard_map it varies over devices as y does.
  picture = jnp.full((1, *extent, kernel.shape[2]), y.ravel()[0])
  transpose = jax.linear_transpose(
    lambda x: convolution(x, kernel, (stride, stride)), picture
  )
  return transpose(y[None])[0][0]
