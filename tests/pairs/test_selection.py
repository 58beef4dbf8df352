"""Order statistics by counting, against NumPy's sort."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stein_jax.pairs import selection

PASSES = []


@jax.jit
def select(values, rank, first):
  bits = selection.ordered_bits(values)

  def counts_below(pivots):
    jax.debug.callback(lambda: PASSES.append(1))
    return selection.summed((bits[:, None] < pivots[None]).astype(jnp.int32))

  found = selection.neighbours(
    counts_below,
    lambda pivot: selection.two_least_from(bits, pivot, selection.beyond(values.dtype)),
    (selection.as_count(rank), selection.as_count(rank + 1)),
    selection.as_count(len(values)),
    selection.ordered_bits(first),
    values.dtype,
  )
  return tuple(selection.of_bits(b, values.dtype) for b in found)


def num_passes(values, rank, first=(0.5, 1.0, 2.0)):
  PASSES.clear()
  got = select(values, rank, np.asarray(first, values.dtype))
  jax.effects_barrier()
  want = np.sort(values)[rank : rank + 2]
  assert [float(v) for v in got] == [float(v) for v in want]
  return len(PASSES)


RNG = np.random.default_rng(0)
N = 20_000
SETS = {
  "narrow": RNG.chisquare(50, N),
  "even": RNG.random(N),
  "heavy tails": np.abs(RNG.standard_cauchy(N)),
  "many magnitudes": np.exp(12 * RNG.normal(size=N)),
  "ties": RNG.integers(0, 5, N),
  "zeros": np.zeros(N),
  "below the least normal number": RNG.random(N) * 1e-40,
  "infinite": np.where(RNG.random(N) < 0.7, np.inf, 1.0),
}


@pytest.mark.parametrize("name", SETS)
def test_any_distribution_is_searched_in_few_passes(name):
  values = SETS[name].astype(np.float32)
  for rank in (0, N // 2 - 1, N - 2):
    assert num_passes(values, rank) <= 16  # log₅ of the number of floats is 13.4


def test_good_first_pivots_save_passes_and_bad_ones_cost_few():
  values = SETS["narrow"].astype(np.float32)
  middle = np.median(values)
  near = np.linspace(0.99, 1.01, 8) * middle
  assert num_passes(values, N // 2, near) <= 6
  assert num_passes(values, N // 2, near + 1000) <= 12
  assert num_passes(values, N // 2, near - middle * 0.9) <= 12


# Hypothesis tries constants of the modules that are loaded, of which few are float32.
@settings(
  max_examples=50,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.filter_too_much],
)
@given(
  values=hnp.arrays(
    np.float32, 9, elements=st.floats(0, width=32, allow_subnormal=False)
  ),
  rank=st.integers(0, 7),
)
def test_any_values(values, rank):
  num_passes(values, rank)


def test_float64_and_16_bits(x64):
  num_passes(np.exp(300 * RNG.normal(size=50)), 24)
  num_passes(np.asarray(RNG.random(50), jnp.bfloat16), 24)


def test_counts_beyond_int32():
  rng = np.random.default_rng(1)
  numbers = rng.integers(0, 2**20, size=(2**16, 3))
  got = selection.summed(jnp.asarray(numbers, jnp.int32))
  want = numbers.sum(axis=0)
  assert (want > 2**34).all()

  def number(counts):
    high, low = np.moveaxis(np.asarray(counts, np.int64), -1, 0)
    return high * 2**20 + low

  np.testing.assert_array_equal(number(got), want)
  assert (np.asarray(got[:, 1]) < 2**20).all()
  twice = selection.plus(got, got)
  np.testing.assert_array_equal(number(twice), 2 * want)
  assert float(selection.minus(twice, got)[0]) == pytest.approx(want[0], rel=1e-6)
  large = rng.integers(0, 2**31, size=(2**10, 3))  # each beyond one limb of 2²⁰
  counts = selection.summed(jnp.asarray(large, jnp.int32))
  np.testing.assert_array_equal(number(counts), large.sum(axis=0))
  for a, b in ((5, 6), (6, 5), (2**20, 2**20 - 1), (2**35, 2**35), (2**35, 2**35 + 1)):
    got = selection.at_most(selection.as_count(a), selection.as_count(b))
    assert bool(got) == (a <= b)


def test_one_limb_is_a_plain_integer():
  numbers = jnp.asarray([[3, 0], [4, 2**30]], jnp.int32)
  got = selection.summed(numbers, selection.limbs_for(2**31 - 1))
  np.testing.assert_array_equal(got, [[7], [2**30]])
  assert selection.limbs_for(2**31) == 2
  np.testing.assert_array_equal(selection.plus(got, got[:1]), [[14], [2**30 + 7]])
  np.testing.assert_array_equal(selection.at_most(got, got[:1]), [True, False])
  assert float(selection.minus(got[1], got[0])) == np.float32(2**30 - 7)
