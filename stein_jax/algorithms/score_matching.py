"""Score matching, Stein's and Fisher's: learning without negatives."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from stein_jax import checks
from stein_jax.algorithms.descent import descend, gradient_only
from stein_jax.algorithms.energy import (
  check_batch,
  check_energy,
  check_reference,
  check_reference_source,
  energies,
  score,
  scores,
  split_batch,
  with_points,
)
from stein_jax.compiled import compiled
from stein_jax.parallel import axes
from stein_jax.stein.direction import (
  DirectionFn,
  DirectionLike,
  as_direction,
  call,
  check_kernel,
)
from stein_jax.types import (
  Algorithm,
  Array,
  Batch,
  EnergyFn,
  Key,
  Metrics,
  Params,
  Particles,
  PyTree,
  ReferenceLike,
)


def _check_stein(
  params: Params, data: Batch, kernel: DirectionLike, reference: Batch | None
) -> dict[str, DirectionFn]:
  checks.params(params)
  check_batch(data, "data")
  check_reference(data, reference)
  return {"kernel": as_direction(kernel, params)}


@gradient_only
@compiled(_check_stein, static=("axis_name",))
def stein_score_matching_gradient(
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  kernel: DirectionLike,
  *,
  reference: Batch | None = None,
  axis_name: str | None = None,
) -> tuple[Array, Params]:
  """∇θ ½D²(q₀ ‖ p), exactly: no finite difference.

  ∇θ ½D² = −(1/m) Σᵢ ∇θ [∇ₓE(xᵢ; θ)ᵀ φᵢ], φ = φ*(x) held constant,

  where D² is the V-statistic of `ksd_squared`. One linearisation of ∇₍ₓ,θ₎ Σ E along x
  gives both factors: its value contains the scores that φ needs, its tangent along φ
  the cross derivative.

  With `Direction(kernel, leave_one_out=True)` it is the gradient of half the
  U-statistic, which is unbiased.

  With reference points y₁, ..., yᵣ the sums of φ are over these as well, while the
  outer sum stays over the m data. A pair (xᵢ, yⱼ) has the derivative of the score at xᵢ
  only, which on average is half of the pair's, as u_p is symmetric. So with
  leave_one_out the gradient is unbiased still if data and reference points are
  independent, and has less noise, for r scores instead of r second derivatives.
  Drawn from the same N data as the batch, they repeat some of its points, whose own
  terms then return: on average with a weight of at most 1/N, instead of 1/m.

  With `Direction(kernel, regularization=η)` and a kernel that does not depend on θ it
  is the gradient of the regularised discrepancy

    max_φ {E[T_p φ] − ½ E‖φ‖² − (η/2m) ‖φ‖²_H},

  whose maximiser Φ replaces φ* in the formula. For η → 0, Φ = S + K⁻¹V is the model's
  score minus Li & Turner's (2018) estimate −K⁻¹V of the data's score. The gradient is
  then that of ½ mean ‖S + K⁻¹V‖²: Fisher score matching (18) with an estimated score of
  the data.

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point, twice differentiable. At kinks (ReLU) the
      derivative misses what a finite difference sees.
    data: `[m, ...]`, or `{"x": ..., "context": ...}`.
    kernel: from `kernels`, None for φ = score, a `Direction`, or `fn(params)` that
      returns one of these.
    reference: y, more data, `[r, ...]` or `{"x": ..., "context": ...}`, for the sums of
      φ as in `Direction.__call__`. The same on every device.
    axis_name: the axis over which the data is sharded.

  Returns:
    The gradient, shaped like params. `stein_score_matching_gradient.with_loss(...)`
    returns (1/m) Σᵢ scoreᵢᵀφᵢ as well, the limit of SteinCD's loss for ε → 0: minus the
    first-order change of mean E(x) along φ.

  Raises:
    TypeError: a kernel of another type than those above.
    ValueError: an energy that is not a scalar, fewer than two points with a median
      bandwidth, or reference points that are not like the data, or without a kernel.

  Source: Liu & Wang (2017), equation 15.
  """
  params = axes.local(params, axis_name)
  x, _ = split_batch(data)
  m = checks.num_particles(x)

  def joint_gradient(x: Particles) -> tuple[Particles, Params]:
    return jax.grad(
      lambda x, p: energies(p, energy_fn, with_points(data, x)).sum(), argnums=(0, 1)
    )(x, params)

  (minus_scores, _), tangent = jax.linearize(joint_gradient, x)
  s = jax.tree.map(jnp.negative, minus_scores)
  more = None
  if reference is not None:
    # As params: otherwise the scores at replicated points are summed over the devices.
    reference = axes.varying_as(data, reference)
    more = split_batch(reference)[0], scores(params, energy_fn, reference)
  phi = call(kernel, x, s, axis_name, more)
  _, cross = tangent(phi)
  gradient = jax.tree.map(lambda c: -c / m, cross)
  loss = optax.tree.vdot(s, phi) / m
  return axes.mean((loss, gradient), axis_name)


def stein_score_matching(
  energy_fn: EnergyFn,
  kernel: DirectionLike,
  optimizer: optax.GradientTransformation,
  *,
  reference: ReferenceLike = None,
  axis_name: str | None = None,
) -> Algorithm:
  """Descends `stein_score_matching_gradient` on every batch.

  On a network the plain form fails, as that of `stein_cd` does, which says why: leave
  each point out of its own sum, with a bandwidth far below the squared median distance.

  >>> import optax
  >>> from stein_jax import Direction, energies, kernels, stein_score_matching
  >>> x = jax.random.normal(jax.random.key(0), (2000, 10))
  >>> energy = energies.MLP(base="diagonal")
  >>> params = energy.init_from_data(jax.random.key(1), x)
  >>> kernel = kernels.rbf("median_no_log", multiple=0.15)
  >>> rule = stein_score_matching(
  ...   energy.apply,
  ...   Direction(kernel, leave_one_out=True),
  ...   optax.adam(2e-3),
  ...   reference=lambda key: jax.random.choice(key, x, (400,)),
  ... )
  >>> state = rule.init(jax.random.key(2), params, x[:100])
  >>> state, metrics = rule.update(jax.random.key(3), state, x[:100])

  Args:
    energy_fn: E(x; θ) of one point.
    kernel: from `kernels`, None, a `Direction`, or `fn(params)` that returns one.
    optimizer: an optax optimizer.
    reference: more data for the sums of φ in every step: points, or a function of the
      step's key that draws them, such as
      `lambda key: data[jax.random.choice(key, len(data), (400,), replace=False)]`.
    axis_name: the axis over which the batch is sharded.

  Raises:
    TypeError: a kernel of another type than those above, or reference points that are
      neither points nor a function.
    ValueError: in `update`, reference points as in `stein_score_matching_gradient`.

  Source: Liu & Wang (2017), equations 14 and 15.
  """
  check_energy(energy_fn)
  check_kernel(kernel, axis_name)
  check_reference_source(reference)

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    more = reference(key) if callable(reference) else reference
    loss, gradient = stein_score_matching_gradient.with_loss(
      params, energy_fn, batch, kernel, reference=more, axis_name=axis_name
    )
    return gradient, {"loss": loss}

  return descend(gradient_fn, optimizer)


DivergenceFn = Callable[..., Array]
"""`divergence_fn(params, x)` -> ∇·s(x) = tr ∇ₓ∇ₓ log p(x) of one point."""

_MAX_TANGENTS = 2**16
_ACCELERATOR_MAX_TANGENTS = 2**20
"""How many numbers the exact trace holds for a block of directions: m · d · block.

On a CPU the tangents of hidden layers then stay in the cache, which halves the time.
"""


def _check_score_matching_loss(
  data: Batch,
  key: Key | None,
  num_probes: int | None,
  divergence_fn: DivergenceFn | None,
) -> None:
  check_batch(data, "data")
  if key is not None:
    checks.key(key)
  if num_probes is not None:
    checks.at_least_one("num_probes", num_probes)
    if key is None:
      raise ValueError("num_probes (Hutchinson) needs a key to draw the probes with.")
  if key is not None and divergence_fn is not None:
    raise ValueError("give a key (Hutchinson) or divergence_fn, not both.")


@compiled(_check_score_matching_loss, static=("num_probes", "axis_name"))
def score_matching_loss(
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  *,
  key: Key | None = None,
  num_probes: int | None = None,
  divergence_fn: DivergenceFn | None = None,
  axis_name: str | None = None,
) -> Array:
  """Hyvärinen's objective, the part of the Fisher divergence (18) that depends on θ.

  J(θ) = (1/m) Σᵢ [½‖s(xᵢ)‖² + ∇·s(xᵢ)],  s = ∇ₓ log p = −∇ₓE

  Half of F(q₀ ‖ p) is J plus a constant.

  Args:
    params: θ.
    energy_fn: E(x; θ) of one point, three times differentiable.
    data: `[m, ...]`, or `{"x": ..., "context": ...}`.
    key: if given, the trace is Hutchinson's unbiased estimate from random probes, at
      the cost of `num_probes` directional derivatives. Without a key the trace is
      exact and costs d directional derivatives, computed in blocks: memory grows with
      m · d, not with m · d². Above d = 20 or so a few probes, or
      `sliced_score_matching`, cost a fraction of that.
    num_probes: the number of probes for each point; with a key, 1 by default.
    divergence_fn: the trace in closed form, if the energy has one (the RBM has).
    axis_name: the axis over which the data is sharded; the loss is the mean over this
      device's data.

  Returns:
    A scalar; the mean over the (local) data.

  Raises:
    ValueError: both a key and a closed form, num_probes below 1 or without a key, or an
      energy that is not a scalar.

  Source: Liu & Wang (2017), equation 18; Hyvärinen (2005); Hutchinson (1990).
  """
  x, context = split_batch(data)
  m = checks.num_particles(x)

  def at_point(index: Array, x: PyTree, *context: PyTree) -> Array:
    flat, unravel = ravel_pytree(x)

    def flat_score(flat: Array) -> Array:
      return ravel_pytree(score(params, energy_fn, unravel(flat), *context))[0]

    if divergence_fn is not None:
      s, divergence = flat_score(flat), divergence_fn(params, x, *context)
      if jnp.shape(divergence) != ():
        raise ValueError(
          "divergence_fn(params, x) must return a scalar, the divergence of the score "
          f"at one point; it returned an array of shape {jnp.shape(divergence)}."
        )
    elif key is not None:
      probes = _probes(key, index, num_probes or 1, flat)
      s, _, divergence = _projected(flat_score, flat, probes)
    else:
      s, slope = jax.linearize(flat_score, flat)
      divergence = _trace(slope, flat, m, axis_name)
    return s @ s / 2 + divergence

  indices = axes.global_indices(m, axis_name)
  return jax.vmap(at_point)(indices, x, *context).mean()


def _probes(key: Key, index: Array, num: int, x: Array) -> Array:
  """Vectors `[num, d]` of E[v vᵀ] = I, random signs, for the point of this index."""
  point_key = jax.random.fold_in(key, index)
  return jax.random.rademacher(point_key, (num, x.size), x.dtype)


def _projected(
  score_fn: Callable[[Array], Array], x: Array, directions: Array
) -> tuple[Array, Array, Array]:
  """s(x) `[d]`, and the means over the directions of (vᵀs)² and of vᵀ∇s v."""
  s, slope = jax.linearize(score_fn, x)
  curvatures = jax.vmap(lambda v: v @ slope(v))(directions)
  return s, jnp.square(directions @ s).mean(), curvatures.mean()


def _trace(
  slope: Callable[[Array], Array], x: Array, num_points: int, axis_name: str | None
) -> Array:
  """Σₖ [slope(eₖ)]ₖ over the d unit vectors, a block of directions at a time.

  Args:
    slope: the linear function v -> J v.
    x: the point `[d]`.
    num_points: how many points `vmap` evaluates at once.
    axis_name: the axis over which the points are sharded.
  """
  d = x.size
  on_cpu = jax.default_backend() == "cpu"
  limit = _MAX_TANGENTS if on_cpu else _ACCELERATOR_MAX_TANGENTS
  block = min(d, max(1, limit // (num_points * d)))
  num_blocks = -(-d // block)
  block = -(-d // num_blocks)  # blocks of nearly equal size

  def of_direction(k: Array) -> Array:
    # Beyond the last direction, k ≥ d, the vector is 0 and adds nothing.
    unit = axes.local(jax.nn.one_hot(k, d, dtype=x.dtype), axis_name)
    return slope(unit)[k]

  def of_block(directions: Array) -> Array:
    return jax.vmap(of_direction)(directions).sum()

  directions = jnp.arange(num_blocks * block).reshape(num_blocks, block)
  if num_blocks == 1:
    return of_block(directions[0])
  # Without the checkpoint a gradient would keep the intermediate values of all blocks.
  # (A loop needs no barrier against common subexpressions.)
  of_block = jax.checkpoint(of_block, prevent_cse=False)
  return jax.lax.map(of_block, directions).sum()


def score_matching(
  energy_fn: EnergyFn,
  optimizer: optax.GradientTransformation,
  *,
  num_probes: int | None = None,
  divergence_fn: DivergenceFn | None = None,
  axis_name: str | None = None,
) -> Algorithm:
  """Fisher score matching: descends `score_matching_loss` on every batch.

  Args:
    energy_fn: E(x; θ) of one point.
    optimizer: an optax optimizer.
    num_probes: use Hutchinson's trace with this many probes; None: the exact trace.
    divergence_fn: the trace in closed form.
    axis_name: the axis over which the batch is sharded.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer.
    ValueError: both num_probes and divergence_fn.

  Source: Liu & Wang (2017), equation 18; Hyvärinen (2005).
  """
  check_energy(energy_fn)
  if divergence_fn is not None:
    checks.function("divergence_fn", divergence_fn, "params, x", "params, x, context")
  if num_probes is not None:
    checks.at_least_one("num_probes", num_probes)
    if divergence_fn is not None:
      raise ValueError("give num_probes (Hutchinson) or divergence_fn, not both.")

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    loss, gradient = axes.value_and_gradient(
      lambda p: score_matching_loss(
        p,
        energy_fn,
        batch,
        key=None if num_probes is None else key,
        num_probes=num_probes,
        divergence_fn=divergence_fn,
        axis_name=axis_name,
      ),
      params,
      axis_name,
    )
    return gradient, {"loss": loss}

  return descend(gradient_fn, optimizer)


def _check_sliced(key: Key, data: Batch, num_projections: int) -> None:
  checks.key(key)
  check_batch(data, "data")
  checks.at_least_one("num_projections", num_projections)


@compiled(_check_sliced, static=("num_projections", "variance_reduced", "axis_name"))
def sliced_score_matching_loss(
  key: Key,
  params: Params,
  energy_fn: EnergyFn,
  data: Batch,
  *,
  num_projections: int = 1,
  variance_reduced: bool = True,
  axis_name: str | None = None,
) -> Array:
  """Hyvärinen's objective along random directions v, of E[v vᵀ] = I.

  variance-reduced:  (1/m) Σᵢ [½‖s(xᵢ)‖² + vᵢᵀ∇s(xᵢ) vᵢ]
  otherwise:         (1/m) Σᵢ [½(vᵢᵀs(xᵢ))² + vᵢᵀ∇s(xᵢ) vᵢ],  s = ∇ₓ log p = −∇ₓE

  Both have the mean J(θ) of `score_matching_loss`, for any number of directions. The
  first is `score_matching_loss` with a key. v is a vector of random signs, for which
  the estimate of a trace has the least variance.

  Args:
    key: a PRNG key, the same on every device.
    params: θ.
    energy_fn: E(x; θ) of one point, three times differentiable.
    data: `[m, ...]`, or `{"x": ..., "context": ...}`.
    num_projections: how many directions each point draws, over which the terms are
      averaged.
    variance_reduced: replace (vᵀs)² by its mean over v, which is ‖s‖².
    axis_name: the axis over which the data is sharded; the loss is the mean over this
      device's data.

  Returns:
    A scalar.

  Raises:
    TypeError: a key that is none.
    ValueError: num_projections below 1, or an energy that is not a scalar.

  >>> from stein_jax import energies
  >>> energy = energies.MLP(base="diagonal")
  >>> x = jax.random.normal(jax.random.key(0), (100, 2))
  >>> params = energy.init_from_data(jax.random.key(1), x)
  >>> sliced_score_matching_loss(jax.random.key(2), params, energy.apply, x).shape
  ()

  Source: Song et al. (2019), section 3.
  """
  x, context = split_batch(data)

  def at_point(index: Array, x: PyTree, *context: PyTree) -> Array:
    flat, unravel = ravel_pytree(x)

    def flat_score(flat: Array) -> Array:
      return ravel_pytree(score(params, energy_fn, unravel(flat), *context))[0]

    directions = _probes(key, index, num_projections, flat)
    s, along, curvature = _projected(flat_score, flat, directions)
    return (s @ s if variance_reduced else along) / 2 + curvature

  indices = axes.global_indices(checks.num_particles(x), axis_name)
  return jax.vmap(at_point)(indices, x, *context).mean()


def sliced_score_matching(
  energy_fn: EnergyFn,
  optimizer: optax.GradientTransformation,
  *,
  num_projections: int = 1,
  variance_reduced: bool = True,
  axis_name: str | None = None,
) -> Algorithm:
  """Descends `sliced_score_matching_loss` on every batch, by new directions.

  Args:
    energy_fn: E(x; θ) of one point.
    optimizer: an optax optimizer.
    num_projections: how many directions each point draws.
    variance_reduced: ‖s‖² in place of (vᵀs)².
    axis_name: the axis over which the batch is sharded.

  Raises:
    TypeError: an argument that is not a function, not an optax optimizer or not a bool.
    ValueError: num_projections below 1.

  Source: Song et al. (2019).
  """
  check_energy(energy_fn)
  checks.at_least_one("num_projections", num_projections)
  checks.boolean("variance_reduced", variance_reduced)

  def gradient_fn(key: Key, params: Params, batch: Batch) -> tuple[Params, Metrics]:
    loss, gradient = axes.value_and_gradient(
      lambda p: sliced_score_matching_loss(
        key,
        p,
        energy_fn,
        batch,
        num_projections=num_projections,
        variance_reduced=variance_reduced,
        axis_name=axis_name,
      ),
      params,
      axis_name,
    )
    return gradient, {"loss": loss}

  return descend(gradient_fn, optimizer)
