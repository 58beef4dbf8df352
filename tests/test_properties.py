"""Any points, dtype and scale: no NaN where the answer is finite, and the right one.

Points are few or one, in one dimension or several, normal, repeated, all equal, in far
clusters or far from the origin, from 1e-15 to 1e15 in size. Answers come from float64
double loops, closed forms or exact symmetries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from stein_jax import (
  Direction,
  amortized_svgd_gradient,
  contrastive_loss,
  evaluation,
  kernels,
  ksd_squared,
  negative_log_likelihood,
  repulsion_share,
  samplers,
  score_matching_loss,
  scores,
  stein_cd_gradient,
  stein_moves,
  stein_score_matching_gradient,
  svgd_direction,
)
from stein_jax.energies import MLP, GaussianBernoulliRBM
from tests import oracles
from tests.quick import only

SHAPES = [(1, 1), (1, 3), (2, 1), (2, 2), (3, 5), (7, 1), (17, 2)]
DTYPES = [jnp.float16, jnp.bfloat16, np.float32, np.float64]
PATTERNS = ["normal", "repeated", "equal", "far clusters", "offset"]

NUM_EXAMPLES = only([6], [6, 300])


class Points(NamedTuple):
  """Points `[n, d]`, scores of the same shape, and the size of both.

  The points are `unit` times 2ᵉ, and the scores those of a Gaussian of that width.
  """

  x: np.ndarray
  s: np.ndarray
  scale: float


@st.composite
def points(draw, smallest=1, dtypes=DTYPES, patterns=PATTERNS, exponents=50):
  """Points of any of these kinds."""
  n, d = draw(st.sampled_from([shape for shape in SHAPES if shape[0] >= smallest]))
  dtype = np.dtype(draw(st.sampled_from(dtypes)))
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  pattern = draw(st.sampled_from(patterns))
  wide = dtype != np.float16  # which goes from 6e-5 to 65504
  exponent = draw(st.integers(-exponents, exponents) if wide else st.integers(-3, 3))
  unit = rng.normal(size=(n, d))
  if pattern == "repeated":
    unit = unit[rng.integers(0, max(1, n // 2), size=n)]
  if pattern == "equal":
    unit = unit[:1].repeat(n, axis=0)
  if pattern == "far clusters":
    unit += 30 * rng.integers(0, 2, size=(n, 1))
  if pattern == "offset":
    unit += 100.0
  scale = 2.0**exponent
  x = (scale * unit).astype(dtype)
  center = np.float64(x).mean(axis=0)
  s = ((center - np.float64(x)) / scale**2 + rng.normal(size=(n, d)) / scale).astype(
    dtype
  )
  return Points(x, s, scale)


def check(num_examples, *strategies):
  """Runs a decorated function for examples of these strategies, float64 included."""

  def decorate(body):
    run = given(*strategies)(body)
    run = settings(
      max_examples=num_examples, deadline=None, derandomize=True, database=None
    )(run)
    with jax.enable_x64(True):
      run()

  return decorate


def rounding(x):
  """The relative precision of a result: that of the dtype, or of the sums inside."""
  return max(float(jnp.finfo(x.dtype).eps), 4e-7 if x.dtype != np.float64 else 1e-14)


def assert_near(got, want, size, x):
  """|got − want| is within rounding of the size of the terms that are summed."""
  got = np.asarray(got, np.float64)
  assert np.isfinite(want).all()
  assert np.isfinite(got).all()
  assert np.abs(got - want).max() <= 100 * rounding(x) * max(size, 1e-300)


def size_of_terms(p, h):
  """A bound of |φ|'s terms: scores, and the repulsion (2/h)‖x − y‖ k ≤ √(2/h)."""
  spread = np.abs(np.float64(p.x) - np.float64(p.x).mean(axis=0)).max()
  # k is wrong by as much as its exponent ‖x − y‖²/h is.
  return (np.abs(np.float64(p.s)).max() + np.sqrt(2 / h)) * (1 + spread**2 / h)


WIDTHS = st.sampled_from([0.3, 1.0, 20.0])
KINDS = st.sampled_from(["rbf", "imq", "constant", "features"])


def kernel_and_oracle(kind, h, d):
  """A kernel of bandwidth h for points of d numbers, and its NumPy double."""
  if kind == "constant":
    return kernels.constant(), oracles.constant()
  if kind == "imq":
    return kernels.imq(h), oracles.imq(h, -0.5)
  if kind == "rbf":
    return kernels.rbf(h), oracles.rbf(h)
  turn = np.cos(np.arange(2.0 * d)).reshape(2, d).astype(np.float32)
  kernel = kernels.on_features(kernels.rbf(h), jax.tree_util.Partial(_turned, turn))
  oracle = oracles.on_features(oracles.rbf(h), lambda x: turn @ x, lambda x: turn)
  return kernel, oracle


def _turned(matrix, x):
  return matrix.astype(x.dtype) @ x


# ------------------------------------------------------------------ Stein directions


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
@pytest.mark.parametrize("option", [None, "leave_one_out", "row_normalized"])
def test_direction(option, num_examples):
  options = {} if option is None else {option: True}

  @check(num_examples, points(smallest=1 + (option == "leave_one_out")), KINDS, WIDTHS)
  def at_these(p, kind, width):
    h = width * p.scale**2
    kernel, oracle = kernel_and_oracle(kind, h, p.x.shape[1])
    want = oracles.svgd_direction(p.x, p.s, *oracle, **options)
    got = svgd_direction(p.x, p.s, kernel, **options)
    assert got.dtype == p.x.dtype
    assert_near(got, want, size_of_terms(p, h), p.x)


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_direction_with_a_median_scales_with_the_points(num_examples):
  """φ(2ᵉx, 2⁻ᵉs) = 2⁻ᵉ φ(x, s) to the last bit: powers of two round nothing."""

  @check(
    num_examples,
    points(smallest=2, dtypes=[np.float32]),
    st.integers(-50, 50),
    st.sampled_from([kernels.rbf(), kernels.imq("authors")]),
    st.booleans(),
  )
  def at_these(p, exponent, kernel, leave_one_out):
    x, s = p.x / np.float32(p.scale), p.s * np.float32(p.scale)
    scale = np.float32(2.0**exponent)
    direction = Direction(kernel, leave_one_out=leave_one_out)
    small, large = direction(x, s), direction(x * scale, s / scale)
    assert np.isfinite(small).all()
    if np.ptp(x, axis=0).any():  # equal points have no scale: h is 1 for all
      np.testing.assert_array_equal(large, small / scale)


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_regularised_direction(num_examples):
  @check(num_examples, points(dtypes=[np.float32, np.float64]), WIDTHS)
  def at_these(p, width):
    h = width * p.scale**2
    x, s = np.float64(p.x), np.float64(p.s)
    matrix = oracles.matrix(x, x, *oracles.rbf(h))
    sums = len(x) * oracles.svgd_direction(x, s, *oracles.rbf(h))
    want = np.linalg.solve(matrix + 0.5 * np.eye(len(x)), sums)
    got = Direction(kernels.rbf(h), regularization=0.5)(p.x, p.s)
    assert_near(got, want, len(x) * size_of_terms(p, h), p.x)


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_kernel_off(num_examples):
  @check(num_examples, points())
  def at_these(p):
    np.testing.assert_array_equal(svgd_direction(p.x, p.s, None), p.s)


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
@pytest.mark.parametrize("statistic", ["V", "U"])
def test_ksd(statistic, num_examples):
  @check(num_examples, points(smallest=1 + (statistic == "U")), KINDS, WIDTHS)
  def at_these(p, kind, width):
    h = width * p.scale**2
    d = p.x.shape[1]
    kernel, oracle = kernel_and_oracle(kind, h, d)
    want = oracles.ksd_squared(p.x, p.s, *oracle, statistic=statistic)
    got = ksd_squared(p.x, p.s, kernel, statistic=statistic)
    size = d * size_of_terms(p, h) * (np.abs(np.float64(p.s)).max() + 2 * d / h**0.5)
    assert_near(got, want, size, p.x)


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_repulsion_share_is_a_share(num_examples):
  @check(num_examples, points(), KINDS, WIDTHS)
  def at_these(p, kind, width):
    kernel, _ = kernel_and_oracle(kind, width * p.scale**2, p.x.shape[1])
    phi = svgd_direction(p.x, p.s, kernel)
    share = float(repulsion_share(p.x, p.s, phi, kernel))
    assert 0 <= share <= 1


# -------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_median_bandwidth(num_examples):
  @check(
    num_examples,
    points(smallest=2, patterns=["normal", "repeated", "equal", "far clusters"]),
    st.sampled_from(["m", "none"]),
    st.booleans(),
  )
  def at_these(p, log, diagonal):
    got = kernels.median_bandwidth(p.x, log=log, diagonal=diagonal)
    want = oracles.median_bandwidth(np.float64(p.x), log=log, diagonal=diagonal)
    np.testing.assert_allclose(np.float64(got), want, rtol=1e5 * rounding(p.x) / 40)


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_sums_and_matrix_of_a_kernel(num_examples):
  @check(num_examples, points(), KINDS, WIDTHS)
  def at_these(p, kind, width):
    h = width * p.scale**2
    kernel, oracle = kernel_and_oracle(kind, h, p.x.shape[1])
    want = oracles.matrix(np.float64(p.x), np.float64(p.x), *oracle)
    size = size_of_terms(p, h) / size_of_terms(p._replace(x=0 * p.x), h)
    assert_near(kernel.matrix(p.x), want, size, p.x)
    weights = np.cos(np.arange(len(p.x)))[:, None].astype(p.x.dtype)
    sums = kernel.apply(p.x, None, weights)
    assert_near(sums, want @ np.float64(weights), len(p.x) * size, p.x)


# ------------------------------------------------------------- rules and their losses


def gaussian(params, x):
  """E(x) = ½ a ‖x − μ‖², of one point."""
  return 0.5 * params["a"] * jnp.square(x - params["mu"]).sum()


def gaussian_for(p):
  """Parameters of a Gaussian as wide as the points are."""
  dtype = jnp.promote_types(p.x.dtype, np.float32)
  mu = np.float64(p.x).mean(axis=0)
  return {"a": jnp.asarray(p.scale**-2, dtype), "mu": jnp.asarray(mu, dtype)}


def as_floats(params):
  return float(params["a"]), np.float64(params["mu"])


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_contrastive_and_score_matching_losses(num_examples):
  @check(num_examples, points(dtypes=[np.float32, np.float64]))
  def at_these(p):
    params = gaussian_for(p)
    a, mu = as_floats(params)
    x, d = np.float64(p.x), p.x.shape[1]
    squares = np.square(x - mu).sum(axis=1)
    negatives = p.x + p.x.dtype.type(p.scale)
    moved = np.square(np.float64(negatives) - mu).sum(axis=1)
    size = a * (squares.max() + moved.max()) + a * np.abs(x).max() * p.scale * 10
    got = contrastive_loss(params, gaussian, p.x, negatives)
    assert_near(got, 0.5 * a * (squares.mean() - moved.mean()), size, p.x)
    got = score_matching_loss(params, gaussian, p.x)
    want = 0.5 * a**2 * squares.mean() - a * d
    assert_near(got, want, a * (size + d), p.x)
    got = negative_log_likelihood(params, gaussian, p.x, lambda p: -jnp.log(p["a"]))
    assert_near(got, 0.5 * a * squares.mean() - np.log(a), size + 100, p.x)


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_stein_gradients_agree_as_they_must(num_examples):
  """With the kernel k = 1 and E = ½ a ‖x − μ‖², ∇_μ ½D² is known: a² (μ − x̄)."""

  @check(num_examples, points(dtypes=[np.float32, np.float64], exponents=25))
  def at_these(p):  # a² of the widest points is 1e-30
    params = gaussian_for(p)
    params["mu"] = params["mu"] + p.scale
    a, mu = as_floats(params)
    want = a**2 * (mu - np.float64(p.x).mean(axis=0))
    size = a**2 * (np.abs(mu).max() + np.abs(np.float64(p.x)).max())
    exact = stein_score_matching_gradient(params, gaussian, p.x, kernels.constant())
    assert_near(exact["mu"], want, size, p.x)
    options = {"step_size": p.scale**2}
    forward = stein_cd_gradient(params, gaussian, p.x, kernels.constant(), **options)
    assert_near(forward["mu"], want, size, p.x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((exact, forward)))


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
@pytest.mark.parametrize("sampler", ["langevin", "mala", "stein moves"])
def test_chains_stay_finite_and_keep_their_dtype(sampler, num_examples):
  @check(num_examples, points(), st.integers(0, 99))
  def at_these(p, seed):
    params = gaussian_for(p)
    step_size = 0.1 * p.scale**2
    key = jax.random.key(seed)
    if sampler == "stein moves":
      moved = stein_moves(
        params, gaussian, p.x, kernels.rbf(p.scale**2), step_size=step_size, num_steps=2
      )
    elif sampler == "langevin":
      score_fn = jax.tree_util.Partial(_gaussian_score, params)
      moved = samplers.langevin(key, p.x, score_fn, num_steps=2, step_size=step_size)
    else:
      log_density_fn = jax.tree_util.Partial(_gaussian_log_density, params)
      moved = samplers.mala(
        key, p.x, log_density_fn, num_steps=2, step_size=step_size
      ).particles
    assert moved.dtype == p.x.dtype
    far = np.abs(np.float64(moved) - np.float64(p.x)).max()
    spread = np.abs(np.float64(p.x) - np.float64(p.x).mean(axis=0)).max()
    assert (
      far
      <= 10 * (p.scale + spread) + 10 * rounding(p.x) * np.abs(np.float64(p.x)).max()
    )


def _gaussian_score(params, x):
  return -jax.grad(gaussian, argnums=1)(params, x)


def _gaussian_log_density(params, x):
  return -gaussian(params, x)


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_amortised_gradient(num_examples):
  """The generator x = ξ + w has the gradient −(1/m) Σᵢ φ(xᵢ)."""

  def generate_fn(params, stats, noise, context):
    del context
    return noise + params[None], stats

  @check(num_examples, points(dtypes=[np.float32, np.float64]), WIDTHS)
  def at_these(p, width):
    h = width * p.scale**2
    params = gaussian_for(p)
    a, mu = as_floats(params)
    score_fn = jax.tree_util.Partial(_gaussian_score, params)
    shift = jnp.zeros(p.x.shape[1], p.x.dtype)
    gradient, _ = amortized_svgd_gradient(
      shift, generate_fn, p.x, score_fn, kernels.rbf(h)
    )
    x = np.float64(p.x)
    s = -a * (x - mu)
    want = -oracles.svgd_direction(x, s, *oracles.rbf(h)).mean(axis=0)
    size = size_of_terms(p._replace(s=s), h) + a * np.abs(x).max()
    assert_near(gradient, want, size, p.x)


# ------------------------------------------------------------------ energies, scores


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_rbm(num_examples):
  rbm = GaussianBernoulliRBM(3)
  hidden = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, 8).T

  @check(
    num_examples,
    points(dtypes=[np.float32, np.float64]),
    st.integers(0, 99),
    st.sampled_from([1e-15, 1.0, 30.0]),
  )
  def at_these(p, seed, size_of_weights):
    x = p.x / p.x.dtype.type(p.scale)  # the RBM's own unit is 1
    d = x.shape[1]
    rng = np.random.default_rng(seed)
    shapes = {"B": (d, 3), "b": (d,), "c": (3,)}
    drawn = {k: size_of_weights * rng.normal(size=v) for k, v in shapes.items()}
    params = {"params": {k: v.astype(x.dtype) for k, v in drawn.items()}}
    B, b, c = (np.float64(params["params"][k]) for k in shapes)
    y = np.float64(x)

    pre = y @ B + c
    energy = 0.5 * np.square(y).sum(1) - y @ b - np.logaddexp(pre, -pre).sum(1)
    means = hidden @ B.T + b
    exponents = 0.5 * np.square(means).sum(1) + hidden @ c
    log_z = 0.5 * d * np.log(2 * np.pi) + scipy.special.logsumexp(exponents)
    score = b - y + np.tanh(pre) @ B.T
    size = np.square(y).sum(1).max() + np.abs(y @ b).max() + np.abs(pre).sum(1).max()
    size += np.abs(exponents).max() + d

    assert_near(rbm.log_likelihood(params, x), -energy - log_z, size, x)
    found = jax.vmap(lambda x: rbm.score(params, x))(x)
    size_of_score = np.abs(y).max() + d * (np.abs(B).max() * 4 + np.abs(b).max())
    size_of_score += np.abs(B).max() * np.abs(pre).max()  # of the tanh's argument
    assert_near(found, score, size_of_score, x)
    assert_near(scores(params, rbm.apply, x), score, size_of_score, x)
    samples = np.float64(rbm.sample(jax.random.key(seed), params, 5))
    assert (np.abs(samples) <= np.abs(means).max() + 10).all()


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_mlp_has_finite_energies_and_scores(num_examples):
  mlp = MLP((4, 4))

  @check(num_examples, points(), st.integers(0, 9))
  def at_these(p, seed):
    params = mlp.init(jax.random.key(seed), jnp.asarray(p.x[0]))
    assert np.isfinite(contrastive_loss(params, mlp.apply, p.x, p.x[:1]))
    assert np.isfinite(np.float64(scores(params, mlp.apply, p.x))).all()


# ------------------------------------------------------------------ scores of samples


@pytest.mark.parametrize("num_examples", NUM_EXAMPLES)
def test_scores_of_samples(num_examples):
  @check(num_examples, points(smallest=3))
  def at_these(p):
    options = {"num_blocks": None}
    same = p.x[::-1]
    size = np.square(np.abs(np.float64(p.x)).max())
    distance = evaluation.frechet_distance(p.x, same, **options).value
    assert abs(distance) <= 1e-6 * size
    assert 0 <= evaluation.mean_pairwise_distance(p.x, **options).value < np.inf
    assert np.isfinite(evaluation.kernel_inception_distance(p.x, same, **options).value)
    precision, recall = evaluation.precision_and_recall(p.x, same, num_neighbors=1)
    assert precision == recall == 1
    p_labels = scipy.special.softmax(np.float64(p.x), axis=1)
    score = evaluation.inception_score(p_labels, **options).value
    assert 1 - 1e-9 <= score <= p.x.shape[1] + 1e-9
    entropy = evaluation.label_entropy(p_labels, **options).value
    assert -1e-9 <= entropy <= np.log(p.x.shape[1]) + 1e-9
