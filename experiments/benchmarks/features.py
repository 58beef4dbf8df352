"""The repulsion through an encoder's features: exact, and of nearest neighbours.

  python -m experiments.benchmarks.features

The kernel lives on the features of the autoencoder of CIFAR-10 (section 5.2), at smooth
random pictures. Exact, every pair of pictures has a product of its own with the
encoder's Jacobian; num_neighbors=k takes the k nearest pictures of each. A line for
every n has the time of one neighbour's step, that of others ÷ it, and the relative
error of the repulsion. At the start of training an encoder's features are nearly linear
in the picture and the median bandwidth lets all pictures repel alike: that is the worst
case for few neighbours.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.tree_util import Partial

from experiments import rbm_summary
from experiments.benchmarks import timing
from experiments.shared import common
from stein_jax import energies, kernels, svgd_direction
from stein_jax.types import Array, Key


def main(argv: list[str]) -> None:
  if common.printed_from_summary(argv, markdown):
    return
  common.positive("width")
  sizes = common.numbers("sizes", flags.FLAGS.sizes, int, at_least=3)
  neighbors = common.numbers("neighbors", flags.FLAGS.neighbors, int, at_least=1)
  timing.use_cores(flags.FLAGS.cores)
  common.claim_workdir(before_work=True)
  rows = [measure(n, [k for k in neighbors if k < n - 1]) for n in sizes]
  workdir = common.claim_workdir(before_work=False)
  summary = common.write_summary(
    workdir, "experiments.benchmarks.features", {"rows": rows}
  )
  print(markdown(summary))


def measure(n: int, neighbors: list[int]) -> dict[str, Any]:
  """Seconds and errors of the repulsion of n pictures, by the number of neighbours."""
  energy = energies.Autoencoder(width=flags.FLAGS.width)
  pictures = smooth_pictures(jax.random.key(0), n)
  theta = jax.jit(energy.init)(jax.random.key(1), pictures[0])
  base = kernels.rbf().resolve(_features(energy, theta, pictures))
  no_scores = jnp.zeros_like(pictures)

  def repulsion(num_neighbors: int | None) -> Array:
    kernel = kernels.on_features(
      base, Partial(energy.features, theta), num_neighbors=num_neighbors
    )
    return svgd_direction(pictures, no_scores, kernel)

  functions = {str(k): functools.partial(repulsion, k) for k in neighbors}
  functions["exact"] = functools.partial(repulsion, None)
  times = timing.interleaved(
    functions,
    repeats=flags.FLAGS.repeats,
    progress=flags.FLAGS.progress,
    label=f"{n} pictures",
  )
  exact = np.asarray(repulsion(None), np.float64)
  errors = {
    str(k): float(np.linalg.norm(repulsion(k) - exact) / np.linalg.norm(exact))
    for k in neighbors
  }
  return {
    "n": n,
    "seconds": {name: time._asdict() for name, time in times.items()},
    "errors": errors,
  }


@functools.partial(jax.jit, static_argnums=0)
def _features(energy: energies.Autoencoder, theta: Any, pictures: Array) -> Array:
  return jax.vmap(functools.partial(energy.features, theta))(pictures)


def smooth_pictures(key: Key, n: int) -> Array:
  """n pictures [32, 32, 3] in (−1, 1) that run between 4 × 4 random colours."""
  colours = jax.random.normal(key, (n, 4, 4, 3))
  return jnp.tanh(jax.image.resize(colours, (n, 32, 32, 3), "cubic"))


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json."""
  names = list(dict.fromkeys(k for row in summary["rows"] for k in row["errors"]))
  lines = []
  for row in summary["rows"]:
    median = {name: time["median"] for name, time in row["seconds"].items()}
    one = next(iter(median.values()))
    cells = [f"{median['exact'] / one:.3g}"]
    for name in names:
      known = name in median
      error = f"{median[name] / one:.3g}, {row['errors'][name]:.0%}" if known else "—"
      cells.append(error.replace("%", " %"))
    lines.append([str(row["n"]), f"{1e3 * one:.3g}", *cells])
  header = ["n", f"k = {names[0]}, ms", "exact ÷ it"]
  header += [f"k = {name}: ÷ it, error" for name in names]
  return rbm_summary.markdown_table(header, lines)


def _define_flags() -> None:
  flags.DEFINE_list("sizes", ["16", "64", "100"], "n, pictures.")
  flags.DEFINE_list("neighbors", ["1", "4", "16"], "k.")
  flags.DEFINE_float("width", 1.0, "A factor on the encoder's channels.")
  flags.DEFINE_integer("repeats", 5, "Times of every function.", lower_bound=1)
  flags.DEFINE_integer("cores", 1, "CPU cores to use; 0 for all.", lower_bound=0)
  common.define_run_flags("runs/benchmarks/features")


if __name__ == "__main__":
  _define_flags()
  app.run(main)
