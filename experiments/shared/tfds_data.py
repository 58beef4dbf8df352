"""What tfds has prepared on this machine, read without TensorFlow or a network."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from experiments.shared import embedded

_NAME = re.compile(
  r"(?P<dataset>\w+)(/(?P<config>\w[\w.+-]*))?(:(?P<version>\d+\.\d+\.\d+))?"
)
_CONFIG = re.compile(r"\w[\w.+-]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class DatasetNotPrepared(FileNotFoundError):
  """A tfds data set that is not prepared; the message says what can be done."""


class WrongFileFormat(DatasetNotPrepared):
  """Prepared in another file format than array_record, the one that is read here."""


class UnknownDataset(ValueError):
  """A name that is not the embedded data, not on disk, and not known to tfds."""


def resolve_data_dir(data_dir: str | os.PathLike[str] | None = None) -> Path:
  """`data_dir`, else $TFDS_DATA_DIR, else tfds's own default."""
  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return Path(data_dir).expanduser().resolve()


def check_name(name: str) -> re.Match[str]:
  """The parts of a tfds name, which cannot lead out of `data_dir`.

  Raises:
    UnknownDataset: it is not such a name.
  """
  parsed = _NAME.fullmatch(name)
  if parsed is None:
    raise UnknownDataset(
      f'"{name}" is not a tfds name (mnist, emnist/letters, mnist:3.0.1); '
      f"the embedded data set is {embedded.NAME}."
    )
  return parsed


def find_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
  """The directory of the prepared data, found by looking at files only.

  tfds's own search may use the network, and hangs for minutes where there is none.

  Args:
    name: a tfds name, with or without a configuration and a version; without a
      version the newest one is found.
    data_dir: as in `datasets.load`.

  Returns: `data_dir`/name[/config]/version.

  Raises:
    DatasetNotPrepared, WrongFileFormat, UnknownDataset: as in `datasets.load`.
  """
  parsed = check_name(name)
  dataset, config, version = parsed.group("dataset", "config", "version")
  root = resolve_data_dir(data_dir)
  config = config or _default_config(root / dataset)
  found = _versions(root / dataset / config if config else root / dataset)
  found = [path for path in found if version in (None, path.name)]
  if not found:
    _require_known(dataset)
    raise DatasetNotPrepared(_not_prepared(name, dataset, root, data_dir))
  directory = found[-1]
  formats = _file_formats(directory)
  if "array_record" not in formats:
    raise WrongFileFormat(
      f'Data set "{name}" is prepared in {directory}, but as {" and ".join(formats)}; '
      "only array_record can be read without TensorFlow. Prepare it again elsewhere:\n"
      f"  python -m experiments.prepare_data --dataset={name} --data_dir=ANOTHER_DIR\n"
      "and pass the same --data_dir, or use the embedded digits: "
      f"--dataset={embedded.NAME}"
    )
  return directory


def _versions(directory: Path) -> list[Path]:
  """The prepared versions, oldest first: tfds writes dataset_info.json last."""
  found = [
    info.parent
    for info in directory.glob("*/dataset_info.json")
    if _VERSION.fullmatch(info.parent.name)
  ]
  return sorted(found, key=lambda path: [int(part) for part in path.name.split(".")])


def _default_config(directory: Path) -> str | None:
  """The configuration that tfds recorded as the default."""
  try:
    noted = json.loads((directory / ".config" / "metadata.json").read_text())
    config = noted["default_config_name"]
    return config if _CONFIG.fullmatch(config) else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _file_formats(directory: Path) -> list[str]:
  info = _read_json(directory / "dataset_info.json")
  # tfds did not write the format when tfrecord was the only one.
  others = info.get("alternativeFileFormats") or []
  return [str(info.get("fileFormat", "tfrecord")), *map(str, others)]


def _require_known(dataset: str) -> None:
  known = _import_tfds().list_builders(with_community_datasets=False)
  if dataset in known:
    return
  near = difflib.get_close_matches(dataset, [*known, embedded.NAME], n=4)
  raise UnknownDataset(
    f'tfds has no data set "{dataset}"'
    + (f"; similar names: {', '.join(near)}" if near else "")
    + f". The embedded data set is {embedded.NAME}."
  )


def _not_prepared(
  name: str, dataset: str, root: Path, data_dir: str | os.PathLike[str] | None
) -> str:
  if data_dir:
    origin, option = "given as data_dir", f" --data_dir={shlex.quote(str(data_dir))}"
  elif os.environ.get("TFDS_DATA_DIR"):
    origin, option = "from TFDS_DATA_DIR", ""
  else:
    origin, option = "tfds's default", ""
  note = "" if root.is_dir() else ", which does not exist"
  there = [f"{dataset}:{path.name}" for path in _versions(root / dataset)] + [
    f"{dataset}/{config.name}"
    for config in sorted((root / dataset).glob("*/"))
    if _versions(config)
  ]
  return (
    f'Data set "{name}" is not prepared: looked in {root} ({origin}){note}.\n'
    + (f"Prepared there: {', '.join(there)}.\n" if there else "")
    + "What you can do:\n"
    "  prepare it there (needs TensorFlow, and the network or the downloaded files):\n"
    f"    python -m experiments.prepare_data --dataset={name}{option}\n"
    "  say where it is prepared, as array_record:\n"
    "    --data_dir=DIR, or the environment variable TFDS_DATA_DIR=DIR\n"
    "  use the embedded 5 000 digits of MNIST:\n"
    f"    --dataset={embedded.NAME}"
  )


def _import_tfds() -> ModuleType:
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise ImportError(
      f'tfds cannot be imported ({error}): pip install "stein_jax[experiments]", or '
      f"use the embedded data: --dataset={embedded.NAME}"
    ) from error
  return tfds


class Prepared(NamedTuple):
  """A prepared data set of images."""

  name: str
  directory: Path
  builder: Any
  image_key: str
  label_key: str | None

  @property
  def full_name(self) -> str:
    """With configuration and version: "lsun/bedroom/3.1.0"."""
    return self.builder.info.full_name

  @property
  def counts(self) -> str:
    """The sizes of the splits as text: "train 60000, test 10000"."""
    splits = self.builder.info.splits
    return ", ".join(f"{split} {self.size(split)}" for split in splits)

  def size(self, split: str) -> int:
    """The number of examples of a split; 0 if there is no such split."""
    splits = self.builder.info.splits
    return splits[split].num_examples if split in splits else 0

  def encoded(self, split: str) -> Callable[[int], bytes]:
    """A function from an index to an encoded picture of the split (JPEG, PNG)."""
    tfds = _import_tfds()
    with _quiet_absl():
      examples = self.builder.as_data_source(
        split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
      )
    # Only the image: decoding CelebA's attributes takes longer than its pictures.
    image = {self.image_key: self.builder.info.features[self.image_key]}
    features = tfds.features.FeaturesDict(image)
    skip = {self.image_key: tfds.decode.SkipDecoding()}

    def read(index: int) -> bytes:
      example = features.deserialize_example_np(examples[index], decoders=skip)
      return example[self.image_key]

    return read


def open_prepared(
  name: str, data_dir: str | os.PathLike[str] | None = None
) -> Prepared:
  """Opens what tfds has prepared; name, data_dir and errors as in `datasets.load`."""
  directory = find_prepared(name, data_dir)
  with _quiet_absl():
    return _open_prepared(name, directory)


def _open_prepared(name: str, directory: Path) -> Prepared:
  tfds = _import_tfds()
  # tfds.data_source starts from the data set's code and may use the network. This reads
  # the directory only, and the version that is there.
  check_classes(directory)
  try:
    builder = tfds.builder_from_directory(directory)
  except Exception as error:  # of any kind: the files may hold anything
    raise ValueError(f"{directory} is damaged: {error}") from error
  features = builder.info.features

  def pick(kind: type, usual: str) -> str | None:
    keys = [key for key in features if isinstance(features[key], kind)]
    return usual if usual in keys else keys[0] if len(keys) == 1 else None

  image_key = pick(tfds.features.Image, "image")
  if image_key is None or features[image_key].np_dtype != np.uint8:
    raise ValueError(
      f'Data set "{name}" is not one of 8-bit images: its features are {features}'
    )
  label_key = pick(tfds.features.ClassLabel, "label")
  return Prepared(name, directory, builder, image_key, label_key)


_OF_TFDS = re.compile(r"tensorflow_datasets(\.\w+)+")
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


def check_classes(directory: Path) -> None:
  """Checks that a prepared data set has only features of tfds itself.

  tfds imports the module of every class that features.json names, so that a folder
  could run any code.

  Raises:
    ValueError: the file names another class, or is not JSON.
  """
  file = directory / "features.json"
  for name in _class_names(_read_json(file)):
    if not (isinstance(name, str) and _OF_TFDS.fullmatch(name)):
      raise ValueError(
        f"{file} names the class {name}, which is not part of tensorflow_datasets: it "
        "could run any code, and is not loaded. Prepare the data set with tfds's own "
        "features."
      )


def _class_names(value: Any) -> Iterator[Any]:
  """All classes that features.json names, also within texts that are JSON."""
  if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
    with contextlib.suppress(ValueError):
      yield from _class_names(json.loads(value))
  elif isinstance(value, list):
    for entry in value:
      yield from _class_names(entry)
  elif isinstance(value, dict):
    for key, entry in value.items():
      if key in _CLASS_KEYS and not isinstance(entry, dict):
        yield entry
      yield from _class_names(entry)


def _read_json(path: Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text())
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is damaged: {error}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path} is damaged: it holds no table of names")
  return value


def examples(prepared: Prepared, split: str) -> Iterator[dict[str, Any]]:
  """The decoded examples in order."""
  with _quiet_absl():
    source = prepared.builder.as_data_source(split=split)
    for i in range(len(source)):
      yield source[i]


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
  """A context that hides tfds's messages, such as that PIL decodes without OpenCV."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)
