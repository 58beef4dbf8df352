"""The whitened kernel, whose direction is scaled by the data's own covariance."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.tree_util import register_dataclass

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.kernels.bandwidths import MedianBandwidth
from stein_jax.kernels.base import Kernel, check_apply, check_matrix, registered
from stein_jax.kernels.features import OnFeatures
from stein_jax.kernels.radial import Radial
from stein_jax.pairs.points import as_matrix, map_rows, matmul, num_rows, widened
from stein_jax.pairs.tiles import DEFAULTS, Streaming
from stein_jax.parallel import axes
from stein_jax.types import Array, Exchange, Numeric, Particles, PyTree

_BANDWIDTH_POINTS = 2000
"""At most this many points of the data give a bandwidth policy its number."""

_BLOCK = 4096
"""Of how many points at once the kernel's values at the centres are held."""


@partial(register_dataclass, data_fields=["base", "centers", "root"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Whitened(Kernel):
  """κ(x, y) = k(x, Z) W k(Z, y), as `whiten` makes it.

  Its sums over n points are those of k at the r centres, O(n r d) in all, and with B
  weights of each point O(n r d B).

  Attributes:
    base: k, with a number as its bandwidth.
    centers: Z, `[r, ...]`.
    root: R with W = R Rᵀ, `[r, r]`.
  """

  base: Any
  centers: Particles
  root: Array

  default_exchange: ClassVar[Exchange | None] = "ring"  # it sends sums, not points

  def is_of(self, kernel: Kernel) -> bool:
    """Whether the kernel is k, as far as can be told before its numbers are known."""
    return _is_same(self.base, kernel)

  def pair(self, x: PyTree, y: PyTree) -> Array:
    """κ(x, y)."""
    x, y = (jax.tree.map(lambda leaf: leaf[None], point) for point in (x, y))
    return (self._coordinates(x) * self._coordinates(y)).sum()

  def _coordinates(self, points: Particles) -> Array:
    """Rᵀ k(Z, x) of each point, `[n, r]`, whose inner products are κ."""
    self._check_event(points)
    return matmul(self.base.matrix(points, self.centers), self.root)

  def _check_event(self, points: Particles) -> None:
    """Raises ValueError unless the points have the shape of the centres."""
    names = ("the points", "the data that whitened the kernel")
    checks.same_event(points, self.centers, names)

  def _of_centers(
    self, coordinates: Array, sums: Any, streaming: Streaming
  ) -> tuple[Array, Any]:
    """k(xᵢ, Z) W times sums over all devices' points, as a matrix and its `unravel`.

    Args:
      coordinates: of the points xᵢ.
      sums: at the centres, `[r, ...]`, over this device's points.
      streaming: how the sums are computed.
    """
    rows, unravel = as_matrix(sums)
    rows = axes.total(rows, streaming.axis_name if streaming.ring else None)
    inner = matmul(self.root.T, rows, precision=streaming.precision)
    return matmul(coordinates, inner, precision=streaming.precision), unravel

  @compiled(check_matrix)
  def matrix(self, queries: Particles, sources: Particles | None = None) -> Array:
    """As in `Kernel`: one product of `[m, r]` and `[r, n]`."""
    x = self._coordinates(queries)
    return matmul(x, (x if sources is None else self._coordinates(sources)).T)

  @compiled(check_apply, static=("leave_one_out",))
  def apply(
    self,
    queries: Particles,
    sources: Particles | None,
    values: PyTree,
    *,
    streaming: Streaming = DEFAULTS,
    leave_one_out: bool = False,
  ) -> PyTree:
    """As in `Kernel`, by way of the sums at the centres."""
    self._check_event(queries)
    x, y, c = widened((queries, sources, values))
    alone = _alone(streaming)
    y = x if y is None else y
    centers = axes.varying_as(y, self.centers)
    at_centers = self.base.apply(centers, y, c, streaming=alone)
    at_queries = self._coordinates(x)
    rows, unravel = self._of_centers(at_queries, at_centers, streaming)
    if leave_one_out:
      own = at_queries * self._coordinates(_own(y, x, streaming))
      rows -= own.sum(axis=1)[:, None] * as_matrix(_own(c, x, streaming))[0]
    return jax.tree.map(lambda leaf, c: leaf.astype(c.dtype), unravel(rows), values)

  def stein_sums(
    self,
    queries: Particles,
    sources: Particles | None,
    scores: Particles,
    *,
    streaming: Streaming = DEFAULTS,
    leave_one_out: bool = False,
  ) -> tuple[Particles, Array]:
    """As in `Kernel`: k(xᵢ, Z) W Σⱼ [k(yⱼ, Z) scoreⱼ + ∇_{yⱼ} k(yⱼ, Z)].

    The part of the point's own source y, which leave_one_out takes away, is
    κ(y, xᵢ) score + ∇_y κ(y, xᵢ).
    """
    self._check_event(queries)
    y = queries if sources is None else sources
    centers = axes.varying_as(y, self.centers)
    at_centers, mass = self.base.stein_sums(
      centers, y, scores, streaming=_alone(streaming)
    )
    at_queries = self._coordinates(queries)
    both, unravel = self._of_centers(at_queries, (at_centers, mass), streaming)
    sums, mass = unravel(both)
    if not leave_one_out:
      return sums, mass

    def own_mass(y: Particles) -> tuple[Array, Array]:
      of_each = (self._coordinates(y) * at_queries).sum(axis=1)
      return of_each.sum(), of_each

    slopes, own = jax.grad(own_mass, has_aux=True)(_own(y, queries, streaming))
    attraction = jax.tree.map(
      lambda s: jax.vmap(jnp.multiply)(own, s), _own(scores, queries, streaming)
    )
    parts = jax.tree.map(jnp.add, attraction, slopes)
    return jax.tree.map(jnp.subtract, sums, parts), mass - own

  def stein_kernel_sums(
    self,
    queries: Particles,
    query_scores: Particles,
    sources: Particles | None = None,
    scores: Particles | None = None,
    *,
    weights: Array | None = None,
    source_weights: Array | None = None,
    streaming: Streaming = DEFAULTS,
  ) -> tuple[Array, Array]:
    """As in `Kernel`: Σᵢⱼ u_p(xᵢ, xⱼ) = ‖Rᵀ Σᵢ [k(xᵢ, Z) sᵢ + ∇ k(xᵢ, Z)]‖²."""
    dtype = jnp.result_type(*jax.tree.leaves(query_scores))
    w = jnp.ones((num_rows(queries), 1), dtype) if weights is None else weights
    total, itself = self._weighted((queries, query_scores), w, streaming)
    # This device's part of ‖Σᵢ wᵢ Fᵢ‖² is its sum times the sum of all.
    every = axes.total(total, streaming.axis_name)
    pairs = (total * every).sum(axis=(1, 2)) - itself
    return (pairs[0], itself[0]) if weights is None else (pairs, itself)

  def _weighted(
    self, points: tuple[Particles, Particles], weights: Array, streaming: Streaming
  ) -> tuple[Array, Array]:
    """Σᵢ wᵢ Fᵢ, `[B, r, d]`, and Σᵢ wᵢ²‖Fᵢ‖², `[B]`; Fᵢ is `_stein_features` of i."""

    def add(sums: tuple[Array, Array], row: tuple) -> tuple[tuple[Array, Array], None]:
      point, w = row
      alone = jax.tree.map(lambda leaf: leaf[None], point)
      features = self._stein_features(alone, streaming)
      w = w.astype(features.dtype)
      total = sums[0] + jnp.tensordot(w, features, axes=0)
      return (total, sums[1] + jnp.square(w) * jnp.square(features).sum()), None

    first = self._stein_features(jax.tree.map(lambda x: x[:1], points), streaming)
    num = weights.shape[1]
    zeros = jnp.zeros((num, *first.shape), first.dtype), jnp.zeros(num, first.dtype)
    zeros = axes.varying_as(points, zeros)
    return jax.lax.scan(add, zeros, (points, weights))[0]

  def _stein_features(
    self, points: tuple[PyTree, PyTree], streaming: Streaming
  ) -> Array:
    """Rᵀ Σᵢ [k(xᵢ, Z) sᵢ + ∇ k(xᵢ, Z)], `[r, d]`, of points and their scores."""
    x, scores = points
    self._check_event(x)
    centers = axes.varying_as(x, self.centers)
    sums, _ = self.base.stein_sums(centers, x, scores, streaming=_alone(streaming))
    return matmul(self.root.T, as_matrix(sums)[0], precision=streaming.precision)

  def stein_kernel_row(
    self, x: PyTree, score_x: PyTree, sources: Particles, scores: Particles
  ) -> Array:
    """As in `Kernel`: sⱼᵀ g(yⱼ) + div g(yⱼ), g = k(·, Z) W [k(Z, x) sₓ + ∇ₓ k(Z, x)].

    O(n r d), with one derivative of k for each pair of a source and a centre.
    """
    alone = jax.tree.map(lambda leaf: leaf[None], (x, score_x))
    features = self._stein_features(alone, DEFAULTS)
    coefficients = matmul(self.root, features)  # [r, d]
    _, unravel = as_matrix(sources)

    def at_source(row: tuple[PyTree, PyTree]) -> Array:
      y, s = row

      def along(center: PyTree, a: Array) -> Array:
        direction = jax.tree.map(lambda leaf: leaf[0], unravel(a[None]))
        k, slope = jax.jvp(lambda y: self.base.pair(y, center), (y,), (direction,))
        return k * (ravel_pytree(s)[0] @ a) + slope

      return jax.vmap(along)(self.centers, coefficients).sum()

    return map_rows(at_source, (sources, scores), num_rows(self.centers), None)


def _is_same(mine: Any, given: Any) -> bool:
  """Whether a kernel is another one, whose bandwidth may still be a policy."""
  if type(mine) is not type(given):
    return False
  if isinstance(mine, OnFeatures):
    same = mine.affine == given.affine and _is_same(mine.base, given.base)
    return same and _equal(mine.feature_fn, given.feature_fn)
  if isinstance(given, Radial) and isinstance(given.bandwidth, MedianBandwidth):
    return bool(mine.profile == given.profile)
  return _equal(mine, given)


def _equal(a: PyTree, b: PyTree) -> bool:
  """Whether two pytrees are equal to rounding, as far as their numbers are known."""
  numbers, others = jax.tree.leaves(a), jax.tree.leaves(b)
  known = [
    (x, y)
    for x, y in zip(numbers, others)
    if not isinstance(x, jax.core.Tracer) and not isinstance(y, jax.core.Tracer)
  ]
  # NumPy's, as within jit JAX's own comparison has no value yet.
  structures: list[Any] = [jax.tree.structure(tree) for tree in (a, b)]
  return structures[0] == structures[1] and all(
    np.shape(x) == np.shape(y) and np.allclose(x, y, rtol=1e-5, atol=0)
    for x, y in known
  )


def is_whitened(kernel: Any) -> bool:
  """Whether sums of the kernel are those of a whitened one."""
  if isinstance(kernel, OnFeatures):
    return is_whitened(kernel.base)
  return isinstance(kernel, Whitened)


def _alone(streaming: Streaming) -> Streaming:
  """Sums over the points at hand, whichever device has them."""
  return dataclasses.replace(streaming, axis_name=None, ring=False)


def _own(rows: PyTree, queries: Particles, streaming: Streaming) -> PyTree:
  """Of the sources' rows, those of the queries' own indices."""
  n = num_rows(queries)
  if streaming.ring:
    return rows
  if streaming.axis_name is not None:
    return axes.own(rows, n, streaming.axis_name)
  if num_rows(rows) < n:
    raise ValueError(
      "leave_one_out needs a source for every query, got "
      f"{num_rows(rows)} sources and {n} queries."
    )
  return jax.tree.map(lambda leaf: leaf[:n], rows)


def _check(kernel: Kernel, data: Particles, num_centers: int, eta: Numeric) -> None:
  if not isinstance(kernel, Kernel) or is_whitened(kernel):
    raise TypeError(
      f"whiten needs a kernel such as rbf(), not yet whitened, got {kernel!r}."
    )
  registered(kernel)
  if isinstance(kernel, OnFeatures) and kernel.num_neighbors is not None:
    raise ValueError(
      "num_neighbors approximates the kernel's gradients, which whitening needs "
      "exactly: leave num_neighbors out."
    )
  n = checks.num_particles(data, "data")
  checks.at_least_one("num_centers", num_centers)
  if n < num_centers:
    raise ValueError(
      f"num_centers must be at most the number of points of data, got {num_centers} "
      f"centres and {n} points: give more data, or fewer centres."
    )
  checks.positive("eta", eta)


@compiled(_check, static=("num_centers",))
def whiten(
  kernel: Kernel, data: Particles, *, num_centers: int = 200, eta: Numeric = 1e-3
) -> Whitened:
  """The whitened kernel κ(x, y) = k(x, Z) W k(Z, y), W = (C + η K_ZZ)⁻¹ (ours).

  C = (1/N) Σᵢ k(Z, xᵢ) k(xᵢ, Z) is the second moment of the kernel under the data, and
  the centres Z are r points of it. κ is a kernel like any other: a `Direction` of it
  is the whitened Stein direction, `ksd_squared` of it the whitened discrepancy D²_η.

  Derivation. SVGD's φ* is the steepest direction within a ball of the RKHS of k, where
  what the data sees of φ is shrunk by the kernel's eigenvalues, the more so in high
  dimensions. Measured under the data q instead, the best direction is the maximiser of

    E_q[T_p φ] − ½ E_q‖φ‖² − (η/2) ‖φ‖²_H.

  For φ(y) = k(y, Z) A with coefficients A, `[r, d]`, this is

    tr Aᵀφ*(Z) − ½ tr Aᵀ(C + η K_ZZ) A,

  since E_q[T_p φ] = ⟨φ, φ*⟩_H = tr Aᵀφ*(Z). So A = W φ*(Z), and the direction is

    φ(y) = k(y, Z) W φ*(Z) = E_{x ~ q}[κ(x, y) s(x) + ∇ₓ κ(x, y)],

  the φ* of κ; the maximum is ½ tr φ*(Z)ᵀ W φ*(Z) = ½ D²_η. Without a penalty and with
  enough centres, φ is s_p − s_q at particles from the q of the data, and D²_η the
  Fisher divergence.

  The limits: for η → ∞, η φ is φ* (projected on the span of k(·, Z)). With all data as
  centres and η → 0, φ at the data is s_p minus the Stein gradient estimate −K⁻¹V of
  their score (Li & Turner, 2018), so that its descent is score matching to that.

  W is made before training, from far more data than a batch: a direction that solves
  with the points at which it is evaluated gives each point its own score back. With
  leave_one_out, E_q[T_p φ] is estimated without bias by points that W does not depend
  on, and nearly so by a batch of the N points that it was made from.

  >>> import jax
  >>> from stein_jax import Direction, kernels
  >>> x = jax.random.normal(jax.random.key(0), (2000, 2))
  >>> kernel = kernels.whiten(kernels.rbf(), x, num_centers=50)
  >>> direction = Direction(kernel, leave_one_out=True)
  >>> points = jax.random.normal(jax.random.key(1), (500, 2))
  >>> phi = direction(points, 1 - points)  # to N(1, I): s_p − s_q = 1 everywhere
  >>> [round(float(mean), 1) for mean in phi.mean(axis=0)]
  [1.0, 1.0]

  Args:
    kernel: k. A bandwidth policy is applied to 2 000 of the points at most.
    data: of q, `[N, ...]` or a pytree of such; 20 000 points are plenty. Every
      (N/r)-th point is a centre: order that repeats should be shuffled.
    num_centers: r, how many centres.
    eta: η, the weight of the RKHS norm, against the noise of φ: functions with
      E‖φ‖² far below η‖φ‖²_H are hardly in κ. For k(x, x) = 1 it is compared with
      numbers from 0 to 1.

  Returns:
    A kernel. Eigenvectors of K_ZZ whose eigenvalues are below r times the precision of
    the floats (1.2e-7 in float32) of the largest one are left out, as rounding errors
    would outweigh them; for η below 1e-3, float64 keeps more that matters.

  Raises:
    TypeError: no kernel, or one that is whitened.
    ValueError: fewer points than centres, an eta that is not above 0, or a kernel of
      nearest neighbours.

  Source: ours; the regularised direction of Liu & Wang (2017), equation 4, with the
  Nyström form of Williams & Seeger (2001).
  """
  data = widened(data)
  n = num_rows(data)
  kernel = kernel.resolve(_some(data, min(n, _BANDWIDTH_POINTS)))
  centers = _some(data, num_centers)
  values, vectors = jnp.linalg.eigh(kernel.matrix(centers))
  smallest = num_centers * jnp.finfo(values.dtype).eps * values[-1]
  kept = values > smallest
  scales = jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1)), 0)
  scaled = vectors * scales[None]

  # In the coordinates ψ(x) = Λ^−½ Uᵀ k(Z, x) the RKHS norm is the plain one.
  def add(total: Array, block: tuple[Particles, Array]) -> tuple[Array, None]:
    x, is_data = block
    psi = matmul(kernel.matrix(x, centers), scaled) * is_data[:, None]
    return total + matmul(psi.T, psi), None

  blocks = jax.tree.map(lambda leaf: _blocks(leaf, n), data)
  zeros = axes.varying_as(data, jnp.zeros_like(vectors))
  moment, _ = jax.lax.scan(
    add, zeros, (blocks, _blocks(jnp.ones(n, values.dtype), n, "constant"))
  )
  identity = jnp.eye(num_centers, dtype=values.dtype)
  factor = jnp.linalg.cholesky(moment / n + jnp.asarray(eta, values.dtype) * identity)
  # W = scaled (E[ψψᵀ] + ηI)⁻¹ scaledᵀ, with the inverse as L⁻ᵀL⁻¹.
  root = jax.scipy.linalg.solve_triangular(factor, scaled.T, lower=True).T
  return Whitened(kernel, centers, root)


def _some(data: Particles, count: int) -> Particles:
  """`count` points at equal distances in the order of the data."""
  indices = np.arange(count, dtype=np.int64) * num_rows(data) // count
  return jax.tree.map(lambda leaf: leaf[indices], data)


def _blocks(rows: Array, n: int, padding: str = "edge") -> Array:
  """`[n, ...]` padded, `[blocks, block, ...]`."""
  size = min(n, _BLOCK)
  # Copies of a point, where every kernel is defined, which it need not be at 0.
  widths = ((0, -n % size), *[(0, 0)] * (rows.ndim - 1))
  return jnp.pad(rows, widths, mode=padding).reshape(-1, size, *rows.shape[1:])
