"""The power of Stein tests on perturbed RBMs: samples, scores, counts, resumption."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import goodness_of_fit
from stein_jax import kernels
from tests import binaries, oracles
from tests.experiments.parsing import parsed

KEY = jax.random.key(0)

run_binary = functools.partial(binaries.run, "goodness_of_fit")


def test_scores_are_those_of_the_rbm_and_samples_of_the_perturbed_one():
  # Stein's identity E s = 0 holds for samples of the RBM itself.
  for sigma in (0.0, 1.0):
    x, s = goodness_of_fit.perturbed_samples(KEY, sigma, 4, 2, 4000)
    assert x.shape == s.shape == (4000, 4)
    means, errors = s.mean(axis=0), s.std(axis=0) / np.sqrt(len(s))
    assert (jnp.abs(means) < 5 * errors).all() == (sigma == 0)
  # The scores are b − x + B tanh(Bᵀx + c) with B = ±½: within ½ℓ of b − x.
  b = jax.random.normal(jax.random.split(KEY, 5)[0], (4,))
  hidden = np.asarray(s + x - b[None])
  assert 0.5 < np.abs(hidden).max() <= 1.0 + 1e-5


def test_the_test_with_matrices_is_that_of_the_double_loop():
  x, s = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(np.float32)
  found = goodness_of_fit.matrix_test(KEY, x, s, 1.7, num_bootstrap=500)
  u = oracles.ksd_squared(x, s, *oracles.imq(1.7, -0.5), "U")
  np.testing.assert_allclose(found.statistic, 12 * u, rtol=1e-4)
  streamed = goodness_of_fit.ksd_test(KEY, x, s, kernels.imq(1.7), num_bootstrap=500)
  np.testing.assert_allclose(found.statistic, streamed.statistic, rtol=1e-4)
  np.testing.assert_allclose(found.null.std(), streamed.null.std(), rtol=0.2)
  assert abs(found.p_value - streamed.p_value) < 0.1


@pytest.fixture
def quick(monkeypatch):
  """Replaces what takes long; returns the list of the σ that are computed."""
  computed = []

  def p_values(keys, sigma, sizes):
    computed.append(sigma)
    return np.tile(np.linspace(0, 1, len(keys))[:, None] ** (1 + 100 * sigma), 4)

  def compared(key, own):
    computed.append("cost")
    both = {"streamed": 1.0, "n × n matrices": 2.0}
    names = ("seconds", "megabytes", "p_value")
    return {"num_particles": 9, "num_bootstrap": 8} | dict.fromkeys(names, both)

  monkeypatch.setattr(goodness_of_fit, "_all_p_values", p_values)
  monkeypatch.setattr(goodness_of_fit, "compared", compared)
  return computed


def test_a_second_run_computes_only_what_is_missing(quick, tmp_path, capsys):
  folder = f"--workdir={tmp_path / 'w'}"
  options = (folder, "--repeats=21", "--noprogress")

  def start(sigmas):
    own = parsed(goodness_of_fit.Settings, *options, f"--sigmas={sigmas}")
    goodness_of_fit.main(own)
    return json.loads((tmp_path / "w" / "summary.json").read_text())

  first = start("0,0.02")
  assert quick == [0.0, 0.02, "cost"]
  assert first["rejected"]["0.0"] == dict.fromkeys(goodness_of_fit.TESTS, 2)
  assert first["rejected"]["0.02"] == dict.fromkeys(goodness_of_fit.TESTS, 8)
  second = start("0,0.02,0.04")
  assert quick == [0.0, 0.02, "cost", 0.04]
  assert second["rejected"].items() >= first["rejected"].items()
  assert (tmp_path / "w" / "goodness_of_fit.png").stat().st_size > 5000
  capsys.readouterr()
  own = parsed(goodness_of_fit.Settings, f"--from_summary={tmp_path}/w/summary.json")
  goodness_of_fit.main(own)
  lines = capsys.readouterr().out.splitlines()
  assert lines[2].startswith("| 0 | 0.10 ± 0.06 |")
  assert lines[3].startswith("| 0.02 | 0.38 ± 0.11 |")
  assert lines[-1] == "| n × n matrices | 2.00 | 2 | 2.00 |"


def test_an_interrupted_run_keeps_every_sigma(quick, tmp_path, monkeypatch):
  p_values = goodness_of_fit._all_p_values

  def interrupted(keys, sigma, sizes):
    if sigma == 0.02:
      raise KeyboardInterrupt
    return p_values(keys, sigma, sizes)

  own = parsed(
    goodness_of_fit.Settings, f"--workdir={tmp_path}", "--sigmas=0,0.02", "--noprogress"
  )
  monkeypatch.setattr(goodness_of_fit, "_all_p_values", interrupted)
  with pytest.raises(KeyboardInterrupt):
    goodness_of_fit.main(own)
  assert goodness_of_fit.markdown(json.loads((tmp_path / "summary.json").read_text()))
  monkeypatch.setattr(goodness_of_fit, "_all_p_values", p_values)
  goodness_of_fit.main(own)
  assert quick == [0.0, 0.02, "cost"]


@pytest.mark.slow
def test_the_command_writes_all_promised_files(tmp_path):
  workdir = tmp_path / "w"
  short = (
    "--sigmas=0,2",
    "--repeats=4",
    "--num_particles=50",
    "--num_visible=5",
    "--num_hidden=2",
    "--num_bootstrap=99",
    "--compared_particles=300",
    f"--workdir={workdir}",
  )
  result = run_binary(*short)
  assert result.returncode == 0, result.stderr
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["rejected"]["2.0"]["ksd_test"] == 4
  assert set(summary["cost"]["seconds"]) == {"streamed", "n × n matrices"}
  assert abs(np.subtract(*summary["cost"]["p_value"].values())) < 0.2
  assert (workdir / "goodness_of_fit.png").stat().st_size > 5000
  assert (workdir / "flags.txt").exists()

  mixed = run_binary(*short, "--seed=1")
  assert mixed.returncode != 0
  assert "--seed: 0 before, 1 now" in mixed.stderr
