"""Stein thinning: a greedy search in NumPy, chains, and the regularised variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax import Direction, densities, kernels, ksd_squared, stein_thinning
from tests import oracles
from tests.kernels.cases import KERNELS, points

KEY = jax.random.key(1)


def numpy_thinning(x, s, oracle, num_points, log_density=None, laplacian=None):
  """The greedy choice, each time by D² of all points chosen and one more."""
  n = len(x)
  log_density = np.zeros(n) if log_density is None else log_density
  laplacian = np.zeros(n) if laplacian is None else laplacian
  u = np.array(
    [
      [oracles.stein_kernel(x[i], s[i], x[j], s[j], *oracle) for j in range(n)]
      for i in range(n)
    ]
  )
  chosen = []
  for t in range(1, num_points + 1):
    values = []
    for i in range(n):
      some = [*chosen, i]
      total = sum(u[a, b] for a in some for b in some)
      values.append(total + laplacian[i] - t / num_points * log_density[i])
    chosen.append(int(np.argmin(values)))
  return chosen


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["rbf", "imq", "not radial", "on features"])
def test_the_choice_is_that_of_a_greedy_search(name):
  kernel, oracle = KERNELS[name]
  x, s = points(10, 2)
  got = stein_thinning(x, s, kernel, 14)
  assert got.tolist() == numpy_thinning(x, s, oracle, 14)
  assert len(set(got.tolist())) > 3


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("also", ["log_density", "laplacian", "both"])
def test_the_regularised_choice_is_that_of_a_greedy_search(also):
  kernel, oracle = KERNELS["imq"]
  x, s = points(10, 2)
  terms = dict(zip(("log_density", "laplacian"), points(10, seed=2)))
  terms = {name: 5 * v for name, v in terms.items() if also in (name, "both")}
  got = stein_thinning(x, s, kernel, 8, **terms).tolist()
  assert got == numpy_thinning(x, s, oracle, 8, **terms)
  assert got != numpy_thinning(x, s, oracle, 8)


@pytest.mark.usefixtures("x64")
def test_the_median_bandwidth_a_pytree_and_the_default_kernel():
  x, s = points(12, 3)
  want = numpy_thinning(x, s, oracles.imq(oracles.median_bandwidth(x), -0.5), 6)

  def tree(flat):
    return {"a": flat[:, :2].reshape(12, 1, 2), "b": flat[:, 2]}

  assert stein_thinning(tree(x), tree(s), None, 6).tolist() == want
  assert stein_thinning(x, s, Direction(kernels.imq()), 6).tolist() == want


def test_no_matrix_of_all_pairs_is_held():
  x = jax.ShapeDtypeStruct((2000, 2), jnp.float32)
  trace = str(jax.make_jaxpr(lambda x: stein_thinning(x, x, kernels.imq(1.0), 100))(x))
  assert "2000,2000" not in trace
  assert "2000,2,2]" not in trace  # no derivatives of derivatives


def test_thinned_points_of_a_chain_are_better_than_random_ones():
  # A random walk from far away: its first states are no draws from N(0, I).
  start_key, noise_key, choice_key = jax.random.split(KEY, 3)
  z = jax.random.normal(noise_key, (500, 2))

  def step(x, z):
    x = 0.95 * x + np.sqrt(1 - 0.95**2) * z
    return x, x

  _, chain = jax.lax.scan(step, 6 + jax.random.normal(start_key, (2,)), z)
  kernel = kernels.imq(1.0)

  def discrepancy(indices):
    return float(ksd_squared(chain[indices], -chain[indices], kernel))

  chosen = stein_thinning(chain, -chain, kernel, 30)
  random = [
    discrepancy(jax.random.choice(key, 500, (30,), replace=False))
    for key in jax.random.split(choice_key, 20)
  ]
  assert discrepancy(chosen) < min(random) / 2
  assert jnp.linalg.norm(chain[chosen], axis=1).max() < 4  # no burn-in


@pytest.mark.slow
def test_the_regularised_choice_has_no_points_between_modes():
  # Pathology of Bénard et al.: points near the saddle, where the score is small.
  density = densities.two_modes(2, weights=(0.5, 0.5), separation=6.0)
  x = density.sample(KEY, 400)
  between = 0.5 * jax.random.normal(jax.random.key(2), (60, 2))
  x = jnp.concatenate([x, between])
  s, log_p = jax.vmap(density.score)(x), density.log_density(x)
  second = jax.vmap(lambda x: jnp.diagonal(jax.hessian(density.log_density_fn)(x)))(x)
  laplacian = jnp.maximum(second, 0).sum(axis=1)

  def share(**options):
    return float((stein_thinning(x, s, kernels.imq(9.0), 40, **options) >= 400).mean())

  assert share() > 0.1
  assert share(log_density=log_p, laplacian=laplacian) < 0.05


X = np.zeros((4, 2), np.float32)

BAD = {
  "no points": (ValueError, "num_points must be", {"num_points": 0}),
  "shapes": (ValueError, "must have the same shape", {"scores": X[:3]}),
  "log_density": (ValueError, "log_density must hold one", {"log_density": X[:, :1]}),
  "laplacian": (ValueError, "laplacian must hold one", {"laplacian": X[:3, 0]}),
  "kernel": (TypeError, "kernel must be", {"kernel": 3}),
  "kernel off": (ValueError, "stein_thinning needs", {"kernel": Direction(None)}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_usage(name):
  error, message, options = BAD[name]
  good = {"particles": X, "scores": X, "kernel": kernels.rbf(1.0), "num_points": 2}
  with pytest.raises(error, match=message):
    stein_thinning(**(good | options))
