"""Which functions treat rows one by one, by their jaxprs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax.parallel.row_wise import treats_rows_alone

X = np.ones((6, 3), np.float32)
SHARED = np.ones(3, np.float32)
AXES = {"in_axes": [0, None], "out_axes": [0]}


ALONE = {
  "entries": lambda x, s: jnp.sqrt(x**2 + 1) - jnp.where(x > 0, x, 0.5),
  "shared vector": lambda x, s: x * s[None] + s.sum(),
  "jit": lambda x, s: jax.jit(lambda x: jnp.exp(-x))(x),
  "custom_jvp": lambda x, s: jax.nn.relu(x) + jax.nn.silu(x),
  "cond": lambda x, s: jax.lax.cond(s[0] > 0, lambda: 2 * x, lambda: jnp.zeros_like(x)),
  "equal rows": lambda x, s: jnp.broadcast_to(s, x.shape),
  "loop over shared": lambda x, s: (
    x * jax.lax.fori_loop(0, 3, lambda _, a: 2 * a, s[0])
  ),
}
MIXED = {
  "sum": lambda x, s: x / x.sum(),
  "order": lambda x, s: x[::-1],
  "cumulative": lambda x, s: jnp.cumsum(x, axis=0),
  "product": lambda x, s: (x @ x.T) @ x,
  "sorted": lambda x, s: jnp.sort(x, axis=0),
  "row numbers": lambda x, s: x + jnp.arange(6.0)[:, None],
  "other numbers for other rows": lambda x, s: x + np.arange(18.0).reshape(6, 3),
  "noise": lambda x, s: x + jax.random.normal(jax.random.key(0), x.shape),
  "noise only": lambda x, s: jax.random.normal(jax.random.key(0), x.shape),
  "number of rows": lambda x, s: x / jnp.sum(jnp.ones_like(x)),
  "in a jit": lambda x, s: jax.jit(lambda x: x - x.mean(axis=0)[None])(x),
  "in a branch": lambda x, s: jax.lax.cond(
    s[0] > 0, lambda: x, lambda: x / jnp.linalg.norm(x)
  ),
  "branches": lambda x, s: jax.lax.cond(
    s[0] > 0, lambda: x, lambda: jnp.arange(18.0).reshape(6, 3).astype(x.dtype)
  ),
  "predicate": lambda x, s: jax.lax.cond(x[0, 0] > 0, lambda: x, lambda: -x),
}


@pytest.mark.parametrize("name", [*ALONE, *MIXED])
def test_rows_alone_or_mixed(name):
  fn = (ALONE | MIXED)[name]
  assert treats_rows_alone(fn, (X, SHARED), **AXES) == (name in ALONE)


@pytest.mark.parametrize("name", ALONE)
def test_what_is_alone_may_be_applied_to_some_rows(name):
  fn, x = ALONE[name], np.random.default_rng(0).normal(size=X.shape)
  np.testing.assert_array_equal(fn(x, SHARED)[2:4], fn(x[2:4], SHARED))


def test_results_that_all_share_must_not_depend_on_rows():
  def fn(x, s):
    return x + s[None], s + 1

  options = {"in_axes": [0, None]}
  assert treats_rows_alone(fn, (X, SHARED), out_axes=[0, None], **options)
  assert not treats_rows_alone(fn, (X, SHARED), out_axes=[None, None], **options)
  assert not treats_rows_alone(fn, (X, SHARED), out_axes=[0, 0], **options)
  assert not treats_rows_alone(fn, (X, SHARED), out_axes=[0, 1], **options)
