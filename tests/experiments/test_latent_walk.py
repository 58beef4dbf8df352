"""The command latent_walk: its walk, its interpolation and its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import latent_walk
from tests import binaries
from tests.experiments.parsing import parsed
from tests.experiments.pictures.examples import save_generator


def test_a_latent_walk_writes_strips_and_an_animation(tmp_path):
  folder = save_generator(tmp_path / "generator", "dcgan", 3)
  workdir = tmp_path / "walk"
  done = binaries.run(
    "latent_walk",
    f"--run={folder}",
    "--rows=2",
    "--steps=6",
    "--stride=2",
    "--pictures=3",
    f"--workdir={workdir}",
  )
  assert done.returncode == 0, done.stderr
  assert {file.name for file in workdir.iterdir()} == {
    "walk.png",
    "interpolation.png",
    "walk.gif",
  }
  with Image.open(workdir / "walk.gif") as animation:
    assert animation.size == (64, 32)


def test_a_walk_has_small_steps_and_stays_within_its_limits():
  start = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, size=(3, 100)))
  start = start.astype(jnp.float32)
  path = latent_walk.walk(jax.random.key(0), start, num_steps=50, step_size=0.2)
  assert path.shape == (51, 3, 100)
  np.testing.assert_array_equal(path[0], start)
  assert np.abs(path).max() <= 1
  steps = np.abs(np.diff(path, axis=0))
  assert steps.max() <= 0.2 + 1e-6
  assert abs(steps[:, :, np.abs(start).max(axis=0) < 0.5].mean() - 0.1) < 0.01
  ends = latent_walk.interpolation(start, num_images=5)
  np.testing.assert_allclose(ends[0], start, atol=1e-6)
  np.testing.assert_allclose(ends[-1], np.roll(start, -1, axis=0), atol=1e-6)
  np.testing.assert_allclose(ends[2], (ends[0] + ends[-1]) / 2, atol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ((), "--run: give a folder that experiments.images wrote"),
    (("--run=nowhere",), "nowhere holds no generator"),
    (("--step_size=2",), "--step_size must be above 0 and at most 1, got 2"),
    (("--pictures=1",), "--pictures must be at least 2, got 1"),
  ],
)
def test_wrong_flags_end_with_a_message(options, message):
  with pytest.raises(SystemExit) as ended:
    latent_walk.main(parsed(latent_walk.Settings, *options))
  assert message in str(ended.value)
