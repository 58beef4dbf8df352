"""Algorithms on several devices, of one process or of several.

`distribute` wraps any algorithm that was made with the `axis_name` of a mesh:

  mesh = parallel.make_mesh()
  rule = stein_cd(energy_fn, kernels.rbf(), optimizer, step_size=.1, axis_name=AXIS)
  rule = parallel.distribute(rule, mesh)
  state, metrics = jax.jit(rule.update)(key, state, batch)
"""

from stein_jax.parallel.mesh import (
  AXIS,
  by_rows,
  check_divides,
  distribute,
  local,
  make_mesh,
  own_rows,
  same,
  shardings,
  spread,
  spread_rows,
  take,
)
from stein_jax.parallel.processes import (
  check_alike,
  first_process_first,
  is_first_process,
  wait_for_all,
)

__all__ = [
  "AXIS",
  "make_mesh",
  "distribute",
  "shardings",
  "by_rows",
  "same",
  "spread",
  "spread_rows",
  "own_rows",
  "take",
  "local",
  "check_divides",
  "is_first_process",
  "wait_for_all",
  "first_process_first",
  "check_alike",
]
