"""The rows and checkpoints of a run, from which it continues after an interruption."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stein_jax import parallel
from stein_jax.training.files import write_atomically
from stein_jax.training.interrupts import Interrupts
from stein_jax.types import Metrics, PyTree

Row = dict[str, Any]
"""A line of the history: `{"step": ..., "<metric>": ...}`."""


class AnotherRun(ValueError):
  """A workdir holds the checkpoints of a run with another key, data or state."""


def describe(name: str, tree: PyTree) -> dict[str, str]:
  """Names each leaf with its type and shape: {"state.params['w']": "float32[3]"}."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    name + jax.tree_util.keystr(path): jax.typeof(x).str_short() for path, x in leaves
  }


class Record(contextlib.AbstractContextManager):
  """The rows and checkpoints of a run: in memory, and in a workdir if there is one.

  Args:
    workdir: the folder, or None.
    fingerprint: what identifies the run. A checkpoint with another one is rejected.
    interrupts: the run's own. A row or a checkpoint is written whole.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str] | None,
    fingerprint: dict[str, str],
    interrupts: Interrupts,
  ):
    self.history: list[Row] = []
    # Sums since the last row. A checkpoint holds them too, so that no step is lost.
    self._window: dict[str, Any] = {}
    self._fingerprint = fingerprint
    self._interrupts = interrupts
    self._checkpointer: Any = None
    if workdir is not None:
      # Imported here because it takes longer than all the rest of the package.
      from orbax.checkpoint import v1 as ocp

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
    """Whether the newest row is of this step."""
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
    if not window:  # the rows were deleted, and the checkpoints were not
      return {}
    timed = window["timed_steps"]
    means = {name: total / window["steps"] for name, total in window["sums"].items()}
    return means | {"ms_per_step": 1e3 * window["seconds"] / timed if timed else None}

  def write(self, step: int, results: Row, logged: bool) -> None:
    """Writes a row; `logged`: with the means since the last row that had them."""
    with self._interrupts.delayed("writing a row"):
      row = {"step": step} | (self._means() if logged else {}) | results
      self.history.append(row)
      if self._checkpointer is not None and self._writes:
        with self._metrics.open("a") as file:
          file.write(_lines([row]))

  def save(self, step: int, state: Any) -> None:
    """Saves a checkpoint, unless the newest is of this very step."""
    if self._checkpointer is None:
      return
    with self._interrupts.delayed("saving a checkpoint"):
      latest = self._checkpointer.latest
      if latest is None or latest.step != step:
        extra = {"run": self._fingerprint, "window": self._window}
        self._checkpointer.save(step, state, force=True, custom_metadata=extra)

  def restore(self, first_state: Any, resume: bool) -> tuple[int, Any]:
    """Returns (step, state) to start from, and drops the rows after it.

    Args:
      first_state: the state of step 0, of which a restored one has the types, shapes
        and shardings.
      resume: False deletes the checkpoints and rows instead.

    Raises:
      AnotherRun: the newest checkpoint has another fingerprint.
    """
    if self._checkpointer is None:
      return 0, first_state
    latest = self._checkpointer.latest
    if latest is None or not resume:
      for checkpoint in list(self._checkpointer.checkpoints):
        self._checkpointer.delete(checkpoint.step)
      if self._writes:
        write_atomically(self._metrics, "")
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
      write_atomically(self._metrics, _lines(self.history))

    # Orbax loads in threads, which `jax.enable_x64` does not reach and where only
    # NumPy arrays keep their 64 bits. With several processes each loads the whole.
    def template(x: Any) -> Any:
      is_number = jnp.issubdtype(x.dtype, np.number)
      on_host = is_number and (x.itemsize > 4 or jax.process_count() > 1)
      return np.empty(x.shape, x.dtype) if on_host else x

    state = self._checkpointer.load(latest, jax.tree.map(template, first_state))
    shardings = jax.tree.map(lambda x: x.sharding, first_state)
    return latest.step, jax.device_put(state, shardings)

  def _read(self) -> Iterator[Row]:
    lines = self._metrics.read_text().splitlines() if self._metrics.exists() else []
    for line in lines:
      # A killed process may leave half a line, which is later than any checkpoint.
      with contextlib.suppress(json.JSONDecodeError):
        yield json.loads(line)


def _lines(rows: list[Row]) -> str:
  return "".join(json.dumps(row) + "\n" for row in rows)
