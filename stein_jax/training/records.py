"""The rows and checkpoints of a run, from which it continues after an interruption."""

import contextlib
import errno
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from stein_jax import parallel
from stein_jax.training import folder as folders
from stein_jax.training.files import open_atomically, write_atomically
from stein_jax.training.identity import Fingerprint
from stein_jax.training.interrupts import Interrupts
from stein_jax.types import Batch, Metrics

BAD_BATCH = "nonfinite_batch.npz"
DAMAGED = "damaged_checkpoints"
"""Where checkpoints that cannot be read are moved to."""

Row = dict[str, Any]
"""A line of the history: `{"step": ..., "<metric>": ...}`."""


class AnotherRun(ValueError):
  """A workdir holds the checkpoints of another run: other data, another rule, ..."""


class Record(contextlib.AbstractContextManager):
  """The rows and checkpoints of a run: in memory, and in a workdir if there is one.

  Args:
    workdir: the folder, or None.
    fingerprint: what identifies the run; None without a workdir. A checkpoint with
      another one is rejected.
    interrupts: the run's own. A row or a checkpoint is written whole.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str] | None,
    fingerprint: Fingerprint | None,
    interrupts: Interrupts,
  ):
    self.history: list[Row] = []
    self.rollbacks = 0
    """How often the run went back to a checkpoint because of a bad number."""
    # Sums since the last row. A checkpoint holds them too, so that no step is lost.
    self._window: dict[str, Any] = {}
    self._fingerprint = fingerprint
    self._interrupts = interrupts
    self._checkpointer: Any = None
    self._claim: folders.Claim | None = None
    if workdir is not None:
      # Imported here because it takes longer than all the rest of the package.
      from orbax.checkpoint import v1 as ocp

      self._folder = folders.checked(workdir)
      self._metrics = self._folder / folders.METRICS
      self._writes = parallel.is_first_process()
      if self._writes:
        self._claim = folders.Claim(self._folder)
      self._checkpointer = ocp.training.Checkpointer(
        self._folder / folders.CHECKPOINTS,
        preservation_policy=ocp.training.preservation_policies.LatestN(2),
        cleanup_tmp_directories=True,
      )

  def __exit__(self, *exc_info: object) -> None:
    if self._checkpointer is not None:
      self._checkpointer.close()
    if self._claim is not None:
      self._claim.__exit__(*exc_info)

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

  def write(self, step: int, results: Row, logged: bool) -> Row:
    """Writes and returns a row; `logged`: with the means since the last such row."""
    with self._interrupts.delayed("writing a row"):
      row = {"step": step} | (self._means() if logged else {}) | results
      if self.rollbacks:
        row["rollbacks"] = self.rollbacks
      self.history.append(row)
      if self._checkpointer is not None and self._writes:
        with self._metrics.open("a") as file:
          file.write(_lines([row]))
    return row

  def save(self, step: int, state: Any) -> None:
    """Saves a checkpoint, unless the newest is of this very step."""
    if self._checkpointer is None or self._fingerprint is None:
      return
    with self._interrupts.delayed("saving a checkpoint"):
      latest = self._checkpointer.latest
      if latest is None or latest.step != step:
        extra = {
          "run": self._fingerprint.as_json(),
          "window": self._window,
          "rollbacks": self.rollbacks,
        }
        try:
          self._checkpointer.save(
            step, _plain(state), force=True, custom_metadata=extra
          )
        except (OSError, ValueError) as error:
          # TensorStore raises ValueError where the disk is full.
          code = getattr(error, "errno", None) or errno.EIO
          reason = getattr(error, "strerror", None) or str(error)[:200]
          where = f"step {step} in {self._folder / folders.CHECKPOINTS}"
          raise OSError(code, f"cannot save {where}: {reason}") from error
        if self._claim is not None:
          self._claim.save(step)

  def keep_batch(self, step: int, batch: Batch) -> str | None:
    """Writes the batch of a step to a file beside the rows, and returns its name."""
    if self._checkpointer is None or not self._writes:
      return None
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    arrays: dict[str, Any] = {
      "batch" + jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves
    }
    target = self._folder / BAD_BATCH
    with open_atomically(target) as file:
      np.savez(file, **arrays, step=np.asarray(step))
    return str(target)

  def restore(self, first_state: Any, resume: bool) -> tuple[int, Any]:
    """Returns (step, state) to start from, and drops the rows after it.

    Args:
      first_state: the state of step 0, of which a restored one has the types, shapes
        and shardings.
      resume: False deletes the checkpoints and rows instead.

    Raises:
      AnotherRun: the newest checkpoint has another fingerprint.
      ValueError: there are rows of a run whose checkpoints are gone or damaged.
    """
    if self._checkpointer is None:
      return 0, first_state
    if not resume:
      self._start_again()
      return 0, first_state
    tried = []
    while (latest := self._checkpointer.latest) is not None:
      try:
        extra, state = self._load(latest, first_state)
      except AnotherRun:
        raise
      except Exception as error:  # whatever orbax meets in a damaged checkpoint
        tried.append(self._set_aside(latest, error))
        continue
      self._window = extra["window"]
      self.rollbacks = max(self.rollbacks, extra.get("rollbacks", 0))
      self.history = [row for row in self._read() if row["step"] <= latest.step]
      if self._writes:
        write_atomically(self._metrics, _lines(self.history))
      return latest.step, state
    saved = self._claim.newest if self._claim is not None else None
    if tried or saved is not None:
      found = f"; damaged were {', '.join(tried)}" if tried else ""
      raise ValueError(
        f"{self._folder} holds a run of {saved or 'some'} steps, but no checkpoint of "
        f"it that can be read{found}. Put one back, or start again with resume=False, "
        f"which deletes {self._metrics.name}."
      )
    self._start_again()
    return 0, first_state

  def _start_again(self) -> None:
    """Deletes the rows and checkpoints of this folder's run."""
    for checkpoint in list(self._checkpointer.checkpoints):
      self._checkpointer.delete(checkpoint.step)
    if self._writes:
      write_atomically(self._metrics, "")
    if self._claim is not None:
      self._claim.forget()

  def _load(self, checkpoint: Any, first_state: Any) -> tuple[Row, Any]:
    """The metadata and the state of a checkpoint.

    Raises:
      AnotherRun: it has another fingerprint.
      Exception: it is damaged.
    """
    if self._claim is not None:
      self._claim.check(checkpoint.step)
    extra = self._checkpointer.metadata(checkpoint).custom_metadata
    changed = self._fingerprint.differences(extra["run"]) if self._fingerprint else []
    if changed:
      raise AnotherRun(
        f"{checkpoint.path} is a checkpoint of another run: {'; '.join(changed)}. "
        "Use another workdir or resume=False"
      )

    # Orbax loads in threads, which `jax.enable_x64` does not reach and where only
    # NumPy arrays keep their 64 bits. With several processes each loads the whole.
    def template(x: Any) -> Any:
      is_number = jnp.issubdtype(x.dtype, np.number)
      on_host = is_number and (x.itemsize > 4 or jax.process_count() > 1)
      return np.empty(x.shape, x.dtype) if on_host else x

    wanted = _plain(jax.tree.map(template, first_state))
    loaded = self._checkpointer.load(checkpoint, wanted)
    structure = jax.tree.structure(first_state)
    state = jax.tree.unflatten(structure, jax.tree.leaves(loaded))
    shardings = jax.tree.map(lambda x: x.sharding, first_state)
    return extra, jax.device_put(state, shardings)

  def _set_aside(self, checkpoint: Any, error: Exception) -> str:
    """Moves a damaged checkpoint out of the way, and says so in one line."""
    target = self._folder / DAMAGED / f"{checkpoint.step}"
    while target.exists():
      target = target.with_name(target.name + "_")
    if self._writes:
      target.parent.mkdir(exist_ok=True)
      Path(checkpoint.path).rename(target)
      reason = str(error).strip().splitlines() or [""]
      print(
        f"{checkpoint.path} is damaged ({type(error).__name__}: {reason[0][:120]}); it "
        f"was moved to {target}, and the run goes on from the checkpoint before.",
        file=sys.stderr,
      )
    parallel.wait_for_all("set aside")
    self._checkpointer.reload()
    return str(checkpoint.path)

  def _read(self) -> Iterator[Row]:
    lines = self._metrics.read_text().splitlines() if self._metrics.exists() else []
    for line in lines:
      # A killed process may leave half a line, which is later than any checkpoint.
      with contextlib.suppress(json.JSONDecodeError):
        yield json.loads(line)


def _plain(tree: Any) -> Any:
  """The same leaves, with lists for `Partial` objects, which orbax cannot rebuild."""

  def plain(x: Any) -> Any:
    return [_plain(x.args), _plain(x.keywords)] if isinstance(x, Partial) else x

  return jax.tree.map(plain, tree, is_leaf=lambda x: isinstance(x, Partial))


def _lines(rows: list[Row]) -> str:
  """JSON has no NaN and no infinity: they become null."""
  finite = (
    {
      k: None if isinstance(v, float) and not math.isfinite(v) else v
      for k, v in row.items()
    }
    for row in rows
  )
  return "".join(json.dumps(row, allow_nan=False) + "\n" for row in finite)
