"""Whole data sets: from tfds, from LSUN's own files, and from what is missing."""

import time

import numpy as np
import pytest

from experiments.pictures import decoding, sources, square_images
from experiments.shared import tfds_data
from tests.experiments.pictures.examples import (
  assert_resized,
  encoded,
  noise,
  real_data,
  write_folder,
  write_lmdb,
)
from tests.experiments.test_data import pictures, write_tfds


def test_embedded_digits_get_a_border_and_three_channels():
  bordered = square_images.load_images("mnist5k", size=32)
  plain = square_images.load_images("mnist5k")
  assert bordered.train.shape == (len(plain.train), 32, 32, 3)
  for channel in range(3):
    inside = bordered.test[:, 2:-2, 2:-2, channel : channel + 1]
    np.testing.assert_array_equal(inside, plain.test)
  assert bordered.train[:, [0, 1, -2, -1]].max() == 0
  assert "black border" in bordered.source
  np.testing.assert_array_equal(bordered.train_labels, plain.train_labels)


@pytest.fixture
def faces(tmp_path):
  """Noise in the shape of CelebA, prepared: (data_dir, split -> images)."""
  sizes = {"train": 6, "validation": 3, "test": 2}
  splits = {s: pictures(n, (218, 178, 3), seed=n)[0] for s, n in sizes.items()}
  prepared = {split: (images, None) for split, images in splits.items()}
  root = tmp_path / "tfds"
  write_tfds(root, "celeb_a", prepared, declared_shape=(218, 178, 3), version="2.1.0")
  return root, splits


def test_celeb_a_is_cropped_resized_and_cached(faces, monkeypatch):
  root, splits = faces
  got = square_images.load_images("celeb_a", data_dir=root)
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

  other = square_images.load_images("celeb_a", data_dir=root, size=16)
  assert other.train.shape == (6, 16, 16, 3)
  monkeypatch.setattr(decoding, "decode", decode_again)
  again = square_images.load_images("celeb_a", data_dir=root, size=64)
  assert isinstance(again.train, np.memmap)
  np.testing.assert_array_equal(again.train, got.train)


def test_images_of_several_shapes_get_one_shape(tmp_path):
  images = [noise(12, 10, 3), noise(8, 16, 3), noise(9, 9, 3)]
  splits = {"train": (images, None), "validation": (images[:2], None)}
  write_tfds(tmp_path, "lsun/bedroom", splits, declared_shape=(None, None, 3))
  got = square_images.load_images("lsun/bedroom", size=8, data_dir=tmp_path)
  squares = [images[0][1:11], images[1][:, 4:12], images[2]]
  for found, square in zip(got.train, squares, strict=True):
    assert_resized(found, square)
  assert got.test is got.validation  # LSUN has no test split
  assert "train 3 of 3033042, validation 2 of 300; validation is also used as test" in (
    got.source
  )


def test_cifar10_keeps_its_whole_training_split_and_its_labels(tmp_path):
  splits = {"train": pictures(20, (32, 32, 3)), "test": pictures(5, (32, 32, 3))}
  write_tfds(tmp_path, "cifar10", splits, declared_shape=(32, 32, 3))
  for size in (None, 32):
    got = square_images.load_images("cifar10", size=size, data_dir=tmp_path)
    np.testing.assert_array_equal(got.train, splits["train"][0])
    np.testing.assert_array_equal(got.train_labels, splits["train"][1])
    assert len(got.validation) == 0
  with pytest.raises(ValueError, match="cifar10 are 32x32, not 64x64"):
    square_images.load_images("cifar10", size=64, data_dir=tmp_path)
  with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
    square_images.load_images("celeb_a", size=0, data_dir=tmp_path)


def test_lsun_from_one_folder(tmp_path):
  images = write_folder(tmp_path / "p", 25, (8, 8, 3))
  got = square_images.load_images("lsun/bedroom", size=8, data_dir=tmp_path / "p")
  np.testing.assert_array_equal(got.train, images[:23])
  np.testing.assert_array_equal(got.validation, images[23:])
  np.testing.assert_array_equal(got.test, images[23:])
  assert f"the images in {tmp_path / 'p'}" in got.source
  assert "A subset: train 23 of 3033042" in got.source

  (tmp_path / "p" / "0000.png").write_bytes(encoded(255 - images[0]))
  changed = square_images.load_images("lsun/bedroom", size=8, data_dir=tmp_path / "p")
  np.testing.assert_array_equal(changed.train[0], 255 - images[0])


def test_lsun_from_two_folders(tmp_path, monkeypatch):
  train = write_folder(tmp_path / "train" / "deep", 12, (8, 8, 3))
  validation = write_folder(tmp_path / "validation", 4, (8, 8, 3), seed=1)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  got = square_images.load_images("lsun/church_outdoor", size=8)
  np.testing.assert_array_equal(got.train, train)
  np.testing.assert_array_equal(got.validation, validation)
  assert "church_outdoor: read from the images" in got.source
  assert "subset" not in got.source  # its whole size is not known


def test_lsun_from_its_lmdbs(tmp_path):
  images = np.repeat(noise(14, 1, 1, 3), 8, axis=1).repeat(8, axis=2)
  write_lmdb(tmp_path / "bedroom_train_lmdb", images[:10])
  write_lmdb(tmp_path / "bedroom_val_lmdb", images[10:])
  got = square_images.load_images("lsun/bedroom", size=8, data_dir=tmp_path)
  want = [decoding.decode(encoded(image, "webp"), size=8) for image in images]
  np.testing.assert_array_equal(got.train, want[:10])
  np.testing.assert_array_equal(got.validation, want[10:])
  np.testing.assert_allclose(got.train.astype(float), images[:10], atol=6)  # lossy
  one = square_images.load_images(
    "lsun/bedroom", size=8, data_dir=tmp_path / "bedroom_train_lmdb"
  )
  assert [len(one.train), len(one.validation)] == [9, 1]
  assert "the lmdb in" in one.source


def test_an_image_that_cannot_be_decoded_is_named_and_nothing_is_cached(tmp_path):
  write_folder(tmp_path / "p", 12)
  (tmp_path / "p" / "0007.png").write_bytes(b"no image")
  with pytest.raises(ValueError, match=r"image 7 of the .* cannot be decoded"):
    square_images.load_images("lsun/bedroom", size=8, data_dir=tmp_path / "p")
  assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("name", ["celeb_a", "lsun/bedroom"])
def test_missing_data_is_an_error_that_says_what_to_do(tmp_path, name):
  start = time.monotonic()
  (tmp_path / "lsun" / "bedroom").mkdir(parents=True)
  write_folder(tmp_path / "others", 3)  # other images: they must not be used instead
  with pytest.raises(tfds_data.DatasetNotPrepared) as caught:
    square_images.load_images(name, data_dir=tmp_path)
  assert time.monotonic() - start < 10
  message = str(caught.value)
  assert f'"{name}" is not prepared: looked in {tmp_path} ' in message
  assert f"experiments.prepare_data --dataset={name}" in message
  assert "TFDS_DATA_DIR=DIR" in message
  assert ("bedroom_train_lmdb" in message) == (name == "lsun/bedroom")


def test_a_missing_split_is_an_error(tmp_path):
  write_tfds(tmp_path, "lsun/bedroom", {"train": (noise(2, 4, 5, 3), None)})
  with pytest.raises(ValueError, match=r'in split "validation".*holds train 2'):
    square_images.load_images("lsun/bedroom", data_dir=tmp_path)


def test_real_bedrooms_are_loaded():
  got = square_images.load_images(
    "lsun/bedroom", size=32, data_dir=real_data("lsun/bedroom")
  )
  source = sources.tfds_source(
    "lsun/bedroom", "train", data_dir=real_data("lsun/bedroom")
  )
  assert len(got.train) == len(source)
  np.testing.assert_array_equal(got.train[7], decoding.decode(source[7], size=32))
  assert f"train {len(source)}" in got.source
