"""How much of a direction is repulsion, against the double loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax import Direction, kernels, repulsion_share, svgd_direction
from tests import oracles, quick
from tests.devices import SAME, SHARDED, on_devices
from tests.kernels.cases import ALL_KERNELS, feature, points

OPTIONS = [
  {},
  {"leave_one_out": True},
  {"row_normalized": True},
  {"leave_one_out": True, "row_normalized": True},
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", quick.only(OPTIONS[::3], OPTIONS), ids=str)
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_share_equals_the_double_loop(name, options):
  kernel, oracle = ALL_KERNELS[name]
  x, s = points(7, 2)
  phi = oracles.svgd_direction(x, s, *oracle, **options)
  want = oracles.repulsion_share(phi, oracles.attraction(x, s, *oracle, **options))
  assert (want < 1e-12) == (name == "constant")
  for block_size in (None, 3):
    direction = Direction(kernel, block_size=block_size, **options)
    got = repulsion_share(x, s, phi, direction)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
  if not options:
    got = repulsion_share(x, s, phi, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("h", [1e-3, 3.0])
def test_a_kernel_that_is_too_narrow_has_no_repulsion(h):
  x, s = points(6, 2)
  kernel = kernels.on_features(kernels.rbf(h), feature)
  got = repulsion_share(x, s, svgd_direction(x, s, kernel), kernel)
  assert (got < 1e-6) == (h == 1e-3)
  assert 0 <= got < 1


@pytest.mark.usefixtures("x64")
def test_a_median_bandwidth_and_points_that_are_a_pytree():
  flat_x, flat_s = points(7, 3)

  def tree(flat):
    return {"a": flat[:, 0], "b": flat[:, 1:].reshape(7, 2, 1)}

  oracle = oracles.imq(oracles.median_bandwidth(flat_x), -0.5)
  phi = oracles.svgd_direction(flat_x, flat_s, *oracle)
  attraction = oracles.attraction(flat_x, flat_s, *oracle)
  got = repulsion_share(tree(flat_x), tree(flat_s), tree(phi), kernels.imq())
  np.testing.assert_allclose(got, oracles.repulsion_share(phi, attraction), rtol=1e-10)


@pytest.mark.parametrize("kernel", [None, Direction(None)], ids=["None", "Direction"])
def test_without_a_kernel_there_is_no_repulsion(kernel):
  x, s = points(4, 3).astype(np.float32)
  got = repulsion_share(x, s, s, kernel)
  assert got.shape == ()
  assert got.dtype == jnp.float32
  assert got == 0


def test_scores_of_zero_leave_repulsion_alone():
  x, _ = points(5, 2).astype(np.float32)
  zero = np.zeros_like(x)
  kernel = kernels.rbf(1.0)
  assert repulsion_share(x, zero, svgd_direction(x, zero, kernel), kernel) == 1
  assert repulsion_share(x, zero, zero, kernel) == 0  # not 0/0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  ("how", "size", "exchange"),
  quick.only(
    [("shard_map", 8, "all_gather")],
    [("shard_map", 2, "ring"), ("pmap", 3, "ring"), ("shard_map", 8, "all_gather")],
  ),
)
def test_many_devices_have_the_share_of_one(how, size, exchange):
  x, s = points(24, 2)
  names = ("imq", "not radial", "few features")
  kernel_list = [kernels.rbf(), *(ALL_KERNELS[name][0] for name in names)]

  def shares(x, s, axis_name=None, **sharding):
    found = []
    for kernel in kernel_list:
      direction = Direction(kernel, leave_one_out=True, block_size=2, **sharding)
      phi = direction(x, s, axis_name)
      found.append(repulsion_share(x, s, phi, direction, axis_name=axis_name))
    return jnp.stack(found)

  got = on_devices(
    how,
    lambda x, s: shares(x, s, "i", exchange=exchange),
    (x, s),
    (SHARDED, SHARDED),
    SAME,
    size=size,
  )
  np.testing.assert_allclose(got, jax.jit(shares)(x, s), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", [kernels.rbf(1.0), kernels.rbf()], ids=["h", "med"])
@pytest.mark.parametrize("on_features", [False, True])
def test_memory_is_linear_in_the_number_of_particles(kernel, on_features):
  n, d = 20_000, 5
  if on_features:
    kernel = kernels.on_features(kernel, jnp.tanh)

  def share(x, s, phi):
    return repulsion_share(x, s, phi, kernel)

  shape = jax.ShapeDtypeStruct((n, d), jnp.float32)
  program = jax.jit(share).lower(shape, shape, shape).compile()
  assert program.memory_analysis().temp_size_in_bytes < n**2 / 20


def test_a_regularised_direction_is_an_error():
  x, s = points(4, 2).astype(np.float32)
  direction = Direction(kernels.rbf(1.0), regularization=0.1)
  with pytest.raises(ValueError, match="not defined for a regularised direction"):
    repulsion_share(x, s, direction(x, s), direction)


def test_shapes_that_differ_are_an_error():
  x, s = points(4, 2).astype(np.float32)
  kernel = kernels.rbf(1.0)
  with pytest.raises(ValueError, match=r"particles and scores.*\(4, 2\) and \(3, 2\)"):
    repulsion_share(x, s[:3], s, kernel)
  message = r"particles and direction.*\(4, 2\) and \(4, 1\)"
  with pytest.raises(ValueError, match=message):
    repulsion_share(x, s, s[:, :1], kernel)
