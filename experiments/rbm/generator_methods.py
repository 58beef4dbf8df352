"""The learning rules of an energy and a generator, by name."""

import itertools
from collections.abc import Iterator
from functools import partial

import jax
import optax
from flax import linen as nn

from experiments.rbm.runs import Run, RunsOf, Setup
from experiments.rbm.settings import Rules
from stein_jax import Algorithm, generators, kernels, stein_gan
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.types import Array, Key, Params, PyTree

NOISE_FN = generators.uniform_noise()
"""ξ of every generator here."""


def _stein_gan(
  rbm: GaussianBernoulliRBM, rules: Rules, kind: str = ""
) -> Iterator[Run]:
  mixed = kind == "mix"
  scales = list(enumerate(rules.mix_scale if mixed else rules.mix_scale[:1]))
  for alpha, (i, scale) in itertools.product(rules.mix if mixed else (0.0,), scales):
    name, label = {
      "": ("steingan", "SteinGAN"),
      "no_kernel": ("steingan_no_kernel", "SteinGAN, no kernel"),
      "mix": (f"steincd_gan_{alpha:.15g}", f"SteinCD-GAN({alpha:.15g})"),
    }[kind]

    if len(scales) > 1:
      name, label = f"{name}_scale_{scale:.15g}", f"{label}, scale {scale:.15g}"

    def build(s: Setup, alpha: float = alpha, i: int = i) -> Algorithm:
      kernel = None if kind == "no_kernel" else s.rules.pixel_kernel()
      return _stein_gan_of(
        rbm, s, s.optimizer, kernel, mix=alpha, scale=s.rules.mix_scale[i]
      )

    yield Run(name, label, build, mix=alpha)


def generator_after(rbm: GaussianBernoulliRBM, run: Run) -> Run:
  """A generator that is trained on the finished energy of a run, which is fixed."""

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
  """SteinGAN on flattened images."""
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
    report_repulsion=kernel is not None,
    axis_name=setup.axis_name,
  )


def start_generator(key: Key, generator: nn.Module) -> tuple[Params, PyTree]:
  """A generator's parameters, and its statistics, which are the same for every key."""
  noise_key, init_key = jax.random.split(key)
  return generators.initialize(init_key, generator, NOISE_FN(noise_key, 2))


METHODS: dict[str, RunsOf] = {
  "steingan": _stein_gan,
  "steingan_no_kernel": partial(_stein_gan, kind="no_kernel"),
  "steincd_gan": partial(_stein_gan, kind="mix"),
}
"""name -> its curves."""
