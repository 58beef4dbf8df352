"""One trial of a rule: a student learns a truth, and is compared with it.

All trials of a rule and a truth are one compiled program: the learning rate, the rule's
own number and the length of the schedule are part of the state.
"""

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats.qmc

from experiments.shared import deep_rules
from stein_jax import (
  Algorithm,
  contrastive_divergence,
  descend,
  maximum_likelihood,
  negative_log_likelihood,
  sliced_score_matching_loss,
  training,
)
from stein_jax.densities import Density, mixture
from stein_jax.evaluation import broad_gaussian, compare_with_truth
from stein_jax.types import Array, Batch, Key, Metrics, Params

LEARNING_RATES = (3e-4, 1e-2)
"""Between which the learning rate of Adam is sought."""

DEFAULT_RATE = 2e-3

ORACLES = {
  "oracle_exact_mle": deep_rules.Rule(
    "exact MLE of an RBM", lambda p, _: _exact_likelihood(p)
  ),
  "oracle_kl": deep_rules.Rule(
    "KL with the truth's log density", lambda p, _: _minimised_kl(p)
  ),
  "oracle_chains": deep_rules.Rule(
    "MLE, 30 MALA steps from data",
    lambda p, factor: contrastive_divergence(
      p.energy_fn,
      p.optimizer,
      num_steps=30,
      step_size=factor * p.variance,
      persistent=True,
      metropolis=True,
    ),
    "ε / v",
    default=0.05,
    low=0.01,
    high=0.5,
  ),
}
"""What a rule would reach that knew the truth or log Z, or had time for long chains."""

RULES = deep_rules.RULES | ORACLES


class Numbers(NamedTuple):
  """What a trial chooses."""

  learning_rate: float
  factor: float
  num_steps: int
  """Over which the learning rate goes to 0 along a cosine."""


def candidates(rule: str, budget: int) -> list[tuple[float, float]]:
  """Learning rates and factors: the defaults, then a Sobol sequence of all rules."""
  low, high = RULES[rule].low, RULES[rule].high
  found = [(DEFAULT_RATE, RULES[rule].default)]
  if budget > 1:
    # Sobol sequences are drawn in powers of two.
    count = 1 << (budget - 2).bit_length()
    for u in scipy.stats.qmc.Sobol(2, scramble=True, seed=0).random(count)[
      : budget - 1
    ]:
      rate = LEARNING_RATES[0] * (LEARNING_RATES[1] / LEARNING_RATES[0]) ** u[0]
      found.append((float(rate), float(low * (high / low) ** u[1])))
  return found


@dataclasses.dataclass(frozen=True, eq=False)
class KnownProblem(deep_rules.Problem):
  """As `Problem`, with what only the oracles know."""

  truth: Density
  student: Any


def _exact_likelihood(p: deep_rules.Problem) -> Algorithm:
  assert isinstance(p, KnownProblem)
  return maximum_likelihood(p.energy_fn, p.student.log_partition, p.optimizer)


def _minimised_kl(p: deep_rules.Problem) -> Algorithm:
  """Descends KL(p* ‖ p) itself, with log Z by importance sampling from the truth."""
  assert isinstance(p, KnownProblem)
  proposal = mixture([p.truth, p.noise], [2, 1])

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    x_key, y_key = jax.random.split(key)
    x = p.truth.sample_fn(x_key, len(batch))
    y = proposal.sample_fn(y_key, 5 * len(batch))
    log_q = jax.vmap(proposal.log_density_fn)(y)

    def log_partition(params: Params) -> Array:
      energies = jax.vmap(partial(p.energy_fn, params))(y)
      return jax.nn.logsumexp(-energies - log_q) - jnp.log(len(y))

    loss, gradient = jax.value_and_grad(
      lambda params: negative_log_likelihood(params, p.energy_fn, x, log_partition)
    )(params)
    return gradient, {"loss": loss}

  return descend(gradient_fn, p.optimizer)


class TrialState(NamedTuple):
  """The state of a rule, and the numbers of the trial."""

  numbers: Numbers
  rule: Any


def _algorithm(name: str, problem: KnownProblem) -> Algorithm:
  """The rule as an Algorithm whose `params` are (numbers, θ)."""

  def rule_of(numbers: Numbers) -> Algorithm:
    def rate(step: Array) -> Array:
      done = jnp.minimum(step / numbers.num_steps, 1)
      return numbers.learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * done))

    with_rate = dataclasses.replace(problem, optimizer=optax.adam(rate))
    return RULES[name].make(with_rate, numbers.factor)

  def init(key: Key, params: tuple[Numbers, Params], batch: Batch) -> TrialState:
    numbers = Numbers(*(jnp.asarray(n, jnp.float32) for n in params[0]))
    return TrialState(numbers, rule_of(numbers).init(key, params[1], batch))

  def update(key: Key, state: TrialState, batch: Batch) -> tuple[TrialState, Metrics]:
    rule, metrics = rule_of(state.numbers).update(key, state.rule, batch)
    return state._replace(rule=rule), metrics

  return Algorithm(init, update)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How long a trial takes, and how many points it has."""

  batch_size: int
  eval_every: int
  num_train: int
  num_validation: int
  num_test: int


class Study:
  """One truth, one kind of student, and all trials of rules on them.

  Args:
    truth: what is learned.
    student: an energy with `init`, `apply` and `init_from_data`.
    sizes: of trials.
  """

  def __init__(self, truth: Density, student: Any, sizes: Sizes):
    self.truth, self.student, self.sizes = truth, student, sizes
    keys = jax.random.split(jax.random.key(12345), 5)
    n = sizes.num_validation
    scale_points = truth.sample(keys[0], 2000)
    problem = deep_rules.problem(student.apply, optax.identity(), scale_points)
    more = truth.sample(jax.random.key(777), sizes.num_train)
    self._problem = deep_rules.with_data(problem, more)
    x = truth.sample(keys[1], n)
    proposal = mixture([truth, broad_gaussian(truth.sample(keys[2], 5000))], [2, 1])
    y = proposal.sample(keys[3], n)
    log_q, log_truth = proposal.log_density(y), truth.log_density(x)
    ssm_key = keys[4]

    @jax.jit
    def judge(params: Params) -> dict[str, Array]:
      """KL by points that all trials share, and a loss that needs no truth."""
      energy = partial(student.apply, params)
      log_weights = -jax.lax.map(energy, y, batch_size=500) - log_q
      log_z = jax.nn.logsumexp(log_weights) - jnp.log(n)
      kl = jnp.mean(log_truth + jax.lax.map(energy, x, batch_size=500)) + log_z
      held_out = sliced_score_matching_loss(ssm_key, params, student.apply, x[:1000])
      return {"kl": kl, "score_matching": held_out}

    self._judge = judge
    self._algorithms: dict[str, Algorithm] = {}

  def algorithm(self, name: str) -> Algorithm:
    """The same object every time, so that it is compiled once."""
    if name not in self._algorithms:
      problem = KnownProblem(
        **vars(self._problem), truth=self.truth, student=self.student
      )
      self._algorithms[name] = _algorithm(name, problem)
    return self._algorithms[name]

  def start(self, seed: int) -> tuple[Key, Array, Params]:
    """A key, training points and a new student; all differ between seeds."""
    train_key, start_key, fit_key = jax.random.split(jax.random.key(seed), 3)
    train = self.truth.sample(train_key, self.sizes.num_train)
    return fit_key, train, self.student.init_from_data(start_key, train)

  def gaussian_kl(self) -> float:
    """KL(p* ‖ p) of a Gaussian with the mean and covariance of training points."""
    _, train, _ = self.start(0)
    gaussian = broad_gaussian(train, factor=1.0)
    x = self.truth.sample(jax.random.key(678), self.sizes.num_test)
    return float(jnp.mean(self.truth.log_density(x) - gaussian.log_density(x)))

  def compile_seconds(self, name: str) -> float:
    """Seconds to trace and compile one step of the rule."""
    algorithm = self.algorithm(name)
    key, train, theta = self.start(0)
    batch = train[: self.sizes.batch_size]
    params = (Numbers(DEFAULT_RATE, RULES[name].default, 1), theta)
    state = jax.jit(algorithm.init)(key, params, batch)
    begin = time.perf_counter()
    jax.jit(algorithm.update).lower(key, state, batch).compile()
    return time.perf_counter() - begin

  def run(
    self, name: str, numbers: Numbers, seed: int, *, test: bool
  ) -> dict[str, Any]:
    """Trains one student.

    Args:
      name: of the rule.
      numbers: of the trial.
      seed: of points, student and batches.
      test: whether the trained student is compared with new points of the truth.

    Returns:
      {"diverged": step}, or {"steps", "kl", "score_matching": at the evaluations,
      "ms": of a step in the fastest row, and with `test` what `_test` returns}.
    """
    key, train, theta = self.start(seed)
    sizes = self.sizes
    try:
      fit = training.fit(
        key,
        self.algorithm(name),
        (numbers, theta),
        train,
        num_steps=numbers.num_steps,
        batch_size=sizes.batch_size,
        transform=_unchanged,
        log_every=sizes.eval_every,
        evaluate=lambda state: self._judge(deep_rules.theta(state.rule)),
        eval_every=sizes.eval_every,
        on_runaway="ignore",
        progress=False,
      )
      found = self._test(deep_rules.theta(fit.state.rule), seed) if test else {}
    except training.TrainingDiverged as error:
      return {"diverged": error.step}
    except ValueError as error:
      if "not finite" not in str(error):
        raise
      return {"diverged": numbers.num_steps}
    rows = [row for row in fit.history if "kl" in row]
    times = [row["ms_per_step"] for row in fit.history if row.get("ms_per_step")]
    return {
      "steps": [row["step"] for row in rows],
      "kl": [row["kl"] for row in rows],
      "score_matching": [row["score_matching"] for row in rows],
      "ms": min(times) if times else None,
      **found,
    }

  def _test(self, theta: Params, seed: int) -> dict[str, Any]:
    """The comparison with the truth on points that nothing else has seen."""
    key = jax.random.fold_in(jax.random.key(54321), seed)
    found = compare_with_truth(
      self.truth,
      self.student.apply,
      theta,
      key,
      num_samples=self.sizes.num_test,
      batch_size=500,
    )
    estimates = {
      name: {
        "value": float(getattr(found, name).value),
        "error": float(getattr(found, name).standard_error),
      }
      for name in ("kl", "fisher", "variance")
    }
    few = found.mode_masses is not None and len(found.mode_masses) <= 4
    masses = None if not few else np.asarray(found.mode_masses).round(4).tolist()
    return {
      "test": estimates
      | {
        "effective_sample_size": float(found.log_partition.effective_sample_size),
        "slope": found.slope,
        "mode_masses": masses,
        "mode_mass_error": found.mode_mass_error,
      }
    }


def _unchanged(batch: Batch) -> Batch:
  return batch


def best(trials: list[Mapping[str, Any]], criterion: str) -> Mapping[str, Any] | None:
  """The trial whose criterion is least after its last step; None if all diverged."""
  ended = [trial for trial in trials if criterion in trial]
  return min(ended, key=lambda trial: trial[criterion][-1], default=None)
