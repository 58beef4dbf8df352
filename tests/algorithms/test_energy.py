"""Scores and energies of many points, against derivatives taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stein_jax import score, scores
from stein_jax.algorithms.energy import (
  energies,
  split_batch,
  with_points,
)

PRECISION = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.4], [0.0, -0.4, 0.7]])
MEAN = np.array([0.5, -1.0, 2.0])
POINTS = np.random.default_rng(0).normal(size=(7, 3))


def gaussian(params, x):
  centred = x - params["mean"]
  return 0.5 * centred @ params["precision"] @ centred


def half_squared_distance(centre, x):
  return 0.5 * jnp.sum(jnp.square(x - centre))


def test_score_is_minus_the_gradient_of_the_energy():
  params = {"mean": MEAN, "precision": PRECISION}
  expected = -(POINTS - MEAN[None]) @ PRECISION
  np.testing.assert_allclose(scores(params, gaussian, POINTS), expected, rtol=1e-5)
  one = score(params, gaussian, jnp.asarray(POINTS[2]))
  np.testing.assert_allclose(one, expected[2], rtol=1e-5)


def test_energies_are_one_number_for_each_point():
  params = {"mean": MEAN, "precision": PRECISION}
  centred = POINTS - MEAN[None]
  expected = 0.5 * np.einsum("ni,ij,nj->n", centred, PRECISION, centred)
  np.testing.assert_allclose(energies(params, gaussian, POINTS), expected, rtol=1e-5)


def test_each_point_is_scored_in_its_own_context():
  centres = np.random.default_rng(1).normal(size=(4, 3))
  labels = np.array([3, 0, 0, 2, 1, 3, 2])

  def energy(params, x, label):
    return half_squared_distance(params[label], x)

  batch = {"x": POINTS, "context": labels}
  got = scores(jnp.asarray(centres), energy, batch)
  np.testing.assert_allclose(got, centres[labels] - POINTS, rtol=1e-5)
  expected = 0.5 * np.square(POINTS - centres[labels]).sum(axis=1)
  got = energies(jnp.asarray(centres), energy, batch)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_score_has_the_structure_of_its_point():
  def energy(scale, x):
    return scale * jnp.sum(x["a"]) * x["b"] + 0.5 * jnp.square(x["b"])

  points = {"a": POINTS, "b": POINTS[:, 0]}
  got = scores(3.0, energy, points)
  expected_a = -3 * np.repeat(points["b"][:, None], 3, axis=1)
  np.testing.assert_allclose(got["a"], expected_a, rtol=1e-5)
  expected_b = -3 * POINTS.sum(axis=1) - points["b"]
  np.testing.assert_allclose(got["b"], expected_b, rtol=1e-5)


@settings(deadline=None, max_examples=4, database=None)
@given(
  shape=st.lists(st.integers(1, 3), min_size=1, max_size=4).map(tuple),
  dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
)
def test_scores_keep_shape_and_dtype(shape, dtype):
  x = jnp.arange(np.prod(shape)).reshape(shape).astype(dtype)
  got = scores(0.0, half_squared_distance, x)
  assert (got.shape, got.dtype) == (x.shape, x.dtype)
  np.testing.assert_array_equal(got, -x)


def test_a_batch_with_x_and_context_is_split_and_any_other_dict_is_points():
  batch = {"x": POINTS, "context": np.arange(7)}
  x, context = split_batch(batch)
  assert x is POINTS
  np.testing.assert_array_equal(context, (np.arange(7),))
  moved = with_points(batch, POINTS + 1)
  np.testing.assert_array_equal(moved["x"], POINTS + 1)
  np.testing.assert_array_equal(moved["context"], np.arange(7))
  points = {"x": POINTS, "y": POINTS}
  assert split_batch(points) == (points, ())
  assert with_points(points, {"x": 1, "y": 2}) == {"x": 1, "y": 2}


@pytest.mark.parametrize("function", [scores, energies])
def test_an_energy_that_is_not_a_scalar_is_an_error(function):
  with pytest.raises(ValueError, match=r"scalar.* shape \(3,\) it returned .*\(3,\)"):
    function(MEAN, lambda centre, x: x - centre, POINTS)
  with pytest.raises(ValueError, match=r"must return a scalar"):
    function(MEAN, lambda centre, x: (x.sum(), x.sum()), POINTS)


@pytest.mark.parametrize(
  ("points", "error", "message"),
  [
    (np.arange(6).reshape(2, 3), TypeError, "floating-point, got int"),
    (np.float32(1.0), ValueError, "leading axis"),
    ({"a": np.ones((2, 1)), "b": np.ones((3, 1))}, ValueError, "share one leading"),
    (np.ones((0, 3)), ValueError, "at least one point"),
    ({}, ValueError, "at least one array"),
  ],
)
def test_points_that_are_no_batch_are_an_error(points, error, message):
  for function in (scores, energies):
    with pytest.raises(error, match=message):
      function(0.0, lambda params, x: jnp.zeros(()), points)


def test_scores_run_under_jit_and_differentiate_in_the_parameters():
  @jax.jit
  def total_score(centre):
    return scores(centre, half_squared_distance, jnp.asarray(POINTS)).sum()

  np.testing.assert_allclose(jax.grad(total_score)(jnp.asarray(MEAN)), np.full(3, 7.0))
