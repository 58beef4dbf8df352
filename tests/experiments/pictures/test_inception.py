"""The arguments of torch-fidelity, and the messages where something is missing."""

import hashlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from experiments.pictures import inception

FOUND = {
  "inception_score_mean": 1.0,
  "inception_score_std": 2.0,
  "frechet_inception_distance": 3.0,
  "kernel_inception_distance_mean": 4.0,
  "kernel_inception_distance_std": 5.0,
}


@pytest.fixture
def pictures():
  rng = np.random.default_rng(0)
  return tuple(rng.integers(0, 256, (n, 4, 5, 3), np.uint8) for n in (12, 30))


@pytest.fixture
def weights(tmp_path, monkeypatch):
  path = tmp_path / inception.WEIGHTS
  path.write_bytes(b"weights")
  monkeypatch.setattr(inception, "SHA256", hashlib.sha256(b"weights").hexdigest())
  return path


@pytest.fixture
def calls(monkeypatch):
  """Replaces torch and torch-fidelity; a list of the arguments of their calls."""
  arguments_of_calls = []

  def calculate_metrics(**arguments):
    arguments_of_calls.append(arguments)
    return FOUND

  torch = ModuleType("torch")
  torch.from_numpy = lambda array: array
  torch.cuda = SimpleNamespace(is_available=lambda: False)
  torch.utils = SimpleNamespace(
    data=SimpleNamespace(Subset=lambda rows, chosen: [rows[i] for i in chosen])
  )
  fidelity = ModuleType("torch_fidelity")
  fidelity.calculate_metrics = calculate_metrics
  monkeypatch.setitem(sys.modules, "torch", torch)
  monkeypatch.setitem(sys.modules, "torch_fidelity", fidelity)
  return arguments_of_calls


def test_images_are_passed_with_channels_first(pictures, weights, calls):
  images, real = pictures
  scores = inception.inception_scores(
    images, real, weights_path=weights, progress=False
  )
  assert scores == {
    "imagenet_inception_score": 1.0,
    "imagenet_inception_score_standard_deviation": 2.0,
    "imagenet_frechet_distance": 3.0,
    "imagenet_kernel_inception_distance": 4.0,
    "imagenet_kernel_inception_distance_standard_deviation": 5.0,
  }
  (call,) = calls
  for name, array in (("input1", images), ("input2", real)):
    assert len(call[name]) == len(array)
    for got, picture in zip(call[name], array):
      assert got.dtype == np.uint8
      np.testing.assert_array_equal(got, np.moveaxis(picture, -1, 0))
  assert all(call[score] for score in ("isc", "fid", "kid"))
  assert call["feature_extractor_weights_path"] == str(weights)
  assert call["kid_subset_size"] == 12
  assert not call["cuda"]
  assert not call["verbose"]


def test_images_of_another_type_or_shape_are_errors(pictures, weights, calls):
  images, real = pictures
  for wrong in (images / 255, images[..., :1], images[0]):
    with pytest.raises(ValueError, match=r"images must be colour images"):
      inception.inception_scores(wrong, real, weights_path=weights)
  with pytest.raises(ValueError, match=r"real must be colour images"):
    inception.inception_scores(images, real / 255, weights_path=weights)
  with pytest.raises(ValueError, match="at least 10 images, got 9"):
    inception.inception_scores(images[:9], real, weights_path=weights)
  assert not calls


def test_a_missing_package_is_named(pictures, weights, calls, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch_fidelity", None)
  with pytest.raises(ImportError, match=r"stein_jax\[inception\]"):
    inception.inception_scores(*pictures, weights_path=weights)


def test_missing_weights_are_named(pictures, calls, tmp_path):
  with pytest.raises(FileNotFoundError, match="not given") as caught:
    inception.inception_scores(*pictures, weights_path=None)
  for needed in (inception.WEIGHTS, inception.URL, "--weights"):
    assert needed in str(caught.value)
  with pytest.raises(FileNotFoundError, match=r"not in .*elsewhere"):
    inception.inception_scores(*pictures, weights_path=tmp_path / "elsewhere")
  assert not calls


def test_a_file_that_is_not_the_weights_is_an_error(pictures, weights, calls):
  weights.write_bytes(b"half of the wei")
  with pytest.raises(ValueError, match=r"is not the file.*SHA-256"):
    inception.inception_scores(*pictures, weights_path=weights)
  assert not calls


def test_the_file_name_and_the_address_match_the_checksum():
  assert inception.SHA256[:8] in inception.WEIGHTS
  assert inception.URL.endswith(inception.WEIGHTS)
