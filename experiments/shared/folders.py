"""Whether a folder can be written to, known before there is anything to write."""

import errno
import os
import stat
import tempfile
from pathlib import Path

_LONGEST_NAME = 255  # bytes, on nearly all file systems


def resolved(path: str) -> str:
  """A path without "..": below a folder that does not exist yet it leads nowhere."""
  return str(Path(path).resolve()) if ".." in Path(path).parts else path


def require_usable(folder: Path) -> None:
  """Raises OSError where a folder cannot be made or written to; it changes nothing."""
  folder = folder.absolute()
  if any(len(os.fsencode(name)) > _LONGEST_NAME for name in folder.parts):
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
  with tempfile.TemporaryFile(dir=_existing(folder)):
    pass


def _existing(folder: Path) -> Path:
  """The folder, or the nearest one above it that exists."""
  try:
    mode = folder.stat().st_mode
  except FileNotFoundError:
    return _existing(folder.parent)
  if not stat.S_ISDIR(mode):
    raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file")
  return folder
