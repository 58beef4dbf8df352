"""What experiments.mnist_rbm learns, and how it is evaluated: data, model and start."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.rbm.settings import Model
from experiments.shared import loading
from experiments.shared.datasets import Dataset
from stein_jax import evaluation, training
from stein_jax.energies import GaussianBernoulliRBM

Transform = Callable[[Any], Any]
"""A batch of points -> the same batch, scaled differently."""


WHITENING_POINTS = 20_000
"""At most this many points of the training set whiten a direction."""


class Problem(NamedTuple):
  """What is learned, and how it is evaluated.

  Attributes:
    rbm: the model.
    dataset: the data set.
    pixels: its training set, uint8 `[N, d]`.
    transform: from pixels to what the model sees.
    untransform: from what the model sees to pictures in [0, 1].
    baseline: the likelihood of N(mean, I).
    evaluate: parameters -> nats of every split.
    start: key -> the parameters that training starts from.
  """

  rbm: GaussianBernoulliRBM
  dataset: Dataset
  pixels: jax.Array
  transform: Transform
  untransform: Transform
  baseline: evaluation.MeanLogLikelihood
  evaluate: Callable[[Any], Mapping[str, float]]
  start: Callable[[jax.Array], Any]


def load(own: Model, batch_size: int) -> Problem:
  """The data and the model that the settings ask for."""
  dataset = loading.load(own, batch_size, validation_fraction=own.validation)
  splits = {
    name: jnp.asarray(split.reshape(len(split), -1))
    for name, split in (
      ("train", dataset.train),
      ("validation", dataset.validation),
      ("test", dataset.test),
    )
  }
  pixels, rbm = splits["train"], own.rbm()
  transform, untransform = transforms(pixels, center=own.center, scale=own.scale)

  def start(key: jax.Array) -> Any:
    if own.initialization == "data_mean":
      return rbm.init_from_data(key, transform(pixels))
    return rbm.init(key, jnp.zeros(pixels.shape[1]))

  return Problem(
    rbm=rbm,
    dataset=dataset,
    pixels=pixels,
    transform=transform,
    untransform=untransform,
    baseline=evaluation.gaussian_baseline(transform(pixels), transform(splits["test"])),
    evaluate=_evaluation(rbm, transform, **splits),
    start=start,
  )


def whitening_data(task: Problem) -> jax.Array:
  """Points of the training set, as the model sees them, that whiten a direction."""
  return jnp.asarray(task.transform(task.pixels[:WHITENING_POINTS]))


def transforms(
  pixels: jax.Array, *, center: bool, scale: float
) -> tuple[Transform, Transform]:
  """From pixels 0 to 255 to what the model sees, and from there to [0, 1].

  Args:
    pixels: the training set, `[N, d]`.
    center: whether its mean is subtracted.
    scale: a factor on pixels in [0, 1].
  """
  if not center and scale == 1:
    return training.unit_interval, lambda x: x
  origin = jnp.zeros(pixels.shape[1])
  if center:
    origin = training.unit_interval(pixels).mean(axis=0)
  return (
    lambda x: scale * (training.unit_interval(x) - origin[None]),
    lambda x: x / scale + origin[None],
  )


def _evaluation(
  rbm: GaussianBernoulliRBM, transform: Transform, **splits: jax.Array
) -> Callable[[Any], Mapping[str, float]]:
  """params -> the mean exact log-likelihood of every split, in nats."""

  def log_likelihood(params: Any, x: jax.Array) -> jax.Array:
    return rbm.log_likelihood(params, transform(x))

  return lambda params: {
    name: float(evaluation.mean_log_likelihood(params, log_likelihood, x).mean)
    for name, x in splits.items()
  }
