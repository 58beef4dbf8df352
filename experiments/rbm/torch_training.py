"""Trains the RBM in PyTorch, measures the time of a step, and evaluates it exactly."""

import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.rbm import torch_peer
from experiments.rbm.timed_curves import seconds
from stein_jax import evaluation
from stein_jax.energies import GaussianBernoulliRBM


class Split(NamedTuple):
  """The model and the data, as our own training has them."""

  rbm: GaussianBernoulliRBM
  train: jax.Array  # [N, d] in [0, 1]
  test: jax.Array


class History(NamedTuple):
  """The training of one seed."""

  steps: list[int]
  log_likelihood: list[float]  # exact, of the test set, at those steps
  ms: list[float]  # a step, in each block between them


def train_peer(
  label: str,
  kind: str,
  seed: int,
  settings: torch_peer.Settings,
  split: Split,
  *,
  num_steps: int,
  eval_every: int,
  progress: bool,
) -> History:
  """Trains a peer from the same start as our own training with this seed.

  Only the steps are timed. Before each block of steps the parameters are evaluated by
  our own exact `log_likelihood`.
  """
  init_key, _ = jax.random.split(jax.random.key(seed))
  params = split.rbm.init_from_data(init_key, split.train)["params"]
  start = {name: np.array(value) for name, value in params.items()}
  peer = torch_peer.Peer(kind, start, np.asarray(split.train), settings, seed)
  history = History([], [], [])
  with tqdm(
    total=num_steps, desc=f"{label}, seed {seed}", disable=not progress
  ) as progress_bar:
    step = 0
    while True:
      now = {"params": jax.tree.map(jnp.asarray, peer.params())}
      value = evaluation.mean_log_likelihood(now, split.rbm.log_likelihood, split.test)
      history.steps.append(step)
      history.log_likelihood.append(float(value.mean))
      if not np.isfinite(history.log_likelihood[-1]):
        sys.exit(f"{label}, seed {seed}, diverged before step {step}.")
      progress_bar.set_postfix(test=f"{history.log_likelihood[-1]:.2f}", refresh=False)
      if step == num_steps:
        return history
      length = min(eval_every, num_steps - step)
      begin = time.perf_counter()
      peer.train(length)
      history.ms.append((time.perf_counter() - begin) / length * 1000)
      step += length
      progress_bar.update(length)


def method_of(histories: Mapping[int, History]) -> dict[str, Any]:
  # The first block of a seed is its warm-up, unless it is the only one.
  ms = [ms for h in histories.values() for ms in (h.ms[1:] or h.ms)]
  ms_per_step = float(np.median(ms))
  values = np.array([h.log_likelihood for h in histories.values()])
  sd = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
  steps = next(iter(histories.values())).steps
  return {
    "peer": True,
    "seeds": list(histories),
    "ms_per_step": ms_per_step,
    "curve": {
      "steps": steps,
      "mean": values.mean(axis=0).tolist(),
      "sd": sd.tolist(),
      "seconds": seconds(steps, ms_per_step),
    },
  }
