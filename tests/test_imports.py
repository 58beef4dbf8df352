"""`import stein_jax` stays fast: it imports little besides JAX, Flax and Optax."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What only some functions need, each of which imports it.
HEAVY = {
  "array_record",
  "grain",
  "matplotlib",
  "orbax",
  "scipy.stats",
  "tensorflow",
  "tensorstore",
  "tqdm",
  "torch",
  "jax.experimental.multihost_utils",
}

SCRIPT = """
import sys
import jax, flax.linen, optax
before = set(sys.modules)
import stein_jax
print(*sorted(set(sys.modules) - before))
"""


def test_importing_the_package_imports_nothing_heavy():
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    check=True,
  )
  found = set(done.stdout.split())
  assert "stein_jax.training.loop" in found
  assert not found & HEAVY
