"""The classifier that the scores of samples are based on: fitted once, and saved."""

import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import serialization

from experiments.shared import caches, datasets, saved
from stein_jax import Algorithm, training
from stein_jax.algorithms.descent import descend
from stein_jax.evaluation import DigitClassifier
from stein_jax.training.files import write_atomically
from stein_jax.types import Array, Batch, Key, Metrics, Params, PyTree

BATCH_SIZE = 100
LEARNING_RATE = 3e-3  # Adam's, at the start; it goes to zero along a cosine
NUM_STEPS = 3000  # at most, and no more than NUM_EPOCHS epochs
NUM_EPOCHS = 15
MAX_SHIFT = 2  # pixels

_BATCH_OF_ANSWERS = 500  # images


class Classifier(NamedTuple):
  """A fitted network.

  Its methods take images `[n, *image_shape]` or flat, uint8 or floats in [0, 1].

  Attributes:
    network: a module that maps images in [0, 1] to logits, with a method `features`.
    params: its parameters; of a network with batch norm, all its variables.
    image_shape: of the images that it was fitted to, (h, w, c).
    test_accuracy: the share of test images that it classifies correctly; NaN where it
      was not computed.
    path: the file it is saved in, or None.
  """

  network: nn.Module
  params: Params
  image_shape: tuple[int, ...]
  test_accuracy: float = math.nan
  path: Path | None = None

  def probabilities(self, images: Array | np.ndarray) -> np.ndarray:
    """p(y | x), `[n, num_classes]`."""
    return self._apply(images, "__call__", jax.nn.softmax)

  def features(self, images: Array | np.ndarray) -> np.ndarray:
    """The network's last hidden layer, `[n, d]`."""
    return self._apply(images, "features", None)

  def _apply(
    self,
    images: Array | np.ndarray,
    method: str,
    then: Callable[[Array], Array] | None,
  ) -> np.ndarray:
    images = np.asarray(images).reshape(-1, *self.image_shape)
    if images.dtype != np.uint8 and not (images.min() >= 0 and images.max() <= 1):
      raise ValueError(
        "images must be uint8 or floats in [0, 1]; got floats from "
        f"{images.min():.3g} to {images.max():.3g}."
      )
    num_images = len(images)
    # One shape, hence one compilation, whatever the number of images.
    padding = -num_images % _BATCH_OF_ANSWERS
    images = np.concatenate(
      [images, np.zeros((padding, *images.shape[1:]), images.dtype)]
    )
    parts = [
      np.asarray(_predict(self.network, self.params, part, method, then))
      for part in np.split(images, len(images) // _BATCH_OF_ANSWERS)
    ]
    return np.concatenate(parts)[:num_images]


@functools.partial(jax.jit, static_argnames=("network", "method", "then"))
def _predict(
  network: nn.Module,
  params: Params,
  images: Array,
  method: str,
  then: Callable[[Array], Array] | None,
) -> Array:
  out = network.apply(params, training.unit_interval(images), method=method)
  return then(out) if then else out


def accuracy(
  classifier: Classifier, images: Array | np.ndarray, labels: Array | np.ndarray
) -> float:
  """The share of images `[n, ...]` whose most probable class is their label `[n]`."""
  right = classifier.probabilities(images).argmax(axis=1) == np.asarray(labels)
  return float(right.mean())


def classification(
  apply_fn: Callable[[Params, Array], Array], optimizer: optax.GradientTransformation
) -> Algorithm:
  """Learns labels by cross-entropy, from images that are shifted at random.

  Args:
    apply_fn: (params, images) -> logits `[m, classes]`.
    optimizer: an optax optimizer.

  Returns:
    An Algorithm for batches {"x": images `[m, h, w, c]`, "context": labels `[m]`}.
  """

  def gradient(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    images, labels = shifted(key, batch["x"]), batch["context"]

    def loss(params: Params) -> tuple[Array, Array]:
      logits = apply_fn(params, images)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean(), (logits.argmax(axis=-1) == labels).mean()

    (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return gradient, {"loss": value, "accuracy": accuracy}

  return descend(gradient, optimizer)


def shifted(key: Key, images: Array, *, max_shift: int = MAX_SHIFT) -> Array:
  """Every image `[h, w, c]` shifted by up to max_shift pixels; zeros fill the gap."""
  padded = jnp.pad(
    images, ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0))
  )
  corners = jax.random.randint(key, (len(images), 2), 0, 2 * max_shift + 1)
  return jax.vmap(
    lambda image, corner: jax.lax.dynamic_slice(
      image, (corner[0], corner[1], 0), images.shape[1:]
    )
  )(padded, corners)


def load_or_fit(
  dataset: datasets.Dataset,
  *,
  cache_dir: str | os.PathLike[str] | None = None,
  seed: int = 0,
  num_steps: int | None = None,
  refit: bool = False,
  progress: bool = True,
) -> Classifier:
  """The classifier of a data set: loaded where it was fitted before, else fitted.

  It learns from the training and the validation set, because no setting is chosen by
  validation.

  Args:
    dataset: with labels.
    cache_dir: where it is saved; as in `datasets.load`.
    seed: of its start, its batches and its shifts.
    num_steps: batches of 100; None: 3000, or 15 epochs where that is less.
    refit: fit it again, even if it was fitted before.
    progress: whether to show a progress bar.

  Raises:
    ValueError: the data set has no labels.
    saved.DamagedFile: the saved file is damaged.
  """
  if dataset.train_labels is None:
    raise ValueError("a classifier needs labels, and this data set has none.")
  images = np.concatenate([dataset.train, dataset.validation])
  labels = np.concatenate([dataset.train_labels, dataset.validation_labels])
  num_steps = num_steps or min(NUM_STEPS, NUM_EPOCHS * (len(images) // BATCH_SIZE))
  network = DigitClassifier(num_classes=int(labels.max()) + 1)
  start_key, fit_key = jax.random.split(jax.random.key(seed))
  params = jax.jit(network.init)(start_key, jnp.zeros((1, *images.shape[1:])))

  shapes = jax.tree.map(jnp.shape, params)
  settings = (shapes, seed, num_steps, BATCH_SIZE, LEARNING_RATE, MAX_SHIFT)
  path = cache_path(dataset.name, settings, (images, labels), cache_dir)

  def fit() -> Params:
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, num_steps)
    return training.fit(
      fit_key,
      classification(network.apply, optax.adam(schedule)),
      params,
      {"x": images, "context": labels},
      num_steps=num_steps,
      batch_size=BATCH_SIZE,
      progress=progress,
      label="digit classifier (once)",
    ).state.params

  fitted = Classifier(
    network, kept(path, params, fit, refit=refit), images.shape[1:], path=path
  )
  return fitted._replace(
    test_accuracy=accuracy(fitted, dataset.test, dataset.test_labels)
  )


def cache_path(
  name: str,
  settings: Sequence[Any],
  arrays: Sequence[np.ndarray],
  cache_dir: str | os.PathLike[str] | None,
) -> Path:
  """The file of a fit, whose name depends on the data and on the settings of the fit.

  Args:
    name: the readable part; characters that do not fit in a file name are replaced.
    settings: all that the fit depends on, except the data; their repr is hashed.
    arrays: the data.
    cache_dir: as in `datasets.load`.
  """
  digest = hashlib.sha256(repr(settings).encode())
  for array in arrays:
    digest.update(np.ascontiguousarray(array))
  name = re.sub(r"[^\w.+-]", "_", name)
  return caches.resolve_cache_dir(cache_dir) / (
    f"classifier-{name}-{digest.hexdigest()[:16]}.msgpack"
  )


def kept(
  path: Path, like: PyTree, fit: Callable[[], PyTree], *, refit: bool = False
) -> PyTree:
  """The result of `fit`: read from a file where it was saved before, else computed.

  Args:
    path: the file. A new result is saved there.
    like: a tree of the same structure.
    fit: computes the result.
    refit: compute it again, even if the file exists.

  Raises:
    saved.DamagedFile: the file holds something else, or is damaged.
    OSError: the file cannot be written; raised before the result is computed.
  """
  if refit or not path.exists():
    caches.require_usable(path.parent)  # else the fit would be lost
    fitted = fit()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, serialization.to_bytes(fitted))
  return saved.read_tree(path, like, "a saved classifier")
