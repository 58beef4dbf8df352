"""Files are replaced as a whole or not at all."""

import errno
import os
import signal
import stat
import subprocess
import sys

import pytest

from stein_jax.training.files import write_atomically


@pytest.mark.parametrize("content", ["β = 1\nγ = 2\n", b"\x00\xff\r\n", ""])
def test_writes_text_and_bytes(tmp_path, content):
  path = tmp_path / "file"
  for target in (path, str(path)):
    write_atomically(target, "something longer, from before")
    write_atomically(target, content)
    want = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == want
    assert os.listdir(tmp_path) == ["file"]


def test_a_new_file_has_the_usual_permissions(tmp_path):
  (tmp_path / "usual").write_text("")
  write_atomically(tmp_path / "file", "")
  usual, got = (stat.S_IMODE((tmp_path / f).stat().st_mode) for f in ("usual", "file"))
  assert got == usual


def test_a_symbolic_link_is_followed(tmp_path):
  (tmp_path / "link").symlink_to(tmp_path / "file")
  write_atomically(tmp_path / "link", "new")
  assert (tmp_path / "link").is_symlink()
  assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("interrupt", [False, True])
def test_after_an_error_the_file_is_as_it_was(tmp_path, monkeypatch, step, interrupt):
  def fail(*args):
    raise KeyboardInterrupt if interrupt else OSError(errno.ENOSPC, "the disk is full")

  path = tmp_path / "file"
  path.write_text("old")
  monkeypatch.setattr(os, step, fail)
  error, message = (KeyboardInterrupt, None) if interrupt else (OSError, "disk is full")
  with pytest.raises(error, match=message) as caught:
    write_atomically(path, "new")
  if not interrupt:
    assert caught.value.errno == errno.ENOSPC
    assert f"cannot write {path}" in str(caught.value)
  assert path.read_text() == "old"
  assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_does_not_exist_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"cannot write .*absent/file"):
    write_atomically(tmp_path / "absent" / "file", "")


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
  fsync = os.fsync

  def files_only(handle):
    if stat.S_ISDIR(os.fstat(handle).st_mode):
      raise OSError(errno.EINVAL, "not supported")
    fsync(handle)

  monkeypatch.setattr(os, "fsync", files_only)
  write_atomically(tmp_path / "file", "new")
  assert (tmp_path / "file").read_text() == "new"


REWRITE = """
import sys
from stein_jax.training.files import write_atomically
print("ready", flush=True)
while True:
  for letter in "ab":
    write_atomically(sys.argv[1], letter * 1_000_000)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
  path = tmp_path / "file"
  path.write_text("a" * 1_000_000)
  writer = subprocess.Popen(
    [sys.executable, "-c", REWRITE, str(path)], stdout=subprocess.PIPE, text=True
  )
  try:
    assert writer.stdout.readline() == "ready\n"
    for _ in range(200):  # while it writes, too
      assert set(path.read_text()) in ({"a"}, {"b"})
  finally:
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
  found = path.read_text()
  assert len(found) == 1_000_000
  assert len(set(found)) == 1
