"""The command evaluate, with stubs instead of ResNets and the Inception network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from experiments import evaluate
from experiments.pictures import (
  figure2,
  inception,
  resnet,
  saved_generators,
  square_images,
  testing_accuracy,
)
from experiments.shared import settings
from experiments.shared.datasets import Dataset
from tests import binaries
from tests.experiments.pictures.examples import save_generator


def dataset(labelled):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, size=(600, 32, 32, 3), dtype=np.uint8)
  labels = np.arange(600, dtype=np.int32) % 3 if labelled else None
  some = None if labels is None else labels[:60]
  empty = None if labels is None else labels[:0]
  return Dataset(
    "cifar10", "made up", images, images[:0], images[:60], labels, empty, some
  )


class CornerClassifier:
  """A stub of the ResNet, which depends on the first four numbers of an image."""

  test_accuracy = 0.9

  def features(self, images):
    return np.asarray(images).reshape(len(images), -1)[:, :4] / 255.0

  def probabilities(self, images):
    logits = 5 * self.features(images)[:, :3]
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True)


def stubbed(labelled, *arguments):
  """`python -m experiments.evaluate`, with stubs instead of all networks."""
  asked = []

  def accuracies(sets, test, **options):
    for name, (images, labels) in sets.items():
      file = Path(flags.FLAGS.workdir) / f"{name}.npz"
      np.savez(file, images=images[:20], labels=labels[:20])
    return dict.fromkeys(sets, 0.4)

  def inception_scores(images, real, **options):
    asked.append(len(images))
    return {"imagenet_inception_score": 2.5, "asked": asked[-1]}

  resnet.reference_resnet = lambda *args, **options: CornerClassifier()
  testing_accuracy.accuracy_by_training_set = accuracies
  inception.check_requirements = lambda path: None
  inception.inception_scores = inception_scores
  square_images.load_images = lambda name, **options: dataset(labelled)
  sys.argv = ["evaluate", *arguments]
  settings.run(evaluate.main, evaluate.Settings)


def run(labelled, workdir, runs, *arguments):
  arguments = [
    f"--runs={','.join(runs)}",
    f"--workdir={workdir}",
    "--num_samples=2000",
    "--noprogress",
    *arguments,
  ]
  code = "import sys; from tests.experiments.test_evaluate import stubbed; "
  code += f"stubbed({labelled}, *sys.argv[1:])"
  return subprocess.run(
    [sys.executable, "-c", code, *arguments],
    cwd=binaries.ROOT,
    env={**os.environ, **binaries.ONE_DEVICE},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


@pytest.mark.slow
def test_every_column_gets_scores_and_keeps_its_labels(tmp_path):
  runs = [save_generator(tmp_path / m, m, 3) for m in ("dcgan", "steingan")]
  out = tmp_path / "out"
  done = run(True, out, runs, "--inception_weights=given")
  assert done.returncode == 0, done.stderr
  summary = json.loads((out / "summary.json").read_text())
  names = [figure2.REAL, "500 Duplicate", "DCGAN", "SteinGAN"]
  assert set(summary["results"]) == set(names)
  for name in names:
    found = summary["results"][name]
    assert found["testing_accuracy"] == (0.9 if name == figure2.REAL else 0.4)
    assert found["asked"] == (600 if name == figure2.REAL else 2000)
    assert 1 <= found["inception_score"] <= 3
  trained = saved_generators.load(tmp_path / "dcgan")
  with np.load(out / "DCGAN.npz") as given:
    images, labels = given["images"], given["labels"]
  np.testing.assert_array_equal(images, trained.sample(2000)[:20])
  np.testing.assert_array_equal(labels, trained.labels(2000)[:20])
  text = evaluate.markdown(summary)
  assert text in done.stdout
  assert "11.237" in text
  assert "Training steps: DCGAN 7, SteinGAN 7." in text
  text = evaluate.markdown(summary | {"dataset": "svhn_cropped"})
  assert "11.237" not in text


def test_without_labels_there_is_no_testing_accuracy(tmp_path):
  runs = [save_generator(tmp_path / "steingan", "steingan", None)]
  done = run(False, tmp_path / "out", runs)
  assert done.returncode == 0, done.stderr
  assert "mean distance between pictures" in done.stdout
  assert "ResNet" not in done.stdout


@pytest.mark.parametrize(
  ("runs", "message", "code"),
  [
    (["one", "one", "one"], "two runs of DCGAN, seed 0", 2),
    ([""], "holds no generator", 1),
    ([], "give folders that experiments", 2),
  ],
)
def test_runs_that_cannot_be_compared_are_errors(runs, message, code, tmp_path):
  save_generator(tmp_path / "one", "dcgan", 3)
  done = run(True, tmp_path / "out", [str(tmp_path / name) for name in runs])
  assert done.returncode == code
  assert message in done.stderr
