"""Scores of images by the Inception network that was trained on ImageNet.

These are the scores that papers quote. The network and the scores come from
torch-fidelity, an optional dependency. Its weights, a file of 96 MB, have to be given:
nothing is downloaded here.
"""

import hashlib
import os
from pathlib import Path
from types import ModuleType

import numpy as np

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""The name of torch-fidelity's file with the network's weights."""

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""The checksum of that file."""

URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS}"

SPLITS = 10
"""The inception score is the mean over this many parts of the images."""

_SUBSET = 1000  # images in each random subset of the kernel distance


def inception_scores(
  images: np.ndarray,
  real: np.ndarray,
  *,
  weights_path: str | os.PathLike[str] | None,
  batch_size: int = 64,
  progress: bool = True,
) -> dict[str, float]:
  """The inception score, and the Fréchet and kernel Inception distances.

  Args:
    images: `[n, h, w, 3]`, uint8, n ≥ 10; papers use 50 000.
    real: `[n', h, w, 3]`, uint8. The Fréchet distance is biased, and its bias depends
      on n and n': report both with it.
    weights_path: the path of the file `WEIGHTS`.
    batch_size: the number of images in each pass through the network.
    progress: whether to show progress bars.

  Returns:
    imagenet_inception_score, the mean over ten parts of the images;
    imagenet_kernel_inception_distance, the mean over a hundred random subsets of 1000
    images (or of all, if there are fewer); the standard deviation of each, under the
    name with the suffix _standard_deviation; and imagenet_frechet_distance.

  Raises:
    ImportError: torch-fidelity is not installed.
    FileNotFoundError: there is no file of weights.
    ValueError: the file of weights has another checksum, or the images have another
      shape or type.
  """
  for name, array in (("images", images), ("real", real)):
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
      raise ValueError(
        f"{name} must be colour images [n, h, w, 3] of uint8, got shape "
        f"{array.shape} of {array.dtype}."
      )
    if len(array) < SPLITS:
      raise ValueError(f"{name} must hold at least {SPLITS} images, got {len(array)}.")
  torch, fidelity = check_requirements(weights_path)

  def as_dataset(images: np.ndarray) -> object:
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
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
    save_cpu_ram=True,  # no worker processes: forking is unsafe with JAX's threads
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
  """Checks that torch-fidelity and the weights are present, before any long work.

  Args:
    weights_path: the path of the file `WEIGHTS`.

  Returns:
    The modules torch and torch_fidelity.

  Raises:
    ImportError, FileNotFoundError, ValueError: as in `inception_scores`.
  """
  try:
    import torch
    import torch_fidelity
  except ImportError as error:
    raise ImportError(
      f"the Inception network is part of torch-fidelity, which cannot be imported "
      f'({error}): pip install "stein_jax[inception]"'
    ) from error
  path = None if weights_path is None else Path(weights_path)
  if path is None or not path.is_file():
    given = "are not given" if path is None else f"are not in {path}"
    raise FileNotFoundError(
      f"the Inception network's weights {given}. Download {WEIGHTS} (96 MB) from\n"
      f"  {URL}\n"
      "and give its path: --weights of experiments.inception, --inception_weights of "
      "experiments.evaluate, or weights_path."
    )
  with open(path, "rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  if digest != SHA256:
    raise ValueError(
      f"{path} is not the file {WEIGHTS}: its SHA-256 is {digest} instead of {SHA256}. "
      f"Download it again from\n  {URL}"
    )
  return torch, torch_fidelity
