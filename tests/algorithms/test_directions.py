"""Every learning rule takes a kernel, a Direction, or a function instead."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

import stein_jax
from stein_jax import (
  Direction,
  kernels,
  ksd_squared,
  scores,
  stein_score_matching_gradient,
  svgd_direction,
)
from stein_jax.stein.direction import as_direction
from tests import oracles
from tests.algorithms.by_hand import (
  DATA,
  direction_by_hand,
  energy,
  limit_by_hand,
  scores_by_hand,
  some_params,
  stein_cd_by_hand,
)
from tests.devices import SAME, SHARDED, on_devices

KEY = jax.random.key(0)
NOISE = np.random.default_rng(3).normal(size=(6, 2))
assert_same = functools.partial(chex.assert_trees_all_close, rtol=1e-9, atol=1e-12)


def generate(params, stats, noise, context):
  """x = Wξ + μ, with W the first two columns of the energy's A."""
  return noise @ params["A"][:, :2].T + params["mean"][None], stats


def amortized(params, kernel, axis_name=None, noise=NOISE):
  score_fn = Partial(functools.partial(stein_jax.algorithms.energy.score_of, energy))
  return stein_jax.amortized_svgd_gradient(
    params,
    generate,
    noise,
    Partial(score_fn, some_params(params["mean"].dtype)),
    kernel,
    axis_name=axis_name,
  )[0]


GRADIENTS = {
  "stein_cd": lambda params, kernel: stein_jax.stein_cd_gradient(
    params, energy, DATA, kernel, step_size=0.3
  ),
  "symmetric": lambda params, kernel: stein_jax.stein_cd_gradient(
    params, energy, DATA, kernel, step_size=0.3, symmetric=True
  ),
  "moves": lambda params, kernel: stein_jax.stein_moves(
    params, energy, DATA, kernel, step_size=0.3
  ),
  "score matching": lambda params, kernel: stein_score_matching_gradient(
    params, energy, DATA, kernel
  ),
  "amortized": amortized,
}


def amortized_by_hand(kernel, **options):
  params = some_params()
  x, _ = generate(params, (), NOISE, None)
  phi = direction_by_hand(params, x, kernel, **options)
  columns = np.concatenate([-phi.T @ NOISE / 6, np.zeros((3, 1))], axis=1)
  return {"A": columns, "mean": -phi.mean(axis=0), "w": np.zeros(3)}


def gradient_by_hand(name, kernel, **options):
  """What the gradient function of this name returns, in NumPy."""
  params = some_params()
  return {
    "stein_cd": lambda: stein_cd_by_hand(params, DATA, kernel, 0.3, False, **options),
    "symmetric": lambda: stein_cd_by_hand(params, DATA, kernel, 0.3, True, **options),
    "moves": lambda: DATA + 0.3 * direction_by_hand(params, DATA, kernel, **options),
    "score matching": lambda: limit_by_hand(params, DATA, kernel, **options),
    "amortized": lambda: amortized_by_hand(kernel, **options),
  }[name]()


# ------------------------------------------------------ the options of a Direction

OPTIONS = [
  {"row_normalized": True},
  {"leave_one_out": True},
  {"leave_one_out": True, "row_normalized": True},
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_with_the_options_of_a_direction(name, options):
  direction = Direction(kernels.imq(2.0), block_size=4, **options)
  got = GRADIENTS[name](some_params(), direction)
  assert_same(got, gradient_by_hand(name, oracles.imq(2.0, -0.5), **options))


def rule(name, kernel, axis_name=None):
  """A rule that moves its parameters by the whole gradient, and its first state."""
  sgd = optax.sgd(1.0)
  if name in ("stein_cd", "symmetric"):
    return stein_jax.stein_cd(
      energy,
      kernel,
      sgd,
      step_size=0.3,
      symmetric=name == "symmetric",
      axis_name=axis_name,
    )
  if name == "score matching":
    return stein_jax.stein_score_matching(energy, kernel, sgd, axis_name=axis_name)
  if name == "stein_gan":
    return stein_jax.stein_gan(
      energy,
      generate,
      lambda key, m: jnp.asarray(NOISE)[:m],
      kernel,
      sgd,
      sgd,
      axis_name=axis_name,
    )
  return stein_jax.svgd(lambda x: -(x**3), kernel, optax.sgd(0.1), axis_name=axis_name)


RULES = ("stein_cd", "symmetric", "score matching", "stein_gan", "svgd")


def moved(name, kernel):
  """What one update of a rule makes of its parameters or particles."""
  algorithm = rule(name, kernel)
  start = some_params()
  if name == "svgd":
    start = DATA
  if name == "stein_gan":
    start = {"energy": start, "generator": start}
  state = algorithm.init(KEY, start, DATA)
  new, _ = algorithm.update(KEY, state, DATA)
  return new.particles if name == "svgd" else new.params


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_rules_train_with_the_options_of_a_direction(name, options):
  oracle = oracles.imq(2.0, -0.5)
  got = moved(name, Direction(kernels.imq(2.0), **options))
  if name == "svgd":
    phi = oracles.svgd_direction(DATA, -(DATA**3), *oracle, **options)
    assert_same(got, DATA + 0.1 * phi)
    return
  gradient = {"stein_gan": "amortized"}.get(name, name)
  want = jax.tree.map(
    np.subtract, some_params(), gradient_by_hand(gradient, oracle, **options)
  )
  assert_same(got["generator"] if name == "stein_gan" else got, want)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kernel_name", ["rbf", "pairwise", "features"])
def test_leave_one_out_is_the_gradient_of_half_the_u_statistic(kernel_name):
  weights = np.random.default_rng(4).normal(size=(2, 3))
  rbf = kernels.rbf(2.0)
  kernel = {
    "rbf": rbf,
    "pairwise": kernels.from_pairwise(lambda x, y: (x @ y + 1) ** 2 * rbf.pair(x, y)),
    "features": kernels.on_features(rbf, Partial(jnp.matmul, weights)),
  }[kernel_name]

  def half_squared_discrepancy(params):
    s = scores(params, energy, DATA)
    return 0.5 * ksd_squared(DATA, s, kernel, statistic="U")

  flat, unravel = ravel_pytree(some_params())
  steps = 1e-5 * jnp.eye(flat.size)
  at = jax.jit(jax.vmap(lambda flat: half_squared_discrepancy(unravel(flat))))
  want = unravel((at(flat[None] + steps) - at(flat[None] - steps)) / 2e-5)
  direction = Direction(kernel, leave_one_out=True)
  got = stein_score_matching_gradient(some_params(), energy, DATA, direction)
  chex.assert_trees_all_close(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_leave_one_out_is_the_gradient_of_the_double_loop_s_u_statistic():
  params, step = some_params(), 1e-5

  def half_squared_discrepancy(mean):
    s = scores_by_hand(params | {"mean": mean}, DATA)
    return 0.5 * oracles.ksd_squared(DATA, s, *oracles.rbf(2.0), "U")

  want = [
    half_squared_discrepancy(params["mean"] + step * unit)
    - half_squared_discrepancy(params["mean"] - step * unit)
    for unit in np.eye(3)
  ]
  direction = Direction(kernels.rbf(2.0), leave_one_out=True)
  got = stein_score_matching_gradient(params, energy, DATA, direction)
  np.testing.assert_allclose(got["mean"], np.array(want) / (2 * step), rtol=1e-7)


# ------------------------------------------------------- functions instead of kernels


def bandwidth_of(params):
  """2.0 for `some_params`, and 1.0 plus the mean square for particles."""
  if isinstance(params, dict):
    return 2.0 * params["A"][0, 0] / some_params()["A"][0, 0]
  return 1.0 + jnp.mean(params**2)


def kernel_fn(params):
  return kernels.imq(bandwidth_of(params))


def direction_fn(params):
  return Direction(kernel_fn(params), leave_one_out=True)


def by_hand(particles, scores):
  return svgd_direction(particles, scores, kernels.imq(2.0), leave_one_out=True)


def of_bandwidth(h, particles, scores, axis_name=None):
  return svgd_direction(
    particles, scores, kernels.imq(h), leave_one_out=True, axis_name=axis_name
  )


class Moved:
  """A direction as an object that is called, or that has a method."""

  def __call__(self, particles, scores):
    return by_hand(particles, scores)

  def method(self, particles, scores):
    return by_hand(particles, scores)


class Scaled(NamedTuple):
  """A direction that is a pytree of arrays."""

  h: jax.Array

  def __call__(self, particles, scores):
    return of_bandwidth(self.h, particles, scores)


FORMS = {
  "direction": Direction(kernels.imq(2.0), leave_one_out=True),
  "fn(params) -> direction": direction_fn,
  "direction of fn(params)": Direction(kernel_fn, leave_one_out=True),
  "function": by_hand,
  "jitted function": jax.jit(by_hand),
  "partial": functools.partial(of_bandwidth, 2.0),
  "Partial": Partial(of_bandwidth, 2.0),
  "object": Moved(),
  "method": Moved().method,
  "pytree": Scaled(jnp.asarray(2.0)),
  "*args": lambda *args: by_hand(*args),
  "fn(params) -> function": lambda params: by_hand,
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["stein_cd", "score matching", "amortized"])
def test_gradients_take_every_form_of_a_direction(name, form):
  got = GRADIENTS[name](some_params(), FORMS[form])
  want = gradient_by_hand(name, oracles.imq(2.0, -0.5), leave_one_out=True)
  assert_same(got, want)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["direction of fn(params)", "fn(params)", "function"])
@pytest.mark.parametrize("name", RULES)
def test_rules_take_every_form_of_a_direction(name, form):
  h = bandwidth_of(jnp.asarray(DATA)) if name == "svgd" else 2.0
  given = {
    "direction of fn(params)": Direction(kernel_fn, leave_one_out=True),
    "fn(params)": direction_fn,
    "function": Partial(of_bandwidth, h),
  }[form]
  want = moved(name, Direction(kernels.imq(h), leave_one_out=True))
  assert_same(moved(name, given), want)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", GRADIENTS)
def test_kernels_and_functions_that_return_one(name):
  want = gradient_by_hand(name, oracles.imq(2.0, -0.5))
  for kernel in (kernels.imq(2.0), kernel_fn, Direction(kernel_fn)):
    assert_same(GRADIENTS[name](some_params(), kernel), want)
  want = gradient_by_hand(name, None)
  for kernel in (None, Direction(None), lambda params: None, lambda x, s: s):
    assert_same(GRADIENTS[name](some_params(), kernel), want)


@pytest.mark.usefixtures("x64")
def test_the_params_of_a_kernel_are_constants_under_differentiation():
  x = jnp.asarray(DATA)

  def phi(params, kernel):
    return as_direction(kernel, params)(x, -x).sum()

  params = some_params()
  for kernel in (kernel_fn, direction_fn, Direction(kernel_fn)):
    assert abs(phi(params, kernel)) > 1e-3
    gradient = jax.grad(phi)(params, kernel)
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))

  def loss(params, kernel):
    return stein_score_matching_gradient.with_loss(params, energy, DATA, kernel)[0]

  # Through the energy the loss does depend on θ, as it does with a fixed kernel.
  got = jax.grad(loss)(params, kernel_fn)
  assert_same(got, jax.grad(loss)(params, kernels.imq(2.0)))
  assert optax.tree.norm(got) > 1e-3


@pytest.mark.parametrize("name", [*GRADIENTS, *RULES])
def test_a_function_that_returns_another_shape_is_an_error(name):
  def too_short(particles, scores):
    return scores[:, :2]

  run = functools.partial(moved, name)
  if name in GRADIENTS:
    run = functools.partial(GRADIENTS[name], some_params(np.float32))
  message = r"particles and the direction must have the same shape.*\(6, 3\).*\(6, 2\)"
  with pytest.raises(ValueError, match=message):
    run(too_short)
  with pytest.raises(ValueError, match="must have one structure"):
    run(lambda particles, scores: (scores, scores))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("how", ["shard_map", "pmap"])
def test_a_function_gets_the_axis_of_the_devices(how):
  data = np.random.default_rng(8).normal(size=(8, 3))
  noise = np.random.default_rng(9).normal(size=(8, 2))
  direction = Partial(of_bandwidth, 2.0)

  def gradients(params, data, noise, kernel, axis_name=None):
    return {
      "stein_cd": stein_jax.stein_cd_gradient(
        params, energy, data, kernel, step_size=0.3, num_steps=2, axis_name=axis_name
      ),
      "score matching": stein_score_matching_gradient(
        params, energy, data, kernel, axis_name=axis_name
      ),
      "amortized": amortized(params, kernel, axis_name, noise),
    }

  got = on_devices(
    how,
    lambda params, data, noise: gradients(params, data, noise, direction, "i"),
    (some_params(), data, noise),
    (SAME, SHARDED, SHARDED),
    SAME,
    size=4,
  )
  kernel = Direction(kernels.imq(2.0), leave_one_out=True)
  assert_same(got, gradients(some_params(), data, noise, kernel))


@pytest.mark.parametrize("form", ["kernel", "function", "fn(params)"])
def test_new_numbers_need_no_new_compilation(form):
  make = {
    "kernel": lambda h: Direction(kernels.imq(h), regularization=h),
    "function": lambda h: Partial(of_bandwidth, h),
    "fn(params)": lambda h: Direction(kernel_fn),
  }[form]
  params, data = some_params(np.float32), DATA.astype(np.float32)

  def run(h):
    for symmetric in (False, True):
      stein_jax.stein_cd_gradient(
        jax.tree.map(lambda leaf: h * leaf, params),
        energy,
        h * data,
        make(h),
        step_size=0.1,
        symmetric=symmetric,
      )

  run(1.0)
  with jax.no_tracing():
    run(2.0)


def test_a_function_of_params_may_have_more_arguments_with_defaults():
  direction = as_direction(lambda p, scale=2.0: kernels.rbf(scale), 0.0)
  want = svgd_direction(NOISE, -NOISE, kernels.rbf(2.0))
  np.testing.assert_array_equal(direction(NOISE, -NOISE), want)


def test_a_function_of_any_arguments_is_a_direction():
  np.testing.assert_array_equal(
    as_direction(lambda *args: args[1])(NOISE, -NOISE), -NOISE
  )


def test_a_function_s_direction_gets_the_particles_dtype():
  params = jax.tree.map(lambda leaf: leaf.astype("float32"), some_params())
  data = jnp.asarray(DATA, "float32")
  gradients = [
    stein_score_matching_gradient(params, energy, data, kernel)
    for kernel in (None, lambda x, s: s.astype(jnp.float16))
  ]
  chex.assert_trees_all_close(*gradients, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["leave_one_out", "row_normalized"])
def test_switches_are_true_or_false(name):
  with pytest.raises(TypeError, match=f"{name} must be True or False, got 2"):
    Direction(kernels.rbf(), **{name: 2})


@pytest.mark.parametrize(
  "build",
  [
    lambda direction: stein_jax.stein_cd(
      energy, direction, optax.sgd(0.1), step_size=0.1
    ),
    lambda direction: stein_jax.stein_score_matching(energy, direction, optax.sgd(0.1)),
    lambda direction: stein_jax.svgd(lambda x: -x, direction, optax.sgd(0.1)),
  ],
)
def test_an_exchange_without_devices_is_refused_when_the_rule_is_built(build):
  with pytest.raises(ValueError, match="needs axis_name"):
    build(Direction(kernels.rbf(), exchange="ring"))
