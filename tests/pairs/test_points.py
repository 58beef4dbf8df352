"""Rows of points, in blocks, against NumPy and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax.pairs import points as pairwise


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


# ------------------------------------------------------------------- as_matrix


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (5, 4, 4, 1)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_as_matrix_is_a_reshape_with_an_inverse(shape, dtype):
  x = jnp.asarray(normal(*shape), dtype)
  rows, back = pairwise.as_matrix(x)
  assert rows.shape == (5, x.size // 5)
  assert rows.dtype == dtype
  np.testing.assert_array_equal(rows, x.reshape(5, -1))
  np.testing.assert_array_equal(back(rows), x)
  assert back(rows).dtype == dtype


@pytest.mark.usefixtures("x64")
def test_as_matrix_keeps_every_leaf_of_a_pytree():
  x = {
    "a": jnp.asarray(normal(4, 3), jnp.float32),
    "b": (jnp.asarray(normal(4), jnp.float64), jnp.asarray(normal(4, 2, 2))),
  }
  rows, back = pairwise.as_matrix(x)
  assert rows.shape == (4, 3 + 1 + 4)
  returned = back(rows)
  assert jax.tree.structure(returned) == jax.tree.structure(x)
  for got, want in zip(jax.tree.leaves(returned), jax.tree.leaves(x)):
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


# -------------------------------------------------------------------- map_rows


@pytest.mark.parametrize("block_size", [None, 1, 3, 7, 8])
def test_map_rows_is_the_same_in_any_blocks(block_size):
  rows = {"x": jnp.asarray(normal(7, 2)), "i": jnp.arange(7)}
  points = jnp.asarray(normal(5, 2, seed=1))

  def fn(row):
    return points @ row["x"] * row["i"], row["x"].sum()

  table, sums = pairwise.map_rows(fn, rows, 5, block_size)
  want = np.arange(7)[:, None] * (np.asarray(rows["x"]) @ np.asarray(points).T)
  np.testing.assert_allclose(table, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(sums, np.asarray(rows["x"]).sum(1), rtol=1e-5)


def test_map_rows_works_in_blocks_if_the_table_is_large(monkeypatch):
  monkeypatch.setattr(pairwise, "_DENSE_PAIRS", 20)
  monkeypatch.setattr(pairwise, "_BLOCK_PAIRS", 10)
  rows, points = jnp.asarray(normal(7, 2)), jnp.asarray(normal(5, 2, seed=1))
  traced = jax.make_jaxpr(
    lambda rows: pairwise.map_rows(lambda x: points @ x, rows, 5, None)
  )(rows)
  assert "scan" in str(traced)
  got = pairwise.map_rows(lambda x: points @ x, rows, 5, None)
  np.testing.assert_allclose(got, rows @ points.T, rtol=1e-5, atol=1e-6)
