"""Known truths: normalised, their samples exact, their scores the derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from stein_jax import densities
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.samplers import langevin
from tests.quick import only

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def small_rbm(pixel_noise, num_visible=2):
  rbm = GaussianBernoulliRBM(3)
  params = {
    "params": {
      "B": jnp.asarray(RNG.normal(size=(num_visible, 3))),
      "b": jnp.asarray(RNG.normal(size=num_visible)),
      "c": jnp.asarray(RNG.normal(size=3)),
    }
  }
  return densities.of_rbm(rbm, params, pixel_noise=pixel_noise)


def spd(d, seed=0):
  root = np.random.default_rng(seed).normal(size=(d, d))
  return root @ root.T + np.eye(d)


# In two dimensions each; made inside of a test, in float64.
IN_THE_PLANE = {
  "gaussian": lambda: densities.gaussian([1.0, -2.0], width=0.7),
  "gaussian, widths": lambda: densities.gaussian([1.0, 2.0], width=np.array([0.5, 2])),
  "gaussian, covariance": lambda: densities.gaussian([1.0, 2.0], covariance=spd(2)),
  "mixture": lambda: densities.gaussian_mixture(
    [[-2.0, 0.0], [2.0, 1.0], [0.0, 3.0]],
    weights=[1, 2, 5],
    width=np.array([0.5, 1.0, 0.8]),
  ),
  "mixture, covariances": lambda: densities.gaussian_mixture(
    [[-2.0, 0.0], [2.0, 1.0]], covariances=np.stack([spd(2, 1), spd(2, 2)])
  ),
  "two modes": lambda: densities.two_modes(2, separation=5.0),
  "grid": lambda: densities.grid_modes(3, spacing=2.0, width=0.4),
  "rings": lambda: densities.rings([1.0, 3.0], weights=[1, 3], width=0.3),
  "moons": lambda: densities.two_moons(),
  "moons, noise": lambda: densities.two_moons(0.3),
  "pinwheel": lambda: densities.pinwheel(),
  "pinwheel, three arms": lambda: densities.pinwheel(
    3, radial_width=0.4, tangential_width=0.2, twist=-0.3
  ),
  "banana": lambda: densities.banana(width=2.0),
  "funnel": lambda: densities.funnel(2, width=0.7),
  "ica": lambda: densities.independent_components(2),
  "rbm": lambda: small_rbm(1.0),
  "rbm, less noise": lambda: small_rbm(0.6),
  "flow": lambda: densities.affine_coupling_flow(KEY, 2),
  "mixture of densities": lambda: densities.mixture(
    [densities.banana(width=2.0), densities.gaussian([0.0, 0.0], width=3.0)], [2, 1]
  ),
}


@pytest.fixture
def density(request):
  with jax.enable_x64(True):
    yield IN_THE_PLANE[request.param]()


every_density = pytest.mark.parametrize("density", IN_THE_PLANE, indirect=True)


def grid(edge=20.0, n=801):
  """Points of a grid `[n², 2]` and the area of a cell."""
  side = np.linspace(-edge, edge, n)
  return np.stack(np.meshgrid(side, side), -1).reshape(-1, 2), (side[1] - side[0]) ** 2


@every_density
def test_the_density_integrates_to_one(density):
  points, area = grid()
  total = np.exp(np.float64(density.log_density(jnp.asarray(points)))).sum() * area
  # Where the density has a kink, the sum over a grid is less exact.
  np.testing.assert_allclose(
    total, 1, atol=1e-3 if "components" in density.name else 1e-6
  )


@every_density
def test_samples_have_the_moments_of_the_density(density):
  points, area = grid()
  p = np.exp(np.float64(density.log_density(jnp.asarray(points)))) * area
  n = 40_000
  x = np.float64(density.sample(jax.random.key(3), n))
  assert x.shape == (n, 2)
  functions = {
    "mean": lambda x: x,
    "squares": lambda x: x**2,
    "product": lambda x: x[:, :1] * x[:, 1:],
    "wave": lambda x: np.cos(3 * x + x[:, ::-1]),
  }
  for name, fn in functions.items():
    values, want = fn(x), p @ fn(points)
    error = values.std(axis=0) / np.sqrt(n)
    assert (np.abs(values.mean(axis=0) - want) < 4.5 * error + 1e-4).all(), name


@every_density
def test_the_score_is_the_derivative(density):
  step = 1e-5
  for x in np.float64(density.sample(jax.random.key(1), 5)):
    want = [
      float(density.log_density_fn(x + step * e) - density.log_density_fn(x - step * e))
      / (2 * step)
      for e in np.eye(2)
    ]
    np.testing.assert_allclose(density.score(jnp.asarray(x)), want, atol=1e-5)


@every_density
def test_stein_s_identity(density):
  """E[∇ log p(x)ᵀ f(x) + div f(x)] = 0."""
  x = density.sample(jax.random.key(2), 40_000)
  scores = np.float64(jax.jit(jax.vmap(density.score))(x))
  x = np.float64(x)
  for a in (0.3, 1.0):
    values = (scores * np.cos(a * x)).sum(1) - a * np.sin(a * x).sum(1)
    assert abs(values.mean()) < 4.5 * values.std() / np.sqrt(len(values))


@every_density
def test_modes_sum_to_one_and_have_their_masses(density):
  if density.mode_masses is None:
    with pytest.raises(ValueError, match=f"the density {density.name} has no modes"):
      density.modes(jnp.zeros((1, 2)))
    return
  x = density.sample(jax.random.key(4), 20_000)
  modes = np.float64(density.modes(x))
  np.testing.assert_allclose(modes.sum(1), 1, rtol=1e-9)
  np.testing.assert_allclose(np.sum(density.mode_masses), 1, rtol=1e-9)
  masses, n = np.float64(density.mode_masses), len(modes)
  error = 4.5 * np.sqrt(masses / n) + 5 / n  # of frequencies, also of rare ones
  assert (np.abs(modes.mean(axis=0) - masses) < error).all()


# ------------------------------------------------------------------- closed forms


@pytest.mark.usefixtures("x64")
def test_gaussians_are_those_of_scipy():
  mean, covariance = RNG.normal(size=3), spd(3)
  density = densities.gaussian(mean, covariance=covariance)
  x = RNG.normal(size=(7, 3))
  want = scipy.stats.multivariate_normal(mean, covariance).logpdf(x)
  np.testing.assert_allclose(density.log_density(x), want, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_a_mixture_in_many_dimensions():
  k, d = 4, 50
  means, widths = RNG.normal(size=(k, d)), RNG.uniform(0.5, 2, size=k)
  weights = RNG.uniform(size=k)
  x = RNG.normal(size=(6, d))
  logs = [scipy.stats.norm(m, w).logpdf(x).sum(axis=1) for m, w in zip(means, widths)]
  want = scipy.special.logsumexp(
    np.array(logs) + np.log(weights / weights.sum())[:, None], axis=0
  )
  options = {"weights": weights}
  for shape in (
    {"width": widths},
    {"covariances": widths[:, None, None] ** 2 * np.eye(d)},
  ):
    density = densities.gaussian_mixture(means, **options, **shape)
    np.testing.assert_allclose(density.log_density(x), want, rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pixel_noise", [1.0, 0.5])
def test_an_rbm_in_784_dimensions(pixel_noise):
  rbm = GaussianBernoulliRBM(10)
  rng = np.random.default_rng(1)
  theta = {"B": (784, 10), "b": (784,), "c": (10,)}
  params = {
    "params": {k: jnp.asarray(0.3 * rng.normal(size=v)) for k, v in theta.items()}
  }
  density = densities.of_rbm(rbm, params, pixel_noise=pixel_noise)
  x = np.float64(density.sample(KEY, 5))
  log_weights, means = (np.float64(v) for v in rbm.mixture(params))
  squares = np.square((x[:, None] - means[None]) / pixel_noise).sum(2)
  log_noise = 784 * (np.log(pixel_noise) + 0.5 * np.log(2 * np.pi))
  want = scipy.special.logsumexp(log_weights - 0.5 * squares, axis=1) - log_noise
  np.testing.assert_allclose(density.log_density(x), want, rtol=1e-10)
  if pixel_noise == 1:
    np.testing.assert_allclose(rbm.log_likelihood(params, x), want, rtol=1e-10)
  nearest = np.argmin(np.square(x[:, None] - means[None]).sum(2), axis=1)
  np.testing.assert_array_equal(np.argmax(density.modes(x), axis=1), nearest)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dimension", [3, 10])
def test_banana_funnel_and_ica_in_more_dimensions(dimension):
  x = RNG.normal(size=(5, dimension))
  normal = scipy.stats.norm.logpdf
  bent = x[:, 1] - 0.1 * (x[:, 0] ** 2 - 25)
  want = normal(x[:, 0], 0, 5) + normal(bent) + normal(x[:, 2:]).sum(1)
  np.testing.assert_allclose(densities.banana(dimension).log_density(x), want)
  width = np.exp(x[:, :1] / 2)
  want = normal(x[:, 0], 0, 3) + normal(x[:, 1:], 0, width).sum(1)
  np.testing.assert_allclose(densities.funnel(dimension).log_density(x), want)
  ica = densities.independent_components(dimension)
  mix = np.float64(ica.sample_fn.args[0])
  assert np.linalg.cond(mix) < dimension
  sources = np.linalg.solve(mix, x.T).T
  want = scipy.stats.laplace.logpdf(sources).sum(1) - np.linalg.slogdet(mix)[1]
  np.testing.assert_allclose(ica.log_density(x), want)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dimension", only([2], [2, 5]))
def test_a_flow_has_the_log_determinant_of_its_map(dimension):
  density = densities.affine_coupling_flow(KEY, dimension, num_layers=3)
  layers, _ = density.sample_fn.args

  def forward(z):
    for i, layer in enumerate(layers):
      half = dimension // 2
      kept, moved = (z[:half], z[half:]) if i % 2 == 0 else (z[half:], z[:half])
      out = jnp.tanh(kept @ layer["first"]) @ layer["last"]
      scale, shift = out[: len(moved)], out[len(moved) :]
      moved = moved * jnp.exp(jnp.tanh(scale) / 2) + shift
      z = jnp.concatenate([kept, moved] if i % 2 == 0 else [moved, kept])
    return z

  for z in RNG.normal(size=(3, dimension)):
    log_determinant = np.linalg.slogdet(jax.jacobian(forward)(z))[1]
    want = scipy.stats.norm.logpdf(z).sum() - log_determinant
    np.testing.assert_allclose(density.log_density(forward(z)[None])[0], want)
  drawn = jax.random.normal(jax.random.key(5), (4, dimension))
  np.testing.assert_allclose(
    density.sample(jax.random.key(5), 4), jax.vmap(forward)(drawn)
  )


@pytest.mark.usefixtures("x64")
def test_moons_are_blurred_half_circles():
  """Against quadrature along the arcs, apart from their ends."""
  noise = 0.2
  density = densities.two_moons(noise)
  upper = [lambda a: np.cos(a), lambda a: np.sin(a)]
  lower = [lambda a: 1 - np.cos(a), lambda a: 0.5 - np.sin(a)]
  for x in ([0.1, 1.1], [1.2, -0.4], [0.6, 0.2], [-0.8, 0.7]):
    want = 0.0
    for moon in (upper, lower):

      def along(a, moon=moon, x=x):
        return np.prod([scipy.stats.norm.pdf(c, m(a), noise) for c, m in zip(x, moon)])

      want += scipy.integrate.quad(along, 0, np.pi)[0] / (2 * np.pi)
    np.testing.assert_allclose(
      np.exp(density.log_density(np.array([x]))[0]), want, rtol=2e-3
    )
  modes = density.modes(np.array([[0.0, 1.0], [1.0, -0.5]]))
  np.testing.assert_allclose(modes, np.eye(2), atol=0.02)  # they overlap a little


@pytest.mark.usefixtures("x64")
def test_a_pinwheel_has_the_log_determinant_of_its_map():
  straight, twisted = densities.pinwheel(twist=0.0), densities.pinwheel(twist=0.7)

  def forward(y):
    a = 0.7 * (y @ y)
    rotation = [[jnp.cos(a), -jnp.sin(a)], [jnp.sin(a), jnp.cos(a)]]
    return jnp.asarray(rotation) @ y

  y = np.float64(straight.sample(KEY, 20))
  x = jax.vmap(forward)(y)
  log_determinants = np.linalg.slogdet(jax.vmap(jax.jacobian(forward))(y))[1]
  want = np.asarray(straight.log_density(y)) - log_determinants
  np.testing.assert_allclose(twisted.log_density(x), want, rtol=1e-9)
  np.testing.assert_allclose(twisted.sample(KEY, 20), x, rtol=1e-9)
  np.testing.assert_allclose(twisted.modes(x), straight.modes(y), atol=1e-9)


@pytest.mark.parametrize(("n", "width"), [(4, 2.0), (3, 0.37), (1, 1.0)])
def test_a_checkerboard_is_uniform_on_its_dark_squares(n, width):
  density = densities.checkerboard(n, width=width)
  i, j = np.indices((n, n))
  dark = (i + j) % 2 == 0
  centers = (np.stack([i, j], axis=2).reshape(-1, 2) + 0.5 - n / 2) * width
  log_p = np.asarray(density.log_density(np.float32(centers))).reshape(n, n)
  np.testing.assert_allclose(log_p[dark], -np.log(dark.sum() * width**2), rtol=1e-6)
  assert (log_p[~dark] == -np.inf).all()
  outside = np.float32([[0, 0.51 * n * width], [-0.51 * n * width, 0]])
  assert (density.log_density(outside) == -np.inf).all()
  x = np.asarray(density.sample(KEY, 40_000))
  assert np.isfinite(density.log_density(x)).all()
  np.testing.assert_array_equal(jax.vmap(density.score)(x[:100]), 0)
  # Frequencies of the squares, and moments within a square.
  column, row = np.floor(x / width + n / 2).astype(int).T
  counts = np.zeros((n, n))
  np.add.at(counts, (column, row), 1)
  assert (counts[~dark] == 0).all()
  assert scipy.stats.chisquare(counts[dark]).pvalue > 1e-4 or dark.sum() == 1
  within = (x / width + n / 2) % 1
  for side in within.T:
    assert scipy.stats.kstest(side, "uniform").pvalue > 1e-4


def test_gmm40_is_forty_modes_in_any_dimension():
  for d in (2, 128):
    density = densities.gmm40(d)
    x = density.sample(KEY, 1000)
    assert x.shape == (1000, d)
    found = np.unique(np.argmax(density.modes(x), axis=1))
    assert len(found) == 40
    assert np.abs(x).max() < 50
  first, again, other = (
    densities.gmm40(2, seed=s).log_density(x[:9, :2]) for s in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert (first != other).all()


# ------------------------------------------------------------------------ as a pytree


def test_densities_of_one_family_are_compiled_once(compilations):
  x = jnp.zeros((4, 3))
  make = [densities.gaussian_mixture(np.eye(3) * s, width=s) for s in (1.0, 2.0, 3.0)]
  make[0].log_density(x), make[0].sample(KEY, 4)
  before = len(compilations)
  for density in make[1:]:
    density.log_density(x), density.sample(KEY, 4)
  assert len(compilations) == before


@pytest.mark.parametrize("name", IN_THE_PLANE)
def test_float32_has_its_own_dtype_and_is_near_float64(name):
  density = IN_THE_PLANE[name]()
  x = density.sample(KEY, 50)
  assert x.dtype == density.log_density(x).dtype == jnp.float32
  if "rbm" in name:
    return  # its numbers are drawn in each call
  with jax.enable_x64(True):
    double = IN_THE_PLANE[name]()
    if name != "flow":  # whose weights are drawn in the dtype
      want = double.log_density(np.float64(x))
      np.testing.assert_allclose(density.log_density(x), want, rtol=1e-4, atol=1e-4)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(scale=st.sampled_from([1e-12, 1e-3, 1.0, 1e6, 1e12]), d=st.integers(1, 3))
def test_gaussians_at_any_scale(scale, d):
  density = densities.gaussian(np.full(d, 2 * scale), width=scale)
  x = density.sample(KEY, 20)
  z = np.float64(x) / scale - 2
  want = scipy.stats.norm.logpdf(z).sum(1) - d * np.log(scale)
  np.testing.assert_allclose(density.log_density(x), want, rtol=1e-4, atol=1e-4)


def test_the_score_at_the_center_of_a_ring_is_finite():
  np.testing.assert_allclose(densities.rings().score(jnp.zeros(2)), 0, atol=1e-6)


@pytest.mark.parametrize("pixel_noise", [0.1, 0.01, 1e-3])
def test_an_rbm_with_little_noise_keeps_its_digits(pixel_noise):
  rng = np.random.default_rng(0)
  drawn = {"B": (784, 6), "b": (784,), "c": (6,)}
  drawn = {k: np.float32(0.5 * rng.normal(size=v)) for k, v in drawn.items()}
  rbm = GaussianBernoulliRBM(6)
  density = densities.of_rbm(rbm, {"params": drawn}, pixel_noise=pixel_noise)
  x = density.sample(KEY, 20)
  with jax.enable_x64(True):
    double = {"params": {k: np.float64(v) for k, v in drawn.items()}}
    want = densities.of_rbm(rbm, double, pixel_noise=pixel_noise).log_density(
      np.float64(x)
    )
  np.testing.assert_allclose(
    density.log_density(x), want, atol=0.05 + 2e-5 / pixel_noise
  )


def test_within_a_traced_function():
  def fn(shift):
    return densities.two_modes(2).log_density_fn(jnp.zeros(2) + shift)

  np.testing.assert_allclose(jax.jit(fn)(0.5), fn(0.5), rtol=1e-5)


def test_the_score_is_compiled_once(compilations):
  density = densities.two_modes(2)
  x = density.sample(KEY, 4)
  langevin(KEY, x, density.score, num_steps=1, step_size=0.1)
  before = len(compilations)
  langevin(KEY, x, density.score, num_steps=1, step_size=0.1)
  langevin(KEY, x, densities.two_modes(2).score, num_steps=1, step_size=0.1)
  assert len(compilations) == before


# ------------------------------------------------------------------------- bad input

X = np.zeros((5, 3), np.float32)

MEANS = [[0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: densities.gaussian([[0.0]]), r"mean must be \[d\]"),
    (lambda: densities.gaussian([0.0], width=0), "width must be a finite number above"),
    (lambda: densities.gaussian([0.0], width=np.ones(2)), r"one number or \[1\]"),
    (lambda: densities.gaussian([0.0, 1.0], covariance=np.tri(2)), "symmetric"),
    (lambda: densities.two_modes(3).log_density(X[0]), r"\[3\], got shape \(\)"),
    (lambda: densities.two_modes(3).log_density(X[:, :1]), r"\[3\], got shape \(1,\)"),
    (lambda: densities.two_modes(3).log_density_fn(X), "take one point"),
    (lambda: densities.funnel(10).log_density(X), r"this funnel is \[10\]"),
    (lambda: densities.banana(4).log_density(X), r"this banana is \[4\]"),
    (lambda: densities.rings().log_density(X), r"density of rings is \[2\]"),
    (lambda: densities.independent_components(4).log_density(X), r"is \[4\]"),
    (lambda: densities.affine_coupling_flow(KEY, 4).log_density(X), r"flow is \[4\]"),
    (lambda: small_rbm(1.0, 4).log_density(X), "this RBM has 4 numbers"),
    (
      lambda: densities.mixture([densities.funnel(2), densities.funnel(3)], [1, 1]),
      "points of one shape",
    ),
    (lambda: densities.gaussian([0.0, 1.0], covariance=-np.eye(2)), "definite"),
    (lambda: densities.gaussian([0.0, 1.0], covariance=np.eye(3)), r"shape \(2, 2\)"),
    (lambda: densities.gaussian_mixture([0.0, 1.0]), r"means must be \[K, d\]"),
    (lambda: densities.gaussian_mixture(MEANS, weights=[1.0]), "one weight for each"),
    (lambda: densities.gaussian_mixture(MEANS, weights=[1.0, -1]), "positive numbers"),
    (lambda: densities.gaussian_mixture(MEANS, weights=[1, np.nan]), "positive"),
    (
      lambda: densities.gaussian_mixture(MEANS, width=np.ones(3)),
      r"one number or \[2\]",
    ),
    (lambda: densities.two_modes(0), "dimension must be an integer of at least 1"),
    (lambda: densities.two_modes(2, separation=0), "separation must be"),
    (lambda: densities.two_modes(2, weights=(0.0, 1.0)), "positive numbers"),
    (lambda: densities.grid_modes(0), "num_per_side"),
    (lambda: densities.two_moons(0), "noise must be a finite number above 0"),
    (lambda: densities.two_moons().log_density(X), r"is \[2\], got shape \(3,\)"),
    (lambda: densities.pinwheel(0), "num_arms must be"),
    (lambda: densities.pinwheel(radial_width=0), "radial_width must be"),
    (lambda: densities.pinwheel(tangential_width=-1), "tangential_width must be"),
    (lambda: densities.pinwheel(twist=np.inf), "twist must be"),
    (lambda: densities.pinwheel().log_density(X), r"this pinwheel is \[2\]"),
    (lambda: densities.checkerboard(0), "num_per_side must be"),
    (lambda: densities.checkerboard(width=0), "width must be"),
    (lambda: densities.checkerboard().log_density(X), r"checkerboard is \[2\]"),
    (lambda: densities.rings([-1.0]), "radii must be"),
    (lambda: densities.rings([1.0], weights=[1, 2]), "one weight for each of 1 radii"),
    (lambda: densities.funnel(1), "dimension must be at least 2"),
    (lambda: densities.banana(2.5), "dimension must be an integer"),
    (lambda: densities.independent_components(1), "at least 2"),
    (lambda: densities.affine_coupling_flow(KEY, 1), "at least 2"),
    (lambda: densities.affine_coupling_flow(KEY, 2, strength=-1), "strength"),
    (lambda: small_rbm(0), "pixel_noise must be a finite number above 0"),
    (lambda: densities.mixture([], []), "at least one density"),
    (lambda: densities.two_modes(2).sample(KEY, 0), "num_samples must be"),
    (lambda: densities.two_modes(2).sample(KEY, 2.5), "num_samples must be"),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()
