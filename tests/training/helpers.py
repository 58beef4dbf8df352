"""What the tests of `fit` share."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np


def assert_same_bits(a, b):
  """Two pytrees of one structure agree in every bit."""
  chex.assert_trees_all_equal(*(jax.tree.map(as_numbers, tree) for tree in (a, b)))


def as_numbers(x):
  """An array, or the data of PRNG keys, as a NumPy array."""
  is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return np.asarray(jax.random.key_data(x) if is_key else x)


def rows_in(workdir):
  """The rows of metrics.jsonl."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def untimed(rows):
  """Rows without the entry that differs between equal runs."""
  return [{k: v for k, v in row.items() if k != "ms_per_step"} for row in rows]


def forget_the_program(workdir):
  """Leaves what an earlier version left, which did not tell programs apart."""
  for path in workdir.glob("checkpoints/*/_CHECKPOINT_METADATA"):
    metadata = json.loads(path.read_text())
    for name in ("identity", "data checksum"):
      metadata["custom_metadata"]["run"].pop(name)
    path.write_text(json.dumps(metadata))
  (workdir / "run.json").unlink()
