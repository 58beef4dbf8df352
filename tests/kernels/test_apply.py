"""`kernel.apply`: Σⱼ k(xᵢ, yⱼ) cⱼ, without the table of pairs in memory."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax import Direction, kernels, repulsion_share
from stein_jax.kernels.radial import Profile, Radial
from stein_jax.pairs.tiles import Streaming, streamed
from stein_jax.parallel import axes
from tests import oracles, quick
from tests.devices import SHARDED, on_devices
from tests.kernels.cases import ALL_KERNELS, feature, feature_np

BLOCKS = pytest.mark.parametrize("block_size", [None, 3])


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  ("leave_one_out", "block_size"),
  quick.only([(False, None), (True, 3)], itertools.product((False, True), (None, 3))),
)
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_sums_over_the_queries_themselves(name, leave_one_out, block_size):
  kernel, oracle = ALL_KERNELS[name]
  x, c = normal(7, 2), normal(7, 3, seed=1)
  got = kernel.apply(
    x, None, c, streaming=Streaming(block_size), leave_one_out=leave_one_out
  )
  matrix = oracles.matrix(x, x, *oracle)
  if leave_one_out:
    np.fill_diagonal(matrix, 0)
  np.testing.assert_allclose(got, matrix @ c, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("x64")
@BLOCKS
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_sums_over_other_points(name, block_size):
  kernel, oracle = ALL_KERNELS[name]
  x, y, c = normal(4, 2), normal(7, 2, seed=1), normal(7, 3, seed=2)
  got = kernel.apply(x, y, c, streaming=Streaming(block_size))
  want = oracles.matrix(x, y, *oracle) @ c
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)
  np.testing.assert_allclose(kernel.matrix(x, y) @ c, want, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_values_may_be_a_pytree(name):
  kernel, oracle = ALL_KERNELS[name]
  x, y = normal(4, 2), normal(7, 2, seed=1)
  values = {"a": normal(7, seed=2), "b": (normal(7, 2, 3, seed=3), normal(7, 1))}
  matrix = oracles.matrix(x, y, *oracle)
  want = jax.tree.map(lambda leaf: np.tensordot(matrix, leaf, axes=1), values)
  got = kernel.apply(x, y, values, streaming=Streaming(2))
  chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_points_may_be_a_pytree():
  flat_x, flat_y, c = normal(4, 3), normal(7, 3, seed=1), normal(7, 1, seed=2)

  def tree(flat):
    return {"a": flat[:, 0], "b": flat[:, 1:].reshape(-1, 2, 1)}

  got = kernels.imq(0.8).apply(tree(flat_x), tree(flat_y), c)
  want = oracles.matrix(flat_x, flat_y, *oracles.imq(0.8, -0.5)) @ c
  np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.usefixtures("x64")
@BLOCKS
def test_a_median_bandwidth_is_that_of_the_queries(block_size):
  x, c = normal(7, 2), normal(7, 1, seed=1)
  streaming = Streaming(block_size)
  got = kernels.rbf().apply(x, None, c, streaming=streaming)
  h = oracles.median_bandwidth(x)
  want = oracles.matrix(x, x, *oracles.rbf(h)) @ c
  np.testing.assert_allclose(got, want, rtol=1e-10)

  on_features = kernels.on_features(kernels.rbf(), feature)
  z = np.array([feature_np(point) for point in x])
  got = on_features.apply(x, None, c, streaming=streaming)
  want = oracles.matrix(z, z, *oracles.rbf(oracles.median_bandwidth(z))) @ c
  np.testing.assert_allclose(got, want, rtol=1e-10)
  for kernel in (kernels.rbf(), on_features):
    with pytest.raises(ValueError, match=r"bandwidth is a policy.*resolve"):
      kernel.apply(x, x, c)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  ("how", "size", "exchange"),
  [("shard_map", 2, "ring"), ("pmap", 3, "ring"), ("shard_map", 8, "all_gather")],
)
def test_sums_over_the_points_of_all_devices(how, size, exchange):
  x, c = normal(24, 2), normal(24, 3, seed=1)
  names = ("rbf", "imq", "not radial", "few features")

  def sums(x, c):
    streaming = streamed(x, block_size=2, axis_name="i", exchange=exchange)
    assert streaming.ring == (exchange == "ring")
    y, values = None, c
    if not streaming.ring:
      y, values = axes.gather((x, c), "i")
    return {
      (name, leave_one_out): ALL_KERNELS[name][0].apply(
        x, y, values, streaming=streaming, leave_one_out=leave_one_out
      )
      for name in names
      for leave_one_out in (False, True)
    }

  args = (x, c), (SHARDED, SHARDED), SHARDED
  got = on_devices(how, sums, *args, size=size)
  for name in names:
    matrix = oracles.matrix(x, x, *ALL_KERNELS[name][1])
    np.testing.assert_allclose(got[name, False], matrix @ c, rtol=1e-10, atol=1e-12)
    np.fill_diagonal(matrix, 0)
    np.testing.assert_allclose(got[name, True], matrix @ c, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("name", ["rbf", "not radial", "many features"])
def test_memory_is_linear_in_the_number_of_points(name, same):
  kernel, _ = ALL_KERNELS[name]
  n, d = 20_000, 2

  def sums(x, y, c):
    return kernel.apply(x, None if same else y, c)

  points = jax.ShapeDtypeStruct((n, d), jnp.float32)
  program = jax.jit(sums).lower(points, points, points).compile()
  # Some copies of the points and their nine features, and some tiles of 512² pairs.
  few_tiles = 10 * 512**2 * 4
  assert program.memory_analysis().temp_size_in_bytes < 40 * n * 9 + few_tiles


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["rbf", "on features"])
def test_sums_are_differentiable(name):
  kernel, _ = ALL_KERNELS[name]
  x, c, weights = normal(5, 2), normal(5, 3, seed=1), normal(5, 3, seed=2)

  def dense(x, c):
    return jnp.sum(weights * (kernel.matrix(x) @ c))

  def streamed_sums(x, c):
    return jnp.sum(weights * kernel.apply(x, None, c, streaming=Streaming(2)))

  got, want = (
    jax.jit(jax.grad(fn, argnums=(0, 1)))(x, c) for fn in (streamed_sums, dense)
  )
  chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num_values", [1, 10, 19, 21])
def test_values_of_another_number_than_the_sources_are_an_error(num_values):
  x = np.zeros((20, 2), np.float32)
  values = np.ones((num_values, 3), np.float32)
  for kernel in (kernels.rbf(1.0), kernels.on_features(kernels.imq(1.0), jnp.sin)):
    for block_size in (None, 6):
      with pytest.raises(ValueError, match=f"for each of 20 points.*got {num_values}"):
        kernel.apply(x, None, values, streaming=Streaming(block_size))


@pytest.mark.parametrize(
  "call",
  [
    lambda kernel, x: kernel.apply(x, None, x, streaming=Streaming(3)),
    lambda kernel, x: kernel.apply(x, x, x),
    lambda kernel, x: kernel.matrix(x),
    lambda kernel, x: repulsion_share(x, x, x, kernel),
    lambda kernel, x: repulsion_share(x, x, x, Direction(kernel, block_size=3)),
  ],
)
@pytest.mark.parametrize("radial", [True, False])
def test_a_second_call_is_not_traced_again(radial, call):
  traces = []

  def inverse(t):
    traces.append(t)
    return 1 / (1 + t), -1 / (1 + t) ** 2, 2 / (1 + t) ** 3

  if radial:
    kernel = Radial(1.0, Profile(inverse))
  else:
    kernel = kernels.from_pairwise(lambda x, y: inverse(jnp.square(x - y).sum())[0])
  x = jnp.asarray(normal(7, 2))
  call(kernel, x)
  num_traces = len(traces)
  assert num_traces > 0
  call(kernel, x + 1)
  assert len(traces) == num_traces


def test_16_bits_are_summed_in_32():
  x = normal(4000, 1).astype(jnp.bfloat16)
  for kernel in (kernels.rbf(1.0), kernels.from_pairwise(unit)):
    got = kernel.apply(x[:5], x, jnp.ones((4000, 1), jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    want = jax.vmap(jax.vmap(kernel.pair, (None, 0)), (0, None))(
      *(jnp.asarray(part, jnp.float32) for part in (x[:5], x))
    ).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got.astype(np.float32), want, rtol=0.01)


def unit(x, y):
  return jnp.exp(-jnp.square(x - y).sum())
