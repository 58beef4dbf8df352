"""Every example in a docstring of the package runs and prints what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {
  path.relative_to(ROOT): path.read_text().count(">>> ")
  for path in sorted((ROOT / "stein_jax").rglob("*.py"))
}
WITH_EXAMPLES = [path for path, number in EXAMPLES.items() if number]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=str)
def test_examples_in_docstrings(path):
  name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
  results = doctest.testmod(importlib.import_module(name))
  assert results.attempted == EXAMPLES[path], "an example is not in a docstring"
  assert results.failed == 0, "see the captured output"


def test_there_are_examples():
  assert sum(EXAMPLES.values()) > 20
