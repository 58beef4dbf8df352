"""The learning rules of an energy by itself, by name."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
from jax.tree_util import Partial

from experiments.rbm.runs import Run, RunsOf, Setup
from experiments.rbm.settings import Rules
from experiments.shared.whitened import whitened_kernel
from stein_jax import (
  Algorithm,
  Direction,
  contrastive_divergence,
  kernels,
  learn_from_negatives,
  maximum_likelihood,
  mix,
  sampled_maximum_likelihood,
  samplers,
  score_matching,
  stein_cd,
  stein_moves,
  stein_score_matching,
)
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.types import Array, Key, Metrics, Params


def _contrastive_divergence(
  rbm: GaussianBernoulliRBM,
  rules: Rules,
  *,
  persistent: bool = False,
  antithetic: bool = False,
) -> Iterator[Run]:
  several = len(rules.langevin_step_size) > 1
  for k in rules.antithetic_steps if antithetic else rules.langevin_steps:
    for i, epsilon in enumerate(rules.langevin_step_size):
      name, label = (f"pcd_{k}", f"PCD-{k}") if persistent else (f"cd_{k}", f"CD-{k}")
      if antithetic:
        name, label = f"{name}_antithetic", f"{label}, antithetic"
      if several:
        name, label = f"{name}_eps_{epsilon}", f"{label} (ε = {epsilon})"

      def build(s: Setup, k: int = k, i: int = i) -> Algorithm:
        return contrastive_divergence(
          rbm.apply,
          s.optimizer,
          num_steps=k,
          step_size=s.rules.langevin_step_size[i],
          persistent=persistent,
          metropolis=s.rules.metropolis and not antithetic,
          antithetic=antithetic,
          axis_name=s.axis_name,
        )

      yield Run(name, label, build)


def _gibbs(rbm: GaussianBernoulliRBM, rules: Rules) -> Iterator[Run]:
  def build(s: Setup) -> Algorithm:
    def negatives(key: Key, params: Params, x: Array) -> tuple[Array, Metrics]:
      device = jax.lax.axis_index(s.axis_name) if s.axis_name else 0
      first = device * len(x)
      return rbm.gibbs(key, params, x, num_steps=s.rules.gibbs_steps, first=first), {}

    return learn_from_negatives(
      rbm.apply, negatives, s.optimizer, axis_name=s.axis_name
    )

  yield Run("gibbs", f"Gibbs CD-{rules.gibbs_steps}", build)


def _stein_cd(rbm: GaussianBernoulliRBM, rules: Rules, kind: str = "") -> Iterator[Run]:
  del rules
  name, label = {
    "": ("stein_cd", "SteinCD"),
    "symmetric": ("stein_cd_symmetric", "SteinCD, symmetric"),
    "no_kernel": ("stein_cd_no_kernel", "SteinCD, no kernel"),
    "features": ("stein_cd_features", "SteinCD, kernel on features"),
  }[kind]

  def build(s: Setup) -> Algorithm:
    kernel = {
      "no_kernel": None,
      "features": _on_features(rbm, s.rules.feature_kernel()),
    }
    return stein_cd(
      rbm.apply,
      kernel.get(kind, s.rules.pixel_kernel()),
      s.optimizer,
      step_size=s.rules.step_size,
      symmetric=kind == "symmetric",
      axis_name=s.axis_name,
    )

  yield Run(name, label, build)


def _regularized_stein_cd(
  rbm: GaussianBernoulliRBM, rules: Rules, kind: str = ""
) -> Iterator[Run]:
  del rules
  name, label = {
    "": ("stein_cd_regularized", "regularised SteinCD"),
    "persistent": (
      "stein_cd_regularized_persistent",
      "regularised SteinCD, persistent",
    ),
    "pixels": ("stein_cd_regularized_pixels", "regularised SteinCD, kernel on pixels"),
  }[kind]

  def build(s: Setup) -> Algorithm:
    on_features = _on_features(rbm, s.rules.feature_kernel())
    kernel = s.rules.feature_kernel() if kind == "pixels" else on_features
    return stein_cd(
      rbm.apply,
      Direction(kernel, regularization=s.rules.regularization),
      s.optimizer,
      step_size=s.rules.stein_step_size,
      num_steps=s.rules.stein_steps,
      persistent=kind == "persistent",
      axis_name=s.axis_name,
    )

  yield Run(name, label, build)


def _refreshed_stein_cd(rbm: GaussianBernoulliRBM, rules: Rules) -> Iterator[Run]:
  """Regularised Stein moves, then Langevin steps with antithetic noise.

  The moves take the particles to the components of the mixture, where they collapse;
  the noise restores the variance within each component.
  """
  del rules

  def build(s: Setup) -> Algorithm:
    direction = Direction(
      _on_features(rbm, s.rules.feature_kernel()),
      regularization=s.rules.regularization,
    )

    def negatives(key: Key, params: Params, x: Array) -> tuple[Array, Metrics]:
      moved = stein_moves(
        params,
        rbm.apply,
        x,
        direction,
        step_size=s.rules.stein_step_size,
        num_steps=s.rules.stein_steps,
        axis_name=s.axis_name,
      )
      score_fn = Partial(rbm.score, params)
      refreshed = samplers.langevin(
        key,
        moved,
        score_fn,
        num_steps=s.rules.refresh_steps,
        step_size=s.rules.langevin_step_size[0],
        antithetic=True,
        axis_name=s.axis_name,
      )
      return refreshed, {}

    return learn_from_negatives(
      rbm.apply, negatives, s.optimizer, axis_name=s.axis_name
    )

  yield Run("stein_cd_refreshed", "regularised SteinCD, Langevin last", build)


def _whitened_stein_cd(rbm: GaussianBernoulliRBM, rules: Rules) -> Iterator[Run]:
  del rules
  yield Run(
    "stein_cd_whitened",
    "whitened SteinCD",
    lambda s: _whitened(rbm, s)(optimizer=s.optimizer),
  )


def _whitened(rbm: GaussianBernoulliRBM, s: Setup) -> Callable[..., Algorithm]:
  """SteinCD along the whitened direction on the data's principal components."""
  if s.data is None:
    raise ValueError("the whitened direction needs data, got data=None.")
  kernel = whitened_kernel(
    s.data(),
    components=s.rules.components,
    multiple=s.rules.component_bandwidth_multiple,
  )
  direction = Direction(kernel, leave_one_out=True)
  return partial(
    stein_cd,
    rbm.apply,
    direction,
    step_size=s.rules.step_size,
    symmetric=True,
    axis_name=s.axis_name,
  )


def _mix(rbm: GaussianBernoulliRBM, rules: Rules, *, local: str) -> Iterator[Run]:
  """Persistent chains, which see the weights of modes, and a rule that sees shapes."""
  del rules
  name, label = {
    "stein": ("mix_stein", "chains + whitened SteinCD"),
    "score_matching": ("mix_score_matching", "chains + Fisher score matching"),
    "none": ("chains", "chains of averaged noise"),
  }[local]

  def build(s: Setup) -> Algorithm:
    chains = partial(
      contrastive_divergence,
      rbm.apply,
      num_steps=s.rules.chain_steps,
      step_size=s.rules.langevin_step_size[0],
      persistent=True,
      antithetic="last",
      averaged_noise=True,
      axis_name=s.axis_name,
    )
    fisher = partial(
      score_matching,
      rbm.apply,
      divergence_fn=rbm.score_divergence,
      axis_name=s.axis_name,
    )
    parts: dict[str, tuple[Callable[..., Algorithm], float]] = {"chains": (chains, 1)}
    if local != "none":
      rule = fisher if local == "score_matching" else _whitened(rbm, s)
      parts["local"] = (rule, s.rules.local_weight)
    return mix(parts, s.optimizer)

  yield Run(name, label, build)


def _on_features(
  rbm: GaussianBernoulliRBM, kernel: kernels.Kernel
) -> Callable[[Params], kernels.Kernel]:
  """The kernel on y = Bᵀx + c, the inputs of the RBM's hidden units."""
  return lambda params: kernels.on_features(
    kernel, Partial(rbm.features, params), affine=True
  )


def _stein_score_matching(rbm: GaussianBernoulliRBM, rules: Rules) -> Iterator[Run]:
  del rules
  yield Run(
    "stein_score_matching",
    "Stein score matching",
    lambda s: stein_score_matching(
      rbm.apply, s.rules.pixel_kernel(), s.optimizer, axis_name=s.axis_name
    ),
  )


def _score_matching(rbm: GaussianBernoulliRBM, rules: Rules) -> Iterator[Run]:
  del rules
  yield Run(
    "score_matching",
    "Fisher score matching",
    lambda s: score_matching(
      rbm.apply,
      s.optimizer,
      num_probes=1 if s.rules.trace == "hutchinson" else None,
      divergence_fn=rbm.score_divergence if s.rules.trace == "closed" else None,
      axis_name=s.axis_name,
    ),
  )


def _maximum_likelihood(rbm: GaussianBernoulliRBM, rules: Rules) -> Iterator[Run]:
  if rules.mle_negatives == "samples":
    yield Run(
      "mle_samples",
      "MLE, exact samples",
      lambda s: sampled_maximum_likelihood(
        rbm.apply, rbm.sample, s.optimizer, axis_name=s.axis_name
      ),
    )
  else:
    yield Run(
      "mle",
      "exact MLE",
      lambda s: maximum_likelihood(
        rbm.apply, rbm.log_partition, s.optimizer, axis_name=s.axis_name
      ),
    )


METHODS: dict[str, RunsOf] = {
  "cd": _contrastive_divergence,
  "cd_antithetic": partial(_contrastive_divergence, antithetic=True),
  "pcd": partial(_contrastive_divergence, persistent=True),
  "gibbs": _gibbs,
  "stein_cd": _stein_cd,
  "stein_cd_symmetric": partial(_stein_cd, kind="symmetric"),
  "stein_cd_no_kernel": partial(_stein_cd, kind="no_kernel"),
  "stein_cd_features": partial(_stein_cd, kind="features"),
  "stein_cd_regularized": _regularized_stein_cd,
  "stein_cd_regularized_persistent": partial(_regularized_stein_cd, kind="persistent"),
  "stein_cd_refreshed": _refreshed_stein_cd,
  "stein_cd_regularized_pixels": partial(_regularized_stein_cd, kind="pixels"),
  "stein_cd_whitened": _whitened_stein_cd,
  "chains": partial(_mix, local="none"),
  "mix_stein": partial(_mix, local="stein"),
  "mix_score_matching": partial(_mix, local="score_matching"),
  "stein_score_matching": _stein_score_matching,
  "score_matching": _score_matching,
  "mle": _maximum_likelihood,
}
"""name -> its curves."""
