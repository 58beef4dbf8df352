"""An energy whose derivatives are written out, and the learning rules made of them."""

import jax.numpy as jnp
import numpy as np

from tests import oracles

DATA = np.random.default_rng(0).normal(size=(6, 3)) * 1.3 + 0.5


def energy(params, x):
  """½ (x − μ)ᵀA(x − μ) + wᵀ tanh x, for any A."""
  centred = x - params["mean"]
  return 0.5 * centred @ params["A"] @ centred + params["w"] @ jnp.tanh(x)


def some_params(dtype=np.float64):
  """Parameters of the energy."""
  rng = np.random.default_rng(1)
  A = np.eye(3) + 0.3 * rng.normal(size=(3, 3))
  params = {"A": A, "mean": rng.normal(size=3), "w": rng.normal(size=3)}
  return {name: value.astype(dtype) for name, value in params.items()}


def score_by_hand(params, x):
  """−∇ₓE(x)."""
  A, mean, w = params["A"], params["mean"], params["w"]
  return -0.5 * (A + A.T) @ (x - mean) - w * (1 - np.tanh(x) ** 2)


def energy_gradient(params, x):
  """∇θ E(x), by hand."""
  centred = x - params["mean"]
  A = params["A"]
  return {
    "A": 0.5 * np.outer(centred, centred),
    "mean": -0.5 * (A + A.T) @ centred,
    "w": np.tanh(x),
  }


def cross_derivative(params, x, phi):
  """∇θ [∇ₓE(x)ᵀ φ], by hand."""
  centred = x - params["mean"]
  A = params["A"]
  return {
    "A": 0.5 * (np.outer(phi, centred) + np.outer(centred, phi)),
    "mean": -0.5 * (A + A.T) @ phi,
    "w": (1 - np.tanh(x) ** 2) * phi,
  }


def mean_of(gradients):
  """The mean of dicts of arrays."""
  return {name: np.mean([g[name] for g in gradients], axis=0) for name in gradients[0]}


def scores_by_hand(params, x):
  """−∇ₓE of every point."""
  return np.array([score_by_hand(params, p) for p in x])


def direction_by_hand(params, x, kernel, **options):
  """φ of a kernel of `oracles`, with its options; the score for None."""
  scores = scores_by_hand(params, x)
  if kernel is None:
    return scores
  return oracles.svgd_direction(x, scores, *kernel, **options)


def stein_cd_by_hand(params, x, kernel, step_size, symmetric, **options):
  """Equations 13 and 17, divided by the distance between the two sides."""
  phi = direction_by_hand(params, x, kernel, **options)
  back = step_size if symmetric else 0.0
  positive = mean_of([energy_gradient(params, p) for p in x - back * phi])
  negative = mean_of([energy_gradient(params, p) for p in x + step_size * phi])
  distance = step_size + back
  return {name: (positive[name] - negative[name]) / distance for name in positive}


def limit_by_hand(params, x, kernel, **options):
  """Equation 15: −(1/m) Σᵢ ∇θ [∇ₓE(xᵢ)ᵀ φᵢ]."""
  phi = direction_by_hand(params, x, kernel, **options)
  mean = mean_of([cross_derivative(params, p, v) for p, v in zip(x, phi)])
  return {name: -value for name, value in mean.items()}
