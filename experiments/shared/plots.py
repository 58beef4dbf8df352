"""The figures that the commands save."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib

matplotlib.use("Agg")  # writes files, needs no screen

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter

from stein_jax.training.files import open_atomically

_T = TypeVar("_T")


def likelihood_curves(
  path: Path, curves: Mapping[str, Mapping[str, Any]], *, baseline: float, title: str
) -> None:
  """Test log-likelihood against training steps, with a band of one sd over seeds.

  Args:
    path: the PNG to write.
    curves: label -> {"steps": [t], "mean": [t], "sd": [t]}; the label "exact MLE" is
      drawn in black, as the reference.
    baseline: the log-likelihood of N(mean, I).
    title: what was trained on what.
  """
  figure, axis = plt.subplots(figsize=(7.5, 4.5))
  colors = plt.get_cmap("tab20").colors  # a strong and a pale shade of each hue
  axis.set_prop_cycle(color=colors[::2] + colors[1::2])
  finals = {}
  # Dashes keep curves visible that coincide, as those of SteinCD and its limit.
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
    finals[line] = (mean[-1], mean.max())
  axis.axhline(baseline, color="grey", linestyle=":", label="N(mean, I)")
  if finals:
    # Curves may start tens of nats lower; the differences of interest are at the top.
    nats = [baseline, *itertools.chain(*finals.values())]
    low, high = max(min(nats), max(nats) - 15), max(nats)
    margin = 0.12 * max(high - low, 1.0)
    axis.set_ylim(low - margin, high + margin)
    for line, (last, _) in finals.items():
      if last < low - margin:
        line.set_label(f"{line.get_label()} (ends at {last:.0f})")
  axis.set(
    xlabel="training steps", ylabel="exact test log-likelihood (nats)", title=title
  )
  axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
  axis.grid(alpha=0.3)
  save(path, figure)


def image_rows(
  path: Path,
  rows: Mapping[str, np.ndarray],
  *,
  title: str,
  limits: tuple[float, float] | None = None,
) -> None:
  """Rows of images, one row of panels for each caption.

  Args:
    path: the PNG to write.
    rows: caption -> images `[n, h, w, c]`; at most ten of each are shown.
    title: the picture's title.
    limits: the values of black and white; by default the minimum and maximum of each
      image.
  """
  columns = min(10, max(len(images) for images in rows.values()))
  figure = plt.figure(figsize=(columns, 1.35 * len(rows) + 0.4), layout="constrained")
  figure.suptitle(title, fontsize="medium")
  bands = np.atleast_1d(figure.subfigures(len(rows), 1))
  for (caption, images), band in zip(rows.items(), bands):
    band.suptitle(caption, fontsize="small", x=0.01, ha="left")
    for panel, image in zip(band.subplots(1, columns), images):
      panel.axis("off")
      low, high = limits or (image.min(), image.max())
      span = high - low if high > low else 1
      panel.imshow(np.squeeze((image - low) / span), cmap="gray", vmin=0, vmax=1)
  save(path, figure)


def image_grids(path: Path, grids: Mapping[str, np.ndarray], *, title: str) -> None:
  """Square grids of images side by side, up to four in a row.

  Args:
    path: the PNG to write.
    grids: caption -> images `[n, h, w, c]` in [0, 1]; the largest square is shown.
    title: the picture's title.
  """
  columns = min(4, len(grids))
  rows = -(-len(grids) // columns)
  figure, axes = plt.subplots(
    rows,
    columns,
    figsize=(3.8 * columns, 4.3 * rows + 0.3),
    squeeze=False,
    layout="constrained",
  )
  for axis in axes.flat:
    axis.axis("off")
  for axis, (caption, images) in zip(axes.flat, grids.items()):
    side = int(len(images) ** 0.5)
    h, w, c = images.shape[1:]
    grid = images[: side * side].reshape(side, side, h, w, c).swapaxes(1, 2)
    grid = grid.reshape(side * h, side * w, c)
    axis.imshow(np.squeeze(grid), cmap="gray", vmin=0, vmax=1)
    axis.set_title(caption, fontsize="small")
  figure.suptitle(title, fontsize="medium")
  save(path, figure)


def image_strips(path: Path, strips: np.ndarray, *, title: str) -> None:
  """Strips of images, one above the other, without gaps.

  Args:
    path: the PNG to write.
    strips: `[rows, columns, h, w, c]` in [0, 1].
    title: the picture's title.
  """
  rows, columns, h, w, c = strips.shape
  figure, axis = plt.subplots(figsize=(columns, rows + 0.4), layout="constrained")
  grid = strips.swapaxes(1, 2).reshape(rows * h, columns * w, c)
  axis.imshow(np.squeeze(grid), cmap="gray", vmin=0, vmax=1)
  axis.axis("off")
  axis.set_title(title, fontsize="medium")
  save(path, figure)


def mix_trade_off(
  path: Path,
  alphas: Sequence[float],
  *,
  inception_scores: Sequence[Sequence[float]],
  log_likelihoods: Sequence[Sequence[float]],
  title: str,
) -> None:
  """Figure 1(b): inception score and test log-likelihood against α, an axis each.

  Args:
    path: the PNG to write.
    alphas: α [t], ascending.
    inception_scores: of every seed, [t][seeds].
    log_likelihoods: of every seed, in nats, [t][seeds].
    title: what was trained on what.
  """
  figure, left = plt.subplots(figsize=(7, 4.2))
  right = left.twinx()
  for axis, values, color, label in (
    (left, inception_scores, "tab:blue", "inception score"),
    (right, log_likelihoods, "tab:red", "exact test log-likelihood (nats)"),
  ):
    means = [np.mean(v) for v in values]
    axis.plot(alphas, means, marker="o", color=color)
    for alpha, of_seeds in zip(alphas, values):
      axis.plot([alpha] * len(of_seeds), of_seeds, ".", color=color, alpha=0.5)
    axis.set_ylabel(label, color=color)
    axis.tick_params(axis="y", colors=color)
  left.set_ylim(bottom=1)
  left.set(xlabel="α, the share of SteinCD's updates", title=title)
  left.grid(alpha=0.3)
  save(path, figure)


def epsilon_errors(
  path: Path,
  epsilons: Sequence[float],
  panels: Mapping[str, Mapping[str, Sequence[float]]],
  *,
  title: str,
) -> None:
  """Relative error against ε, both axes logarithmic.

  Args:
    path: the PNG to write.
    epsilons: the step sizes [t].
    panels: caption -> label -> relative errors [t].
    title: the picture's title.
  """
  figure, axes = plt.subplots(
    1, len(panels), figsize=(4.5 * len(panels), 4), sharey=True, squeeze=False
  )
  order = np.argsort(epsilons)
  for axis, (caption, curves) in zip(axes[0], panels.items()):
    for label, errors in curves.items():
      # An error of 0 cannot be shown on a logarithmic axis.
      errors = np.maximum(np.asarray(errors)[order], 1e-17)
      axis.loglog(np.asarray(epsilons)[order], errors, marker=".", label=label)
    axis.set(xlabel="ε (squared pixels)", title=caption)
    axis.grid(alpha=0.3)
  axes[0, 0].set_ylabel("relative error of the gradient")
  axes[0, -1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
  figure.suptitle(title)
  save(path, figure)


def power_curves(
  path: Path,
  sigmas: Sequence[float],
  curves: Mapping[str, Sequence[float]],
  *,
  level: float,
  title: str,
) -> None:
  """The power of tests against the size of a perturbation.

  Args:
    path: the PNG to write.
    sigmas: the sizes [t].
    curves: name of a test -> fraction of rejections [t].
    level: that of the tests.
    title: the picture's title.
  """
  figure, axis = plt.subplots(figsize=(6, 4))
  order = np.argsort(sigmas)
  for label, powers in curves.items():
    x, y = np.asarray(sigmas)[order], np.asarray(powers)[order]
    axis.plot(x, y, marker=".", label=label)
  axis.axhline(level, color="grey", linestyle=":", label="level")
  axis.set(xlabel="σ of the perturbation of B", ylabel="power", title=title)
  axis.set_ylim(-0.03, 1.03)
  axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
  axis.grid(alpha=0.3)
  save(path, figure)


def gradient_cosines(
  path: Path,
  steps: Sequence[int],
  panels: Mapping[str, Mapping[str, Sequence[float]]],
  *,
  title: str,
) -> None:
  """Cosine to the exact gradient against the training step, a line for each method.

  Args:
    path: the PNG to write.
    steps: the training steps [t].
    panels: caption -> label -> cosines [t].
    title: the picture's title.
  """
  figure, axes = plt.subplots(
    1, len(panels), figsize=(3.6 * len(panels), 4), sharey=True, squeeze=False
  )
  for axis, (caption, curves) in zip(axes[0], panels.items()):
    # There are more methods than colours: the line style tells those of a colour apart.
    dashes = itertools.cycle(["-", (0, (6, 3)), (0, (2, 2)), (0, (6, 2, 1, 2))])
    markers = itertools.cycle("osv^Dx+")
    for label, cosines in curves.items():
      style = {"color": "black"} if "MLE" in label else {"linestyle": next(dashes)}
      marker = next(markers)
      axis.plot(steps, cosines, label=label, marker=marker, markersize=4, **style)
    axis.axhline(0, color="grey", linewidth=0.8)
    # Logarithmic from the first step on, with room for step 0.
    first = min([step for step in steps if step > 0], default=1)
    axis.set_xscale("symlog", linthresh=first)
    axis.set_xlim(-0.2 * first, 1.5 * max(steps[-1], first))
    axis.set(xlabel="training steps", title=caption)
    axis.grid(alpha=0.3)
  axes[0, 0].set_ylabel("mean cosine to the exact gradient")
  axes[0, -1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
  figure.suptitle(title)
  save(path, figure)


def likelihood_by_seconds(
  path: Path, curves: Mapping[str, Mapping[str, Any]], *, baseline: float, title: str
) -> None:
  """Test log-likelihood against seconds of training, on a logarithmic axis.

  Args:
    path: the PNG to write.
    curves: label -> {"seconds": [t], "mean": [t], "sd": [t], "peer": bool}; the label
      "exact MLE" is drawn in black, as the reference, and peers are dashed.
    baseline: the log-likelihood of N(mean, I).
    title: what was trained on what.
  """
  figure, axis = plt.subplots(figsize=(7.5, 4.5))
  # Our curves and the peers' both start at the first colour; strong colours come first.
  palette = plt.get_cmap("tab20")([*range(0, 20, 2), *range(1, 20, 2)])
  colors = {peer: itertools.cycle(palette) for peer in (False, True)}
  dashes = itertools.cycle([(0, (6, 3)), (0, (2, 2)), (0, (6, 2, 1, 2))])
  finals = [baseline]
  for label, curve in curves.items():
    # The start, at 0 seconds, cannot be shown on the axis.
    seconds, mean, sd = (np.asarray(curve[k])[1:] for k in ("seconds", "mean", "sd"))
    if not len(seconds):
      continue
    style = {"color": "black" if "MLE" in label else next(colors[curve["peer"]])}
    if curve["peer"]:
      style["linestyle"] = next(dashes)
    (line,) = axis.semilogx(seconds, mean, label=label, **style)
    axis.fill_between(
      seconds, mean - sd, mean + sd, color=line.get_color(), alpha=0.2, linewidth=0
    )
    finals += [mean[-1], mean.max()]
  axis.axhline(baseline, color="grey", linestyle=":", label="N(mean, I)")
  high, low = max(finals), max(min(finals), max(finals) - 15)
  margin = 0.12 * max(high - low, 1.0)
  axis.set_ylim(low - margin, high + margin)
  axis.set(
    xlabel="seconds of training, without compilation and evaluation",
    ylabel="exact test log-likelihood (nats)",
    title=title,
  )
  axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
  axis.grid(alpha=0.3)
  save(path, figure)


def divergences_by_seconds(
  path: Path, panels: Mapping[str, Mapping[str, Mapping[str, Any]]], *, title: str
) -> None:
  """KL(p*‖p) against seconds of training: a panel for each truth, a line for each rule.

  Args:
    path: the PNG to write.
    panels: truth -> label -> {"seconds": [t], "mean": [t], "low": [t], "high": [t],
      "oracle": bool}; oracles are drawn in black.
    title: the picture's title.
  """
  columns = min(len(panels), 4)
  rows = -(-len(panels) // columns)
  figure, axes = plt.subplots(
    rows, columns, figsize=(3.6 * columns, 3.0 * rows), squeeze=False
  )
  labels = list(dict.fromkeys(label for panel in panels.values() for label in panel))
  colors = plt.get_cmap("tab20")([*range(0, 20, 2), *range(1, 20, 2)])
  dashes = itertools.cycle(["-", (0, (6, 3)), (0, (2, 2)), (0, (6, 2, 1, 2))])
  styles = {label: (colors[i % 20], next(dashes)) for i, label in enumerate(labels)}
  lines: dict[str, Any] = {}
  least = 1e-3  # below it an estimate is noise, and may be negative
  for axis in axes.flat[len(panels) :]:
    axis.set_axis_off()
  for axis, (truth, panel) in zip(axes.flat, panels.items()):
    for label, curve in panel.items():
      # The start, at 0 seconds, cannot be shown on the axis.
      seconds = np.asarray(curve["seconds"])[1:]
      mean, low, high = (
        np.maximum(np.asarray(curve[key])[1:], least) for key in ("mean", "low", "high")
      )
      color, dash = styles[label]
      style = {"color": color, "linestyle": dash, "linewidth": 1.3}
      if curve["oracle"]:
        style |= {"color": "black"}
      (lines[label],) = axis.loglog(seconds, mean, label=label, **style)
      axis.fill_between(
        seconds, low, high, color=style["color"], alpha=0.1, linewidth=0
      )
    axis.set_title(truth, fontsize="medium")
    axis.xaxis.set_minor_formatter(NullFormatter())  # they would overlap
    axis.grid(alpha=0.3)
  for axis in axes[:, 0]:
    axis.set_ylabel("nats")
  for axis in axes[-1]:
    axis.set_xlabel("seconds of training")
  figure.legend(
    lines.values(),
    lines.keys(),
    fontsize="small",
    loc="center left",
    bbox_to_anchor=(1.0, 0.5),
  )
  figure.suptitle(title)
  figure.tight_layout()
  save(path, figure)


def mostly_early(kept: Sequence[_T], num_shown: int) -> list[_T]:
  """Up to `num_shown` records of a run, the first and the last among them.

  They are spaced geometrically, because most changes happen early.
  """
  indices = np.round(np.geomspace(1, len(kept), num_shown)).astype(int) - 1
  return [kept[index] for index in np.unique(indices)]


def save(
  path: Path, figure: Any, *, dpi: int = 120, bbox_inches: Any = "tight"
) -> None:
  """Writes a figure as a PNG and closes it; options as of Matplotlib's `savefig`."""
  with open_atomically(path) as file:
    figure.savefig(file, dpi=dpi, bbox_inches=bbox_inches, format="png")
  plt.close(figure)
