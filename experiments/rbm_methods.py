"""The learning rules that `experiments.mnist_rbm` compares, by name."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import optax
from jax.tree_util import Partial

from stein_jax import (
  Algorithm,
  contrastive_divergence,
  kernels,
  learn_from_negatives,
  maximum_likelihood,
  sampled_maximum_likelihood,
  score_matching,
  stein_cd,
  stein_score_matching,
)
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.types import Array, Key, Metrics, Params


class Settings(NamedTuple):
  """What a user may vary; most fields are the binary's flags of the same names."""

  optimizer: optax.GradientTransformation
  kernel: kernels.Kernel
  step_size: float
  feature_kernel: kernels.Kernel
  regularization: float
  stein_steps: int
  stein_step_size: float
  langevin_steps: Sequence[int]
  langevin_step_size: Sequence[float]
  metropolis: bool
  gibbs_steps: int
  trace: str
  mle_negatives: str


class Run(NamedTuple):
  """One curve of the figure: a file-safe name, a label, and its algorithm.

  `build` takes the settings anew, since a run may have some of its own.
  """

  name: str
  label: str
  build: Callable[[Settings], Algorithm]


def runs(
  methods: Sequence[str], rbm: GaussianBernoulliRBM, settings: Settings
) -> list[Run]:
  """One run for every method; CD has one for every k and ε that was asked for."""
  return [run for method in methods for run in _BUILDERS[method](rbm, settings)]


def _contrastive_divergence(
  rbm: GaussianBernoulliRBM,
  settings: Settings,
  prefix: str,
  suffix: str,
  **options: bool,
) -> Iterator[Run]:
  several = len(settings.langevin_step_size) > 1
  for k in settings.langevin_steps:
    for i, epsilon in enumerate(settings.langevin_step_size):
      label = f"{prefix.upper()}CD-{k}"
      name = label.lower().replace("-", "_")
      if suffix:
        name, label = f"{name}_{suffix}", f"{label}, {suffix}"
      if several:
        name, label = f"{name}_eps_{epsilon}", f"{label} (ε = {epsilon})"

      def build(s: Settings, k: int = k, i: int = i) -> Algorithm:
        return contrastive_divergence(
          rbm.apply,
          s.optimizer,
          num_steps=k,
          step_size=s.langevin_step_size[i],
          metropolis=s.metropolis and not options.get("antithetic"),
          **options,
        )

      yield Run(name, label, build)


def _gibbs(rbm: GaussianBernoulliRBM, settings: Settings) -> Iterator[Run]:
  def build(s: Settings) -> Algorithm:
    def negatives(key: Key, params: Params, x: Array) -> tuple[Array, Metrics]:
      return rbm.gibbs(key, params, x, num_steps=s.gibbs_steps), {}

    return learn_from_negatives(rbm.apply, negatives, s.optimizer)

  yield Run("gibbs", f"Gibbs CD-{settings.gibbs_steps}", build)


def _stein_cd(
  rbm: GaussianBernoulliRBM, settings: Settings, kind: str = ""
) -> Iterator[Run]:
  del settings
  name, label = {
    "": ("stein_cd", "SteinCD"),
    "symmetric": ("stein_cd_symmetric", "SteinCD, symmetric"),
    "no_kernel": ("stein_cd_no_kernel", "SteinCD, no kernel"),
    "features": ("stein_cd_features", "SteinCD, kernel on features"),
  }[kind]

  def build(s: Settings) -> Algorithm:
    kernel = {"no_kernel": None, "features": _on_features(rbm, s.feature_kernel)}
    return stein_cd(
      rbm.apply,
      kernel.get(kind, s.kernel),
      s.optimizer,
      step_size=s.step_size,
      symmetric=kind == "symmetric",
    )

  yield Run(name, label, build)


def _regularized_stein_cd(
  rbm: GaussianBernoulliRBM, settings: Settings, kind: str = ""
) -> Iterator[Run]:
  del settings
  name, label = {
    "": ("stein_cd_regularized", "regularised SteinCD"),
    "persistent": (
      "stein_cd_regularized_persistent",
      "regularised SteinCD, persistent",
    ),
    "pixels": ("stein_cd_regularized_pixels", "regularised SteinCD, kernel on pixels"),
  }[kind]

  def build(s: Settings) -> Algorithm:
    on_features = _on_features(rbm, s.feature_kernel)
    return stein_cd(
      rbm.apply,
      s.feature_kernel if kind == "pixels" else on_features,
      s.optimizer,
      step_size=s.stein_step_size,
      num_steps=s.stein_steps,
      regularization=s.regularization,
      persistent=kind == "persistent",
    )

  yield Run(name, label, build)


def _on_features(
  rbm: GaussianBernoulliRBM, kernel: kernels.Kernel
) -> Callable[[Params], kernels.Kernel]:
  """The kernel on y = Bᵀx + c, what the RBM's hidden units see."""
  return lambda params: kernels.on_features(
    kernel, Partial(rbm.features, params), affine=True
  )


def _stein_score_matching(
  rbm: GaussianBernoulliRBM, settings: Settings
) -> Iterator[Run]:
  del settings
  yield Run(
    "stein_score_matching",
    "Stein score matching",
    lambda s: stein_score_matching(rbm.apply, s.kernel, s.optimizer),
  )


def _score_matching(rbm: GaussianBernoulliRBM, settings: Settings) -> Iterator[Run]:
  del settings
  yield Run(
    "score_matching",
    "Fisher score matching",
    lambda s: score_matching(
      rbm.apply,
      s.optimizer,
      num_probes=1 if s.trace == "hutchinson" else None,
      divergence_fn=rbm.score_divergence if s.trace == "closed" else None,
    ),
  )


def _maximum_likelihood(rbm: GaussianBernoulliRBM, settings: Settings) -> Iterator[Run]:
  if settings.mle_negatives == "samples":
    yield Run(
      "mle_samples",
      "MLE, exact samples",
      lambda s: sampled_maximum_likelihood(rbm.apply, rbm.sample, s.optimizer),
    )
  else:
    yield Run(
      "mle",
      "exact MLE",
      lambda s: maximum_likelihood(rbm.apply, rbm.log_partition, s.optimizer),
    )


_Builder = Callable[[GaussianBernoulliRBM, Settings], Iterator[Run]]

_BUILDERS: dict[str, _Builder] = {
  "cd": partial(_contrastive_divergence, prefix="", suffix=""),
  "cd_antithetic": partial(
    _contrastive_divergence, prefix="", suffix="antithetic", antithetic=True
  ),
  "pcd": partial(_contrastive_divergence, prefix="p", suffix="", persistent=True),
  "gibbs": _gibbs,
  "stein_cd": _stein_cd,
  "stein_cd_symmetric": partial(_stein_cd, kind="symmetric"),
  "stein_cd_no_kernel": partial(_stein_cd, kind="no_kernel"),
  "stein_cd_features": partial(_stein_cd, kind="features"),
  "stein_cd_regularized": _regularized_stein_cd,
  "stein_cd_regularized_persistent": partial(_regularized_stein_cd, kind="persistent"),
  "stein_cd_regularized_pixels": partial(_regularized_stein_cd, kind="pixels"),
  "stein_score_matching": _stein_score_matching,
  "score_matching": _score_matching,
  "mle": _maximum_likelihood,
}

METHODS = tuple(_BUILDERS)
