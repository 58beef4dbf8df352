"""Which changes of an RBM do Stein tests of fit detect, from exact samples?

  python -m experiments.goodness_of_fit

repeats the experiment of Liu, Lee & Jordan (2016, section 5.2) with this library's
tests. In every repeat there is a new Gaussian-Bernoulli RBM p with B uniform in ±½ (the
paper's ±1, as its energy has ½xᵀBh) and b, c ~ N(0, 1), and N(0, σ²) is added to all of
B. The particles are exact samples of the perturbed RBM; the scores are those of p. The
power is the fraction of the repeats in which a test rejects p. For σ = 0 it is the
level, which should be --level. A last table compares the seconds and the memory of the
streamed `ksd_test` with those of the same test with n × n matrices.

It takes about two minutes on one CPU core. In --workdir it writes summary.json after
every σ, from which an interrupted run goes on, goodness_of_fit.png (power against σ)
and flags.txt, which can be used as a flagfile.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.shared import plots, settings, summaries, tables, workdirs
from experiments.shared.settings import setting
from stein_jax import SteinTest, fssd_test, kernels, ksd_aggregated_test, ksd_test
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.types import Array, Key

TESTS: Mapping[str, Callable[..., SteinTest]] = {
  "ksd_test": ksd_test,
  "ksd_test, rbf": partial(ksd_test, kernel=kernels.rbf()),
  "ksd_aggregated_test": ksd_aggregated_test,
  "fssd_test": fssd_test,
}


@dataclasses.dataclass(frozen=True)
class Settings(summaries.FromSummary, workdirs.Run):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.goodness_of_fit"
  files: ClassVar[tuple[str, ...]] = ("goodness_of_fit.png",)

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/goodness_of_fit")
  sigmas: tuple[float, ...] = setting(
    (0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05),
    "The standard deviations σ of the perturbation of B, separated by commas.",
    at_least=0,
    may_grow=True,
  )
  num_particles: int = setting(200, "n, samples that are tested.", at_least=2)
  num_visible: int = setting(50, "d, the dimension.", at_least=1)
  num_hidden: int = setting(10, "ℓ, hidden units.", at_least=1, at_most=16)
  repeats: int = setting(200, "RBMs and sets of samples for each σ.", at_least=1)
  num_bootstrap: int = setting(400, "Sign vectors, or draws of the null.", at_least=1)
  level: float = setting(
    0.05, "Of the tests: p-values up to it reject.", above=0, below=1
  )
  compared_particles: int = setting(
    4000, "n of the table of seconds and memory.", at_least=2
  )
  seed: int = setting(
    0, "Of all random numbers.", at_least=0, at_most=settings.MAX_SEED
  )


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  workdirs.check(own)
  workdir = workdirs.prepare(own)
  summary = _earlier(workdir / "summary.json")
  rejected, cost = summary["rejected"], summary["cost"]
  keys = jax.random.split(jax.random.key(own.seed), own.repeats)
  for sigma in tqdm(own.sigmas, desc="σ", disable=not own.progress):
    if str(sigma) in rejected:
      continue
    p_values = np.asarray(_all_p_values(keys, sigma, _sizes(own)))
    counts = (p_values <= own.level).sum(axis=0)
    rejected[str(sigma)] = dict(zip(TESTS, counts.tolist()))
    _write(own, rejected, cost)
  if cost is None:
    cost = compared(jax.random.key(own.seed), own)
  summary = _write(own, rejected, cost)
  plots.power_curves(
    workdir / "goodness_of_fit.png",
    own.sigmas,
    {
      test: [rejected[str(sigma)][test] / own.repeats for sigma in own.sigmas]
      for test in TESTS
    },
    level=own.level,
    title=f"RBM of {own.num_visible} visible and {own.num_hidden} hidden units, "
    f"n = {own.num_particles}",
  )
  for header, rows in _tables(summary):
    print(tables.plain(header, rows), end="\n\n")
  print(f"Power at the level {own.level:g}. Picture and summary.json: {workdir}")


def _earlier(path: Path) -> dict[str, Any]:
  """What an earlier run has found already."""
  summary = summaries.read(str(path)) if path.exists() else {}
  return {"rejected": summary.get("rejected", {}), "cost": summary.get("cost")}


def _write(own: Settings, rejected: Mapping[str, Any], cost: Any) -> dict[str, Any]:
  results = {
    "dataset": "samples of random RBMs",
    "repeats": own.repeats,
    "level": own.level,
    "rejected": rejected,
    "cost": cost,
  }
  return summaries.write(own, results)


# ------------------------------------------------------------------------- power


def _sizes(own: Settings) -> tuple[int, int, int, int]:
  return own.num_visible, own.num_hidden, own.num_particles, own.num_bootstrap


def perturbed_samples(
  key: Key, sigma: float | Array, num_visible: int, num_hidden: int, n: int
) -> tuple[Array, Array]:
  """Exact samples of an RBM whose B was moved by N(0, σ²), and the scores of the RBM.

  Returns: both `[n, num_visible]`.
  """
  b_key, c_key, B_key, moved_key, sample_key = jax.random.split(key, 5)
  B = jax.random.rademacher(B_key, (num_visible, num_hidden), jnp.float32) / 2
  biases = {
    "b": jax.random.normal(b_key, (num_visible,)),
    "c": jax.random.normal(c_key, (num_hidden,)),
  }
  moved = B + sigma * jax.random.normal(moved_key, B.shape)
  rbm = GaussianBernoulliRBM(num_hidden)
  x = rbm.sample(sample_key, {"params": biases | {"B": moved}}, n)
  return x, jax.vmap(partial(rbm.score, {"params": biases | {"B": B}}))(x)


@partial(jax.jit, static_argnames="sizes")
def _all_p_values(keys: Key, sigma: float, sizes: tuple[int, int, int, int]) -> Array:
  """The p-values of every repeat and test, `[repeats, tests]`."""
  num_visible, num_hidden, n, num_bootstrap = sizes

  def of_repeat(key: Key) -> Array:
    sample_key, test_key = jax.random.split(key)
    x, s = perturbed_samples(sample_key, sigma, num_visible, num_hidden, n)
    found = []
    for name, test in TESTS.items():
      size = "num_simulations" if name == "fssd_test" else "num_bootstrap"
      found.append(test(test_key, x, s, **{size: num_bootstrap}).p_value)
    return jnp.stack(found)

  return jax.lax.map(of_repeat, keys)


# -------------------------------------------------------------- seconds and memory


def compared(key: Key, own: Settings) -> dict[str, Any]:
  """Seconds and memory of the streamed test and of one with n × n matrices."""
  sizes = own.num_visible, own.num_hidden, own.compared_particles
  x, s = perturbed_samples(key, 0.0, *sizes)
  h = kernels.median_bandwidth(x, subsample=min(1000, len(x)))
  functions = {
    "streamed": lambda key, x, s, h: ksd_test(
      key, x, s, kernels.imq(h), num_bootstrap=own.num_bootstrap
    ),
    "n × n matrices": partial(matrix_test, num_bootstrap=own.num_bootstrap),
  }
  compiled = {
    name: jax.jit(fn).lower(key, x, s, h).compile() for name, fn in functions.items()
  }
  seconds: dict[str, list[float]] = {name: [] for name in functions}
  p_values = {}
  for _ in range(4):  # in turn: other load then slows both alike
    for name, fn in compiled.items():
      start = time.perf_counter()
      p_values[name] = float(jax.block_until_ready(fn(key, x, s, h)).p_value)
      seconds[name].append(time.perf_counter() - start)
  return {
    "num_particles": own.compared_particles,
    "num_bootstrap": own.num_bootstrap,
    "seconds": {name: min(times[1:]) for name, times in seconds.items()},
    "megabytes": {
      name: fn.memory_analysis().temp_size_in_bytes / 1e6
      for name, fn in compiled.items()
    },
    "p_value": p_values,
  }


def matrix_test(
  key: Key, x: Array, s: Array, h: Array, *, num_bootstrap: int
) -> SteinTest:
  """A `ksd_test` with the kernel imq(h), as one writes it with matrices."""
  n, d = x.shape
  product = partial(jnp.matmul, precision="highest")
  squares = jnp.square(x).sum(axis=1)
  t = jnp.maximum(squares[:, None] + squares[None] - 2 * product(x, x.T), 0) / h
  along = product(s, x.T)
  own = jnp.diagonal(along)
  along = along + along.T - own[:, None] - own[None]
  k, slope, curvature = (1 + t) ** -0.5, -0.5 * (1 + t) ** -1.5, 0.75 * (1 + t) ** -2.5
  u = product(s, s.T) * k + 2 / h * slope * along
  u = u - 2 * d / h * slope - 4 / h * t * curvature
  u = u * (1 - jnp.eye(n)) / (n - 1)
  signs = jax.random.rademacher(key, (n, num_bootstrap), jnp.float32)
  statistic, null = u.sum(), (product(u, signs) * signs).sum(axis=0)
  p_value = (1 + (null >= statistic).sum()) / (1 + num_bootstrap)
  return SteinTest(statistic, p_value, null)


# ------------------------------------------------------------------------ tables


def markdown(summary: Mapping[str, Any]) -> str:
  """The tables of a `summary.json` in Markdown: power, then seconds and memory."""
  return "\n\n".join(tables.markdown(*table) for table in _tables(summary))


def _tables(summary: Mapping[str, Any]) -> list[tuple[list[str], list[list[str]]]]:
  repeats = summary["repeats"]

  def power(rejected: int) -> str:
    share = rejected / repeats
    error = math.sqrt(share * (1 - share) / repeats)
    return f"{share:.2f} ± {error:.2f}"

  found = sorted(summary["rejected"].items(), key=lambda item: float(item[0]))
  rows = [
    [f"{float(sigma):g}", *(power(row[test]) for test in TESTS)] for sigma, row in found
  ]
  result = [(["σ", *TESTS], rows)]
  cost = summary["cost"]
  if cost is not None:
    header = [f"n = {cost['num_particles']}, B = {cost['num_bootstrap']}"]
    rows = [
      [
        name,
        f"{cost['seconds'][name]:.2f}",
        f"{cost['megabytes'][name]:.0f}",
        f"{cost['p_value'][name]:.2f}",
      ]
      for name in cost["seconds"]
    ]
    result.append(([*header, "seconds", "MB", "p-value"], rows))
  return result


if __name__ == "__main__":
  settings.run(main, Settings)
