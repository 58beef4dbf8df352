"""Images in random order for `training.fit`, decoded while it trains.

LSUN's bedrooms are 3 million images, 37 GB at 64x64: more than fits into memory.
"""

from __future__ import annotations

import numpy as np

from experiments.pictures.decoding import DecodedImages
from experiments.pictures.prefetching import (
  import_grain,
  number_of_threads,
  prefetched,
)
from experiments.pictures.sources import Source
from stein_jax import training


def stream(
  source: Source | np.ndarray,
  *,
  size: int,
  seed: int,
  crop: float = 1.0,
  num_workers: int | None = None,
) -> training.Stream:
  """Images in random order for `training.fit`, decoded when they are needed.

  Every epoch has its own order, which grain draws from the seed and the number of the
  epoch. With N images and batches of m,

    epoch, i = divmod(t, N // m),  batch t = order of the epoch[i·m : (i + 1)·m]

  so that batch t depends on t alone. An epoch leaves out the last N mod m images of
  its order.

  Args:
    source: a `Source`; or images that are decoded already, uint8 [n, size, size, c],
      such as the memory-mapped ones of `square_images.load_images`.
    size: the side of the images, in pixels.
    seed: of the order, at least 0.
    crop: as in `decoding.decode`; `decoding.crop_of(name)` gives it. Decoded images
      are not cropped.
    num_workers: the number of threads that decode; None: one for each processor, at
      most 16; 0: the thread of `fit` decodes.

  Returns: a `training.Stream` of uint8 [length, m, size, size, c].

  Raises:
    ValueError: decoded images have another size or type; while the stream is read, an
      image cannot be decoded.
    ImportError: grain is not installed.
  """
  images: DecodedImages | np.ndarray
  if isinstance(source, Source):
    images, event = DecodedImages(source, size, crop), (size, size, 3)
  else:
    images, event = source, source.shape[1:]
    if source.ndim != 4 or event[:2] != (size, size) or source.dtype != np.uint8:
      raise ValueError(
        f"decoded images must be uint8 [n, {size}, {size}, c], got {source.dtype} "
        f"{list(source.shape)}"
      )
  return _Shuffled(images, event, seed, number_of_threads(num_workers))


class _Shuffled:
  """A `training.Stream` of images that grain shuffles."""

  def __init__(
    self,
    images: DecodedImages | np.ndarray,
    event: tuple[int, ...],
    seed: int,
    num_threads: int,
  ):
    dataset = import_grain().MapDataset.source(images)
    self.num_examples = len(images)
    self._shuffled = dataset.seed(seed).shuffle()
    self._event, self._num_threads = event, num_threads

  def batches(
    self,
    first_step: int,
    length: int,
    batch_size: int,
    rows: np.ndarray | None = None,
  ) -> np.ndarray:
    """The batches of `length` steps from `first_step` on.

    Args:
      first_step: the first step.
      length: the number of steps.
      batch_size: m.
      rows: the indices, within a batch, of the images to read; None: all of them.

    Returns: uint8 [length, m or len(rows), size, size, c].
    """
    rows = np.arange(batch_size) if rows is None else rows
    steps_per_epoch = self.num_examples // batch_size

    def batch(step: int) -> np.ndarray:
      epoch, i = divmod(step, steps_per_epoch)
      # grain's indices go on into the next epoch, which has a new order.
      first = epoch * self.num_examples + i * batch_size
      return np.stack([self._shuffled[first + int(row)] for row in rows])

    steps = range(first_step, first_step + length)
    chosen = import_grain().MapDataset.source(steps).map(batch)
    batches = np.empty((length, len(rows), *self._event), np.uint8)
    for i, batch in enumerate(prefetched(chosen, self._num_threads)):
      batches[i] = batch
    return batches
