"""Which cases of a parametrized test the quick suite runs."""

from collections.abc import Iterable
from typing import Any

import pytest


def only(quick: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
  """The cases for `pytest.mark.parametrize`, slow except the quick ones."""
  quick = list(quick)
  return [
    case
    if case in quick
    else pytest.param(
      *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow
    )
    for case in cases
  ]
