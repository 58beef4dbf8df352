"""Shared by all tests: eight virtual CPU devices, and where the data is."""

import os
from pathlib import Path

# Before JAX starts: tests of `axis_name` spread particles over eight devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# Many tests compile the same program, each in a process or a function of its own.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

SHARED_TFDS = Path(__file__).resolve().parents[2] / "shared" / "data" / "tfds"


@pytest.fixture
def x64():
  """Float64 for one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module", autouse=True)
def _forgotten_programs():
  """What a module compiled goes with it; a whole suite's programs take gigabytes."""
  yield
  jax.clear_caches()


@pytest.fixture
def compilations():
  """A list that every compilation lengthens."""
  events = []

  def listen(event, duration, **kwargs):
    if event.endswith("backend_compile_duration"):
      events.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  """A [n] beside a [n, 1] is an error in every test, not a silent broadcast."""
  with jax.numpy_rank_promotion("raise"):
    yield
