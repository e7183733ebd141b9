"""A strict reader of safetensors headers (https://github.com/huggingface/safetensors#format).

Stricter than the library: duplicate keys and a header that does not start with ``{`` are refused, and what a name may be is limited.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from modelvault.artifact import FileReport, TensorInfo
from modelvault.errors import InvalidModelFile
from modelvault.formats.cursor import Readable
from modelvault.inspect.documents import parse_object, read_all
from modelvault.inspect.quantization import count_parameters
from modelvault.inspect.source import open_file

MAX_HEADER = 32 << 20
"""Bytes. The library allows 100 MB; the largest real headers have some 10, and decoding takes several times the size."""
MAX_TENSORS = 1 << 17
MAX_DIMENSIONS = 32
_LENGTH = struct.Struct("<Q")

DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""The element types that safetensors 0.8 knows, with their bits per element."""


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a safetensors header says; offsets and sizes of tensors in bytes, offsets from the start of the file."""

    metadata: Mapping[str, str]
    tensors: tuple[TensorInfo, ...]
    warnings: tuple[str, ...] = field(default=())

    def report(self) -> FileReport:
        """Reduce the header to what the registry keeps."""
        return FileReport(
            format="safetensors",
            metadata=self.metadata,
            tensors=len(self.tensors),
            parameters=count_parameters(self.tensors),
            warnings=self.warnings,
        )


def read_safetensors(path: Path, *, name: str | None = None) -> SafetensorsHeader:
    """Read and check the header of a safetensors file, called ``name`` in errors.

    Raises ``InvalidModelFile`` with a rule ``safetensors-…``, and ``OSError`` if the file cannot be read.
    """
    shown = name or path.name
    with open_file(path, shown) as (file, size):
        return read_safetensors_header(file, size, name=shown)


def read_safetensors_header(reader: Readable, size: int, *, name: str) -> SafetensorsHeader:
    """Read the header from ``reader``; ``size`` is that of the whole file in bytes, of which only the header is read."""

    def fail(rule: str, detail: str, hint: str | None = None) -> NoReturn:
        raise InvalidModelFile(name, rule, detail, hint=hint)

    prefix = read_all(reader.read, _LENGTH.size)
    if len(prefix) < _LENGTH.size:
        fail("safetensors-truncated", f"the file has only {size} bytes", "it is incomplete: download it again")
    (length,) = _LENGTH.unpack(prefix)
    if length > size - 8:
        known = "the file is incomplete, or no safetensors file at all: download it again"
        fail("safetensors-truncated", f"the header should have {length:,} bytes, the file has {size:,}", known)
    if length > MAX_HEADER:
        fail("safetensors-header-size", f"the header has {length:,} bytes, more than the {MAX_HEADER:,} allowed")
    encoded = read_all(reader.read, length)
    if len(encoded) < length:
        fail("safetensors-truncated", "the file ends within the header", "it is shorter than its listed size")
    if not encoded.startswith(b"{"):
        fail("safetensors-header", "the header does not start with {")
    document = parse_object(encoded, name, "safetensors-header")
    metadata = _metadata(document.pop("__metadata__", None), name)
    if len(document) > MAX_TENSORS:
        fail("safetensors-count", f"has {len(document):,} tensors, more than the {MAX_TENSORS:,} that are allowed")
    data = 8 + length
    tensors = tuple(_tensor(key, entry, data, name) for key, entry in document.items())
    _check_layout(tensors, data, size, name)
    return SafetensorsHeader(metadata, tensors, () if tensors else ("no tensors",))


def _metadata(value: Any, name: str) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidModelFile(name, "safetensors-metadata", "__metadata__ is not a table of strings")
    return value


def _natural(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _tensor(key: str, entry: Any, data: int, name: str) -> TensorInfo:
    """Check one entry of the header; ``data`` is the offset in the file of the first byte after it."""

    def fail(rule: str, detail: str) -> NoReturn:
        raise InvalidModelFile(name, rule, f"the tensor {key[:120]!r} {detail}")

    if not key or not key.isprintable():
        fail("safetensors-tensor-name", "has a name that is empty or not printable")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        fail("safetensors-entry", "is not described by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        fail("safetensors-dtype", f"has the unknown type {str(dtype)[:80]!r}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_natural, shape)):
        fail("safetensors-shape", f"has the impossible shape {str(shape)[:80]}")
    if not isinstance(offsets, list) or len(offsets[:3]) != len(("begin", "end")) or not all(map(_natural, offsets)):
        fail("safetensors-offsets", f"has the impossible offsets {str(offsets)[:80]}")
    begin, end = offsets
    size, rest = divmod(math.prod(shape) * bits, 8)
    if rest or end - begin != size:
        fail("safetensors-offsets", f"takes {size:,} bytes by type and shape, {end - begin:,} by its offsets")
    return TensorInfo(key, dtype, tuple(shape), data + begin, size)


def _check_layout(tensors: tuple[TensorInfo, ...], data: int, size: int, name: str) -> None:
    """The tensors cover everything after the header, without gap or overlap."""
    at, before = data, "the header"
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset != at:
            rule, where = ("safetensors-gap", "after") if tensor.offset > at else ("safetensors-overlap", "before")
            detail = (
                f"the tensor {tensor.name[:120]!r} begins {abs(tensor.offset - at):,} bytes {where} the end of {before}"
            )
            raise InvalidModelFile(name, rule, detail)
        at, before = tensor.offset + tensor.size, f"the tensor {tensor.name[:120]!r}"
    if at > size:
        raise InvalidModelFile(
            name,
            "safetensors-truncated",
            f"the file has {size:,} bytes, its tensors end at {at:,}",
            hint="the file is incomplete: download it again",
        )
    if at < size:
        raise InvalidModelFile(name, "safetensors-trailing", f"{size - at:,} bytes follow the last tensor")
