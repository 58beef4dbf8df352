"""Scores of pictures in the view of the Inception network that ImageNet trained.

  python -m experiments.inception --images=samples.npy --dataset=cifar10 --weights=FILE

prints the inception score of pictures [n, h, w, 3], uint8, and their distances to the
training and validation pictures of a data set. These are the numbers that papers quote;
the paper's real training set has inception score 11.237.

The network and the scores are torch-fidelity's, an optional extra. Its weights are a
file of 96 MB, which torch-fidelity would download by itself; here it has to be given.
50 000 pictures take minutes on a GPU, and hours on two CPU cores.
"""

import hashlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from absl import app, flags

from experiments.shared import common

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""The name of torch-fidelity's file of the network's weights."""

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of that file."""

URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"

SPLITS = 10
"""Over as many parts of the pictures the inception score is averaged."""

_SUBSET = 1000  # pictures, whose kernel distances are averaged


def main(argv: list[str]) -> None:
  common.refuse_arguments(argv)
  values = flags.FLAGS
  try:
    check_requirements(values.weights)
    images = np.load(values.images, mmap_mode="r")
    dataset = common.load_data(1)
    real = np.concatenate([dataset.train, dataset.validation])
    scores = inception_scores(
      images, real, weights_path=values.weights, progress=values.progress
    )
  except (ImportError, OSError, ValueError) as error:
    sys.exit(str(error))
  print(json.dumps(scores, indent=1))


def inception_scores(
  images: np.ndarray,
  real: np.ndarray,
  *,
  weights_path: str | os.PathLike[str] | None,
  batch_size: int = 64,
  progress: bool = True,
) -> dict[str, float]:
  """Inception score, and Fréchet and kernel Inception distance, by torch-fidelity.

  Args:
    images: `[n, h, w, 3]`, uint8, n ≥ 10; papers take 50 000.
    real: `[n', h, w, 3]`, uint8; the Fréchet distance is biased by n and n', so tell
      them with it.
    weights_path: the file `WEIGHTS`.
    batch_size: pictures that the network sees at a time.
    progress: whether to show progress bars.

  Returns:
    imagenet_inception_score, the mean over ten parts of the pictures;
    imagenet_kernel_inception_distance, the mean over a hundred draws of 1000 (or of as
    many as there are); each also with _standard_deviation over those; and
    imagenet_frechet_distance.

  Raises:
    ImportError: torch-fidelity is not installed.
    FileNotFoundError: no weights.
    ValueError: another file in place of the weights, or pictures of another kind.
  """
  for name, array in (("images", images), ("real", real)):
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
      raise ValueError(
        f"{name} must be colour pictures [n, h, w, 3] of uint8, got shape "
        f"{array.shape} of {array.dtype}."
      )
    if len(array) < SPLITS:
      raise ValueError(f"{name} must be at least {SPLITS}, got {len(array)}.")
  torch, fidelity = check_requirements(weights_path)

  def as_dataset(pictures: np.ndarray) -> object:
    channels_first = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    rows = torch.from_numpy(channels_first)
    return torch.utils.data.Subset(rows, range(len(rows)))

  found = fidelity.calculate_metrics(
    input1=as_dataset(images),
    input2=as_dataset(real),
    isc=True,
    fid=True,
    kid=True,
    isc_splits=SPLITS,
    kid_subset_size=min(_SUBSET, len(images), len(real)),
    feature_extractor_weights_path=os.fspath(weights_path),
    batch_size=batch_size,
    cuda=torch.cuda.is_available(),
    cache=False,
    save_cpu_ram=True,  # no worker processes, whose forks JAX's threads would not stand
    verbose=progress,
  )
  return {
    "imagenet_inception_score": found["inception_score_mean"],
    "imagenet_inception_score_standard_deviation": found["inception_score_std"],
    "imagenet_frechet_distance": found["frechet_inception_distance"],
    "imagenet_kernel_inception_distance": found["kernel_inception_distance_mean"],
    "imagenet_kernel_inception_distance_standard_deviation": found[
      "kernel_inception_distance_std"
    ],
  }


def check_requirements(
  weights_path: str | os.PathLike[str] | None,
) -> tuple[ModuleType, ModuleType]:
  """torch and torch_fidelity, if they and the weights are there; call it early.

  Args:
    weights_path: the file `WEIGHTS`.

  Raises:
    ImportError, FileNotFoundError, ValueError: as `inception_scores`.
  """
  try:
    import torch
    import torch_fidelity
  except ImportError as error:
    raise ImportError(
      f"the Inception network comes with torch-fidelity, which cannot be imported "
      f'({error}): pip install "stein_jax[inception]"'
    ) from error
  path = None if weights_path is None else Path(weights_path)
  if path is None or not path.is_file():
    given = "are not given" if path is None else f"are not in {path}"
    raise FileNotFoundError(
      f"the Inception network's weights {given}. Download {WEIGHTS} (96 MB) from\n"
      f"  {URL}\n"
      "and give its path: --weights, or weights_path."
    )
  with open(path, "rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if digest != SHA256:
    raise ValueError(
      f"{path} is not the file {WEIGHTS}: its SHA-256 is {digest} and not {SHA256}. "
      f"Download it again from\n  {URL}"
    )
  return torch, torch_fidelity


def _define_flags() -> None:
  common.define_data_flags()
  flags.DEFINE_string("images", None, "A .npy file of pictures [n, h, w, 3], uint8.")
  flags.DEFINE_string("weights", None, f"The file {WEIGHTS}; see {URL}")
  flags.DEFINE_bool("progress", True, "Show progress bars.")
  flags.mark_flag_as_required("images")


if __name__ == "__main__":
  _define_flags()
  app.run(main)
