"""How a setting's text is read and checked, from the field of its dataclass."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterable
from typing import Any

KEY = "setting"
"""The key of `Rules` in the metadata of a dataclass field."""

_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


@dataclasses.dataclass(frozen=True)
class Rules:
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


class Field(typing.NamedTuple):
  """A field, and what its annotation says."""

  name: str
  default: Any
  rules: Rules
  kind: type  # of the value, or of the entries of a tuple
  several: bool  # whether it is a tuple
  optional: bool  # whether it may be None


@functools.cache
def fields_of(cls: type) -> tuple[Field, ...]:
  """The fields of a dataclass whose fields were all made by `setting`."""
  hints = typing.get_type_hints(cls)
  return tuple(_field(field, hints[field.name]) for field in dataclasses.fields(cls))


def _field(field: dataclasses.Field, annotation: Any) -> Field:
  options = [annotation]
  if isinstance(annotation, types.UnionType):
    options = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
  (kind,) = options
  optional = kind is not annotation
  several = typing.get_origin(kind) is tuple
  if several:
    kind = typing.get_args(kind)[0]
  rules = field.metadata[KEY]
  return Field(field.name, field.default, rules, kind, several, optional)


def text(value: Any) -> str:
  """A value as a flag's text."""
  if isinstance(value, tuple):
    return ",".join(map(_text_of_entry, value))
  return str(value)


def _text_of_entry(entry: Any) -> str:
  whole = isinstance(entry, float) and entry.is_integer()
  return str(entry).removesuffix(".0") if whole else str(entry)


def text_or_none(value: Any) -> str | None:
  """As `text`; None stays None."""
  return None if value is None else text(value)


def checked(field: Field, value: Any) -> Any:
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
    raise ValueError(f"--{field.name} must {verb} {wanted(field)}; got {given!r}.")
  converted = tuple(entry for _, entry in pairs)
  return converted if field.rules.keep_repetitions else tuple(dict.fromkeys(converted))


def _entries(value: Any) -> list[Any]:
  if not isinstance(value, str):
    return list(value) if isinstance(value, Iterable) else [value]
  return [entry.strip() for entry in value.split(",")] if value.strip() else []


def _converted(field: Field, value: Any) -> tuple[str | None, Any]:
  """What a single value must be, or None where it is that; and the value converted."""
  kind, rules, written = field.kind, field.rules, str(value)
  if kind is str:
    allowed = rules.choices is None or written in rules.choices
    return None if allowed else wanted(field), written
  if kind is bool:
    found = _BOOLEANS.get(written.lower())
    return (None, found) if found is not None else ("true or false", None)
  try:
    number = kind(written)
  except ValueError:
    return wanted(field), None
  if kind is float and math.isinf(number):
    return f"finite and {_limits(rules)}".removesuffix(" and "), None
  if kind is float and math.isnan(number):
    return _limits(rules) or "a number", None
  fits = (
    (rules.above is None or number > rules.above)
    and (rules.at_least is None or number >= rules.at_least)
    and (rules.below is None or number < rules.below)
    and (rules.at_most is None or number <= rules.at_most)
  )
  return None if fits else _limits(rules), number


def _limits(rules: Rules) -> str:
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


def wanted(field: Field) -> str:
  """What a value must be, in words: "an integer of at least 1", "one of a, b"."""
  choices = field.rules.choices
  if field.kind is str and field.several:
    return f"some of {', '.join(choices)}" if choices else "separated by commas"
  if field.kind is str:
    return f"one of {', '.join(choices)}" if choices else ""
  noun = {int: ("an integer", "integers"), float: ("a number", "numbers")}
  limits = _limits(field.rules)
  limits = f" of {limits}" if limits.startswith("at ") else f" {limits}"
  words = (noun[field.kind][field.several] + limits).rstrip()
  return f"{words}, separated by commas" if field.several else words
