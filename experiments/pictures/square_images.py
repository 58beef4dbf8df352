"""Whole data sets of square images of one size: decoded once, then memory-mapped.

CelebA at 64x64 takes 2.5 GB on disk. Images that are too many for that are streamed:
`experiments.pictures.streams`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.pictures import prefetching, sources
from experiments.pictures.decoding import CROPS, DecodedImages, crop_of
from experiments.pictures.sources import Source
from experiments.shared import caches, datasets, loading, settings, tfds_data
from stein_jax import parallel

DEFAULT_SIZE = 64
"""The side, in pixels, of the images of CelebA and LSUN."""

_WHOLE = {
  "celeb_a": {"train": 162_770, "validation": 19_867, "test": 19_962},
  "lsun/bedroom": {"train": 3_033_042, "validation": 300},
}

_LSUN_VALIDATION = 300  # the size of LSUN's own validation splits


def load_images(
  name: str,
  *,
  size: int | None = None,
  data_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
) -> datasets.Dataset:
  """Loads square images of one size; they are decoded once and then memory-mapped.

  CelebA and LSUN are cropped and resized by `decoding.decode`, with the crops in
  `decoding.CROPS`, and have no labels. LSUN has no test split; its validation split is
  used as both. All other data sets are `datasets.load(name, validation_fraction=0)`:
  their training split stays whole.

  Args:
    name: "cifar10", "celeb_a", "lsun/bedroom", or another that `datasets.load` knows.
    size: the side in pixels; None: 64 for CelebA and LSUN, otherwise the size that the
      images have. 32 adds a black border and two channels to the grey 28×28 images of
      MNIST and similar data sets.
    data_dir: as in `datasets.load`. For LSUN it may also be a folder that holds a
      data.mdb or jpg, png or webp files, of which the last tenth, at most 300, is used
      for validation; or a folder with two such subfolders, `bedroom_train_lmdb` and
      `bedroom_val_lmdb`, or `train` and `validation`.
    cache_dir: as in `datasets.load`; every size has its own array there.

  Returns: a `datasets.Dataset`. Its `source` gives the number of images, and says "a
    subset" if they are known to be fewer than the whole data set.

  Raises:
    ValueError: a size that the images do not have, or an image that cannot be decoded.
    Otherwise as `datasets.load`.
  """
  if size is not None and size < 1:
    raise ValueError(f"size must be at least 1 pixel, got {size}")
  crop = crop_of(name)
  if crop is None:
    return _load_uncropped(name, size, data_dir, cache_dir)
  size = DEFAULT_SIZE if size is None else size
  found, origin = _find_sources(name, data_dir)
  folder = caches.resolve_cache_dir(cache_dir)
  images = {
    split: _decoded(name, split, source, size, crop, folder)
    for split, source in found.items()
  }
  if "validation" not in images:
    kept = len(images["train"]) - min(len(images["train"]) // 10, _LSUN_VALIDATION)
    images["validation"] = images["train"][kept:]
    images["train"] = images["train"][:kept]
  return datasets.Dataset(
    name=name,
    source=f"{origin} {_counts(name, images)} {_cropped(crop, size)}",
    train=images["train"],
    validation=images["validation"],
    test=images.get("test", images["validation"]),
    train_labels=None,
    validation_labels=None,
    test_labels=None,
  )


def load_or_exit(
  name: str, folders: loading.Folders, *, size: int | None
) -> datasets.Dataset:
  """`load_images`; where it raises an error, a message ends the program.

  Of several processes the first loads first, and fills the cache.
  """
  try:
    with parallel.first_process_first("images"):
      return load_images(
        name, size=size, data_dir=folders.data_dir, cache_dir=folders.cache_dir
      )
  except tfds_data.UnknownDataset as error:
    settings.wrong_usage(f"--dataset={name}: {error}")
  except (OSError, ImportError, ValueError) as error:
    sys.exit(f"Images of {name}: {error}")


def with_border(dataset: datasets.Dataset) -> datasets.Dataset:
  """Grey 28×28 images as 32×32 in colour: black border, three equal channels."""

  def bordered(images: np.ndarray) -> np.ndarray:
    return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))).repeat(3, axis=3)

  return dataset._replace(
    source=f"{dataset.source} With a black border, as 32x32 in colour.",
    train=bordered(dataset.train),
    validation=bordered(dataset.validation),
    test=bordered(dataset.test),
  )


def _load_uncropped(
  name: str,
  size: int | None,
  data_dir: str | os.PathLike[str] | None,
  cache_dir: str | os.PathLike[str] | None,
) -> datasets.Dataset:
  dataset = datasets.load(
    name, data_dir=data_dir, cache_dir=cache_dir, validation_fraction=0.0
  )
  height, width, channels = dataset.train.shape[1:]
  if size == 32 and (height, width, channels) == (28, 28, 1):
    return with_border(dataset)
  if size is not None and (height, width) != (size, size):
    raise ValueError(
      f"The images of {name} are {height}x{width}, not {size}x{size}; only those of "
      f"{' and '.join(CROPS)} can be resized: leave the size out."
    )
  return dataset


def _find_sources(
  name: str, data_dir: str | os.PathLike[str] | None
) -> tuple[dict[str, Source], str]:
  """The splits of CelebA or LSUN, and a sentence that says where they come from."""
  tfds_data.check_name(name)
  is_lsun = name.startswith("lsun")
  if is_lsun:
    found = sources.lsun_sources(name, tfds_data.resolve_data_dir(data_dir))
    if found:
      places = " and ".join(source.where for source in found.values())
      return found, f"{name}: read from {places}."
  try:
    prepared = tfds_data.open_prepared(name, data_dir)
  except tfds_data.DatasetNotPrepared as error:
    if not is_lsun:
      raise
    category = sources.lsun_category(name)
    raise type(error)(
      f"{error}\n"
      "  read LSUN's own files:\n"
      "    --data_dir=DIR, where DIR holds data.mdb, or jpg, png or webp files, or\n"
      f"    {category}_train_lmdb and {category}_val_lmdb, or train and validation"
    ) from error
  splits = [s for s in ("train", "validation", "test") if prepared.size(s)]
  found = {split: sources.prepared_source(prepared, split) for split in splits}
  for split in ("train", "validation"):
    if split not in found:
      sources.prepared_source(prepared, split)  # raises; its message lists the splits
  return found, f"{prepared.full_name}: read by tfds from {prepared.directory}."


def _counts(name: str, images: dict[str, np.ndarray]) -> str:
  """The number of images of each split: "A subset: train 850 of 3033042."."""
  whole = _WHOLE.get(name.split(":")[0], {})
  is_subset = any(len(images[s]) < n for s, n in whole.items() if s in images)
  counts = [
    f"{split} {len(found)}" + (f" of {whole[split]}" if is_subset else "")
    for split, found in images.items()
  ]
  test = "" if "test" in images else "; validation is also used as test"
  return ("A subset: " if is_subset else "") + ", ".join(counts) + test + "."


def _cropped(crop: float, size: int) -> str:
  fraction = "" if crop == 1 else f"{crop:.3f} of "
  return f"Central squares of {fraction}the shorter side, resized to {size}x{size}."


def _decoded(
  name: str, split: str, source: Source, size: int, crop: float, cache_dir: Path
) -> np.ndarray:
  """All images of a source, uint8 [n, size, size, 3], memory-mapped."""
  label = f"{name.replace(':', '-')}-{size}px-crop{crop:.3f}"
  cache = caches.cache_of(label, source.directory, cache_dir, source.files)

  def examples() -> Iterator[tuple[np.ndarray, None]]:
    grain = prefetching.import_grain()
    images = grain.MapDataset.source(DecodedImages(source, size, crop))
    for image in prefetching.prefetched(images, prefetching.number_of_threads(None)):
      yield image, None

  images, _ = caches.read_through(
    cache, split, examples, len(source), name=name, labelled=False
  )
  return images
