"""Exact test log-likelihood against seconds of training, for ours and for PyTorch.

  python -m experiments.mnist_rbm --flagfile=experiments/flags/figure1a.flags
  pip install -e '.[peers]'
  python -m experiments.time_to_quality --runs=runs/figure1a/summary.json

Reads the curves and the milliseconds a step of finished runs of experiments.mnist_rbm,
and trains their RBM in PyTorch on this machine: CD by the same Langevin dynamics, data,
start, batch size and optimizer, by the package torchebm and by two loops of plain
PyTorch (experiments/torch_peer.py says which). All seconds are steps times the median
milliseconds of a step, without compilation, warm-up and evaluation, so the --runs must
come from this machine, alone on it. --peers=false leaves PyTorch out, and so does an
environment without it, which is said.

A method has reached 1 nat of exact MLE at the first evaluation at which its mean over
seeds is within 1 nat of exact MLE's last value. The steps between evaluations are the
resolution.

Reading takes seconds. 10 000 steps of PyTorch take 15 to 40 seconds for CD-1 and 1 to 3
minutes for CD-10 by each of the three ways, about 7 minutes in all. In --workdir it
leaves time_to_quality.png, summary.json and flags.txt, which is a flagfile itself.
Given again, the command starts anew.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.rbm import torch_peer
from experiments.rbm.training import Training
from experiments.shared import loading, plots, settings, summaries, tables, workdirs
from experiments.shared.settings import setting
from stein_jax import evaluation, training
from stein_jax.energies import GaussianBernoulliRBM

YARDSTICK = "exact MLE"
TARGETS = (1.0, 0.5, 0.2)  # nats below the yardstick's last value

HEADER = (
  "method",
  "ms/step",
  *(f"s to {target:g} nat{'s' * (target != 1)}" for target in TARGETS),
  "test, final",
)

_KIND_LABELS = {
  "torchebm": "torchebm",
  "autograd": "PyTorch",
  "closed_form": "PyTorch, closed form",
}

# What all curves of one plot share, and the peers are told.
_PROBLEM = {
  "dataset": str,
  "validation": float,
  "num_hidden": int,
  "weight_scale": float,
  "batch_size": int,
  "learning_rate": float,
  "adam_b1": float,
}
# ... and what the peers know only one value of.
_PEERS_KNOW = {
  "initialization": "data_mean",
  "optimizer": "adam",
  "schedule": "constant",
  "center": "False",
  "scale": "1.0",
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
  peers: bool = setting(True, "Train PyTorch's side too.")
  peer_kinds: tuple[str, ...] = setting(
    torch_peer.KINDS,
    f"PyTorch's sides, some of {', '.join(torch_peer.KINDS)}.",
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
    sys.exit("--runs must name summary.json of finished runs of experiments.mnist_rbm.")
  runs = {path: read_run(path) for path in own.runs}
  problem = problem_of(runs, peers=own.peers)
  workdirs.check(own)
  methods = ours(runs)
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
      **with_times(methods),
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
  print(tables.plain(HEADER, rows(write())))
  print(
    f"\nSeconds until within this many nats of the last value of {YARDSTICK}. "
    f"Picture and summary.json: {workdir}"
  )


def _environment(
  own: Settings, runs: Mapping[str, Mapping[str, Any]]
) -> tuple[bool, dict[str, Any]]:
  """Whether PyTorch's side is trained, and what all is computed with."""
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
    print(f"Beware: PyTorch runs on the CPU, the runs on {', '.join(elsewhere)}.")
  return True, environment


# --- ours -------------------------------------------------------------------------


def read_run(path: str) -> dict[str, Any]:
  """A summary.json of experiments.mnist_rbm; a message ends the program otherwise."""
  run = summaries.read(path, flag="runs")
  wanted = ("methods", "flags", "gaussian_baseline", "environment")
  missing = [key for key in wanted if not isinstance(run, dict) or key not in run]
  if missing:
    sys.exit(
      f"--runs={path} is no summary of experiments.mnist_rbm: it has no "
      f"{', '.join(missing)}."
    )
  if not any("curve" in method for method in run["methods"].values()):
    sys.exit(f"--runs={path} holds no curve: no method has finished there.")
  return run


def problem_of(runs: Mapping[str, Mapping[str, Any]], *, peers: bool) -> dict[str, Any]:
  """What the runs have in common: data, model and optimizer.

  Args:
    runs: path -> summary.
    peers: whether the peers are to solve it too.
  """
  (first, run), *others = runs.items()
  for path, other in others:
    differ = [
      f"--{name}: {run['flags'].get(name, default)} in {first}, "
      f"{other['flags'].get(name, default)} in {path}"
      for name, default in {**dict.fromkeys(_PROBLEM), **_PEERS_KNOW}.items()
      if run["flags"].get(name, default) != other["flags"].get(name, default)
    ]
    if differ:
      sys.exit(f"--runs differ in what they solve ({'; '.join(differ)}).")
  unknown = [
    f"--{name}={run['flags'][name]}"
    for name, only in _PEERS_KNOW.items()
    if run["flags"].get(name, only) != only
  ]
  if peers and unknown:
    sys.exit(
      f"PyTorch's side does not know {', '.join(unknown)} of {first}: --peers=false "
      "leaves it out."
    )
  missing = [name for name in _PROBLEM if name not in run["flags"]]
  if missing:
    sys.exit(f"--runs={first} does not say --{', --'.join(missing)}.")
  return {name: kind(run["flags"][name]) for name, kind in _PROBLEM.items()}


def ours(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """label -> a method's curve over seconds, from the curves over steps of all runs.

  A label that several runs hold is taken from the first.
  """
  methods: dict[str, dict[str, Any]] = {}
  for path, run in runs.items():
    for label, method in run["methods"].items():
      if "curve" not in method or method["ms_per_step"] is None:
        lacks = "curve" if "curve" not in method else "milliseconds a step"
        print(f"{label} of {path} is left out: it has no {lacks}.", file=sys.stderr)
      elif label in methods:
        used = methods[label]["from"]
        print(f"{label} is taken from {used}, not from {path}.", file=sys.stderr)
      else:
        curve = method["curve"]
        methods[label] = {
          "peer": False,
          "from": path,
          "seeds": method["seeds"],
          "ms_per_step": method["ms_per_step"],
          "curve": {key: curve[key] for key in ("steps", "mean", "sd")}
          | {"seconds": _seconds(curve["steps"], method["ms_per_step"])},
        }
  if YARDSTICK not in methods:
    sys.exit(f"--runs must hold a timed curve of {YARDSTICK}: mnist_rbm --method=mle.")
  return methods


def with_times(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """The methods, each with `seconds_to`: target -> seconds, None if never reached."""
  best = methods[YARDSTICK]["curve"]["mean"][-1]

  def seconds_to(curve: Mapping[str, Sequence[float]], target: float) -> float | None:
    reached = (s for s, v in zip(curve["seconds"], curve["mean"]) if v >= best - target)
    return next(reached, None)

  return {
    "yardstick": {"method": YARDSTICK, "final": best},
    "methods": {
      label: {
        **method,
        "seconds_to": {
          str(target): seconds_to(method["curve"], target) for target in TARGETS
        },
      }
      for label, method in methods.items()
    },
  }


def rows(summary: Mapping[str, Any]) -> list[list[str]]:
  """The rows under `HEADER`: milliseconds, seconds and nats (mean ± sd over seeds)."""
  return [
    [
      label,
      f"{method['ms_per_step']:.2f}",
      *("—" if s is None else f"{s:.2f}" for s in method["seconds_to"].values()),
      f"{method['curve']['mean'][-1]:.2f}"
      + (f" ± {method['curve']['sd'][-1]:.2f}" if len(method["seeds"]) > 1 else ""),
    ]
    for label, method in summary["methods"].items()
  ]


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a `summary.json` in Markdown."""
  return tables.markdown(HEADER, rows(summary))


def _seconds(steps: Sequence[int], ms_per_step: float) -> list[float]:
  return [step * ms_per_step / 1000 for step in steps]


# --- PyTorch ----------------------------------------------------------------------


class Split(NamedTuple):
  """The data as ours see it."""

  rbm: GaussianBernoulliRBM
  train: jax.Array  # [N, d] in [0, 1]
  test: jax.Array


def _peers(
  own: Settings, problem: Mapping[str, Any], split: Split
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
        seed: train_peer(
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
      yield label, _method_of_peer(histories)


class History(NamedTuple):
  """One seed of a peer."""

  steps: list[int]
  log_likelihood: list[float]  # exact, of the test set, at those steps
  ms: list[float]  # a step, in each block between them


def train_peer(
  label: str,
  kind: str,
  seed: int,
  settings: torch_peer.Settings,
  split: Split,
  *,
  num_steps: int,
  eval_every: int,
  progress: bool,
) -> History:
  """Trains a peer from the parameters at which ours begin with this seed.

  Only the steps are timed; before each block the parameters are judged exactly by our
  own `log_likelihood`.
  """
  init_key, _ = jax.random.split(jax.random.key(seed))
  params = split.rbm.init_from_data(init_key, split.train)["params"]
  start = {name: np.array(value) for name, value in params.items()}
  peer = torch_peer.Peer(kind, start, np.asarray(split.train), settings, seed)
  history = History([], [], [])
  with tqdm(
    total=num_steps, desc=f"{label}, seed {seed}", disable=not progress
  ) as progress_bar:
    step = 0
    while True:
      now = {"params": jax.tree.map(jnp.asarray, peer.params())}
      value = evaluation.mean_log_likelihood(now, split.rbm.log_likelihood, split.test)
      history.steps.append(step)
      history.log_likelihood.append(float(value.mean))
      if not np.isfinite(history.log_likelihood[-1]):
        sys.exit(f"{label}, seed {seed}, diverged before step {step}.")
      progress_bar.set_postfix(test=f"{history.log_likelihood[-1]:.2f}", refresh=False)
      if step == num_steps:
        return history
      length = min(eval_every, num_steps - step)
      begin = time.perf_counter()
      peer.train(length)
      history.ms.append((time.perf_counter() - begin) / length * 1000)
      step += length
      progress_bar.update(length)


def _method_of_peer(histories: Mapping[int, History]) -> dict[str, Any]:
  # The first block of a seed is its warm-up, unless it is the only one.
  ms = [ms for h in histories.values() for ms in (h.ms[1:] or h.ms)]
  ms_per_step = float(np.median(ms))
  values = np.array([h.log_likelihood for h in histories.values()])
  sd = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
  steps = next(iter(histories.values())).steps
  return {
    "peer": True,
    "seeds": list(histories),
    "ms_per_step": ms_per_step,
    "curve": {
      "steps": steps,
      "mean": values.mean(axis=0).tolist(),
      "sd": sd.tolist(),
      "seconds": _seconds(steps, ms_per_step),
    },
  }


def _load(problem: Mapping[str, Any], own: Settings) -> Split:
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
  return Split(rbm, train, test)


def _cores() -> int:
  """The CPU cores that this process may use."""
  available = getattr(os, "sched_getaffinity", None)  # not on macOS
  return len(available(0)) if available else os.cpu_count() or 1


if __name__ == "__main__":
  settings.run(main, Settings)
