"""Barriers between processes, and a check that they agree.

With one process all of these return at once. Modules that only several processes need
are imported inside the functions, to keep `import stein_jax` fast.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

_DAY = 24 * 3600 * 1000
"""In milliseconds; the longest that a process waits for another."""

_numbers = itertools.count()  # a barrier's name must not occur twice


def is_first_process() -> bool:
  """Whether this process is the one that writes files."""
  return jax.process_index() == 0


def wait_for_all(name: str) -> None:
  """Returns when every process has called it.

  A process may take up to a day to arrive. (A collective operation would end after
  half a minute with Gloo, JAX's default between CPUs.)

  Args:
    name: the same in all processes. It occurs in the error of a process that waits
      for one that has ended.
  """
  if jax.process_count() > 1:
    from orbax.checkpoint.multihost import get_barrier_sync_fn

    get_barrier_sync_fn()(key=f"{name} {next(_numbers)}", timeout_ms=_DAY)


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[None]:
  """A block that the first process finishes before the others begin it.

  Where the block fills a cache on a shared disk, the others find it filled.
  """
  if not is_first_process():
    wait_for_all(name)
  yield
  if is_first_process():
    wait_for_all(name)


def check_alike(what: str, numbers: Sequence[int]) -> None:
  """Raises ValueError unless all processes have the same numbers.

  Every process must call it.
  """
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    of_all = multihost_utils.process_allgather(np.asarray(numbers, np.int32))
    if (of_all != of_all[:1]).any():
      raise ValueError(
        f"{what} differ from process to process, {of_all.tolist()}: they must use the "
        "same folder."
      )
