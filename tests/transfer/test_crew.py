"""The threads of a transfer, as far as they show outside it: what is said while a source is away."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from modelvault.errors import SourceUnavailable, Transient
from modelvault.progress import NoProgress
from modelvault.transfer import TransferOptions, Wanted
from modelvault.transfer.crew import Crew
from modelvault.transfer.partial import Partial

CONNECTIONS = 8
LONG = 20.0


class Pauses(threading.Event):
    """The end of a transfer, for which its workers wait between attempts: counts those who do."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        self.begun.release()
        return super().wait(timeout)


class Said(NoProgress):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def test_a_hub_that_dies_is_one_line(tmp_path: Path) -> None:
    """Breaks if every connection of every file reports the same outage, each with a pause of its own."""
    pauses, progress, calls = Pauses(), Said(), itertools.count(1)

    def away(_: int, __: int) -> AbstractContextManager[Iterator[bytes]]:
        call = next(calls)
        if call < CONNECTIONS:
            raise Transient("no connection to hub.example", retry_after=LONG + call)
        for _ in range(CONNECTIONS - 1):  # once all others wait
            pauses.begun.acquire()
        raise SourceUnavailable("enough")

    partials = []
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
        partials.append(Partial(tmp_path / name, Wanted(f"{name}.gguf", 64 << 20, None, away)))
    options = TransferOptions(connections=CONNECTIONS)
    crew = Crew(partials, options, progress, NoProgress().task("total", 0))
    crew._stop = pauses
    with pytest.raises(SourceUnavailable, match="enough"):
        crew.run()
    (line,) = progress.lines
    assert line.startswith("no connection to hub.example; trying again in 2")
