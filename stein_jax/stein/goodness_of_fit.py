"""Tests of whether particles are draws from p, of which only the score is known."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.kernels import Kernel, imq
from stein_jax.kernels.base import values_and_gradients
from stein_jax.pairs.points import as_matrix, matmul, num_rows, widened
from stein_jax.parallel import axes
from stein_jax.stein.direction import Direction, as_kernel_direction
from stein_jax.stein.discrepancy import checked_kernel
from stein_jax.types import Array, Key, Numeric, Particles


class SteinTest(NamedTuple):
  """The result of a test of the hypothesis that the particles are draws from p.

  Attributes:
    statistic: a scalar, large where the particles do not fit.
    p_value: (1 + #{null ≥ statistic}) / (1 + B), from 1/(1 + B) to 1; NaN if the
      statistic is. A test at the level 0.05 rejects where it is at most 0.05.
    null: B draws of the statistic for particles that fit, `[B]`.
  """

  statistic: Array
  p_value: Array
  null: Array


def _result(statistic: Array, null: Array) -> SteinTest:
  p_value = (1 + (null >= statistic).sum()) / (1 + len(null))
  p_value = jnp.where(jnp.isnan(statistic), jnp.nan, p_value)
  return SteinTest(statistic, p_value.astype(statistic.dtype), null)


def _check_particles(
  function: str, particles: Particles, scores: Particles, axis_name: str | None
) -> None:
  checks.particles_and_scores(particles, scores)
  n = num_rows(particles) * axes.size(axis_name)
  if n < 2:
    raise ValueError(f"{function} needs at least 2 particles, got {n}.")


def _check_ksd_test(
  particles: Particles,
  scores: Particles,
  kernel: Kernel | Direction | None,
  num_bootstrap: int,
  flip_probability: Numeric,
  axis_name: str | None,
) -> dict[str, Direction]:
  _check_particles("ksd_test", particles, scores, axis_name)
  checks.at_least_one("num_bootstrap", num_bootstrap)
  checks.share("flip_probability", flip_probability, "(0, 1]")
  kernel = imq() if kernel is None else kernel
  return {"kernel": checked_kernel("ksd_test", kernel, axis_name)}


@compiled(_check_ksd_test, static=("num_bootstrap", "axis_name"))
def ksd_test(
  key: Key,
  particles: Particles,
  scores: Particles,
  kernel: Kernel | Direction | None = None,
  *,
  num_bootstrap: int = 1000,
  flip_probability: Numeric = 0.5,
  axis_name: str | None = None,
) -> SteinTest:
  """Tests by the kernelised Stein discrepancy whether particles are draws from p.

  The statistic is n times the U-statistic of D², and its null distribution that of the
  wild bootstrap, with random signs W in {−1, 1}:

    statistic = 1/(n−1) Σ_{i≠j} u_p(xᵢ, xⱼ),
    null_b    = 1/(n−1) Σ_{i≠j} W_ib W_jb u_p(xᵢ, xⱼ).

  With the V-statistic the p-value would be the same: as W² = 1, it adds the same pairs
  of a particle with itself to the statistic and to every null_b. Without them the null
  keeps its digits in float32 where d is large.

  W_1b is a random sign, and each next sign is the last one, flipped with probability
  `flip_probability`. At 0.5 the signs are independent, as independent particles need
  them. The states of a Markov chain, in the chain's order, need rarer flips: with τ the
  integrated autocorrelation time, 0.2/τ is a good choice if n is many times τ. On an
  autoregression with τ = 9 and n = 500 the level 0.05 becomes 0.44 with independent
  signs, 0.09 with a flip_probability of 0.05, and 0.06 with 0.02.

  All signs, n · num_bootstrap bytes, are drawn at once, and one pass over the pairs
  serves all. No n × n matrix is held, except the distances for a median bandwidth up to
  n = 4096 (see `Direction`).

  What it cannot see: the score does not know the weights of modes that are far apart.
  Particles that miss a mode, or have too many in one, pass the test.

  >>> import jax
  >>> from stein_jax import ksd_test
  >>> x = jax.random.normal(jax.random.key(0), (100, 2))
  >>> fits = ksd_test(jax.random.key(1), x, -x)
  >>> shifted = ksd_test(jax.random.key(1), x + 1, -(x + 1))
  >>> bool(fits.p_value > 0.05), bool(shifted.p_value < 0.01)
  (True, True)

  Args:
    key: a PRNG key, the same on every device. The signs depend on it and on a
      particle's index alone, so that many devices draw what one draws.
    particles: `[n, ...]`, or a pytree of such.
    scores: ∇ log p at the particles, shaped like them.
    kernel: from `kernels`, or a Direction, whose options of the sums (block_size,
      exchange, precision) apply. None: `kernels.imq()`, whose heavy tails see what an
      RBF kernel does not in high dimension.
    num_bootstrap: B, the number of sign vectors.
    flip_probability: above 0 and at most 1.
    axis_name: the axis over which the particles are sharded.

  Returns:
    A SteinTest, the same on every device.

  Raises:
    TypeError, ValueError: particles and scores that differ in shape, fewer than two
      particles, a number outside its range, or a kernel as in `ksd_squared`.

  Source: Chwialkowski, Strathmann & Gretton (2016); Liu, Lee & Jordan (2016);
  Gorham & Mackey (2017) for the kernel.
  """
  particles, scores = widened((particles, scores))
  n = num_rows(particles)
  signs = _signs(key, n, num_bootstrap, flip_probability, axis_name)
  sums = _signed_sums(particles, scores, kernel, signs, axis_name)
  return _result(sums[0], sums[1:])


def _check_aggregated(
  particles: Particles,
  scores: Particles,
  kernels: Sequence[Kernel | Direction] | None,
  num_bootstrap: int,
  axis_name: str | None,
) -> dict[str, tuple[Direction, ...]]:
  _check_particles("ksd_aggregated_test", particles, scores, axis_name)
  checks.at_least_one("num_bootstrap", num_bootstrap)
  if kernels is None:
    kernels = [imq("median_no_log", multiple=multiple) for multiple in _MULTIPLES]
  if not isinstance(kernels, Sequence) or not kernels:
    raise ValueError(
      "kernels must be a list of at least one kernel, or None for the default "
      f"collection, got {kernels!r}."
    )
  return {
    "kernels": tuple(
      checked_kernel("ksd_aggregated_test", kernel, axis_name) for kernel in kernels
    )
  }


_MULTIPLES = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
"""Of the squared median distance: the lengths are ¼ to 4 times the median."""


@compiled(_check_aggregated, static=("num_bootstrap", "axis_name"))
def ksd_aggregated_test(
  key: Key,
  particles: Particles,
  scores: Particles,
  kernels: Sequence[Kernel | Direction] | None = None,
  *,
  num_bootstrap: int = 1000,
  axis_name: str | None = None,
) -> SteinTest:
  """Tests by several kernels at once, so that no bandwidth has to be chosen.

  One kernel sees differences of its own length only; which, is not known before. Each
  kernel k has the statistic T_k and the null T_kb of `ksd_test`, with independent signs
  that are common to all kernels, 2 · num_bootstrap vectors of them:

  1. The first half gives every kernel's p-value, also as a function of any number t:
     p_k(t) = (1 + #{b in the first half: T_kb ≥ t}) / (1 + num_bootstrap).
  2. The smallest p-value over the kernels, m = min_k p_k(T_k), is small by chance more
     often than one p-value. The second half says how often: m_b = min_k p_k(T_kb).
  3. The p-value of the test is (1 + #{b in the second half: m_b ≤ m}) /
     (1 + num_bootstrap).

  As the same signs serve all kernels, the dependence between these is taken into
  account, and the level is that of one test. All kernels have equal weights.

  Each kernel needs its own pass over the pairs, of twice the signs: K kernels cost
  about 2K times a `ksd_test`. The p-value of the clearest evidence is about
  K/(1 + num_bootstrap), so that num_bootstrap must be many times K/level.

  Args:
    key: as in `ksd_test`.
    particles: independent draws, `[n, ...]`, or a pytree of such.
    scores: ∇ log p at the particles, shaped like them.
    kernels: a list of kernels or Directions. None: five `kernels.imq()` whose squared
      lengths h are 1/16, 1/4, 1, 4 and 16 times the squared median distance.
    num_bootstrap: the number of sign vectors in each half.
    axis_name: the axis over which the particles are sharded.

  Returns:
    A SteinTest. The statistic is −log m, and the null −log m_b, so that large values
    reject as in the other tests.

  Raises:
    TypeError, ValueError: as `ksd_test`, or no kernels.

  Source: Schrab, Guedj & Gretton (2022), with the smallest p-value in place of their
  quantiles.
  """
  particles, scores = widened((particles, scores))
  n = num_rows(particles)
  signs = _signs(key, n, 2 * num_bootstrap, 0.5, axis_name)
  assert kernels is not None  # the check has replaced it

  def negative_log_p(kernel: Any) -> Array:
    sums = _signed_sums(particles, scores, kernel, signs, axis_name)
    first = jnp.sort(sums[1 : 1 + num_bootstrap])
    others = jnp.concatenate([sums[:1], sums[1 + num_bootstrap :]])
    below = jnp.searchsorted(first, others, side="left")
    return jnp.where(
      jnp.isnan(others),
      others,
      jnp.log((1 + num_bootstrap) / (1 + num_bootstrap - below).astype(others.dtype)),
    )

  found = jnp.stack([negative_log_p(kernel) for kernel in kernels]).max(axis=0)
  return _result(found[0], found[1:])


def _check_fssd(
  particles: Particles,
  scores: Particles,
  kernel: Kernel | Direction | None,
  locations: Particles | None,
  num_locations: int,
  num_simulations: int,
) -> dict[str, Direction]:
  _check_particles("fssd_test", particles, scores, None)
  checks.at_least_one("num_locations", num_locations)
  checks.at_least_one("num_simulations", num_simulations)
  if locations is not None:
    checks.num_particles(locations, "locations")
    checks.same_event(particles, locations, ("particles", "locations"))
  kernel = imq() if kernel is None else kernel
  return {"kernel": checked_kernel("fssd_test", kernel, None)}


@compiled(_check_fssd, static=("num_locations", "num_simulations"))
def fssd_test(
  key: Key,
  particles: Particles,
  scores: Particles,
  kernel: Kernel | Direction | None = None,
  *,
  locations: Particles | None = None,
  num_locations: int = 5,
  num_simulations: int = 1000,
) -> SteinTest:
  """Tests in time linear in n: the Stein witness is computed at a few locations only.

  With ξ(x, v) = k(x, v) s(x) + ∇ₓ k(x, v) and the features
  τ(x) = (ξ(x, v₁), ..., ξ(x, v_J)) / √(dJ), E_q τ = 0 if q = p. The statistic is n
  times the unbiased estimate of ‖E_q τ‖²,

    statistic = 1/(n−1) Σ_{i≠j} τ(xᵢ)ᵀ τ(xⱼ),

  and the null is that of Σₖ ωₖ (zₖ² − 1), z ~ N(0, I), with ω the eigenvalues of the
  covariance C of τ at the particles. It is drawn as ‖g‖² − tr C, g ~ N(0, C), which has
  the same distribution and needs no eigenvalues. The null is that of n → ∞: the level
  is only approximate if n is small. (The median of all pairs as the bandwidth is not
  linear in n; that of `kernels.imq(subsample=1000)` is.)

  It needs memory for τ, n · dJ numbers. It sees no more than `ksd_test` does, and less
  with bad locations.

  Args:
    key: a PRNG key.
    particles: independent draws, `[n, ...]`, or a pytree of such.
    scores: ∇ log p at the particles, shaped like them.
    kernel: from `kernels`; None: `kernels.imq()`.
    locations: v, `[J, ...]`. None: drawn from the Gaussian with the particles' mean and
      covariance. Locations that are chosen for high power need other particles than
      those that are tested.
    num_locations: J, if locations is None.
    num_simulations: the number of draws of the null.

  Returns:
    A SteinTest.

  Raises:
    TypeError, ValueError: as `ksd_test`, or locations of another shape than particles.

  Source: Jitkrittum, Xu, Szabó, Fukumizu & Gretton (2017).
  """
  particles, scores = widened((particles, scores))
  location_key, null_key = jax.random.split(key)
  n = num_rows(particles)
  if locations is None:
    locations = _gaussian_locations(location_key, particles, num_locations)
  resolved = as_kernel_direction(kernel).kernel.resolve(particles)
  s, _ = as_matrix(scores)

  def at(v: Any) -> Array:
    k, gradients = values_and_gradients(resolved, particles, v)
    return k[:, None] * s + as_matrix(gradients)[0]

  features = jax.vmap(at, out_axes=1)(widened(locations))
  features = features.reshape(n, -1)
  tau = features / jnp.sqrt(jnp.asarray(features.shape[1], features.dtype))
  total = tau.sum(axis=0)
  statistic = (jnp.square(total).sum() - jnp.square(tau).sum()) / (n - 1)

  centred = tau - tau.mean(axis=0, keepdims=True)

  def of_null(key: Key) -> Array:
    e = jax.random.normal(key, (n,), tau.dtype)
    return jnp.square(matmul(e, centred)).sum()  # ‖√n g‖²

  null_keys = jax.random.split(null_key, num_simulations)
  at_once = min(num_simulations, max(1, _NUMBERS_AT_ONCE // n))
  squares = jax.lax.map(of_null, null_keys, batch_size=at_once)
  return _result(statistic, (squares - jnp.square(centred).sum()) / n)


_NUMBERS_AT_ONCE = 2**22
"""How many random numbers are held for the null: all at once would be many times τ."""


def _gaussian_locations(key: Key, particles: Particles, num: int) -> Particles:
  """Draws from N(mean, covariance) of the particles, without the d × d covariance."""
  x, unravel = as_matrix(particles)
  mean = x.mean(axis=0, keepdims=True)
  z = jax.random.normal(key, (num, len(x)), x.dtype)
  return unravel(mean + matmul(z, x - mean) / jnp.sqrt(float(len(x) - 1)))


def _signed_sums(
  particles: Particles,
  scores: Particles,
  kernel: Any,
  signs: Array,
  axis_name: str | None,
) -> Array:
  """1/(n−1) Σ_{i≠j} Wᵢ Wⱼ u_p(xᵢ, xⱼ), `[1 + B]`; first that with all signs 1."""
  n = num_rows(particles) * axes.size(axis_name)
  ones = axes.varying_as(signs, jnp.ones((len(signs), 1), signs.dtype))
  weights = jnp.concatenate([ones, signs], axis=1)
  streaming = kernel.streaming(particles, axis_name, all_pairs=True)
  sources, (source_scores, source_weights) = streaming.sources(
    particles, (scores, weights)
  )
  of_pairs, _ = kernel.kernel.stein_kernel_sums(
    particles,
    scores,
    sources,
    source_scores,
    weights=weights,
    source_weights=source_weights,
    streaming=streaming,
  )
  return axes.total(of_pairs, axis_name) / float(n - 1)


_ROWS_AT_ONCE = 1024
"""For how many particles signs are drawn at once, from random numbers of 32 bits."""


def _signs(
  key: Key,
  n: int,
  num_vectors: int,
  flip_probability: Numeric,
  axis_name: str | None = None,
) -> Array:
  """Signs W of this device's particles, `[n, num_vectors]` as int8."""
  probability = jnp.asarray(flip_probability, jnp.float32)

  def flips(index: Array) -> Array:
    p = jnp.where(index == 0, jnp.float32(0.5), probability)
    flipped = jax.random.bernoulli(jax.random.fold_in(key, index), p, (num_vectors,))
    return 1 - 2 * flipped.astype(jnp.int8)

  indices = axes.global_indices(n, axis_name)
  own = jax.lax.map(flips, indices, batch_size=min(n, _ROWS_AT_ONCE))
  signs = jnp.cumprod(own, axis=0, dtype=jnp.int8)
  if axis_name is None:
    return signs
  # The chain goes on over the devices: the last sign of each, [P, num_vectors].
  last = axes.gather(signs[-1:], axis_name)
  before = jnp.arange(len(last)) < axes.index(axis_name)
  start = jnp.where(before[:, None], last, jnp.int8(1)).prod(axis=0, dtype=jnp.int8)
  return signs * start[None]
