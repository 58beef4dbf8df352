"""Ctrl-C during training: the first waits for a good moment, the second does not.

A chunk of steps consumes the state from which it starts, so a run can only be saved
between chunks.
"""

import atexit
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import jax

from stein_jax.types import PyTree


class Interrupts:
  """Delays Ctrl-C in certain blocks of one run.

  Attributes:
    first_came: whether there was a Ctrl-C. The next is not delayed.
    at_once: whether a second Ctrl-C has interrupted a block. Then nothing is saved.
  """

  def __init__(self) -> None:
    self.first_came = False
    self.at_once = False

  @contextlib.contextmanager
  def delayed(self, doing: str) -> Iterator[None]:
    """Delays the first Ctrl-C to the end of the block; a second interrupts it at once.

    Both are then passed to the handler that was set before the block. Python's own
    raises KeyboardInterrupt.

    Args:
      doing: what the user waits for after the first Ctrl-C, printed on stderr.
    """
    outer = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or outer in (None, signal.SIG_IGN):
      yield  # this thread or process receives no Ctrl-C
      return
    is_pending = False

    def handle(number: int, frame: FrameType | None) -> None:
      nonlocal is_pending
      if not self.first_came:
        self.first_came = is_pending = True
        message = f"{doing}; press Ctrl-C again to stop at once"
        print(f"\n{message}", file=sys.stderr, flush=True)
        return
      self.at_once = True
      signal.signal(signal.SIGINT, outer)
      signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, handle)
    try:
      yield
    except Exception as error:
      if self.at_once:  # raised within a JAX callback, and JAX raises another error
        raise KeyboardInterrupt from error
      raise
    finally:
      signal.signal(signal.SIGINT, outer)
    if is_pending:
      signal.raise_signal(signal.SIGINT)


def wait(arrays: PyTree) -> None:
  """Returns when the arrays are computed; Ctrl-C interrupts it.

  `jax.block_until_ready` blocks in C++, where Python handles no signals. So does the
  call that starts a program, in two cases on a CPU: programs with host callbacks, and
  programs of less than about 1000 operations, run within the call.
  """
  pause = 2e-5  # seconds; then about 1 % of the time waited so far
  try:
    for x in jax.tree.leaves(arrays):
      while not x.is_ready():
        time.sleep(pause)
        pause = min(1.01 * pause, 0.05)
  except KeyboardInterrupt:
    atexit.register(_exit_without_waiting, arrays)
    raise


def _exit_without_waiting(arrays: PyTree) -> None:
  """Ends a process that Ctrl-C is ending anyway, while the device still computes.

  Otherwise JAX, which runs its own clean-up at exit, waits for the running program.
  """
  error = getattr(sys, "last_type", None)  # of an error that ended the program
  interrupted = isinstance(error, type) and issubclass(error, KeyboardInterrupt)
  interactive = hasattr(sys, "ps1")  # there the error ended a command, not the program
  is_running = not all(x.is_ready() for x in jax.tree.leaves(arrays))
  if interrupted and is_running and not interactive:
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)  # as Python itself does after its clean-up
