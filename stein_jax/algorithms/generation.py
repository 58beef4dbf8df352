"""What SteinGAN and DCGAN ask of a generator and of its noise."""

import jax

from stein_jax import checks
from stein_jax.parallel import axes
from stein_jax.types import GenerateFn, Key, NoiseFn, Params, Particles, PyTree


def check_functions(generate_fn: GenerateFn, noise_fn: NoiseFn) -> None:
  """Raises TypeError unless both are functions of the right arguments."""
  checks.function("generate_fn", generate_fn, "params, stats, noise, context")
  checks.function("noise_fn", noise_fn, "key, m")


def draw_noise(
  noise_fn: NoiseFn, key: Key, num_samples: int, axis_name: str | None
) -> PyTree:
  """ξ for this device's samples; every device draws all noise and keeps its own.

  Raises:
    ValueError: noise of another number of rows than that of all samples.
  """
  total = num_samples * axes.size(axis_name)
  noise = noise_fn(key, total)
  checks.rows(f"noise_fn(key, {total})", noise, total)
  return axes.own(noise, num_samples, axis_name)


def generate(
  generate_fn: GenerateFn,
  params: Params,
  stats: PyTree,
  noise: PyTree,
  context: PyTree,
) -> tuple[Particles, PyTree]:
  """`generate_fn(params, stats, noise, context)`, with a check of what it returns.

  Raises:
    TypeError: generate_fn does not return a pair.
    ValueError: statistics of another structure or shape than before.
  """
  returned = generate_fn(params, stats, noise, context)
  checks.pair("generate_fn", returned, "samples, stats")
  samples, new = returned
  if not jax.tree.leaves((stats, new)):
    return samples, stats  # a generator without statistics may return any empty tree
  checks.same_shapes(
    stats, new, ("generator_stats", "the statistics that generate_fn returns")
  )
  return samples, new
