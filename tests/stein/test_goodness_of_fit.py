"""Stein tests of fit: double loops in NumPy, level, power, chains, devices."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from stein_jax import (
  Direction,
  densities,
  fssd_test,
  kernels,
  ksd_aggregated_test,
  ksd_squared,
  ksd_test,
)
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.stein.goodness_of_fit import _gaussian_locations, _signs
from tests import oracles
from tests.devices import SAME, SHARDED, WAYS, on_devices
from tests.kernels.cases import KERNELS, points

KEY = jax.random.key(3)


def rbm_density(d=3, num_hidden=2):
  rng = np.random.default_rng(0)
  rbm = GaussianBernoulliRBM(num_hidden)
  shapes = {"B": (d, num_hidden), "b": (d,), "c": (num_hidden,)}
  params = {name: jnp.asarray(rng.normal(size=s), float) for name, s in shapes.items()}
  return densities.of_rbm(rbm, {"params": params})


def numpy_test(x, s, signs, k, grad_k):
  """The statistic, all of the null, and the p-value, by a double loop."""
  n, num = signs.shape
  statistic, null = 0.0, np.zeros(num)
  for i in range(n):
    for j in range(n):
      if i != j:
        u = oracles.stein_kernel(x[i], s[i], x[j], s[j], k, grad_k) / (n - 1)
        statistic += u
        null += signs[i] * signs[j] * u
  return statistic, (1 + sum(null >= statistic)) / (1 + num), null


def assert_level(p_values, level=0.05):
  """How often a test rejects is binomial with the level, at most once in 10 000."""
  rejected, repeats = int((p_values <= level).sum()), len(p_values)
  low, high = stats.binom.interval(1 - 1e-4, repeats, level)
  assert low <= rejected <= high, f"{rejected} of {repeats}"


# ------------------------------------------------------- against the double loop


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("block_size", "flip_probability"), [(None, 0.5), (3, 0.2)])
@pytest.mark.parametrize("name", KERNELS)
def test_ksd_test_equals_the_double_loop(name, block_size, flip_probability):
  kernel, oracle = KERNELS[name]
  x, s = points(7, 2)
  got = ksd_test(
    KEY,
    x,
    s,
    Direction(kernel, block_size=block_size),
    num_bootstrap=20,
    flip_probability=flip_probability,
  )
  signs = np.asarray(_signs(KEY, 7, 20, flip_probability)).astype(float)
  want = numpy_test(x, s, signs, *oracle)
  chex.assert_trees_all_close(tuple(got), want, rtol=1e-9, atol=1e-12)
  u = 7 * ksd_squared(x, s, kernel, statistic="U")
  np.testing.assert_allclose(got.statistic, u, rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["rbf", "imq", "not radial"])
def test_weighted_sums_of_a_kernel(name):
  # Weights that are no signs, of queries that are not the sources.
  kernel, oracle = KERNELS[name]
  (x, s), (y, r) = points(5, 2), points(6, 2, seed=1)
  x, s = np.concatenate([x, y[:1]]), np.concatenate([s, r[:1]])
  v, w = np.random.default_rng(2).normal(size=(2, 6, 3))
  # The source of a query's own index counts as the query itself.
  got = kernel.stein_kernel_sums(x, s, x, s, weights=v, source_weights=v)
  u = np.array(
    [
      [oracles.stein_kernel(x[i], s[i], x[j], s[j], *oracle) for j in range(6)]
      for i in range(6)
    ]
  )
  itself = np.diag(np.diag(u))
  want = [np.einsum("ib,ij,jb->b", v, m, v) for m in (u - itself, itself)]
  chex.assert_trees_all_close(list(got), want, rtol=1e-10)
  alone = kernel.stein_kernel_sums(x, s, weights=v)
  chex.assert_trees_all_close(list(alone), want, rtol=1e-10)
  # With other weights of the sources, the sum is not symmetric.
  got, _ = kernel.stein_kernel_sums(x, s, x, s, weights=v, source_weights=w)
  want = np.einsum("ib,ij,jb->b", v, u - itself, w)
  np.testing.assert_allclose(got, want, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_the_v_statistic_has_the_same_p_value():
  x, s = points(9, 2)
  k, grad_k = oracles.rbf(1.7)
  u = [
    [oracles.stein_kernel(x[i], s[i], x[j], s[j], k, grad_k) for j in range(9)]
    for i in range(9)
  ]
  signs = np.asarray(_signs(KEY, 9, 99, 0.5)).astype(float)
  null = np.einsum("ib,ij,jb->b", signs, u, signs)
  p_value = ksd_test(KEY, x, s, kernels.rbf(1.7), num_bootstrap=99).p_value
  assert p_value == pytest.approx((1 + sum(null >= np.sum(u))) / 100)


def test_signs_are_the_same_in_both_precisions():
  want = _signs(KEY, 50, 20, 0.3)
  with jax.enable_x64(True):
    np.testing.assert_array_equal(_signs(KEY, 50, 20, 0.3), want)


def test_in_float32_with_the_default_kernel():
  x, s = points(30, 4)
  kernel = oracles.imq(oracles.median_bandwidth(x), -0.5)
  x, s = x.astype(np.float32), s.astype(np.float32)
  got = ksd_test(KEY, x, s, num_bootstrap=10)
  want = numpy_test(x, s, np.asarray(_signs(KEY, 30, 10, 0.5)).astype(float), *kernel)
  assert all(leaf.dtype == jnp.float32 for leaf in got)
  chex.assert_trees_all_close(tuple(got), want, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("x64")
def test_a_pytree_is_tested_as_its_concatenation():
  x, s = points(8, 3)

  def tree(flat):
    return {"a": flat[:, :2].reshape(8, 2, 1), "b": flat[:, 2]}

  want = ksd_test(KEY, x, s, kernels.rbf(1.3), num_bootstrap=9)
  got = ksd_test(KEY, tree(x), tree(s), kernels.rbf(1.3), num_bootstrap=9)
  chex.assert_trees_all_close(got, want, rtol=1e-10)


def test_no_matrix_of_all_pairs_is_held():
  x = jax.ShapeDtypeStruct((2000, 2), jnp.float32)
  for kernel in (kernels.imq(1.0), KERNELS["not radial"][0]):
    trace = str(
      jax.make_jaxpr(lambda x, k=kernel: ksd_test(KEY, x, x, k, num_bootstrap=10))(x)
    )
    assert "2000,2000" not in trace


def test_particles_that_are_not_finite_have_no_p_value():
  x = np.ones((4, 2), np.float32) * np.nan
  assert np.isnan(ksd_test(KEY, x, x, kernels.imq(1.0), num_bootstrap=9).p_value)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["imq", "not radial", "on features"])
@pytest.mark.parametrize("n", [4, 9])  # fewer and more than the dJ = 6 features
def test_fssd_test_is_that_of_numpy(name, n):
  kernel, (k, grad_k) = KERNELS[name]
  x, s = points(n, 2)
  v = points(3, 2, seed=1)[0]
  got = fssd_test(KEY, x, s, kernel, locations=v, num_simulations=15)
  xi = [[k(a, b) * s_a + grad_k(a, b) for b in v] for a, s_a in zip(x, s)]
  tau = np.reshape(xi, (n, 6)) / np.sqrt(6)
  pairs = sum(tau[i] @ tau[j] for i in range(n) for j in range(n) if i != j)
  covariance = np.cov(tau.T, bias=True)
  null_keys = jax.random.split(jax.random.split(KEY)[1], 15)
  e = np.array([jax.random.normal(key, (n,), float) for key in null_keys])
  g = e @ (tau - tau.mean(axis=0)) / np.sqrt(n)
  null = (g**2).sum(axis=1) - np.trace(covariance)
  statistic = pairs / (n - 1)
  want = statistic, (1 + sum(null >= statistic)) / 16, null
  chex.assert_trees_all_close(tuple(got), want, rtol=1e-8, atol=1e-12)


def test_the_null_of_fssd_is_a_weighted_sum_of_chi_squares():
  x, s = points(30, 2).astype(np.float32)
  v = x[:2] + 0.5
  num = 20_000
  got = fssd_test(KEY, x, s, kernels.rbf(1.7), locations=v, num_simulations=num).null
  k, grad_k = oracles.rbf(1.7)
  xi = [
    [k(x[i], v[j]) * s[i] + grad_k(x[i], v[j]) for j in range(2)] for i in range(30)
  ]
  tau = np.reshape(xi, (30, 4)) / np.sqrt(4)
  eigenvalues = np.linalg.eigvalsh(np.cov(tau.T, bias=True))
  z = np.random.default_rng(0).normal(size=(num, 4))
  want = (z**2 - 1) @ eigenvalues
  assert stats.ks_2samp(np.asarray(got), want).pvalue > 0.01


def test_locations_have_the_mean_and_the_covariance_of_the_particles():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 3)) + 5
  drawn = np.asarray(_gaussian_locations(KEY, jnp.asarray(x, float), 20_000))
  np.testing.assert_allclose(drawn.mean(axis=0), x.mean(axis=0), atol=0.1)
  np.testing.assert_allclose(np.cov(drawn.T), np.cov(x.T), rtol=0.1, atol=0.1)


@pytest.mark.usefixtures("x64")
def test_ksd_aggregated_test_is_that_of_numpy():
  x, s = points(8, 2)
  cases = [KERNELS["imq"], KERNELS["rbf"], (kernels.imq(0.1), oracles.imq(0.1, -0.5))]
  got = ksd_aggregated_test(
    KEY, x, s, [kernel for kernel, _ in cases], num_bootstrap=12
  )
  signs = np.asarray(_signs(KEY, 8, 24, 0.5)).astype(float)
  smallest = np.ones(13)  # of the particles, then of the second half of the signs
  for _, oracle in cases:
    statistic, _, null = numpy_test(x, s, signs, *oracle)
    for b, t in enumerate([statistic, *null[12:]]):
      smallest[b] = min(smallest[b], (1 + sum(null[:12] >= t)) / 13)
  p_value = (1 + sum(smallest[1:] <= smallest[0])) / 13
  want = -np.log(smallest[0]), p_value, -np.log(smallest[1:])
  chex.assert_trees_all_close(tuple(got), want, rtol=1e-9, atol=1e-12)


def test_the_default_kernels_are_multiples_of_the_median():
  x, s = points(20, 3).astype(np.float32)
  median = np.median(oracles.pair_distances(x))
  multiples = (1 / 16, 1 / 4, 1, 4, 16)
  chosen = [kernels.imq(float(median**2 * multiple)) for multiple in multiples]
  got = ksd_aggregated_test(KEY, x, s, num_bootstrap=20)
  want = ksd_aggregated_test(KEY, x, s, chosen, num_bootstrap=20)
  chex.assert_trees_all_close(got, want, rtol=1e-5)


# ------------------------------------------------------------------------- signs


def test_signs_are_random_and_flip_as_often_as_asked():
  for probability in (0.5, 0.1, 1.0):
    signs = np.asarray(_signs(KEY, 2000, 50, probability)).astype(int)
    assert signs.dtype == int
    assert set(np.unique(signs)) == {-1, 1}
    flips = (signs[1:] != signs[:-1]).mean()
    error = 4 * np.sqrt(probability * (1 - probability) / signs[1:].size)
    assert abs(flips - probability) <= error
  first = np.asarray(_signs(KEY, 1, 4000, 0.01))
  assert abs(first.mean(dtype=float)) < 4 / np.sqrt(4000)


def test_vectors_of_independent_signs_are_uncorrelated():
  signs = np.asarray(_signs(KEY, 3000, 30, 0.5)).astype(float)
  off = np.corrcoef(signs.T) - np.eye(30)
  assert np.abs(off).max() < 5 / np.sqrt(3000)


# ---------------------------------------------------------------- level and power


def p_values_of(
  density, repeats, n, *, shift=0.0, test=ksd_test, samples_of=None, **options
):
  """The p-values of exact samples of the density or another, moved by `shift`."""
  samples_of = density if samples_of is None else samples_of
  size = "num_simulations" if test is fssd_test else "num_bootstrap"
  options = {size: 199} | options

  @jax.jit
  def one(key):
    sample_key, test_key = jax.random.split(key)
    x = samples_of.sample(sample_key, n) + shift
    return test(test_key, x, jax.vmap(density.score)(x), **options).p_value

  return np.asarray(jax.lax.map(one, jax.random.split(KEY, repeats)))


TESTS = (ksd_test, fssd_test, ksd_aggregated_test)


@pytest.mark.parametrize("test", TESTS)
def test_the_level_is_kept(test):
  assert_level(p_values_of(rbm_density(), 150, 100, test=test))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [kernels.imq(), kernels.rbf()], ids=["imq", "rbf"])
@pytest.mark.parametrize("n", [50, 100, 200])
def test_the_level_is_kept_in_many_repeats(n, kernel):
  p_values = p_values_of(rbm_density(), 1000, n, kernel=kernel)
  assert_level(p_values)
  assert_level(p_values, level=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("test", [fssd_test, ksd_aggregated_test])
@pytest.mark.parametrize("n", [50, 200])
def test_the_level_of_the_other_tests_in_many_repeats(n, test):
  p_values = p_values_of(rbm_density(), 1000, n, test=test)
  assert_level(p_values)
  assert_level(p_values, level=0.2)


@pytest.mark.parametrize("test", TESTS)
def test_power_against_a_shift(test):
  p_values = p_values_of(rbm_density(), 20, 100, shift=0.5, test=test)
  assert (p_values <= 0.05).mean() > 0.9


@pytest.mark.slow
def test_several_kernels_see_what_a_wrong_bandwidth_does_not():
  # A kernel of a length of 1/1000 is a delta: it sees each particle alone.
  truth, other = densities.gaussian([0.0, 0.0]), densities.gaussian([0.5, 0.0])
  small = [kernels.imq(1e-6)]
  options = {"samples_of": other, "test": ksd_aggregated_test}
  alone = p_values_of(truth, 30, 100, kernels=small, **options)
  both = p_values_of(truth, 30, 100, kernels=[*small, kernels.imq()], **options)
  assert (alone <= 0.05).mean() < 0.5 < 0.9 < (both <= 0.05).mean()


@pytest.mark.slow
def test_power_against_a_perturbed_rbm():
  rbm = GaussianBernoulliRBM(2)
  rng = np.random.default_rng(4)
  params = {"B": rng.normal(size=(5, 2)), "b": rng.normal(size=5), "c": np.zeros(2)}
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
  moved = params | {"B": params["B"] + 0.8 * rng.normal(size=(5, 2)).astype("float32")}
  truth, other = (densities.of_rbm(rbm, {"params": p}) for p in (params, moved))
  x = truth.sample(KEY, 300)
  assert ksd_test(KEY, x, jax.vmap(truth.score)(x), num_bootstrap=199).p_value > 0.05
  assert ksd_test(KEY, x, jax.vmap(other.score)(x), num_bootstrap=199).p_value < 0.01


def test_the_weights_of_separated_modes_are_not_seen():
  # What the docstring says that no test by scores can see.
  density, other = (
    densities.two_modes(2, weights=weights, separation=20.0)
    for weights in ((0.25, 0.75), (0.75, 0.25))
  )
  options = {"kernel": kernels.imq(1.0), "samples_of": other}
  assert_level(p_values_of(density, 100, 100, **options))


@pytest.mark.slow
def test_signs_of_a_chain_keep_the_level():
  # x' = ρx + √(1−ρ²) z leaves N(0, 1) invariant; its autocorrelation time is 9.
  rho, n = 0.8, 500

  @jax.jit
  def p_values(key):
    noise_key, test_key = jax.random.split(key)
    z = jax.random.normal(noise_key, (n, 1))

    def step(x, z):
      x = rho * x + jnp.sqrt(1 - rho**2) * z
      return x, x

    _, chain = jax.lax.scan(step, z[0], z)
    test = partial(ksd_test, test_key, chain, -chain, num_bootstrap=199)
    return jnp.stack([test(flip_probability=p).p_value for p in (0.5, 0.02)])

  found = np.asarray(jax.lax.map(p_values, jax.random.split(KEY, 100)))
  assert (found[:, 0] <= 0.05).mean() > 0.3
  assert_level(found[:, 1])


# ----------------------------------------------------------------------- devices


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("exchange", ["all_gather", "ring"])
@pytest.mark.parametrize("name", ["imq", "on features"])
@pytest.mark.parametrize(("how", "size"), list(zip(WAYS, (3, 2))))
def test_many_devices_give_what_one_gives(how, name, exchange, size):
  x, s = points(12, 2)
  options = {"num_bootstrap": 11, "flip_probability": 0.3}
  kernel = KERNELS[name][0]
  want = ksd_test(KEY, x, s, kernel, **options)

  def body(key, x, s):
    direction = Direction(kernel, exchange=exchange, block_size=3)
    return ksd_test(key, x, s, direction, axis_name="i", **options)

  specs = (SAME, SHARDED, SHARDED)
  got = on_devices(how, body, (KEY, x, s), specs, SAME, size=size)
  chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_several_kernels_on_many_devices():
  x, s = points(12, 2)
  want = ksd_aggregated_test(KEY, x, s, num_bootstrap=11)
  test = partial(ksd_aggregated_test, num_bootstrap=11, axis_name="i")
  specs = (SAME, SHARDED, SHARDED)
  got = on_devices("shard_map", test, (KEY, x, s), specs, SAME, size=4)
  chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_default_kernel_in_a_ring():
  x, s = points(12, 2)
  want = ksd_test(KEY, x, s, num_bootstrap=11)

  def body(key, x, s):
    direction = Direction(kernels.imq(), exchange="ring")
    return ksd_test(key, x, s, direction, num_bootstrap=11, axis_name="i")

  specs = (SAME, SHARDED, SHARDED)
  got = on_devices("shard_map", body, (KEY, x, s), specs, SAME, size=4)
  chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------- bad usage

X = np.zeros((4, 2), np.float32)

BAD = {
  "no signs": (ValueError, "num_bootstrap must be an integer", {"num_bootstrap": 0}),
  "half a sign": (ValueError, "num_bootstrap must be", {"num_bootstrap": 1.5}),
  "no flips": (ValueError, "flip_probability must lie in", {"flip_probability": 0}),
  "too many flips": (ValueError, "got 1.5", {"flip_probability": 1.5}),
  "nan flips": (
    ValueError,
    "flip_probability must lie in",
    {"flip_probability": np.nan},
  ),
  "shapes": (ValueError, "must have the same shape", {"scores": X[:, :1]}),
  "one": (ValueError, "at least 2 particles", {"particles": X[:1], "scores": X[:1]}),
  "integers": (TypeError, "floating-point", {"particles": X.astype(int)}),
  "kernel": (TypeError, "kernel must be", {"kernel": "rbf"}),
  "kernel off": (ValueError, "needs a kernel", {"kernel": Direction(None)}),
  "row-normalised": (
    ValueError,
    "no meaning for a direction with row_normalized",
    {"kernel": Direction(kernels.rbf(), row_normalized=True)},
  ),
  "exchange": (
    ValueError,
    "needs axis_name",
    {"kernel": Direction(kernels.rbf(), exchange="ring")},
  ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_usage_of_ksd_test(name):
  error, message, options = BAD[name]
  good = {"particles": X, "scores": X, "kernel": kernels.rbf(1.0)}
  with pytest.raises(error, match=message):
    ksd_test(KEY, **(good | options))


BAD_OF_OTHERS = {
  "no locations": (fssd_test, "num_locations must be", {"num_locations": 0}),
  "no draws": (fssd_test, "num_simulations must be", {"num_simulations": -1}),
  "locations": (fssd_test, "particles and one of locations", {"locations": X[:, :1]}),
  "none": (fssd_test, "at least one point, got none", {"locations": X[:0]}),
  "kernel": (fssd_test, "fssd_test needs a kernel", {"kernel": Direction(None)}),
  "one": (fssd_test, "fssd_test needs at least 2", {"particles": X[:1]}),
  "no kernels": (ksd_aggregated_test, "at least one kernel", {"kernels": []}),
  "no list": (ksd_aggregated_test, "must be a list", {"kernels": kernels.rbf()}),
  "one of several": (ksd_aggregated_test, "needs a kernel", {"kernels": [None]}),
  "no signs": (ksd_aggregated_test, "num_bootstrap must be", {"num_bootstrap": 0}),
}


@pytest.mark.parametrize("name", BAD_OF_OTHERS)
def test_bad_usage_of_the_other_tests(name):
  test, message, options = BAD_OF_OTHERS[name]
  arguments = {"particles": X} | options
  with pytest.raises(ValueError, match=message):
    test(KEY, scores=arguments["particles"], **arguments)
