"""Bandwidths h of kernels: numbers, and policies that look at the particles."""

import dataclasses
import math
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_static

from stein_jax import checks
from stein_jax.pairs import (
  medians,
  tiles,
)
from stein_jax.pairs import (
  points as pairwise,
)
from stein_jax.parallel import axes
from stein_jax.types import Array, Exchange, Particles

_LOGARITHMS = {
  "m": math.log,
  "m+1": lambda m: math.log(m + 1),
  "m squared": lambda m: math.log(m) ** 2,
  "none": lambda m: 1.0,
}


@register_static
@dataclasses.dataclass(frozen=True)
class MedianBandwidth:
  """h = multiple · med² / log m, a policy that looks at the particles.

  med is the median distance between particles, m their number.

  Attributes:
    log: what med² is divided by: "m" (log m, the paper), "m+1" (log(m + 1), the
      authors' code), "m squared" ((log m)², the paper's on features) or "none".
    diagonal: whether the m zero distances of particles to themselves count, as in the
      authors' code.
    multiple: a factor on h.
    subsample: how many evenly spaced particles the median is taken of; None for all.
  """

  log: str = "m"
  diagonal: bool = False
  multiple: float = 1.0
  subsample: int | None = None

  def __post_init__(self) -> None:
    checks.one_of("log", self.log, tuple(_LOGARITHMS))
    checks.positive("multiple", self.multiple)
    object.__setattr__(self, "multiple", float(self.multiple))  # hashable, as jit asks
    if self.subsample is not None and not (
      isinstance(self.subsample, (int, np.integer)) and self.subsample >= 2
    ):
      raise ValueError(
        f"subsample must be an integer of at least 2, got {self.subsample!r}."
      )


BANDWIDTHS = {
  "median": MedianBandwidth(),
  "median_log_m_plus_1": MedianBandwidth(log="m+1"),
  "median_no_log": MedianBandwidth(log="none"),
  "median_with_diagonal": MedianBandwidth(diagonal=True),
  "authors": MedianBandwidth(log="m+1", diagonal=True),
  "features": MedianBandwidth(log="m squared", multiple=0.25),
  "features_authors": MedianBandwidth(log="m+1", multiple=0.25),
}
"""Bandwidth policies by name; "median" is the paper's, "authors" is their code's.

So are "features", (0.5 med/log m)², and "features_authors" for the kernel on an
encoder's features (section 5.2); with the former k between typical neighbours of 100
is 1e-37, with the latter 1e-8, and nothing repels.
"""

Bandwidth: TypeAlias = "float | Array | str | MedianBandwidth"


def policy(
  bandwidth: Bandwidth, *, multiple: float = 1.0, subsample: int | None = None
) -> "float | Array | MedianBandwidth":
  """A number above 0, or a policy by name, scaled and subsampled as asked.

  Raises:
    ValueError: an unknown name, a number that is not above 0, or a subsample of a
      fixed bandwidth.
  """
  if isinstance(bandwidth, str):
    if bandwidth not in BANDWIDTHS:
      raise ValueError(
        f"bandwidth must be a number above 0 or one of {sorted(BANDWIDTHS)}, "
        f"got {bandwidth!r}."
      )
    bandwidth = BANDWIDTHS[bandwidth]
  if isinstance(bandwidth, MedianBandwidth):
    return dataclasses.replace(
      bandwidth,
      multiple=bandwidth.multiple * multiple,
      subsample=bandwidth.subsample if subsample is None else subsample,
    )
  checks.positive("bandwidth", bandwidth)
  checks.positive("multiple", multiple)
  if subsample is not None:
    raise ValueError("subsample belongs to a median bandwidth, not to a fixed one.")
  return bandwidth * multiple


def median_bandwidth(
  particles: Particles,
  *,
  log: str = "m",
  diagonal: bool = False,
  multiple: float = 1.0,
  subsample: int | None = None,
  block_size: int | None = None,
  axis_name: str | None = None,
  exchange: Exchange | None = None,
) -> Array:
  """h = multiple · med² / log m, the default bandwidth.

  med is the exact median of the distances between different particles (the mean of the
  two middle ones where their number is even). Where it is 0, because half of the pairs
  or more coincide, the mean squared distance takes the place of med²; where that is 0
  too, 1 does, and any h serves: the particles are all equal.

  Args:
    particles: `[m, ...]`, or a pytree of such; m is at least 2.
    log: "m", "m+1", "m squared" or "none": what med² is divided by.
    diagonal: also count the m zero distances of particles to themselves.
    multiple: a factor on h.
    subsample: take the median of this many evenly spaced particles.
    block_size: the edge of the tiles in which the table of pairs is looked at; None
      chooses by size.
    axis_name: the axis over which the particles are spread.
    exchange: as in `svgd_direction`.

  Returns:
    The scalar h, in units of squared distance, constant under differentiation; NaN
    where a particle is not finite.

  Raises:
    ValueError: fewer than two particles, or an option outside its range.

  Source: Liu & Wang (2017), section 5.1; Liu & Wang (2016), section 5.
  """
  chosen = MedianBandwidth(log, diagonal, multiple, subsample)
  checks.num_particles(particles)
  if block_size is not None:
    checks.at_least_one("block_size", block_size)
  return of_particles(
    particles,
    policy=chosen,
    block_size=block_size,
    axis_name=axis_name,
    ring=tiles.goes_round(particles, exchange, axis_name),
  )


@partial(jax.jit, static_argnames=("policy", "block_size", "axis_name", "ring"))
def of_particles(
  particles: Particles,
  *,
  policy: MedianBandwidth,
  block_size: int | None,
  axis_name: str | None,
  ring: bool,
) -> Array:
  """h by a policy, as in `median_bandwidth`."""
  points, _ = pairwise.as_matrix(pairwise.widened(jax.lax.stop_gradient(particles)))
  return of_points(
    points, policy, block_size=block_size, axis_name=axis_name, ring=ring
  )


def of_points(
  points: Array,
  policy: MedianBandwidth,
  *,
  block_size: int | None = None,
  axis_name: str | None = None,
  ring: bool = False,
  distances: tiles.Tiles | None = None,
) -> Array:
  """h by a policy.

  Args:
    points: `[n, d]`, this device's.
    policy: of the bandwidth.
    block_size: as in `median_bandwidth`.
    axis_name: as in `median_bandwidth`.
    ring: whether the points stay spread over the devices.
    distances: the points' tiles, where they are at hand.
  """
  m = points.shape[0] * axes.size(axis_name)
  if m < 2:
    raise ValueError(
      f"a median bandwidth needs at least 2 particles, got {m}; "
      "give a fixed bandwidth, or no kernel."
    )
  whole_axis = axis_name
  if policy.subsample is not None and policy.subsample < m:
    places = np.arange(policy.subsample, dtype=np.int64) * m // policy.subsample
    points = axes.gather_at(points, places, axis_name)
    distances = None
    axis_name, ring = None, False  # from here on every device holds the same points

  n = points.shape[0] * axes.size(axis_name)
  if policy.diagonal:
    # Among all n² distances the n zeros come first, then every pair twice.
    full_ranks = ((n * n - 1) // 2, n * n // 2)
    ranks = (max(full_ranks[0] - n, 0) // 2, max(full_ranks[1] - n, 0) // 2)
  else:
    num_pairs = n * (n - 1) // 2
    full_ranks = (n * n, n * n)
    ranks = ((num_pairs - 1) // 2, num_pairs // 2)
  if distances is None:
    everyone = axes.gather(points, None if ring else axis_name)
    distances = tiles.of_points(
      points, everyone, block_size=block_size, axis_name=axis_name, ring=ring
    )
    if distances.may_be_held():
      distances = distances.hold()
  squared = medians.middle_squared_distances(points, ranks, distances)
  low, high = (
    jnp.zeros_like(d) if policy.diagonal and full < n else jnp.sqrt(d)
    for d, full in zip(squared, full_ranks)
  )
  med_squared = jnp.square((low + high) / 2)

  centred = points - pairwise.mean_point(points, axis_name)
  spread = axes.total(jnp.square(centred).sum(), axis_name)
  mean_squared = 2 * spread / (n - 1)
  fallback = jnp.where(mean_squared == 0, 1.0, mean_squared)
  med_squared = jnp.where(med_squared == 0, fallback, med_squared)

  divisor = _LOGARITHMS[policy.log](m)
  h = (policy.multiple * med_squared / divisor).astype(points.dtype)
  h = jnp.maximum(h, jnp.finfo(h.dtype).tiny)  # a denormal number counts as 0
  h = jnp.where(jnp.isnan(spread), spread, h)
  # Without a subsample the devices agree already, and JAX knows it.
  return h if axis_name == whole_axis else axes.least(h, whole_axis)
