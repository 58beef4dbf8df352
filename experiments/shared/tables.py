"""Tables as plain text and in Markdown."""

from collections.abc import Sequence


def plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A plain text table, its first column left-aligned, the others right-aligned."""
  widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

  def line(cells: Sequence[str]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:]))])

  rule = "  ".join("-" * width for width in widths)
  return "\n".join([line(header), rule, *(line(row) for row in rows)])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table in Markdown, as `plain` is in plain text."""
  rule = ["---"] * len(header)
  return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
