"""The flags that say how the RBM's learning rules learn, and what they mean.

`experiments.mnist_rbm` defines them by `define`; `Settings` are their values.
"""

import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import optax
from absl import flags

from experiments.rbm import methods as rbm_methods
from experiments.shared import common
from stein_jax import AlignmentController, generators, kernels

# Flags count as those of the binary that calls, in its --help and in flags.txt.
flags.disclaim_key_flags()

OVERRIDABLE = (
  "learning_rate",
  "schedule",
  "step_size",
  "langevin_step_size",
  "stein_steps",
  "stein_step_size",
  "regularization",
  "feature_bandwidth_multiple",
  "generator_learning_rate",
  "mix_scale",
)

_LISTS = {"langevin_step_size", "mix_scale"}  # flags of several curves


def define() -> None:
  """Defines the flags of optimizer, kernels and learning rules."""
  flags.DEFINE_enum(
    "optimizer", "adam", ["adam", "sgd", "rmsprop"], "The optax optimizer."
  )
  flags.DEFINE_float(
    "learning_rate", 3e-4, "The optimizer's learning rate, the paper's μ."
  )
  flags.DEFINE_enum(
    "schedule",
    "constant",
    ["constant", "cosine", "linear"],
    "How the learning rate goes over the steps: constant, or to zero.",
  )
  flags.DEFINE_float(
    "adam_b1",
    0.5,
    "Adam's β₁; the authors use 0.5.",
    lower_bound=0.0,
    upper_bound=0.999,
  )

  flags.DEFINE_float(
    "weight_decay",
    0.0,
    "An L2 penalty, this/2 times the squared norm of all parameters.",
    lower_bound=0.0,
  )
  flags.DEFINE_enum(
    "kernel", "rbf", ["rbf", "imq", "constant"], "The kernel of the Stein methods."
  )
  flags.DEFINE_string(
    "bandwidth",
    "median",
    "h of the kernel: a number above 0, in squared pixels, or a policy out of "
    f"{', '.join(kernels.BANDWIDTHS)}.",
  )
  flags.DEFINE_float("bandwidth_multiple", 1.0, "A factor on the bandwidth.")
  flags.DEFINE_integer(
    "bandwidth_subsample",
    None,
    "Take the median of so many particles of the batch; all by default.",
  )
  flags.DEFINE_float(
    "step_size",
    rbm_methods.DEFAULTS["step_size"],
    "ε of SteinCD's finite difference, in squared pixels.",
  )
  flags.DEFINE_float(
    "regularization",
    rbm_methods.DEFAULTS["regularization"],
    "η of regularised SteinCD's direction, (K + ηI)⁻¹(K S + V).",
  )
  flags.DEFINE_integer(
    "stein_steps",
    rbm_methods.DEFAULTS["stein_steps"],
    "k, how many moves regularised SteinCD makes.",
    lower_bound=1,
  )
  flags.DEFINE_float(
    "stein_step_size",
    rbm_methods.DEFAULTS["stein_step_size"],
    "ε of regularised SteinCD's moves, in squared pixels.",
  )
  flags.DEFINE_integer(
    "refresh_steps",
    rbm_methods.DEFAULTS["refresh_steps"],
    "How many antithetic Langevin steps follow the Stein moves of stein_cd_refreshed.",
    lower_bound=1,
  )
  flags.DEFINE_string(
    "feature_bandwidth",
    "median_no_log",
    "h of the kernel on the RBM's features y = Bᵀx + c; as --bandwidth.",
  )
  flags.DEFINE_float(
    "feature_bandwidth_multiple", 1.0, "A factor on the features' bandwidth."
  )
  flags.DEFINE_list(
    "langevin_steps", ["1", "10"], "k of CD-k and PCD-k; one curve for each."
  )
  flags.DEFINE_list(
    "antithetic_steps", ["1"], "k of antithetic CD-k; one curve for each."
  )
  flags.DEFINE_integer(
    "gibbs_steps",
    rbm_methods.DEFAULTS["gibbs_steps"],
    "k of Gibbs CD-k.",
    lower_bound=1,
  )
  flags.DEFINE_list(
    "langevin_step_size", ["0.5"], "ε of the Langevin steps; one curve for each."
  )
  flags.DEFINE_bool(
    "metropolis", False, "CD by MALA, Langevin steps with a Metropolis test."
  )
  flags.DEFINE_enum(
    "trace",
    "closed",
    ["closed", "exact", "hutchinson"],
    "The trace in Fisher score matching: the RBM's closed form, all d directional "
    "derivatives (slow), or Hutchinson's estimate with one random probe.",
  )
  flags.DEFINE_enum(
    "mle_negatives",
    "log_partition",
    ["log_partition", "samples"],
    "Exact maximum likelihood by the gradient of log Z, or by exact samples.",
  )
  flags.DEFINE_list(
    "mix",
    ["0.25"],
    "α of steincd_gan, the share of its steps in which the energy learns by SteinCD; "
    "one curve for each.",
  )
  flags.DEFINE_list(
    "mix_scale",
    [f"{scale:g}" for scale in rbm_methods.DEFAULTS["mix_scale"]],
    "Factors on SteinCD's gradient where SteinGAN's is mixed with it: it is a rate, "
    "SteinGAN's the difference of two distributions, and one Adam serves both; one "
    "curve for each.",
  )
  flags.DEFINE_string(
    "discount",
    "0",
    "γ, a discount on the generated negatives: a number below 1, or alignment (0.7, "
    "and 0.9 while real energy exceeds simulated).",
  )
  flags.DEFINE_float(
    "generator_width",
    1.0,
    "A factor on the widths of the generator's layers; 1 is the authors' network.",
  )
  flags.DEFINE_float(
    "generator_learning_rate", 3e-4, "The learning rate of the generator's optimizer."
  )
  flags.DEFINE_string(
    "overrides",
    "",
    "Flags of single curves, as 'cd_10: learning_rate=1e-3 schedule=cosine; mle: ...'. "
    f"A curve may have its own {', '.join(OVERRIDABLE)}.",
  )


def settings(
  own: Mapping[str, Any] = MappingProxyType({}),
) -> rbm_methods.Settings:
  """The flags as objects of the library; an exit with a message names what is wrong.

  Args:
    own: values that take the place of flags, for a curve with settings of its own.
  """
  value = {name: own.get(name, flags.FLAGS[name].value) for name in OVERRIDABLE}
  for name in (
    *("step_size", "learning_rate", "regularization", "stein_step_size"),
    "generator_learning_rate",
  ):
    if not 0 < value[name] < math.inf:
      sys.exit(f"--{name} must be above 0, got {value[name]}.")
  common.positive("generator_width")
  lists = {
    name: [own[name]] if name in own else common.numbers(name, flags.FLAGS[name].value)
    for name in _LISTS
  }
  return rbm_methods.Settings(
    optimizer=_optimizer(value["learning_rate"], value["schedule"]),
    kernel=_kernel(
      "bandwidth",
      flags.FLAGS.bandwidth_multiple,
      subsample=flags.FLAGS.bandwidth_subsample,
    ),
    step_size=value["step_size"],
    feature_kernel=_kernel("feature_bandwidth", value["feature_bandwidth_multiple"]),
    regularization=value["regularization"],
    stein_steps=value["stein_steps"],
    stein_step_size=value["stein_step_size"],
    refresh_steps=flags.FLAGS.refresh_steps,
    langevin_steps=common.numbers(
      "langevin_steps", flags.FLAGS.langevin_steps, int, at_least=1
    ),
    langevin_step_size=lists["langevin_step_size"],
    antithetic_steps=common.numbers(
      "antithetic_steps", flags.FLAGS.antithetic_steps, int, at_least=1
    ),
    metropolis=flags.FLAGS.metropolis,
    gibbs_steps=flags.FLAGS.gibbs_steps,
    trace=flags.FLAGS.trace,
    mle_negatives=flags.FLAGS.mle_negatives,
    generator=generators.MNISTGenerator(width=flags.FLAGS.generator_width),
    generator_optimizer=_optimizer(value["generator_learning_rate"], value["schedule"]),
    mix=common.numbers("mix", flags.FLAGS.mix, between=(0, 1)),
    mix_scale=lists["mix_scale"],
    discount=_discount(),
  )


def _optimizer(rate: float, schedule: str) -> optax.GradientTransformation:
  steps = flags.FLAGS.steps
  learning_rate = {
    "constant": lambda: rate,
    "cosine": lambda: optax.cosine_decay_schedule(rate, steps),
    "linear": lambda: optax.linear_schedule(rate, 0.0, steps),
  }[schedule]()
  optimizer = {
    "adam": lambda: optax.adam(learning_rate, b1=flags.FLAGS.adam_b1),
    "sgd": lambda: optax.sgd(learning_rate),
    "rmsprop": lambda: optax.rmsprop(learning_rate),
  }[flags.FLAGS.optimizer]()
  if not flags.FLAGS.weight_decay:
    return optimizer
  # Before the optimizer it is the gradient of an L2 penalty, as the authors have it.
  return optax.chain(optax.add_decayed_weights(flags.FLAGS.weight_decay), optimizer)


def _discount() -> float | AlignmentController:
  if flags.FLAGS.discount == "alignment":
    return AlignmentController()
  try:
    discount = float(flags.FLAGS.discount)
  except ValueError:
    discount = math.nan
  if not 0 <= discount < 1:
    sys.exit(
      "--discount must be a number of at least 0 and below 1, or alignment; got "
      f"{flags.FLAGS.discount!r}."
    )
  return discount


def _kernel(
  name: str, multiple: float, *, subsample: int | None = None
) -> kernels.Kernel:
  """The kernel of --kernel with the bandwidth of the flag of this name."""
  bandwidth: Any = flags.FLAGS[name].value
  with contextlib.suppress(ValueError):
    bandwidth = float(bandwidth)
  options = {"multiple": multiple, "subsample": subsample}
  try:
    return {
      "rbf": lambda: kernels.rbf(bandwidth, **options),
      "imq": lambda: kernels.imq(bandwidth, **options),
      "constant": kernels.constant,
    }[flags.FLAGS.kernel]()
  except ValueError as error:
    sys.exit(f"--{name}: {error}")


def own_settings(
  runs: Sequence[rbm_methods.Run],
) -> dict[str, rbm_methods.Settings]:
  """The settings of the curves that --overrides names."""
  names = [run.name for run in runs]
  found = {}
  for clause in filter(str.strip, flags.FLAGS.overrides.split(";")):
    name, colon, assignments = clause.strip().partition(":")
    if not colon or name not in names:
      sys.exit(
        f"--overrides: {clause.strip()!r} does not begin with a curve and a colon; the "
        f"curves of this run are {', '.join(names)}."
      )
    own = {}
    for assignment in assignments.split():
      flag, equals, text = assignment.partition("=")
      if not equals or flag not in OVERRIDABLE:
        sys.exit(
          f"--overrides: {name}: {assignment!r} is not FLAG=VALUE with a flag out of "
          f"{', '.join(OVERRIDABLE)}."
        )
      parser = flags.FLAGS[flag].parser
      try:
        own[flag] = float(text) if flag in _LISTS else parser.parse(text)
      except ValueError as error:
        sys.exit(f"--overrides: {name}: {flag}: {error}")
    for flag in own.keys() & _LISTS:
      if not 0 < own[flag] < math.inf:
        sys.exit(f"--overrides: {name}: {flag} must be above 0.")
      if len(flags.FLAGS[flag].value) > 1:
        sys.exit(f"--overrides of {flag} need a single --{flag}.")
    found[name] = settings(own)
  return found
