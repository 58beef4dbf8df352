"""Fixtures of the tests of images: folders of their own, and a trained ResNet."""

import jax
import pytest

from tests.experiments.pictures.resnets import coloured, train


@pytest.fixture(autouse=True)
def _own_directories(monkeypatch, tmp_path):
  """A home directory, a cache and a data directory that only this test uses."""
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setenv("STEIN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


@pytest.fixture(scope="module")
def quick_compilation():
  """A few steps of tiny networks take less time than to optimise their programs."""
  name = "jax_disable_most_optimizations"
  before = jax.config.values[name]
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)


@pytest.fixture(scope="module")
def classifier_dir(tmp_path_factory):
  """Where the ResNets of a module are saved."""
  return tmp_path_factory.mktemp("classifiers")


@pytest.fixture(scope="module")
def fitted(classifier_dir, quick_compilation):
  """A ResNet that has learned to classify `coloured` images."""
  return train(*coloured(96, 0), classifier_dir, name="coloured")
