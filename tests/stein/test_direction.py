"""The SVGD direction against the paper's double loop, its limits, and blackjax."""

import blackjax.vi.svgd as blackjax_svgd
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from jax.tree_util import Partial

from stein_jax import kernels, svgd_direction
from tests import oracles
from tests.kernels.cases import KERNELS, feature, points

# -------------------------------------------------------- against the double loop


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("row_normalized", "block_size"), [(False, None), (True, 3)])
@pytest.mark.parametrize("name", KERNELS)
def test_direction_equals_the_double_loop(name, row_normalized, block_size):
  kernel, oracle = KERNELS[name]
  x, s = points(7, 2)
  got = svgd_direction(
    x, s, kernel, row_normalized=row_normalized, block_size=block_size
  )
  want = oracles.svgd_direction(x, s, *oracle, row_normalized=row_normalized)
  np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3), (5, 4, 4, 1)])
@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_direction_in_float32_and_any_shape(name, shape):
  kernel, oracle = KERNELS[name]
  x, s = points(*shape).astype(np.float32)
  got = svgd_direction(x, s, kernel)
  assert got.shape == shape
  assert got.dtype == jnp.float32
  want = oracles.svgd_direction(x, s, *oracle)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block_size", [1, 6, 7, 8])
def test_block_size_changes_nothing(block_size):
  x, s = points(7, 2)
  got = svgd_direction(x, s, kernels.rbf(1.7), block_size=block_size)
  np.testing.assert_allclose(
    got, oracles.svgd_direction(x, s, *oracles.rbf(1.7)), rtol=1e-12
  )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["median", "authors"])
def test_direction_with_a_median_bandwidth(name):
  x, s = points(7, 3)
  log, diagonal = {"median": ("m", False), "authors": ("m+1", True)}[name]
  h = oracles.median_bandwidth(x, log, diagonal)
  got = svgd_direction(x, s, kernels.rbf(name))
  np.testing.assert_allclose(got, oracles.svgd_direction(x, s, *oracles.rbf(h)))


@pytest.mark.usefixtures("x64")
def test_which_argument_is_differentiated():
  # k is not symmetric here on purpose: φ(xᵢ) takes k(xⱼ, xᵢ) and its gradient in xⱼ.
  x, s = points(5, 2)
  a, b = np.array([0.7, -1.2]), np.array([0.4, 0.9])

  def k(y, x):
    return jnp.sin(a @ y) * (1 + (b @ x) ** 2)

  got = svgd_direction(x, s, kernels.from_pairwise(k))
  want = oracles.svgd_direction(
    x,
    s,
    lambda y, x: np.sin(a @ y) * (1 + (b @ x) ** 2),
    lambda y, x: a * np.cos(a @ y) * (1 + (b @ x) ** 2),
  )
  np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_direction_of_a_pytree_is_that_of_its_concatenation():
  flat_x, flat_s = points(6, 8)

  def tree(flat):
    return {"a": flat[:, :3], "b": (flat[:, 3:7].reshape(6, 2, 2), flat[:, 7])}

  def k(y, x):  # the RBF kernel of the whole tree
    squares = jax.tree.map(lambda y, x: jnp.sum((y - x) ** 2), y, x)
    return jnp.exp(-sum(jax.tree.leaves(squares)) / 1.7)

  def doubled(x):  # features that are a tree again: distances double
    return {"u": 2 * x["b"][0], "v": (2 * x["a"], 2 * x["b"][1])}

  x, s = tree(flat_x), tree(flat_s)
  for kernel, oracle in [
    (kernels.rbf(1.7), oracles.rbf(1.7)),
    (kernels.from_pairwise(k), oracles.rbf(1.7)),
    (kernels.on_features(kernels.imq(0.8), doubled), oracles.imq(0.8 / 4, -0.5)),
  ]:
    want = tree(oracles.svgd_direction(flat_x, flat_s, *oracle))
    got = svgd_direction(x, s, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), got, want)


@pytest.mark.usefixtures("x64")
def test_features_are_the_composed_kernel():
  x, s = points(6, 2)
  base = kernels.imq(0.8)
  composed = kernels.from_pairwise(lambda y, x: base.pair(feature(y), feature(x)))
  np.testing.assert_allclose(
    svgd_direction(x, s, kernels.on_features(base, feature)),
    svgd_direction(x, s, composed),
    rtol=1e-10,
  )


def test_direction_far_from_the_origin_is_accurate():
  x, s = points(40, 5)
  x, s = (x + 1e3).astype(np.float32), s.astype(np.float32)
  want = oracles.svgd_direction(x, s, *oracles.rbf(3.0))
  got = svgd_direction(x, s, kernels.rbf(3.0))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_direction_with_few_repelling_neighbours_is_accurate_in_float32():
  x, s = points(50, 100).astype(np.float32)
  h = oracles.median_bandwidth(x)
  want = oracles.svgd_direction(x, s, *oracles.rbf(h))
  got = svgd_direction(x, s, kernels.rbf())
  assert np.linalg.norm(got - want) < 3e-6 * np.linalg.norm(want)


# -------------------------------------------------------------------- the limits


def test_kernel_off_is_the_score_itself():
  x, s = points(4, 3).astype(np.float32)
  np.testing.assert_array_equal(svgd_direction(x, s, None), s)


@pytest.mark.usefixtures("x64")
def test_one_particle_follows_its_score():
  x, s = points(1, 3)
  np.testing.assert_allclose(svgd_direction(x, s, kernels.rbf(2.0)), s)


@pytest.mark.usefixtures("x64")
def test_very_large_bandwidth_is_the_constant_kernel():
  x, s = points(6, 3)
  want = np.broadcast_to(s.mean(axis=0), s.shape)
  np.testing.assert_allclose(svgd_direction(x, s, kernels.rbf(1e9)), want, atol=1e-7)
  np.testing.assert_allclose(svgd_direction(x, s, kernels.constant()), want)


@pytest.mark.usefixtures("x64")
def test_very_small_bandwidth_gives_each_particle_its_own_score_over_n():
  x, s = points(6, 3)
  got = svgd_direction(x, s, kernels.rbf(1e-3))
  np.testing.assert_allclose(got, s / 6, rtol=1e-9)


@pytest.mark.parametrize("value", [0.1, 1234.5])
@pytest.mark.parametrize("d", [1, 784])
def test_equal_particles_all_follow_the_mean_score(d, value):
  x = np.full((9, d), value, np.float32)
  s = points(9, d)[1].astype(np.float32)
  got = svgd_direction(x, s, kernels.rbf())
  want = np.broadcast_to(s.mean(axis=0), s.shape)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("x64")
def test_two_particles_without_scores_push_each_other_apart():
  # By hand: φ(x₁) = ½ ∇_{x₂} k(x₂, x₁) = −(1/h)(x₂ − x₁) k.
  x = np.array([[0.0, 0.0], [1.0, 2.0]])
  k = np.exp(-5 / 2.0)
  want = k / 2.0 * np.array([[-1.0, -2.0], [1.0, 2.0]])
  got = svgd_direction(x, np.zeros_like(x), kernels.rbf(2.0))
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_direction_commutes_with_permutations_and_translations():
  x, s = points(7, 3)
  kernel = kernels.rbf()
  phi = svgd_direction(x, s, kernel)
  order = np.random.default_rng(1).permutation(7)
  moved = svgd_direction(x[order], s[order], kernel)
  np.testing.assert_allclose(moved, np.asarray(phi)[order], rtol=1e-10)
  moved = svgd_direction(x + np.array([[5.0, -3.0, 11.0]]), s, kernel)
  np.testing.assert_allclose(moved, phi, rtol=1e-10)


# ---------------------------------------------------------------------- blackjax


@pytest.mark.usefixtures("x64")
def test_direction_is_that_of_blackjax():
  x, _ = points(8, 3)
  mean = np.array([1.0, -2.0, 0.5])

  def score_fn(x):
    return (mean - x) / 2

  # A step of sgd(1) is x + φ. The parts are used by hand, the median first: blackjax's
  # own loop takes its first step with a bandwidth of 1.
  @jax.jit
  def step(x):
    state = blackjax_svgd.init(x, {"length_scale": 1.0}, optax.sgd(1.0))
    state = blackjax_svgd.update_median_heuristic(state)
    move = blackjax_svgd.build_kernel(optax.sgd(1.0))
    return move(state, score_fn, blackjax_svgd.rbf_kernel).particles

  got = svgd_direction(x, jax.vmap(score_fn)(x), kernels.rbf())
  np.testing.assert_allclose(got, step(x) - x, rtol=1e-10)


# ------------------------------------------------------------------- transforms


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_direction_is_differentiable(name):
  x, s = points(4, 2)
  kernel, _ = KERNELS[name]

  @jax.jit
  def fn(x, s, h):
    scaled = jax.tree.map(lambda leaf: leaf * h, kernel)
    return jnp.sum(jnp.sin(svgd_direction(x, s, scaled)))

  check_grads(fn, (x, s, 1.1), order=1, modes=["rev"])


@pytest.mark.usefixtures("x64")
def test_a_median_bandwidth_is_constant_under_differentiation():
  x, s = points(5, 2)

  @jax.jit
  @jax.grad
  def gradient(x, kernel):
    return jnp.sum(svgd_direction(x, s, kernel) ** 2)

  fixed = kernels.rbf(kernels.median_bandwidth(x))
  np.testing.assert_allclose(gradient(x, kernels.rbf()), gradient(x, fixed), rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_direction_under_jit_vmap_and_scan():
  x, s = points(3, 6, 2)
  want = [oracles.svgd_direction(x, s, *oracles.rbf(1.7)) for x, s in zip(x, s)]

  def direction(x, s):
    return svgd_direction(x, s, kernels.rbf(1.7))

  np.testing.assert_allclose(jax.jit(jax.vmap(direction))(x, s), want, rtol=1e-10)

  def step(_, pair):
    return None, direction(*pair)

  _, scanned = jax.lax.scan(step, None, (x, s))
  np.testing.assert_allclose(scanned, want, rtol=1e-10)


def test_eager_calls_of_equal_shapes_are_compiled_once():
  x, s = points(5, 2).astype(np.float32)
  traces = []

  def linear(weights, x):
    traces.append(None)
    return x @ weights

  def kernel_list(scale):
    weights = scale * np.ones((2, 3), np.float32)
    return [
      kernels.rbf(),
      kernels.imq(2.0 * scale),
      kernels.on_features(kernels.rbf(1.0 * scale), Partial(linear, weights)),
    ]

  for kernel in kernel_list(1.0):
    svgd_direction(x, s, kernel)
  assert traces
  traces.clear()
  with jax.no_tracing():
    for kernel in kernel_list(3.0):
      svgd_direction(x + 1, 2 * s, kernel)
  assert not traces
