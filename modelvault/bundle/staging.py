"""Where blobs gather until they are whole: a directory of the vault that keeps what has arrived, whichever drive it came on.

```
<staging>/bundle.json, bundle.json.sig  the index that says what is gathered: a patch that comes alone needs it
<staging>/<sha256 of a blob>            its bytes, at their final length from the start
<staging>/received.log                  "<sha256 of the blob> <offset> <length> <sha256 of these bytes>" per line
```

A line of the log is a claim: whoever relies on it compares the bytes with its digest. A killed process leaves at most a torn last
line, and bytes that no line speaks of.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from modelvault import filesystem, fsio
from modelvault.artifact import Digest
from modelvault.bundle.drive import put
from modelvault.bundle.index import INDEX_FILE
from modelvault.bundle.layout import FRAME
from modelvault.bundle.pipeline import default_threads, ordered
from modelvault.bundle.ranges import Ranges
from modelvault.bundle.reader import OpenBundle, raw_index

_LOG = "received.log"
_LINE = re.compile(rb"([0-9a-f]{64}) ([0-9]{1,16}) ([0-9]{1,8}) ([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Arrival:
    """Bytes of a blob that were put in their place, and the SHA-256 in hex that they should have."""

    blob: Digest
    offset: int
    length: int
    sha256: str


class Staging:
    """One such directory. Needs the lock of whoever writes there."""

    def __init__(self, directory: Path) -> None:
        """Look at the directory; nothing is made."""
        self.directory = directory
        self._log = directory / _LOG

    def path(self, blob: Digest) -> Path:
        """Say where a blob gathers."""
        return self.directory / blob.hex

    def keep_index(self, bundle: OpenBundle) -> None:
        """Keep the index and its signature. Raises ``BundleRefused`` if the medium has another one by now."""
        if self.directory in bundle.places:
            return
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        raw, signature = raw_index(bundle)
        if signature is not None:
            put(self.directory, f"{INDEX_FILE}.sig", signature)
        put(self.directory, INDEX_FILE, raw)

    def arrivals(self) -> list[Arrival]:
        """Read what the log claims, by blob and offset. What is no line of ours says nothing."""
        try:
            data = self._log.read_bytes()
        except FileNotFoundError:
            return []
        found = {match.groups() for line in data.split(b"\n")[:-1] if (match := _LINE.fullmatch(line))}
        claims = (
            Arrival(Digest.sha256(blob.decode()), int(offset), int(length), sha256.decode())
            for blob, offset, length, sha256 in found
        )
        return sorted(
            (claim for claim in claims if claim.length <= FRAME), key=lambda claim: (claim.blob, claim.offset)
        )

    def ranges(self, *, thorough: bool = False) -> dict[Digest, Ranges]:
        """Say what has arrived, by the log; ``thorough``: only what lies there as the log says."""
        found: dict[Digest, Ranges] = {}
        with ThreadPoolExecutor(default_threads()) as pool:
            claims = [claim for claim in self.arrivals() if self.has_room_for(claim)]
            contents = ordered(pool, self.content, claims, ahead=default_threads() + 1) if thorough else claims
            for claim, content in zip(claims, contents, strict=True):
                if content is not None:
                    found.setdefault(claim.blob, Ranges()).add(claim.offset, claim.length)
        return found

    def content(self, arrival: Arrival) -> bytes | None:
        """Read what arrived; ``None`` if that is not what lies there. Safe to use from several threads."""
        try:
            with fsio.open_regular(self.path(arrival.blob)) as descriptor:
                data = fsio.read_exactly(descriptor, arrival.offset, arrival.length)
        except OSError:
            return None  # nothing there, or a disk that fails: it has to come again
        return data if hashlib.sha256(data).hexdigest() == arrival.sha256 else None

    def has_room_for(self, arrival: Arrival) -> bool:
        """Tell whether what arrived can lie there still: not if its blob was published, or given up."""
        return arrival.offset + arrival.length <= self._length(arrival.blob)

    def _length(self, blob: Digest) -> int:
        try:
            return self.path(blob).lstat().st_size
        except FileNotFoundError:
            return 0

    def stream(self, blob: Digest, offset: int) -> Iterator[bytes]:
        """Read a blob from ``offset`` to its end, in pieces."""
        with fsio.open_regular(self.path(blob)) as descriptor:
            while data := fsio.read_exactly(descriptor, offset, 4 * fsio.BLOCK):
                yield data
                offset += len(data)

    def store(self, blob: Digest, offset: int, data: bytes | memoryview) -> None:
        """Put bytes of a blob in their place. Safe to use from several threads."""
        descriptor = os.open(self.path(blob), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fsio.write_all(descriptor, data, offset)
        finally:
            os.close(descriptor)

    def create(self, blob: Digest, size: int) -> bool:
        """Make the file of a blob at its final length. ``False`` if it was there already."""
        descriptor = os.open(self.path(blob), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if size and os.fstat(descriptor).st_size == size:
                return False
            os.ftruncate(descriptor, 0)
            filesystem.preallocate(descriptor, size)
        finally:
            os.close(descriptor)
        return True

    def give_up(self, blob: Digest) -> None:
        """Let go of the bytes of a blob. The file stays, since a sync of it may be under way; what the log says of it holds no more."""
        os.truncate(self.path(blob), 0)

    def unallocated(self, blob: Digest, size: int) -> int:
        """Count the bytes of a blob for which there are no blocks yet."""
        try:
            held = 512 * self.path(blob).lstat().st_blocks
        except FileNotFoundError:
            held = 0
        return max(size - held, 0)

    def begin_log(self, arrivals: Iterable[Arrival]) -> "Log":
        """Write the log anew with what is true of it, and give it to be continued."""
        fsio.atomic_write(self._log, b"".join(map(_line, arrivals)), mode=0o600)
        return Log(self._log)


class Log:
    """The log while a run goes on."""

    def __init__(self, path: Path) -> None:
        """Open it at its end."""
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)

    def add(self, arrivals: Iterable[Arrival]) -> None:
        """Note what is in its place now."""
        data = b"".join(map(_line, arrivals))
        if data:
            os.write(self._descriptor, data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _line(arrival: Arrival) -> bytes:
    return f"{arrival.blob.hex} {arrival.offset} {arrival.length} {arrival.sha256}\n".encode()
