"""Critics: networks from a point to a vector of the point's shape."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn

from stein_jax import checks
from stein_jax.types import Array


class VectorMLP(nn.Module):
  """A small network f(x) shaped like x: a critic of `learned_stein_discrepancy`.

  >>> import jax
  >>> critic = VectorMLP((32,))
  >>> params = critic.init(jax.random.key(0), jnp.zeros((2, 3)))
  >>> critic.apply(params, jnp.ones((2, 3))).shape
  (2, 3)

  Attributes:
    widths: the number of units in each hidden layer; without any it is affine.
    activation: between the layers; smooth, since the rule differentiates the critic.
  """

  widths: Sequence[int] = (128, 128)
  activation: Callable[[Array], Array] = nn.silu

  def __post_init__(self) -> None:
    for width in self.widths:
      checks.at_least_one("each of widths", width)
    checks.activation(self.activation)
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Array, context: Array | None = None) -> Array:
    """f(x) of one point of any shape.

    Args:
      x: one point; it is flattened.
      context: an array of any shape, such as a one-hot vector, or None.

    Raises:
      TypeError: x is not one array.
    """
    checks.array("x", x)
    x = jnp.asarray(x)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    hidden = x.reshape(-1).astype(dtype)
    if context is not None:
      given = jnp.asarray(context).reshape(-1).astype(dtype)
      hidden = jnp.concatenate([hidden, given])
    for width in self.widths:
      hidden = self.activation(nn.Dense(width, param_dtype=dtype)(hidden))
    return nn.Dense(x.size, param_dtype=dtype)(hidden).reshape(x.shape)
