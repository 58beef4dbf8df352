"""summary.json is read, written as a whole, and printed as tables."""

import dataclasses
import json
from typing import ClassVar

import pytest

from experiments.shared import settings, summaries, tables, workdirs


@dataclasses.dataclass(frozen=True)
class Example(summaries.FromSummary, workdirs.Run):
  command: ClassVar = "experiments.example"

  num: int = settings.setting(3, "A number.")


def test_a_file_that_is_not_a_summary_ends_with_a_message(tmp_path):
  path = tmp_path / "summary.json"
  with pytest.raises(SystemExit, match=r"--from_summary=.*summary\.json"):
    summaries.read(str(path))
  path.write_text("not json")
  with pytest.raises(SystemExit, match=r"--from_summary=.*summary\.json"):
    summaries.read(str(path))
  path.write_text(json.dumps({"seeds": [0]}))
  assert summaries.read(str(path)) == {"seeds": [0]}


def test_the_table_of_a_summary_is_printed(tmp_path, capsys):
  assert not summaries.printed(Example(), len)
  (tmp_path / "summary.json").write_text(json.dumps({"a": 1}))
  own = Example(from_summary=str(tmp_path / "summary.json"))
  assert summaries.printed(own, lambda summary: f"a is {summary['a']}")
  assert capsys.readouterr().out == "a is 1\n"


def test_a_summary_is_replaced_as_a_whole(tmp_path):
  """A reader of the old file can read it to its end."""
  own = Example(workdir=str(tmp_path), overwrite=True)
  first = summaries.write(own, {"rows": list(range(1000))})
  with (tmp_path / "summary.json").open() as reader:
    second = summaries.write(own, {"rows": []})
    assert json.loads(reader.read()) == first
  assert json.loads((tmp_path / "summary.json").read_text()) == second
  assert second["flags"] == {"workdir": str(tmp_path), "progress": "True", "num": "3"}
  assert second["command"].startswith("python -m experiments.example")
  assert set(second["environment"]) == {"jax", "device"}


def test_markdown_table():
  assert tables.markdown(["a", "b"], [["1", "2"]]) == (
    "| a | b |\n| --- | --- |\n| 1 | 2 |"
  )


def test_table_aligns_its_columns():
  text = tables.plain(("a", "b"), [("long name", "1"), ("x", "22")])
  assert text.splitlines() == [
    "a           b",
    "---------  --",
    "long name   1",
    "x          22",
  ]
