"""Small labelled images, and a ResNet that learns to classify them in seconds."""

import numpy as np

from experiments.pictures import resnet

TINY = resnet.Recipe(
  num_steps=60, depth=8, width=0.25, batch_size=16, learning_rate=0.05, augment=False
)


def coloured(n, seed, classes=3):
  """Noisy 8×8 images, each with one brighter channel: its label."""
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % classes
  images = rng.integers(0, 120, (n, 8, 8, 3))
  images[np.arange(n), :, :, labels] += 120
  return images.astype(np.uint8), labels


def train(images, labels, folder, recipe=TINY, **options):
  return resnet.train_resnet(
    images, labels, recipe=recipe, cache_dir=folder, progress=False, **options
  )
