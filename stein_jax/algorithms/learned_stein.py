"""The Stein discrepancy with a network as its critic, and an energy that lowers it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from stein_jax import checks
from stein_jax.algorithms.descent import DescentState, apply_gradient
from stein_jax.algorithms.energy import check_batch, check_energy, score, split_batch
from stein_jax.compiled import compiled
from stein_jax.parallel import axes
from stein_jax.samplers.noise import normal_like
from stein_jax.types import (
  Algorithm,
  Array,
  Batch,
  EnergyFn,
  Key,
  Metrics,
  Numeric,
  Params,
  PyTree,
)

CriticFn = Callable[..., PyTree]
"""`critic_fn(params, x)` -> f(x) of one point, shaped like x; maybe with a context."""

_NETWORKS = ("energy", "critic")


def _check(key: Key, params: Params, data: Batch, penalty: Numeric) -> None:
  checks.key(key)
  checks.networks(params, _NETWORKS)
  check_batch(data, "data")
  checks.positive("penalty", penalty)


@compiled(_check, static=("axis_name",))
def learned_stein_discrepancy_loss(
  key: Key,
  params: Params,
  energy_fn: EnergyFn,
  critic_fn: CriticFn,
  data: Batch,
  *,
  penalty: Numeric = 0.5,
  axis_name: str | None = None,
) -> Array:
  """What the critic ascends and the energy descends, the penalised Stein discrepancy.

  (1/m) Σᵢ [s(xᵢ)ᵀf(xᵢ) + zᵢᵀ∇f(xᵢ) zᵢ − λ‖f(xᵢ)‖²],  s = ∇ₓ log p = −∇ₓE

  with zᵢ ~ N(0, I), for which zᵀ∇f z has the mean tr ∇f (Hutchinson). For a flexible f
  and many points it is largest for f = (s − s_q)/(2λ), with s_q the score of the data,
  and there it is E‖s − s_q‖²/(4λ): for λ = ½ half of the Fisher divergence, the loss of
  `score_matching`, found without second derivatives of the energy in x.

  Args:
    key: a PRNG key, the same on every device.
    params: `{"energy": θ, "critic": ψ}`.
    energy_fn: E(x; θ) of one point, twice differentiable.
    critic_fn: f(x; ψ) of one point, shaped like x, twice differentiable, such as
      `critics.VectorMLP().apply`. With a context it gets it, as the energy does.
    data: `[m, ...]`, or `{"x": ..., "context": ...}`.
    penalty: λ, above 0. The scale of f, not its direction, depends on it.
    axis_name: the axis over which the data is sharded; the loss is the mean over this
      device's data.

  Returns:
    A scalar.

  Raises:
    TypeError: a key that is none.
    ValueError: params that are not of two networks, a penalty that is not above 0, an
      energy that is not a scalar, or a critic that is not shaped like x.

  >>> from stein_jax import critics, energies
  >>> energy, critic = energies.MLP(base="diagonal"), critics.VectorMLP()
  >>> x = jax.random.normal(jax.random.key(0), (100, 2))
  >>> keys = jax.random.split(jax.random.key(1))
  >>> params = {
  ...   "energy": energy.init_from_data(keys[0], x),
  ...   "critic": critic.init(keys[1], x[0]),
  ... }
  >>> key = jax.random.key(2)
  >>> learned_stein_discrepancy_loss(key, params, energy.apply, critic.apply, x).shape
  ()

  Source: Grathwohl et al. (2020), section 3.
  """
  x, context = split_batch(data)

  def at_point(x: PyTree, z: PyTree, *context: PyTree) -> Array:
    s = score(params["energy"], energy_fn, x, *context)
    f, slope_along_z = jax.jvp(
      lambda x: _checked(critic_fn, params["critic"], x, *context), (x,), (z,)
    )
    stein = optax.tree.vdot(s, f) + optax.tree.vdot(z, slope_along_z)
    return stein - penalty * optax.tree.norm(f, squared=True)

  return jax.vmap(at_point)(x, normal_like(key, x, axis_name), *context).mean()


def _checked(
  critic_fn: CriticFn, params: Params, x: PyTree, *context: PyTree
) -> PyTree:
  f = critic_fn(params, x, *context)
  checks.same_shapes(x, f, ("x", "critic_fn(params, x)"))
  return f


class LearnedSteinState(NamedTuple):
  """Energy and critic, and their optimizers' states."""

  params: Params  # {"energy": θ, "critic": ψ}
  opt_state: optax.OptState  # of θ
  critic_opt_state: optax.OptState


def learned_stein_discrepancy(
  energy_fn: EnergyFn,
  critic_fn: CriticFn,
  optimizer: optax.GradientTransformation,
  critic_optimizer: optax.GradientTransformation,
  *,
  critic_steps: int = 1,
  penalty: Numeric = 0.5,
  axis_name: str | None = None,
) -> Algorithm:
  """The energy descends `learned_stein_discrepancy_loss`, after the critic ascended it.

  On every batch the critic takes its steps first, each with new noise; the energy then
  takes one step with the new critic. `params` of `init` is
  `{"energy": θ, "critic": ψ}`.

  Args:
    energy_fn: E(x; θ) of one point.
    critic_fn: f(x; ψ) of one point, shaped like x.
    optimizer: an optax optimizer of θ.
    critic_optimizer: an optax optimizer of ψ. The critic has to follow the energy by
      more steps or a higher rate; where it stops, the loss falls below 0 and the energy
      runs away. A schedule counts the critic's own steps, critic_steps in each update.
    critic_steps: steps of the critic for each of the energy.
    penalty: λ, above 0.
    axis_name: the axis over which the batch is sharded.

  Returns:
    An Algorithm whose metrics are the energy's `loss` and `gradient_norm`, and
    `critic_gradient_norm`, of the critic's last step.

  Raises:
    TypeError: an argument that is not a function, or not an optax optimizer.
    ValueError: critic_steps below 1, or a penalty that is not above 0; in `init`,
      params that are not of two networks; in `update`, a critic that is not shaped
      like x.

  Source: Grathwohl et al. (2020), algorithm 1.
  """
  check_energy(energy_fn)
  checks.function("critic_fn", critic_fn, "params, x", "params, x, context")
  checks.optimizer(optimizer)
  checks.optimizer(critic_optimizer, "critic_optimizer")
  checks.at_least_one("critic_steps", critic_steps)
  checks.positive("penalty", penalty)

  def init(key: Key, params: Params, batch: Batch) -> LearnedSteinState:
    del key, batch
    checks.networks(params, _NETWORKS)
    checks.params(params)
    return LearnedSteinState(
      params,
      optimizer.init(params["energy"]),
      critic_optimizer.init(params["critic"]),
    )

  def update(
    key: Key, state: LearnedSteinState, batch: Batch
  ) -> tuple[LearnedSteinState, Metrics]:
    theta, psi = state.params["energy"], state.params["critic"]
    critic_opt_state = state.critic_opt_state

    def discrepancy(key: Key, theta: Params, psi: Params) -> Array:
      return learned_stein_discrepancy_loss(
        key,
        {"energy": theta, "critic": psi},
        energy_fn,
        critic_fn,
        batch,
        penalty=penalty,
        axis_name=axis_name,
      )

    key, *critic_keys = jax.random.split(key, 1 + critic_steps)
    for critic_key in critic_keys:
      _, of_critic = axes.value_and_gradient(
        lambda psi: -discrepancy(critic_key, theta, psi),  # noqa: B023
        psi,
        axis_name,
      )
      psi, critic_opt_state = apply_gradient(
        DescentState(psi, critic_opt_state), of_critic, critic_optimizer
      )
    loss, of_energy = axes.value_and_gradient(
      lambda theta: discrepancy(key, theta, psi), theta, axis_name
    )
    theta, opt_state = apply_gradient(
      DescentState(theta, state.opt_state), of_energy, optimizer
    )
    metrics = {
      "loss": loss,
      "gradient_norm": optax.tree.norm(of_energy),
      "critic_gradient_norm": optax.tree.norm(of_critic),
    }
    params = {"energy": theta, "critic": psi}
    return LearnedSteinState(params, opt_state, critic_opt_state), metrics

  return Algorithm(init, update)
