"""A run's folder: what marks it as the run's, and the lock of the living run."""

import contextlib
import datetime
import json
import os
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
  import fcntl
except ImportError:  # not on Windows
  fcntl = None  # type: ignore[assignment]

MARKER = "run.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


class WorkdirInUse(RuntimeError):
  """Another run that is still alive writes to the workdir."""


def checked(workdir: str | os.PathLike[str]) -> Path:
  """The folder of a run in full, created where it does not exist.

  Raises:
    ValueError: an empty name.
    OSError: it cannot be created or written to, or is a file.
  """
  if not os.fspath(workdir):
    raise ValueError("workdir is empty: name a folder, or None to write nothing.")
  folder = Path(workdir).resolve()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    # Tells now what would otherwise be known after the first steps.
    with open(folder / MARKER, "a"):
      pass
  except OSError as error:
    reason = f"workdir {folder} cannot be written to ({error.strerror})"
    raise type(error)(error.errno, f"{reason}; name another folder") from None
  return folder


class Claim(contextlib.AbstractContextManager):
  """A claimed folder. While it is held, no other process can claim the folder.

  The marker, run.json, tells that the rows and checkpoints beside it are a run's, who
  writes them, and a checksum of every file of every checkpoint. The system holds the
  lock on it for this process, and drops it when the process ends in whatever way.

  Args:
    folder: as from `checked`.

  Raises:
    WorkdirInUse: a living process holds it.
    ValueError: the folder has rows or checkpoints that no run wrote.
  """

  def __init__(self, folder: Path):
    self._file = open(folder / MARKER, "r+")  # noqa: SIM115
    text = ""
    try:
      self._lock(folder)
      text = self._file.read()
      if not text:
        _check_own(folder)
    except BaseException as error:
      self._file.close()
      if not isinstance(error, WorkdirInUse) and not text:
        (folder / MARKER).unlink()  # only `checked` made it
      raise
    self._started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    self._folder = folder
    self._saved: dict[str, dict[str, str]] = dict(
      _parsed(text).get("checkpoints") or {}
    )
    self._write()

  @property
  def newest(self) -> int | None:
    """The newest step that was saved."""
    return max(map(int, self._saved), default=None)

  def _lock(self, folder: Path) -> None:
    if fcntl is None:
      return
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      holder = _parsed(self._file.read())
      who = "another process"
      if holder:
        who = (
          f"process {holder['pid']} on {holder['host']}, which started "
          f"{holder['started']}"
        )
      raise WorkdirInUse(
        f"{folder} is in use by {who}: wait for it, or name another workdir."
      ) from None
    except OSError:
      pass  # a file system without locks

  def save(self, step: int) -> None:
    """Records the checkpoint of this step, and forgets those that are gone."""
    folder = self._folder / CHECKPOINTS
    there = {path.name for path in _steps(folder)}
    self._saved = {name: sums for name, sums in self._saved.items() if name in there}
    self._saved[str(step)] = _checksums(folder / str(step))
    self._write()

  def forget(self) -> None:
    """Records that there is no checkpoint."""
    self._saved = {}
    self._write()

  def check(self, step: int) -> None:
    """Raises ValueError if a file of this step's checkpoint is not as it was saved.

    A checkpoint that was saved just before its process was killed is not recorded, and
    passes.
    """
    saved = self._saved.get(str(step))
    if saved is None:
      return
    found = _checksums(self._folder / CHECKPOINTS / str(step))
    for name, checksum in saved.items():
      if found.get(name) != checksum:
        how = "has other content than it was saved with" if name in found else "is gone"
        raise ValueError(f"{name} {how}")

  def _write(self) -> None:
    about = {
      "written by": "stein_jax.training.fit",
      "host": socket.gethostname(),
      "pid": os.getpid(),
      "started": self._started,
      "checkpoints": self._saved,
    }
    # In place: another file of this name would not be locked.
    try:
      self._file.seek(0)
      self._file.write(json.dumps(about, indent=1) + "\n")
      self._file.truncate()
      self._file.flush()
    except OSError as error:
      reason = f"cannot write {self._folder / MARKER}: {error.strerror}"
      raise OSError(error.errno, reason) from error

  def __exit__(self, *exc_info: object) -> None:
    self._file.close()


def _parsed(text: str) -> dict[str, Any]:
  """What the marker says; nothing where its writer was killed."""
  with contextlib.suppress(json.JSONDecodeError):
    return dict(json.loads(text))
  return {}


def _check_own(folder: Path) -> None:
  """Raises ValueError for rows or checkpoints that another program wrote."""
  found = [name for name in (METRICS, CHECKPOINTS) if _has_content(folder / name)]
  if found and not _has_checkpoint(folder / CHECKPOINTS):
    raise ValueError(
      f"{folder} holds {' and '.join(found)} that no run of fit wrote; nothing is "
      "changed. Move them, or name another workdir."
    )


def _has_content(path: Path) -> bool:
  return (
    any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0
  )


def _has_checkpoint(folder: Path) -> bool:
  """Whether an earlier version of `fit`, without a marker, saved something here."""
  return any(_run_of(path) for path in _steps(folder))


def _steps(folder: Path) -> Iterator[Path]:
  if folder.is_dir():
    yield from (path for path in folder.iterdir() if path.name.isdigit())


def _run_of(checkpoint: Path) -> bool:
  with contextlib.suppress(OSError, ValueError, AttributeError):
    metadata = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())
    return "run" in (metadata.get("custom_metadata") or {})
  return False


def _checksums(folder: Path) -> dict[str, str]:
  """The size and CRC-32 of every file below the folder, by its name."""
  found = {}
  for path in sorted(folder.rglob("*")):
    if path.is_file():
      checksum = size = 0
      with path.open("rb") as file:
        while block := file.read(2**22):
          checksum, size = zlib.crc32(block, checksum), size + len(block)
      found[path.relative_to(folder).as_posix()] = f"{size} {checksum:08x}"
  return found
