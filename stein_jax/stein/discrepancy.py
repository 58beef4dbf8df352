"""The kernelised Stein discrepancy: how far particles are from a density."""

from functools import partial

import jax

from stein_jax import checks, kernels
from stein_jax.kernels import Kernel
from stein_jax.pairs import points as pairwise
from stein_jax.pairs import tiles
from stein_jax.parallel import axes
from stein_jax.types import Array, Exchange, Particles


def ksd_squared(
  particles: Particles,
  scores: Particles,
  kernel: Kernel,
  *,
  statistic: str = "V",
  block_size: int | None = None,
  axis_name: str | None = None,
  exchange: Exchange | None = None,
) -> Array:
  """The squared kernelised Stein discrepancy between particles and p.

  D² = E_{x, y ~ q}[u_p(x, y)],
  u_p(x, y) = sₓᵀs_y k + sₓᵀ∇_y k + s_yᵀ∇ₓ k + tr ∇ₓ∇_y k,

  zero when q = p. The V-statistic averages over all n² pairs, is at least 0, and is
  the D² whose half Stein score matching (15) descends; the U-statistic leaves out the
  n pairs of a particle with itself, is unbiased, and may be negative.

  Args:
    particles: draws from q, `[n, ...]`, or a pytree of such.
    scores: ∇ log p at the particles, shaped like them.
    kernel: out of `kernels`.
    statistic: "V" or "U".
    block_size: as in `svgd_direction`.
    axis_name: the axis over which the particles are spread.
    exchange: as in `svgd_direction`; of nearest neighbours, too, pairs are summed.

  Returns:
    A scalar, the same on every device.

  Raises:
    ValueError: particles and scores that differ in shape, no kernel, an unknown
      statistic, or fewer than two particles for "U" or a median bandwidth.

  Source: Liu & Wang (2017), equations 3 and 14; Liu, Lee & Jordan (2016).
  """
  checks.num_particles(particles)
  checks.same_shapes(particles, scores, ("particles", "scores"))
  checks.one_of("statistic", statistic, ("V", "U"))
  if block_size is not None:
    checks.at_least_one("block_size", block_size)
  if kernels.checked(kernel) is None:
    raise ValueError("ksd_squared needs a kernel, such as kernels.rbf(), got None.")
  return _ksd_squared(
    particles,
    scores,
    kernel,
    statistic=statistic,
    block_size=block_size,
    axis_name=axis_name,
    ring=tiles.goes_round(particles, exchange, axis_name),
  )


@partial(jax.jit, static_argnames=("statistic", "block_size", "axis_name", "ring"))
def _ksd_squared(
  particles: Particles,
  scores: Particles,
  kernel: Kernel,
  *,
  statistic: str,
  block_size: int | None,
  axis_name: str | None,
  ring: bool,
) -> Array:
  particles, scores = pairwise.widened((particles, scores))
  n = checks.num_particles(particles) * axes.size(axis_name)
  met = None if ring else axis_name  # over which all particles are met at once
  sources, source_scores = axes.gather((particles, scores), met)
  if statistic == "U" and n < 2:
    raise ValueError(f"the U-statistic needs at least 2 particles, got {n}.")
  sums = kernel.stein_kernel_sums(
    particles,
    scores,
    sources,
    source_scores,
    block_size=block_size,
    axis_name=axis_name,
    ring=ring,
  )
  of_pairs, of_itself = axes.total(sums, axis_name)
  if statistic == "U":
    return of_pairs / float(n * (n - 1))  # beyond int32 for many particles
  return (of_pairs + of_itself) / float(n * n)
