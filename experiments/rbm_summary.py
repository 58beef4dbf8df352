"""Tables of the summary.json of experiments.mnist_rbm, in Markdown.

  python -m experiments.rbm_summary experiments/results/figure1a/summary.json

prints the table of a summary, as in the README. With a number after the path it prints
each seed's test log-likelihood at that step instead, with the word `samples` the scores
of the generators' samples, and with several paths the final test log-likelihoods side
by side.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.rbm import tables
from experiments.shared import settings, summaries

_OF = "experiments.mnist_rbm"


def main(arguments: Sequence[str]) -> str:
  """The table that the arguments ask for."""
  last = arguments[-1] if arguments else ""
  special = last == "samples" or last.isdecimal()
  paths = arguments[:-1] if special else arguments
  if not paths or (special and len(paths) > 1) or last.startswith("--"):
    settings.wrong_usage(__doc__)
  if len(paths) == 1:
    markdown: Callable[[dict[str, Any]], str] = tables.markdown
    if last == "samples":
      markdown = tables.markdown_samples
    elif special:
      markdown = functools.partial(_markdown_at, step=int(last))
    return summaries.table(paths[0], _OF, markdown, flag="")
  for path in paths:  # each is a whole summary
    summaries.table(path, _OF, tables.markdown, flag="")
  short = [Path(path).parent.name for path in paths]
  names = short if len(set(short)) == len(short) else paths
  return tables.markdown_side_by_side(dict(zip(names, map(_read, paths))))


def _read(path: str) -> dict[str, Any]:
  return summaries.read(path, flag="")


def _markdown_at(summary: dict[str, Any], step: int) -> str:
  tables.markdown(summary)  # it is a whole summary
  try:
    return tables.markdown_at(summary, step)
  except ValueError as error:  # this step was not evaluated
    settings.wrong_usage(str(error))


if __name__ == "__main__":
  print(main(sys.argv[1:]))
