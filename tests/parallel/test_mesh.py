"""On a mesh of devices an algorithm, and `fit`, give what they give on one device."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import stein_jax
from stein_jax import kernels, parallel, training
from stein_jax.parallel.rows import particle_axes
from tests import quick

N, M, D = 37, 8, 3  # N need not be a multiple of the number of devices


def energy(params, x):
  bump = jnp.sum(jnp.tanh(x @ params["weights"]))
  return jnp.sum((x - params["mean"]) ** 2) / 2 + bump


def start():
  rng = np.random.default_rng(2)
  return {
    "mean": jnp.asarray(rng.normal(size=D)),
    "weights": jnp.asarray(rng.normal(size=(D, 2))),
  }


def data(dtype=float):
  return np.random.default_rng(0).normal(size=(N, D)).astype(dtype)


def stein_cd(axis_name=None, **options):
  return stein_jax.stein_cd(
    energy,
    kernels.rbf(),
    optax.adam(0.05),
    step_size=0.1,
    axis_name=axis_name,
    **options,
  )


def persistent(axis_name=None):
  return stein_jax.contrastive_divergence(
    energy,
    optax.adam(0.05),
    num_steps=2,
    step_size=0.2,
    persistent=True,
    axis_name=axis_name,
  )


def fit(build, mesh, data, **options):
  options = {"num_steps": 23, "batch_size": M, "log_every": 5, "progress": False} | (
    options
  )
  algorithm = build(None if mesh is None else parallel.AXIS)
  return training.fit(jax.random.key(1), algorithm, start(), data, mesh=mesh, **options)


def assert_same(got, want, rtol=1e-10, atol=1e-12):
  chex.assert_trees_all_close(got, want, rtol=rtol, atol=atol)


def without_times(history):
  return [{k: v for k, v in row.items() if k != "ms_per_step"} for row in history]


def assert_same_history(got, want, rtol=1e-10):
  got, want = without_times(got), without_times(want)
  assert [row.keys() for row in got] == [row.keys() for row in want]
  for a, b in zip(got, want):
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=rtol)


# ------------------------------------------------------------------------ `fit`


@pytest.mark.usefixtures("x64")
@pytest.mark.slow
@pytest.mark.parametrize("build", [stein_cd, persistent])
def test_fit_gives_what_one_device_gives(build):
  def evaluate(state):
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(state))
    return {"mean": state.params["mean"].sum()}

  options = {"evaluate": evaluate, "eval_every": 10}
  one = fit(build, None, data(), **options)
  for size in (1, 2, 8):
    many = fit(build, parallel.make_mesh(size), data(), **options)
    assert_same(many.state, one.state)
    assert_same_history(many.history, one.history)
    if build is persistent:
      assert many.state.particles.sharding.shard_shape((M, D)) == (M // size, D)
      whole = parallel.local(many.state)
      assert len(whole.particles.devices()) == 1
      assert_same(whole, one.state)


SGD = optax.sgd(1.0)  # the parameters move by the whole gradient

RULES = {
  "stein_cd": lambda axis: stein_jax.stein_cd(
    energy, kernels.rbf(), SGD, step_size=0.1, axis_name=axis
  ),
  "symmetric": lambda axis: stein_jax.stein_cd(
    energy, kernels.rbf(), SGD, step_size=0.1, symmetric=True, axis_name=axis
  ),
  "stein_score_matching": lambda axis: stein_jax.stein_score_matching(
    energy, kernels.rbf(), SGD, axis_name=axis
  ),
  "score_matching": lambda axis: stein_jax.score_matching(energy, SGD, axis_name=axis),
  "svgd": lambda axis: stein_jax.svgd(
    lambda x: -(x**3), kernels.rbf(), SGD, axis_name=axis
  ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", quick.only(["stein_cd", "svgd"], RULES))
def test_in_float32_within_what_reordering_a_batch_does(name):
  x = data(np.float32)[:32]
  start32 = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), start())
  key, one = jax.random.key(0), RULES[name](None)

  def moved(rule, x, order=slice(None)):
    """The result for points in another order, brought back into the given one."""
    state = one.init(key, x[order] if name == "svgd" else start32, x[order])
    state, _ = jax.jit(rule.update)(key, state, x[order])
    if name == "svgd":
      return np.asarray(state.particles)[np.argsort(np.arange(32)[order])]
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(state.params)])

  want = moved(one, x)
  rng = np.random.default_rng(3)
  reordered = [abs(moved(one, x, rng.permutation(32)) - want) for _ in range(10)]
  for size in (2, 8):
    many = parallel.distribute(RULES[name](parallel.AXIS), parallel.make_mesh(size))
    assert abs(moved(many, x) - want).max() <= 4 * np.max(reordered)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [8, 16])
def test_svgd_and_the_momenta_of_its_particles(n):
  """The optimizer's state is sharded with the particles."""

  def rule(axis_name=None):
    return stein_jax.svgd(
      lambda x: -(x**3), kernels.rbf(), optax.adam(0.1), axis_name=axis_name
    )

  def moved(**options):
    return training.fit(
      jax.random.key(0),
      rule(parallel.AXIS if options else None),
      data()[:n],
      data(),
      num_steps=4,
      batch_size=8,
      progress=False,
      **options,
    ).state

  want, got = moved(), moved(mesh=parallel.make_mesh(8))
  assert_same(got, want)
  momentum = got.opt_state[0].mu
  assert momentum.sharding.shard_shape(momentum.shape) == (n // 8, D)


@pytest.mark.usefixtures("x64")
def test_checkpoints_restore_on_another_number_of_devices(tmp_path):
  want = fit(persistent, None, data())
  for steps, size in ((6, 8), (11, None), (17, 2), (23, 4)):
    mesh = None if size is None else parallel.make_mesh(size)
    got = fit(persistent, mesh, data(), num_steps=steps, workdir=tmp_path)
  assert_same(got.state, want.state)
  # A part that ends between multiples of log_every leaves a row of its own.
  means = {row["step"]: row["loss"] for row in got.history}
  assert means[23] == pytest.approx(want.history[-1]["loss"])
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == len(got.history)


class Streamed:
  """The data's rows, one after the other."""

  num_examples = N

  def batches(self, first_step, length, batch_size, rows=slice(None)):
    steps = first_step + np.arange(length)
    places = (steps[:, None] * batch_size + np.arange(batch_size)) % N
    return data()[places[:, rows]]


@pytest.mark.usefixtures("x64")
def test_streams():
  one = fit(stein_cd, None, Streamed())
  many = fit(stein_cd, parallel.make_mesh(8), Streamed())
  assert_same(many.state, one.state)
  assert_same_history(many.history, one.history)


def test_nothing_compiles_after_the_first_chunk(compilations):
  counts = []

  def evaluate(state):
    counts.append(len(compilations))
    return {}

  fit(
    persistent,
    parallel.make_mesh(8),
    data(np.float32),
    num_steps=25,
    evaluate=evaluate,
    eval_every=5,
  )
  assert counts[-4] > 0
  assert len(set(counts[-4:])) == 1


def test_what_cannot_be_sharded_is_an_error_before_any_work():
  mesh = parallel.make_mesh(8)
  for size, nearest in ((12, "8 or 16"), (3, "take 8")):
    with pytest.raises(ValueError, match=f"batch_size={size} .* over 8 .*{nearest}"):
      fit(stein_cd, mesh, data(np.float32), batch_size=size)
  with pytest.raises(ValueError, match="axis_name='devices'"):
    training.fit(
      jax.random.key(0),
      stein_cd(),  # without the axis
      start(),
      data(np.float32),
      num_steps=1,
      batch_size=16,
      mesh=mesh,
      progress=False,
    )
  rule = parallel.distribute(stein_cd(parallel.AXIS), mesh)
  state = rule.init(jax.random.key(0), start(), data(np.float32)[:8])
  with pytest.raises(ValueError, match="batch_size=12 cannot"):
    rule.update(jax.random.key(0), state, data(np.float32)[:12])
  other = parallel.distribute(stein_cd("another"), mesh)
  with pytest.raises(ValueError, match="axis_name='devices'"):
    other.update(jax.random.key(0), state, data(np.float32)[:16])
  kinds = 2 * (jax.sharding.AxisType.Auto,)
  with pytest.raises(ValueError, match="one axis"):
    parallel.distribute(stein_cd(), jax.make_mesh((4, 2), ("a", "b"), kinds))
  with pytest.raises(ValueError, match="there are only 8 cpu devices"):
    parallel.make_mesh(9)
  with pytest.raises(ValueError, match="num_devices must be an integer of at least 1"):
    parallel.make_mesh(0)


# ------------------------------------------------------------------------ pieces


def test_the_optimizers_arrays_of_particles_are_recognised():
  """By the number of particles, and not by a shape that may be equal by coincidence."""
  rates = jnp.linspace(0.1, 0.8, 8)
  optimizer = optax.chain(
    optax.scale_by_lbfgs(memory_size=8),  # the last eight steps, [8, n]
    optax.GradientTransformation(
      lambda params: {"rates": rates, "momentum": params},
      lambda updates, state, params: (updates, state),
    ),
  )
  rule = stein_jax.svgd(lambda x: -x, None, optimizer)
  mesh, rows = parallel.make_mesh(8), PartitionSpec(parallel.AXIS)
  for particles in (rates, jnp.ones((8, 8))):
    state = rule.init(None, particles, None)
    got = jax.tree.map(lambda x: x.spec, parallel.shardings(rule, state, mesh))
    assert got.particles == rows
    memory, (last,) = got.opt_state[0], got.opt_state[1:]
    assert last == {"rates": PartitionSpec(), "momentum": rows}
    assert memory.params == rows
    assert memory.diff_params_memory == PartitionSpec(None, parallel.AXIS)
    assert memory.weights_memory == PartitionSpec()
    assert memory.count == PartitionSpec()


def test_a_layout_that_changes_with_the_number_of_particles():
  def layout(particles):  # Adafactor's, with row and column means from 128 on
    n, d = particles.shape
    return (jnp.ones(n), jnp.ones(d)) if n >= 128 else jnp.ones((n, d))

  def axes(init_fn, n):
    return particle_axes(init_fn, jax.ShapeDtypeStruct((n, 3), jnp.float32))

  assert axes(layout, 127) == [0]
  assert axes(layout, 128) == axes(layout, 129) == [0, None]
  assert axes(lambda x: x.T, 1) == [1]
  with pytest.raises(ValueError, match="cannot be sharded with the particles"):
    axes(lambda x: jnp.ones((len(x), 2 * len(x))), 8)


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int32, bool])
def test_rows_are_taken_from_all_devices(dtype, size):
  rng = np.random.default_rng(0)
  tree = {
    "x": rng.integers(0, 255, size=(N, 2, 2)).astype(dtype),
    "context": np.arange(N, dtype=np.int32),
  }
  mesh = parallel.make_mesh(size)
  spread = parallel.spread_rows(tree, mesh)
  rows = rng.permutation(N)[:24].astype(np.int32)
  got = jax.jit(lambda data, rows: parallel.take(data, rows, mesh))(spread, rows)
  for name, x in tree.items():
    assert got[name].dtype == x.dtype
    assert got[name].sharding.shard_shape(got[name].shape)[0] == 24 // size
    np.testing.assert_array_equal(got[name], x[rows])
    assert spread[name].sharding.shard_shape(spread[name].shape)[0] == -(-N // size)


def test_only_a_batch_is_communicated():
  mesh = parallel.make_mesh(8)
  spread = parallel.spread_rows(np.zeros((1000, 50), np.uint8), mesh)
  rows = jnp.zeros(16, jnp.int32)
  taken = jax.jit(lambda data, rows: parallel.take(data, rows, mesh))
  text = taken.lower(spread, rows).compile().as_text()
  assert "all-gather" not in text
  assert "u8[125,50]" in text  # a device's own rows
  assert "u8[1000,50]" not in text


def test_spread_keeps_keys_and_local_is_its_inverse():
  mesh = parallel.make_mesh(8)
  tree = {"key": jax.random.key(3), "x": np.arange(16.0, dtype=np.float32)}
  where = {"key": parallel.same(mesh), "x": parallel.by_rows(mesh)}
  spread = parallel.spread(tree, where)
  assert spread["x"].sharding.shard_shape((16,)) == (2,)
  back = parallel.local(spread)
  np.testing.assert_array_equal(back["x"], tree["x"])
  bits = jax.random.bits(tree["key"])
  assert jax.random.bits(back["key"]) == bits
  np.testing.assert_array_equal(parallel.own_rows(16, mesh), np.arange(16))
