"""Random numbers for particles: the same on one device and on many.

Particle i draws from `fold_in(key, i)`, with i its index among the particles of all
devices. So its numbers do not depend on how the particles are sharded.

On a CPU the noise is most of the cost of a Langevin step. `jax.random.normal` computes
one threefry hash and one inverse error function for each number. The Box-Muller
transform computes one hash, one logarithm, one square root and two short polynomials
for each two numbers.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

from stein_jax.parallel import axes
from stein_jax.types import Array, Key, Particles


def normal_like(
  key: Key, particles: Particles, axis_name: str | None = None
) -> Particles:
  """Standard normal numbers with the structure, shapes and dtypes of the particles.

  Args:
    key: a PRNG key, the same on every device.
    particles: `[n, ...]`, or a pytree of such.
    axis_name: the axis over which the particles are sharded.
  """
  leaves, structure = jax.tree.flatten(particles)
  keys = _particle_keys(key, leaves[0].shape[0], axis_name)

  def draw(particle_key: Key) -> list[Array]:
    # A single leaf uses the key itself: for a small point a split would cost as much
    # as the noise.
    single = len(leaves) == 1
    leaf_keys = (
      [particle_key] if single else jax.random.split(particle_key, len(leaves))
    )
    return [normal(k, leaf.shape[1:], leaf.dtype) for k, leaf in zip(leaf_keys, leaves)]

  return jax.tree.unflatten(structure, jax.vmap(draw)(keys))


def uniform(key: Key, n: int, dtype: Any, axis_name: str | None = None) -> Array:
  """Uniform numbers in [0, 1), `[n]`, one for each particle of this device.

  Args:
    key: a PRNG key, the same on every device.
    n: the number of particles on this device.
    dtype: the floating-point type of the result.
    axis_name: the axis over which the particles are sharded.
  """
  keys = _particle_keys(key, n, axis_name)
  return jax.vmap(lambda k: jax.random.uniform(k, (), dtype))(keys)


def integers(key: Key, n: int, high: int, axis_name: str | None = None) -> Array:
  """Uniform integers in 0, ..., high − 1, `[n]`, one for each particle of this device.

  Args:
    key: a PRNG key, the same on every device.
    n: the number of particles on this device.
    high: the number of different integers.
    axis_name: the axis over which the particles are sharded.
  """
  keys = _particle_keys(key, n, axis_name)
  return jax.vmap(lambda k: jax.random.randint(k, (), 0, high))(keys)


def normal(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
  """Standard normal numbers by the Box-Muller transform, for float32 and threefry keys.

  z₁ = r cos α,  z₂ = r sin α,  r = √(−2 log u),

  with u uniform in (0, 1] and α uniform on the circle, from the two words of one
  threefry hash. Since u is at least 2⁻³¹, |z| is at most 6.56. Other dtypes and other
  kinds of keys use `jax.random.normal`.

  Args:
    key: a PRNG key.
    shape: the shape of the result.
    dtype: the floating-point type of the result.

  Source: Box & Muller (1958).
  """
  if dtype != jnp.float32 or str(jax.random.key_impl(key)) != "threefry2x32":
    return jax.random.normal(key, shape, dtype)
  size = math.prod(shape)
  counters = jnp.arange(size + size % 2, dtype=jnp.uint32)
  radii, angles = jnp.split(threefry_2x32(jax.random.key_data(key), counters), 2)
  u = ((radii >> 1).astype(jnp.int32).astype(jnp.float32) + 1) * 2.0**-31
  radius = jnp.sqrt(-2 * jnp.log(u))
  cosine, sine = _cosine_and_sine(angles)
  return jnp.concatenate([radius * cosine, radius * sine])[:size].reshape(shape)


def _particle_keys(key: Key, n: int, axis_name: str | None) -> Key:
  indices = axes.global_indices(n, axis_name)
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def _cosine_and_sine(turns: Array) -> tuple[Array, Array]:
  """Cosine and sine of 2π · turns/2³², with errors below 5e-7, of uint32 turns.

  The two highest bits are the quadrant. The other bits are an angle within ±π/4 of the
  middle of the quadrant, where few terms of the power series suffice.
  """
  quadrant = turns >> 30
  offset = jax.lax.bitcast_convert_type((turns << 2) + jnp.uint32(2**31), jnp.int32)
  angle = offset.astype(jnp.float32) * (math.pi * 2.0**-33)
  square = angle * angle
  sine = angle * _polynomial(square, (1, -1 / 6, 1 / 120, -1 / 5040))
  cosine = _polynomial(square, (1, -1 / 2, 1 / 24, -1 / 720, 1 / 40320))
  # Add π/4, the middle of the first quadrant, then the quadrant itself.
  cosine, sine = (cosine - sine) * math.sqrt(0.5), (cosine + sine) * math.sqrt(0.5)
  odd = quadrant & 1 == 1
  cosine, sine = jnp.where(odd, -sine, cosine), jnp.where(odd, cosine, sine)
  sign = jnp.where(quadrant > 1, -1.0, 1.0).astype(jnp.float32)
  return sign * cosine, sign * sine


def _polynomial(x: Array, coefficients: Sequence[float]) -> Array:
  """Σₖ coefficientₖ xᵏ, by Horner's rule."""
  value = jnp.zeros_like(x)
  for coefficient in reversed(coefficients):
    value = value * x + coefficient
  return value
