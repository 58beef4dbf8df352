"""Seconds from steps by hand-made numbers, and PyTorch's CD against ours."""

import functools
import json
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import time_to_quality
from experiments.rbm import torch_peer
from experiments.shared import plots
from stein_jax import contrastive_loss
from stein_jax.energies import GaussianBernoulliRBM
from tests import binaries

FLAGS = {
  "dataset": "mnist5k",
  "validation": "0.1",
  "num_hidden": "3",
  "weight_scale": "0.05",
  "batch_size": "100",
  "learning_rate": "0.0003",
  "adam_b1": "0.5",
  "initialization": "data_mean",
  "optimizer": "adam",
  "schedule": "constant",
}


def method(ms, mean, sd=(0.0, 0.0, 0.0), seeds=(0,)):
  return {
    "seeds": list(seeds),
    "ms_per_step": ms,
    "curve": {"steps": [0, 100, 200], "mean": list(mean), "sd": list(sd)},
  }


def a_run(**methods):
  return {
    "command": "python -m experiments.mnist_rbm",
    "flags": FLAGS,
    "methods": {"exact MLE": method(2.0, (-9.0, -6.0, -5.0)), **methods},
    "gaussian_baseline": {"mean": -8.0},
    "environment": {"jax": "0.10", "device": "cpu"},
  }


def write(path, summary):
  path.write_text(json.dumps(summary))
  return path


run_binary = functools.partial(binaries.run, "time_to_quality")


def summary_of(runs):
  return time_to_quality.with_times(time_to_quality.ours(runs))


def test_seconds_by_hand():
  fast = method(0.5, (-9.0, -5.5, -5.4), sd=(0.0, 0.0, 0.25), seeds=(0, 1))
  slow = method(30.0, (-9.0, -5.15, -7.0))  # falls back after it was there
  summary = summary_of({"a": a_run(fast=fast, slow=slow)})
  assert summary["yardstick"] == {"method": "exact MLE", "final": -5.0}
  methods = summary["methods"]
  assert methods["exact MLE"]["curve"]["seconds"] == [0.0, 0.2, 0.4]
  assert methods["exact MLE"]["seconds_to"] == {"1.0": 0.2, "0.5": 0.4, "0.2": 0.4}
  assert methods["fast"]["seconds_to"] == {"1.0": 0.05, "0.5": 0.05, "0.2": None}
  assert methods["slow"]["seconds_to"] == {"1.0": 3.0, "0.5": 3.0, "0.2": 3.0}
  assert time_to_quality.rows(summary) == [
    ["exact MLE", "2.00", "0.20", "0.40", "0.40", "-5.00"],
    ["fast", "0.50", "0.05", "0.05", "—", "-5.40 ± 0.25"],
    ["slow", "30.00", "3.00", "3.00", "3.00", "-7.00"],
  ]


def test_several_runs_and_what_has_no_time(capsys):
  broken = {"diverged": {"0": 7}}
  runs = {
    "a": a_run(one=method(1.0, (-9, -8, -7)), broken=broken),
    "b": a_run(one=method(5.0, (-9, -8, -7)), untimed=method(None, (-9, -8, -7))),
  }
  methods = summary_of(runs)["methods"]
  assert list(methods) == ["exact MLE", "one"]
  assert methods["one"]["ms_per_step"] == 1.0
  said = capsys.readouterr().err
  assert "broken of a is left out: it has no curve" in said
  assert "untimed of b is left out: it has no milliseconds" in said
  assert "one is taken from a, not from b" in said


def test_markdown():
  summary = json.loads(json.dumps(summary_of({"a": a_run()})))
  assert time_to_quality.markdown(summary).splitlines() == [
    "| method | ms/step | s to 1 nat | s to 0.5 nats | s to 0.2 nats | test, final |",
    "| --- | --- | --- | --- | --- | --- |",
    "| exact MLE | 2.00 | 0.20 | 0.40 | 0.40 | -5.00 |",
  ]


def test_the_picture_is_drawn(tmp_path):
  methods = summary_of({"a": a_run()})["methods"]
  curve = methods["exact MLE"]["curve"]
  only_the_start = {key: values[:1] for key, values in curve.items()}
  plots.likelihood_by_seconds(
    tmp_path / "p.png",
    {
      "exact MLE": curve | {"peer": False},
      "theirs": curve | {"peer": True},
      "stopped": only_the_start | {"peer": True},
    },
    baseline=-8.0,
    title="by hand",
  )
  assert (tmp_path / "p.png").stat().st_size > 10_000


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (None, "No such file"),
    ("{", "Expecting property name"),
    ("[]", "no summary of experiments.mnist_rbm: it has no methods, flags"),
    (json.dumps(a_run() | {"methods": {"one": {"diverged": {}}}}), "holds no curve"),
  ],
)
def test_what_is_no_run_is_refused(text, words, tmp_path):
  path = tmp_path / "summary.json"
  if text is not None:
    path.write_text(text)
  with pytest.raises(SystemExit, match=f"--runs={path}.*{words}"):
    time_to_quality.read_run(str(path))


def test_runs_that_do_not_fit_are_refused():
  def with_flags(**values):
    return a_run() | {"flags": FLAGS | values}

  problem = time_to_quality.problem_of({"a": a_run()}, peers=True)
  assert problem["num_hidden"] == 3
  assert problem["learning_rate"] == 3e-4
  runs = {"a": a_run(), "b": with_flags(num_hidden="4")}
  with pytest.raises(SystemExit, match="--num_hidden: 3 in a, 4 in b"):
    time_to_quality.problem_of(runs, peers=True)
  centered = {"a": with_flags(center="True")}
  with pytest.raises(SystemExit, match="does not know --center=True of a"):
    time_to_quality.problem_of(centered, peers=True)
  time_to_quality.problem_of(centered, peers=False)
  without_mle = a_run() | {"methods": {"one": method(1.0, (-9, -8, -7))}}
  with pytest.raises(SystemExit, match="exact MLE"):
    time_to_quality.ours({"a": without_mle})


def test_without_torch_ours_are_shown_and_it_is_said(tmp_path):
  run = write(tmp_path / "run.json", a_run())
  no_torch = tmp_path / "path"
  no_torch.mkdir()
  (no_torch / "torch.py").write_text("raise ImportError('none here')")
  workdir = tmp_path / "w"
  path = os.pathsep.join([str(no_torch), os.environ.get("PYTHONPATH", "")])
  shown = run_binary(f"--runs={run}", f"--workdir={workdir}", PYTHONPATH=path)
  assert shown.returncode == 0, shown.stderr
  assert "PyTorch is left out" in shown.stdout
  assert "pip install -e '.[peers]'" in shown.stdout
  assert "exact MLE" in shown.stdout
  assert (workdir / "time_to_quality.png").stat().st_size > 10_000
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["problem"]["dataset"] == "mnist5k"
  assert "torch" not in summary["environment"]

  table = run_binary(f"--from_summary={workdir / 'summary.json'}")
  assert table.stdout.strip() == time_to_quality.markdown(summary)


@pytest.mark.parametrize(
  ("arguments", "word"),
  [
    ([], "--runs"),
    (["--runs={run}", "--peer_k=0"], "--peer_k"),
    (["--runs={run}", "--peer_kinds=magic"], "--peer_kinds"),
    (["--runs={run}", "--langevin_step_size=nan"], "--langevin_step_size"),
  ],
)
def test_wrong_usage_ends_before_any_work(arguments, word, tmp_path):
  run = write(tmp_path / "run.json", a_run())
  arguments = [argument.format(run=run) for argument in arguments]
  result = run_binary(*arguments, f"--workdir={tmp_path / 'w'}")
  assert result.returncode != 0
  assert word in result.stderr
  assert "Traceback" not in result.stderr
  assert not (tmp_path / "w").exists()


# --------------------------------------------------- PyTorch, where it is installed


@pytest.fixture
def torch():
  pytest.importorskip("torchebm")
  return pytest.importorskip("torch")


def problem(dtype):
  """Seven points of six numbers and an RBM that is not at its start."""
  rng = np.random.default_rng(0)
  B, b, c, x = (rng.normal(size=s) for s in ((6, 3), 6, 3, (7, 6)))
  params = {name: v.astype(dtype) for name, v in {"B": B, "b": b, "c": c}.items()}
  return params, x.astype(dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", torch_peer.KINDS)
def test_the_peer_has_our_energy(torch, kind):
  params, x = problem(np.float64)
  model = torch_peer._rbm(kind, params)
  with torch.no_grad():
    theirs = model(torch.tensor(x)).numpy()
  apply = jax.vmap(GaussianBernoulliRBM(3).apply, (None, 0))
  np.testing.assert_allclose(theirs, apply({"params": params}, x), rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", torch_peer.KINDS)
@pytest.mark.parametrize("k", [1, 2])
def test_the_peer_takes_our_steps(torch, kind, k):
  """Three updates, with an epoch's end between, against our loss, optax and NumPy."""
  params, data = problem(np.float64)
  settings = torch_peer.Settings(k, 0.3, batch_size=3, learning_rate=0.01, adam_b1=0.5)
  peer = torch_peer.Peer(kind, params, data, settings, seed=5)
  peer.train(2)
  peer.train(1)

  generator = torch.Generator().manual_seed(5)
  rbm = GaussianBernoulliRBM(3)
  optimizer = optax.adam(0.01, b1=0.5)
  ours = {"params": jax.tree.map(jnp.asarray, params)}
  opt_state = optimizer.init(ours)
  for step in range(3):
    if step % 2 == 0:  # seven points make two batches of three
      order = torch.randperm(7, generator=generator).numpy()
    batch = data[order[3 * (step % 2) :][:3]]
    x, (B, b, c) = batch, (np.asarray(ours["params"][name]) for name in "Bbc")
    for _ in range(k):
      z = torch.randn((3, 6), dtype=torch.float64, generator=generator).numpy()
      score = b + np.tanh(x @ B + c) @ B.T - x
      x = x + 0.3 * score + np.sqrt(0.6) * z
    gradient = jax.grad(contrastive_loss)(ours, rbm.apply, batch, x)
    for name, parameter in peer._model.named_parameters() if step == 2 else ():
      np.testing.assert_allclose(
        parameter.grad.numpy(), gradient["params"][name], rtol=1e-6, atol=1e-9
      )
    updates, opt_state = optimizer.update(gradient, opt_state)
    ours = optax.apply_updates(ours, updates)
  for name, theirs in peer.params().items():
    np.testing.assert_allclose(theirs, ours["params"][name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", torch_peer.KINDS)
def test_a_peer_is_timed_and_judged_exactly(torch, kind):
  rbm = GaussianBernoulliRBM(3)
  x = jax.random.uniform(jax.random.key(0), (40, 6))
  split = time_to_quality.Split(rbm, x[:30], x[30:])
  settings = torch_peer.Settings(1, batch_size=10)
  histories = {
    seed: time_to_quality.train_peer(
      "CD-1", kind, seed, settings, split, num_steps=5, eval_every=2, progress=False
    )
    for seed in (0, 1)
  }
  init_key, _ = jax.random.split(jax.random.key(1))
  start = rbm.init_from_data(init_key, x[:30])  # as experiments.mnist_rbm begins
  expected = rbm.log_likelihood(start, x[30:]).mean()
  assert histories[1].log_likelihood[0] == pytest.approx(float(expected), abs=1e-4)
  assert histories[1].steps == [0, 2, 4, 5]
  assert len(histories[1].ms) == 3
  result = time_to_quality._method_of_peer(histories)
  ms = [ms for history in histories.values() for ms in history.ms[1:]]
  assert result["ms_per_step"] == pytest.approx(np.median(ms))
  assert result["curve"]["seconds"][-1] == pytest.approx(5 * np.median(ms) / 1000)
  assert len(set(result["curve"]["mean"])) == 4
  assert result["curve"]["sd"][0] > 0


def test_what_is_missing_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ImportError, match=r"pip install -e '\.\[peers\]'"):
    torch_peer.versions()
