"""The sweep over ε, against equations 13, 15 and 17 in NumPy and float64."""

import functools
import json

import jax
import numpy as np
import pytest

from experiments import epsilon_sweep
from stein_jax import kernels
from stein_jax.energies import GaussianBernoulliRBM
from tests import binaries, oracles

RBM = GaussianBernoulliRBM(2)


run_binary = functools.partial(binaries.run, "epsilon_sweep")


@pytest.fixture(scope="module")
def problem():
  """A tiny RBM and six points, as float32 numbers."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  return {"params": {"B": draw(3, 2), "b": draw(3), "c": draw(2)}}, draw(6, 3)


def direction(params, x):
  """φ* of eq. 5 with the median's RBF kernel, as a double loop in float64."""
  B, b, c = (params["params"][name].astype(np.float64) for name in "Bbc")
  s = b - x + np.tanh(x @ B + c) @ B.T
  h = oracles.median_bandwidth(x)
  return oracles.svgd_direction(x, s, *oracles.rbf(h))


def mean_energy_gradient(params, x):
  """∇θ of the mean energy, B, b and c in one vector."""
  B, c = (params["params"][name].astype(np.float64) for name in "Bc")
  t = np.tanh(x @ B + c)
  return -np.concatenate([(x.T @ t / len(x)).ravel(), x.mean(0), t.mean(0)])


def difference(params, x, epsilon, symmetric):
  """Equations 13 and 17, divided by the distance."""
  phi = direction(params, x)
  back = epsilon if symmetric else 0.0
  moved = mean_energy_gradient(params, x + epsilon * phi)
  return (mean_energy_gradient(params, x - back * phi) - moved) / (epsilon + back)


def limit(params, x):
  """Equation 15 by hand: −mean ∇θ[∇ₓEᵀφ], ∇ₓE = x − b − B tanh(Bᵀx + c)."""
  B, c = (params["params"][name].astype(np.float64) for name in "Bc")
  phi = direction(params, x)
  t = np.tanh(x @ B + c)
  inner = (1 - t**2) * (phi @ B)
  weights = (phi.T @ t + x.T @ inner) / len(x)
  return np.concatenate([weights.ravel(), phi.mean(0), inner.mean(0)])


@pytest.mark.parametrize(("side", "symmetric"), epsilon_sweep.SIDES.items())
def test_errors_are_those_of_numpy(problem, side, symmetric):
  params, x = problem
  epsilons = [0.01, 0.3, 2.0]
  results = epsilon_sweep.sweep(params, RBM.apply, x, kernels.rbf(), epsilons)
  exact = limit(params, x.astype(np.float64))
  for i, epsilon in enumerate(epsilons):
    gradient = difference(params, x.astype(np.float64), epsilon, symmetric)
    error = np.linalg.norm(gradient - exact) / np.linalg.norm(exact)
    cosine = gradient @ exact / np.linalg.norm(gradient) / np.linalg.norm(exact)
    double = results[f"float64 {side}"]
    assert double["relative_error"][i] == pytest.approx(error, rel=1e-7, abs=1e-10)
    assert double["cosine"][i] == pytest.approx(cosine, abs=1e-12)
    single = results[f"float32 {side}"]
    assert single["relative_error"][i] == pytest.approx(error, rel=1e-2, abs=1e-4)


def test_errors_in_float64_are_of_order_one_and_two(problem):
  params, x = problem
  epsilons = [1e-2, 1e-3]
  results = epsilon_sweep.sweep(params, RBM.apply, x, kernels.rbf(), epsilons)
  for equation, order in (("(13)", 1), ("(17)", 2)):
    large, small = results[f"float64 {equation}"]["relative_error"]
    assert np.log10(large / small) == pytest.approx(order, abs=0.02)


def test_float32_is_float32_throughout(problem):
  """Below 1e-3 rounding errors grow as 1/ε in float32; in float64 there are none."""
  params, x = problem
  epsilons = [1e-6, 1e-4, 0.1]
  results = epsilon_sweep.sweep(params, RBM.apply, x, kernels.rbf(), epsilons)
  for equation in epsilon_sweep.SIDES:
    small, middle, _ = results[f"float32 {equation}"]["relative_error"]
    assert 1e-3 < small < 10
    assert middle < small / 10
    assert results[f"float64 {equation}"]["relative_error"][0] < 1e-5
    assert results[f"float32 {equation}"]["best"] == 0.1 or equation == "(13)"

  def gradient_fn(params, energy_fn, data, kernel):
    seen.append({leaf.dtype.name for leaf in jax.tree.leaves((params, data))})
    seen.append({(leaf * 0.1).dtype.name for leaf in jax.tree.leaves((params, data))})
    seen.append({jax.numpy.zeros(1).dtype.name})
    return params

  for precision in epsilon_sweep.PRECISIONS:
    seen = []
    vector = epsilon_sweep._in_precision(precision, gradient_fn, params, None, x, None)
    assert seen == [{precision}] * 3
    assert vector.dtype == np.float64


def test_a_gradient_of_another_precision_is_an_error(problem):
  def gradient_fn(params, energy_fn, data, kernel):
    return jax.tree.map(lambda leaf: leaf.astype("float16"), params)

  with pytest.raises(TypeError, match="float16"):
    epsilon_sweep._in_precision("float32", gradient_fn, *problem[:1], None, 0.0, None)


def test_best_is_the_epsilon_of_the_smallest_error(problem):
  params, x = problem
  epsilons = [100.0, 0.01, 1.0]
  results = epsilon_sweep.sweep(params, RBM.apply, x, kernels.rbf(), epsilons)
  for result in results.values():
    index = result["relative_error"].index(min(result["relative_error"]))
    assert result["best"] == epsilons[index]
  assert results["float64 (17)"]["best"] == 0.01


@pytest.mark.slow
def test_the_command_writes_all_promised_files(tmp_path):
  workdir = tmp_path / "w"
  short = ("--train_steps=5", "--batch_size=8", "--num_hidden=2", "--epsilons=0.1,1e-2")
  result = run_binary(*short, f"--workdir={workdir}")
  assert result.returncode == 0, result.stderr
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["dataset"] == "mnist5k"
  assert summary["epsilons"] == [0.1, 0.01]
  assert summary["environment"]["jax"] == jax.__version__
  assert "--train_steps=5" in summary["command"]
  assert summary["flags"]["batch_size"] == "8"
  assert (workdir / "epsilon_sweep.png").stat().st_size > 10_000
  table = epsilon_sweep.markdown(summary).splitlines()
  assert [line.split(" | ")[0] for line in table] == [
    "| ε",
    "| ---",
    "| 0.1",
    "| 0.01",
    "| best ε",
  ]
  error = summary["points"]["trained"]["float64 (17)"]["relative_error"][0]
  assert table[2].endswith(f"| {error:.1e} |")
  assert f"{error:.1e}" in result.stdout

  mixed = run_binary(*short, f"--workdir={workdir}", "--seed=1")
  assert mixed.returncode != 0
  assert "--seed: 0 before, 1 now" in mixed.stderr
