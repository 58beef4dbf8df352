"""Saved parameters, which may be damaged. Reading them runs no code."""

from pathlib import Path

import jax
import numpy as np
from flax import serialization

from stein_jax.types import PyTree


class DamagedFile(OSError):
  """A file that does not hold what it should; the message says what can be done."""


def restored(like: PyTree, content: bytes) -> PyTree:
  """The tree that flax's `to_bytes` wrote.

  Args:
    like: a tree with the same structure and shapes.
    content: the bytes.

  Raises:
    ValueError: they are cut short, or hold something else.
  """
  try:
    tree = serialization.from_bytes(like, content)
    fits = jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, like)
  except Exception as error:  # of any kind: the bytes may be anything
    raise ValueError(f"it is damaged: {error}") from error
  if not fits:
    raise ValueError("it holds arrays of other shapes")
  return tree


def read_tree(path: Path, like: PyTree, what: str) -> PyTree:
  """As `restored`, from a file; `DamagedFile` says that it is not `what`."""
  try:
    return restored(like, path.read_bytes())
  except ValueError as error:
    raise DamagedFile(f"{path} is not {what}; delete it: {error}") from error
