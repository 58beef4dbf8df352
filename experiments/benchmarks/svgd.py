"""The SVGD direction, compared with other libraries and with the matrix rate.

  python -m experiments.benchmarks.svgd

Every number is a ratio of medians over calls made in turn, on one CPU core (--cores),
in float32. Particles and scores are draws of N(0, I). It is compared with the same sum
by three compiled functions, for the gram matrix, the exponential and the product
(dense); with blackjax and numpyro; and with our algebra in PyTorch. The lower bound is
the time of the multiplications of the symmetric form, 3/2 n²d multiply-adds, at the
machine's matrix rate. blackjax is installed for the tests, the others by
`pip install -e '.[peers]'`.

In --workdir it writes summary.json and svgd.png, time and memory against n.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from experiments.benchmarks import timing
from experiments.shared import plots, settings, summaries, tables, workdirs
from experiments.shared.settings import setting
from stein_jax import kernels, svgd_direction
from stein_jax.types import Array

SHAPES = ("100x784", "1000x784", "4096x784", "10000x50", "10000x2")

TARGETS = {
  # shape -> at most: our time ÷ dense, additional time of the median ÷ direction;
  # at least: time of blackjax ÷ ours, of PyTorch ÷ ours.
  "100x784": {"dense": 0.9, "median": 0.2, "blackjax": 12},
  "1000x784": {"dense": 0.9, "median": 0.06, "blackjax": 120, "torch": 2.2},
  "4096x784": {"dense": 0.55, "median": 0.15, "torch": 4},
  "10000x50": {"dense": 0.25, "blackjax": 190},
  "10000x2": {"dense": 0.12, "blackjax": 16},
}

# blackjax and numpyro compute each pair separately: beyond these a call takes minutes.
_BLACKJAX_LIMIT, _NUMPYRO_LIMIT = 6e9, 1e9  # n² d


@dataclasses.dataclass(frozen=True)
class Settings(timing.Repeated):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.benchmarks.svgd"
  files: ClassVar[tuple[str, ...]] = ("svgd.png",)

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/benchmarks/svgd")
  shapes: tuple[str, ...] = setting(SHAPES, "Particles and dimensions, as NxD.")
  sizes: tuple[int, ...] = setting(
    (250, 500, 1000, 2000, 4000, 8000, 16_000), "n of the curve.", at_least=2
  )
  large: str = setting("100000x50", "A shape beyond all dense forms; empty for none.")
  repeats: int = settings.like(timing.Repeated, "repeats", default=11)


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  shapes = {text: _shape("shapes", text) for text in own.shapes}
  large = _shape("large", own.large) if own.large else None
  timing.use_cores(own.cores)
  workdirs.check(own)
  rate = timing.matrix_rate(own.repeats)
  rows = {name: measure(*shape, own) for name, shape in shapes.items()}
  curve = [measure(n, 50, own, scaling=True) for n in own.sizes]
  workdir = workdirs.prepare(own)
  results: dict[str, Any] = {
    "gigaflops": rate,
    "shapes": {name: _with_ratios(row, rate) for name, row in rows.items()},
    "curve": [_with_ratios(row, rate) for row in curve],
  }
  if large:
    results["large"] = measure_large(*large, progress=own.progress)
  _draw(workdir / "svgd.png", results["curve"])
  summary = summaries.write(own, results)
  print(markdown(summary))


def _shape(flag: str, text: str) -> tuple[int, int]:
  parts = text.split("x")
  if len(parts) != 2 or not all(p.isdigit() and int(p) > 0 for p in parts):
    settings.wrong_usage(f"--{flag}: {text!r} is not NxD, n particles of d numbers.")
  return int(parts[0]), int(parts[1])


def _problem(n: int, d: int) -> tuple[Array, Array, float]:
  """Particles, scores, and a bandwidth near the median."""
  x, s = np.random.default_rng(0).normal(size=(2, n, d)).astype(np.float32)
  return jnp.asarray(x), jnp.asarray(s), 2.0 * d / float(np.log(n))


def measure(n: int, d: int, own: Settings, *, scaling: bool = False) -> dict[str, Any]:
  """Times of our direction and of the installed peers, and our memory.

  Args:
    n: particles.
    d: their dimension.
    own: the number of repeats and of cores.
    scaling: only ours and dense, for the curve.
  """
  x, s, h = _problem(n, d)
  numbers = n * n * d * (1e99 if scaling else 1)
  functions: dict[str, Callable[[], Any] | None] = {
    "ours": functools.partial(svgd_direction, x, s, kernels.rbf(jnp.float32(h))),
    "ours, median": functools.partial(svgd_direction, x, s, kernels.rbf()),
    "dense": functools.partial(dense_direction, x, s, jnp.float32(h)),
    "blackjax": _blackjax(x, h) if numbers <= _BLACKJAX_LIMIT else None,
    "numpyro, median": _numpyro(x) if numbers <= _NUMPYRO_LIMIT else None,
    "torch": None if scaling else _torch(np.asarray(x), np.asarray(s), h, own.cores),
  }
  times = timing.interleaved(
    {name: function for name, function in functions.items() if function},
    repeats=own.repeats,
    progress=own.progress,
    label=f"{n} × {d}",
  )
  return {
    "n": n,
    "d": d,
    "seconds": {name: time._asdict() for name, time in times.items()},
    "megabytes": {
      "ours": _temporary_megabytes(kernels.rbf(jnp.float32(h)), x),
      "ours, median": _temporary_megabytes(kernels.rbf(), x),
      "dense": 2 * 4 * n * n / 1e6,  # the gram and its exponential
    },
  }


def measure_large(n: int, d: int, *, progress: bool) -> dict[str, Any]:
  """The direction and its exact median where dense matrices do not fit."""
  x, s, h = _problem(n, d)
  kernel = kernels.rbf(jnp.float32(h))
  times = timing.interleaved(
    {
      "ours": functools.partial(svgd_direction, x, s, kernel),
      "ours, median": functools.partial(svgd_direction, x, s, kernels.rbf()),
    },
    repeats=3,
    progress=progress,
    label=f"{n} × {d}",
  )
  return {
    "n": n,
    "d": d,
    "seconds": {name: time._asdict() for name, time in times.items()},
    "megabytes": {
      "ours": _temporary_megabytes(kernel, x),
      "ours, median": _temporary_megabytes(kernels.rbf(), x),
    },
  }


def _temporary_megabytes(kernel: kernels.Kernel, x: Array) -> float:
  """The memory of the compiled direction, without its inputs."""
  compiled = jax.jit(svgd_direction).lower(x, x, kernel).compile()
  memory = compiled.memory_analysis()
  return (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6


@jax.jit
def _gram(x: Array) -> Array:
  norms = jnp.square(x).sum(axis=1)
  product = jnp.matmul(x, x.T, precision="highest")
  return norms[:, None] + norms[None] - 2 * product


@jax.jit
def _exponential(squared: Array, h: Array) -> Array:
  return jnp.exp(-squared / h)


@jax.jit
def _product(k: Array, x: Array, s: Array, h: Array) -> Array:
  sums = jnp.matmul(k, s - (2 / h) * x, precision="highest")
  return (sums + (2 / h) * x * k.sum(axis=1, keepdims=True)) / len(x)


def dense_direction(x: Array, s: Array, h: Array) -> Array:
  """The direction by three compiled functions, each of the whole matrix."""
  return _product(_exponential(_gram(x), h), x, s, h)


def _blackjax(x: Array, h: float) -> Callable[[], Any] | None:
  """A step x + φ (sgd with rate 1) for N(0, I), whose score takes no time."""
  module = timing.peer("blackjax.vi.svgd")
  if module is None:
    return None
  optimizer = optax.sgd(1.0)
  move = module.build_kernel(optimizer)
  state = module.init(x, {"length_scale": h}, optimizer)
  step = jax.jit(lambda state: move(state, jnp.negative, module.rbf_kernel).particles)
  return lambda: step(state)


def _numpyro(x: Array) -> Callable[[], Any] | None:
  """A step of numpyro's SteinVI for N(0, I), with a median in every step."""
  numpyro = timing.peer("numpyro")
  einstein = timing.peer("numpyro.contrib.einstein")
  if numpyro is None or einstein is None:
    return None
  import numpyro.distributions as dist
  from numpyro.infer.autoguide import AutoDelta

  d = x.shape[1]

  def model() -> None:
    numpyro.sample("x", dist.Normal(jnp.zeros(d), 1.0).to_event(1))

  stein = einstein.SteinVI(
    model,
    AutoDelta(model),
    numpyro.optim.SGD(1.0),
    einstein.RBFKernel(),
    num_stein_particles=len(x),
  )
  state = stein.init(jax.random.key(0))
  step = jax.jit(lambda state: stein.update(state)[0])
  return lambda: jax.tree.leaves(step(state))


def _torch(
  x: np.ndarray, s: np.ndarray, h: float, cores: int
) -> Callable[[], Any] | None:
  """Our algebra with dense matrices, in place where PyTorch allows it."""
  torch = timing.peer("torch")
  if torch is None:
    return None
  torch.set_num_threads(max(1, cores))
  points, scores = torch.tensor(x), torch.tensor(s)

  @torch.no_grad()
  def direction() -> Any:
    centred = points - points.mean(dim=0)
    norms = centred.square().sum(dim=1)
    k = torch.addmm(norms[None], centred, centred.T, alpha=-2)
    k.add_(norms[:, None]).clamp_(min=0).mul_(-1 / h).exp_()
    sums = torch.addmm(
      centred * (2 / h) * k.sum(dim=1, keepdim=True),
      k,
      scores - (2 / h) * centred,
    )
    return sums.div_(len(points)).numpy()

  return direction


def _with_ratios(row: Mapping[str, Any], rate: float) -> dict[str, Any]:
  median = {name: time["median"] for name, time in row["seconds"].items()}
  n, d = row["n"], row["d"]
  floor = 3 * n * n * d / (rate * 1e9)
  ratios = {
    "ours ÷ dense": median["ours"] / median["dense"],
    "ours ÷ floor": median["ours"] / floor,
    "extra of the median ÷ ours": median["ours, median"] / median["ours"] - 1,
  }
  for name in ("blackjax", "torch"):
    if name in median:
      ratios[f"{name} ÷ ours"] = median[name] / median["ours"]
  if "numpyro, median" in median:
    ratios["numpyro ÷ ours, with medians"] = (
      median["numpyro, median"] / median["ours, median"]
    )
  return {**row, "floor_seconds": floor, "ratios": ratios}


_HEADERS = {"extra of the median ÷ ours": "extra time for the median ÷ ours"}
"""The names of ratios in the table, where they are not those in summary.json."""


def markdown(summary: Mapping[str, Any]) -> str:
  """The tables of a summary.json."""
  names = (
    ("ours ÷ dense", "dense", "≤"),
    ("extra of the median ÷ ours", "median", "≤"),
    ("blackjax ÷ ours", "blackjax", "≥"),
    ("numpyro ÷ ours, with medians", None, ""),
    ("torch ÷ ours", "torch", "≥"),
    ("ours ÷ floor", None, ""),
  )
  lines = []
  for shape, row in summary["shapes"].items():
    ours = row["seconds"]["ours"]
    cells = [shape.replace("x", " × "), _milliseconds(ours)]
    for name, key, sign in names:
      target = TARGETS.get(shape, {}).get(key) if key else None
      goal = f" ({sign} {target:g})" if target is not None else ""
      value = row["ratios"].get(name)
      cells.append("—" if value is None else f"{value:.3g}{goal}")
    lines.append(cells)
  header = ["n × d", "ours, ms", *(_HEADERS.get(name, name) for name, _, _ in names)]
  text = tables.markdown(header, lines)
  text += f"\n\nThe matrix rate was {summary['gigaflops']:.0f} GFLOP/s."
  if "large" in summary:
    large = summary["large"]
    seconds = {name: time["median"] for name, time in large["seconds"].items()}
    ratio = seconds["ours, median"] / seconds["ours"]
    text += (
      f" {large['n']} particles of {large['d']} numbers take {seconds['ours']:.1f} s, "
      f"{ratio:.2f} times that with their exact median (≤ 2.5), and "
      f"{large['megabytes']['ours, median']:.0f} MB in addition to the inputs (≤ 150)."
    )
  return text


def _milliseconds(time: Mapping[str, float]) -> str:
  values = (1e3 * time[name] for name in ("median", "low", "high"))
  return "{:.3g} ({:.3g} to {:.3g})".format(*values)


def _draw(path: Path, curve: list[Mapping[str, Any]]) -> None:
  if not curve:
    return
  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
  n = [row["n"] for row in curve]
  for name in ("dense", "ours", "ours, median"):
    left.plot(n, [row["seconds"][name]["median"] for row in curve], "o-", label=name)
    right.plot(n, [row["megabytes"][name] for row in curve], "o-", label=name)
  floor = [row["floor_seconds"] for row in curve]
  left.plot(n, floor, "k:", label="3/2 n²d at the matrix rate")
  for axes, label in ((left, "seconds"), (right, "MB in addition to the inputs")):
    axes.set(xscale="log", yscale="log", xlabel="n particles, d = 50", ylabel=label)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
  plots.save(path, figure, dpi=110, bbox_inches=None)


if __name__ == "__main__":
  settings.run(main, Settings)
