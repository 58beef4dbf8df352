import json

import optax
import pytest

from experiments import rbm_summary
from experiments.rbm import methods as rbm_methods
from experiments.shared import common
from stein_jax.energies import GaussianBernoulliRBM


def test_numbers_of_a_list_flag():
  assert common.numbers("epsilons", ["1e-3", "2", "2"]) == [1e-3, 2.0]
  assert common.numbers("seeds", ["3", "0"], int, at_least=0) == [3, 0]


@pytest.mark.parametrize(
  ("texts", "options"),
  [
    (["0"], {}),
    (["nan"], {}),
    (["inf"], {}),
    (["-1"], {}),
    (["small"], {}),
    ([], {}),
    (["-1"], {"kind": int, "at_least": 0}),
    (["0.5"], {"kind": int, "at_least": 0}),
    (["4294967296"], {"kind": int, "at_least": 0}),
  ],
)
def test_bad_numbers_end_with_the_flag_and_its_value(texts, options):
  with pytest.raises(SystemExit, match="--steps must be") as ended:
    common.numbers("steps", texts, **options)
  assert ",".join(texts) in str(ended.value)


def test_chosen_names_are_known_ones():
  assert common.chosen("method", ["b", "a", "b"], ["a", "b", "c"]) == ["b", "a"]
  for texts in (["d"], ["a", "d"], []):
    with pytest.raises(SystemExit, match="--method must name some of a, b, c"):
      common.chosen("method", texts, ["a", "b", "c"])


def test_a_summary_that_is_none_ends_with_a_message(tmp_path):
  path = tmp_path / "summary.json"
  with pytest.raises(SystemExit, match=r"--from_summary=.*summary\.json"):
    common.read_summary(str(path))
  path.write_text("not json")
  with pytest.raises(SystemExit, match=r"--from_summary=.*summary\.json"):
    common.read_summary(str(path))
  path.write_text(json.dumps({"seeds": [0]}))
  assert common.read_summary(str(path)) == {"seeds": [0]}


def test_markdown_table():
  assert rbm_summary.markdown_table(["a", "b"], [["1", "2"]]) == (
    "| a | b |\n| --- | --- |\n| 1 | 2 |"
  )


def test_every_method_can_be_built():
  found = common.algorithms(
    rbm_methods.METHODS, GaussianBernoulliRBM(2), optax.sgd(0.1), langevin_steps=[1]
  )
  assert len(found) == len(rbm_methods.METHODS)  # no two have one label
