"""The table of figure 2: scores of generated images, with the paper's numbers.

Source: Liu & Wang (2017), figure 2.
"""

from collections.abc import Mapping, Sequence

from experiments.shared import tables

REAL, DUPLICATE = "Real Training Set", "500 Duplicate"
DCGAN, STEIN_GAN, NO_KERNEL = "DCGAN", "SteinGAN", "SteinGAN w/o kernel"

PAPER = {
  REAL: {"imagenet_inception_score": 11.237, "testing_accuracy": 0.9258},
  DUPLICATE: {"imagenet_inception_score": 11.100, "testing_accuracy": 0.4496},
  DCGAN: {"imagenet_inception_score": 6.581, "testing_accuracy": 0.4478},
  STEIN_GAN: {"imagenet_inception_score": 6.711, "testing_accuracy": 0.6109},
  NO_KERNEL: {"imagenet_inception_score": 6.243, "testing_accuracy": 0.6050},
}
"""The paper's numbers: column -> score -> value."""

_ROWS = {
  "imagenet_inception_score": ("inception score, Inception network", ".3f"),
  "imagenet_frechet_distance": ("Fréchet distance, Inception network", ".2f"),
  "imagenet_kernel_inception_distance": ("kernel distance, Inception network", ".2g"),
  "inception_score": ("inception score, our classifier", ".3f"),
  "frechet_distance": ("Fréchet distance, our classifier", ".2f"),
  "kernel_inception_distance": ("kernel distance, our classifier", ".2g"),
  "precision": ("precision, our classifier", ".2f"),
  "recall": ("recall, our classifier", ".2f"),
  "mean_pairwise_distance": ("mean distance between pictures", ".2f"),
  "testing_accuracy": ("testing accuracy", ".2%"),
}


def table(results: Mapping[str, Mapping[str, float]], *, paper: bool = True) -> str:
  """Figure 2's table in Markdown; a dash where a score was not measured.

  Args:
    results: column -> score -> value. The scores are those of
      `experiments.pictures.scores.scores` and of
      `experiments.pictures.inception.inception_scores`, and `testing_accuracy`. Columns
      that the paper does not have come last.
    paper: whether to show the paper's columns and numbers, which are for CIFAR-10; else
      the table has only what was measured.
  """
  published = PAPER if paper else {}
  columns = [*published, *(name for name in results if name not in published)]

  def cells(values: Mapping[str, Mapping[str, float]], score: str) -> Sequence[str]:
    found = [values.get(column, {}).get(score) for column in columns]
    return [_text(value, _ROWS[score][1]) for value in found]

  lines = []
  for score, (label, _) in _ROWS.items():
    in_paper = any(score in values for values in published.values())
    if in_paper or any(score in values for values in results.values()):
      lines.append([label, *cells(results, score)])
    if in_paper:
      lines.append(["… in the paper", *cells(published, score)])
  return tables.markdown(["", *columns], lines)


def _text(value: float | None, digits: str) -> str:
  return "–" if value is None else format(value, digits).replace("%", " %")
