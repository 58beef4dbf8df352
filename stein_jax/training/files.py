"""Writing a whole file in one step, so that no reader ever finds half of it."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
  """Writes a file: afterwards it holds all of the new content, or else all of the old.

  The content goes to a temporary file in the same folder, which then replaces the
  target. Whoever reads the target, and whatever interrupts the writer (an error, a
  signal, a power cut), sees the old content or the new one. No temporary file is left
  after an error; only a process that is killed at once can leave one.

  Args:
    path: the file, in a folder that exists. A symbolic link is followed.
    content: text, which is encoded as UTF-8, or bytes.

  Raises:
    OSError: the file cannot be written. It is as it was before.
  """
  data = content.encode() if isinstance(content, str) else content
  try:
    with open_atomically(path) as file:
      file.write(data)
  except OSError as error:
    target = Path(path).resolve()
    reason = f"cannot write {target}, which is left as it was: {error.strerror}"
    raise OSError(error.errno, reason) from error


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """As `write_atomically`, for content that is written part by part.

  The context's file takes the place of `path` at the end of the block. After an error
  in the block `path` is as it was before.

  Args:
    path: as in `write_atomically`.

  Raises:
    OSError: the file cannot be written.
  """
  target = Path(path).resolve()
  temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
  try:
    with open(temporary, "xb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, target)
  finally:
    with contextlib.suppress(OSError):  # usually it has replaced the target
      temporary.unlink()
  _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
  """Makes the new name outlive a power cut, where the system can promise that."""
  with contextlib.suppress(OSError):  # some systems cannot open or sync a folder
    handle = os.open(folder, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)
