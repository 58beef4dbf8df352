"""What the README and the notebook show runs as it stands there."""

import importlib
import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from experiments import rbm_summary

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
EXPERIMENTS = (ROOT / "experiments" / "README.md").read_text()
DOCUMENTS = README + EXPERIMENTS


def test_python_of_the_readme_runs(capsys):
  blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
  assert len(blocks) >= 2
  exec(compile("\n".join(blocks), "README.md", "exec"), {})


def test_commands_of_the_readme_name_files_that_exist():
  flagfiles = re.findall(r"--flagfile=(\S+?)[`\s]", DOCUMENTS)
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


def test_tables_of_other_experiments_are_those_of_their_result_files():
  command = r"`python -m experiments\.([\w.]+) --from_summary=(\S+)`"
  commands = re.findall(command, DOCUMENTS)
  assert len(commands) >= 5
  for name, path in commands:
    module = importlib.import_module(f"experiments.{name}")
    table = module.markdown(json.loads((ROOT / path).read_text()))
    assert table in DOCUMENTS, f"the table of {name} {path} is out of date"


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
  ci = (ROOT / ".ci" / "run").read_text()
  assert "pip install -q -e '.[test]'" in ci
  assert "-m pytest" in ci
  assert "-m experiments.mnist_rbm --flagfile=experiments/flags/quickstart.flags" in ci


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
