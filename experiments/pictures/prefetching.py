"""Elements made by threads, ahead of their use, through the package grain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

_MAX_THREADS = 16


def prefetched(dataset: Any, num_threads: int) -> Iterator[np.ndarray]:
  """The elements of a `grain.MapDataset`, in order.

  Args:
    dataset: the data set.
    num_threads: as `number_of_threads` returns it; each is up to two elements ahead.
  """
  options = import_grain().ReadOptions(
    num_threads=num_threads, prefetch_buffer_size=2 * num_threads
  )
  elements = iter(dataset.to_iter_dataset(options))
  try:
    yield from elements
  finally:
    elements.close()


def number_of_threads(num_workers: int | None) -> int:
  """`num_workers`, if given; otherwise one thread for each processor, at most 16.

  Raises:
    ValueError: num_workers is negative.
  """
  if num_workers is None:
    return min(os.cpu_count() or 1, _MAX_THREADS)
  if num_workers < 0:
    raise ValueError(f"num_workers must be at least 0, got {num_workers}")
  return num_workers


def import_grain() -> ModuleType:
  """The package grain.

  Raises:
    ImportError: it is not installed; the message says how to install it.
  """
  try:
    import grain
  except ImportError as error:
    raise ImportError(
      f"Images are read by the package grain, which cannot be imported ({error}): "
      'pip install "stein_jax[experiments]"'
    ) from error
  return grain
