"""Pictures against Pillow-free arithmetic, and streams of them against themselves.

What a test decodes it draws by itself, but for real subsets where they are at hand.
"""

import io
import os
import sys
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from experiments.pictures import image_data
from experiments.shared import data
from stein_jax.training import Stream, fit
from stein_jax.types import Algorithm
from tests.conftest import SHARED_TFDS
from tests.experiments.test_data import pictures, write_tfds


@pytest.fixture(autouse=True)
def _own_directories(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setenv("STEIN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def encoded(picture, form="png"):
  file = io.BytesIO()
  PIL.Image.fromarray(picture).save(file, form)
  return file.getvalue()


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_folder(folder, n, shape=(9, 9, 3), seed=0):
  """n pictures in a folder, in the order of their names."""
  folder.mkdir(parents=True, exist_ok=True)
  images = noise(n, *shape, seed=seed)
  for i, image in enumerate(images):
    (folder / f"{i:04}.png").write_bytes(encoded(image))
  return images


def bag(images):
  """Pictures without their order."""
  return Counter(np.asarray(image).tobytes() for image in images)


def test_embedded_digits_get_a_border_and_colours():
  framed = image_data.load_images("mnist5k", size=32)
  plain = image_data.load_images("mnist5k")
  assert framed.train.shape == (len(plain.train), 32, 32, 3)
  for channel in range(3):
    inside = framed.test[:, 2:-2, 2:-2, channel : channel + 1]
    np.testing.assert_array_equal(inside, plain.test)
  assert framed.train[:, [0, 1, -2, -1]].max() == 0
  assert "black border" in framed.source
  np.testing.assert_array_equal(framed.train_labels, plain.train_labels)


# --- one picture ------------------------------------------------------------------


def bicubic(x):
  """Keys's cubic with a = -1/2."""
  x = np.abs(x)
  near = 1.5 * x**3 - 2.5 * x**2 + 1
  far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resized(square, size):
  """Rows, then columns: each output pixel is an average, as wide as it is reduced."""
  n = len(square)
  scale = n / size
  centres = (np.arange(size) + 0.5) * scale
  distance = (np.arange(n) + 0.5)[None] - centres[:, None]
  weights = bicubic(distance / max(scale, 1))
  weights /= weights.sum(axis=1, keepdims=True)
  rows = np.einsum("oi,hic->hoc", weights, square.astype(np.float64))
  rows = np.clip(np.round(rows), 0, 255)  # Pillow keeps bytes between its two passes
  return np.clip(np.einsum("oi,iwc->owc", weights, rows), 0, 255)


def assert_resized(got, square):
  """Pillow's weights are rounded, and so is what lies between its two passes."""
  assert got.dtype == np.uint8
  difference = np.abs(got - resized(square, len(got)))
  assert difference.max() < 2
  assert difference.mean() < 0.4


@pytest.mark.parametrize(
  ("height", "width", "crop", "box"),
  [
    (218, 178, 108 / 178, (55, 163, 35, 143)),  # CelebA's
    (109, 89, 108 / 178, (27, 81, 17, 71)),  # at half size: 54 of 89
    (6, 9, 1.0, (0, 6, 1, 7)),  # an odd margin: more is cut off at the right
    (9, 6, 1.0, (1, 7, 0, 6)),
    (7, 7, 1.0, (0, 7, 0, 7)),
    (5, 8, 0.01, (2, 3, 3, 4)),  # never less than a pixel
  ],
)
@pytest.mark.parametrize("size", [None, 4, 16])
def test_the_central_square_resized(height, width, crop, box, size):
  picture = noise(height, width, 3)
  top, bottom, left, right = box
  square = picture[top:bottom, left:right]
  size = size or len(square)  # as large as it is: nothing changes but the cut
  got = image_data.decode(encoded(picture), size=size, crop=crop)
  assert got.shape == (size, size, 3)
  if size == len(square):
    np.testing.assert_array_equal(got, square)
  assert_resized(got, square)


def test_a_fine_pattern_does_not_alias():
  """Stripes of one pixel become grey: a filter of fixed width would keep stripes."""
  stripes = np.zeros((60, 60, 3), np.uint8)
  stripes[:, ::2] = 255
  got = image_data.decode(encoded(stripes), size=17)
  inside = got[:, 1:-1].astype(float)
  assert np.abs(inside - 127.5).max() < 16


def test_greys_palettes_and_alpha_become_rgb():
  grey = noise(8, 8)
  want = np.stack([grey] * 3, axis=-1)
  np.testing.assert_array_equal(image_data.decode(encoded(grey), size=8), want)
  file = io.BytesIO()
  PIL.Image.fromarray(grey).convert("P").save(file, "png")
  np.testing.assert_array_equal(image_data.decode(file.getvalue(), size=8), want)
  opaque = np.dstack([want, np.full((8, 8), 255, np.uint8)])
  np.testing.assert_array_equal(image_data.decode(encoded(opaque), size=8), want)


# --- sources ----------------------------------------------------------------------


def test_a_folder_is_read_in_order_of_its_paths(tmp_path):
  names = ["b/2.PNG", "a.png", "b/10.jpg", "c/d/e.webp", "b/1.jpeg"]
  for i, name in enumerate(names):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes([i]))
  (tmp_path / "b" / "notes.txt").write_text("mine")
  source = image_data.folder_source(tmp_path)
  order = ["a.png", "b/1.jpeg", "b/10.jpg", "b/2.PNG", "c/d/e.webp"]
  assert [source[i] for i in range(len(source))] == [
    bytes([names.index(name)]) for name in order
  ]


def test_a_folder_without_pictures(tmp_path):
  with pytest.raises(data.DatasetNotPrepared, match=r"No \.jpg, .*\.webp file in"):
    image_data.folder_source(tmp_path)
  with pytest.raises(data.DatasetNotPrepared, match="which does not exist"):
    image_data.folder_source(tmp_path / "none")


def write_lmdb(folder, images):
  lmdb = pytest.importorskip("lmdb", reason="the extra `lsun` is not installed")
  folder.mkdir(parents=True)
  with lmdb.open(str(folder), map_size=2**24) as file, file.begin(write=True) as put:
    for i, image in enumerate(images):
      put.put(f"{i:04}".encode(), encoded(image, "webp"))
  (folder / "lock.mdb").unlink()


def test_an_lmdb_is_read_in_order_of_its_keys(tmp_path):
  images = noise(5, 6, 6, 3)
  write_lmdb(tmp_path / "bedroom_train_lmdb", images)
  for _ in range(2):  # opened once only, or lmdb complains
    source = image_data.lmdb_source(tmp_path / "bedroom_train_lmdb")
  assert len(source) == 5
  assert [source[i] for i in (4, 0)] == [encoded(images[i], "webp") for i in (4, 0)]
  assert not (tmp_path / "bedroom_train_lmdb" / "lock.mdb").exists()


def test_an_empty_lmdb_and_none(tmp_path):
  with pytest.raises(data.DatasetNotPrepared, match="it holds no data"):
    image_data.lmdb_source(tmp_path)
  write_lmdb(tmp_path / "empty", [])
  with pytest.raises(data.DatasetNotPrepared, match="holds no pictures"):
    image_data.lmdb_source(tmp_path / "empty")


def test_without_the_package_lmdb(tmp_path, monkeypatch):
  (tmp_path / "data.mdb").touch()
  monkeypatch.setitem(sys.modules, "lmdb", None)
  with pytest.raises(ImportError, match=r'pip install "stein_jax\[lsun\]"'):
    image_data.load_images("lsun/bedroom", data_dir=tmp_path)


def test_without_the_package_grain(tmp_path, monkeypatch):
  write_folder(tmp_path, 3)
  monkeypatch.setitem(sys.modules, "grain", None)
  with pytest.raises(ImportError, match=r'pip install "stein_jax\[experiments\]"'):
    image_data.stream(image_data.folder_source(tmp_path), size=8, seed=0)


# --- whole data sets --------------------------------------------------------------


@pytest.fixture
def faces(tmp_path):
  """Noise in the shape of CelebA, prepared: (data_dir, images of each split)."""
  sizes = {"train": 6, "validation": 3, "test": 2}
  splits = {s: pictures(n, (218, 178, 3), seed=n)[0] for s, n in sizes.items()}
  prepared = {split: (images, None) for split, images in splits.items()}
  root = tmp_path / "tfds"
  write_tfds(root, "celeb_a", prepared, declared_shape=(218, 178, 3), version="2.1.0")
  return root, splits


def test_celeb_a(faces, monkeypatch):
  root, splits = faces
  got = image_data.load_images("celeb_a", data_dir=root)
  for split, images in splits.items():
    loaded = getattr(got, split)
    assert loaded.shape == (len(images), 64, 64, 3)
    assert loaded.dtype == np.uint8
    assert not loaded.flags.writeable
    for image, found in zip(images, loaded, strict=True):
      assert_resized(found, image[55:163, 35:143])
  assert got.train_labels is got.test_labels is None
  assert got.source.startswith(f"celeb_a/2.1.0: read by tfds from {root}")
  assert "A subset: train 6 of 162770, validation 3 of 19867, test 2 of" in got.source
  assert "0.607 of the shorter side, resized to 64x64" in got.source

  def decode_again(*args, **kwargs):
    raise AssertionError("decoded twice")

  other = image_data.load_images("celeb_a", data_dir=root, size=16)
  assert other.train.shape == (6, 16, 16, 3)
  monkeypatch.setattr(image_data, "decode", decode_again)
  again = image_data.load_images("celeb_a", data_dir=root, size=64)
  assert isinstance(again.train, np.memmap)
  np.testing.assert_array_equal(again.train, got.train)


def test_pictures_of_several_shapes_become_one(tmp_path):
  images = [noise(12, 10, 3), noise(8, 16, 3), noise(9, 9, 3)]
  splits = {"train": (images, None), "validation": (images[:2], None)}
  write_tfds(tmp_path, "lsun/bedroom", splits, declared_shape=(None, None, 3))
  got = image_data.load_images("lsun/bedroom", size=8, data_dir=tmp_path)
  squares = [images[0][1:11], images[1][:, 4:12], images[2]]
  for found, square in zip(got.train, squares, strict=True):
    assert_resized(found, square)
  assert got.test is got.validation  # LSUN has no test split, and says so
  assert "train 3 of 3033042, validation 2 of 300; validation serves as test" in (
    got.source
  )


def test_cifar10_is_whole_and_labelled(tmp_path):
  splits = {"train": pictures(20, (32, 32, 3)), "test": pictures(5, (32, 32, 3))}
  write_tfds(tmp_path, "cifar10", splits, declared_shape=(32, 32, 3))
  for size in (None, 32):
    got = image_data.load_images("cifar10", size=size, data_dir=tmp_path)
    np.testing.assert_array_equal(got.train, splits["train"][0])
    np.testing.assert_array_equal(got.train_labels, splits["train"][1])
    assert len(got.validation) == 0
  with pytest.raises(ValueError, match="cifar10 are 32x32, not 64x64"):
    image_data.load_images("cifar10", size=64, data_dir=tmp_path)
  with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
    image_data.load_images("celeb_a", size=0, data_dir=tmp_path)


def test_lsun_from_one_folder(tmp_path):
  images = write_folder(tmp_path / "pictures", 25, (8, 8, 3))
  got = image_data.load_images("lsun/bedroom", size=8, data_dir=tmp_path / "pictures")
  np.testing.assert_array_equal(got.train, images[:23])
  np.testing.assert_array_equal(got.validation, images[23:])
  np.testing.assert_array_equal(got.test, images[23:])
  assert f"the pictures in {tmp_path / 'pictures'}" in got.source
  assert "A subset: train 23 of 3033042" in got.source

  (tmp_path / "pictures" / "0000.png").write_bytes(encoded(255 - images[0]))
  changed = image_data.load_images(
    "lsun/bedroom", size=8, data_dir=tmp_path / "pictures"
  )
  np.testing.assert_array_equal(changed.train[0], 255 - images[0])


def test_lsun_from_two_folders(tmp_path, monkeypatch):
  train = write_folder(tmp_path / "train" / "deep", 12, (8, 8, 3))
  validation = write_folder(tmp_path / "validation", 4, (8, 8, 3), seed=1)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  got = image_data.load_images("lsun/church_outdoor", size=8)
  np.testing.assert_array_equal(got.train, train)
  np.testing.assert_array_equal(got.validation, validation)
  assert "church_outdoor: read from the pictures" in got.source
  assert "subset" not in got.source  # how many there are is not known here


def test_lsun_from_its_lmdbs(tmp_path):
  images = np.repeat(noise(14, 1, 1, 3), 8, axis=1).repeat(8, axis=2)
  write_lmdb(tmp_path / "bedroom_train_lmdb", images[:10])
  write_lmdb(tmp_path / "bedroom_val_lmdb", images[10:])
  got = image_data.load_images("lsun/bedroom", size=8, data_dir=tmp_path)
  want = [image_data.decode(encoded(image, "webp"), size=8) for image in images]
  np.testing.assert_array_equal(got.train, want[:10])
  np.testing.assert_array_equal(got.validation, want[10:])
  np.testing.assert_allclose(got.train.astype(float), images[:10], atol=6)  # lossy
  one = image_data.load_images(
    "lsun/bedroom", size=8, data_dir=tmp_path / "bedroom_train_lmdb"
  )
  assert [len(one.train), len(one.validation)] == [9, 1]
  assert "the lmdb in" in one.source


def test_a_picture_that_does_not_decode_is_named_and_nothing_kept(tmp_path):
  write_folder(tmp_path / "p", 12)
  (tmp_path / "p" / "0007.png").write_bytes(b"no picture")
  with pytest.raises(ValueError, match=r"picture 7 of the .* cannot be decoded"):
    image_data.load_images("lsun/bedroom", size=8, data_dir=tmp_path / "p")
  assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("name", ["celeb_a", "lsun/bedroom"])
def test_missing_data_says_where_and_what_to_do(tmp_path, name):
  start = time.monotonic()
  (tmp_path / "lsun" / "bedroom").mkdir(parents=True)
  write_folder(tmp_path / "somebody_elses", 3)  # never a substitute
  with pytest.raises(data.DatasetNotPrepared) as caught:
    image_data.load_images(name, data_dir=tmp_path)
  assert time.monotonic() - start < 10
  message = str(caught.value)
  assert f'"{name}" is not prepared: looked in {tmp_path} ' in message
  assert f"experiments.prepare_data --dataset={name}" in message
  assert "TFDS_DATA_DIR=DIR" in message
  assert ("bedroom_train_lmdb" in message) == (name == "lsun/bedroom")


def test_missing_split(tmp_path):
  write_tfds(tmp_path, "lsun/bedroom", {"train": (noise(2, 4, 5, 3), None)})
  with pytest.raises(ValueError, match=r'in split "validation".*holds train 2'):
    image_data.load_images("lsun/bedroom", data_dir=tmp_path)


# --- streams ----------------------------------------------------------------------

N, M = 23, 5  # four batches an epoch, and three pictures left out


@pytest.fixture
def folder(tmp_path):
  images = write_folder(tmp_path / "p", N)
  return image_data.folder_source(tmp_path / "p"), images


def stream(source, **options):
  return image_data.stream(source, **{"size": 9, "seed": 4, "num_workers": 2} | options)


def test_an_epoch_visits_each_picture_once_in_its_own_order(folder):
  source, images = folder
  got = stream(source).batches(0, 12, M)
  assert isinstance(stream(source), Stream)
  assert got.shape == (12, M, 9, 9, 3)
  assert got.dtype == np.uint8
  epochs = [got[e : e + 4].reshape(-1, 9, 9, 3) for e in (0, 4, 8)]
  for epoch in epochs:
    assert set(bag(epoch).values()) == {1}
    assert len(bag(epoch)) == 20
    assert not bag(epoch) - bag(images)
  assert len({epoch.tobytes() for epoch in epochs}) == 3
  # The pictures left out are others each time: each has its turn.
  assert len({frozenset(bag(epoch)) for epoch in epochs}) > 1


def test_batches_of_one_make_whole_epochs(folder):
  source, images = folder
  got = stream(source).batches(N, N, 1)[:, 0]
  assert bag(got) == bag(images)
  assert not np.array_equal(got, images)


def test_a_batch_is_a_function_of_its_step(folder):
  source, _ = folder
  whole = stream(source).batches(0, 11, M)
  late = stream(source, num_workers=0)  # another object, asked from the middle on
  np.testing.assert_array_equal(late.batches(7, 4, M), whole[7:])
  np.testing.assert_array_equal(late.batches(2, 3, M), whole[2:5])
  np.testing.assert_array_equal(late.batches(10**6, 1, M)[0].shape, (M, 9, 9, 3))
  other = stream(source, seed=5).batches(0, 11, M)
  assert not np.array_equal(whole, other)
  # Not the next seed's orders an epoch late, nor its own.
  assert not np.array_equal(whole[4:8], other[:4])
  assert not np.array_equal(other[4:8], whole[:4])


def test_decoded_pictures_stream_in_the_same_order(folder):
  source, images = folder
  np.testing.assert_array_equal(
    stream(images).batches(3, 5, M), stream(source).batches(3, 5, M)
  )
  with pytest.raises(ValueError, match=r"uint8 \[n, 8, 8, c\], got uint8 \[23, 9, 9"):
    stream(images, size=8)
  with pytest.raises(ValueError, match="got float64"):
    stream(images / 255.0)
  with pytest.raises(ValueError, match="num_workers must be at least 0, got -1"):
    stream(images, num_workers=-1)


def test_a_stream_crops(tmp_path):
  images = write_folder(tmp_path, 3, (9, 12, 3))
  got = stream(image_data.folder_source(tmp_path), size=3, crop=1 / 3).batches(0, 3, 1)
  assert bag(got[:, 0]) == bag(images[:, 3:6, 4:7])


def test_a_picture_of_a_stream_that_does_not_decode_is_named(folder, tmp_path):
  (tmp_path / "p" / "0007.png").write_bytes(b"no picture")
  with pytest.raises(ValueError, match="picture 7 of the pictures in"):
    stream(folder[0]).batches(0, 8, M)


MEANS = Algorithm(
  lambda key, params, batch: {"params": params},
  lambda key, state, batch: (
    {"params": 0.9 * state["params"] + batch.mean(axis=0)},
    {"loss": batch.mean() + jax.random.normal(key)},
  ),
)


class ByHand:
  """Batches out of a list."""

  def __init__(self, batches, num_examples):
    self._batches, self.num_examples = batches, num_examples

  def batches(self, first_step, length, batch_size):
    return np.stack(self._batches[first_step : first_step + length])


def test_a_fit_over_a_folder_is_one_over_the_same_batches_and_resumes(folder, tmp_path):
  source, _ = folder
  options = {"num_steps": 15, "batch_size": M, "log_every": 4, "progress": False}
  start = jnp.zeros((9, 9, 3))

  def run(data, **more):
    return fit(jax.random.key(0), MEANS, start, data, **options | more)

  batches = list(stream(source).batches(0, 15, M))
  whole = run(stream(source))
  by_hand = run(ByHand(batches, N))
  w = np.zeros((9, 9, 3))
  for batch in batches:
    w = 0.9 * w + np.mean(batch / 255, axis=0)
  np.testing.assert_allclose(whole.state["params"], w, rtol=1e-5)
  np.testing.assert_array_equal(whole.state["params"], by_hand.state["params"])

  run(stream(source), num_steps=6, workdir=tmp_path / "run")
  resumed = run(stream(source), workdir=tmp_path / "run")
  np.testing.assert_array_equal(whole.state["params"], resumed.state["params"])
  with pytest.raises(ValueError, match="checksum of the first batch"):
    run(stream(source, seed=5), workdir=tmp_path / "run")


# --- real pictures, where they are at hand ----------------------------------------


def real(name):
  root = os.environ.get("TFDS_DATA_DIR", SHARED_TFDS)
  try:
    data.find_prepared(name, root)
  except data.DatasetNotPrepared:
    pytest.skip(f"{name} is not prepared in {root}")
  return root


def through_tfds(name, split, root, indices):
  """tfds's own decoding of some pictures."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(data.find_prepared(name, root))
  source = builder.as_data_source(split=split)
  return [source[i]["image"] for i in indices]


@pytest.mark.parametrize(
  ("name", "split"), [("celeb_a", "test"), ("lsun/bedroom", "validation")]
)
def test_real_pictures(name, split):
  root = real(name)
  crop = image_data.crop_of(name)
  source = image_data.tfds_source(name, split, data_dir=root)
  for i, whole in enumerate(through_tfds(name, split, root, range(3))):
    height, width = whole.shape[:2]
    side = round(crop * min(height, width))
    top, left = (height - side) // 2, (width - side) // 2
    square = whole[top : top + side, left : left + side]
    got = image_data.decode(source[i], size=64, crop=crop)
    assert_resized(got, square)
  one = image_data.stream(source, size=64, crop=crop, seed=0)
  batches = one.batches(0, 2, 16)
  assert batches.shape == (2, 16, 64, 64, 3)
  assert 50 < batches.mean() < 205  # pictures, and not black ones
  assert batches.std() > 30


def test_the_real_bedrooms_load():
  got = image_data.load_images("lsun/bedroom", size=32, data_dir=real("lsun/bedroom"))
  source = image_data.tfds_source(
    "lsun/bedroom", "train", data_dir=real("lsun/bedroom")
  )
  assert len(got.train) == len(source)
  np.testing.assert_array_equal(got.train[7], image_data.decode(source[7], size=32))
  assert f"train {len(source)}" in got.source
