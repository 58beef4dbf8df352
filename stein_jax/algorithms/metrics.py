"""Metrics that several rules report: how far the model's side is from the data's."""

from functools import reduce

import jax
import jax.numpy as jnp
import optax

from stein_jax.algorithms.energy import split_batch
from stein_jax.pairs.points import widened
from stein_jax.parallel import axes
from stein_jax.types import Array, Batch, Particles


def direction_norm(direction: Particles, axis_name: str | None) -> Array:
  """√((1/n) Σᵢ ‖φ(xᵢ)‖²), over the points of all devices."""
  direction = widened(direction)
  n = len(jax.tree.leaves(direction)[0])
  squared_norm = optax.tree.norm(direction, squared=True) / n
  return jnp.sqrt(axes.mean(squared_norm, axis_name))


def negatives_spread(
  positives: Batch, negatives: Batch, axis_name: str | None
) -> Array:
  """√(mean ‖x⁻ − x̄‖² / mean ‖x⁺ − x̄‖²), where x̄ is the mean of the positives x⁺.

  The distance of the negatives from the data, relative to the data's own scale: about 1
  if both have one distribution. Without the denominator if all positives are equal.
  """
  x, y = (widened(split_batch(batch)[0]) for batch in (positives, negatives))
  center = axes.mean(jax.tree.map(lambda leaf: leaf.mean(axis=0), x), axis_name)

  def squared_distance(points: Particles) -> Array:
    squares = jax.tree.map(
      lambda leaf, mean: jnp.square(leaf - mean[None]).sum() / len(leaf), points, center
    )
    return axes.mean(reduce(jnp.add, jax.tree.leaves(squares)), axis_name)

  scale, distance = squared_distance(x), squared_distance(y)
  return jnp.sqrt(distance / jnp.where(scale > 0, scale, 1))
