"""The command inception: what it says where something is missing."""

import pytest

from experiments import inception as command
from experiments.pictures import inception
from tests import binaries
from tests.experiments.parsing import parsed


def test_missing_requirements_are_named(tmp_path):
  result = binaries.run(
    "inception", f"--images={tmp_path / 'images.npy'}", f"--weights={tmp_path / 'no'}"
  )
  assert result.returncode == 1
  assert "stein_jax[inception]" in result.stderr or inception.URL in result.stderr


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), "--images must be given"),
    (("--images=images.npy", "extra"), "unexpected arguments ['extra']"),
  ],
)
def test_wrong_flags_end_with_a_message(arguments, message):
  with pytest.raises(SystemExit) as ended:
    parsed(command.Settings, *arguments)
  assert message in str(ended.value)
  assert ended.value.code == 2
