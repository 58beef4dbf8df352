"""Where a run leaves its results: one folder, one setting, recorded as a flagfile."""

import shutil
import sys
from collections.abc import Set
from pathlib import Path
from typing import Any

from absl import flags

from stein_jax import parallel


def own_flags(known: str, *, leave_out: Set[str] = frozenset()) -> dict[str, str]:
  """The flags of the module that defines `known`, as text for a flagfile."""
  by_module = flags.FLAGS.flags_by_module_dict()
  module = next(name for name, own in by_module.items() if flags.FLAGS[known] in own)
  return {
    flag.name: _text(flag.value)
    for flag in by_module[module]
    if flag.value is not None and flag.name not in leave_out
  }


def check(
  workdir: Path,
  values: dict[str, str],
  *,
  may_differ: Set[str] = frozenset(),
  may_grow: Set[str] = frozenset(),
  overwrite: bool,
) -> None:
  """Ends the program if `workdir` holds something that this run would mix with.

  Args:
    workdir: the folder, which need not exist.
    values: this run's flags.
    may_differ: flags that may have changed since the run that the folder holds.
    may_grow: lists that may have more entries, and numbers that may be larger, than in
      that run: it goes on, and loses nothing.
    overwrite: whether an earlier run is to be deleted.
  """
  record = workdir / "flags.txt"
  if workdir.exists() and not workdir.is_dir():
    sys.exit(f"--workdir={workdir} is a file; name a folder.")
  if record.exists() and not overwrite:
    # A flag that is newer than the record had its default then.
    before = _defaults(values.keys()) | _read(record)
    changed = [
      f"--{name}: {before.get(name)} before, {values.get(name)} now"
      for name in sorted((values.keys() | before.keys()) - may_differ)
      if before.get(name) != values.get(name)
      and not (name in may_grow and _grown(name, before.get(name), values.get(name)))
    ]
    if changed:
      sys.exit(
        f"{workdir} holds a run with other settings ({'; '.join(changed)}). "
        "Choose another --workdir, or --overwrite it."
      )
  elif not record.exists() and workdir.exists() and any(workdir.iterdir()):
    sys.exit(
      f"{workdir} is not empty and holds no earlier run of this program. "
      "Choose another --workdir."
    )


def prepare(workdir: Path, values: dict[str, str], *, overwrite: bool) -> None:
  """Makes the folder, anew if it is to be overwritten, and writes flags.txt.

  Of several processes the first does, and the others wait for it.
  """
  first = parallel.is_first_process()
  if first:
    _prepare(workdir, values, overwrite=overwrite)
  parallel.wait_for_all("workdir")
  record = workdir / "flags.txt"
  if not first and not (record.exists() and _read(record) == values):
    sys.exit(
      f"--workdir={workdir} does not hold the first process's {record.name}, or other "
      "flags: all processes need the same ones, and a folder that all of them see."
    )


def _prepare(workdir: Path, values: dict[str, str], *, overwrite: bool) -> None:
  workdir = workdir.resolve()  # a link stays, what it points to is emptied
  record = workdir / "flags.txt"
  if overwrite and record.exists():
    if not values.keys() & _read(record).keys():
      sys.exit(f"{record} is not a record of this program; nothing is deleted.")
    shutil.rmtree(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  lines = [f"--{name}={value}" for name, value in values.items()]
  record.write_text("\n".join(lines) + "\n")


def _defaults(names: Set[str]) -> dict[str, str]:
  found = {name: flags.FLAGS[name] for name in names if name in flags.FLAGS}
  return {
    name: _text(flag.default)
    for name, flag in found.items()
    if flag.default is not None
  }


def _text(value: Any) -> str:
  return ",".join(value) if isinstance(value, list) else str(value)


def _read(record: Path) -> dict[str, str]:
  """The flags of a flagfile; comments and switches without a value are passed over."""
  lines = record.read_text().splitlines()
  flag_lines = [line for line in lines if line.startswith("--") and "=" in line]
  return dict(line.removeprefix("--").split("=", 1) for line in flag_lines)


def _grown(name: str, before: str | None, now: str | None) -> bool:
  if before is None or now is None:
    return False
  if name in flags.FLAGS and isinstance(flags.FLAGS[name].value, list):
    return set(before.split(",")) <= set(now.split(","))
  return before.isdigit() and now.isdigit() and int(now) >= int(before)
