"""Trains the RBM of section 5.1: CD-type methods, exact MLE, SteinGAN (figure 1).

The quickstart needs no download and takes about a minute on two CPU cores:

  python -m experiments.mnist_rbm --flagfile=experiments/flags/quickstart.flags

Figure 1(a) on all of MNIST, three seeds:

  python -m experiments.mnist_rbm --flagfile=experiments/flags/figure1a.flags

Figures 1(b) to 1(d), SteinGAN and its mix with SteinCD, with a generator beside:

  python -m experiments.mnist_rbm --flagfile=experiments/flags/figure1b.flags

Any flag after the flagfile wins: add `--seeds=0 --steps=1000 --workdir=runs/look` for a
shorter look. A run that was stopped goes on where it stopped when the same command is
given again; more seeds, methods or steps extend it. In --workdir it leaves
figure1a.png, a picture of filters and samples for every method, summary.json,
metrics.jsonl, checkpoints, and flags.txt, which is a flagfile itself; of generators
also their samples over training, samples.png and, for several α, figure1b.png.
"""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from flax import linen as nn

from experiments import (
  classifier,
  common,
  data,
  plots,
  rbm_flags,
  rbm_generators,
  rbm_methods,
  rbm_summary,
  workdirs,
)
from stein_jax import Algorithm, evaluation, training
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.stein_gan import SteinGANState

Transform = Callable[[Any], Any]
"""A batch of points -> the same batch, otherwise scaled."""

_METHOD = flags.DEFINE_list(
  "method",
  ["cd", "stein_cd", "stein_score_matching", "mle"],
  f"Learning rules to compare, separated by commas, out of: "
  f"{', '.join(rbm_methods.METHODS)}; with a generator beside the energy: "
  f"{', '.join(rbm_methods.GENERATOR_METHODS)}.",
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
_NUM_SAMPLES = flags.DEFINE_integer(
  "num_samples",
  50_000,
  "How many samples of a generator are judged at the end.",
  lower_bound=rbm_generators.COMPARED,
)
_GENERATOR_AFTER = flags.DEFINE_integer(
  "generator_after",
  0,
  "Train a generator for so many steps on the finished energy of every method that "
  "has none.",
  lower_bound=0,
)
_CLASSIFIER_STEPS = flags.DEFINE_integer(
  "classifier_steps",
  None,
  "Training steps of the classifier of samples, if not experiments.classifier's "
  "own; it is kept in --cache_dir.",
  lower_bound=1,
)
rbm_flags.define()

# What may change when a command continues an earlier one in the same --workdir: where
# things are and what is shown; and there may be more of it.
_MAY_DIFFER = frozenset(("workdir", "data_dir", "cache_dir", "progress"))
_MAY_GROW = frozenset(("method", "mix", "seeds", "steps"))


def main(argv: list[str]) -> None:
  common.refuse_arguments(argv)
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # each checkpoint would log a dozen lines
  settings = rbm_flags.settings()
  seeds = common.numbers("seeds", flags.FLAGS.seeds, int, at_least=0)
  runs = runs_of_flags(settings)
  own_settings = rbm_flags.own_settings([r for r in runs if r.energy_from is None])
  with_generator = any(run.has_generator for run in runs)
  if with_generator and (_CENTER.value or _SCALE.value != 1):
    sys.exit("A generator makes pixels in [0, 1]: leave --center and --scale out.")
  workdir = Path(flags.FLAGS.workdir)
  values = workdirs.own_flags("method", leave_out={"overwrite"})
  # The schedule's shape depends on the number of steps.
  scheduled = flags.FLAGS.schedule != "constant" or "schedule=" in flags.FLAGS.overrides
  # Nor may a generator be trained half on one energy and half on another.
  fixed = {"steps"} if scheduled or _GENERATOR_AFTER.value else set()
  may_grow = _MAY_GROW - fixed
  overwrite = flags.FLAGS.overwrite
  # Asked before the data is loaded, which may take half a minute.
  workdirs.check(
    workdir, values, may_differ=_MAY_DIFFER, may_grow=may_grow, overwrite=overwrite
  )
  problem = load_problem()
  judge = _judge(problem, settings.generator) if with_generator else None
  workdirs.prepare(workdir, values, overwrite=overwrite)
  results = _Results(workdir, problem, judge, runs)
  energies: dict[tuple[str, int], Any] = {}
  for run in runs:
    histories: dict[int, list[dict[str, Any]]] = {}
    diverged: dict[int, int] = {}
    scores: list[dict[str, float]] = []
    algorithm = run.build(own_settings.get(run.name, settings))
    for seed in seeds:
      folder = workdir / run.name / f"seed_{seed}"
      energy = energies.get((run.energy_from, seed)) if run.energy_from else None
      if run.energy_from and energy is None:
        diverged[seed] = results.diverged[run.energy_from, seed]
        continue
      try:
        fit = train(
          problem,
          algorithm,
          seed,
          run.label,
          folder,
          judge=judge if run.has_generator else None,
          energy=energy,
        )
      except training.TrainingDiverged as error:
        print(f"{run.label}, seed {seed}: {error}", file=sys.stderr)
        diverged[seed] = results.diverged[run.name, seed] = error.step
        continue
      except ValueError as error:  # the folder holds a run on other data
        sys.exit(f"{run.label}, seed {seed}: {error}")
      histories[seed] = fit.history
      energies[run.name, seed] = _energy_params(fit.state)
      if run.has_generator:
        last = fit.history[-1]["step"]
        record = folder / "scores.json"
        scores.append(
          rbm_generators.judged(judge, fit.state, last, _NUM_SAMPLES.value, record)
        )
    results.add(run, histories, diverged, scores, energies)
  results.gather_metrics(seeds)
  print(results.tables())
  print(f"\nExact log-likelihood in nats. Pictures and summary.json: {workdir}")
  if any("diverged" in summary for summary in results.summaries.values()):
    sys.exit(1)


def runs_of_flags(settings: rbm_methods.Settings) -> list[rbm_methods.Run]:
  """The curves of --method, and the generators of --generator_after."""
  known = (*rbm_methods.METHODS, *rbm_methods.GENERATOR_METHODS)
  methods = common.chosen("method", _METHOD.value, known)
  runs = rbm_methods.runs(methods, _rbm(), settings)
  if not _GENERATOR_AFTER.value:
    return runs
  after = [rbm_methods.generator_after(_rbm(), r) for r in runs if not r.has_generator]
  if not after:
    sys.exit("--generator_after: every --method already trains a generator.")
  if flags.FLAGS.schedule != "constant":
    sys.exit("--generator_after needs --schedule=constant: it has its own steps.")
  return runs + after


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
  if not 0 < _SCALE.value < math.inf:
    sys.exit(f"--scale must be above 0, got {_SCALE.value}.")
  if not _WEIGHT_SCALE.value < math.inf:
    sys.exit(f"--weight_scale must be finite, got {_WEIGHT_SCALE.value}.")
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
  problem: Problem,
  algorithm: Algorithm,
  seed: int,
  label: str,
  workdir: Path | None,
  *,
  judge: rbm_generators.Judge | None = None,
  energy: Any = None,
) -> training.Fit:
  """Trains one method from one seed; all methods share a seed's start and batches.

  Args:
    problem: what is learned.
    algorithm: the learning rule.
    seed: of the start, the batches and the noise.
    label: of the progress bar.
    workdir: as in `training.fit`.
    judge: given where a generator is trained beside the energy, or after it.
    energy: the finished energy's parameters where a generator is trained after it.
  """
  init_key, fit_key = jax.random.split(jax.random.key(seed))
  params = energy
  if params is None and _INITIALIZATION.value == "data_mean":
    start = problem.transform(problem.pixels)
    params = problem.rbm.init_from_data(init_key, start)
  elif params is None:
    params = problem.rbm.init(init_key, jnp.zeros(problem.pixels.shape[1]))
  evaluate = {"log_likelihood": lambda state: problem.evaluate(_energy_params(state))}
  observe = None
  if judge is not None:
    generator_key = jax.random.fold_in(init_key, 1)
    eta, _ = rbm_methods.start_generator(generator_key, judge.generator)
    params = {"energy": params, "generator": eta}
    evaluate["samples"] = judge.while_training
    if workdir is not None:
      observe = rbm_generators.keeping_samples(judge.generator, workdir / "samples")
  return training.fit(
    fit_key,
    algorithm,
    params,
    problem.pixels,
    num_steps=_STEPS.value if energy is None else _GENERATOR_AFTER.value,
    batch_size=_BATCH_SIZE.value,
    transform=problem.transform,
    log_every=_EVAL_EVERY.value,
    evaluate=evaluate,
    eval_every=_EVAL_EVERY.value,
    observe=observe,
    workdir=workdir,
    progress=flags.FLAGS.progress,
    label=label if workdir is None else f"{label}, seed {seed}",
  )


def _energy_params(state: Any) -> Any:
  """θ of any algorithm's state."""
  params = state.params
  return params["energy"] if isinstance(state, SteinGANState) else params


def _judge(problem: Problem, generator: nn.Module) -> rbm_generators.Judge:
  """A classifier of the data's own classes, fitted once and kept; and the test set."""
  dataset = problem.dataset
  if dataset.test.shape[1:] != (28, 28, 1):
    sys.exit(
      f"The generator makes pictures of 28×28 grey pixels; {dataset.name} has "
      f"{'×'.join(map(str, dataset.test.shape[1:]))}."
    )
  try:
    fitted = classifier.load_or_fit(
      dataset,
      cache_dir=flags.FLAGS.cache_dir,
      num_steps=_CLASSIFIER_STEPS.value,
      progress=flags.FLAGS.progress,
    )
  except ValueError as error:
    sys.exit(f"--dataset={dataset.name}: {error}")
  print(
    f"Classifier: {100 * fitted.test_accuracy:.2f} % of the test set are right.",
    file=sys.stderr,
  )
  features = fitted.features(dataset.test)
  return rbm_generators.Judge(problem.rbm, generator, fitted, dataset.test, features)


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


class _Results:
  """What a command leaves in its workdir, written anew after every method."""

  def __init__(
    self,
    workdir: Path,
    problem: Problem,
    judge: rbm_generators.Judge | None,
    runs: Sequence[rbm_methods.Run],
  ):
    self.workdir, self.problem, self.judge = workdir, problem, judge
    self.runs = runs
    self.summaries: dict[str, Any] = {}
    self.diverged: dict[tuple[str, int], int] = {}  # run, seed -> step
    self.test_images = judge and judge.of_test_images()

  def add(
    self,
    run: rbm_methods.Run,
    histories: Mapping[int, list[dict[str, Any]]],
    diverged: Mapping[int, int],
    scores: Sequence[Mapping[str, float]],
    energies: Mapping[tuple[str, int], Any],
  ) -> None:
    """Adds all seeds of a method."""
    if not histories:
      self.summaries[run.label] = {"diverged": dict(diverged)}
      self.write()
      return
    summary = self.summaries[run.label] = rbm_summary.summarize(histories)
    if diverged:
      summary["diverged"] = dict(diverged)
    seed = list(histories)[-1]
    if run.energy_from is None:
      _draw_model(
        self.workdir / f"filters_and_samples_{run.name}.png",
        run.label,
        self.problem,
        energies[run.name, seed],
      )
    if run.has_generator:
      summary["samples"] = rbm_generators.summarize(scores)
      rbm_generators.draw_training(
        self.workdir / f"training_{run.name}.png",
        self._kept_samples(run, seed),
        title=run.label,
        last=histories[seed][-1]["step"],
      )
    self.write()

  def _kept_samples(self, run: rbm_methods.Run, seed: int) -> Path:
    return self.workdir / run.name / f"seed_{seed}" / "samples"

  def write(self) -> None:
    """Writes summary.json and the figures."""
    dataset, baseline = self.problem.dataset, self.problem.baseline
    record = self.workdir / "flags.txt"
    summary = {
      "command": f"python -m experiments.mnist_rbm --flagfile={record}",
      "dataset": dataset.name,
      "sizes": {
        name: len(getattr(dataset, name)) for name in ("train", "validation", "test")
      },
      "flags": workdirs.own_flags("method"),
      "gaussian_baseline": {k: float(v) for k, v in baseline._asdict().items()},
      "methods": self.summaries,
      "environment": {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
      },
    }
    if self.judge is not None:
      summary["classifier_test_accuracy"] = self.judge.classifier.test_accuracy
      summary["test_images"] = self.test_images
    text = json.dumps(summary, indent=1) + "\n"
    (self.workdir / "summary.json").write_text(text)
    self._draw()

  def _draw(self) -> None:
    title = f"RBM with {_NUM_HIDDEN.value} hidden units on {self.problem.dataset.name}"
    after = {run.label for run in self.runs if run.energy_from is not None}
    plots.likelihood_curves(
      self.workdir / "figure1a.png",
      {
        label: summary["curve"]
        for label, summary in self.summaries.items()
        if "curve" in summary and label not in after
      },
      baseline=float(self.problem.baseline.mean),
      title=title,
    )
    folders = {
      run.label: self._kept_samples(run, self.summaries[run.label]["seeds"][-1])
      for run in self.runs
      if "samples" in self.summaries.get(run.label, {})
    }
    if folders:
      rbm_generators.draw_samples(
        self.workdir / "samples.png", folders, self.summaries, title=title
      )
      rbm_generators.draw_mix(
        self.workdir / "figure1b.png", self.runs, self.summaries, title=title
      )

  def gather_metrics(self, seeds: Sequence[int]) -> None:
    """Joins the metrics of all runs into one file, rows with their method and seed."""
    with (self.workdir / "metrics.jsonl").open("w") as file:
      for run in self.runs:
        for seed in seeds:
          path = self.workdir / run.name / f"seed_{seed}" / "metrics.jsonl"
          for line in path.read_text().splitlines() if path.exists() else ():
            row = {"method": run.name, "seed": seed, **json.loads(line)}
            file.write(json.dumps(row) + "\n")

  def tables(self) -> str:
    """What the program prints at its end."""
    lines = rbm_summary.rows(self.summaries, float(self.problem.baseline.mean))
    text = plots.table(rbm_summary.HEADER, lines)
    if self.judge is not None:
      summary = {"methods": self.summaries, "test_images": self.test_images}
      lines = rbm_summary.samples_rows(summary)
      text += "\n\n" + plots.table(rbm_summary.SAMPLES_HEADER, lines)
    return text


if __name__ == "__main__":
  app.run(main)
