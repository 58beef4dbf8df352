"""Generators by the command: their files, scores and limiting cases."""

import json
import re

import numpy as np
import pytest

from experiments import mnist_rbm
from experiments.rbm import generators, methods, runs, tables
from experiments.rbm.settings import Rules
from experiments.shared import loading, plots
from tests.experiments.parsing import parsed
from tests.experiments.test_mnist_rbm import run_binary

ARGUMENTS = (
  "--method=steingan,steincd_gan,stein_cd",
  "--mix=1",
  "--generator_width=0.03",
  "--generator_learning_rate=0.01",
  "--generator_after=10",
  "--num_hidden=4",
  "--steps=20",
  "--eval_every=10",
  "--num_samples=2000",
  "--classifier_steps=60",
  "--noprogress",
)
LABELS = {
  "steingan": "SteinGAN",
  "steincd_gan_1": "SteinCD-GAN(1)",
  "stein_cd_then_generator": "SteinCD, then a generator",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("generators")
  arguments = (*ARGUMENTS, f"--workdir={folder / 'w'}", f"--cache_dir={folder / 'c'}")
  result = run_binary(*arguments)
  assert result.returncode == 0, result.stderr
  summary = json.loads((folder / "w" / "summary.json").read_text())
  return folder / "w", summary, result, arguments


@pytest.mark.slow
def test_every_generator_leaves_scores_and_pictures(finished):
  workdir, summary, result, _ = finished
  for name, label in LABELS.items():
    scores = summary["methods"][label]["samples"]
    assert 1 <= scores["inception_score"]["mean"] <= 10
    assert all(np.isfinite(score["mean"]) for score in scores.values())
    assert (workdir / f"training_{name}.png").stat().st_size > 5_000
    kept = sorted((workdir / name / "seed_0" / "samples").iterdir())
    steps = [0, 10] if name.endswith("then_generator") else [0, 10, 20]
    assert [int(file.stem) for file in kept] == steps
    assert np.load(kept[-1]).shape == (100, 28, 28, 1)
  for name in ("samples", "figure1a", "figure1b"):
    assert (workdir / f"{name}.png").stat().st_size > 10_000
  assert 0.5 < summary["test_images"]["recall"] < 1
  assert "of the test set are right" in result.stderr
  rows = tables.samples_rows(summary)
  assert [row[0] for row in rows] == ["half of the test set", *LABELS.values()]
  for row in rows[1:]:
    assert re.search(rf"{re.escape(row[0])}\s+{row[1]}", result.stdout)


def curve(summary, label):
  return np.array(summary["methods"][label]["curve"]["values"])


@pytest.mark.slow
def test_the_mix_with_alpha_1_is_stein_cd_and_steingan_is_not(finished):
  _, summary, _, _ = finished
  alone = curve(summary, "SteinCD")
  np.testing.assert_allclose(curve(summary, "SteinCD-GAN(1)"), alone, atol=2e-2)
  assert np.abs(curve(summary, "SteinGAN") - alone).max() > 0.05


@pytest.mark.slow
def test_a_generator_that_is_trained_afterwards_does_not_change_the_energy(finished):
  workdir, summary, _, _ = finished
  after = curve(summary, "SteinCD, then a generator")
  assert (after == curve(summary, "SteinCD")[:, -1:]).all()
  folder = workdir / "stein_cd_then_generator" / "seed_0" / "samples"
  first, last = (np.load(file) for file in sorted(folder.iterdir()))
  assert np.abs(first.astype(float) - last).max() > 1


@pytest.mark.slow
@pytest.mark.slow
def test_the_same_command_reads_the_scores_it_wrote(finished):
  workdir, summary, _, arguments = finished
  record = workdir / "steingan" / "seed_0" / "scores.json"
  written = json.loads(record.read_text())
  written["scores"]["recall"] = 0.125  # what is read is not computed again
  record.write_text(json.dumps(written))
  again = run_binary(*arguments)
  assert again.returncode == 0, again.stderr
  after = json.loads((workdir / "summary.json").read_text())
  assert after["methods"]["SteinGAN"]["samples"]["recall"]["mean"] == 0.125
  for label in LABELS.values():
    np.testing.assert_array_equal(curve(after, label), curve(summary, label))


@pytest.mark.slow
def test_an_energy_with_a_generator_trained_on_it_cannot_be_trained_further(finished):
  _, _, _, arguments = finished
  longer = run_binary(*arguments, "--steps=30")
  assert longer.returncode != 0
  assert "--steps: 20 before, 30 now" in longer.stderr


@pytest.mark.parametrize(
  ("arguments", "word"),
  [
    (["--mix=1.5"], "--mix"),
    (["--mix=a"], "--mix"),
    (["--mix_scale=0"], "--mix_scale"),
    (["--discount=1"], "--discount"),
    (["--discount=often"], "--discount"),
    (["--generator_width=0"], "--generator_width"),
    (["--generator_learning_rate=-1"], "--generator_learning_rate"),
    (["--center"], "--center"),
    (["--generator_after=5"], "--generator_after"),
    (["--generator_after=5", "--method=mle", "--schedule=linear"], "--schedule"),
  ],
)
def test_bad_flags_end_with_a_message_before_any_work(
  arguments, word, tmp_path, monkeypatch
):
  monkeypatch.setattr(loading, "load", None)  # not even the data
  arguments = ["--method=steingan", f"--workdir={tmp_path / 'w'}", *arguments]
  with pytest.raises(SystemExit, match=word):
    mnist_rbm.main(parsed(mnist_rbm.Settings, *arguments))
  assert not (tmp_path / "w").exists()


def test_every_alpha_and_every_scale_has_a_curve():
  rules = Rules(mix=(0.0, 0.5), mix_scale=(1.0, 10.0))
  names = [run.name for run in methods.runs(["steincd_gan"], None, rules)]
  assert names == [
    "steincd_gan_0_scale_1",
    "steincd_gan_0_scale_10",
    "steincd_gan_0.5_scale_1",
    "steincd_gan_0.5_scale_10",
  ]
  assert len(methods.runs(["steingan"], None, rules)) == 1


def test_the_trade_off_is_drawn_for_the_mixes_only(tmp_path, monkeypatch):
  drawn = {}
  monkeypatch.setattr(
    plots,
    "mix_trade_off",
    lambda path, alphas, **values: drawn.update(values, x=alphas),
  )
  curves = [
    runs.Run(f"steincd_gan_{alpha}", f"mix {alpha}", None, mix=alpha)
    for alpha in (1.0, 0.25)
  ]
  curves.append(runs.Run("steingan_no_kernel", "off", None, mix=0.0))
  curves.append(runs.Run("mle", "mle", None))
  summaries = {
    run.label: {
      "samples": {"inception_score": {"values": [index]}},
      "final": {"test": {"values": [-index]}},
    }
    for index, run in enumerate(curves)
  }
  generators.draw_mix(tmp_path / "x.png", curves, summaries, title="")
  assert drawn["x"] == [0.25, 1.0]
  assert drawn["inception_scores"] == [[1], [0]]
  assert drawn["log_likelihoods"] == [[-1], [0]]
  drawn.clear()
  generators.draw_mix(tmp_path / "x.png", curves[1:], summaries, title="")
  assert not drawn
