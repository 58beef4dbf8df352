"""Bandwidths h of kernels: numbers, and policies that compute them from particles."""

import dataclasses
import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_static

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.pairs.distances import Distances
from stein_jax.pairs.medians import middle_squared_distances
from stein_jax.pairs.points import as_matrix, widened
from stein_jax.pairs.tiles import DEFAULTS, Streaming, streamed
from stein_jax.parallel import axes
from stein_jax.types import Array, Particles

_LOGARITHMS = {
  "m": math.log,
  "m+1": lambda m: math.log(m + 1),
  "m squared": lambda m: math.log(m) ** 2,
  "none": lambda m: 1.0,
}


@register_static
@dataclasses.dataclass(frozen=True)
class MedianBandwidth:
  """h = multiple · med² / log m, a policy that computes h from the particles.

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
    checks.boolean("diagonal", self.diagonal)
    checks.positive("multiple", self.multiple)
    object.__setattr__(self, "multiple", float(self.multiple))  # jit needs it hashable
    if self.subsample is not None:
      checks.integer("subsample", self.subsample, least=2)


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

"features", (0.5 med/log m)², and "features_authors" are the paper's and the code's for
the kernel on an encoder's features (section 5.2). With them k between typical
neighbours of 100 points is 1e-37 and 1e-8: there is no repulsion at all.
"""

Bandwidth: TypeAlias = "float | Array | str | MedianBandwidth"


def policy(
  bandwidth: Bandwidth, *, multiple: float = 1.0, subsample: int | None = None
) -> "float | Array | MedianBandwidth":
  """A number above 0, or a policy by name, scaled and subsampled as asked.

  Raises:
    ValueError: an unknown name, a number that is not above 0 or that floats do not
      hold, or a subsample of a fixed bandwidth.
  """
  if isinstance(bandwidth, str):
    if bandwidth not in BANDWIDTHS:
      raise ValueError(
        f"bandwidth must be a number above 0 or one of {sorted(BANDWIDTHS)}, "
        f"got {bandwidth!r}."
      )
    bandwidth = BANDWIDTHS[bandwidth]
  checks.positive("multiple", multiple)
  if isinstance(bandwidth, MedianBandwidth):
    return dataclasses.replace(
      bandwidth,
      multiple=bandwidth.multiple * multiple,
      subsample=bandwidth.subsample if subsample is None else subsample,
    )
  checks.positive("bandwidth", bandwidth)
  if subsample is not None:
    raise ValueError("subsample belongs to a median bandwidth, not to a fixed one.")
  scaled = bandwidth * multiple
  checks.positive("multiple times bandwidth", scaled)
  return scaled


def _check_median(
  particles: Particles, log: str, diagonal: bool, multiple: float, subsample: int | None
) -> dict[str, Any]:
  checks.num_particles(particles)
  policy = MedianBandwidth(log, diagonal, multiple, subsample)
  return {"multiple": policy.multiple}  # a Python float: jit needs it hashable


@compiled(
  _check_median, static=("log", "diagonal", "multiple", "subsample", "axis_name")
)
def median_bandwidth(
  particles: Particles,
  *,
  log: str = "m",
  diagonal: bool = False,
  multiple: float = 1.0,
  subsample: int | None = None,
  axis_name: str | None = None,
) -> Array:
  """h = multiple · med² / log m, the default bandwidth.

  med is the exact median of the distances between different particles (the mean of the
  two middle ones if their number is even). If it is 0, because at least half of the
  pairs coincide, the mean squared distance replaces med². If that is 0 too, all
  particles are equal, any h serves, and 1 replaces med².

  Squared distances must be within the range of the floats. In float32 that holds for
  distances from 1e-18 to 3e18: below, squares are 0 and the particles count as equal;
  above, h is infinite and a direction NaN. Scale such particles.

  Args:
    particles: `[m, ...]`, or a pytree of such; m is at least 2.
    log: "m", "m+1", "m squared" or "none": what med² is divided by.
    diagonal: also count the m zero distances of particles to themselves.
    multiple: a factor on h.
    subsample: take the median of this many evenly spaced particles.
    axis_name: the axis over which the particles are sharded.

  Returns:
    The scalar h, in units of squared distance, constant under differentiation; NaN
    if a particle is not finite.

  Raises:
    ValueError: fewer than two particles, or an option outside its range.

  Source: Liu & Wang (2017), section 5.1; Liu & Wang (2016), section 5.
  """
  policy = MedianBandwidth(log, diagonal, multiple, subsample)
  streaming = streamed(particles, axis_name=axis_name)
  return of_particles(particles, policy, streaming)


@jax.jit
def of_particles(
  particles: Particles, policy: MedianBandwidth, streaming: Streaming
) -> Array:
  """h by a policy, as in `median_bandwidth`."""
  points, _ = as_matrix(widened(jax.lax.stop_gradient(particles)))
  return of_points(points, policy, streaming=streaming)[0]


def of_points(
  points: Array,
  policy: MedianBandwidth,
  sources: Array | None = None,
  *,
  distances: Distances | None = None,
  streaming: Streaming = DEFAULTS,
) -> tuple[Array, Distances | None]:
  """h by a policy, and the distances if they are right to within a small part of h.

  Args:
    points: `[n, d]`, this device's.
    policy: of the bandwidth.
    sources: all devices' points, if they are gathered already.
    distances: those of the points, if they are known already.
    streaming: how the points are sharded.
  """
  axis_name = streaming.axis_name
  m = len(points) * axes.size(axis_name)
  if m < 2:
    raise ValueError(
      f"a median bandwidth needs at least 2 particles, got {m}; "
      "give a fixed bandwidth, or no kernel."
    )
  if policy.subsample is not None and policy.subsample < m:
    indices = np.arange(policy.subsample, dtype=np.int64) * m // policy.subsample
    points = axes.gather_at(points, indices, axis_name)
    alone = dataclasses.replace(streaming, axis_name=None, ring=False)
    h, _ = _of_all(points, policy, m, None, None, alone)
    return axes.minimum(h, axis_name), None  # equal already, which JAX does not know
  if sources is None and axis_name is not None and not streaming.ring:
    sources = axes.gather(points, axis_name)
  return _of_all(points, policy, m, sources, distances, streaming)


def _of_all(
  points: Array,
  policy: MedianBandwidth,
  m: int,
  sources: Array | None,
  distances: Distances | None,
  streaming: Streaming,
) -> tuple[Array, Distances | None]:
  n = len(points) * axes.size(streaming.axis_name)
  if policy.diagonal:
    # Of all n² distances the n zeros come first, then every pair twice.
    full_ranks = ((n * n - 1) // 2, n * n // 2)
    ranks = (max(full_ranks[0] - n, 0) // 2, max(full_ranks[1] - n, 0) // 2)
  else:
    num_pairs = n * (n - 1) // 2
    full_ranks = (n * n, n * n)
    ranks = ((num_pairs - 1) // 2, num_pairs // 2)
  divisor = _LOGARITHMS[policy.log](m)
  *squared, distances = middle_squared_distances(
    points,
    ranks,
    sources,
    distances=distances,
    scale=policy.multiple / divisor,
    streaming=streaming,
  )
  low, high = (
    jnp.zeros_like(d) if policy.diagonal and full < n else jnp.sqrt(d)
    for d, full in zip(squared, full_ranks)
  )
  med_squared = jnp.square((low + high) / 2)

  # Σ‖xᵢ − x̄‖², from which the mean squared distance follows.
  squares = axes.total(distances.tiles.rows.norms.sum(), streaming.axis_name)
  mean_squared = 2 * squares / (n - 1)
  fallback = jnp.where(mean_squared == 0, 1.0, mean_squared)
  med_squared = jnp.where(med_squared == 0, fallback, med_squared)

  h = (policy.multiple * med_squared / divisor).astype(points.dtype)
  h = jnp.maximum(h, jnp.finfo(h.dtype).tiny)  # a denormal number counts as 0
  h = jnp.where(jnp.isnan(squares), squares, h)
  return h, None if distances.table is None else distances
