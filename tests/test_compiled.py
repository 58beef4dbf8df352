"""The decorator of public functions: validation, then compilation."""

import inspect
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

from stein_jax import kernels, svgd_direction
from stein_jax.compiled import compiled


def positive(scale):
  if not isinstance(scale, jax.core.Tracer) and scale <= 0:
    raise ValueError(f"scale must be above 0, got {scale}.")


def scaled_sum(
  fn, x, *, scale: float = 1.0, num_terms: int = 1, axis_name: str | None = None
) -> jax.Array:
  """scale · Σ fn(x) over the first terms."""
  total = scale * sum(fn(x[i]) for i in range(num_terms))
  return total if axis_name is None else jax.lax.psum(total, axis_name)


def decorated(check=positive, max_traces=None):
  """`scaled_sum`, compiled afresh; more than `max_traces` traces are an error."""
  fn = scaled_sum
  if max_traces is not None:
    chex.clear_trace_counter()  # chex counts by the source of the function
    fn = chex.assert_max_traces(fn, n=max_traces)
  return compiled(check, static=("num_terms", "axis_name"))(fn)


X = np.array([1.0, 2.0, 3.0], np.float32)


def test_the_check_comes_before_any_trace():
  with pytest.raises(ValueError, match=r"scale must be above 0, got -1\.0"):
    decorated(max_traces=0)(jnp.sin, X, scale=-1.0)


def test_the_check_sees_the_arguments_that_it_names_and_their_defaults():
  seen = {}

  def check(scale, num_terms):
    seen.update(scale=scale, num_terms=num_terms)

  decorated(check)(jnp.sin, X, num_terms=2)
  assert seen == {"scale": 1.0, "num_terms": 2}


@pytest.mark.parametrize("replaced", [{"scale": 3.0}, {"num_terms": 3}])
def test_the_check_may_replace_arguments(replaced):
  got = decorated(lambda x: replaced)(jnp.sin, X)
  np.testing.assert_allclose(got, scaled_sum(jnp.sin, X, **replaced), rtol=1e-6)


def test_no_check_compiles_only():
  got = decorated(None)(jnp.sin, X, scale=-1.0)
  np.testing.assert_allclose(got, -np.sin(1.0), rtol=1e-6)


@pytest.mark.parametrize("options", [{"check": lambda y: None}, {"static": ("y",)}])
def test_an_argument_that_the_function_lacks_is_named(options):
  with pytest.raises(TypeError, match=r"scaled_sum has no argument named \['y'\]"):
    compiled(**options)(scaled_sum)


def test_signature_name_and_docstring_are_the_function_s():
  fn = decorated()
  assert inspect.signature(fn) == inspect.signature(scaled_sum)
  assert (fn.__name__, fn.__doc__) == (scaled_sum.__name__, scaled_sum.__doc__)
  assert fn.__module__ == __name__


def test_equal_static_arguments_compile_once():
  fn = decorated(max_traces=1)
  for scale, num_terms in ((1.0, 2), (2.0, 1 + 1), (3.0, 4 // 2)):
    got = fn(jnp.sin, scale * X, scale=2.0, num_terms=num_terms)
    expected = scaled_sum(np.sin, scale * X, scale=2.0, num_terms=2)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_another_static_argument_compiles_again():
  fn = decorated(max_traces=2)
  for num_terms in (1, 2, 1, 2):
    fn(jnp.sin, X, num_terms=num_terms)


def test_functions_are_given_by_position_or_by_keyword():
  fn = decorated()
  expected = np.sin(1.0)
  np.testing.assert_allclose(fn(jnp.sin, X), expected, rtol=1e-6)
  np.testing.assert_allclose(fn(fn=jnp.sin, x=X), expected, rtol=1e-6)
  np.testing.assert_allclose(fn(x=X, fn=jnp.sin), expected, rtol=1e-6)


class Energy:
  def apply(self, x):
    return x**2


ENERGY = Energy()


@pytest.mark.parametrize(
  "make",
  [lambda: jnp.square, lambda: ENERGY.apply, lambda: Partial(ENERGY.apply)],
  ids=["function", "bound method", "Partial"],
)
def test_an_equal_function_is_not_traced_again(make):
  fn = decorated(max_traces=1)
  for _ in range(3):
    np.testing.assert_allclose(fn(make(), X, num_terms=2), 5.0)


def test_one_functools_partial_is_not_traced_again():
  fn, power = decorated(max_traces=1), partial(jnp.power, 2.0)
  for _ in range(3):
    np.testing.assert_allclose(fn(power, X), 2.0)


def test_new_leaves_of_a_partial_are_not_traced_again():
  fn = decorated(max_traces=1)
  for factor in (1.0, 2.0, 3.0):
    np.testing.assert_allclose(fn(Partial(jnp.multiply, factor), X), factor)


def test_a_callable_pytree_keeps_its_leaves():
  class Times(NamedTuple):
    factor: float

    def __call__(self, x):
      return self.factor * x

  fn = decorated()
  gradient = jax.grad(lambda times: fn(times, X))(Times(factor=2.0))
  np.testing.assert_allclose(gradient.factor, X[0])


def test_none_may_stand_for_a_function():
  def fn(x, then=None):
    return x if then is None else then(x)

  fn = compiled()(fn)
  np.testing.assert_allclose(fn(X), X)
  np.testing.assert_allclose(fn(X, jnp.negative), -X)


def test_further_positional_arguments_are_passed_on():
  def fn(x, *others, power):
    return x + sum(other**power for other in others)

  fn = compiled(static=("power",))(fn)
  np.testing.assert_allclose(fn(1.0, 2.0, 3.0, power=2), 14.0)


def test_it_runs_under_jit_vmap_and_grad():
  fn = decorated()

  def of_scale(scale):
    return fn(jnp.sin, X, scale=scale, num_terms=2)

  scales = np.array([1.0, 2.0], np.float32)
  slope = np.sin(1.0) + np.sin(2.0)
  np.testing.assert_allclose(jax.jit(jax.vmap(of_scale))(scales), scales * slope)
  np.testing.assert_allclose(jax.vmap(jax.grad(of_scale))(scales), [slope] * 2)
  np.testing.assert_allclose(jax.jit(jax.grad(of_scale))(2.0), slope)
  np.testing.assert_allclose(
    jax.grad(lambda x: fn(jnp.sin, x))(X), [np.cos(1.0), 0, 0], rtol=1e-6
  )


def test_a_function_may_close_over_traced_values():
  fn = decorated()

  @jax.jit
  def through(factor):
    return fn(lambda x: factor * x, X)

  np.testing.assert_allclose(through(2.0), 2.0)
  np.testing.assert_allclose(jax.grad(through)(2.0), 1.0)


@pytest.mark.parametrize("wrapper", ["pmap", "shard_map"])
def test_it_runs_on_sharded_arguments(wrapper):
  fn = decorated()
  x = np.arange(8, dtype=np.float32)

  def local(x):
    return fn(jnp.square, x, num_terms=2, axis_name="i")

  if wrapper == "pmap":
    got = jax.pmap(local, "i", devices=jax.devices()[:4])(x.reshape(4, 2))
  else:
    mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    got = jax.shard_map(
      local, mesh=mesh, in_specs=PartitionSpec("i"), out_specs=PartitionSpec()
    )(x)
  np.testing.assert_allclose(got, np.full(np.shape(got), np.square(x).sum()))


@pytest.mark.parametrize("arguments", [(), (1, 2, 3, 4, 5)])
def test_wrong_arguments_name_the_function(arguments):
  with pytest.raises(TypeError, match="scaled_sum: "):
    decorated()(*arguments)


# ------------------------------------------------- a new function in every call


def test_a_new_function_in_every_call_is_warned_of_once():
  fn = decorated()

  def loop(count):
    for _ in range(count):
      fn(lambda x: x + 1, X)

  message = r"scaled_sum was compiled in each.*Make it"
  with pytest.warns(RuntimeWarning, match=message) as caught:
    loop(8)
  assert caught[0].filename == __file__
  loop(20)  # a warning would be an error


def test_so_is_a_new_function_inside_of_a_kernel():
  x = np.ones((3, 2), np.float32)

  def loop():
    for _ in range(8):
      svgd_direction(x, x, kernels.from_pairwise(lambda x, y: x @ y))

  with pytest.warns(RuntimeWarning, match="__call__ was compiled in each"):
    loop()


def without_jit(fn):
  with jax.disable_jit():
    fn()


def loops():
  """Loops in which no warning is due."""
  plus = lambda x: x + 1  # noqa: E731
  return {
    "one function": lambda fn, i: fn(plus, X),
    "other parameters": lambda fn, i: fn(Partial(jnp.add, float(i)), X),
    "other shapes": lambda fn, i: fn(lambda x: x, np.ones(i + 1, np.float32)),
    "other dtypes": lambda fn, i: fn(
      lambda x: x, X.astype([np.float32, np.float16][i % 2])
    ),
    "other static numbers": lambda fn, i: fn(lambda x: x, X, num_terms=1 + i % 3),
    "each used twice": lambda fn, i: [fn(f, X) for f in [lambda x: x] * 2],
    "inside of jit": lambda fn, i: jax.jit(lambda x: fn(lambda x: x, x))(X),
    "inside of one jit": lambda fn, i: jax.jit(
      lambda: [fn(lambda x: x, X) for _ in range(9)]
    )(),
    "without jit": lambda fn, i: without_jit(lambda: fn(plus, X)),
  }


@pytest.mark.parametrize("name", loops())
def test_loops_that_are_not_warned_of(name):
  fn, step = decorated(), loops()[name]
  for i in range(20):
    step(fn, i)
