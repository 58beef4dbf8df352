"""Saved generators: their labels and their samples."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pictures import models, saved_generators
from experiments.pictures.model_settings import ModelSettings
from stein_jax import generators


def test_labels_are_as_frequent_as_in_the_training_set():
  task = models.Task(size=32, num_classes=3)
  settings = ModelSettings(generator_width=0.02)
  module = models.generator_of(settings, task)
  noise, label = jnp.zeros((2, 100)), jnp.zeros(2, jnp.int32)
  made = generators.initialize(jax.random.key(0), module, noise, label)
  about = {
    "label_counts": [10, 0, 30],
    "settings": saved_generators.generator_settings(settings, task),
  }
  trained = saved_generators.Trained(module, *made, about)
  labels = trained.labels(4000)
  counts = np.bincount(labels, minlength=3)
  assert counts[1] == 0
  assert abs(counts[2] / 4000 - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 4000)
  images = trained.sample(300, labels=labels[:300])
  assert images.shape == (300, 32, 32, 3)
  assert images.dtype == np.uint8
