"""Order statistics by counting: which number has a rank, without sorting the numbers.

A count is an int32 array whose last axis are its limbs. One limb counts to 2³¹. The
pairs of a million points need two, high · 2²⁰ + low.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from stein_jax.parallel import axes
from stein_jax.types import Array

NUM_PIVOTS = 8
"""How many pivots are counted in one pass."""

_LIMB_BITS = 20
_LIMB = 2**_LIMB_BITS


def limbs_for(total: int) -> int:
  """How many limbs a count up to `total` needs."""
  return 1 if total < 2**31 else 2


def as_count(number: Array | int, limbs: int = 2) -> Array:
  """An integer, which may be traced, as a count: `[...]` -> `[..., limbs]`."""
  if limbs == 1:
    return jnp.asarray(number, jnp.int32)[..., None]
  parts = (number >> _LIMB_BITS, number & (_LIMB - 1))
  return jnp.stack([jnp.asarray(part, jnp.int32) for part in parts], axis=-1)


def plus(a: Array, b: Array) -> Array:
  """a + b."""
  total = a + b
  if total.shape[-1] == 1:
    return total
  high, low = total[..., 0], total[..., 1]
  return jnp.stack([high + (low >> _LIMB_BITS), low & (_LIMB - 1)], axis=-1)


def minus(a: Array, b: Array) -> Array:
  """a − b as a float, exact up to the float's digits."""
  difference = (a - b).astype(float)
  if difference.shape[-1] == 1:
    return difference[..., 0]
  return difference[..., 0] * _LIMB + difference[..., 1]


def summed(numbers: Array, limbs: int = 2) -> Array:
  """The sum of up to 2²⁰ nonnegative int32 along the first axis, as a count."""
  if limbs == 1:
    return numbers.sum(axis=0, dtype=jnp.int32)[..., None]
  half = _LIMB_BITS // 2
  low, middle = (
    (part & (2**half - 1)).sum(axis=0, dtype=jnp.int32)
    for part in (numbers, numbers >> half)
  )
  middle = middle + (low >> half)
  high = (numbers >> _LIMB_BITS).sum(axis=0, dtype=jnp.int32) + (middle >> half)
  low = ((middle & (2**half - 1)) << half) + (low & (2**half - 1))
  return jnp.stack([high, low], axis=-1)


def at_most(a: Array, b: Array) -> Array:
  """a ≤ b."""
  is_at_most = a[..., -1] <= b[..., -1]
  if a.shape[-1] == 1:
    return is_at_most
  return (a[..., 0] < b[..., 0]) | ((a[..., 0] == b[..., 0]) & is_at_most)


def ordered_bits(values: Array) -> Array:
  """Nonnegative floats as integers in the same order."""
  return jax.lax.bitcast_convert_type(values, _integer(values.dtype))


def of_bits(bits: Array, dtype: jnp.dtype) -> Array:
  """The floats whose `ordered_bits` these are."""
  return jax.lax.bitcast_convert_type(bits, dtype)


def beyond(dtype: jnp.dtype) -> Array:
  """An integer above the bits of infinity."""
  return ordered_bits(jnp.asarray(jnp.inf, dtype)) + 1


TwoLeast = tuple[Array, Array]
"""The least number of a set, and the next one, which may equal it."""


def merge_two_least(a: TwoLeast, b: TwoLeast) -> TwoLeast:
  """The two least of the union of two sets, given the two least of each."""
  least = jnp.minimum(a[0], b[0])
  return least, jnp.minimum(jnp.maximum(a[0], b[0]), jnp.minimum(a[1], b[1]))


def two_least(pairs: TwoLeast) -> TwoLeast:
  """The two least of many sets, given the two least of each, `[s]` and `[s]`."""
  nothing = jnp.iinfo(pairs[0].dtype).max
  # One reduction of both together: as two sums over a mask it compiles much slower.
  return jax.lax.reduce(
    pairs, (pairs[0].dtype.type(nothing),) * 2, merge_two_least, (0,)
  )


def two_least_from(bits: Array, pivot: Array, beyond: Array) -> TwoLeast:
  """The two least of some numbers `[s]` that are not below a pivot, or `beyond`."""
  bits = jnp.where(bits < pivot, beyond, bits)
  return two_least((bits, jnp.full_like(bits, beyond)))


def neighbours(
  counts_below: Callable[[Array], Array],
  two_least_from: Callable[[Array], tuple[Array, Array]],
  ranks: tuple[Array, Array],
  total: Array,
  first: Array,
  dtype: jnp.dtype,
) -> tuple[Array, Array]:
  """The values at two ranks of a set of nonnegative floats, found by counting alone.

  The value at a rank is bracketed between two floats. Each pass narrows the bracket by
  counting the values below some pivots in it. Half of the pivots are near where the
  rank would be if values were distributed evenly over the bracket. The others divide
  the bracket evenly, so that a pass always rules out four floats in five, and usually
  far more.

  Args:
    counts_below: bits `[p]` -> how many values are below each, a count `[p, limbs]`.
    two_least_from: bits -> the bits of the two least values that are not below them.
    ranks: two ranks, counted from 0, equal or successive, as counts.
    total: the number of values, as a count.
    first: the bits of the first pivots, at most NUM_PIVOTS: a guess, maybe wrong.
    dtype: of the floats.

  Returns:
    The two values' bits.
  """
  # The bracket: bits of two floats, low < high, and how many values are below each,
  # with #{values < low} ≤ rank < #{values < high}.
  ends = jnp.stack([jnp.zeros((), first.dtype), beyond(dtype)])
  below = jnp.stack([jnp.zeros_like(total), total])
  start = axes.varying_as(first, (ends, below))

  def is_next(below: Array) -> Array:
    """Whether the rank's value is the least in the bracket."""
    return at_most(ranks[0], below[0])

  def is_open(state: tuple[Array, Array, Array]) -> Array:
    (low, high), below, _ = state
    return (high - low > 1) & ~is_next(below)

  def narrow(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    ends, below, pivots = state
    bits = jnp.concatenate([ends, pivots])
    counts = jnp.concatenate([below, counts_below(pivots)])
    reached = at_most(counts, ranks[0])
    low = jnp.where(reached, bits, -1).max()
    high = jnp.where(reached, jnp.iinfo(bits.dtype).max, bits).min()
    ends = jnp.stack([low, high])
    is_end = (
      bits[None] == ends[:, None]
    )  # `argmax` and indexing would compile much slower
    below = jnp.where(is_end[:, :, None], counts[None], 0).max(axis=1)
    return ends, below, _pivots(ends, below, ranks[0])

  state = (*start, jnp.resize(first, (NUM_PIVOTS,)))
  (low, high), below, _ = jax.lax.while_loop(is_open, narrow, state)
  found = is_next(below)
  more = found | at_most(below[1], ranks[1])
  least, second = jax.lax.cond(
    more, two_least_from, lambda _: (low, low), jnp.where(found, low, high)
  )
  value = jnp.where(found, least, low)
  successor = jnp.where(found, second, least)
  return value, jnp.where(at_most(ranks[1], ranks[0]), value, successor)


def _pivots(ends: Array, below: Array, rank: Array) -> Array:
  low, high = ends
  width = (high - low).astype(float)
  inside = minus(below[1], below[0])
  position = (minus(rank, below[0]) + 0.5) / inside
  # Evenly distributed values would be off by their binomial deviation.
  deviation = jnp.maximum(jnp.sqrt(position * (1 - position) / inside), 1 / 256)
  around = position + deviation * jnp.array([-3.0, -1.0, 1.0, 3.0])
  even = jnp.array([1, 2, 3, 4]) / 5
  offsets = jnp.clip(jnp.concatenate([around, even]), 0.0, 0.999) * width
  return low + jnp.clip(jnp.round(offsets).astype(low.dtype), 1, high - low - 1)


def _integer(dtype: jnp.dtype) -> str:
  return f"int{8 * jnp.dtype(dtype).itemsize}"
