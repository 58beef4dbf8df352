"""The paper's second score: test accuracy after training on generated images.

A ResNet learns from generated images and the labels for which they were generated; the
score is its accuracy on real test images. The first score, the inception score, depends
on whether images look real; this one depends on how much of the training set's
information they contain. 500 images copied 100 times have a high first score and a low
second one.

Source: Liu & Wang (2017), section 5.2, figure 2.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.pictures.resnet import (
  FULL,
  Labelled,
  Recipe,
  check_labelled,
  train_resnet,
)
from experiments.shared.classifiers import accuracy


def duplicates(
  images: np.ndarray,
  labels: np.ndarray,
  *,
  num_distinct: int = 500,
  copies: int = 100,
  seed: int = 0,
) -> Labelled:
  """A random subset of the images without repetition, each image copied `copies` times.

  The paper's baseline: its images are real, but there are few different ones.

  Args:
    images: `[n, ...]`.
    labels: `[n]`.
    num_distinct: the size of the subset.
    copies: how often each of its images appears in the result.
    seed: of the subset.

  Raises:
    ValueError: num_distinct is not between 1 and n, or copies is below 1.
  """
  if not 1 <= num_distinct <= len(images):
    raise ValueError(
      f"num_distinct must be between 1 and {len(images)}, the number of images, "
      f"got {num_distinct}."
    )
  if copies < 1:
    raise ValueError(f"copies must be at least 1, got {copies}.")
  chosen = np.random.default_rng(seed).permutation(len(images))[:num_distinct]
  rows = chosen.repeat(copies)
  return np.asarray(images)[rows], np.asarray(labels)[rows]


def accuracy_by_training_set(
  training_sets: Mapping[str, Labelled],
  test: Labelled,
  *,
  recipe: Recipe = FULL,
  num_classes: int | None = None,
  **options: Any,
) -> dict[str, float]:
  """Trains a ResNet on each training set, and returns their accuracies on real images.

  All ResNets have the same initial parameters, recipe and number of steps. Each is
  saved in the cache when it is trained: a run that was interrupted loads the finished
  ones.

  Args:
    training_sets: name -> (images `[n, h, w, c]` uint8, their labels `[n]`). The labels
      of generated images are those for which they were generated.
    test: real images and labels that no model was trained on.
    recipe: of all trainings.
    num_classes: the number of classes; None: the largest label of any set plus 1.
    **options: of `train_resnet`: seed, cache_dir, refit, progress.

  Returns:
    name -> the fraction of test images that are classified correctly.

  Raises:
    ValueError: as `train_resnet`. All sets are checked before the first training.
  """
  test_images, test_labels = test
  num_classes = num_classes or 1 + max(
    int(np.max(labels)) for _, labels in (*training_sets.values(), test)
  )
  for name, (images, labels) in training_sets.items():
    check_labelled(name, images, np.asarray(labels), recipe, num_classes)
    if images.shape[1:] != test_images.shape[1:]:
      raise ValueError(
        f"{name}: images of shape {images.shape[1:]}, but the test images have "
        f"{test_images.shape[1:]}."
      )
  accuracies = {}
  for name, (images, labels) in training_sets.items():
    fitted = train_resnet(
      images, labels, recipe=recipe, num_classes=num_classes, name=name, **options
    )
    accuracies[name] = accuracy(fitted, test_images, test_labels)
  return accuracies
