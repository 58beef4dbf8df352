"""What a user waits for before the first number: imports and compilation.

  python -m experiments.benchmarks.startup

CPU seconds on one core (--cores), with nothing in a cache. The direction is compared
with a naive closed form that holds all distances and takes `jnp.median`, a SteinCD step
with one whose direction is that closed form, and the import of stein_jax with that of
the packages that it needs.
"""

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from tqdm import tqdm

from experiments.benchmarks import timing
from experiments.shared import settings, summaries, tables, workdirs
from stein_jax import energies, kernels, stein_cd_gradient, svgd_direction
from stein_jax.types import Array, Params

N, D = 100, 784

IMPORTS = {
  "jax, flax.linen, optax": "import jax, flax.linen, optax",
  "stein_jax": "import stein_jax",
}


@dataclasses.dataclass(frozen=True)
class Settings(timing.Repeated):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.benchmarks.startup"

  workdir: str = settings.like(
    workdirs.Run, "workdir", default="runs/benchmarks/startup"
  )


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  timing.use_cores(own.cores)
  workdirs.check(own)
  x = jax.random.normal(jax.random.key(0), (N, D))
  jobs: dict[str, Callable[[], float]] = {
    "direction, naive": lambda: compilation(naive_direction, x, -x),
    "direction": lambda: compilation(
      lambda x, s: svgd_direction(x, s, kernels.rbf()), x, -x
    ),
    "direction, fixed bandwidth": lambda: compilation(
      lambda x, s: svgd_direction(x, s, kernels.rbf(1.0)), x, -x
    ),
  }
  for name, kernel in (
    ("step, naive direction", naive_direction),
    ("step", kernels.rbf()),
  ):
    jobs[name] = lambda kernel=kernel: compilation(*stein_cd_step(kernel))
  for name, line in IMPORTS.items():
    jobs[f"import {name}"] = lambda line=line: importing(line)
  seconds: dict[str, list[float]] = {name: [] for name in jobs}
  for _ in tqdm(range(own.repeats), disable=not own.progress, leave=False):
    for name, job in jobs.items():
      seconds[name].append(job())
  medians = {name: statistics.median(found) for name, found in seconds.items()}
  workdirs.prepare(own)
  print(markdown(summaries.write(own, {"cpu_seconds": medians})))


def naive_direction(x: Array, s: Array) -> Array:
  """φ* with the median bandwidth, as one would write it down."""
  gram = x @ x.T
  squared = jnp.diag(gram)[:, None] + jnp.diag(gram)[None] - 2 * gram
  h = jnp.median(squared) / jnp.log(len(x))
  k = jnp.exp(-squared / h)
  return (k @ s + (2 / h) * (x * k.sum(axis=1, keepdims=True) - k @ x)) / len(x)


def stein_cd_step(kernel: Any) -> tuple[Any, ...]:
  """The README's first step of SteinCD, and its arguments."""
  energy = energies.MLP(widths=(64, 64))
  data = jnp.zeros((100, 2))
  params = energy.init(jax.random.key(1), data[0])
  optimizer = optax.adam(1e-3)

  def step(params: Params, opt_state: Any, batch: Array) -> tuple[Params, Any]:
    gradient = stein_cd_gradient(params, energy.apply, batch, kernel, step_size=0.1)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(params, updates), opt_state

  return step, params, optimizer.init(params), data


def compilation(function: Callable[..., Any], *arguments: Any) -> float:
  """CPU seconds to trace and compile a function."""
  jax.clear_caches()
  start = time.process_time()
  jax.jit(function).lower(*arguments).compile()
  return time.process_time() - start


def importing(line: str) -> float:
  """CPU seconds of an import in a new process, without those of Python itself."""
  code = (
    f"import time; start = time.process_time(); {line}; "
    "print(time.process_time() - start)"
  )
  found = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  return float(found.stdout)


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json."""
  seconds = summary["cpu_seconds"]
  references = {
    "direction": "direction, naive",
    "direction, fixed bandwidth": "direction, naive",
    "step": "step, naive direction",
    "import stein_jax": "import jax, flax.linen, optax",
  }
  lines = [
    [
      name,
      f"{found:.2f}",
      f"{found / seconds[references[name]]:.2f}" if name in references else "",
    ]
    for name, found in seconds.items()
  ]
  return tables.markdown(["", "CPU seconds", "÷ reference"], lines)


if __name__ == "__main__":
  settings.run(main, Settings)
