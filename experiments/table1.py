"""Table 1: how many parameters the networks that judge pictures have.

  python -m experiments.table1

counts those of the modules themselves, of both data sets, beside the paper's numbers.
"""

import math

import jax
import jax.numpy as jnp
from absl import app
from flax import linen as nn

from experiments import rbm_summary
from experiments.pictures import image_models
from experiments.shared import common

PAPER = {"DCGAN": ("~17m", "~17m"), "SteinGAN": ("~10m", "~2.5m")}


def main(argv: list[str]) -> None:
  common.refuse_arguments(argv)
  print(table())


def table() -> str:
  """The table in Markdown: CIFAR-10 with labels, CelebA and LSUN without."""
  tasks = (
    image_models.Settings(size=32, num_classes=10),
    image_models.Settings(size=64),
  )
  counts = {
    "DCGAN": [num_parameters(image_models.discriminator_of(s), s) for s in tasks],
    "SteinGAN": [num_parameters(image_models.energy_of(s), s) for s in tasks],
    "SteinGAN, decoder of its own": [
      num_parameters(image_models.energy_of(s._replace(tied=False)), s) for s in tasks
    ],
    "generator, of both": [
      num_parameters(image_models.generator_of(s), s) for s in tasks
    ],
  }
  lines = []
  for name, (cifar, celeb_a) in counts.items():
    paper = PAPER.get(name, ("—", "—"))
    lines.append([name, f"{cifar:,}", paper[0], f"{celeb_a:,}", paper[1]])
  header = ["", "CIFAR-10", "in the paper", "CelebA & LSUN", "in the paper"]
  return rbm_summary.markdown_table(header, lines)


def num_parameters(network: nn.Module, settings: image_models.Settings) -> int:
  """How many numbers a network learns; running statistics do not count."""
  picture = jax.ShapeDtypeStruct((settings.size, settings.size, 3), jnp.float32)
  batch = jax.ShapeDtypeStruct((2, *picture.shape), jnp.float32)
  label, labels = jnp.int32(0), jnp.zeros(2, jnp.int32)
  given = settings.num_classes is not None
  if hasattr(network, "size"):  # the generator
    inputs = (jax.ShapeDtypeStruct((2, 100), jnp.float32), *[labels] * given)
  elif hasattr(network, "encode"):  # an energy, of one picture
    inputs = (picture, *[label] * given)
  else:
    inputs = (batch, *[labels] * given)
  shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


if __name__ == "__main__":
  app.run(main)
