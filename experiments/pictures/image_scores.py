"""Scores of generated colour pictures, and the table of figure 2.

The paper gives two: the inception score, and how well a ResNet that has learned from
generated pictures, with the labels they were generated for, classifies real ones. The
first sees whether pictures look like something, the second how much of the training
set is in them: 500 pictures copied 100 times have a high first and a low second.

The paper's inception network is one trained on ImageNet (`experiments.inception`). Here
a ResNet trained on the real training set takes its place, whose features also give
Fréchet and kernel distances, precision and recall.

Source: Liu & Wang (2017), section 5.2, figure 2.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.shared import datasets, tables
from experiments.shared import scores as shared_scores
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
"""Pictures `[n, h, w, c]` as uint8, and their labels `[n]`."""


class Recipe(NamedTuple):
  """How a ResNet is trained: by He et al., except that a cosine takes the rate to 0.

  Attributes:
    num_steps: of batch_size pictures each; 64 000 of 128 are 164 epochs of CIFAR-10.
    depth: of `evaluation.ResNet`.
    width: of it.
    batch_size: pictures in a batch.
    learning_rate: at the start.
    momentum: of the gradient descent.
    weight_decay: λ of λ/2 ‖θ‖², which the loss contains.
    augment: whether pictures are shifted by up to four pixels and turned left to right
      at random.
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
"""ResNet-20 for as long as He et al. train it; they report 91.25 % on CIFAR-10."""


class ResNetState(NamedTuple):
  """What `residual_classification` learns, and its optimizer's state."""

  params: Params
  batch_stats: PyTree
  opt_state: optax.OptState


def residual_classification(
  network: nn.Module,
  optimizer: optax.GradientTransformation,
  *,
  augment: bool = True,
) -> Algorithm:
  """Learns labels by cross-entropy, with the statistics of batch norm in its state.

  Args:
    network: (images, train) -> logits, a `ResNet` say, whose variables `init` takes for
      parameters.
    optimizer: an optax optimizer.
    augment: whether pictures are `augmented`.

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
      share_right = (logits.argmax(axis=-1) == labels).mean()
      return losses.mean(), (share_right, new["batch_stats"])

    (value, (share_right, batch_stats)), gradient = jax.value_and_grad(
      loss, has_aux=True
    )(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {"loss": value, "accuracy": share_right}
    return ResNetState(params, batch_stats, opt_state), metrics

  return Algorithm(init, update)


def augmented(key: Key, images: Array) -> Array:
  """Every image `[h, w, c]` shifted by up to four pixels, and half of them mirrored."""
  shift_key, mirror_key = jax.random.split(key)
  images = shifted(shift_key, images, max_shift=MAX_SHIFT)
  mirrored = jax.random.bernoulli(mirror_key, shape=(len(images), 1, 1, 1))
  return jnp.where(mirrored, images[:, :, ::-1], images)


@functools.lru_cache  # so that training sets of one size share the compilation
def _rule(recipe: Recipe, num_classes: int) -> tuple[evaluation.ResNet, Algorithm]:
  network = evaluation.ResNet(
    depth=recipe.depth,
    width=recipe.width,
    num_classes=num_classes,
    dtype=jnp.dtype(recipe.dtype),
  )
  rule = residual_classification(network, optimizer(recipe), augment=recipe.augment)
  return network, rule


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
  """Gradient descent with momentum and weight decay, its rate going along a cosine."""
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
  """A ResNet that has learned from these pictures: loaded where it did so before.

  Args:
    images: `[n, h, w, c]`, uint8.
    labels: `[n]`, integers from 0.
    recipe: of the training.
    num_classes: how many there are; None: up to the largest label.
    seed: of its start, its batches and their augmentation.
    cache_dir: where it is kept, in a file for each name, recipe, seed and data; as in
      `datasets.load`.
    name: of the data, for its file and the progress bar.
    refit: train it anew.
    progress: whether to show a progress bar.

  Returns:
    A Classifier, without test accuracy.

  Raises:
    ValueError: pictures or labels of another kind, fewer pictures than a batch, or a
      file that is not what was saved.
  """
  labels = np.asarray(labels)
  _check_labelled(name, images, labels, recipe, num_classes)
  num_classes = num_classes or int(labels.max()) + 1
  network, algorithm = _rule(recipe, num_classes)
  start_key, fit_key = jax.random.split(jax.random.key(seed))
  # Compiles one draw for each shape of kernels; jit(network.init) one for each kernel.
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


def judge(dataset: datasets.Dataset, **options: Any) -> Classifier:
  """The ResNet of a data set, which scores pictures: fitted once, and then loaded.

  It learns from the training and the validation set, as `classifiers.load_or_fit` does.
  Its test accuracy is therefore the second score of the real training set, if the other
  sets are trained on by the same recipe.

  Args:
    dataset: of colour pictures with labels.
    **options: of `train_resnet`.

  Raises:
    ValueError: a data set without labels, or as in `train_resnet`.
  """
  images, labels = real_training_set(dataset)
  fitted = train_resnet(images, labels, name=dataset.name, **options)
  return fitted._replace(
    test_accuracy=accuracy(fitted, dataset.test, dataset.test_labels)
  )


def real_training_set(dataset: datasets.Dataset) -> Labelled:
  """All pictures that are not test pictures: of CIFAR-10 the paper's 50 000.

  Raises:
    ValueError: a data set without labels.
  """
  if dataset.train_labels is None:
    raise ValueError(f"a classifier needs labels, and {dataset.name} has none.")
  return (
    np.concatenate([dataset.train, dataset.validation]),
    np.concatenate([dataset.train_labels, dataset.validation_labels]),
  )


def duplicates(
  images: np.ndarray,
  labels: np.ndarray,
  *,
  num_distinct: int = 500,
  copies: int = 100,
  seed: int = 0,
) -> Labelled:
  """Some pictures drawn at random, all different ones, each copied so many times.

  The paper's baseline, which looks as good as the training set and holds little of it.

  Args:
    images: `[n, ...]`.
    labels: `[n]`.
    num_distinct: how many are drawn.
    copies: how often each is there.
    seed: of the draw.

  Raises:
    ValueError: fewer pictures than are to be drawn.
  """
  if not 1 <= num_distinct <= len(images):
    raise ValueError(
      f"num_distinct must lie between 1 and the {len(images)} pictures, "
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
  """The paper's second score: accuracy on real pictures after learning from others.

  Every ResNet starts alike and takes the same number of steps by the same recipe. Each
  is kept in the cache, so a run that was stopped does not repeat those it finished.

  Args:
    training_sets: name -> (pictures `[n, h, w, c]` uint8, the labels `[n]` that they
      have, or for which they were generated).
    test: real pictures and labels that no model has seen.
    recipe: of all trainings.
    num_classes: how many there are; None: up to the largest label of any set.
    **options: of `train_resnet`: seed, cache_dir, refit, progress.

  Returns:
    name -> the share of test pictures that are classified correctly.

  Raises:
    ValueError: as `train_resnet`, about any set before the first training.
  """
  test_images, test_labels = test
  num_classes = num_classes or 1 + max(
    int(np.max(labels)) for _, labels in (*training_sets.values(), test)
  )
  for name, (images, labels) in training_sets.items():
    _check_labelled(name, images, np.asarray(labels), recipe, num_classes)
    if images.shape[1:] != test_images.shape[1:]:
      raise ValueError(
        f"{name}: pictures of shape {images.shape[1:]}, but the test pictures have "
        f"{test_images.shape[1:]}."
      )
  found = {}
  for name, (images, labels) in training_sets.items():
    fitted = train_resnet(
      images, labels, recipe=recipe, num_classes=num_classes, name=name, **options
    )
    found[name] = accuracy(fitted, test_images, test_labels)
  return found


def scores(
  images: np.ndarray,
  *,
  probabilities: np.ndarray,
  features: np.ndarray,
  real_features: np.ndarray,
) -> dict[str, float]:
  """How good and how diverse pictures are, in one classifier's view of them.

  The Fréchet distance takes as many pictures of both kinds as there are of the rarer
  one, since it is biased by their number; kernel distance, precision, recall and the
  mean distance between pictures, in units of the full range of a pixel, look at pairs
  of 2 000. All are drawn at random, the same at every call.

  Args:
    images: `[n, h, w, c]`, uint8.
    probabilities: the classifier's p(y | x) of them, `[n, classes]`.
    features: the classifier's features of them, `[n, d]`.
    real_features: of real pictures that the model has not seen, `[n', d]`.

  Returns:
    inception_score, label_entropy, mean_pairwise_distance, frechet_distance and
    kernel_inception_distance, each also with _standard_error, precision and recall.

  Raises:
    ValueError: pictures that are not uint8, or unequal numbers of rows.
  """
  if images.dtype != np.uint8:
    raise ValueError(f"images must be uint8, got {images.dtype}.")
  if not len(images) == len(probabilities) == len(features):
    raise ValueError(
      f"{len(images)} images need as many rows of probabilities and features, got "
      f"{len(probabilities)} and {len(features)}."
    )
  # In order of class, or with the classes in turn, neither the first rows nor the
  # jackknife's blocks of every tenth would be a fair draw.
  rng = np.random.default_rng(0)
  order = rng.permutation(len(images))
  images, probabilities = images[order[: shared_scores.COMPARED]], probabilities[order]
  features = features[order]
  real = real_features[rng.permutation(len(real_features))]
  pixels = images.astype(np.float32) / 255
  return shared_scores.compared(pixels, probabilities, features, real)


def scores_of(
  images: np.ndarray, classifier: Classifier, real_features: np.ndarray
) -> dict[str, float]:
  """`scores` of pictures in a classifier's view.

  Args:
    images: `[n, h, w, c]`, uint8.
    classifier: say, the `judge`.
    real_features: its features of real pictures that the model has not seen; an
      argument, so that several calls share them.
  """
  return scores(
    images,
    probabilities=classifier.probabilities(images),
    features=classifier.features(images),
    real_features=real_features,
  )


# --- the table of figure 2 --------------------------------------------------------

REAL, DUPLICATE = "Real Training Set", "500 Duplicate"
DCGAN, STEIN_GAN, NO_KERNEL = "DCGAN", "SteinGAN", "SteinGAN w/o kernel"

PAPER = {
  REAL: {"imagenet_inception_score": 11.237, "testing_accuracy": 0.9258},
  DUPLICATE: {"imagenet_inception_score": 11.100, "testing_accuracy": 0.4496},
  DCGAN: {"imagenet_inception_score": 6.581, "testing_accuracy": 0.4478},
  STEIN_GAN: {"imagenet_inception_score": 6.711, "testing_accuracy": 0.6109},
  NO_KERNEL: {"imagenet_inception_score": 6.243, "testing_accuracy": 0.6050},
}
"""The numbers of figure 2."""

_ROWS = {
  "imagenet_inception_score": ("inception score, Inception network", ".3f"),
  "imagenet_frechet_distance": ("Fréchet distance, Inception network", ".2f"),
  "imagenet_kernel_inception_distance": ("kernel distance, Inception network", ".2g"),
  "inception_score": ("inception score, our classifier", ".3f"),
  "frechet_distance": ("Fréchet distance, our classifier", ".2f"),
  "kernel_inception_distance": ("kernel distance, our classifier", ".2g"),
  "precision": ("precision, our classifier", ".2f"),
  "recall": ("recall, our classifier", ".2f"),
  "mean_pairwise_distance": ("mean distance between pictures", ".2f"),
  "testing_accuracy": ("testing accuracy", ".2%"),
}


def figure2_table(
  results: Mapping[str, Mapping[str, float]], *, paper: bool = True
) -> str:
  """Figure 2's table in Markdown, the paper's numbers under ours, – if not measured.

  Args:
    results: the column's name -> what was measured: entries of `scores` and of
      `inception.inception_scores`, and `testing_accuracy`. Columns that the paper does
      not have come last.
    paper: whether to show the paper's columns and numbers, which are of CIFAR-10; else
      what was measured and no more.
  """
  beside = PAPER if paper else {}
  names = [*beside, *(name for name in results if name not in beside)]

  def cells(of: Mapping[str, Mapping[str, float]], score: str) -> Sequence[str]:
    found = [of.get(name, {}).get(score) for name in names]
    return [_text(value, _ROWS[score][1]) for value in found]

  lines = []
  for score, (label, _) in _ROWS.items():
    of_paper = any(score in numbers for numbers in beside.values())
    if of_paper or any(score in found for found in results.values()):
      lines.append([label, *cells(results, score)])
    if of_paper:
      lines.append(["… in the paper", *cells(beside, score)])
  return tables.markdown(["", *names], lines)


def _text(value: float | None, digits: str) -> str:
  return "–" if value is None else format(value, digits).replace("%", " %")


def _check_labelled(
  name: str,
  images: np.ndarray,
  labels: np.ndarray,
  recipe: Recipe,
  num_classes: int | None,
) -> None:
  """Raises ValueError where pictures and labels cannot be learned from."""
  of = f"{name}: " if name else ""
  if images.ndim != 4 or images.dtype != np.uint8:
    raise ValueError(
      f"{of}images must be [n, h, w, c] of uint8, got {images.shape} of {images.dtype}."
    )
  whole = np.issubdtype(labels.dtype, np.integer)
  if labels.shape != images.shape[:1] or not whole:
    raise ValueError(
      f"{of}labels must be {len(images)} integers, one an image, got shape "
      f"{labels.shape} of {labels.dtype}."
    )
  if len(images) < recipe.batch_size:
    raise ValueError(
      f"{of}{len(images)} images are fewer than a batch of {recipe.batch_size}: take a "
      "smaller batch_size."
    )
  wanted = "from 0" if num_classes is None else f"from 0 to {num_classes - 1}"
  if labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes):
    raise ValueError(
      f"{of}labels must be {wanted}, got {labels.min()} to {labels.max()}."
    )
