"""The repulsion of a kernel on an encoder's features: exact, and by neighbours.

  python -m experiments.benchmarks.features

The kernel is applied to the features of the autoencoder for CIFAR-10 (section 5.2), of
smooth random pictures. The exact repulsion multiplies the encoder's Jacobian with a
vector for every pair of pictures; num_neighbors=k uses the k nearest pictures of each.
For every n the table shows the time with one neighbour, the ratios of the others to it,
and the relative error of the repulsion. At the start of training an encoder's features
are nearly linear in the picture, and with the median bandwidth all pictures repel
equally: that is the worst case for few neighbours.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.benchmarks import timing
from experiments.shared import settings, summaries, tables, workdirs
from experiments.shared.settings import setting
from stein_jax import energies, kernels, svgd_direction
from stein_jax.types import Array, Key


@dataclasses.dataclass(frozen=True)
class Settings(timing.Repeated):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.benchmarks.features"

  workdir: str = settings.like(
    workdirs.Run, "workdir", default="runs/benchmarks/features"
  )
  sizes: tuple[int, ...] = setting((16, 64, 100), "n, pictures.", at_least=3)
  neighbors: tuple[int, ...] = setting((1, 4, 16), "k.", at_least=1)
  width: float = setting(1.0, "A factor on the encoder's channels.", above=0)


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  timing.use_cores(own.cores)
  workdirs.check(own)
  rows = [measure(n, own) for n in own.sizes]
  workdirs.prepare(own)
  summary = summaries.write(own, {"rows": rows})
  print(markdown(summary))


def measure(n: int, own: Settings) -> dict[str, Any]:
  """Seconds and errors of the repulsion of n pictures, by the number of neighbours."""
  neighbors = [k for k in own.neighbors if k < n - 1]
  energy = energies.Autoencoder(width=own.width)
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
    repeats=own.repeats,
    progress=own.progress,
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
  """n pictures [32, 32, 3] in (−1, 1), interpolated between 4 × 4 random colours."""
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
  return tables.markdown(header, lines)


if __name__ == "__main__":
  settings.run(main, Settings)
