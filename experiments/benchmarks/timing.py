"""Times several functions by calling them alternately.

Other load on the machine then slows all of them alike.
"""

import dataclasses
import functools
import importlib
import os
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.shared import summaries, workdirs
from experiments.shared.settings import setting

_SHORTEST = (
  2e-3  # seconds; shorter calls are repeated, so that the clock is precise enough
)
_COLD = 0.5  # seconds; for longer calls it does not matter what was in the cache
_LONGEST = 10.0  # seconds in all for a function, perhaps for a single repeat


@dataclasses.dataclass(frozen=True)
class Benchmark(summaries.FromSummary, workdirs.Run):
  """The settings of a benchmark."""

  cores: int = setting(1, "CPU cores to use; 0 for all.", at_least=0)


@dataclasses.dataclass(frozen=True)
class Repeated(Benchmark):
  """The settings of a benchmark that times functions several times."""

  repeats: int = setting(5, "How often every function is timed.", at_least=1)


class Times(NamedTuple):
  """Seconds per call: the median over repeats, and the quartiles."""

  median: float
  low: float
  high: float


def interleaved(
  functions: Mapping[str, Callable[[], Any]],
  *,
  repeats: int,
  progress: bool = False,
  label: str = "",
) -> dict[str, Times]:
  """Calls all functions in turn, `repeats` times, after a first call of each.

  A repeat of a very short call makes it several times; a call of many seconds has fewer
  repeats.
  """
  calls = {}
  seconds: dict[str, list[float]] = {}
  for name, function in functions.items():
    jax.block_until_ready(function())  # compiles
    first = _timed(function, 1)
    calls[name] = max(1, round(_SHORTEST / first))
    seconds[name] = [first] if first > _SHORTEST else []
  for _ in tqdm(range(repeats), desc=label, disable=not progress, leave=False):
    for name, function in functions.items():
      if sum(seconds[name]) < _LONGEST:
        if seconds[name][-1:] < [_COLD]:  # after another function's data
          jax.block_until_ready(function())
        seconds[name].append(_timed(function, calls[name]))
  return {
    name: Times(*(float(q) for q in np.quantile(found, [0.5, 0.25, 0.75])))
    for name, found in seconds.items()
  }


def _timed(function: Callable[[], Any], calls: int) -> float:
  start = time.perf_counter()
  for _ in range(calls):
    result = function()
  jax.block_until_ready(result)
  return (time.perf_counter() - start) / calls


def matrix_rate(repeats: int) -> float:
  """GFLOP/s of a float32 matrix product whose operands fit in the cache."""
  b, d = 512, 784
  x = jnp.ones((b, d))
  product = jax.jit(functools.partial(jnp.matmul, precision="highest"))
  times = interleaved({"x": lambda: product(x, x.T)}, repeats=repeats)
  return 2 * b * b * d / times["x"].median / 1e9


def use_cores(number: int) -> None:
  """Keeps this process on this many cores; before JAX or PyTorch starts threads."""
  if number and hasattr(os, "sched_setaffinity"):
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, allowed[:number])


def peer(name: str) -> ModuleType | None:
  """A package to compare with, or None if it is not installed."""
  try:
    return importlib.import_module(name)
  except ImportError:
    return None
