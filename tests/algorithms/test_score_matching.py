"""Stein and Fisher score matching against finite differences and closed forms."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from stein_jax import (
  Direction,
  kernels,
  ksd_squared,
  score_matching,
  score_matching_loss,
  scores,
  sliced_score_matching,
  sliced_score_matching_loss,
  stein_score_matching,
  stein_score_matching_gradient,
)
from stein_jax.energies.rbm import GaussianBernoulliRBM
from tests import oracles

KEY = jax.random.key(0)
RATE = 0.3
DATA = np.random.default_rng(0).normal(size=(6, 3)) * 1.3 + 0.5
RBM = GaussianBernoulliRBM(num_hidden=2)


def gaussian(params, x):
  centred = x - params["mean"]
  return 0.5 * centred @ params["precision"] @ centred


def gaussian_params():
  rng = np.random.default_rng(1)
  root = rng.normal(size=(3, 3))
  return {"mean": rng.normal(size=3), "precision": np.eye(3) + root @ root.T}


def mlp(params, x):
  hidden = jnp.tanh(params["in"] @ x + params["bias"])
  return 0.5 * x @ x + params["out"] @ jnp.tanh(params["mid"] @ hidden)


def mlp_params():
  rng = np.random.default_rng(2)
  shapes = {"in": (4, 3), "bias": (4,), "mid": (2, 4), "out": (2,)}
  return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def rbm_params():
  rng = np.random.default_rng(3)
  shapes = {"B": (3, 2), "b": (3,), "c": (2,)}
  return {"params": {name: rng.normal(size=shape) for name, shape in shapes.items()}}


ENERGIES = {
  "gaussian": (gaussian, gaussian_params),
  "mlp": (mlp, mlp_params),
  "rbm": (RBM.apply, rbm_params),
}


def features(weights, x):
  return jnp.tanh(weights @ x)


def bumpy(x, y):
  """exp(−‖y − x‖²/3) (xᵀy + 1)², a kernel that is not radial."""
  return jnp.square(x @ y + 1) * jnp.exp(-jnp.square(x - y).sum() / 3)


WEIGHTS = np.random.default_rng(4).normal(size=(2, 3))
KERNELS = {
  "rbf": lambda: kernels.rbf(2.0),
  "median": kernels.rbf,
  "imq": lambda: kernels.imq(1.5),
  "constant": kernels.constant,
  "features": lambda: kernels.on_features(kernels.rbf(), Partial(features, WEIGHTS)),
  "pairwise": lambda: kernels.from_pairwise(bumpy),
}


def finite_differences(fn, params, step=1e-5):
  """Central differences of a scalar function, one parameter after another."""
  flat, unravel = ravel_pytree(params)
  steps = step * jnp.eye(flat.size)
  at = jax.jit(jax.vmap(lambda flat: fn(unravel(flat))))
  return unravel((at(flat[None] + steps) - at(flat[None] - steps)) / (2 * step))


assert_same = functools.partial(chex.assert_trees_all_close, rtol=1e-7, atol=1e-8)


# -------------------------------------------------------- Stein score matching


@pytest.mark.parametrize(
  ("energy_name", "kernel_name"),
  [("mlp", name) for name in KERNELS if name != "median"] + [("rbm", "median")],
)
@pytest.mark.usefixtures("x64")
def test_gradient_is_that_of_half_the_discrepancy(energy_name, kernel_name):
  energy, make_params = ENERGIES[energy_name]
  params, kernel = make_params(), KERNELS[kernel_name]()
  fixed = kernel.resolve(jnp.asarray(DATA))

  def half_squared_discrepancy(params):
    return 0.5 * ksd_squared(DATA, scores(params, energy, DATA), fixed, statistic="V")

  expected = finite_differences(half_squared_discrepancy, params)
  got = stein_score_matching_gradient(params, energy, DATA, kernel)
  assert_same(got, expected, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_gradient_is_that_of_half_the_discrepancy_of_the_double_loop():
  """As above, with the discrepancy from NumPy too and the score A(μ − x)."""
  params, step = gaussian_params(), 1e-5

  def half_squared_discrepancy(params):
    s = (params["mean"][None] - DATA) @ params["precision"]
    return 0.5 * oracles.ksd_squared(DATA, s, *oracles.rbf(2.0))

  expected = np.zeros(3)
  for i in range(3):
    two_sides = []
    for side in (step, -step):
      mean = params["mean"] + side * np.eye(3)[i]
      two_sides.append(half_squared_discrepancy(params | {"mean": mean}))
    expected[i] = (two_sides[0] - two_sides[1]) / (2 * step)
  got = stein_score_matching_gradient(params, gaussian, DATA, kernels.rbf(2.0))
  np.testing.assert_allclose(got["mean"], expected, rtol=1e-7)


@pytest.mark.parametrize("name", ["mlp", "rbm"])
@pytest.mark.usefixtures("x64")
def test_without_kernel_it_is_the_gradient_of_half_the_mean_squared_score(name):
  """φ = s turns (1/m) Σ ∇θ[sᵢᵀφᵢ] into ∇θ (1/m) Σ ½‖sᵢ‖²: there is no repulsion."""
  energy, make_params = ENERGIES[name]

  def half_mean_square(params):
    return 0.5 * jnp.square(scores(params, energy, DATA)).sum(axis=1).mean()

  got = stein_score_matching_gradient(make_params(), energy, DATA, None)
  assert_same(got, finite_differences(half_mean_square, make_params()), rtol=1e-6)


def test_context_is_neither_moved_nor_seen_by_the_kernel():
  labels = np.array([0, 1, 1, 0, 2, 1])
  means = np.random.default_rng(2).normal(size=(3, 3))
  phi = oracles.svgd_direction(DATA, means[labels] - DATA, *oracles.rbf(2.0))
  expected = np.stack([phi[labels == c].sum(axis=0) / 6 for c in range(3)])
  got = stein_score_matching_gradient(
    means,
    lambda means, x, label: 0.5 * jnp.sum(jnp.square(x - means[label])),
    {"x": DATA, "context": labels},
    kernels.rbf(2.0),
  )
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_images_and_trees_have_the_gradient_and_loss_of_their_flat_points():
  def image_energy(params, x):
    return gaussian(params, x.reshape(-1))

  def tree_energy(params, x):
    return gaussian(params, jnp.concatenate([x["left"], x["right"][None]]))

  tree = {"left": DATA[:, :2], "right": DATA[:, 2]}
  params = gaussian_params()
  flat = stein_score_matching_gradient(params, gaussian, DATA, kernels.rbf())
  flat_loss = score_matching_loss(params, gaussian, DATA)
  for energy, data in ((image_energy, DATA.reshape(6, 3, 1)), (tree_energy, tree)):
    got = stein_score_matching_gradient(params, energy, data, kernels.rbf())
    assert_same(got, flat, rtol=1e-4, atol=1e-5)
    loss = score_matching_loss(params, energy, data)
    np.testing.assert_allclose(loss, flat_loss, rtol=1e-5)


def test_stein_algorithm_descends_the_gradient():
  algorithm = stein_score_matching(gaussian, kernels.rbf(2.0), optax.sgd(RATE))
  params = jax.tree.map(jnp.asarray, gaussian_params())
  new, metrics = algorithm.update(KEY, algorithm.init(KEY, params, DATA), DATA)
  s = (params["mean"][None] - DATA) @ params["precision"]
  phi = oracles.svgd_direction(DATA, s, *oracles.rbf(2.0))
  # sᵀφ = (μ − x)ᵀAφ, whose gradient in μ is Aφ and in A is the outer product.
  centred = np.asarray(params["mean"])[None] - DATA
  precision_gradient = np.einsum("ni,nj->ij", centred, phi) / 6
  gradient = {
    "mean": np.asarray(params["precision"]) @ phi.mean(axis=0),
    "precision": (precision_gradient + precision_gradient.T) / 2,
  }
  expected = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
  assert_same(new.params, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(metrics["loss"], np.sum(s * phi) / 6, rtol=1e-4)
  norm = np.sqrt(sum(np.square(g).sum() for g in gradient.values()))
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)


def kernel_on_own_features(params):
  return kernels.on_features(kernels.rbf(), Partial(features, params["precision"]))


def test_stein_algorithm_follows_a_kernel_of_the_parameters_and_holds_it_constant():
  algorithm = stein_score_matching(gaussian, kernel_on_own_features, optax.sgd(RATE))
  params = jax.tree.map(jnp.asarray, gaussian_params())
  state = algorithm.init(KEY, params, DATA)
  for _ in range(2):
    kernel = kernel_on_own_features(state.params)
    gradient = stein_score_matching_gradient(state.params, gaussian, DATA, kernel)
    expected = optax.tree.add_scale(state.params, -RATE, gradient)
    state, _ = algorithm.update(KEY, state, DATA)
    assert_same(state.params, expected, rtol=1e-4, atol=1e-5)


def test_stein_algorithm_in_a_scan_minimises_the_discrepancy():
  def energy(mean, x):
    return 0.5 * jnp.sum(jnp.square(x - mean))

  algorithm = stein_score_matching(energy, kernels.rbf(2.0), optax.sgd(0.9))

  @jax.jit
  def train(state):
    def step(state, key):
      return algorithm.update(key, state, jnp.asarray(DATA))

    return jax.lax.scan(step, state, jax.random.split(KEY, 100))[0]

  got = train(algorithm.init(KEY, jnp.zeros(3), DATA)).params
  # ½D² is a quadratic in μ whose minimum is the mean weighted by the kernel's rows.
  k = np.exp(-np.square(DATA[:, None] - DATA[None]).sum(axis=-1) / 2.0)
  expected = np.average(DATA, axis=0, weights=k.sum(axis=1))
  np.testing.assert_allclose(got, expected, rtol=1e-3)


# ------------------------------------------ the regularised Stein discrepancy


def regularised_discrepancy(x, s, h, eta):
  """max_φ {E[T_p φ] − ½E‖φ‖² − (η/2n)‖φ‖²_H}, by solving for the coefficients.

  The maximum lies in the span of k(xᵢ, ·) and ∂k(xᵢ, ·), one component at a time.
  """
  n, d = x.shape
  difference = x[:, None] - x[None]
  k = jnp.exp(-jnp.square(difference).sum(axis=2) / h)
  total = 0.0
  for c in range(d):
    r = difference[:, :, c]
    slope = 2 / h * r * k
    curvature = (2 / h - 4 / h**2 * r**2) * k
    gram = jnp.block([[k, slope], [slope.T, curvature]])
    linear = (gram[:, :n] @ s[:, c] + gram[:, n:].sum(axis=1)) / n
    quadratic = (gram[:, :n] @ gram[:n] + eta * gram) / n
    total += linear @ jnp.linalg.lstsq(quadratic, linear, rcond=1e-13)[0] / 2
  return total


@pytest.mark.parametrize("name", ["mlp", "rbm"])
@pytest.mark.usefixtures("x64")
def test_regularised_gradient_is_that_of_the_maximum_it_is_defined_by(name):
  energy, params = ENERGIES[name][0], ENERGIES[name][1]()

  def maximum(params):
    return regularised_discrepancy(DATA, scores(params, energy, DATA), 2.0, 0.3)

  got = stein_score_matching_gradient(
    params, energy, DATA, Direction(kernels.rbf(2.0), regularization=0.3)
  )
  assert_same(got, finite_differences(maximum, params), rtol=1e-5, atol=1e-6)


def explicit_loss(params, energy, x, h):
  """½ mean ‖s(xᵢ) − ŝᵢ‖², with Li & Turner's estimate ŝ = −K⁻¹V of the data's score."""
  k, grad_k = oracles.rbf(h)
  K = np.array([[k(y, z) for y in x] for z in x])
  V = np.array([np.sum([grad_k(y, z) for y in x], axis=0) for z in x])
  difference = scores(params, energy, x) + np.linalg.solve(K, V)
  return jnp.square(difference).sum() / (2 * len(x))


@pytest.mark.usefixtures("x64")
def test_without_regularisation_it_matches_an_estimate_of_the_datas_score():
  """On a sample the limit η → 0 is explicit score matching, and not Hyvärinen's."""
  energy, params = ENERGIES["mlp"][0], ENERGIES["mlp"][1]()
  got = stein_score_matching_gradient(
    params, energy, DATA, Direction(kernels.rbf(2.0), regularization=1e-10)
  )
  want = finite_differences(lambda p: explicit_loss(p, energy, DATA, 2.0), params)
  assert_same(got, want, rtol=1e-4, atol=1e-5)
  fisher = jax.grad(lambda p: score_matching_loss(p, energy, DATA))(params)
  difference = jax.tree.map(jnp.subtract, got, fisher)
  assert optax.tree.norm(difference) > 0.1 * optax.tree.norm(fisher)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_with_many_points_and_little_regularisation_it_is_fisher_score_matching():
  """In the limit of many points the two agree: the error falls as n grows."""
  energy, params = ENERGIES["mlp"][0], mlp_params()
  params["in"] = params["in"][:, :1]
  points = np.random.default_rng(5).normal(size=(3000, 1)) * 1.3 + 0.5
  errors = []
  for x in (points[:30], points[:300], points):
    fisher = jax.grad(lambda p: score_matching_loss(p, energy, x))(params)  # noqa: B023
    got = stein_score_matching_gradient(
      params, energy, x, Direction(kernels.rbf(1.0), regularization=0.01)
    )
    difference = jax.tree.map(jnp.subtract, got, fisher)
    errors.append(float(optax.tree.norm(difference) / optax.tree.norm(fisher)))
  assert errors[2] < 0.05, errors
  assert errors[2] < errors[1] < errors[0], errors


def test_a_regularisation_that_is_not_above_zero_is_an_error():
  for eta in (0.0, -1.0, np.nan):
    with pytest.raises(ValueError, match="regularization must be a finite number"):
      Direction(kernels.rbf(2.0), regularization=eta)
  with pytest.raises(ValueError, match="regularization needs a kernel"):
    Direction(None, regularization=1.0)


# ------------------------------------------------------- Fisher score matching


def gaussian_loss(params, x):
  """½ mean ‖A(x − μ)‖² − tr A, in NumPy."""
  s = (np.asarray(params["mean"])[None] - x) @ np.asarray(params["precision"])
  return 0.5 * np.square(s).sum(axis=1).mean() - np.trace(params["precision"])


def test_loss_of_a_gaussian_in_closed_form():
  got = score_matching_loss(gaussian_params(), gaussian, DATA)
  np.testing.assert_allclose(got, gaussian_loss(gaussian_params(), DATA), rtol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "rbm"])
@pytest.mark.usefixtures("x64")
def test_loss_equals_finite_differences_of_the_energy(name):
  energy, make_params = ENERGIES[name]
  params, step = make_params(), 1e-4
  at = jax.jit(jax.vmap(lambda x: energy(params, x)))
  squared = laplacian = np.zeros(6)
  for direction in step * np.eye(3):
    up, down = at(DATA + direction[None]), at(DATA - direction[None])
    squared = squared + ((up - down) / (2 * step)) ** 2
    laplacian = laplacian + (up + down - 2 * at(DATA)) / step**2
  expected = np.mean(0.5 * squared - laplacian)  # ∇·s = −ΔE
  got = score_matching_loss(params, energy, DATA)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "key"), [("mlp", None), ("mlp", KEY), ("rbm", None)])
@pytest.mark.usefixtures("x64")
def test_gradient_of_the_loss_equals_finite_differences(name, key):
  energy, make_params = ENERGIES[name]

  def loss(params):
    return score_matching_loss(params, energy, DATA, key=key)

  expected = finite_differences(loss, make_params())
  assert_same(jax.grad(loss)(make_params()), expected, rtol=1e-6)


def test_a_closed_form_divergence_replaces_the_trace():
  for energy, divergence, params in (
    (gaussian, lambda p, x: -jnp.trace(p["precision"]), gaussian_params()),
    (RBM.apply, RBM.score_divergence, rbm_params()),
  ):
    got = score_matching_loss(params, energy, DATA, divergence_fn=divergence)
    np.testing.assert_allclose(
      got, score_matching_loss(params, energy, DATA), rtol=1e-5
    )


def test_hutchinson_is_unbiased_with_its_known_variance():
  """Var vᵀAv = 2 Σ_{i≠j} aᵢⱼ² for signs v; probes and points are independent."""
  precision = gaussian_params()["precision"]
  off_diagonal = precision - np.diag(np.diag(precision))
  one_probe = 2 * np.square(off_diagonal).sum()
  expected = gaussian_loss(gaussian_params(), DATA)
  n, num_probes = 2_000, 3

  @jax.jit
  @jax.vmap
  def draw(key):
    options = {"key": key, "num_probes": num_probes}
    return score_matching_loss(gaussian_params(), gaussian, DATA, **options)

  draws = np.asarray(draw(jax.random.split(KEY, n)), np.float64)
  variance = one_probe / num_probes / len(DATA)
  assert abs(draws.mean() - expected) < 5 * np.sqrt(variance / n)
  np.testing.assert_allclose(draws.var(), variance, rtol=0.2)


def test_hutchinson_is_exact_for_an_isotropic_energy():
  def energy(scale, x):
    return 0.5 * scale * x @ x

  exact = score_matching_loss(2.5, energy, DATA)
  for key in jax.random.split(KEY, 3):
    got = score_matching_loss(2.5, energy, DATA, key=key)
    np.testing.assert_allclose(got, exact, rtol=1e-5)


def test_loss_scores_each_point_in_its_own_context():
  labels = np.array([0, 1, 1, 0, 2, 1])
  scales = np.array([0.5, 1.0, 2.0])

  def energy(scales, x, label):
    return 0.5 * scales[label] * x @ x

  def divergence(scales, x, label):
    return -3 * scales[label]

  a = scales[labels]
  expected = np.mean(0.5 * a**2 * np.square(DATA).sum(axis=1) - 3 * a)
  batch = {"x": DATA, "context": labels}
  for how in ({}, {"key": KEY}, {"divergence_fn": divergence}):
    got = score_matching_loss(jnp.asarray(scales), energy, batch, **how)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.usefixtures("x64")
def test_the_minimiser_is_the_sample_mean_and_the_inverse_covariance():
  covariance = np.cov(DATA.T, bias=True)
  best = {"mean": DATA.mean(axis=0), "precision": np.linalg.inv(covariance)}
  gradient = jax.grad(score_matching_loss)(best, gaussian, DATA)
  zero = jax.tree.map(np.zeros_like, best)
  assert_same(gradient, zero, atol=1e-10)
  least = score_matching_loss(best, gaussian, DATA)
  for name in best:  # it is not a maximum
    rng = np.random.default_rng(5)
    away = best | {name: best[name] + 0.1 * rng.normal(size=best[name].shape)}
    assert score_matching_loss(away, gaussian, DATA) > least


def test_fisher_algorithm_in_a_scan_finds_mean_and_precision():
  data = jnp.asarray(np.random.default_rng(6).normal(size=(50, 2)) + 1.0)
  algorithm = score_matching(gaussian, optax.sgd(RATE))
  start = {"mean": jnp.zeros(2), "precision": jnp.eye(2)}

  @jax.jit
  def train(state):
    def step(state, key):
      return algorithm.update(key, state, data)

    return jax.lax.scan(step, state, jax.random.split(KEY, 300))[0]

  got = train(algorithm.init(KEY, start, data)).params
  covariance = np.cov(np.asarray(data).T, bias=True)
  expected = {"mean": data.mean(axis=0), "precision": np.linalg.inv(covariance)}
  assert_same(got, expected, rtol=1e-3, atol=1e-3)


def twice_the_divergence(params, x):
  """Not the true divergence, so that the test shows whether it was called."""
  return 2 * RBM.score_divergence(params, x)


@pytest.mark.parametrize(
  ("options", "same_as"),
  [
    ({}, {}),
    ({"num_probes": 2}, {"key": jax.random.key(9), "num_probes": 2}),
    ({"divergence_fn": twice_the_divergence}, {"divergence_fn": twice_the_divergence}),
  ],
)
def test_fisher_algorithm_descends_the_loss(options, same_as):
  algorithm = score_matching(RBM.apply, optax.sgd(RATE), **options)
  params = jax.tree.map(jnp.asarray, rbm_params())
  state = algorithm.init(KEY, params, DATA)
  new, metrics = algorithm.update(jax.random.key(9), state, DATA)
  loss, gradient = jax.value_and_grad(score_matching_loss)(
    params, RBM.apply, DATA, **same_as
  )
  expected = optax.tree.add_scale(params, -RATE, gradient)
  assert_same(new.params, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


# -------------------------------------------------------- compilation, bad inputs


@pytest.mark.parametrize(
  "build",
  [
    lambda e, o: stein_score_matching(e, kernels.rbf(), o),
    lambda e, o: stein_score_matching(e, kernel_on_own_features, o),
    score_matching,
    lambda e, o: score_matching(e, o, num_probes=2),
  ],
  ids=["stein", "kernel_fn", "fisher", "hutchinson"],
)
def test_eager_updates_are_traced_once(build):
  num_traces = 0

  def counted(params, x):
    nonlocal num_traces
    num_traces += 1
    return gaussian(params, x)

  algorithm = build(counted, optax.sgd(RATE))
  state = algorithm.init(KEY, jax.tree.map(jnp.asarray, gaussian_params()), DATA)
  state, _ = algorithm.update(KEY, state, DATA)
  after_one = num_traces
  for key in jax.random.split(KEY, 2):
    state, _ = algorithm.update(key, state, DATA)
  assert num_traces == after_one


def test_a_key_and_a_closed_form_together_are_an_error():
  divergence = RBM.score_divergence
  with pytest.raises(ValueError, match=r"key .* or divergence_fn, not both"):
    score_matching_loss(
      rbm_params(), RBM.apply, DATA, key=KEY, divergence_fn=divergence
    )
  with pytest.raises(ValueError, match=r"num_probes .* or divergence_fn, not both"):
    score_matching(RBM.apply, optax.sgd(RATE), num_probes=1, divergence_fn=divergence)


@pytest.mark.parametrize("num_probes", [0, 1.5])
def test_a_number_of_probes_below_one_is_an_error(num_probes):
  message = f"num_probes must be an integer of at least 1, got {num_probes}"
  with pytest.raises(ValueError, match=message):
    score_matching_loss(mlp_params(), mlp, DATA, key=KEY, num_probes=num_probes)
  with pytest.raises(ValueError, match=message):
    score_matching(mlp, optax.sgd(RATE), num_probes=num_probes)


def test_an_energy_that_is_not_a_scalar_is_an_error():
  def vector_energy(params, x):
    return x - params

  message = r"must return a scalar.* shape \(3,\) it returned .*\(3,\)"
  with pytest.raises(ValueError, match=message):
    stein_score_matching_gradient(np.ones(3), vector_energy, DATA, None)
  with pytest.raises(ValueError, match=message):
    score_matching_loss(np.ones(3), vector_energy, DATA)


def test_a_divergence_that_is_not_a_scalar_is_an_error():
  """Its mean would silently be over the coordinates too."""
  with pytest.raises(ValueError, match="divergence_fn"):
    score_matching_loss(
      gaussian_params(),
      gaussian,
      DATA,
      divergence_fn=lambda p, x: -jnp.diag(p["precision"]),
    )


def test_one_point_has_no_median_bandwidth():
  with pytest.raises(ValueError, match="at least 2 particles, got 1"):
    stein_score_matching_gradient(mlp_params(), mlp, DATA[:1], kernels.rbf())


def test_probes_without_a_key_are_an_error():
  with pytest.raises(ValueError, match=r"num_probes .* needs a key"):
    score_matching_loss(mlp_params(), mlp, DATA, num_probes=10)


# ------------------------------------------------------- sliced score matching


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.usefixtures("x64")
def test_sliced_loss_is_that_of_a_loop(name):
  energy, params = ENERGIES[name][0], ENERGIES[name][1]()
  score = jax.jit(lambda x: -jax.grad(energy, argnums=1)(params, x))
  jacobian = jax.jit(jax.jacfwd(score))
  plain, reduced = 0.0, 0.0
  for i, x in enumerate(DATA):
    key = jax.random.fold_in(KEY, i)
    s, slope = np.asarray(score(x)), np.asarray(jacobian(x))
    for v in np.asarray(jax.random.rademacher(key, (2, 3), jnp.float64)):
      plain += (0.5 * (v @ s) ** 2 + v @ slope @ v) / (2 * len(DATA))
      reduced += (0.5 * s @ s + v @ slope @ v) / (2 * len(DATA))
  for want, variance_reduced in ((plain, False), (reduced, True)):
    got = sliced_score_matching_loss(
      KEY,
      params,
      energy,
      DATA,
      num_projections=2,
      variance_reduced=variance_reduced,
    )
    np.testing.assert_allclose(got, want, rtol=1e-10)
  hutchinson = score_matching_loss(params, energy, DATA, key=KEY, num_probes=2)
  np.testing.assert_allclose(hutchinson, reduced, rtol=1e-10)


@pytest.mark.parametrize("variance_reduced", [False, True])
@pytest.mark.usefixtures("x64")
def test_sliced_loss_has_the_mean_of_the_exact_one(variance_reduced):
  """And its gradient is that of finite differences."""
  energy, params = mlp, mlp_params()
  exact = score_matching_loss(params, energy, DATA)
  got = sliced_score_matching_loss(
    KEY,
    params,
    energy,
    DATA,
    num_projections=5000,
    variance_reduced=variance_reduced,
  )
  squares = jnp.square(scores(params, energy, DATA)).sum(axis=1).mean()
  assert abs(got - exact) < 0.03 * squares, (got, exact)

  def loss(params):
    return sliced_score_matching_loss(
      KEY, params, energy, DATA, variance_reduced=variance_reduced
    )

  assert_same(jax.grad(loss)(params), finite_differences(loss, params), rtol=1e-5)


@pytest.mark.parametrize("variance_reduced", [False, True])
def test_sliced_score_matching_learns_a_gaussian(variance_reduced):
  rng = np.random.default_rng(5)
  x = (0.5 + 0.6 * rng.normal(size=(2000, 2))).astype(np.float32)
  rule = sliced_score_matching(
    lambda p, x: 0.5 * p["a"] * jnp.square(x - p["mean"]).sum(),
    optax.adam(0.03),
    variance_reduced=variance_reduced,
  )
  params = {"a": jnp.ones(()), "mean": jnp.zeros(2)}
  state = rule.init(KEY, params, x)
  update = jax.jit(rule.update)
  for key in jax.random.split(KEY, 300):
    state, _ = update(key, state, x)
  np.testing.assert_allclose(state.params["a"], 1 / x.var(axis=0).mean(), rtol=0.1)
  np.testing.assert_allclose(state.params["mean"], x.mean(axis=0), atol=0.05)


def test_bad_input_of_sliced_score_matching():
  x = DATA.astype(np.float32)
  sgd = optax.sgd(0.1)
  with pytest.raises(ValueError, match="num_projections must be an integer of at leas"):
    sliced_score_matching(mlp, sgd, num_projections=0)
  with pytest.raises(ValueError, match="num_projections must be an integer of at leas"):
    sliced_score_matching_loss(KEY, {}, mlp, x, num_projections=0)
  with pytest.raises(TypeError, match="variance_reduced must be True or False, got 1"):
    sliced_score_matching(mlp, sgd, variance_reduced=1)
  with pytest.raises(TypeError, match="key must be one PRNG key"):
    sliced_score_matching_loss(None, {}, mlp, x)
