"""summary.json: what a command measured, and with which settings."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from experiments.shared import settings, workdirs
from experiments.shared.settings import setting
from stein_jax.training.files import write_atomically


@dataclasses.dataclass(frozen=True)
class FromSummary(settings.Settings):
  """The setting of a command that can print the table of an earlier run."""

  from_summary: str | None = setting(
    None,
    "Print the table of this summary.json in Markdown and exit.",
    recorded=False,
  )


def printed(own: FromSummary, markdown: Callable[[dict[str, Any]], str]) -> bool:
  """Prints the table of --from_summary; returns whether there is one."""
  if own.from_summary:
    print(markdown(read(own.from_summary)))
  return bool(own.from_summary)


def write(own: workdirs.Run, results: Mapping[str, Any]) -> dict[str, Any]:
  """Writes summary.json: the command, its settings, and what was measured.

  Args:
    own: the settings, with the folder.
    results: what was measured.

  Returns: the summary.
  """
  summary = {
    "command": shlex.join(["python", "-m", own.command, *sys.argv[1:]]),
    "flags": settings.record(own),
    **results,
    "environment": environment(),
  }
  write_json(Path(own.workdir) / "summary.json", summary)
  return summary


def environment() -> dict[str, Any]:
  """The software and the device that the results were computed with."""
  return {"jax": jax.__version__, "device": jax.devices()[0].device_kind}


def read(path: str, *, flag: str = "from_summary") -> dict[str, Any]:
  """Reads a summary.json; the program ends with a message if that fails."""
  try:
    return json.loads(Path(path).read_text())
  except (OSError, ValueError) as error:
    sys.exit(f"--{flag}={path}: {error}")


def write_json(path: Path, value: Any) -> None:
  """Replaces a file by a value in JSON, as a whole or not at all."""
  write_atomically(path, json.dumps(value, indent=1) + "\n")
