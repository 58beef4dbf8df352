"""What the model sees of the data."""

import jax
import numpy as np

from experiments.rbm import problem as rbm_problem


def test_center_and_scale_are_of_the_training_set():
  pixels = np.random.default_rng(0).integers(0, 256, (6, 5)).astype(np.uint8)
  transform, untransform = rbm_problem.transforms(
    jax.numpy.asarray(pixels), center=True, scale=2.0
  )
  got = transform(jax.numpy.asarray(pixels[:3]))
  want = 2 * (pixels[:3] / 255 - (pixels / 255).mean(axis=0))
  np.testing.assert_allclose(got, want, atol=1e-6)
  np.testing.assert_allclose(untransform(got), pixels[:3] / 255, atol=1e-6)
