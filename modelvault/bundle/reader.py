"""Opening a bundle: limits first, then the signature over the raw bytes, and only then is anything parsed.

What lies on the drive may have been made to hurt us. No symlink is followed, no FIFO opened, no tar parsed; what a volume has
to hold is computed from the index and compared.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


class Damage(Exception):
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
        """Whether the bundle was written to its end. Only words depend on it: nobody signed for the file that tells."""
        return any(os.path.lexists(place / SUMS_FILE) for place in self.places)

    @cached_property
    def missing(self) -> tuple[int, ...]:
        """The volumes that are not there, or whose frame table is not."""
        return tuple(
            number for number in range(1, len(self.index.volumes) + 1) if not all(map(self._there, self._files(number)))
        )

    @cached_property
    def lack(self) -> str:
        """Say which volumes are missing, and why."""
        verb = "is" if len(self.missing) == 1 else "are"
        what = "missing" if self.finished else "not written yet"
        return f"{name_volumes(self.missing)} {verb} {what}"

    def _files(self, number: int) -> tuple[str, ...]:
        table = table_name(number)
        signature = () if self.verify is None else (f"{table}.sig",)
        return volume_name(number), table, *signature

    def _there(self, name: str) -> bool:
        return any(os.path.lexists(place / name) for place in self.places)

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
                f"the bundle in {path} is not signed", hint="bundles are signed when modelvault bundle writes them"
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


def load_table(bundle: OpenBundle, number: int, plans: Sequence[FramePlan]) -> FrameTable:
    """Read and verify the frame table of a volume. Raises ``Damage``."""
    name = table_name(number)
    problem = Damage(f"its frame table {name} is missing")
    for place in bundle.places:
        try:
            data = _read(place / name, table_limit(len(plans)))
            if data is None:
                continue
            if bundle.verify is not None and bundle.signer is not None:
                signature = _read(place / f"{name}.sig", SIGNATURE_SIZE)
                if signature is None:
                    problem = Damage(f"its frame table {name} is not signed")
                    continue
                if bundle.verify(signature, data).fingerprint != bundle.signer.fingerprint:
                    raise refused(f"{name} is signed by another key than the index")
            return decode_table(data, bundle.digest, number, plans)
        except BundleRefused as error:
            problem = Damage(
                f"its frame table {name} is refused: {error.message.removeprefix('the bundle is refused: ')}"
            )
        except ModelvaultError as error:
            problem = Damage(f"its frame table {name} is refused: {error.message}")
    raise problem


@dataclass(frozen=True)
class OpenVolume:
    """A volume that is there, with its verified table. Frames may be read from several threads."""

    number: int
    table: FrameTable
    plans: tuple[FramePlan, ...]
    descriptor: int

    @cached_property
    def excess(self) -> int:
        """By how many bytes the file is longer than its frames; negative if it was cut."""
        return os.fstat(self.descriptor).st_size - self.table.size

    def content(self, position: int, *, thorough: bool = False) -> bytes:
        """Read, verify and decompress the frame at ``position`` (from 0). Raises ``Damage``.

        Digest as stored, then zstd under the exact length, then every header and padding byte. The digest of the content is
        only compared when ``thorough``: where each blob's own digest is checked, it would say nothing new.
        """
        frame, plan = self.table.frames[position], self.plans[position]
        try:
            stored = fsio.read_exactly(self.descriptor, frame.offset, frame.stored_length)
        except OSError as error:
            raise Damage(f"it cannot be read: {(error.strerror or str(error)).lower()}") from error
        if len(stored) < frame.stored_length:
            raise Damage("it is cut off")
        if hashlib.sha256(stored).hexdigest() != frame.stored_sha256:
            raise Damage("it is damaged")
        try:
            content = decompress(stored, frame.length)
        except BundleRefused as error:
            raise Damage(error.message.removeprefix("the bundle is refused: ")) from error
        if thorough and hashlib.sha256(content).hexdigest() != frame.sha256:
            raise Damage("its content is not what its table says")
        _compare_literals(plan, content)
        return content


def _compare_literals(plan: FramePlan, content: bytes) -> None:
    position = 0
    for part in plan.parts:
        end = position + part.length
        if isinstance(part, Literal) and content[position:end] != part.data:
            raise Damage("its tar headers are not those that the index asks for")
        position = end


@contextmanager
def open_volume(bundle: OpenBundle, number: int) -> Iterator[OpenVolume]:
    """Open a volume and its table. Raises ``Damage`` if it is missing, is no regular file, or has no valid table."""
    plans = bundle.plans(number)
    table = load_table(bundle, number, plans)
    name = volume_name(number)
    problem = Damage("it is missing")
    for place in bundle.places:
        try:
            opened = fsio.open_regular(place / name)
            descriptor = opened.__enter__()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problem = Damage(f"it cannot be read: {(error.strerror or str(error)).lower()}")
            continue
        except ModelvaultError:
            problem = Damage("it is not a regular file")
            continue
        try:
            yield OpenVolume(number, table, plans, descriptor)
        finally:
            opened.__exit__(None, None, None)
        return
    raise problem
