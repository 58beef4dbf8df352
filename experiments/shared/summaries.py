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
  if own.from_summary is None:
    return False
  print(table(own.from_summary, own.command, markdown))
  return True


def table(
  path: str,
  command: str,
  markdown: Callable[[dict[str, Any]], str],
  *,
  flag: str = "--from_summary=",
) -> str:
  """The table of a summary.json; a message ends the program if it has none.

  Args:
    path: the file.
    command: the command that wrote it.
    markdown: a summary -> its table.
    flag: what stands before the path on the command line.
  """
  summary = read(path, flag=flag)
  of = _command_of(summary)
  if of not in (None, command):
    sys.exit(f"{flag}{path} is a summary of {of}, not of {command}.")
  try:
    return markdown(summary)
  except (LookupError, TypeError, AttributeError, ValueError, StopIteration) as error:
    sys.exit(
      f"{flag}{path} is not a whole summary of {command} "
      f"({type(error).__name__}: {error})."
    )


def _command_of(summary: Mapping[str, Any]) -> str | None:
  """The module that a summary's command names."""
  words = str(summary.get("command", "")).split()
  return words[2] if words[:2] == ["python", "-m"] and len(words) > 2 else None


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


def read(path: str, *, flag: str = "--from_summary=") -> dict[str, Any]:
  """Reads a summary.json; the program ends with a message if that fails."""
  try:
    summary = json.loads(Path(path).read_text())
  except OSError as error:
    sys.exit(f"{flag}{path}: {error.strerror}. Give a summary.json.")
  except (ValueError, RecursionError) as error:
    sys.exit(f"{flag}{path} is not a summary.json: {error}")
  if not isinstance(summary, dict):
    sys.exit(f"{flag}{path} is not a summary.json: it holds no settings and results.")
  return summary


def write_json(path: Path, value: Any) -> None:
  """Replaces a file by a value in JSON, as a whole or not at all."""
  write_atomically(path, json.dumps(value, indent=1) + "\n")
