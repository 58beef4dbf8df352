"""Encoded images by index: from a folder, from an lmdb, or from what tfds prepared."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments.shared import tfds_data

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Files with these endings, in capitals or not, are read as images."""


@dataclasses.dataclass(frozen=True)
class Source:
  """Encoded images by index: `len(source)` of them, `source[i]` as bytes.

  Attributes:
    where: the location, in words, for messages.
    count: the number of images.
    read: index -> the bytes of a JPEG, PNG or WebP file. Threads may call it.
    directory: the folder that holds them.
    files: the files in `directory` that hold the images; None: all of its files.
  """

  where: str
  count: int
  read: Callable[[int], bytes]
  directory: Path
  files: Sequence[str] | None = None

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> bytes:
    return self.read(index)


def folder_source(path: str | os.PathLike[str]) -> Source:
  """The image files of a folder and its subfolders, sorted by path.

  Image files are those with one of the `SUFFIXES`.

  Raises:
    tfds_data.DatasetNotPrepared: the folder holds no image file.
  """
  folder = Path(path).expanduser().resolve()
  files = sorted(
    os.path.join(parent, file)
    for parent, _, names in os.walk(folder)
    for file in names
    if file.lower().endswith(SUFFIXES)
  )
  if not files:
    raise tfds_data.DatasetNotPrepared(
      f"No {', '.join(SUFFIXES)} file in {folder}"
      + ("." if folder.is_dir() else ", which does not exist.")
    )

  def read(index: int) -> bytes:
    return Path(files[index]).read_bytes()

  return Source(f"the images in {folder}", len(files), read, folder, files)


def lmdb_source(path: str | os.PathLike[str]) -> Source:
  """The images in an lmdb, the format in which LSUN is published.

  The keys are listed when the first image is read; for LSUN's bedrooms that takes a
  minute.

  Args:
    path: a folder that contains the file data.mdb.

  Raises:
    tfds_data.DatasetNotPrepared: there is no data.mdb, or it is empty or damaged.
    ImportError: the package lmdb is not installed.
  """
  folder = Path(path).expanduser().resolve()
  file = folder / "data.mdb"
  if not file.is_file():
    raise tfds_data.DatasetNotPrepared(f"No lmdb in {folder}: it has no file data.mdb.")
  with _undamaged(file):
    environment = _open_lmdb(str(folder))
  status = environment.stat()
  count = status["entries"]
  if not count:
    raise tfds_data.DatasetNotPrepared(f"The lmdb in {folder} holds no images.")
  # Reading pages beyond the end of the file would kill the process.
  size = (environment.info()["last_pgno"] + 1) * status["psize"]
  if file.stat().st_size < size:
    raise _damaged(file, f"it is shorter than its {size} bytes")

  @functools.cache
  def keys() -> list[bytes]:
    with environment.begin() as transaction:
      return list(transaction.cursor().iternext(keys=True, values=False))

  def read(index: int) -> bytes:
    with _undamaged(file), environment.begin() as transaction:
      return transaction.get(keys()[index])

  return Source(f"the lmdb in {folder}", count, read, folder, [str(file)])


@contextlib.contextmanager
def _undamaged(file: Path) -> Iterator[None]:
  """A context in which lmdb's errors become a message about the file."""
  try:
    yield
  except (OSError, ImportError):
    raise
  except Exception as error:
    if type(error).__module__.partition(".")[0] != "lmdb":
      raise
    raise _damaged(file, str(error)) from error


def _damaged(file: Path, reason: str) -> tfds_data.DatasetNotPrepared:
  return tfds_data.DatasetNotPrepared(
    f"{file} is damaged or cut short ({reason}): copy or download it again."
  )


@functools.cache  # a process may open an lmdb only once
def _open_lmdb(folder: str):
  try:
    import lmdb
  except ImportError as error:
    raise ImportError(
      f"Reading the lmdb in {folder} needs the package lmdb: pip install "
      '"stein_jax[lsun]". Or export its images to a folder and give that folder.'
    ) from error
  # It is only read, so no lock file is needed; a read-only folder could not hold one.
  return lmdb.open(folder, readonly=True, lock=False, readahead=False, meminit=False)


def tfds_source(
  name: str, split: str, *, data_dir: str | os.PathLike[str] | None = None
) -> Source:
  """The images of a split that tfds has prepared.

  Args:
    name: "celeb_a", "lsun/bedroom", or any other tfds data set of images.
    split: "train", "validation", "test".
    data_dir: as in `datasets.load`.

  Raises:
    ValueError: the split is empty or does not exist.
    Otherwise as `datasets.load`.
  """
  return prepared_source(tfds_data.open_prepared(name, data_dir), split)


def prepared_source(prepared: tfds_data.Prepared, split: str) -> Source:
  """`tfds_source` of a data set that is open already."""
  count = prepared.size(split)
  if not count:
    raise ValueError(
      f'Data set "{prepared.name}" has no examples in split "{split}"; '
      f"{prepared.directory} holds {prepared.counts}."
    )
  where = f'split "{split}" of {prepared.full_name} in {prepared.directory}'
  return Source(where, count, prepared.encoded(split), prepared.directory)


def lsun_sources(name: str, folder: Path) -> dict[str, Source]:
  """The splits of LSUN, read from files that were not prepared by tfds.

  A folder that holds data.mdb or image files is one split, "train". Otherwise its
  subfolders `bedroom_train_lmdb` and `bedroom_val_lmdb` (or those of another
  category), or `train` and `validation`, are two.

  Args:
    name: "lsun/bedroom", or another category.
    folder: the folder to look in.

  Returns:
    split -> source; empty if the folder holds none of these.
  """
  whole = _files_source(folder)
  if whole is not None:
    return {"train": whole}
  category = lsun_category(name)
  for train, validation in (
    (f"{category}_train_lmdb", f"{category}_val_lmdb"),
    ("train", "validation"),
  ):
    if (folder / train).is_dir() and (folder / validation).is_dir():
      folders = {"train": folder / train, "validation": folder / validation}
      return {
        split: _files_source(path) or folder_source(path)
        for split, path in folders.items()
      }
  return {}


def lsun_category(name: str) -> str:
  """The category in a name of LSUN: "lsun/bedroom:3.1.0" -> "bedroom"."""
  return name.split(":")[0].partition("/")[2] or "CATEGORY"


def _files_source(folder: Path) -> Source | None:
  """The source of a folder that directly contains data.mdb or images; else None."""
  if (folder / "data.mdb").is_file():
    return lmdb_source(folder)
  if not folder.is_dir():
    return None
  with os.scandir(folder) as entries:
    has_images = any(entry.name.lower().endswith(SUFFIXES) for entry in entries)
  return folder_source(folder) if has_images else None
