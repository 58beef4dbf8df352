"""Tables of the summary.json of experiments.mnist_rbm, in Markdown.

  python -m experiments.rbm_summary experiments/results/figure1a/summary.json

prints the table of a summary, as in the README. With a number after the path it prints
each seed's test log-likelihood at that step instead, with the word `samples` the scores
of the generators' samples, and with several paths the final test log-likelihoods side
by side.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.rbm import tables


def main(arguments: Sequence[str]) -> str:
  """The table that the arguments ask for."""
  last = arguments[-1] if arguments else ""
  special = last == "samples" or last.isdigit()
  paths = [Path(text) for text in (arguments[:-1] if special else arguments)]
  if not paths or (special and len(paths) > 1):
    sys.exit(__doc__)
  summaries = {path.parent.name: json.loads(path.read_text()) for path in paths}
  if len(summaries) > 1:
    return tables.markdown_side_by_side(summaries)
  (summary,) = summaries.values()
  if last == "samples":
    return tables.markdown_samples(summary)
  return tables.markdown_at(summary, int(last)) if special else tables.markdown(summary)


if __name__ == "__main__":
  print(main(sys.argv[1:]))
