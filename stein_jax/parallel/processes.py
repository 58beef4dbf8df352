"""What several processes do together: waiting, and agreeing on numbers."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax._src import distributed  # its barriers, which Orbax uses, have no other door
from jax.experimental import multihost_utils


def is_first_process() -> bool:
  """Whether this process is the one that writes files."""
  return jax.process_index() == 0


def wait_for_all(name: str) -> None:
  """Returns when every process has come here; alone, at once.

  However long one of them takes, unlike a collective, which Gloo gives half a minute.
  """
  client = distributed.global_state.client
  if client is not None and jax.process_count() > 1:
    client.wait_at_barrier(f"{name} {next(_barriers)}", 1000 * 24 * 3600)


_barriers = itertools.count()


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[None]:
  """A block that the first process does before the others begin it.

  Where it fills a cache on a disk that all see, the others find it filled.
  """
  if not is_first_process():
    wait_for_all(name)
  yield
  if is_first_process():
    wait_for_all(name)


def check_alike(what: str, numbers: Sequence[int]) -> None:
  """Raises ValueError unless all processes have the same numbers: all call it."""
  if jax.process_count() > 1:
    of_all = multihost_utils.process_allgather(np.asarray(numbers, np.int32))
    if (of_all != of_all[:1]).any():
      raise ValueError(
        f"{what} differ from process to process, {of_all.tolist()}: they must see the "
        "same folder."
      )
