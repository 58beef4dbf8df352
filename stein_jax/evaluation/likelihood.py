"""Mean log-likelihoods of large data sets, with their standard errors, in nats."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.types import Array, Params


class MeanLogLikelihood(NamedTuple):
  """A mean of log p(xᵢ) over n points, in nats.

  Attributes:
    mean: (1/n) Σᵢ log p(xᵢ).
    standard_error: of the mean, √(Σᵢ (log p(xᵢ) − mean)² / (n(n − 1))). It measures
      the randomness of the points, not that of the training.
  """

  mean: Array
  standard_error: Array


def _check(
  log_likelihood_fn: Callable[..., Array], x: Array, batch_size: int | None
) -> None:
  checks.function("log_likelihood_fn", log_likelihood_fn)
  checks.array("x", x)
  if batch_size is not None:
    checks.at_least_one("batch_size", batch_size)


@compiled(_check, static=("batch_size",))
def mean_log_likelihood(
  params: Params,
  log_likelihood_fn: Callable[[Params, Array], Array],
  x: Array,
  *,
  batch_size: int | None = None,
) -> MeanLogLikelihood:
  """The mean log-likelihood of x and its standard error.

  Figure 1(a) of Liu & Wang (2017) shows it during training.

  >>> log_p = lambda mean, x: -0.5 * jnp.sum((x - mean) ** 2 + jnp.log(2 * jnp.pi), -1)
  >>> mean_log_likelihood(0.0, log_p, jnp.zeros((4, 2))).standard_error.item()
  0.0

  Args:
    params: the first argument of `log_likelihood_fn`.
    log_likelihood_fn: (params, points [m, ...]) -> log p of each, [m]; for example an
      RBM's `log_likelihood`. It is compiled once for each function object: pass the
      same function each time, not a new lambda. If x are pixels as uint8, it has to
      scale them.
    x: points [n, ...], n ≥ 2.
    batch_size: the number of points in each call of `log_likelihood_fn`; None: all.

  Raises:
    ValueError: there are fewer than two points, batch_size is below 1, or the function
      does not return one number for each point.
    TypeError: no function, or x is not one array.
  """
  x = jnp.asarray(x)
  if x.ndim == 0 or len(x) < 2:
    raise ValueError(f"x must be at least two points [n, ...], got shape {x.shape}.")
  size = len(x) if batch_size is None else min(batch_size, len(x))

  def log_likelihood(batch: Array) -> Array:
    values = log_likelihood_fn(params, batch)
    shape = getattr(values, "shape", None)
    if shape != batch.shape[:1]:
      got = checks.described(values) if shape is None else f"shape {shape}"
      raise ValueError(
        f"log_likelihood_fn must map points of shape {batch.shape} to "
        f"{batch.shape[:1]}, but returned {got}."
      )
    return values

  whole = len(x) - len(x) % size
  batches = x[:whole].reshape(-1, size, *x.shape[1:])
  values = jax.lax.map(log_likelihood, batches).reshape(-1)
  if whole < len(x):
    values = jnp.concatenate([values, log_likelihood(x[whole:])])
  standard_error = jnp.std(values, ddof=1) / math.sqrt(len(values))
  return MeanLogLikelihood(jnp.mean(values), standard_error)


def gaussian_baseline(
  train: Array, test: Array, *, batch_size: int | None = None
) -> MeanLogLikelihood:
  """The mean log-likelihood of `test` under N(mean of `train`, I): a lower baseline.

  log p(x) = −½‖x − x̄‖² − (d/2) log 2π

  A Gaussian-Bernoulli RBM with B = 0 learns this distribution: −746.9 nats on MNIST
  with pixels in [0, 1].

  Args:
    train: points [n, ...] as floats, scaled so that variance 1 is appropriate.
    test: points [m, ...] in the same units, m ≥ 2.
    batch_size: as in `mean_log_likelihood`.

  Raises:
    ValueError: the points have different shapes, `train` is empty, or the points are
      integers: scale pixels first, or variance 1 is far too small.
  """
  for name, x in (("train", train), ("test", test)):
    checks.array(name, x)
  train, test = jnp.asarray(train), jnp.asarray(test)
  if train.shape[1:] != test.shape[1:] or train.ndim == 0 or len(train) == 0:
    raise ValueError(
      f"train and test must be points [n, ...] of one shape, got {train.shape} and "
      f"{test.shape}."
    )
  for name, x in (("train", train), ("test", test)):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(f"{name} has dtype {x.dtype}: scale it to floats first.")
  mean = jnp.mean(train, axis=0)
  return mean_log_likelihood(mean, _unit_gaussian, test, batch_size=batch_size)


def _unit_gaussian(mean: Array, x: Array) -> Array:
  squares = (x - mean[None]) ** 2
  distances = jnp.sum(squares.reshape(len(x), -1), axis=1)
  return -0.5 * distances - 0.5 * mean.size * math.log(2 * math.pi)
