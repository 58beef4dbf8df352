"""Argument validation: every error names what was given and what was expected."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import stein_jax
from stein_jax import (
  Direction,
  checks,
  kernels,
  ksd_squared,
  samplers,
  svgd_direction,
)

F32 = np.float32
X = np.arange(6, dtype=F32).reshape(3, 2)
RBF = kernels.rbf(1.0)


def quadratic(params, x):
  return params * jnp.sum(x**2)


# ------------------------------------------------------- particles and their scores


@pytest.mark.parametrize("fn", [svgd_direction, ksd_squared])
@pytest.mark.parametrize(
  ("x", "s", "message"),
  [
    (X, X[:2], r"particles and scores.*same shape.*\(3, 2\) and \(2, 2\)"),
    (X[:, 0], X[:, :1], r"particles and scores.*\(3,\) and \(3, 1\)"),
    (X[:, :1], X[:, 0], r"particles and scores.*\(3, 1\) and \(3,\)"),
    (X, X[:1], r"\(3, 2\) and \(1, 2\)"),
    ({"a": X}, X, r"one structure.*'a'"),
    ({"a": X}, {"b": X}, r"one structure.*'a'.*'b'"),
    ({"a": X, "b": X[:2]}, {"a": X, "b": X[:2]}, r"one leading axis.*\{.*2.*\}"),
    (X[:0], X[:0], r"particles must hold at least one point"),
    ({}, {}, r"particles must hold at least one array"),
    (F32(1), F32(1), r"particles must have a leading axis.*scalar"),
  ],
)
def test_shapes_that_do_not_fit(fn, x, s, message):
  with pytest.raises(ValueError, match=f"(?s){message}"):
    fn(x, s, RBF)


@pytest.mark.parametrize("fn", [svgd_direction, ksd_squared])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool])
def test_particles_that_are_not_floats(fn, dtype):
  with pytest.raises(TypeError, match=r"must be floating-point, got (int|uint|b)"):
    fn(X.astype(dtype), X, RBF)


def test_shapes_are_checked_with_the_kernel_off_too():
  with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 1\)"):
    svgd_direction(X, X[:, :1], None)


def test_positives_and_negatives_of_different_shapes():
  with pytest.raises(ValueError, match=r"positives.*negatives.*\(2,\) and \(1,\)"):
    stein_jax.contrastive_loss(1.0, quadratic, X, X[:, :1])


def test_chains_of_another_number_than_the_batch():
  algorithm = stein_jax.contrastive_divergence(
    quadratic, optax.sgd(0.1), num_steps=1, step_size=0.1, persistent=True
  )
  key = jax.random.key(0)
  state = algorithm.init(key, jnp.float32(1), X)
  with pytest.raises(ValueError, match=r"batch and the chains.*\(2, 2\) and \(3, 2\)"):
    algorithm.update(key, state, X[:2])


# -------------------------------------------------------------- too few particles


@pytest.mark.parametrize(
  "call",
  [
    lambda x: svgd_direction(x, x, kernels.rbf()),
    lambda x: svgd_direction(x, x, kernels.on_features(kernels.imq(), jnp.sin)),
    lambda x: ksd_squared(x, x, kernels.rbf()),
    kernels.median_bandwidth,
    lambda x: stein_jax.stein_cd_gradient(
      1.0, quadratic, x, kernels.rbf(), step_size=0.1
    ),
  ],
  ids=["direction", "features", "ksd", "bandwidth", "stein_cd"],
)
def test_a_median_of_one_particle(call):
  with pytest.raises(ValueError, match=r"at least 2 particles, got 1.*fixed bandwidth"):
    call(X[:1])


def test_a_u_statistic_of_one_particle():
  with pytest.raises(ValueError, match="U-statistic needs at least 2 particles, got 1"):
    ksd_squared(X[:1], X[:1], RBF, statistic="U")


# --------------------------------------------------------------- numbers and names

NOT_POSITIVE = [0, -1.0, np.nan, np.inf, np.array([1.0]), None, {"a": 1.0}, "0.1"]


@pytest.mark.parametrize("value", [v for v in NOT_POSITIVE if v != "0.1"], ids=str)
@pytest.mark.parametrize("make", [kernels.rbf, kernels.imq])
def test_bandwidths_that_are_not_above_zero(make, value):
  with pytest.raises(ValueError, match=r"bandwidth must be .*number above 0.*got"):
    make(value)


@pytest.mark.parametrize("value", NOT_POSITIVE, ids=str)
def test_step_sizes_that_are_not_above_zero(value):
  message = "step_size must be a finite number above 0, got"
  sgd = optax.sgd(0.1)
  for call in (
    lambda: stein_jax.stein_cd(quadratic, RBF, sgd, step_size=value),
    lambda: stein_jax.stein_cd_gradient(1.0, quadratic, X, RBF, step_size=value),
    lambda: stein_jax.contrastive_divergence(
      quadratic, sgd, num_steps=1, step_size=value
    ),
    lambda: samplers.langevin(
      jax.random.key(0), X, jnp.negative, num_steps=1, step_size=value
    ),
  ):
    with pytest.raises(ValueError, match=message):
      call()


@pytest.mark.parametrize("value", [0.1, 1, F32(0.1), jnp.float32(0.1), 1e-30])
def test_numbers_above_zero_pass(value):
  checks.positive("h", value)
  jax.jit(lambda v: checks.positive("h", v))(value)  # a tracer is not known yet


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2", None])
def test_counts_that_are_not_counts(value):
  with pytest.raises(ValueError, match=r"num_steps must be an integer.*got"):
    samplers.langevin(
      jax.random.key(0), X, jnp.negative, num_steps=value, step_size=0.1
    )


@pytest.mark.parametrize("value", [0, -3, 2.0])
def test_block_sizes_that_are_not_counts(value):
  for call in (
    lambda: svgd_direction(X, X, RBF, block_size=value),
    lambda: svgd_direction(X, X, kernels.rbf(), block_size=value),
    lambda: ksd_squared(X, X, Direction(RBF, block_size=value)),
    lambda: dataclasses.replace(Direction(RBF), block_size=value),
  ):
    with pytest.raises(ValueError, match=f"block_size must be an integer.*got {value}"):
      call()


@pytest.mark.parametrize("value", [1, 0, 2.5])
def test_subsamples_of_fewer_than_two(value):
  with pytest.raises(ValueError, match=f"subsample must be .*at least 2, got {value}"):
    kernels.median_bandwidth(X, subsample=value)


def test_a_subsample_of_a_fixed_bandwidth():
  with pytest.raises(ValueError, match="subsample belongs to a median bandwidth"):
    kernels.rbf(1.0, subsample=10)


@pytest.mark.parametrize("value", [0, -1.0, np.nan, np.inf])
def test_multiples_that_are_not_above_zero(value):
  for call in (
    lambda: kernels.rbf(multiple=value),
    lambda: kernels.rbf(1.0, multiple=value),
    lambda: kernels.median_bandwidth(X, multiple=value),
  ):
    with pytest.raises(ValueError, match=r"multiple must be .* above 0, got"):
      call()


@pytest.mark.parametrize("value", [0, -1, 0.5, np.nan])
def test_exponents_outside_their_range(value):
  with pytest.raises(ValueError, match="exponent must lie between -1 and 0, got"):
    kernels.imq(1.0, exponent=value)


def test_names_that_are_not_known():
  with pytest.raises(ValueError, match=r"bandwidth.*'authors'.*'median'.*got 'mean'"):
    kernels.rbf("mean")
  with pytest.raises(ValueError, match=r"log must be one of.*'m\+1'.*got 'n'"):
    kernels.median_bandwidth(X, log="n")
  with pytest.raises(ValueError, match=r"statistic must be one of.*'V'.*got 'W'"):
    ksd_squared(X, X, RBF, statistic="W")


# ------------------------------------------------------------------------- kernels

# `kernels.rbf` without its parentheses is the mistake that is made most often.
NOT_A_KERNEL = ["rbf", 1.0, kernels.rbf, jnp.ones(3)]


@pytest.mark.parametrize("kernel", [*NOT_A_KERNEL, lambda params: RBF])
def test_what_is_not_a_kernel(kernel):
  for call in (
    lambda: svgd_direction(X, X, kernel),
    lambda: ksd_squared(X, X, kernel),
    lambda: stein_jax.repulsion_share(X, X, X, kernel),
  ):
    with pytest.raises(TypeError, match=r"kernel such as kernels\.rbf\(\).*got"):
      call()


def gradients(kernel):
  """Calls of all gradient functions with a kernel."""
  return [
    lambda: stein_jax.stein_cd_gradient(1.0, quadratic, X, kernel, step_size=0.1),
    lambda: stein_jax.stein_moves(1.0, quadratic, X, kernel, step_size=0.1),
    lambda: stein_jax.stein_score_matching_gradient(1.0, quadratic, X, kernel),
    lambda: stein_jax.amortized_svgd_gradient(
      1.0, lambda eta, *_: (eta * X, ()), X, jnp.negative, kernel
    ),
  ]


def rules(kernel):
  """Functions that build all rules with a kernel."""
  sgd = optax.sgd(0.1)
  return [
    lambda: stein_jax.stein_cd(quadratic, kernel, sgd, step_size=0.1),
    lambda: stein_jax.stein_score_matching(quadratic, kernel, sgd),
    lambda: stein_jax.svgd(jnp.negative, kernel, sgd),
    lambda: stein_jax.stein_gan(
      quadratic, lambda eta, *_: (eta * X, ()), lambda key, m: X, kernel, sgd, sgd
    ),
  ]


@pytest.mark.parametrize("kernel", NOT_A_KERNEL)
def test_what_is_neither_a_kernel_nor_a_direction_nor_a_function(kernel):
  for call in [lambda: Direction(kernel), *gradients(kernel), *rules(kernel)]:
    with pytest.raises(TypeError, match=r"kernel such as kernels\.rbf\(\).*got"):
      call()


@pytest.mark.parametrize("returned", ["rbf", 1.0, kernels.rbf])
def test_functions_of_params_that_return_no_kernel(returned):
  def kernel_fn(params):
    return returned

  for kernel in (kernel_fn, Direction(kernel_fn)):
    for call in gradients(kernel):
      with pytest.raises(TypeError, match=r"kernel must be a kernel.*got"):
        call()
    for build in rules(kernel):  # a rule calls it at the first update, not before
      build()
    algorithm = rules(kernel)[0]()
    state = algorithm.init(None, 1.0, X)
    with pytest.raises(TypeError, match=r"kernel must be a kernel.*got"):
      algorithm.update(None, state, X)


def test_the_direction_of_a_kernel_function_needs_the_params():
  for wrong in ("rbf", 1.0):
    with pytest.raises(TypeError, match=f"kernel must be a kernel.*got {wrong!r}"):
      Direction(wrong)(X, X)
  direction = Direction(lambda params: RBF)
  with pytest.raises(TypeError, match=r"function of params.*direction\.at\(params\)"):
    direction(X, X)
  for call in (
    lambda: svgd_direction(X, X, direction),
    lambda: ksd_squared(X, X, direction),
    lambda: stein_jax.repulsion_share(X, X, X, direction),
  ):
    with pytest.raises(TypeError, match=r"kernel such as kernels\.rbf\(\).*got"):
      call()


def test_a_discrepancy_needs_a_kernel():
  with pytest.raises(ValueError, match=r"needs a kernel.*got None"):
    ksd_squared(X, X, None)


@pytest.mark.parametrize("base", ["rbf", None, kernels.rbf])
def test_features_of_what_is_not_a_kernel(base):
  with pytest.raises(TypeError, match=r"needs a kernel such as rbf\(\), got"):
    kernels.on_features(base, jnp.sin)


def test_a_policy_is_not_a_number_yet():
  with pytest.raises(ValueError, match=r"policy.*resolve"):
    kernels.rbf().pair(X[0], X[1])


# ------------------------------------------------------------------------ energies


@pytest.mark.parametrize(
  "call",
  [
    lambda e: stein_jax.score(1.0, e, X[0]),
    lambda e: stein_jax.scores(1.0, e, X),
    lambda e: stein_jax.contrastive_loss(1.0, e, X, X),
    lambda e: stein_jax.stein_cd_gradient(1.0, e, X, RBF, step_size=0.1),
    lambda e: stein_jax.stein_score_matching_gradient(1.0, e, X, RBF),
    lambda e: stein_jax.score_matching_loss(1.0, e, X),
  ],
  ids=["score", "scores", "loss", "stein_cd", "stein_sm", "sm"],
)
def test_energies_that_are_not_scalars(call):
  def one_number(params, x):
    return params * jnp.sum(x**2, keepdims=True)

  def with_statistics(params, x):
    return jnp.sum(x), {"mean": jnp.mean(x)}

  with pytest.raises(ValueError, match=r"(?s)return a scalar.*shape \(2,\).*\(1,\)"):
    call(one_number)
  with pytest.raises(ValueError, match="must return a scalar"):
    call(with_statistics)
