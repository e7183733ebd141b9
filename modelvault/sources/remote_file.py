"""Reading forward in a file that lies at a source: a header costs the first few megabytes of it."""

import time

from modelvault.artifact import SourceFile
from modelvault.errors import RangesIgnored, SourceUnavailable, Transient
from modelvault.sources import Snapshot, Source

_FIRST = 1 << 20
_LARGEST = 8 << 20
_ATTEMPTS = 5
_PATIENCE = 60.0  # seconds that a server may ask us to wait


class RemoteFile:
    """Gives the bytes of one file from its beginning, by ranged requests that grow as more is read.

    Raises ``SourceUnavailable`` where the source refuses, keeps failing, or knows no ranges.
    """

    def __init__(self, source: Source, snapshot: Snapshot, file: SourceFile) -> None:
        """Prepare; nothing is asked for yet."""
        self._source = source
        self._snapshot = snapshot
        self._file = file
        self._at = 0
        self._ahead = b""
        self._next = _FIRST

    def read(self, size: int, /) -> bytes:
        """Give up to ``size`` bytes; none at the end."""
        if len(self._ahead) < size and self._at < self._file.size:
            stop = min(self._at + max(size - len(self._ahead), self._next), self._file.size)
            self._ahead += self._fetch(self._at, stop)
            self._at = stop
            self._next = min(self._next * 2, _LARGEST)
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        return taken

    def _fetch(self, start: int, stop: int) -> bytes:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._source.open_range(self._snapshot, self._file, start, stop) as chunks:
                    return b"".join(chunks)
            except RangesIgnored as error:
                raise SourceUnavailable(
                    f"the source only serves whole files, and {self._file.path} would have to be fetched whole",
                    hint="pull it, or name another endpoint",
                ) from error
            except Transient as error:
                wait = error.retry_after or 0.25 * 2**attempt
                if attempt == _ATTEMPTS or wait > _PATIENCE:
                    raise SourceUnavailable(
                        f"{self._file.path} cannot be read: {error.reason}", hint="run the command again later"
                    ) from error
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")
