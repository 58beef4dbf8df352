"""Reference points: more sources of a kernel's sums than the points of a batch."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from stein_jax import (
  Direction,
  kernels,
  stein_cd,
  stein_cd_gradient,
  stein_moves,
  stein_score_matching,
  stein_score_matching_gradient,
  svgd_direction,
)
from stein_jax.parallel import AXIS, make_mesh
from stein_jax.training import fit
from tests import oracles, quick
from tests.algorithms.by_hand import (
  cross_derivative,
  energy,
  energy_gradient,
  mean_of,
  scores_by_hand,
  some_params,
)
from tests.devices import SAME, SHARDED, WAYS, on_devices
from tests.kernels.cases import ALL_KERNELS, feature, points

OPTIONS = [
  {},
  {"leave_one_out": True},
  {"row_normalized": True},
  {"leave_one_out": True, "row_normalized": True, "block_size": 2},
  {"block_size": 3},
]


def by_hand(x, s, y, s_y, k, grad_k, *, leave_one_out=False, row_normalized=False):
  """φ at every xᵢ, a loop over the sources x and y."""
  phi = np.zeros(np.shape(x))
  for i in range(len(x)):
    mass = count = 0
    sources = [(x[j], s[j]) for j in range(len(x)) if not (leave_one_out and j == i)]
    for other, score in (*sources, *zip(y, s_y)):
      phi[i] += k(other, x[i]) * score + grad_k(other, x[i])
      mass += k(other, x[i])
      count += 1
    phi[i] /= mass if row_normalized else count
  return phi


def sources(n=5, r=9, d=2):
  (x, s), (y, s_y) = points(n, d), points(r, d, seed=1)
  return x, s, y, s_y


# -------------------------------------------------------------------- directions


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", quick.only(OPTIONS[1:4], OPTIONS), ids=str)
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_direction_is_the_double_loop(name, options):
  kernel, oracle = ALL_KERNELS[name]
  x, s, y, s_y = sources()
  got = Direction(kernel, **options)(x, s, reference=(y, s_y))
  loop = {k: v for k, v in options.items() if k != "block_size"}
  want = by_hand(x, s, y, s_y, *oracle, **loop)
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_one_particle_and_one_reference_point(leave_one_out):
  x, s, y, s_y = sources(1, 1)
  got = Direction(kernels.rbf(1.3), leave_one_out=leave_one_out)(
    x, s, reference=(y, s_y)
  )
  want = by_hand(x, s, y, s_y, *oracles.rbf(1.3), leave_one_out=leave_one_out)
  np.testing.assert_allclose(got, want, rtol=1e-11)


def at_all(direction, x, s, y, s_y):
  """φ of a direction at all points together, at the first."""
  return direction(np.concatenate([x, y]), np.concatenate([s, s_y]))[: len(x)]


WHOLE = {
  "median": Direction(kernels.rbf()),
  "median, others": Direction(kernels.imq("authors"), leave_one_out=True),
  "regularised": Direction(kernels.rbf(), regularization=0.3),
  "nearest": Direction(
    kernels.on_features(kernels.rbf(), feature, num_neighbors=2), leave_one_out=True
  ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", WHOLE)
def test_it_is_the_direction_of_all_points_together(name):
  x, s, y, s_y = sources()
  got = WHOLE[name](x, s, reference=(y, s_y))
  want = at_all(WHOLE[name], x, s, y, s_y)
  np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_median_is_that_of_all_points():
  x, s, y, s_y = sources()
  h = oracles.median_bandwidth(np.concatenate([x, y]))
  got = Direction(kernels.rbf())(x, s, reference=(y, s_y))
  want = by_hand(x, s, y, s_y, *oracles.rbf(h))
  np.testing.assert_allclose(got, want, rtol=1e-10)


def test_pytrees_and_the_dtype_of_the_particles():
  x, s, y, s_y = (a.astype(np.float32) for a in sources(d=3))

  def tree(flat):
    return {"a": flat[:, 0], "b": flat[:, 1:].reshape(-1, 2, 1)}

  half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (tree(x), tree(s)))
  more = tree(y), tree(s_y)
  flat = by_hand(x, s, y, s_y, *oracles.rbf(1.7))
  got = Direction(kernels.rbf(1.7))(tree(x), tree(s), reference=more)
  chex.assert_trees_all_close(got, tree(flat), rtol=1e-4, atol=1e-5)
  got = Direction(kernels.rbf(1.7))(*half, reference=more)
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("bfloat16")}
  chex.assert_trees_all_close(
    jax.tree.map(jnp.float32, got), tree(flat), rtol=0.05, atol=0.02
  )


SHARDINGS = [("shard_map", "ring"), ("shard_map", None), ("pmap", "all_gather")]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("how", "exchange"), quick.only(SHARDINGS[:2], SHARDINGS))
def test_directions_on_many_devices(how, exchange):
  x, s, y, s_y = sources(16, 9)
  names = ("imq", "not radial", "few features", "many features", "affine features")
  directions = {
    name: Direction(
      ALL_KERNELS[name][0], leave_one_out=True, block_size=2, exchange=exchange
    )
    for name in names
  }
  directions["rows"] = Direction(
    kernels.rbf(1.5), row_normalized=True, exchange=exchange
  )
  directions["median"] = Direction(kernels.rbf(), exchange=exchange)
  if exchange != "ring":
    directions |= {name: WHOLE[name] for name in ("regularised", "nearest")}

  def everything(x, s, y, s_y, axis_name=None):
    return {
      name: direction(x, s, axis_name, reference=(y, s_y))
      for name, direction in directions.items()
    }

  got = on_devices(
    how,
    lambda *args: everything(*args, axis_name="i"),
    (x, s, y, s_y),
    (SHARDED, SHARDED, SAME, SAME),
    SHARDED,
  )
  for name, direction in directions.items():
    alone = Direction(
      direction.kernel,
      leave_one_out=direction.leave_one_out,
      row_normalized=direction.row_normalized,
      regularization=direction.regularization,
    )
    want = alone(x, s, reference=(y, s_y))
    np.testing.assert_allclose(got[name], want, rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------- gradients

RNG = np.random.default_rng(5)
X, Y = RNG.normal(size=(6, 3)), RNG.normal(size=(10, 3)) * 1.2
KERNEL, ORACLE = kernels.imq(2.0), oracles.imq(2.0, -0.5)
assert_same = partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-12)


def phi_by_hand(x, y, **options):
  params = some_params()
  s, s_y = scores_by_hand(params, x), scores_by_hand(params, y)
  return by_hand(x, s, y, s_y, *ORACLE, **options)


def cd_by_hand(back, ahead):
  positive, negative = (
    mean_of([energy_gradient(some_params(), x) for x in p]) for p in (back, ahead)
  )
  return jax.tree.map(np.subtract, positive, negative)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("leave_one_out", [False, True])
def test_gradients_are_those_by_hand(leave_one_out):
  phi = phi_by_hand(X, Y, leave_one_out=leave_one_out)
  direction = Direction(KERNEL, leave_one_out=leave_one_out)
  arguments = (some_params(), energy, X, direction)
  got = stein_moves(*arguments, step_size=0.3, reference=Y)
  np.testing.assert_allclose(got, X + 0.3 * phi, rtol=1e-10)

  got = stein_cd_gradient(*arguments, step_size=0.3, reference=Y)
  want = cd_by_hand(X, X + 0.3 * phi)
  assert_same(got, jax.tree.map(lambda leaf: leaf / 0.3, want))

  got = stein_cd_gradient(*arguments, step_size=0.3, symmetric=True, reference=Y)
  want = cd_by_hand(X - 0.3 * phi, X + 0.3 * phi)
  assert_same(got, jax.tree.map(lambda leaf: leaf / 0.6, want))

  loss, got = stein_score_matching_gradient.with_loss(*arguments, reference=Y)
  crossed = mean_of([cross_derivative(some_params(), *pair) for pair in zip(X, phi)])
  assert_same(got, jax.tree.map(np.negative, crossed))
  s = scores_by_hand(some_params(), X)
  np.testing.assert_allclose(loss, np.sum(s * phi) / len(X), rtol=1e-10)


def own_kernel(params):
  features = Partial(lambda a, x: jnp.tanh(x @ a), params["A"])
  return kernels.on_features(kernels.rbf(), features)


MOVERS = {
  "kernel": KERNEL,
  "median": Direction(kernels.rbf(), leave_one_out=True),
  "regularised": Direction(kernels.rbf(), regularization=0.5),
  "of params": own_kernel,
  "function": lambda x, s: s - x.mean(axis=0, keepdims=True),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", MOVERS)
def test_in_several_moves_the_reference_points_move_too(name):
  options = {"step_size": 0.2, "num_steps": 3}
  arguments = (some_params(), energy)
  every = stein_moves(*arguments, np.concatenate([X, Y]), MOVERS[name], **options)
  got = stein_moves(*arguments, X, MOVERS[name], reference=Y, **options)
  np.testing.assert_allclose(got, every[: len(X)], rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_the_gradient_is_unbiased():
  """Its mean over draws of batch and reference is that over all pairs of the data."""
  data = np.random.default_rng(6).normal(size=(40, 3)) * 1.3
  direction = Direction(kernels.rbf(3.0), leave_one_out=True)
  want = stein_score_matching_gradient(some_params(), energy, data, direction)

  def draw(key, rows):
    chosen = jnp.asarray(data)[jax.random.permutation(key, 40)[:rows]]
    return stein_score_matching_gradient(
      some_params(), energy, chosen[:4], direction, reference=chosen[4:]
    )

  keys = jax.random.split(jax.random.key(0), 4000)
  spreads = {}
  for rows in (6, 30):
    draws = jax.jit(jax.vmap(lambda key, rows=rows: draw(key, rows)))(keys)
    for name, values in draws.items():
      error = values.std(axis=0) / np.sqrt(len(keys))
      assert (np.abs(values.mean(axis=0) - want[name]) < 4.5 * error).all()
    spreads[rows] = optax.tree.norm(jax.tree.map(lambda v: v.std(axis=0), draws))
  assert spreads[30] < 0.8 * spreads[6]


@pytest.mark.usefixtures("x64")
def test_with_a_context():
  def labeled(params, x, context):
    return energy(params, x) + context * x[0] ** 2

  batch = {"x": X, "context": np.linspace(0, 1, 6)}
  more = {"x": Y, "context": np.linspace(1, 2, 10)}
  every = jax.tree.map(lambda a, b: np.concatenate([a, b]), batch, more)
  for num_steps in (1, 2):
    options = {"step_size": 0.2, "num_steps": num_steps}
    moved = stein_moves(some_params(), labeled, every, KERNEL, **options)
    got = stein_moves(some_params(), labeled, batch, KERNEL, reference=more, **options)
    assert_same(got, jax.tree.map(lambda leaf: leaf[:6], moved))


# ------------------------------------------------------------------------- rules


def draw_some(key):
  return jnp.asarray(Y)[jax.random.choice(key, 10, (4,), replace=False)]


RULES = {
  "stein_cd": partial(stein_cd, energy, KERNEL, step_size=0.3),
  "stein_cd, moves": partial(
    stein_cd, energy, Direction(kernels.rbf()), step_size=0.3, num_steps=3
  ),
  "stein_cd, ring": partial(
    stein_cd, energy, Direction(KERNEL, leave_one_out=True), step_size=0.3
  ),
  "stein_score_matching": partial(
    stein_score_matching, energy, Direction(kernels.rbf(), leave_one_out=True)
  ),
  "stein_score_matching, function": partial(
    stein_score_matching, energy, lambda x, s, axis_name=None: s - x
  ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reference", [Y, draw_some], ids=["points", "drawn"])
@pytest.mark.parametrize("name", RULES)
def test_rules_on_many_devices(name, reference):
  one, many = (
    RULES[name](optimizer=optax.sgd(1.0), reference=reference, axis_name=axis)
    for axis in (None, "i")
  )
  batch, key = np.concatenate([X, Y]), jax.random.key(3)
  state = one.init(key, some_params(), batch)
  want = one.update(key, state, batch)
  for how in WAYS:
    got = on_devices(
      how, many.update, (key, state, batch), (SAME, SAME, SHARDED), (SAME, SAME)
    )
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["stein_cd", "stein_score_matching"])
def test_rules_descend_the_gradient_with_the_points_of_their_key(name):
  rule = RULES[name](optimizer=optax.sgd(1.0), reference=draw_some)
  state = rule.init(jax.random.key(0), some_params(), X)
  kernel = Direction(kernels.rbf(), leave_one_out=True)
  for seed in (1, 2):
    key = jax.random.key(seed)
    moved, _ = rule.update(key, state, X)
    if name == "stein_cd":
      want = stein_cd_gradient(
        some_params(), energy, X, KERNEL, step_size=0.3, reference=draw_some(key)
      )
    else:
      want = stein_score_matching_gradient(
        some_params(), energy, X, kernel, reference=draw_some(key)
      )
    assert_same(moved.params, jax.tree.map(np.subtract, some_params(), want))


@pytest.mark.usefixtures("x64")
def test_fit_on_a_mesh_is_fit_on_one_device():
  def params_after(axis_name=None, mesh=None):
    rule = RULES["stein_score_matching"](
      optimizer=optax.adam(0.05), reference=draw_some, axis_name=axis_name
    )
    options = {"num_steps": 4, "batch_size": 8, "progress": False, "mesh": mesh}
    params = jax.tree.map(jnp.asarray, some_params())
    data = np.concatenate([X, Y])
    return fit(jax.random.key(0), rule, params, data, **options).state.params

  assert_same(params_after(AXIS, make_mesh(4)), params_after())


# --------------------------------------------------------------------- bad input


def gradient(reference, kernel=KERNEL, data=X):
  stein_score_matching_gradient(
    some_params(), energy, data, kernel, reference=reference
  )


def moves(reference, kernel=KERNEL):
  stein_moves(some_params(), energy, X, kernel, step_size=0.1, reference=reference)


def direction(reference, kernel=KERNEL):
  Direction(kernel)(X, X, reference=reference)


BAD = {
  "shape": (lambda: gradient(Y[:, :2]), ValueError, "one point of data and one of ref"),
  "none": (lambda: moves(Y[:0]), ValueError, "reference must hold at least one point"),
  "integers": (
    lambda: gradient(np.ones((2, 3), int)),
    TypeError,
    "reference must be floating-point",
  ),
  "function": (
    lambda: gradient(draw_some),
    TypeError,
    "reference must be an array or a pytree of arrays",
  ),
  "context": (
    lambda: moves({"x": Y, "context": np.ones(10)}),
    ValueError,
    "both of data and reference have a context",
  ),
  "context of another shape": (
    lambda: gradient(
      {"x": Y, "context": np.ones((10, 2))}, data={"x": X, "context": np.ones(6)}
    ),
    ValueError,
    "the context of data and one of the context of reference must have the same shape",
  ),
  "no kernel": (lambda: moves(Y, None), ValueError, "reference points need a kernel"),
  "no pair": (
    lambda: direction(Y),
    TypeError,
    r"reference must be a pair \(points, scores\)",
  ),
  "scores": (
    lambda: direction((Y, Y[:3])),
    ValueError,
    "the reference points and their scores must have the same shape",
  ),
  "points": (
    lambda: direction((Y[:, :2], Y[:, :2])),
    ValueError,
    "one point of particles and one of the reference points must have the same shape",
  ),
  "persistent": (
    lambda: stein_cd(
      energy, KERNEL, optax.sgd(0.1), step_size=0.1, persistent=True, reference=Y
    ),
    ValueError,
    "persistent excludes reference",
  ),
  "rule, text": (
    lambda: RULES["stein_cd"](optimizer=optax.sgd(0.1), reference="data"),
    TypeError,
    "reference must be an array",
  ),
  "rule, arguments": (
    lambda: RULES["stein_score_matching"](
      optimizer=optax.sgd(0.1), reference=lambda: Y
    ),
    TypeError,
    r"reference must be a function reference\(key\)",
  ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
  call, error, message = BAD[name]
  with pytest.raises(error, match=message):
    call()


def test_one_particle_is_enough_with_reference_points():
  x = np.zeros((1, 2))
  with pytest.raises(ValueError, match="leave_one_out needs at least 2 particles"):
    svgd_direction(x, x, kernels.rbf(1.0), leave_one_out=True)
  phi = Direction(kernels.rbf(1.0), leave_one_out=True)(x, x, reference=(x + 1, x))
  assert phi.shape == x.shape
