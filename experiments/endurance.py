"""Kills, damages and crowds training runs, and counts how they end.

  python -m experiments.endurance

Every run is `training.fit` in a process of its own, on a small model. It is compared
with a run that nobody touched: the last state must have the same bits, and
metrics.jsonl the same rows, none lost, doubled or torn. The scenarios:

  kill       SIGKILL at a random instant, again and again, then to the end
  write      SIGKILL while a checkpoint is being written
  terminate  SIGTERM at a random instant, which must end the program with 143
  damage     the newest checkpoint emptied, cut, overwritten, without a file, or gone
  crowd      a second run in the folder of a living one, which must be refused
  full       no file may grow any more; then the disk has room again

In --workdir it writes summary.json.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from experiments.rbm import victim
from experiments.shared import settings, summaries, tables, workdirs
from experiments.shared.settings import setting

VICTIM = "from experiments.rbm import victim; victim.start()"
SCENARIOS = ("kill", "write", "terminate", "damage", "crowd", "full")


@dataclasses.dataclass(frozen=True)
class Settings(summaries.FromSummary, workdirs.Run):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.endurance"
  files: ClassVar[tuple[str, ...]] = ("runs/*",)

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/endurance")
  algorithms: tuple[str, ...] = setting(
    victim.ALGORITHMS,
    f"The algorithms to run, some of: {', '.join(victim.ALGORITHMS)}.",
    choices=victim.ALGORITHMS,
  )
  scenarios: tuple[str, ...] = setting(
    SCENARIOS, f"Some of: {', '.join(SCENARIOS)}.", choices=SCENARIOS
  )
  kills: int = setting(3, "How often each run is killed.", at_least=1)
  steps: int = setting(300, "Training steps of each run.", at_least=50)
  seed: int = setting(0, "Of the instants.", at_least=0, at_most=settings.MAX_SEED)


class Ended(Exception):
  """A run did not end as it must."""


@dataclasses.dataclass
class Runs:
  """The runs of one algorithm, in folders below `root`."""

  name: str
  root: Path
  steps: int
  times: int  # how often a scenario is applied
  random: random.Random

  def start(self, folder: Path, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Starts a run in a folder, by a command before the program's."""
    arguments = [self.name, str(folder), str(self.steps)]
    # All runs of an algorithm are the same programs: they are compiled once.
    cache = {
      "JAX_COMPILATION_CACHE_DIR": str(self.root / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
      [*prefix, sys.executable, "-c", VICTIM, *arguments],
      env=os.environ | cache,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def started(self, folder: Path) -> subprocess.Popen[str]:
    """A run that has done its first steps, or has ended."""
    process = self.start(folder)
    assert process.stdout is not None
    process.stdout.readline()
    return process

  def interrupted(self, folder: Path) -> subprocess.Popen[str] | None:
    """A run at a random instant, or None if it has ended before.

    The instant is counted in steps and not in seconds, which depend on what else the
    machine does: on average the run is interrupted `times` times before its end.
    """
    process = self.started(folder)
    assert process.stdout is not None
    start, count = time.monotonic(), 1
    lines = self.steps // victim.EVAL_EVERY
    for _ in range(round(self.random.uniform(0, 2 * lines / (self.times + 1)))):
      if not process.stdout.readline():
        process.communicate()
        return None
      count += 1
    # Somewhere within the next steps: also while a checkpoint is written.
    time.sleep(self.random.uniform(0, (time.monotonic() - start) / count))
    if process.poll() is not None:
      process.communicate()
      return None
    return process

  def finish(self, folder: Path) -> None:
    """Lets a run come to its end."""
    process = self.start(folder)
    _, said = process.communicate()
    if process.returncode != 0:
      raise Ended(f"exit code {process.returncode}: {said.strip()[-300:]}")

  def untouched(self) -> Path:
    """The folder of the run that nobody touches."""
    folder = self.root / "untouched"
    process = self.start(folder)
    _, said = process.communicate()
    if process.returncode != 0:
      raise Ended(f"the untouched run failed: {said.strip()[-300:]}")
    return folder


# Each scenario returns whether it met a run: not one that has ended.


def kill(runs: Runs, folder: Path) -> bool:
  process = runs.interrupted(folder)
  if process is None:
    return False
  process.kill()
  process.communicate()
  return True


def write(runs: Runs, folder: Path) -> bool:
  process = runs.interrupted(folder)
  if process is None:
    return False
  while process.poll() is None:
    if any((folder / "checkpoints").glob("*tmp*")):  # a checkpoint is being written
      process.kill()
      process.communicate()
      return True
    time.sleep(1e-4)
  process.communicate()
  return False


def terminate(runs: Runs, folder: Path) -> bool:
  process = runs.interrupted(folder)
  if process is None:
    return False
  process.send_signal(signal.SIGTERM)
  start = time.monotonic()
  _, said = process.communicate()
  if process.returncode not in (143, 0):
    raise Ended(f"exit code {process.returncode} after SIGTERM: {said.strip()[-300:]}")
  if time.monotonic() - start > 60:
    raise Ended("SIGTERM took more than a minute")
  return process.returncode == 143


def damage(runs: Runs, folder: Path) -> bool:
  was_killed = kill(runs, folder)
  steps = [int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]
  if not was_killed or not steps:
    return False
  newest = folder / "checkpoints" / str(max(steps))
  files = sorted(path for path in newest.rglob("*") if path.is_file())
  # Without any checkpoint there is nothing to continue from, which is an error.
  hows = ["emptied", "cut", "overwritten", "missing", "gone"]
  how = runs.random.choice(hows) if len(steps) > 1 else None
  one = runs.random.choice(files)
  if how is None:
    return False
  if how == "missing":
    one.unlink()
  elif how == "gone":
    shutil.rmtree(newest)
  else:
    size = one.stat().st_size
    with one.open("r+b") as file:
      if how == "overwritten":
        file.write(runs.random.randbytes(max(1, size)))
      else:
        file.truncate(0 if how == "emptied" else size // 2)
  return True


def crowd(runs: Runs, folder: Path) -> bool:
  first = runs.started(folder)
  first.send_signal(signal.SIGSTOP)  # it is alive, whatever the second one takes
  second = runs.start(folder)
  _, said = second.communicate()
  is_alive = first.poll() is None
  first.send_signal(signal.SIGCONT)
  if is_alive:
    first.kill()
  first.communicate()
  if is_alive and (second.returncode == 0 or "is in use by process" not in said):
    raise Ended(f"a second run was not refused: {said.strip()[-300:]}")
  return is_alive


def full(runs: Runs, folder: Path) -> bool:
  # A file may have so many blocks of 512 bytes.
  limit = ["sh", "-c", f'ulimit -f {runs.random.randrange(1, 10)}; exec "$@"', "sh"]
  process = runs.start(folder, limit)
  _, said = process.communicate()
  if process.returncode != 1:
    raise Ended(f"exit code {process.returncode} without room: {said.strip()[-300:]}")
  return True


APPLY: Mapping[str, Callable[[Runs, Path], bool]] = {
  "kill": kill,
  "write": write,
  "terminate": terminate,
  "damage": damage,
  "crowd": crowd,
  "full": full,
}


def compare(folder: Path, untouched: Path) -> None:
  """Raises Ended unless both runs have the same last state and rows."""
  if (folder / "final.npz").read_bytes() != (untouched / "final.npz").read_bytes():
    raise Ended("the last state has other bits")
  rows, wanted = rows_of(folder), rows_of(untouched)
  if rows != wanted:
    raise Ended(f"{len(rows)} rows that are not the {len(wanted)} of the untouched run")


def rows_of(folder: Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl, without their times; a torn one is an error."""
  text = (folder / "metrics.jsonl").read_text()
  try:
    rows = [json.loads(line) for line in text.splitlines()]
  except json.JSONDecodeError as error:
    raise Ended(f"a row is torn: {error}") from error
  return [{k: v for k, v in row.items() if k != "ms_per_step"} for row in rows]


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  workdirs.check(own)
  workdir = workdirs.prepare(own)
  path = workdir / "summary.json"
  before = summaries.read(str(path)).get("algorithms", {}) if path.exists() else {}
  found = {name: results for name, results in before.items() if not failures(results)}
  to_run = [name for name in own.algorithms if name not in found]
  with tqdm(
    total=len(own.algorithms) * (1 + len(own.scenarios)),
    initial=len(found) * (1 + len(own.scenarios)),
    disable=not own.progress,
  ) as bar:
    for name in to_run:
      root = workdir / "runs" / name
      seeded = random.Random(f"{own.seed} {name}")
      runs = Runs(name, root, own.steps, own.kills, seeded)
      shutil.rmtree(root, ignore_errors=True)
      bar.set_description(f"{name}, untouched")
      untouched = runs.untouched()
      bar.update()
      found[name] = {}
      for scenario in own.scenarios:
        bar.set_description(f"{name}, {scenario}")
        found[name][scenario] = tried(runs, scenario, untouched)
        bar.update()
      summaries.write(own, {"algorithms": found})  # the next run goes on from here
      shutil.rmtree(root)
  shutil.rmtree(workdir / "runs", ignore_errors=True)
  print(markdown({"algorithms": found}))
  failed = [f"{name}, {failure}" for name in found for failure in failures(found[name])]
  if failed:
    sys.exit("\n".join(failed))


def failures(results: Mapping[str, Any]) -> list[str]:
  """What went wrong with one algorithm: scenario and message."""
  return [
    f"{scenario}: {result['failure']}"
    for scenario, result in results.items()
    if result["failure"] is not None
  ]


def tried(runs: Runs, scenario: str, untouched: Path) -> dict[str, Any]:
  """Applies a scenario to a run some times, lets the run finish, and compares it."""
  folder = runs.root / scenario
  done = 0
  try:
    for _ in range(runs.times):
      done += APPLY[scenario](runs, folder)
    runs.finish(folder)
    compare(folder, untouched)
  except Ended as error:
    return {"times": done, "failure": str(error)}
  return {"times": done, "failure": None}


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json."""
  header = ["what happened", "times", "runs", "ended as the untouched run"]
  algorithms = list(summary["algorithms"].values())
  rows = []
  for scenario in algorithms[0]:
    results = [found[scenario] for found in algorithms]
    times = sum(result["times"] for result in results)
    survived = sum(result["failure"] is None for result in results)
    rows.append([scenario, str(times), str(len(results)), str(survived)])
  return tables.markdown(header, rows)


if __name__ == "__main__":
  settings.run(main, Settings)
