"""What torch-fidelity is asked for, and what a user who lacks it is told."""

import hashlib
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from experiments import inception
from tests import binaries

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
def asked(monkeypatch):
  """Stands in for torch and torch-fidelity; the list of what was asked for."""
  calls = []

  def calculate_metrics(**arguments):
    calls.append(arguments)
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
  return calls


def test_pictures_go_channels_first_and_scores_come_back(pictures, weights, asked):
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
  (call,) = asked
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


def test_other_pictures_are_refused(pictures, weights, asked):
  images, real = pictures
  for wrong in (images / 255, images[..., :1], images[0]):
    with pytest.raises(ValueError, match=r"images must be colour pictures"):
      inception.inception_scores(wrong, real, weights_path=weights)
  with pytest.raises(ValueError, match=r"real must be colour pictures"):
    inception.inception_scores(images, real / 255, weights_path=weights)
  with pytest.raises(ValueError, match="at least 10, got 9"):
    inception.inception_scores(images[:9], real, weights_path=weights)
  assert not asked


def test_a_missing_package_is_named(pictures, weights, asked, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch_fidelity", None)
  with pytest.raises(ImportError, match=r"stein_jax\[inception\]"):
    inception.inception_scores(*pictures, weights_path=weights)


def test_missing_weights_are_named(pictures, asked, tmp_path):
  with pytest.raises(FileNotFoundError, match="not given") as caught:
    inception.inception_scores(*pictures, weights_path=None)
  for needed in (inception.WEIGHTS, inception.URL, "--weights"):
    assert needed in str(caught.value)
  with pytest.raises(FileNotFoundError, match=r"not in .*elsewhere"):
    inception.inception_scores(*pictures, weights_path=tmp_path / "elsewhere")
  assert not asked


def test_another_file_than_the_weights_is_refused(pictures, weights, asked):
  weights.write_bytes(b"half of the wei")
  with pytest.raises(ValueError, match=r"is not the file.*SHA-256"):
    inception.inception_scores(*pictures, weights_path=weights)
  assert not asked


def test_file_name_and_address_belong_to_the_digest():
  assert inception.SHA256[:8] in inception.WEIGHTS
  assert inception.URL.endswith(inception.WEIGHTS)


def test_the_binary_says_what_it_lacks(tmp_path):
  result = binaries.run(
    "inception", f"--images={tmp_path / 'images.npy'}", f"--weights={tmp_path / 'no'}"
  )
  assert result.returncode == 1
  assert "stein_jax[inception]" in result.stderr or inception.URL in result.stderr
