"""The networks and learning rules of `experiments.images`, by name (section 5.2)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.tree_util import Partial

from stein_jax import (
  Algorithm,
  AlignmentController,
  dcgan,
  energies,
  generators,
  kernels,
  stein_gan,
)
from stein_jax.algorithms.energy import split_batch
from stein_jax.networks.discriminators import DCGANDiscriminator, discriminate_fn
from stein_jax.types import Batch, Key, Params

METHODS = {
  "steingan": "SteinGAN",
  "steingan_no_kernel": "SteinGAN without kernel",
  "steincd_gan": "SteinCD-GAN",
  "dcgan": "DCGAN",
}

LAYERS = {32: energies.CIFAR10_LAYERS, 64: energies.CELEB_A_LAYERS}
"""The authors' encoders by the size of pictures."""

NOISE_FN = generators.uniform_noise(100)
"""ξ of every generator here."""


class Settings(NamedTuple):
  """What a user may vary; the binary's flags of the same names explain each."""

  size: int = 32
  num_classes: int | None = None  # None: not conditional
  width: float = 1.0
  generator_width: float = 1.0
  discriminator_width: float = 1.0
  normalization: str = "group"
  tied: bool = True
  norm: str = "l2"
  bandwidth: str = "median"
  bandwidth_multiple: float = 1.0
  num_neighbors: int | None = None
  discount: float | AlignmentController = AlignmentController()
  energy_learning_rate: float = 5e-4
  generator_learning_rate: float = 1e-3
  dcgan_learning_rate: float = 2e-4
  beta1: float = 0.5
  mix: float = 0.25
  mix_scale: float = 1.0
  step_size: float = 0.1
  average: float | None = None
  bfloat16: bool = False

  @property
  def dtype(self) -> Any:
    """Of activations; None: the parameters' own."""
    return jnp.bfloat16 if self.bfloat16 else None


class Model(NamedTuple):
  """A learning rule, its generator, and the start of both."""

  algorithm: Algorithm
  params: Params
  generator: nn.Module
  energy: nn.Module | None  # None: DCGAN has a discriminator in its place


def build(
  key: Key,
  method: str,
  settings: Settings,
  pictures: Batch,
  *,
  axis_name: str | None = None,
) -> Model:
  """A method's model at its start; all methods share a key's generator.

  Args:
    key: a PRNG key.
    method: out of `METHODS`.
    settings: of the networks and the learning rule.
    pictures: two examples or more, as `transform` makes them.
    axis_name: of a mesh of devices, over which batches are spread.
  """
  gen_key, other_key = jax.random.split(key)
  generator = generator_of(settings)
  x, labels = split_batch(pictures)
  noise = NOISE_FN(gen_key, len(x))
  eta, generator_stats = generators.initialize(gen_key, generator, noise, *labels)
  # The model's own generator, which samples on one device, knows no axis.
  generate_fn = generators.generate_fn(generator.clone(axis_name=axis_name))
  if method == "dcgan":
    discriminator = discriminator_of(settings).clone(axis_name=axis_name)
    delta, stats = generators.initialize(other_key, discriminator, x, *labels)
    adam = optax.adam(settings.dcgan_learning_rate, b1=settings.beta1)
    algorithm = dcgan(
      discriminate_fn(discriminator),
      generate_fn,
      NOISE_FN,
      adam,
      adam,
      discriminator_stats=stats,
      generator_stats=generator_stats,
      average=settings.average,
      axis_name=axis_name,
    )
    params = {"discriminator": delta, "generator": eta}
    return Model(algorithm, params, generator, None)
  energy = energy_of(settings)
  theta = jax.jit(energy.init)(other_key, x[0], *(label[0] for label in labels))
  algorithm = stein_gan(
    energy.apply,
    generate_fn,
    NOISE_FN,
    None if method == "steingan_no_kernel" else kernel_fn(energy, settings),
    optax.adam(settings.energy_learning_rate, b1=settings.beta1),
    optax.adam(settings.generator_learning_rate, b1=settings.beta1),
    generator_stats=generator_stats,
    mix=settings.mix if method == "steincd_gan" else 0.0,
    mix_scale=settings.mix_scale,
    step_size=settings.step_size,
    discount=settings.discount,
    average=settings.average,
    axis_name=axis_name,
  )
  return Model(algorithm, {"energy": theta, "generator": eta}, generator, energy)


def generator_of(settings: Settings) -> generators.DCGANGenerator:
  """The generator that all methods have."""
  return generators.DCGANGenerator(
    size=settings.size,
    width=settings.generator_width,
    num_classes=settings.num_classes,
    dtype=settings.dtype,
  )


def discriminator_of(settings: Settings) -> DCGANDiscriminator:
  """DCGAN's discriminator."""
  return DCGANDiscriminator(
    width=settings.discriminator_width,
    num_classes=settings.num_classes,
    dtype=settings.dtype,
  )


def energy_of(settings: Settings) -> nn.Module:
  """The energy (24), or with labels (25)."""
  autoencoder = energies.Autoencoder(
    LAYERS[settings.size],
    width=settings.width,
    normalization=settings.normalization,
    tied=settings.tied,
    norm=settings.norm,
    dtype=settings.dtype,
  )
  if settings.num_classes is None:
    return autoencoder
  return energies.JointAutoencoder(autoencoder, settings.num_classes)


def kernel_fn(
  energy: nn.Module, settings: Settings
) -> Callable[[Params], kernels.Kernel]:
  """θ -> the kernel on the energy's own features."""
  base = kernels.rbf(settings.bandwidth, multiple=settings.bandwidth_multiple)

  def at(theta: Params) -> kernels.Kernel:
    features = Partial(energy.features, theta)
    return kernels.on_features(base, features, num_neighbors=settings.num_neighbors)

  return at


def transform(batch: Batch) -> Batch:
  """Pixels 0 to 255 -> −1 to 1, x/127.5 − 1; labels stay."""
  if isinstance(batch, Mapping):
    return {**batch, "x": transform(batch["x"])}
  return batch.astype(jnp.float32) / 127.5 - 1
