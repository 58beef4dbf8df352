"""Leave-one-out directions: φ₋ᵢ(xᵢ) = 1/(n−1) Σ_{j≠i} [k(xⱼ, xᵢ) sⱼ + ∇k(xⱼ, xᵢ)]."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax import Direction, kernels, svgd_direction
from tests import oracles, quick
from tests.devices import SHARDED, on_devices
from tests.kernels.cases import ALL_KERNELS, feature, feature_np, points

ALL_OPTIONS = [
  {"block_size": None},
  {"block_size": 3},
  {"block_size": None, "row_normalized": True},
  {"block_size": 2, "row_normalized": True},
]
QUICK_OPTIONS = ALL_OPTIONS[1:3]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", quick.only(QUICK_OPTIONS, ALL_OPTIONS), ids=str)
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_direction_equals_the_double_loop(name, options):
  kernel, oracle = ALL_KERNELS[name]
  x, s = points(7, 2)
  got = svgd_direction(x, s, kernel, leave_one_out=True, **options)
  row_normalized = options.get("row_normalized", False)
  want = oracles.svgd_direction(x, s, *oracle, row_normalized, leave_one_out=True)
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block_size", [1, 6, 7, 100])
def test_the_size_of_blocks_changes_nothing(block_size):
  x, s = points(7, 2)
  direction = Direction(kernels.imq(0.7), leave_one_out=True, block_size=block_size)
  want = oracles.svgd_direction(x, s, *oracles.imq(0.7, -0.5), leave_one_out=True)
  np.testing.assert_allclose(direction(x, s), want, rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_the_direction_and_the_particle_s_own_term_make_the_whole_sum():
  # n φ(xᵢ) = (n − 1) φ₋ᵢ(xᵢ) + k(xᵢ, xᵢ) sᵢ, and ∇k(xᵢ, xᵢ) = 0 for a radial kernel.
  x, s = points(9, 3)
  kernel = kernels.rbf()
  whole, left_out = (
    svgd_direction(x, s, kernel, leave_one_out=out) for out in (False, True)
  )
  np.testing.assert_allclose(9 * whole, 8 * left_out + s, rtol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("num_neighbors", [1, 4, 50])
def test_nearest_neighbours(num_neighbors, block_size):
  x, s = points(7, 2)
  h = 1.7
  kernel = kernels.on_features(kernels.rbf(h), feature, num_neighbors=num_neighbors)
  got = svgd_direction(x, s, kernel, leave_one_out=True, block_size=block_size)
  k, grad_k = ALL_KERNELS["on features"][1]
  z = np.array([feature_np(point) for point in x])
  want = 6 * oracles.attraction(x, s, k, grad_k, leave_one_out=True)
  for i in range(7):
    others = [j for j in range(7) if j != i]
    others.sort(key=lambda j: np.sum((z[j] - z[i]) ** 2))
    for j in others[:num_neighbors]:
      want[i] += grad_k(x[j], x[i])
  np.testing.assert_allclose(got, want / 6, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["median", "authors"])
@pytest.mark.parametrize("block_size", [None, 3])
def test_a_median_bandwidth_is_that_of_all_particles(name, block_size):
  x, s = points(7, 3)
  log, diagonal = {"median": ("m", False), "authors": ("m+1", True)}[name]
  oracle = oracles.rbf(oracles.median_bandwidth(x, log, diagonal))
  got = svgd_direction(
    x, s, kernels.rbf(name), leave_one_out=True, block_size=block_size
  )
  want = oracles.svgd_direction(x, s, *oracle, leave_one_out=True)
  np.testing.assert_allclose(got, want, rtol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["rbf", "not radial", "on features"])
def test_pytrees_have_the_direction_of_their_concatenation(name):
  flat_x, flat_s = points(6, 2)

  def tree(flat):
    return {"a": flat[:, 0], "b": flat[:, 1:].reshape(6, 1, 1)}

  def flat(point):
    return jnp.stack([point["a"], point["b"][0, 0]])

  kernel, oracle = ALL_KERNELS[name]
  if name == "not radial":
    k = kernel.k
    kernel = kernels.from_pairwise(lambda y, x: k(flat(y), flat(x)))
  if name == "on features":
    kernel = kernels.on_features(kernel.base, lambda x: feature(flat(x)))
  got = svgd_direction(tree(flat_x), tree(flat_s), kernel, leave_one_out=True)
  want = oracles.svgd_direction(flat_x, flat_s, *oracle, leave_one_out=True)
  chex.assert_trees_all_close(got, tree(want), rtol=1e-10)


@pytest.mark.parametrize("h", [0.05, 0.01])
@pytest.mark.parametrize("apart", [0.0, 8.0])
@pytest.mark.parametrize("name", ["rbf", "pairwise", "features", "affine"])
def test_small_sums_of_the_others_are_accurate_in_float32(name, h, apart):
  """The particle's own term is left out, not subtracted: it would be 1e12 larger."""
  rng = np.random.default_rng(0)
  grid = 0.5 * np.stack(np.divmod(np.arange(36), 6), axis=1)
  x = (grid + 0.1 * rng.normal(size=(36, 2))).astype(np.float32)
  x[:15] += apart
  s = rng.normal(size=x.shape).astype(np.float32)
  rbf = kernels.rbf(h)
  kernel = {
    "rbf": rbf,
    "pairwise": kernels.from_pairwise(rbf.pair),
    "features": kernels.on_features(rbf, lambda x: x),
    "affine": kernels.on_features(rbf, lambda x: x, affine=True),
  }[name]
  got = np.asarray(svgd_direction(x, s, kernel, leave_one_out=True, block_size=7))
  want = oracles.svgd_direction(x, s, *oracles.rbf(h), leave_one_out=True)
  size = np.linalg.norm(want, axis=1)
  assert (size.min() < 1e-12) == (h == 0.01)
  assert np.max(np.linalg.norm(got - want, axis=1) / size) < 1e-4


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_the_queries_given_again_as_sources_change_nothing(name):
  kernel, _ = ALL_KERNELS[name]
  x, s = points(7, 2)
  got, want = (
    kernel.stein_sums(x, sources, s, leave_one_out=True) for sources in (x, None)
  )
  chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("x64")
def test_without_a_kernel_it_is_the_score():
  x, s = points(4, 3)
  np.testing.assert_array_equal(Direction(None, leave_one_out=True)(x, s), s)


def test_one_particle_has_no_others():
  x = np.ones((1, 2), np.float32)
  for kernel in (kernels.rbf(1.0), kernels.constant()):
    with pytest.raises(ValueError, match="leave_one_out needs at least 2 particles"):
      svgd_direction(x, x, kernel, leave_one_out=True)

  def on_one_device(x):
    return svgd_direction(x, x, kernels.rbf(1.0), leave_one_out=True, axis_name="i")

  with pytest.raises(ValueError, match="leave_one_out needs at least 2 particles"):
    on_devices("shard_map", on_one_device, (x,), (SHARDED,), SHARDED, size=1)


# ------------------------------------------------------------------- many devices


def sharded_kernels(exchange):
  names = ("rbf", "not radial", "few features", "many features", "affine features")
  found = {name: ALL_KERNELS[name][0] for name in names}
  found["median"] = kernels.imq()
  if exchange == "all_gather":  # in a ring the nearest of all points are not known
    found["nearest"] = kernels.on_features(kernels.rbf(1.7), feature, num_neighbors=3)
  return found


SHARDINGS = [
  ("shard_map", 2, "ring"),
  ("shard_map", 8, "all_gather"),
  ("pmap", 3, "ring"),
]
MORE_SHARDINGS = [
  (how, size, exchange)
  for how in ("shard_map", "pmap")
  for size in (2, 3, 8)
  for exchange in ("ring", "all_gather")
  if (how, size, exchange) not in SHARDINGS
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  ("how", "size", "exchange"),
  quick.only(SHARDINGS[:1], SHARDINGS + MORE_SHARDINGS),
)
def test_many_devices_leave_out_the_same_particle(how, size, exchange):
  x, s = points(24, 2)

  def directions(x, s, **sharding):
    options = {"leave_one_out": True, "block_size": 2}
    phi = {
      name: svgd_direction(x, s, kernel, **options, **sharding)
      for name, kernel in sharded_kernels(exchange).items()
    }
    phi["row-normalised"] = svgd_direction(
      x, s, kernels.imq(2.0), row_normalized=True, **options, **sharding
    )
    return phi

  got = on_devices(
    how,
    lambda x, s: directions(x, s, axis_name="i", exchange=exchange),
    (x, s),
    (SHARDED, SHARDED),
    SHARDED,
    size=size,
  )
  chex.assert_trees_all_close(got, jax.jit(directions)(x, s), rtol=1e-10, atol=1e-13)
  one = oracles.svgd_direction(x, s, *ALL_KERNELS["rbf"][1], leave_one_out=True)
  np.testing.assert_allclose(got["rbf"], one, rtol=1e-10)


@pytest.mark.parametrize("exchange", ["ring", "all_gather"])
def test_one_particle_on_each_device(exchange):
  x, s = points(8, 2).astype(np.float32)
  kernel, oracle = ALL_KERNELS["rbf"]

  def direction(x, s):
    return svgd_direction(
      x, s, kernel, leave_one_out=True, axis_name="i", exchange=exchange
    )

  got = on_devices("shard_map", direction, (x, s), (SHARDED, SHARDED), SHARDED)
  want = oracles.svgd_direction(x, s, *oracle, leave_one_out=True)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block_size", [None, 2])
def test_row_normalised_a_particle_far_from_all_others_does_not_move(block_size):
  x = jnp.array([[0.0], [0.5], [1.0], [1e4]])
  phi = svgd_direction(
    x,
    -x,
    kernels.rbf(1.0),
    leave_one_out=True,
    row_normalized=True,
    block_size=block_size,
  )
  assert phi[3] == 0
  assert jnp.isfinite(phi).all()
  assert jnp.abs(phi[:3]).min() > 0
