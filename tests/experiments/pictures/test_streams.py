"""Streams of images: the order, the batches, and training that resumes."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pictures import decoding, sources, streams
from stein_jax.training import Stream, fit
from stein_jax.types import Algorithm
from tests.experiments.pictures.examples import (
  assert_resized,
  bag,
  real_data,
  through_tfds,
  write_folder,
)

N, M = 23, 5  # four batches in an epoch, and three images left out


@pytest.fixture
def folder(tmp_path):
  images = write_folder(tmp_path / "p", N)
  return sources.folder_source(tmp_path / "p"), images


def stream(source, **options):
  return streams.stream(source, **{"size": 9, "seed": 4, "num_workers": 2} | options)


def test_an_epoch_visits_each_image_once_in_an_order_of_its_own(folder):
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
  # Different epochs leave out different images.
  assert len({frozenset(bag(epoch)) for epoch in epochs}) > 1


def test_batches_of_one_image_make_whole_epochs(folder):
  source, images = folder
  got = stream(source).batches(N, N, 1)[:, 0]
  assert bag(got) == bag(images)
  assert not np.array_equal(got, images)


def test_a_batch_depends_on_its_step_alone(folder):
  source, _ = folder
  whole = stream(source).batches(0, 11, M)
  late = stream(source, num_workers=0)  # another object, read from the middle on
  np.testing.assert_array_equal(late.batches(7, 4, M), whole[7:])
  np.testing.assert_array_equal(late.batches(2, 3, M), whole[2:5])
  np.testing.assert_array_equal(late.batches(10**6, 1, M)[0].shape, (M, 9, 9, 3))
  other = stream(source, seed=5).batches(0, 11, M)
  assert not np.array_equal(whole, other)
  # The orders of two seeds are not the same, shifted by one epoch.
  assert not np.array_equal(whole[4:8], other[:4])
  assert not np.array_equal(other[4:8], whole[:4])


def test_decoded_images_are_streamed_in_the_same_order(folder):
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
  got = stream(sources.folder_source(tmp_path), size=3, crop=1 / 3).batches(0, 3, 1)
  assert bag(got[:, 0]) == bag(images[:, 3:6, 4:7])


def test_an_image_of_a_stream_that_cannot_be_decoded_is_named(folder, tmp_path):
  (tmp_path / "p" / "0007.png").write_bytes(b"no image")
  with pytest.raises(ValueError, match="image 7 of the images in"):
    stream(folder[0]).batches(0, 8, M)


def test_a_missing_package_grain_is_named(tmp_path, monkeypatch):
  write_folder(tmp_path, 3)
  monkeypatch.setitem(sys.modules, "grain", None)
  with pytest.raises(ImportError, match=r'pip install "stein_jax\[experiments\]"'):
    streams.stream(sources.folder_source(tmp_path), size=8, seed=0)


MEANS = Algorithm(
  lambda key, params, batch: {"params": params},
  lambda key, state, batch: (
    {"params": 0.9 * state["params"] + batch.mean(axis=0)},
    {"loss": batch.mean() + jax.random.normal(key)},
  ),
)


class Listed:
  """A stream of the batches in a list."""

  def __init__(self, batches, num_examples):
    self._batches, self.num_examples = batches, num_examples

  def batches(self, first_step, length, batch_size):
    return np.stack(self._batches[first_step : first_step + length])


def test_fit_over_a_folder_equals_fit_over_its_batches_and_resumes(folder, tmp_path):
  source, _ = folder
  options = {"num_steps": 15, "batch_size": M, "log_every": 4, "progress": False}
  start = jnp.zeros((9, 9, 3))

  def run(data, **more):
    return fit(jax.random.key(0), MEANS, start, data, **options | more)

  batches = list(stream(source).batches(0, 15, M))
  whole = run(stream(source))
  listed = run(Listed(batches, N))
  w = np.zeros((9, 9, 3))
  for batch in batches:
    w = 0.9 * w + np.mean(batch / 255, axis=0)
  np.testing.assert_allclose(whole.state["params"], w, rtol=1e-5)
  np.testing.assert_array_equal(whole.state["params"], listed.state["params"])

  run(stream(source), num_steps=6, workdir=tmp_path / "run")
  resumed = run(stream(source), workdir=tmp_path / "run")
  np.testing.assert_array_equal(whole.state["params"], resumed.state["params"])
  with pytest.raises(ValueError, match="checksum of the first batch"):
    run(stream(source, seed=5), workdir=tmp_path / "run")


@pytest.mark.parametrize(
  ("name", "split"), [("celeb_a", "test"), ("lsun/bedroom", "validation")]
)
def test_real_images_are_decoded_and_streamed(name, split):
  root = real_data(name)
  crop = decoding.crop_of(name)
  source = sources.tfds_source(name, split, data_dir=root)
  for i, whole in enumerate(through_tfds(name, split, root, range(3))):
    height, width = whole.shape[:2]
    side = round(crop * min(height, width))
    top, left = (height - side) // 2, (width - side) // 2
    square = whole[top : top + side, left : left + side]
    got = decoding.decode(source[i], size=64, crop=crop)
    assert_resized(got, square)
  one = streams.stream(source, size=64, crop=crop, seed=0)
  batches = one.batches(0, 2, 16)
  assert batches.shape == (2, 16, 64, 64, 3)
  assert 50 < batches.mean() < 205  # not black or white
  assert batches.std() > 30
