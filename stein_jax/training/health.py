"""Numbers that tell of a bad run: not finite, or finite and running away."""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from stein_jax.training.chunks import TrainingDiverged
from stein_jax.training.records import Row
from stein_jax.types import Algorithm, Batch, PyTree

MAX_ROLLBACKS = 3
"""How often a run goes back to its last good checkpoint: down to 1/8 of the steps."""

SUMS = ("loss", "energy_gap", "gradient_norm", "direction_norm")
"""Metrics that tell of a runaway and grow with the d numbers of a point."""

RATIOS = ("negatives_spread",)
"""Metrics that tell of a runaway and are near 1 in a good run."""

RUNAWAY = 1e4
"""How many times its size at the start a watched metric may reach."""


def check_results(step: int, results: Row, checkpoint: str | None) -> None:
  """Raises TrainingDiverged if the result of an evaluation is not finite."""
  for name, value in results.items():
    if not jnp.isfinite(value):
      raise TrainingDiverged(step, name, value, checkpoint)


@dataclasses.dataclass
class Runaway:
  """Watches for metrics that stay finite and grow without bound.

  A metric of `SUMS` runs away when its mean over a row exceeds `RUNAWAY` times its size
  in the run's first row, and `RUNAWAY` times d; one of `RATIOS` when it exceeds
  `RUNAWAY` times its first size, and `RUNAWAY`. Each rule reports some of them.

  Attributes:
    dimension: d, how many numbers a point has.
    then: "warn" once, "stop" with TrainingDiverged, or "ignore".
    history: the rows of the run so far, of which the first ones count as the start.
  """

  dimension: int
  then: str
  history: Sequence[Row] = ()
  _start: dict[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    for row in self.history:
      for name in (*SUMS, *RATIOS):
        self._size_at_start(name, row)

  def _size_at_start(self, name: str, row: Row) -> float:
    """The metric's size in the first row that has it, or the least that counts."""
    least = float(self.dimension if name in SUMS else 1)
    if row.get(name) is None:
      return least
    return self._start.setdefault(name, max(abs(row[name]), least))

  def check(self, step: int, row: Row, checkpoint: str | None) -> None:
    """Looks at a row of the history.

    Raises:
      TrainingDiverged: a metric runs away, and the run is to stop.
    """
    if self.then == "ignore":
      return
    for name in (*SUMS, *RATIOS):
      value = row.get(name)
      if value is None:
        continue
      if abs(value) <= RUNAWAY * self._size_at_start(name, row):
        continue
      if self.then == "stop":
        reason = f"more than {RUNAWAY:g} times its size at the start"
        raise TrainingDiverged(step, name, value, checkpoint, reason)
      warnings.warn(
        f"{name} is {value:.3g} at step {step}, more than {RUNAWAY:g} times its size "
        "at the start: training runs away, although all numbers are finite. What "
        "usually helps: a lower learning rate, weight decay, a smaller step_size, or a "
        "Direction with leave_one_out=True.",
        RuntimeWarning,
        stacklevel=3,
      )
      self.then = "ignore"
      return


def dimension(state: PyTree, batch: Batch) -> int:
  """d, how many numbers a point has: of the batch, or of particles without data."""
  points = getattr(state, "particles", None) if batch is None else batch
  if isinstance(points, Mapping) and "x" in points:
    points = points["x"]
  return max(1, sum(jnp.size(x[0]) for x in jax.tree.leaves(points) if jnp.ndim(x)))


def damped(algorithm: Algorithm, scale: float) -> Algorithm:
  """The same algorithm with `scale` times its learning rate.

  What is learned (the state's `params`, or else its `particles`) moves by that part of
  an update. For optimizers whose last step is the learning rate that is the same.

  Raises:
    TypeError: a state without such a field.
  """

  def update(key: PyTree, state: PyTree, batch: Batch) -> tuple[PyTree, PyTree]:
    following, metrics = algorithm.update(key, state, batch)
    names = [name for name in ("params", "particles") if hasattr(state, name)]
    if not names:
      raise TypeError(
        'on_nonfinite="rollback" halves the steps of state.params or state.particles, '
        f'and {type(state).__name__} has neither: use on_nonfinite="stop".'
      )
    name = names[0]
    moved = jax.tree.map(
      lambda old, new: (old + scale * (new - old)).astype(new.dtype),
      getattr(state, name),
      getattr(following, name),
    )
    replace = getattr(following, "_replace", None)
    if replace is None:
      replace = functools.partial(dataclasses.replace, following)
    return replace(**{name: moved}), metrics

  return Algorithm(algorithm.init, update)
