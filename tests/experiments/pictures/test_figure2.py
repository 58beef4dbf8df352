"""The table of figure 2: the paper's numbers and ours in the right cells."""

from experiments.pictures import figure2


def cells(markdown):
  """The header and the rows of a Markdown table."""
  lines = [line.split("|")[1:-1] for line in markdown.split("\n")]
  header, _, *rows = [[cell.strip() for cell in line] for line in lines]
  return header, rows


def test_an_empty_table_has_the_paper_s_numbers_and_dashes():
  header, lines = cells(figure2.table({}))
  assert header == [
    "", "Real Training Set", "500 Duplicate", "DCGAN", "SteinGAN", "SteinGAN w/o kernel"
  ]  # fmt: skip
  assert lines[0] == ["inception score, Inception network", *["–"] * 5]
  paper = ["11.237", "11.100", "6.581", "6.711", "6.243"]
  assert lines[1] == ["… in the paper", *paper]
  assert lines[-2] == ["testing accuracy", *["–"] * 5]
  assert lines[-1][1:] == [
    "92.58 %", "44.96 %", "44.78 %", "61.09 %", "60.50 %"
  ]  # fmt: skip


def test_measured_scores_are_in_the_right_cells():
  table = figure2.table(
    {
      "SteinGAN": {
        "inception_score": 7.12345, "frechet_distance": 12.345,
        "kernel_inception_distance": 0.0123, "testing_accuracy": 0.6,
        "precision": 0.5,
      },
      "SteinGAN, mix": {"imagenet_inception_score": 6.5},
    }
  )  # fmt: skip
  header, lines = cells(table)
  assert header[-1] == "SteinGAN, mix"
  by_label = {line[0]: line[1:] for line in lines}
  dash = "–"
  assert by_label["inception score, our classifier"] == [dash] * 3 + ["7.123", *"––"]
  assert by_label["Fréchet distance, our classifier"][3] == "12.35"
  assert by_label["kernel distance, our classifier"][3] == "0.012"
  assert by_label["testing accuracy"] == [dash] * 3 + ["60.00 %", *"––"]
  assert by_label["inception score, Inception network"] == [dash] * 5 + ["6.500"]
  assert by_label["… in the paper"][5] == dash
