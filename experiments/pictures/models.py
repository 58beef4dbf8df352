"""The networks and algorithms of `experiments.images`, by name (section 5.2)."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.tree_util import Partial

from experiments.pictures.model_settings import ModelSettings
from stein_jax import (
  Algorithm,
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
"""The authors' encoder for each size of images."""

NOISE_FN = generators.uniform_noise(100)
"""The noise ξ of every generator here."""


class Task(NamedTuple):
  """What the data determines about the networks.

  Attributes:
    size: the side of the images, in pixels; a key of `LAYERS`.
    num_classes: the number of labels; None: the model is not conditional.
  """

  size: int = 32
  num_classes: int | None = None


class Model(NamedTuple):
  """An algorithm, its initial parameters, and its networks.

  Attributes:
    algorithm: the learning rule.
    params: the initial parameters of both networks.
    generator: the generator's module.
    energy: the energy's module; None for DCGAN, which has a discriminator instead.
  """

  algorithm: Algorithm
  params: Params
  generator: nn.Module
  energy: nn.Module | None


def build(
  key: Key,
  method: str,
  settings: ModelSettings,
  task: Task,
  images: Batch,
  *,
  axis_name: str | None = None,
) -> Model:
  """The initial model of a method; the generator depends on the key alone.

  Args:
    key: a PRNG key.
    method: one of `METHODS`.
    settings: of the networks and the algorithm.
    task: what the data determines.
    images: at least two examples, as `transform` returns them.
    axis_name: the axis of a mesh of devices over which batches are sharded.
  """
  generator_key, other_key = jax.random.split(key)
  generator = generator_of(settings, task)
  x, labels = split_batch(images)
  noise = NOISE_FN(generator_key, len(x))
  generator_params, generator_stats = generators.initialize(
    generator_key, generator, noise, *labels
  )
  # Only training is sharded: the generator in Model draws samples on one device.
  generate_fn = generators.generate_fn(generator.clone(axis_name=axis_name))
  if method == "dcgan":
    discriminator = discriminator_of(settings, task).clone(axis_name=axis_name)
    discriminator_params, stats = generators.initialize(
      other_key, discriminator, x, *labels
    )
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
    params = {"discriminator": discriminator_params, "generator": generator_params}
    return Model(algorithm, params, generator, None)
  energy = energy_of(settings, task)
  energy_params = jax.jit(energy.init)(other_key, x[0], *(label[0] for label in labels))
  kernel = None if method == "steingan_no_kernel" else kernel_fn(energy, settings)
  algorithm = stein_gan(
    energy.apply,
    generate_fn,
    NOISE_FN,
    kernel,
    optax.adam(settings.energy_learning_rate, b1=settings.beta1),
    optax.adam(settings.generator_learning_rate, b1=settings.beta1),
    generator_stats=generator_stats,
    mix=settings.mix if method == "steincd_gan" else 0.0,
    mix_scale=settings.mix_scale,
    step_size=settings.step_size,
    discount=settings.discount_or_controller(),
    average=settings.average,
    report_repulsion=kernel is not None,
    axis_name=axis_name,
  )
  params = {"energy": energy_params, "generator": generator_params}
  return Model(algorithm, params, generator, energy)


def generator_of(settings: ModelSettings, task: Task) -> generators.DCGANGenerator:
  """The generator, the same for all methods."""
  return generators.DCGANGenerator(
    size=task.size,
    width=settings.generator_width,
    num_classes=task.num_classes,
    dtype=settings.dtype,
  )


def discriminator_of(settings: ModelSettings, task: Task) -> DCGANDiscriminator:
  """DCGAN's discriminator."""
  return DCGANDiscriminator(
    width=settings.discriminator_width,
    num_classes=task.num_classes,
    dtype=settings.dtype,
  )


def energy_of(settings: ModelSettings, task: Task) -> nn.Module:
  """The energy (24), or the joint energy (25) if there are labels."""
  autoencoder = energies.Autoencoder(
    LAYERS[task.size],
    width=settings.width,
    normalization=settings.normalization,
    tied=settings.tied,
    norm=settings.norm,
    dtype=settings.dtype,
  )
  if task.num_classes is None:
    return autoencoder
  return energies.JointAutoencoder(autoencoder, task.num_classes)


def kernel_fn(
  energy: nn.Module, settings: ModelSettings
) -> Callable[[Params], kernels.Kernel]:
  """A function θ -> the kernel on the energy's own features."""
  num_neighbors = settings.num_neighbors or None
  base = kernels.rbf(settings.bandwidth, multiple=settings.bandwidth_multiple)

  def kernel(params: Params) -> kernels.Kernel:
    features = Partial(energy.features, params)
    return kernels.on_features(base, features, num_neighbors=num_neighbors)

  return kernel


def transform(batch: Batch) -> Batch:
  """Scales pixels from 0 ... 255 to [−1, 1]: x/127.5 − 1. Labels stay as they are."""
  if isinstance(batch, Mapping):
    return {**batch, "x": transform(batch["x"])}
  return batch.astype(jnp.float32) / 127.5 - 1
