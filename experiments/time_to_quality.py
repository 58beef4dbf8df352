"""Exact test log-likelihood against seconds of training, in JAX and in PyTorch.

  python -m experiments.mnist_rbm --flagfile=experiments/flags/figure1a.flags
  pip install -e '.[peers]'
  python -m experiments.time_to_quality --runs=runs/figure1a/summary.json

It reads the curves and the ms/step of finished runs of
experiments.mnist_rbm, and trains their RBM in PyTorch on this machine: CD with the same
Langevin dynamics, data, start, batch size and optimizer, by the package torchebm and by
two loops of plain PyTorch (see experiments/rbm/torch_peer.py). All seconds are steps
times the median ms/step, without compilation, warm-up and evaluation.
The --runs must therefore come from this machine, with nothing else running on it.
PyTorch is left out with --peers=false, and where it is not installed.

A method has reached 1 nat of exact MLE at the first evaluation at which its mean over
seeds is within 1 nat of exact MLE's last value. The steps between evaluations are the
resolution.

Reading takes seconds. 10 000 steps of PyTorch take 15 to 40 seconds for CD-1 and 1 to 3
minutes for CD-10 by each of the three ways, about 7 minutes in all. In --workdir it
leaves time_to_quality.png, summary.json and flags.txt, which is a flagfile itself.
The command does not continue an earlier run: it always starts from the beginning.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from experiments.rbm import timed_curves, torch_peer, torch_training
from experiments.rbm.training import Training
from experiments.shared import loading, plots, settings, summaries, tables, workdirs
from experiments.shared.settings import setting
from stein_jax import training
from stein_jax.energies import GaussianBernoulliRBM

_KIND_LABELS = {
  "torchebm": "torchebm",
  "autograd": "PyTorch",
  "closed_form": "PyTorch, closed form",
}


@dataclasses.dataclass(frozen=True)
class Settings(summaries.FromSummary, loading.Folders, workdirs.Run):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.time_to_quality"
  files: ClassVar[tuple[str, ...]] = ("time_to_quality.png",)

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/time_to_quality")
  runs: tuple[str, ...] = setting(
    (), "summary.json of finished runs of experiments.mnist_rbm."
  )
  peers: bool = setting(True, "Train in PyTorch, too.")
  peer_kinds: tuple[str, ...] = setting(
    torch_peer.KINDS,
    f"The kinds of training in PyTorch, some of {', '.join(torch_peer.KINDS)}.",
    choices=torch_peer.KINDS,
  )
  peer_k: tuple[int, ...] = setting(
    (1, 10), "k of PyTorch's CD-k; a curve for each.", at_least=1
  )
  peer_steps: int = setting(10_000, "PyTorch's steps.", at_least=1)
  langevin_step_size: float = setting(
    0.5, "ε of PyTorch's Langevin steps, the runs' default.", above=0
  )
  seeds: tuple[int, ...] = settings.like(
    Training, "seeds", help="PyTorch's seeds.", may_grow=False
  )
  eval_every: int = settings.like(
    Training, "eval_every", help="Steps between PyTorch's exact evaluations."
  )
  torch_threads: int | None = setting(
    None, "CPU threads of PyTorch; by default all.", at_least=1
  )


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  if not own.runs:
    settings.wrong_usage(
      "--runs must name summary.json of finished runs of experiments.mnist_rbm."
    )
  runs = {path: timed_curves.read_run(path) for path in own.runs}
  problem = timed_curves.problem_of(runs, peers=own.peers)
  workdirs.check(own)
  methods = timed_curves.ours(runs)
  peers, environment = _environment(own, runs)
  split = _load(problem, own) if peers else None
  workdir = workdirs.prepare(own)
  threads = f", PyTorch's threads: {environment['torch_threads']}" if peers else ""

  def write() -> dict[str, Any]:
    summary = {
      "command": f"python -m {own.command} --flagfile={workdir / 'flags.txt'}",
      "flags": settings.record(own),
      "problem": problem,
      "runs": {
        path: {key: run.get(key) for key in ("command", "environment")}
        for path, run in runs.items()
      },
      **timed_curves.with_times(methods),
      "environment": environment,
    }
    summaries.write_json(workdir / "summary.json", summary)
    plots.likelihood_by_seconds(
      workdir / "time_to_quality.png",
      {
        label: method["curve"] | {"peer": method["peer"]}
        for label, method in methods.items()
      },
      baseline=next(iter(runs.values()))["gaussian_baseline"]["mean"],
      title=f"RBM with {problem['num_hidden']} hidden units on "
      f"{problem['dataset']}{threads}",
    )
    return summary

  for label, method in _peers(own, problem, split) if split else ():
    methods[label] = method
    write()
  print(tables.plain(timed_curves.HEADER, timed_curves.rows(write())))
  print(
    f"\nSeconds until within this many nats of {timed_curves.REFERENCE}'s last value. "
    f"Picture and summary.json: {workdir}"
  )


def _environment(
  own: Settings, runs: Mapping[str, Mapping[str, Any]]
) -> tuple[bool, dict[str, Any]]:
  """Whether PyTorch trains, and the software and hardware of all results."""
  environment = summaries.environment() | {"cores": _cores()}
  if not own.peers:
    print("PyTorch is left out: --peers=false.")
    return False, environment
  try:
    environment |= torch_peer.versions()
  except ImportError as error:
    print(f"PyTorch is left out. {error}")
    return False, environment
  environment["torch_threads"] = own.torch_threads or _cores()
  torch_peer.set_threads(environment["torch_threads"])
  elsewhere = {str(run["environment"]["device"]) for run in runs.values()} - {"cpu"}
  if elsewhere:
    print(f"Warning: PyTorch runs on the CPU, the runs on {', '.join(elsewhere)}.")
  return True, environment


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a `summary.json` in Markdown."""
  return tables.markdown(timed_curves.HEADER, timed_curves.rows(summary))


def _peers(
  own: Settings, problem: Mapping[str, Any], split: torch_training.Split
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Trains all peers: the label and the curve of each."""
  for k in own.peer_k:
    told = torch_peer.Settings(
      langevin_steps=k,
      langevin_step_size=own.langevin_step_size,
      batch_size=problem["batch_size"],
      learning_rate=problem["learning_rate"],
      adam_b1=problem["adam_b1"],
    )
    for kind in own.peer_kinds:
      label = f"CD-{k}, {_KIND_LABELS[kind]}"
      histories = {
        seed: torch_training.train_peer(
          label,
          kind,
          seed,
          told,
          split,
          num_steps=own.peer_steps,
          eval_every=own.eval_every,
          progress=own.progress,
        )
        for seed in own.seeds
      }
      yield label, torch_training.method_of(histories)


def _load(problem: Mapping[str, Any], own: Settings) -> torch_training.Split:
  """The data set of the runs."""
  dataset = loading.load_named(
    problem["dataset"], own, validation_fraction=problem["validation"]
  )
  print(f"Data: {dataset.source}", file=sys.stderr)
  train, test = (
    training.unit_interval(jnp.asarray(images.reshape(len(images), -1)))
    for images in (dataset.train, dataset.test)
  )
  rbm = GaussianBernoulliRBM(
    problem["num_hidden"], weight_scale=problem["weight_scale"]
  )
  return torch_training.Split(rbm, train, test)


def _cores() -> int:
  """The CPU cores that this process may use."""
  available = getattr(os, "sched_getaffinity", None)  # not on macOS
  return len(available(0)) if available else os.cpu_count() or 1


if __name__ == "__main__":
  settings.run(main, Settings)
