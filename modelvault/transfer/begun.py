"""What lies in ``partial/``, looked at without touching anything: for plans and listings."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelvault.transfer.geometry import piece_size
from modelvault.transfer.journal import read_claims
from modelvault.transfer.partial import Partial
from modelvault.transfer.values import Wanted


@dataclass(frozen=True, slots=True)
class Begun:
    """What earlier runs brought of a file, and the room on disk that it still has to find; in bytes.

    ``here`` is what the journal claims; a transfer still compares it with the data.
    """

    here: int
    unallocated: int


@dataclass(frozen=True, slots=True)
class UnderWay:
    """One file that a transfer brings or brought a part of, and the model that it was for, if that was noted."""

    model: str | None
    here: int
    size: int


def begun(partial: Path, wanted: Wanted) -> Begun:
    """Look at one file that is wanted."""
    state = Partial(partial / wanted.key, wanted)
    return Begun(state.reused, state.unallocated())


def under_way(partial: Path) -> Iterator[UnderWay]:
    """Look at every file in ``partial/``, whether a process works on it now or not."""
    for journal in sorted(partial.glob("*/journal")):
        with contextlib.suppress(FileNotFoundError):  # published between two of our steps
            size = journal.with_name("data").stat().st_size
            piece = piece_size(size)
            here = sum(min(piece, size - index * piece) for index in read_claims(journal, size))
            yield UnderWay(_model(journal.with_name("model")), here, size)


def _model(note: Path) -> str | None:
    try:
        return note.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None  # an older release did not say
