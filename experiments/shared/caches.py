"""The cache of decoded arrays: memory-mapped .npy files, written once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.shared import folders
from stein_jax.training.files import open_atomically


def resolve_cache_dir(cache_dir: str | os.PathLike[str] | None = None) -> Path:
  """`cache_dir`, else $STEIN_JAX_CACHE, else ~/.cache/stein_jax."""
  cache_dir = cache_dir or os.environ.get("STEIN_JAX_CACHE") or "~/.cache/stein_jax"
  return Path(cache_dir).expanduser().resolve()


def require_usable(cache_dir: Path) -> None:
  """Raises OSError, with a message for the user, where nothing can be written."""
  try:
    folders.require_usable(cache_dir)
  except OSError as error:
    raise OSError(
      f"--cache_dir={cache_dir}: nothing can be written there ({error.strerror}). "
      "Choose another --cache_dir."
    ) from error


def cache_of(
  full_name: str,
  directory: Path,
  cache_dir: Path,
  files: Iterable[str | os.PathLike[str]] | None = None,
) -> Path:
  """The folder for the decoded arrays of a source in its present state.

  Args:
    full_name: the name of the source, such as "mnist/3.0.1".
    directory: the folder of the source.
    cache_dir: the folder of all caches.
    files: the files of the source; by default all in its folder. The name of the cache
      depends on their sizes and times, so that a source that was prepared again gets a
      new cache.
  """
  identity = [str(directory)]
  for path in sorted(directory.iterdir()) if files is None else files:
    status = os.stat(path)
    # Size alone is not enough: array_record pads its files.
    name = os.path.relpath(path, directory)
    identity.append(f"{name} {status.st_size} {status.st_mtime_ns}")
  digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
  return cache_dir / f"{full_name.replace('/', '-')}-{digest}"


def read_through(
  cache: Path,
  split: str,
  examples: Callable[[], Iterable[tuple[np.ndarray, int | None]]],
  n: int,
  *,
  name: str,
  labelled: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
  """A split's images, memory-mapped from the cache, and its labels in memory.

  Args:
    cache: the folder, from `cache_of`.
    split: the name of the split, and of its files.
    examples: decodes the split; called where the cache does not hold it. It yields
      pairs of a uint8 image, all of one shape [h, w, c], and a label or None.
    n: the number of examples.
    name: the name of the data set, for messages.
    labelled: whether the examples have labels.

  Returns: images uint8 [n, h, w, c]; labels int32 [n], or None without labels.

  Raises:
    ValueError: the images have several shapes.
    OSError: the cache cannot be written or read.
  """
  image_path, label_path = cache / f"{split}-images.npy", cache / f"{split}-labels.npy"

  def read() -> tuple[np.ndarray | None, np.ndarray | None]:
    images = _read_npy(image_path, n, np.uint8, ndim=4)
    return images, _read_npy(label_path, n, np.int32, ndim=1) if labelled else None

  images, labels = read()
  if images is None or (labelled and labels is None):
    require_usable(cache)
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
  """The array of n entries in `path`, memory-mapped, or None if it is incomplete."""
  try:
    array = np.lib.format.open_memmap(path, mode="r")
  except Exception:  # of any kind: the cache can be built again
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
  with open_atomically(image_path) as image_file:
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
    if label_path is not None:  # first: where there are images, there are labels
      with open_atomically(label_path) as label_file:
        np.save(label_file, labels)
