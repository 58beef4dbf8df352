"""Stein thinning: the few of many points that together represent p best."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.kernels import Kernel, imq
from stein_jax.pairs.points import map_rows, num_rows, widened
from stein_jax.stein.direction import Direction, as_kernel_direction
from stein_jax.stein.discrepancy import checked_kernel
from stein_jax.types import Array, Particles


def _check(
  particles: Particles,
  scores: Particles,
  kernel: Kernel | Direction | None,
  num_points: int,
  log_density: ArrayLike | None,
  laplacian: ArrayLike | None,
) -> dict[str, Direction]:
  n = checks.num_particles(particles)
  checks.same_shapes(particles, scores, ("particles", "scores"))
  checks.at_least_one("num_points", num_points)
  for name, values in (("log_density", log_density), ("laplacian", laplacian)):
    if values is not None and jnp.shape(values) != (n,):
      raise ValueError(
        f"{name} must hold one number for each of {n} particles, [{n}], got the shape "
        f"{jnp.shape(values)}."
      )
  kernel = imq() if kernel is None else kernel
  return {"kernel": checked_kernel("stein_thinning", kernel, None)}


@compiled(_check, static=("num_points",))
def stein_thinning(
  particles: Particles,
  scores: Particles,
  kernel: Kernel | Direction | None,
  num_points: int,
  *,
  log_density: ArrayLike | None = None,
  laplacian: ArrayLike | None = None,
) -> Array:
  """Chooses, one after another, the points whose D² is smallest with those before.

  The index π_t of point t minimises

    u_p(xᵢ, xᵢ) + 2 Σ_{t' < t} u_p(x_{π_t'}, xᵢ)      over i,

  the part of t² D² that depends on it. A particle may be chosen several times, so that
  `num_points` may be any number. The particles need not be draws from p: those of a
  burn-in are not chosen, and a bias of the sampler is corrected as far as the particles
  allow it.

  A step costs one row of the Stein kernel, O(n d) for radial kernels, and no n × n
  matrix is held, except the distances for a median bandwidth up to n = 4096.

  Points between modes, where the score is small, may be chosen too often. The
  regularised variant avoids them: with m = num_points it adds

    Δ⁺ log p(xᵢ) − (t/m) log p(xᵢ).

  The score does not see the weights of separated modes. With a bandwidth that is much
  smaller than their distance, no variant chooses points in the right proportions.

  >>> import jax
  >>> from stein_jax import kernels, stein_thinning
  >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
  >>> stein_thinning(x, -x, kernels.imq(), 20).shape
  (20,)

  Args:
    particles: such as the states of a chain, `[n, ...]`, or a pytree of such. They and
      the scores must be finite, which is not checked.
    scores: ∇ log p at the particles, shaped like them.
    kernel: from `kernels`; None: `kernels.imq()`.
    num_points: m, how many indices are chosen.
    log_density: log p at the particles up to a constant, `[n]`. Given, the second of
      the terms is added, and low densities are avoided.
    laplacian: Δ⁺ log p at the particles, the sum of those second derivatives
      ∂²log p/∂x_k² that are positive, `[n]`. Given, the first of the terms is added,
      and points between modes are avoided.

  Returns:
    Indices of particles, `[num_points]`, in the order of choice: the first m' of them
    are what `num_points=m'` chooses (without log_density).

  Raises:
    TypeError, ValueError: particles and scores that differ in shape, num_points below
      1, log_density or laplacian of another shape than `[n]`, or a kernel as in
      `ksd_squared`.

  Source: Riabiz et al. (2022); Bénard, Staber & Da Veiga (2023) for the regularised
  variant.
  """
  particles, scores = widened((particles, scores))
  n = num_rows(particles)
  chosen_kernel = as_kernel_direction(kernel).kernel.resolve(particles)

  def itself(point: tuple[Particles, Particles]) -> Array:
    x, s = point
    alone = jax.tree.map(lambda leaf: leaf[None], point)
    return chosen_kernel.stein_kernel_row(x, s, *alone)[0]

  objective = map_rows(itself, (particles, scores), 1, None)
  dtype = objective.dtype
  if laplacian is not None:
    objective = objective + jnp.asarray(laplacian, dtype)
  reward = jnp.zeros(n, dtype)
  if log_density is not None:
    # A constant in log p would not change the choice, but takes digits.
    values = jnp.asarray(log_density, dtype)
    reward = (values - values.max()) / num_points

  def step(objective: Array, _: None) -> tuple[Array, Array]:
    objective = objective - reward
    index = jnp.argmin(objective)
    x, s = jax.tree.map(lambda leaf: leaf[index], (particles, scores))
    row = chosen_kernel.stein_kernel_row(x, s, particles, scores)
    return objective + 2 * row, index

  return jax.lax.scan(step, objective, None, length=num_points)[1]
