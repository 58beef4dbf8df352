"""Prepares tfds data sets as array_record, the form that the experiments read."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.shared import datasets, tfds_data

CONNECT_S, READ_S = 5.0, 60.0  # seconds that a download host has to answer


class CannotPrepare(tfds_data.DatasetNotPrepared):
  """The data set is not prepared, and preparing it failed."""


def load_or_prepare(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  manual_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
  validation_fraction: float = 0.1,
) -> datasets.Dataset:
  """`datasets.load`, which prepares the data first if necessary and possible.

  Args:
    name, data_dir, cache_dir, validation_fraction: as in `datasets.load`.
    manual_dir: as in `prepare`.

  Returns: a `datasets.Dataset`.

  Raises:
    CannotPrepare: preparing failed. It is raised within seconds; the message has the
      reason, and all that can be done.
    Otherwise as `datasets.load`.
  """
  load = functools.partial(
    datasets.load,
    name,
    data_dir=data_dir,
    cache_dir=cache_dir,
    validation_fraction=validation_fraction,
  )
  try:
    return load()
  except tfds_data.WrongFileFormat:
    raise  # preparing it again in the same directory would not help
  except tfds_data.DatasetNotPrepared as missing:
    try:
      prepare(name, data_dir, manual_dir)
    except CannotPrepare as reason:
      raise CannotPrepare(f"{missing}\nPreparing it failed: {reason}") from reason
  return load()


def prepare(
  name: str,
  data_dir: str | os.PathLike[str] | None = None,
  manual_dir: str | os.PathLike[str] | None = None,
) -> Path:
  """Downloads and prepares a tfds data set as array_record, unless it is there.

  Args:
    name: a tfds name: "mnist", "emnist/letters".
    data_dir: where to prepare it; by default as in `datasets.load`.
    manual_dir: a folder with files that were downloaded before, under their own names.

  Returns: the directory of the prepared data.

  Raises:
    CannotPrepare: TensorFlow is missing, a download host cannot be reached, or
      tfds fails.
    tfds_data.WrongFileFormat: it is prepared there, but not as array_record.
    tfds_data.UnknownDataset: tfds has no data set of this name.
  """
  try:
    return tfds_data.find_prepared(name, data_dir)
  except tfds_data.WrongFileFormat:
    raise
  except tfds_data.DatasetNotPrepared:
    pass
  _check_what_is_there(name, data_dir)
  if importlib.util.find_spec("tensorflow") is None:
    raise CannotPrepare(
      f'Preparing "{name}" needs TensorFlow, which is not installed: '
      'pip install "stein_jax[prepare]" (reading what is prepared needs none of it).'
    )
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hide its start-up messages
  import requests
  import tensorflow as tf
  import tensorflow_datasets as tfds

  # TensorFlow would take the memory of the GPUs from JAX, and does not need it here.
  # Where it is initialised already, this cannot be changed.
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")
  root = tfds_data.resolve_data_dir(data_dir)
  manual = Path(manual_dir).expanduser().resolve() if manual_dir else None
  builder = None
  try:
    builder = tfds.builder(name, data_dir=root, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    with _requests_with_time_limit():
      builder.download_and_prepare(download_config=config)
  except requests.ConnectionError as error:
    url = error.request.url if error.request else error
    raise CannotPrepare(
      f'"{name}" needs a download that cannot be reached: {url}\n'
      "Fetch it where there is a network and name its directory with "
      "--manual_dir=DIR. The files that may be needed:\n"
      + _files_to_fetch((builder and builder.url_infos) or {}, manual)
    ) from error
  except Exception as error:  # tfds has hundreds of builders, with errors of all kinds
    raise CannotPrepare(f'tfds could not prepare "{name}": {error}') from error
  return tfds_data.find_prepared(name, data_dir)


def _check_what_is_there(name: str, data_dir: str | os.PathLike[str] | None) -> None:
  """tfds may read other configurations and versions, which must run no code either."""
  dataset = tfds_data.check_name(name)["dataset"]
  folder = tfds_data.resolve_data_dir(data_dir) / dataset
  for file in (*folder.glob("*/features.json"), *folder.glob("*/*/features.json")):
    try:
      tfds_data.check_classes(file.parent)
    except ValueError as error:
      raise CannotPrepare(str(error)) from error


@contextlib.contextmanager
def _requests_with_time_limit() -> Iterator[None]:
  """A context in which a host that cannot be reached is an error within seconds.

  tfds tries ten times without a time limit, which takes minutes. Checking its list of
  files in advance would not help: the list holds the files of all configurations, and
  only tfds knows which of them it needs and has.
  """
  import requests

  original_get = requests.Session.get

  def get(session: requests.Session, url: str, **kwargs: Any) -> requests.Response:
    for adapter in session.adapters.values():
      adapter.max_retries = adapter.max_retries.new(connect=0)
    return original_get(session, url, **{"timeout": (CONNECT_S, READ_S), **kwargs})

  requests.Session.get = get
  try:
    yield
  finally:
    requests.Session.get = original_get


def _files_to_fetch(url_infos: dict[str, Any], manual: Path | None) -> str:
  """One line for each file that tfds would download and `manual` does not hold."""
  missing = [
    f"  {url} as {info.filename or 'named there'}"
    for url, info in url_infos.items()
    if not (manual and info.filename and (manual / info.filename).exists())
  ]
  rest = [f"  and {len(missing) - 20} more"] if len(missing) > 20 else []
  return "\n".join(missing[:20] + rest)
