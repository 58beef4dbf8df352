"""Sets up the devices and the processes that the flags name."""

import dataclasses
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from experiments.shared import settings
from experiments.shared.settings import setting
from stein_jax import parallel

_S = TypeVar("_S")


@dataclasses.dataclass(frozen=True)
class Devices(settings.Settings):
  """The number of devices, and how several processes find one another."""

  num_devices: int | None = setting(
    None,
    "Shard batches and particles over this many devices, counted over all processes; "
    "a CPU is divided into this many. By default one device, or with several processes "
    "all of them.",
    at_least=1,
    may_differ=True,
  )
  coordinator_address: str | None = setting(
    None,
    "HOST:PORT of the first of several processes. All of them are started with the "
    "same flags, except for --process_id.",
    recorded=False,
  )
  num_processes: int | None = setting(
    None, "The number of processes.", at_least=1, recorded=False
  )
  process_id: int | None = setting(
    None, "The number of this process, from 0.", at_least=0, recorded=False
  )
  cluster: bool = setting(
    False,
    "Take the three flags above from Slurm, Open MPI or the TPU slice.",
    recorded=False,
  )


def are_given(own: Devices) -> bool:
  """Whether any of these settings is not its default."""
  return any(getattr(own, name) for name in settings.names(Devices))


def join(own: Devices) -> Mesh | None:
  """The devices that the flags ask for; None: the one that JAX chooses.

  It must be called before JAX does anything, since it joins the other processes.
  """
  processes = (own.coordinator_address, own.num_processes, own.process_id)
  several = own.cluster or any(value is not None for value in processes)
  if several and not own.cluster and None in processes:
    settings.wrong_usage(
      "--coordinator_address, --num_processes and --process_id go together: several "
      "processes need all three, or --cluster."
    )
  if None not in processes and own.process_id >= own.num_processes:
    settings.wrong_usage(
      f"--process_id={own.process_id} must be below --num_processes="
      f"{own.num_processes}: they count from 0."
    )
  if not several and own.num_devices is None:
    return None
  if own.num_devices is not None and not own.cluster:
    _divide_cpu(own.num_devices, own.num_processes or 1)
  if several:
    _join_processes(own)
  try:
    return parallel.make_mesh(own.num_devices)
  except ValueError as error:
    settings.wrong_usage(f"--{error}")


def _divide_cpu(num_devices: int, num_processes: int) -> None:
  """Makes this process's share of the devices from its CPU, unless XLA_FLAGS does."""
  if num_devices % num_processes:
    settings.wrong_usage(
      f"--num_devices={num_devices} cannot be shared by --num_processes="
      f"{num_processes}: each process has the same number of devices."
    )
  if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", num_devices // num_processes)


def _join_processes(own: Devices) -> None:
  # Without this JAX takes SIGTERM for a warning, and `kill` ends nothing.
  jax.config.update("jax_enable_preemption_service", False)
  told = f"{own.num_processes} at {own.coordinator_address}."
  told = "as the cluster says." if own.cluster else told
  print(f"Waiting for all processes, up to 2 minutes: {told}", file=sys.stderr)
  try:
    jax.distributed.initialize(
      own.coordinator_address,
      own.num_processes,
      own.process_id,
      initialization_timeout=120,
      heartbeat_timeout_seconds=20,
      # After the last step the first process may compute scores for hours.
      shutdown_timeout_seconds=24 * 3600,
    )
  except (RuntimeError, ValueError) as error:
    sys.exit(f"The processes did not come together: {error}")


def check_divides(mesh: Mesh | None, batch_size: int) -> None:
  """Ends the program unless a batch can be divided evenly among the devices."""
  if mesh is not None:
    try:
      parallel.check_divides("--batch_size", batch_size, mesh)
    except ValueError as error:
      settings.wrong_usage(str(error))


# What collectives and the coordination service say when a process is gone.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "unhealthy")


def ending_together(main: Callable[[_S], None]) -> Callable[[_S], None]:
  """`main`, after whose failure this process does not wait for the others.

  At an ordinary exit JAX would wait for the others, and they would wait for it. Instead
  they find it gone, and end, too.
  """

  def run(own: _S) -> None:
    try:
      main(own)
    except BaseException as error:
      if not jax.distributed.is_initialized():
        raise
      code: Any = 1
      if isinstance(error, SystemExit):
        code = error.code
        if isinstance(code, str):
          print(code, file=sys.stderr)
        code = code if isinstance(code, int) else int(code is not None)
      else:
        traceback.print_exc()
      if any(word in str(error) for word in _LOST):
        print(
          "Another process was probably lost, so this one cannot continue. When all "
          "have ended, start all of them again with the same flags: they continue from "
          "the last checkpoint.",
          file=sys.stderr,
        )
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)

  return run
