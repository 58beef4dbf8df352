"""Bad input of functions: one clear error, early, and no silent wrong number."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax import (
  Direction,
  as_direction,
  contrastive_loss,
  discriminators,
  energies,
  evaluation,
  generators,
  kernels,
  ksd_squared,
  negative_log_likelihood,
  repulsion_share,
  samplers,
  score,
  score_matching_loss,
  scores,
  svgd_direction,
)
from stein_jax.networks import layers

X = np.arange(6, dtype=np.float32).reshape(3, 2)
S = -X
LABELS = np.arange(3)
RBF = kernels.rbf(1.0)
NAN = float("nan")


def key():
  return jax.random.key(0)


@dataclasses.dataclass
class Unhashable:
  """A callable that compares by its fields, and so has no hash."""

  scale: float = 1.0

  def __call__(self, *args):
    return self.scale * jnp.sum(args[-1])


@dataclasses.dataclass
class ByHand(kernels.Kernel):
  """A kernel that is neither hashable nor registered."""

  h: float = 1.0

  def pair(self, x, y):
    return jnp.exp(-jnp.sum(jnp.square(x - y)) / self.h)


MLP = energies.MLP(widths=(4,))
LABELED = energies.MLP(widths=(4,), num_classes=3)
RBM = energies.GaussianBernoulliRBM(3)
THETA = {
  "params": {
    "B": np.ones((2, 3), np.float32),
    "b": np.zeros(2, np.float32),
    "c": np.zeros(3, np.float32),
  }
}
ENCODER = (energies.Layer(4, 3), energies.Layer(4, 4, 4))
AUTOENCODER = energies.Autoencoder(layers=ENCODER)
IMAGE = np.zeros((8, 8, 3), np.float32)
NOISE = np.zeros((2, 10), np.float32)
SMALL = generators.DCGANGenerator(32, width=1 / 64, num_classes=3)
FEATURES = np.random.default_rng(0).normal(size=(30, 4))
UNIFORM = np.full((30, 4), 0.25)


def energy(params, x):
  return params * jnp.sum(x**2)


def log_density(x):
  return -0.5 * jnp.sum(x**2)


def with_one(value):
  """The features with another value in one place."""
  changed = FEATURES.copy()
  changed[3, 1] = value
  return changed


def langevin(fn=jnp.negative, *, k=None, x=X, num_steps=2, step_size=0.1, **options):
  k = key() if k is None else k
  return samplers.langevin(
    k, x, fn, num_steps=num_steps, step_size=step_size, **options
  )


def mala(fn=log_density, *, k=None, x=X, num_steps=2, step_size=0.1, **options):
  k = key() if k is None else k
  return samplers.mala(k, x, fn, num_steps=num_steps, step_size=step_size, **options)


def initialized(network, *inputs):
  return lambda: network.init(key(), *inputs)


def with_labels(labels):
  """Samples of a generator with these labels."""
  params, stats = generators.initialize(key(), SMALL, NOISE, jnp.array([0, 1]))
  return generators.sample(SMALL, params, stats, NOISE, labels)


UNHASHABLE = "must be hashable, which a Unhashable is not.*frozen.*Partial"
MODULE = "must be a function, got the module .*module.apply"
CONTEXT = '{"x": ..., "context": '

PARTICLES = {
  "complex scores": (
    lambda: svgd_direction(X, S.astype(complex), RBF),
    TypeError,
    "scores must be floating-point, got complex",
  ),
  "complex particles": (
    lambda: svgd_direction(X.astype(np.complex64), S, RBF),
    TypeError,
    "particles must be floating-point, got complex64",
  ),
  "integer scores": (
    lambda: svgd_direction(X, S.astype(int), RBF),
    TypeError,
    "scores must be floating-point, got int.*cast",
  ),
  "boolean scores": (
    lambda: svgd_direction(X, S > 0, RBF),
    TypeError,
    "scores must be floating-point, got bool",
  ),
  "complex scores of a discrepancy": (
    lambda: ksd_squared(X, S.astype(np.complex64), RBF),
    TypeError,
    "scores must be floating-point, got complex64",
  ),
  "integer scores of a share": (
    lambda: repulsion_share(X, S.astype(int), X, RBF),
    TypeError,
    "scores must be floating-point",
  ),
  "integer direction of a share": (
    lambda: repulsion_share(X, S, X.astype(int), RBF),
    TypeError,
    "direction must be floating-point",
  ),
  "lists": (
    lambda: svgd_direction(X.tolist(), S.tolist(), RBF),
    TypeError,
    r"particles must be an array .*got a list that holds 0.0; pass jnp.asarray",
  ),
  "a list of scores": (
    lambda: svgd_direction(X, S.tolist(), RBF),
    TypeError,
    r"scores must be an array .*list.*jnp.asarray",
  ),
  "a list in a chain": (
    lambda: langevin(x=X.tolist()),
    TypeError,
    r"particles must be an array .*list.*jnp.asarray",
  ),
  "a list in a median": (
    lambda: kernels.median_bandwidth(X.tolist()),
    TypeError,
    "jnp.asarray",
  ),
  "a list of points": (
    lambda: scores(1.0, energy, X.tolist()),
    TypeError,
    "jnp.asarray",
  ),
  "one point as a list": (lambda: score(1.0, energy, [1.0]), TypeError, "jnp.asarray"),
  "integers of one point": (
    lambda: score(1.0, energy, np.arange(2)),
    TypeError,
    "x must be floating-point, got int",
  ),
  "no particles": (
    lambda: svgd_direction(None, S, RBF),
    ValueError,
    "must hold at least one array, got None",
  ),
  "a name": (
    lambda: svgd_direction("x", S, RBF),
    TypeError,
    "particles must be an array .*got 'x'",
  ),
  "a score function as scores": (
    lambda: svgd_direction(X, jnp.negative, RBF),
    TypeError,
    "scores must be an array .*got .*negative",
  ),
  "a score function first": (
    lambda: svgd_direction(jnp.negative, X, RBF),
    TypeError,
    "particles must be an array .*got .*negative",
  ),
  "a kernel first": (
    lambda: svgd_direction(RBF, X, S),
    TypeError,
    r"kernel must be a kernel such as kernels.rbf\(\)",
  ),
  "a kernel first in a discrepancy": (
    lambda: ksd_squared(RBF, X, S),
    TypeError,
    "particles must be an array .*got a Radial",
  ),
  "a module as scores": (
    lambda: ksd_squared(X, MLP, RBF),
    TypeError,
    "scores must be an array .*got a MLP",
  ),
  "a kernel as the direction": (
    lambda: repulsion_share(X, S, RBF, X),
    TypeError,
    "direction must be an array .*got a Radial",
  ),
  "a share without its direction": (
    lambda: repulsion_share(X, S, RBF),
    TypeError,
    "repulsion_share: missing a required argument: 'kernel'",
  ),
  "another number of directions": (
    lambda: repulsion_share(X, S, X[:2], RBF),
    ValueError,
    r"particles and direction must have the same shape, got \(3, 2\) and \(2, 2\)",
  ),
}

BATCHES = {
  "a tuple of points and labels": (
    lambda: scores(1.0, energy, (X, LABELS)),
    TypeError,
    f"floating-point, got int.*{CONTEXT}",
  ),
  "a tuple in the loss": (
    lambda: contrastive_loss(1.0, energy, (X, LABELS), (X, LABELS)),
    TypeError,
    f"positives must be floating-point.*{CONTEXT}",
  ),
  "a tuple of floats": (
    lambda: scores({}, MLP.apply, (X, X)),
    TypeError,
    "x must be one array, got",
  ),
  "x and y": (
    lambda: scores(1.0, energy, {"x": X, "y": LABELS}),
    TypeError,
    f"floating-point, got int.*{CONTEXT}",
  ),
  "x and label": (
    lambda: scores(1.0, energy, {"x": X, "label": LABELS.astype(np.float32)}),
    ValueError,
    rf"{CONTEXT}...}}, got the keys \['label', 'x'\]",
  ),
  "x, context and more": (
    lambda: contrastive_loss(1.0, energy, {"x": X, "context": LABELS, "w": X}, X),
    ValueError,
    rf"{CONTEXT}...}}, got the keys \['context', 'w', 'x'\]",
  ),
  "x alone": (
    lambda: scores({}, MLP.apply, {"x": X}),
    TypeError,
    "x must be one array, got",
  ),
  "a context of another length": (
    lambda: scores(1.0, energy, {"x": X, "context": LABELS[:2]}),
    ValueError,
    r"context must have one row for each of the 3 points.*got shape \(2,\)",
  ),
  "a context of the positives alone": (
    lambda: contrastive_loss(1.0, energy, {"x": X, "context": LABELS}, X),
    ValueError,
    "either both of positives and negatives have a context",
  ),
  "integers in the loss": (
    lambda: contrastive_loss(1.0, energy, X, X.astype(int)),
    TypeError,
    "negatives must be floating-point, got int",
  ),
  "a list in the loss": (
    lambda: contrastive_loss(1.0, energy, X.tolist(), X),
    TypeError,
    "positives must be an array .*jnp.asarray",
  ),
}

FUNCTIONS = {
  "scores with params and energy swapped": (
    lambda: scores(energy, 1.0, X),
    TypeError,
    "energy_fn must be a function, got 1.0",
  ),
  "scores with data and energy swapped": (
    lambda: scores(1.0, X, energy),
    TypeError,
    "particles must be an array .*got <function energy",
  ),
  "a loss with params and energy swapped": (
    lambda: contrastive_loss(energy, {"w": X}, X, X),
    TypeError,
    "energy_fn must be a function, got",
  ),
  "a constant log Z": (
    lambda: negative_log_likelihood(1.0, energy, X, 3.0),
    TypeError,
    "log_partition_fn must be a function, got 3.0",
  ),
  "a log Z for each point": (
    lambda: negative_log_likelihood(1.0, energy, X, lambda params: jnp.ones(3)),
    ValueError,
    r"log_partition_fn\(params\) must return a floating-point scalar.*\(3,\)",
  ),
}
for name, call in {
  "score": lambda fn: score({}, fn, X[0]),
  "scores": lambda fn: scores({}, fn, X),
  "contrastive_loss": lambda fn: contrastive_loss({}, fn, X, X),
  "score_matching_loss": lambda fn: score_matching_loss({}, fn, X),
  "negative_log_likelihood": lambda fn: negative_log_likelihood({}, fn, X, jnp.sum),
  "log_partition_fn": lambda fn: negative_log_likelihood({}, energy, X, fn),
  "langevin": langevin,
  "mala": mala,
  "on_features": lambda fn: kernels.on_features(RBF, fn),
  "from_pairwise": kernels.from_pairwise,
  "as_direction": as_direction,
  "Direction": Direction,
  "mean_log_likelihood": lambda fn: evaluation.mean_log_likelihood(1.0, fn, X),
}.items():
  FUNCTIONS[f"{name}: a module"] = (lambda call=call: call(MLP), TypeError, MODULE)
  # The last one is a function of params for `Direction`, which calls it with one tree.
  if name != "Direction":
    FUNCTIONS[f"{name}: unhashable"] = (
      lambda call=call: call(Unhashable()),
      TypeError,
      UNHASHABLE,
    )
  FUNCTIONS[f"{name}: no function"] = (
    lambda call=call: call(3),
    TypeError,
    "must be a function, got (3|an array)|must be a kernel such as .* got 3",
  )

RANGE = "bandwidth must lie between 1.2e-38 and 3.4e.38, the range of float32"
ABOVE_0 = "must be a finite number above 0, got"
KERNELS = {
  **{
    f"bandwidth {value!r}": (lambda value=value: kernels.rbf(value), ValueError, RANGE)
    for value in (1e-38, 1e39, np.float64(1e-40))
  },
  **{
    f"bandwidth {value!r}": (
      lambda value=value: kernels.rbf(value),
      ValueError,
      f"bandwidth {ABOVE_0}",
    )
    for value in (0, -1, NAN, True, 1j, [1.0], np.ones(3))
  },
  "bandwidth 'mean'": (
    lambda: kernels.rbf("mean"),
    ValueError,
    "bandwidth must be a number above 0 or one of .*'median'.*got 'mean'",
  ),
  "the bandwidth of particles too far apart": (
    lambda: kernels.rbf(kernels.median_bandwidth(X * np.float32(1e19))),
    ValueError,
    f"bandwidth {ABOVE_0} Array.inf",
  ),
  "a product below the range": (
    lambda: kernels.rbf(1e-20, multiple=1e-20),
    ValueError,
    "multiple times bandwidth must lie between",
  ),
  "a multiple of a median below the range": (
    lambda: kernels.rbf(multiple=1e-40),
    ValueError,
    "multiple must lie between",
  ),
  "a multiple that is a name": (
    lambda: kernels.rbf(multiple="a"),
    ValueError,
    f"multiple {ABOVE_0} 'a'",
  ),
  "a multiple that is True": (
    lambda: kernels.rbf(multiple=True),
    ValueError,
    f"multiple {ABOVE_0} True",
  ),
  "a subsample that is True": (
    lambda: kernels.rbf(subsample=True),
    ValueError,
    "subsample must be an integer of at least 2, got True",
  ),
  "diagonal": (
    lambda: kernels.median_bandwidth(X, diagonal="yes"),
    TypeError,
    "diagonal must be True or False, got 'yes'",
  ),
  **{
    f"exponent {value!r}": (
      lambda value=value: kernels.imq(exponent=value),
      ValueError,
      "exponent must lie between -1 and 0, got",
    )
    for value in ("a", None, 1.0, np.array([-0.5]))
  },
  "a kernel that is neither hashable nor a pytree": (
    lambda: svgd_direction(X, S, ByHand()),
    TypeError,
    "kernel ByHand must be a pytree, or hashed by its values.*register_dataclass",
  ),
  "the base class": (
    lambda: svgd_direction(X, S, kernels.Kernel()),
    TypeError,
    r"Kernel does not define k\(x, y\)",
  ),
  "from_pairwise of a name": (
    lambda: kernels.from_pairwise("rbf"),
    TypeError,
    "k must be a function, got 'rbf'",
  ),
  "from_pairwise of a kernel": (
    lambda: kernels.from_pairwise(RBF),
    TypeError,
    "k must be a function, got a Radial",
  ),
  **{
    f"from_pairwise of a vector: {name}": (
      lambda call=call: call(kernels.from_pairwise(jnp.subtract)),
      ValueError,
      r"k\(x, y\) of from_pairwise must return a floating-point scalar.*\(2,\)",
    )
    for name, call in {
      "direction": lambda kernel: svgd_direction(X, S, kernel),
      "discrepancy": lambda kernel: ksd_squared(X, S, kernel),
      "matrix": lambda kernel: kernel.matrix(X),
    }.items()
  },
  "features first": (
    lambda: kernels.on_features(jnp.sin, RBF),
    TypeError,
    r"on_features needs a kernel such as rbf\(\)",
  ),
  "affine": (
    lambda: kernels.on_features(RBF, jnp.sin, affine="yes"),
    TypeError,
    "affine must be True or False, got 'yes'",
  ),
  **{
    f"num_neighbors {value!r}": (
      lambda value=value: kernels.on_features(RBF, jnp.sin, num_neighbors=value),
      ValueError,
      "num_neighbors must be an integer of at least 1, got",
    )
    for value in (0, 2.5, True)
  },
}

for kernel_name, kernel in {
  "rbf": RBF,
  "pairwise": kernels.from_pairwise(lambda x, y: jnp.exp(-jnp.sum((x - y) ** 2))),
}.items():
  KERNELS |= {
    f"{kernel_name}: {name}": (lambda call=call, k=kernel: call(k), error, message)
    for name, call, error, message in (
      (
        "the matrix of lists",
        lambda k: k.matrix(X.tolist()),
        TypeError,
        "queries must be an array .*jnp.asarray",
      ),
      (
        "the matrix of complex points",
        lambda k: k.matrix(X * 1j),
        TypeError,
        "queries must be floating-point, got complex64",
      ),
      (
        "the matrix of other points",
        lambda k: k.matrix(X, X[:, :1]),
        ValueError,
        r"one point of queries and one of sources.*\(2,\) and \(1,\)",
      ),
      (
        "sums over other points",
        lambda k: k.apply(X, X[:, :1], S),
        ValueError,
        "one point of queries and one of sources must have the same shape",
      ),
      (
        "sums of integers",
        lambda k: k.apply(X, None, S.astype(int)),
        TypeError,
        "values must be floating-point, got int",
      ),
      (
        "sums of lists",
        lambda k: k.apply(X, None, S.tolist()),
        TypeError,
        "values must be an array .*jnp.asarray",
      ),
      (
        "sums without each point",
        lambda k: k.apply(X, None, S, leave_one_out="yes"),
        TypeError,
        "leave_one_out must be True or False, got 'yes'",
      ),
    )
  }

DIRECTIONS = {
  **{
    f"a Direction of {name}": (
      lambda value=value: Direction(value),
      TypeError,
      r"kernel must be a kernel such as kernels.rbf\(\).*got",
    )
    for name, value in {
      "a name": "rbf",
      "the function kernels.rbf": kernels.rbf,
      "a Direction": Direction(RBF),
      "a number": 1.0,
    }.items()
  },
  "a name as the kernel": (
    lambda: svgd_direction(X, S, "rbf"),
    TypeError,
    r"kernel must be a kernel such as kernels.rbf\(\).*got 'rbf'",
  ),
  **{
    f"regularization {value!r}": (
      lambda value=value: Direction(RBF, regularization=value),
      ValueError,
      f"regularization {ABOVE_0}",
    )
    for value in (-1, NAN, "a", True)
  },
  "leave_one_out": (
    lambda: Direction(RBF, leave_one_out="yes"),
    TypeError,
    "leave_one_out must be True or False, got 'yes'",
  ),
  "block_size": (
    lambda: Direction(RBF, block_size=0),
    ValueError,
    "block_size must be an integer of at least 1, got 0",
  ),
  "exchange": (
    lambda: Direction(RBF, exchange="foo"),
    ValueError,
    "exchange must be one of .*got 'foo'",
  ),
  "precision": (
    lambda: Direction(RBF, precision="foo"),
    ValueError,
    "precision must be one of .*'highest'.*got 'foo'",
  ),
  "an unknown option": (
    lambda: svgd_direction(X, S, RBF, leave_out=True),
    TypeError,
    "unexpected keyword argument 'leave_out'",
  ),
  "statistic": (
    lambda: ksd_squared(X, S, RBF, statistic="W"),
    ValueError,
    "statistic must be one of .*got 'W'",
  ),
}

SAMPLERS = {
  "score_fn returns a scalar": (
    lambda: langevin(log_density),
    ValueError,
    r"particles and scores must have the same shape, got \(3, 2\) and \(3,\)",
  ),
  "score_fn returns integers": (
    lambda: langevin(lambda x: jnp.ones(2, int)),
    TypeError,
    "scores must be floating-point, got int",
  ),
  "score_fn returns complex numbers": (
    lambda: langevin(lambda x: 1j * x),
    TypeError,
    "scores must be floating-point, got complex",
  ),
  "log_density_fn is the score": (
    lambda: mala(jnp.negative),
    ValueError,
    r"log_density_fn\(x\) must return a floating-point scalar, got shape \(2,\)",
  ),
  "log_density_fn keeps an axis": (
    lambda: mala(lambda x: jnp.sum(x, keepdims=True)),
    ValueError,
    r"log_density_fn\(x\) must return a floating-point scalar, got shape \(1,\)",
  ),
  "log_density_fn returns an integer": (
    lambda: mala(lambda x: jnp.int32(1)),
    ValueError,
    "must return a floating-point scalar, got shape .* of int32",
  ),
  "no key": (
    lambda: samplers.langevin(X, jnp.negative, num_steps=1, step_size=0.1),
    TypeError,
    "langevin: missing a required argument: 'score_fn'",
  ),
  "a batch of keys": (
    lambda: langevin(k=jax.random.split(key(), 3)),
    TypeError,
    r"key must be one PRNG key .*shape \(3,\)",
  ),
  "a context of another length": (
    lambda: langevin(lambda x, c: -x, context=LABELS[:2]),
    ValueError,
    r"context must have one row for each of the 3 points.*\(2,\)",
  ),
  "antithetic": (
    lambda: langevin(antithetic="yes"),
    TypeError,
    "antithetic must be True, False or \"last\", got 'yes'",
  ),
  "a temperature of 0": (
    lambda: langevin(temperature=0.0),
    ValueError,
    "temperature must be a finite number above 0, got 0.0",
  ),
}
for name, chain in {"langevin": langevin, "mala": mala}.items():
  SAMPLERS[f"{name}: score_clip"] = (
    lambda chain=chain: chain(score_clip=-1.0),
    ValueError,
    "score_clip must be a finite number above 0, got -1.0",
  )
  SAMPLERS |= {
    f"{name}: num_steps {value!r}": (
      lambda chain=chain, value=value: chain(num_steps=value),
      ValueError,
      "num_steps must be an integer of at least 1, got",
    )
    for value in (0, 2.5, True)
  }
  SAMPLERS |= {
    f"{name}: step_size {value!r}": (
      lambda chain=chain, value=value: chain(step_size=value),
      ValueError,
      f"step_size {ABOVE_0}",
    )
    for value in (0, -0.1, NAN, "a", True)
  }
  SAMPLERS[f"{name}: step_size 1e-39"] = (
    lambda chain=chain: chain(step_size=1e-39),
    ValueError,
    "step_size must lie between 1.2e-38",
  )
  SAMPLERS |= {
    f"{name}: key {key_name}": (
      lambda chain=chain, value=value: chain(k=value),
      TypeError,
      r"key must be one PRNG key such as jax.random.key\(0\), got",
    )
    for key_name, value in {"0": 0, "0.5": 0.5, "particles": X}.items()
  }

PARAMS = r'params must be those that `init` returns, {"params": {"B"'
ENERGIES = {
  **{
    f"num_hidden {value!r}": (
      lambda value=value: energies.GaussianBernoulliRBM(value),
      ValueError,
      "num_hidden must be an integer of at least 1, got",
    )
    for value in (2.5, 0, True, "a", None)
  },
  **{
    f"weight_scale {value!r}": (
      lambda value=value: energies.GaussianBernoulliRBM(3, weight_scale=value),
      ValueError,
      "weight_scale must be a finite number of at least 0, got",
    )
    for value in (NAN, float("inf"), -1, "a")
  },
  **{
    f"{value!r} samples": (
      lambda value=value: RBM.sample(key(), THETA, value),
      ValueError,
      "n must be an integer of at least 0, got",
    )
    for value in (-1, 2.5, True, "a")
  },
  "samples with key and params swapped": (
    lambda: RBM.sample(THETA, key(), 3),
    ValueError,
    PARAMS,
  ),
  "samples with a number as the key": (
    lambda: RBM.sample(0, THETA, 3),
    TypeError,
    "key must be one PRNG key",
  ),
  **{
    f"first {value!r}": (
      lambda value=value: RBM.sample(key(), THETA, 3, first=value),
      ValueError,
      "first must be an integer of at least 0, got",
    )
    for value in (-1, 2.5)
  },
  "log p of one point": (
    lambda: RBM.log_likelihood(THETA, X[0]),
    ValueError,
    r"x must be points \[n, ...\] with 2 numbers each.*got x of shape \(2,\)",
  ),
  "log p of points of another size": (
    lambda: RBM.log_likelihood(THETA, np.ones((3, 5))),
    ValueError,
    r"x must be points \[n, ...\] with 2 numbers each.*\(3, 5\)",
  ),
  "log p with swapped arguments": (
    lambda: RBM.log_likelihood(X, THETA),
    ValueError,
    PARAMS,
  ),
  "log p of complex numbers": (
    lambda: RBM.log_likelihood(THETA, X * 1j),
    TypeError,
    "x must be real, got complex64",
  ),
  "log Z in blocks of 2.5": (
    lambda: RBM.log_partition(THETA, block_size=2.5),
    ValueError,
    "block_size must be an integer of at least 1, got 2.5",
  ),
  "log Z of the inner params": (
    lambda: RBM.log_partition(THETA["params"]),
    ValueError,
    PARAMS,
  ),
  "log Z of another model's params": (
    lambda: RBM.log_partition({"params": {"Dense_0": {}}}),
    ValueError,
    PARAMS,
  ),
  "log Z of an RBM of another size": (
    lambda: energies.GaussianBernoulliRBM(5).log_partition(THETA),
    ValueError,
    r"B, b and c have shapes .*num_hidden=5",
  ),
  "an energy of a point of another size": (
    lambda: RBM.apply(THETA, np.zeros(5)),
    ValueError,
    r"point of shape \(5,\) has 5 numbers, but B .*needs 2",
  ),
  "a chain of integers": (
    lambda: RBM.gibbs(key(), THETA, X.astype(int)),
    TypeError,
    "x must be floating-point, got int",
  ),
  "a chain of 2.5 steps": (
    lambda: RBM.gibbs(key(), THETA, X, num_steps=2.5),
    ValueError,
    "num_steps must be an integer of at least 1",
  ),
  "params from data with NaN": (
    lambda: RBM.init_from_data(key(), np.where(X == 0, NAN, X)),
    ValueError,
    "data must be finite, but holds NaN",
  ),
  "params from pixels": (
    lambda: RBM.init_from_data(key(), X.astype(np.uint8)),
    ValueError,
    "data has dtype uint8: scale it to floats",
  ),
  **{
    f"widths {value!r}": (
      lambda value=value: energies.MLP(widths=value),
      TypeError,
      "widths must be a sequence of integers such as",
    )
    for value in (8, "a")
  },
  **{
    f"widths {value!r}": (
      lambda value=value: energies.MLP(widths=value),
      ValueError,
      "each of widths must be an integer of at least 1, got",
    )
    for value in ((0,), (2.5,), (True,), ("a",))
  },
  **{
    f"confinement {value!r}": (
      lambda value=value: energies.MLP(confinement=value),
      ValueError,
      f"confinement {ABOVE_0}",
    )
    for value in (0, NAN, float("inf"), "a", None)
  },
  "activation of an MLP": (
    lambda: energies.MLP(activation="relu"),
    TypeError,
    "activation must be a function such as jax.nn.silu, got 'relu'",
  ),
  "a batch for an MLP": (
    lambda: MLP.apply(MLP.init(key(), X[0]), X),
    ValueError,
    "MLP with 2 inputs, but x and its context have 6, 6 of them x.*use jax.vmap",
  ),
  "scores of one point": (
    lambda: scores(MLP.init(key(), X[0]), MLP.apply, X[0]),
    ValueError,
    "MLP with 2 inputs, but x and its context have 1",
  ),
  **{
    f"{name} with num_classes {value!r}": (
      lambda make=make, value=value: make(num_classes=value),
      ValueError,
      "num_classes must be an integer of at least 1, got",
    )
    for name, make in {
      "MLP": energies.MLP,
      "JointAutoencoder": lambda **options: energies.JointAutoencoder(
        AUTOENCODER, **options
      ),
      "ResNet": evaluation.ResNet,
      "DigitClassifier": evaluation.DigitClassifier,
    }.items()
    for value in (0, 2.5, True)
  },
  **{
    f"label {value} of an MLP": (
      initialized(LABELED, X[0], value),
      ValueError,
      f"labels must be within 0, ..., 2 for num_classes=3, got {value}",
    )
    for value in (3, -1)
  },
  "a float label of an MLP": (
    initialized(LABELED, X[0], 1.0),
    ValueError,
    r"context has shape \(\), but num_classes=3: give an integer label",
  ),
  **{
    f"width {value!r} of an autoencoder": (
      lambda value=value: energies.Autoencoder(width=value),
      ValueError,
      f"width {ABOVE_0}",
    )
    for value in (0, NAN, "a")
  },
  "channels of an autoencoder": (
    lambda: energies.Autoencoder(channels=0),
    ValueError,
    "channels must be an integer of at least 1",
  ),
  "layers that are numbers": (
    lambda: energies.Autoencoder(layers=(3,)),
    TypeError,
    r"layers must be a sequence of Layer\(features, size, stride\), not of 3",
  ),
  "one layer as layers": (
    lambda: energies.Autoencoder(layers=energies.Layer(4, 3)),
    TypeError,
    "layers must be a sequence of Layer, got one",
  ),
  "a layer of no features": (
    lambda: energies.Autoencoder(layers=(energies.Layer(0, 3),)),
    ValueError,
    "features of a layer must be an integer of at least 1, got 0",
  ),
  "a stride of 2.5": (
    lambda: energies.Autoencoder(layers=(energies.Layer(4, 3, 2.5),)),
    ValueError,
    "stride of a layer must be an integer of at least 1, got 2.5",
  ),
  "activation of an autoencoder": (
    lambda: energies.Autoencoder(activation="silu"),
    TypeError,
    "activation must be a function",
  ),
  "tied": (
    lambda: energies.Autoencoder(tied="no"),
    TypeError,
    "tied must be True or False, got 'no'",
  ),
  **{
    f"an image of shape {shape}": (
      initialized(AUTOENCODER, np.zeros(shape, np.float32)),
      ValueError,
      rf"image must be \[height, width, 3\], got shape {re.escape(str(shape))}",
    )
    for shape in ((8, 8), (8, 8, 1), (2, 8, 8, 3))
  },
  "an image of integers": (
    initialized(AUTOENCODER, IMAGE.astype(np.uint8)),
    TypeError,
    "an image must be floating-point, got uint8; cast or scale",
  ),
  "an image as a list": (
    initialized(AUTOENCODER, IMAGE.tolist()),
    TypeError,
    "an image must be an array .*jnp.asarray",
  ),
  **{
    f"label {value} of an autoencoder": (
      initialized(energies.JointAutoencoder(AUTOENCODER, num_classes=3), IMAGE, value),
      ValueError,
      f"labels must be within 0, ..., 2 for num_classes=3, got {value}",
    )
    for value in (3, -1)
  },
  "a float label of an autoencoder": (
    initialized(energies.JointAutoencoder(AUTOENCODER, num_classes=3), IMAGE, 1.0),
    ValueError,
    r"a label must be one integer, got shape \(\) of float32",
  ),
  "margin": (
    lambda: energies.JointAutoencoder(AUTOENCODER, margin=NAN),
    ValueError,
    "margin must be a finite number of at least 0, got nan",
  ),
  "the class in place of an autoencoder": (
    lambda: energies.JointAutoencoder(energies.Autoencoder),
    TypeError,
    r"autoencoder must be an Autoencoder\(\), got <class",
  ),
}

NETWORKS = {
  **{
    f"{make.__name__} of width {value!r}": (
      lambda make=make, options=options, value=value: make(**options, width=value),
      ValueError,
      f"width {ABOVE_0}",
    )
    for make, options in (
      (generators.MNISTGenerator, {}),
      (generators.DCGANGenerator, {"size": 32}),
      (discriminators.DCGANDiscriminator, {}),
      (evaluation.ResNet, {}),
    )
    for value in (0, -1, NAN, "a")
  },
  "a size of 16": (
    lambda: generators.DCGANGenerator(16),
    ValueError,
    r"size must be one of \(32, 64\), got 16",
  ),
  "a size of 32.0": (
    lambda: generators.DCGANGenerator(32.0),
    ValueError,
    "size must be an integer of at least 1, got 32.0",
  ),
  "no channels": (
    lambda: generators.DCGANGenerator(32, channels=0),
    ValueError,
    "channels must be an integer of at least 1",
  ),
  "noise without an axis": (
    lambda: generators.initialize(key(), generators.MNISTGenerator(), NOISE[0]),
    ValueError,
    r"noise must be \[m, d\], got shape \(10,\)",
  ),
  "noise of no dimension": (
    lambda: generators.uniform_noise(0),
    ValueError,
    "dimension must be an integer of at least 1, got 0",
  ),
  "noise of dimension 2.5": (
    lambda: generators.uniform_noise(2.5),
    ValueError,
    "dimension must be an integer of at least 1, got 2.5",
  ),
  "noise with key and number swapped": (
    lambda: generators.uniform_noise(3)(2, key()),
    TypeError,
    "key must be one PRNG key .*got 2",
  ),
  "2.5 points of noise": (
    lambda: generators.uniform_noise(3)(key(), 2.5),
    ValueError,
    "m must be an integer of at least 0, got 2.5",
  ),
  "no label": (
    lambda: generators.initialize(key(), SMALL, NOISE),
    ValueError,
    "num_classes=3 needs a label for each of 2 points",
  ),
  "float labels": (
    lambda: generators.initialize(key(), SMALL, NOISE, np.zeros(2)),
    ValueError,
    "label must be 2 integers",
  ),
  "a label outside": (
    lambda: with_labels(jnp.array([0, 5])),
    ValueError,
    "labels must be within 0, ..., 2 for num_classes=3, got 5",
  ),
  "initialize with swapped arguments": (
    lambda: generators.initialize(SMALL, key(), NOISE),
    TypeError,
    "generator must be a linen module, got an array",
  ),
  "initialize a function": (
    lambda: generators.initialize(key(), SMALL.apply, NOISE),
    TypeError,
    "generator must be a linen module, got a method",
  ),
  "sample from a function": (
    lambda: generators.sample(SMALL.apply, {}, {}, NOISE),
    TypeError,
    "generator must be a linen module, got a method",
  ),
  "generate_fn of a function": (
    lambda: generators.generate_fn(jnp.sin),
    TypeError,
    "generator must be a linen module, got .*sin",
  ),
  "discriminate_fn of a function": (
    lambda: discriminators.discriminate_fn(jnp.sin),
    TypeError,
    "discriminator must be a linen module, got .*sin",
  ),
  "images of another size": (
    initialized(discriminators.DCGANDiscriminator(), np.zeros((2, 28, 28, 1))),
    ValueError,
    r"images must be .*got shape \(2, 28, 28, 1\)",
  ),
  "pixels for a discriminator": (
    initialized(
      discriminators.DCGANDiscriminator(), np.zeros((2, 32, 32, 3), np.uint8)
    ),
    TypeError,
    "images must be floating-point, got uint8",
  ),
  **{
    f"{name}: {case}": (initialized(network, images), error, message)
    for name, network in {
      "ResNet": evaluation.ResNet(depth=8),
      "DigitClassifier": evaluation.DigitClassifier(),
    }.items()
    for case, images, error, message in (
      (
        "one image",
        IMAGE,
        ValueError,
        r"images must be \[n, h, w, c\], got shape \(8,",
      ),
      ("pixels", IMAGE[None].astype(np.uint8), TypeError, "floating-point, got uint8"),
    )
  },
  "a deconvolution of one image": (
    lambda: layers.deconvolution(IMAGE, np.zeros((5, 5, 3, 1))),
    ValueError,
    r"x must be \[n, h, w, c\], got shape \(8, 8, 3\)",
  ),
  "a deconvolution of no features": (
    lambda: layers.Deconv(0),
    ValueError,
    "features must be an integer of at least 1, got 0",
  ),
  **{
    f"depth {value!r}": (
      lambda value=value: evaluation.ResNet(depth=value),
      ValueError,
      "depth must be",
    )
    for value in (3, 20.0, "a", True)
  },
}

FEW = r"must have at least 2 rows, one for each sample, got shape"
EVALUATION = {
  **{
    f"{name} of {n} rows": (
      lambda fn=fn, n=n: fn(UNIFORM[:n], num_blocks=None),
      ValueError,
      FEW,
    )
    for name, fn in {
      "inception_score": evaluation.inception_score,
      "label_entropy": evaluation.label_entropy,
      "mean_pairwise_distance": evaluation.mean_pairwise_distance,
    }.items()
    for n in (0, 1)
  },
  **{
    f"probabilities: {name}": (
      lambda value=value: evaluation.inception_score(value),
      ValueError,
      r"probabilities must be \[n, classes\] with rows that sum to 1",
    )
    for name, value in {
      "negative": np.tile([1.5, -0.5], (30, 1)),
      "twice too large": 2 * UNIFORM,
      "logits": FEATURES,
      "one class": UNIFORM[:, 0],
      "labels": np.arange(30),
    }.items()
  },
  **{
    f"num_blocks {value!r}": (
      lambda value=value: evaluation.inception_score(UNIFORM, num_blocks=value),
      ValueError,
      "num_blocks must be (an integer of at least 2|between 2 and the number)",
    )
    for value in (0, 1, 2.5, True, "a", 31)
  },
  **{
    f"probabilities: {name}": (
      lambda value=value: evaluation.inception_score(value),
      error,
      f"probabilities must be {message}",
    )
    for name, value, error, message in (
      ("NaN", with_one(NAN), ValueError, "finite, but holds NaN"),
      ("complex", UNIFORM + 0j, TypeError, "real numbers, got complex"),
      ("names", [["a", "b"]], TypeError, "real numbers, got <U1"),
      ("ragged", [[0.5, 0.5], [1.0]], ValueError, "rows of one length"),
    )
  },
  "blocks that leave one row": (
    lambda: evaluation.frechet_distance(FEATURES[:3], FEATURES, num_blocks=2),
    ValueError,
    "num_blocks=2 leaves fewer than 2 of 3 points",
  ),
  "distances of a scalar": (
    lambda: evaluation.mean_pairwise_distance(3.0),
    ValueError,
    "samples must be .*got a scalar",
  ),
  "distances of NaN": (
    lambda: evaluation.mean_pairwise_distance(with_one(NAN)),
    ValueError,
    "samples must be finite, but holds NaN",
  ),
  **{
    f"num_neighbors {value!r}": (
      lambda value=value: evaluation.precision_and_recall(
        FEATURES, FEATURES, num_neighbors=value
      ),
      ValueError,
      "num_neighbors must be (an integer of at least 1|at least 1 and below)",
    )
    for value in (0, 2.5, True, "a", None, 30)
  },
  **{
    f"log_likelihood_fn returns {name}": (
      lambda fn=fn: evaluation.mean_log_likelihood(1.0, fn, X),
      ValueError,
      r"must map points of shape \(3, 2\) to \(3,\), but returned",
    )
    for name, fn in {
      "a scalar": lambda params, x: jnp.sum(x),
      "a column": lambda params, x: jnp.sum(x, axis=1, keepdims=True),
      "two arrays": lambda params, x: (x, x),
    }.items()
  },
  "the mean of one log p": (
    lambda: evaluation.mean_log_likelihood(THETA, RBM.log_likelihood, X[:1]),
    ValueError,
    r"x must be at least two points .*\(1, 2\)",
  ),
  "the mean of log p with swapped arguments": (
    lambda: evaluation.mean_log_likelihood(RBM.log_likelihood, THETA, X),
    TypeError,
    "log_likelihood_fn must be a function, got a dict",
  ),
  "the mean of log p of a dict": (
    lambda: evaluation.mean_log_likelihood(THETA, RBM.log_likelihood, {"x": X}),
    TypeError,
    "x must be one array, got a dict",
  ),
  **{
    f"batch_size {value!r}": (
      lambda value=value: evaluation.mean_log_likelihood(
        THETA, RBM.log_likelihood, X, batch_size=value
      ),
      ValueError,
      "batch_size must be an integer of at least 1, got",
    )
    for value in (0, -1, 2.5, True, "a")
  },
  "a baseline of pixels": (
    lambda: evaluation.gaussian_baseline(X.astype(np.uint8), X),
    ValueError,
    "train has dtype uint8: scale it to floats",
  ),
  "a baseline of other shapes": (
    lambda: evaluation.gaussian_baseline(X, X[:, :1]),
    ValueError,
    r"of one shape, got \(3, 2\) and \(3, 1\)",
  ),
  "a baseline of a dict": (
    lambda: evaluation.gaussian_baseline({"x": X}, X),
    TypeError,
    "train must be one array",
  ),
}
for name, distance in {
  "frechet_distance": evaluation.frechet_distance,
  "kernel_inception_distance": evaluation.kernel_inception_distance,
  "precision_and_recall": evaluation.precision_and_recall,
}.items():
  for case, a, b, error, message in (
    ("no features", FEATURES[:0], FEATURES, ValueError, FEW),
    ("one feature", FEATURES, FEATURES[:1], ValueError, FEW),
    ("NaN", with_one(NAN), FEATURES, ValueError, "features must be finite"),
    ("infinity", FEATURES, with_one(np.inf), ValueError, "features must be finite"),
    ("[n]", FEATURES[:, 0], FEATURES, ValueError, r"features must be \[n, d\]"),
    ("another d", FEATURES, FEATURES[:, :2], ValueError, "the same d for both sets"),
    ("no d", FEATURES[:, :0], FEATURES[:, :0], ValueError, "at least one number each"),
    (
      "complex",
      1j * FEATURES,
      FEATURES,
      TypeError,
      "must be real numbers, got complex",
    ),
    ("nothing", None, FEATURES, TypeError, "features must be one array, got None"),
  ):
    EVALUATION[f"{name}: {case}"] = (
      lambda distance=distance, a=a, b=b: distance(a, b),
      error,
      message,
    )

TABLES = (
  PARTICLES,
  BATCHES,
  FUNCTIONS,
  KERNELS,
  DIRECTIONS,
  SAMPLERS,
  ENERGIES,
  NETWORKS,
  EVALUATION,
)


@pytest.mark.parametrize(
  ("call", "error", "message"),
  [pytest.param(*row, id=name) for table in TABLES for name, row in table.items()],
)
def test_bad_input_is_one_clear_error(call, error, message):
  with pytest.raises(error, match=f"(?s){message}") as caught:
    call()
  # Raised by the library's own code, not deep inside JAX, flax or NumPy.
  assert type(caught.value) in (ValueError, TypeError)
  assert "Tracer" not in str(caught.value)


# ------------------------------------------------------------ what has to be accepted


class Gaussian(kernels.Kernel):
  """A kernel with `pair` alone, not registered as a pytree."""

  def pair(self, x, y):
    return jnp.exp(-jnp.sum(jnp.square(x - y)))


@dataclasses.dataclass(frozen=True)
class Wide(Gaussian):
  """One that is hashed by its value."""

  h: float = 1.0

  def pair(self, x, y):
    return jnp.exp(-jnp.sum(jnp.square(x - y)) / self.h)


@pytest.mark.parametrize("kernel", [Gaussian(), Wide()], ids=["plain", "dataclass"])
def test_a_kernel_that_defines_pair_alone(kernel):
  expected = svgd_direction(X, S, RBF)
  np.testing.assert_allclose(svgd_direction(X, S, kernel), expected, rtol=1e-4)
  np.testing.assert_allclose(Direction(kernel)(X, S), expected, rtol=1e-4)
  np.testing.assert_allclose(
    ksd_squared(X, S, kernel), ksd_squared(X, S, RBF), rtol=1e-5
  )
  np.testing.assert_allclose(kernel.matrix(X), RBF.matrix(X), rtol=1e-4)
  on_features = kernels.on_features(kernel, jnp.asarray)
  np.testing.assert_allclose(svgd_direction(X, S, on_features), expected, rtol=1e-4)


def test_another_value_of_an_unregistered_kernel_is_another_kernel():
  for h in (1.0, 3.0):
    np.testing.assert_allclose(Wide(h).matrix(X), kernels.rbf(h).matrix(X), rtol=1e-4)


@pytest.mark.parametrize(
  "call",
  [
    lambda three: langevin(num_steps=three),
    lambda three: mala(num_steps=three).particles,
    lambda three: energies.GaussianBernoulliRBM(three).log_partition(THETA),
    lambda three: RBM.sample(key(), THETA, three),
    lambda three: generators.uniform_noise(three)(key(), 2),
    lambda three: svgd_direction(X, S, Direction(RBF, block_size=three)),
    lambda three: svgd_direction(
      X, S, kernels.on_features(RBF, jnp.sin, num_neighbors=three)
    ),
    lambda three: evaluation.precision_and_recall(
      FEATURES, FEATURES[:9], num_neighbors=three
    ),
    lambda three: evaluation.inception_score(UNIFORM, num_blocks=three),
    lambda three: evaluation.mean_log_likelihood(
      THETA, RBM.log_likelihood, X, batch_size=three
    ),
    lambda three: kernels.median_bandwidth(X, subsample=three),
    lambda three: energies.MLP((three,)).init(key(), X[0])["params"]["Dense_0"]["bias"],
  ],
)
def test_numpy_integers_are_integers(call):
  np.testing.assert_allclose(call(np.int64(3)), call(3))


def test_float64_has_a_wider_range(x64):
  assert kernels.rbf(1e-40).bandwidth == 1e-40


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_distances_at_the_ends_of_the_documented_range(scale):
  scale = np.float32(scale)
  for kernel in (kernels.rbf(), kernels.imq()):
    expected = svgd_direction(X, S, kernel) / scale
    direction = svgd_direction(X * scale, S / scale, kernel)
    np.testing.assert_allclose(direction, expected, rtol=1e-4)


def test_no_samples_are_none():
  assert RBM.sample(key(), THETA, 0).shape == (0, 2)


def test_coordinates_may_be_called_x_and_y():
  points = {"x": X[:, 0], "y": X[:, 1]}
  moved = scores(1.0, lambda params, p: p["x"] ** 2 + p["y"] ** 2, points)
  np.testing.assert_allclose(moved["y"], -2 * X[:, 1])


def test_a_label_in_jit_is_not_known():
  params = LABELED.init(key(), X[0], 0)
  assert jax.jit(LABELED.apply)(params, X[0], 7).shape == ()
