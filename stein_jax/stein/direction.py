"""The Stein direction φ*: how it is computed, and how much of it is repulsion."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey, Partial, register_pytree_with_keys_class

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.kernels import Kernel, Whitened
from stein_jax.kernels.base import registered
from stein_jax.kernels.whitening import is_whitened
from stein_jax.pairs.points import as_matrix, joined, matmul, num_rows, widened
from stein_jax.pairs.tiles import Streaming, streamed
from stein_jax.parallel import axes
from stein_jax.types import Array, Exchange, Params, Particles, Precision, PyTree

DirectionFn: TypeAlias = Callable[..., Particles]
"""`direction(particles, scores) -> φ`; with `axis_name=...` where that is given."""

DirectionLike: TypeAlias = "Kernel | Direction | Callable[..., Any] | None"
"""What a learning rule takes: a kernel, a `Direction`, None ("kernel off"),
`fn(params) -> one of these`, or any function `(particles, scores) -> φ`."""

Reference: TypeAlias = tuple[Particles, Particles]
"""More points of the kernel's sums, `[r, ...]`, and the scores there."""

_LEAVES = ("kernel", "regularization")
"""The attributes of a `Direction` that hold arrays; the others are static."""

_PRECISIONS = (
  *("highest", "high", "default", None),
  *("float32", "tensorfloat32", "bfloat16_3x", "bfloat16", "fastest"),  # JAX's aliases
  *(preset.name for preset in jax.lax.DotAlgorithmPreset),
)


def _check_call(
  self: "Direction",
  particles: Particles,
  scores: Particles,
  axis_name: str | None,
  reference: Reference | None,
) -> None:
  checks.particles_and_scores(particles, scores)
  if callable(self.kernel) and not isinstance(self.kernel, Kernel):
    raise TypeError(
      "the kernel of this Direction is a function of params: give the Direction to a "
      "rule, or call direction.at(params) first."
    )
  _check_is_kernel(self.kernel)
  if self.regularization is not None:
    checks.positive("regularization", self.regularization)
  self.check_axis(axis_name)
  n = num_rows(particles) * axes.size(axis_name)
  if reference is not None:
    n += self._check_reference(particles, reference)
  if self.leave_one_out and n < 2:
    raise ValueError(f"leave_one_out needs at least 2 particles, got {n}.")


@register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Direction:
  """How a Stein direction is computed: a kernel, and the options of its sums.

  φ(xᵢ) = (1/n) Σⱼ [k(xⱼ, xᵢ) scoreⱼ + ∇_{xⱼ} k(xⱼ, xᵢ)]

  The first term attracts the particles to where p is high, the second drives them
  apart. Whatever takes a kernel takes a Direction as well, so that these options stand
  in one place:

  >>> import jax, jax.numpy as jnp
  >>> from stein_jax import Direction, kernels
  >>> direction = Direction(kernels.rbf(), leave_one_out=True)
  >>> x = jax.random.normal(jax.random.key(0), (100, 2))
  >>> direction(x, -x).shape
  (100, 2)

  A Direction is a pytree: the kernel's bandwidth and the regularization are leaves.

  Attributes:
    kernel: from `kernels`; None is the paper's "kernel off", φᵢ = scoreᵢ. A median
      bandwidth needs distances between 1e-18 and 3e18 in float32. For a rule also
      `kernel_fn(params) -> kernel`; such a Direction is no argument of a jitted
      function, but `direction.at(params)` is.
    leave_one_out: leave each particle out of its own sum,
      φ₋ᵢ(xᵢ) = 1/(n−1) Σ_{j≠i} [...]. The term of the particle itself,
      k(xᵢ, xᵢ) scoreᵢ, lets a flexible energy lower D² by flattening itself at the
      data. Without it the direction is that of the U-statistic, and unbiased. Given
      queries and sources, it leaves out the source of the query's own index.
    whitening: what `whiten(kernel, data)` returned, for the whitened Stein direction
      (ours): φ* of the whitened kernel κ, by which it replaces the kernel, as in
      Direction(whiten(kernel, data)). Afterwards it is the attribute `kernel`.
    regularization: η > 0 gives the regularised Stein direction (ours)

        Φ = (K + ηI)⁻¹ (K S + V),  Vᵢ = Σⱼ ∇_{xⱼ} k(xⱼ, xᵢ),

      the values at the particles of the φ in the RKHS that maximises
      E[T_p φ] − ½ E‖φ‖² − (η/2n) ‖φ‖²_H. As E[T_p φ] = ⟨φ, φ*⟩_H, the maximum has
      n φ* = Σᵢ k(xᵢ, ·) φ(xᵢ) + η φ, which at the particles is K S + V = (K + ηI) Φ.
      For η → ∞, Φ → (n/η) φ*. It holds the whole n × n matrix K on every device.
      Rounding limits η from below: far below n times the precision of the floats (1e-5
      for n = 100 in float32), K + ηI may have no Cholesky factor, and Φ is NaN.
    row_normalized: divide by Σⱼ k(xⱼ, xᵢ) instead of n, as the authors' code does. With
      leave_one_out, φ is 0 where that sum is 0.
    block_size: radial kernels compute the n × n table in square tiles of this edge,
      other kernels this many of its rows at once. None chooses: 512 on a CPU, 8192 on
      accelerators. Memory is linear in n. Only for a median bandwidth, which needs the
      table too, it is held whole up to n = 4096.
    exchange: how devices get each other's particles. "all_gather": each holds all of
      them. "ring": blocks travel half way around the ring of devices, and each device
      holds one remote block at a time; radial kernels then compute every pair once
      instead of on both devices. None: the ring, if a device's table of pairs has more
      than 2²⁴ entries and the kernel allows it. Always with a whitened kernel,
      of which only sums travel, not points.
    precision: of the product of the kernel's matrix with scores and particles. A lower
      one is several times as fast on accelerators; "default" loses about three digits
      of float32. Distances always have the highest.

  Raises:
    TypeError: a kernel of another type, or leave_one_out or row_normalized that is not
      a bool.
    ValueError: an option outside its range; a regularization that is not above 0, has
      no kernel, or is combined with row_normalized, leave_one_out or whitening; a
      whitening of another kernel; row_normalized with a whitened kernel, whose row
      sums may be 0.

  Source: Liu & Wang (2017), equations 4 and 5.
  """

  kernel: Any  # Kernel | Callable[[Params], Kernel] | None
  _: dataclasses.KW_ONLY
  leave_one_out: bool = False
  regularization: float | Array | None = None
  row_normalized: bool = False
  block_size: int | None = None
  exchange: Exchange | None = None
  precision: Precision = "highest"
  whitening: dataclasses.InitVar[Whitened | None] = None

  def __post_init__(self, whitening: Whitened | None) -> None:
    _check_type(self)
    if whitening is not None:
      _check_whitening(self.kernel, whitening)
      object.__setattr__(self, "kernel", whitening)
    for name in ("leave_one_out", "row_normalized"):
      checks.boolean(name, getattr(self, name))
    if self.block_size is not None:
      checks.at_least_one("block_size", self.block_size)
    if self.exchange is not None:
      checks.one_of("exchange", self.exchange, get_args(Exchange))
    checks.one_of("precision", self.precision, _PRECISIONS)
    if self.regularization is not None and is_whitened(self.kernel):
      raise ValueError("regularization and whitening exclude each other.")
    if self.row_normalized and is_whitened(self.kernel):
      raise ValueError(
        "row_normalized divides by sums of the kernel, which are not positive for a "
        "whitened one: leave row_normalized out."
      )
    if self.regularization is None:
      return
    checks.positive("regularization", self.regularization)
    if self.kernel is None:
      raise ValueError("regularization needs a kernel, got kernel=None.")
    for name in ("row_normalized", "leave_one_out"):
      if getattr(self, name):
        raise ValueError(f"regularization and {name} exclude each other.")

  def tree_flatten_with_keys(self) -> tuple[list[tuple[GetAttrKey, Any]], tuple]:
    """The leaves, and the static options by name."""
    leaves = [(GetAttrKey(name), getattr(self, name)) for name in _LEAVES]
    names = [f.name for f in dataclasses.fields(self) if f.name not in _LEAVES]
    return leaves, tuple((name, getattr(self, name)) for name in names)

  @classmethod
  def tree_unflatten(cls, options: tuple, leaves: Iterable[Any]) -> "Direction":
    """Rebuilds it without a check: JAX's leaves may be derivatives or placeholders."""
    direction = object.__new__(cls)
    for name, value in (*zip(_LEAVES, leaves), *options):
      object.__setattr__(direction, name, value)
    return direction

  def at(self, params: Params) -> "Direction":
    """The same, with the kernel that `kernel_fn(params)` returns."""
    if self.kernel is None or isinstance(self.kernel, Kernel):
      return self
    kernel = self.kernel(jax.lax.stop_gradient(params))
    _check_is_kernel(kernel)
    return dataclasses.replace(self, kernel=kernel)

  def check_axis(self, axis_name: str | None, *, all_pairs: bool = False) -> None:
    """Raises ValueError if `exchange` does not fit the axis or the kernel.

    Args:
      axis_name: the axis of the devices.
      all_pairs: whether the sums are over all pairs, even those that this direction
        leaves out.
    """
    if self.exchange is None:
      return
    if axis_name is None:
      raise ValueError(
        f"exchange={self.exchange!r} says how devices exchange particles, and needs "
        "axis_name: give it, or leave exchange out."
      )
    if self.exchange == "ring" and not (all_pairs or self._sums_by_blocks):
      raise ValueError(
        'exchange="ring" holds two blocks of particles; the regularised direction and '
        'that of nearest neighbours need all of them: use exchange="all_gather".'
      )

  @property
  def _sums_by_blocks(self) -> bool:
    # None, and a function of params that is not called yet, do not say otherwise.
    by_blocks = getattr(self.kernel, "sums_by_blocks", True)
    return self.regularization is None and by_blocks

  def streaming(
    self, particles: Particles, axis_name: str | None, *, all_pairs: bool = False
  ) -> Streaming:
    """How sums over these particles are computed; `all_pairs` as in `check_axis`."""
    exchange = self.exchange
    if exchange is None and not (all_pairs or self._sums_by_blocks):
      exchange = "all_gather"
    if exchange is None:
      exchange = getattr(self.kernel, "default_exchange", None)
    return streamed(
      particles,
      block_size=self.block_size,
      precision=self.precision,
      axis_name=axis_name,
      exchange=exchange,
    )

  def resolve(self, particles: Particles, axis_name: str | None = None) -> "Direction":
    """The same, with the bandwidth that the kernel's policy gives these particles."""
    if self.kernel is None:
      return self
    streaming = self.streaming(particles, axis_name)
    return dataclasses.replace(self, kernel=self.kernel.resolve(particles, streaming))

  @compiled(_check_call, static=("axis_name",))
  def __call__(
    self,
    particles: Particles,
    scores: Particles,
    axis_name: str | None = None,
    *,
    reference: Reference | None = None,
  ) -> Particles:
    """φ at the particles.

    With r reference points yⱼ the sums are over these as well, which lessens their
    noise:

      φ(xᵢ) = 1/(n + r) {Σⱼ [k(xⱼ, xᵢ) s(xⱼ) + ∇k(xⱼ, xᵢ)] + Σⱼ [k(yⱼ, xᵢ) s(yⱼ) + ...]}

    with leave_one_out without j = i in the first sum, and divided by n + r − 1. A
    median bandwidth is that of the particles and the reference points together; over
    several devices each computes it, from all points. A regularised direction, and that
    of nearest neighbours, are those of all n + r points together, at the particles.

    Args:
      particles: `[n, ...]`, or a pytree of such.
      scores: ∇ log p at the particles, shaped like them.
      axis_name: the axis over which the particles are sharded; the result is this
        device's part of the direction that all particles together have.
      reference: `(points, scores)`, `[r, ...]`, the same on every device; None: no more
        points than the particles.

    Returns:
      φ, of the particles' shape and dtype (16 bits are summed in 32). Differentiable; a
      median bandwidth is constant under differentiation.

    Raises:
      ValueError: particles and scores that differ in shape, fewer than two particles
        with a median bandwidth or leave_one_out, an exchange without axis_name, or a
        ring where all particles are needed; reference points of another shape than the
        particles, or without a kernel.
      TypeError: a reference that is no pair.
    """
    dtypes = jax.tree.map(jnp.result_type, particles)
    particles, scores, reference = widened((particles, scores, reference))
    if self.kernel is None:
      direction = scores
    elif reference is not None:
      direction = self._with_reference(particles, scores, reference, axis_name)
    elif self.regularization is not None:
      direction = self._regularized(particles, scores, axis_name)
    else:
      streaming = self.streaming(particles, axis_name)
      sources, scores = streaming.sources(particles, scores)
      sums, mass = self.kernel.stein_sums(
        particles,
        sources,
        scores,
        streaming=streaming,
        leave_one_out=self.leave_one_out,
      )
      direction = self._divided(sums, mass, axis_name)
    return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), direction, dtypes)

  def _check_reference(self, particles: Particles, reference: Reference) -> int:
    """Returns r, the number of reference points, if they go with the particles."""
    if not (isinstance(reference, tuple) and len(reference) == 2):
      raise TypeError(
        f"reference must be a pair (points, scores), got {checks.described(reference)}."
      )
    points, scores = reference
    r = checks.num_particles(points, "the reference points")
    checks.same_event(particles, points, ("particles", "the reference points"))
    checks.arrays("the reference points' scores", scores)
    names = ("the reference points", "their scores")
    checks.same_shapes(points, scores, names)
    if self.kernel is None:
      raise ValueError(
        "reference points need a kernel, got kernel=None, with which φ is each "
        "particle's own score: leave the reference out."
      )
    return r

  def _with_reference(
    self,
    particles: Particles,
    scores: Particles,
    reference: Reference,
    axis_name: str | None,
  ) -> Particles:
    """φ at the particles, of sums over these and the reference points."""
    reference = axes.varying_as(particles, reference)
    alone = dataclasses.replace(self, exchange=None)
    if not self._sums_by_blocks:
      return _of_all(alone, particles, scores, reference, axis_name)
    others, other_scores = reference
    points = joined(axes.gather(particles, axis_name), others)
    kernel = self.kernel.resolve(points, alone.streaming(points, None))
    streaming = self.streaming(particles, axis_name)
    sources, source_scores = streaming.sources(particles, scores)
    own = kernel.stein_sums(
      particles,
      sources,
      source_scores,
      streaming=streaming,
      leave_one_out=self.leave_one_out,
    )
    more = kernel.stein_sums(
      particles,
      others,
      other_scores,
      streaming=dataclasses.replace(streaming, axis_name=None, ring=False),
    )
    sums, mass = jax.tree.map(jnp.add, own, more)
    return self._divided(sums, mass, axis_name, more=num_rows(others))

  def _divided(
    self, sums: PyTree, mass: Array, axis_name: str | None, *, more: int = 0
  ) -> PyTree:
    """Sums `[m, ...]` divided by n, by n − 1, or by the kernel's row sums.

    `more` is the number of points of the sums that are no particles.
    """
    if self.row_normalized:
      # Left out of its own sum, a particle far from all others has no mass at all.
      mass = jnp.where(mass == 0, 1, mass)
      return jax.tree.map(lambda leaf: jax.vmap(jnp.divide)(leaf, mass), sums)
    n = num_rows(sums) * axes.size(axis_name) + more
    return jax.tree.map(lambda leaf: leaf / (n - self.leave_one_out), sums)

  def _regularized(
    self, particles: Particles, scores: Particles, axis_name: str | None
  ) -> Particles:
    """(K + ηI)⁻¹ (K S + V), computed for all particles on every device."""
    n = num_rows(particles)
    kernel = self.kernel.resolve(particles, self.streaming(particles, axis_name))
    particles, scores = axes.gather((particles, scores), axis_name)
    matrix = kernel.matrix(particles)
    repulsion, pull_back = kernel.repulsion(particles)
    regularization = jnp.asarray(self.regularization, matrix.dtype)
    identity = jnp.eye(len(matrix), dtype=matrix.dtype)
    # One Cholesky factor serves all right-hand sides. Its inverse is small; triangular
    # solves with the particles' many columns would be several times slower.
    factor = jnp.linalg.cholesky(matrix + regularization * identity)
    root = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
    inverse = matmul(root.T, root)
    s, unravel = as_matrix(scores)
    attraction = unravel(matmul(matmul(inverse, matrix), s))
    repulsion = pull_back(matmul(inverse, repulsion))
    direction = jax.tree.map(jnp.add, attraction, repulsion)
    return axes.own(direction, n, axis_name)


def svgd_direction(
  particles: Particles,
  scores: Particles,
  kernel: "Kernel | Direction | None",
  *,
  axis_name: str | None = None,
  **options: Any,
) -> Particles:
  """The direction in which particles approach p fastest, within the kernel's RKHS.

  φ*(xᵢ) = (1/n) Σⱼ [k(xⱼ, xᵢ) scoreⱼ + ∇_{xⱼ} k(xⱼ, xᵢ)]

  It is `Direction(kernel, **options)`, called once.

  Args:
    particles: `[n, ...]`, or a pytree of such.
    scores: ∇ log p at the particles, shaped like them.
    kernel: from `kernels`; None is the paper's "kernel off", φᵢ = scoreᵢ. Or a
      Direction, which has its options already.
    axis_name: the axis over which the particles are sharded.
    **options: of `Direction`: leave_one_out, regularization, row_normalized,
      block_size, exchange, precision, whitening.

  Returns:
    φ*, of the particles' shape and dtype.

  Raises:
    TypeError, ValueError: as `Direction` and its call do.

  Source: Liu & Wang (2017), equations 4 and 5.
  """
  direction = dataclasses.replace(as_kernel_direction(kernel), **options)
  return direction(particles, scores, axis_name)


def as_direction(kernel: DirectionLike, params: Params = None) -> DirectionFn:
  """What a rule was given, as a function of particles and scores.

  Args:
    kernel: a kernel, a Direction, None, `fn(params)` that returns one of these, or a
      function `(particles, scores) -> φ`. A function with one argument without a
      default is taken as the former, one with two or more, or with `*args`, as the
      latter.
    params: the parameters that `fn` gets, constant under differentiation.

  Raises:
    TypeError: anything else.
  """
  _check_type(kernel)
  if isinstance(kernel, Direction):
    return kernel.at(params)
  if kernel is None or isinstance(kernel, Kernel):
    return Direction(kernel)
  if not is_direction_fn(kernel):
    return as_direction(kernel(jax.lax.stop_gradient(params)), params)
  is_leaf = jax.tree_util.all_leaves([kernel])  # otherwise a pytree, as Partial is
  return Partial(kernel) if is_leaf else kernel


def _of_all(
  direction: DirectionFn,
  particles: Particles,
  scores: Particles,
  reference: Reference,
  axis_name: str | None,
) -> Particles:
  """φ at this device's particles, of all particles and reference points together."""
  n = num_rows(particles)
  every = axes.gather((particles, scores), axis_name)
  points, values = joined(every, axes.varying_as(every, reference))
  phi = direction(points, values)
  checks.same_shapes(points, phi, ("particles", "the direction"))
  first = n * axes.size(axis_name)
  return axes.own(jax.tree.map(lambda leaf: leaf[:first], phi), n, axis_name)


def call(
  direction: Any,
  particles: Particles,
  scores: Particles,
  axis_name: str | None,
  reference: Reference | None = None,
) -> Particles:
  """φ at the particles, of the shape and dtype that every direction must have.

  A function of the caller's own gets the particles and the reference points together.

  Raises:
    ValueError: a function of the caller's own that returns another shape.
  """
  options: dict[str, Any] = {} if axis_name is None else {"axis_name": axis_name}
  if reference is None:
    phi = direction(particles, scores, **options)
  elif isinstance(direction, Direction):
    phi = direction(particles, scores, reference=reference, **options)
  else:
    phi = _of_all(direction, particles, scores, reference, axis_name)
  checks.same_shapes(particles, phi, ("particles", "the direction"))
  return jax.tree.map(lambda x, phi: phi.astype(x.dtype), particles, phi)


def check_kernel(kernel: DirectionLike, axis_name: str | None) -> None:
  """Raises an error unless a rule over this axis can be built with this.

  `fn(params)` is only called by the rule, which then checks what it returns.

  Raises:
    TypeError: neither a kernel, a Direction, None nor a function.
    ValueError: a Direction whose `exchange` does not fit the axis.
  """
  _check_type(kernel)
  if isinstance(kernel, Direction):
    kernel.check_axis(axis_name)


def is_direction_fn(kernel: DirectionLike) -> bool:
  """Whether it is a function `(particles, scores) -> φ`, of two or more arguments."""
  if kernel is None or isinstance(kernel, (Kernel, Direction)):
    return False
  return callable(kernel) and _num_arguments(kernel) > 1


def _check_type(kernel: DirectionLike) -> None:
  in_direction = isinstance(kernel, Direction)
  fn: Any = kernel.kernel if isinstance(kernel, Direction) else kernel
  if fn is None:
    return
  if isinstance(fn, Kernel):
    registered(fn)
    return
  if (
    not callable(fn)
    or _num_arguments(fn) == 0
    or (in_direction and (isinstance(fn, Direction) or is_direction_fn(fn)))
  ):
    raise TypeError(
      "kernel must be a kernel such as kernels.rbf(), a Direction, None, fn(params) "
      f"that returns one, or a function (particles, scores) -> φ; got {fn!r}."
    )
  checks.function("kernel", fn)


def _check_whitening(kernel: Any, whitening: Any) -> None:
  """Raises an error unless it is the whitening of this kernel, or of none given."""
  if not isinstance(whitening, Whitened):
    raise TypeError(
      "whitening must be what whiten(kernel, data) returns, got "
      f"{checks.described(whitening)}."
    )
  if kernel is None or kernel is whitening:
    return
  if not isinstance(kernel, Kernel):
    raise TypeError(
      "whitening is that of one kernel; with a function of params, let it return "
      "whiten(kernel, data), and leave whitening out."
    )
  if not whitening.is_of(kernel):
    raise ValueError(
      f"the whitening is that of another kernel, {whitening.base!r}, got {kernel!r}: "
      "give both the same one."
    )


def _num_arguments(fn: Callable) -> int:
  """How many arguments a function must be given by position; 2 if it does not tell."""
  known = checks.num_arguments(fn)
  return 2 if known is None else known


def as_kernel_direction(kernel: "Kernel | Direction | None") -> Direction:
  """A kernel as a Direction with the default options; a Direction as it is.

  Raises:
    TypeError: anything else.
  """
  if isinstance(kernel, Direction):
    _check_is_kernel(kernel.kernel)
    return kernel
  _check_is_kernel(kernel, "a kernel such as kernels.rbf(), a Direction, or None")
  return Direction(kernel)


def _check_is_kernel(
  kernel: Any, expected: str = "a kernel such as kernels.rbf(), or None"
) -> None:
  if kernel is not None and not isinstance(kernel, Kernel):
    raise TypeError(f"kernel must be {expected}, got {kernel!r}.")


def _check_share(
  particles: Particles,
  scores: Particles,
  direction: Particles,
  kernel: "Kernel | Direction | None",
  axis_name: str | None,
) -> dict[str, Direction]:
  checks.particles_and_scores(particles, scores)
  checks.arrays("direction", direction)
  checks.same_shapes(particles, direction, ("particles", "direction"))
  checks.floating("direction", direction)
  kernel = as_kernel_direction(kernel)
  kernel.check_axis(axis_name)
  if kernel.regularization is not None:
    raise ValueError("repulsion_share is not defined for a regularised direction.")
  return {"kernel": kernel}


@compiled(_check_share, static=("axis_name",))
def repulsion_share(
  particles: Particles,
  scores: Particles,
  direction: Particles,
  kernel: "Kernel | Direction | None",
  *,
  axis_name: str | None = None,
) -> Array:
  """How much of the SVGD direction is repulsion: ‖V‖ / (‖A‖ + ‖V‖), from 0 to 1.

  φ* = A + V with the attraction A = K S/n and the repulsion V. If the share is near 0,
  k is negligible between different particles, and the kernel has no effect.

  Args:
    particles: `[n, ...]`.
    scores: ∇ log p at the particles.
    direction: φ* there, as `svgd_direction` returns it.
    kernel: the kernel or Direction that it was computed with. None: the share is 0.
    axis_name: the axis over which the particles are sharded.

  Raises:
    TypeError: anything else as the kernel.
    ValueError: shapes that differ, or a regularised direction, which is not a sum of
      attraction and repulsion.
  """
  kernel = as_kernel_direction(kernel)
  particles, scores, direction = widened((particles, scores, direction))
  if kernel.kernel is None:
    return jnp.zeros((), jax.tree.leaves(particles)[0].dtype)
  streaming = kernel.streaming(particles, axis_name)
  sources, scores = streaming.sources(particles, scores)
  sums, mass = kernel.kernel.attraction(
    particles,
    sources,
    scores,
    streaming=streaming,
    leave_one_out=kernel.leave_one_out,
  )
  attraction, _ = as_matrix(kernel._divided(sums, mass, axis_name))
  phi, _ = as_matrix(direction)
  norms = [
    jnp.sqrt(axes.total(jnp.square(part).sum(), axis_name))
    for part in (attraction, phi - attraction)
  ]
  return norms[1] / jnp.maximum(norms[0] + norms[1], jnp.finfo(phi.dtype).tiny)
