"""Checks the installed package: it is complete, typed, and computes.

python .ci/check_wheel.py CLONE
"""

import importlib.util
import pkgutil
import sys
from pathlib import Path

import jax.numpy as jnp

import stein_jax


def files(package: Path) -> set[str]:
  """The package's sources, and the file that says it has types."""
  found = (*package.rglob("*.py"), *package.rglob("py.typed"))
  return {path.relative_to(package).as_posix() for path in found}


def main(clone: Path) -> None:
  """Raises AssertionError if something is wrong."""
  installed = Path(stein_jax.__file__).parent
  assert clone not in installed.parents, "this is the clone, not the wheel"
  different = files(clone / "stein_jax") ^ files(installed)
  assert not different, f"not in both the clone and the wheel: {sorted(different)}"
  for other in ("experiments", "tests"):
    assert importlib.util.find_spec(other) is None, f"{other} is installed, too"
  for module in pkgutil.walk_packages(stein_jax.__path__, "stein_jax."):
    importlib.import_module(module.name)

  # Two particles without scores push each other apart: φ = ∓(1/h) d exp(−d²/h) for
  # h = 1 and the distance d = 1.
  x = jnp.array([[0.0], [1.0]])
  kernel = stein_jax.kernels.rbf(1.0)
  phi = stein_jax.svgd_direction(x, jnp.zeros_like(x), kernel)
  assert jnp.allclose(phi, jnp.exp(-1.0) * jnp.array([[-1.0], [1.0]]), rtol=1e-5), phi
  print(f"The wheel of stein_jax {stein_jax.__version__} is complete and works.")


if __name__ == "__main__":
  main(Path(sys.argv[1]).resolve())
