"""ResNets that learn to classify images: how they are trained, and where they are kept.

One that is trained on the real training set is the classifier in whose view generated
images are scored. Others are trained on generated images: `testing_accuracy`.
"""

import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.shared import datasets
from experiments.shared.classifiers import (
  Classifier,
  accuracy,
  cache_path,
  kept,
  shifted,
)
from stein_jax import Algorithm, evaluation, training
from stein_jax.types import Array, Batch, Key, Metrics, Params, PyTree

MAX_SHIFT = 4  # pixels, of the augmentation

Labelled = tuple[np.ndarray, np.ndarray]
"""Images `[n, h, w, c]` as uint8, and their labels `[n]`."""


class Recipe(NamedTuple):
  """How a ResNet is trained: as by He et al., but with a cosine learning rate.

  Attributes:
    num_steps: training steps; 64 000 of 128 images are 164 epochs of CIFAR-10.
    depth: of `evaluation.ResNet`.
    width: of `evaluation.ResNet`.
    batch_size: images in a batch.
    learning_rate: at the start; it falls to 0 along a cosine.
    momentum: of the gradient descent.
    weight_decay: λ in the term λ/2 ‖θ‖² of the loss.
    augment: whether images are shifted at random by up to four pixels and mirrored at
      random.
    dtype: of the activations; "bfloat16" is fast on accelerators.
  """

  num_steps: int = 64_000
  depth: int = 20
  width: float = 1.0
  batch_size: int = 128
  learning_rate: float = 0.1
  momentum: float = 0.9
  weight_decay: float = 1e-4
  augment: bool = True
  dtype: str = "float32"


FULL = Recipe()
"""ResNet-20 with the length of training of He et al.: 91.25 % on CIFAR-10 there."""


class ResNetState(NamedTuple):
  """What `residual_classification` learns, and the state of its optimizer."""

  params: Params
  batch_stats: PyTree
  opt_state: optax.OptState


def residual_classification(
  network: nn.Module,
  optimizer: optax.GradientTransformation,
  *,
  augment: bool = True,
) -> Algorithm:
  """Learns labels by cross-entropy; its state includes batch norm's statistics.

  Args:
    network: a module (images, train) -> logits, such as `evaluation.ResNet`. `init` of
      the algorithm takes its variables as the parameters.
    optimizer: an optax optimizer.
    augment: whether images are `augmented`.

  Returns:
    An Algorithm for batches {"x": images `[m, h, w, c]`, "context": labels `[m]`}.
  """

  def init(key: Key, variables: PyTree, batch: Batch) -> ResNetState:
    del key, batch
    params = variables["params"]
    return ResNetState(params, variables["batch_stats"], optimizer.init(params))

  def update(key: Key, state: ResNetState, batch: Batch) -> tuple[ResNetState, Metrics]:
    images, labels = batch["x"], batch["context"]
    if augment:
      images = augmented(key, images)

    def loss(params: Params) -> tuple[Array, tuple[Array, PyTree]]:
      logits, new = network.apply(
        {"params": params, "batch_stats": state.batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
      )
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      accuracy = (logits.argmax(axis=-1) == labels).mean()
      return losses.mean(), (accuracy, new["batch_stats"])

    (value, (accuracy, batch_stats)), gradient = jax.value_and_grad(loss, has_aux=True)(
      state.params
    )
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "accuracy": accuracy}
    return ResNetState(params, batch_stats, opt_state), metrics

  return Algorithm(init, update)


def augmented(key: Key, images: Array) -> Array:
  """Shifts every image `[h, w, c]` by up to four pixels, and mirrors half of them."""
  shift_key, mirror_key = jax.random.split(key)
  images = shifted(shift_key, images, max_shift=MAX_SHIFT)
  mirrored = jax.random.bernoulli(mirror_key, shape=(len(images), 1, 1, 1))
  return jnp.where(mirrored, images[:, :, ::-1], images)


@functools.lru_cache  # training sets of one size then share one compilation
def _network_and_algorithm(
  recipe: Recipe, num_classes: int
) -> tuple[evaluation.ResNet, Algorithm]:
  network = evaluation.ResNet(
    depth=recipe.depth,
    width=recipe.width,
    num_classes=num_classes,
    dtype=jnp.dtype(recipe.dtype),
  )
  algorithm = residual_classification(
    network, optimizer(recipe), augment=recipe.augment
  )
  return network, algorithm


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
  """Gradient descent with momentum, weight decay and a cosine learning rate."""
  schedule = optax.cosine_decay_schedule(recipe.learning_rate, recipe.num_steps)
  return optax.chain(
    optax.add_decayed_weights(recipe.weight_decay),
    optax.sgd(schedule, momentum=recipe.momentum),
  )


def train_resnet(
  images: np.ndarray,
  labels: np.ndarray,
  *,
  recipe: Recipe = FULL,
  num_classes: int | None = None,
  seed: int = 0,
  cache_dir: str | os.PathLike[str] | None = None,
  name: str = "",
  refit: bool = False,
  progress: bool = True,
) -> Classifier:
  """A ResNet trained on these images; loaded if it was trained and saved before.

  Args:
    images: `[n, h, w, c]`, uint8.
    labels: `[n]`, integers from 0.
    recipe: of the training.
    num_classes: the number of classes; None: the largest label plus 1.
    seed: of the initial parameters, the batches and their augmentation.
    cache_dir: where it is saved, in one file for each name, recipe, seed and data; as
      in `datasets.load`.
    name: of the data, for the name of the file and the progress bar.
    refit: train again, also if it was saved before.
    progress: whether to show a progress bar.

  Returns:
    A Classifier, without test accuracy.

  Raises:
    ValueError: as `check_labelled`.
    saved.DamagedFile: the saved file cannot be read.
  """
  labels = np.asarray(labels)
  check_labelled(name, images, labels, recipe, num_classes)
  num_classes = num_classes or int(labels.max()) + 1
  network, algorithm = _network_and_algorithm(recipe, num_classes)
  start_key, fit_key = jax.random.split(jax.random.key(seed))
  # lazy_init compiles one random draw for each shape of a parameter, jit(network.init)
  # one for each parameter.
  blank = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
  variables = network.lazy_init(start_key, blank)

  def fit() -> PyTree:
    state = training.fit(
      fit_key,
      algorithm,
      variables,
      {"x": images, "context": labels.astype(np.int32)},
      num_steps=recipe.num_steps,
      batch_size=recipe.batch_size,
      progress=progress,
      label=f"ResNet on {name}" if name else "ResNet",
    ).state
    return {"params": state.params, "batch_stats": state.batch_stats}

  settings = ("ResNet", tuple(recipe), num_classes, seed, MAX_SHIFT)
  path = cache_path(
    f"resnet-{name}" if name else "resnet", settings, (images, labels), cache_dir
  )
  variables = kept(path, variables, fit, refit=refit)
  return Classifier(network, variables, images.shape[1:], path=path)


def reference_resnet(dataset: datasets.Dataset, **options: Any) -> Classifier:
  """The ResNet of a data set, in whose view generated images are scored.

  It is trained on the training and the validation set, as in `classifiers.load_or_fit`.
  Its test accuracy is thus the testing accuracy of the real training set, if the same
  recipe is used for the other training sets.

  Args:
    dataset: colour images with labels.
    **options: of `train_resnet`.

  Raises:
    ValueError: the data set has no labels; or as `train_resnet`.
  """
  images, labels = real_training_set(dataset)
  fitted = train_resnet(images, labels, name=dataset.name, **options)
  return fitted._replace(
    test_accuracy=accuracy(fitted, dataset.test, dataset.test_labels)
  )


def real_training_set(dataset: datasets.Dataset) -> Labelled:
  """All images that are not test images: for CIFAR-10 the 50 000 of the paper.

  Raises:
    ValueError: the data set has no labels.
  """
  if dataset.train_labels is None:
    raise ValueError(f"a classifier needs labels, and {dataset.name} has none.")
  return (
    np.concatenate([dataset.train, dataset.validation]),
    np.concatenate([dataset.train_labels, dataset.validation_labels]),
  )


def check_labelled(
  name: str,
  images: np.ndarray,
  labels: np.ndarray,
  recipe: Recipe,
  num_classes: int | None,
) -> None:
  """Checks the arguments of `train_resnet` that have these names.

  Raises:
    ValueError: images or labels have a wrong shape or type, there are fewer images than
      in a batch, or a label is out of range.
  """
  of = f"{name}: " if name else ""
  if images.ndim != 4 or images.dtype != np.uint8:
    raise ValueError(
      f"{of}images must be [n, h, w, c] of uint8, got {images.shape} of {images.dtype}."
    )
  whole = np.issubdtype(labels.dtype, np.integer)
  if labels.shape != images.shape[:1] or not whole:
    raise ValueError(
      f"{of}labels must be {len(images)} integers, one for each image, got shape "
      f"{labels.shape} of {labels.dtype}."
    )
  if len(images) < recipe.batch_size:
    raise ValueError(
      f"{of}{len(images)} images are fewer than a batch of {recipe.batch_size}: choose "
      "a smaller batch_size."
    )
  wanted = "from 0" if num_classes is None else f"from 0 to {num_classes - 1}"
  if labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes):
    raise ValueError(
      f"{of}labels must be {wanted}, got {labels.min()} to {labels.max()}."
    )
