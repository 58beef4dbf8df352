"""The bias and the noise of every gradient estimator, beside the exact gradient.

  python -m experiments.gradient_diagnostics
  python -m experiments.gradient_diagnostics --trained_by=stein_cd

trains the RBM of section 5.1 by one method and stops at the steps of --at. There every
method of `experiments.mnist_rbm` is asked for its gradient on the same --batches
batches at the same parameters, and compared with the exact maximum-likelihood gradient
over the whole training set: direction of the mean gradient (bias), of a single batch's
(bias and noise), length, and variance tr Cov / ‖mean‖². Each is taken of all parameters
together and of B, b and c. Exact MLE is among the methods: its row is what the choice
of the batches alone does. Where the variance is near --batches, the mean gradient is
itself noise: take more. Persistent particles go through --burn_in updates at those
parameters first; their gradients depend on one another, unlike those of the others.

Takes about two minutes on one CPU core. In --workdir it leaves summary.json,
gradient_diagnostics.png (cosine of a single batch against the training step),
training/ with the checkpoints, and flags.txt, which is a flagfile itself.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from tqdm import tqdm

from experiments import rbm_summary
from experiments.rbm import methods as rbm_methods
from experiments.shared import common, plots
from stein_jax import Algorithm, negative_log_likelihood, training
from stein_jax.energies import GaussianBernoulliRBM

PARTS = ("all", "B", "b", "c")
MEASURES = {
  "cosine_of_mean": "cosine, mean gradient",
  "mean_cosine": "cosine, one batch",
  "relative_norm": "‖mean‖ / ‖exact‖",
  "variance": "tr Cov / ‖mean‖²",
}


def main(argv: list[str]) -> None:
  common.refuse_arguments(argv)
  values = flags.FLAGS
  if values.from_summary:
    only = common.numbers("at", values.at, int, at_least=0)
    summary = common.read_summary(values.from_summary)
    print(markdown(summary, only if values["at"].present else None))
    return
  common.hush_checkpoints()
  steps = sorted(common.numbers("at", values.at, int, at_least=0))
  langevin_steps = common.numbers(
    "langevin_steps", values.langevin_steps, int, at_least=1
  )
  methods = common.chosen("method", values.method, rbm_methods.METHODS)
  (trained_by,) = common.chosen("trained_by", [values.trained_by], rbm_methods.METHODS)
  rbm = GaussianBernoulliRBM(values.num_hidden)
  algorithms = common.algorithms(
    methods, rbm, keep_gradient(), langevin_steps=langevin_steps
  )
  trainers = common.algorithms(
    [trained_by], rbm, optax.adam(3e-4, b1=0.5), langevin_steps=langevin_steps[:1]
  )
  common.claim_workdir(before_work=True)
  dataset, train = common.load_training_data(values.batch_size)
  workdir = common.claim_workdir(before_work=False)

  init_key, fit_key, rows_key, key = jax.random.split(jax.random.key(values.seed), 4)
  start = rbm.init_from_data(init_key, training.unit_interval(train))
  rows = batch_rows(
    rows_key, len(train), values.burn_in + values.batches, values.batch_size
  )
  results: dict[str, Any] = {}
  for step in steps:
    ((label, trainer),) = trainers.items()
    params = _params_at(step, fit_key, trainer, start, train, workdir, label)
    exact = exact_gradient(params, rbm, train)
    results[str(step)] = {
      label: compare(
        gradients(algorithm, key, params, train, rows, burn_in=values.burn_in),
        exact,
      )
      for label, algorithm in tqdm(
        algorithms.items(),
        desc=f"gradients after {step} steps",
        disable=not values.progress,
      )
    }
    summary = common.write_summary(
      workdir,
      "experiments.gradient_diagnostics",
      {"dataset": dataset, "trained_by": label, "steps": results},
    )
    print(plots.table(*_table(summary, step)), end="\n\n")
  plots.gradient_cosines(
    workdir / "gradient_diagnostics.png",
    steps,
    {
      part: {
        label: [results[str(step)][label][part]["mean_cosine"] for step in steps]
        for label in algorithms
      }
      for part in PARTS
    },
    title=f"One batch's gradient, RBM on {dataset} trained by {label}",
  )
  print(f"Splits into B, b and c: summary.json and the picture in {workdir}")


def keep_gradient() -> optax.GradientTransformation:
  """An optimizer that leaves the parameters alone; its state is the last gradient."""

  def init(params: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, params)

  def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del state, params
    return jax.tree.map(jnp.zeros_like, gradient), gradient

  return optax.GradientTransformation(init, update)


def batch_rows(
  key: jax.Array, num_examples: int, num_batches: int, batch_size: int
) -> jax.Array:
  """Rows [num_batches, batch_size] of the data, each batch without repetition."""
  return jax.vmap(
    lambda key: jax.random.choice(key, num_examples, (batch_size,), replace=False)
  )(jax.random.split(key, num_batches))


def gradients(
  algorithm: Algorithm,
  key: jax.Array,
  params: Any,
  data: jax.Array,
  rows: jax.Array,
  *,
  burn_in: int,
) -> Any:
  """The gradients that an algorithm sees at fixed parameters, `[n, ...]`.

  Args:
    algorithm: built with `keep_gradient` as its optimizer.
    key: of the algorithm's noise.
    params: where the gradients are taken.
    data: the training set, `[N, ...]`; uint8 is scaled to [0, 1].
    rows: the batches, `[burn_in + n, m]`.
    burn_in: updates that only move persistent particles. Algorithms without particles
      do without them.
  """
  state = algorithm.init(key, params, training.unit_interval(data[rows[0]]))
  if hasattr(state, "particles"):
    state = _run(state, algorithm, key, data, rows[:burn_in])[0]
  key = jax.random.fold_in(key, 1)
  return _run(state, algorithm, key, data, rows[burn_in:])[1]


@partial(jax.jit, static_argnames="algorithm")
def _run(
  state: Any, algorithm: Algorithm, key: jax.Array, data: jax.Array, rows: jax.Array
) -> tuple[Any, Any]:
  def update(state: Any, index_and_rows: Any) -> tuple[Any, Any]:
    index, rows = index_and_rows
    batch = training.unit_interval(data[rows])
    state, _ = algorithm.update(jax.random.fold_in(key, index), state, batch)
    return state, state.opt_state

  return jax.lax.scan(update, state, (jnp.arange(len(rows)), rows))


@partial(jax.jit, static_argnames="rbm")
def exact_gradient(params: Any, rbm: GaussianBernoulliRBM, data: jax.Array) -> Any:
  """The gradient of the negative log-likelihood of all the data."""

  def loss(params: Any) -> jax.Array:
    x = training.unit_interval(data)
    return negative_log_likelihood(params, rbm.apply, x, rbm.log_partition)

  return jax.grad(loss)(params)


def compare(gradients: Any, exact: Any) -> dict[str, dict[str, float]]:
  """How gradients of single batches, `[n, ...]`, lie to the exact one, by part.

  Returns:
    "all", "B", "b", "c" -> `cosine_of_mean` and `relative_norm` of the mean gradient,
    `mean_cosine` of single ones, `variance` tr Cov / ‖mean‖² (NaN of a single batch),
    and `exact_norm`. Directions of zeros count as a cosine of 0.
  """
  parts = {
    name: (np.asarray(gradients["params"][name], np.float64), exact["params"][name])
    for name in PARTS[1:]
  }
  flat = {
    name: (g.reshape(len(g), -1), np.asarray(e, np.float64).ravel())
    for name, (g, e) in parts.items()
  }
  every, whole = zip(*flat.values())
  flat["all"] = np.concatenate(every, axis=1), np.concatenate(whole)
  return {name: _compare(*flat[name]) for name in PARTS}


def _compare(gradients: np.ndarray, exact: np.ndarray) -> dict[str, float]:
  mean = gradients.mean(axis=0)
  spread = np.square(gradients - mean[None]).sum()
  least = np.finfo(np.float64).tiny
  square = max(mean @ mean, least)
  return {
    "cosine_of_mean": _cosine(mean, exact),
    "mean_cosine": float(np.mean([_cosine(g, exact) for g in gradients])),
    "relative_norm": float(np.sqrt(mean @ mean / max(exact @ exact, least))),
    "variance": float(spread / max(len(gradients) - 1, 1) / square),
    "exact_norm": float(np.linalg.norm(exact)),
  }


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
  norms = np.linalg.norm(a) * np.linalg.norm(b)
  return float(a @ b / norms) if norms else 0.0


def _params_at(
  step: int,
  key: jax.Array,
  algorithm: Algorithm,
  start: Any,
  train: jax.Array,
  workdir: Path,
  label: str,
) -> Any:
  """The parameters after so many steps of the run, which goes on where it stopped."""
  if step == 0:
    return start
  fit = training.fit(
    key,
    algorithm,
    start,
    train,
    num_steps=step,
    batch_size=flags.FLAGS.batch_size,
    workdir=workdir / "training",
    progress=flags.FLAGS.progress,
    label=f"{label} to step {step}",
  )
  return fit.state.params


def markdown(summary: Mapping[str, Any], steps: Sequence[int] | None = None) -> str:
  """The tables of a `summary.json` in Markdown, one for each training point.

  Args:
    summary: as it was read.
    steps: only these training points.
  """
  if steps is None:
    steps = [int(step) for step in summary["steps"]]
  missing = [step for step in steps if str(step) not in summary["steps"]]
  if missing:
    sys.exit(f"--at: {missing} are not among the steps {[*summary['steps']]}.")
  return "\n\n".join(
    rbm_summary.markdown_table(*_table(summary, step)) for step in steps
  )


def _table(summary: Mapping[str, Any], step: int) -> tuple[list[str], list[list[str]]]:
  rows = []
  for label, parts in summary["steps"][str(step)].items():
    measured = parts["all"]
    cells = [f"{measured[name]:.3f}" for name in list(MEASURES)[:3]]
    rows.append([label, *cells, f"{measured['variance']:.2g}"])
  return [f"after {step} steps", *MEASURES.values()], rows


def _define_flags() -> None:
  common.define_run_flags("runs/gradient_diagnostics")
  common.define_data_flags()
  known = ", ".join(rbm_methods.METHODS)
  flags.DEFINE_list(
    "method",
    list(rbm_methods.METHODS),
    f"Estimators to look at, separated by commas, out of: {known}.",
  )
  flags.DEFINE_string("trained_by", "mle", f"The method that trains, one of: {known}.")
  flags.DEFINE_list(
    "at", ["0", "100", "1000", "5000", "10000"], "Training steps to stop and look at."
  )
  flags.DEFINE_integer(
    "batches", 50, "How many batches' gradients are taken.", lower_bound=2
  )
  flags.DEFINE_integer("batch_size", 100, "m, points in a batch.", lower_bound=2)
  flags.DEFINE_integer(
    "burn_in",
    200,
    "Updates of persistent particles, at fixed parameters, before they are looked at.",
    lower_bound=0,
  )
  flags.DEFINE_list(
    "langevin_steps", ["1", "10"], "k of CD-k and PCD-k; one line for each."
  )
  flags.DEFINE_integer(
    "num_hidden", 10, "ℓ, the RBM's hidden units.", lower_bound=1, upper_bound=25
  )
  flags.DEFINE_integer(
    "seed", 0, "Of the start, the training, the batches and the noise.", lower_bound=0
  )


if __name__ == "__main__":
  _define_flags()
  app.run(main)
