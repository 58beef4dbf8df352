"""Trains the RBM of section 5.1 by every CD-type method, beside exact MLE (figure 1a).

The quickstart needs no download and takes about a minute on two CPU cores:

  python -m experiments.mnist_rbm --flagfile=experiments/flags/quickstart.flags

Figure 1(a) on all of MNIST, three seeds:

  python -m experiments.mnist_rbm --flagfile=experiments/flags/figure1a.flags

Any flag after the flagfile wins: add `--seeds=0 --steps=1000 --workdir=runs/look` for a
shorter look. A run that was stopped goes on where it stopped when the same command is
given again; more seeds, methods or steps extend it. In --workdir it leaves
figure1a.png, a picture of filters and samples for every method, summary.json,
metrics.jsonl, checkpoints, and flags.txt, which is a flagfile itself.
"""

import contextlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging

from experiments import common, data, plots, rbm_methods, rbm_summary, workdirs
from stein_jax import Algorithm, evaluation, kernels, training
from stein_jax.energies import GaussianBernoulliRBM

Transform = Callable[[Any], Any]
"""A batch of points -> the same batch, otherwise scaled."""

OVERRIDABLE = (
  "learning_rate",
  "schedule",
  "step_size",
  "langevin_step_size",
  "stein_steps",
  "stein_step_size",
  "regularization",
  "feature_bandwidth_multiple",
)

_METHOD = flags.DEFINE_list(
  "method",
  ["cd", "stein_cd", "stein_score_matching", "mle"],
  f"Learning rules to compare, separated by commas, out of: "
  f"{', '.join(rbm_methods.METHODS)}.",
)
common.define_data_flags()
_VALIDATION = flags.DEFINE_float(
  "validation",
  0.1,
  "The share of the training set that is held out to choose the best step on.",
  lower_bound=0.0,
  upper_bound=0.9,
)
common.define_run_flags("runs/mnist_rbm", from_summary=False)

_NUM_HIDDEN = flags.DEFINE_integer(
  "num_hidden", 10, "ℓ, the RBM's hidden units.", lower_bound=1, upper_bound=25
)
_CENTER = flags.DEFINE_bool(
  "center", False, "Subtract the training set's mean picture."
)
_SCALE = flags.DEFINE_float(
  "scale",
  1.0,
  "A factor on the pixels, which are in [0, 1] without it. Likelihoods are of the "
  "scaled pixels: compare them with N(mean, I), not with another scale's.",
)
_INITIALIZATION = flags.DEFINE_enum(
  "initialization",
  "data_mean",
  ["data_mean", "zeros"],
  "data_mean: b is the data's mean and c = −Bᵀb; zeros: b = c = 0, as the authors do.",
)
_WEIGHT_SCALE = flags.DEFINE_float(
  "weight_scale", 0.05, "B starts uniform in ± this.", lower_bound=0.0
)

_STEPS = flags.DEFINE_integer("steps", 10_000, "Training steps.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 100, "m, points a step.", lower_bound=2
)
_SEEDS = flags.DEFINE_list(
  "seeds", ["0"], "Seeds of the initialisation, the batches and the noise."
)
_EVAL_EVERY = flags.DEFINE_integer(
  "eval_every", 250, "Steps between exact evaluations.", lower_bound=1
)
_OPTIMIZER = flags.DEFINE_enum(
  "optimizer", "adam", ["adam", "sgd", "rmsprop"], "The optax optimizer."
)
_LEARNING_RATE = flags.DEFINE_float(
  "learning_rate", 3e-4, "The optimizer's learning rate, the paper's μ."
)
_SCHEDULE = flags.DEFINE_enum(
  "schedule",
  "constant",
  ["constant", "cosine", "linear"],
  "How the learning rate goes over the steps: constant, or to zero.",
)
_ADAM_B1 = flags.DEFINE_float(
  "adam_b1", 0.5, "Adam's β₁; the authors use 0.5.", lower_bound=0.0, upper_bound=0.999
)

_KERNEL = flags.DEFINE_enum(
  "kernel", "rbf", ["rbf", "imq", "constant"], "The kernel of the Stein methods."
)
_BANDWIDTH = flags.DEFINE_string(
  "bandwidth",
  "median",
  "h of the kernel: a number above 0, in squared pixels, or a policy out of "
  f"{', '.join(kernels.BANDWIDTHS)}.",
)
_BANDWIDTH_MULTIPLE = flags.DEFINE_float(
  "bandwidth_multiple", 1.0, "A factor on the bandwidth."
)
_BANDWIDTH_SUBSAMPLE = flags.DEFINE_integer(
  "bandwidth_subsample",
  None,
  "Take the median of so many particles of the batch; all by default.",
)
_STEP_SIZE = flags.DEFINE_float(
  "step_size",
  rbm_methods.DEFAULTS["step_size"],
  "ε of SteinCD's finite difference, in squared pixels.",
)
_REGULARIZATION = flags.DEFINE_float(
  "regularization",
  rbm_methods.DEFAULTS["regularization"],
  "η of regularised SteinCD's direction, (K + ηI)⁻¹(K S + V).",
)
_STEIN_STEPS = flags.DEFINE_integer(
  "stein_steps",
  rbm_methods.DEFAULTS["stein_steps"],
  "k, how many moves regularised SteinCD makes.",
  lower_bound=1,
)
_STEIN_STEP_SIZE = flags.DEFINE_float(
  "stein_step_size",
  rbm_methods.DEFAULTS["stein_step_size"],
  "ε of regularised SteinCD's moves, in squared pixels.",
)
_REFRESH_STEPS = flags.DEFINE_integer(
  "refresh_steps",
  rbm_methods.DEFAULTS["refresh_steps"],
  "How many antithetic Langevin steps follow the Stein moves of stein_cd_refreshed.",
  lower_bound=1,
)
_FEATURE_BANDWIDTH = flags.DEFINE_string(
  "feature_bandwidth",
  "median_no_log",
  "h of the kernel on the RBM's features y = Bᵀx + c; as --bandwidth.",
)
_FEATURE_BANDWIDTH_MULTIPLE = flags.DEFINE_float(
  "feature_bandwidth_multiple", 1.0, "A factor on the features' bandwidth."
)
_LANGEVIN_STEPS = flags.DEFINE_list(
  "langevin_steps", ["1", "10"], "k of CD-k and PCD-k; one curve for each."
)
_ANTITHETIC_STEPS = flags.DEFINE_list(
  "antithetic_steps", ["1"], "k of antithetic CD-k; one curve for each."
)
_GIBBS_STEPS = flags.DEFINE_integer(
  "gibbs_steps", rbm_methods.DEFAULTS["gibbs_steps"], "k of Gibbs CD-k.", lower_bound=1
)
_LANGEVIN_STEP_SIZE = flags.DEFINE_list(
  "langevin_step_size", ["0.5"], "ε of the Langevin steps; one curve for each."
)
_METROPOLIS = flags.DEFINE_bool(
  "metropolis", False, "CD by MALA, Langevin steps with a Metropolis test."
)
_TRACE = flags.DEFINE_enum(
  "trace",
  "closed",
  ["closed", "exact", "hutchinson"],
  "The trace in Fisher score matching: the RBM's closed form, all d directional "
  "derivatives (slow), or Hutchinson's estimate with one random probe.",
)
_MLE_NEGATIVES = flags.DEFINE_enum(
  "mle_negatives",
  "log_partition",
  ["log_partition", "samples"],
  "Exact maximum likelihood by the gradient of log Z, or by exact samples.",
)
_OVERRIDES = flags.DEFINE_string(
  "overrides",
  "",
  "Flags of single curves, as 'cd_10: learning_rate=1e-3 schedule=cosine; mle: ...'. "
  f"A curve may have its own {', '.join(OVERRIDABLE)}.",
)

# What may change when a command continues an earlier one in the same --workdir: where
# things are and what is shown; and there may be more of it.
_MAY_DIFFER = frozenset(("workdir", "data_dir", "cache_dir", "progress"))
_MAY_GROW = frozenset(("method", "seeds", "steps"))


def main(argv: list[str]) -> None:
  common.refuse_arguments(argv)
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # each checkpoint would log a dozen lines
  settings, seeds = (
    settings_of_flags(),
    common.numbers("seeds", flags.FLAGS.seeds, int, at_least=0),
  )
  runs = runs_of_flags(settings)
  own_settings = _own_settings(runs)
  workdir = Path(flags.FLAGS.workdir)
  values = workdirs.own_flags("method", leave_out={"overwrite"})
  # The schedule's shape depends on the number of steps.
  scheduled = _SCHEDULE.value != "constant" or "schedule=" in _OVERRIDES.value
  may_grow = _MAY_GROW - ({"steps"} if scheduled else set())
  overwrite = flags.FLAGS.overwrite
  # Asked before the data is loaded, which may take half a minute.
  workdirs.check(
    workdir, values, may_differ=_MAY_DIFFER, may_grow=may_grow, overwrite=overwrite
  )
  problem = load_problem()
  workdirs.prepare(workdir, values, overwrite=overwrite)
  summaries: dict[str, Any] = {}
  for run in runs:
    histories: dict[int, list[dict[str, Any]]] = {}
    diverged: dict[int, int] = {}
    algorithm = run.build(own_settings.get(run.name, settings))
    for seed in seeds:
      try:
        fit = train(
          problem, algorithm, seed, run.label, workdir / run.name / f"seed_{seed}"
        )
        params, histories[seed] = fit.state.params, fit.history
      except training.TrainingDiverged as error:
        print(f"{run.label}, seed {seed}: {error}", file=sys.stderr)
        diverged[seed] = error.step
      except ValueError as error:  # the folder holds a run on other data
        sys.exit(f"{run.label}, seed {seed}: {error}")
    if not histories:
      summaries[run.label] = {"diverged": diverged}
      continue
    summaries[run.label] = rbm_summary.summarize(histories)
    if diverged:
      summaries[run.label]["diverged"] = diverged
    _draw_model(
      workdir / f"filters_and_samples_{run.name}.png",
      run.label,
      problem,
      params,
    )
    _write_results(workdir, problem, summaries)
  _write_results(workdir, problem, summaries)
  _gather_metrics(workdir, runs, seeds)
  rows = rbm_summary.rows(summaries, float(problem.baseline.mean))
  print(plots.table(rbm_summary.HEADER, rows))
  print(f"\nExact log-likelihood in nats. Pictures and summary.json: {workdir}")
  if any("diverged" in summary for summary in summaries.values()):
    sys.exit(1)


def runs_of_flags(settings: rbm_methods.Settings) -> list[rbm_methods.Run]:
  """The curves of --method."""
  methods = common.chosen("method", _METHOD.value, rbm_methods.METHODS)
  return rbm_methods.runs(methods, _rbm(), settings)


class Problem(NamedTuple):
  """What is learned, and how it is judged."""

  rbm: GaussianBernoulliRBM
  dataset: data.Dataset
  pixels: jax.Array  # the training set, uint8 [N, d]
  transform: Transform  # pixels -> what the model sees
  untransform: Transform  # what the model sees -> pictures in [0, 1]
  baseline: evaluation.MeanLogLikelihood  # of N(mean, I)
  evaluate: Callable[[Any], Mapping[str, float]]  # params -> nats of every split


def load_problem() -> Problem:
  """The data and the model that the flags ask for."""
  if not _VALIDATION.value > 0:
    sys.exit("--validation must be above 0: the best step is chosen on it.")
  dataset = common.load_data(_BATCH_SIZE.value, validation_fraction=_VALIDATION.value)
  splits = {
    name: jnp.asarray(split.reshape(len(split), -1))
    for name, split in (
      ("train", dataset.train),
      ("validation", dataset.validation),
      ("test", dataset.test),
    )
  }
  transform, untransform = _transforms(splits["train"])
  rbm = _rbm()
  return Problem(
    rbm=rbm,
    dataset=dataset,
    pixels=splits["train"],
    transform=transform,
    untransform=untransform,
    baseline=evaluation.gaussian_baseline(
      transform(splits["train"]), transform(splits["test"])
    ),
    evaluate=_evaluation(rbm, transform, **splits),
  )


def train(
  problem: Problem, algorithm: Algorithm, seed: int, label: str, workdir: Path | None
) -> training.Fit:
  """Trains one method from one seed; all methods share a seed's start and batches."""
  init_key, fit_key = jax.random.split(jax.random.key(seed))
  if _INITIALIZATION.value == "data_mean":
    start = problem.transform(problem.pixels)
    params = problem.rbm.init_from_data(init_key, start)
  else:
    params = problem.rbm.init(init_key, jnp.zeros(problem.pixels.shape[1]))
  return training.fit(
    fit_key,
    algorithm,
    params,
    problem.pixels,
    num_steps=_STEPS.value,
    batch_size=_BATCH_SIZE.value,
    transform=problem.transform,
    log_every=_EVAL_EVERY.value,
    evaluate={"log_likelihood": lambda state: problem.evaluate(state.params)},
    eval_every=_EVAL_EVERY.value,
    workdir=workdir,
    progress=flags.FLAGS.progress,
    label=label if workdir is None else f"{label}, seed {seed}",
  )


def _rbm() -> GaussianBernoulliRBM:
  return GaussianBernoulliRBM(_NUM_HIDDEN.value, weight_scale=_WEIGHT_SCALE.value)


def _transforms(pixels: jax.Array) -> tuple[Transform, Transform]:
  """Pixels 0 to 255 -> what the model sees, as --center and --scale say; and back."""
  if not _CENTER.value and _SCALE.value == 1:
    return training.unit_interval, lambda x: x
  scale, origin = _SCALE.value, jnp.zeros(pixels.shape[1])
  if _CENTER.value:
    origin = training.unit_interval(pixels).mean(axis=0)
  return (
    lambda x: scale * (training.unit_interval(x) - origin[None]),
    lambda x: x / scale + origin[None],
  )


def _evaluation(
  rbm: GaussianBernoulliRBM, transform: Transform, **splits: jax.Array
) -> Callable[[Any], Mapping[str, float]]:
  """params -> the mean exact log-likelihood of every split, in nats."""

  def log_likelihood(params: Any, x: jax.Array) -> jax.Array:
    return rbm.log_likelihood(params, transform(x))

  return lambda params: {
    name: float(evaluation.mean_log_likelihood(params, log_likelihood, x).mean)
    for name, x in splits.items()
  }


def _draw_model(
  path: Path,
  label: str,
  problem: Problem,
  params: Any,
) -> None:
  """Pictures the columns of B, and exact samples with and without pixel noise."""
  rbm, weights = problem.rbm, params["params"]["B"]
  samples = rbm.sample(jax.random.key(0), params, 10)
  y = jax.vmap(lambda x: rbm.features(params, x))(samples)
  denoised = params["params"]["b"] + jnp.tanh(y) @ weights.T
  rows = {
    "filters: the columns of B": weights.T,
    "exact samples x ~ p": problem.untransform(samples),
    "the same without pixel noise: E[b + Bh | x]": problem.untransform(denoised),
  }
  image_shape = problem.dataset.train.shape[1:]
  plots.image_rows(
    path,
    {k: np.asarray(v).reshape(-1, *image_shape) for k, v in rows.items()},
    title=label,
  )


def _write_results(
  workdir: Path, problem: Problem, summaries: Mapping[str, Any]
) -> None:
  """Writes summary.json and figure1a.png; called after every method."""
  device = jax.devices()[0]
  dataset, baseline = problem.dataset, problem.baseline
  summary = {
    "command": f"python -m experiments.mnist_rbm --flagfile={workdir / 'flags.txt'}",
    "dataset": dataset.name,
    "sizes": {
      name: len(getattr(dataset, name)) for name in ("train", "validation", "test")
    },
    "flags": workdirs.own_flags("method"),
    "gaussian_baseline": {k: float(v) for k, v in baseline._asdict().items()},
    "methods": dict(summaries),
    "environment": {"jax": jax.__version__, "device": device.device_kind},
  }
  (workdir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
  plots.likelihood_curves(
    workdir / "figure1a.png",
    {label: s["curve"] for label, s in summaries.items() if "curve" in s},
    baseline=float(baseline.mean),
    title=f"RBM with {_NUM_HIDDEN.value} hidden units on {dataset.name}",
  )


def _gather_metrics(
  workdir: Path, runs: list[rbm_methods.Run], seeds: list[int]
) -> None:
  """Joins the metrics of all runs into one file, each row with its method and seed."""
  with (workdir / "metrics.jsonl").open("w") as file:
    for run in runs:
      for seed in seeds:
        path = workdir / run.name / f"seed_{seed}" / "metrics.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
          row = {"method": run.name, "seed": seed, **json.loads(line)}
          file.write(json.dumps(row) + "\n")


def settings_of_flags(
  own: Mapping[str, Any] = MappingProxyType({}),
) -> rbm_methods.Settings:
  """The flags as objects of the library; an exit with a message names what is wrong.

  Args:
    own: values that take the place of flags, for a curve of its own settings.
  """
  value = {name: own.get(name, flags.FLAGS[name].value) for name in OVERRIDABLE}
  for name in ("step_size", "learning_rate", "regularization", "stein_step_size"):
    if not 0 < value[name] < math.inf:
      sys.exit(f"--{name} must be above 0, got {value[name]}.")
  if not 0 < _SCALE.value < math.inf:
    sys.exit(f"--scale must be above 0, got {_SCALE.value}.")
  if not _WEIGHT_SCALE.value < math.inf:
    sys.exit(f"--weight_scale must be finite, got {_WEIGHT_SCALE.value}.")
  rate, steps = value["learning_rate"], _STEPS.value
  learning_rate = {
    "constant": lambda: rate,
    "cosine": lambda: optax.cosine_decay_schedule(rate, steps),
    "linear": lambda: optax.linear_schedule(rate, 0.0, steps),
  }[value["schedule"]]()
  optimizer = {
    "adam": lambda: optax.adam(learning_rate, b1=_ADAM_B1.value),
    "sgd": lambda: optax.sgd(learning_rate),
    "rmsprop": lambda: optax.rmsprop(learning_rate),
  }[_OPTIMIZER.value]()
  langevin_step_size = common.numbers(
    "langevin_step_size", flags.FLAGS.langevin_step_size
  )
  if "langevin_step_size" in own:
    langevin_step_size = [own["langevin_step_size"]]
  return rbm_methods.Settings(
    optimizer=optimizer,
    kernel=_kernel(
      "bandwidth", _BANDWIDTH_MULTIPLE.value, subsample=_BANDWIDTH_SUBSAMPLE.value
    ),
    step_size=value["step_size"],
    feature_kernel=_kernel("feature_bandwidth", value["feature_bandwidth_multiple"]),
    regularization=value["regularization"],
    stein_steps=value["stein_steps"],
    stein_step_size=value["stein_step_size"],
    refresh_steps=_REFRESH_STEPS.value,
    langevin_steps=common.numbers(
      "langevin_steps", flags.FLAGS.langevin_steps, int, at_least=1
    ),
    langevin_step_size=langevin_step_size,
    antithetic_steps=common.numbers(
      "antithetic_steps", flags.FLAGS.antithetic_steps, int, at_least=1
    ),
    metropolis=_METROPOLIS.value,
    gibbs_steps=_GIBBS_STEPS.value,
    trace=_TRACE.value,
    mle_negatives=_MLE_NEGATIVES.value,
  )


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
    }[_KERNEL.value]()
  except ValueError as error:
    sys.exit(f"--{name}: {error}")


def _own_settings(
  runs: Sequence[rbm_methods.Run],
) -> dict[str, rbm_methods.Settings]:
  """The settings of the curves that --overrides names."""
  names = [run.name for run in runs]
  settings = {}
  for clause in filter(str.strip, _OVERRIDES.value.split(";")):
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
        own[flag] = float(text) if flag == "langevin_step_size" else parser.parse(text)
      except ValueError as error:
        sys.exit(f"--overrides: {name}: {flag}: {error}")
    if not 0 < own.get("langevin_step_size", 1.0) < math.inf:
      sys.exit(f"--overrides: {name}: langevin_step_size must be above 0.")
    if "langevin_step_size" in own and len(_LANGEVIN_STEP_SIZE.value) > 1:
      sys.exit("--overrides of langevin_step_size need a single --langevin_step_size.")
    settings[name] = settings_of_flags(own)
  return settings


if __name__ == "__main__":
  app.run(main)
