"""Scores of images by the Inception network that was trained on ImageNet.

  python -m experiments.inception --images=samples.npy --dataset=cifar10 --weights=FILE

prints the inception score of images [n, h, w, 3], uint8, and their distances to the
training and validation images of a data set. These are the scores that papers quote;
the paper's real training set has inception score 11.237.

The network and the scores come from torch-fidelity, an optional dependency. Its
weights, a file of 96 MB, must be given: nothing is downloaded here. 50 000 images take
minutes on a GPU, and hours on two CPU cores.
"""

import dataclasses
import json
import sys
from typing import ClassVar

import numpy as np

from experiments.pictures import inception
from experiments.shared import loading, settings
from experiments.shared.settings import setting


@dataclasses.dataclass(frozen=True)
class Settings(loading.Data):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.inception"

  images: str | None = setting(
    None, "A .npy file of images [n, h, w, 3], uint8.", required=True
  )
  weights: str | None = setting(
    None, f"The file {inception.WEIGHTS}; see {inception.URL}"
  )
  progress: bool = setting(True, "Show progress bars.")


def main(own: Settings) -> None:
  try:
    inception.check_requirements(own.weights)
    images = _read_images(own.images)
    dataset = loading.load(own, 1)
    real = np.concatenate([dataset.train, dataset.validation])
    scores = inception.inception_scores(
      images, real, weights_path=own.weights, progress=own.progress
    )
  except (ImportError, OSError, ValueError) as error:
    sys.exit(str(error))
  print(json.dumps(scores, indent=1))


def _read_images(path: str) -> np.ndarray:
  try:
    return np.lib.format.open_memmap(path, mode="r")
  except ValueError as error:
    raise ValueError(
      f"--images={path} is not a .npy file of images: {error}"
    ) from error


if __name__ == "__main__":
  settings.run(main, Settings)
