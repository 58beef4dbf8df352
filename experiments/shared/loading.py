"""Loads the data set that the flags name."""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared import datasets, embedded, preparing, settings, tfds_data
from experiments.shared.settings import setting
from stein_jax import parallel


@dataclasses.dataclass(frozen=True)
class Folders(settings.Settings):
  """Where data is read from, and where it is cached."""

  data_dir: str | None = setting(
    None, "Where tfds data sets are; by default $TFDS_DATA_DIR.", may_differ=True
  )
  cache_dir: str | None = setting(
    None,
    "Where decoded data and classifiers are kept; by default ~/.cache/stein_jax.",
    may_differ=True,
  )


@dataclasses.dataclass(frozen=True)
class Data(Folders):
  """A data set, and its folders."""

  dataset: str = setting(
    embedded.NAME,
    "mnist5k (5 000 real digits, embedded in a PyPI package), or a tfds image data "
    "set: mnist, fashion_mnist, ...",
  )


def load(own: Data, batch_size: int, **options: Any) -> datasets.Dataset:
  """The data that the flags ask for, prepared first if necessary and possible.

  The program ends with a message if it cannot be loaded.

  Args:
    own: the settings.
    batch_size: at most the size of the training set.
    **options: as in `datasets.load`.
  """
  dataset = load_named(own.dataset, own, **options)
  check_batch_size(batch_size, dataset)
  print(f"Data: {dataset.source}", file=sys.stderr)
  return dataset


def load_named(name: str, folders: Folders, **options: Any) -> datasets.Dataset:
  """As `load`, for any name, and without printing where the data was read."""
  try:
    with parallel.first_process_first("data"):
      return preparing.load_or_prepare(
        name, data_dir=folders.data_dir, cache_dir=folders.cache_dir, **options
      )
  except tfds_data.UnknownDataset as error:
    settings.wrong_usage(f"--dataset={name}: {error}")
  except (tfds_data.DatasetNotPrepared, ImportError) as error:
    sys.exit(str(error))
  except ValueError as error:  # pictures of several shapes, or without a test split
    sys.exit(f"--dataset={name}: {error}")


def check_batch_size(batch_size: int, dataset: datasets.Dataset) -> None:
  """Ends the program if a batch is larger than the training set."""
  if batch_size > len(dataset.train):
    settings.wrong_usage(
      f"--batch_size={batch_size} is more than the {len(dataset.train)} training "
      f"points of {dataset.name}."
    )


def load_training_data(own: Data, batch_size: int) -> tuple[str, jax.Array]:
  """The name of the data that the flags ask for, and its training set [n, d], uint8."""
  dataset = load(own, batch_size)
  return dataset.name, jnp.asarray(dataset.train.reshape(len(dataset.train), -1))
