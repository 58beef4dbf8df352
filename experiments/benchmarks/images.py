"""A step of every full-size network of section 5.2: its time, memory and parameters.

  python -m experiments.benchmarks.images

compiles one training step of SteinGAN with the exact repulsion, of SteinGAN with the
repulsion by the nearest image alone, of SteinGAN without kernel and of DCGAN, and times
a few steps of each. The images are random: 32×32 with labels (CIFAR-10), and 64×64
(CelebA, LSUN). The matrix rate is that of a product of two 4096 × 4096 matrices in the
same precision.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.benchmarks import timing
from experiments.pictures import models
from experiments.pictures.model_settings import ModelSettings
from experiments.shared import settings, summaries, tables, workdirs
from experiments.shared.settings import setting

VARIANTS = {
  "SteinGAN exact": ("steingan", 0),
  "SteinGAN one neighbour": ("steingan", 1),
  "SteinGAN without kernel": ("steingan_no_kernel", 0),
  "DCGAN": ("dcgan", 0),
}


@dataclasses.dataclass(frozen=True)
class Settings(timing.Benchmark):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.benchmarks.images"

  workdir: str = settings.like(
    workdirs.Run, "workdir", default="runs/benchmarks/images"
  )
  sizes: tuple[int, ...] = setting(
    (32, 64), "The sides of the images, in pixels.", at_least=32
  )
  variants: tuple[str, ...] = setting(
    tuple(VARIANTS), "The variants to time.", choices=tuple(VARIANTS)
  )
  batch_size: int = setting(100, "Images in each step.", at_least=2)
  steps: int = setting(3, "Timed steps; the result is their median.", at_least=1)
  width: float = setting(1.0, "A factor on all networks' channels.", above=0)
  bfloat16: bool = setting(False, "Compute in bfloat16.")


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  if set(own.sizes) - set(models.LAYERS):
    settings.wrong_usage(f"--sizes must be some of {list(models.LAYERS)}.")
  timing.use_cores(own.cores)
  workdirs.check(own)
  rows = []
  tasks = [(size, name) for size in own.sizes for name in own.variants]
  for size, name in tqdm(tasks, disable=not own.progress):
    rows.append({"size": size, "name": name} | measure(size, *VARIANTS[name], own))
  workdirs.prepare(own)
  summary = summaries.write(
    own, {"gigaflops": _matrix_rate(bfloat16=own.bfloat16), "rows": rows}
  )
  print(markdown(summary))


def measure(
  size: int, method: str, num_neighbors: int, own: Settings
) -> dict[str, Any]:
  """The seconds of a step and of its compilation, and the needs of its program."""
  task = models.Task(size, num_classes=10 if size == 32 else None)
  model_settings = ModelSettings(
    norm="l2" if size == 32 else "l1_l2",
    width=own.width,
    generator_width=own.width,
    discriminator_width=own.width,
    num_neighbors=num_neighbors,
    bfloat16=own.bfloat16,
  )
  rng = np.random.default_rng(0)
  shape = (own.batch_size, size, size, 3)
  batch: Any = jnp.asarray(rng.uniform(-1, 1, size=shape), jnp.float32)
  if task.num_classes is not None:
    batch = {"x": batch, "context": jnp.arange(own.batch_size) % 10}
  few = jax.tree.map(lambda leaf: leaf[:2], batch)
  model = models.build(jax.random.key(0), method, model_settings, task, few)
  key = jax.random.key(1)
  state = model.algorithm.init(key, model.params, batch)
  start = time.perf_counter()
  step = jax.jit(model.algorithm.update, donate_argnums=1)
  compiled = step.lower(key, state, batch).compile()
  compilation = time.perf_counter() - start
  seconds = []
  for _ in range(own.steps):
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(compiled(key, state, batch))
    seconds.append(time.perf_counter() - start)
  if not all(np.isfinite(value) for value in metrics.values()):
    raise SystemExit(f"{method} at {size}: {metrics}")
  analysis, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
  return {
    "seconds": float(np.median(seconds)),
    "compilation_seconds": compilation,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
    "temporary_megabytes": analysis.temp_size_in_bytes / 1e6,
    "gigaflop": cost.get("flops", float("nan")) / 1e9,
  }


def _matrix_rate(*, bfloat16: bool) -> float:
  """GFLOP/s of a large product in the precision of the runs."""
  dtype = jnp.bfloat16 if bfloat16 else jnp.float32
  a = jnp.ones((4096, 4096), dtype)
  product = jax.jit(lambda a: a @ a)
  times = timing.interleaved({"product": lambda: product(a)}, repeats=5)
  return 2 * 4096**3 / times["product"].median / 1e9


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json."""
  lines = [
    [
      f"{row['name']}, {row['size']}×{row['size']}",
      f"{row['parameters'] / 1e6:.1f}",
      f"{row['seconds']:.3g}",
      f"{row['compilation_seconds']:.0f}",
      f"{row['temporary_megabytes'] / 1e3:.2f}",
    ]
    for row in summary["rows"]
  ]
  header = [
    "",
    "million parameters",
    "s a step",
    "s to compile",
    "GB of working memory",
  ]
  values = summary["flags"]
  return (
    f"{tables.markdown(header, lines)}\n\n"
    f"Batches of {values['batch_size']}, widths × {values['width']}, on "
    f"{summary['environment']['device']} ({values['cores']} cores), where a large "
    f"product runs at {summary['gigaflops']:.0f} GFLOP/s."
  )


if __name__ == "__main__":
  settings.run(main, Settings)
