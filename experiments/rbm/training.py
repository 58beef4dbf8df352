"""One training run of experiments.mnist_rbm, and the settings of all of them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from experiments.rbm import generators
from experiments.rbm.generator_methods import generator_after, start_generator
from experiments.rbm.methods import GENERATOR_METHODS, METHODS, runs
from experiments.rbm.problem import Problem
from experiments.rbm.runs import Run
from experiments.rbm.settings import BY_CURVE, Model, Rules
from experiments.shared import devices, scores, settings, workdirs
from experiments.shared.settings import setting
from stein_jax import Algorithm, parallel, training
from stein_jax.algorithms.stein_gan import SteinGANState


@dataclasses.dataclass(frozen=True)
class Training(devices.Devices, Rules, workdirs.Trains, Model):
  """The settings of several training runs that are compared."""

  method: tuple[str, ...] = setting(
    ("cd", "stein_cd", "stein_score_matching", "mle"),
    "Learning rules to compare, separated by commas, some of: "
    f"{', '.join(METHODS)}; with a generator and the energy: "
    f"{', '.join(GENERATOR_METHODS)}.",
    choices=(*METHODS, *GENERATOR_METHODS),
    may_grow=True,
  )
  batch_size: int = setting(100, "m, points a step.", at_least=2)
  seeds: tuple[int, ...] = setting(
    (0,),
    "Seeds of the initialisation, the batches and the noise.",
    at_least=0,
    at_most=settings.MAX_SEED,
    may_grow=True,
  )
  eval_every: int = setting(250, "Steps between exact evaluations.", at_least=1)
  num_samples: int = setting(
    50_000,
    "The number of samples of a generator that get scores at the end.",
    at_least=scores.COMPARED,
  )
  generator_after: int = setting(
    0,
    "Train a generator for this many steps on the finished energy of every method that "
    "has none.",
    at_least=0,
  )
  classifier_steps: int | None = setting(
    None,
    "Training steps of the classifier of samples, if not experiments.classifier's "
    "own; it is kept in --cache_dir.",
    at_least=1,
  )
  overrides: str = setting(
    "",
    "Flags of single curves, as 'cd_10: learning_rate=1e-3 schedule=cosine; mle: ...'. "
    f"A curve may have its own {', '.join(settings.names(Rules, tag=BY_CURVE))}.",
  )


def runs_of(own: Training) -> list[Run]:
  """The curves of --method, and the generators of --generator_after."""
  rbm = own.rbm()
  found = runs(own.method, rbm, own)
  if not own.generator_after:
    return found
  after = [generator_after(rbm, run) for run in found if not run.has_generator]
  if not after:
    settings.wrong_usage(
      "--generator_after: every --method already trains a generator."
    )
  if own.schedule != "constant":
    settings.wrong_usage(
      "--generator_after needs --schedule=constant: it has its own steps."
    )
  return found + after


def train(
  problem: Problem,
  algorithm: Algorithm,
  seed: int,
  own: Training,
  label: str,
  workdir: Path | None = None,
  *,
  evaluator: generators.Evaluator | None = None,
  energy: Any = None,
  mesh: Mesh | None = None,
) -> training.Fit:
  """Trains one method from one seed; all methods share a seed's start and batches.

  Args:
    problem: what is learned.
    algorithm: the learning rule.
    seed: of the start, the batches and the noise.
    own: the numbers of steps, and the size of a batch.
    label: of the progress bar.
    workdir: as in `training.fit`.
    evaluator: given where a generator is trained with the energy, or after it.
    energy: the finished energy's parameters where a generator is trained after it.
    mesh: the devices; the algorithm was built with its axis.
  """
  init_key, fit_key = jax.random.split(jax.random.key(seed))
  params = problem.start(init_key) if energy is None else energy
  evaluate = {"log_likelihood": lambda state: problem.evaluate(energy_params(state))}
  observe = None
  if evaluator is not None:
    generator_key = jax.random.fold_in(init_key, 1)
    eta, _ = start_generator(generator_key, evaluator.generator)
    params = {"energy": params, "generator": eta}
    evaluate["samples"] = evaluator.while_training
    if workdir is not None:
      observe = generators.keeping_samples(evaluator.generator, workdir / "samples")
  pixels: Any = problem.pixels
  if mesh is not None:  # each process reads its own rows; on one device all share these
    pixels = problem.dataset.train.reshape(pixels.shape)
  fit = training.fit(
    fit_key,
    algorithm,
    params,
    pixels,
    num_steps=own.steps if energy is None else own.generator_after,
    batch_size=own.batch_size,
    transform=problem.transform,
    log_every=own.eval_every,
    evaluate=evaluate,
    eval_every=own.eval_every,
    observe=observe,
    workdir=workdir,
    on_nonfinite="stop" if workdir is None else own.on_nonfinite,
    progress=own.progress,
    label=label if workdir is None else f"{label}, seed {seed}",
    mesh=mesh,
  )
  return fit._replace(state=parallel.local(fit.state))


def energy_params(state: Any) -> Any:
  """θ of any algorithm's state."""
  params = state.params
  return params["energy"] if isinstance(state, SteinGANState) else params
