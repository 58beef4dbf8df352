"""A step of every full-size network of section 5.2: its time, memory and parameters.

  python -m experiments.benchmarks.images

compiles one update of SteinGAN, with the exact repulsion and with that of the nearest
picture alone, of SteinGAN without kernel and of DCGAN, on random pictures of 32×32 with
labels (CIFAR-10) and of 64×64 (CelebA, LSUN), and takes it a few times. The matrix rate
is that of a product of 4096 × 4096 numbers in the precision that is used.
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from tqdm import tqdm

from experiments import rbm_summary
from experiments.benchmarks import timing
from experiments.pictures import image_models
from experiments.shared import common

VARIANTS = {
  "SteinGAN exact": ("steingan", None),
  "SteinGAN one neighbour": ("steingan", 1),
  "SteinGAN without kernel": ("steingan_no_kernel", None),
  "DCGAN": ("dcgan", None),
}


def main(argv: list[str]) -> None:
  if common.printed_from_summary(argv, markdown):
    return
  values = flags.FLAGS
  common.positive("width")
  sizes = common.numbers("sizes", values.sizes, int, at_least=32)
  if set(sizes) - set(image_models.LAYERS):
    raise SystemExit(f"--sizes must be out of {list(image_models.LAYERS)}.")
  chosen = common.chosen("variants", values.variants, tuple(VARIANTS))
  timing.use_cores(values.cores)
  common.claim_workdir(before_work=True)
  rows = []
  tasks = [(size, name) for size in sizes for name in chosen]
  for size, name in tqdm(tasks, disable=not values.progress):
    rows.append({"size": size, "name": name} | measure(size, *VARIANTS[name]))
  workdir = common.claim_workdir(before_work=False)
  summary = common.write_summary(
    workdir,
    "experiments.benchmarks.images",
    {"gigaflops": _matrix_rate(), "rows": rows},
  )
  print(markdown(summary))


def measure(size: int, method: str, num_neighbors: int | None) -> dict[str, Any]:
  """Seconds of a step, of its compilation, and what its program needs."""
  values = flags.FLAGS
  settings = image_models.Settings(
    size=size,
    num_classes=10 if size == 32 else None,
    norm="l2" if size == 32 else "l1_l2",
    width=values.width,
    generator_width=values.width,
    discriminator_width=values.width,
    num_neighbors=num_neighbors,
    bfloat16=values.bfloat16,
  )
  rng = np.random.default_rng(0)
  shape = (values.batch_size, size, size, 3)
  batch: Any = jnp.asarray(rng.uniform(-1, 1, size=shape), jnp.float32)
  if settings.num_classes is not None:
    batch = {"x": batch, "context": jnp.arange(values.batch_size) % 10}
  few = jax.tree.map(lambda leaf: leaf[:2], batch)
  model = image_models.build(jax.random.key(0), method, settings, few)
  key = jax.random.key(1)
  state = model.algorithm.init(key, model.params, batch)
  start = time.perf_counter()
  step = jax.jit(model.algorithm.update, donate_argnums=1)
  compiled = step.lower(key, state, batch).compile()
  compilation = time.perf_counter() - start
  seconds = []
  for _ in range(values.steps):
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


def _matrix_rate() -> float:
  """GFLOP/s of a large product in the precision of the runs."""
  dtype = jnp.bfloat16 if flags.FLAGS.bfloat16 else jnp.float32
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
  header = ["", "million parameters", "s a step", "s to compile", "GB beside them"]
  values = summary["flags"]
  return (
    f"{rbm_summary.markdown_table(header, lines)}\n\n"
    f"Batches of {values['batch_size']}, widths × {values['width']}, on "
    f"{summary['environment']['device']} ({values['cores']} cores), where a large "
    f"product runs at {summary['gigaflops']:.0f} GFLOP/s."
  )


def _define_flags() -> None:
  flags.DEFINE_list("sizes", ["32", "64"], "Of the pictures.")
  flags.DEFINE_list("variants", list(VARIANTS), "What to step.")
  flags.DEFINE_integer("batch_size", 100, "Pictures a step.", lower_bound=2)
  flags.DEFINE_integer("steps", 3, "Steps, of which the median counts.", lower_bound=1)
  flags.DEFINE_float("width", 1.0, "A factor on all networks' channels.")
  flags.DEFINE_bool("bfloat16", False, "Compute in bfloat16.")
  flags.DEFINE_integer("cores", 1, "CPU cores to use; 0 for all.", lower_bound=0)
  common.define_run_flags("runs/benchmarks/images")


if __name__ == "__main__":
  _define_flags()
  app.run(main)
