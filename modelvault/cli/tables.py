"""Tables that fit the terminal, and lose nothing of what they show."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest

_LEAST = 12  # characters to which a column is folded at most: below that, nobody finds a word again
_LEAST_OF_MANY = 8
_FEW = 5  # columns
_JOINTS = "/-:_. "


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Iterator[str]:
    """Lay out rows under a header, two spaces between columns.

    On a terminal the widest columns are folded when the line is too long; anywhere else, where programs read it, no line is.
    ``right`` names the columns, by number, that are set flush right.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    yield from fit(header, rows, right=right, width=width)


def last_smoke(told: str | None) -> str:
    """Write into a cell when an install was last tried out, to the day, and with what outcome."""
    return f"{told[:10]} {told.partition(' ')[2]}" if told else "never"


def fit(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int], width: int | None
) -> Iterator[str]:
    """Lay out for lines of ``width`` characters, unless columns became too narrow to be read; ``None``: as long as they are."""
    least = _LEAST if len(header) <= _FEW else _LEAST_OF_MANY
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    while width is not None and sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > least:
        widths[widths.index(max(widths))] -= 1
    for row in [header, *rows]:
        for cells in zip_longest(*map(_fold, row, widths), fillvalue=""):
            line = [text.rjust(widths[i]) if i in right else text.ljust(widths[i]) for i, text in enumerate(cells)]
            yield "  ".join(line).rstrip()


def _fold(text: str, width: int) -> list[str]:
    """Break where names and paths have joints, unless that leaves more than half of a line empty."""
    lines = []
    while len(text) > width:
        joint = max(text.rfind(sign, 0, width) for sign in _JOINTS) + 1
        at = joint if joint > width // 2 else width
        lines.append(text[:at])
        text = text[at:]
    return [*lines, text]
