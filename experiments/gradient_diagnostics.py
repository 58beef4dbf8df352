"""The bias and the noise of every gradient estimator, relative to the exact gradient.

  python -m experiments.gradient_diagnostics
  python -m experiments.gradient_diagnostics --trained_by=stein_cd

trains the RBM of section 5.1 by one method and stops at the steps of --at. At each of
them it computes the gradient of every method of `experiments.mnist_rbm` on the same
--batches batches at the same parameters, and compares it with the exact
maximum-likelihood gradient over the whole training set: the direction of the mean
gradient (bias) and of a single batch's gradient (bias and noise), the length, and the
variance tr Cov / ‖mean‖². Each number is computed for all parameters together, and for
B, b and c. Exact MLE is among the methods: its row shows the effect of the choice of
the batches alone. Where the variance is near --batches, the mean gradient itself is
noise: use more batches. Persistent particles first make --burn_in updates at those
parameters; unlike those of the other methods, their gradients depend on one another.

It takes about two minutes on one CPU core. In --workdir it writes summary.json,
gradient_diagnostics.png (cosine of a single batch against the training step),
training/ with the checkpoints, and flags.txt, which can be used as a flagfile.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from experiments.rbm.methods import METHODS, algorithms
from experiments.rbm.problem import WHITENING_POINTS
from experiments.rbm.settings import Model, Rules
from experiments.rbm.training import Training
from experiments.shared import (
  loading,
  logs,
  plots,
  settings,
  summaries,
  tables,
  workdirs,
)
from experiments.shared.settings import setting
from stein_jax import Algorithm, negative_log_likelihood, training
from stein_jax.energies import GaussianBernoulliRBM

PARTS = ("all", "B", "b", "c")
MEASURES = {
  "cosine_of_mean": "cosine, mean gradient",
  "mean_cosine": "cosine, one batch",
  "relative_norm": "‖mean‖ / ‖exact‖",
  "variance": "tr Cov / ‖mean‖²",
}


@dataclasses.dataclass(frozen=True)
class Settings(loading.Data, summaries.FromSummary, workdirs.Run):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.gradient_diagnostics"
  files: ClassVar[tuple[str, ...]] = ("gradient_diagnostics.png", "training/*")

  workdir: str = settings.like(
    workdirs.Run, "workdir", default="runs/gradient_diagnostics"
  )
  method: tuple[str, ...] = setting(
    METHODS,
    f"Estimators to compare, separated by commas, some of: {', '.join(METHODS)}.",
    choices=METHODS,
  )
  trained_by: str = setting(
    "mle", f"The method that trains, one of: {', '.join(METHODS)}.", choices=METHODS
  )
  at: tuple[int, ...] = setting(
    (0, 100, 1000, 5000, 10_000),
    "Training steps at which gradients are compared.",
    at_least=0,
  )
  batches: int = setting(
    50, "The number of batches whose gradients are taken.", at_least=2
  )
  batch_size: int = settings.like(Training, "batch_size", help="m, points in a batch.")
  burn_in: int = setting(
    200,
    "Updates of persistent particles at fixed parameters, before gradients are taken.",
    at_least=0,
  )
  langevin_steps: tuple[int, ...] = settings.like(
    Rules, "langevin_steps", help="k of CD-k and PCD-k; one line for each."
  )
  num_hidden: int = settings.like(Model, "num_hidden")
  seed: int = setting(
    0,
    "Of the start, the training, the batches and the noise.",
    at_least=0,
    at_most=settings.MAX_SEED,
  )


def main(own: Settings) -> None:
  at = own.at if own.at != Settings().at else None
  if summaries.printed(own, lambda summary: markdown(summary, at)):
    return
  logs.quiet_checkpoints()
  steps = sorted(own.at)
  rbm = GaussianBernoulliRBM(own.num_hidden)
  rules = Rules(langevin_steps=own.langevin_steps)
  workdirs.check(own)
  dataset, train = loading.load_training_data(own, own.batch_size)

  def data() -> jax.Array:
    return training.unit_interval(train[:WHITENING_POINTS])

  estimators = algorithms(own.method, rbm, rules, keep_gradient(), data=data)
  one = dataclasses.replace(rules, langevin_steps=own.langevin_steps[:1])
  ((trained_by, trainer),) = algorithms([own.trained_by], rbm, one, data=data).items()
  workdir = workdirs.prepare(own)

  init_key, fit_key, rows_key, key = jax.random.split(jax.random.key(own.seed), 4)
  start = rbm.init_from_data(init_key, training.unit_interval(train))
  rows = batch_rows(rows_key, len(train), own.burn_in + own.batches, own.batch_size)
  results: dict[str, Any] = {}
  for step in steps:
    params = _params_at(step, fit_key, trainer, start, train, own, trained_by)
    exact = exact_gradient(params, rbm, train)
    results[str(step)] = {
      label: compare(
        gradients(algorithm, key, params, train, rows, burn_in=own.burn_in), exact
      )
      for label, algorithm in tqdm(
        estimators.items(),
        desc=f"gradients after {step} steps",
        disable=not own.progress,
      )
    }
    summary = summaries.write(
      own, {"dataset": dataset, "trained_by": trained_by, "steps": results}
    )
    print(tables.plain(*_table(summary, step)), end="\n\n")
  plots.gradient_cosines(
    workdir / "gradient_diagnostics.png",
    steps,
    {
      part: {
        label: [results[str(step)][label][part]["mean_cosine"] for step in steps]
        for label in estimators
      }
      for part in PARTS
    },
    title=f"One batch's gradient, RBM on {dataset} trained by {trained_by}",
  )
  print(f"Splits into B, b and c: summary.json and the picture in {workdir}")


def keep_gradient() -> optax.GradientTransformation:
  """An optimizer that changes no parameters; its state is the last gradient."""

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
    burn_in: updates that only move persistent particles. They are left out where the
      algorithm has no particles.
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
  """Compares gradients of single batches, `[n, ...]`, with the exact one, by part.

  Returns:
    "all", "B", "b", "c" -> `cosine_of_mean` and `relative_norm` of the mean gradient,
    `mean_cosine` of single ones, `variance` tr Cov / ‖mean‖² (NaN for a single batch),
    and `exact_norm`. The cosine of a gradient of zeros is 0.
  """
  parts = {
    name: (np.asarray(gradients["params"][name], np.float64), exact["params"][name])
    for name in PARTS[1:]
  }
  flat = {
    name: (g.reshape(len(g), -1), np.asarray(e, np.float64).ravel())
    for name, (g, e) in parts.items()
  }
  gradients_of_parts, exact_of_parts = zip(*flat.values())
  flat["all"] = (
    np.concatenate(gradients_of_parts, axis=1),
    np.concatenate(exact_of_parts),
  )
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
  own: Settings,
  label: str,
) -> Any:
  """The parameters after this many steps; the run continues where it stopped before."""
  if step == 0:
    return start
  fit = training.fit(
    key,
    algorithm,
    start,
    train,
    num_steps=step,
    batch_size=own.batch_size,
    workdir=Path(own.workdir) / "training",
    progress=own.progress,
    label=f"{label} to step {step}",
  )
  return fit.state.params


def markdown(summary: Mapping[str, Any], steps: Sequence[int] | None = None) -> str:
  """The tables of a `summary.json` in Markdown, one for each training point.

  Args:
    summary: the contents of summary.json.
    steps: only these training points.
  """
  if steps is None:
    steps = [int(step) for step in summary["steps"]]
  missing = [step for step in steps if str(step) not in summary["steps"]]
  if missing:
    settings.wrong_usage(
      f"--at: {missing} are not among the steps {[*summary['steps']]}."
    )
  return "\n\n".join(tables.markdown(*_table(summary, step)) for step in steps)


def _table(summary: Mapping[str, Any], step: int) -> tuple[list[str], list[list[str]]]:
  rows = []
  for label, parts in summary["steps"][str(step)].items():
    measured = parts["all"]
    cells = [f"{measured[name]:.3f}" for name in list(MEASURES)[:3]]
    rows.append([label, *cells, f"{measured['variance']:.2g}"])
  return [f"after {step} steps", *MEASURES.values()], rows


if __name__ == "__main__":
  settings.run(main, Settings)
