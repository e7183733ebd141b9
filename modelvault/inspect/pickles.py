"""What a pickle would call when it is loaded, told without loading it. The only module that imports picklescan.

A scan is a signal, not a proof: a pickle in which nothing dangerous was found may still be. What cannot be read to its end counts as
dangerous, since whoever loads it may read further than we did.
"""

import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from picklescan.relaxed_zipfile import RelaxedZipFile
from picklescan.scanner import SafetyLevel, ScanResult, scan_pickle_bytes, scan_pytorch
from picklescan.torch import InvalidMagicError

from modelvault.inspect.documents import read_all
from modelvault.inspect.source import open_file

MAX_PICKLE = 4 << 20
"""Bytes of one pickle, tensors beside it not counted; those of real models have some 100 for each tensor. The scan takes 100 for each byte."""

_ZIP = b"PK\x03\x04"
_COMPRESSED = (
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"7z\xbc\xaf",
    b"\x28\xb5\x2f\xfd",
    b"\x04\x22\x4d\x18",
    b"\x78\x01",
    b"\x78\x9c",
    b"\x78\xda",
)
_SUFFIXES = (".pkl", ".pickle", ".joblib")
_PROTOCOLS = tuple(b"\x80" + bytes([number]) for number in range(6))

# It logs what it finds, and without a handler Python would print that.
logging.getLogger("picklescan").addHandler(logging.NullHandler())
logging.getLogger("picklescan").propagate = False


@dataclass(frozen=True, slots=True)
class PickleScan:
    """What was found in the pickles of a model: ``dangerous`` and ``suspicious`` things, each with the file that it is in."""

    dangerous: tuple[str, ...] = ()
    suspicious: tuple[str, ...] = ()


def scan_pickles(files: Mapping[str, Path]) -> PickleScan:
    """Scan files that hold pickles; ``files`` maps paths within the model to where the bytes lie. Raises ``OSError``."""
    dangerous: list[str] = []
    suspicious: list[str] = []
    for path, place in sorted(files.items()):
        with open_file(place, path) as (file, _):
            for text, bad in _scan(file):
                (dangerous if bad else suspicious).append(f"{path}: {text}")
    return PickleScan(tuple(dict.fromkeys(dangerous)), tuple(dict.fromkeys(suspicious)))


def _scan(file: BinaryIO) -> Iterator[tuple[str, bool]]:
    """Say what a file would call, each time with whether that is dangerous."""
    head = file.read(len(_ZIP))
    file.seek(0)
    try:
        if head.startswith(_COMPRESSED):
            raise ValueError("it is compressed")
        for result in _members(file) if head == _ZIP else [_one(_Beginning(file))]:
            yield from _told(result)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 (a hostile file finds the one that nobody thought of: it counts as not read)
        yield f"cannot be looked through: {str(error)[:120] or type(error).__name__}", True


def _members(file: BinaryIO) -> Iterator[ScanResult]:
    """Scan the pickles in an archive of PyTorch's, one after the other. Every member has to be one that can be opened."""
    with RelaxedZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as data:
                head = data.read(len(_PROTOCOLS[0]))
            if not head.startswith(_PROTOCOLS) and not member.filename.lower().endswith(_SUFFIXES):
                continue
            if member.file_size > MAX_PICKLE:
                raise ValueError(f"{member.filename[:80]} has {member.file_size:,} bytes")
            with archive.open(member) as data:
                yield scan_pickle_bytes(io.BytesIO(data.read()), member.filename)


def _one(data: "_Beginning") -> ScanResult:
    """Scan a file that is a pickle, or begins with those of PyTorch before 1.6."""
    try:
        return scan_pytorch(data, "pickle")
    except InvalidMagicError:
        data.seek(0)
        return scan_pickle_bytes(data, "pickle")


def _told(result: ScanResult) -> Iterator[tuple[str, bool]]:
    for found in sorted(result.globals, key=lambda found: (found.module, found.name)):
        if found.safety is not SafetyLevel.Innocuous:
            yield f"{found.module}.{found.name}"[:120], found.safety is SafetyLevel.Dangerous
    if result.scan_err:
        yield "cannot be read to its end", True


class _Beginning(io.BytesIO):
    """The first bytes of a file, more than any pickle of a model has. To come to their end where the file goes on is an error."""

    def __init__(self, file: BinaryIO) -> None:
        """Read them."""
        data = read_all(file.read, MAX_PICKLE)
        super().__init__(data)
        self._size = len(data)
        self._goes_on = bool(file.read(1))

    def read(self, size: int | None = -1, /) -> bytes:
        """Read; raises ``ValueError`` at the end."""
        return self._within(super().read(size))

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read a line; raises ``ValueError`` at the end."""
        return self._within(super().readline(size))

    def _within(self, data: bytes) -> bytes:
        if self._goes_on and self.tell() >= self._size:
            raise ValueError(f"it has more than {MAX_PICKLE:,} bytes")
        return data
