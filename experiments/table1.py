"""Table 1: the numbers of parameters of the energy and of DCGAN's discriminator.

  python -m experiments.table1

counts the parameters of the modules for both data sets, and prints them with the
paper's numbers.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from experiments.pictures import models
from experiments.pictures.model_settings import ModelSettings
from experiments.shared import settings, tables

PAPER = {"DCGAN": ("~17m", "~17m"), "SteinGAN": ("~10m", "~2.5m")}


@dataclasses.dataclass(frozen=True)
class Settings(settings.Settings):
  """This command has no flags of its own."""

  command: ClassVar[str] = "experiments.table1"


def main(own: Settings) -> None:
  del own
  print(table())


def table() -> str:
  """The table in Markdown: CIFAR-10 with labels, CelebA and LSUN without."""
  tasks = models.Task(size=32, num_classes=10), models.Task(size=64)
  paper_s = ModelSettings()
  untied = ModelSettings(tied=False)
  networks = {
    "DCGAN": [models.discriminator_of(paper_s, task) for task in tasks],
    "SteinGAN": [models.energy_of(paper_s, task) for task in tasks],
    "SteinGAN, decoder of its own": [models.energy_of(untied, task) for task in tasks],
    "generator, of both": [models.generator_of(paper_s, task) for task in tasks],
  }
  lines = []
  for name, of_tasks in networks.items():
    counts = [num_parameters(*pair) for pair in zip(of_tasks, tasks)]
    paper = PAPER.get(name, ("—", "—"))
    lines.append([name, f"{counts[0]:,}", paper[0], f"{counts[1]:,}", paper[1]])
  header = ["", "CIFAR-10", "in the paper", "CelebA & LSUN", "in the paper"]
  return tables.markdown(header, lines)


def num_parameters(network: nn.Module, task: models.Task) -> int:
  """The number of trained parameters of a network, without batch norm's statistics."""
  image = jax.ShapeDtypeStruct((task.size, task.size, 3), jnp.float32)
  batch = jax.ShapeDtypeStruct((2, *image.shape), jnp.float32)
  label, labels = jnp.int32(0), jnp.zeros(2, jnp.int32)
  conditional = task.num_classes is not None
  if hasattr(network, "size"):  # a generator
    inputs = (jax.ShapeDtypeStruct((2, 100), jnp.float32), *[labels] * conditional)
  elif hasattr(network, "encode"):  # an energy, of one image
    inputs = (image, *[label] * conditional)
  else:
    inputs = (batch, *[labels] * conditional)
  shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


if __name__ == "__main__":
  settings.run(main, Settings)
