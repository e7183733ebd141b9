"""Opening a bundle: limits first, then the signature over the raw bytes, and only then is anything parsed.

What lies on the drive may have been made to hurt us. No symlink is followed, no FIFO opened, no tar parsed; what a volume has
to hold is computed from the index and compared.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest
from modelvault.bundle import layout
from modelvault.bundle.codec import decompress
from modelvault.bundle.format import decode
from modelvault.bundle.index import (
    INDEX_FILE,
    MAX_INDEX,
    SIGNATURE_SIZE,
    SUMS_FILE,
    BundleRefused,
    Index,
    KeyIdentity,
    name_volumes,
    refused,
    table_name,
    volume_name,
)
from modelvault.bundle.layout import FramePlan, Literal
from modelvault.bundle.table import FrameTable, decode_table, table_limit
from modelvault.errors import ModelvaultError, TrustRefused, UsageProblem

Verify = Callable[[bytes, bytes], KeyIdentity]
"""``verify(signature, message)`` tells whose signature it is or raises ``TrustRefused``: ``KeyRing.verify``."""


class DamagedFrame(Exception):
    """Something in a volume is missing or not what it should be. Never reaches the user: reports name volume and frame."""

    def __init__(self, reason: str) -> None:
        """Keep the reason, as the end of a sentence."""
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class OpenBundle:
    """A bundle whose index was verified (``signer`` says by whom; ``None`` if that was waived) and decoded.

    ``places`` are the directories that may hold its volumes.
    """

    index: Index
    digest: Digest
    signer: KeyIdentity | None
    places: tuple[Path, ...]
    verify: Verify | None

    @cached_property
    def finished(self) -> bool:
        """Whether the bundle was written to its end in each place. Only words depend on it: nobody signed for the file that tells."""
        volumes = [volume_name(number) for number in range(1, len(self.index.volumes) + 1)]
        unfinished = [place for place in self.places if not os.path.lexists(place / SUMS_FILE)]
        holding = any(os.path.lexists(place / name) for place in unfinished for name in volumes)
        return len(unfinished) < len(self.places) and not holding

    @cached_property
    def missing(self) -> tuple[int, ...]:
        """The volumes that lie, each with its frame table, in none of the places."""
        return tuple(number for number in range(1, len(self.index.volumes) + 1) if not self.places_of(number))

    @cached_property
    def lack(self) -> str:
        """Say which volumes are missing, and why."""
        verb = "is" if len(self.missing) == 1 else "are"
        what = "missing" if self.finished else "not written yet"
        return f"{name_volumes(self.missing)} {verb} {what}"

    def places_of(self, number: int) -> tuple[Path, ...]:
        """Give the places where a volume and its frame table lie. A drive that fails is as one that is not there."""
        table = table_name(number)
        names = (volume_name(number), table, *(() if self.verify is None else (f"{table}.sig",)))
        return tuple(place for place in self.places if all(os.path.lexists(place / name) for name in names))

    def plans(self, number: int) -> tuple[FramePlan, ...]:
        """Compute what the frames of volume ``number`` must hold."""
        return tuple(layout.frames(self.index.volumes[number - 1]))


def open_bundle(path: Path, verify: Verify | None) -> OpenBundle:
    """Open the bundle in the directory ``path``. ``verify=None`` waives the signatures, and nothing else.

    Raises ``UsageProblem`` if there is no bundle, ``TrustRefused`` if it is not signed by a trusted key, ``BundleRefused`` if it
    breaks its format, ``BundleTooNew`` if it needs a later version.
    """
    raw = _read(path / INDEX_FILE, MAX_INDEX)
    if raw is None:
        raise UsageProblem(f"there is no bundle in {path}", hint="name the directory that ends in .mvbundle")
    signer = None
    if verify is not None:
        signature = _read(path / f"{INDEX_FILE}.sig", SIGNATURE_SIZE)
        if signature is None:
            raise TrustRefused(
                f"{path} has no signature ({INDEX_FILE}.sig is missing)",
                hint="copy the whole directory again: `modelvault bundle` writes the signature beside the index",
                path=str(path),
            )
        signer = verify(signature, raw)
    return OpenBundle(decode(raw), Digest.of_bytes(raw), signer, (path,), verify)


def _read(path: Path, limit: int) -> bytes | None:
    try:
        return fsio.read_regular(path, limit=limit)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelvaultError(
            f"cannot read {path}: {reason}", hint="is the drive still there, and may you read it?"
        ) from error
    except ModelvaultError as error:
        raise refused(error.message) from error


def raw_index(bundle: OpenBundle) -> tuple[bytes, bytes | None]:
    """Read the bytes of an open bundle's index again, and its signature unless that was waived.

    Raises ``BundleRefused`` if no place holds that very index any more.
    """
    for place in bundle.places:
        raw = _read(place / INDEX_FILE, MAX_INDEX)
        signature = _read(place / f"{INDEX_FILE}.sig", SIGNATURE_SIZE) if bundle.verify is not None else None
        if raw is not None and Digest.of_bytes(raw) == bundle.digest and (signature or bundle.verify is None):
            return raw, signature
    raise refused("its index changed while it was read")


def load_table(bundle: OpenBundle, number: int, plans: Sequence[FramePlan]) -> FrameTable:
    """Read and verify the frame table of a volume, wherever a valid one lies. Raises ``DamagedFrame``."""
    problem = DamagedFrame(f"its frame table {table_name(number)} is missing")
    for place in bundle.places:
        try:
            return _load_table(bundle, place, number, plans)
        except FileNotFoundError:
            continue
        except DamagedFrame as damage:
            problem = damage
    raise problem


def _load_table(bundle: OpenBundle, place: Path, number: int, plans: Sequence[FramePlan]) -> FrameTable:
    """Do so in one place. Raises ``FileNotFoundError``, ``DamagedFrame``."""
    name = table_name(number)
    try:
        data = _read(place / name, table_limit(len(plans)))
        if data is None:
            raise FileNotFoundError(name)
        if bundle.verify is not None and bundle.signer is not None:
            signature = _read(place / f"{name}.sig", SIGNATURE_SIZE)
            if signature is None:
                raise DamagedFrame(f"its frame table {name} is not signed")
            if bundle.verify(signature, data).fingerprint != bundle.signer.fingerprint:
                raise refused(f"{name} is signed by another key than the index")
        return decode_table(data, bundle.digest, number, plans)
    except ModelvaultError as error:
        reason = error.message.removeprefix("the bundle is refused: ")
        raise DamagedFrame(f"its frame table {name} is refused: {reason}") from error


@dataclass(frozen=True)
class VolumeCopy:
    """A volume's file in one place, with the table that lies beside it."""

    place: Path
    table: FrameTable
    descriptor: int

    @cached_property
    def excess(self) -> int:
        """By how many bytes the file is longer than its frames; negative if it was cut."""
        return os.fstat(self.descriptor).st_size - self.table.size

    def content(self, plan: FramePlan, position: int, *, thorough: bool) -> bytes:
        """Read, verify and decompress a frame, as ``OpenVolume.content`` does."""
        frame = self.table.frames[position]
        try:
            stored = fsio.read_exactly(self.descriptor, frame.offset, frame.stored_length)
        except OSError as error:
            raise DamagedFrame(f"it cannot be read: {(error.strerror or str(error)).lower()}") from error
        if len(stored) < frame.stored_length:
            raise DamagedFrame("it is cut off")
        if hashlib.sha256(stored).hexdigest() != frame.stored_sha256:
            raise DamagedFrame("it is damaged")
        try:
            content = decompress(stored, frame.length)
        except BundleRefused as error:
            raise DamagedFrame(error.message.removeprefix("the bundle is refused: ")) from error
        if thorough and hashlib.sha256(content).hexdigest() != frame.sha256:
            raise DamagedFrame("its content is not what its table says")
        _compare_literals(plan, content)
        return content


@dataclass(frozen=True)
class OpenVolume:
    """A volume that is there, perhaps in several places, with its verified tables. Frames may be read from several threads."""

    number: int
    plans: tuple[FramePlan, ...]
    copies: tuple[VolumeCopy, ...]

    @property
    def table(self) -> FrameTable:
        """The table of the first copy."""
        return self.copies[0].table

    def content(self, position: int) -> bytes:
        """Read, verify and decompress the frame at ``position`` (from 0), from the first copy that has it whole. Raises ``DamagedFrame``.

        Digest as stored, then zstd under the exact length, then every header and padding byte. The digest of the content is not
        compared: where each blob's own digest is checked, it would say nothing new.
        """
        problem: DamagedFrame | None = None
        for copy in self.copies:
            try:
                return copy.content(self.plans[position], position, thorough=False)
            except DamagedFrame as damage:
                problem = problem or damage
        raise problem or DamagedFrame("it is missing")


def _compare_literals(plan: FramePlan, content: bytes) -> None:
    position = 0
    for part in plan.parts:
        end = position + part.length
        if isinstance(part, Literal) and content[position:end] != part.data:
            raise DamagedFrame("its tar headers are not those that the index asks for")
        position = end


@contextmanager
def open_volume(bundle: OpenBundle, number: int, *, uncached: bool = False) -> Iterator[OpenVolume]:
    """Open a volume and its tables; ``uncached``: what is read shall come from the medium.

    Raises ``DamagedFrame`` if it is missing, is no regular file, or has no valid table.
    """
    plans = bundle.plans(number)
    problem = DamagedFrame("it is missing")
    with ExitStack() as stack:
        copies = []
        for place in bundle.places:
            try:
                copies.append(_open_copy(bundle, place, number, plans, stack))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except DamagedFrame as damage:
                problem = damage
        if not copies:
            raise problem
        if uncached:
            for copy in copies:
                fsio.forget_cached(copy.descriptor)
        yield OpenVolume(number, plans, tuple(copies))


def _open_copy(
    bundle: OpenBundle, place: Path, number: int, plans: tuple[FramePlan, ...], stack: ExitStack
) -> VolumeCopy:
    table = _load_table(bundle, place, number, plans)
    try:
        return VolumeCopy(place, table, stack.enter_context(fsio.open_regular(place / volume_name(number))))
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise DamagedFrame(f"it cannot be read: {(error.strerror or str(error)).lower()}") from error
    except ModelvaultError as error:
        raise DamagedFrame("it is not a regular file") from error
