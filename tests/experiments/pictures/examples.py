"""Images, folders, lmdbs and generators for the tests, and real data, if present."""

import io
import os
from collections import Counter

import jax
import numpy as np
import PIL.Image
import pytest

from experiments.pictures import models, saved_generators
from experiments.pictures.model_settings import ModelSettings
from experiments.shared import tfds_data
from stein_jax import generators
from tests.conftest import SHARED_TFDS


def encoded(image, form="png"):
  file = io.BytesIO()
  PIL.Image.fromarray(image).save(file, form)
  return file.getvalue()


def noise(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_folder(folder, n, shape=(9, 9, 3), seed=0):
  """Writes n random images to a folder; their names sort in the order returned."""
  folder.mkdir(parents=True, exist_ok=True)
  images = noise(n, *shape, seed=seed)
  for i, image in enumerate(images):
    (folder / f"{i:04}.png").write_bytes(encoded(image))
  return images


def bag(images):
  """The images as a multiset: equal for equal images in any order."""
  return Counter(np.asarray(image).tobytes() for image in images)


def write_lmdb(folder, images):
  lmdb = pytest.importorskip("lmdb", reason="the extra `lsun` is not installed")
  folder.mkdir(parents=True)
  with lmdb.open(str(folder), map_size=2**24) as file, file.begin(write=True) as put:
    for i, image in enumerate(images):
      put.put(f"{i:04}".encode(), encoded(image, "webp"))
  (folder / "lock.mdb").unlink()


def bicubic(x):
  """The cubic convolution kernel of Keys, a = -1/2."""
  x = np.abs(x)
  near = 1.5 * x**3 - 2.5 * x**2 + 1
  far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resized(square, size):
  """Bicubic interpolation, first of rows, then of columns.

  Where the image shrinks, the kernel widens by the same factor.
  """
  n = len(square)
  scale = n / size
  centres = (np.arange(size) + 0.5) * scale
  distance = (np.arange(n) + 0.5)[None] - centres[:, None]
  weights = bicubic(distance / max(scale, 1))
  weights /= weights.sum(axis=1, keepdims=True)
  rows = np.einsum("oi,hic->hoc", weights, square.astype(np.float64))
  rows = np.clip(np.round(rows), 0, 255)  # Pillow rounds between the passes
  return np.clip(np.einsum("oi,iwc->owc", weights, rows), 0, 255)


def assert_resized(got, square):
  """Checks up to the rounding of Pillow's weights and between its two passes."""
  assert got.dtype == np.uint8
  difference = np.abs(got - resized(square, len(got)))
  assert difference.max() < 2
  assert difference.mean() < 0.4


def real_data(name):
  """Where tfds prepared this data set; the test is skipped if it did not."""
  root = os.environ.get("TFDS_DATA_DIR", SHARED_TFDS)
  try:
    tfds_data.find_prepared(name, root)
  except tfds_data.DatasetNotPrepared:
    pytest.skip(f"{name} is not prepared in {root}")
  return root


def through_tfds(name, split, root, indices):
  """Some images as tfds decodes them."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(tfds_data.find_prepared(name, root))
  source = builder.as_data_source(split=split)
  return [source[i]["image"] for i in indices]


def save_generator(folder, method, num_classes):
  """Saves an untrained, narrow generator; returns its folder."""
  task = models.Task(size=32, num_classes=num_classes)
  narrow = ModelSettings(generator_width=0.02)
  module = models.generator_of(narrow, task)
  labels = () if num_classes is None else (np.zeros(2, np.int32),)
  noise = np.zeros((2, 100), np.float32)
  made = generators.initialize(jax.random.key(0), module, noise, *labels)
  about = {"method": method, "label": method, "dataset": "cifar10", "seed": 0}
  about |= {"step": 7}
  about["settings"] = saved_generators.generator_settings(narrow, task)
  about["label_counts"] = None if num_classes is None else [5] * num_classes
  saved_generators.save(folder, saved_generators.Trained(module, *made, about))
  return str(folder)
