"""Generators: networks from noise to samples, with their statistics in the open."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from stein_jax.convolutions import Deconv
from stein_jax.types import Array, Key, Params, PyTree


class MNISTGenerator(nn.Module):
  """The generator of section 5.1: two dense and two 5×5 deconvolution layers.

  noise [m, 100] → 1024·width → 7×7×128·width → 14×14×64·width → 28×28×1, sigmoid

  Batch norm without gain and bias, then ReLU, after every layer but the last, as in the
  authors' code; weights N(0, 0.02).

  Attributes:
    width: a factor on the layers' widths.
    axis_name: the device axis over which the batch statistics are averaged.
  """

  width: float = 1.0
  axis_name: str | None = None

  @nn.compact
  def __call__(self, noise: Array, train: bool = True) -> Array:
    """Samples `[m, 28, 28, 1]` in (0, 1) of noise `[m, d]`.

    Args:
      noise: ξ.
      train: whether batch norm takes the batch's own statistics, and updates the
        running ones; False takes the running ones.
    """

    def normalized(x: Array) -> Array:
      norm = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        use_bias=False,
        use_scale=False,
        axis_name=None if self.is_initializing() else self.axis_name,
      )
      return nn.relu(norm(x))

    def wide(channels: int) -> int:
      return max(1, round(channels * self.width))

    init = nn.initializers.normal(0.02)
    x = normalized(nn.Dense(wide(1024), kernel_init=init)(noise))
    x = normalized(nn.Dense(49 * wide(128), kernel_init=init)(x))
    x = x.reshape(-1, 7, 7, wide(128))
    x = Deconv(wide(64), kernel_init=init)(x)
    x = Deconv(1, kernel_init=init)(normalized(x))
    return nn.sigmoid(x)


def generate_fn(generator: nn.Module) -> Callable[..., tuple[Array, PyTree]]:
  """The `generate_fn(params, stats, noise, context)` of a linen module, for training.

  The module is called as `generator(noise, train=True)`, with a context as
  `generator(noise, context, train=True)`. Keep the function: each one is compiled anew.
  """

  def generate(
    params: Params, stats: PyTree, noise: Array, context: PyTree
  ) -> tuple[Array, PyTree]:
    inputs = (noise,) if context is None else (noise, context)
    samples, new = generator.apply(
      {"params": params, **stats}, *inputs, train=True, mutable=list(stats)
    )
    return samples, new

  return generate


@functools.partial(jax.jit, static_argnames="generator")
def initialize(
  key: Key, generator: nn.Module, noise: Array, *context: Any
) -> tuple[Params, PyTree]:
  """The parameters of a linen generator, and its statistics apart."""
  variables = dict(generator.init(key, noise, *context, train=True))
  return variables.pop("params"), variables


def sample(
  generator: nn.Module, params: Params, stats: PyTree, noise: Array, *context: Any
) -> Array:
  """Samples by the running statistics: none depends on the others of its batch."""
  variables = {"params": params, **stats}
  return jnp.asarray(generator.apply(variables, noise, *context, train=False))


def uniform_noise(dimension: int = 100) -> Callable[[Key, int], Array]:
  """`noise_fn(key, m)`: ξ ~ Uniform[−1, 1]^dimension, as in section 5."""

  def noise(key: Key, m: int) -> Array:
    return jax.random.uniform(key, (m, dimension), jnp.float32, -1.0, 1.0)

  return noise
