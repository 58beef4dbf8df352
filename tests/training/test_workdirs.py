"""A workdir holds what it says: whose run it is, who writes it, what is damaged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import contrastive_divergence, kernels, stein_cd, stein_score_matching
from stein_jax.training import AnotherRun, TrainingDiverged, WorkdirInUse, fit
from tests.training.helpers import assert_same_bits, forget_the_program, untimed

KEY = jax.random.key(0)
DATA = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
LABELS = np.arange(60) % 3
PARAMS = {"mean": jnp.zeros(2), "log_precision": jnp.zeros(())}


def energy(params, x, context=None):
  shift = 0 if context is None else context
  distance = jnp.square(x - params["mean"] - shift).sum()
  return 0.5 * jnp.exp(params["log_precision"]) * distance


def other_energy(params, x):
  return energy(params, x) + 0.1 * jnp.square(x).sum() ** 2


ADAM, RBF = optax.adam(0.01), kernels.rbf(1.0)


def rule(energy_fn=energy, kernel=RBF, optimizer=ADAM, step_size=0.1):
  return stein_cd(energy_fn, kernel, optimizer, step_size=step_size)


def scaled(batch):
  return 0.5 * batch


def train(workdir, algorithm=None, data=DATA, params=PARAMS, num_steps=8, **options):
  options = {"batch_size": 20, "log_every": 2, "checkpoint_every": 2} | options
  return fit(
    KEY,
    rule() if algorithm is None else algorithm,
    params,
    data,
    num_steps=num_steps,
    workdir=workdir,
    progress=False,
    **options,
  )


@pytest.fixture
def finished(tmp_path):
  """A finished run's folder."""
  train(tmp_path)
  return tmp_path


# --------------------------------------------------------------- only its own run

OTHERS = {
  "learning rate": ({"algorithm": rule(optimizer=optax.adam(0.02))}, r"-0\.01.*-0\.02"),
  "learning rate in the state": (
    {"algorithm": rule(optimizer=optax.inject_hyperparams(optax.adam)(0.02))},
    "hyperparams",
  ),
  "optimizer": ({"algorithm": rule(optimizer=optax.sgd(0.01))}, "opt_state"),
  "schedule": (
    {"algorithm": rule(optimizer=optax.adam(optax.cosine_decay_schedule(0.01, 50)))},
    "opt_state|program",
  ),
  "step size": ({"algorithm": rule(step_size=0.2)}, r"only in this one: 0\.2"),
  "bandwidth": ({"algorithm": rule(kernel=kernels.rbf(2.0))}, "numbers"),
  "kernel": ({"algorithm": rule(kernel=kernels.imq(1.0))}, "program"),
  "no kernel": ({"algorithm": rule(kernel=None)}, "program"),
  "energy": ({"algorithm": rule(other_energy)}, "program"),
  "rule": (
    {"algorithm": stein_score_matching(energy, kernels.rbf(1.0), optax.adam(0.01))},
    "program",
  ),
  "transform": ({"transform": scaled}, r"only in this one: 0\.5"),
  "data": ({"data": DATA + np.float32(1e-3)}, "data checksum was"),
  "params": (
    {"params": {**PARAMS, "mean": jnp.ones(2)}},
    "first value of state.params",
  ),
  "batch size": ({"batch_size": 10}, "batch_size was 20, expected 10"),
  "run": ({"run": {"dataset": "b"}}, "run: dataset was absent, expected b"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """One finished run, of which the tests use copies."""
  folder = tmp_path_factory.mktemp("run")
  train(folder)
  return folder


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_and_what_differs_is_named(name, shared, tmp_path):
  folder = shutil.copytree(shared, tmp_path / "run")
  before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
  options, message = OTHERS[name]
  with pytest.raises(AnotherRun, match=message):
    train(folder, num_steps=12, **options)
  before.pop(folder / "run.json")  # says who came last
  assert {path: path.read_bytes() for path in before} == before


def test_labels_belong_to_the_data(tmp_path):
  data = {"x": DATA, "context": LABELS.astype(np.float32)}
  train(tmp_path, data=data)
  other = data["context"].copy()
  other[17] += 1
  with pytest.raises(AnotherRun, match="data checksum"):
    train(tmp_path, data={**data, "context": other})


SAME = {
  "progress": {"label": "another label"},
  "rows": {"log_every": 4},
  "more steps": {"num_steps": 12},
  "the same rule made again": {"algorithm": rule()},
  "another dtype of the same data": {"data": DATA.astype(np.float64)},
  "data on the device": {"data": jnp.asarray(DATA)},
  "checkpoints": {"checkpoint_every": 1},
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_change_the_numbers_may_change(name, shared, tmp_path):
  folder = shutil.copytree(shared, tmp_path / "run")
  assert train(folder, **SAME[name]).history[-1]["step"] >= 8


def test_another_version_of_jax_goes_on(finished, monkeypatch):
  monkeypatch.setattr("stein_jax.training.identity._version", lambda name: "another")
  assert len(train(finished, rule(step_size=0.2)).history) == 4


def test_own_values_are_stored_and_compared(tmp_path):
  train(tmp_path, run={"dataset": "a", "size": 3})
  train(tmp_path, run={"size": 3, "dataset": "a"})
  with pytest.raises(AnotherRun, match="run: size was 3, expected 4"):
    train(tmp_path, run={"dataset": "a", "size": 4})


def test_a_new_process_recognises_the_run(finished):
  program = (
    "import sys; from tests.training import test_workdirs as t\n"
    "print(len(t.train(sys.argv[1], num_steps=10).history))\n"
    "t.train(sys.argv[1], t.rule(step_size=0.3), num_steps=10)"
  )
  environment = {**os.environ, "PYTHONHASHSEED": "77"}
  result = subprocess.run(
    [sys.executable, "-c", program, str(finished)],
    cwd=Path(__file__).resolve().parents[2],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.stdout.strip() == "5", result.stderr
  assert "AnotherRun" in result.stderr
  assert "0.3" in result.stderr


def test_a_record_of_an_earlier_version_goes_on(finished):
  forget_the_program(finished)
  assert len(train(finished, num_steps=10).history) == 5


# --------------------------------------------------------------------- only its own


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/notes.txt"])
@pytest.mark.parametrize("resume", [True, False])
def test_files_of_others_are_left_alone(name, resume, tmp_path):
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).write_text('{"step": 1}\n')
  with pytest.raises(ValueError, match=r"that no run of fit wrote; nothing is changed"):
    train(tmp_path, resume=resume)
  assert (tmp_path / name).read_text() == '{"step": 1}\n'
  assert not (tmp_path / "run.json").exists()


def test_rows_whose_checkpoints_are_gone_are_kept(finished):
  rows = (finished / "metrics.jsonl").read_text()
  shutil.rmtree(finished / "checkpoints")
  with pytest.raises(ValueError, match=r"a run of 8 steps, but no checkpoint"):
    train(finished)
  assert (finished / "metrics.jsonl").read_text() == rows
  assert len(train(finished, resume=False).history) == 4


def test_other_files_of_the_folder_stay(finished):
  (finished / "notes.txt").write_text("mine")
  train(finished, resume=False)
  assert (finished / "notes.txt").read_text() == "mine"


def test_an_empty_workdir_is_not_the_current_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="workdir is empty"):
    train("")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_is_an_error_before_any_step(name, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match="cannot be written to"):
    train(tmp_path / name)


def test_a_second_run_in_the_folder_is_refused(tmp_path):
  def again(step, state):
    with pytest.raises(WorkdirInUse, match=f"in use by process {os.getpid()} on "):
      train(tmp_path)

  train(tmp_path, observe=again)
  train(tmp_path, num_steps=10)  # the lock is gone with the run


def test_a_dead_process_holds_no_lock(tmp_path):
  program = (
    "import os, sys; from tests.training import test_workdirs as t\n"
    "def kill(step, state):\n  if step: os.kill(os.getpid(), 9)\n"
    "t.train(sys.argv[1], observe=kill, eval_every=4)"
  )
  result = subprocess.run(
    [sys.executable, "-c", program, str(tmp_path)],
    cwd=Path(__file__).resolve().parents[2],
    check=False,
  )
  assert result.returncode == -9
  assert train(tmp_path, eval_every=4).history[-1]["step"] == 8


# -------------------------------------------------------------- damaged checkpoints


def emptied(folder):
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(b"")


def halved(folder):
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(folder):
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(b"\x00garbage" * 20)


def without(name):
  def damage(folder):
    found = [path for path in folder.rglob("*") if path.name == name]
    assert found
    for path in found:
      shutil.rmtree(path) if path.is_dir() else path.unlink()

  return damage


def without_files(folder):
  shutil.rmtree(folder)
  folder.mkdir()


DAMAGES = {
  "emptied": emptied,
  "halved": halved,
  "garbage": garbage,
  "no metadata": without("_CHECKPOINT_METADATA"),
  "no state": without("state"),
  "no manifest": without("manifest.ocdbt"),
  "no arrays": without("d"),
  "an empty folder": without_files,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_run_goes_on_from_the_newest_whole_checkpoint(
  name, shared, tmp_path, capfd
):
  folder = shutil.copytree(shared, tmp_path / "run")
  want = train(tmp_path / "untouched", num_steps=12)
  DAMAGES[name](folder / "checkpoints" / "8")
  got = train(folder, num_steps=12)
  assert_same_bits(got.state, want.state)
  assert untimed(got.history) == untimed(want.history)
  lines = [line for line in capfd.readouterr().err.splitlines() if "damaged" in line]
  assert len(lines) == 1
  assert str(folder / "checkpoints" / "8") in lines[0]
  assert (folder / "damaged_checkpoints" / "8").is_dir()


def test_where_none_is_whole_the_message_says_what_was_tried(finished):
  for step in (6, 8):
    garbage(finished / "checkpoints" / str(step))
  rows = (finished / "metrics.jsonl").read_text()
  for _ in range(2):
    with pytest.raises(ValueError, match=r"no checkpoint of it that can be read"):
      train(finished)
  assert (finished / "metrics.jsonl").read_text() == rows
  assert len(train(finished, resume=False).history) == 4


@pytest.mark.parametrize("name", ["10.orbax-checkpoint-tmp", "notes", "latest"])
def test_stray_folders_among_the_checkpoints_do_no_harm(name, finished):
  (finished / "checkpoints" / name).mkdir()
  assert len(train(finished, num_steps=10).history) == 5


def test_numbers_that_are_not_finite_are_null_in_the_rows(tmp_path):
  with pytest.raises(TrainingDiverged, match="infinite is inf at step 0"):
    train(tmp_path, evaluate=lambda state: {"infinite": np.inf, "nan": np.nan})
  rows = (tmp_path / "metrics.jsonl").read_text()
  parsed = [json.loads(row, parse_constant=pytest.fail) for row in rows.splitlines()]
  assert parsed[-1]["infinite"] is None
  assert parsed[-1]["nan"] is None


def test_contrastive_divergence_is_known_by_its_steps(tmp_path):
  def cd(num_steps):
    return contrastive_divergence(
      energy, optax.adam(0.01), num_steps=num_steps, step_size=0.1
    )

  train(tmp_path, cd(1))
  train(tmp_path, cd(1), num_steps=10)
  with pytest.raises(AnotherRun, match="program"):
    train(tmp_path, cd(2), num_steps=10)
