"""The command images, on a few images made here."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import images
from experiments.pictures import saved_generators
from experiments.shared import workdirs
from tests import binaries
from tests.experiments.parsing import parsed

# What a run with default settings recorded before settings were fields of a dataclass.
EARLIER = {
  "method": "steingan,dcgan",
  "dataset": "lsun/bedroom",
  "size": "32",
  "conditional": "False",
  "stream": "False",
  "steps": "50000",
  "batch_size": "100",
  "seeds": "0",
  "eval_every": "1000",
  "log_every": "100",
  "width": "1.0",
  "generator_width": "1.0",
  "discriminator_width": "1.0",
  "normalization": "group",
  "tied": "True",
  "norm": "l2",
  "bandwidth": "median",
  "bandwidth_multiple": "1.0",
  "num_neighbors": "0",
  "discount": "aligned",
  "energy_learning_rate": "0.0005",
  "generator_learning_rate": "0.001",
  "dcgan_learning_rate": "0.0002",
  "beta1": "0.5",
  "mix": "0.25",
  "mix_scale": "1.0",
  "step_size": "0.1",
  "bfloat16": "False",
  "workdir": "runs/images",
  "progress": "True",
}

SMALL = (
  "--dataset=lsun/bedroom",
  "--size=32",
  "--width=0.0625",
  "--generator_width=0.0625",
  "--discriminator_width=0.03125",
  "--batch_size=4",
  "--steps=4",
  "--eval_every=2",
  "--noprogress",
)


@pytest.fixture(scope="module")
def images_dir(tmp_path_factory):
  """A folder of 40 images: bright squares on a dark background."""
  folder = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for k in range(40):
    image = rng.integers(0, 60, size=(40, 48, 3), dtype=np.uint8)
    y, x = rng.integers(4, 24, size=2)
    image[y : y + 12, x : x + 12] += rng.integers(80, 190, size=3, dtype=np.uint8)
    Image.fromarray(image).save(folder / f"{k:03d}.png")
  return folder


BOTH = ("steingan", "dcgan")
of_both = pytest.mark.parametrize("trained", [BOTH], indirect=True)


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(("dcgan",), id="dcgan"),
    pytest.param(BOTH, id="both", marks=pytest.mark.slow),
  ],
)
def trained(request, images_dir, tmp_path_factory):
  """A run of one method or of two."""
  workdir = tmp_path_factory.mktemp("runs") / "images"
  output = binaries.run(
    "images",
    *SMALL,
    f"--method={','.join(request.param)}",
    "--average=0.5",
    f"--data_dir={images_dir}",
    f"--cache_dir={workdir.parent / 'cache'}",
    f"--workdir={workdir}",
  )
  assert output.returncode == 0, output.stderr
  return workdir, output.stdout, request.param


def test_a_run_writes_figures_metrics_and_generators(trained):
  workdir, output, methods = trained
  figures = ["samples.png", "training.png"]
  figures += ["reconstructions.png"] * ("steingan" in methods)
  for name in (*figures, "summary.json", "flags.txt"):
    assert (workdir / name).stat().st_size > 100
  summary = json.loads((workdir / "summary.json").read_text())
  assert set(summary["runs"]) == set(methods)
  for method, (run,) in summary["runs"].items():
    assert run["last"]["step"] == 4
    assert np.isfinite(run["last"]["mean_pairwise_distance"])
    folder = workdir / method / "seed_0"
    kept = [np.load(file) for file in sorted((folder / "samples").glob("*.npy"))]
    assert [images.shape for images in kept] == 3 * [(100, 32, 32, 3)]
    assert not np.array_equal(kept[0], kept[-1])
    assert (folder / "reconstructions").exists() == (method != "dcgan")
  assert "| DCGAN, seed 0 | 4 |" in output
  if "steingan" in methods:
    assert 0 < summary["runs"]["steingan"][0]["last"]["repulsion_share"] < 1
    assert "| SteinGAN, seed 0 | 4 |" in output


@pytest.mark.slow
@of_both
def test_two_devices_learn_the_same_as_one(trained, images_dir, tmp_path):
  output = binaries.run(
    "images",
    *SMALL,
    "--method=steingan,dcgan",
    "--average=0.5",
    "--num_devices=2",
    f"--data_dir={images_dir}",
    f"--cache_dir={tmp_path / 'cache'}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert output.returncode == 0, output.stderr
  for method, metric in (("steingan", "energy_data"), ("dcgan", "loss")):
    one, two = (
      json.loads((folder / "summary.json").read_text())["runs"][method][0]["last"]
      for folder in (trained[0], tmp_path / "run")
    )
    assert two[metric] == pytest.approx(one[metric], rel=2e-3)


@pytest.mark.slow
@of_both
def test_the_same_command_continues_a_finished_run(trained, images_dir):
  workdir, _, _ = trained
  before = saved_generators.load(workdir / "dcgan" / "seed_0")
  output = binaries.run(
    "images",
    *SMALL,
    "--method=steingan,dcgan",
    "--average=0.5",
    f"--data_dir={images_dir}",
    f"--cache_dir={workdir.parent / 'cache'}",
    f"--workdir={workdir}",
  )
  assert output.returncode == 0, output.stderr
  after = saved_generators.load(workdir / "dcgan" / "seed_0")
  for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params)):
    np.testing.assert_array_equal(a, b)
  assert "| DCGAN, seed 0 | 4 |" in output.stdout


@pytest.mark.slow
@pytest.mark.parametrize("method", ["steincd_gan", "steingan_no_kernel"])
def test_the_other_methods_are_trained(method, images_dir, tmp_path):
  output = binaries.run(
    "images",
    *SMALL,
    f"--method={method}",
    "--mix=0.5",
    f"--data_dir={images_dir}",
    f"--cache_dir={tmp_path / 'cache'}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert output.returncode == 0, output.stderr
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert np.isfinite(summary["runs"][method][0]["last"]["energy_gap"])


def test_a_generator_is_loaded_as_it_was_saved(trained):
  workdir, _, methods = trained
  folder = workdir / methods[0] / "seed_0"
  saved = saved_generators.load(folder)
  last = sorted((folder / "samples").glob("*.npy"))[-1]
  np.testing.assert_array_equal(saved.sample(100), np.load(last))
  np.testing.assert_array_equal(saved.sample(7), np.load(last)[:7])
  assert saved.labels(5) is None
  with pytest.raises(SystemExit, match=r"holds no generator.*WORKDIR/METHOD/seed_0"):
    saved_generators.load(workdir)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (("--method=gan",), "--method must name some of steingan"),
    (("--conditional",), "has no labels: leave --conditional out"),
    (("--batch_size=400",), "is more than the 36 training images"),
    (("--size=48",), "--size must be one of 32, 64"),
    (("--discount=2",), "--discount must be a number in"),
    (("--discount=some",), "--discount must be a number in"),
    (("--width=-1",), "--width must be above 0"),
    (("--average=1",), "--average must be above 0 and below 1, got 1"),
    (("--method=steincd_gan", "--bfloat16"), "leave --bfloat16 out"),
    (("--seeds=-1",), "--seeds must be integers from 0"),
  ],
)
def test_wrong_flags_end_with_a_message(options, message, images_dir, tmp_path):
  folders = (
    f"--data_dir={images_dir}",
    f"--cache_dir={tmp_path / 'cache'}",
    f"--workdir={tmp_path / 'run'}",
  )
  with pytest.raises(SystemExit) as ended:
    images.main(parsed(images.Settings, *SMALL, *folders, *options))
  assert message in str(ended.value)
  assert ended.value.code == 2
  assert not (tmp_path / "run").exists()


def test_wrong_flags_end_the_process_with_an_error_code():
  output = binaries.run("images", "--size=48")
  assert output.returncode == 2
  assert "--size must be one of 32, 64, got 48." in output.stderr


@pytest.mark.parametrize("name", ["cifar10", "celeb_a", "lsun", "images_small"])
def test_flagfiles_hold_settings_that_are_allowed(name):
  own = parsed(images.Settings, f"--flagfile=experiments/flags/{name}.flags")
  assert own.steps >= 3000


def test_the_record_of_a_run_gives_its_settings_again(trained):
  workdir, _, methods = trained
  own = parsed(images.Settings, f"--flagfile={workdir / 'flags.txt'}")
  assert own.method == methods
  assert own.average == 0.5
  assert own.progress is False


def test_an_earlier_record_is_continued_with_more_methods_and_steps(tmp_path):
  """The flags.txt of a run before settings were fields of a dataclass."""
  own = images.Settings(workdir=str(tmp_path), dataset="lsun/bedroom", size=32)
  lines = [f"--{name}={value}" for name, value in EARLIER.items()]
  (tmp_path / "flags.txt").write_text("\n".join(lines) + "\n")
  workdirs.check(own)
  workdirs.check(
    dataclasses.replace(own, method=("dcgan", "steingan", "steincd_gan"), steps=60_000)
  )
  with pytest.raises(SystemExit, match=r"--width: 1\.0 before, 0\.5 now"):
    workdirs.check(dataclasses.replace(own, width=0.5))
