"""Hyper-parameters of single curves."""

import numpy as np
import pytest

from experiments.rbm import settings as rbm_settings


def rules_of_curves(overrides, **values):
  rules = rbm_settings.Rules(**values)
  return rbm_settings.of_curves(
    rules, overrides, ["cd_1", "cd_2", "stein_cd_regularized", "mle"]
  )


def test_curves_of_their_own_settings():
  overrides = (
    "cd_1: learning_rate=0.25 langevin_step_size=0.125; "
    "stein_cd_regularized: stein_steps=7 regularization=2 schedule=cosine;"
  )
  plain = rbm_settings.Rules(optimizer="sgd", steps=4)
  own = rules_of_curves(overrides, optimizer="sgd", steps=4)
  assert set(own) == {"cd_1", "stein_cd_regularized"}
  assert own["cd_1"].langevin_step_size == (0.125,)
  assert own["stein_cd_regularized"].stein_steps == 7
  assert own["stein_cd_regularized"].regularization == 2
  assert plain.stein_steps == own["cd_1"].stein_steps == 3
  step = {"w": np.float32(1)}

  def third_update(rules):
    optimizer = rules.energy_optimizer()
    state = optimizer.init(step)
    for _ in range(3):
      update, state = optimizer.update(step, state)
    return float(update["w"])

  assert third_update(own["cd_1"]) == pytest.approx(-0.25)
  assert third_update(plain) == pytest.approx(-3e-4)
  cosine = 3e-4 * (1 + np.cos(np.pi / 2)) / 2  # after two of four steps
  assert third_update(own["stein_cd_regularized"]) == pytest.approx(-cosine)


@pytest.mark.parametrize(
  ("overrides", "word"),
  [
    ("cd_7: learning_rate=1", "cd_7"),
    ("cd_1 learning_rate=1", "colon"),
    ("cd_1: learning_rate", "FLAG=VALUE"),
    ("cd_1: num_hidden=3", "num_hidden"),
    ("cd_1: stein_steps=0", "stein_steps"),
    ("cd_1: schedule=sometimes", "schedule"),
    ("cd_1: learning_rate=-1", "learning_rate must be above 0"),
    ("cd_1: langevin_step_size=0", "langevin_step_size must be numbers above 0"),
    ("cd_1: langevin_step_size=none", "langevin_step_size"),
    ("cd_1: langevin_step_size=1,2", "single --langevin_step_size"),
  ],
)
def test_invalid_overrides_are_named(overrides, word):
  with pytest.raises(ValueError, match=r"^--overrides") as found:
    rules_of_curves(overrides)
  assert word in str(found.value)
  with pytest.raises(ValueError, match="single --langevin_step_size"):
    rules_of_curves("cd_1: langevin_step_size=1", langevin_step_size=(1, 2))
