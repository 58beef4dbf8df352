"""Generators of pictures on disk: what `experiments.images` leaves for others."""

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

from experiments.pictures import image_models
from experiments.shared import summaries
from stein_jax import generators
from stein_jax.training.files import write_atomically
from stein_jax.types import Params, PyTree

_AT_ONCE = 250  # pictures

FILE, DESCRIPTION = "generator.msgpack", "generator.json"


class Trained(NamedTuple):
  """A generator, its parameters, and how it came about.

  Attributes:
    generator: the module.
    params: η; the moving average where the run kept one.
    stats: of batch norm.
    about: method, label, dataset, step, seed, settings, and label_counts (or None).
  """

  generator: nn.Module
  params: Params
  stats: PyTree
  about: dict[str, Any]

  def labels(self, num_samples: int, *, seed: int = 0) -> np.ndarray | None:
    """Labels drawn by the training set's counts; None without labels."""
    counts = self.about["label_counts"]
    if counts is None:
      return None
    shares = np.asarray(counts) / np.sum(counts)
    rng = np.random.default_rng(seed)
    return rng.choice(len(shares), size=num_samples, p=shares).astype(np.int32)

  def pictures(
    self,
    num_samples: int,
    *,
    labels: np.ndarray | None = None,
    noise: Any = None,
    seed: int = 0,
  ) -> np.ndarray:
    """uint8 pictures `[n, h, w, c]`, the same for the same seed.

    Args:
      num_samples: n.
      labels: `[n]`, where the generator takes labels; by default `labels(n)`.
      noise: ξ `[n, 100]`; by default drawn.
      seed: of the noise and the labels.
    """
    if labels is None:
      labels = self.labels(num_samples, seed=seed)
    found = []
    for first in range(0, num_samples, _AT_ONCE):
      # Always as many, so that one compilation serves.
      places = np.minimum(first + np.arange(_AT_ONCE), num_samples - 1)
      if noise is None:
        key = jax.random.fold_in(jax.random.key(seed), first)
        xi = image_models.NOISE_FN(key, _AT_ONCE)
      else:
        xi = jnp.asarray(noise)[places]
      given = () if labels is None else (jnp.asarray(labels)[places],)
      made = _sample(self.generator, self.params, self.stats, xi, *given)
      found.append(np.asarray(made)[: num_samples - first])
    return np.concatenate(found)


@functools.partial(jax.jit, static_argnames="generator")
def _sample(
  generator: nn.Module, params: Params, stats: PyTree, noise: jax.Array, *given: Any
) -> jax.Array:
  made = generators.sample(generator, params, stats, noise, *given)
  return jnp.round((made + 1) * 127.5).astype(jnp.uint8)


def of_state(generator: nn.Module, state: Any, about: dict[str, Any]) -> Trained:
  """The generator of an algorithm's state."""
  if not jax.tree.leaves(state.generator_average):
    return Trained(generator, state.params["generator"], state.generator_stats, about)
  average = Trained(generator, state.generator_average, state.generator_stats, about)
  labels = average.labels(_AT_ONCE)
  given = () if labels is None else (jnp.asarray(labels),)
  stats = _settled(generator, average.params, average.stats, *given)
  return average._replace(stats=stats)


@functools.partial(jax.jit, static_argnames="generator")
def _settled(
  generator: nn.Module, params: Params, stats: PyTree, *given: Any
) -> PyTree:
  """Batch norm's statistics of these parameters, which are not those they came with."""
  generate = generators.generate_fn(generator)

  def step(stats: PyTree, key: jax.Array) -> tuple[PyTree, None]:
    noise = image_models.NOISE_FN(key, _AT_ONCE)
    return generate(params, stats, noise, given[0] if given else None)[1], None

  keys = jax.random.split(jax.random.key(1), 40)
  return jax.lax.scan(step, stats, keys)[0]


def save(folder: Path, trained: Trained) -> None:
  """Writes a generator's two files."""
  folder.mkdir(parents=True, exist_ok=True)
  tree = {"params": trained.params, "stats": trained.stats}
  write_atomically(folder / FILE, serialization.to_bytes(jax.device_get(tree)))
  summaries.write_json(folder / DESCRIPTION, trained.about)


def load(folder: Path) -> Trained:
  """A generator as `save` wrote it; a message ends the program where there is none."""
  try:
    about = json.loads((folder / DESCRIPTION).read_text())
    written = (folder / FILE).read_bytes()
  except (OSError, ValueError) as error:
    sys.exit(
      f"{folder} holds no generator ({error}). Name a folder that experiments.images "
      "left: WORKDIR/METHOD/seed_0."
    )
  generator = image_models.generator_of(image_models.Settings(**about["settings"]))
  labels = () if about["label_counts"] is None else (jnp.zeros(2, jnp.int32),)
  noise = image_models.NOISE_FN(jax.random.key(0), 2)
  params, stats = jax.eval_shape(
    lambda key: generators.initialize(key, generator, noise, *labels),
    jax.random.key(0),
  )
  template = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype), {"params": params, "stats": stats}
  )
  tree = serialization.from_bytes(template, written)
  tree = jax.device_put(tree)
  return Trained(generator, tree["params"], tree["stats"], about)
