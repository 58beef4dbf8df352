"""SteinCD against finite differences with the double-loop φ, and closed forms."""

import functools

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
  scores,
  stein_cd,
  stein_cd_gradient,
  stein_moves,
)
from stein_jax import stein_score_matching_gradient as exact_gradient
from stein_jax.algorithms.energy import energies
from tests import oracles
from tests.algorithms.by_hand import (
  DATA,
  direction_by_hand,
  energy,
  energy_gradient,
  limit_by_hand,
  mean_of,
  score_by_hand,
  some_params,
  stein_cd_by_hand,
)

KEY = jax.random.key(0)
RATE = 0.3
SIDES = pytest.mark.parametrize("symmetric", [False, True])


assert_same = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-12)


def distance(a, b):
  return float(optax.tree.norm(jax.tree.map(lambda a, b: a - b, a, b)))


def multiplied(x, y):
  """exp(−‖y − x‖²/3) (xᵀy + 1)², a kernel that is not radial."""
  return jnp.square(x @ y + 1) * jnp.exp(-jnp.square(x - y).sum() / 3)


KERNELS = {
  "rbf": (kernels.rbf(2.0), oracles.rbf(2.0)),
  "median": (kernels.rbf(), oracles.rbf(oracles.median_bandwidth(DATA))),
  "imq": (kernels.imq(1.5), oracles.imq(1.5, -0.5)),
  "constant": (kernels.constant(), oracles.constant()),
  "pairwise": (kernels.from_pairwise(multiplied), oracles.polynomial_rbf(1.0, 3.0)),
  "off": (None, None),
}


# --------------------------------------------------------------- the estimator


@SIDES
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.usefixtures("x64")
def test_gradient_equals_a_finite_difference_along_the_double_loop(name, symmetric):
  kernel, by_hand = KERNELS[name]
  got = stein_cd_gradient(
    some_params(), energy, DATA, kernel, step_size=0.3, symmetric=symmetric
  )
  expected = stein_cd_by_hand(some_params(), DATA, by_hand, 0.3, symmetric)
  assert_same(got, expected)


@SIDES
def test_gradient_is_right_in_float32(symmetric):
  params, data = some_params(np.float32), DATA.astype(np.float32)
  got = stein_cd_gradient(
    params, energy, data, kernels.rbf(2.0), step_size=0.1, symmetric=symmetric
  )
  expected = stein_cd_by_hand(some_params(), DATA, oracles.rbf(2.0), 0.1, symmetric)
  assert_same(got, expected, rtol=1e-3, atol=1e-4)
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}


@pytest.mark.usefixtures("x64")
def test_both_sides_tend_to_stein_score_matching_with_errors_of_order_one_and_two():
  kernel, by_hand = KERNELS["rbf"]
  limit = exact_gradient(some_params(), energy, DATA, kernel)
  assert_same(limit, limit_by_hand(some_params(), DATA, by_hand))
  for symmetric, order in ((False, 1), (True, 2)):
    errors = []
    for step_size in (4e-3, 2e-3, 1e-3):
      near = stein_cd_gradient(
        some_params(), energy, DATA, kernel, step_size=step_size, symmetric=symmetric
      )
      errors.append(distance(near, limit))
    observed = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(observed, order, atol=0.05)
    size = float(optax.tree.norm(limit))
    assert errors[-1] < 1e-2 * size  # so the gradient does not shrink with ε


@SIDES
@pytest.mark.usefixtures("x64")
def test_moved_points_are_constants(symmetric):
  """Differentiation through φ would give another gradient."""
  kernel, by_hand = KERNELS["rbf"]
  back, ahead = (0.3, 0.3) if symmetric else (0.0, 0.3)

  def through(params):
    s = scores(params, energy, DATA)
    differences = DATA[:, None, :] - DATA[None, :, :]
    k = np.exp(-np.square(differences).sum(axis=-1) / 2.0)
    repulsion = np.einsum("ijd,ij->id", differences, k)  # Σⱼ −(2/h)(xⱼ − xᵢ) kᵢⱼ
    phi = (k @ s + repulsion) / len(DATA)
    positive, negative = DATA - back * phi, DATA + ahead * phi
    difference = energies(params, energy, positive) - energies(params, energy, negative)
    return difference.mean() / (back + ahead), phi

  wrong, phi = jax.jit(jax.grad(through, has_aux=True))(some_params())
  # φ is the same; only what is differentiated differs.
  np.testing.assert_allclose(phi, direction_by_hand(some_params(), DATA, by_hand))
  got = stein_cd_gradient(
    some_params(), energy, DATA, kernel, step_size=ahead, symmetric=symmetric
  )
  assert distance(got, wrong) > 0.3 * float(optax.tree.norm(got))


# ------------------------------------------------------------------ a Gaussian


def unit_gaussian(mean, x):
  return 0.5 * jnp.sum(jnp.square(x - mean))


@SIDES
def test_gaussian_mean_without_kernel_has_the_likelihood_gradient(symmetric):
  """φ = μ − x, and the estimate is μ − x̄ at every ε."""
  mean = np.array([1.0, -2.0, 0.5])
  for step_size in (0.05, 0.5, 5.0):
    got = stein_cd_gradient(
      mean, unit_gaussian, DATA, None, step_size=step_size, symmetric=symmetric
    )
    np.testing.assert_allclose(got, mean - DATA.mean(axis=0), rtol=1e-4, atol=1e-4)


@SIDES
def test_gaussian_mean_with_a_kernel_has_a_weighted_likelihood_gradient(symmetric):
  """Repulsion sums to zero: Σⱼ wⱼ (μ − xⱼ), with wⱼ the kernel's row sums over m²."""
  mean = np.array([1.0, -2.0, 0.5])
  k = np.exp(-np.square(DATA[:, None] - DATA[None]).sum(axis=-1) / 2.0)
  weights = k.sum(axis=1) / len(DATA) ** 2
  expected = weights @ (mean[None] - DATA)
  got = stein_cd_gradient(
    mean, unit_gaussian, DATA, kernels.rbf(2.0), step_size=0.5, symmetric=symmetric
  )
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------ kinds of batches


@SIDES
def test_context_is_neither_moved_nor_seen_by_the_kernel(symmetric):
  labels = np.array([0, 1, 1, 0, 2, 1])
  means = np.random.default_rng(2).normal(size=(3, 3))
  phi = oracles.svgd_direction(DATA, means[labels] - DATA, *oracles.rbf(2.0))
  expected = np.stack([phi[labels == c].sum(axis=0) / 6 for c in range(3)])
  got = stein_cd_gradient(
    means,
    lambda means, x, label: unit_gaussian(means[label], x),
    {"x": DATA, "context": labels},
    kernels.rbf(2.0),
    step_size=0.5,
    symmetric=symmetric,
  )
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_images_and_trees_have_the_gradient_of_their_flat_points():
  params = some_params(np.float32)
  arguments = {"kernel": kernels.rbf(), "step_size": 0.2}
  flat = stein_cd_gradient(params, energy, DATA, **arguments)

  def image_energy(params, x):
    return energy(params, x.reshape(-1))

  images = stein_cd_gradient(params, image_energy, DATA.reshape(6, 3, 1), **arguments)
  assert_same(images, flat, rtol=1e-5, atol=1e-6)

  def tree_energy(params, x):
    return energy(params, jnp.concatenate([x["left"], x["right"][None]]))

  tree = {"left": DATA[:, :2], "right": DATA[:, 2]}
  trees = stein_cd_gradient(params, tree_energy, tree, **arguments)
  assert_same(trees, flat, rtol=1e-5, atol=1e-6)


def test_gradient_under_jit_and_vmap_over_step_sizes():
  def gradient(step_size):
    return stein_cd_gradient(
      np.ones(3), unit_gaussian, DATA, kernels.rbf(), step_size=step_size
    )

  step_sizes = jnp.array([0.1, 0.5])
  got = jax.jit(jax.vmap(gradient))(step_sizes)
  for i in range(2):
    np.testing.assert_allclose(got[i], gradient(step_sizes[i]), rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------- the algorithm


@SIDES
def test_algorithm_descends_the_gradient(symmetric):
  params = some_params(np.float32)
  algorithm = stein_cd(
    energy, kernels.rbf(2.0), optax.sgd(RATE), step_size=0.2, symmetric=symmetric
  )
  state = algorithm.init(KEY, params, DATA)
  new, metrics = algorithm.update(KEY, state, DATA)
  gradient = stein_cd_by_hand(some_params(), DATA, oracles.rbf(2.0), 0.2, symmetric)
  expected = {name: params[name] - RATE * gradient[name] for name in params}
  assert_same(new.params, expected, rtol=1e-3, atol=1e-4)
  norm = np.sqrt(sum(np.square(g).sum() for g in gradient.values()))
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-3)
  # The loss is the difference of energies along φ, over its length.
  phi = direction_by_hand(some_params(), DATA, oracles.rbf(2.0))
  back = 0.2 if symmetric else 0.0
  positive = energies(params, energy, DATA - back * phi).mean()
  negative = energies(params, energy, DATA + 0.2 * phi).mean()
  loss = (positive - negative) / (0.2 + back)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-3)


def own_features(params, x):
  return jnp.tanh(params["A"] @ x)


def kernel_on_own_features(params):
  return kernels.on_features(kernels.rbf(), Partial(own_features, params))


def test_a_kernel_of_the_params_follows_them_and_takes_them_as_constants():
  algorithm = stein_cd(energy, kernel_on_own_features, optax.sgd(RATE), step_size=0.2)
  state = algorithm.init(KEY, some_params(np.float32), DATA)
  for _ in range(2):
    kernel = kernel_on_own_features(state.params)
    gradient = stein_cd_gradient(state.params, energy, DATA, kernel, step_size=0.2)
    expected = optax.tree.add_scale(state.params, -RATE, gradient)
    state, _ = algorithm.update(KEY, state, DATA)
    assert_same(state.params, expected, rtol=1e-5, atol=1e-6)


def test_algorithm_in_a_scan_converges_to_a_zero_of_the_weighted_gradient():
  algorithm = stein_cd(unit_gaussian, kernels.rbf(2.0), optax.sgd(0.9), step_size=0.1)
  state = algorithm.init(KEY, jnp.zeros(3), DATA)

  @jax.jit
  def train(state):
    def step(state, key):
      return algorithm.update(key, state, jnp.asarray(DATA))

    return jax.lax.scan(step, state, jax.random.split(KEY, 100))[0]

  k = np.exp(-np.square(DATA[:, None] - DATA[None]).sum(axis=-1) / 2.0)
  expected = np.average(DATA, axis=0, weights=k.sum(axis=1))
  np.testing.assert_allclose(train(state).params, expected, rtol=1e-3)


def test_eager_updates_are_traced_once():
  num_traces = 0

  def counted(params, x):
    nonlocal num_traces
    num_traces += 1
    return energy(params, x)

  for kernel in (kernels.rbf(), kernel_on_own_features):
    algorithm = stein_cd(counted, kernel, optax.sgd(RATE), step_size=0.1)
    state = algorithm.init(KEY, some_params(np.float32), DATA)
    state, _ = algorithm.update(KEY, state, DATA)
    after_one = num_traces
    for _ in range(2):
      state, _ = algorithm.update(KEY, state, DATA)
    assert num_traces == after_one


# ------------------------------------------------------------------ bad inputs


@pytest.mark.parametrize("step_size", [0.0, -0.1, np.nan])
def test_a_step_size_that_is_not_above_zero_is_an_error(step_size):
  message = f"step_size must be a finite number above 0, got {step_size}"
  with pytest.raises(ValueError, match=message):
    stein_cd_gradient(np.ones(3), unit_gaussian, DATA, None, step_size=step_size)
  with pytest.raises(ValueError, match=message):
    stein_cd(unit_gaussian, None, optax.sgd(RATE), step_size=step_size)


def test_an_energy_that_is_not_a_scalar_is_an_error():
  with pytest.raises(ValueError, match=r"must return a scalar.*\(3,\) it returned"):
    stein_cd_gradient(np.ones(3), lambda p, x: x - p, DATA, None, step_size=0.1)


def test_one_point_has_no_median_bandwidth():
  with pytest.raises(ValueError, match="at least 2 particles, got 1"):
    stein_cd_gradient(np.ones(3), unit_gaussian, DATA[:1], kernels.rbf(), step_size=0.1)


def test_what_is_not_a_kernel_is_an_error():
  for not_a_kernel in ("rbf", lambda params: 1.0):
    with pytest.raises(TypeError, match="kernel must be a kernel"):
      stein_cd_gradient(np.ones(3), unit_gaussian, DATA, not_a_kernel, step_size=0.1)


# ------------------------------------------ several moves, regularised, persistent


def regularised_by_hand(params, x, kernel, eta):
  k, _ = kernel
  K = np.array([[k(y, z) for y in x] for z in x])
  scores = np.array([score_by_hand(params, p) for p in x])
  sums = len(x) * oracles.svgd_direction(x, scores, *kernel)
  return np.linalg.solve(K + eta * np.eye(len(x)), sums)


def moved_by_hand(params, x, kernel, step_size, num_steps, eta):
  for _ in range(num_steps):
    if eta is None:
      x = x + step_size * direction_by_hand(params, x, kernel)
    else:
      x = x + step_size * regularised_by_hand(params, x, kernel, eta)
  return x


def contrast_by_hand(params, positives, negatives):
  positive = mean_of([energy_gradient(params, p) for p in positives])
  negative = mean_of([energy_gradient(params, p) for p in negatives])
  return {name: positive[name] - negative[name] for name in positive}


@pytest.mark.parametrize(("num_steps", "eta"), [(3, None), (1, 0.2), (2, 0.2)])
@pytest.mark.usefixtures("x64")
def test_gradient_is_the_contrast_with_the_moved_data(num_steps, eta):
  direction = Direction(kernels.rbf(2.0), regularization=eta)
  options = {"step_size": 0.2, "num_steps": num_steps}
  got = stein_cd_gradient(some_params(), energy, DATA, direction, **options)
  negatives = moved_by_hand(some_params(), DATA, oracles.rbf(2.0), 0.2, num_steps, eta)
  want = contrast_by_hand(some_params(), DATA, negatives)
  assert_same(got, {k: v / (0.2 * num_steps) for k, v in want.items()})


@pytest.mark.usefixtures("x64")
def test_symmetric_and_regularised():
  got = stein_cd_gradient(
    some_params(),
    energy,
    DATA,
    Direction(kernels.rbf(2.0), regularization=0.1),
    step_size=0.2,
    symmetric=True,
  )
  phi = regularised_by_hand(some_params(), DATA, oracles.rbf(2.0), 0.1)
  want = contrast_by_hand(some_params(), DATA - 0.2 * phi, DATA + 0.2 * phi)
  assert_same(got, {k: v / 0.4 for k, v in want.items()})


@pytest.mark.parametrize("eta", [None, 0.2])
@pytest.mark.usefixtures("x64")
def test_persistent_particles_move_on_and_the_contrast_is_not_divided(eta):
  algorithm = stein_cd(
    energy,
    Direction(kernels.rbf(2.0), regularization=eta),
    optax.sgd(RATE),
    step_size=0.2,
    num_steps=2,
    persistent=True,
  )
  state, particles = algorithm.init(KEY, some_params(), DATA), DATA
  for batch in (DATA, DATA[::-1] + 0.1):
    params = jax.tree.map(np.asarray, state.params)
    particles = moved_by_hand(params, particles, oracles.rbf(2.0), 0.2, 2, eta)
    want = contrast_by_hand(params, batch, particles)
    state, metrics = algorithm.update(KEY, state, batch)
    np.testing.assert_allclose(state.particles, particles, rtol=1e-9)
    assert_same(state.params, {k: params[k] - RATE * want[k] for k in params})
    assert np.isfinite(metrics["loss"])


def test_options_that_exclude_each_other_are_an_error():
  make = lambda **options: stein_cd(  # noqa: E731
    energy, kernels.rbf(2.0), optax.sgd(RATE), step_size=0.1, **options
  )
  with pytest.raises(ValueError, match="num_steps=2"):
    make(symmetric=True, num_steps=2)
  with pytest.raises(ValueError, match="persistent excludes symmetric"):
    make(symmetric=True, persistent=True)
  with pytest.raises(ValueError, match="num_steps must be an integer"):
    make(num_steps=0)
  with pytest.raises(ValueError, match="regularization must be a finite number"):
    Direction(kernels.rbf(2.0), regularization=0.0)
  with pytest.raises(ValueError, match="regularization needs a kernel"):
    Direction(None, regularization=0.1)
  with pytest.raises(ValueError, match="num_steps=2"):
    stein_cd_gradient(
      some_params(), energy, DATA, None, step_size=0.1, symmetric=True, num_steps=2
    )


@pytest.mark.usefixtures("x64")
def test_particles_keep_their_dtype():
  step_size = np.float64(0.1)
  got = stein_cd_gradient(
    some_params(np.float32),
    energy,
    DATA.astype(np.float32),
    kernels.rbf(2.0),
    step_size=step_size,
    num_steps=2,
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}
  kernel = kernels.on_features(kernels.rbf(np.float64(2.0)), jnp.negative, affine=True)
  for one in (kernel, kernels.rbf(np.float64(2.0)), kernels.imq(np.float64(2.0))):
    one = Direction(one, regularization=np.float64(0.1))
    options = {"step_size": step_size}
    data, params = DATA.astype(np.float32), some_params(np.float32)
    assert stein_moves(params, energy, data, one, **options).dtype == jnp.float32
    for gradient in (
      stein_cd_gradient(params, energy, data, one, **options),
      exact_gradient(params, energy, data, one),
    ):
      dtypes = {leaf.dtype for leaf in jax.tree.leaves(gradient)}
      assert dtypes == {jnp.dtype("float32")}
