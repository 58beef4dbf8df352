"""The settings of a command: each is written once, as a field of a dataclass.

  @dataclasses.dataclass(frozen=True)
  class Training(Settings):
    learning_rate: float = setting(3e-4, "The optimizer's learning rate.", above=0)
    steps: int = setting(10_000, "Training steps.", at_least=1, may_grow=True)
    method: tuple[str, ...] = setting(("cd",), "Learning rules.", choices=RULES)

  def main(own: Training) -> None: ...

  if __name__ == "__main__":
    run(main, Training)

A field defines a flag of the same name (`define`), how the flag's text is read and
checked (whenever an instance is made), and a line of flags.txt (`record`). Its
annotation is float, int, bool or str, a tuple of one of them (a comma-separated list),
or one of these with `| None`. Classes of settings can be combined by inheritance.
"""

import dataclasses
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn, TypeVar

import jax
from absl import app, flags

from experiments.shared import fields
from stein_jax.training import AnotherRun, TrainingDiverged, WorkdirInUse

# A flag belongs to the command that is started, in its --help.
flags.disclaim_key_flags()

MAX_SEED = 2**32 - 1
"""The largest seed: seeds are 32-bit numbers."""

_S = TypeVar("_S", bound="Settings")


def setting(
  default: Any,
  help: str,
  *,
  above: float | None = None,
  at_least: float | None = None,
  below: float | None = None,
  at_most: float | None = None,
  choices: Sequence[str] | None = None,
  required: bool = False,
  keep_repetitions: bool = False,
  recorded: bool = True,
  may_differ: bool = False,
  may_grow: bool = False,
  tags: Sequence[str] = (),
) -> Any:
  """A field of a `Settings` class.

  Numbers must always be finite.

  Args:
    default: the value without the flag.
    help: the flag's text in --help.
    above, at_least, below, at_most: limits of a number, or of all numbers of a tuple.
    choices: the strings that are allowed; a tuple must hold at least one of them.
    required: the flag must be given; the default is None.
    keep_repetitions: whether a tuple may hold a value twice; repetitions are dropped
      otherwise.
    recorded: False: the setting says nothing about a run, and flags.txt leaves it out.
    may_differ: whether the setting may change when a run is continued.
    may_grow: whether a run may be continued with a larger number, or with more entries
      of a tuple.
    tags: words by which `names` finds the setting.
  """
  rules = fields.Rules(
    help=help,
    above=above,
    at_least=at_least,
    below=below,
    at_most=at_most,
    choices=None if choices is None else tuple(choices),
    required=required,
    keep_repetitions=keep_repetitions,
    recorded=recorded,
    may_differ=may_differ,
    may_grow=may_grow,
    tags=tuple(tags),
  )
  return dataclasses.field(default=default, metadata={fields.KEY: rules})


def like(base: type["Settings"], name: str, **changes: Any) -> Any:
  """The field `name` of another class, with another default or other rules.

  Args:
    base: the class.
    name: the field.
    **changes: arguments of `setting`.
  """
  field = base.__dataclass_fields__[name]
  rules = dataclasses.asdict(field.metadata[fields.KEY])
  return setting(**({"default": field.default} | rules | changes))


@dataclasses.dataclass(frozen=True)
class Settings:
  """The base class: it converts and checks every field.

  A value may be given as the flag's text. Classes with rules about several fields
  extend `__post_init__`.

  Raises:
    ValueError: a value that its rules do not allow; the message names the flag.
  """

  command: ClassVar[str] = ""
  """The module of the command that has these settings."""

  def __post_init__(self) -> None:
    for field in fields.fields_of(type(self)):
      value = fields.checked(field, getattr(self, field.name))
      object.__setattr__(self, field.name, value)


def names(cls: type[Settings], *, tag: str | None = None) -> tuple[str, ...]:
  """The names of all settings of a class, or of those that have a tag."""
  return tuple(
    f.name for f in fields.fields_of(cls) if tag is None or tag in f.rules.tags
  )


# --- the command line -------------------------------------------------------------


INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C, 130."""

WRONG_USAGE = 2
"""The exit code after flags that are not allowed. After a failure it is 1."""


class WrongUsage(SystemExit):
  """The end of a program that was started with wrong flags."""

  def __init__(self, message: str):
    super().__init__(message)
    self.code = WRONG_USAGE


def wrong_usage(message: str) -> NoReturn:
  """Ends the program with a message and the exit code 2."""
  print(message, file=sys.stderr)
  raise WrongUsage(message)


def run(main: Callable[[_S], None], cls: type[_S]) -> None:
  """Starts a command: reads its flags, and calls `main` with their values.

  Ctrl-C, a file or folder that cannot be used, a folder of another run, a training that
  diverges and a platform that JAX does not find end the program with a message, without
  a traceback.
  """
  define(cls)

  def started(argv: Sequence[str]) -> None:
    own = of_flags(cls, argv)
    try:
      main(own)
    except KeyboardInterrupt:
      print("\ninterrupted; the same command continues", file=sys.stderr)
      sys.exit(INTERRUPTED)
    except (AnotherRun, TrainingDiverged, WorkdirInUse) as error:
      sys.exit(str(error))
    except OSError as error:
      named = f"{error.filename}: " if error.filename else ""
      sys.exit(f"{named}{error.strerror or error}")
    except RuntimeError as error:
      if "Unable to initialize backend" not in str(error):
        raise
      sys.exit(_no_platform(error))

  app.run(started, flags_parser=_parsed)


def _parsed(argv: Sequence[str]) -> list[str]:
  """Reads the flags; returns the program's name and the other arguments."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, UnicodeDecodeError) as error:  # a flagfile may hold anything
    wrong_usage(f"{error} (--help lists the flags)")


def _no_platform(error: RuntimeError) -> str:
  """What to do where JAX does not find the platform that was asked for."""
  from jax.extend.backend import backends

  asked = jax.config.jax_platforms
  jax.config.update("jax_platforms", None)
  found = ", ".join(sorted(backends()))
  reason = str(error).split(" (set JAX_PLATFORMS")[0]
  return (
    f"JAX_PLATFORMS={asked}: {reason}. JAX finds {found} here: set JAX_PLATFORMS to "
    "one of these, or unset it."
  )


def define(cls: type[Settings], flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines a flag for every setting of the class."""
  for field in fields.fields_of(cls):
    help, default = field.rules.help, field.default
    if field.kind is bool:
      flags.DEFINE_bool(field.name, default, help, flag_values=flag_values)
    else:
      flags.DEFINE(
        _Text(fields.wanted(field)),
        field.name,
        fields.text_or_none(default),
        help,
        flag_values=flag_values,
        serializer=flags.ArgumentSerializer(),
      )


class _Text(flags.ArgumentParser):
  """Leaves a flag's text as it is: `Settings` converts and checks it."""

  def __init__(self, syntactic_help: str):
    self.syntactic_help = syntactic_help


def of_flags(
  cls: type[_S],
  argv: Sequence[str] = (),
  flag_values: flags.FlagValues = flags.FLAGS,
) -> _S:
  """The values of the flags; the program ends with a message if one is not allowed.

  Args:
    cls: the class whose flags were defined.
    argv: the program's name and the arguments that are not flags, which are an error.
    flag_values: where the flags are.
  """
  if len(argv) > 1:
    wrong_usage(f"unexpected arguments {list(argv[1:])}; flags begin with --.")
  try:
    return cls(**{name: flag_values[name].value for name in names(cls)})
  except ValueError as error:
    wrong_usage(str(error))


# --- texts ------------------------------------------------------------------------


def record(own: Settings, of: type[Settings] | None = None) -> dict[str, str]:
  """The recorded settings as texts of flags, except those that are None.

  Args:
    own: the settings.
    of: only the settings of this class; by default of the instance's own.
  """
  values = {
    field.name: getattr(own, field.name)
    for field in fields.fields_of(of or type(own))
    if field.rules.recorded
  }
  return {
    name: fields.text(value) for name, value in values.items() if value is not None
  }


def differences(
  own: Settings, before: dict[str, str], *, fixed: Sequence[str] = ()
) -> list[str]:
  """What keeps a recorded run from being continued with other settings, as texts.

  A setting that the record does not hold had its default: it may be newer than the
  record.

  Args:
    own: the settings now.
    before: the record of the earlier run.
    fixed: settings that must not grow, although their rules allow it.
  """
  recorded = {f.name: f for f in fields.fields_of(type(own)) if f.rules.recorded}
  found = []
  # Early records held some of the settings that are not recorded now.
  unrecorded = set(names(type(own))) - recorded.keys()
  for name in sorted(recorded.keys() | before.keys() - unrecorded):
    if name not in recorded:
      found.append(f"--{name}: {before[name]} before, None now")
      continue
    field, now = recorded[name], getattr(own, name)
    then = before.get(name, field.default)
    try:
      then = fields.checked(field, then)
      grown = name not in fixed and _has_grown(field, then, now)
    except ValueError:  # the rules were different then
      grown = False
    if then != now and not field.rules.may_differ and not grown:
      told = before.get(name, fields.text_or_none(then))
      found.append(f"--{name}: {told} before, {fields.text_or_none(now)} now")
  return found


def _has_grown(field: fields.Field, before: Any, now: Any) -> bool:
  if not field.rules.may_grow or before is None or now is None:
    return False
  return set(before) <= set(now) if field.several else now >= before
