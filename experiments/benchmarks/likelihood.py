"""The RBM's exact log Z and likelihood: seconds and memory.

  python -m experiments.benchmarks.likelihood

It runs on one CPU core (--cores), in float32, with 784 visible units. The lower bound
for log Z is the time of 2^ℓ exponentials, one for each state, at the machine's rate;
the sum over 2^(ℓ/2) × 2^(ℓ/2) states computes the same number, of the entries of a
matrix product.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from experiments.benchmarks import timing
from experiments.shared import plots, settings, summaries, tables, workdirs
from experiments.shared.settings import setting
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.types import Params

NUM_VISIBLE, NUM_IMAGES = 784, 10_000


@dataclasses.dataclass(frozen=True)
class Settings(timing.Repeated):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.benchmarks.likelihood"
  files: ClassVar[tuple[str, ...]] = ("likelihood.png",)

  workdir: str = settings.like(
    workdirs.Run, "workdir", default="runs/benchmarks/likelihood"
  )
  num_hidden: tuple[int, ...] = setting((5, 10, 15, 20, 25, 30), "ℓ.", at_least=1)
  repeats: int = settings.like(timing.Repeated, "repeats", default=9)


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  timing.use_cores(own.cores)
  workdirs.check(own)
  exponential = _seconds_of_an_exponential()
  rows = [_measure(num_hidden, exponential, own) for num_hidden in own.num_hidden]
  workdir = workdirs.prepare(own)
  _draw(workdir / "likelihood.png", rows)
  summary = summaries.write(
    own, {"seconds_of_an_exponential": exponential, "rows": rows}
  )
  print(markdown(summary))


def _params(num_hidden: int) -> tuple[GaussianBernoulliRBM, Params]:
  rbm = GaussianBernoulliRBM(num_hidden)
  return rbm, rbm.init(jax.random.key(0), jnp.zeros(NUM_VISIBLE))


def _seconds_of_an_exponential() -> float:
  x = jnp.linspace(-10, 0, 2**16)
  exponential = jax.jit(jnp.exp)
  times = timing.interleaved({"x": lambda: exponential(x)}, repeats=15)
  return times["x"].median / len(x)


def _measure(num_hidden: int, exponential: float, own: Settings) -> dict[str, Any]:
  rbm, params = _params(num_hidden)
  # all images at once, as in training
  images = jax.random.uniform(jax.random.key(1), (NUM_IMAGES, NUM_VISIBLE))
  log_z = functools.partial(rbm.log_partition, params)
  functions = {"log Z": log_z}
  if num_hidden <= 20:
    functions["likelihood"] = functools.partial(rbm.log_likelihood, params, images)
  times = timing.interleaved(
    functions,
    repeats=own.repeats,
    progress=own.progress,
    label=f"{num_hidden} hidden units",
  )
  compiled = jax.jit(rbm.log_partition).lower(params).compile()
  return {
    "num_hidden": num_hidden,
    "seconds": {name: time._asdict() for name, time in times.items()},
    "floor_seconds": 2**num_hidden * exponential,
    "megabytes": compiled.memory_analysis().temp_size_in_bytes / 1e6,
  }


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json."""
  lines = []
  for row in summary["rows"]:
    log_z = row["seconds"]["log Z"]["median"]
    likelihood = row["seconds"].get("likelihood")
    lines.append(
      [
        str(row["num_hidden"]),
        f"{1e3 * log_z:.3g}",
        f"{log_z / row['floor_seconds']:.2f}",
        f"{row['megabytes']:.3g}",
        "—" if likelihood is None else f"{1e3 * likelihood['median']:.3g}",
      ]
    )
  header = ["ℓ", "log Z, ms", "÷ 2^ℓ exponentials", "MB", "10 000 images, ms"]
  return tables.markdown(header, lines)


def _draw(path: Any, rows: list[Mapping[str, Any]]) -> None:
  figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
  sizes = [row["num_hidden"] for row in rows]
  seconds = [row["seconds"]["log Z"]["median"] for row in rows]
  axes.plot(sizes, seconds, "o-", label="exact log Z")
  floors = [row["floor_seconds"] for row in rows]
  axes.plot(sizes, floors, "k:", label="2^ℓ exponentials")
  axes.set(yscale="log", xlabel="ℓ hidden units", ylabel="seconds")
  axes.grid(alpha=0.3)
  axes.legend()
  plots.save(path, figure, dpi=110, bbox_inches=None)


if __name__ == "__main__":
  settings.run(main, Settings)
