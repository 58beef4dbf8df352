"""Trained generators on disk: `experiments.images` saves them, other commands load."""

import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import serialization

from experiments.pictures import models
from experiments.pictures.model_settings import ModelSettings
from experiments.shared import saved, summaries
from stein_jax import generators
from stein_jax.training.files import write_atomically
from stein_jax.types import Params, PyTree

_BATCH_SIZE = 250  # images

FILE, DESCRIPTION = "generator.msgpack", "generator.json"


class Trained(NamedTuple):
  """A generator, its parameters, and a description of its training.

  Attributes:
    generator: the module.
    params: η; the moving average, if the run kept one.
    stats: the statistics of batch norm.
    about: method, label, dataset, step, seed, settings, and label_counts (or None).
  """

  generator: nn.Module
  params: Params
  stats: PyTree
  about: dict[str, Any]

  def labels(self, num_samples: int, *, seed: int = 0) -> np.ndarray | None:
    """Labels drawn with the training set's frequencies; None if it had no labels."""
    counts = self.about["label_counts"]
    if counts is None:
      return None
    frequencies = np.asarray(counts) / np.sum(counts)
    rng = np.random.default_rng(seed)
    labels = rng.choice(len(frequencies), size=num_samples, p=frequencies)
    return labels.astype(np.int32)

  def sample(
    self,
    num_samples: int,
    *,
    labels: np.ndarray | None = None,
    noise: Any = None,
    seed: int = 0,
  ) -> np.ndarray:
    """uint8 images `[n, h, w, c]`, the same ones for the same seed.

    Args:
      num_samples: n.
      labels: `[n]`, for a generator that takes labels; by default `labels(n)`.
      noise: ξ `[n, 100]`; by default random.
      seed: of the noise and the labels.
    """
    if labels is None:
      labels = self.labels(num_samples, seed=seed)
    batches = []
    for first in range(0, num_samples, _BATCH_SIZE):
      # Every batch has the same size, so the generator is compiled once.
      indices = np.minimum(first + np.arange(_BATCH_SIZE), num_samples - 1)
      if noise is None:
        key = jax.random.fold_in(jax.random.key(seed), first)
        xi = models.NOISE_FN(key, _BATCH_SIZE)
      else:
        xi = jnp.asarray(noise)[indices]
      context = () if labels is None else (jnp.asarray(labels)[indices],)
      images = _sample(self.generator, self.params, self.stats, xi, *context)
      batches.append(np.asarray(images)[: num_samples - first])
    return np.concatenate(batches)


@functools.partial(jax.jit, static_argnames="generator")
def _sample(
  generator: nn.Module, params: Params, stats: PyTree, noise: jax.Array, *context: Any
) -> jax.Array:
  images = generators.sample(generator, params, stats, noise, *context)
  return jnp.round((images + 1) * 127.5).astype(jnp.uint8)


def from_state(generator: nn.Module, state: Any, about: dict[str, Any]) -> Trained:
  """The generator in an algorithm's state; its moving average, if there is one."""
  if not jax.tree.leaves(state.generator_average):
    return Trained(generator, state.params["generator"], state.generator_stats, about)
  average = Trained(generator, state.generator_average, state.generator_stats, about)
  labels = average.labels(_BATCH_SIZE)
  context = () if labels is None else (jnp.asarray(labels),)
  stats = _updated_stats(generator, average.params, average.stats, *context)
  return average._replace(stats=stats)


@functools.partial(jax.jit, static_argnames="generator")
def _updated_stats(
  generator: nn.Module, params: Params, stats: PyTree, *context: Any
) -> PyTree:
  """The statistics of batch norm that belong to these parameters.

  In a state the statistics belong to the current parameters, not to their average.
  """
  generate = generators.generate_fn(generator)

  def step(stats: PyTree, key: jax.Array) -> tuple[PyTree, None]:
    noise = models.NOISE_FN(key, _BATCH_SIZE)
    return generate(params, stats, noise, context[0] if context else None)[1], None

  keys = jax.random.split(jax.random.key(1), 40)
  return jax.lax.scan(step, stats, keys)[0]


def save(folder: Path, trained: Trained) -> None:
  """Writes the generator's two files to a folder."""
  folder.mkdir(parents=True, exist_ok=True)
  tree = {"params": trained.params, "stats": trained.stats}
  write_atomically(folder / FILE, serialization.to_bytes(jax.device_get(tree)))
  summaries.write_json(folder / DESCRIPTION, trained.about)


def generator_settings(settings: ModelSettings, task: models.Task) -> dict[str, Any]:
  """The entry `settings` of `Trained.about`: all that determines the generator."""
  return {
    "size": task.size,
    "num_classes": task.num_classes,
    "generator_width": settings.generator_width,
    "bfloat16": settings.bfloat16,
  }


def _generator(size: int, num_classes: int | None, **settings: Any) -> nn.Module:
  """The generator for `generator_settings`."""
  task = models.Task(size, num_classes)
  return models.generator_of(ModelSettings(**settings), task)


def load(folder: Path) -> Trained:
  """A generator that `save` wrote; exits with a message if there is none."""
  try:
    return _read(folder)
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    sys.exit(
      f"{folder} holds no generator ({type(error).__name__}: {error}). Give a folder "
      "that experiments.images wrote: WORKDIR/METHOD/seed_0."
    )


def _check(about: dict[str, Any]) -> None:
  """Raises an error unless this is what `save` writes as a description."""
  texts = [about[key] for key in ("method", "label", "dataset")]
  counts = about["label_counts"]
  if (
    not all(isinstance(text, str) for text in texts)
    or about["method"] not in models.METHODS
    or not all(isinstance(about[key], int) for key in ("step", "seed"))
    or (counts is not None and not (min(counts) >= 0 and sum(counts) > 0))
    or (counts is None) != (about["settings"]["num_classes"] is None)
  ):
    raise ValueError(f"{DESCRIPTION} does not describe one")


def _read(folder: Path) -> Trained:
  about = json.loads((folder / DESCRIPTION).read_text())
  written = (folder / FILE).read_bytes()
  _check(about)
  generator = _generator(**about["settings"])
  labels = () if about["label_counts"] is None else (jnp.zeros(2, jnp.int32),)
  noise = models.NOISE_FN(jax.random.key(0), 2)
  params, stats = jax.eval_shape(
    lambda key: generators.initialize(key, generator, noise, *labels),
    jax.random.key(0),
  )
  template = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), {"params": params, "stats": stats}
  )
  tree = jax.device_put(saved.restored(template, written))
  return Trained(generator, tree["params"], tree["stats"], about)
