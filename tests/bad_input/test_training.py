"""Bad input of algorithms, of `fit` and of meshes: each case is one clear error."""

import dataclasses
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.tree_util import Partial

from stein_jax import (
  Algorithm,
  AlignmentController,
  Direction,
  conditional_noise_contrastive,
  conditional_noise_contrastive_loss,
  contrastive_divergence,
  contrastive_loss,
  dcgan,
  denoising_score_matching,
  denoising_score_matching_loss,
  densities,
  descend,
  energy_discrepancy,
  energy_discrepancy_loss,
  kernels,
  learn_from_negatives,
  learned_stein_discrepancy,
  learned_stein_discrepancy_loss,
  maximum_likelihood,
  negative_log_likelihood,
  noise_contrastive,
  noise_contrastive_loss,
  parallel,
  sampled_maximum_likelihood,
  score,
  score_matching,
  score_matching_loss,
  scores,
  sliced_score_matching,
  sliced_score_matching_loss,
  stein_cd,
  stein_cd_gradient,
  stein_gan,
  stein_moves,
  stein_score_matching,
  stein_score_matching_gradient,
  svgd,
)
from stein_jax.training import TrainingDiverged, fit

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
LABELS = np.arange(12)
W = np.ones(2, np.float32)
SGD = optax.sgd(0.1)
RBF = kernels.rbf()
NOISE = densities.gaussian(np.zeros(2))


def energy(params, x):
  return jnp.sum(jnp.square(x - params))


def generate(params, stats, noise, context):
  return noise * params[None], stats


def draw(key, m):
  return jax.random.normal(key, (m, 2))


def discriminate(params, stats, x, context):
  return x @ params, stats


def criticise(params, x):
  return x * params


def log_partition(params):
  return jnp.sum(params**2)


def sample(key, params, n):
  return jax.random.normal(key, (n, 2))


def negatives(key, params, start):
  return start, {}


def gradient(key, params, batch):
  return jnp.ones_like(params), {}


# Each rule, as a function of its optimizer and of its axis.
RULES = {
  "stein_cd": lambda o=SGD, **k: stein_cd(energy, RBF, o, step_size=0.1, **k),
  "cd": lambda o=SGD, **k: contrastive_divergence(
    energy, o, num_steps=1, step_size=0.1, **k
  ),
  "maximum_likelihood": lambda o=SGD, **k: maximum_likelihood(
    energy, log_partition, o, **k
  ),
  "sampled": lambda o=SGD, **k: sampled_maximum_likelihood(energy, sample, o, **k),
  "score_matching": lambda o=SGD, **k: score_matching(energy, o, **k),
  "sliced": lambda o=SGD, **k: sliced_score_matching(energy, o, **k),
  "denoising": lambda o=SGD, **k: denoising_score_matching(energy, o, sigma=0.1, **k),
  "noise contrastive": lambda o=SGD, **k: noise_contrastive(energy, NOISE, o, **k),
  "conditional noise": lambda o=SGD, **k: conditional_noise_contrastive(
    energy, o, noise_scale=0.1, **k
  ),
  "discrepancy": lambda o=SGD, **k: energy_discrepancy(energy, o, time=0.1, **k),
  "learned, energy": lambda o=SGD, **k: learned_stein_discrepancy(
    energy, criticise, o, SGD, **k
  ),
  "learned, critic": lambda o=SGD, **k: learned_stein_discrepancy(
    energy, criticise, SGD, o, **k
  ),
  "stein_score_matching": lambda o=SGD, **k: stein_score_matching(energy, RBF, o, **k),
  "svgd": lambda o=SGD, **k: svgd(jnp.negative, RBF, o, **k),
  "gan, energy": lambda o=SGD, **k: stein_gan(energy, generate, draw, RBF, o, SGD, **k),
  "gan, generator": lambda o=SGD, **k: stein_gan(
    energy, generate, draw, RBF, SGD, o, **k
  ),
  "dcgan, D": lambda o=SGD, **k: dcgan(discriminate, generate, draw, o, SGD, **k),
  "dcgan, G": lambda o=SGD, **k: dcgan(discriminate, generate, draw, SGD, o, **k),
  "negatives": lambda o=SGD, **k: learn_from_negatives(energy, negatives, o, **k),
  "persistent": lambda o=SGD, **k: learn_from_negatives(
    energy, negatives, o, persistent=True, **k
  ),
}
GAN = {"energy": W, "generator": W}
CRITIC = {"energy": W, "critic": W}
START = {
  **dict.fromkeys(RULES, W),
  "svgd": X,
  "gan, energy": GAN,
  "learned, energy": CRITIC,
  "learned, critic": CRITIC,
  "gan, generator": GAN,
  "dcgan, D": {"discriminator": W, "generator": W},
  "dcgan, G": {"discriminator": W, "generator": W},
}


def run(algorithm=None, params=W, data=X, key=KEY, **options):
  """`fit`, a run of two steps."""
  algorithm = RULES["stein_cd"]() if algorithm is None else algorithm
  options = {"num_steps": 2, "batch_size": 6, "progress": False} | options
  return fit(key, algorithm, params, data, **options)


def with_chains(fn=lambda k, p, b, c: (c, c, {}), chains_fn=None, **options):
  chains_fn = (lambda key, params, batch: X) if chains_fn is None else chains_fn
  return learn_from_negatives(energy, fn, SGD, chains_fn=chains_fn, **options)


def gan(generate_fn=generate, noise_fn=draw, params=GAN, **options):
  rule = stein_gan(energy, generate_fn, noise_fn, RBF, SGD, SGD, **options)
  return run(rule, params)


def adversary(discriminate_fn=discriminate, generate_fn=generate, noise_fn=draw):
  rule = dcgan(discriminate_fn, generate_fn, noise_fn, SGD, SGD)
  return run(rule, {"discriminator": W, "generator": W})


def with_update(update, init=None):
  """A run of an algorithm of the caller's own."""
  return run(Algorithm(init or (lambda key, params, batch: {"params": params}), update))


def cases(*rows):
  return [pytest.param(*row[1:], id=row[0]) for row in rows]


def check(call, error, message):
  with pytest.raises(error, match=message) as caught:
    call()
  assert type(caught.value) is error  # not an error of JAX that is a subclass


# --------------------------------------------------------------------- optimizers

OPTIMIZERS = {
  "name": "adam",
  "rate": 1e-3,
  "not called": optax.adam,
  "None": None,
  "tuple": (lambda params: params, lambda *args: args),
  "kernel": RBF,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("rule", [*RULES, "descend"])
def test_what_is_no_optimizer(rule, optimizer):
  build = RULES.get(rule, partial(descend, gradient))
  message = r"optimizer must be an optax optimizer such as optax\.adam\(1e-3\), got"
  check(lambda: build(optimizer), TypeError, message)


@pytest.mark.parametrize("rule", RULES)
def test_good_input_is_no_error(rule):
  history = run(RULES[rule](), START[rule]).history
  assert history[-1]["step"] == 2


def test_an_optimizer_of_the_caller_s_own():
  algorithm = RULES["cd"](optax.GradientTransformation(SGD.init, SGD.update))
  assert run(algorithm).history[-1]["step"] == 2


NO_KERNEL = r"kernel must be a kernel such as kernels\.rbf\(\)"


@pytest.mark.parametrize("kernel", ["rbf", kernels.rbf, SGD], ids=["name", "fn", "sgd"])
def test_what_is_no_kernel(kernel):
  for build in (
    lambda: stein_cd(energy, kernel, SGD, step_size=0.1),
    lambda: stein_cd(energy, kernel, RBF, step_size=0.1),  # swapped
    lambda: stein_score_matching(energy, kernel, SGD),
    lambda: svgd(jnp.negative, kernel, SGD),
    lambda: stein_gan(energy, generate, draw, kernel, SGD, SGD),
  ):
    check(build, TypeError, NO_KERNEL)


# ----------------------------------------------------------------------- energies


class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(1)(x)[0]


def with_energy(e):
  """All that can be built with an energy."""
  return [
    lambda: stein_cd(e, RBF, SGD, step_size=0.1),
    lambda: contrastive_divergence(e, SGD, num_steps=1, step_size=0.1),
    lambda: maximum_likelihood(e, log_partition, SGD),
    lambda: sampled_maximum_likelihood(e, sample, SGD),
    lambda: score_matching(e, SGD),
    lambda: sliced_score_matching(e, SGD),
    lambda: denoising_score_matching(e, SGD, sigma=0.1),
    lambda: noise_contrastive(e, NOISE, SGD),
    lambda: conditional_noise_contrastive(e, SGD, noise_scale=0.1),
    lambda: energy_discrepancy(e, SGD, time=0.1),
    lambda: learned_stein_discrepancy(e, criticise, SGD, SGD),
    lambda: stein_score_matching(e, RBF, SGD),
    lambda: stein_gan(e, generate, draw, RBF, SGD, SGD),
    lambda: learn_from_negatives(e, negatives, SGD),
  ]


def gradients(e=energy, params=W, data=X):
  """All functions of an energy, params and data."""
  return [
    lambda: stein_cd_gradient(params, e, data, RBF, step_size=0.1),
    lambda: stein_score_matching_gradient(params, e, data, RBF),
    lambda: contrastive_loss(params, e, data, data),
    lambda: score_matching_loss(params, e, data),
    lambda: sliced_score_matching_loss(KEY, params, e, data),
    lambda: denoising_score_matching_loss(KEY, params, e, data, sigma=0.1),
    lambda: noise_contrastive_loss(params, e, data, data, NOISE, log_partition=0.0),
    lambda: conditional_noise_contrastive_loss(KEY, params, e, data, noise_scale=0.1),
    lambda: energy_discrepancy_loss(KEY, params, e, data, time=0.1),
    lambda: learned_stein_discrepancy_loss(
      KEY, {"energy": params, "critic": W}, e, criticise, data
    ),
    lambda: stein_moves(params, e, data, RBF, step_size=0.1),
    lambda: negative_log_likelihood(params, e, data, log_partition),
    lambda: scores(params, e, data),
  ]


@dataclasses.dataclass
class Unhashable:
  scale: float = 1.0

  def __call__(self, params, x):
    return self.scale * energy(params, x)


NO_ENERGY = cases(
  ("None", None, r"energy_fn must be a function.*got None"),
  ("name", "energy", r"energy_fn must be a function.*got 'energy'"),
  ("params", W, r"energy_fn must be a function.*got an array"),
  ("unhashable", Unhashable(), "energy_fn must be hashable.*frozen dataclass"),
  ("module", Net(), r"energy_fn must be .*the module Net: pass a .*module\.apply"),
)


@pytest.mark.parametrize(("e", "message"), NO_ENERGY)
def test_what_is_no_energy(e, message):
  for call in (*with_energy(e), *gradients(e), lambda: score(W, e, X[0])):
    check(call, TypeError, message)


def test_an_energy_of_the_wrong_number_of_arguments():
  message = r"function energy_fn\(params, x\).*with \(x\)"
  for build in with_energy(lambda x: jnp.sum(x)):
    check(build, TypeError, message)


@pytest.mark.parametrize(
  ("e", "error", "message"),
  cases(
    ("[1]", lambda p, x: energy(p, x)[None], ValueError, r"return a scalar.*\(1,\)"),
    ("[d]", lambda p, x: x - p, ValueError, r"return a scalar.*\(2,\)"),
    ("tuple", lambda p, x: (energy(p, x), {}), ValueError, "return a scalar"),
    ("None", lambda p, x: None, ValueError, "return a scalar.*returned None"),
    ("constant", lambda p, x: jnp.sum(p), ValueError, "does not use the point x"),
    ("number", lambda p, x: 1.0, ValueError, "does not use the point x"),
    ("integer", lambda p, x: jnp.sum(x > p), TypeError, "floating-point.*got int32"),
  ),
)
def test_what_an_energy_must_return(e, error, message):
  for build in (with_energy(e)[0], with_energy(e)[2]):
    check(lambda build=build: run(build()), error, message)
  check(lambda: score(W, e, X[0]), error, message)


@dataclasses.dataclass(frozen=True)
class Frozen:
  scale: float

  def __call__(self, params, x):
    return self.scale * energy(params, x)


@pytest.mark.parametrize(
  "e",
  [Frozen(1.0), Partial(energy), partial(energy)],
  ids=["frozen", "Partial", "partial"],
)
def test_energies_that_are_other_callables(e):
  wanted = run(with_energy(energy)[0]()).history[-1]["loss"]
  assert run(with_energy(e)[0]()).history[-1]["loss"] == pytest.approx(wanted)


@pytest.mark.parametrize(
  ("score_fn", "error", "message"),
  cases(
    ("None", None, TypeError, r"score_fn must be a function score_fn\(x\), got None"),
    ("module", Net(), TypeError, "score_fn must be .*the module"),
    ("two", lambda p, x: x, TypeError, r"score_fn\(x\), got.*with \(p, x\)"),
    ("sum", jnp.sum, ValueError, r"scores must have the same shape.*\(12,\)"),
    ("[1]", lambda x: x[:1], ValueError, r"same shape.*\(12, 2\) and \(12, 1\)"),
    ("dict", lambda x: {"x": x}, ValueError, "scores must have one structure"),
  ),
)
def test_scores_of_svgd(score_fn, error, message):
  check(lambda: run(svgd(score_fn, RBF, SGD), X), error, message)


# --------------------------------------------------------------------- parameters


def dict_energy(params, x):
  return energy(params["w"], x)


@jax.tree_util.register_pytree_with_keys_class
class Model:
  """As a module of equinox: a pytree whose leaves may be functions."""

  def __init__(self, w, activation):
    self.w, self.activation = w, activation

  def tree_flatten_with_keys(self):
    names = ("w", "activation")
    key = jax.tree_util.GetAttrKey
    return [(key(name), getattr(self, name)) for name in names], None

  @classmethod
  def tree_unflatten(cls, _, leaves):
    return cls(*leaves)


PARTITION = r"eqx\.partition\(model, eqx\.is_array\)"
PARAMS = cases(
  ("module", Model(W, jnp.tanh), TypeError, rf"params\.activation.*{PARTITION}"),
  ("string", {"w": W, "name": "a"}, TypeError, rf"\['name'\].*'a'.*{PARTITION}"),
  ("linen", Net(), TypeError, r"params must be an array, got Net"),
  ("int32", {"w": W, "n": np.arange(2)}, TypeError, r"\['n'\] is int\d+.*close over"),
  ("int", {"w": W, "n": 3}, TypeError, r"\['n'\] is int32.*keep integers out of par"),
  ("bool", {"w": W, "n": np.array(True)}, TypeError, r"\['n'\] is bool.*close over"),
  ("key", {"w": W, "n": KEY}, TypeError, r"\['n'\] is key.*close over"),
  ("empty", {}, ValueError, r"params.* must hold at least one array, got \{\}"),
  ("None", None, ValueError, "must hold at least one array, got None"),
)


@pytest.mark.parametrize(("params", "error", "message"), PARAMS)
def test_parameters_without_a_gradient(params, error, message):
  for rule in ("stein_cd", "persistent", "maximum_likelihood"):
    check(lambda rule=rule: run(RULES[rule](), params), error, message)
  calls = [stein_cd_gradient, stein_score_matching_gradient]
  options = [{"step_size": 0.1}, {}]
  for call, given in zip(calls, options):
    check(lambda c=call, o=given: c(params, energy, X, RBF, **o), error, message)


def test_parameters_of_two_networks_without_a_gradient():
  bad = {"w": W, "n": 3}
  rules = [("gan, energy", "energy"), ("dcgan, D", "discriminator")]
  for rule, first in rules:
    for params, where in (
      ({first: bad, "generator": W}, first),
      ({first: W, "generator": bad}, "generator"),
    ):
      message = rf"params\['{where}'\]\['n'\] is int32"
      check(lambda r=rule, p=params: run(RULES[r](), p), TypeError, message)


def test_none_among_the_parameters_is_no_leaf():
  rule = stein_cd(dict_energy, RBF, SGD, step_size=0.1)
  assert run(rule, {"w": W, "bias": None}).history[-1]["step"] == 2


@pytest.mark.parametrize("params", [W, {"energy": W}, (W, W)], ids=["one", "half", "2"])
def test_parameters_that_are_not_of_two_networks(params):
  check(lambda: gan(params=params), ValueError, r'params must be \{"energy": ..., "gen')
  message = r'params must be \{"discriminator": ..., "gen'
  check(lambda: run(RULES["dcgan, D"](), params), ValueError, message)


def test_a_partial_as_parameters_continues_from_its_folder(tmp_path):
  rule = stein_cd(lambda f, x: jnp.sum(f(x) ** 2), RBF, optax.adam(0.1), step_size=0.1)
  params = Partial(lambda a, x: a * x, W)
  whole = run(rule, params, num_steps=4)
  run(rule, params, workdir=tmp_path)
  resumed = run(rule, params, num_steps=4, workdir=tmp_path)
  assert isinstance(resumed.state.params, Partial)
  np.testing.assert_allclose(resumed.state.params.args[0], whole.state.params.args[0])


# --------------------------------------------------------------------------- data

HINT = r'labels go in as \{"x": ..., "context": ...\}'
LABELLED = r'a batch with labels is \{"x": ..., "context": labels\}'
DATA = cases(
  ("(x, y)", (X, LABELS), TypeError, f"got int.*{LABELLED}"),
  ("x and y", {"x": X, "y": LABELS}, TypeError, f"got int.*{LABELLED}"),
  ("integers", X.astype(int), TypeError, "floating-point, got int"),
  ("bool", X > 0, TypeError, "floating-point, got bool"),
  ("complex", X + 0j, TypeError, "floating-point, got complex64"),
)


@pytest.mark.parametrize(("data", "error", "message"), DATA)
def test_data_that_are_no_points(data, error, message):
  check(lambda: run(data=data), error, message)
  for call in gradients(data=data):
    check(call, error, message)


UINT8 = np.ones((12, 2), np.uint8)


def test_images_need_a_transform():
  message = "got uint8.*unit_interval, scales uint8 images"
  check(lambda: run(data=UINT8, transform=lambda x: x), TypeError, message)
  for call in gradients(data=UINT8):
    check(call, TypeError, message)
  assert run(data=UINT8).history[-1]["step"] == 2


@pytest.mark.parametrize(
  ("data", "error", "message"),
  cases(
    ("numbers", X.tolist(), ValueError, "got float as .*np.asarray"),
    ("string", "mnist", ValueError, "or a Stream, got str as data"),
    ("path", pathlib.Path("data"), ValueError, "or a Stream, got .*Path as data"),
    ("function", lambda: X, ValueError, "or a Stream, got function as data"),
    ("generator", (x for x in X), TypeError, r"an iterator.*training\.Stream"),
    ("iterator", iter([X]), TypeError, r"an iterator.*training\.Stream"),
    ("strings", np.array(["a"] * 12), TypeError, "array of numbers, got dtype <U1"),
    ("objects", np.array([None] * 12), TypeError, "array of numbers, got dtype object"),
    ("empty", X[:0], ValueError, r"at least one example, got none.*\(0, 2\)"),
    ("nothing", {}, ValueError, "data must be arrays with one leading axis"),
    ("None", None, ValueError, "must hold at least one array, got None"),
    ("scalar", np.float32(1), ValueError, "arrays with one leading axis"),
    ("lengths", {"x": X, "context": LABELS[1:]}, ValueError, r"one leading.*\(11,\)"),
    ("few", X[:5], ValueError, "batch_size=6 exceeds the 5 examples"),
  ),
)
def test_data_of_fit(data, error, message):
  check(lambda: run(data=data), error, message)


@pytest.mark.parametrize(
  ("data", "error", "message"),
  cases(
    ("numbers", X.tolist(), TypeError, "pytree of arrays, got a list.*jnp.asarray"),
    ("string", "mnist", TypeError, "pytree of arrays, got 'mnist'"),
    ("function", jnp.sin, TypeError, "pytree of arrays, got .*(sin|Pjit|Partial)"),
    ("strings", np.array(["a"] * 12), TypeError, "pytree of arrays, .*<U1"),
    ("empty", X[:0], ValueError, "at least one point, got none"),
    ("None", None, ValueError, "at least one array, got None"),
  ),
)
def test_data_of_gradients(data, error, message):
  for call in gradients(data=data):
    check(call, error, message)


def test_a_context_of_another_length():
  data = {"x": X, "context": LABELS[1:]}
  message = r"one row for each of the 12 points.*got shape \(11,\)"
  for call in gradients(data=data):
    check(call, ValueError, message)


def test_a_context_that_the_energy_does_not_take():
  data = {"x": X, "context": LABELS}
  message = r"function energy_fn\(params, x, context\), got .*energy"
  check(lambda: run(data=data), TypeError, message)
  check(lambda: scores(W, energy, data), TypeError, message)


def test_floating_labels_are_named_beside_the_error_of_the_energy():
  for data in ((X, X[:, 0]), {"x": X, "y": X[:, 0]}, {"x": X}):
    check(lambda data=data: run(data=data), TypeError, rf"unsupported(?s:.*){HINT}")


INTEGERS = [0, -1, 2.5, True, "a", np.float32(6)]


@pytest.mark.parametrize("n", INTEGERS, ids=repr)
def test_counts_that_are_no_integers_above_zero(n, tmp_path):
  for name in ("batch_size", "num_steps", "log_every", "eval_every"):
    message = f"{name} must be an integer of at least 1, got"
    check(lambda name=name: run(**{name: n}), ValueError, message)
  for build, name in (
    (partial(stein_cd, energy, RBF, SGD, step_size=0.1), "num_steps"),
    (partial(contrastive_divergence, energy, SGD, step_size=0.1), "num_steps"),
    (partial(stein_gan, energy, generate, draw, RBF, SGD, SGD), "num_inner_steps"),
    (partial(score_matching, energy, SGD), "num_probes"),
    (parallel.make_mesh, "num_devices"),
    (partial(run, workdir=tmp_path), "checkpoint_every"),
  ):
    message = f"{name} must be an integer of at least 1, got"
    check(lambda b=build, name=name: b(**{name: n}), ValueError, message)


def test_integers_of_numpy_are_integers():
  two = np.int64(2)
  counts = {"num_steps": two, "batch_size": two, "log_every": two, "eval_every": two}
  rule = contrastive_divergence(energy, SGD, num_steps=two, step_size=0.1)
  assert run(rule, **counts).history[-1]["step"] == 2
  assert parallel.make_mesh(two).size == 2
  run(stein_cd(energy, RBF, SGD, step_size=0.1, num_steps=two))
  run(score_matching(energy, SGD, num_probes=two))


# ------------------------------------------------------------------ without data


def test_svgd_needs_no_data(tmp_path):
  rule = RULES["svgd"]()
  with_data = run(rule, X)
  alone = fit(KEY, rule, X, None, num_steps=2, progress=False, workdir=tmp_path)
  np.testing.assert_array_equal(alone.state.particles, with_data.state.particles)
  mesh = parallel.make_mesh(2)
  sharded = RULES["svgd"](axis_name=parallel.AXIS)
  got = fit(KEY, sharded, X, None, num_steps=2, progress=False, mesh=mesh)
  np.testing.assert_allclose(got.state.particles, alone.state.particles, rtol=1e-4)


# ------------------------------------------------------------ the caller's functions

NO_PAIR = r"must return a pair \({}\), got {}"


@pytest.mark.parametrize(
  ("call", "error", "message"),
  cases(
    (
      "gan: few rows of noise",
      lambda: gan(noise_fn=lambda key, m: draw(key, m - 2)),
      ValueError,
      r"noise_fn\(key, 6\) must return 6 rows, \[6, ...\], got shape \(4, 2\)",
    ),
    (
      "gan: no noise",
      lambda: gan(noise_fn=lambda key, m: None),
      ValueError,
      "must return 6 rows.* got None",
    ),
    (
      "gan: few samples",
      lambda: gan(lambda p, s, z, c: (z[:3] * p[None], s)),
      ValueError,
      r"batch and the generator's samples.* \(6, 2\) and \(3, 2\)",
    ),
    (
      "gan: samples of another size",
      lambda: gan(lambda p, s, z, c: ((z * p[None])[:, :1], s)),
      ValueError,
      r"batch and the generator's samples.* \(6, 2\) and \(6, 1\)",
    ),
    (
      "gan: no pair",
      lambda: gan(lambda p, s, z, c: z * p[None]),
      TypeError,
      "generate_fn " + NO_PAIR.format("samples, stats", "an array"),
    ),
    (
      "gan: three",
      lambda: gan(lambda p, s, z, c: (z * p[None], s, s)),
      TypeError,
      "generate_fn " + NO_PAIR.format("samples, stats", "tuple of 3"),
    ),
    (
      "gan: other statistics",
      lambda: gan(lambda p, s, z, c: (z * p[None], {"mean": z})),
      ValueError,
      "generator_stats and the statistics that generate_fn returns .*one structure",
    ),
    (
      "gan: arguments of the generator",
      lambda: gan(lambda p, z: (z * p[None], ())),
      TypeError,
      r"generate_fn\(params, stats, noise, context\), got .* with \(p, z\)",
    ),
    (
      "gan: module",
      lambda: gan(Net()),
      TypeError,
      "generate_fn must be .* got the module Net",
    ),
    ("gan: noise", lambda: gan(noise_fn=2), TypeError, r"noise_fn\(key, m\), got 2"),
    (
      "gan: integer samples",
      lambda: gan(lambda p, s, z, c: ((z * p[None]).astype(int), s)),
      TypeError,
      "samples must be floating-point, got int32",
    ),
    (
      "dcgan: few rows of noise",
      lambda: adversary(noise_fn=lambda key, m: draw(key, m - 1)),
      ValueError,
      r"noise_fn\(key, 6\) must return 6 rows.*\(5, 2\)",
    ),
    (
      "dcgan: no pair of the generator",
      lambda: adversary(generate_fn=lambda p, s, z, c: z * p[None]),
      TypeError,
      "generate_fn " + NO_PAIR.format("samples, stats", "an array"),
    ),
    (
      "dcgan: no pair of the discriminator",
      lambda: adversary(lambda p, s, x, c: x @ p),
      TypeError,
      "discriminate_fn " + NO_PAIR.format("logits, stats", "an array"),
    ),
    (
      "dcgan: logits",
      lambda: adversary(lambda p, s, x, c: ((x @ p)[:, None], s)),
      ValueError,
      r"one logit for each of 6 points.*\(6, 1\)",
    ),
    (
      "dcgan: no discriminator",
      lambda: adversary(None),
      TypeError,
      "discriminate_fn must be a function .* got None",
    ),
    (
      "log Z is a vector",
      lambda: run(maximum_likelihood(energy, lambda p: p**2, SGD)),
      ValueError,
      r"log_partition_fn\(params\) must return a floating-point scalar.*\(2,\)",
    ),
    (
      "log Z is [1]",
      lambda: run(maximum_likelihood(energy, lambda p: p[:1], SGD)),
      ValueError,
      r"log_partition_fn\(params\) must return a floating-point scalar.*\(1,\)",
    ),
    (
      "log Z is a number",
      lambda: maximum_likelihood(energy, 1.0, SGD),
      TypeError,
      r"log_partition_fn\(params\) or log_partition_fn\(key, params\), got 1\.0",
    ),
    (
      "likelihood: log Z is a vector",
      lambda: negative_log_likelihood(W, energy, X, lambda p: p**2),
      ValueError,
      "log_partition_fn.* scalar",
    ),
    (
      "likelihood: log Z is a number",
      lambda: negative_log_likelihood(W, energy, X, 1.0),
      TypeError,
      r"log_partition_fn must be a function, got 1\.0",
    ),
    (
      "samples: too many",
      lambda: run(sampled_maximum_likelihood(energy, lambda k, p, n: X, SGD)),
      ValueError,
      "must return 6 samples, got 12",
    ),
    (
      "samples: of another size",
      lambda: run(
        sampled_maximum_likelihood(energy, lambda k, p, n: jnp.ones((n, 3)), SGD)
      ),
      ValueError,
      "one sample of sample_fn must have 2 numbers.* got 3",
    ),
    (
      "samples: none",
      lambda: run(sampled_maximum_likelihood(energy, lambda k, p, n: None, SGD)),
      ValueError,
      "samples must hold at least one array, got None",
    ),
    (
      "samples: no function",
      lambda: sampled_maximum_likelihood(energy, X, SGD),
      TypeError,
      "sample_fn must be a function",
    ),
    (
      "samples: arguments",
      lambda: sampled_maximum_likelihood(energy, draw, SGD),
      TypeError,
      r"sample_fn\(key, params, n\), got .* with \(key, m\)",
    ),
    (
      "negatives: no pair",
      lambda: run(learn_from_negatives(energy, lambda k, p, s: s, SGD)),
      TypeError,
      "negatives_fn " + NO_PAIR.format("negatives, metrics", "an array"),
    ),
    (
      "negatives: no metrics",
      lambda: run(learn_from_negatives(energy, lambda k, p, s: (s, None), SGD)),
      TypeError,
      "metrics must be a dict.* NoneType from negatives_fn",
    ),
    (
      "negatives: other points",
      lambda: run(learn_from_negatives(energy, lambda k, p, s: (s[:, :1], {}), SGD)),
      ValueError,
      r"positives and one of negatives.*\(2,\) and \(1,\)",
    ),
    (
      "chains: a pair",
      lambda: run(with_chains(lambda k, p, b, c: (c, {}))),
      TypeError,
      r"must return three parts \(negatives, chains, metrics\), got tuple of 2",
    ),
    (
      "chains: of another number",
      lambda: run(with_chains(lambda k, p, b, c: (c, c[:1], {}))),
      ValueError,
      r"chains and negatives_fn's chains must have .*\(12, 2\) and \(1, 2\)",
    ),
    (
      "chains: no arrays",
      lambda: run(with_chains(chains_fn=lambda k, p, b: None)),
      ValueError,
      r"chains_fn must return arrays \[n, ...\] of one number of rows, got None",
    ),
    (
      "chains: of several numbers of rows",
      lambda: run(with_chains(chains_fn=lambda k, p, b: (b, b[:1]))),
      ValueError,
      "chains_fn must return arrays .* of one number of rows, got",
    ),
    (
      "chains: other arguments",
      lambda: with_chains(negatives),
      TypeError,
      r"negatives_fn\(key, params, batch, chains\), got .* with \(key, params, start\)",
    ),
    (
      "chains: persistent",
      lambda: with_chains(persistent=True),
      ValueError,
      "chains_fn excludes persistent",
    ),
    (
      "chains: no function",
      lambda: with_chains(chains_fn=X),
      TypeError,
      r"chains_fn must be a function chains_fn\(key, params, batch\)",
    ),
    (
      "negatives: penalty",
      lambda: learn_from_negatives(energy, negatives, SGD, energy_penalty=-1.0),
      ValueError,
      "energy_penalty must be a finite number of at least 0",
    ),
    (
      "likelihood: no key",
      lambda: negative_log_likelihood(W, energy, X, lambda key, p: p[0]),
      TypeError,
      r"log_partition_fn\(key, params\) needs a key, got None: pass key=",
    ),
    (
      "likelihood: an estimate is a vector",
      lambda: run(maximum_likelihood(energy, lambda key, p: p, SGD)),
      ValueError,
      r"log_partition_fn\(key, params\) must return a floating-point scalar",
    ),
    (
      "negatives: no function",
      lambda: learn_from_negatives(energy, X, SGD),
      TypeError,
      "negatives_fn must be a function",
    ),
    (
      "gradient: no function",
      lambda: descend(W, SGD),
      TypeError,
      r"gradient_fn must be a function gradient_fn\(key, params, batch\)",
    ),
    (
      "gradient: no pair",
      lambda: run(descend(lambda k, p, b: p, SGD)),
      TypeError,
      "gradient_fn " + NO_PAIR.format("gradient, metrics", "an array"),
    ),
    (
      "gradient: None",
      lambda: run(descend(lambda k, p, b: None, SGD)),
      TypeError,
      "gradient_fn " + NO_PAIR.format("gradient, metrics", "NoneType"),
    ),
    (
      "gradient: of another shape",
      lambda: run(descend(lambda k, p, b: (p[:1], {}), SGD)),
      ValueError,
      r"params and the gradient must have the same shape, got \(2,\) and \(1,\)",
    ),
    (
      "gradient: of another structure",
      lambda: run(descend(lambda k, p, b: ({"w": p}, {}), SGD)),
      ValueError,
      "params and the gradient must have one structure",
    ),
    (
      "gradient: metrics",
      lambda: run(descend(lambda k, p, b: (p, {"a": p}), SGD)),
      ValueError,
      r"metric a must be a scalar, got shape \(2,\)",
    ),
    (
      "divergence: no function",
      lambda: score_matching(energy, SGD, divergence_fn=1.0),
      TypeError,
      r"divergence_fn must be a function .* got 1\.0",
    ),
    (
      "divergence: a vector",
      lambda: run(score_matching(energy, SGD, divergence_fn=lambda p, x: x)),
      ValueError,
      r"divergence_fn\(params, x\) must return a scalar",
    ),
    (
      "divergence: a key that is none",
      lambda: score_matching_loss(W, energy, X, key=0),
      TypeError,
      "key must be one PRNG key.* got 0",
    ),
  ),
)
def test_functions_of_the_caller(call, error, message):
  check(call, error, message)


# ------------------------------------------------------------------------- numbers

STEP_SIZES = [0, -1.0, np.nan, np.inf, "a", None, True, 1j, jnp.ones(3)]


@pytest.mark.parametrize("value", STEP_SIZES, ids=str)
def test_step_sizes(value):
  for call in (
    lambda: stein_cd(energy, RBF, SGD, step_size=value),
    lambda: contrastive_divergence(energy, SGD, num_steps=1, step_size=value),
    lambda: stein_gan(energy, generate, draw, RBF, SGD, SGD, step_size=value),
    lambda: stein_cd_gradient(W, energy, X, RBF, step_size=value),
    lambda: stein_moves(W, energy, X, RBF, step_size=value),
  ):
    check(call, ValueError, "step_size must be a finite number above 0, got")


@pytest.mark.parametrize(
  "value", [np.float32(0.1), jnp.float32(0.1)], ids=["np", "jnp"]
)
def test_step_sizes_of_numpy_and_jax(value):
  wanted = run().history[-1]["loss"]
  got = run(stein_cd(energy, RBF, SGD, step_size=value)).history[-1]["loss"]
  assert got == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
  ("options", "error", "message"),
  cases(
    (
      "discount: name",
      {"discount": "alignment"},
      TypeError,
      "AlignmentController",
    ),
    ("discount: None", {"discount": None}, TypeError, r"\[0, 1\).*got None"),
    ("discount: pair", {"discount": (0.1, 0.2)}, TypeError, r"\[0, 1\).*\(0.1, 0.2\)"),
    ("discount: class", {"discount": AlignmentController}, TypeError, "got <class"),
    (
      "discount: 2",
      {"discount": 2},
      ValueError,
      r"must lie in \[0, 1\), got 2",
    ),
    ("discount: -1", {"discount": -1}, ValueError, "discount must lie in"),
    ("discount: nan", {"discount": np.nan}, ValueError, "discount must lie in.*nan"),
    ("discount: [2]", {"discount": jnp.ones(2)}, ValueError, "discount must lie in"),
    (
      "discount: low",
      {"discount": AlignmentController(low="a")},
      ValueError,
      r"discount\.low must lie in \[0, 1\), got 'a'",
    ),
    ("mix: -1", {"mix": -1}, ValueError, r"mix must lie in \[0, 1\], got -1"),
    ("mix: 2", {"mix": 2}, ValueError, r"mix must lie in \[0, 1\], got 2"),
    ("mix: nan", {"mix": np.nan}, ValueError, "mix must lie in.*got nan"),
    ("mix: name", {"mix": "a"}, ValueError, "mix must lie in.*got 'a'"),
    ("mix: None", {"mix": None}, ValueError, "mix must lie in.*got None"),
    ("average: name", {"average": "a"}, ValueError, "average must lie between 0 and 1"),
    ("average: 1", {"average": 1.0}, ValueError, "average must lie between 0 and 1"),
    ("report", {"report_repulsion": "yes"}, TypeError, "report_repulsion must be True"),
  ),
)
def test_numbers_of_stein_gan(options, error, message):
  check(lambda: gan(**options), error, message)


@pytest.mark.parametrize("value", [2, -1, np.nan, "a", None, (0.1, 0.2)], ids=repr)
def test_discounts_of_the_loss(value):
  message = r"discount must lie in \[0, 1\], got"
  call = partial(contrastive_loss, W, energy, X, X)
  check(lambda: call(discount=value), ValueError, message)
  assert jnp.isfinite(call(discount=1))


@pytest.mark.parametrize(
  ("call", "error", "message"),
  cases(
    (
      "symmetric, steps",
      lambda: stein_cd(energy, RBF, SGD, step_size=0.1, symmetric=True, num_steps=2),
      ValueError,
      "symmetric is .* got num_steps=2",
    ),
    (
      "symmetric, persistent",
      lambda: stein_cd(
        energy, RBF, SGD, step_size=0.1, symmetric=True, persistent=True
      ),
      ValueError,
      "persistent excludes symmetric",
    ),
    (
      "symmetric",
      lambda: stein_cd(energy, RBF, SGD, step_size=0.1, symmetric="no"),
      TypeError,
      "symmetric must be True or False, got 'no'",
    ),
    (
      "persistent",
      lambda: stein_cd(energy, RBF, SGD, step_size=0.1, persistent="no"),
      TypeError,
      "persistent must be True or False, got 'no'",
    ),
    (
      "persistent CD",
      lambda: RULES["cd"](persistent=0),
      TypeError,
      "persistent must be True or False, got 0",
    ),
    (
      "metropolis",
      lambda: RULES["cd"](metropolis="no"),
      TypeError,
      "metropolis must be True or False, got 'no'",
    ),
    (
      "antithetic",
      lambda: RULES["cd"](antithetic=True, persistent=True),
      ValueError,
      "antithetic excludes persistent",
    ),
    (
      "report of a regularised direction",
      lambda: stein_gan(
        energy,
        generate,
        draw,
        Direction(RBF, regularization=1.0),
        SGD,
        SGD,
        report_repulsion=True,
      ),
      ValueError,
      "report_repulsion needs a direction",
    ),
    (
      "probes and divergence",
      lambda: score_matching(energy, SGD, num_probes=1, divergence_fn=lambda p, x: 0.0),
      ValueError,
      "num_probes .* or divergence_fn, not both",
    ),
  ),
)
def test_options_that_do_not_fit(call, error, message):
  check(call, error, message)


# -------------------------------------------------------------------------- meshes


@pytest.mark.parametrize("rule", RULES)
def test_an_axis_without_a_mesh(rule):
  algorithm = RULES[rule](axis_name="i")
  message = "axis_name='i' is no axis of devices here. Give fit a mesh="
  check(lambda: run(algorithm, START[rule]), ValueError, message)


@pytest.mark.parametrize("axis", [None, "i"])
@pytest.mark.parametrize("rule", RULES)
def test_a_mesh_of_another_axis(rule, axis):
  algorithm = RULES[rule](axis_name=axis)
  mesh = parallel.make_mesh(2)
  message = "make the algorithm.*with axis_name='devices'"
  check(lambda: run(algorithm, START[rule], mesh=mesh), ValueError, message)


def test_an_axis_outside_of_devices():
  message = "axis_name='i' is no axis of devices here"
  call = partial(stein_cd_gradient, W, energy, X, RBF, step_size=0.1)
  check(lambda: call(axis_name="i"), ValueError, message)
  rule = RULES["stein_cd"](axis_name="i")
  state = rule.init(KEY, W, X)
  check(lambda: rule.update(KEY, state, X), ValueError, message)


def two_axes():
  return jax.make_mesh((2, 2), ("a", "b"), 2 * (jax.sharding.AxisType.Auto,))


SHARDED = RULES["stein_cd"](axis_name=parallel.AXIS)


@pytest.mark.parametrize(
  ("call", "error", "message"),
  cases(
    (
      "fit: name",
      lambda: run(SHARDED, mesh="devices"),
      TypeError,
      "mesh must be a mesh",
    ),
    ("fit: number", lambda: run(SHARDED, mesh=2), TypeError, "make_mesh.*got 2"),
    (
      "fit: devices",
      lambda: run(SHARDED, mesh=jax.devices()),
      TypeError,
      "got .*Device",
    ),
    ("fit: axes", lambda: run(SHARDED, mesh=two_axes()), ValueError, r"one axis.*'b'"),
    (
      "fit: batches",
      lambda: run(SHARDED, batch_size=5, mesh=parallel.make_mesh(2)),
      ValueError,
      "batch_size=5 cannot be sharded evenly over 2 devices: take 4 or 6",
    ),
    (
      "fit: particles",
      lambda: run(
        RULES["svgd"](axis_name=parallel.AXIS), X[:11], mesh=parallel.make_mesh(2)
      ),
      ValueError,
      "particles=11 cannot be sharded evenly over 2 devices: take 10 or 12",
    ),
    (
      "distribute: number",
      lambda: parallel.distribute(SHARDED, 2),
      TypeError,
      "mesh must be a mesh of devices, .*got 2",
    ),
    (
      "distribute: swapped",
      lambda: parallel.distribute(parallel.make_mesh(2), SHARDED),
      TypeError,
      "algorithm must be an Algorithm.*got Mesh",
    ),
    (
      "distribute: optimizer",
      lambda: parallel.distribute(SGD, parallel.make_mesh(2)),
      TypeError,
      "algorithm is an optax optimizer",
    ),
    (
      "distribute: function",
      lambda: parallel.distribute(energy, parallel.make_mesh(2)),
      TypeError,
      "algorithm must be an Algorithm.*got <function energy",
    ),
    (
      "distribute: list",
      lambda: parallel.distribute([SHARDED], parallel.make_mesh(2)),
      TypeError,
      r"algorithm must be an Algorithm.*got \[",
    ),
    (
      "shardings",
      lambda: parallel.shardings(SHARDED, W, 2),
      TypeError,
      "mesh must be a mesh of devices, .*got 2",
    ),
    ("by_rows", lambda: parallel.by_rows(2), TypeError, "mesh must be a mesh.*got 2"),
    (
      "too many devices",
      lambda: parallel.make_mesh(9),
      ValueError,
      "num_devices=9, but there are only 8",
    ),
    (
      "a list of devices",
      lambda: parallel.make_mesh(jax.devices()),
      ValueError,
      "num_devices must be an integer of at least 1",
    ),
  ),
)
def test_meshes(call, error, message):
  check(call, error, message)


def test_rows_of_the_data_need_not_divide_over_devices():
  history = run(SHARDED, data=X[:11], mesh=parallel.make_mesh(2)).history
  assert history[-1]["step"] == 2


# ------------------------------------------------------------------------------ fit


@pytest.mark.parametrize(
  ("options", "error", "message"),
  cases(
    ("key: int", {"key": 0}, TypeError, "key must be one PRNG key.* got 0"),
    ("key: None", {"key": None}, TypeError, "key must be one PRNG key.* got None"),
    (
      "key: many",
      {"key": jax.random.split(KEY)},
      TypeError,
      "key must be one PRNG key",
    ),
    ("optimizer", {"algorithm": SGD}, TypeError, "algorithm is an optax optimizer"),
    ("function", {"algorithm": energy}, TypeError, "it has no init, got <function"),
    ("class", {"algorithm": Algorithm}, TypeError, "it has no init, got <class"),
    ("rule", {"algorithm": stein_cd}, TypeError, "it has no init, got <function stein"),
    ("name", {"algorithm": "svgd"}, TypeError, "it has no init, got 'svgd'"),
    ("transform: None", {"transform": None}, TypeError, "transform must be a function"),
    ("transform: data", {"transform": X}, TypeError, "transform must be a function"),
    (
      "transform: no argument",
      {"transform": lambda: X},
      TypeError,
      r"transform\(batch\), got",
    ),
    (
      "transform: nothing",
      {"transform": lambda batch: None},
      ValueError,
      "transform must return a batch of arrays, got None",
    ),
    (
      "transform: a scalar",
      {"transform": jnp.mean},
      ValueError,
      "the points must have a leading axis",
    ),
    (
      "transform: nan",
      {"transform": lambda batch: batch * jnp.nan},
      TrainingDiverged,
      "is nan at step 1",
    ),
    ("evaluate: name", {"evaluate": "a"}, TypeError, "evaluate must be a function"),
    ("evaluate: list", {"evaluate": [len]}, TypeError, "evaluate must be a function"),
    (
      "evaluate: dict of names",
      {"evaluate": {"a": "b"}},
      TypeError,
      r"evaluate\['a'\] must be a function .*got 'b'",
    ),
    (
      "evaluate: names",
      {"evaluate": {1: lambda state: {}}},
      TypeError,
      "names in evaluate must be strings, got 1",
    ),
    (
      "evaluate: no argument",
      {"evaluate": lambda: {}},
      TypeError,
      r"evaluate\(state\), got",
    ),
    (
      "evaluate: None",
      {"evaluate": lambda state: None},
      TypeError,
      "evaluate must return a dict of named scalars, it returned None",
    ),
    (
      "evaluate: number",
      {"evaluate": {"test": lambda state: 1.0}},
      TypeError,
      r"evaluate must return a dict of named scalars, test/ returned 1\.0",
    ),
    (
      "evaluate: names of results",
      {"evaluate": lambda state: {1: 1.0}},
      TypeError,
      r"must return a dict of named scalars, it returned \{1: 1\.0\}",
    ),
    (
      "evaluate: vector",
      {"evaluate": lambda state: {"a": jnp.ones(2)}},
      ValueError,
      r"evaluate: a must be a scalar, got \(2,\)",
    ),
    (
      "evaluate: string",
      {"evaluate": lambda state: {"a": "b"}},
      TypeError,
      "evaluate: a must be a number, got 'b'",
    ),
    (
      "evaluate: no result",
      {"evaluate": lambda state: {"a": None}},
      TypeError,
      "evaluate: a must be a number, got None",
    ),
    (
      "evaluate: complex",
      {"evaluate": lambda state: {"a": 1j}},
      TypeError,
      "evaluate: a must be a number, got 1j",
    ),
    (
      "evaluate: reserved",
      {"evaluate": lambda state: {"step": 1.0}},
      ValueError,
      "step is the name of another entry",
    ),
    ("observe: name", {"observe": "a"}, TypeError, "observe must be a function"),
    (
      "observe: dict",
      {"observe": {"a": lambda step, state: None}},
      TypeError,
      "observe must be a function",
    ),
    (
      "observe: arguments",
      {"observe": lambda state: None},
      TypeError,
      r"observe\(step, state\), got .* with \(state\)",
    ),
    (
      "checkpoints without a folder",
      {"checkpoint_every": 1},
      ValueError,
      "checkpoint_every needs a workdir",
    ),
    ("workdir: int", {"workdir": 3}, TypeError, "workdir must be a path.* got 3"),
    (
      "workdir: bytes",
      {"workdir": b"a"},
      TypeError,
      "workdir must be a path.*b'a'",
    ),
    (
      "workdir: True",
      {"workdir": True},
      TypeError,
      "must be a path.* got True",
    ),
    ("workdir: empty", {"workdir": ""}, ValueError, "workdir is empty"),
    ("run: int", {"run": 3}, TypeError, "run must be a dict.* got 3"),
    ("run: pairs", {"run": [("a", 1)]}, TypeError, "run must be a dict.* got"),
    ("label: int", {"label": 3}, TypeError, "label must be a string, got 3"),
    ("progress", {"progress": "yes"}, TypeError, "progress must be True or False"),
    ("resume", {"resume": "no"}, TypeError, "resume must be True or False, got 'no'"),
    ("nonfinite", {"on_nonfinite": "yes"}, ValueError, "on_nonfinite must be one of"),
    (
      "runaway: list",
      {"on_runaway": ["stop"]},
      ValueError,
      "on_runaway must be one of",
    ),
    ("runaway: array", {"on_runaway": X}, ValueError, "on_runaway must be one of"),
    (
      "rollback",
      {"on_nonfinite": "rollback"},
      ValueError,
      'on_nonfinite="rollback" needs a workdir',
    ),
    ("a word", {"steps": 3}, TypeError, "unexpected keyword argument 'steps'"),
  ),
)
def test_arguments_of_fit(options, error, message):
  check(lambda: run(**options), error, message)


@pytest.mark.parametrize(
  ("update", "error", "message"),
  cases(
    (
      "structure",
      lambda key, state, batch: (state | {"n": batch[0, 0]}, {}),
      TypeError,
      r"return a state like the one that it gets, got state\['n'\]: None -> float32",
    ),
    (
      "type",
      lambda key, state, batch: ({"params": state["params"].astype(jnp.float16)}, {}),
      TypeError,
      r"got state\['params'\]: float32\[2\] -> float16\[2\]",
    ),
    (
      "shape",
      lambda key, state, batch: ({"params": state["params"][:1]}, {}),
      TypeError,
      r"got state\['params'\]: float32\[2\] -> float32\[1\]",
    ),
    (
      "function",
      lambda key, state, batch: ({"params": jnp.sin}, {}),
      TypeError,
      r"\['params'\] must be an array, got .*sin",
    ),
    (
      "no pair",
      lambda key, state, batch: state,
      TypeError,
      r"algorithm.update must return a pair \(state, metrics\), got dict",
    ),
    (
      "nothing",
      lambda key, state, batch: None,
      TypeError,
      "must return a pair .* got NoneType",
    ),
    (
      "three",
      lambda key, state, batch: (state, {}, 1),
      TypeError,
      "must return a pair .* got tuple of 3",
    ),
    (
      "vector",
      lambda key, state, batch: (state, {"a": state["params"]}),
      ValueError,
      r"metric a must be a scalar, got shape \(2,\)",
    ),
    (
      "string",
      lambda key, state, batch: (state, {"a": "b"}),
      ValueError,
      "metric a must be a scalar, got str",
    ),
    (
      "dict",
      lambda key, state, batch: (state, {"a": {}}),
      ValueError,
      "metric a must be a scalar, got dict",
    ),
    (
      "list",
      lambda key, state, batch: (state, [1.0]),
      TypeError,
      "metrics must be a dict of scalars, got list from algorithm.update",
    ),
    (
      "None",
      lambda key, state, batch: (state, None),
      TypeError,
      "metrics must be a dict of scalars, got NoneType",
    ),
    (
      "names",
      lambda key, state, batch: (state, {1: 1.0}),
      TypeError,
      "names of metrics must be strings, got 1",
    ),
    (
      "reserved",
      lambda key, state, batch: (state, {"step": 1.0}),
      ValueError,
      "has its own step: rename the metric",
    ),
  ),
)
def test_what_an_update_must_return(update, error, message):
  check(lambda: with_update(update), error, message)


@pytest.mark.parametrize("value", ["a", jnp.sin], ids=["string", "function"])
def test_states_that_are_no_arrays(value):
  def init(key, params, batch):
    return {"params": params, "n": value}

  check(
    lambda: with_update(lambda key, state, batch: (state, {}), init),
    TypeError,
    r"state\['n'\] must be an array, got",
  )


def test_a_stream_that_is_not_made():
  class Batches:
    num_examples = 12

    def batches(self, first_step, length, batch_size):
      return np.stack([X[:batch_size]] * length)

  check(lambda: run(data=Batches), TypeError, "got its class .*Batches.*: call it")
  assert run(data=Batches()).history[-1]["step"] == 2


def test_nothing_is_written_before_the_arguments_are_checked(tmp_path):
  for bad in ({"observe": "a"}, {"evaluate": "a"}, {"run": 3}, {"transform": None}):
    check(lambda bad=bad: run(workdir=tmp_path / "run", **bad), TypeError, "must be")
  assert not (tmp_path / "run").exists()
