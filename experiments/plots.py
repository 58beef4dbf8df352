"""The pictures that experiments leave behind."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no screen is needed

import matplotlib.pyplot as plt
import numpy as np


def likelihood_curves(
  path: Path, curves: Mapping[str, Mapping[str, Any]], *, baseline: float, title: str
) -> None:
  """Test log-likelihood against training steps, with a band of one sd over seeds.

  Args:
    path: the PNG to write.
    curves: label -> {"steps": [t], "mean": [t], "sd": [t]}; the label "exact MLE" is
      drawn in black, as the yardstick.
    baseline: the log-likelihood of N(mean, I).
    title: what was trained on what.
  """
  figure, axis = plt.subplots(figsize=(7.5, 4.5))
  finals = []
  # Curves that coincide, as SteinCD and its limit do, stay visible through the dashes.
  dashes = itertools.cycle(["-", (0, (6, 3)), (0, (2, 2)), (0, (6, 2, 1, 2))])
  for label, curve in curves.items():
    steps, mean, sd = (np.asarray(curve[key]) for key in ("steps", "mean", "sd"))
    if not len(steps):
      continue
    style = {"color": "black"} if "MLE" in label else {"linestyle": next(dashes)}
    (line,) = axis.plot(steps, mean, label=label, **style)
    axis.fill_between(
      steps, mean - sd, mean + sd, color=line.get_color(), alpha=0.2, linewidth=0
    )
    finals += [mean[-1], mean.max()]
  axis.axhline(baseline, color="grey", linestyle=":", label="N(mean, I)")
  if finals:
    # The first steps may start tens of nats lower; the differences are at the top.
    low, high = min([*finals, baseline]), max([*finals, baseline])
    low = max(low, high - 15)
    margin = 0.12 * max(high - low, 1.0)
    axis.set_ylim(low - margin, high + margin)
  axis.set(
    xlabel="training steps", ylabel="exact test log-likelihood (nats)", title=title
  )
  axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
  axis.grid(alpha=0.3)
  _save(figure, path)


def image_rows(path: Path, rows: Mapping[str, np.ndarray], *, title: str) -> None:
  """Rows of images, one row of panels for each caption.

  Args:
    path: the PNG to write.
    rows: caption -> images `[n, h, w, c]` with values to be shown from their own
      minimum to their own maximum; at most ten of each are shown.
    title: the picture's title.
  """
  columns = min(10, max(len(images) for images in rows.values()))
  figure = plt.figure(figsize=(columns, 1.35 * len(rows) + 0.4), layout="constrained")
  figure.suptitle(title, fontsize="medium")
  bands = np.atleast_1d(figure.subfigures(len(rows), 1))
  for (caption, images), band in zip(rows.items(), bands):
    band.suptitle(caption, fontsize="small", x=0.01, ha="left")
    for panel, image in zip(band.subplots(1, columns), images):
      panel.axis("off")
      span = image.max() - image.min()
      panel.imshow(
        np.squeeze((image - image.min()) / (span if span > 0 else 1)), cmap="gray"
      )
  _save(figure, path)


def _save(figure: Any, path: Path) -> None:
  figure.savefig(path, dpi=120, bbox_inches="tight")
  plt.close(figure)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A plain text table, its first column left-aligned, the others right-aligned."""
  widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

  def line(cells: Sequence[str]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:]))])

  rule = "  ".join("-" * width for width in widths)
  return "\n".join([line(header), rule, *(line(row) for row in rows)])
