"""The rows and checkpoints of a training run, and how they survive interruption."""

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from stein_jax import parallel
from stein_jax.types import Metrics

Row = dict[str, Any]
"""A line of the history: `{"step": ..., "<metric>": ...}`."""


def is_array_of(x: Any, kind: Any) -> bool:
  """Whether x is an array whose dtype is of a kind, such as `jnp.inexact`."""
  return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, kind)


class AnotherRun(ValueError):
  """A workdir holds the checkpoints of a run with another key, data or state."""


@contextlib.contextmanager
def interrupts_delayed() -> Iterator[None]:
  """Puts Ctrl-C off to the end of the block, where state and step agree again."""
  if threading.current_thread() is not threading.main_thread():
    yield  # only the main thread hears signals
    return
  heard: list[int] = []
  handler = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, handler)
  if heard:
    signal.raise_signal(signal.SIGINT)


class Record(contextlib.AbstractContextManager):
  """The rows and checkpoints of a run: in memory, and in workdir where there is one."""

  def __init__(
    self, workdir: str | os.PathLike[str] | None, fingerprint: dict[str, str]
  ):
    self.history: list[Row] = []
    # Sums since the last row. They join the checkpoint, so that no step is lost.
    self._window: dict[str, Any] = {}
    self._fingerprint = fingerprint
    self._checkpointer = None
    if workdir is not None:
      folder = Path(workdir).resolve()
      folder.mkdir(parents=True, exist_ok=True)
      self._metrics = folder / "metrics.jsonl"
      self._writes = parallel.is_first_process()
      self._checkpointer = ocp.training.Checkpointer(
        folder / "checkpoints",
        preservation_policy=ocp.training.preservation_policies.LatestN(2),
        cleanup_tmp_directories=True,
      )

  def __exit__(self, *exc_info: object) -> None:
    if self._checkpointer is not None:
      self._checkpointer.close()

  @property
  def checkpoint(self) -> str | None:
    """The newest checkpoint's folder."""
    latest = self._checkpointer.latest if self._checkpointer is not None else None
    return None if latest is None else str(latest.path)

  def has(self, step: int) -> bool:
    """Whether the row of this step, the newest there can be, is written."""
    return bool(self.history) and self.history[-1]["step"] == step

  def add(self, metrics: Metrics, length: int, seconds: float | None) -> None:
    """Adds the metrics [length] of a chunk; seconds is None if it may have compiled."""
    window = self._window or {"sums": {}, "steps": 0, "timed_steps": 0, "seconds": 0.0}
    for name, values in metrics.items():
      total = float(np.sum(values, dtype=np.float64))
      window["sums"][name] = window["sums"].get(name, 0.0) + total
    window["steps"] += length
    window["timed_steps"] += 0 if seconds is None else length
    window["seconds"] += seconds or 0.0
    self._window = window

  def _means(self) -> Row:
    window, self._window = self._window, {}
    if not window:  # somebody deleted the rows and left the checkpoints
      return {}
    timed = window["timed_steps"]
    means = {name: total / window["steps"] for name, total in window["sums"].items()}
    return means | {"ms_per_step": 1e3 * window["seconds"] / timed if timed else None}

  @interrupts_delayed()
  def write(self, step: int, results: Row, logged: bool) -> None:
    """Writes a row; `logged`: with the means since the last row that had them."""
    row = {"step": step} | (self._means() if logged else {}) | results
    self.history.append(row)
    if self._checkpointer is not None and self._writes:
      with self._metrics.open("a") as file:
        file.write(json.dumps(row) + "\n")

  @interrupts_delayed()
  def save(self, step: int, state: Any) -> None:
    """Saves a checkpoint, unless the newest is of this very step."""
    if self._checkpointer is None:
      return
    latest = self._checkpointer.latest
    if latest is None or latest.step != step:
      extra = {"run": self._fingerprint, "window": self._window}
      self._checkpointer.save(step, state, force=True, custom_metadata=extra)

  def restore(self, first_state: Any, resume: bool) -> tuple[int, Any]:
    """Returns (step, state) to start from, and forgets the rows after it."""
    if self._checkpointer is None:
      return 0, first_state
    latest = self._checkpointer.latest
    if latest is None or not resume:
      for checkpoint in list(self._checkpointer.checkpoints):
        self._checkpointer.delete(checkpoint.step)
      if self._writes:
        self._metrics.write_text("")
      return 0, first_state

    extra = self._checkpointer.metadata(latest).custom_metadata
    was, expected = extra["run"], self._fingerprint
    changed = [
      f"{name} was {was.get(name, 'absent')}, expected {expected.get(name, 'absent')}"
      for name in sorted(was.keys() | expected.keys())
      if was.get(name) != expected.get(name)
    ]
    if changed:
      raise AnotherRun(
        f"{latest.path} is a checkpoint of another run: {'; '.join(changed)}. "
        "Use another workdir or resume=False"
      )
    self._window = extra["window"]
    self.history = [row for row in self._read() if row["step"] <= latest.step]
    if self._writes:
      kept = self._metrics.with_suffix(".tmp")
      kept.write_text("".join(json.dumps(row) + "\n" for row in self.history))
      kept.replace(self._metrics)

    # Orbax loads in threads that `jax.enable_x64` does not reach, where only NumPy's
    # arrays keep their 64 bits; and of several processes each needs the whole state.
    def template(x: Any) -> Any:
      wide = is_array_of(x, np.number) and (x.itemsize > 4 or jax.process_count() > 1)
      return np.empty(x.shape, x.dtype) if wide else x

    state = self._checkpointer.load(latest, jax.tree.map(template, first_state))
    shardings = jax.tree.map(lambda x: x.sharding, first_state)
    return latest.step, jax.device_put(state, shardings)

  def _read(self) -> Iterator[Row]:
    lines = self._metrics.read_text().splitlines() if self._metrics.exists() else []
    for line in lines:
      # A killed process may leave half a line; it is later than any checkpoint.
      with contextlib.suppress(json.JSONDecodeError):
        yield json.loads(line)
