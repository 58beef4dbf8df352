"""What all tests share: eight virtual CPU devices, fixtures, the path of the data."""

import os
from pathlib import Path

# JAX reads these when it is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Compiling takes most of the tests' time. This halves it, here and in the commands that
# tests start. JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests optimized programs; modules
# with the marker `optimized` always do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Many tests compile the same program, in different processes or functions.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import chex
import jax
import pytest

chex.set_n_cpu_devices(8)  # before JAX starts: tests of `axis_name` use them

_QUICK = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"

SHARED_TFDS = Path(__file__).resolve().parents[2] / "shared" / "data" / "tfds"


@pytest.fixture
def x64():
  """Float64 for one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="module", autouse=True)
def _programs(request):
  """A module's programs: how they are compiled, and that they are dropped after it.

  Those of the whole suite take gigabytes.
  """
  optimized = _QUICK and request.node.get_closest_marker("optimized") is not None
  if optimized:
    jax.config.update("jax_disable_most_optimizations", False)
  yield
  if optimized:
    jax.config.update("jax_disable_most_optimizations", True)
  jax.clear_caches()


@pytest.fixture
def compilations():
  """A list to which every compilation adds an entry."""
  events = []

  def listen(event, duration, **kwargs):
    if event.endswith("backend_compile_duration"):
      events.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  """Silent broadcasting, such as of [n] with [n, 1], is an error in every test."""
  with jax.numpy_rank_promotion("raise"):
    yield
