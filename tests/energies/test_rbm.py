"""The RBM against enumeration, quadrature, the mixture and finite differences."""

import functools
import itertools
import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from stein_jax.energies import GaussianBernoulliRBM


def random_theta(num_visible, num_hidden, *, seed=0, scale=0.7):
  rng = np.random.default_rng(seed)
  return (
    scale * rng.normal(size=(num_visible, num_hidden)),
    rng.normal(size=num_visible),
    rng.normal(size=num_hidden),
  )


def as_params(theta, dtype=None):
  return {"params": {k: jnp.asarray(v, dtype) for k, v in zip("Bbc", theta)}}


def hidden_states(num_hidden):
  return np.array(list(itertools.product((-1.0, 1.0), repeat=num_hidden)))


def numpy_energy(theta, x):
  B, b, c = theta
  y = x @ B + c
  return 0.5 * x @ x - b @ x - np.sum(np.log(2 * np.cosh(y)))


def numpy_exponents(theta):
  """cᵀh + ½‖b + Bh‖² for each h, directly from the formula."""
  B, b, c = theta
  return np.array(
    [c @ h + 0.5 * np.sum((b + B @ h) ** 2) for h in hidden_states(len(c))]
  )


def numpy_log_partition(theta):
  half_log_2pi = 0.5 * np.log(2 * np.pi)
  return len(theta[1]) * half_log_2pi + scipy.special.logsumexp(numpy_exponents(theta))


def numpy_mixture(theta):
  B, b, c = theta
  weights = scipy.special.softmax(numpy_exponents(theta))
  return weights, b + hidden_states(len(c)) @ B.T


def numpy_moments(theta):
  """The mean and covariance of Σ_h w_h N(μ_h, I)."""
  weights, means = numpy_mixture(theta)
  mean = weights @ means
  return mean, (means * weights[:, None]).T @ means - np.outer(mean, mean) + np.eye(
    len(mean)
  )


# --- the energy and its derivatives ---------------------------------------------------


@settings(deadline=None, max_examples=6)
@given(
  shape=st.lists(st.integers(1, 3), max_size=3).map(tuple),
  num_hidden=st.integers(1, 5),
  double=st.booleans(),
  seed=st.integers(0, 99),
)
def test_energy_equals_numpy(shape, num_hidden, double, seed):
  theta = random_theta(int(np.prod(shape)), num_hidden, seed=seed)
  x = np.random.default_rng(seed + 1).normal(size=shape)
  with jax.enable_x64(double):
    dtype = np.float64 if double else np.float32
    rbm, params = GaussianBernoulliRBM(num_hidden), as_params(theta, dtype)
    energy = jax.jit(rbm.apply)(params, x.astype(dtype))
    y = rbm.features(params, x.astype(dtype))
  assert energy.shape == ()
  assert energy.dtype == y.dtype == dtype
  tolerance = {"rtol": 1e-12 if double else 1e-5, "atol": 1e-12 if double else 1e-5}
  np.testing.assert_allclose(energy, numpy_energy(theta, x.reshape(-1)), **tolerance)
  np.testing.assert_allclose(y, theta[0].T @ x.reshape(-1) + theta[2], **tolerance)


def test_energy_is_the_joint_with_the_hidden_units_summed_out():
  # exp(−E(x)) = Σ_h exp(xᵀBh + bᵀx + cᵀh − ½‖x‖²), without the paper's ½ at xᵀBh.
  B, b, c = theta = random_theta(3, 4)
  x = np.array([0.3, -1.2, 0.7])
  joint = [x @ B @ h + b @ x + c @ h - 0.5 * x @ x for h in hidden_states(4)]
  energy = GaussianBernoulliRBM(4).apply(as_params(theta), jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(-energy, scipy.special.logsumexp(joint), rtol=1e-5)


@pytest.mark.parametrize("double", [False, True])
def test_energy_is_stable_where_cosh_overflows(double):
  with jax.enable_x64(double):
    params = as_params(([[1.0]], [0.0], [0.0]))
    energy_fn = functools.partial(GaussianBernoulliRBM(1).apply, params)
    for x in (-3000.0, 3000.0):
      energy, slope = jax.jit(jax.value_and_grad(energy_fn))(jnp.array([x]))
      np.testing.assert_allclose(energy, x**2 / 2 - abs(x), rtol=1e-6)
      np.testing.assert_allclose(slope, [x - np.sign(x)], rtol=1e-6)


def test_derivatives_at_zero_have_no_kink():
  # |y| + log1p(exp(−2|y|)) would have second derivative 0 here instead of 1.
  params = as_params(([[2.0]], [0.0], [0.0]))
  energy_fn = functools.partial(GaussianBernoulliRBM(1).apply, params)
  hessian = jax.jit(jax.hessian(energy_fn))(jnp.zeros(1))
  np.testing.assert_allclose(hessian, [[1.0 - 4.0]], rtol=1e-6)
  slope = jax.jit(jax.grad(energy_fn))(jnp.array([1e-6]))
  np.testing.assert_allclose(slope, [1e-6 - 2 * np.tanh(2e-6)], rtol=1e-5)


def test_energy_accepts_pixels_without_overflow():
  theta = random_theta(3, 2, scale=0.01)
  pixels = np.array([200, 3, 255], np.uint8)
  energy = GaussianBernoulliRBM(2).apply(as_params(theta, np.float32), pixels)
  np.testing.assert_allclose(
    energy, numpy_energy(theta, pixels.astype(float)), rtol=1e-5
  )


def test_score_and_its_divergence_equal_finite_differences():
  theta = random_theta(4, 3)
  x = np.random.default_rng(1).normal(size=(2, 2))
  numpy_score = scipy.optimize.approx_fprime(
    x.reshape(-1), lambda x: -numpy_energy(theta, x), 1e-7
  )
  with jax.enable_x64(True):
    rbm, params = GaussianBernoulliRBM(3), as_params(theta)
    score = rbm.score(params, x)
    assert score.shape == x.shape
    np.testing.assert_allclose(score.reshape(-1), numpy_score, atol=1e-6)
    gradient = jax.jit(jax.grad(rbm.apply, 1))(params, x)
    np.testing.assert_allclose(score, -gradient, rtol=1e-12)

    step = 1e-5
    divergence = sum(
      (rbm.score(params, x + e) - rbm.score(params, x - e)).reshape(-1)[i] / (2 * step)
      for i, e in enumerate(step * np.eye(4).reshape(4, 2, 2))
    )
    np.testing.assert_allclose(rbm.score_divergence(params, x), divergence, rtol=1e-8)


def test_score_satisfies_steins_identity():
  # E_p[score] = 0 and E_p[∇·score + ‖score‖²] = 0, by quadrature over the line.
  theta = random_theta(1, 3, scale=1.0)
  with jax.enable_x64(True):
    rbm, params = GaussianBernoulliRBM(3), as_params(theta)
    grid = jnp.linspace(-12, 12, 4001)[:, None]
    p = jnp.exp(rbm.log_likelihood(params, grid))
    score = jax.vmap(functools.partial(rbm.score, params))(grid)[:, 0]
    divergence = jax.vmap(functools.partial(rbm.score_divergence, params))(grid)
    for values in (score, divergence + score**2):
      np.testing.assert_allclose(
        scipy.integrate.simpson(p * values, x=grid[:, 0]), 0, atol=1e-9
      )


# --- log Z ----------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [None, 1, 3, 1000])
@pytest.mark.parametrize("num_hidden", [1, 2, 5, 8])
def test_log_partition_equals_enumeration(num_hidden, block_size):
  theta = random_theta(5, num_hidden, seed=num_hidden)
  with jax.enable_x64(True):
    got = GaussianBernoulliRBM(num_hidden).log_partition(
      as_params(theta), block_size=block_size
    )
  np.testing.assert_allclose(got, numpy_log_partition(theta), rtol=1e-13)


@settings(deadline=None, max_examples=6)
@given(
  num_visible=st.integers(1, 6), num_hidden=st.integers(1, 8), seed=st.integers(0, 99)
)
def test_log_partition_in_float32(num_visible, num_hidden, seed):
  theta = random_theta(num_visible, num_hidden, seed=seed)
  rbm = GaussianBernoulliRBM(num_hidden)
  got = rbm.log_partition(as_params(theta, np.float32), block_size=2)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, numpy_log_partition(theta), rtol=2e-6, atol=1e-6)


def test_log_partition_survives_large_exponents():
  # exp of the bracket overflows float32 in most states, and its sum in float64.
  theta = random_theta(20, 7, scale=4.0)
  got = GaussianBernoulliRBM(7).log_partition(as_params(theta, np.float32))
  assert numpy_log_partition(theta) > 1e3
  np.testing.assert_allclose(got, numpy_log_partition(theta), rtol=1e-6)


def test_log_partition_equals_quadrature():
  theta1, theta2 = random_theta(1, 3, scale=1.0), random_theta(2, 4)
  z1, _ = scipy.integrate.quad(
    lambda x: np.exp(-numpy_energy(theta1, np.array([x]))), -15, 15, epsabs=1e-10
  )
  grid = np.linspace(-10, 10, 161)
  with jax.enable_x64(True):
    rbm1, rbm2 = GaussianBernoulliRBM(3), GaussianBernoulliRBM(4)
    np.testing.assert_allclose(jnp.exp(rbm1.log_partition(as_params(theta1))), z1)
    points = jnp.stack(jnp.meshgrid(grid, grid), axis=-1)
    energy_fn = functools.partial(rbm2.apply, as_params(theta2))
    density = jnp.exp(-jax.jit(jax.vmap(jax.vmap(energy_fn)))(points))
    z2 = scipy.integrate.trapezoid(scipy.integrate.trapezoid(density, grid), grid)
    np.testing.assert_allclose(jnp.exp(rbm2.log_partition(as_params(theta2))), z2)


def test_log_partition_of_twenty_hidden_units_equals_a_streamed_float64_sum():
  B, b, c = theta = random_theta(30, 20, scale=0.15)
  gram, m = B.T @ B, c + B.T @ b
  low = hidden_states(10)  # the units 10..19; the others one state at a time
  sums = []
  for high in hidden_states(10):
    h = np.concatenate([np.broadcast_to(high, low.shape), low], axis=1)
    sums.append(scipy.special.logsumexp(h @ m + 0.5 * np.sum((h @ gram) * h, axis=1)))
  want = 15 * np.log(2 * np.pi) + 0.5 * b @ b + scipy.special.logsumexp(sums)
  rbm = GaussianBernoulliRBM(20)
  with jax.enable_x64(True):
    np.testing.assert_allclose(rbm.log_partition(as_params(theta)), want, rtol=1e-13)
  got = rbm.log_partition(as_params(theta, np.float32))
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(("num_hidden", "block_size"), [(1, None), (4, 3), (5, 2)])
def test_log_partition_gradient_equals_differences_and_exact_moments(
  num_hidden, block_size
):
  B, b, c = theta = random_theta(3, num_hidden)
  rbm = GaussianBernoulliRBM(num_hidden)
  with jax.enable_x64(True):
    log_partition = functools.partial(rbm.log_partition, block_size=block_size)
    gradient = jax.jit(jax.grad(log_partition))(as_params(theta))["params"]
  # −E_p[∇E] from the mixture: E[tanh(y)] = E[h], E[x tanh(y)ᵀ] = E[x hᵀ].
  weights, means = numpy_mixture(theta)
  h = hidden_states(num_hidden)
  np.testing.assert_allclose(gradient["b"], weights @ means, rtol=1e-10)
  np.testing.assert_allclose(gradient["c"], weights @ h, rtol=1e-10)
  np.testing.assert_allclose(
    gradient["B"], (means * weights[:, None]).T @ h, rtol=1e-10
  )

  def unflatten(flat):
    split = np.split(flat, [B.size, B.size + b.size])
    return split[0].reshape(B.shape), split[1], split[2]

  flat = np.concatenate([B.reshape(-1), b, c])
  difference = scipy.optimize.approx_fprime(
    flat, lambda flat: numpy_log_partition(unflatten(flat)), 1e-7
  )
  for name, want in zip("Bbc", unflatten(difference)):
    np.testing.assert_allclose(gradient[name], want, atol=1e-5)


def test_log_partition_under_jit_and_vmap():
  rbm = GaussianBernoulliRBM(3)
  thetas = [random_theta(2, 3, seed=seed) for seed in range(3)]
  stacked = as_params([np.stack(leaves) for leaves in zip(*thetas)], np.float32)
  got = jax.jit(jax.vmap(rbm.log_partition))(stacked)
  np.testing.assert_allclose(got, [numpy_log_partition(t) for t in thetas], rtol=1e-5)


@pytest.mark.slow
def test_log_partition_and_gradient_of_25_hidden_units_in_modest_memory():
  code = """
    import resource, jax, jax.numpy as jnp
    from stein_jax.energies import GaussianBernoulliRBM
    rbm = GaussianBernoulliRBM(25)
    params = rbm.init(jax.random.key(0), jnp.zeros(784))
    value, gradient = jax.value_and_grad(rbm.log_partition)(params)
    samples = rbm.sample(jax.random.key(1), params, 1000)
    jax.block_until_ready((gradient, samples))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
  """
  run = [sys.executable, "-c", textwrap.dedent(code)]
  done = subprocess.run(run, capture_output=True, text=True, check=True)
  assert float(done.stdout) < 2048  # MB; all 2^25 exponentials with gradient need more


# --- the mixture and the likelihood ---------------------------------------------------


@pytest.mark.parametrize("num_hidden", [1, 2, 5])
def test_mixture_equals_enumeration(num_hidden):
  theta = random_theta(3, num_hidden)
  with jax.enable_x64(True):
    log_weights, means = GaussianBernoulliRBM(num_hidden).mixture(as_params(theta))
  want_weights, want_means = numpy_mixture(theta)
  np.testing.assert_allclose(np.exp(log_weights), want_weights, rtol=1e-10)
  np.testing.assert_allclose(means, want_means, rtol=1e-10)


@pytest.mark.parametrize("shape", [(1,), (2, 2, 1)])
def test_log_likelihood_equals_the_gaussian_mixture(shape):
  theta = random_theta(int(np.prod(shape)), 4)
  x = np.random.default_rng(1).normal(size=(6, *shape))
  weights, means = numpy_mixture(theta)
  components = np.stack(
    [scipy.stats.multivariate_normal(mean).logpdf(x.reshape(6, -1)) for mean in means]
  )
  want = scipy.special.logsumexp(components, axis=0, b=weights[:, None])
  rbm = GaussianBernoulliRBM(4)
  with jax.enable_x64(True):
    params = as_params(theta)
    got = rbm.log_likelihood(params, x, block_size=3)
    np.testing.assert_allclose(got, want, rtol=1e-11)
    energies = jax.jit(jax.vmap(functools.partial(rbm.apply, params)))(x)
    np.testing.assert_allclose(got, -energies - rbm.log_partition(params), rtol=1e-11)
  got = rbm.log_likelihood(as_params(theta, np.float32), x.astype(np.float32))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_log_likelihood_is_accurate_far_from_the_origin():
  # p(x + t; b + t, c − Bᵀt) = p(x; b, c); −E and log Z alone are near ±1e7 here.
  B, b, c = random_theta(8, 3)
  x = np.random.default_rng(1).normal(size=(5, 8))
  rbm, t = GaussianBernoulliRBM(3), 1024.0
  B = np.round(B * 256) / 256  # so that Bᵀt and the shift are exact in float32
  b, c, x = (np.round(v * 256) / 256 for v in (b, c, x))
  here = rbm.log_likelihood(as_params((B, b, c), np.float32), np.float32(x))
  shifted = as_params((B, b + t, c - t * B.sum(axis=0)), np.float32)
  there = rbm.log_likelihood(shifted, np.float32(x + t))
  np.testing.assert_allclose(there, here, atol=0.02)


def test_symmetries_of_the_model():
  B, b, c = theta = random_theta(4, 3)
  x = np.random.default_rng(1).normal(size=(5, 4))
  rotation = scipy.stats.ortho_group.rvs(4, random_state=0)
  order = [2, 0, 1]
  rbm = GaussianBernoulliRBM(3)
  with jax.enable_x64(True):
    want = rbm.log_likelihood(as_params(theta), x)
    same = {
      "h → −h": ((-B, b, -c), x),
      "one unit flipped": ((B * [1, -1, 1], b, c * [1, -1, 1]), x),
      "units permuted": ((B[:, order], b, c[order]), x),
      "space rotated": ((rotation @ B, rotation @ b, c), x @ rotation.T),
      "space shifted": ((B, b + 2.0, c - 2.0 * B.sum(axis=0)), x + 2.0),
    }
    for name, (other, points) in same.items():
      got = rbm.log_likelihood(as_params(other), points)
      np.testing.assert_allclose(got, want, rtol=1e-11, err_msg=name)


# --- samples --------------------------------------------------------------------------


@pytest.mark.parametrize("num_hidden", [2, 5])
def test_samples_have_the_mixtures_mean_and_covariance(num_hidden):
  theta, n = random_theta(3, num_hidden, scale=0.5), 50_000
  params = as_params(theta, np.float32)
  rbm = GaussianBernoulliRBM(num_hidden)
  samples = np.asarray(rbm.sample(jax.random.key(0), params, n), np.float64)
  mean, covariance = numpy_moments(theta)
  # Each entry is an average of n independent terms: 4.5 standard errors.
  centred = samples - mean
  products = centred[:, :, None] * centred[:, None, :]
  for terms, want in ((samples, mean), (products, covariance)):
    error = terms.std(axis=0) / np.sqrt(n)
    np.testing.assert_array_less(np.abs(terms.mean(axis=0) - want), 4.5 * error)


@pytest.mark.parametrize("num_hidden", [1, 4])
def test_samples_visit_the_components_in_proportion(num_hidden):
  # Columns of length 10 keep the components apart (a sample is misread with
  # probability below 1e-20); the products of the columns, of order one, couple units.
  rng = np.random.default_rng(num_hidden)
  coupling = rng.uniform(-0.4, 0.4, size=(num_hidden, num_hidden))
  gram = 100 * np.eye(num_hidden) + coupling + coupling.T
  B, b = np.linalg.cholesky(gram).T, rng.normal(size=num_hidden)
  theta = B, b, rng.uniform(-0.5, 0.5, size=num_hidden) - B.T @ b
  weights, means = numpy_mixture(theta)
  n = 20_000
  params = as_params(theta, np.float32)
  samples = GaussianBernoulliRBM(num_hidden).sample(jax.random.key(3), params, n)
  distances = np.sum((np.asarray(samples)[:, None] - means[None]) ** 2, axis=2)
  counts = np.bincount(np.argmin(distances, axis=1), minlength=len(weights))
  assert weights.min() * n > 20
  assert scipy.stats.chisquare(counts, n * weights).pvalue > 1e-3
  # And within a component they are standard normal.
  residuals = distances.min(axis=1)
  chi2 = scipy.stats.chi2(num_hidden)
  assert scipy.stats.kstest(residuals, chi2.cdf).pvalue > 1e-3


def test_samples_are_a_sequence_that_devices_can_share():
  rbm, key = GaussianBernoulliRBM(5), jax.random.key(0)
  params = as_params(random_theta(3, 5), np.float32)
  whole = rbm.sample(key, params, 12)

  def share(key, params):
    return rbm.sample(key, params, 3, first=3 * jax.lax.axis_index("devices"))

  mesh = jax.make_mesh((4,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
  specs = {"in_specs": jax.P(), "out_specs": jax.P("devices")}
  spread = jax.jit(jax.shard_map(share, mesh=mesh, **specs))(key, params)
  np.testing.assert_allclose(spread, whole, rtol=1e-6, atol=1e-6)
  assert len(np.unique(whole, axis=0)) == 12
  other = rbm.sample(jax.random.key(1), params, 12)
  assert np.abs(other - whole).max() > 0.1


def test_samples_do_not_depend_on_how_they_are_blocked():
  # Points this large are drawn four at a time.
  rbm, key = GaussianBernoulliRBM(4), jax.random.key(0)
  params = as_params(random_theta(2**18, 4, scale=1e-3), np.float32)
  whole = rbm.sample(key, params, 7)
  for first in (0, 2, 4):
    part = rbm.sample(key, params, 3, first=first)
    np.testing.assert_allclose(part, whole[first : first + 3], rtol=1e-6, atol=1e-6)


def test_samples_of_float64_and_none():
  with jax.enable_x64(True):
    params = as_params(random_theta(2, 3))
    samples = GaussianBernoulliRBM(3).sample(jax.random.key(0), params, 0)
  assert samples.shape == (0, 2)
  assert samples.dtype == np.float64


# --- initialisation and messages ------------------------------------------------------


def test_init_from_data_centres_the_hidden_units():
  data = np.random.default_rng(0).uniform(size=(50, 2, 3)).astype(np.float32)
  rbm = GaussianBernoulliRBM(40, weight_scale=0.2)
  theta = rbm.init_from_data(jax.random.key(0), data)["params"]
  mean = data.mean(axis=0).reshape(-1)
  np.testing.assert_allclose(theta["b"], mean, rtol=1e-6)
  np.testing.assert_allclose(theta["c"], -np.asarray(theta["B"]).T @ mean, atol=1e-6)
  assert theta["B"].shape == (6, 40)
  # 240 uniform numbers: inside the interval, and in all parts of it.
  standardised = np.asarray(theta["B"]).reshape(-1) / 0.4 + 0.5
  assert scipy.stats.kstest(standardised, "uniform").pvalue > 1e-3


def test_init_draws_the_same_weights_with_zero_biases():
  rbm, key = GaussianBernoulliRBM(3), jax.random.key(0)
  params = rbm.init(key, jnp.ones((2, 2)))
  B, b, c = (np.asarray(params["params"][name]) for name in "Bbc")
  from_data = rbm.init_from_data(key, jnp.zeros((5, 2, 2)))
  with pytest.raises(ValueError, match="dtype uint8: scale it to floats first"):
    rbm.init_from_data(key, jnp.zeros((5, 2, 2), jnp.uint8))
  np.testing.assert_array_equal(B, from_data["params"]["B"])
  assert not b.any()
  assert not c.any()
  assert 0 < np.abs(B).max() <= 0.05
  assert B.dtype == from_data["params"]["b"].dtype == np.float32
  with jax.enable_x64(True):
    assert rbm.init(key, np.ones(4))["params"]["B"].dtype == np.float64


def test_a_point_of_the_wrong_size_is_an_error_that_names_both_sizes():
  rbm, params = GaussianBernoulliRBM(3), as_params(random_theta(4, 3), np.float32)
  message = re.escape("(5,)") + ".*" + re.escape("(4, 3)")
  for method in (rbm.apply, rbm.features, rbm.score, rbm.score_divergence):
    with pytest.raises(ValueError, match=message):
      method(params, jnp.zeros(5))
  message = re.escape("(4, 3)") + ".*" + re.escape("(2, 5)")
  with pytest.raises(ValueError, match=message):
    rbm.log_likelihood(params, jnp.zeros((2, 5)))
  with pytest.raises(ValueError, match=re.escape("(4,)")):
    rbm.log_likelihood(params, jnp.zeros(4))  # one point, not [n, ...]


def test_impossible_models_are_errors():
  with pytest.raises(ValueError, match="at least 1, got 0"):
    GaussianBernoulliRBM(0)
  with pytest.raises(ValueError, match="weight_scale"):
    GaussianBernoulliRBM(2, weight_scale=-1.0)
  with pytest.raises(ValueError, match="num_hidden=3"):
    GaussianBernoulliRBM(3).log_partition(as_params(random_theta(4, 2)))
  with pytest.raises(ValueError, match="block_size"):
    GaussianBernoulliRBM(2).log_partition(as_params(random_theta(4, 2)), block_size=0)
  with pytest.raises(ValueError, match="n > 0"):
    GaussianBernoulliRBM(2).init_from_data(jax.random.key(0), jnp.zeros((0, 3)))


def test_too_many_hidden_states_are_errors():
  rbm, params = GaussianBernoulliRBM(35), as_params(random_theta(2, 35), np.float32)
  for call in (
    lambda: rbm.log_partition(params),
    lambda: rbm.log_likelihood(params, jnp.zeros((1, 2))),
    lambda: rbm.sample(jax.random.key(0), params, 1),
  ):
    with pytest.raises(ValueError, match=r"num_hidden=34.*2\^35 states"):
      call()
  with pytest.raises(ValueError, match=r"2\^35 means"):
    rbm.mixture(params)
  with pytest.raises(ValueError, match=r"2\^20 means of 784"):
    GaussianBernoulliRBM(20).mixture(as_params(random_theta(784, 20), np.float32))


# ------------------------------------------------------------------------- Gibbs


def test_gibbs_leaves_the_model_as_it_is():
  rbm = GaussianBernoulliRBM(num_hidden=3)
  rng = np.random.default_rng(11)
  B, b, c = rng.normal(size=(2, 3)), rng.normal(size=2), rng.normal(size=3)
  params = {"params": {"B": jnp.asarray(B), "b": jnp.asarray(b), "c": jnp.asarray(c)}}
  n = 40_000
  start = rbm.sample(jax.random.key(0), params, n)
  end = rbm.gibbs(jax.random.key(1), params, start, num_steps=2)
  assert end.shape == start.shape
  assert abs(end - start).mean() > 0.5  # the points moved
  log_w, means = (np.asarray(v, np.float64) for v in rbm.mixture(params))
  w = np.exp(log_w)
  mean = w @ means
  covariance = np.eye(2) + (means - mean).T @ ((means - mean) * w[:, None])
  np.testing.assert_allclose(
    end.mean(axis=0), mean, atol=5 * np.sqrt(covariance.max() / n)
  )
  np.testing.assert_allclose(np.cov(np.asarray(end).T), covariance, atol=0.15)
  # Each point stays near its start: the chain is not an independent sample.
  assert np.corrcoef(start[:, 0], end[:, 0])[0, 1] > 0.1


def test_gibbs_draws_by_index_and_keeps_the_dtype(x64):
  rbm = GaussianBernoulliRBM(num_hidden=2)
  x = jnp.ones((6, 3), jnp.float32)
  params = rbm.init(jax.random.key(0), x[0])
  whole = rbm.gibbs(jax.random.key(1), params, x, num_steps=2)
  parts = [
    rbm.gibbs(jax.random.key(1), params, x[:3], num_steps=2, first=first)
    for first in (0, 3)
  ]
  np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-6)
  assert len(np.unique(np.asarray(whole))) == whole.size
  for x_type, params_type in (("float64", "float32"), ("float32", "bfloat16")):
    cast = jax.tree.map(lambda leaf: leaf.astype(params_type), params)  # noqa: B023
    assert rbm.gibbs(jax.random.key(1), cast, x.astype(x_type)).dtype == x_type


def test_gibbs_moves_each_point_by_its_own_hidden_units():
  rbm = GaussianBernoulliRBM(num_hidden=1)
  params = {
    "params": {"B": jnp.array([[3.0]]), "b": jnp.zeros(1), "c": jnp.array([0.2])}
  }
  n = 20_000
  for x in (-0.3, 0.1, 2.0):
    end = rbm.gibbs(jax.random.key(2), params, jnp.full((n, 1), x))
    up = 1 / (1 + np.exp(-2 * (3 * x + 0.2)))  # P(h = 1 | x)
    mean, variance = 3 * (2 * up - 1), 1 + 36 * up * (1 - up)
    np.testing.assert_allclose(end.mean(), mean, atol=5 * np.sqrt(variance / n))
    assert abs(end.var() - variance) < 0.05 * variance + 0.05


def test_gibbs_keeps_the_shape_of_images_and_names_bad_input():
  rbm = GaussianBernoulliRBM(num_hidden=2)
  x = jnp.zeros((5, 2, 3))
  params = rbm.init(jax.random.key(0), x[0])
  assert rbm.gibbs(jax.random.key(1), params, x).shape == x.shape
  for num_steps in (0, 1.0):
    with pytest.raises(ValueError, match="num_steps must be an integer"):
      rbm.gibbs(jax.random.key(1), params, x, num_steps=num_steps)
  with pytest.raises(ValueError, match="got a scalar"):
    rbm.gibbs(jax.random.key(1), params, jnp.zeros(()))
  with pytest.raises(ValueError, match="needs 6"):
    rbm.gibbs(jax.random.key(1), params, jnp.zeros((5, 4)))
