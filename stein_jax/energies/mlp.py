"""A smooth energy for vectors: a quadratic part and a network."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from stein_jax import checks
from stein_jax.energies.base import KINDS, Base, init_from_data
from stein_jax.energies.context import context_vector
from stein_jax.types import Array, Key, Params


class MLP(nn.Module):
  """A quadratic term plus a network: E(x) = (confinement/2)‖z‖² + net(z).

  z is x itself or, with `base`, x in coordinates whose mean and scale are learned. The
  activations (softplus, tanh, silu, ...) grow at most linearly, and so does the
  network. Far from the origin the quadratic term therefore dominates, and
  p(x) ∝ exp(−E(x)) can be normalised. Choose a smooth activation: where ReLU is not
  differentiable, finite differences and derivatives of the score disagree.

  Data of any location and scale are best learned with a base that starts at their mean
  and scale:

  >>> x = 100 + 30 * jax.random.normal(jax.random.key(0), (1000, 2))
  >>> energy = MLP(widths=(16,), base="diagonal")
  >>> params = energy.init_from_data(jax.random.key(0), x)
  >>> energy.features(params, x[0]).shape
  (16,)

  With a context it is a conditional energy E(x | context), with the same quadratic
  term: `apply(params, x, context)` passes x and the context to the network.

  >>> energy = MLP(widths=(16,), num_classes=10)
  >>> params = energy.init(jax.random.key(0), jnp.zeros(2), 3)
  >>> energy.apply(params, jnp.ones(2), 7).shape
  ()

  Attributes:
    widths: the number of units in each hidden layer; without any the network is linear.
    activation: between the layers.
    confinement: twice the coefficient of ‖z‖², positive. Without the network p is
      N(0, I/confinement) in z.
    base: z(x). "isotropic": x. "diagonal": (x − μ)/σ with μ and log σ among the
      parameters, `[d]`. "full": W(x − μ) with W `[d, d]`.
    num_classes: if given, every point needs a context: an integer label below
      num_classes, or a vector of length num_classes, such as a one-hot vector.
  """

  widths: Sequence[int] = (128, 128)
  activation: Callable[[Array], Array] = nn.softplus
  confinement: float = 1.0
  num_classes: int | None = None
  base: str = "isotropic"

  def __post_init__(self) -> None:
    if not isinstance(self.widths, Sequence) or isinstance(self.widths, str):
      raise TypeError(
        f"widths must be a sequence of integers such as (128,), got {self.widths!r}."
      )
    for width in self.widths:
      checks.at_least_one("each of widths", width)
    checks.activation(self.activation)
    checks.positive("confinement", self.confinement)
    checks.one_of("base", self.base, KINDS)
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
    z, hidden = self._hidden(x, context)
    net = self._dense(1, hidden.dtype)(hidden)[0]
    return 0.5 * self.confinement * jnp.sum(z**2) + net

  @nn.nowrap
  def init_from_data(self, key: Key, data: Array, context: Any = None) -> Params:
    """Initial parameters, with the base at the mean and scale of the data.

    Args:
      key: a PRNG key; the network is the same as that of `init(key, ...)`.
      data: points `[n, ...]`.
      context: of one point, if the energy is conditional.

    Raises:
      ValueError: fewer than two points, or points that are not finite.
      TypeError: data that is not an array of floats.
    """
    return init_from_data(self, key, data, context, self.base)

  @nn.nowrap
  def features(self, params: Params, x: Array, context: Any = None) -> Array:
    """The last hidden layer at one point, for a kernel on features."""
    return jnp.asarray(self.apply(params, x, context, method="_last_hidden"))

  @nn.compact
  def _last_hidden(self, x: Array, context: Array | None) -> Array:
    return self._hidden(x, context)[1]

  @nn.nowrap
  def _hidden(self, x: Array, context: Array | None) -> tuple[Array, Array]:
    """z, and the values of the last hidden layer."""
    checks.array("x", x)
    x = jnp.asarray(x)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x = x.reshape(-1).astype(dtype)
    given = context_vector(context, self.num_classes).astype(dtype)
    self._check_size(x, given)
    z = Base(self.base, name="base")(x)
    hidden = jnp.concatenate([z, given])
    for width in self.widths:
      hidden = self.activation(self._dense(width, dtype)(hidden))
    return z, hidden

  @nn.nowrap
  def _check_size(self, x: Array, context: Array) -> None:
    params = self.variables.get("params", {})
    if "Dense_0" not in params:
      return  # while it is initialized
    size, given = len(params["Dense_0"]["kernel"]), x.size + context.size
    if given != size:
      raise ValueError(
        f"params are of an MLP with {size} inputs, but x and its context have "
        f"{given}, {x.size} of them x. Energies take one point: use jax.vmap for "
        "a batch."
      )

  @nn.nowrap
  def _dense(self, width: int, dtype: jnp.dtype) -> nn.Dense:
    # Losses are differences of energies, which lower precision on accelerators would
    # make inaccurate.
    return nn.Dense(width, param_dtype=dtype, precision=jax.lax.Precision.HIGHEST)
