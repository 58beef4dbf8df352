"""The SVGD direction against the paper's double loop, its limits, and blackjax."""

import blackjax.vi.svgd as blackjax_svgd
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from jax.tree_util import Partial

from stein_jax import kernels, svgd, svgd_direction
from tests import oracles


def points(*shape, seed=0):
  """Particles and scores."""
  return np.random.default_rng(seed).normal(size=(2, *shape))


def polynomial_rbf(y, x):
  """(yᵀx + 0.7)² exp(−‖y − x‖²/1.3): symmetric, not radial."""
  return (y @ x + 0.7) ** 2 * jnp.exp(-jnp.sum((y - x) ** 2) / 1.3)


WEIGHTS = np.array([[1.0, -0.5, 0.3, 0.8], [0.2, 0.9, -1.1, 0.4]])


def feature(x):
  """Nonlinear features of a point [2], as [4]."""
  # JAX remembers a NumPy array inside jit in the precision it first met it in, which
  # another test may have chosen; a list has none.
  weights = jnp.array(WEIGHTS.tolist(), x.dtype)
  return jnp.tanh(x @ weights) + 0.1 * jnp.sum(x**2)


def feature_np(x):
  return np.tanh(x @ WEIGHTS) + 0.1 * np.sum(x**2)


def feature_jacobian_np(x):
  slope = 1 - np.tanh(x @ WEIGHTS) ** 2
  return slope[:, None] * WEIGHTS.T + 0.2 * x[None, :]


# -------------------------------------------------------- against the double loop

KERNELS = {
  "rbf": (kernels.rbf(1.7), oracles.rbf(1.7)),
  "imq": (kernels.imq(0.9, exponent=-0.3), oracles.imq(0.9, -0.3)),
  "constant": (kernels.constant(), oracles.constant()),
  "not radial": (
    kernels.from_pairwise(polynomial_rbf),
    oracles.polynomial_rbf(0.7, 1.3),
  ),
  "on features": (
    kernels.on_features(kernels.rbf(1.7), feature),
    oracles.on_features(oracles.rbf(1.7), feature_np, feature_jacobian_np),
  ),
}


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


def test_direction_far_from_the_origin_keeps_its_digits():
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
def test_very_small_bandwidth_leaves_each_particle_its_share_of_its_score():
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


# ----------------------------------------------------------------- the algorithm


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kernel", [kernels.rbf(), None], ids=["rbf", "off"])
def test_sgd_is_the_papers_update(kernel):
  x, _ = points(6, 2)
  algorithm = svgd(lambda x: -3 * x, kernel, optax.sgd(0.1))
  state = algorithm.init(None, x, None)
  new_state, metrics = algorithm.update(None, state, None)
  phi = svgd_direction(x, -3 * x, kernel)
  np.testing.assert_allclose(new_state.particles, x + 0.1 * phi, rtol=1e-12)
  rms = np.sqrt(np.mean(np.sum(np.square(phi), axis=1)))
  np.testing.assert_allclose(metrics["direction_norm"], rms, rtol=1e-12)


def run(algorithm, particles, num_steps):
  @jax.jit
  def scan(state):
    return jax.lax.scan(
      lambda state, _: algorithm.update(None, state, None), state, None, num_steps
    )

  return scan(algorithm.init(None, particles, None))


MEAN = np.array([1.0, -2.0])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.8]])
PRECISION = np.linalg.inv(COVARIANCE)


@pytest.mark.usefixtures("x64")
def test_a_linear_kernel_finds_mean_and_covariance_of_a_gaussian_exactly():
  # Liu & Wang (2018, "SVGD as moment matching"): with k = xᵀy + 1 every fixed point
  # has the Gaussian's mean and covariance.
  x, _ = points(12, 2)
  kernel = kernels.from_pairwise(lambda y, x: 1 + y @ x)
  algorithm = svgd(lambda x: PRECISION @ (MEAN - x), kernel, optax.sgd(0.05))
  state, metrics = run(algorithm, x, 3000)
  assert metrics["direction_norm"][-1] < 1e-6
  np.testing.assert_allclose(state.particles.mean(axis=0), MEAN, atol=1e-5)
  np.testing.assert_allclose(
    np.cov(state.particles.T, bias=True), COVARIANCE, atol=1e-5
  )


def test_rbf_particles_spread_like_the_gaussian_they_are_drawn_to():
  x, _ = points(40, 2).astype(np.float32)
  algorithm = svgd(
    lambda x: jnp.asarray(PRECISION, x.dtype) @ (jnp.asarray(MEAN, x.dtype) - x),
    kernels.rbf(),
    optax.adagrad(0.5),
  )
  state, _ = run(algorithm, x + 5, 600)
  np.testing.assert_allclose(state.particles.mean(axis=0), MEAN, atol=0.03)
  np.testing.assert_allclose(np.cov(state.particles.T), COVARIANCE, atol=0.2)


@pytest.mark.usefixtures("x64")
def test_the_algorithm_moves_pytrees():
  flat, _ = points(5, 3)
  tree = {"a": flat[:, :2], "b": flat[:, 2]}
  algorithm = svgd(
    lambda x: {"a": -x["a"], "b": 1 - x["b"]}, kernels.rbf(1.5), optax.sgd(0.2)
  )
  state, _ = run(algorithm, tree, 3)
  flat_algorithm = svgd(
    lambda x: jnp.array([0.0, 0.0, 1.0]) - x, kernels.rbf(1.5), optax.sgd(0.2)
  )
  want, _ = run(flat_algorithm, flat, 3)
  np.testing.assert_allclose(state.particles["a"], want.particles[:, :2], rtol=1e-10)
  np.testing.assert_allclose(state.particles["b"], want.particles[:, 2], rtol=1e-10)


def test_a_score_of_another_shape_is_refused():
  x = np.zeros((4, 1), np.float32)
  algorithm = svgd(lambda x: -x[0], kernels.rbf(1.0), optax.sgd(0.1))
  with pytest.raises(ValueError, match=r"\(4, 1\) and \(4,\)"):
    algorithm.update(None, algorithm.init(None, x, None), None)


# -------------------------------------------------- the regularised Stein direction


def regularised_by_brute_force(x, s, h, eta):
  """Maximises E[T_p φ] − ½E‖φ‖² − (η/2n)‖φ‖² over the span that holds the maximum.

  By the representer theorem φ_c lies in the span of k(xᵢ, ·) and ∂_c k(xᵢ, ·). The
  Gram matrix of those functions gives values, derivatives and norm of any member.
  """
  n, d = x.shape
  difference = x[:, None] - x[None]
  k = np.exp(-np.square(difference).sum(axis=2) / h)
  values = np.empty_like(x)
  for c in range(d):
    r = difference[:, :, c]
    slope = 2 / h * r * k  # [i, j]: ⟨k(xᵢ, ·), ∂_c k(xⱼ, ·)⟩
    curvature = (2 / h - 4 / h**2 * r**2) * k
    gram = np.block([[k, slope], [slope.T, curvature]])
    linear = (gram[:, :n] @ s[:, c] + gram[:, n:].sum(axis=1)) / n
    quadratic = (gram[:, :n] @ gram[:n] + eta * gram) / n
    coefficients = np.linalg.lstsq(quadratic, linear, rcond=1e-13)[0]
    values[:, c] = gram[:n] @ coefficients
  return values


@pytest.mark.parametrize("eta", [0.1, 1.0, 10.0])
def test_regularised_direction_is_the_maximum_by_brute_force(x64, eta):
  x, s = np.random.default_rng(3).normal(size=(2, 9, 2))
  want = regularised_by_brute_force(x, s, h=1.7, eta=eta)
  for kernel in (
    kernels.rbf(1.7),
    kernels.from_pairwise(kernels.rbf(1.7).pair),
    kernels.on_features(kernels.rbf(1.7), _identity),
  ):
    got = svgd_direction(x, s, kernel, regularization=eta)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("row_normalized", [False, True])
def test_affine_features_spare_the_pull_backs_and_change_nothing(x64, row_normalized):
  rng = np.random.default_rng(6)
  x, s = rng.normal(size=(2, 9, 5))
  A, a = rng.normal(size=(5, 3)), rng.normal(size=3)
  features = Partial(lambda A, a, x: x @ A + a, A, a)
  for base, oracle in (
    (kernels.rbf(1.7), oracles.rbf(1.7)),
    (kernels.imq(1.7), oracles.imq(1.7, -0.5)),
  ):
    kernel = kernels.on_features(base, features, affine=True)
    composed = oracles.on_features(oracle, lambda x: x @ A + a, lambda x: A.T)
    want = oracles.svgd_direction(x, s, *composed, row_normalized=row_normalized)
    for block_size in (None, 2):
      got = svgd_direction(
        x, s, kernel, row_normalized=row_normalized, block_size=block_size
      )
      np.testing.assert_allclose(got, want, rtol=1e-9)


def test_affine_features_of_trees(x64):
  rng = np.random.default_rng(7)
  x, s = rng.normal(size=(2, 8, 4))

  def tree(flat):
    return {"a": flat[:, :3], "b": flat[:, 3]}

  def feature(x):
    return {"u": 2 * x["a"] - 1, "v": x["b"] - x["a"].sum()}

  want = svgd_direction(tree(x), tree(s), kernels.on_features(kernels.rbf(), feature))
  got = svgd_direction(
    tree(x), tree(s), kernels.on_features(kernels.rbf(), feature, affine=True)
  )
  for name in want:
    np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("d", [2, 30])
def test_regularised_direction_solves_its_equation_in_float32(d):
  x, s = np.random.default_rng(8).normal(size=(2, 12, d)).astype(np.float32)
  h, eta = 2.0 * d, 0.05
  k, grad_k = oracles.rbf(h)
  K = np.array([[k(y, z) for y in x.astype(float)] for z in x.astype(float)])
  sums = 12 * oracles.svgd_direction(x, s, k, grad_k)
  want = np.linalg.solve(K + eta * np.eye(12), sums)
  got = svgd_direction(x, s, kernels.rbf(h), regularization=eta)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", [kernels.rbf(1.7), kernels.imq(), kernels.constant()])
def test_regularised_direction_on_affine_features(x64, base):
  rng = np.random.default_rng(6)
  x, s = rng.normal(size=(2, 9, 5))
  A, a = rng.normal(size=(5, 3)), rng.normal(size=3)
  features = Partial(lambda A, a, x: x @ A + a, A, a)
  want, got = (
    svgd_direction(
      x, s, kernels.on_features(base, features, affine=affine), regularization=0.2
    )
    for affine in (False, True)
  )
  np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_regularised_direction_in_half_precision():
  x, s = np.random.default_rng(8).normal(size=(2, 12, 5))
  x16, s16 = jnp.asarray(x, jnp.bfloat16), jnp.asarray(s, jnp.bfloat16)
  got = svgd_direction(x16, s16, kernels.rbf(3.0), regularization=0.3)
  assert got.dtype == jnp.bfloat16
  want = svgd_direction(
    x16.astype(np.float32), s16.astype(np.float32), kernels.rbf(3.0), regularization=0.3
  )
  np.testing.assert_allclose(got.astype(np.float32), want, atol=0.1)


def test_weak_regularisation_leaves_the_score_less_an_estimate_of_the_datas(x64):
  """η → 0: Φ = S + K⁻¹V, and −K⁻¹V estimates the score of what x was drawn from."""
  rng = np.random.default_rng(9)
  x = rng.normal(size=(400, 1)) * 1.5 + 0.3
  few, few_scores = np.linspace(-2, 2, 9)[:, None], rng.normal(size=(9, 1))
  k, grad_k = oracles.rbf(0.5)
  K = np.array([[k(y[0], z[0]) for y in few] for z in few])
  V = np.array([[sum(grad_k(y[0], z[0]) for y in few)] for z in few])
  got = svgd_direction(few, few_scores, kernels.rbf(0.5), regularization=1e-9)
  np.testing.assert_allclose(got, few_scores + np.linalg.solve(K, V), rtol=1e-5)
  no_scores = np.zeros_like(x)
  estimate = -svgd_direction(x, no_scores, kernels.rbf(4.0), regularization=0.1)
  truth = -(x - 0.3) / 1.5**2
  assert np.square(estimate - truth).mean() < 0.15 * np.square(truth).mean()


def test_svgd_along_the_regularised_direction(x64):
  x, _ = points(9, 2)
  algorithm = svgd(lambda x: -x, kernels.rbf(1.5), optax.sgd(0.2), regularization=0.3)
  state, _ = algorithm.update(None, algorithm.init(None, x, None), None)
  phi = svgd_direction(x, -x, kernels.rbf(1.5), regularization=0.3)
  np.testing.assert_allclose(state.particles, x + 0.2 * phi, rtol=1e-12)
  with pytest.raises(ValueError, match="regularization must be a finite number"):
    svgd(lambda x: -x, kernels.rbf(), optax.sgd(0.2), regularization=-1.0)


def _identity(x):
  return x


def test_strong_regularisation_is_the_svgd_direction(x64):
  x, s = np.random.default_rng(4).normal(size=(2, 12, 3))
  eta = 1e7
  got = svgd_direction(x, s, kernels.rbf(), regularization=eta) * eta / len(x)
  np.testing.assert_allclose(got, svgd_direction(x, s, kernels.rbf()), rtol=1e-5)


def test_regularised_direction_of_trees_and_devices(x64):
  x, s = np.random.default_rng(5).normal(size=(2, 16, 3))
  want = svgd_direction(x, s, kernels.rbf(), regularization=0.3)
  tree = {"a": x[:, :2], "b": x[:, 2]}
  got = svgd_direction(
    tree, {"a": s[:, :2], "b": s[:, 2]}, kernels.rbf(), regularization=0.3
  )
  np.testing.assert_allclose(got["a"], want[:, :2], rtol=1e-9)
  np.testing.assert_allclose(got["b"], want[:, 2], rtol=1e-9)
  spread = jax.pmap(
    lambda x, s: svgd_direction(x, s, kernels.rbf(), regularization=0.3, axis_name="i"),
    axis_name="i",
  )(x.reshape(8, 2, 3), s.reshape(8, 2, 3))
  np.testing.assert_allclose(spread.reshape(16, 3), want, rtol=1e-9)


def test_regularisation_is_checked():
  x = np.zeros((3, 2), np.float32)
  with pytest.raises(ValueError, match="regularization must be a finite number"):
    svgd_direction(x, x, kernels.rbf(1.0), regularization=0.0)
  with pytest.raises(ValueError, match="regularization needs a kernel"):
    svgd_direction(x, x, None, regularization=1.0)
  with pytest.raises(ValueError, match="excludes row_normalized"):
    svgd_direction(x, x, kernels.rbf(1.0), regularization=1.0, row_normalized=True)


# ------------------------------------------------------- what a product would drown


def two_clusters(apart):
  """Points of two tight clusters, and the scores of a normal density around them."""
  rng = np.random.default_rng(8)
  x = 0.1 * rng.normal(size=(30, 2))
  x[:12] += apart
  return x.astype(np.float32), -(x - x.mean(axis=0)).astype(np.float32) / 100


@pytest.mark.parametrize("block_size", [None, 7])
@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_distances_within_clusters_far_apart_keep_their_digits(name, block_size):
  x, s = two_clusters(1000.0)
  kernel, oracle = {
    "rbf": (kernels.rbf(0.03), oracles.rbf(0.03)),
    "imq": (kernels.imq(0.03), oracles.imq(0.03, -0.5)),
  }[name]
  want = oracles.svgd_direction(x, s, *oracle)
  got = svgd_direction(x, s, kernel, block_size=block_size)
  # float32 itself knows points at 1000 to 6e-5, a two-thousandth of the clusters' width
  np.testing.assert_allclose(got, want, atol=3e-3 * np.abs(want).max())
  table = kernel.matrix(x, x)
  np.testing.assert_array_equal(jnp.diagonal(table), 1)


def test_one_lane_of_clusters_does_not_change_the_others():
  near, s = two_clusters(1.0)
  far, s_far = two_clusters(1000.0)
  batch = jnp.stack([near, far]), jnp.stack([s, s_far])

  def direction(x, s):
    return svgd_direction(x, s, kernels.rbf(0.03))

  got = jax.jit(jax.vmap(direction))(*batch)
  for lane, atol in ((0, 1e-5), (1, 3e-3)):
    want = direction(batch[0][lane], batch[1][lane])
    np.testing.assert_allclose(got[lane], want, atol=atol * np.abs(want).max())
  assert "cond[" in str(jax.make_jaxpr(jax.vmap(direction))(*batch))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block_size", [None, 4])
def test_gradients_of_distances_by_differences(block_size):
  x, s = points(6, 2)
  x[:3] += 1e7  # coarse even in float64, at this bandwidth

  def loss(x):
    moved = svgd_direction(x, s, kernels.rbf(1e-4 * 1.7), block_size=block_size)
    return jnp.sum(moved**2)

  x[1], x[4] = x[0] + 0.005, x[3] + 0.005
  check_grads(loss, (jnp.asarray(x),), order=1, modes=["rev"], rtol=1e-2, eps=1e-4)


def test_a_gradient_needs_memory_that_is_linear_in_n():
  def loss(x):
    return jnp.sum(svgd_direction(x, -x, kernels.rbf(1.0)) ** 2)

  x = jax.ShapeDtypeStruct((4096, 2), jnp.float32)
  analysis = jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis()
  assert analysis.temp_size_in_bytes < 4096**2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_particles_of_16_bits_are_summed_in_32(dtype):
  x, s = (jnp.asarray(a, dtype) for a in points(2000, 2))
  got = svgd_direction(x, s + 50, kernels.rbf(1.0), block_size=64)
  assert got.dtype == dtype
  wide = (x.astype(jnp.float32), (s + 50).astype(jnp.float32))
  want = svgd_direction(*wide, kernels.rbf(1.0))
  np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=8e-3, atol=0.02)


@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_the_precision_of_the_sums_leaves_that_of_distances(name):
  x, s = points(6, 2).astype(np.float32)

  def products(precision):
    jaxpr = jax.make_jaxpr(
      lambda x: svgd_direction(x, s, KERNELS[name][0], precision=precision)
    )(x)
    lines = [line for line in str(jaxpr).splitlines() if "precision=" in line]
    return [line.split("precision=")[1] for line in lines]

  assert all("HIGHEST" in of for of in products("highest"))
  lower = ["HIGHEST" not in of for of in products("default")]
  assert 0 < sum(lower) < len(lower)
