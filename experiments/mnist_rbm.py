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

import sys
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from flax import linen as nn
from jax.sharding import Mesh

from experiments import classifier
from experiments.pictures import image_scores
from experiments.rbm import (
  flags_of_rules as rbm_flags,
)
from experiments.rbm import (
  generators as rbm_generators,
)
from experiments.rbm import (
  methods as rbm_methods,
)
from experiments.rbm import (
  problem as rbm_problem,
)
from experiments.rbm import (
  results as rbm_results,
)
from experiments.shared import common
from stein_jax import Algorithm, parallel, training
from stein_jax.algorithms.stein_gan import SteinGANState
from stein_jax.training.records import AnotherRun

_METHOD = flags.DEFINE_list(
  "method",
  ["cd", "stein_cd", "stein_score_matching", "mle"],
  f"Learning rules to compare, separated by commas, out of: "
  f"{', '.join(rbm_methods.METHODS)}; with a generator beside the energy: "
  f"{', '.join(rbm_methods.GENERATOR_METHODS)}.",
)
rbm_problem.define()
common.define_run_flags("runs/mnist_rbm", from_summary=False)
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
  lower_bound=image_scores.COMPARED,
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

common.define_device_flags()

# There may be more of it when a command continues an earlier one in its --workdir.
_MAY_GROW = frozenset(("method", "mix", "seeds", "steps"))


def main(argv: list[str]) -> None:
  common.refuse_arguments(argv)
  common.hush_checkpoints()
  mesh = common.join_devices()
  common.check_divides(mesh, _BATCH_SIZE.value)
  settings = rbm_flags.settings()
  seeds = common.numbers("seeds", flags.FLAGS.seeds, int, at_least=0)
  runs = runs_of_flags(settings)
  own_settings = rbm_flags.own_settings([r for r in runs if r.energy_from is None])
  if mesh is not None:
    settings, *own = (
      s._replace(axis_name=parallel.AXIS) for s in (settings, *own_settings.values())
    )
    own_settings = dict(zip(own_settings, own))
  with_generator = any(run.has_generator for run in runs)
  if with_generator and (flags.FLAGS.center or flags.FLAGS.scale != 1):
    sys.exit("A generator makes pixels in [0, 1]: leave --center and --scale out.")
  # The schedule's shape depends on the number of steps.
  scheduled = flags.FLAGS.schedule != "constant" or "schedule=" in flags.FLAGS.overrides
  # Nor may a generator be trained half on one energy and half on another.
  fixed = {"steps"} if scheduled or _GENERATOR_AFTER.value else set()
  may_grow = _MAY_GROW - fixed
  common.claim_workdir(before_work=True, may_grow=may_grow)
  problem = rbm_problem.load(_BATCH_SIZE.value)
  judge = _judge(problem, settings.generator) if with_generator else None
  workdir = common.claim_workdir(before_work=False)
  results = rbm_results.Results(workdir, problem, judge, runs)
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
          mesh=mesh,
        )
      except training.TrainingDiverged as error:
        print(f"{run.label}, seed {seed}: {error}", file=sys.stderr)
        diverged[seed] = results.diverged[run.name, seed] = error.step
        continue
      except AnotherRun as error:  # on other data, by its fingerprint
        sys.exit(f"{run.label}, seed {seed}: {error}")
      histories[seed] = fit.history
      energies[run.name, seed] = _energy_params(fit.state)
      if run.has_generator and parallel.is_first_process():
        last = fit.history[-1]["step"]
        record = folder / "scores.json"
        scores.append(
          rbm_generators.judged(judge, fit.state, last, _NUM_SAMPLES.value, record)
        )
    if parallel.is_first_process():
      results.add(run, histories, diverged, scores, energies)
  if parallel.is_first_process():
    results.gather_metrics(seeds)
    print(results.tables())
    print(f"\nExact log-likelihood in nats. Pictures and summary.json: {workdir}")
  parallel.wait_for_all("reported")
  if results.diverged:
    sys.exit(1)


def runs_of_flags(settings: rbm_methods.Settings) -> list[rbm_methods.Run]:
  """The curves of --method, and the generators of --generator_after."""
  known = (*rbm_methods.METHODS, *rbm_methods.GENERATOR_METHODS)
  methods = common.chosen("method", _METHOD.value, known)
  runs = rbm_methods.runs(methods, rbm_problem.rbm(), settings)
  if not _GENERATOR_AFTER.value:
    return runs
  after = [
    rbm_methods.generator_after(rbm_problem.rbm(), r)
    for r in runs
    if not r.has_generator
  ]
  if not after:
    sys.exit("--generator_after: every --method already trains a generator.")
  if flags.FLAGS.schedule != "constant":
    sys.exit("--generator_after needs --schedule=constant: it has its own steps.")
  return runs + after


def train(
  problem: rbm_problem.Problem,
  algorithm: Algorithm,
  seed: int,
  label: str,
  workdir: Path | None,
  *,
  judge: rbm_generators.Judge | None = None,
  energy: Any = None,
  mesh: Mesh | None = None,
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
    mesh: the devices; the algorithm was built with its axis.
  """
  init_key, fit_key = jax.random.split(jax.random.key(seed))
  params = rbm_problem.start(init_key, problem) if energy is None else energy
  evaluate = {"log_likelihood": lambda state: problem.evaluate(_energy_params(state))}
  observe = None
  if judge is not None:
    generator_key = jax.random.fold_in(init_key, 1)
    eta, _ = rbm_methods.start_generator(generator_key, judge.generator)
    params = {"energy": params, "generator": eta}
    evaluate["samples"] = judge.while_training
    if workdir is not None:
      observe = rbm_generators.keeping_samples(judge.generator, workdir / "samples")
  fit = training.fit(
    fit_key,
    algorithm,
    params,
    # Over a mesh each process reads its own rows; on one device all share these.
    problem.pixels
    if mesh is None
    else problem.dataset.train.reshape(problem.pixels.shape),
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
    mesh=mesh,
  )
  return fit._replace(state=parallel.local(fit.state))


def _energy_params(state: Any) -> Any:
  """θ of any algorithm's state."""
  params = state.params
  return params["energy"] if isinstance(state, SteinGANState) else params


def _judge(problem: rbm_problem.Problem, generator: nn.Module) -> rbm_generators.Judge:
  """A classifier of the data's own classes, fitted once and kept; and the test set."""
  dataset = problem.dataset
  if dataset.test.shape[1:] != (28, 28, 1):
    sys.exit(
      f"The generator makes pictures of 28×28 grey pixels; {dataset.name} has "
      f"{'×'.join(map(str, dataset.test.shape[1:]))}."
    )
  try:
    with parallel.first_process_first("classifier"):
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


if __name__ == "__main__":
  app.run(common.ending_together(main))
