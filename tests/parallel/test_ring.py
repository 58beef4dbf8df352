"""Particles that travel around a ring of devices give what one device gives."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import stein_jax
from stein_jax import (
  Direction,
  kernels,
  ksd_squared,
  parallel,
  svgd,
  svgd_direction,
)
from stein_jax.kernels.bandwidths import of_particles
from stein_jax.pairs import tiles
from stein_jax.parallel import ring
from tests import quick
from tests.devices import SAME, SHARDED, mesh, on_devices

SIZES = (1, 2, 3, 4, 5, 8)


def on_ring(size, fn, args, out_specs, *, how="shard_map"):
  """fn(*args), all of whose rows are sharded over this many devices."""
  return on_devices(how, fn, args, (SHARDED,) * len(args), out_specs, size=size)


def points(n, d, seed=0):
  return np.random.default_rng(seed).normal(size=(2, n, d))


def feature(weights, x):
  return jnp.tanh(x @ weights)


def not_radial(y, x):
  return (1 + y @ x) ** 2 * jnp.exp(-jnp.sum((y - x) ** 2))


WEIGHTS = np.random.default_rng(1).normal(size=(3, 2))
KERNELS = {
  "rbf": kernels.rbf(1.5),
  "imq": kernels.imq(2.0),
  "median": kernels.rbf(),
  "median of some": kernels.imq(subsample=7),
  "authors": kernels.rbf("authors"),
  "pairwise": kernels.from_pairwise(not_radial),
  "features": kernels.on_features(kernels.rbf(), Partial(feature, WEIGHTS)),
  "affine": kernels.on_features(
    kernels.rbf(1.5), Partial(jnp.matmul, b=WEIGHTS), affine=True
  ),
}


# ---------------------------------------------------------------- the ring itself


@pytest.mark.parametrize("how", ["shard_map", "pmap"])
@pytest.mark.parametrize("size", SIZES)
def test_every_two_devices_are_paired_once_for_both(size, how):
  """Every device has a number; it adds up 10ᵏ of the numbers k of all others.

  It gets one part from the remote blocks that it is paired with, and the other part
  from the partial sums of its own block.
  """
  numbers = np.arange(size) + 1.0

  def body(number):
    def pair(carry, block, origin, mutual):
      found, wrong_origins, one_sided = carry
      partial = 10.0**number if mutual else jnp.zeros_like(number)
      wrong = abs((origin + 1).astype(number.dtype)[None] - block)
      one_sided = one_sided + (0.0 if mutual else 10.0**block)
      return (found + 10.0**block, wrong_origins + wrong, one_sided), partial

    zero = 0 * number
    carry = (zero, zero, zero)
    carry, partial = ring.half_ring(pair, carry, number, zero, "i")
    found, wrong_origins, one_sided = carry
    return found + partial, wrong_origins, one_sided

  found, wrong_origins, one_sided = on_ring(size, body, (numbers,), SHARDED, how=how)
  total = sum(10.0**k for k in numbers)
  np.testing.assert_allclose(found, total - 10.0**numbers, rtol=1e-6)
  np.testing.assert_array_equal(wrong_origins, 0)
  # Of an even number of devices, opposite ones both compute their pairs.
  assert ((np.asarray(one_sided) > 0) == (size % 2 == 0)).all()


def test_one_device_without_an_axis_has_no_remote_blocks():
  def pair(*_):
    raise AssertionError("there is no other device")

  assert ring.half_ring(pair, 1, jnp.ones(2), 0, None) == (1, 0)


# --------------------------------------------------------- sums over the particles


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  ("name", "size"),
  quick.only(
    [("imq", 5), ("pairwise", 3)],
    [("imq", 5), *itertools.product(KERNELS, (1, 2, 3, 4, 8))],
  ),
)
def test_directions_and_discrepancies(name, size):
  kernel = KERNELS[name]
  x, s = points(120, 3)

  def both(x, s, axis_name=None, **options):
    direction = Direction(kernel, **options)
    phi = direction(x, s, axis_name)
    v = ksd_squared(x, s, direction, axis_name=axis_name)
    u = ksd_squared(x, s, direction, statistic="U", axis_name=axis_name)
    return phi, jnp.stack([v, u])[None]

  want = jax.jit(both)(x, s)
  for how, block in (("shard_map", 4), ("pmap", None)):

    def body(x, s, block=block):
      return both(x, s, axis_name="i", exchange="ring", block_size=block)

    phi, discrepancies = on_ring(size, body, (x, s), SHARDED, how=how)
    np.testing.assert_allclose(phi, want[0], rtol=1e-10, atol=1e-13)
    for of_device in discrepancies:
      np.testing.assert_allclose(of_device, want[1][0], rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [2, 3, 8])
def test_row_sums(size):
  x, s = points(48, 3)

  def direction(x, s, **options):
    return svgd_direction(x, s, kernels.imq(2.0), row_normalized=True, **options)

  got = on_ring(
    size, lambda x, s: direction(x, s, axis_name="i", exchange="ring"), (x, s), SHARDED
  )
  np.testing.assert_allclose(got, direction(x, s), rtol=1e-10)


def median_in_a_ring(x, *, block_size, **policy):
  streaming = tiles.streamed(x, block_size=block_size, axis_name="i", exchange="ring")
  return of_particles(x, kernels.MedianBandwidth(**policy), streaming)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", quick.only([2], [2, 5, 8]))
@pytest.mark.parametrize(
  "options",
  quick.only(
    [{}, {"subsample": 17}],
    [
      {},
      {"log": "none", "block_size": 3},
      {"diagonal": True, "log": "m+1"},
      {"subsample": 17},
    ],
  ),
  ids=str,
)
def test_medians(options, size):
  x, _ = points(120, 3)
  block_size = options.get("block_size")
  policy = {name: options[name] for name in options if name != "block_size"}
  for points_ in (x, np.round(x), np.where(np.arange(120)[:, None] < 80, 0.0, x)):
    got = on_ring(
      size,
      lambda x: median_in_a_ring(x, block_size=block_size, **policy)[None],
      (points_,),
      SHARDED,
    )
    want = kernels.median_bandwidth(points_, **policy)
    np.testing.assert_allclose(got, float(want), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1600, 3200])
def test_median_of_many_by_samples_and_tiles(n):
  """A block of several tiles begins its search with a sample of its own pairs."""
  x = points(n, 2)[0].astype(np.float32)
  x[: n // 8] += 50  # the points of one device are a cluster of their own
  got = on_ring(
    8,
    lambda x: median_in_a_ring(x, block_size=64, log="none"),
    (x,),
    SAME,
  )
  want = kernels.median_bandwidth(x, log="none")
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_clusters_far_apart_in_float32(size):
  """Distances are right to a part of h, also where h is far below an ulp of ‖x‖²."""
  x, s = (a.astype(np.float32) for a in points(48, 3))
  x = (x * 1e-1 + 1e2 * np.sign(x[:, :1])).astype(np.float32)
  kernel = kernels.rbf(1e-2)
  got = on_ring(
    size,
    lambda x, s: svgd_direction(x, s, kernel, axis_name="i", exchange="ring"),
    (x, s),
    SHARDED,
  )
  with jax.enable_x64(True):
    wide = x.astype(np.float64)
    k = np.exp(-(np.square(wide[:, None] - wide[None]).sum(-1)) / 1e-2)
    slope = 2 / 1e-2 * (wide[:, None] - wide[None])
    want = (k @ s + np.einsum("ij,ijd->id", k, slope)) / 48
  np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", ["rbf", "pairwise"])
def test_derivatives_through_the_ring(name, size):
  x, s = points(12, 3)
  weights = np.random.default_rng(7).normal(size=x.shape)

  def loss(x, s):
    return (weights * svgd_direction(x, s, KERNELS[name])).sum()

  def sharded_loss(x, s):
    phi = jax.shard_map(
      lambda x, s: svgd_direction(x, s, KERNELS[name], axis_name="i", exchange="ring"),
      mesh=mesh(size),
      in_specs=(SHARDED, SHARDED),
      out_specs=SHARDED,
    )(x, s)
    return (weights * phi).sum()

  want = jax.grad(loss, argnums=(0, 1))(x, s)
  got = jax.jit(jax.grad(sharded_loss, argnums=(0, 1)))(x, s)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_svgd_moves_particles_in_a_ring():
  x, _ = points(24, 3)

  def moved(x, exchange=None, axis_name=None):
    direction = Direction(kernels.rbf(), exchange=exchange)
    rule = svgd(lambda x: -(x**3), direction, optax.adam(0.1), axis_name=axis_name)
    return rule.update(None, rule.init(None, x, None), None)[0].particles

  got = on_ring(8, lambda x: moved(x, "ring", "i"), (x,), SHARDED)
  np.testing.assert_allclose(got, moved(x), rtol=1e-9)


# ------------------------------------------------------------ what is built on them


def energy(params, x):
  return jnp.sum((x - params["mean"]) ** 2) / 2 + jnp.sum(jnp.tanh(x @ params["w"]))


def generate(eta, stats, noise, context):
  return jnp.tanh(noise @ eta["w"]) + noise, stats


def stein_gan(direction, axis_name):
  def noise_fn(key, m):
    return jax.random.normal(key, (m, 3))

  rule = stein_jax.stein_gan(
    energy, generate, noise_fn, direction, SGD, SGD, mix=0.5, axis_name=axis_name
  )

  def init(key, params, batch):
    return rule.init(key, {"energy": params, "generator": params}, batch)

  return stein_jax.Algorithm(init, rule.update)


SGD = optax.sgd(1.0)
RULES = {
  "stein_cd": lambda direction, axis: stein_jax.stein_cd(
    energy, direction, SGD, step_size=0.1, axis_name=axis
  ),
  "symmetric": lambda direction, axis: stein_jax.stein_cd(
    energy, direction, SGD, step_size=0.1, symmetric=True, axis_name=axis
  ),
  "persistent": lambda direction, axis: stein_jax.stein_cd(
    energy,
    direction,
    SGD,
    step_size=0.1,
    persistent=True,
    num_steps=2,
    axis_name=axis,
  ),
  "score matching": lambda direction, axis: stein_jax.stein_score_matching(
    energy, direction, SGD, axis_name=axis
  ),
  "SteinGAN": stein_gan,
}


def parameters():
  rng = np.random.default_rng(2)
  return {"mean": rng.normal(size=3), "w": rng.normal(size=(3, 3))}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  "name",
  quick.only(["stein_cd", "score matching"], RULES),
)
def test_every_rule_exchanges_particles_in_a_ring(name):
  key, (batch, first) = jax.random.key(5), points(24, 3)
  one = RULES[name](Direction(kernels.rbf()), None)
  ring_direction = Direction(kernels.rbf(), exchange="ring")
  many = RULES[name](ring_direction, parallel.AXIS)
  many = parallel.distribute(many, parallel.make_mesh(8))
  state = one.init(key, parameters(), first)
  want = jax.jit(one.update)(key, state, batch)
  program = jax.jit(many.update).lower(key, state, batch).compile()
  assert not re.search(r"\[24,\d+\]\S* all-gather", program.as_text())
  got = program(key, state, batch)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------ what is chosen


FIXED = kernels.rbf(1.0)


def compiled(n, d, exchange, kernel=FIXED):
  def body(x, s):
    return svgd_direction(x, s, kernel, axis_name="i", exchange=exchange)

  sharded = jax.shard_map(
    body, mesh=mesh(8), in_specs=(SHARDED, SHARDED), out_specs=SHARDED
  )
  shape = jax.ShapeDtypeStruct((n, d), jnp.float32)
  return jax.jit(sharded).lower(shape, shape).compile()


def test_no_device_holds_all_particles_in_a_ring():
  in_ring = compiled(4096, 64, "ring").as_text()
  assert "all-gather" not in in_ring
  assert "collective-permute" in in_ring
  gathered = compiled(4096, 64, "all_gather").as_text()
  assert "all-gather" in gathered
  assert "collective-permute" not in gathered


def test_the_ring_is_chosen_if_the_table_of_pairs_is_large():
  assert "all-gather" in compiled(1024, 2, None).as_text()
  assert "collective-permute" in compiled(16384, 2, None).as_text()
  nearest = kernels.on_features(kernels.rbf(1.0), jnp.sin, num_neighbors=1)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tiles, "HELD_PAIRS", 64)
    assert "all-gather" in compiled(64, 2, None, nearest).as_text()


def test_exchanges_that_do_not_fit():
  x, s = (a.astype(np.float32) for a in points(16, 3))
  nearest = kernels.on_features(kernels.rbf(1.0), jnp.sin, num_neighbors=1)
  for kernel, eta in ((nearest, None), (FIXED, 0.1)):
    direction = partial(
      svgd_direction,
      kernel=kernel,
      regularization=eta,
      axis_name="i",
      exchange="ring",
    )
    with pytest.raises(ValueError, match="need all of them"):
      on_ring(8, direction, (x, s), SHARDED)
  for make in (Direction, partial(svgd_direction, x, s)):
    with pytest.raises(ValueError, match="exchange must be one of"):
      make(kernels.rbf(1.0), exchange="half")


@pytest.mark.parametrize("exchange", ["ring", "all_gather"])
@pytest.mark.parametrize("kernel", [FIXED, None], ids=["rbf", "off"])
def test_an_exchange_needs_the_axis_of_the_devices(kernel, exchange):
  x, s = (a.astype(np.float32) for a in points(16, 3))
  direction = Direction(kernel, exchange=exchange)
  calls = [
    lambda: direction(x, s),
    lambda: svgd_direction(x, s, kernel, exchange=exchange),
    lambda: stein_jax.repulsion_share(x, s, s, direction),
  ]
  if kernel is not None:
    calls.append(lambda: ksd_squared(x, s, direction))
  calls += [partial(build, direction, None) for build in RULES.values()]
  calls.append(lambda: svgd(jnp.negative, direction, optax.sgd(0.1)))
  for call in calls:
    with pytest.raises(ValueError, match=f"exchange='{exchange}'.*needs axis_name"):
      call()
