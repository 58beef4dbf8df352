"""Times of functions that are called in turn: what slows the machine slows all."""

import dataclasses
import functools
import importlib
import os
import resource
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

_SHORTEST = 2e-3  # seconds that a clock is trusted with
_COLD = 0.5  # seconds beyond which a call does not mind what was in the cache
_LONGEST = 10.0  # seconds in all for a function, which may mean a single repeat


@dataclasses.dataclass(frozen=True)
class Benchmark(summaries.FromSummary, workdirs.Run):
  """The settings of a benchmark."""

  repeats: int = setting(5, "How often every function is timed.", at_least=1)
  cores: int = setting(1, "CPU cores to use; 0 for all.", at_least=0)


class Times(NamedTuple):
  """Seconds a call: the median over repeats, and the quartiles."""

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

  A call that is too short to be timed is made several times in a repeat, and one that
  takes many seconds has fewer repeats.
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
  """10⁹ floating-point operations a second of a float32 product in the cache."""
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
  """A package to compare with, or None where it is not installed."""
  try:
    return importlib.import_module(name)
  except ImportError:
    return None


def peak_megabytes() -> float:
  """The most memory that this process has held so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
