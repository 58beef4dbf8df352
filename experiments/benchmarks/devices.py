"""Many devices: how much each one sends, holds and computes, and how long it takes.

  python -m experiments.benchmarks.devices

divides the CPU into devices. It compiles the SVGD direction for 1, 2, 4 and 8 of them,
with all particles gathered and in a ring, for the same number of particles in all
(strong scaling) and for the same number on each device (weak scaling), and a step of
SteinCD on the RBM. Bytes and memory are those of one device, from the compiled program.
Times are per pair of particles, of all devices on the same cores: if they are equal to
one device's time, the devices together do no additional work. In --workdir it writes
summary.json.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import jax
import optax
from jax.sharding import PartitionSpec

from experiments.benchmarks import timing
from experiments.shared import settings, summaries, tables, workdirs
from experiments.shared.settings import setting
from stein_jax import energies, kernels, parallel, stein_cd, svgd_direction

_BATCH = 1024

_BYTES = {"pred": 1, "u8": 1, "s32": 4, "u32": 4, "f32": 4, "f64": 8, "s64": 8}


@dataclasses.dataclass(frozen=True)
class Settings(timing.Repeated):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.benchmarks.devices"

  workdir: str = settings.like(
    workdirs.Run, "workdir", default="runs/benchmarks/devices"
  )
  devices: tuple[int, ...] = setting((1, 2, 4, 8), "Numbers of devices.", at_least=1)
  strong: int = setting(8192, "Particles in all, strong scaling.", at_least=1)
  weak: int = setting(1024, "Particles on each device, weak scaling.", at_least=1)
  d: int = setting(64, "Numbers in a particle.", at_least=1)


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  for count in own.devices:
    for name, number in (("--strong", own.strong), ("SteinCD's batch", _BATCH)):
      if number % count:
        settings.wrong_usage(f"{name}, {number}, must divide by {count} devices.")
  counts = sorted({1, *own.devices})  # all are compared with one
  timing.use_cores(own.cores)
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", max(counts))
  workdirs.check(own)
  rows = []
  for scaling in ("strong", "weak"):
    for count in counts:
      n = own.strong if scaling == "strong" else own.weak * count
      for exchange in ("all_gather", "ring") if count > 1 else ("ring",):
        found = of_direction(count, n, exchange, own)
        rows.append({"what": exchange, "scaling": scaling, "n": n} | found)
  for count in counts:
    rows.append(
      {"what": "SteinCD", "scaling": "strong", "n": _BATCH}
      | of_step(count, own.repeats)
    )
  workdirs.prepare(own)
  summary = summaries.write(own, {"d": own.d, "rows": rows})
  print(markdown(summary))


def of_direction(count: int, n: int, exchange: str, own: Settings) -> dict[str, Any]:
  """The costs of the direction of n particles for each of `count` devices."""
  mesh = parallel.make_mesh(count)
  x, s = jax.random.normal(jax.random.key(0), (2, n, own.d))
  kernel = kernels.rbf(2.0 * own.d)
  direction = functools.partial(
    svgd_direction, kernel=kernel, axis_name=parallel.AXIS, exchange=exchange
  )
  rows = PartitionSpec(parallel.AXIS)
  body = jax.shard_map(direction, mesh=mesh, in_specs=(rows, rows), out_specs=rows)
  arguments = parallel.spread((x, s), parallel.by_rows(mesh))
  return _measured(count, own.repeats, body, *arguments)


def of_step(count: int, repeats: int) -> dict[str, Any]:
  """The costs of a SteinCD step with 1 024 points of 784 numbers, 10 hidden units."""
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
  return _measured(count, repeats, rule.update, key, state, batch)


def _measured(
  count: int, repeats: int, fn: Callable[..., Any], *arguments: Any
) -> dict[str, Any]:
  compiled = jax.jit(fn).lower(*arguments).compile()
  memory = compiled.memory_analysis()
  held = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
  )
  times = timing.interleaved({"call": lambda: compiled(*arguments)}, repeats=repeats)
  return {
    "devices": count,
    "sent_bytes": sent_bytes(compiled.as_text(), count),
    "held_bytes": held,
    "seconds": times["call"]._asdict(),
  }


def sent_bytes(program: str, num_devices: int) -> float:
  """The bytes that a device sends in a compiled program, if the links form a ring.

  With P devices an all-gather and a reduce-scatter send (P − 1)/P of the whole array,
  an all-reduce twice that, and a permute its operand. The body of a loop is counted as
  often as it runs, or once if that is unknown; of a condition, the branch that sends
  most is counted.

  Args:
    program: the program as HLO text.
    num_devices: P.
  """
  computations = dict(_computations(program))
  share = (num_devices - 1) / num_devices
  factors = {
    "all-gather": share,
    "reduce-scatter": num_devices - 1,  # of the result
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
  """The name and the lines of every computation; the program itself is called ENTRY."""
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
  """The bytes that the ring sends for an RBF kernel: 12 (d + 1) a point and round.

  They are the point and its norm, its column of the product, and its partial sums. In
  the last round of an even number of devices no partial sums are sent.
  """
  rounds = devices // 2
  if not rounds:
    return 0.0
  partial_sums = rounds + 1 if devices % 2 else rounds
  return 4.0 * (d + 1) * n / devices * (2 * rounds + partial_sums)


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json."""
  lines = []
  for row in summary["rows"]:
    single = next(
      r
      for r in summary["rows"]
      if r["devices"] == 1
      and (r["what"] == "SteinCD") == (row["what"] == "SteinCD")
      and r["scaling"] == row["scaling"]
    )
    pairs = (row["n"] / single["n"]) ** 2
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
        f"{row['seconds']['median'] / single['seconds']['median'] / pairs:.2f}",
      ]
    )
  header = [
    "",
    "scaling",
    "devices",
    "n",
    "MB sent by each",
    "by formula",
    "MB held by each",
    "time per pair ÷ one device",
  ]
  return tables.markdown(header, lines)


if __name__ == "__main__":
  settings.run(main, Settings)
