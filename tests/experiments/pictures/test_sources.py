"""Encoded images from folders and from lmdbs."""

import sys

import pytest

from experiments.pictures import sources, square_images
from experiments.shared import tfds_data
from tests.experiments.pictures.examples import encoded, noise, write_lmdb


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
  names = ["b/2.PNG", "a.png", "b/10.jpg", "c/d/e.webp", "b/1.jpeg"]
  for i, name in enumerate(names):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes([i]))
  (tmp_path / "b" / "notes.txt").write_text("text")
  source = sources.folder_source(tmp_path)
  order = ["a.png", "b/1.jpeg", "b/10.jpg", "b/2.PNG", "c/d/e.webp"]
  assert [source[i] for i in range(len(source))] == [
    bytes([names.index(name)]) for name in order
  ]


def test_a_folder_without_images_is_an_error(tmp_path):
  with pytest.raises(tfds_data.DatasetNotPrepared, match=r"No \.jpg, .*\.webp file in"):
    sources.folder_source(tmp_path)
  with pytest.raises(tfds_data.DatasetNotPrepared, match="which does not exist"):
    sources.folder_source(tmp_path / "none")


def test_an_lmdb_is_read_in_the_order_of_its_keys(tmp_path):
  images = noise(5, 6, 6, 3)
  write_lmdb(tmp_path / "bedroom_train_lmdb", images)
  for _ in range(2):  # lmdb raises if it is opened twice
    source = sources.lmdb_source(tmp_path / "bedroom_train_lmdb")
  assert len(source) == 5
  assert [source[i] for i in (4, 0)] == [encoded(images[i], "webp") for i in (4, 0)]
  assert not (tmp_path / "bedroom_train_lmdb" / "lock.mdb").exists()


def test_an_empty_or_missing_lmdb_is_an_error(tmp_path):
  with pytest.raises(tfds_data.DatasetNotPrepared, match="it has no file data"):
    sources.lmdb_source(tmp_path)
  write_lmdb(tmp_path / "empty", [])
  with pytest.raises(tfds_data.DatasetNotPrepared, match="holds no images"):
    sources.lmdb_source(tmp_path / "empty")


def test_a_missing_package_lmdb_is_named(tmp_path, monkeypatch):
  (tmp_path / "data.mdb").touch()
  monkeypatch.setitem(sys.modules, "lmdb", None)
  with pytest.raises(ImportError, match=r'pip install "stein_jax\[lsun\]"'):
    square_images.load_images("lsun/bedroom", data_dir=tmp_path)
