"""A pull whose outcome is known beforehand: the files of a lock, from their commit, with their digests and no others."""

from collections.abc import Mapping
from dataclasses import dataclass

from modelvault.artifact import Algorithm, Digest
from modelvault.errors import DigestMismatch
from modelvault.sources import Snapshot
from modelvault.sources.selection import Selection

_HINT = "the source is not what it was, or not the same: compare endpoint and lock, or move the lock with --update"


@dataclass(frozen=True, slots=True)
class Pin:
    """Where a model comes from, and each of its files by path: size in bytes and SHA-256."""

    repository: str
    commit: str
    files: Mapping[str, tuple[int, Digest]]


def pinned(snapshot: Snapshot, pin: Pin) -> Selection:
    """Choose exactly the files of the pin. Raises ``DigestMismatch`` where the source lists other ones at this commit."""
    if snapshot.commit != pin.commit:
        raise DigestMismatch(
            f"{pin.repository}: the source gives commit {snapshot.commit} for {pin.commit}", hint=_HINT
        )
    listed = {file.path: file for file in snapshot.files}
    for path, (size, digest) in pin.files.items():
        file = listed.get(path)
        if file is None:
            raise DigestMismatch(f"{path}: the source has no such file at commit {pin.commit}", hint=_HINT, path=path)
        promised = file.digest if file.digest and file.digest.algorithm is Algorithm.SHA256 else digest
        if (file.size, promised) != (size, digest):
            raise DigestMismatch(
                f"{path}: the source has {promised} ({file.size:,} bytes), and {digest} ({size:,} bytes) is locked",
                hint=_HINT,
                path=path,
            )
    chosen = tuple(file for file in snapshot.files if file.path in pin.files)
    return Selection(chosen, tuple(file for file in snapshot.files if file.path not in pin.files))


def check_pinned(pin: Pin, digests: Mapping[str, Digest]) -> None:
    """Compare what was received. Raises ``DigestMismatch``."""
    for path, (_, digest) in pin.files.items():
        if digests[path] != digest:
            raise DigestMismatch(
                f"{path}: the source's bytes have {digests[path]}, and {digest} is locked", hint=_HINT, path=path
            )
