"""The context of a conditional energy, as a vector."""

import jax
import jax.numpy as jnp

from stein_jax import checks
from stein_jax.types import Array


def context_vector(context: Array | None, num_classes: int | None) -> Array:
  """A context of one point as a flat vector; an integer label becomes one-hot.

  Args:
    context: an integer label, an array of any shape, or None: then the vector is empty.
    num_classes: None, or the number of labels and the length that a vector must have.

  Raises:
    ValueError: the context does not fit `num_classes`. A label in `jit` or `vmap` is
      not known; there a label that is not below num_classes counts as no label.
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
