"""The compiled part of the training loop: a chunk of steps, and checks of its results.

A chunk consumes its carry: the buffers of the old state become those of the new one.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from stein_jax import checks, parallel
from stein_jax.training.feeds import chunk_rows, take_rows
from stein_jax.types import Algorithm, Array, Batch, Key, Metrics

RESERVED = ("step", "ms_per_step", "rollbacks")
"""Names of entries that the loop itself adds to a row: no metric may have them."""


class TrainingDiverged(FloatingPointError):
  """A metric, a parameter or an evaluation is no longer finite, or runs away.

  Attributes:
    step: the update after which this was seen, counted from 1 as in the history.
    metric: the name of the metric. "params", "particles" or "generator_stats" where
      these are not finite although all metrics are.
    value: its value.
    checkpoint: the folder of the last good checkpoint, or None.
    batch: the file with the batch of that step, or None.
    reason: why a finite value is bad; empty otherwise.
  """

  batch: str | None = None

  def __init__(
    self,
    step: int,
    metric: str,
    value: float,
    checkpoint: str | None,
    reason: str = "",
  ):
    self.step, self.metric = step, metric
    self.value, self.checkpoint, self.reason = value, checkpoint, reason
    super().__init__(step, metric, value, checkpoint, reason)

  def __str__(self) -> str:
    saved = f"is {self.checkpoint}" if self.checkpoint else "does not exist"
    batch = f" Its batch is in {self.batch}." if self.batch else ""
    return (
      f"{self.metric} is {self.value} at step {self.step}"
      f"{self.reason and ', ' + self.reason}. The last good checkpoint "
      f"{saved}.{batch} Try a lower learning rate or a smaller step_size."
    )


class Carry(NamedTuple):
  """What one chunk passes to the next."""

  state: Any
  step: Array  # updates done
  epoch: Array  # of `order`; −1: there is no order yet
  order: Array | None  # [N]; None: a stream has its own order


@functools.partial(jax.jit, static_argnames="num_examples")
def first_carry(state: Any, step: Array | int, num_examples: int | None) -> Carry:
  """The carry before the first chunk, which shares no buffer with the caller's arrays.

  One compiled function makes all its arrays. So they have the types and devices that a
  chunk returns; otherwise the second chunk would be compiled again.

  Args:
    state: the algorithm's state.
    step: updates done.
    num_examples: N, or None where a stream has its own order.
  """

  def copy(x: Array) -> Array:
    x = jnp.copy(x)
    return jax.lax.convert_element_type(x, x.dtype) if _is(x, jnp.number) else x

  state = jax.tree.map(copy, state)
  order = None if num_examples is None else jnp.zeros(num_examples, jnp.int32)
  return Carry(state, jnp.asarray(step, jnp.int32), jnp.int32(-1), order)


def carry_shardings(
  carry: Carry, algorithm: Algorithm, batch: Batch, mesh: Mesh
) -> tuple[NamedSharding, ...]:
  """The shardings of a carry's arrays: particles by rows, the rest replicated."""
  tree = jax.tree.map(lambda _: parallel.same(mesh), carry)
  state = parallel.shardings(algorithm, carry.state, mesh, batch=batch)
  tree = tree._replace(state=state)
  return tuple(jax.tree.leaves(tree))


def sharded(carry: Carry, shardings: tuple[NamedSharding, ...] | None) -> Carry:
  """The same carry, sharded over a mesh; unchanged where there are no shardings."""
  if shardings is None:
    return carry
  return parallel.spread(carry, _like(carry, shardings))


def _like(carry: Carry, shardings: tuple[NamedSharding, ...]) -> Carry:
  return jax.tree.unflatten(jax.tree.structure(carry), shardings)


@functools.partial(
  jax.jit,
  static_argnames=(
    "algorithm",
    "transform",
    "batch_size",
    "length",
    "mesh",
    "shardings",
  ),
  donate_argnames="carry",
)
def run_chunk(
  carry: Carry,
  *,
  data: Batch,
  data_key: Key,
  step_key: Key,
  algorithm: Algorithm,
  transform: Callable[[Batch], Batch],
  batch_size: int,
  length: int,
  mesh: Mesh | None = None,
  shardings: tuple[NamedSharding, ...] | None = None,
) -> tuple[Carry, Metrics, dict[str, Array]]:
  """Runs `length` steps.

  Args:
    carry: consumed.
    data: all examples [N, ...]; where the carry has no order, the batches of these
      steps, [length, m, ...].
    data_key: the key of the orders of the epochs.
    step_key: the key of the steps' keys.
    algorithm: with `mesh`, as from `parallel.distribute`.
    transform: batch -> batch.
    batch_size: m.
    length: the number of steps.
    mesh: the devices over which data and carry are sharded.
    shardings: with `mesh`, those of the carry's arrays.

  Returns:
    The next carry, the metrics [length] of the steps, and whether the last state is
    finite: a flag for each field that is learned.
  """
  steps = carry.step + jnp.arange(length, dtype=jnp.int32)
  if carry.order is None:
    batches, epoch, order = data, carry.epoch, None
  else:
    batches, epoch, order = chunk_rows(
      carry.step, carry.epoch, carry.order, data_key, batch_size, length
    )

  def one_step(state: Any, step_and_batch: tuple[Array, Any]) -> tuple[Any, Metrics]:
    step, batch = step_and_batch
    if order is not None:  # here a batch is a list of row numbers
      rows = batch
      batch = take_rows(data, rows) if mesh is None else parallel.take(data, rows, mesh)
    key = jax.random.fold_in(step_key, step)
    returned = algorithm.update(key, state, transform(batch))
    _check_update(state, returned)
    return returned

  state, metrics = jax.lax.scan(one_step, carry.state, (steps, batches))
  carry = Carry(state, carry.step + length, epoch, order)
  results = (metrics, _finite(state))
  if shardings is not None:  # as before, so that the next chunk is the same program
    of_carry = _like(carry, shardings)
    carry = jax.lax.with_sharding_constraint(carry, of_carry)
    results = jax.lax.with_sharding_constraint(results, of_carry.step)  # replicated
  return carry, *results


def _finite(state: Any) -> dict[str, Array]:
  """Whether what is learned is finite. Other fields may hold an infinity on purpose."""

  def is_finite(tree: Any) -> Array:
    leaves = jax.tree.leaves(tree)
    flags = [jnp.isfinite(x).all() for x in leaves if _is(x, jnp.inexact)]
    return functools.reduce(jnp.logical_and, flags, jnp.array(True))

  learned = ("params", "particles", "generator_stats")
  return {n: is_finite(getattr(state, n)) for n in learned if hasattr(state, n)}


def _is(x: Array, kind: Any) -> bool:
  return jnp.issubdtype(x.dtype, kind)


def check_finite(
  step: int, metrics: Metrics, finite: Metrics, length: int, checkpoint: str | None
) -> None:
  """Raises TrainingDiverged at the first step of a chunk that is not finite.

  Args:
    step: updates done before the chunk.
    metrics: of the chunk, [length] each, as NumPy arrays.
    finite: whether each field that is learned is finite after the chunk.
    length: the number of steps.
    checkpoint: the last good checkpoint's folder, or None.
  """
  bad = {name: ~np.isfinite(values) for name, values in metrics.items()}
  firsts = [(int(where.argmax()), name) for name, where in bad.items() if where.any()]
  if firsts:
    index, name = min(firsts)
    value = float(metrics[name][index])
    raise TrainingDiverged(step + index + 1, name, value, checkpoint)
  for name, is_finite in finite.items():
    if not is_finite:
      raise TrainingDiverged(step + length, name, math.nan, checkpoint)


def _check_update(state: Any, returned: Any) -> None:
  """Checks what an update returns, while it is traced, before any step is run.

  Raises:
    TypeError: an update that does not return a pair, or a state of another structure,
      shape or type than before; metrics that are not a dict.
    ValueError: a metric is not a scalar, or has a reserved name.
  """
  checks.pair("algorithm.update", returned, "state, metrics")
  following, metrics = returned
  checks.leaves("the state that algorithm.update returns", following)
  before, after = (_types(tree) for tree in (state, following))
  structures: list[Any] = [jax.tree.structure(tree) for tree in (state, following)]
  if before != after or structures[0] != structures[1]:
    names = [n for n in before | after if before.get(n) != after.get(n)]
    differ = [f"{n}: {before.get(n)} -> {after.get(n)}" for n in names]
    raise TypeError(
      "algorithm.update must return a state like the one that it gets, got "
      f"{'; '.join(differ) or 'another structure'}."
    )
  checks.metrics("algorithm.update", metrics)
  for name in metrics:
    if name in RESERVED:
      raise ValueError(f"the history has its own {name}: rename the metric")


def _types(tree: Any) -> dict[str, str]:
  """The type and shape of each array, by its name."""
  return {
    "state" + jax.tree_util.keystr(path): f"{jax.typeof(x).dtype}{list(np.shape(x))}"
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
