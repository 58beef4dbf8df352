"""The kernelised Stein discrepancy: how far particles are from a density."""

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.kernels import Kernel, Whitened
from stein_jax.pairs.points import num_rows, widened
from stein_jax.parallel import axes
from stein_jax.stein.direction import Direction, as_kernel_direction
from stein_jax.types import Array, Particles


def _check(
  particles: Particles,
  scores: Particles,
  kernel: Kernel | Direction,
  statistic: str,
  axis_name: str | None,
) -> dict[str, Direction]:
  checks.particles_and_scores(particles, scores)
  checks.one_of("statistic", statistic, ("V", "U"))
  return {"kernel": checked_kernel("ksd_squared", kernel, axis_name)}


def checked_kernel(
  function: str, kernel: Kernel | Direction, axis_name: str | None
) -> Direction:
  """A kernel as a Direction, of which only the options of the sums apply.

  Args:
    function: the name of the public function, for error messages.
    kernel: what that function was given.
    axis_name: the axis over which the particles are sharded.

  Raises:
    TypeError, ValueError: as `ksd_squared` does for its kernel.
  """
  direction = as_kernel_direction(kernel)
  if direction.kernel is None:
    raise ValueError(f"{function} needs a kernel, such as kernels.rbf(), got None.")
  for name in ("regularization", "row_normalized"):
    if getattr(direction, name):
      raise ValueError(f"{function} has no meaning for a direction with {name}.")
  direction.check_axis(axis_name, all_pairs=True)
  return direction


@compiled(_check, static=("statistic", "axis_name"))
def ksd_squared(
  particles: Particles,
  scores: Particles,
  kernel: Kernel | Direction,
  *,
  statistic: str = "V",
  axis_name: str | None = None,
) -> Array:
  """The squared kernelised Stein discrepancy between particles and p.

  D² = E_{x, y ~ q}[u_p(x, y)],
  u_p(x, y) = sₓᵀs_y k + sₓᵀ∇_y k + s_yᵀ∇ₓ k + tr ∇ₓ∇_y k,

  zero when q = p. The V-statistic averages over all n² pairs, is at least 0, and is
  the D² whose half Stein score matching (15) descends. The U-statistic leaves out the
  n pairs of a particle with itself, is unbiased, and may be negative; its half is what
  Stein score matching descends with `leave_one_out`.

  Args:
    particles: draws from q, `[n, ...]`, or a pytree of such.
    scores: ∇ log p at the particles, shaped like them.
    kernel: from `kernels`, or a Direction, whose options of the sums (block_size,
      exchange) apply. The statistic alone decides which pairs count.
    statistic: "V" or "U".
    axis_name: the axis over which the particles are sharded.

  Returns:
    A scalar, the same on every device.

  Raises:
    TypeError, ValueError: particles and scores that differ in shape, no kernel, an
      unknown statistic, a regularised or row-normalised Direction, or fewer than two
      particles for "U" or a median bandwidth.

  Source: Liu & Wang (2017), equations 3 and 14; Liu, Lee & Jordan (2016).
  """
  particles, scores = widened((particles, scores))
  n = num_rows(particles) * axes.size(axis_name)
  if statistic == "U" and n < 2:
    raise ValueError(f"the U-statistic needs at least 2 particles, got {n}.")
  direction = as_kernel_direction(kernel)
  streaming = direction.streaming(particles, axis_name, all_pairs=True)
  sources, source_scores = streaming.sources(particles, scores)
  sums = direction.kernel.stein_kernel_sums(
    particles, scores, sources, source_scores, streaming=streaming
  )
  of_pairs, of_itself = axes.total(sums, axis_name)
  if statistic == "U":
    return of_pairs / float(n * (n - 1))  # beyond int32 for many particles
  return (of_pairs + of_itself) / float(n * n)


def whitened_ksd_squared(
  particles: Particles,
  scores: Particles,
  whitening: Whitened,
  *,
  statistic: str = "V",
  axis_name: str | None = None,
) -> Array:
  """The squared whitened Stein discrepancy D²_η between particles and p.

  D²_η = 2 max_φ {E_q[T_p φ] − ½ E_data‖φ‖² − (η/2) ‖φ‖²_H} = tr φ*(Z)ᵀ W φ*(Z)

  over φ = k(·, Z) A. It is `ksd_squared` with the kernel κ of `whiten`. Where that has
  the units of k/length², this one is measured as the Fisher divergence E_q‖s_p − s_q‖²
  is. If the whitening's data are from q too, it is at most that divergence, up to
  sampling noise, and approaches it with many centres and η → 0; for particles far from
  those data only η bounds it. Half of its U-statistic
  is what Stein score matching descends with `Direction(whitening, leave_one_out=True)`.

  >>> import jax
  >>> from stein_jax import kernels, whitened_ksd_squared
  >>> x = jax.random.normal(jax.random.key(0), (2000, 2))
  >>> whitening = kernels.whiten(kernels.rbf("median_no_log"), x)
  >>> scores = -(x - 0.5)  # of N(½, I): E‖s_p − s_q‖² = ½
  >>> round(float(whitened_ksd_squared(x, scores, whitening, statistic="U")), 1)
  0.5

  Args:
    particles: draws from q, `[n, ...]`, or a pytree of such.
    scores: ∇ log p at the particles, shaped like them.
    whitening: what `kernels.whiten(kernel, data)` returned.
    statistic: "V" or "U", as in `ksd_squared`.
    axis_name: the axis over which the particles are sharded.

  Returns:
    A scalar, in units of 1/length², the same on every device.

  Raises:
    TypeError: anything but a whitened kernel.
    ValueError: as in `ksd_squared`.

  Source: ours, see `kernels.whiten`.
  """
  if not isinstance(whitening, Whitened):
    raise TypeError(
      "whitened_ksd_squared needs what kernels.whiten(kernel, data) returns, got "
      f"{whitening!r}; ksd_squared takes any kernel."
    )
  return ksd_squared(
    particles, scores, whitening, statistic=statistic, axis_name=axis_name
  )
