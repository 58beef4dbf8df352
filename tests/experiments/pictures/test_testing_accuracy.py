"""Accuracies of classifiers that learned from true labels, false labels and copies."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.pictures import testing_accuracy
from experiments.shared import classifiers
from tests.experiments.pictures.resnets import TINY, coloured

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Constant(nn.Module):
  """A classifier with the same answer for all images."""

  answer: int

  def __call__(self, images):
    logits = jnp.zeros(10).at[self.answer].set(1.0)
    return jnp.tile(logits, (len(images), 1))


def test_accuracy_of_a_constant_answer_is_the_frequency_of_its_label():
  images, _ = coloured(700, 0)
  labels = np.arange(700) % 7
  always = classifiers.Classifier(Constant(3), {}, (8, 8, 3))
  assert classifiers.accuracy(always, images, labels) == pytest.approx(1 / 7)
  never = classifiers.Classifier(Constant(9), {}, (8, 8, 3))
  assert classifiers.accuracy(never, images, labels) == 0


def test_duplicates_are_copies_of_a_random_subset():
  rng = np.random.default_rng(0)
  images = rng.permutation(3000)[:, None, None, None].repeat(3, axis=3)
  labels = images[:, 0, 0, 0] % 10
  drawn, drawn_labels = testing_accuracy.duplicates(images, labels)
  values, counts = np.unique(drawn[:, 0, 0, 0], return_counts=True)
  assert len(values) == 500
  assert set(counts) == {100}
  np.testing.assert_array_equal(drawn_labels, drawn[:, 0, 0, 0] % 10)
  again, _ = testing_accuracy.duplicates(images, labels)
  np.testing.assert_array_equal(again, drawn)
  other, _ = testing_accuracy.duplicates(images, labels, seed=1)
  assert set(other[:, 0, 0, 0]) != set(values)
  few, _ = testing_accuracy.duplicates(images, labels, num_distinct=3000, copies=2)
  assert sorted(few[:, 0, 0, 0]) == sorted([*range(3000), *range(3000)])
  for wrong in ({"num_distinct": 3001}, {"num_distinct": 0}, {"copies": 0}):
    with pytest.raises(ValueError, match="must"):
      testing_accuracy.duplicates(images, labels, **wrong)


@pytest.mark.slow
def test_accuracy_is_high_after_true_labels_and_low_after_false_ones(classifier_dir):
  images, labels = coloured(96, 0)
  more, more_labels = coloured(144, 2)
  sets = {
    "true": (images, labels),
    "next label": (images, (labels + 1) % 3),
    "two of three": (more[more_labels < 2], more_labels[more_labels < 2]),
  }
  found = testing_accuracy.accuracy_by_training_set(
    sets, coloured(300, 1), recipe=TINY, cache_dir=classifier_dir, progress=False
  )
  assert list(found) == list(sets)
  assert found["true"] > 0.95
  assert found["next label"] < 0.05
  assert found["two of three"] == pytest.approx(2 / 3, abs=0.05)


def test_a_wrong_training_set_is_an_error_before_the_first_training(
  classifier_dir, monkeypatch
):
  def fail(*args, **kwargs):
    raise AssertionError("trained")

  monkeypatch.setattr(classifiers.training, "fit", fail)
  images, labels = coloured(96, 0)
  for name, wrong, message in (
    ("floats", (images / 255, labels), "floats: images must be"),
    ("large", (images.repeat(2, axis=1), labels), "large: images of shape"),
    ("few", (images[:8], labels[:8]), "few: 8 images are fewer"),
  ):
    with pytest.raises(ValueError, match=message):
      testing_accuracy.accuracy_by_training_set(
        {"fresh": coloured(96, 9), name: wrong},
        coloured(30, 1),
        recipe=TINY,
        cache_dir=classifier_dir,
      )
