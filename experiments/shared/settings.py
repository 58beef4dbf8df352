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
import functools
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, TypeVar

from absl import app, flags

# A flag belongs to the command that is started, in its --help.
flags.disclaim_key_flags()

MAX_SEED = 2**32 - 1
"""The largest seed: seeds are 32-bit numbers."""

_KEY = "setting"  # of the metadata of a dataclass field

_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}

_S = TypeVar("_S", bound="Settings")


@dataclasses.dataclass(frozen=True)
class _Rules:
  """What `setting` says about a field, apart from its default."""

  help: str
  above: float | None
  at_least: float | None
  below: float | None
  at_most: float | None
  choices: tuple[str, ...] | None
  required: bool
  keep_repetitions: bool
  recorded: bool
  may_differ: bool
  may_grow: bool
  tags: tuple[str, ...]


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
  rules = _Rules(
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
  return dataclasses.field(default=default, metadata={_KEY: rules})


def like(base: type["Settings"], name: str, **changes: Any) -> Any:
  """The field `name` of another class, with another default or other rules.

  Args:
    base: the class.
    name: the field.
    **changes: arguments of `setting`.
  """
  field = base.__dataclass_fields__[name]
  rules = dataclasses.asdict(field.metadata[_KEY])
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
    for field in _fields(type(self)):
      value = _checked(field, getattr(self, field.name))
      object.__setattr__(self, field.name, value)


class _Field(typing.NamedTuple):
  """A field, and what its annotation says."""

  name: str
  default: Any
  rules: _Rules
  kind: type  # of the value, or of the entries of a tuple
  several: bool  # whether it is a tuple
  optional: bool  # whether it may be None


@functools.cache
def _fields(cls: type[Settings]) -> tuple[_Field, ...]:
  hints = typing.get_type_hints(cls)
  return tuple(_field(field, hints[field.name]) for field in dataclasses.fields(cls))


def _field(field: dataclasses.Field, annotation: Any) -> _Field:
  options = [annotation]
  if isinstance(annotation, types.UnionType):
    options = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
  (kind,) = options
  optional = kind is not annotation
  several = typing.get_origin(kind) is tuple
  if several:
    kind = typing.get_args(kind)[0]
  rules = field.metadata[_KEY]
  return _Field(field.name, field.default, rules, kind, several, optional)


def names(cls: type[Settings], *, tag: str | None = None) -> tuple[str, ...]:
  """The names of all settings of a class, or of those that have a tag."""
  return tuple(f.name for f in _fields(cls) if tag is None or tag in f.rules.tags)


# --- the command line -------------------------------------------------------------


def run(main: Callable[[_S], None], cls: type[_S]) -> None:
  """Starts a command: reads its flags, and calls `main` with their values."""
  define(cls)
  app.run(lambda argv: main(of_flags(cls, argv)))


def define(cls: type[Settings], flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines a flag for every setting of the class."""
  for field in _fields(cls):
    help, default = field.rules.help, field.default
    if field.kind is bool:
      flags.DEFINE_bool(field.name, default, help, flag_values=flag_values)
    else:
      flags.DEFINE(
        _Text(_wanted(field)),
        field.name,
        _text_or_none(default),
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
    sys.exit(f"unexpected arguments {list(argv[1:])}; flags begin with --.")
  try:
    return cls(**{name: flag_values[name].value for name in names(cls)})
  except ValueError as error:
    sys.exit(str(error))


# --- texts ------------------------------------------------------------------------


def text(value: Any) -> str:
  """A value as a flag's text."""
  if isinstance(value, tuple):
    return ",".join(text(entry).removesuffix(".0") for entry in value)
  return str(value)


def _text_or_none(value: Any) -> str | None:
  return None if value is None else text(value)


def record(own: Settings, of: type[Settings] | None = None) -> dict[str, str]:
  """The recorded settings as texts of flags, except those that are None.

  Args:
    own: the settings.
    of: only the settings of this class; by default of the instance's own.
  """
  values = {
    field.name: getattr(own, field.name)
    for field in _fields(of or type(own))
    if field.rules.recorded
  }
  return {name: text(value) for name, value in values.items() if value is not None}


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
  fields = {f.name: f for f in _fields(type(own)) if f.rules.recorded}
  found = []
  for name in sorted(fields.keys() | before.keys()):
    if name not in fields:
      found.append(f"--{name}: {before[name]} before, None now")
      continue
    field, now = fields[name], getattr(own, name)
    then = before.get(name, field.default)
    try:
      then = _checked(field, then)
      grown = name not in fixed and _has_grown(field, then, now)
    except ValueError:  # the rules were different then
      grown = False
    if then != now and not field.rules.may_differ and not grown:
      told = before.get(name, _text_or_none(then))
      found.append(f"--{name}: {told} before, {_text_or_none(now)} now")
  return found


def _has_grown(field: _Field, before: Any, now: Any) -> bool:
  if not field.rules.may_grow or before is None or now is None:
    return False
  return set(before) <= set(now) if field.several else now >= before


# --- checks -----------------------------------------------------------------------


def _checked(field: _Field, value: Any) -> Any:
  """The value of a field, converted; ValueError where it is not allowed."""
  if value is None:
    if field.rules.required or not field.optional:
      raise ValueError(f"--{field.name} must be given.")
    return None
  if not field.several:
    fault, converted = _converted(field, value)
    if fault:
      separator = ";" if field.rules.choices else ","
      raise ValueError(f"--{field.name} must be {fault}{separator} got {value}.")
    return converted
  entries = _entries(value)
  pairs = [_converted(field, entry) for entry in entries]
  needs_entries = field.kind is not str or field.rules.choices is not None
  if any(fault for fault, _ in pairs) or (needs_entries and not pairs):
    verb = "name" if field.kind is str else "be"
    given = ",".join(map(str, entries))
    raise ValueError(f"--{field.name} must {verb} {_wanted(field)}; got {given!r}.")
  converted = tuple(entry for _, entry in pairs)
  return converted if field.rules.keep_repetitions else tuple(dict.fromkeys(converted))


def _entries(value: Any) -> list[Any]:
  if not isinstance(value, str):
    return list(value) if isinstance(value, Iterable) else [value]
  return [entry.strip() for entry in value.split(",")] if value.strip() else []


def _converted(field: _Field, value: Any) -> tuple[str | None, Any]:
  """What a single value must be, or None where it is that; and the value converted."""
  kind, rules, written = field.kind, field.rules, str(value)
  if kind is str:
    allowed = rules.choices is None or written in rules.choices
    return None if allowed else _wanted(field), written
  if kind is bool:
    found = _BOOLEANS.get(written.lower())
    return (None, found) if found is not None else ("true or false", None)
  try:
    number = kind(written)
  except ValueError:
    return _wanted(field), None
  if math.isinf(number):
    return f"finite and {_limits(rules)}".removesuffix(" and "), None
  if math.isnan(number):
    return _limits(rules) or "a number", None
  fits = (
    (rules.above is None or number > rules.above)
    and (rules.at_least is None or number >= rules.at_least)
    and (rules.below is None or number < rules.below)
    and (rules.at_most is None or number <= rules.at_most)
  )
  return None if fits else _limits(rules), number


def _limits(rules: _Rules) -> str:
  """The limits of a number in words: "above 0", "at least 1", "from 0 to 1"."""
  if rules.at_least is not None and rules.at_most is not None:
    return f"from {rules.at_least} to {rules.at_most}"
  limits = {
    "above": rules.above,
    "at least": rules.at_least,
    "below": rules.below,
    "at most": rules.at_most,
  }
  return " and ".join(f"{word} {x}" for word, x in limits.items() if x is not None)


def _wanted(field: _Field) -> str:
  """What a value must be, in words: "an integer of at least 1", "one of a, b"."""
  choices = field.rules.choices
  if field.kind is str and field.several:
    return f"some of {', '.join(choices)}" if choices else "separated by commas"
  if field.kind is str:
    return f"one of {', '.join(choices)}" if choices else ""
  noun = {int: ("an integer", "integers"), float: ("a number", "numbers")}
  limits = _limits(field.rules)
  limits = f" of {limits}" if limits.startswith("at ") else f" {limits}"
  wanted = (noun[field.kind][field.several] + limits).rstrip()
  return f"{wanted}, separated by commas" if field.several else wanted
