"""The settings of the RBM's experiments: the model, and how it learns."""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import optax

from experiments.shared import loading, settings
from experiments.shared.settings import setting
from stein_jax import AlignmentController, generators, kernels
from stein_jax.energies import GaussianBernoulliRBM

BY_CURVE = "by curve"
"""The tag of settings that --overrides may change for a single curve."""


@dataclasses.dataclass(frozen=True)
class Model(loading.Data):
  """The data, the model and its start."""

  validation: float = setting(
    0.1,
    "The share of the training set that is held out to choose the best step on.",
    above=0,
    at_most=0.9,
  )
  num_hidden: int = setting(10, "ℓ, the RBM's hidden units.", at_least=1, at_most=25)
  center: bool = setting(False, "Subtract the training set's mean picture.")
  scale: float = setting(
    1.0,
    "A factor on the pixels, which are in [0, 1] without it. Likelihoods are of the "
    "scaled pixels: compare them with N(mean, I), not with another scale's.",
    above=0,
  )
  initialization: str = setting(
    "data_mean",
    "data_mean: b is the data's mean and c = −Bᵀb; zeros: b = c = 0, as the authors "
    "do.",
    choices=("data_mean", "zeros"),
  )
  weight_scale: float = setting(0.05, "B starts uniform in ± this.", at_least=0)

  def rbm(self) -> GaussianBernoulliRBM:
    """The model."""
    return GaussianBernoulliRBM(self.num_hidden, weight_scale=self.weight_scale)


@dataclasses.dataclass(frozen=True)
class Rules(settings.Settings):
  """The hyper-parameters of the learning rules."""

  steps: int = setting(10_000, "Training steps.", at_least=1, may_grow=True)
  optimizer: str = setting(
    "adam", "The optax optimizer.", choices=("adam", "sgd", "rmsprop")
  )
  learning_rate: float = setting(
    3e-4,
    "The optimizer's learning rate, the paper's μ.",
    above=0,
    tags=[BY_CURVE],
  )
  schedule: str = setting(
    "constant",
    "The learning rate over the steps: constant, or falling to zero.",
    choices=("constant", "cosine", "linear"),
    tags=[BY_CURVE],
  )
  adam_b1: float = setting(
    0.5, "Adam's β₁; the authors use 0.5.", at_least=0, at_most=0.999
  )
  weight_decay: float = setting(
    0.0,
    "An L2 penalty, this/2 times the squared norm of all parameters.",
    at_least=0,
  )
  kernel: str = setting(
    "rbf", "The kernel of the Stein methods.", choices=("rbf", "imq", "constant")
  )
  bandwidth: str = setting(
    "median",
    "h of the kernel: a number above 0, in squared pixels, or a policy, one of "
    f"{', '.join(kernels.BANDWIDTHS)}.",
  )
  bandwidth_multiple: float = setting(1.0, "A factor on the bandwidth.", above=0)
  bandwidth_subsample: int | None = setting(
    None,
    "Take the median of this many particles of the batch; by default of all.",
    at_least=2,
  )
  step_size: float = setting(
    0.1,
    "ε of SteinCD's finite difference, in squared pixels.",
    above=0,
    tags=[BY_CURVE],
  )
  regularization: float = setting(
    0.1,
    "η of regularised SteinCD's direction, (K + ηI)⁻¹(K S + V).",
    above=0,
    tags=[BY_CURVE],
  )
  stein_steps: int = setting(
    3, "k, the number of regularised SteinCD's moves.", at_least=1, tags=[BY_CURVE]
  )
  stein_step_size: float = setting(
    0.5,
    "ε of regularised SteinCD's moves, in squared pixels.",
    above=0,
    tags=[BY_CURVE],
  )
  refresh_steps: int = setting(
    5,
    "The number of antithetic Langevin steps that follow the Stein moves of "
    "stein_cd_refreshed.",
    at_least=1,
  )
  feature_bandwidth: str = setting(
    "median_no_log",
    "h of the kernel on the RBM's features y = Bᵀx + c; as --bandwidth.",
  )
  feature_bandwidth_multiple: float = setting(
    1.0, "A factor on the features' bandwidth.", above=0, tags=[BY_CURVE]
  )
  chain_steps: int = setting(
    3,
    "Langevin steps of the chains of chains, mix_stein and mix_score_matching.",
    at_least=1,
  )
  components: int = setting(
    20, "Principal components of the data that a whitened kernel sees.", at_least=1
  )
  component_bandwidth_multiple: float = setting(
    1.0,
    "h of a whitened kernel over the squared median distance along the components.",
    above=0,
    tags=[BY_CURVE],
  )
  local_weight: float = setting(
    1.0,
    "The weight of the local rule of mix_stein and mix_score_matching beside their "
    "chains, in units of the variance of the RBM's components.",
    at_least=0,
    tags=[BY_CURVE],
  )
  langevin_steps: tuple[int, ...] = setting(
    (1, 10), "k of CD-k and PCD-k; one curve for each.", at_least=1
  )
  antithetic_steps: tuple[int, ...] = setting(
    (1,), "k of antithetic CD-k; one curve for each.", at_least=1
  )
  gibbs_steps: int = setting(1, "k of Gibbs CD-k.", at_least=1)
  langevin_step_size: tuple[float, ...] = setting(
    (0.5,),
    "ε of the Langevin steps; one curve for each. Chains and mixes take the first.",
    above=0,
    tags=[BY_CURVE],
  )
  metropolis: bool = setting(
    False, "CD by MALA, Langevin steps with a Metropolis test."
  )
  trace: str = setting(
    "closed",
    "The trace in Fisher score matching: the RBM's closed form, all d directional "
    "derivatives (slow), or Hutchinson's estimate with one random probe.",
    choices=("closed", "exact", "hutchinson"),
  )
  mle_negatives: str = setting(
    "log_partition",
    "Exact maximum likelihood by the gradient of log Z, or by exact samples.",
    choices=("log_partition", "samples"),
  )
  mix: tuple[float, ...] = setting(
    (0.25,),
    "α of steincd_gan, the share of its steps in which the energy learns by SteinCD; "
    "one curve for each.",
    at_least=0,
    at_most=1,
    may_grow=True,
  )
  mix_scale: tuple[float, ...] = setting(
    (100.0,),
    "Factors on SteinCD's gradient where SteinGAN's is mixed with it: it is a rate, "
    "SteinGAN's the difference of two distributions, and one Adam serves both; one "
    "curve for each.",
    above=0,
    tags=[BY_CURVE],
  )
  discount: str = setting(
    "0",
    "γ, a discount on the generated negatives: a number of at least 0 and below 1, or "
    "alignment, also written aligned (0.7, and 0.9 while the energy of real images "
    "exceeds that of generated ones).",
  )
  generator_width: float = setting(
    1.0,
    "A factor on the widths of the generator's layers; 1 is the authors' network.",
    above=0,
  )
  generator_learning_rate: float = setting(
    3e-4,
    "The learning rate of the generator's optimizer.",
    above=0,
    tags=[BY_CURVE],
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    self.pixel_kernel()
    self.feature_kernel()
    self.gamma()

  def energy_optimizer(self) -> optax.GradientTransformation:
    """The optimizer of the energy's parameters."""
    return self._optimizer(self.learning_rate)

  def generator_optimizer(self) -> optax.GradientTransformation:
    """The optimizer of the generator's parameters."""
    return self._optimizer(self.generator_learning_rate)

  def _optimizer(self, rate: float) -> optax.GradientTransformation:
    learning_rate: Any = {
      "constant": lambda: rate,
      "cosine": lambda: optax.cosine_decay_schedule(rate, self.steps),
      "linear": lambda: optax.linear_schedule(rate, 0.0, self.steps),
    }[self.schedule]()
    optimizer = {
      "adam": lambda: optax.adam(learning_rate, b1=self.adam_b1),
      "sgd": lambda: optax.sgd(learning_rate),
      "rmsprop": lambda: optax.rmsprop(learning_rate),
    }[self.optimizer]()
    if not self.weight_decay:
      return optimizer
    # Before the optimizer it is the gradient of an L2 penalty, as the authors have it.
    return optax.chain(optax.add_decayed_weights(self.weight_decay), optimizer)

  def pixel_kernel(self) -> kernels.Kernel:
    """The kernel of the Stein methods."""
    return self._kernel(
      "bandwidth", multiple=self.bandwidth_multiple, subsample=self.bandwidth_subsample
    )

  def feature_kernel(self) -> kernels.Kernel:
    """The kernel that is applied to the RBM's features."""
    return self._kernel("feature_bandwidth", multiple=self.feature_bandwidth_multiple)

  def _kernel(self, name: str, **options: Any) -> kernels.Kernel:
    """The kernel whose bandwidth is the setting of this name."""
    bandwidth: Any = getattr(self, name)
    with contextlib.suppress(ValueError):
      bandwidth = float(bandwidth)
    try:
      return {
        "rbf": lambda: kernels.rbf(bandwidth, **options),
        "imq": lambda: kernels.imq(bandwidth, **options),
        "constant": kernels.constant,
      }[self.kernel]()
    except ValueError as error:
      raise ValueError(f"--{name}: {error}") from error

  def gamma(self) -> float | AlignmentController:
    """γ: a number, or its controller."""
    if self.discount in ("alignment", "aligned"):
      return AlignmentController()
    try:
      discount = float(self.discount)
    except ValueError:
      discount = math.nan
    if not 0 <= discount < 1:
      raise ValueError(
        "--discount must be a number of at least 0 and below 1, or alignment; got "
        f"{self.discount!r}."
      )
    return discount

  def generator(self) -> generators.MNISTGenerator:
    """The generator's network."""
    return generators.MNISTGenerator(width=self.generator_width)


def of_curves(rules: Rules, overrides: str, curves: Sequence[str]) -> dict[str, Rules]:
  """The hyper-parameters of the curves that `overrides` names.

  Args:
    rules: the hyper-parameters of all other curves.
    overrides: "cd_10: learning_rate=1e-3 schedule=cosine; mle: ...".
    curves: the names of all curves.

  Raises:
    ValueError: a clause has another form, or a value is not allowed.
  """
  allowed = settings.names(Rules, tag=BY_CURVE)
  found = {}
  for clause in filter(str.strip, overrides.split(";")):
    curve, colon, assignments = clause.strip().partition(":")
    if not colon or curve not in curves:
      raise ValueError(
        f"--overrides: {clause.strip()!r} does not begin with a curve and a colon; the "
        f"curves of this run are {', '.join(curves)}."
      )
    own: dict[str, Any] = {}
    for assignment in assignments.split():
      name, equals, text = assignment.partition("=")
      if not equals or name not in allowed:
        raise ValueError(
          f"--overrides: {curve}: {assignment!r} is not FLAG=VALUE, where FLAG is one "
          f"of {', '.join(allowed)}."
        )
      own[name] = text
    found[curve] = _overridden(rules, curve, own)
  return found


def _overridden(rules: Rules, curve: str, own: dict[str, str]) -> Rules:
  try:
    changed = dataclasses.replace(rules, **own)
  except ValueError as error:
    raise ValueError(f"--overrides: {curve}: {error}") from error
  for name in own:
    before, now = getattr(rules, name), getattr(changed, name)
    if isinstance(now, tuple) and (len(before) > 1 or len(now) > 1):
      raise ValueError(f"--overrides of {name} need a single --{name}, and one value.")
  return changed
