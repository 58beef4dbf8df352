"""The learning rules that `experiments.mnist_rbm` compares, by name."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import optax

from stein_jax import (
  Algorithm,
  contrastive_divergence,
  kernels,
  maximum_likelihood,
  sampled_maximum_likelihood,
  score_matching,
  stein_cd,
  stein_score_matching,
)
from stein_jax.energies import GaussianBernoulliRBM

METHODS = (
  "cd",
  "pcd",
  "stein_cd",
  "stein_cd_symmetric",
  "stein_cd_no_kernel",
  "stein_score_matching",
  "score_matching",
  "mle",
)


class Settings(NamedTuple):
  """What a user may vary; the fields are the binary's flags of the same names."""

  kernel: kernels.Kernel
  optimizer: optax.GradientTransformation
  step_size: float
  langevin_steps: Sequence[int]
  langevin_step_size: Sequence[float]
  metropolis: bool
  trace: str
  mle_negatives: str


class Run(NamedTuple):
  """One curve of the figure: a file-safe name, a label, and its algorithm."""

  name: str
  label: str
  algorithm: Algorithm


def runs(
  methods: Sequence[str], rbm: GaussianBernoulliRBM, settings: Settings
) -> list[Run]:
  """One run for every method; CD has one for every k and ε that was asked for."""
  builders: dict[str, Callable[[GaussianBernoulliRBM, Settings], Iterator[Run]]] = {
    "cd": lambda r, s: _contrastive_divergence(r, s, persistent=False),
    "pcd": lambda r, s: _contrastive_divergence(r, s, persistent=True),
    "stein_cd": _stein_cd,
    "stein_cd_symmetric": lambda r, s: _stein_cd(r, s, symmetric=True),
    "stein_cd_no_kernel": lambda r, s: _stein_cd(r, s, kernel=False),
    "stein_score_matching": _stein_score_matching,
    "score_matching": _score_matching,
    "mle": _maximum_likelihood,
  }
  return [run for method in methods for run in builders[method](rbm, settings)]


def _contrastive_divergence(
  rbm: GaussianBernoulliRBM, settings: Settings, *, persistent: bool
) -> Iterator[Run]:
  several = len(settings.langevin_step_size) > 1
  for k, epsilon in itertools.product(
    settings.langevin_steps, settings.langevin_step_size
  ):
    prefix = "p" if persistent else ""
    name, label = f"{prefix}cd_{k}", f"{prefix.upper()}CD-{k}"
    if several:
      name, label = f"{name}_eps_{epsilon}", f"{label} (ε = {epsilon})"
    algorithm = contrastive_divergence(
      rbm.apply,
      settings.optimizer,
      num_steps=k,
      step_size=epsilon,
      persistent=persistent,
      metropolis=settings.metropolis,
    )
    yield Run(name, label, algorithm)


def _stein_cd(
  rbm: GaussianBernoulliRBM,
  settings: Settings,
  *,
  symmetric: bool = False,
  kernel: bool = True,
) -> Iterator[Run]:
  name, label = {
    (False, True): ("stein_cd", "SteinCD"),
    (True, True): ("stein_cd_symmetric", "SteinCD, symmetric"),
    (False, False): ("stein_cd_no_kernel", "SteinCD, no kernel"),
  }[symmetric, kernel]
  algorithm = stein_cd(
    rbm.apply,
    settings.kernel if kernel else None,
    settings.optimizer,
    step_size=settings.step_size,
    symmetric=symmetric,
  )
  yield Run(name, label, algorithm)


def _stein_score_matching(
  rbm: GaussianBernoulliRBM, settings: Settings
) -> Iterator[Run]:
  algorithm = stein_score_matching(rbm.apply, settings.kernel, settings.optimizer)
  yield Run("stein_score_matching", "Stein score matching", algorithm)


def _score_matching(rbm: GaussianBernoulliRBM, settings: Settings) -> Iterator[Run]:
  algorithm = score_matching(
    rbm.apply,
    settings.optimizer,
    num_probes=1 if settings.trace == "hutchinson" else None,
    divergence_fn=rbm.score_divergence if settings.trace == "closed" else None,
  )
  yield Run("score_matching", "Fisher score matching", algorithm)


def _maximum_likelihood(rbm: GaussianBernoulliRBM, settings: Settings) -> Iterator[Run]:
  if settings.mle_negatives == "samples":
    algorithm = sampled_maximum_likelihood(rbm.apply, rbm.sample, settings.optimizer)
    yield Run("mle_samples", "MLE, exact samples", algorithm)
  else:
    algorithm = maximum_likelihood(rbm.apply, rbm.log_partition, settings.optimizer)
    yield Run("mle", "exact MLE", algorithm)
