"""The digit classifier: its loss by hand, its reproducibility, its accuracy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.shared import classifiers, datasets, embedded, saved, tfds_data
from stein_jax.evaluation import DigitClassifier
from tests import binaries


@pytest.fixture(scope="module")
def digits():
  return datasets.load(embedded.NAME)


def small(digits, n=300):
  return digits._replace(train=digits.train[:n], train_labels=digits.train_labels[:n])


def fit(dataset, folder, **options):
  options = {"num_steps": 20, "progress": False, **options}
  return classifiers.load_or_fit(dataset, cache_dir=folder, **options)


@pytest.mark.slow
def test_reproducible_from_its_seed(digits, tmp_path):
  first, second, other = (
    fit(small(digits), tmp_path / name, seed=seed)
    for name, seed in (("a", 0), ("b", 0), ("c", 1))
  )
  leaves = [jax.tree.leaves(fitted.params) for fitted in (first, second, other)]
  assert all((a == b).all() for a, b in zip(leaves[0], leaves[1]))
  assert any((a != b).any() for a, b in zip(leaves[0], leaves[2]))


@pytest.mark.slow
def test_saved_and_reused_for_the_same_data_and_settings(digits, tmp_path, monkeypatch):
  first = fit(small(digits), tmp_path)
  others = [fit(small(digits), tmp_path, seed=1), fit(small(digits, 299), tmp_path)]
  assert len({first.path, *(other.path for other in others)}) == 3

  def fail(*args, **kwargs):
    raise AssertionError("fitted again")

  monkeypatch.setattr(classifiers.training, "fit", fail)
  again = fit(small(digits), tmp_path)
  assert again.test_accuracy == first.test_accuracy
  with pytest.raises(AssertionError, match="fitted again"):
    fit(small(digits), tmp_path, refit=True)


@pytest.mark.slow
def test_a_damaged_file_is_named(digits, tmp_path):
  first = fit(small(digits), tmp_path)
  first.path.write_bytes(first.path.read_bytes()[:1000])
  with pytest.raises(
    saved.DamagedFile, match=f"{first.path.name} is not a saved classifier"
  ):
    fit(small(digits), tmp_path)


def test_pixels_on_another_scale_are_an_error(digits, tmp_path):
  fitted = fit(small(digits), tmp_path)
  for wrong in (digits.test[:3].astype(np.float32), np.full((1, 784), np.nan)):
    with pytest.raises(ValueError, match=r"uint8 or floats in \[0, 1\]"):
      fitted.features(wrong)


@pytest.mark.slow
def test_learns_and_answers_any_number_of_images(digits, tmp_path):
  fitted = fit(digits, tmp_path, num_steps=200)
  assert fitted.test_accuracy > 0.93
  p = fitted.probabilities(digits.test)
  assert (p.argmax(axis=1) == digits.test_labels).mean() == fitted.test_accuracy
  np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
  # 501 needs a second batch, whose padding must not appear
  scaled = digits.test[:501].reshape(501, -1) / np.float32(255)
  np.testing.assert_allclose(fitted.probabilities(scaled), p[:501], atol=1e-5)
  features = fitted.features(digits.test[:3])
  assert features.shape == (3, 128)
  head = fitted.params["params"]["head"]
  logits = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
  np.testing.assert_allclose(
    np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), p[:3], atol=1e-4
  )


def test_metrics_and_gradient_are_those_of_cross_entropy():
  rng = np.random.default_rng(0)
  images = rng.normal(size=(6, 5, 5, 1)).astype(np.float32)
  labels = np.array([0, 1, 2, 0, 1, 2])
  weights = rng.normal(size=(25, 3)).astype(np.float32)
  rule = classifiers.classification(
    lambda w, x: x.reshape(len(x), -1) @ w, optax.sgd(1.0)
  )
  key = jax.random.key(0)
  batch = {"x": jnp.asarray(images), "context": jnp.asarray(labels)}
  state, metrics = rule.update(key, rule.init(key, weights, batch), batch)
  seen = np.asarray(classifiers.shifted(key, images)).reshape(6, -1)
  p = np.exp(seen @ weights)
  p /= p.sum(axis=1, keepdims=True)
  assert metrics["loss"] == pytest.approx(
    -np.log(p[np.arange(6), labels]).mean(), rel=1e-5
  )
  assert metrics["accuracy"] == pytest.approx((p.argmax(axis=1) == labels).mean())
  gradient = seen.T @ (p - np.eye(3)[labels]) / 6
  np.testing.assert_allclose(weights - state.params, gradient, atol=1e-5)


def test_shifts_are_within_two_pixels_and_differ():
  images = np.arange(1, 9 * 9 + 1, dtype=np.float32).reshape(1, 9, 9, 1).repeat(200, 0)
  shifts = set()
  for image in np.asarray(classifiers.shifted(jax.random.key(0), images))[..., 0]:
    row, column = divmod(int(image[4, 4]) - 1, 9)  # what came into the middle
    shifts.add((row - 4, column - 4))
    padded = np.pad(images[0, ..., 0], 2)
    np.testing.assert_array_equal(
      image, padded[row - 2 : row + 7, column - 2 : column + 7]
    )
  assert shifts == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


@pytest.mark.slow
def test_network_takes_images_of_any_size():
  network = DigitClassifier(num_classes=4)
  images = jnp.ones((2, 15, 9, 3))
  params = network.init(jax.random.key(0), images)
  assert network.apply(params, images).shape == (2, 4)


def test_data_without_labels_is_an_error(digits, tmp_path):
  bare = digits._replace(
    train_labels=None, validation_labels=None, test_labels=None, name="bare"
  )
  with pytest.raises(ValueError, match="needs labels"):
    fit(bare, tmp_path)


@pytest.mark.slow
def test_the_command_fits_prints_and_saves(tmp_path):
  result = binaries.run(
    "classifier", "--steps=5", "--noprogress", f"--cache_dir={tmp_path}"
  )
  assert result.returncode == 0, result.stderr
  assert "Test accuracy on mnist5k" in result.stdout
  assert "Inception score" in result.stdout
  assert len(list(tmp_path.glob("classifier-mnist5k-*.msgpack"))) == 1


@pytest.mark.slow
def test_over_99_percent_on_all_of_mnist(tmp_path):
  try:
    dataset = datasets.load("mnist")
  except (tfds_data.DatasetNotPrepared, ImportError) as error:
    pytest.skip(str(error))
  assert fit(dataset, tmp_path, num_steps=None).test_accuracy > 0.99
