"""What the libraries report while a command runs."""

from absl import flags, logging


def quiet_checkpoints() -> None:
  """Silences Orbax's dozen lines a checkpoint, unless --verbosity is given."""
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
