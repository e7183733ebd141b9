"""The content of frames, read from the vault, and the digests of blobs along the way."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelvault import modelpack
from modelvault.artifact import Digest
from modelvault.bundle.index import INDEX_PATH, OCI_LAYOUT_PATH, Blob, Index
from modelvault.bundle.layout import FRAME, FramePlan, Literal, Piece


class BadBlob(Exception):
    """A blob is not what its digest says, or cannot be read. Never reaches the user: the writer says which model it is of."""

    def __init__(self, blob: Digest, what: str) -> None:
        """Name the blob, and what is wrong with it as the end of a sentence."""
        super().__init__(f"{blob} {what}")
        self.blob = blob
        self.what = what


class BlobReader:
    """Assembles the content of frames. Safe to use from several threads."""

    def __init__(self, index: Index, blob_path: Callable[[Digest], Path]) -> None:
        """``blob_path`` says where the vault keeps a blob."""
        self._blob_path = blob_path
        self._derived = {
            OCI_LAYOUT_PATH: modelpack.OCI_LAYOUT,
            INDEX_PATH: modelpack.encode_index(entry.stored for entry in index.models),
        }

    def content(self, plan: FramePlan) -> bytearray:
        """Give the bytes of a frame before compression. Raises ``BadBlob`` if a blob is too short or cannot be read."""
        content = bytearray(plan.length)
        view = memoryview(content)
        position = 0
        for part in plan.parts:
            target = view[position : position + part.length]
            if isinstance(part, Literal):
                target[:] = part.data
            elif not part.member.is_blob:
                target[:] = self._derived[part.member.path][part.offset : part.offset + part.length]
            else:
                self._fill(target, part.digest, part.offset)
            position += part.length
        return content

    def stream(self, blob: Digest, length: int) -> Iterator[bytearray]:
        """Give the first ``length`` bytes of a blob in pieces."""
        for start in range(0, length, FRAME):
            data = bytearray(min(FRAME, length - start))
            self._fill(memoryview(data), blob, start)
            yield data

    def digest(self, blob: Blob) -> Digest:
        """Compute the digest of a whole blob."""
        state = hashlib.sha256()
        for piece in self.stream(blob.digest, blob.size):
            state.update(piece)
        return Digest.sha256(state.hexdigest())

    def _fill(self, target: memoryview, blob: Digest, offset: int) -> None:
        try:
            descriptor = os.open(self._blob_path(blob), os.O_RDONLY | os.O_CLOEXEC)
            try:
                while target:
                    count = os.preadv(descriptor, [target], offset)
                    if not count:
                        raise BadBlob(blob, "is shorter than it was")
                    target = target[count:]
                    offset += count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BadBlob(blob, f"cannot be read: {(error.strerror or str(error)).lower()}") from error


class Frontier:
    """The digests of blobs, computed as their bytes pass by in order."""

    def __init__(self, sizes: Mapping[Digest, int]) -> None:
        """``sizes`` gives the size in bytes of every blob that may come."""
        self._sizes = sizes
        self._open: dict[Digest, tuple[hashlib._Hash, int]] = {}

    def catch_up(self, blob: Digest, pieces: Iterable[bytes | bytearray]) -> None:
        """Begin a blob with bytes that do not pass by in frames."""
        state, position = hashlib.sha256(), 0
        for piece in pieces:
            state.update(piece)
            position += len(piece)
        self._open[blob] = (state, position)

    def position(self, blob: Digest) -> int:
        """Give how many bytes of a blob that is not complete have passed."""
        return self._open[blob][1] if blob in self._open else 0

    def feed(self, plan: FramePlan, content: bytes | bytearray, wanted: Callable[[Piece], bool]) -> list["Verdict"]:
        """Hash the wanted pieces of a frame and judge the blobs that are complete with it."""
        verdicts = []
        position = 0
        with memoryview(content) as view:
            for part in plan.parts:
                if isinstance(part, Piece) and wanted(part):
                    with view[position : position + part.length] as data:
                        verdict = self._add(part, data)
                    if verdict is not None:
                        verdicts.append(verdict)
                position += part.length
        return verdicts

    def _add(self, piece: Piece, data: memoryview) -> "Verdict | None":
        if piece.offset != (position := self.position(piece.digest)):
            raise ValueError(f"{piece.digest} jumps from {position} to {piece.offset}")
        return self.advance(piece.digest, data)

    def advance(self, blob: Digest, data: bytes | memoryview) -> "Verdict | None":
        """Hash what follows in a blob, and judge it if it is complete with that."""
        state, position = self._open.get(blob) or (hashlib.sha256(), 0)
        state.update(data)
        position += len(data)
        if position < self._sizes[blob]:
            self._open[blob] = (state, position)
            return None
        self._open.pop(blob, None)
        return Verdict(blob, state.hexdigest())


@dataclass(frozen=True, slots=True)
class Verdict:
    """A blob all of whose bytes have passed, and the SHA-256 in hex that they have."""

    blob: Digest
    found: str

    @property
    def right(self) -> bool:
        """Whether that is the digest which the blob is named by."""
        return self.blob.hex == self.found
