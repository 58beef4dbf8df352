"""`Run`, one curve of experiments.mnist_rbm, and the inputs of its learning rule."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import optax

from experiments.rbm.settings import Rules
from stein_jax import Algorithm
from stein_jax.energies import GaussianBernoulliRBM


class Setup(NamedTuple):
  """The inputs of a learning rule.

  Attributes:
    rules: the hyper-parameters.
    optimizer: the optimizer of the energy.
    axis_name: the axis of the devices over which batches are sharded, or None.
    data: returns points of the training set as the model sees them, `[N, d]`, which a
      whitened direction needs before training.
  """

  rules: Rules
  optimizer: optax.GradientTransformation
  axis_name: str | None = None
  data: Callable[[], jax.Array] | None = None


class Run(NamedTuple):
  """One curve of the figure.

  Attributes:
    name: a name for files and flags.
    label: a name for tables and figures.
    build: makes the algorithm from a `Setup`; each curve may have its own
      hyper-parameters.
    mix: α, if a generator is trained together with the energy.
    energy_from: the name of the run whose finished energy a generator is trained on.
  """

  name: str
  label: str
  build: Callable[[Setup], Algorithm]
  mix: float | None = None
  energy_from: str | None = None

  @property
  def has_generator(self) -> bool:
    """Whether the parameters are {"energy": ..., "generator": ...}."""
    return self.mix is not None or self.energy_from is not None


RunsOf = Callable[[GaussianBernoulliRBM, Rules], Iterator[Run]]
"""A method: maps the model and the hyper-parameters to one or more curves."""
