"""Many devices: what they send, hold and reckon, and how long it takes.

  python -m experiments.benchmarks.devices

makes devices of the CPU and compiles the SVGD direction for 1, 2, 4 and 8 of them, with
all particles gathered and in a ring, for the same number of particles (strong scaling)
and for the same number on each device (weak scaling), and a step of SteinCD on the RBM.
Bytes and memory are a device's, read off the compiled program. Times are of all devices
on the same cores, for each of the n² pairs: where they are one device's, the devices
together do no more work than it. In --workdir it leaves summary.json.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import optax
from absl import app, flags
from jax.sharding import PartitionSpec

from experiments import rbm_summary
from experiments.benchmarks import timing
from experiments.shared import common
from stein_jax import energies, kernels, parallel, stein_cd, svgd_direction

_BATCH = 1024

_BYTES = {"pred": 1, "u8": 1, "s32": 4, "u32": 4, "f32": 4, "f64": 8, "s64": 8}


def main(argv: list[str]) -> None:
  if common.printed_from_summary(argv, markdown):
    return
  values = flags.FLAGS
  counts = common.numbers("devices", values.devices, int, at_least=1)
  for count in counts:
    for name, number in (("--strong", values.strong), ("SteinCD's batch", _BATCH)):
      if number % count:
        raise SystemExit(f"{name}, {number}, must divide by {count} devices.")
  counts = sorted({1, *counts})  # what all are held against
  timing.use_cores(values.cores)
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", max(counts))
  common.claim_workdir(before_work=True)
  rows = []
  for scaling in ("strong", "weak"):
    for count in counts:
      n = values.strong if scaling == "strong" else values.weak * count
      for exchange in ("all_gather", "ring") if count > 1 else ("ring",):
        found = of_direction(count, n, exchange)
        rows.append({"what": exchange, "scaling": scaling, "n": n} | found)
  for count in counts:
    rows.append({"what": "SteinCD", "scaling": "strong", "n": _BATCH} | of_step(count))
  workdir = common.claim_workdir(before_work=False)
  summary = common.write_summary(
    workdir, "experiments.benchmarks.devices", {"d": values.d, "rows": rows}
  )
  print(markdown(summary))


def of_direction(count: int, n: int, exchange: str) -> dict[str, Any]:
  """What the direction of n particles costs each of so many devices."""
  mesh = parallel.make_mesh(count)
  x, s = jax.random.normal(jax.random.key(0), (2, n, flags.FLAGS.d))
  kernel = kernels.rbf(2.0 * flags.FLAGS.d)
  direction = functools.partial(
    svgd_direction, kernel=kernel, axis_name=parallel.AXIS, exchange=exchange
  )
  rows = PartitionSpec(parallel.AXIS)
  body = jax.shard_map(direction, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
  return _measured(count, body, *parallel.spread((x, s), parallel.by_rows(mesh)))


def of_step(count: int) -> dict[str, Any]:
  """The same of a step of SteinCD, 1 024 points of 784 numbers and 10 hidden units."""
  mesh = parallel.make_mesh(count)
  rbm = energies.GaussianBernoulliRBM(10)
  rule = parallel.distribute(
    stein_cd(
      rbm.apply,
      kernels.rbf(),
      optax.adam(1e-3),
      step_size=0.1,
      axis_name=parallel.AXIS,
    ),
    mesh,
  )
  key = jax.random.key(0)
  batch = jax.random.uniform(key, (_BATCH, 784))
  state = rule.init(key, rbm.init_from_data(key, batch), batch)
  key, state = parallel.spread(
    (key, state), (parallel.same(mesh), parallel.shardings(rule, state, mesh))
  )
  batch = parallel.spread(batch, parallel.by_rows(mesh))
  return _measured(count, rule.update, key, state, batch)


def _measured(count: int, fn: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
  compiled = jax.jit(fn).lower(*arguments).compile()
  memory = compiled.memory_analysis()
  held = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
  )
  times = timing.interleaved(
    {"call": lambda: compiled(*arguments)}, repeats=flags.FLAGS.repeats
  )
  return {
    "devices": count,
    "sent_bytes": sent_bytes(compiled.as_text(), count),
    "held_bytes": held,
    "seconds": times["call"]._asdict(),
  }


def sent_bytes(program: str, num_devices: int) -> float:
  """The bytes that a device sends in a compiled program, over links of a ring.

  Of P devices an all-gather and a reduce-scatter send (P − 1)/P of the whole, an
  all-reduce twice that, and a permute what it is given. A loop counts as often as it is
  known to run, or once; of a condition's branches the one that sends most counts.

  Args:
    program: its text in XLA's language.
    num_devices: P.
  """
  computations = dict(_computations(program))
  share = (num_devices - 1) / num_devices
  factors = {
    "all-gather": share,
    "reduce-scatter": num_devices - 1,  # of what it leaves
    "all-reduce": 2 * share,
    "collective-permute": 1.0,
    "all-to-all": share,
  }

  @functools.cache
  def of(name: str) -> float:
    total = 0.0
    for line in computations[name]:
      called = re.search(r"= (.*?) ([a-z\-]+)\(", line)
      if called is None:
        continue
      shape, operation = called.groups()
      inner = [n for n in re.findall(r"%([\w.\-]+)", line) if n in computations]
      if operation in factors:
        total += factors[operation] * _size(shape)
      elif operation == "while":
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        total += (int(trips[1]) if trips else 1) * sum(map(of, inner))
      elif operation == "conditional":
        total += max(map(of, inner), default=0.0)
      else:
        total += sum(map(of, inner))
    return total

  return of("ENTRY")


def _computations(program: str) -> Iterator[tuple[str, list[str]]]:
  """The name and the lines of every computation; the one that begins is ENTRY."""
  name, lines = None, []
  for line in program.splitlines():
    opened = re.match(r"(ENTRY )?%([\w.\-]+) .*\{$", line)
    if opened:
      name, lines = "ENTRY" if opened[1] else opened[2], []
    elif line.startswith("}") and name is not None:
      yield name, lines
      name = None
    else:
      lines.append(line)


def _size(shape: str) -> int:
  """The bytes of a shape, or of a tuple of them."""
  return sum(
    _BYTES[kind] * math.prod(int(n) for n in sizes.split(",") if n)
    for kind, sizes in re.findall(r"(\w+)\[([\d,]*)\]", shape)
  )


def ring_bytes(devices: int, n: int, d: int) -> float:
  """What the ring of an RBF kernel sends by rule: 12 (d + 1) bytes a point and round.

  The point and its norm, its column of the product, and what is owed to it; the last
  round of an even number of devices owes nothing.
  """
  rounds = devices // 2
  if not rounds:
    return 0.0
  owed = rounds + 1 if devices % 2 else rounds
  return 4.0 * (d + 1) * n / devices * (2 * rounds + owed)


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json."""
  lines = []
  for row in summary["rows"]:
    ofone = next(
      r
      for r in summary["rows"]
      if r["devices"] == 1
      and (r["what"] == "SteinCD") == (row["what"] == "SteinCD")
      and r["scaling"] == row["scaling"]
    )
    pairs = (row["n"] / ofone["n"]) ** 2
    by_rule = "—"
    if row["what"] == "ring":
      by_rule = f"{ring_bytes(row['devices'], row['n'], summary['d']) / 1e6:.3g}"
    what = {"ring": "φ, ring", "all_gather": "φ, gathered"}.get(row["what"], "SteinCD")
    lines.append(
      [
        what,
        row["scaling"],
        str(row["devices"]),
        str(row["n"]),
        f"{row['sent_bytes'] / 1e6:.3g}",
        by_rule,
        f"{row['held_bytes'] / 1e6:.3g}",
        f"{row['seconds']['median'] / ofone['seconds']['median'] / pairs:.2f}",
      ]
    )
  header = [
    "",
    "scaling",
    "devices",
    "n",
    "MB sent by each",
    "by rule",
    "MB held by each",
    "time a pair ÷ one device's",
  ]
  return rbm_summary.markdown_table(header, lines)


def _define_flags() -> None:
  flags.DEFINE_list("devices", ["1", "2", "4", "8"], "Numbers of devices.")
  flags.DEFINE_integer("strong", 8192, "Particles in all, strong scaling.")
  flags.DEFINE_integer("weak", 1024, "Particles on each device, weak scaling.")
  flags.DEFINE_integer("d", 64, "Numbers in a particle.", lower_bound=1)
  flags.DEFINE_integer("repeats", 5, "Times of every function.", lower_bound=1)
  flags.DEFINE_integer("cores", 1, "CPU cores to use; 0 for all.", lower_bound=0)
  common.define_run_flags("runs/benchmarks/devices")


if __name__ == "__main__":
  _define_flags()
  app.run(main)
