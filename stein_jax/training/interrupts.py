"""Ctrl-C and SIGTERM: the first waits for a good moment, the second does not.

A chunk of steps consumes the state from which it starts, so a run can only be saved
between chunks.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import jax

from stein_jax.types import PyTree

TERMINATED = 128 + signal.SIGTERM
"""The exit code of a program that SIGTERM has ended, 143."""

PATIENCE = 5.0
"""After SIGTERM, seconds that a chunk of steps may still take."""


class Terminated(SystemExit):
  """SIGTERM came, as schedulers send it: the run is saved and the program ends."""

  def __init__(self) -> None:
    super().__init__(TERMINATED)


class Interrupts:
  """Delays Ctrl-C and SIGTERM in certain blocks of one run.

  Attributes:
    first_came: whether there was a Ctrl-C or SIGTERM. The next is not delayed.
    at_once: whether a second one has interrupted a block. Then nothing is saved.
  """

  def __init__(self) -> None:
    self.first_came = False
    self.at_once = False

  @contextlib.contextmanager
  def terminable(self) -> Iterator[None]:
    """In this block SIGTERM raises `Terminated`.

    Only if nobody else handles it: JAX does so for several processes.
    """
    if not _receives_signals() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
      yield
      return

    def handle(number: int, frame: FrameType | None) -> None:
      raise Terminated

    signal.signal(signal.SIGTERM, handle)
    try:
      yield
    finally:
      signal.signal(signal.SIGTERM, signal.SIG_DFL)

  @contextlib.contextmanager
  def delayed(self, doing: str, patience: float | None = None) -> Iterator[None]:
    """Delays the first signal to the end of the block; a second interrupts it at once.

    Both are then passed to the handler that was set before the block. Python's own of
    Ctrl-C raises KeyboardInterrupt, and that of `terminable` raises Terminated.

    Args:
      doing: what the user waits for after the first signal, printed on stderr.
      patience: after SIGTERM, how many seconds the block may still take. Then the
        program ends, with the exit code 143.
    """
    if not _receives_signals():
      yield
      return
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    # The others are not handled by Python: they end the process, or are ignored.
    outer = {int(n): handler for n, handler in handlers.items() if callable(handler)}
    pending: list[int] = []
    timer: threading.Timer | None = None

    def restore() -> None:
      for number, handler in outer.items():
        signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
      nonlocal timer
      if self.first_came:
        self.at_once = True
        restore()
        signal.raise_signal(number)
        return
      self.first_came = True
      pending.append(number)
      again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
      print(f"\n{doing}{again}", file=sys.stderr, flush=True)
      if number == signal.SIGTERM and patience is not None:
        timer = threading.Timer(patience, _end, [doing])
        timer.daemon = True
        timer.start()

    for number in outer:
      signal.signal(number, handle)
    try:
      yield
    except Exception as error:
      if self.at_once:  # raised within a JAX callback, and JAX raises another error
        raise KeyboardInterrupt from error
      raise
    finally:
      restore()
      if timer is not None:
        timer.cancel()
    for number in pending:
      signal.raise_signal(number)


def _receives_signals() -> bool:
  return threading.current_thread() is threading.main_thread()


def _end(doing: str) -> None:
  """Ends the process from any thread, also while the main one waits for a device."""
  message = f"{doing} takes too long after SIGTERM: the last checkpoint is the newest"
  print(message, file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(TERMINATED)


def wait(arrays: PyTree) -> None:
  """Returns when the arrays are computed; Ctrl-C interrupts it.

  `jax.block_until_ready` blocks in C++, where Python handles no signals, so a thread
  calls it. The call that starts a program blocks as well, in two cases on a CPU:
  programs with host callbacks, and programs of less than about 1000 operations, run
  within the call.
  """
  done = threading.Event()
  errors: list[BaseException] = []

  def block() -> None:
    try:
      jax.block_until_ready(arrays)
    except BaseException as error:
      errors.append(error)
    finally:
      done.set()

  try:
    threading.Thread(target=block, name="stein_jax-wait", daemon=True).start()
    done.wait()
  except KeyboardInterrupt:
    atexit.register(_exit_without_waiting, arrays)
    raise
  if errors:
    raise errors[0]


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
