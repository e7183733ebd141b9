"""Which quantization? The table, and the question on a terminal."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelvault.cli.console import ask, human_size, terminal_width
from modelvault.cli.run import printable
from modelvault.cli.tables import fit

if TYPE_CHECKING:
    from modelvault.results.models import QuantChoice


def ask_for_quantization(choices: "Sequence[QuantChoice]") -> str | None:
    """Show what there is and ask for one by number or name, until the answer is one of them; ``None`` where nobody answers."""
    width = terminal_width(sys.stderr) if sys.stderr.isatty() else None
    for line in lines(choices, width):
        print(printable(line), file=sys.stderr)
    while answer := ask(f"which one? (number or name, 1 to {len(choices)})"):
        if chosen := _meant(answer, choices):
            return chosen
        print(printable(f"not one of them: {answer[:80]}"), file=sys.stderr)
    return None


def lines(choices: "Sequence[QuantChoice]", width: int | None) -> list[str]:
    """Lay out the choices with their sizes and judgements."""
    rows = [
        (
            str(number),
            choice.name,
            human_size(choice.size),
            f"{choice.bits:.1f}" if choice.bits else "?",
            choice.judgement,
        )
        for number, choice in enumerate(choices, 1)
    ]
    return list(fit(("", "quantization", "size", "bits", ""), rows, right=(0, 2, 3), width=width))


def _meant(answer: str, choices: "Sequence[QuantChoice]") -> str | None:
    """Find the choice that an answer means: its name in any case, else its number."""
    names = [choice.name for choice in choices]
    if named := next((name for name in names if name.upper() == answer.upper()), None):
        return named
    number = int(answer) if answer.isdecimal() and answer.isascii() and len(answer) <= len(str(len(names))) else 0
    return names[number - 1] if 1 <= number <= len(names) else None
