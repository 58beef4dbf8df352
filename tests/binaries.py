"""The experiments as a user starts them: programs of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# A few steps take longer to compile than to run; optimised code is other tests' matter.
QUICK = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def run(
  module: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
  """`python -m experiments.<module>` on one device, not the tests' eight."""
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{module}", *arguments],
    cwd=ROOT,
    env={**os.environ, **QUICK, **environment},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
