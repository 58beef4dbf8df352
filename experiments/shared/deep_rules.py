"""Learning rules for an energy that is a network, each with one number to choose.

`make(name, ...)` returns any of them, and `RULES[name]` tells what its number is. The
number is a factor on a scale that is measured from the data, so that its default serves
data of any size. The scale v is the variance of the Gaussians of the kernel density
estimate under which points that were left out are most likely. It follows the finest
structure of the data: from a sixth of a component's variance in the plane to twice
that in 784 dimensions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
import scipy.spatial
import scipy.special

import stein_jax
from experiments.shared.whitened import whitened_kernel
from stein_jax import Algorithm, Direction, critics, densities, evaluation, kernels

Number = Any  # a float, or a traced array


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a rule is made of."""

  energy_fn: Callable[..., Any]
  optimizer: optax.GradientTransformation
  data: np.ndarray
  """Points `[n, d]`, by which kernels are whitened and from which rules draw."""
  variance: float
  """v."""
  median_squared: float
  """The squared median distance between points."""
  noise: densities.Density
  """A Gaussian that is somewhat broader than the data."""
  whitened: Callable[[], kernels.Whitened]
  """The kernel of the whitened rules, made from the data when first called."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """A learning rule and its number.

  Attributes:
    label: its name in tables.
    make: `make(problem, factor)` -> the Algorithm.
    number: what the factor is; "" if there is none.
    default: of the factor.
    low, high: between which it is sought.
  """

  label: str
  make: Callable[[Problem, Number], Algorithm]
  number: str = ""
  default: float = 1.0
  low: float = 1.0
  high: float = 1.0


def _cd(**options: Any) -> Callable[[Problem, Number], Algorithm]:
  def make(p: Problem, factor: Number) -> Algorithm:
    return stein_jax.contrastive_divergence(
      p.energy_fn, p.optimizer, step_size=factor * p.variance, **options
    )

  return make


def _learned_stein(p: Problem, factor: Number) -> Algorithm:
  critic = critics.VectorMLP((128, 128))
  faster = optax.chain(p.optimizer, optax.scale(factor))
  # One step of the critic, as its optimizer's schedule is that of the energy.
  rule = stein_jax.learned_stein_discrepancy(
    p.energy_fn, critic.apply, p.optimizer, faster
  )

  def init(key: jax.Array, params: Any, batch: Any) -> Any:
    key, critic_key = jax.random.split(key)
    both = {"energy": params, "critic": critic.init(critic_key, batch[0])}
    return rule.init(key, both, batch)

  return Algorithm(init, rule.update)


def _whitened(data: np.ndarray) -> Callable[[], kernels.Whitened]:
  """The whitened kernel, computed once."""

  @functools.cache
  def kernel() -> kernels.Whitened:
    # Rules are made while JAX traces; this is a constant of theirs.
    with jax.ensure_compile_time_eval():
      return whitened_kernel(data)

  return kernel


def _whitened_stein_cd(
  p: Problem, optimizer: optax.GradientTransformation
) -> Algorithm:
  direction = Direction(p.whitened(), leave_one_out=True)
  return stein_jax.stein_cd(
    p.energy_fn, direction, optimizer, step_size=p.variance, symmetric=True
  )


_CHAINS: dict[str, Any] = {
  "num_steps": 3,
  "antithetic": "last",
  "averaged_noise": True,
  "persistent": True,
}
"""Those of the mixes: few steps, but long ones that are hardly biased."""


def _with_chains(
  local: Callable[[Problem, optax.GradientTransformation], Algorithm],
) -> Callable[[Problem, Number], Algorithm]:
  """Chains, which see the weights of modes, and a rule that sees shapes.

  Chains contrast energies, the others scores, which the variance v makes alike.
  """

  def make(p: Problem, factor: Number) -> Algorithm:
    def chains(optimizer: optax.GradientTransformation) -> Algorithm:
      return _cd(**_CHAINS)(dataclasses.replace(p, optimizer=optimizer), factor)

    rules = {
      "chains": (chains, 1.0),
      "local": (functools.partial(local, p), p.variance),
    }
    return stein_jax.mix(rules, p.optimizer)

  return make


def _own_left_out(p: Problem, factor: Number) -> Direction:
  return Direction(kernels.rbf(factor * p.median_squared), leave_one_out=True)


_LANGEVIN = {"number": "ε / v", "default": 0.05, "low": 0.01, "high": 0.5}
_LONGER = {"number": "ε / v", "default": 0.2, "low": 0.05, "high": 0.5}
_BANDWIDTH = {"number": "h / med²", "default": 0.15, "low": 0.03, "high": 1.0}

RULES: dict[str, Rule] = {
  # That of Fisher score matching with one of Hutchinson's probes, to the last digit.
  "sliced": Rule(
    "Sliced score matching",
    lambda p, _: stein_jax.sliced_score_matching(p.energy_fn, p.optimizer),
  ),
  "denoising": Rule(
    "Denoising score matching",
    lambda p, factor: stein_jax.denoising_score_matching(
      p.energy_fn, p.optimizer, sigma=factor * p.variance**0.5
    ),
    "σ / √v",
    default=0.4,
    low=0.1,
    high=1.0,
  ),
  "cd1": Rule("CD-1, antithetic", _cd(num_steps=1, antithetic=True), **_LANGEVIN),
  "cd10": Rule(
    "CD-10, antithetic last", _cd(num_steps=10, antithetic="last"), **_LANGEVIN
  ),
  "pcd10": Rule(
    "Persistent CD-10",
    _cd(num_steps=10, antithetic="last", persistent=True),
    **_LANGEVIN,
  ),
  "replay": Rule(
    "CD-10, buffer of chains",
    lambda p, factor: _cd(
      num_steps=10, antithetic="last", start="replay", buffer_size=2000
    )(p, factor),
    **_LANGEVIN,
  ),
  "chains": Rule("Chains of averaged noise, 3 steps", _cd(**_CHAINS), **_LONGER),
  "mix_stein": Rule(
    "Chains + whitened SteinCD", _with_chains(_whitened_stein_cd), **_LONGER
  ),
  "mix_sliced": Rule(
    "Chains + sliced score matching",
    _with_chains(
      lambda p, optimizer: stein_jax.sliced_score_matching(p.energy_fn, optimizer)
    ),
    **_LONGER,
  ),
  "nce": Rule(
    "NCE, 10 noise points",
    lambda p, _: stein_jax.noise_contrastive(
      p.energy_fn, p.noise, p.optimizer, num_noise=10
    ),
  ),
  "conditional_nce": Rule(
    "Conditional NCE",
    lambda p, factor: stein_jax.conditional_noise_contrastive(
      p.energy_fn, p.optimizer, noise_scale=factor * p.variance**0.5, num_noise=4
    ),
    "σ / √v",
    default=1.0,
    low=0.1,
    high=3.0,
  ),
  "energy_discrepancy": Rule(
    "Energy discrepancy",
    lambda p, factor: stein_jax.energy_discrepancy(
      p.energy_fn, p.optimizer, time=factor * p.variance
    ),
    "t / v",
    default=0.1,
    low=0.003,
    high=1.0,
  ),
  "learned_stein": Rule(
    "Learned Stein discrepancy",
    _learned_stein,
    "critic's rate / θ's",
    default=3.0,
    low=1.0,
    high=10.0,
  ),
  "stein_cd": Rule(
    "SteinCD, as in the paper",
    lambda p, factor: stein_jax.stein_cd(
      p.energy_fn, kernels.rbf(), p.optimizer, step_size=factor * p.variance
    ),
    "ε / v",
    default=1.0,
    low=0.1,
    high=10.0,
  ),
  "stein_cd_own_left_out": Rule(
    "SteinCD, own point left out",
    lambda p, factor: stein_jax.stein_cd(
      p.energy_fn,
      _own_left_out(p, factor),
      p.optimizer,
      step_size=p.variance,
      symmetric=True,
    ),
    **_BANDWIDTH,
  ),
  "stein_cd_whitened": Rule(
    "SteinCD, whitened", lambda p, _: _whitened_stein_cd(p, p.optimizer)
  ),
  "stein_cd_regularized": Rule(
    "SteinCD, regularised, 3 moves",
    lambda p, factor: stein_jax.stein_cd(
      p.energy_fn,
      Direction(kernels.rbf(factor * p.median_squared), regularization=0.1),
      p.optimizer,
      step_size=0.5 * p.variance,
      num_steps=3,
    ),
    "h / med²",
    default=1.0,
    low=0.1,
    high=3.0,
  ),
  "stein_score_matching": Rule(
    "Stein score matching, as in the paper",
    lambda p, factor: stein_jax.stein_score_matching(
      p.energy_fn, kernels.rbf(factor * p.median_squared), p.optimizer
    ),
    "h / med²",
    default=0.2,
    low=0.03,
    high=1.0,
  ),
  "stein_score_matching_own_left_out": Rule(
    "Stein score matching, own point left out",
    lambda p, factor: stein_jax.stein_score_matching(
      p.energy_fn, _own_left_out(p, factor), p.optimizer
    ),
    **_BANDWIDTH,
  ),
  # More of the data in the kernel's sums: less noise, for as many more scores.
  "stein_score_matching_reference": Rule(
    "Stein score matching, own point left out, 400 reference points",
    lambda p, factor: stein_jax.stein_score_matching(
      p.energy_fn, _own_left_out(p, factor), p.optimizer, reference=_some(p.data, 400)
    ),
    **_BANDWIDTH,
  ),
}


def _some(data: np.ndarray, count: int) -> Callable[[jax.Array], jax.Array]:
  """A function of a key that draws points of the data."""
  points = jnp.asarray(data)
  return lambda key: points[jax.random.randint(key, (count,), 0, len(points))]


def problem(
  energy_fn: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  data: np.ndarray,
) -> Problem:
  """Measures the scales of the data, `[n, d]` with n of at least 2."""
  data = np.asarray(data)
  squares = scipy.spatial.distance.pdist(data[:1000].astype(np.float64), "sqeuclidean")
  return Problem(
    energy_fn,
    optimizer,
    data,
    _local_variance(scipy.spatial.distance.squareform(squares), data.shape[1]),
    float(np.median(squares)),
    evaluation.broad_gaussian(data),
    _whitened(data),
  )


def with_data(p: Problem, data: Any) -> Problem:
  """The same scales, with other points to whiten by and to draw from.

  Where these are not the training set, such rules see more data than the others.
  """
  data = np.asarray(data)
  return dataclasses.replace(p, data=data, whitened=_whitened(data))


def _local_variance(squares: np.ndarray, dimension: int) -> float:
  """v that maximises Σᵢ log Σ_{j≠i} N(xᵢ; xⱼ, v I), from squared distances `[n, n]`."""
  squares = squares + np.diag(np.full(len(squares), np.inf))  # a point is no neighbour

  def loss(log_v: float) -> float:
    exponents = -0.5 * squares / np.exp(log_v)
    return -float(scipy.special.logsumexp(exponents, axis=1).mean()) + (
      0.5 * dimension * log_v
    )

  nearest = np.log(np.median(squares.min(axis=1)) / dimension)
  bounds = (nearest - 5, nearest + 5)
  found = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded")
  return float(np.exp(found.x))


def make(
  name: str,
  energy_fn: Callable[..., Any],
  optimizer: optax.GradientTransformation,
  data: np.ndarray,
  *,
  factor: Number | None = None,
) -> Algorithm:
  """The rule `name` for this energy and data; its number is `factor` times the scale.

  `init` takes the energy's θ. `theta` returns it from a state.
  """
  rule = RULES[name]
  factor = rule.default if factor is None else factor
  return rule.make(problem(energy_fn, optimizer, data), factor)


def theta(state: Any) -> Any:
  """The energy's θ in the state of any rule."""
  params = state.params
  return params["energy"] if set(params) == {"energy", "critic"} else params
