"""Bias and noise of gradients, against NumPy and gradients taken by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gradient_diagnostics as diagnostics
from stein_jax import (
  contrastive_divergence,
  maximum_likelihood,
  stein_cd,
  stein_cd_gradient,
)
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.kernels import rbf
from tests import binaries

RBM = GaussianBernoulliRBM(2, weight_scale=0.5)
NUM_POINTS = 12


@pytest.fixture(scope="module")
def problem():
  """Parameters and twelve points of an RBM with three visible units."""
  params = RBM.init(jax.random.key(0), jnp.zeros(3))
  return params, jax.random.normal(jax.random.key(1), (NUM_POINTS, 3)) + 0.3


def mle():
  return maximum_likelihood(RBM.apply, RBM.log_partition, diagnostics.keep_gradient())


def rows(*batches):
  return jnp.asarray(batches)


def flat(tree, part):
  """B, b, c or all of one gradient, as a vector in float64."""
  names = "Bbc" if part == "all" else part
  leaves = [np.asarray(tree["params"][name], np.float64).ravel() for name in names]
  return np.concatenate(leaves)


def test_maximum_likelihood_on_all_the_data_is_exact(problem):
  params, data = problem
  whole = rows(range(NUM_POINTS), range(NUM_POINTS))
  found = diagnostics.gradients(
    mle(), jax.random.key(2), params, data, whole, burn_in=0
  )
  exact = diagnostics.exact_gradient(params, RBM, data)
  for part in diagnostics.compare(found, exact).values():
    assert part["cosine_of_mean"] == pytest.approx(1, abs=1e-6)
    assert part["mean_cosine"] == pytest.approx(1, abs=1e-6)
    assert part["relative_norm"] == pytest.approx(1, abs=1e-5)
    assert part["variance"] == pytest.approx(0, abs=1e-9)


def test_exact_gradient_is_that_of_the_likelihood(problem):
  """By differentiating the mixture's density, without the energy and log Z."""
  params, data = problem

  def loss(params):
    log_weights, means = RBM.mixture(params)
    squares = jnp.square(data[:, None] - means[None]).sum(axis=2)
    return -jax.nn.logsumexp(log_weights[None] - squares / 2, axis=1).mean()

  exact = diagnostics.exact_gradient(params, RBM, data)
  for name in "Bbc":
    np.testing.assert_allclose(
      flat(exact, name), flat(jax.grad(loss)(params), name), atol=1e-6
    )


def test_measures_equal_numpy_on_gradients_by_hand(problem):
  params, data = problem
  batches = rows([0, 1, 2, 3], [4, 5, 6, 7], [1, 9, 10, 11])

  def loss(params, x):
    return jax.vmap(lambda x: RBM.apply(params, x))(x).mean() + RBM.log_partition(
      params
    )

  by_hand = [jax.grad(loss)(params, data[batch]) for batch in batches]
  exact = jax.grad(loss)(params, data)
  found = diagnostics.compare(
    diagnostics.gradients(mle(), jax.random.key(2), params, data, batches, burn_in=0),
    diagnostics.exact_gradient(params, RBM, data),
  )
  assert tuple(found) == ("all", "B", "b", "c")
  for part, measured in found.items():
    g, e = np.array([flat(tree, part) for tree in by_hand]), flat(exact, part)
    norm, mean = np.linalg.norm, g.mean(axis=0)
    cosines = [v @ e / norm(v) / norm(e) for v in (mean, *g)]
    trace = np.trace(np.atleast_2d(np.cov(g.T)))
    expected = {
      "cosine_of_mean": cosines[0],
      "mean_cosine": np.mean(cosines[1:]),
      "relative_norm": norm(mean) / norm(e),
      "variance": trace / (mean @ mean),
      "exact_norm": norm(e),
    }
    assert measured == pytest.approx(expected, rel=1e-4, abs=1e-5)
  parts = [found[part]["exact_norm"] ** 2 for part in "Bbc"]
  assert found["all"]["exact_norm"] ** 2 == pytest.approx(sum(parts))


def test_gradients_are_those_of_the_algorithm(problem):
  params, data = problem
  batches = rows([0, 1, 2, 3], [4, 5, 6, 7])
  algorithm = stein_cd(RBM.apply, rbf(), diagnostics.keep_gradient(), step_size=0.1)
  found = diagnostics.gradients(
    algorithm, jax.random.key(2), params, data, batches, burn_in=0
  )
  for i, batch in enumerate(batches):
    expected = stein_cd_gradient(params, RBM.apply, data[batch], rbf(), step_size=0.1)
    one = jax.tree.map(lambda leaf: leaf[i], found)  # noqa: B023
    np.testing.assert_allclose(flat(one, "all"), flat(expected, "all"), atol=1e-5)


def test_burn_in_moves_persistent_particles_and_nothing_else(problem):
  """With data far from the model the gradient after a burn-in is a different one."""
  params, data = problem
  far, batch = data + 20, list(range(4))
  options = {"num_steps": 1, "step_size": 0.5}
  for persistent in (True, False):
    algorithm = contrastive_divergence(
      RBM.apply, diagnostics.keep_gradient(), persistent=persistent, **options
    )
    first, last = (
      diagnostics.gradients(
        algorithm,
        jax.random.key(2),
        params,
        far,
        rows(*[batch] * (burn_in + 1)),
        burn_in=burn_in,
      )
      for burn_in in (0, 40)
    )
    assert first["params"]["b"].shape == last["params"]["b"].shape == (1, 3)
    # b's gradient is the negatives' mean less the data's.
    moved = np.asarray(last["params"]["b"] - first["params"]["b"])
    assert (moved < -5).all() if persistent else (np.abs(moved) < 1e-6).all()


def test_batches_have_no_point_twice():
  found = np.asarray(diagnostics.batch_rows(jax.random.key(0), 10, 20, 9))
  assert found.shape == (20, 9)
  assert all(len(set(batch)) == 9 for batch in found.tolist())
  assert len({tuple(batch) for batch in found.tolist()}) == 20


def test_gradients_of_zero_have_no_direction():
  zeros = {
    "params": {n: np.zeros((2, *s)) for n, s in zip("Bbc", [(3, 2), (3,), (2,)])}
  }
  exact = {"params": {n: np.ones(s) for n, s in zip("Bbc", [(3, 2), (3,), (2,)])}}
  for part in diagnostics.compare(zeros, exact).values():
    assert part["cosine_of_mean"] == part["mean_cosine"] == part["variance"] == 0


@pytest.mark.slow
def test_the_command_writes_all_promised_files(tmp_path):
  workdir = tmp_path / "w"
  command = [
    "gradient_diagnostics",
    *("--method=cd,mle", "--langevin_steps=1", "--at=0,20", "--batches=3"),
    *("--batch_size=10", "--num_hidden=2", "--burn_in=2", f"--workdir={workdir}"),
  ]
  result = binaries.run(*command)
  assert result.returncode == 0, result.stderr
  summary = json.loads((workdir / "summary.json").read_text())
  assert list(summary["steps"]) == ["0", "20"]
  assert summary["trained_by"] == "exact MLE"
  assert (workdir / "gradient_diagnostics.png").stat().st_size > 10_000
  measured = summary["steps"]["20"]["CD-1"]
  assert set(measured) == set(diagnostics.PARTS)
  text = diagnostics.markdown(summary)
  assert text.count("| exact MLE |") == 2
  assert diagnostics.markdown(summary, [20]) == text.split("\n\n")[1]
  cell = f"{measured['all']['cosine_of_mean']:.3f}"
  assert f"| CD-1 | {cell} |" in text
  assert cell in result.stdout
  with pytest.raises(SystemExit, match="--at: \\[7\\]"):
    diagnostics.markdown(summary, [7])

  command += ["--trained_by=magic", "--overwrite"]
  refused = binaries.run(*command)
  assert refused.returncode != 0
  assert "--trained_by must be one of" in refused.stderr
  assert (workdir / "summary.json").exists()
