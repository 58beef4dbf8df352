"""The experiments as a user starts them: programs of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

ONE_DEVICE = {"XLA_FLAGS": ""}  # without the tests' eight


def run(
  module: str, *arguments: str, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
  """`python -m experiments.<module>` on one device."""
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{module}", *arguments],
    cwd=ROOT,
    env={**os.environ, **ONE_DEVICE, **environment},
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )
