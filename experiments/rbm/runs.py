"""A curve of experiments.mnist_rbm, and what its learning rule is built from."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import optax

from experiments.rbm.settings import Rules
from stein_jax import Algorithm
from stein_jax.energies import GaussianBernoulliRBM


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


class Run(NamedTuple):
  """One curve of the figure.

  Attributes:
    name: a name for files and flags.
    label: a name for tables and figures.
    build: builds the algorithm. Its argument is the setup, since a curve may have
      hyper-parameters of its own.
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


RunsOf = Callable[[GaussianBernoulliRBM, Rules], Iterator[Run]]
"""A method: the model and the hyper-parameters -> its curves, one or several."""
