"""Settings as a command line gives them, without a process of its own."""

from absl import flags

from experiments.shared import settings


def parsed(cls, *arguments):
  """The settings of `python -m experiments.<command> *arguments`."""
  flag_values = flags.FlagValues()
  settings.define(cls, flag_values)
  rest = flag_values(["command", *arguments])
  return settings.of_flags(cls, rest, flag_values)
