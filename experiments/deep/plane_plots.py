"""Pictures of densities in the plane."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

from experiments.deep.planes import Plane, truth_on_grid
from experiments.shared import plots
from stein_jax.training.files import write_atomically

_MAP = "magma"


_SHOWN = 0.8
"""The share of the grid's sides that is shown; the rim is empty."""


def _extent(task: Plane) -> tuple[float, float, float, float]:
  (left, bottom), (right, top) = task.lower, task.upper
  return float(left), float(right), float(bottom), float(top)


def _crop(axis: Any, task: Plane) -> None:
  """Limits an axis to what is shown of the grid, without ticks."""
  center, half = (task.lower + task.upper) / 2, (task.upper - task.lower) / 2
  low, high = center - _SHOWN * half, center + _SHOWN * half
  axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])


def _show(axis: Any, task: Plane, values: np.ndarray, high: float) -> Any:
  """A density as colours; `high` is the density of the brightest."""
  picture = axis.imshow(
    values,
    origin="lower",
    extent=_extent(task),
    cmap=_MAP,
    vmin=0,
    vmax=high,
    aspect="auto",
    interpolation="bilinear",
  )
  _crop(axis, task)
  return picture


def panels(
  path: Path,
  task: Plane,
  learned: Mapping[str, Mapping[str, np.ndarray]],
  *,
  title: str,
) -> None:
  """A row for each rule: truth, learned density, samples, and particles with φ.

  Args:
    path: the PNG to write.
    task: the truth and its grid.
    learned: label -> {"learned": [n, n], "samples", "particles" and "phi": [m, 2]}.
    title: the density's name.
  """
  truth = np.exp(task.as_picture(truth_on_grid(task)))
  high = float(np.quantile(truth, 0.998))
  figure, axes = plt.subplots(
    len(learned), 4, figsize=(10, 2.6 * len(learned) + 0.4), squeeze=False
  )
  for row, (label, fields) in zip(axes, learned.items()):
    _show(row[0], task, truth, high)
    row[0].set_ylabel(label, fontsize="small")
    _show(row[1], task, fields["learned"], high)
    row[2].scatter(*fields["samples"].T, s=1.5, color="black", linewidths=0)
    _show(row[3], task, fields["learned"], high)
    row[3].quiver(
      *fields["particles"].T,
      *fields["phi"].T,
      color="white",
      width=0.005,
      angles="xy",
    )
    for axis in row[2:]:
      _crop(axis, task)
  names = ("truth", "learned", "samples of the model", "particles and φ")
  for axis, name in zip(axes[0], names):
    axis.set_title(name, fontsize="medium")
  figure.suptitle(title)
  figure.tight_layout()
  plots.save(path, figure, dpi=90)


def animation(path: Path, task: Plane, frames: np.ndarray, *, title: str) -> None:
  """The learned density during training, next to the truth, as a GIF.

  Args:
    path: the GIF to write.
    task: the truth and its grid.
    frames: learned densities on a grid of the same corners, `[frames, k, k]`.
    title: the rule.
  """
  truth = np.exp(task.as_picture(truth_on_grid(task)))
  high = float(np.quantile(truth, 0.998))
  figure, (left, right) = plt.subplots(1, 2, figsize=(5.2, 2.8))
  _show(left, task, truth, high)
  left.set_title("truth", fontsize="medium")
  picture = _show(right, task, frames[0], high)
  right.set_title(title, fontsize="medium")
  figure.tight_layout()
  # The last frame stays for a second.
  order = [*range(len(frames)), *[len(frames) - 1] * 8]
  moving = FuncAnimation(
    figure, lambda i: [picture.set_data(frames[i])], frames=order, blit=False
  )
  with tempfile.TemporaryDirectory() as folder:
    whole = Path(folder) / "animation.gif"  # the writer needs the name's ending
    moving.save(whole, writer=PillowWriter(fps=8), dpi=80)
    write_atomically(path, whole.read_bytes())
  plt.close(figure)


def curves(path: Path, found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
  """KL and kernelised Stein discrepancy against steps, a column for each density.

  Args:
    path: the PNG to write.
    found: density -> label -> {"steps", "kl", "ksd_squared"}.
  """
  columns = max(len(found), 1)
  figure, axes = plt.subplots(
    2, columns, figsize=(3.2 * columns, 4.6), squeeze=False, sharex="col"
  )
  lines: dict[str, Any] = {}
  labels = list(dict.fromkeys(label for runs in found.values() for label in runs))
  for column, (density, runs) in zip(axes.T, found.items()):
    for label, run in runs.items():
      color = plt.get_cmap("tab10")(labels.index(label) % 10)
      kl = np.maximum(run["kl"], 1e-3)  # an estimate may be below 0
      (lines[label],) = column[0].semilogy(run["steps"], kl, color=color)
      column[1].plot(run["steps"], run["ksd_squared"], color=color)
    column[1].set_yscale("symlog", linthresh=0.05)  # the U-statistic may be below 0
    column[0].set_title(density, fontsize="medium")
    column[1].set_xlabel("training steps")
    for axis in column:
      axis.grid(alpha=0.3)
  axes[0, 0].set_ylabel("KL(p* ‖ p) in nats")
  axes[1, 0].set_ylabel("KSD² of test points")
  figure.legend(
    lines.values(),
    lines.keys(),
    fontsize="small",
    loc="center left",
    bbox_to_anchor=(1.0, 0.5),
  )
  figure.tight_layout()
  plots.save(path, figure)
