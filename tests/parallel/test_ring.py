"""Particles that go round a ring of devices give what one device gives."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

import stein_jax
from stein_jax import (
  kernels,
  ksd_squared,
  parallel,
  svgd,
  svgd_direction,
)
from stein_jax.pairs import tiles
from stein_jax.parallel import ring

SPREAD, SAME = PartitionSpec("i"), PartitionSpec()
SIZES = (1, 2, 3, 4, 5, 8)


def mesh(size):
  kinds = (jax.sharding.AxisType.Auto,)
  return jax.make_mesh((size,), ("i",), kinds, devices=jax.devices()[:size])


def on_devices(size, fn, args, out_specs, *, how="shard_map"):
  """fn(*args), the arguments' rows spread over so many devices."""
  if how == "shard_map":
    specs = tuple(SPREAD for _ in args)
    body = jax.shard_map(fn, mesh=mesh(size), in_specs=specs, out_specs=out_specs)
    return jax.jit(body)(*args)
  split = [x.reshape(size, -1, *x.shape[1:]) for x in args]
  out = jax.pmap(fn, axis_name="i", devices=jax.devices()[:size])(*split)
  if out_specs == SAME:
    return jax.tree.map(lambda x: x[0], out)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


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
def test_every_two_devices_meet_once_for_both(size, how):
  """A device hears of visitors itself, and of its hosts by what is due to it."""
  here = np.arange(size) + 1.0

  def body(number):
    def meet(carry, visitor, origin, mutual):
      met, seen, lone = carry
      # what a guest is told of its host, what a host learns of its guest
      due = (10.0**number) if mutual else jnp.zeros_like(number)
      at = (origin + 1).astype(number.dtype)[None]
      lone = lone + (0.0 if mutual else 10.0**visitor)
      return (met + 10.0**visitor, seen + abs(at - visitor), lone), due

    nothing = 0 * number
    start = (nothing, nothing, nothing)
    (met, wrong, lone), owed = ring.half_way(meet, start, number, nothing, "i")
    return met + owed, wrong, lone

  heard, wrong, lone = on_devices(size, body, (here,), SPREAD, how=how)
  everyone = sum(10.0**k for k in here)
  np.testing.assert_allclose(heard, everyone - 10.0**here, rtol=1e-6)
  np.testing.assert_array_equal(wrong, 0)  # the origin is told right
  meets_twice = size % 2 == 0
  assert ((np.asarray(lone) > 0) == meets_twice).all()


# --------------------------------------------------------- sums over the particles


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  ("name", "size"),
  [("median", 8), ("imq", 5), ("pairwise", 3), ("features", 3)]
  + [
    pytest.param(name, size, marks=pytest.mark.slow)
    for name in KERNELS
    for size in (1, 2, 3, 4, 8)
  ],
)
def test_directions_and_discrepancies(name, size):
  kernel = KERNELS[name]
  x, s = points(120, 3)

  def both(x, s, **options):
    phi = svgd_direction(x, s, kernel, **options)
    v = ksd_squared(x, s, kernel, **options)
    u = ksd_squared(x, s, kernel, statistic="U", **options)
    return phi, jnp.stack([v, u])[None]

  want = jax.jit(both)(x, s)
  for how, block in (("shard_map", 4), ("pmap", None)):

    def body(x, s, block=block):
      return both(x, s, axis_name="i", exchange="ring", block_size=block)

    phi, discrepancies = on_devices(size, body, (x, s), SPREAD, how=how)
    np.testing.assert_allclose(phi, want[0], rtol=1e-10, atol=1e-13)
    for of_device in discrepancies:
      np.testing.assert_allclose(of_device, want[1][0], rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [2, 3, 8])
def test_row_sums(size):
  x, s = points(48, 3)

  def direction(x, s, **options):
    return svgd_direction(x, s, kernels.imq(2.0), row_normalized=True, **options)

  got = on_devices(
    size, lambda x, s: direction(x, s, axis_name="i", exchange="ring"), (x, s), SPREAD
  )
  np.testing.assert_allclose(got, direction(x, s), rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [2, pytest.param(5, marks=pytest.mark.slow), 8])
@pytest.mark.parametrize(
  "options",
  [
    {},
    {"log": "none", "block_size": 3},
    {"diagonal": True, "log": "m+1"},
    {"subsample": 17},
  ],
  ids=str,
)
def test_medians(options, size):
  x, _ = points(120, 3)

  def median(x, **more):
    return kernels.median_bandwidth(x, **options, **more)

  for points_ in (x, np.round(x), np.where(np.arange(120)[:, None] < 80, 0.0, x)):
    got = on_devices(
      size,
      lambda x: median(x, axis_name="i", exchange="ring")[None],
      (points_,),
      SPREAD,
    )
    np.testing.assert_allclose(got, float(median(points_)), rtol=1e-12)


@pytest.mark.parametrize("n", [1600, pytest.param(3200, marks=pytest.mark.slow)])
def test_median_of_many_by_samples_and_tiles(n):
  """A block of several tiles begins its search at a sample of its own pairs."""
  x = points(n, 2)[0].astype(np.float32)
  x[: n // 8] += 50  # one device has a cluster to itself
  got = on_devices(
    8,
    lambda x: kernels.median_bandwidth(
      x, axis_name="i", exchange="ring", log="none", block_size=64
    ),
    (x,),
    SAME,
  )
  want = kernels.median_bandwidth(x, log="none")
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_clusters_far_apart_in_float32(size):
  """Distances are right to a part of h, also where ‖x‖² drowns h."""
  x, s = (a.astype(np.float32) for a in points(48, 3))
  x = (x * 1e-1 + 1e2 * np.sign(x[:, :1])).astype(np.float32)
  kernel = kernels.rbf(1e-2)
  got = on_devices(
    size,
    lambda x, s: svgd_direction(x, s, kernel, axis_name="i", exchange="ring"),
    (x, s),
    SPREAD,
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

  def spread_loss(x, s):
    phi = jax.shard_map(
      lambda x, s: svgd_direction(x, s, KERNELS[name], axis_name="i", exchange="ring"),
      mesh=mesh(size),
      in_specs=(SPREAD, SPREAD),
      out_specs=SPREAD,
    )(x, s)
    return (weights * phi).sum()

  want = jax.grad(loss, argnums=(0, 1))(x, s)
  got = jax.jit(jax.grad(spread_loss, argnums=(0, 1)))(x, s)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_svgd_moves_particles_in_a_ring():
  x, _ = points(24, 3)

  def moved(x, **options):
    rule = svgd(lambda x: -(x**3), kernels.rbf(), optax.adam(0.1), **options)
    return rule.update(None, rule.init(None, x, None), None)[0].particles

  got = on_devices(8, lambda x: moved(x, axis_name="i", exchange="ring"), (x,), SPREAD)
  np.testing.assert_allclose(got, moved(x), rtol=1e-9)


# ------------------------------------------------------------ what is built on them


def energy(params, x):
  return jnp.sum((x - params["mean"]) ** 2) / 2 + jnp.sum(jnp.tanh(x @ params["w"]))


def generate(eta, stats, noise, context):
  return jnp.tanh(noise @ eta["w"]) + noise, stats


def stein_gan(**options):
  def noise_fn(key, m):
    return jax.random.normal(key, (m, 3))

  rule = stein_jax.stein_gan(
    energy, generate, noise_fn, kernels.rbf(), SGD, SGD, mix=0.5, **options
  )

  def init(key, params, batch):
    return rule.init(key, {"energy": params, "generator": params}, batch)

  return stein_jax.Algorithm(init, rule.update)


SGD = optax.sgd(1.0)
RULES = {
  "stein_cd": lambda **options: stein_jax.stein_cd(
    energy, kernels.rbf(), SGD, step_size=0.1, **options
  ),
  "symmetric": lambda **options: stein_jax.stein_cd(
    energy, kernels.rbf(), SGD, step_size=0.1, symmetric=True, **options
  ),
  "persistent": lambda **options: stein_jax.stein_cd(
    energy, kernels.rbf(), SGD, step_size=0.1, persistent=True, num_steps=2, **options
  ),
  "score matching": lambda **options: stein_jax.stein_score_matching(
    energy, kernels.rbf(), SGD, **options
  ),
  "SteinGAN": stein_gan,
}


def parameters():
  rng = np.random.default_rng(2)
  return {"mean": rng.normal(size=3), "w": rng.normal(size=(3, 3))}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ("symmetric", "persistent")))
    for name in RULES
  ],
)
def test_every_rule_takes_the_ring(name):
  key, (batch, first) = jax.random.key(5), points(24, 3)
  one = RULES[name]()
  many = parallel.distribute(
    RULES[name](axis_name=parallel.AXIS, exchange="ring"), parallel.make_mesh(8)
  )
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

  spread = jax.shard_map(
    body, mesh=mesh(8), in_specs=(SPREAD, SPREAD), out_specs=SPREAD
  )
  shape = jax.ShapeDtypeStruct((n, d), jnp.float32)
  return jax.jit(spread).lower(shape, shape).compile()


def test_nobody_holds_all_particles_in_a_ring():
  ringed = compiled(4096, 64, "ring").as_text()
  assert "all-gather" not in ringed
  assert "collective-permute" in ringed
  gathered = compiled(4096, 64, "all_gather").as_text()
  assert "all-gather" in gathered
  assert "collective-permute" not in gathered


def test_a_ring_where_the_table_of_pairs_is_large():
  assert "all-gather" in compiled(1024, 2, None).as_text()
  assert "collective-permute" in compiled(16384, 2, None).as_text()
  nearest = kernels.on_features(kernels.rbf(1.0), jnp.sin, num_neighbors=1)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tiles, "_HELD_PAIRS", 64)
    assert "all-gather" in compiled(64, 2, None, nearest).as_text()


def test_refusals():
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
    with pytest.raises(ValueError, match="needs all"):
      on_devices(8, direction, (x, s), SPREAD)
  for fn in (svgd_direction, ksd_squared):
    with pytest.raises(ValueError, match="exchange must be one of"):
      fn(x, s, kernels.rbf(1.0), exchange="half")
  with pytest.raises(ValueError, match="exchange must be one of"):
    kernels.median_bandwidth(x, exchange="half")
