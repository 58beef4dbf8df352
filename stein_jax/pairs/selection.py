"""Order statistics by counting: which number has a rank, without sorting any."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stein_jax.parallel import axes
from stein_jax.types import Array

NUM_PIVOTS = 8
"""How many values are counted against at once."""

_LIMB_BITS = 20
_LIMB = 2**_LIMB_BITS


class Count(NamedTuple):
  """A count, high · 2²⁰ + low: the pairs of a million points are beyond int32."""

  high: Array
  low: Array

  def __sub__(self, other: "Count") -> Array:
    """The difference as a float, exact up to the float's digits."""
    return (self.high - other.high).astype(float) * _LIMB + (self.low - other.low)


def plus(a: Count, b: Count) -> Count:
  """a + b."""
  low = a.low + b.low
  return Count(a.high + b.high + (low >> _LIMB_BITS), low & (_LIMB - 1))


def summed(numbers: Array) -> Count:
  """The sum of up to 2²⁰ numbers, each up to 2²⁰, along the first axis."""
  half = _LIMB_BITS // 2
  low = (numbers & (2**half - 1)).sum(axis=0, dtype=jnp.int32)
  high = (numbers >> half).sum(axis=0, dtype=jnp.int32) + (low >> half)
  low = low & (2**half - 1)
  return Count(high >> half, ((high & (2**half - 1)) << half) + low)


def as_count(number: Array | int) -> Count:
  """An integer, which may be traced, as a count."""
  limbs = (number >> _LIMB_BITS, number & (_LIMB - 1))
  return Count(*(jnp.asarray(limb, jnp.int32) for limb in limbs))


def at_most(a: Count, b: Count) -> Array:
  """a ≤ b."""
  return (a.high < b.high) | ((a.high == b.high) & (a.low <= b.low))


def ordered_bits(values: Array) -> Array:
  """Nonnegative floats as integers in the same order."""
  return jax.lax.bitcast_convert_type(values, _integer(values.dtype))


def of_bits(bits: Array, dtype: jnp.dtype) -> Array:
  """The floats whose `ordered_bits` these are."""
  return jax.lax.bitcast_convert_type(bits, dtype)


def beyond(dtype: jnp.dtype) -> Array:
  """An integer above the bits of infinity."""
  return ordered_bits(jnp.asarray(jnp.inf, dtype)) + 1


def two_least(bits: Array, pivot: Array, beyond: Array) -> tuple[Array, Array]:
  """The two least numbers from the pivot on; `beyond` where there is none."""
  bits = jnp.where(bits < pivot, beyond, bits)
  least = bits.min()
  is_least = bits == least
  second = jnp.where(is_least, beyond, bits).min()
  return least, jnp.where(is_least.sum() > 1, least, second)


def merge_two_least(
  a: tuple[Array, Array], b: tuple[Array, Array]
) -> tuple[Array, Array]:
  """The two least of the union of two sets, given the two least of each."""
  least = jnp.minimum(a[0], b[0])
  return least, jnp.minimum(jnp.maximum(a[0], b[0]), jnp.minimum(a[1], b[1]))


class _Bracket(NamedTuple):
  """#{values < low} ≤ rank < #{values < high}, with values as bits."""

  low: Array
  high: Array
  below_low: Count
  below_high: Count


def neighbours(
  counts_below: Callable[[Array], Count],
  two_least_from: Callable[[Array], tuple[Array, Array]],
  ranks: tuple[Count, Count],
  total: Count,
  first: Array,
  dtype: jnp.dtype,
) -> tuple[Array, Array]:
  """The values at two ranks of a set of nonnegative floats, found by counting alone.

  The value at a rank is bracketed between two floats. Each pass narrows the bracket by
  counting the values below some pivots in it. Half of the pivots are near where the
  rank would be if values were spread evenly over the bracket. The others divide the
  bracket evenly, so that a pass always rules out four floats in five, and usually far
  more.

  Args:
    counts_below: bits `[p]` -> how many values are below each, `Count` of `[p]`.
    two_least_from: bits -> the bits of the two least values that are not below them.
    ranks: two ranks, counted from 0, equal or successive.
    total: the number of values.
    first: the bits of the first pivots, at most NUM_PIVOTS: a guess, maybe wrong.
    dtype: of the floats.

  Returns:
    The two values' bits.
  """
  outer = _Bracket(jnp.zeros((), first.dtype), beyond(dtype), as_count(0), total)
  outer = axes.varying_as(first, outer)

  def is_next(bracket: _Bracket) -> Array:
    """Whether the rank's value is the least in the bracket."""
    return at_most(ranks[0], bracket.below_low)

  def narrow(state: tuple[_Bracket, Array]) -> tuple[_Bracket, Array]:
    bracket, pivots = state
    bracket = _narrowed(bracket, pivots, counts_below, ranks[0])
    return bracket, _pivots(bracket, ranks[0])

  bracket, _ = jax.lax.while_loop(
    lambda state: (state[0].high - state[0].low > 1) & ~is_next(state[0]),
    narrow,
    (outer, jnp.resize(first, (NUM_PIVOTS,))),
  )
  low, high = bracket.low, bracket.high
  found = is_next(bracket)
  more = found | at_most(bracket.below_high, ranks[1])
  least, second = jax.lax.cond(
    more, two_least_from, lambda _: (low, low), jnp.where(found, low, high)
  )
  value = jnp.where(found, least, low)
  successor = jnp.where(found, second, least)
  return value, jnp.where(at_most(ranks[1], ranks[0]), value, successor)


def _pivots(bracket: _Bracket, rank: Count) -> Array:
  low, high, below_low, below_high = bracket
  width = (high - low).astype(float)
  inside = below_high - below_low
  position = ((rank - below_low) + 0.5) / inside
  # Evenly spread values would be off by their binomial deviation.
  deviation = jnp.maximum(jnp.sqrt(position * (1 - position) / inside), 1 / 256)
  around = position + deviation * jnp.array([-3.0, -1.0, 1.0, 3.0])
  even = jnp.array([1, 2, 3, 4]) / 5
  offsets = jnp.clip(jnp.concatenate([around, even]), 0.0, 0.999) * width
  return low + jnp.clip(jnp.round(offsets).astype(low.dtype), 1, high - low - 1)


def _narrowed(
  bracket: _Bracket,
  pivots: Array,
  counts_below: Callable[[Array], Count],
  rank: Count,
) -> _Bracket:
  counts = counts_below(pivots)
  bits = jnp.concatenate([bracket.low[None], bracket.high[None], pivots])
  below = jax.tree.map(
    lambda a, b, c: jnp.concatenate([a[None], b[None], c]),
    bracket.below_low,
    bracket.below_high,
    counts,
  )
  reached = at_most(below, rank)
  low = jnp.argmax(jnp.where(reached, bits, -1))
  high = jnp.argmin(jnp.where(reached, jnp.iinfo(bits.dtype).max, bits))
  return _Bracket(
    bits[low],
    bits[high],
    *(jax.tree.map(lambda count, i=i: count[i], below) for i in (low, high)),
  )


def _integer(dtype: jnp.dtype) -> str:
  return f"int{8 * jnp.dtype(dtype).itemsize}"
