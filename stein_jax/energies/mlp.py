"""A small, smooth energy for points in few dimensions."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from stein_jax import checks
from stein_jax.types import Array


class MLP(nn.Module):
  """A quadratic term plus a small network: E(x) = (confinement/2)‖x‖² + net(x).

  The activations (softplus, tanh, silu, ...) grow at most linearly, and so does the
  network. Far from the origin the quadratic term therefore dominates, and
  p(x) ∝ exp(−E(x)) can be normalised. Choose a smooth activation: where ReLU is not
  differentiable, finite differences and derivatives of the score disagree.

  With a context it is a conditional energy E(x | context), with the same quadratic
  term: `apply(params, x, context)` passes x and the context to the network.

  >>> energy = MLP(widths=(16,), num_classes=10)
  >>> params = energy.init(jax.random.key(0), jnp.zeros(2), 3)
  >>> energy.apply(params, jnp.ones(2), 7).shape
  ()

  Attributes:
    widths: the number of units in each hidden layer; without any the network is linear.
    activation: between the layers.
    confinement: twice the coefficient of ‖x‖², positive. Without the network p is
      N(0, I/confinement).
    num_classes: if given, every point needs a context: an integer label below
      num_classes, or a vector of length num_classes, such as a one-hot vector.
  """

  widths: Sequence[int] = (128, 128)
  activation: Callable[[Array], Array] = nn.softplus
  confinement: float = 1.0
  num_classes: int | None = None

  def __post_init__(self) -> None:
    if not isinstance(self.widths, Sequence) or isinstance(self.widths, str):
      raise TypeError(
        f"widths must be a sequence of integers such as (128,), got {self.widths!r}."
      )
    for width in self.widths:
      checks.at_least_one("each of widths", width)
    checks.activation(self.activation)
    checks.positive("confinement", self.confinement)
    if self.num_classes is not None:
      checks.at_least_one("num_classes", self.num_classes)
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Array, context: Array | None = None) -> Array:
    """E(x) of one point of any shape, a scalar.

    Args:
      x: one point; it is flattened.
      context: an integer label (if `num_classes` is given), or an array of any shape,
        such as a one-hot vector, or None.

    Raises:
      TypeError: x is not one array.
      ValueError: x does not fit the parameters, or the context `num_classes`. A label
        in `jit` or `vmap` is not known; there a label that is not below num_classes
        counts as no label.
    """
    checks.array("x", x)
    x = jnp.asarray(x)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x = x.reshape(-1).astype(dtype)
    hidden = jnp.concatenate([x, self._context_vector(context).astype(dtype)])
    self._check_size(x, hidden)
    for width in self.widths:
      hidden = self.activation(self._dense(width, dtype)(hidden))
    net = self._dense(1, dtype)(hidden)[0]
    return 0.5 * self.confinement * jnp.sum(x**2) + net

  @nn.nowrap
  def _check_size(self, x: Array, inputs: Array) -> None:
    params = self.variables.get("params", {})
    if "Dense_0" not in params:
      return  # while it is initialized
    size = len(params["Dense_0"]["kernel"])
    if len(inputs) != size:
      raise ValueError(
        f"params are of an MLP with {size} inputs, but x and its context have "
        f"{len(inputs)}, {x.size} of them x. Energies take one point: use jax.vmap for "
        "a batch."
      )

  @nn.nowrap
  def _dense(self, width: int, dtype: jnp.dtype) -> nn.Dense:
    # Losses are differences of energies, which lower precision on accelerators would
    # make inaccurate.
    return nn.Dense(width, param_dtype=dtype, precision=jax.lax.Precision.HIGHEST)

  @nn.nowrap
  def _context_vector(self, context: Array | None) -> Array:
    if context is None:
      if self.num_classes is not None:
        raise ValueError(f"num_classes={self.num_classes} needs a context.")
      return jnp.zeros(0)
    context = jnp.asarray(context)
    if context.ndim == 0 and jnp.issubdtype(context.dtype, jnp.integer):
      if self.num_classes is None:
        raise ValueError("An integer context needs num_classes.")
      checks.labels(context, self.num_classes)
      return jax.nn.one_hot(context, self.num_classes)
    if self.num_classes not in (None, context.size):
      raise ValueError(
        f"The context has shape {context.shape}, but num_classes={self.num_classes}: "
        "give an integer label or a vector of that length."
      )
    return context.reshape(-1)
