"""The learning rules that `experiments.mnist_rbm` compares, by name."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import optax
from flax import linen as nn
from jax.tree_util import Partial

from experiments.rbm.settings import Rules
from stein_jax import (
  Algorithm,
  contrastive_divergence,
  generators,
  kernels,
  learn_from_negatives,
  maximum_likelihood,
  sampled_maximum_likelihood,
  samplers,
  score_matching,
  stein_cd,
  stein_gan,
  stein_moves,
  stein_score_matching,
)
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.types import Array, Key, Metrics, Params, PyTree


class Setup(NamedTuple):
  """What a learning rule is built from.

  Attributes:
    rules: the hyper-parameters.
    optimizer: of the energy.
    axis_name: of the mesh of devices over which batches are sharded.
  """

  rules: Rules
  optimizer: optax.GradientTransformation
  axis_name: str | None = None


NOISE_FN = generators.uniform_noise()
"""ξ of every generator here."""


class Run(NamedTuple):
  """One curve of the figure.

  Attributes:
    name: which may be the name of a file.
    label: for people.
    build: makes the algorithm. It takes the setup, since a curve may have rules of its
      own.
    mix: α, where a generator is trained with the energy.
    energy_from: the name of the run whose finished energy a generator is trained on.
  """

  name: str
  label: str
  build: Callable[[Setup], Algorithm]
  mix: float | None = None
  energy_from: str | None = None

  @property
  def has_generator(self) -> bool:
    """Whether its parameters are {"energy": ..., "generator": ...}."""
    return self.mix is not None or self.energy_from is not None


def runs(methods: Sequence[str], rbm: GaussianBernoulliRBM, rules: Rules) -> list[Run]:
  """One run for every method; some have one for every number that was asked for."""
  builders = {**_BUILDERS, **_GENERATOR_BUILDERS}
  return [run for method in methods for run in builders[method](rbm, rules)]


def algorithms(
  methods: Sequence[str],
  rbm: GaussianBernoulliRBM,
  rules: Rules,
  optimizer: optax.GradientTransformation | None = None,
) -> dict[str, Algorithm]:
  """label -> the learning rule.

  Args:
    methods: names from `METHODS`.
    rbm: the model.
    rules: the hyper-parameters.
    optimizer: one that takes the place of the rules' own.
  """
  setup = Setup(rules, optimizer or rules.energy_optimizer())
  return {run.label: run.build(setup) for run in runs(methods, rbm, rules)}


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
    return stein_cd(
      rbm.apply,
      s.rules.feature_kernel() if kind == "pixels" else on_features,
      s.optimizer,
      step_size=s.rules.stein_step_size,
      num_steps=s.rules.stein_steps,
      regularization=s.rules.regularization,
      persistent=kind == "persistent",
      axis_name=s.axis_name,
    )

  yield Run(name, label, build)


def _refreshed_stein_cd(rbm: GaussianBernoulliRBM, rules: Rules) -> Iterator[Run]:
  """Regularised Stein moves, then Langevin steps with antithetic noise.

  The moves take the particles to where the model is; collapsed within a component of
  the mixture, they get its spread back by the noise.
  """
  del rules

  def build(s: Setup) -> Algorithm:
    kernel_fn = _on_features(rbm, s.rules.feature_kernel())

    def negatives(key: Key, params: Params, x: Array) -> tuple[Array, Metrics]:
      moved = stein_moves(
        params,
        rbm.apply,
        x,
        kernels.at(kernel_fn, params),
        step_size=s.rules.stein_step_size,
        num_steps=s.rules.stein_steps,
        regularization=s.rules.regularization,
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


def _on_features(
  rbm: GaussianBernoulliRBM, kernel: kernels.Kernel
) -> Callable[[Params], kernels.Kernel]:
  """The kernel on y = Bᵀx + c, what the RBM's hidden units see."""
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


def _stein_gan(
  rbm: GaussianBernoulliRBM, rules: Rules, kind: str = ""
) -> Iterator[Run]:
  mixed = kind == "mix"
  weighed = list(enumerate(rules.mix_scale if mixed else rules.mix_scale[:1]))
  for alpha, (i, scale) in itertools.product(rules.mix if mixed else (0.0,), weighed):
    name, label = {
      "": ("steingan", "SteinGAN"),
      "no_kernel": ("steingan_no_kernel", "SteinGAN, no kernel"),
      "mix": (f"steincd_gan_{alpha:.15g}", f"SteinCD-GAN({alpha:.15g})"),
    }[kind]

    if len(weighed) > 1:
      name, label = f"{name}_scale_{scale:.15g}", f"{label}, scale {scale:.15g}"

    def build(s: Setup, alpha: float = alpha, i: int = i) -> Algorithm:
      kernel = None if kind == "no_kernel" else s.rules.pixel_kernel()
      return _stein_gan_of(
        rbm, s, s.optimizer, kernel, mix=alpha, scale=s.rules.mix_scale[i]
      )

    yield Run(name, label, build, mix=alpha)


def generator_after(rbm: GaussianBernoulliRBM, run: Run) -> Run:
  """A generator that is trained on the finished energy of a run, which stays."""

  def build(s: Setup) -> Algorithm:
    return _stein_gan_of(
      rbm, s, optax.set_to_zero(), s.rules.pixel_kernel(), mix=0.0, scale=1.0
    )

  name, label = f"{run.name}_then_generator", f"{run.label}, then a generator"
  return Run(name, label, build, energy_from=run.name)


def _stein_gan_of(
  rbm: GaussianBernoulliRBM,
  setup: Setup,
  energy_optimizer: optax.GradientTransformation,
  kernel: kernels.Kernel | None,
  *,
  mix: float,
  scale: float,
) -> Algorithm:
  """SteinGAN on flat pictures."""
  rules = setup.rules
  generator = rules.generator().clone(axis_name=setup.axis_name)
  images_of = generators.generate_fn(generator)

  def generate(
    eta: Params, stats: PyTree, noise: Array, context: PyTree
  ) -> tuple[Array, PyTree]:
    images, stats = images_of(eta, stats, noise, context)
    return images.reshape(len(images), -1), stats

  return stein_gan(
    rbm.apply,
    generate,
    NOISE_FN,
    kernel,
    energy_optimizer,
    rules.generator_optimizer(),
    generator_stats=start_generator(jax.random.key(0), rules.generator())[1],
    mix=mix,
    mix_scale=scale,
    step_size=rules.step_size,
    discount=rules.gamma(),
    axis_name=setup.axis_name,
  )


def start_generator(key: Key, generator: nn.Module) -> tuple[Params, PyTree]:
  """A generator's parameters, and its statistics, which are the same for every key."""
  noise_key, init_key = jax.random.split(key)
  return generators.initialize(init_key, generator, NOISE_FN(noise_key, 2))


_Builder = Callable[[GaussianBernoulliRBM, Rules], Iterator[Run]]

_BUILDERS: dict[str, _Builder] = {
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
  "stein_score_matching": _stein_score_matching,
  "score_matching": _score_matching,
  "mle": _maximum_likelihood,
}

_GENERATOR_BUILDERS: dict[str, _Builder] = {
  "steingan": _stein_gan,
  "steingan_no_kernel": partial(_stein_gan, kind="no_kernel"),
  "steincd_gan": partial(_stein_gan, kind="mix"),
}

METHODS = tuple(_BUILDERS)
"""Rules that learn an energy by itself."""

GENERATOR_METHODS = tuple(_GENERATOR_BUILDERS)
"""Rules that learn a generator beside it."""
