"""What the command lines of several experiments share: flags, data, tables, summaries.

Flags are defined by calls and not at import, so that tests may import every experiment
into one process.
"""

import json
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import optax
from absl import flags, logging
from jax.sharding import Mesh

from experiments import prepare_data
from experiments.pictures import datasets
from experiments.rbm import methods as rbm_methods
from experiments.shared import data, workdirs
from stein_jax import Algorithm, parallel
from stein_jax.energies import GaussianBernoulliRBM

# Flags count as those of the binary that calls, in its --help and in flags.txt.
flags.disclaim_key_flags()

# Flags that say nothing about a run; and those that may change when it goes on.
_PROCESSES = ("coordinator_address", "num_processes", "process_id", "cluster")
DEVICES = ("num_devices", *_PROCESSES)
OWN = frozenset(("overwrite", "from_summary", *_PROCESSES))
ELSEWHERE = frozenset(("workdir", "data_dir", "cache_dir", "progress", "num_devices"))


def define_run_flags(workdir: str, *, from_summary: bool = True) -> None:
  """--workdir, --overwrite, --progress and, unless without, --from_summary."""
  flags.DEFINE_string("workdir", workdir, "Where results go.")
  flags.DEFINE_bool(
    "overwrite", False, "Delete what an earlier run left in --workdir and start anew."
  )
  flags.DEFINE_bool("progress", True, "Show progress bars.")
  if from_summary:
    flags.DEFINE_string(
      "from_summary", None, "Print the table of this summary.json in Markdown and exit."
    )


def define_device_flags() -> None:
  """--num_devices, and the flags that bring several processes together."""
  flags.DEFINE_integer(
    "num_devices",
    None,
    "Spread batches and particles over so many devices, those of all processes "
    "together; a CPU is made into so many. By default one device, or of several "
    "processes all.",
    lower_bound=1,
  )
  flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of the first of several processes, all of which are started with the "
    "same flags, but for --process_id.",
  )
  flags.DEFINE_integer("num_processes", None, "How many there are.", lower_bound=1)
  flags.DEFINE_integer("process_id", None, "This one, from 0.", lower_bound=0)
  flags.DEFINE_bool(
    "cluster",
    False,
    "Take the three flags above from Slurm, Open MPI or the TPU slice.",
  )


def join_devices() -> Mesh | None:
  """The devices that the flags ask for; None: the one that JAX takes by itself.

  Called before JAX does anything, since it joins the other processes.
  """
  values = flags.FLAGS
  given = [values.coordinator_address, values.num_processes, values.process_id]
  several = values.cluster or any(value is not None for value in given)
  if several and not values.cluster and None in given:
    sys.exit(
      "--coordinator_address, --num_processes and --process_id go together: several "
      "processes need all three, or --cluster."
    )
  if None not in given and values.process_id >= values.num_processes:
    sys.exit(
      f"--process_id={values.process_id} must be below --num_processes="
      f"{values.num_processes}: they count from 0."
    )
  if not several and values.num_devices is None:
    return None
  if values.num_devices is not None and not values.cluster:
    _divide_cpu(values.num_devices, values.num_processes or 1)
  if several:
    joined = {"initialization_timeout": 120, "heartbeat_timeout_seconds": 20}
    # The first process may judge and draw for hours after the last step.
    joined["shutdown_timeout_seconds"] = 24 * 3600
    # Else SIGTERM would be taken for a warning, and `kill` would end nothing.
    jax.config.update("jax_enable_preemption_service", False)
    print(f"Waiting for all processes, up to 2 minutes: {_asked()}", file=sys.stderr)
    try:
      jax.distributed.initialize(*given, **joined)
    except (RuntimeError, ValueError) as error:
      sys.exit(f"The processes did not come together: {error}")
  try:
    return parallel.make_mesh(values.num_devices)
  except ValueError as error:
    sys.exit(f"--{error}")


def _asked() -> str:
  values = flags.FLAGS
  if values.cluster:
    return "as the cluster says."
  return f"{values.num_processes} at {values.coordinator_address}."


def ending_together(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """`main`, after whose failure this process does not wait for the others.

  At an ordinary exit JAX would, and they for it; so they find it gone and end, too.
  """

  def run(argv: list[str]) -> None:
    try:
      main(argv)
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
          "This process cannot go on with the others, of which one was probably lost. "
          "Once all have ended, start all of them again with the same flags: they go "
          "on at their last checkpoint.",
          file=sys.stderr,
        )
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)

  return run


# What collectives and the coordination service say when a process is gone.
_LOST = ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat", "unhealthy")


def _divide_cpu(num_devices: int, num_processes: int) -> None:
  """Makes this process's share of devices of its CPU, unless XLA_FLAGS does so."""
  if num_devices % num_processes:
    sys.exit(
      f"--num_devices={num_devices} cannot be shared by --num_processes="
      f"{num_processes}: each has as many."
    )
  if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", num_devices // num_processes)


def check_divides(mesh: Mesh | None, batch_size: int) -> None:
  """Ends the program unless a batch can be spread evenly over the devices."""
  if mesh is not None:
    try:
      parallel.check_divides("--batch_size", batch_size, mesh)
    except ValueError as error:
      sys.exit(str(error))


def define_data_flags() -> None:
  """--dataset, --data_dir and --cache_dir."""
  flags.DEFINE_string(
    "dataset",
    data.EMBEDDED,
    "mnist5k (5 000 real digits, embedded in a PyPI package), or a tfds image data "
    "set: mnist, fashion_mnist, ...",
  )
  define_place_flags()


def define_place_flags() -> None:
  """--data_dir and --cache_dir."""
  flags.DEFINE_string(
    "data_dir", None, "Where tfds data sets are; by default $TFDS_DATA_DIR."
  )
  flags.DEFINE_string(
    "cache_dir",
    None,
    "Where decoded data and classifiers are kept; by default ~/.cache/stein_jax.",
  )


def refuse_arguments(argv: Sequence[str]) -> None:
  """Ends the program at a word that is not a flag."""
  if len(argv) > 1:
    sys.exit(f"unexpected arguments {list(argv[1:])}; flags begin with --.")


def printed_from_summary(
  argv: Sequence[str], markdown: Callable[[dict[str, Any]], str]
) -> bool:
  """Prints the table of --from_summary; whether there was one. Refuses arguments."""
  refuse_arguments(argv)
  path = flags.FLAGS.from_summary
  if path:
    print(markdown(read_summary(path)))
  return bool(path)


def hush_checkpoints() -> None:
  """Silences Orbax, a dozen lines a checkpoint, unless --verbosity is given."""
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)


def positive(*names: str) -> None:
  """Ends the program unless these flags are finite and above 0."""
  for name in names:
    if not 0 < flags.FLAGS[name].value < math.inf:
      sys.exit(f"--{name} must be above 0, got {flags.FLAGS[name].value}.")


def numbers(
  name: str,
  texts: Sequence[str],
  kind: type = float,
  *,
  at_least: int | None = None,
  between: tuple[float, float] | None = None,
) -> list[Any]:
  """A list flag as numbers without repetition; a message ends the program.

  Args:
    name: the flag's.
    texts: its value.
    kind: float, for finite numbers above 0 or `between`, or int.
    at_least: the least integer.
    between: the least and the greatest number.
  """
  wanted = "numbers above 0" if kind is float else f"integers of at least {at_least}"
  if between is not None:
    wanted = f"numbers from {between[0]:g} to {between[1]:g}"
  message = f"--{name} must be {wanted}, separated by commas; got {','.join(texts)!r}."
  try:
    values = [kind(text) for text in texts]
  except ValueError:
    sys.exit(message)
  if between is not None:
    fits = [between[0] <= v <= between[1] for v in values]
  elif kind is float:
    fits = [0 < v < math.inf for v in values]
  else:
    fits = [at_least <= v < 2**32 for v in values]  # seeds are 32-bit numbers
  if not values or not all(fits):
    sys.exit(message)
  return list(dict.fromkeys(values))


def chosen(name: str, texts: Sequence[str], known: Sequence[str]) -> list[str]:
  """A list flag of names without repetition; a message ends the program."""
  if not texts or set(texts) - set(known):
    sys.exit(f"--{name} must name some of {', '.join(known)}; got {','.join(texts)!r}.")
  return list(dict.fromkeys(texts))


def load_data(batch_size: int, **options: Any) -> data.Dataset:
  """The data that the flags ask for, prepared first where that can be done.

  Args:
    batch_size: which must not be more than the training set holds.
    **options: as in `data.load`.
  """
  name = flags.FLAGS.dataset
  places = {"data_dir": flags.FLAGS.data_dir, "cache_dir": flags.FLAGS.cache_dir}
  try:
    with parallel.first_process_first("data"):
      dataset = prepare_data.load_or_prepare(name, **places, **options)
  except (data.DatasetNotPrepared, data.UnknownDataset, ImportError) as error:
    sys.exit(str(error))
  except ValueError as error:  # pictures of several shapes, or without a test split
    sys.exit(f"--dataset={name}: {error}")
  if batch_size > len(dataset.train):
    sys.exit(
      f"--batch_size={batch_size} is more than the {len(dataset.train)} training "
      f"points of {dataset.name}."
    )
  print(f"Data: {dataset.source}", file=sys.stderr)
  return dataset


def load_training_data(batch_size: int) -> tuple[str, jax.Array]:
  """The name of the data that the flags ask for, and its training set [n, d], uint8."""
  dataset = load_data(batch_size)
  return dataset.name, jax.numpy.asarray(dataset.train.reshape(len(dataset.train), -1))


def load_pictures(name: str, *, size: int | None) -> data.Dataset:
  """`datasets.load_images` from where the flags say; a message ends the program."""
  values = flags.FLAGS
  try:
    with parallel.first_process_first("pictures"):
      return datasets.load_images(
        name, size=size, data_dir=values.data_dir, cache_dir=values.cache_dir
      )
  except (OSError, ImportError, ValueError) as error:
    sys.exit(f"Pictures of {name}: {error}")


def algorithms(
  methods: Sequence[str],
  rbm: GaussianBernoulliRBM,
  optimizer: optax.GradientTransformation,
  **settings: Any,
) -> dict[str, Algorithm]:
  """label -> the learning rule, with the default settings of `experiments.mnist_rbm`.

  Args:
    methods: names out of `rbm_methods.METHODS`.
    rbm: the model.
    optimizer: an optax optimizer.
    **settings: fields of `rbm_methods.Settings` other than the defaults.
  """
  chosen_settings = rbm_methods.Settings(optimizer, **settings)
  runs = rbm_methods.runs(methods, rbm, chosen_settings)
  return {run.label: run.build(chosen_settings) for run in runs}


def claim_workdir(*, before_work: bool, may_grow: Set[str] = frozenset()) -> Path:
  """--workdir; ends the program where it holds a run with other settings.

  Args:
    before_work: only look, before data is loaded; otherwise make the folder and write
      flags.txt.
    may_grow: as in `workdirs.check`.
  """
  workdir = Path(flags.FLAGS.workdir)
  overwrite = flags.FLAGS.overwrite
  values = workdirs.own_flags("workdir", leave_out=OWN)
  if before_work:
    workdirs.check(
      workdir,
      values,
      may_differ=ELSEWHERE,
      may_grow=may_grow,
      overwrite=overwrite,
    )
  else:
    workdirs.prepare(workdir, values, overwrite=overwrite)
  return workdir


def write_summary(
  workdir: Path, module: str, results: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes summary.json: the command, the flags, and what was measured."""
  summary = {
    "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
    "flags": workdirs.own_flags("workdir", leave_out=OWN),
    **results,
    "environment": {
      "jax": jax.__version__,
      "device": jax.devices()[0].device_kind,
    },
  }
  (workdir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
  return summary


def read_summary(path: str) -> dict[str, Any]:
  """A summary.json; a message ends the program where it is none."""
  try:
    return json.loads(Path(path).read_text())
  except (OSError, ValueError) as error:
    sys.exit(f"--from_summary={path}: {error}")
