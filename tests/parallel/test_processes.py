"""Several processes train together: `experiments.mnist_rbm`, twice on localhost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import binaries

RUN = (
  "--num_hidden=4",
  "--batch_size=16",
  "--method=cd,stein_cd",
  "--langevin_steps=1",
  "--eval_every=10",
  "--noprogress",
)


def started(*arguments, process_id, port, num_devices=4):
  """One of two processes, each with half of the devices."""
  return subprocess.Popen(
    [
      *(sys.executable, "-m", "experiments.mnist_rbm", *arguments),
      f"--coordinator_address=127.0.0.1:{port}",
      "--num_processes=2",
      f"--process_id={process_id}",
      f"--num_devices={num_devices}",
    ],
    cwd=binaries.ROOT,
    env={**os.environ, **binaries.ONE_DEVICE},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.fixture
def port():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def rows(workdir, curve):
  lines = (workdir / curve / "seed_0" / "metrics.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  return [{k: v for k, v in row.items() if k != "ms_per_step"} for row in found]


@pytest.mark.slow
def test_two_processes_get_the_numbers_of_one(tmp_path, port):
  one, two = tmp_path / "one", tmp_path / "two"
  output = binaries.run("mnist_rbm", *RUN, "--steps=30", f"--workdir={one}")
  assert output.returncode == 0, output.stderr

  arguments = (*RUN, "--steps=20", f"--workdir={two}")
  both = [started(*arguments, process_id=i, port=port) for i in range(2)]
  outputs = [process.communicate(timeout=280) for process in both]
  assert [process.returncode for process in both] == [0, 0], outputs
  assert "SteinCD" in outputs[0][0]
  assert "SteinCD" not in outputs[1][0]  # only the first one reports
  assert "process_id" not in (two / "flags.txt").read_text()
  # One process continues on eight devices what two have saved.
  output = binaries.run(
    "mnist_rbm", *RUN, "--steps=30", "--num_devices=8", f"--workdir={two}"
  )
  assert output.returncode == 0, output.stderr
  for curve in ("cd_1", "stein_cd"):
    got, want = rows(two, curve), rows(one, curve)
    assert [row["step"] for row in got] == [0, 10, 20, 30]
    for a, b in zip(got, want):
      assert a.keys() == b.keys()
      np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_alone_ends_with_a_message(tmp_path, port, victim, how):
  arguments = (*RUN, "--steps=1000000", f"--workdir={tmp_path / 'run'}")
  both = [started(*arguments, process_id=i, port=port, num_devices=2) for i in range(2)]
  try:
    history = tmp_path / "run" / "cd_1" / "seed_0" / "metrics.jsonl"
    for _ in range(1000):
      if history.exists() and len(history.read_text().splitlines()) > 2:
        break
      time.sleep(0.2)
    both[victim].send_signal(how)
    survivor = both[1 - victim]
    _, said = survivor.communicate(timeout=60)
    assert survivor.returncode != 0
    # Our message, unless JAX notices the loss before a step or a checkpoint fails.
    ours = "Another process was probably lost" in said and "last checkpoint" in said
    assert ours or "another task died" in said, said
  finally:
    for process in both:
      process.kill()
      process.communicate()


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--process_id=0"], "go together"),
    (
      ["--coordinator_address=127.0.0.1:1", "--num_processes=2", "--process_id=2"],
      "must be below",
    ),
    (["--num_devices=3", "--batch_size=100"], "take 99 or 102"),
    (
      [
        *("--coordinator_address=127.0.0.1:1", "--num_processes=2", "--process_id=0"),
        "--num_devices=3",
      ],
      "cannot be shared",
    ),
  ],
)
def test_impossible_flags_are_an_error_at_once(tmp_path, arguments, said):
  output = binaries.run("mnist_rbm", *arguments, f"--workdir={tmp_path / 'run'}")
  assert output.returncode == 2
  assert said in output.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_in_one_process_ends_both(tmp_path, port, broken):
  """One of them has another batch size."""
  both = [
    started(
      *(*RUN, "--steps=1000000", f"--workdir={tmp_path / 'run'}"),
      f"--batch_size={8 if i == broken else 16}",
      process_id=i,
      port=port,
      num_devices=2,
    )
    for i in range(2)
  ]
  said = [process.communicate(timeout=120)[1] for process in both]
  assert all(process.returncode for process in both)
  assert "the same ones" in said[1]


@pytest.mark.slow
def test_two_processes_train_a_generator(tmp_path, port):
  run = (
    *("--num_hidden=4", "--batch_size=8", "--method=pcd,steingan", "--steps=4"),
    *("--langevin_steps=1", "--eval_every=2", "--noprogress"),
    *("--generator_width=0.03", "--num_samples=2000", "--classifier_steps=20"),
    f"--cache_dir={tmp_path / 'cache'}",
  )
  output = binaries.run("mnist_rbm", *run, f"--workdir={tmp_path / 'one'}")
  assert output.returncode == 0, output.stderr
  two = (*run, f"--workdir={tmp_path / 'two'}")
  both = [started(*two, process_id=i, port=port) for i in range(2)]
  outputs = [process.communicate(timeout=280) for process in both]
  assert [process.returncode for process in both] == [0, 0], outputs
  for curve in ("pcd_1", "steingan"):
    got, want = rows(tmp_path / "two", curve), rows(tmp_path / "one", curve)
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(
        [a["log_likelihood/test"], a.get("loss", 0)],
        [b["log_likelihood/test"], b.get("loss", 0)],
        rtol=1e-3,
      )
  summary = json.loads((tmp_path / "two" / "summary.json").read_text())
  assert "process_id" not in summary["flags"]
