"""A setting is written once: its flag, its check and its record follow."""

import dataclasses

import numpy as np
import pytest
from absl import flags

from experiments.shared import settings
from experiments.shared.settings import setting
from tests.experiments.parsing import parsed


@dataclasses.dataclass(frozen=True)
class Base(settings.Settings):
  workdir: str = setting("runs", "Where.", may_differ=True)
  overwrite: bool = setting(False, "Delete.", recorded=False)


@dataclasses.dataclass(frozen=True)
class Example(Base):
  workdir: str = settings.like(Base, "workdir", default="runs/example")
  rate: float = setting(3e-4, "The learning rate.", above=0)
  share: float = setting(0.1, "A share.", at_least=0, below=1)
  steps: int = setting(10, "Training steps.", at_least=1, may_grow=True)
  limit: int | None = setting(None, "At most.", at_least=1)
  kind: str = setting("a", "A kind.", choices=("a", "b"))
  center: bool = setting(False, "Subtract the mean.")
  method: tuple[str, ...] = setting(("a",), "Some.", choices=("a", "b", "c"))
  epsilons: tuple[float, ...] = setting((0.5, 1.0), "Sizes.", above=0)
  mix: tuple[float, ...] = setting((0.25,), "α.", at_least=0, at_most=1, may_grow=True)
  seeds: tuple[int, ...] = setting(
    (0,), "Seeds.", at_least=0, at_most=settings.MAX_SEED, may_grow=True
  )
  files: tuple[str, ...] = setting((), "Files.", keep_repetitions=True)


def test_the_command_line_gives_typed_values():
  own = parsed(
    Example,
    *("--rate=1e-3", "--steps=7", "--center", "--method=c,a", "--epsilons=1e-3,2,2"),
    *("--seeds=3, 0", "--files=x,x", "--limit=2"),
  )
  assert own == Example(
    rate=1e-3,
    steps=7,
    center=True,
    method=("c", "a"),
    epsilons=(1e-3, 2.0),
    seeds=(3, 0),
    files=("x", "x"),
    limit=2,
  )
  assert type(own.rate) is float
  assert type(own.steps) is int
  assert own.workdir == "runs/example"
  assert parsed(Example) == Example()


@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ("--rate=0", "--rate must be above 0, got 0."),
    ("--rate=nan", "--rate must be above 0, got nan."),
    ("--rate=inf", "--rate must be finite and above 0, got inf."),
    ("--rate=fast", "--rate must be a number above 0, got fast."),
    ("--share=1", "--share must be at least 0 and below 1, got 1."),
    ("--steps=0", "--steps must be at least 1, got 0."),
    ("--steps=1.5", "--steps must be an integer of at least 1, got 1.5."),
    ("--limit=", "--limit must be an integer of at least 1, got ."),
    ("--kind=d", "--kind must be one of a, b; got d."),
    ("--method=d", "--method must name some of a, b, c; got 'd'."),
    ("--method=a,d", "--method must name some of a, b, c; got 'a,d'."),
    ("--method=", "--method must name some of a, b, c; got ''."),
    (
      "--epsilons=0",
      "--epsilons must be numbers above 0, separated by commas; got '0'.",
    ),
    ("--epsilons=nan", "--epsilons must be numbers above 0"),
    ("--epsilons=inf", "--epsilons must be numbers above 0"),
    ("--epsilons=small", "--epsilons must be numbers above 0"),
    ("--epsilons=", "--epsilons must be numbers above 0"),
    ("--mix=0,2", "--mix must be numbers from 0 to 1, separated by commas; got '0,2'."),
    ("--seeds=-1", "--seeds must be integers from 0 to 4294967295, separated by"),
    ("--seeds=0.5", "--seeds must be integers"),
    ("--seeds=4294967296", "--seeds must be integers"),
    (f"--seeds={10**400}", "--seeds must be integers"),
    ("stray", "unexpected arguments ['stray']; flags begin with --."),
  ],
)
def test_a_value_that_is_not_allowed_ends_with_the_flag_and_its_rule(argument, message):
  with pytest.raises(SystemExit) as ended:
    parsed(Example, argument)
  assert str(ended.value).startswith(message)


def test_instances_are_checked_however_they_are_made():
  with pytest.raises(ValueError, match="--rate must be above 0"):
    Example(rate=-1)
  with pytest.raises(ValueError, match="--steps must be an integer"):
    dataclasses.replace(Example(), steps=2.5)
  own = dataclasses.replace(Example(rate=1), epsilons=[1, np.float32(2)], seeds="4,5")
  assert own.rate == 1.0
  assert own.epsilons == (1.0, 2.0)
  assert own.seeds == (4, 5)


def test_what_must_be_given():
  @dataclasses.dataclass(frozen=True)
  class Needs(settings.Settings):
    name: str | None = setting(None, "Which.", required=True)

  assert parsed(Needs, "--name=x").name == "x"
  with pytest.raises(SystemExit, match="--name must be given"):
    parsed(Needs)


def test_the_record_is_a_flagfile_of_what_says_something_about_the_run():
  own = Example(mix=(0, 0.05, 1), files=("v1.0", "x"), overwrite=True)
  record = settings.record(own)
  assert "overwrite" not in record
  assert "limit" not in record
  assert record["mix"] == "0,0.05,1"
  assert record["files"] == "v1.0,x"
  assert record["rate"] == "0.0003"
  assert record["share"] == "0.1"
  assert record["center"] == "False"
  again = parsed(Example, *(f"--{name}={value}" for name, value in record.items()))
  assert again == dataclasses.replace(own, overwrite=False)
  assert settings.record(own, of=Base) == {"workdir": "runs/example"}


def test_differences_to_an_earlier_record():
  before = settings.record(Example(steps=5, seeds=(0, 1)))
  same = Example(steps=5, seeds=(0, 1))

  def found(fixed=(), **changes):
    return settings.differences(
      dataclasses.replace(same, **changes), before, fixed=fixed
    )

  assert found() == []
  assert found(workdir="elsewhere", overwrite=True) == []
  assert found(steps=9, seeds=(2, 1, 0)) == []
  assert found(steps=4) == ["--steps: 5 before, 4 now"]
  assert found(steps=9, fixed={"steps"}) == ["--steps: 5 before, 9 now"]
  assert found(seeds=(1, 2)) == ["--seeds: 0,1 before, 1,2 now"]
  assert found(limit=3) == ["--limit: None before, 3 now"]
  assert found(center=True) == ["--center: False before, True now"]
  # Numbers are compared, not their texts; a setting may be newer than the record.
  older = before | {"epsilons": "0.50,1", "rate": "3e-4", "mix": "0.250"}
  del older["kind"]
  assert settings.differences(same, older) == []
  assert settings.differences(dataclasses.replace(same, kind="b"), older) == [
    "--kind: a before, b now"
  ]
  assert settings.differences(same, before | {"overwrite": "False"}) == []
  # Settings that are gone, and values that are not allowed any more.
  assert settings.differences(same, before | {"old": "1", "kind": "z"}) == [
    "--kind: z before, a now",
    "--old: 1 before, None now",
  ]


def test_help_holds_the_rule_and_the_default():
  flag_values = flags.FlagValues()
  settings.define(Example, flag_values)
  text = flag_values.get_help()
  assert "The learning rate." in text
  assert "(default: '0.0003')" in text
  assert "(a number above 0)" in text
  assert "(integers from 0 to 4294967295, separated by commas)" in text
  assert "(one of a, b)" in text
