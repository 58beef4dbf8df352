"""Densities in the plane: grids against closed forms, and the command."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from experiments import toy2d
from experiments.deep import planes
from experiments.deep.planes import Judge
from stein_jax import densities
from tests import binaries
from tests.experiments.parsing import parsed

KEY = jax.random.key(0)


def normal_energy(params, x):
  return 0.5 * params["precision"] * jnp.sum((x - params["mean"]) ** 2) + 7.0


PARAMS = {"mean": jnp.array([0.5, -0.25]), "precision": jnp.float32(2.0)}


@pytest.fixture(scope="module")
def judge():
  truth = densities.gaussian(jnp.zeros(2))
  task = planes.plane(truth, KEY, num_train=3000, num_test=4000, num_points=150)
  return Judge(normal_energy, task)


def test_the_likelihood_is_that_of_a_gaussian(judge):
  x = np.float64(judge.plane.test)
  squares = np.square(x - np.array([0.5, -0.25])).sum(axis=1)
  log_p = -squares - np.log(2 * np.pi) + np.log(2.0)
  found = judge(PARAMS)
  assert float(found["log_likelihood"]) == pytest.approx(log_p.mean(), abs=1e-3)
  difference = np.float64(judge.log_truth) - log_p
  assert float(found["kl"]) == pytest.approx(difference.mean(), abs=1e-3)
  error = difference.std() / np.sqrt(len(x))
  assert float(found["kl_error"]) == pytest.approx(error, rel=1e-2)
  # KL(N(0, I) ‖ N(m, I/2)) = log ½ + ½(2·2 + 2‖m‖² − 2)
  expected = -np.log(2) + 0.5 * (4 + 2 * 0.3125 - 2)
  assert float(found["kl"]) == pytest.approx(expected, abs=5 * error)
  assert float(found["ksd_squared"]) > 0.05


def test_the_truth_itself_has_no_divergence(judge):
  found = judge({"mean": jnp.zeros(2), "precision": jnp.float32(1.0)})
  assert float(found["kl"]) == pytest.approx(0, abs=1e-3)
  assert abs(float(found["ksd_squared"])) < 0.02


def test_the_grid_is_normalised_and_oriented(judge):
  picture = np.exp(judge.plane.as_picture(judge.log_density_on_grid(PARAMS)))
  task = judge.plane
  width, height = ((task.upper - task.lower) / task.num_points).tolist()
  assert picture.sum() * width * height == pytest.approx(1, abs=1e-4)
  row, column = np.unravel_index(picture.argmax(), picture.shape)
  assert task.lower[0] + (column + 0.5) * width == pytest.approx(0.5, abs=width)
  assert task.lower[1] + (row + 0.5) * height == pytest.approx(-0.25, abs=height)
  truth = np.exp(task.as_picture(planes.truth_on_grid(task)))
  assert truth.sum() * width * height == pytest.approx(1, abs=2e-3)


def test_samples_and_mass_at_the_edge_are_those_of_the_model(judge):
  x = np.asarray(judge.samples(KEY, PARAMS, 20_000))
  np.testing.assert_allclose(x.mean(axis=0), [0.5, -0.25], atol=0.02)
  np.testing.assert_allclose(np.cov(x.T), np.eye(2) / 2, atol=0.02)
  assert judge.mass_at_edge(PARAMS) < 1e-3
  flat = {"mean": jnp.zeros(2), "precision": jnp.float32(1e-6)}
  # A flat density has 1 − 0.9² outside of nine tenths of the sides.
  assert judge.mass_at_edge(flat) == pytest.approx(0.19, abs=0.02)


@pytest.mark.parametrize("name", planes.SHAPES)
def test_the_grid_covers_every_shape(name):
  task = planes.plane(planes.SHAPES[name](), KEY, num_train=2000, num_test=500)
  mass = np.exp(planes.truth_on_grid(task) + task.log_cell).sum()
  assert mass == pytest.approx(1, abs=0.02)


def test_a_cell_is_the_area_of_the_grid_by_quadrature():
  task = planes.plane(densities.two_moons(), KEY, num_train=500, num_test=100)
  density = task.truth.log_density_fn
  low, high = task.lower, task.upper
  found, _ = scipy.integrate.fixed_quad(
    lambda y: np.array(
      [
        np.exp(
          density(jnp.array([0.5 * (low[0] + high[0]), value], jnp.float32))
        ).item()
        for value in y
      ]
    ),
    low[1],
    high[1],
    n=200,
  )
  picture = np.exp(task.as_picture(planes.truth_on_grid(task)))
  column = picture[:, task.num_points // 2]
  height = (high[1] - low[1]) / task.num_points
  assert column.sum() * height == pytest.approx(found, rel=0.1)


# ---------------------------------------------------------------------- the command


def start(tmp_path, *options):
  own = parsed(
    toy2d.Settings,
    f"--workdir={tmp_path / 'w'}",
    *("--steps=20", "--frames=3", "--train=300", "--test=200", "--width=8"),
    *("--noprogress", *options),
  )
  toy2d.main(own)
  return json.loads((tmp_path / "w" / "summary.json").read_text())


def test_a_second_run_trains_only_what_is_missing(tmp_path, monkeypatch, capsys):
  first = start(tmp_path, "--density=two_moons", "--rule=sliced")
  (run,) = first["runs"]
  assert run["steps"] == [0, 10, 20]
  assert len(run["kl"]) == 3
  folder = tmp_path / "w"
  assert (folder / "two_moons_sliced.gif").read_bytes()[:6] == b"GIF89a"
  for picture in ("two_moons.png", "curves.png"):
    assert (folder / picture).stat().st_size > 10_000

  trained = []

  def learn(own, task, density, rule, workdir):
    trained.append((density, rule))
    return {"density": density, "rule": rule, "diverged": 7}

  monkeypatch.setattr(toy2d, "_learn", learn)
  both = ("--density=two_moons,rings", "--rule=sliced,cd1")
  second = start(tmp_path, *both)
  assert trained == [("two_moons", "cd1"), ("rings", "sliced"), ("rings", "cd1")]
  assert second["runs"][0] == run
  table = toy2d.markdown(second)
  assert f"| {run['kl'][-1]:.3f} ± {run['kl_error'][-1]:.3f} |" in table
  assert "| rings | CD-1, antithetic | diverged at 7 |" in table
  assert "diverged at 7" in capsys.readouterr().out


def test_a_run_that_diverges_is_reported(tmp_path):
  found = start(
    tmp_path, "--density=banana", "--rule=cd1", "--learning_rate=1e30", "--nogif"
  )
  (run,) = found["runs"]
  assert 1 <= run["diverged"] <= 20


@pytest.mark.parametrize(
  ("option", "message"),
  [
    ("--density=cube", "--density"),
    ("--rule=magic", "--rule"),
    ("--batch_size=400", "--batch_size=400 is more than --train=300"),
    ("--factor=0", "--factor"),
  ],
)
def test_wrong_usage(option, message, tmp_path):
  with pytest.raises((SystemExit, ValueError), match=message):
    start(tmp_path, option)
  assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_the_default_rule_learns_two_moons(tmp_path):
  workdir = tmp_path / "w"
  run = functools.partial(binaries.run, "toy2d")
  result = run("--density=two_moons", "--nogif", f"--workdir={workdir}")
  assert result.returncode == 0, result.stderr
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["runs"][0]["kl"][-1] < 0.1
  printed = run(f"--from_summary={workdir / 'summary.json'}")
  assert printed.stdout.strip() == toy2d.markdown(summary)
