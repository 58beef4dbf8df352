"""Data from a known RBM: how far from the truth each method ends, in exact nats.

  python -m experiments.known_model

draws random Gaussian-Bernoulli RBMs with ten visible units, samples from them exactly,
and trains a model of the same form by every method, from the same start on the same
batches. It reports KL(p* ‖ p), the mean of log p*(x) − log p(x) over --test points.
Apart from the finite size of the training set, every method could reach 0: the gap is
due to the method. The true models have B ~ N(0, weight_scale²), b ~ N(0, 1) and
c = −Bᵀb + N(0, ¼), so that a few of the 2^ℓ components have most of the weight; these
are separate, but overlap. In ten dimensions the kernel matters: a second table shows
multiples of its bandwidth.

It takes about three minutes on one CPU core. In --workdir it writes summary.json,
known_model.png (the gap against training steps) and flags.txt, which can be used as a
flagfile.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.rbm import methods
from experiments.rbm.settings import Rules
from experiments.rbm.training import Training
from experiments.shared import plots, settings, summaries, tables, workdirs
from experiments.shared.settings import setting
from stein_jax import Algorithm, training
from stein_jax.energies import GaussianBernoulliRBM

NUM_VISIBLE = 10
BASELINE = "Gaussian with the data's mean and covariance"
METHODS = (
  "cd",
  "stein_cd",
  "stein_cd_no_kernel",
  "stein_cd_regularized",
  "stein_score_matching",
  "score_matching",
  "mle",
)
KERNEL_METHODS = ("stein_cd", "stein_score_matching", "stein_cd_regularized")


@dataclasses.dataclass(frozen=True)
class Settings(summaries.FromSummary, workdirs.Run):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.known_model"
  files: ClassVar[tuple[str, ...]] = ("known_model.png",)

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/known_model")
  method: tuple[str, ...] = setting(
    METHODS,
    f"Learning rules to compare, some of: {', '.join(methods.METHODS)}.",
    choices=methods.METHODS,
  )
  bandwidth_multiples: tuple[float, ...] = setting(
    (0.1, 1.0, 10.0),
    f"Factors on the kernel's bandwidth h, tried with {', '.join(KERNEL_METHODS)}.",
    above=0,
  )
  num_hidden: int = setting(
    4, "ℓ, hidden units of truth and learner.", at_least=1, at_most=16
  )
  weight_scale: float = setting(
    0.5,
    "The standard deviation of the truth's B; the learner's starts uniform in ± this.",
    above=0,
  )
  train: int = setting(5000, "The number of points to learn from.", at_least=2)
  test: int = setting(20_000, "The number of points to test on.", at_least=2)
  steps: int = settings.like(Rules, "steps", default=5000, may_grow=False)
  batch_size: int = settings.like(Training, "batch_size")
  eval_every: int = settings.like(Training, "eval_every")
  learning_rate: float = setting(
    0.03, "Adam's, at the start; it goes to zero along a cosine.", above=0
  )
  seeds: tuple[int, ...] = settings.like(
    Training,
    "seeds",
    default=(0, 1, 2, 3, 4),
    help="One truth for each.",
    may_grow=False,
  )


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  if own.batch_size > own.train:
    settings.wrong_usage(
      f"--batch_size={own.batch_size} is more than --train={own.train}."
    )
  workdirs.check(own)
  workdir = workdirs.prepare(own)

  rbm = GaussianBernoulliRBM(own.num_hidden, weight_scale=own.weight_scale)
  rules = Rules(
    learning_rate=own.learning_rate, schedule="cosine", steps=own.steps, adam_b1=0.9
  )
  algorithms = _algorithms(own.method, rbm, rules, own.bandwidth_multiples)
  problems = {str(s): Problem(s, rbm, own.train, own.test) for s in own.seeds}
  results: dict[str, dict[str, Any]] = {}
  bar = tqdm(total=len(algorithms) * len(own.seeds), disable=not own.progress)
  for label, algorithm in algorithms.items():
    results[label] = {}
    for seed, problem in problems.items():
      bar.set_description(f"{label}, seed {seed}")
      results[label][seed] = _train(algorithm, problem, own)
      bar.update()
  bar.close()

  baselines = {seed: problem.gaussian_gap() for seed, problem in problems.items()}
  summary = summaries.write(
    own,
    {
      "dataset": "samples of random RBMs",
      "seeds": list(own.seeds),
      "components": {s: p.effective_components() for s, p in problems.items()},
      "gaussian": baselines,
      "methods": results,
      "bandwidth_multiples": list(own.bandwidth_multiples),
    },
  )
  curves = {label: _curve(results[label]) for label in _default_bandwidth(results)}
  plots.gap_curves(
    workdir / "known_model.png",
    {label: curve for label, curve in curves.items() if curve is not None},
    baseline=float(np.mean(list(baselines.values()))),
    baseline_label="Gaussian, same moments",
    title=f"RBM of {NUM_VISIBLE} visible and {own.num_hidden} hidden units, "
    "learned from its samples",
  )
  for header, rows in _tables(summary):
    print(tables.plain(header, rows), end="\n\n")
  print(f"Exact gap to the truth in nats. Picture and summary.json: {workdir}")


class Problem:
  """A random true model, samples of it for training and testing, and a start."""

  def __init__(
    self, seed: int, rbm: GaussianBernoulliRBM, num_train: int, num_test: int
  ):
    truth_key, train_key, test_key, start_key, self.fit_key = jax.random.split(
      jax.random.key(seed), 5
    )
    self.rbm = rbm
    self.truth = random_truth(truth_key, rbm)
    self.train = rbm.sample(train_key, self.truth, num_train)
    self.test = rbm.sample(test_key, self.truth, num_test)
    self.start = rbm.init_from_data(start_key, self.train)
    self._log_truth = rbm.log_likelihood(self.truth, self.test)

  def gap(self, params: Any) -> dict[str, float]:
    """KL(p* ‖ p) in nats, estimated on the test points, and its standard error."""
    ratios = self._log_truth - self.rbm.log_likelihood(params, self.test)
    error = jnp.std(ratios, ddof=1) / len(ratios) ** 0.5
    return {"gap": float(jnp.mean(ratios)), "standard_error": float(error)}

  def gaussian_gap(self) -> float:
    """The gap of a Gaussian with the training set's mean and covariance."""
    train, test = np.asarray(self.train, np.float64), np.asarray(self.test, np.float64)
    covariance = np.cov(train.T)
    x = test - train.mean(axis=0)[None]
    squares = np.sum(x * np.linalg.solve(covariance, x.T).T, axis=1)
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return float(np.mean(np.asarray(self._log_truth) + 0.5 * (squares + log_det)))

  def effective_components(self) -> float:
    """exp(entropy) of the weights of the true model's 2^ℓ Gaussians."""
    log_weights = np.asarray(self.rbm.mixture(self.truth)[0], np.float64)
    return float(np.exp(-np.sum(np.exp(log_weights) * log_weights)))


def random_truth(key: jax.Array, rbm: GaussianBernoulliRBM) -> Any:
  """B ~ N(0, weight_scale²), b ~ N(0, 1), c = −Bᵀb + N(0, ¼)."""
  weight_key, visible_key, hidden_key = jax.random.split(key, 3)
  shape = NUM_VISIBLE, rbm.num_hidden
  B = rbm.weight_scale * jax.random.normal(weight_key, shape)
  b = jax.random.normal(visible_key, shape[:1])
  # Without −Bᵀb nearly all the weight would be on one component.
  c = 0.5 * jax.random.normal(hidden_key, shape[1:]) - b @ B
  return {"params": {"B": B, "b": b, "c": c}}


def _algorithms(
  names: Sequence[str],
  rbm: GaussianBernoulliRBM,
  rules: Rules,
  multiples: Sequence[float],
) -> dict[str, Algorithm]:
  """label -> algorithm; those with a kernel once for each multiple of its bandwidth."""
  algorithms = methods.algorithms(names, rbm, rules)
  with_kernel = [name for name in names if name in KERNEL_METHODS]
  for multiple in multiples:
    if multiple == 1:
      continue
    changed = dataclasses.replace(
      rules, bandwidth_multiple=multiple, feature_bandwidth_multiple=multiple
    )
    scaled = methods.algorithms(with_kernel, rbm, changed)
    algorithms |= {f"{k}, h × {multiple:g}": value for k, value in scaled.items()}
  return algorithms


def _train(algorithm: Algorithm, problem: Problem, own: Settings) -> dict[str, Any]:
  """The gap after and during training; or the step at which training diverged."""
  try:
    fit = training.fit(
      problem.fit_key,
      algorithm,
      problem.start,
      problem.train,
      num_steps=own.steps,
      batch_size=own.batch_size,
      log_every=own.eval_every,
      evaluate=lambda state: problem.gap(state.params),
      eval_every=own.eval_every,
      progress=False,
    )
  except training.TrainingDiverged as error:
    return {"diverged": error.step}
  rows = [row for row in fit.history if "gap" in row]
  return {
    "gap": rows[-1]["gap"],
    "standard_error": rows[-1]["standard_error"],
    "curve": {
      "steps": [row["step"] for row in rows],
      "gap": [row["gap"] for row in rows],
    },
  }


def _default_bandwidth(methods: Mapping[str, Any]) -> list[str]:
  return [label for label in methods if ", h × " not in label]


def _curve(by_seed: Mapping[str, Any]) -> dict[str, Any] | None:
  """Mean, smallest and largest gap over the seeds that did not diverge."""
  curves = [result["curve"] for result in by_seed.values() if "curve" in result]
  if not curves:
    return None
  gaps = np.array([curve["gap"] for curve in curves])
  return {
    "steps": curves[0]["steps"],
    "mean": gaps.mean(axis=0),
    "low": gaps.min(axis=0),
    "high": gaps.max(axis=0),
  }


def markdown(summary: Mapping[str, Any]) -> str:
  """The two tables of a `summary.json` in Markdown, with a blank line between them."""
  return "\n\n".join(tables.markdown(*table) for table in _tables(summary))


def _tables(
  summary: Mapping[str, Any],
) -> list[tuple[list[str], list[list[str]]]]:
  """Gaps of the methods and, if there are several, of the bandwidths.

  A table is a header and rows.
  """
  methods = summary["methods"]
  seeds = [str(seed) for seed in summary["seeds"]]
  gaussian = [summary["gaussian"][seed] for seed in seeds]
  header = ["KL(p* ‖ p) in nats", "mean ± sd", *(f"seed {seed}" for seed in seeds)]
  rows = [[BASELINE, _spread(gaussian), *(f"{gap:.3f}" for gap in gaussian)]]
  for label in _default_bandwidth(methods):
    cells = [_one(methods[label][seed]) for seed in seeds]
    rows.append([label, _mean(methods[label]), *cells])
  found = [(header, rows)]

  multiples = summary["bandwidth_multiples"]
  kernel_rows = []
  for label in _default_bandwidth(methods):
    names = [label if m == 1 else f"{label}, h × {m:g}" for m in multiples]
    if any(name in methods for name in names if name != label):
      kernel_rows.append(
        [label, *(_mean(methods[name]) if name in methods else "" for name in names)]
      )
  if kernel_rows:
    header = ["KL(p* ‖ p) in nats", *(f"h × {m:g}" for m in multiples)]
    found.append((header, kernel_rows))
  return found


def _one(result: Mapping[str, Any]) -> str:
  if "diverged" in result:
    return f"diverged at {result['diverged']}"
  return f"{result['gap']:.3f}"


def _mean(by_seed: Mapping[str, Any]) -> str:
  gaps = [result["gap"] for result in by_seed.values() if "gap" in result]
  lost = len(by_seed) - len(gaps)
  return (_spread(gaps) if gaps else "") + (f" ({lost} diverged)" if lost else "")


def _spread(values: Sequence[float]) -> str:
  """Mean ± sample standard deviation."""
  spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
  return f"{np.mean(values):.3f}{spread}"


if __name__ == "__main__":
  settings.run(main, Settings)
