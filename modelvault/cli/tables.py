"""Tables that fit 80 columns."""

from collections.abc import Iterator, Sequence

_WIDTH = 80


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Iterator[str]:
    """Lay out rows under a header, two spaces between columns; the widest columns give way when the line is too long.

    ``right`` names the columns, by number, that are set flush right.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    while sum(widths) + 2 * (len(widths) - 1) > _WIDTH:
        widths[widths.index(max(widths))] -= 1
    for row in [header, *rows]:
        cells = [_cell(text, widths[i], flush_right=i in right) for i, text in enumerate(row)]
        yield "  ".join(cells).rstrip()


def _cell(text: str, width: int, *, flush_right: bool) -> str:
    if len(text) > width:
        keep = width - 1
        text = text[: keep // 2] + "…" + text[len(text) - (keep - keep // 2) :]
    return text.rjust(width) if flush_right else text.ljust(width)
