"""Deep energies against known truths: every learning rule, one table.

  python -m experiments.known_density --flagfile=experiments/flags/known_quick.flags

A student, a network on a Gaussian base, learns densities from --train of their samples
by every rule. As the truth is known, KL(p* ‖ p) is too, by importance sampling from a
mixture of the truth and a broad Gaussian; its effective sample size says how far it can
be trusted. Where that is below 30, the KL is marked "≥": the estimate is too low.

Every rule gets the same. --budget trials choose Adam's learning rate and the rule's own
number (a step size, a noise scale, a bandwidth): the defaults, then a Sobol sequence.
The trial whose KL on --val separate points is least gives the numbers of the final
runs, one for each of --seeds, with new training points and a new student. These have
--steps steps; one more has --seconds seconds. "by data alone" is the KL of the trial
that a user would choose, who knows no truth: the one with the least sliced score
matching loss on held-out points.

The oracles are no rivals but the floor: one minimises the KL by the truth's own log
density, the other follows the likelihood's gradient by long chains from data.

A run that was stopped continues where it stopped. In --workdir it writes runs.jsonl
(every run), summary.json, known_density.png (the KL against seconds) and flags.txt,
which can be used as a flagfile.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from tqdm import tqdm

from experiments.deep import report
from experiments.deep.trials import (
  LEARNING_RATES,
  ORACLES,
  RULES,
  Numbers,
  Sizes,
  Study,
  best,
  candidates,
)
from experiments.deep.truths import TRUTHS
from experiments.shared import (
  deep_rules,
  plots,
  runlog,
  settings,
  summaries,
  tables,
  workdirs,
)
from experiments.shared.settings import setting
from stein_jax import energies

IMAGES = ("digits", "digits_narrow")
"""The truths that a convolutional student can learn."""


@dataclasses.dataclass(frozen=True)
class Settings(summaries.FromSummary, workdirs.Run):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.known_density"
  files: ClassVar[tuple[str, ...]] = ("runs.jsonl", "known_density.png")

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/known_density")
  truth: tuple[str, ...] = setting(
    tuple(TRUTHS),
    f"What is learned, some of: {', '.join(TRUTHS)}.",
    choices=tuple(TRUTHS),
    may_grow=True,
  )
  rule: tuple[str, ...] = setting(
    (*deep_rules.RULES, "oracle_kl"),
    f"Learning rules, some of: {', '.join(RULES)}.",
    choices=tuple(RULES),
    may_grow=True,
  )
  student: str = setting(
    "mlp",
    "The energy that learns: mlp (two layers and a Gaussian base), residual (a "
    "convolutional network, for digits), or rbm (of --width units, which can represent "
    "the mixtures exactly; its oracle is oracle_exact_mle).",
    choices=("mlp", "residual", "rbm"),
  )
  width: int | None = setting(
    None,
    "Units in a layer of the student. By default 128, and 256 in 100 dimensions and "
    "above; 32 channels of residual, and 5 hidden units of rbm.",
    at_least=1,
  )
  steps: int = setting(2000, "Training steps of a run.", at_least=1)
  seconds: float = setting(
    10.0, "Training time of the run with a fixed time; 0: no such run.", at_least=0
  )
  budget: int = setting(
    6, "Trials for each rule and truth.", at_least=1, at_most=1000, may_grow=False
  )
  seeds: tuple[int, ...] = setting(
    (0, 1, 2),
    "One final run for each.",
    at_least=0,
    at_most=settings.MAX_SEED - 1,
    may_grow=True,
  )
  train: int = setting(20_000, "Points to learn from.", at_least=2)
  val: int = setting(5000, "Points by which a trial is chosen.", at_least=1000)
  test: int = setting(10_000, "Points by which final runs are judged.", at_least=10)
  batch_size: int = setting(100, "Points in a batch.", at_least=2)
  eval_every: int = setting(200, "Steps between evaluations.", at_least=1)


TRIAL_SEED = settings.MAX_SEED
"""Of training points and student in all trials; final runs have other seeds."""


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  if own.batch_size > own.train:
    settings.wrong_usage(
      f"--batch_size={own.batch_size} is more than --train={own.train}."
    )
  if own.student == "residual" and not set(own.truth) <= set(IMAGES):
    settings.wrong_usage(
      f"--student=residual learns images: choose --truth={','.join(IMAGES)}."
    )
  if "oracle_exact_mle" in own.rule and own.student != "rbm":
    settings.wrong_usage(
      "oracle_exact_mle needs an energy whose log Z is known: --student=rbm."
    )
  workdirs.check(own)
  workdir = workdirs.prepare(own)
  record = workdir / "runs.jsonl"
  bar = tqdm(total=_num_runs(own), disable=not own.progress)
  for truth in own.truth:
    done = _recorded(record, truth)
    bar.update(len([run for run in done if _is_wanted(own, run)]))
    study: Study | None = None
    if not any(run["kind"] == "gaussian" for run in done):
      study = _study(own, truth)
      _append(record, done, {"kind": "gaussian", "kl": study.gaussian_kl()}, truth)
    for rule in own.rule:
      bar.set_description(f"{truth}, {rule}")
      for run in _missing(own, truth, rule, done):
        study = study or _study(own, truth)
        found = _done(own, study, rule, run)
        _append(record, done, {"rule": rule, **run, **found}, truth)
        bar.update()
    _summarize(own, record)
    jax.clear_caches()  # compiled programs of the last truth serve no other
  bar.close()
  summary = _summarize(own, record)
  plots.divergences_by_seconds(
    workdir / "known_density.png",
    report.curves(summary),
    title="KL(p* ‖ p) of a deep energy, learned from samples",
  )
  for title, header, rows in report.tables_of(summary):
    print(title, tables.plain(header, rows), sep="\n\n", end="\n\n")
  print(f"Picture, summary.json and every run: {workdir}")


def _study(own: Settings, truth: str) -> Study:
  density = TRUTHS[truth]()
  dimension = density.sample(jax.random.key(0), 1).shape[1]
  sizes = Sizes(own.batch_size, own.eval_every, own.train, own.val, own.test)
  return Study(density, _student(own, dimension), sizes)


def _student(own: Settings, dimension: int) -> Any:
  if own.student == "rbm":
    return energies.GaussianBernoulliRBM(own.width or 5)
  if own.student == "residual":
    width = own.width or 32
    return energies.Residual((width, 2 * width, 2 * width), image_shape=(28, 28, 1))
  width = own.width or (128 if dimension < 100 else 256)
  return energies.MLP((width, width), activation=jax.nn.silu, base="diagonal")


# ------------------------------------------------------------------------- the runs


def _num_runs(own: Settings) -> int:
  return (
    len(own.truth)
    * len(own.rule)
    * (own.budget + len(own.seeds) + (1 if own.seconds else 0))
  )


def _append(
  record: Path, done: list[dict[str, Any]], run: Mapping[str, Any], truth: str
) -> None:
  """Records a run, in the file and in the list."""
  done.append({"truth": truth, **run})
  runlog.append(record, done[-1])


def _is_wanted(own: Settings, run: Mapping[str, Any]) -> bool:
  if run.get("rule") not in own.rule:
    return False
  if run["kind"] == "trial":
    return run["place"] < own.budget
  return run["kind"] == "seconds" or run["seed"] in own.seeds


def _recorded(record: Path, truth: str) -> list[dict[str, Any]]:
  return [run for run in runlog.read(record) if run["truth"] == truth]


def _missing(
  own: Settings, truth: str, rule: str, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
  """The runs of a rule that are not recorded: trials, final runs, the timed one.

  Final runs have the numbers of the best trial, which is known when they are asked for.
  """
  of_rule = [run for run in done if run.get("rule") == rule]
  places = {run["place"] for run in of_rule if run["kind"] == "trial"}
  for place, (rate, factor) in enumerate(candidates(rule, own.budget)):
    if place not in places:
      yield {"kind": "trial", "place": place, "rate": rate, "factor": factor}
  trials = [r for r in done if r.get("rule") == rule and r["kind"] == "trial"]
  chosen = best(trials, "kl") or trials[0]
  numbers = {"rate": chosen["rate"], "factor": chosen["factor"]}
  seeds = {run["seed"] for run in of_rule if run["kind"] == "final"}
  for seed in own.seeds:
    if seed not in seeds:
      yield {"kind": "final", "seed": seed, **numbers}
  if own.seconds and not any(run["kind"] == "seconds" for run in of_rule):
    times = [r["ms"] for r in done if r.get("rule") == rule and r.get("ms")]
    steps = own.steps
    if times:
      evaluations = 1e3 * own.seconds / min(times) / own.eval_every
      steps = max(1, round(evaluations)) * own.eval_every
    yield {"kind": "seconds", "seed": own.seeds[0], "num_steps": steps, **numbers}


def _done(own: Settings, study: Study, rule: str, run: Mapping[str, Any]) -> dict:
  """What a run has found."""
  numbers = Numbers(run["rate"], run["factor"], run.get("num_steps", own.steps))
  is_trial = run["kind"] == "trial"
  seed = TRIAL_SEED if is_trial else run["seed"]
  found = study.run(rule, numbers, seed, test=not is_trial)
  if is_trial and run["place"] == 0:
    found["compile_seconds"] = study.compile_seconds(rule)
  return found


# ---------------------------------------------------------------------- the summary


def _summarize(own: Settings, record: Path) -> dict[str, Any]:
  """Writes summary.json: of every truth and rule what `report` needs."""
  cells: dict[str, dict[str, Any]] = {}
  gaussian: dict[str, float] = {}
  for truth in own.truth:
    recorded = _recorded(record, truth)
    of_gaussian = [run["kl"] for run in recorded if run["kind"] == "gaussian"]
    if of_gaussian:
      gaussian[truth] = of_gaussian[0]
    done = [run for run in recorded if _is_wanted(own, run)]
    cells[truth] = {}
    for rule in own.rule:
      cell = _cell([run for run in done if run["rule"] == rule])
      if cell is not None:
        cells[truth][rule] = cell
  labels = {rule: RULES[rule].label for rule in own.rule}
  return summaries.write(
    own,
    {
      "dataset": "samples of known densities",
      "labels": labels,
      "oracles": [rule for rule in own.rule if rule in ORACLES],
      "numbers": {rule: RULES[rule].number for rule in own.rule},
      "ranges": {
        "learning_rate": LEARNING_RATES,
        **{r: (RULES[r].low, RULES[r].high) for r in own.rule if RULES[r].number},
      },
      "gaussian": gaussian,
      "cells": cells,
    },
  )


def _cell(runs: list[dict[str, Any]]) -> dict[str, Any] | None:
  """What the runs of one rule on one truth have found, without their details."""
  trials = [run for run in runs if run["kind"] == "trial"]
  final = [run for run in runs if run["kind"] == "final"]
  if not final:
    return None
  chosen, by_data = best(trials, "kl"), best(trials, "score_matching")
  ended = [run for run in final if "test" in run]
  timed = [run for run in runs if run["kind"] == "seconds"]
  times = [run["ms"] for run in runs if run.get("ms")]
  return {
    "rate": None if chosen is None else chosen["rate"],
    "factor": None if chosen is None else chosen["factor"],
    "kl_by_data_alone": None if by_data is None else by_data["kl"][-1],
    "diverged_trials": sum("diverged" in run for run in trials),
    "num_trials": len(trials),
    "diverged": [run["seed"] for run in final if "diverged" in run],
    "tests": [run["test"] for run in ended],
    "seconds": None
    if not timed
    else {"num_steps": timed[0]["num_steps"], "test": timed[0].get("test")},
    "ms": min(times) if times else None,
    "compile_seconds": next(
      (run["compile_seconds"] for run in trials if "compile_seconds" in run), None
    ),
    "curve": _curve(ended),
  }


def _curve(runs: list[dict[str, Any]]) -> dict[str, list[float]] | None:
  """KL at the evaluations: mean, least and largest over the seeds."""
  if not runs:
    return None
  kl = np.array([run["kl"] for run in runs])
  return {
    "steps": runs[0]["steps"],
    "mean": kl.mean(axis=0).round(4).tolist(),
    "low": kl.min(axis=0).round(4).tolist(),
    "high": kl.max(axis=0).round(4).tolist(),
  }


def markdown(summary: Mapping[str, Any]) -> str:
  """The tables of a `summary.json` in Markdown: all truths, then each of them."""
  return "\n\n".join(
    f"**{title}**\n\n{tables.markdown(header, rows)}"
    for title, header, rows in report.tables_of(summary)
  )


if __name__ == "__main__":
  settings.run(main, Settings)
