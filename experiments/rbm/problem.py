"""What experiments.mnist_rbm learns, and how that is judged: data, model and start.

The binaries that train the RBM define these flags by `define`.
"""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from experiments.shared import common, data
from stein_jax import evaluation, training
from stein_jax.energies import GaussianBernoulliRBM

# Flags count as those of the binary that calls, in its --help and in flags.txt.
flags.disclaim_key_flags()

Transform = Callable[[Any], Any]
"""A batch of points -> the same batch, otherwise scaled."""


def define() -> None:
  """Defines the flags of the data, the model and its start."""
  common.define_data_flags()
  flags.DEFINE_float(
    "validation",
    0.1,
    "The share of the training set that is held out to choose the best step on.",
    lower_bound=0.0,
    upper_bound=0.9,
  )
  flags.DEFINE_integer(
    "num_hidden", 10, "ℓ, the RBM's hidden units.", lower_bound=1, upper_bound=25
  )
  flags.DEFINE_bool("center", False, "Subtract the training set's mean picture.")
  flags.DEFINE_float(
    "scale",
    1.0,
    "A factor on the pixels, which are in [0, 1] without it. Likelihoods are of the "
    "scaled pixels: compare them with N(mean, I), not with another scale's.",
  )
  flags.DEFINE_enum(
    "initialization",
    "data_mean",
    ["data_mean", "zeros"],
    "data_mean: b is the data's mean and c = −Bᵀb; zeros: b = c = 0, as the authors "
    "do.",
  )
  flags.DEFINE_float(
    "weight_scale", 0.05, "B starts uniform in ± this.", lower_bound=0.0
  )


class Problem(NamedTuple):
  """What is learned, and how it is judged."""

  rbm: GaussianBernoulliRBM
  dataset: data.Dataset
  pixels: jax.Array  # the training set, uint8 [N, d]
  transform: Transform  # pixels -> what the model sees
  untransform: Transform  # what the model sees -> pictures in [0, 1]
  baseline: evaluation.MeanLogLikelihood  # of N(mean, I)
  evaluate: Callable[[Any], Mapping[str, float]]  # params -> nats of every split


def rbm() -> GaussianBernoulliRBM:
  """The model of the flags."""
  return GaussianBernoulliRBM(
    flags.FLAGS.num_hidden, weight_scale=flags.FLAGS.weight_scale
  )


def load(batch_size: int) -> Problem:
  """The data and the model that the flags ask for."""
  common.positive("scale", "validation")  # the best step is chosen on the latter
  if not flags.FLAGS.weight_scale < math.inf:
    sys.exit(f"--weight_scale must be finite, got {flags.FLAGS.weight_scale}.")
  dataset = common.load_data(batch_size, validation_fraction=flags.FLAGS.validation)
  splits = {
    name: jnp.asarray(split.reshape(len(split), -1))
    for name, split in (
      ("train", dataset.train),
      ("validation", dataset.validation),
      ("test", dataset.test),
    )
  }
  transform, untransform = _transforms(splits["train"])
  model = rbm()
  return Problem(
    rbm=model,
    dataset=dataset,
    pixels=splits["train"],
    transform=transform,
    untransform=untransform,
    baseline=evaluation.gaussian_baseline(
      transform(splits["train"]), transform(splits["test"])
    ),
    evaluate=_evaluation(model, transform, **splits),
  )


def start(key: jax.Array, problem: Problem) -> Any:
  """The parameters that training starts from, as --initialization says."""
  if flags.FLAGS.initialization == "data_mean":
    return problem.rbm.init_from_data(key, problem.transform(problem.pixels))
  return problem.rbm.init(key, jnp.zeros(problem.pixels.shape[1]))


def _transforms(pixels: jax.Array) -> tuple[Transform, Transform]:
  """Pixels 0 to 255 -> what the model sees, as --center and --scale say; and back."""
  if not flags.FLAGS.center and flags.FLAGS.scale == 1:
    return training.unit_interval, lambda x: x
  scale, origin = flags.FLAGS.scale, jnp.zeros(pixels.shape[1])
  if flags.FLAGS.center:
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
