"""Ctrl-C: the first waits for the end of the chunk, the second stops at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax.training import fit
from stein_jax.training.interrupts import PATIENCE, Interrupts, wait
from stein_jax.types import Algorithm
from tests.training.helpers import forget_the_program

ROOT = Path(__file__).resolve().parents[2]
ANNOUNCED = "press Ctrl-C again to stop at once"


class State(NamedTuple):
  params: Any
  step: Any


def adding(callback=None, slow_from=None):
  """Adds the batch to the parameters; from step `slow_from` on it takes an hour."""

  def update(key, state, batch):
    if callback is not None:
      jax.debug.callback(callback, state.step)
    params = state.params + batch.sum()
    if slow_from is not None:
      rounds = jnp.where(state.step >= slow_from, 2**31 - 1, 0)
      product = jax.lax.fori_loop(0, rounds, lambda _, x: x @ x, jnp.eye(20))
      params += product[0, 1]
    return State(params, state.step + 1), {"loss": params}

  return Algorithm(lambda key, params, batch: State(params, jnp.int32(0)), update)


def run(algorithm, workdir=None, **options):
  """20 steps in chunks of 5."""
  data = np.arange(12, dtype=np.float32)
  options = {"num_steps": 20, "batch_size": 4, "log_every": 5} | options
  return fit(
    jax.random.key(0),
    algorithm,
    jnp.float32(0),
    data,
    workdir=workdir,
    progress=False,
    **options,
  )


def interrupt():
  os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def _ctrl_c():
  """Python's own handler, which a shell's background jobs start without."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------- in a process


LONG_RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.training.test_interrupts import adding, run
def observe(step, state): print(step, flush=True)
run(adding(slow_from=10), sys.argv[1], observe=observe, eval_every=5)
"""


def started(program, workdir):
  """A process of this program, whose output can be read."""
  return subprocess.Popen(
    [sys.executable, "-c", program, str(workdir)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.fixture
def long_run(tmp_path):
  """A process whose chunk from step 10 to 15 runs for hours."""
  process = started(LONG_RUN, tmp_path)
  watchdog = threading.Timer(60, process.kill)  # an error, rather than a long wait
  watchdog.start()
  for step in (0, 5, 10):
    assert process.stdout.readline() == f"{step}\n"
  while not (tmp_path / "checkpoints" / "10").exists():
    time.sleep(0.1)
  time.sleep(1)  # the chunk has begun
  yield process
  watchdog.cancel()
  process.kill()
  process.communicate()


def test_a_second_ctrl_c_stops_a_long_chunk_at_once(long_run, tmp_path):
  long_run.send_signal(signal.SIGINT)
  line = next(line for line in long_run.stderr if line.strip())
  assert line == (
    "finishing the running chunk of steps, then saving; "
    "press Ctrl-C again to stop at once\n"
  )
  with pytest.raises(subprocess.TimeoutExpired):
    long_run.wait(timeout=1)  # the first one waits
  long_run.send_signal(signal.SIGINT)
  _, said = long_run.communicate(timeout=30)
  assert long_run.returncode == -signal.SIGINT
  assert said.strip().endswith("KeyboardInterrupt")
  # The run can be resumed from its last checkpoint, here by a program that is quick.
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "5"]
  forget_the_program(tmp_path)
  resumed, whole = (
    run(adding(), where, observe=lambda step, state: None, eval_every=5)
    for where in (tmp_path, tmp_path / "whole")
  )
  assert resumed.state == whole.state
  rows = [[row["step"], row.get("loss")] for row in resumed.history]
  assert rows == [[row["step"], row.get("loss")] for row in whole.history]


def test_sigterm_ends_a_long_chunk_within_seconds(long_run, tmp_path):
  start = time.monotonic()
  long_run.send_signal(signal.SIGTERM)
  _, said = long_run.communicate(timeout=30)
  assert time.monotonic() - start < PATIENCE + 5
  assert long_run.returncode == 143
  assert "takes too long after SIGTERM: the last checkpoint is the newest" in said
  assert "Traceback" not in said
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "5"]


ENDLESS = """
import signal, sys
# A shell that starts the tests in the background has told them to ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.training.test_interrupts import adding, run
options = {"num_steps": 10**8, "eval_every": 1000, "log_every": 1000}
run(adding(), sys.argv[1], observe=lambda step, _: print(step, flush=True), **options)
"""


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGINT", -2)])
def test_a_signal_saves_and_ends(number, code, tmp_path):
  process = started(ENDLESS, tmp_path)
  for line in process.stdout:
    if int(line) >= 3000:
      break
  process.send_signal(getattr(signal, number))
  told, said = process.communicate(timeout=30)
  assert process.returncode == code, said
  newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
  last = max([3000, *map(int, told.split())])
  assert newest in (last, last + 1000)  # the running chunk is saved


# ------------------------------------------------------------------- in this one


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize("times", [1, 2])
def test_in_a_chunk_with_callbacks(tmp_path, capfd, times):
  def callback(step):
    if step == 7:
      for _ in range(times):
        interrupt()

  with pytest.raises(KeyboardInterrupt):
    run(adding(callback), tmp_path, checkpoint_every=5)
  # The chunk from 5 to 10 is saved after one Ctrl-C, and not after two.
  newest = {1: "10", 2: "5"}[times]
  assert max(os.listdir(tmp_path / "checkpoints"), key=int) == newest
  assert capfd.readouterr().err.count(ANNOUNCED) == 1
  forget_the_program(tmp_path)
  assert run(adding(), tmp_path).state == run(adding()).state


@pytest.mark.usefixtures("_ctrl_c")
def test_a_second_one_while_saving_does_not_save_again(tmp_path, monkeypatch):
  from orbax.checkpoint import v1 as ocp

  saved = []

  def save(self, step, *args, **kwargs):
    saved.append(step)
    interrupt()
    interrupt()

  monkeypatch.setattr(ocp.training.Checkpointer, "save", save)
  with pytest.raises(KeyboardInterrupt):
    run(adding(), tmp_path, checkpoint_every=5)
  assert saved == [5]


@pytest.mark.usefixtures("_ctrl_c")
def test_a_first_one_in_an_evaluation_and_a_second_while_saving(tmp_path, monkeypatch):
  from orbax.checkpoint import v1 as ocp

  finished = []

  def save(self, step, *args, **kwargs):
    interrupt()
    finished.append(step)

  def evaluate(state):
    if state.step == 5:
      interrupt()
    return {}

  monkeypatch.setattr(ocp.training.Checkpointer, "save", save)
  with pytest.raises(KeyboardInterrupt):
    run(adding(), tmp_path, evaluate=evaluate, eval_every=5)
  assert not finished


@pytest.mark.usefixtures("_ctrl_c")
def test_without_a_workdir_nothing_is_said_of_saving(capfd):
  with pytest.raises(KeyboardInterrupt):
    run(adding(lambda step: interrupt() if step == 7 else None))
  said = capfd.readouterr().err
  assert "finishing the running chunk of steps, then stopping" in said
  assert ANNOUNCED in said


# ------------------------------------------------------------------------ pieces


def test_a_handler_of_the_user_gets_every_signal(request):
  seen = []
  before = signal.signal(signal.SIGINT, lambda *_: seen.append("handler"))
  request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
  interrupts = Interrupts()
  with interrupts.delayed("working"):
    interrupt()
    seen.append("first")
    interrupt()
    seen.append("second")
  assert seen == ["first", "handler", "second", "handler"]


def test_a_process_that_ignores_ctrl_c_still_does(request):
  before = signal.signal(signal.SIGINT, signal.SIG_IGN)
  request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
  with Interrupts().delayed("working"):
    interrupt()
    interrupt()


def test_wait_waits_for_all_arrays():
  @jax.jit
  def slow(x):
    return jax.lax.fori_loop(0, 10**5, lambda _, x: jnp.sin(x @ x), x)

  arrays = {"a": jnp.ones(3), "b": slow(jnp.eye(20))}
  assert not arrays["b"].is_ready()
  wait(arrays)
  assert all(x.is_ready() for x in arrays.values())
