"""A folder belongs to one run, and other files are not deleted."""

import dataclasses
from typing import ClassVar

import pytest

from experiments.shared import workdirs
from experiments.shared.settings import setting


@dataclasses.dataclass(frozen=True)
class Example(workdirs.Run):
  command: ClassVar = "experiments.example"
  files: ClassVar = ("result", "*/seed_*/metrics.jsonl")

  steps: int = setting(5, "Steps.", may_grow=True)
  seeds: tuple[int, ...] = setting((0, 1), "Seeds.", may_grow=True)
  batch: int = setting(3, "Points.")
  more: int | None = setting(None, "More.")


@dataclasses.dataclass(frozen=True)
class Other(workdirs.Run):
  command: ClassVar = "experiments.other"

  steps: int = setting(5, "Steps.")


def lines(path):
  return path.read_text().splitlines()


def run(workdir, **values):
  return Example(workdir=str(workdir), **values)


def test_workdir_is_checked_and_overwritten(tmp_path):
  before = {"steps": 5, "seeds": (0, 1), "batch": 3}
  workdirs.prepare(run(tmp_path / "w", **before))
  (tmp_path / "w" / "result").touch()
  workdirs.check(run(tmp_path / "w", **before))
  (tmp_path / "w").rename(tmp_path / "moved")
  grown = before | {"seeds": (2, 1, 0), "steps": 10, "progress": False}
  workdirs.check(run(tmp_path / "moved", **grown))
  with pytest.raises(SystemExit, match="--steps: 5 before, 10 now"):
    workdirs.check(run(tmp_path / "moved", **grown), fixed={"steps"})
  (tmp_path / "moved").rename(tmp_path / "w")
  workdirs.prepare(run(tmp_path / "one", **before | {"seeds": (0,)}))
  with pytest.raises(SystemExit, match="--seeds: 0 before, 1 now"):
    workdirs.check(run(tmp_path / "one", **before | {"seeds": (1,)}))
  for fewer, message in (
    ({"seeds": (1,)}, "--seeds: 0,1 before, 1 now"),
    ({"seeds": (0, 2)}, "--seeds: 0,1 before, 0,2 now"),
    ({"steps": 4}, "--steps: 5 before, 4 now"),
    ({"batch": 30}, "--batch: 3 before, 30 now"),
    ({"more": 1}, "--more: None before, 1 now"),
  ):
    with pytest.raises(SystemExit, match=message):
      workdirs.check(run(tmp_path / "w", **before | fewer))
  (tmp_path / "strange" / "folder").mkdir(parents=True)
  with pytest.raises(SystemExit, match="not empty"):
    workdirs.check(run(tmp_path / "strange", overwrite=True))
  (tmp_path / "file").touch()
  with pytest.raises(SystemExit, match="is a file"):
    workdirs.check(run(tmp_path / "file", overwrite=True))
  (tmp_path / "strange" / "flags.txt").write_text("# notes\n\ncountry=--nz\n")
  with pytest.raises(SystemExit, match="nothing is deleted"):
    workdirs.prepare(run(tmp_path / "strange", overwrite=True))
  assert (tmp_path / "strange" / "folder").exists()
  (tmp_path / "link").symlink_to(tmp_path / "w", target_is_directory=True)
  workdirs.prepare(run(tmp_path / "link", steps=6, overwrite=True))
  assert (tmp_path / "link").is_symlink()
  assert [path.name for path in (tmp_path / "w").iterdir()] == ["flags.txt"]
  assert lines(tmp_path / "w" / "flags.txt") == [
    "# python -m experiments.example",
    f"--workdir={tmp_path / 'link'}",
    "--progress=True",
    "--steps=6",
    "--seeds=0,1",
    "--batch=3",
  ]


def test_a_folder_of_another_command_is_neither_continued_nor_deleted(tmp_path):
  """One flag of the same name was once enough to delete the folder."""
  other = Other(workdir=str(tmp_path / "w"))
  workdirs.prepare(other)
  (tmp_path / "w" / "summary.json").touch()
  with pytest.raises(SystemExit, match=r"a run of experiments\.other, not of exper"):
    workdirs.check(run(tmp_path / "w"))
  for function in (workdirs.check, workdirs.prepare):
    with pytest.raises(SystemExit, match=r"is not a record of this program"):
      function(run(tmp_path / "w", overwrite=True))
  assert (tmp_path / "w" / "summary.json").exists()
  # Records of older versions do not name their command.
  record = tmp_path / "w" / "flags.txt"
  record.write_text("\n".join(lines(record)[1:]) + "\n")
  with pytest.raises(SystemExit, match=r"is not a record of this program"):
    workdirs.prepare(run(tmp_path / "w", overwrite=True))
  record.write_text("--steps=5\n--country=nz\n")
  with pytest.raises(SystemExit, match=r"is not a record of this program"):
    workdirs.prepare(run(tmp_path / "w", overwrite=True))
  assert (tmp_path / "w" / "summary.json").exists()


def test_an_older_record_of_the_command_itself_is_overwritten(tmp_path):
  own = run(tmp_path / "w", more=1)
  workdirs.prepare(own)
  record = tmp_path / "w" / "flags.txt"
  record.write_text("\n".join(lines(record)[1:]) + "\n")
  (tmp_path / "w" / "summary.json").touch()
  workdirs.check(own)
  workdirs.prepare(run(tmp_path / "w", overwrite=True))
  assert [path.name for path in (tmp_path / "w").iterdir()] == ["flags.txt"]


def test_other_files_keep_a_folder_from_being_overwritten(tmp_path):
  workdir = tmp_path / "w"
  workdirs.prepare(run(workdir))
  (workdir / "cd" / "seed_0").mkdir(parents=True)
  (workdir / "cd" / "seed_0" / "metrics.jsonl").touch()
  (workdir / "thesis.md").write_text("years of work")
  (workdir / "cd" / "result").touch()  # the pattern is of files at the top
  again = run(workdir, overwrite=True)
  for function in (workdirs.check, workdirs.prepare):
    with pytest.raises(SystemExit, match=r"did not write \(cd/result, thesis\.md\)"):
      function(again)
  assert (workdir / "thesis.md").read_text() == "years of work"
  assert (workdir / "cd" / "seed_0" / "metrics.jsonl").exists()
  (workdir / "thesis.md").unlink()
  (workdir / "cd" / "result").unlink()
  for killed in (".result.0a1b.tmp", "cd/seed_0/.metrics.jsonl.0a1b.tmp"):
    (workdir / killed).touch()  # left by a writer that was killed
  workdirs.check(again)
  workdirs.prepare(again)
  assert [path.name for path in workdir.iterdir()] == ["flags.txt"]
