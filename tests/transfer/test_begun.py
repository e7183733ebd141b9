"""What is said of transfers under way."""

import zlib
from pathlib import Path

from modelvault.artifact import Digest
from modelvault.transfer.begun import under_way
from modelvault.transfer.partial import Partial
from modelvault.transfer.values import Wanted


def test_what_was_forgotten_is_not_here(tmp_path: Path) -> None:
    """Breaks if a listing leaves a file away, or counts it as here, that turned out wrong and comes anew."""
    size = 5_000_000
    wanted = Wanted("a.gguf", size, Digest.of_bytes(b"other"), lambda _start, _stop: NotImplemented, model="a")
    directory = tmp_path / wanted.key
    directory.mkdir()
    with Partial(directory, wanted) as partial:
        partial.allocate()
        partial.finished(0, zlib.crc32(b""))
        assert [(file.here > 0, file.size) for file in under_way(tmp_path)] == [(True, size)]
        partial.forget()
        assert [(file.here, file.size) for file in under_way(tmp_path)] == [(0, size)]
        assert partial.unallocated() == size
