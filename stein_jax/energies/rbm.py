"""The Gaussian-Bernoulli RBM of section 5.1, with its exact log Z, score and samples.

Liu & Wang (2017), "Learning Deep Energy Models: Contrastive Divergence vs. Amortized
MLE", section 5.1. The model is a mixture of 2^l Gaussians, so log Z, the score, samples
and the likelihood are known exactly: every estimator can be compared with them.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from stein_jax import checks
from stein_jax.types import Array, Key, Params

MAX_HIDDEN = 34
"""The largest l for log Z and samples: 2^34 exponentials take many seconds."""

_MAX_MIXTURE_SIZE = 2**28  # numbers in the means of `mixture`: 1 GiB of float32
_BLOCK_SIZE = 2**20  # numbers in a block of a streamed sum; it fits into the cache

# By default accelerators multiply float32 with lower precision, which is not enough for
# log Z and for differences of energies.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class GaussianBernoulliRBM(nn.Module):
  """The Gaussian-Bernoulli RBM with its hidden units h ∈ {±1}^l summed out.

  E(x) = ½‖x‖² − bᵀx − Σᵢ log(2 cosh(Bᵀx + c)ᵢ),    p(x) = exp(−E(x)) / Z

  with B [d, l], b [d] and c [l] (−E is the paper's f, section 5.1). The paper writes
  the joint density with ½xᵀBh; but the f that it derives and uses belongs to

  p(x, h) ∝ exp(xᵀBh + bᵀx + cᵀh − ½‖x‖²),

  which is the joint density here. Given h, x is N(b + Bh, I): p is a mixture of 2^l
  Gaussians with log-weights cᵀh + ½‖b + Bh‖² up to a constant.

  `init(key, x)` and `apply(params, x)` are linen's, for one point x. The other methods
  are pure functions of `params`. Points may have any shape with d numbers; they are
  flattened. Matrix products use the highest precision.

  >>> rbm = GaussianBernoulliRBM(num_hidden=10)
  >>> params = rbm.init(jax.random.key(0), jnp.zeros((28, 28, 1)))
  >>> rbm.sample(jax.random.key(1), params, 5).shape
  (5, 784)

  Attributes:
    num_hidden: l, the number of hidden units, at least 1.
    weight_scale: the initial B is uniform on ±weight_scale; b and c are zero.
  """

  num_hidden: int
  weight_scale: float = 0.05

  def __post_init__(self) -> None:
    checks.at_least_one("num_hidden", self.num_hidden)
    checks.not_negative("weight_scale", self.weight_scale)
    super().__post_init__()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """E(x) of one point of any shape, a scalar (−f of section 5.1).

    Raises:
      ValueError: the number of entries of x is not the number of rows of B.
    """
    x = jnp.asarray(x)
    if self.is_initializing():
      dtype = jnp.promote_types(x.dtype, jnp.float32)
      self.param("B", self._init_weights, (x.size, self.num_hidden), dtype)
      self.param("b", nn.initializers.zeros, (x.size,), dtype)
      self.param("c", nn.initializers.zeros, (self.num_hidden,), dtype)
    theta = self._theta({"params": self.variables["params"]})
    x = _flatten_point(x, theta)
    y = _matmul(x, theta.B) + theta.c
    return 0.5 * jnp.sum(x**2) - _matmul(theta.b, x) - jnp.sum(_log_2cosh(y))

  @nn.nowrap
  def init_from_data(self, key: Key, data: Array) -> Params:
    """Initial parameters from the mean x̄ of the data.

    b = x̄,  c = −Bᵀx̄,  B ~ U(±weight_scale)

    The input of each hidden unit then has mean zero. With zero biases and data far from
    the origin the units saturate, and even exact maximum likelihood stays at N(x̄, I).

    Args:
      key: a PRNG key; B is the same as that of `init(key, ...)`.
      data: points [n, ...].

    Raises:
      ValueError: there are no points, they are not finite, or they are integers: scale
        pixels first.
    """
    checks.array("data", data)
    data = jnp.asarray(data)
    if data.ndim == 0 or data.shape[0] == 0:
      raise ValueError(f"data must be points [n, ...] with n > 0, got {data.shape}.")
    if not jnp.issubdtype(data.dtype, jnp.floating):
      raise ValueError(f"data has dtype {data.dtype}: scale it to floats first.")
    checks.finite("data", data)
    B = self.init(key, data[0])["params"]["B"]
    b = jnp.mean(data, axis=0, dtype=B.dtype).reshape(-1)
    return {"params": {"B": B, "b": b, "c": -_matmul(b, B)}}

  @nn.nowrap
  def features(self, params: Params, x: Array) -> Array:
    """The inputs of the hidden units for one point: y = Bᵀx + c, [l] (section 5.1)."""
    theta = self._theta(params)
    return _features(theta, _flatten_point(x, theta))

  @nn.nowrap
  def log_partition(self, params: Params, *, block_size: int | None = None) -> Array:
    """The exact log Z, a scalar; its gradient is the exact negative phase −E_p[∇E].

    log Z = (d/2) log 2π + logsumexp_h [cᵀh + ½‖b + Bh‖²]

    (the joint density of section 5.1, with x integrated out). Let m = c + Bᵀb and
    G = BᵀB. With h split into halves h₁ and h₂, the bracket is
    ½‖b‖² + a₁(h₁) + a₂(h₂) + h₁ᵀG₁₂h₂. The sum is computed over blocks of h₁, in memory
    of order 2^(l/2), and so is its gradient.

    Args:
      params: the parameters.
      block_size: the number of states h₁ in a block; each needs 2^⌈l/2⌉ numbers.

    Raises:
      ValueError: num_hidden is above `MAX_HIDDEN`, or block_size is below 1.
    """
    theta = self._theta(params)
    return _log_partition(theta, _checked_block_size(theta, block_size))

  @nn.nowrap
  def log_likelihood(
    self, params: Params, x: Array, *, block_size: int | None = None
  ) -> Array:
    """The exact log p(x) = −E(x) − log Z of points [n, ...], in nats, [n].

    Every call computes log Z: if l is large, call it once with a large batch.

    Args:
      params: the parameters.
      x: points [n, ...].
      block_size: as in `log_partition`.

    Raises:
      ValueError: as `log_partition`; or the points do not fit B.
    """
    theta, x = self._theta(params), _real(x)
    num_visible = theta.B.shape[0]
    if x.ndim == 0 or math.prod(x.shape[1:]) != num_visible:
      raise ValueError(
        f"x must be points [n, ...] with {num_visible} numbers each to fit B of shape "
        f"{theta.B.shape}, got x of shape {x.shape}."
      )
    x = x.reshape(x.shape[0], num_visible)
    return _log_likelihood(theta, x, _checked_block_size(theta, block_size))

  @nn.nowrap
  def score(self, params: Params, x: Array) -> Array:
    """∇ₓ log p(x) = b − x + B tanh(Bᵀx + c) of one point, shaped like x.

    The gradient of f in section 5.1.
    """
    theta = self._theta(params)
    return _score(theta, _flatten_point(x, theta)).reshape(jnp.shape(x))

  @nn.nowrap
  def score_divergence(self, params: Params, x: Array) -> Array:
    """∇·∇ log p(x) = −d + Σᵢ (1 − tanh²(yᵢ)) ‖Bᵢ‖² of one point, y = Bᵀx + c; a scalar.

    Bᵢ is column i of B. This is the trace in Fisher score matching (18).
    """
    theta = self._theta(params)
    return _score_divergence(theta, _flatten_point(x, theta))

  @nn.nowrap
  def mixture(self, params: Params) -> tuple[Array, Array]:
    """The components of p = Σ_h w_h N(b + Bh, I).

    w_h ∝ exp(cᵀh + ½‖b + Bh‖²)   (the joint density of section 5.1, square completed)

    Returns:
      log w [2^l] and the means [2^l, d], h in the order of
      `itertools.product((-1, 1), repeat=l)`.

    Raises:
      ValueError: the 2^l means need more than 1 GiB of float32.
    """
    theta = self._theta(params)
    num_visible, num_hidden = theta.B.shape
    if 2**num_hidden * num_visible > _MAX_MIXTURE_SIZE:
      raise ValueError(
        f"The mixture has 2^{num_hidden} means of {num_visible} numbers, more than the "
        f"limit of {_MAX_MIXTURE_SIZE} numbers. `sample`, `log_partition` and "
        "`log_likelihood` do not need these means."
      )
    return _mixture(theta)

  @nn.nowrap
  def sample(
    self, key: Key, params: Params, n: int, *, first: int | Array = 0
  ) -> Array:
    """Exact, independent samples, [n, d]: h from its marginal, then x = b + Bh + z.

    h₁, the first half of h, is drawn from its marginal, which is computed in blocks as
    in `log_partition`; then h₂ is drawn given h₁. Within each half the units are drawn
    one after another. The samples are exact up to rounding, for every l for which
    `log_partition` works.

    Args:
      key: a PRNG key. Sample i depends on `fold_in(key, i)` alone.
      params: the parameters.
      n: the number of samples.
      first: the index of the first sample: draws the samples first, ...,
        first + n − 1 of this key. Several devices can thus draw the samples that one
        device would draw.

    Raises:
      ValueError: num_hidden is above `MAX_HIDDEN`, n is negative, or first is no index.
      TypeError: a key that is not a PRNG key.
    """
    theta = self._theta(params)
    checks.key(key)
    checks.integer("n", n, least=0)
    _check_first(first)
    return _sample(key, theta, n, first, _checked_block_size(theta, None))

  @nn.nowrap
  def gibbs(
    self,
    key: Key,
    params: Params,
    x: Array,
    *,
    num_steps: int = 1,
    first: int | Array = 0,
  ) -> Array:
    """Points after k steps of block Gibbs sampling, a chain that leaves p invariant.

    h ~ p(h | x): P(hᵢ = 1) = 1 / (1 + exp(−2yᵢ)), y = Bᵀx + c;  then x ~ N(b + Bh, I)

    (the joint density of section 5.1).

    Args:
      key: a PRNG key. The chain of point i depends on `fold_in(key, first + i)` alone.
      params: the parameters.
      x: points [n, ...], the starts of the chains.
      num_steps: k.
      first: the index of the first point among the points of all devices.

    Returns:
      The moved points, shaped like x.

    Raises:
      ValueError: num_steps is below 1, or the points do not fit B.
      TypeError: a key that is not a PRNG key, or the points are not floats.
    """
    checks.at_least_one("num_steps", num_steps)
    theta, x = self._theta(params), _real(x)
    checks.key(key)
    checks.floating("x", x)
    _check_first(first)
    if x.ndim == 0:
      raise ValueError("x must be points [n, ...], got a scalar.")
    return _gibbs(key, theta, x, num_steps, first)

  @nn.nowrap
  def _init_weights(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    scale = self.weight_scale
    return jax.random.uniform(key, shape, dtype, minval=-scale, maxval=scale)

  @nn.nowrap
  def _theta(self, params: Params) -> "_Theta":
    inner = params.get("params") if isinstance(params, Mapping) else None
    if not (isinstance(inner, Mapping) and {"B", "b", "c"} <= set(inner)):
      raise ValueError(
        'params must be those that `init` returns, {"params": {"B": ..., "b": ..., '
        f'"c": ...}}}}, got {checks.described(params)}.'
      )
    theta = _Theta(*(inner[name] for name in ("B", "b", "c")))
    num_visible = jnp.shape(theta.B)[0]
    want = (num_visible, self.num_hidden), (num_visible,), (self.num_hidden,)
    got = tuple(jnp.shape(leaf) for leaf in theta)
    if got != want:
      raise ValueError(
        f"B, b and c have shapes {got}, but an RBM with num_hidden={self.num_hidden} "
        f"needs {want}."
      )
    return theta


class _Theta(NamedTuple):
  B: Array
  b: Array
  c: Array


def _real(x: Array) -> Array:
  """x as an array of real numbers; integers (pixels) pass."""
  checks.array("x", x)
  x = jnp.asarray(x)
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    raise TypeError(f"x must be real, got {x.dtype}.")
  return x


def _check_first(first: int | Array) -> None:
  if isinstance(first, jax.Array) and jnp.issubdtype(first.dtype, jnp.integer):
    return
  checks.integer("first", first, least=0)


def _flatten_point(x: Array, theta: _Theta) -> Array:
  x = _real(x)
  if x.size != theta.B.shape[0]:
    raise ValueError(
      f"A point of shape {x.shape} has {x.size} numbers, but B has shape "
      f"{theta.B.shape} and needs {theta.B.shape[0]}. Energies take one point: use "
      "jax.vmap for a batch."
    )
  # With integers (pixels) ‖x‖² would overflow.
  return x.reshape(-1).astype(jnp.promote_types(x.dtype, theta.B.dtype))


def _checked_block_size(theta: _Theta, block_size: int | None) -> int:
  num_hidden = theta.B.shape[1]
  if num_hidden > MAX_HIDDEN:
    raise ValueError(
      f"Exact sums over the hidden states are limited to num_hidden={MAX_HIDDEN}; this "
      f"RBM has {num_hidden}, that is 2^{num_hidden} states."
    )
  if block_size is None:
    block_size = max(1, _BLOCK_SIZE >> (num_hidden - num_hidden // 2))
  checks.at_least_one("block_size", block_size)
  return min(block_size, 2 ** (num_hidden // 2))


@jax.custom_jvp
def _log_2cosh(y: Array) -> Array:
  """log(exp(y) + exp(−y)), without overflow."""
  return jnp.logaddexp(y, -y)


@_log_2cosh.defjvp
def _log_2cosh_jvp(
  primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
  # Automatic differentiation would compute tanh as a difference of two exponentials,
  # which is slower, and inaccurate where y is small.
  (y,), (dy,) = primals, tangents
  return _log_2cosh(y), jnp.tanh(y) * dy


@jax.jit
def _features(theta: _Theta, x: Array) -> Array:
  return _matmul(x, theta.B) + theta.c


@jax.jit
def _score(theta: _Theta, x: Array) -> Array:
  return theta.b - x + _matmul(theta.B, jnp.tanh(_features(theta, x)))


@jax.jit
def _score_divergence(theta: _Theta, x: Array) -> Array:
  slopes = 1 - jnp.tanh(_features(theta, x)) ** 2
  return jnp.sum(slopes * jnp.sum(theta.B**2, axis=0)) - x.size


class _Halves(NamedTuple):
  """mᵀh + ½hᵀGh = a₁(h₁) + a₂(h₂) + h₁ᵀG₁₂h₂, for all states of both halves."""

  states1: Array  # [2^l₁, l₁], l₁ = ⌊l/2⌋
  states2: Array  # [2^l₂, l₂]
  a1: Array  # [2^l₁]
  a2: Array  # [2^l₂]
  cross: Array  # G₁₂h₂, [l₁, 2^l₂]


def _halves(theta: _Theta) -> _Halves:
  m = theta.c + _matmul(theta.b, theta.B)
  gram = _matmul(theta.B.T, theta.B)
  l1 = m.size // 2
  states1, states2 = _states(l1, m.dtype), _states(m.size - l1, m.dtype)

  def within(states: Array, m: Array, gram: Array) -> Array:
    return _matmul(states, m) + 0.5 * jnp.sum(_matmul(states, gram) * states, axis=1)

  return _Halves(
    states1=states1,
    states2=states2,
    a1=within(states1, m[:l1], gram[:l1, :l1]),
    a2=within(states2, m[l1:], gram[l1:, l1:]),
    cross=_matmul(gram[:l1, l1:], states2.T),
  )


def _states(num_units: int, dtype: jnp.dtype) -> Array:
  """All states in {±1}^num_units, in the order of itertools.product((-1, 1), ...)."""
  shifts = jnp.arange(num_units - 1, -1, -1)
  bits = (jnp.arange(2**num_units)[:, None] >> shifts[None, :]) & 1
  return (2 * bits - 1).astype(dtype)


def _log_marginal(halves: _Halves, block_size: int) -> Array:
  """The log-weights of h₁, [2^l₁]: a₁(h₁) + logsumexp_h₂ [a₂(h₂) + h₁ᵀG₁₂h₂]."""

  # Without the checkpoint the gradient would store the exponentials of all 2^l states.
  @jax.checkpoint
  def sum_over_h2(h1: Array) -> Array:
    return jax.nn.logsumexp(halves.a2 + _matmul(h1, halves.cross))

  sums = jax.lax.map(sum_over_h2, halves.states1, batch_size=block_size)
  return halves.a1 + sums


def _log_hidden_sum(theta: _Theta, block_size: int) -> Array:
  """logsumexp_h [mᵀh + ½hᵀGh]: log Z without its terms (d/2) log 2π + ½‖b‖²."""
  return jax.nn.logsumexp(_log_marginal(_halves(theta), block_size))


@functools.partial(jax.jit, static_argnames="block_size")
def _log_partition(theta: _Theta, block_size: int) -> Array:
  gaussian = 0.5 * theta.b.size * math.log(2 * math.pi) + 0.5 * jnp.sum(theta.b**2)
  return gaussian + _log_hidden_sum(theta, block_size)


@functools.partial(jax.jit, static_argnames="block_size")
def _log_likelihood(theta: _Theta, x: Array, block_size: int) -> Array:
  # −E(x) − log Z with the square of x − b completed: the plain difference would be
  # inaccurate for data far from the origin.
  distances = jnp.sum((x - theta.b[None, :]) ** 2, axis=1)
  gaussian = -0.5 * distances - 0.5 * theta.b.size * math.log(2 * math.pi)
  y = _matmul(x, theta.B) + theta.c[None, :]
  return gaussian + jnp.sum(_log_2cosh(y), axis=1) - _log_hidden_sum(theta, block_size)


@jax.jit
def _mixture(theta: _Theta) -> tuple[Array, Array]:
  halves = _halves(theta)
  exponents = halves.a2[None, :] + _matmul(halves.states1, halves.cross)
  log_weights = jax.nn.log_softmax((halves.a1[:, None] + exponents).reshape(-1))
  states = _states(theta.c.size, theta.B.dtype)
  return log_weights, theta.b[None, :] + _matmul(states, theta.B.T)


@functools.partial(jax.jit, static_argnames=("n", "block_size"))
def _sample(
  key: Key, theta: _Theta, n: int, first: int | Array, block_size: int
) -> Array:
  halves = _halves(theta)
  log_marginal = _log_marginal(halves, block_size)
  num_visible, num_hidden = theta.B.shape
  l1 = num_hidden // 2

  def draw(index: Array) -> Array:
    hidden_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
    uniforms = jax.random.uniform(hidden_key, (num_hidden,), theta.B.dtype)
    h1 = _draw_state(uniforms[:l1], halves.states1, log_marginal)
    log_weights = halves.a2 + _matmul(h1, halves.cross)
    h2 = _draw_state(uniforms[l1:], halves.states2, log_weights)
    z = jax.random.normal(noise_key, (num_visible,), theta.B.dtype)
    return theta.b + _matmul(theta.B, jnp.concatenate([h1, h2])) + z

  indices = jnp.uint32(first) + jnp.arange(n, dtype=jnp.uint32)
  examples = max(1, _BLOCK_SIZE // max(halves.a2.size, num_visible))
  return jax.lax.map(draw, indices, batch_size=min(examples, max(n, 1)))


@functools.partial(jax.jit, static_argnames="num_steps")
def _gibbs(
  key: Key, theta: _Theta, x: Array, num_steps: int, first: int | Array
) -> Array:
  def chain(index: Array, x: Array) -> Array:
    def step(x: Array, step_key: Key) -> tuple[Array, None]:
      hidden_key, noise_key = jax.random.split(step_key)
      y = _features(theta, x)
      up = jax.random.bernoulli(hidden_key, jax.nn.sigmoid(2 * y))
      h = jnp.where(up, 1, -1).astype(theta.B.dtype)
      z = jax.random.normal(noise_key, theta.b.shape, theta.B.dtype)
      return (theta.b + _matmul(theta.B, h) + z).astype(x.dtype), None

    step_keys = jax.random.split(jax.random.fold_in(key, index), num_steps)
    end, _ = jax.lax.scan(step, _flatten_point(x, theta), step_keys)
    return end.reshape(jnp.shape(x))

  return jax.vmap(chain)(first + jnp.arange(x.shape[0]), x)


def _draw_state(uniforms: Array, states: Array, log_weights: Array) -> Array:
  """Draws one of the 2^l states, P ∝ exp(log_weights), from l uniform numbers.

  It walks down the binary tree of partial sums, one unit at a time. Small
  probabilities stay accurate; in a cumulative sum over all states they would be lost
  to rounding.
  """
  sums = [jnp.exp(log_weights - jnp.max(log_weights))]
  while sums[-1].size > 1:
    sums.append(jnp.sum(sums[-1].reshape(-1, 2), axis=1))
  index = jnp.int32(0)
  for uniform, level in zip(uniforms, sums[-2::-1]):
    down, up = level[2 * index], level[2 * index + 1]
    # uniform < 1, so a half with total weight 0 is never chosen.
    index = 2 * index + (uniform * (down + up) < up)
  return states[index]
