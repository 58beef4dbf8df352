"""The learning rules that experiments.mnist_rbm compares, by name."""

from collections.abc import Callable, Sequence

import jax
import optax

from experiments.rbm import energy_methods, generator_methods
from experiments.rbm.runs import Run, Setup
from experiments.rbm.settings import Rules
from stein_jax import Algorithm
from stein_jax.energies import GaussianBernoulliRBM

METHODS = tuple(energy_methods.METHODS)
"""Rules that learn an energy by itself."""

GENERATOR_METHODS = tuple(generator_methods.METHODS)
"""Rules that learn an energy and a generator."""


def runs(methods: Sequence[str], rbm: GaussianBernoulliRBM, rules: Rules) -> list[Run]:
  """The curves of the methods; a method may have one for each value of a setting."""
  known = energy_methods.METHODS | generator_methods.METHODS
  return [run for method in methods for run in known[method](rbm, rules)]


def algorithms(
  methods: Sequence[str],
  rbm: GaussianBernoulliRBM,
  rules: Rules,
  optimizer: optax.GradientTransformation | None = None,
  *,
  data: Callable[[], jax.Array] | None = None,
) -> dict[str, Algorithm]:
  """label -> the learning rule.

  Args:
    methods: names from `METHODS`.
    rbm: the model.
    rules: the hyper-parameters.
    optimizer: used instead of the one that the rules describe.
    data: as in `Setup`.
  """
  setup = Setup(rules, optimizer or rules.energy_optimizer(), data=data)
  return {run.label: run.build(setup) for run in runs(methods, rbm, rules)}
