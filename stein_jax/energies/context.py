"""What a conditional energy is conditioned on, as a vector."""

import jax
import jax.numpy as jnp

from stein_jax import checks
from stein_jax.types import Array


def context_vector(context: Array | None, num_classes: int | None) -> Array:
  """The context of one point as a vector: none, a label as one-hot, or as it is.

  Args:
    context: an integer label (if num_classes is given), an array of any shape, or None.
    num_classes: if given, a context is needed: a label, or a vector of that length.

  Raises:
    ValueError: the context and num_classes do not fit.
  """
  if context is None:
    if num_classes is not None:
      raise ValueError(f"num_classes={num_classes} needs a context.")
    return jnp.zeros(0)
  context = jnp.asarray(context)
  if context.ndim == 0 and jnp.issubdtype(context.dtype, jnp.integer):
    if num_classes is None:
      raise ValueError("An integer context needs num_classes.")
    checks.labels(context, num_classes)
    return jax.nn.one_hot(context, num_classes)
  if num_classes not in (None, context.size):
    raise ValueError(
      f"The context has shape {context.shape}, but num_classes={num_classes}: "
      "give an integer label or a vector of that length."
    )
  return context.reshape(-1)
