"""Writing a whole file in one step, so that no reader ever finds half of it."""

import contextlib
import os
import uuid
from pathlib import Path


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
  target = Path(path).resolve()
  temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
  data = content.encode() if isinstance(content, str) else content
  try:
    with open(temporary, "xb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, target)
  except OSError as error:
    reason = f"cannot write {target}, which is left as it was: {error.strerror}"
    raise OSError(error.errno, reason) from error
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
