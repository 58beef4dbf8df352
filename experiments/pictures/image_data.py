"""Pictures of the deep experiments: cropped to squares of one size, cached or streamed.

`load_images("celeb_a")` decodes once, into a memory-mapped array: CelebA at 64x64 takes
2.5 GB. `stream` decodes while it trains: LSUN's bedrooms are 3 million pictures, 37 GB
at 64x64. Either reads what tfds has prepared; LSUN's bedrooms also come from their own
lmdb, or from a folder of pictures.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from experiments.shared import caches, datasets, tfds_data
from stein_jax import training

CROPS = {
  "celeb_a": 108 / 178,  # 108 of 178 x 218 pixels: the face, as is the custom
  "lsun": 1.0,
}
"""Side of the central square that is kept, as a part of the picture's shorter side."""

DEFAULT_SIZE = 64

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

_WHOLE = {
  "celeb_a": {"train": 162_770, "validation": 19_867, "test": 19_962},
  "lsun/bedroom": {"train": 3_033_042, "validation": 300},
}

_LSUN_VALIDATION = 300  # as many as LSUN's own validation splits hold

_MAX_WORKERS = 16


@dataclasses.dataclass(frozen=True)
class Source:
  """Encoded pictures by index: `len(source)` of them, `source[i]` as bytes.

  Attributes:
    where: says in messages where they are.
    count: how many there are.
    read: index -> the bytes of a JPEG, PNG or WebP file; may be called by threads.
    directory: where they lie.
    files: the files there that hold them; None: all.
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


# --- one picture ------------------------------------------------------------------


def decode(encoded: bytes, *, size: int, crop: float = 1.0) -> np.ndarray:
  """Decodes a picture, cuts out its central square and resizes that.

  The square's side is round(crop * shorter side), at least 1; of an odd margin the
  larger half is at the right and at the bottom. It is resized by Pillow's bicubic
  filter, which widens as it shrinks a picture and so does not alias.

  Args:
    encoded: a file that Pillow reads; greys and palettes become RGB.
    size: the side of the result, in pixels.
    crop: in (0, 1]; 108/178 for CelebA, where 108 x 108 of 178 x 218 pixels is the
      custom (Radford et al., 2016, and after), and as much of pictures of other sizes.

  Returns: uint8 [size, size, 3].
  """
  with Image.open(io.BytesIO(encoded)) as picture:
    width, height = picture.size
    side = max(1, round(crop * min(width, height)))
    left, top = (width - side) // 2, (height - side) // 2
    square = picture.convert("RGB").crop((left, top, left + side, top + side))
  return np.array(square.resize((size, size), Image.Resampling.BICUBIC))


def crop_of(name: str) -> float | None:
  """The entry of `CROPS` for a tfds name; None: such pictures are taken as they are."""
  return CROPS.get(name.split(":")[0].split("/")[0])


class _Pictures:
  """What grain calls a source: the decoded pictures of a `Source`, by index."""

  def __init__(self, source: Source, size: int, crop: float):
    self._source, self._size, self._crop = source, size, crop
    self.shape = (size, size, 3)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> np.ndarray:
    encoded = self._source[index]
    try:
      return decode(encoded, size=self._size, crop=self._crop)
    except Exception as error:  # Pillow's decoders have many
      raise ValueError(
        f"picture {index} of {self._source.where} cannot be decoded: {error}"
      ) from error


# --- where encoded pictures come from ---------------------------------------------


def folder_source(path: str | os.PathLike[str]) -> Source:
  """The jpg, png and webp files of a folder and its subfolders, in order of their path.

  Raises:
    tfds_data.DatasetNotPrepared: there are none.
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

  return Source(f"the pictures in {folder}", len(files), read, folder, files)


def lmdb_source(path: str | os.PathLike[str]) -> Source:
  """The pictures in an lmdb, as LSUN is published: a folder that holds data.mdb.

  Its keys are listed when the first picture is read: for the bedrooms that takes a
  minute.

  Raises:
    tfds_data.DatasetNotPrepared: no data.mdb there, or an empty one.
    ImportError: the package lmdb is not installed.
  """
  folder = Path(path).expanduser().resolve()
  file = folder / "data.mdb"
  if not file.is_file():
    raise tfds_data.DatasetNotPrepared(f"No lmdb in {folder}: it holds no data.mdb.")
  environment = _open_lmdb(str(folder))
  count = environment.stat()["entries"]
  if not count:
    raise tfds_data.DatasetNotPrepared(f"The lmdb in {folder} holds no pictures.")

  @functools.cache
  def keys() -> list[bytes]:
    with environment.begin() as transaction:
      return list(transaction.cursor().iternext(keys=True, values=False))

  def read(index: int) -> bytes:
    with environment.begin() as transaction:
      return transaction.get(keys()[index])

  return Source(f"the lmdb in {folder}", count, read, folder, [str(file)])


@functools.cache  # a process may open an lmdb once only
def _open_lmdb(folder: str):
  try:
    import lmdb
  except ImportError as error:
    raise ImportError(
      f"Reading the lmdb in {folder} needs the package lmdb: pip install "
      '"stein_jax[lsun]". Or export its pictures and name their folder.'
    ) from error
  # Nobody writes to it: no lock file, which a read-only folder could not hold.
  return lmdb.open(folder, readonly=True, lock=False, readahead=False, meminit=False)


def tfds_source(
  name: str, split: str, *, data_dir: str | os.PathLike[str] | None = None
) -> Source:
  """The pictures of a split that tfds has prepared; errors as of `datasets.load`.

  Args:
    name: "celeb_a", "lsun/bedroom", or any tfds name of pictures.
    split: "train", "validation", "test".
    data_dir: as in `datasets.load`.
  """
  return _prepared_source(tfds_data.open_prepared(name, data_dir), split)


def _prepared_source(prepared: tfds_data.Prepared, split: str) -> Source:
  count = prepared.size(split)
  if not count:
    raise ValueError(
      f'Data set "{prepared.name}" has nothing in split "{split}"; '
      f"{prepared.directory} holds {prepared.counts}."
    )
  where = f'split "{split}" of {prepared.full_name} in {prepared.directory}'
  return Source(where, count, prepared.encoded(split), prepared.directory)


# --- whole data sets --------------------------------------------------------------


def load_images(
  name: str,
  *,
  size: int | None = None,
  data_dir: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
) -> datasets.Dataset:
  """Loads pictures of one square size, decoded once and then memory-mapped.

  CelebA and LSUN are cropped and resized as `decode` says, by `CROPS`, and come
  without labels. All else is `datasets.load(name, validation_fraction=0)`: the training
  split stays whole. LSUN has no test split, so its validation split is both.

  Args:
    name: "cifar10", "celeb_a", "lsun/bedroom", or another that `datasets.load` knows.
    size: the side in pixels; None: 64 for CelebA and LSUN, else what the pictures have.
      32 gives the grey 28×28 of MNIST and its kin a black border and three channels.
    data_dir: as in `datasets.load`. LSUN's may also be a folder of LSUN's own: one that
      holds a data.mdb or jpg, png or webp files, of which the last tenth, at most 300,
      is kept for validation; or one with two such folders, `bedroom_train_lmdb` and
      `bedroom_val_lmdb`, or `train` and `validation`.
    cache_dir: as in `datasets.load`; one array for every size.

  Returns: a `datasets.Dataset`, whose `source` counts the pictures, and says "a subset"
    where that is known to be fewer than there are.

  Raises:
    ValueError: a size that the pictures do not have, or one that does not decode.
    Otherwise as `datasets.load`.
  """
  if size is not None and size < 1:
    raise ValueError(f"size must be at least 1 pixel, got {size}")
  crop = crop_of(name)
  if crop is None:
    return _load_as_they_are(name, size, data_dir, cache_dir)
  size = DEFAULT_SIZE if size is None else size
  sources, origin = _find_sources(name, data_dir)
  folder = caches.resolve_cache_dir(cache_dir)
  images = {
    split: _decoded(name, split, source, size, crop, folder)
    for split, source in sources.items()
  }
  if "validation" not in images:
    kept = len(images["train"]) - min(len(images["train"]) // 10, _LSUN_VALIDATION)
    images["validation"] = images["train"][kept:]
    images["train"] = images["train"][:kept]
  return datasets.Dataset(
    name=name,
    source=f"{origin} {_counted(name, images)} {_cut(crop, size)}",
    train=images["train"],
    validation=images["validation"],
    test=images.get("test", images["validation"]),
    train_labels=None,
    validation_labels=None,
    test_labels=None,
  )


def _load_as_they_are(
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
    return framed(dataset)
  if size is not None and (height, width) != (size, size):
    raise ValueError(
      f"The pictures of {name} are {height}x{width}, not {size}x{size}; only those of "
      f"{' and '.join(CROPS)} are resized: leave the size out."
    )
  return dataset


def framed(dataset: datasets.Dataset) -> datasets.Dataset:
  """Grey 28×28 pictures with a black border of two pixels and three equal channels."""

  def bordered(images: np.ndarray) -> np.ndarray:
    return np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))).repeat(3, axis=3)

  return dataset._replace(
    source=f"{dataset.source} With a black border, as 32x32 in colour.",
    train=bordered(dataset.train),
    validation=bordered(dataset.validation),
    test=bordered(dataset.test),
  )


def _find_sources(
  name: str, data_dir: str | os.PathLike[str] | None
) -> tuple[dict[str, Source], str]:
  """The splits of a data set, and where they come from."""
  if name.startswith("lsun"):
    found = _lsun_sources(name, tfds_data.resolve_data_dir(data_dir))
    if found:
      places = " and ".join(source.where for source in found.values())
      return found, f"{name}: read from {places}."
  try:
    prepared = tfds_data.open_prepared(name, data_dir)
  except tfds_data.DatasetNotPrepared as error:
    if not name.startswith("lsun"):
      raise
    category = _category(name)
    raise type(error)(
      f"{error}\n"
      "  read LSUN's own files:\n"
      "    --data_dir=DIR, where DIR holds data.mdb, or jpg, png or webp files, or\n"
      f"    {category}_train_lmdb and {category}_val_lmdb, or train and validation"
    ) from error
  splits = [s for s in ("train", "validation", "test") if prepared.size(s)]
  sources = {split: _prepared_source(prepared, split) for split in splits}
  for split in ("train", "validation"):
    if split not in sources:
      _prepared_source(prepared, split)  # raises: it says what there is
  return sources, f"{prepared.full_name}: read by tfds from {prepared.directory}."


def _category(name: str) -> str:
  return name.split(":")[0].partition("/")[2] or "CATEGORY"


def _lsun_sources(name: str, folder: Path) -> dict[str, Source]:
  """LSUN's own files in a folder, or nothing."""
  whole = _own_source(folder)
  if whole is not None:
    return {"train": whole}
  category = _category(name)
  for train, validation in (
    (f"{category}_train_lmdb", f"{category}_val_lmdb"),
    ("train", "validation"),
  ):
    if (folder / train).is_dir() and (folder / validation).is_dir():
      places = {"train": folder / train, "validation": folder / validation}
      return {
        split: _own_source(place) or folder_source(place)
        for split, place in places.items()
      }
  return {}


def _own_source(folder: Path) -> Source | None:
  """Of a folder that holds data.mdb or pictures itself: subfolders may be anything."""
  if (folder / "data.mdb").is_file():
    return lmdb_source(folder)
  if not folder.is_dir():
    return None
  with os.scandir(folder) as entries:
    pictures = any(entry.name.lower().endswith(SUFFIXES) for entry in entries)
  return folder_source(folder) if pictures else None


def _counted(name: str, images: dict[str, np.ndarray]) -> str:
  """How many pictures there are, of how many: "A subset: train 850 of 3033042."."""
  whole = _WHOLE.get(name.split(":")[0], {})
  is_subset = any(len(images[s]) < n for s, n in whole.items() if s in images)
  counts = [
    f"{split} {len(found)}" + (f" of {whole[split]}" if is_subset else "")
    for split, found in images.items()
  ]
  test = "" if "test" in images else "; validation serves as test"
  return ("A subset: " if is_subset else "") + ", ".join(counts) + test + "."


def _cut(crop: float, size: int) -> str:
  part = "" if crop == 1 else f"{crop:.3f} of "
  return f"Central squares of {part}the shorter side, resized to {size}x{size}."


def _decoded(
  name: str, split: str, source: Source, size: int, crop: float, cache_dir: Path
) -> np.ndarray:
  """All pictures of a source, uint8 [n, size, size, 3], memory-mapped."""
  label = f"{name.replace(':', '-')}-{size}px-crop{crop:.3f}"
  cache = caches.cache_of(label, source.directory, cache_dir, source.files)

  def examples() -> Iterator[tuple[np.ndarray, None]]:
    pictures = _import_grain().MapDataset.source(_Pictures(source, size, crop))
    for picture in _in_threads(pictures, _workers(None)):
      yield picture, None

  images, _ = caches.read_through(
    cache, split, examples, len(source), name=name, labelled=False
  )
  return images


# --- streams ----------------------------------------------------------------------


def stream(
  source: Source | np.ndarray,
  *,
  size: int,
  seed: int,
  crop: float = 1.0,
  num_workers: int | None = None,
) -> training.Stream:
  """Pictures in random order for `training.fit`, decoded as they are needed.

  An epoch visits every picture once, in an order that grain draws from the seed and
  the number of the epoch. With N pictures and batches of m,

    epoch, i = divmod(t, N // m),  batch t = order of the epoch[i·m : (i + 1)·m]

  so that batch t is a function of t, and the last N mod m of an epoch are left out.

  Args:
    source: a `Source`; or pictures that are decoded already, uint8
      [n, size, size, c], such as the memory-mapped ones of `load_images`.
    size: the side of the pictures, in pixels.
    seed: of the order, at least 0.
    crop: as in `decode`; `crop_of(name)` knows it. Of no effect on decoded pictures.
    num_workers: threads that decode; None: one for each processor, at most 16; 0: none
      beside that of `fit`.

  Returns: a `training.Stream` of uint8 [length, m, size, size, c].

  Raises:
    ValueError: decoded pictures of another size or type; while it streams, a picture
      that does not decode.
    ImportError: grain is not installed.
  """
  pictures: _Pictures | np.ndarray
  if isinstance(source, Source):
    pictures, event = _Pictures(source, size, crop), (size, size, 3)
  else:
    pictures, event = source, source.shape[1:]
    if source.ndim != 4 or event[:2] != (size, size) or source.dtype != np.uint8:
      raise ValueError(
        f"decoded pictures must be uint8 [n, {size}, {size}, c], got {source.dtype} "
        f"{list(source.shape)}"
      )
  return _Shuffled(pictures, event, seed, _workers(num_workers))


class _Shuffled:
  """A `training.Stream` of pictures in an order of grain's."""

  def __init__(
    self,
    pictures: _Pictures | np.ndarray,
    event: tuple[int, ...],
    seed: int,
    num_workers: int,
  ):
    dataset = _import_grain().MapDataset.source(pictures)
    self.num_examples = len(pictures)
    self._shuffled = dataset.seed(seed).shuffle()
    self._event, self._num_workers = event, num_workers

  def batches(
    self,
    first_step: int,
    length: int,
    batch_size: int,
    rows: np.ndarray | None = None,
  ) -> np.ndarray:
    """Pictures uint8 [length, m, size, size, c] of the steps from `first_step` on.

    With `rows` only these of every batch, which alone are read.
    """
    rows = np.arange(batch_size) if rows is None else rows
    steps_per_epoch = self.num_examples // batch_size

    def batch(step: int) -> np.ndarray:
      epoch, i = divmod(step, steps_per_epoch)
      # Past its end grain goes on with the next epoch, in a new order.
      first = epoch * self.num_examples + i * batch_size
      return np.stack([self._shuffled[first + int(row)] for row in rows])

    steps = range(first_step, first_step + length)
    chosen = _import_grain().MapDataset.source(steps).map(batch)
    batches = np.empty((length, len(rows), *self._event), np.uint8)
    for i, batch in enumerate(_in_threads(chosen, self._num_workers)):
      batches[i] = batch
    return batches


def _in_threads(dataset, num_workers: int) -> Iterator[np.ndarray]:
  """The elements of a grain.MapDataset in order, made by threads ahead of their use."""
  options = _import_grain().ReadOptions(
    num_threads=num_workers, prefetch_buffer_size=2 * num_workers
  )
  elements = iter(dataset.to_iter_dataset(options))
  try:
    yield from elements
  finally:
    elements.close()


def _workers(asked: int | None) -> int:
  if asked is None:
    return min(os.cpu_count() or 1, _MAX_WORKERS)
  if asked < 0:
    raise ValueError(f"num_workers must be at least 0, got {asked}")
  return asked


def _import_grain() -> ModuleType:
  try:
    import grain
  except ImportError as error:
    raise ImportError(
      f"Pictures are read by the package grain, which cannot be imported ({error}): "
      'pip install "stein_jax[experiments]"'
    ) from error
  return grain
