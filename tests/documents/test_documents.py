"""Examples, commands and tables of the documents are those of the code and results."""

import importlib
import json
import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import optax
import pytest
import yaml
from nbclient import NotebookClient

import stein_jax
from experiments import rbm_summary

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
EXPERIMENTS = (ROOT / "experiments" / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
CI = (ROOT / ".ci" / "run").read_text()
DOCUMENTS = README + EXPERIMENTS


def run_python(text):
  """Runs all Python blocks of a document as one program; returns its names."""
  blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
  assert len(blocks) >= 2
  names = {}
  exec(compile("\n".join(blocks), "document", "exec"), names)
  return names


def test_python_of_the_readme_runs(capsys):
  run_python(README)


def test_python_of_contributing_runs(capsys):
  names = run_python(CONTRIBUTING)
  kernel = names["inverse_quadratic"](2.0)
  assert kernel.pair(jnp.zeros(2), jnp.ones(2)) == 0.5
  x = jnp.array([[0.0], [1.0]])
  phi = stein_jax.svgd_direction(x, jnp.zeros_like(x), kernel)
  want = 2 * 0.5 * (1 / 1.5) ** 2 / 2  # −(2/h) ρ'(1/h) · distance / n
  assert phi[1, 0] == pytest.approx(want, rel=1e-5)
  rule = names["denoising_score_matching"](
    lambda mean, x: jnp.sum(jnp.square(x - mean)) / 2, optax.sgd(0.1), noise_scale=1.0
  )
  key, mean = jax.random.key(0), jnp.array([3.0])
  state, metrics = rule.update(key, rule.init(key, mean, x), x)
  # With σ = 1 the noise cancels, and the gradient is mean − average of x.
  assert state.params[0] == pytest.approx(3.0 - 0.1 * 2.5, rel=1e-5)
  assert metrics["loss"] == pytest.approx((3.0**2 + 2.0**2) / 4, rel=1e-5)
  own = names["Settings"](steps=7)
  assert names["markdown"]({"result": own.steps}).endswith("| 7 |")


def test_commands_of_the_readme_name_files_that_exist():
  flagfiles = re.findall(r"--flagfile=(\S+?)[`\s]", DOCUMENTS + CI)
  assert flagfiles
  for path in flagfiles:
    assert (ROOT / path.rstrip("`")).exists(), path
  for module in re.findall(r"-m (experiments[\w.]+\w)", DOCUMENTS):
    assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module


@pytest.mark.parametrize("folder", [".", "experiments"])
def test_pictures_of_the_readmes_exist(folder):
  text = (ROOT / folder / "README.md").read_text()
  pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
  assert pictures
  for path in pictures:
    assert (ROOT / folder / path).exists(), path


def test_tables_of_the_readme_are_those_of_the_result_files(monkeypatch):
  monkeypatch.chdir(ROOT)
  commands = re.findall(r"`python -m experiments\.rbm_summary ([^`]+)`", README)
  assert len(commands) >= 4
  for arguments in commands:
    table = rbm_summary.main(arguments.split())
    assert table in README, f"the README's table of {arguments} is out of date"


def test_tables_of_other_experiments_are_those_of_their_result_files(capsys):
  command = r"`python -m experiments\.([\w.]+) --from_summary=(\S+)`"
  commands = re.findall(command, DOCUMENTS)
  assert len(commands) >= 5
  for name, path in commands:
    module = importlib.import_module(f"experiments.{name}")
    module.main(module.Settings(from_summary=str(ROOT / path)))
    printed = capsys.readouterr().out.strip()
    assert printed in DOCUMENTS, f"the table of {name} {path} is out of date"


def test_the_table_of_normalisations_is_that_of_the_result_files():
  for kind in ("group", "layer", "weight", "none"):
    path = ROOT / "experiments" / "results" / "normalization" / kind / "summary.json"
    summary = json.loads(path.read_text())
    assert summary["flags"]["normalization"] == kind
    last = summary["runs"]["steingan"][0]["last"]
    gap, held_out = last["energy_gap"], last["energy_held_out"]
    row = (
      f"| {kind} | {gap:.2f} | {held_out:.2f} | {last['mean_pairwise_distance']:.1f} |"
    )
    assert row in README


def test_ci_runs_the_commands_of_the_readme():
  assert "pip install -q -e '.[test]'" in CI
  assert "-m pytest" in CI
  assert "-m experiments.mnist_rbm --flagfile=experiments/flags/quickstart.flags" in CI


def test_one_command_runs_the_slow_tests():
  command = "python -m pytest -m slow"
  for text in (README, CONTRIBUTING, CI, (ROOT / "pyproject.toml").read_text()):
    assert command in text


def test_the_workflow_runs_the_scripts_of_ci():
  workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
  jobs = workflow["jobs"]
  steps = [step for job in jobs.values() for step in job["steps"]]
  for script in (".ci/run", ".ci/wheel"):
    assert {"run": script} in steps
    assert (ROOT / script).stat().st_mode & 0o111, f"{script} is not executable"
  versions = jobs["tests"]["strategy"]["matrix"]["python-version"]
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  assert project["requires-python"] == f">={versions[0]}"


def test_all_documents_name_the_same_version():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
  assert project["version"] == stein_jax.__version__ == citation["version"]
  assert project["license"] == citation["license"]


def test_the_changelog_keeps_to_its_headings():
  """Of https://keepachangelog.com."""
  headings = set(re.findall(r"^### (.*)$", CHANGELOG, flags=re.M))
  allowed = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
  assert headings <= allowed
  assert re.search(r"^## \[Unreleased\]$", CHANGELOG, flags=re.M)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", [p.name for p in ROOT.glob("notebooks/*.ipynb")])
def test_notebook_runs_from_a_clean_kernel(name):
  notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
  assert not any(cell.get("outputs") for cell in notebook.cells), "commit it cleared"
  NotebookClient(
    notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}}
  ).execute()
  printed = [
    output["text"]
    for cell in notebook.cells
    for output in cell.get("outputs", ())
    if output.get("name") == "stdout"
  ]
  text = "\n".join(printed)
  before, after = map(float, re.findall(r"([\d.-]+) (?:before|after)", text)[:2])
  assert after < 0.2 * before
  start, trained = map(
    float, re.findall(r"(?:at the start|after training) (-?[\d.]+)", text)
  )
  assert trained < 0.2 * start
