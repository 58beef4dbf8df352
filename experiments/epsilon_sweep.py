"""How small, and how large, may SteinCD's ε be? Finite differences against eq. 15.

  python -m experiments.epsilon_sweep

compares the forward (13) and the symmetric (17) difference with exact Stein score
matching (15), their limit for ε → 0, on the RBM of section 5.1 and one batch of real
digits: in float32 and in float64, at the start of a training run and after
--train_steps steps of exact maximum likelihood. The limit is computed in float64, from
the same float32 parameters and pixels.

Takes about 20 seconds on one CPU core. In --workdir it writes summary.json,
epsilon_sweep.png (relative error against ε) and flags.txt, which can be used as a
flagfile.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.rbm.settings import Model, Rules
from experiments.shared import loading, plots, settings, summaries, tables, workdirs
from experiments.shared.settings import setting
from stein_jax import (
  kernels,
  maximum_likelihood,
  stein_cd_gradient,
  stein_score_matching_gradient,
  training,
)
from stein_jax.energies import GaussianBernoulliRBM

PRECISIONS = ("float32", "float64")
SIDES = {"(13)": False, "(17)": True}


@dataclasses.dataclass(frozen=True)
class Settings(loading.Data, summaries.FromSummary, workdirs.Run):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.epsilon_sweep"
  files: ClassVar[tuple[str, ...]] = ("epsilon_sweep.png",)

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/epsilon_sweep")
  epsilons: tuple[float, ...] = setting(
    tuple(10.0**exponent for exponent in range(-6, 4)),
    "The step sizes ε, in squared pixels, separated by commas.",
    above=0,
  )
  num_hidden: int = settings.like(Model, "num_hidden")
  train_steps: int = setting(
    3000, "Steps of exact MLE to the trained point.", at_least=1
  )
  batch_size: int = setting(100, "m, points in the batch.", at_least=2)
  seed: int = setting(
    0,
    "Of the start, the training and the batch.",
    at_least=0,
    at_most=settings.MAX_SEED,
  )


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  workdirs.check(own)
  dataset, train = loading.load_training_data(own, own.batch_size)
  workdir = workdirs.prepare(own)

  rbm = GaussianBernoulliRBM(own.num_hidden)
  init_key, fit_key, batch_key = jax.random.split(jax.random.key(own.seed), 3)
  start = rbm.init_from_data(init_key, training.unit_interval(train))
  fit = training.fit(
    fit_key,
    maximum_likelihood(rbm.apply, rbm.log_partition, Rules().energy_optimizer()),
    start,
    train,
    num_steps=own.train_steps,
    batch_size=own.batch_size,
    progress=own.progress,
    label="exact MLE",
  )
  rows = jax.random.choice(batch_key, len(train), (own.batch_size,), replace=False)
  batch = training.unit_interval(train[rows])

  points = {"start": start, "trained": fit.state.params}
  results = {
    point: sweep(
      params, rbm.apply, batch, kernels.rbf(), own.epsilons, progress=own.progress
    )
    for point, params in points.items()
  }
  summary = summaries.write(
    own, {"dataset": dataset, "epsilons": list(own.epsilons), "points": results}
  )
  plots.epsilon_errors(
    workdir / "epsilon_sweep.png",
    own.epsilons,
    {
      point: {combo: result["relative_error"] for combo, result in combos.items()}
      for point, combos in results.items()
    },
    title=f"SteinCD's gradient and its limit (15), RBM on {dataset}",
  )
  print(tables.plain(*_table(summary)))
  print(f"\nRelative error to equation 15. Picture and summary.json: {workdir}")


def sweep(
  params: Any,
  energy_fn: Any,
  data: Any,
  kernel: kernels.Kernel | None,
  epsilons: Sequence[float],
  *,
  progress: bool = False,
) -> dict[str, dict[str, Any]]:
  """Differences of all step sizes against equation 15, in both precisions.

  Args:
    params, energy_fn, data, kernel: as in `stein_cd_gradient`; params and data are
      converted to float64 and to float32.
    epsilons: the step sizes.
    progress: whether to show a progress bar.

  Returns:
    "<precision> <equation>" -> `relative_error` ‖g − g*‖/‖g*‖ and `cosine`, one number
    for each ε, and `best`, the ε of the smallest error.
  """
  exact = _in_precision(
    "float64", stein_score_matching_gradient, params, energy_fn, data, kernel
  )
  results = {}
  combos = [(precision, side) for precision in PRECISIONS for side in SIDES]
  bar = tqdm(total=len(combos) * len(epsilons), desc="ε", disable=not progress)
  for precision, side in combos:
    errors, cosines = [], []
    for epsilon in epsilons:
      gradient = _in_precision(
        precision,
        stein_cd_gradient,
        params,
        energy_fn,
        data,
        kernel,
        step_size=epsilon,
        symmetric=SIDES[side],
      )
      norm = np.linalg.norm(exact)
      errors.append(float(np.linalg.norm(gradient - exact) / norm))
      both = np.linalg.norm(gradient) * norm
      cosines.append(float(gradient @ exact / both) if both else 0.0)
      bar.update()
    results[f"{precision} {side}"] = {
      "relative_error": errors,
      "cosine": cosines,
      "best": epsilons[int(np.argmin(errors))],
    }
  bar.close()
  return results


def _in_precision(
  precision: str,
  gradient_fn: Any,
  params: Any,
  energy_fn: Any,
  data: Any,
  kernel: kernels.Kernel | None,
  **options: Any,
) -> np.ndarray:
  """The gradient, computed entirely in one precision, as a vector of float64."""
  # Without x64 nothing inside the block can be float64.
  with jax.enable_x64(precision == "float64"):
    params, data = jax.tree.map(
      lambda leaf: jnp.asarray(np.asarray(leaf), precision), (params, data)
    )
    gradient = gradient_fn(params, energy_fn, data, kernel, **options)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
  if {leaf.dtype.name for leaf in leaves} != {precision}:
    raise TypeError(f"{precision} became {[leaf.dtype.name for leaf in leaves]}.")
  return np.concatenate([leaf.ravel() for leaf in leaves]).astype(np.float64)


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a `summary.json` in Markdown: relative errors, a row for each ε."""
  return tables.markdown(*_table(summary))


def _table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  columns = {
    f"{point}: {combo}": result
    for point, combos in summary["points"].items()
    for combo, result in combos.items()
  }
  rows = [
    [f"{epsilon:g}", *(f"{c['relative_error'][i]:.1e}" for c in columns.values())]
    for i, epsilon in enumerate(summary["epsilons"])
  ]
  rows.append(["best ε", *(f"{column['best']:g}" for column in columns.values())])
  return ["ε", *columns], rows


if __name__ == "__main__":
  settings.run(main, Settings)
