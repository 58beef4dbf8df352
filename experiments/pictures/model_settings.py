"""The settings of the networks and algorithms of `experiments.images`."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from experiments.shared import settings
from experiments.shared.settings import setting
from stein_jax import AlignmentController, energies, kernels
from stein_jax.algorithms.stein_gan import AUTHORS_ALIGNMENT

_CONTROLLERS = {
  "aligned": AlignmentController(),
  "alignment": AlignmentController(),  # the name in experiments.mnist_rbm
  "aligned_authors": AUTHORS_ALIGNMENT,
}


@dataclasses.dataclass(frozen=True)
class ModelSettings(settings.Settings):
  """What can be chosen about the networks and the algorithms."""

  width: float = setting(1.0, "A factor on the energy's channels.", above=0)
  generator_width: float = setting(
    1.0, "A factor on the generator's channels.", above=0
  )
  discriminator_width: float = setting(
    1.0, "A factor on the channels of DCGAN's discriminator.", above=0
  )
  normalization: str = setting(
    "group",
    "How the energy normalises, within one image.",
    choices=energies.autoencoder.NORMALIZATIONS,
  )
  tied: bool = setting(True, "Whether the decoder uses the encoder's kernels.")
  norm: str = setting(
    "l2",
    "The norm of the reconstruction error; l1_l2 is the authors' for CelebA.",
    choices=energies.autoencoder.NORMS,
  )
  bandwidth: str = setting(
    "median",
    "The bandwidth of the kernel on the encoder's features. features is the paper's "
    "and features_authors its code's: with these two there is almost no repulsion.",
    choices=tuple(sorted(kernels.BANDWIDTHS)),
  )
  bandwidth_multiple: float = setting(1.0, "A factor on the bandwidth.", above=0)
  num_neighbors: int = setting(
    0,
    "Only this many nearest images repel each image. 0: all of them, exactly, but "
    "with as many passes through the encoder as a batch has images. k neighbours "
    "need the memory of k batches.",
    at_least=0,
  )
  discount: str = setting(
    "aligned",
    "γ: a number in [0, 1); or aligned: 0.9 while real images have a higher energy "
    "than generated ones, otherwise 0.7; or aligned_authors: the reverse, as in "
    "the authors' code.",
  )
  energy_learning_rate: float = setting(
    5e-4, "Adam's learning rate for the energy.", above=0
  )
  generator_learning_rate: float = setting(
    1e-3, "Adam's learning rate for the generator.", above=0
  )
  dcgan_learning_rate: float = setting(
    2e-4, "Adam's learning rate for both networks of DCGAN.", above=0
  )
  beta1: float = setting(0.5, "Adam's β₁.", at_least=0, at_most=0.999)
  mix: float = setting(
    0.25,
    "α: the probability of a SteinCD step in steincd_gan.",
    at_least=0,
    at_most=1,
  )
  mix_scale: float = setting(
    1.0, "A factor on SteinCD's gradient in steincd_gan.", above=0
  )
  step_size: float = setting(0.1, "ε of SteinCD in steincd_gan.", above=0)
  average: float | None = setting(
    None,
    "The decay of a moving average of the generator's parameters; samples then come "
    "from the average. The average starts at the untrained parameters: a decay of "
    "0.999 needs about 5 000 steps to forget them.",
    above=0,
    below=1,
  )
  bfloat16: bool = setting(False, "Compute in bfloat16; parameters stay float32.")

  def __post_init__(self) -> None:
    super().__post_init__()
    self.discount_or_controller()  # raises if the text is neither

  def discount_or_controller(self) -> float | AlignmentController:
    """γ as `stein_gan` takes it."""
    if self.discount in _CONTROLLERS:
      return _CONTROLLERS[self.discount]
    try:
      value = float(self.discount)
    except ValueError:
      value = -1.0
    if not 0 <= value < 1:
      raise ValueError(
        f"--discount must be a number in [0, 1) or {' or '.join(_CONTROLLERS)}, got "
        f"{self.discount!r}."
      )
    return value

  @property
  def dtype(self) -> Any:
    """The dtype of activations; None: that of the parameters."""
    return jnp.bfloat16 if self.bfloat16 else None
