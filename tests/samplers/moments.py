"""An assertion on the moments of draws, for the tests of the samplers."""

import numpy as np


def assert_moments(values, mean, variance, fourth=3.0, num_errors=5):
  """Asserts this mean and variance of draws, within some standard errors."""
  values = np.asarray(values, np.float64).ravel()
  mean_error = np.sqrt(variance / values.size)
  assert abs(values.mean() - mean) < num_errors * mean_error
  variance_error = variance * np.sqrt((fourth - 1) / values.size)
  assert abs(np.square(values - mean).mean() - variance) < num_errors * variance_error
