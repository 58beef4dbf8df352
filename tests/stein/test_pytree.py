"""A Direction as a pytree: what JAX's transformations and the caller make of it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from jax.tree_util import Partial

from stein_jax import Direction, kernels, ksd_squared, svgd_direction
from tests import oracles
from tests.kernels.cases import ALL_KERNELS, points


def regularized(h, eta):
  """A Direction with two leaves."""
  return Direction(kernels.rbf(h), regularization=eta)


def stacked(*directions):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions)


def solved(x, s, h, eta):
  """(K + ηI)⁻¹ (K S + V) in NumPy."""
  k, grad_k = oracles.rbf(h)
  matrix = oracles.matrix(x, x, k)
  sums = len(x) * oracles.svgd_direction(x, s, k, grad_k)
  return np.linalg.solve(matrix + eta * np.eye(len(x)), sums)


def test_bandwidth_and_regularization_are_leaves_with_names():
  leaves = jax.tree_util.tree_leaves_with_path(regularized(2.0, 0.3))
  names = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
  assert names == {".kernel.bandwidth": 2.0, ".regularization": 0.3}
  assert jax.tree.leaves(Direction(kernels.rbf(), leave_one_out=True)) == []
  assert jax.tree.leaves(Direction(None)) == []
  doubled = jax.tree.map(lambda leaf: 2 * leaf, regularized(2.0, 0.3))
  assert doubled == regularized(4.0, 0.6)


def test_the_other_options_are_static():
  base = jax.tree.structure(Direction(kernels.rbf(2.0)))
  assert base == jax.tree.structure(Direction(kernels.rbf(3.0)))
  assert hash(base) == hash(jax.tree.structure(Direction(kernels.rbf(3.0))))
  for options in (
    {"leave_one_out": True},
    {"row_normalized": True},
    {"block_size": 3},
    {"exchange": "ring"},
    {"precision": "default"},
    {"regularization": 0.1},
  ):
    other = jax.tree.structure(Direction(kernels.rbf(2.0), **options))
    assert other != base
    rebuilt = jax.tree.unflatten(other, [2.0] * other.num_leaves)
    for name, value in options.items():
      assert getattr(rebuilt, name) == (2.0 if name == "regularization" else value)


def test_a_direction_is_frozen_and_comparable():
  direction = Direction(kernels.rbf(2.0), leave_one_out=True)
  with pytest.raises(dataclasses.FrozenInstanceError):
    direction.leave_one_out = False
  assert direction == Direction(kernels.rbf(2.0), leave_one_out=True)
  assert hash(direction) == hash(Direction(kernels.rbf(2.0), leave_one_out=True))
  assert direction != Direction(kernels.rbf(2.0))
  with pytest.raises(TypeError, match="positional"):
    Direction(kernels.rbf(2.0), True)


@pytest.mark.usefixtures("x64")
def test_vmap_over_bandwidths_and_regularizations():
  x, s = points(6, 2)
  pairs = [(1.0, 0.2), (2.0, 0.2), (1.0, 1.5)]
  directions = stacked(*(regularized(h, eta) for h, eta in pairs))
  got = jax.jit(jax.vmap(lambda direction: direction(x, s)))(directions)
  want = [solved(x, s, h, eta) for h, eta in pairs]
  np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_vmap_over_the_bandwidth_of_a_direction_that_leaves_one_out():
  x, s = points(6, 2)
  directions = stacked(
    *(Direction(kernels.imq(h), leave_one_out=True, block_size=4) for h in (0.5, 2.0))
  )
  got = jax.vmap(lambda direction: direction(x, s))(directions)
  want = [
    oracles.svgd_direction(x, s, *oracles.imq(h, -0.5), leave_one_out=True)
    for h in (0.5, 2.0)
  ]
  np.testing.assert_allclose(got, want, rtol=1e-10)
  got = jax.vmap(lambda direction: ksd_squared(x, s, direction))(directions)
  want = [oracles.ksd_squared(x, s, *oracles.imq(h, -0.5)) for h in (0.5, 2.0)]
  np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_derivatives_in_the_leaves():
  x, s = points(5, 2)
  weights = points(5, 2, seed=1)[0]

  @jax.jit
  def loss(direction):
    return jnp.sum(weights * direction(x, s))

  check_grads(loss, (regularized(1.3, 0.4),), order=1, modes=["rev"])
  # A derivative is a direction of any sign, which is none that can be called.
  gradient = jax.grad(lambda direction: -loss(direction))(regularized(1.3, 0.4))
  assert isinstance(gradient, Direction)
  opposite = jax.grad(loss)(regularized(1.3, 0.4))
  chex.assert_trees_all_close(gradient, jax.tree.map(jnp.negative, opposite))
  signs = [np.sign(g.regularization) for g in (gradient, opposite)]
  assert sorted(signs) == [-1, 1]


def test_leaves_outside_their_range_are_an_error_at_the_call():
  x, s = points(4, 2).astype(np.float32)
  zero = jax.tree.map(lambda leaf: 0 * leaf, regularized(1.0, 0.3))
  assert zero.regularization == 0
  with pytest.raises(ValueError, match="regularization must be a finite number above"):
    zero(x, s)
  with pytest.raises(ValueError, match="regularization must be a finite number above"):
    dataclasses.replace(regularized(1.0, 0.3), regularization=np.nan)
  with pytest.raises(ValueError, match="exchange must be one of"):
    dataclasses.replace(regularized(1.0, 0.3), exchange="half")


def test_calls_with_other_numbers_are_traced_once():
  x, s = points(5, 2).astype(np.float32)

  def make(scale):
    rbf = kernels.rbf(1.0 * scale)
    features = Partial(jnp.matmul, scale * np.ones((3, 2), np.float32))
    return [
      Direction(rbf, leave_one_out=True),
      Direction(rbf, regularization=0.1 * scale),
      Direction(kernels.rbf(), row_normalized=True),
      Direction(kernels.on_features(rbf, features), block_size=3),
    ]

  for direction in make(1.0):
    direction(x, s)
    ksd_squared(x, s, kernels.imq(1.0))
  with jax.no_tracing():
    for direction in make(2.0):
      direction(x + 1, 2 * s)
      ksd_squared(x + 1, 2 * s, kernels.imq(3.0))


@pytest.mark.parametrize("name", ["rbf", "on features"])
def test_a_direction_as_an_argument_of_jit_is_traced_once(name):
  x, s = points(5, 2).astype(np.float32)
  chex.clear_trace_counter()

  @jax.jit
  @chex.assert_max_traces(n=1)
  def run(direction, x):
    return direction(x, s)

  kernel, _ = ALL_KERNELS[name]
  for scale in (1.0, 2.0, 3.0):
    scaled = jax.tree.map(lambda leaf, scale=scale: scale * leaf, kernel)
    got = run(Direction(scaled, leave_one_out=True), scale * x)
    want = svgd_direction(scale * x, s, scaled, leave_one_out=True)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_resolve_replaces_the_policy_by_a_number():
  x, s = points(7, 2).astype(np.float32)
  direction = Direction(kernels.rbf(), leave_one_out=True)
  resolved = direction.resolve(x)
  np.testing.assert_allclose(
    resolved.kernel.bandwidth, oracles.median_bandwidth(x), rtol=1e-5
  )
  assert resolved.leave_one_out
  np.testing.assert_allclose(resolved(x, s), direction(x, s), rtol=1e-5, atol=1e-6)
  assert Direction(None).resolve(x) == Direction(None)


def test_at_gives_the_kernel_of_the_params_and_keeps_the_options():
  direction = Direction(lambda h: kernels.imq(h), regularization=0.3, block_size=5)
  want = Direction(kernels.imq(2.0), regularization=0.3, block_size=5)
  assert direction.at(2.0) == want
  assert want.at(7.0) == want


def test_unknown_options_are_named():
  x, s = points(4, 2).astype(np.float32)
  with pytest.raises(TypeError, match="'bandwith'"):
    svgd_direction(x, s, kernels.rbf(), bandwith=3)


def test_svgd_direction_takes_a_direction_and_changes_its_options():
  x, s = points(6, 2).astype(np.float32)
  direction = Direction(kernels.rbf(1.0), leave_one_out=True, block_size=4)
  np.testing.assert_array_equal(svgd_direction(x, s, direction), direction(x, s))
  got = svgd_direction(x, s, direction, leave_one_out=False)
  want = svgd_direction(x, s, kernels.rbf(1.0))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
