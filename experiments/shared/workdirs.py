"""The folder of a run's results: it belongs to one run, whose settings it records."""

import dataclasses
import fnmatch
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax

from experiments.shared import folders, settings
from experiments.shared.settings import setting
from stein_jax import parallel
from stein_jax.training.files import write_atomically

RECORD = "flags.txt"


@dataclasses.dataclass(frozen=True)
class Run(settings.Settings):
  """The settings of a command that leaves results in a folder."""

  files: ClassVar[tuple[str, ...]] = ()
  """Patterns of the files that the command writes, apart from flags.txt and
  summary.json; "*" stands for any text, also for several folders."""

  workdir: str = setting("runs", "Where results go.", may_differ=True)
  overwrite: bool = setting(
    False,
    "Delete what an earlier run left in --workdir and start again.",
    recorded=False,
  )
  progress: bool = setting(True, "Show progress bars.", may_differ=True)

  def __post_init__(self) -> None:
    super().__post_init__()
    object.__setattr__(self, "workdir", folders.resolved(self.workdir))


def check_usable(folder: Path, flag: str = "workdir") -> None:
  """Ends the program if the folder cannot be made or written to.

  Args:
    folder: it need not exist; nothing is changed.
    flag: the flag that names it.
  """
  try:
    folders.require_usable(folder)
  except OSError as error:
    settings.wrong_usage(
      f"--{flag}={folder}: nothing can be written there ({error.strerror}). Choose "
      f"another --{flag}."
    )


@dataclasses.dataclass(frozen=True)
class Trains(Run):
  """The settings of a command that trains."""

  on_nonfinite: str = setting(
    "stop",
    "When a number is not finite: stop, or rollback (to the last good checkpoint, with "
    "other random numbers and half the learning rate, up to three times).",
    choices=("stop", "rollback"),
    may_differ=True,
  )


def check(own: Run, *, fixed: Sequence[str] = ()) -> None:
  """Ends the program if --workdir is not usable, or holds something else than this run.

  It changes nothing, and can be called before data is loaded.

  Args:
    own: this run's settings.
    fixed: settings that must not have changed since the folder's run, although their
      rules let them grow.
  """
  workdir = Path(own.workdir)
  record = workdir / RECORD
  check_usable(workdir)
  if not workdir.exists() or not any(workdir.iterdir()):
    return
  if not record.exists():
    settings.wrong_usage(
      f"{workdir} is not empty and holds no earlier run of this program. "
      "Choose another --workdir."
    )
  _check_whole(record)
  if own.overwrite:
    # Asked alone, is_first_process would start JAX, whose options may not be set yet.
    if not jax.distributed.is_initialized() or parallel.is_first_process():
      _check_deletable(own, workdir)
    return
  command, before = _read(record)
  if command not in (None, own.command):
    settings.wrong_usage(
      f"{workdir} holds a run of {command}, not of {own.command}. Choose another "
      "--workdir."
    )
  changed = settings.differences(own, before, fixed=fixed)
  if changed:
    settings.wrong_usage(
      f"{workdir} holds a run with other settings ({'; '.join(changed)}). "
      "Choose another --workdir, or --overwrite it."
    )


def prepare(own: Run) -> Path:
  """Creates --workdir, deletes an earlier run if asked to, and writes flags.txt.

  With several processes the first one does it, and the others wait.

  Returns: the folder.
  """
  workdir = Path(own.workdir)
  first = parallel.is_first_process()
  if first:
    _prepare(own, workdir.resolve())  # a link stays; the folder it names is emptied
  parallel.wait_for_all("workdir")
  record = workdir / RECORD
  same = first or (record.exists() and _read(record)[1] == settings.record(own))
  if not same:
    sys.exit(
      f"--workdir={workdir} does not hold the {record.name} that the first process "
      "wrote, or holds one with other flags: start all processes with the same flags "
      "and with a folder that all of them can access."
    )
  return workdir


def _prepare(own: Run, workdir: Path) -> None:
  if own.overwrite and (workdir / RECORD).exists():
    _check_deletable(own, workdir)
    # The record goes last: until then the folder is known as this command's.
    for path in sorted(workdir.iterdir(), key=lambda path: path.name == RECORD):
      if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
      else:
        path.unlink()
  workdir.mkdir(parents=True, exist_ok=True)
  lines = [f"--{name}={value}" for name, value in settings.record(own).items()]
  lines = [f"# python -m {own.command}", *lines]
  write_atomically(workdir / RECORD, "\n".join(lines) + "\n")


def _check_deletable(own: Run, workdir: Path) -> None:
  """Ends the program if the folder holds something else than a run of this command."""
  record = workdir / RECORD
  if not _is_own(own, record):
    settings.wrong_usage(
      f"{record} is not a record of this program ({own.command}); nothing is deleted. "
      "Choose another --workdir."
    )
  foreign = _foreign_files(own, workdir)
  if foreign:
    named = ", ".join(foreign[:3])
    more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
    settings.wrong_usage(
      f"{workdir} holds files that {own.command} did not write ({named}{more}); "
      "nothing is deleted. Move them, or choose another --workdir."
    )


def _is_own(own: Run, record: Path) -> bool:
  """Whether this command wrote the record.

  Records of earlier versions do not name the command. They must hold all settings that
  have a value by default, and no settings of another command.
  """
  command, values = _read(record)
  if command is not None:
    return command == own.command
  wanted = settings.record(type(own)()).keys()
  return bool(wanted) and wanted <= values.keys() <= set(settings.names(type(own)))


def _foreign_files(own: Run, workdir: Path) -> list[str]:
  """The files under the folder that this command does not write."""
  patterns = (RECORD, "summary.json", *own.files)
  found = (
    path.relative_to(workdir).as_posix()
    for path in sorted(workdir.rglob("*"))
    if path.is_symlink() or not path.is_dir()
  )
  return [name for name in found if not any(_matches(name, p) for p in patterns)]


def _matches(name: str, pattern: str) -> bool:
  """As `fnmatch`; a pattern without a slash is of files at the top.

  The temporary file of a writer that was killed, `.<name>.<...>.tmp`, counts as the
  file.
  """
  folder, _, last = name.rpartition("/")
  if last.startswith(".") and last.endswith(".tmp"):
    last = last[1:].rsplit(".", 2)[0]
    name = f"{folder}/{last}" if folder else last
  nested = "/" in name and "/" not in pattern
  return fnmatch.fnmatchcase(name, pattern) and not nested


def _check_whole(record: Path) -> None:
  """Ends the program if the record is empty, or its last line is cut short."""
  if not record.read_text(errors="replace").endswith("\n"):
    sys.exit(
      f"{record} is damaged: it is empty, or its last line is cut short. Write the "
      "missing flags, or choose another --workdir."
    )


def _read(record: Path) -> tuple[str | None, dict[str, str]]:
  """The command that a record names, and its flags.

  Other comments, and flags without a value, are skipped.
  """
  lines = record.read_text(errors="replace").splitlines()
  commands = [line for line in lines if line.startswith("# python -m ")]
  flag_lines = [line for line in lines if line.startswith("--") and "=" in line]
  flags = dict(line.removeprefix("--").split("=", 1) for line in flag_lines)
  return (commands[0].split()[-1] if commands else None), flags
