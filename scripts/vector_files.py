"""Test vectors: the text files in ``tests/vectors``, and bundles forged for them, right and wrong.

A vector is a text file: lines ``key: value``, an empty line, then files, each with a line ``== <path> <kind>`` before it: ``text``
(the next line is all of it), ``base64`` (up to the next ``==``), ``link <target>`` or ``gone``. With ``like: <name>`` it has the
files of that vector besides, and ``gone`` takes one of them away.

Bundles are forged with no zstd: runs of equal bytes become RLE blocks, the rest raw ones, so that any version of any library
gives the same bytes.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from modelvault import modelpack
from modelvault.artifact import Digest
from modelvault.bundle.format import encode
from modelvault.bundle.index import Index, table_name, volume_name
from modelvault.bundle.layout import FramePlan, Literal, frames
from modelvault.bundle.table import Frame, FrameTable, encode_table

BLOCK = 128 << 10
_RUN = re.compile(rb"(.)\1{15,}", re.DOTALL)
_LINE = 100


@dataclass(frozen=True)
class Link:
    """A symbolic link where a file should be."""

    target: str


Files = dict[str, "bytes | Link"]


@dataclass(frozen=True)
class Vector:
    """One vector. ``expect`` is the outcome of reading it, ``key`` the trusted public key in DER."""

    name: str
    expect: str
    why: str
    key: bytes
    files: Files

    def write(self, directory: Path) -> Path:
        """Lay out the files, and the key as ``key.pub`` beside them; gives the bundle's directory."""
        bundle = directory / "bundle"
        for path, content in self.files.items():
            place = bundle / path
            if path.startswith(("base/", "original/")):
                place = directory / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Link):
                place.symlink_to(content.target)
            else:
                place.write_bytes(content)
        pem = f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(self.key).decode()}\n-----END PUBLIC KEY-----\n"
        (directory / "key.pub").write_text(pem, encoding="ascii")
        return bundle


class Key:
    """A signing key that follows from a text."""

    def __init__(self, seed: str) -> None:
        """Make it."""
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(seed.encode()).digest())
        self.der = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, name: str, data: bytes) -> Files:
        """Give a document with its signature."""
        return {name: data, f"{name}.sig": self._key.sign(data)}


# ── the text form ──


def to_text(vector: Vector, like: Vector | None = None) -> str:
    """Write a vector; ``like`` is one that it has files in common with."""
    lines = [f"expect: {vector.expect}", f"why: {vector.why}", f"key: {base64.b64encode(vector.key).decode()}"]
    before: Files = {}
    if like:
        lines.append(f"like: {like.name}")
        before = like.files
    lines.append("")
    for path in sorted({*before, *vector.files}):
        if path not in vector.files:
            lines.append(f"== {path} gone")
        elif before.get(path) != vector.files[path]:
            lines += _file(path, vector.files[path])
    return "".join(f"{line}\n" for line in lines)


def _file(path: str, content: bytes | Link) -> Iterator[str]:
    if isinstance(content, Link):
        yield f"== {path} link {content.target}"
    elif content and not re.search(rb"[\x00-\x1f\x7f-\xff]", content):
        yield f"== {path} text"
        yield content.decode("ascii")
    else:
        yield f"== {path} base64"
        text = base64.b64encode(content).decode()
        yield from (text[start : start + _LINE] for start in range(0, len(text), _LINE))


def from_text(path: Path) -> Vector:
    """Read a vector. Raises ``ValueError`` for anything that is not in the form above."""
    head, separator, body = path.read_text(encoding="ascii").partition("\n\n")
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    unknown = fields.keys() - {"expect", "why", "key", "like"}
    if not separator or unknown:
        raise ValueError(f"{path} is no vector: {unknown or 'no files'}")
    files: Files = {}
    if "like" in fields:
        files |= from_text(path.with_name(f"{fields['like']}.vector")).files
    for section in body.split("== ")[1:]:
        title, _, content = section.partition("\n")
        name, kind, *target = title.split(" ")
        if kind == "gone":
            del files[name]
        elif kind == "link":
            files[name] = Link(target[0])
        elif kind == "text":
            files[name] = content.removesuffix("\n").encode("ascii")
        elif kind == "base64":
            files[name] = binascii.a2b_base64(content)
        else:
            raise ValueError(f"{path}: {title}")
    return Vector(path.stem, fields["expect"], fields["why"], base64.b64decode(fields["key"]), files)


# ── bundles ──


def pack(content: bytes) -> bytes:
    """Make a zstd frame of raw and RLE blocks (RFC 8878, 3.1.1.2) with its content size in the header."""
    blocks: list[tuple[int, int, bytes]] = []  # type, size, bytes
    position = 0
    for run in _RUN.finditer(content):
        blocks += _raw(content[position : run.start()])
        blocks += [
            (1, min(BLOCK, run.end() - start), content[start : start + 1])
            for start in range(run.start(), run.end(), BLOCK)
        ]
        position = run.end()
    blocks += _raw(content[position:])
    parts = [b"\x28\xb5\x2f\xfd\x80\x38", len(content).to_bytes(4, "little")]
    for number, (kind, size, data) in enumerate(blocks, 1):
        parts += ((size << 3 | kind << 1 | (number == len(blocks))).to_bytes(3, "little"), data)
    return b"".join(parts)


def _raw(content: bytes) -> Iterator[tuple[int, int, bytes]]:
    for start in range(0, len(content), BLOCK):
        part = content[start : start + BLOCK]
        yield 0, len(part), part


def contents(index: Index, number: int, blobs: Mapping[Digest, bytes]) -> list[bytes]:
    """Give the content of each frame of a volume."""
    listing = modelpack.encode_index(entry.stored for entry in index.models)
    known = {Digest.of_bytes(data): data for data in (modelpack.OCI_LAYOUT, listing)} | dict(blobs)

    def content(plan: FramePlan) -> bytes:
        return b"".join(
            part.data if isinstance(part, Literal) else known[part.digest][part.offset : part.offset + part.length]
            for part in plan.parts
        )

    return [content(plan) for plan in frames(index.volumes[number - 1])]


def volume(
    raw_index: bytes, number: int, content: Sequence[bytes], key: Key, store: Callable[[bytes], bytes] = pack
) -> Files:
    """Make a volume of frames with this content, and its signed table."""
    rows: list[Frame] = []
    stored = [store(part) for part in content]
    for part, frame in zip(content, stored, strict=True):
        offset = rows[-1].end if rows else 0
        rows.append(
            Frame(offset, len(frame), hashlib.sha256(frame).hexdigest(), len(part), hashlib.sha256(part).hexdigest())
        )
    table = FrameTable(Digest.of_bytes(raw_index), number, tuple(rows))
    return {volume_name(number): b"".join(stored)} | key.sign(table_name(number), encode_table(table))


def bundle(index: Index, blobs: Mapping[Digest, bytes], key: Key, store: Callable[[bytes], bytes] = pack) -> Files:
    """Make a whole bundle."""
    raw = encode(index)
    files = key.sign("bundle.json", raw)
    for number in range(1, len(index.volumes) + 1):
        files |= volume(raw, number, contents(index, number, blobs), key, store)
    return files
