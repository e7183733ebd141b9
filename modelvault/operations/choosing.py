"""Which quantization of a repository is pulled, where nobody has said it yet: somebody is asked, or something decides."""

from collections.abc import Callable, Sequence

from modelvault.results.models import QuantChoice
from modelvault.sources import Snapshot
from modelvault.sources.quantizations import QuantizationWanted, choices
from modelvault.sources.selection import Wish, open_choice

Chooser = Callable[[Sequence[QuantChoice]], str | None]
"""Picks one of the choices by its name, or none. The command line asks a person."""


def settle(snapshot: Snapshot, wish: Wish, choose: Chooser | None) -> str | None:
    """Give the quantization that has to be added to the wish; ``None`` where the wish is clear.

    Raises ``QuantizationWanted`` with the choices where ``choose`` is absent or picks none.
    """
    found = open_choice(snapshot.files, wish)
    if not found:
        return None
    listed = choices(found, snapshot.parameters)
    chosen = choose(listed) if choose else None
    if chosen is None:
        raise QuantizationWanted(f"{snapshot.repository} has several quantizations", listed)
    return chosen
