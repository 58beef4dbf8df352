"""Stein variational gradient descent: the direction φ* and the sampler."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from stein_jax import checks, kernels
from stein_jax.kernels import Kernel
from stein_jax.pairs import points as pairwise
from stein_jax.pairs import tiles
from stein_jax.parallel import axes
from stein_jax.parallel.ring import half_way
from stein_jax.types import (
  Array,
  Exchange,
  Particles,
  Precision,
)


def svgd_direction(
  particles: Particles,
  scores: Particles,
  kernel: Kernel | None,
  *,
  row_normalized: bool = False,
  regularization: float | Array | None = None,
  block_size: int | None = None,
  axis_name: str | None = None,
  exchange: Exchange | None = None,
  precision: Precision = "highest",
) -> Particles:
  """The direction in which particles approach p fastest, within the kernel's RKHS.

  φ*(xᵢ) = (1/n) Σⱼ [k(xⱼ, xᵢ) scoreⱼ + ∇_{xⱼ} k(xⱼ, xᵢ)]

  The first term draws the particles to where p is high, the second drives them apart.

  With `regularization=η` it is the regularised Stein direction in its stead,

  Φ = (K + ηI)⁻¹ (K S + V),  Vᵢ = Σⱼ ∇_{xⱼ} k(xⱼ, xᵢ),

  the values at the particles of the φ in the RKHS that maximises
  E[T_p φ] − ½ E‖φ‖² − (η/2n) ‖φ‖²_H. For E[T_p φ] = ⟨φ, φ*⟩_H the maximum has
  n φ* = Σᵢ k(xᵢ, ·) φ(xᵢ) + η φ, which at the particles is K S + V = (K + ηI) Φ. Its
  limit for η → ∞ is Φ → (n/η) φ*.

  Args:
    particles: `[n, ...]`, or a pytree of such.
    scores: ∇ log p at the particles, shaped like them.
    kernel: out of `kernels`; None is the paper's "kernel off", φᵢ = scoreᵢ.
    row_normalized: divide by Σⱼ k(xⱼ, xᵢ) in place of n, as the authors' code does.
    regularization: η > 0; holds the whole n × n matrix K on every device, whatever
      block_size. Rounding sets the lower end: far below n times the precision of the
      floats (1e-5 for n = 100 in float32) K + ηI may have no Cholesky factor, and the
      direction is NaN.
    block_size: radial kernels look at the n × n table in square tiles of this edge,
      other kernels at so many of its rows at once. None chooses: 512 on a CPU, 8192 on
      accelerators. Memory is linear in n; only with a median bandwidth, which the
      table also serves, it is held whole up to n = 4096.
    axis_name: the axis over which the particles are spread; the result is this
      device's part of the direction that all particles together have.
    exchange: "all_gather", where every device holds all particles, or "ring", where
      blocks of them travel half way round the devices, one other block to a device at a
      time; radial kernels then reckon every pair once, which spares half of the
      exponentials. None: a ring where a device's table of pairs has more than 2²⁴
      entries and the kernel allows it; so it is in everything built on the direction.
    precision: of the product of the kernel's matrix with scores and particles on
      accelerators, which are several times as fast in a lower one; "default" costs
      about three digits of float32. Distances have the highest in any case.

  Returns:
    φ*, of the particles' shape and dtype (16 bits are summed in 32). Differentiable; a
    median bandwidth is constant.

  Raises:
    ValueError: particles and scores that differ in shape, fewer than two particles
      with a median bandwidth, a regularisation that is not above 0, has no kernel or
      meets row_normalized, or a ring where all particles are needed: of nearest
      neighbours, or regularised.

  Source: Liu & Wang (2017), equations 4 and 5.
  """
  checks.num_particles(particles)
  checks.same_shapes(particles, scores, ("particles", "scores"))
  kernel = kernels.checked(kernel)
  if block_size is not None:
    checks.at_least_one("block_size", block_size)
  checks.regularization(regularization, kernel)
  if regularization is not None and row_normalized:
    raise ValueError("regularization excludes row_normalized.")
  ring = tiles.goes_round(particles, exchange, axis_name)
  if kernel is None:
    return scores
  all_needed = regularization is not None or not kernel.may_go_round
  if ring and all_needed and exchange is not None:
    raise ValueError(
      'exchange="ring" holds two blocks of particles, and the regularised direction, '
      'or that of nearest neighbours, needs all: take "all_gather".'
    )
  return _direction(
    particles,
    scores,
    kernel,
    regularization,
    row_normalized=row_normalized,
    block_size=block_size,
    axis_name=axis_name,
    ring=ring and not all_needed,
    precision=precision,
  )


@partial(
  jax.jit,
  static_argnames=("row_normalized", "block_size", "axis_name", "ring", "precision"),
)
def _direction(
  particles: Particles,
  scores: Particles,
  kernel: Kernel,
  regularization: Array | None,
  *,
  row_normalized: bool,
  block_size: int | None,
  axis_name: str | None,
  ring: bool,
  precision: Precision,
) -> Particles:
  dtypes = jax.tree.map(jnp.result_type, particles)
  particles, scores = pairwise.widened((particles, scores))
  n = checks.num_particles(particles) * axes.size(axis_name)
  met = None if ring else axis_name  # over which all particles are met at once
  sources, source_scores = axes.gather((particles, scores), met)
  if regularization is not None:
    kernel = kernel.resolve(particles, block_size=block_size, axis_name=axis_name)
    direction = _regularized(sources, source_scores, kernel, regularization)
    direction = axes.own(direction, checks.num_particles(particles), axis_name)
  else:
    sums, mass = kernel.stein_sums(
      particles,
      sources,
      source_scores,
      block_size=block_size,
      axis_name=axis_name,
      ring=ring,
      precision=precision,
    )
    divisor = mass if row_normalized else jnp.full_like(mass, n)
    direction = jax.tree.map(lambda leaf: jax.vmap(jnp.divide)(leaf, divisor), sums)
  return jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), direction, dtypes)


def _regularized(
  particles: Particles, scores: Particles, kernel: Kernel, regularization: Array
) -> Particles:
  """(K + ηI)⁻¹ (K S + V), its right-hand sides mixed before they are made."""
  matrix = kernel.matrix(particles, particles)
  repulsion, pull_back = kernel.repulsion(particles)
  regularization = jnp.asarray(regularization, matrix.dtype)
  identity = jnp.eye(len(matrix), dtype=matrix.dtype)
  # One Cholesky factor serves all right-hand sides. Its inverse is small; triangular
  # solves with the particles' many columns would be several times slower.
  factor = jnp.linalg.cholesky(matrix + regularization * identity)
  root = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
  inverse = pairwise.matmul(root.T, root)
  weights = pairwise.matmul(inverse, matrix)
  s, unravel = pairwise.as_matrix(scores)
  attraction = unravel(pairwise.matmul(weights, s))
  return jax.tree.map(
    jnp.add, attraction, pull_back(pairwise.matmul(inverse, repulsion))
  )


def repulsion_share(
  particles: Particles,
  scores: Particles,
  direction: Particles,
  kernel: Kernel,
  *,
  axis_name: str | None = None,
  exchange: Exchange | None = None,
) -> Array:
  """How much of the SVGD direction is repulsion: ‖V‖ / (‖A‖ + ‖V‖), from 0 to 1.

  φ* = A + V, with the attraction A = K S/n and the repulsion V. Near 0, k between
  different particles is as good as nothing, and the kernel might as well be off.

  Args:
    particles: `[n, ...]`.
    scores: ∇ log p at the particles.
    direction: φ* there, as `svgd_direction` has it.
    kernel: the kernel it was made with.
    axis_name: the axis over which the particles are spread.
    exchange: as in `svgd_direction`.
  """
  particles, scores, direction = pairwise.widened((particles, scores, direction))
  ring = kernel.may_go_round and tiles.goes_round(particles, exchange, axis_name)
  kernel = kernel.resolve(particles, axis_name=axis_name, ring=ring)
  met = None if ring else axis_name  # over which all particles are met at once
  sources, source_scores = axes.gather((particles, scores), met)
  s, _ = pairwise.as_matrix(source_scores)
  phi, _ = pairwise.as_matrix(direction)
  attraction = pairwise.matmul(kernel.matrix(particles, sources), s)

  def meet(carry: Array, visitor: tuple[Particles, Array], *_: Any) -> Any:
    y, s_y = visitor
    table = kernel.matrix(particles, y)
    return carry + pairwise.matmul(table, s_y), pairwise.matmul(table.T, s)

  if ring:
    nothing = jnp.zeros_like(attraction)
    attraction, owed = half_way(meet, attraction, (sources, s), nothing, axis_name)
    attraction = attraction + owed
  attraction = attraction / (len(phi) * axes.size(axis_name))
  norms = [
    jnp.sqrt(axes.total(jnp.square(part).sum(), axis_name))
    for part in (attraction, phi - attraction)
  ]
  return norms[1] / jnp.maximum(norms[0] + norms[1], jnp.finfo(phi.dtype).tiny)
