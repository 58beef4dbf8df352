"""The kernelised Stein discrepancy: double loop, Stein's identity, unbiasedness."""

from functools import partial

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stein_jax import Direction, kernels, ksd_squared, svgd_direction
from tests import oracles
from tests.kernels.cases import KERNELS, points

# ------------------------------------------------------- against the double loop


def test_more_pairs_than_int32_counts():
  points = jax.ShapeDtypeStruct((100_000, 1), jnp.float32)
  for statistic in ("U", "V"):
    for kernel in (kernels.rbf(), kernels.from_pairwise(lambda x, y: (x * y).sum())):
      found = jax.eval_shape(
        lambda x, k=kernel, s=statistic: ksd_squared(x, x, k, statistic=s), points
      )
      assert found.shape == ()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("statistic", "block_size"), [("V", None), ("U", 3)])
@pytest.mark.parametrize("name", KERNELS)
def test_ksd_equals_the_double_loop(name, statistic, block_size):
  kernel, oracle = KERNELS[name]
  x, s = points(7, 2)
  direction = Direction(kernel, block_size=block_size)
  got = ksd_squared(x, s, direction, statistic=statistic)
  assert got.shape == ()
  want = oracles.ksd_squared(x, s, *oracle, statistic)
  np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (4, 2, 2, 1)])
@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_ksd_in_float32_and_any_shape(name, shape):
  kernel, oracle = KERNELS[name]
  x, s = points(*shape).astype(np.float32)
  got = ksd_squared(x, s, kernel)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, oracles.ksd_squared(x, s, *oracle), rtol=1e-4)


def test_ksd_far_from_the_origin_is_accurate():
  x, s = points(20, 3)
  x, s = (x + 1e3).astype(np.float32), s.astype(np.float32)
  want = oracles.ksd_squared(x, s, *oracles.rbf(3.0))
  np.testing.assert_allclose(ksd_squared(x, s, kernels.rbf(3.0)), want, rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_ksd_with_the_median_bandwidth():
  x, s = points(7, 3)
  oracle = oracles.rbf(oracles.median_bandwidth(x))
  got = ksd_squared(x, s, kernels.rbf())
  np.testing.assert_allclose(got, oracles.ksd_squared(x, s, *oracle))


@pytest.mark.usefixtures("x64")
def test_ksd_of_a_pytree_is_that_of_its_concatenation():
  flat_x, flat_s = points(6, 5)

  def tree(flat):
    return {"a": flat[:, :4].reshape(6, 2, 2), "b": flat[:, 4]}

  def k(y, x):
    return jnp.exp(-jnp.sum((y["a"] - x["a"]) ** 2)) * jnp.cos(y["b"] - x["b"])

  def flat_k(y, x):
    return jnp.exp(-jnp.sum((y[:4] - x[:4]) ** 2)) * jnp.cos(y[4] - x[4])

  x, s = tree(flat_x), tree(flat_s)
  want = oracles.ksd_squared(flat_x, flat_s, *oracles.rbf(1.7))
  np.testing.assert_allclose(ksd_squared(x, s, kernels.rbf(1.7)), want)
  want = ksd_squared(flat_x, flat_s, kernels.from_pairwise(flat_k))
  np.testing.assert_allclose(ksd_squared(x, s, kernels.from_pairwise(k)), want)


# -------------------------------------------------- its relation to the direction


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["imq", "on features"])
def test_v_statistic_is_the_mean_stein_operator_of_the_direction(name):
  # D² = E_q[𝒯_p φ*] = mean_i [sᵢᵀφ(xᵢ) + ∇·φ(xᵢ)], φ a function of a free x.
  kernel, _ = KERNELS[name]
  x, s = points(6, 2)

  def phi(query):
    return kernel.stein_sums(query[None], x, s)[0][0] / 6

  divergence = jax.jit(jax.vmap(lambda q: jnp.trace(jax.jacfwd(phi)(q))))(x)
  attraction = (s * np.asarray(svgd_direction(x, s, kernel))).sum(axis=1)
  want = np.mean(attraction + np.asarray(divergence))
  np.testing.assert_allclose(ksd_squared(x, s, kernel), want, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_u_leaves_out_the_pairs_of_a_particle_with_itself():
  # u_p(x, x) = ‖s‖² + 2d/h for the RBF kernel.
  x, s = points(7, 3)
  v = ksd_squared(x, s, kernels.rbf(1.7), statistic="V")
  u = ksd_squared(x, s, kernels.rbf(1.7), statistic="U")
  of_itself = np.sum(s**2, axis=1) + 2 * 3 / 1.7
  np.testing.assert_allclose(v, 6 / 7 * u + of_itself.mean() / 7, rtol=1e-12)


# ---------------------------------------------------------------- Stein's identity

CENTRES = np.array([[-1.5, 0.0], [1.5, 1.0]])


def mixture_score(x):
  """∇ log of ½N(c₁, I) + ½N(c₂, I)."""

  def log_density(x):
    return jax.nn.logsumexp(-jnp.sum((x[None] - CENTRES) ** 2, 1) / 2)

  return jax.grad(log_density)(x)


def gaussian_score(x):
  return -x


def samples(name, seeds, n):
  rng = np.random.default_rng(7)
  x = rng.normal(size=(seeds, n, 2))
  if name == "mixture":
    x += CENTRES[rng.integers(2, size=(seeds, n))]
  return x


@partial(jax.jit, static_argnums=(1, 3))
def statistics(x, score_fn, kernel, statistic):
  """D² of every set of particles [seeds, n, d]."""
  return jax.vmap(
    lambda x: ksd_squared(x, jax.vmap(score_fn)(x), kernel, statistic=statistic)
  )(x)


TARGETS = {
  "gaussian": (gaussian_score, kernels.rbf(2.0)),
  "mixture": (mixture_score, kernels.imq(1.0)),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", TARGETS)
def test_stein_identity_on_exact_samples(name):
  # E[U] = 0 when q = p, and U shrinks like 1/n; for shifted samples it does not.
  score_fn, kernel = TARGETS[name]
  few = statistics(samples(name, 200, 25), score_fn, kernel, "U")
  many = statistics(samples(name, 50, 200), score_fn, kernel, "U")
  for u in (few, many):
    assert abs(u.mean()) < 4 * u.std() / np.sqrt(len(u))
  assert many.std() < few.std() / 5  # 1/8 expected, 1/√8 = 0.35 would be slower
  shifted = statistics(samples(name, 50, 200) + 0.5, score_fn, kernel, "U")
  assert shifted.min() > abs(many).max()
  assert shifted.mean() > 8 * many.std()


@pytest.mark.usefixtures("x64")
def test_u_is_unbiased_and_v_is_not():
  # D² = E_{x,y~q}[(s_p − s_q)(x)ᵀ k(x, y) (s_p − s_q)(y)]; for q = N(1, 1) and
  # p = N(0, 1) the difference is −1 everywhere, so D² = E exp(−z²/h), z ~ N(0, 2).
  h, n = 2.0, 10
  want = 1 / np.sqrt(1 + 4 / h)
  x = np.random.default_rng(3).normal(size=(4000, n, 1)) + 1
  u = statistics(x, gaussian_score, kernels.rbf(h), "U")
  v = statistics(x, gaussian_score, kernels.rbf(h), "V")
  error = u.std() / np.sqrt(len(u))
  assert abs(u.mean() - want) < 4 * error
  bias = (np.mean(x**2) + 2 / h - want) / n  # the mean of u_p(x, x), less D², over n
  assert abs(v.mean() - want - bias) < 4 * error
  assert bias > 20 * error


coordinates = st.floats(-100, 100, width=32)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
  x=hnp.arrays(np.float32, (5, 2), elements=coordinates),
  s=hnp.arrays(np.float32, (5, 2), elements=coordinates),
  h=st.floats(0.0625, 1000, width=32),
)
def test_v_is_never_negative(x, s, h):
  with jax.enable_x64(True):
    x, s = x.astype(np.float64), s.astype(np.float64)
    rounding = 1e-9 * (1 + np.sum(s**2) + np.sum(x**2) / h**2)
    for kernel in (kernels.rbf(h), kernels.imq(h)):
      assert ksd_squared(x, s, kernel) >= -rounding


@pytest.mark.parametrize("value", [0.1, 1234.5])
@pytest.mark.parametrize("d", [1, 784])
def test_equal_particles_have_the_discrepancy_of_one(d, value):
  # For all pairs u_p(x, y) = sₓᵀs_y + 2d/h.
  x = np.full((9, d), value, np.float32)
  s = points(9, d)[1].astype(np.float32)
  h = float(kernels.median_bandwidth(x))
  want = np.sum(s.mean(axis=0, dtype=np.float64) ** 2) + 2 * d / h
  np.testing.assert_allclose(ksd_squared(x, s, kernels.rbf()), want, rtol=1e-4)


# ------------------------------------------------------------------- transforms


@pytest.mark.usefixtures("x64")
def test_ksd_is_differentiable_in_the_scores():
  # ∂/∂sᵢ ½D² = φ(xᵢ)/n: what makes (15) the gradient of half the V-statistic.
  x, s = points(6, 2)
  kernel = kernels.rbf(1.7)
  gradient = jax.grad(lambda s: ksd_squared(x, s, kernel) / 2)(s)
  np.testing.assert_allclose(gradient, svgd_direction(x, s, kernel) / 6, rtol=1e-10)


def test_eager_calls_of_equal_shapes_are_compiled_once():
  x, s = points(5, 2).astype(np.float32)
  ksd_squared(x, s, kernels.imq(1.0))
  with jax.no_tracing():
    ksd_squared(x + 1, 2 * s, kernels.imq(3.0))


@pytest.mark.parametrize("name", ["not radial", "on features"])
def test_rows_of_a_differentiated_kernel_are_computed_one_by_one(name):
  # A row holds d derivatives of n points: all rows at once would be n²d² numbers.
  x = jax.ShapeDtypeStruct((200, 2), jnp.float32)
  trace = str(jax.make_jaxpr(lambda x: ksd_squared(x, x, KERNELS[name][0]))(x))
  assert "scan" in trace
  assert "200,200" not in trace


def test_particles_and_scores_of_two_precisions():
  x = np.random.default_rng(3).normal(size=(9, 2)).astype(np.float32)
  for narrow in (jnp.bfloat16, jnp.float16):
    direction = Direction(kernels.rbf(1.3), block_size=4)
    got = ksd_squared(jnp.asarray(x, narrow), -x, direction)
    want = ksd_squared(jnp.asarray(x, narrow).astype(jnp.float32), -x, kernels.rbf(1.3))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)
