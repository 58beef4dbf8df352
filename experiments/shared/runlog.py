"""A record of finished runs, one JSON object a line: a stopped command continues it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stein_jax.training.files import write_atomically


def read(path: Path) -> list[dict[str, Any]]:
  """The recorded runs; none without a file.

  An incomplete last line, of a command that was killed, is removed from the file.
  """
  if not path.exists():
    return []
  *whole, cut_off = path.read_text().split("\n")
  if cut_off:
    write_atomically(path, "".join(f"{line}\n" for line in whole))
  try:
    return [json.loads(line) for line in whole]
  except ValueError as error:
    sys.exit(f"{path} is damaged ({error}); delete its lines that are not JSON.")


def append(path: Path, run: Mapping[str, Any]) -> None:
  """Adds a run at the end."""
  with path.open("a") as file:
    file.write(json.dumps(run) + "\n")
