"""Every mistake of a user is a message, and nothing that is loaded runs code."""

import dataclasses
import importlib
import json
import math
import os
import pkgutil
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import experiments
from experiments import (
  gradient_diagnostics,
  inception,
  latent_walk,
  mnist_rbm,
  rbm_summary,
  tune_rbm,
)
from experiments.pictures import saved_generators, sources, square_images
from experiments.shared import (
  classifiers,
  fields,
  preparing,
  saved,
  settings,
  summaries,
  tfds_data,
  workdirs,
)
from stein_jax import training
from tests import binaries
from tests.experiments.parsing import parsed
from tests.experiments.pictures.examples import save_generator, write_lmdb

RESULTS = Path(experiments.__file__).parent / "results"
MODULES = {
  name: importlib.import_module(name)
  for _, name, _ in pkgutil.walk_packages(experiments.__path__, "experiments.")
}
COMMANDS = {
  name: module.Settings
  for name, module in MODULES.items()
  if getattr(getattr(module, "Settings", None), "command", None) == name
}


def ending(function, *arguments, code):
  """The message with which a call ends the program."""
  with pytest.raises(SystemExit) as ended:
    function(*arguments)
  message = str(ended.value)
  given = ended.value.code
  assert (1 if isinstance(given, str) else given) == code
  assert "Traceback" not in message
  return message


# --- summaries --------------------------------------------------------------------


BAD_SUMMARIES = {
  "missing": (None, "No such file"),
  "folder": ("folder", "Is a directory"),
  "empty": ("", "Expecting value"),
  "text": ("not json", "Expecting value"),
  "deep": ("[" * 100_000, "is not a summary.json"),
  "binary": (b"\xff\xfe\x00", "is not a summary.json"),
  "list": ("[]", "holds no settings and results"),
  "nothing": ("{}", "is not a whole summary of"),
  "other": ('{"command": "python -m experiments.x --a=1"}', "of experiments.x, not of"),
  "other types": ('{"methods": [1], "steps": 1, "runs": 2}', "not a whole summary of"),
}


def bad_summary(folder, name):
  path, (content, _) = folder / "summary.json", BAD_SUMMARIES[name]
  if content == "folder":
    path.mkdir()
  elif content is not None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


@pytest.mark.parametrize("name", BAD_SUMMARIES)
def test_rbm_summary_says_what_is_wrong(name, tmp_path):
  path = bad_summary(tmp_path, name)
  good = str(RESULTS / "figure1a" / "summary.json")
  for arguments in ([path], [path, "samples"], [path, "100"], [good, path]):
    message = ending(rbm_summary.main, arguments, code=1)
    assert path in message
    assert BAD_SUMMARIES[name][1] in message


@pytest.mark.parametrize("name", BAD_SUMMARIES)
def test_from_summary_says_what_is_wrong(name, tmp_path):
  path = bad_summary(tmp_path, name)
  having = [c for c, cls in COMMANDS.items() if issubclass(cls, summaries.FromSummary)]
  assert len(having) >= 14
  for command in having:
    own = parsed(COMMANDS[command], f"--from_summary={path}")
    message = ending(MODULES[command].main, own, code=1)
    assert f"--from_summary={path}" in message
    assert BAD_SUMMARIES[name][1] in message


def test_every_kept_summary_is_printed(capsys):
  for path in sorted(RESULTS.rglob("summary.json")):
    command = json.loads(path.read_text())["command"].split()[2]
    if command == "experiments.mnist_rbm":
      assert "| " in rbm_summary.main([str(path)])
    else:
      MODULES[command].main(parsed(COMMANDS[command], f"--from_summary={path}"))
      assert "| " in capsys.readouterr().out


@pytest.mark.parametrize(
  "arguments", [[], ["samples"], ["a", "b", "10"], ["--help"], ["--steps=3"]]
)
def test_rbm_summary_explains_its_arguments(arguments):
  ending(rbm_summary.main, arguments, code=2)


def test_a_step_without_a_score_is_wrong_usage():
  path = RESULTS / "figure1a" / "summary.json"
  assert "step 7" in ending(rbm_summary.main, [str(path), "7"], code=2)
  path = RESULTS / "gradient_diagnostics" / "summary.json"
  own = parsed(gradient_diagnostics.Settings, f"--from_summary={path}", "--at=7")
  assert "--at: [7]" in ending(gradient_diagnostics.main, own, code=2)


# --- flags ------------------------------------------------------------------------


def test_no_number_may_be_infinite_or_nan():
  """And none that is a size, a rate or a count may be negative."""
  assert len(COMMANDS) >= 18
  found = 0
  for command, cls in COMMANDS.items():
    for field in fields.fields_of(cls):
      if field.kind not in (int, float):
        continue
      found += 1
      for text in ("nan", "inf", "-inf", "-1", "1e999", "x", "", "1,x", "-nan"):
        message = ending(parsed, cls, f"--{field.name}={text}", code=2)
        assert message.startswith(f"--{field.name} must be"), (command, message)
  assert found > 100


@pytest.mark.parametrize(
  "text", ["nan", "inf", "-1", "cd: learning_rate=nan", "cd: adam_b1=-1"]
)
def test_no_number_within_a_text_may_be_infinite_or_nan(text, tmp_path):
  for flag in ("overrides",) if ":" in text else ("feature_bandwidth", "discount"):
    command = "images" if flag == "discount" else "mnist_rbm"
    module = MODULES[f"experiments.{command}"]

    def start(module=module, flag=flag):
      module.main(parsed(module.Settings, f"--{flag}={text}", f"--workdir={tmp_path}"))

    assert f"--{flag}" in ending(start, code=2)


@pytest.fixture
def started(monkeypatch):
  """Starts a program in this process, with its own flags."""
  from absl import app, flags

  def start(main, cls, *arguments):
    own = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", own)
    monkeypatch.setattr(settings.define, "__defaults__", (own,))
    monkeypatch.setattr(settings.of_flags, "__defaults__", ((), own))

    def run(main, flags_parser):
      main(flags_parser(["program", *arguments]))

    monkeypatch.setattr(app, "run", run)
    settings.run(main, cls)

  return start


@pytest.mark.parametrize(
  ("argument", "words"),
  [
    ("--step=1", "Did you mean: "),
    ("--noprogres", "noprogres"),
    ("--progress=maybe", "progress"),
    ("--flagfile=nowhere", "nowhere"),
    ("--flagfile={binary}", "codec"),
    ("stray", "unexpected arguments"),
    ("--steps=0", "--steps must be at least 1"),
  ],
)
def test_wrong_flags_end_with_code_2(argument, words, started, tmp_path, capsys):
  (tmp_path / "binary").write_bytes(b"\xff\xfe")
  argument = argument.format(binary=tmp_path / "binary")
  message = ending(
    started, mnist_rbm.main, mnist_rbm.Settings, argument, code=settings.WRONG_USAGE
  )
  assert words in message
  assert capsys.readouterr().err == f"{message}\n"


def test_failures_end_with_code_1(started):
  def lacking(own):
    raise OSError("no file")

  def diverging(own):
    raise training.TrainingDiverged(3, "loss", math.nan, None)

  def absent(own):
    raise FileNotFoundError(2, "No such file", "some.npy")

  assert ending(started, lacking, latent_walk.Settings, code=1) == "no file"
  assert "step 3" in ending(started, diverging, latent_walk.Settings, code=1)
  assert "some.npy: No such" in ending(started, absent, tune_rbm.Settings, code=1)


def test_an_error_of_jax_that_is_no_platform_is_not_hidden(started):
  def broken(own):
    raise RuntimeError("some other error")

  with pytest.raises(RuntimeError, match="some other"):
    started(broken, latent_walk.Settings)


def test_a_platform_that_is_not_there_is_named():
  done = binaries.run("benchmarks.startup", JAX_PLATFORMS="tpu")
  if done.returncode == 0:
    pytest.skip("this machine has a TPU")
  assert done.returncode == 1
  last = done.stderr.splitlines()[-1]
  assert last.startswith("JAX_PLATFORMS=tpu: Unable to initialize backend 'tpu'")
  assert "JAX finds cpu" in last
  assert "Traceback" not in done.stderr


# --- damaged files ----------------------------------------------------------------


def cut(content):
  return content[: len(content) // 2]


DAMAGES = {
  "cut": cut,
  "empty": lambda content: b"",
  "garbage": lambda content: b"\x93garbage\xff" * 5,
  "a number": lambda content: b"\x05",
  "a map": lambda content: b"\x81\xa6params\xc0",
  "json": lambda content: b"{}",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_generators_end_with_a_message(damage, tmp_path):
  folder = Path(save_generator(tmp_path / "run", "steingan", 10))
  for name in (saved_generators.FILE, saved_generators.DESCRIPTION):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(DAMAGES[damage](whole))
    message = ending(saved_generators.load, folder, code=1)
    assert f"{folder} holds no generator" in message
    (folder / name).write_bytes(whole)
  saved_generators.load(folder)


@pytest.mark.parametrize(
  "changes",
  [
    {"settings": {"size": 48}},
    {"settings": 3},
    {"method": "other"},
    {"method": []},
    {"label_counts": "x"},
    {"label_counts": [1, -1]},
    {"dataset": 5},
  ],
)
def test_a_generator_with_another_description_ends_with_a_message(changes, tmp_path):
  folder = Path(save_generator(tmp_path / "run", "steingan", 2))
  path = folder / saved_generators.DESCRIPTION
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  assert "holds no generator" in ending(saved_generators.load, folder, code=1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_classifiers_are_an_error_of_a_file(damage, tmp_path):
  path, tree = tmp_path / "classifier.msgpack", {"a": np.zeros((3, 4), np.float32)}
  classifiers.kept(path, tree, lambda: tree)
  path.write_bytes(DAMAGES[damage](path.read_bytes()))
  with pytest.raises(saved.DamagedFile, match="not a saved classifier; delete it"):
    classifiers.kept(path, tree, lambda: tree)


def test_a_classifier_of_another_shape_is_an_error(tmp_path):
  path = tmp_path / "classifier.msgpack"
  classifiers.kept(path, {"a": np.zeros(3)}, lambda: {"a": np.zeros(3)})
  with pytest.raises(OSError, match="other shapes"):
    classifiers.kept(path, {"a": np.zeros(4)}, dict)


@pytest.mark.parametrize("damage", ["cut", "short", "empty", "garbage", "page"])
def test_a_damaged_lmdb_ends_with_a_message(damage, tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (40, 30, 30, 3), np.uint8)
  write_lmdb(tmp_path / "x", images)
  file = tmp_path / "x" / "data.mdb"
  whole = file.read_bytes()
  pages = whole[: 2 * 4096] + b"\xff" * (len(whole) - 2 * 4096)
  damaged = {"short": whole[:-1], "page": pages}
  file.write_bytes(damaged[damage] if damage in damaged else DAMAGES[damage](whole))
  with pytest.raises(
    tfds_data.DatasetNotPrepared, match=r"data\.mdb is damaged or cut"
  ):
    sources.lmdb_source(tmp_path / "x")[0]


@pytest.mark.parametrize(
  "content", [b"", b"\xff\xfe", b"\x93NUMPY", b"PK\x03\x04", None]
)
def test_images_that_are_no_npy_file(content, tmp_path, monkeypatch):
  monkeypatch.setattr(inception.inception, "check_requirements", lambda path: None)
  path = tmp_path / "images.npy"
  if content is None:  # a pickle, which could run code
    np.save(path, np.array([{}, {}], object), allow_pickle=True)
  else:
    path.write_bytes(content)
  own = parsed(inception.Settings, f"--images={path}")
  assert "is not a .npy file" in ending(inception.main, own, code=1)


# --- folders ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Example(workdirs.Run):
  command: ClassVar = "experiments.example"

  steps: int = settings.setting(5, "Steps.")


@pytest.mark.parametrize(
  ("workdir", "reason"),
  [
    ("file", "is a file"),
    ("file/below", "Not a directory"),
    ("new/file/../../file/x", "Not a directory"),
    ("a" * 300, "File name too long"),
    ("new/" + "a" * 300, "File name too long"),
    ("/proc/new/folder", "No such file or directory"),
    ("/dev/null/x", "Not a directory"),
  ],
)
def test_a_workdir_that_cannot_be_used_is_known_at_once(
  workdir, reason, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "file").touch()
  message = ending(workdirs.check, Example(workdir=workdir), code=2)
  assert reason in message
  assert message.count("\n") == 0
  own = parsed(latent_walk.Settings, f"--workdir={workdir}", "--run=r")
  assert reason in ending(latent_walk.main, own, code=2)
  own = parsed(tune_rbm.Settings, f"--write_flags={workdir}/x/flags")
  monkeypatch.setattr(tune_rbm, "_run_trials", None)
  assert "--write_flags" in ending(tune_rbm.main, own, code=2)
  assert os.listdir(tmp_path) == ["file"]


def test_a_read_only_folder_is_known_at_once(tmp_path, monkeypatch):
  def refused(dir):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr("tempfile.TemporaryFile", refused)
  message = ending(workdirs.check, Example(workdir=str(tmp_path / "new")), code=2)
  assert "Permission denied" in message
  with pytest.raises(OSError, match=r"--cache_dir=.*Permission denied"):
    classifiers.kept(tmp_path / "c.msgpack", {}, lambda: pytest.fail("fitted"))


def test_a_folder_beside_one_that_does_not_exist(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  own = Example(workdir="q/../z")
  assert own.workdir == str(tmp_path / "z")
  workdirs.check(own)
  assert not (tmp_path / "z").exists()
  assert os.listdir(workdirs.prepare(own)) == ["flags.txt"]
  assert os.listdir(tmp_path) == ["z"]
  assert Example(workdir="runs/x").workdir == "runs/x"
  assert parsed(latent_walk.Settings, "--workdir=q/../y").workdir == str(tmp_path / "y")


@pytest.mark.parametrize("blocked", ["file", "file/below", "b" * 300, "/proc/new"])
def test_a_cache_that_cannot_be_written_is_known_before_a_fit(blocked, tmp_path):
  (tmp_path / "file").touch()
  path = tmp_path / blocked / "classifier.msgpack"
  with pytest.raises(OSError, match=r"File name too long|--cache_dir=|Not a directory"):
    classifiers.kept(path, {}, lambda: pytest.fail("fitted"))


@pytest.mark.parametrize(
  "content", [b"", b"# python -m experiments.example\n--steps=5\n--workd", b"\xff\xfe"]
)
def test_a_record_that_is_cut_short_ends_with_a_message(content, tmp_path):
  own = Example(workdir=str(tmp_path))
  workdirs.prepare(own)
  (tmp_path / "flags.txt").write_bytes(content)
  assert "flags.txt is damaged" in ending(workdirs.check, own, code=1)


def test_all_files_are_written_as_a_whole():
  """Others may be appended to, or made in memory."""
  words = ("write_text", "write_bytes", '"w"', '"wb"', "pickle")
  for path in Path(experiments.__file__).parent.rglob("*.py"):
    text = path.read_text()
    assert not [word for word in words if word in text], path
    for call in ("np.save(", "savefig("):
      assert text.count(call) == text.count(f"{call}file") + text.count(
        f"{call}label_file"
      ), path


# --- data sets --------------------------------------------------------------------


PAYLOAD = "import pathlib\n\npathlib.Path(__file__).with_name('done').touch()\n"
IMAGE = "tensorflow_datasets.core.features.image_feature.Image"
DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


def features(name):
  """Forms in which features.json may name a class, beside one of tfds."""
  image = {"pythonClassName": IMAGE, "image": {"dtype": "uint8"}}
  legacy = {"type": DICT, "content": {"x": {"type": name, "content": {}}}}
  return {
    "top": {"pythonClassName": name, "featuresDict": {"features": {"image": image}}},
    "nested": {
      "pythonClassName": DICT,
      "featuresDict": {"features": {"image": image, "x": {"python_class_name": name}}},
    },
    "legacy": legacy,
    "legacy list": {"type": DICT, "content": [{"type": name, "content": {}}]},
    "within a text": {
      "pythonClassName": DICT,
      "jsonFeature": {"json": json.dumps(legacy["content"])},
    },
  }


@pytest.mark.parametrize("form", features(""))
def test_a_data_set_runs_no_code(form, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  (tmp_path / "payload.py").write_text(PAYLOAD)
  folder = tmp_path / "evil" / "1.0.0"
  folder.mkdir(parents=True)
  info = {"name": "evil", "version": "1.0.0", "fileFormat": "array_record"}
  info |= {"moduleName": "payload"}
  (folder / "dataset_info.json").write_text(json.dumps(info))
  (folder / "features.json").write_text(json.dumps(features("payload.X")[form]))
  with pytest.raises(ValueError, match=r"features\.json names the class payload\.X"):
    tfds_data.open_prepared("evil", tmp_path)
  # Nor does the module that dataset_info.json names.
  fine = features(IMAGE)["nested"]
  del fine["featuresDict"]["features"]["x"]
  (folder / "features.json").write_text(json.dumps(fine))
  assert tfds_data.open_prepared("evil", tmp_path).image_key == "image"
  assert not (tmp_path / "done").exists()
  assert "payload" not in sys.modules


def test_preparing_runs_no_code_either(tmp_path):
  folder = tmp_path / "emnist" / "byclass" / "1.0.0"
  folder.mkdir(parents=True)
  (folder / "features.json").write_text(json.dumps(features("payload.X")["top"]))
  with pytest.raises(preparing.CannotPrepare, match=r"names the class payload\.X"):
    preparing.prepare("emnist", tmp_path)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"fileFormat": 3}'])
def test_a_damaged_data_set_is_named(name, content, tmp_path):
  folder = tmp_path / "some" / "1.0.0"
  folder.mkdir(parents=True)
  info = {"name": "some", "version": "1.0.0", "fileFormat": "array_record"}
  (folder / "dataset_info.json").write_text(json.dumps(info))
  (folder / "features.json").write_text(json.dumps(features(IMAGE)["nested"]))
  (folder / name).write_bytes(content)
  with pytest.raises((ValueError, tfds_data.DatasetNotPrepared)) as error:
    tfds_data.open_prepared("some", tmp_path)
  assert str(folder) in str(error.value)


@pytest.mark.parametrize(
  "name", ["lsun/../../x", "/etc", "..", "../x", "lsun/..", "celeb_a/../x", "", "a b"]
)
def test_names_of_data_sets_stay_in_their_folder(name, tmp_path):
  data_dir = tmp_path / "data"
  for split in ("train", "val"):
    (tmp_path / f"x_{split}_lmdb").mkdir()
  data_dir.mkdir()
  own = mnist_rbm.Settings(data_dir=str(data_dir), dataset=name)
  for load in (
    lambda: MODULES["experiments.shared.loading"].load(own, 1),
    lambda: square_images.load_or_exit(name, own, size=None),
  ):
    assert f"--dataset={name}: " in ending(load, code=2)
