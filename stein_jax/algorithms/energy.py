"""Energies and scores of one point or of a batch."""

import jax

from stein_jax import checks
from stein_jax.types import (
  Array,
  Batch,
  EnergyFn,
  Params,
  Particles,
  PyTree,
  ReferenceLike,
)

_LABELS = {"context", "label", "labels"}
"""Keys that are no coordinates of a point, as "x" and "y" may be."""


def split_batch(batch: Batch) -> tuple[Particles, tuple[PyTree, ...]]:
  """Returns the points, and the context of a batch `{"x": ..., "context": ...}`.

  Only the points are moved, differentiated and seen by a kernel. The context is a tuple
  of zero or one pytrees, passed on as `energy_fn(params, x, *context)`.

  Raises:
    ValueError: a dict of points and labels with other keys.
  """
  if isinstance(batch, dict) and "x" in batch:
    if set(batch) == {"x", "context"}:
      return batch["x"], (batch["context"],)
    if not _LABELS.isdisjoint(batch):
      raise ValueError(
        'a batch with labels must be {"x": ..., "context": ...}, got the keys '
        f"{sorted(map(str, batch))}."
      )
  return batch, ()


def check_energy(energy_fn: EnergyFn) -> None:
  """Raises TypeError unless it is a function of params, a point, maybe a context."""
  checks.function("energy_fn", energy_fn, "params, x", "params, x, context")


def check_batch(batch: Batch, name: str = "the batch") -> int:
  """Returns m, the number of points `[m, ...]` of a batch.

  Raises:
    ValueError: no points, leaves of different lengths, or a context of another length.
    TypeError: points that are not of a floating-point type.
  """
  x, context = split_batch(batch)
  m = checks.num_particles(x, name)
  checks.context(context, m)
  return m


def check_reference(data: Batch, reference: Batch | None) -> None:
  """Raises an error unless reference points are a batch of points like the data.

  Raises:
    TypeError: points that are not floating-point arrays.
    ValueError: no points, or a point or context of another shape than the data's.
  """
  if reference is None:
    return
  check_batch(reference, "reference")
  x, context = split_batch(data)
  others, other_context = split_batch(reference)
  checks.same_event(x, others, ("data", "reference"))
  if len(context) != len(other_context):
    raise ValueError(
      'either both of data and reference have a context, {"x": ..., "context": ...}, '
      "or neither."
    )
  names = ("the context of data", "the context of reference")
  checks.same_event(context, other_context, names)


def check_reference_source(reference: ReferenceLike) -> None:
  """Raises an error unless a rule can take this as its reference points.

  Raises:
    TypeError: neither points nor a function of a key.
    ValueError: no points.
  """
  if callable(reference):
    checks.function("reference", reference, "key")
  elif reference is not None:
    check_batch(reference, "reference")


def with_points(batch: Batch, particles: Particles) -> Batch:
  """The same batch with other points."""
  _, context = split_batch(batch)
  return {"x": particles, "context": context[0]} if context else particles


def score(params: Params, energy_fn: EnergyFn, x: PyTree, *context: PyTree) -> PyTree:
  """∇ₓ log p(x) = −∇ₓ E(x; θ) of one point, shaped like x.

  Raises:
    TypeError: `energy_fn` is no function, or x is not floating-point.
    ValueError: `energy_fn` does not return a scalar.
  """
  checks.arrays("x", x)
  checks.floating("x", x)
  checks.scalar_energy(energy_fn, params, x, *context)
  gradient = jax.grad(energy_fn, argnums=1)(params, x, *context)
  return jax.tree.map(lambda g: -g, gradient)


def score_of(
  energy_fn: EnergyFn, params: Params, x: PyTree, *context: PyTree
) -> PyTree:
  """`score` with the function first: `Partial(partial(score_of, energy_fn), params)`.

  This is a score function of one point whose parameters are leaves of a pytree, so that
  new values need no new compilation.
  """
  return score(params, energy_fn, x, *context)


def scores(params: Params, energy_fn: EnergyFn, batch: Batch) -> Particles:
  """The scores of many points, `[n, ...]`, shaped like the points of the batch."""
  check_batch(batch, "particles")
  x, context = split_batch(batch)
  return jax.vmap(lambda x, *c: score(params, energy_fn, x, *c))(x, *context)


def energies(params: Params, energy_fn: EnergyFn, batch: Batch) -> Array:
  """E(x; θ) of many points, `[n]`.

  Raises:
    ValueError: `energy_fn` does not return a scalar.
  """
  check_batch(batch, "particles")
  x, context = split_batch(batch)
  point = jax.tree.map(lambda leaf: leaf[0], (x, *context))
  checks.scalar_energy(energy_fn, params, *point)
  return jax.vmap(lambda x, *c: energy_fn(params, x, *c))(x, *context)
