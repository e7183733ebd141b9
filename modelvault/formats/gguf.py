"""A strict reader of GGUF headers, versions 2 and 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

It reads what untrusted people made, so nothing is allocated or looped over before it was compared with the bytes that are left.
Array bodies are skipped and hashed rather than kept: a vocabulary of 128k tokens costs a fraction of a second and a few MB.
"""

import itertools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from modelvault.artifact import ArraySummary, Digest, FileReport, Scalar, TensorInfo
from modelvault.errors import InvalidModelFile
from modelvault.formats import ggml
from modelvault.formats.cursor import MAX_TEXT, Cursor, Readable

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_KEY = (1 << 16) - 1
MAX_ARRAY = 1 << 26
MAX_STRINGS = 1 << 22
MAX_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4
MAX_CONTEXT = 1 << 40
"""Tokens; larger numbers are hostile or placeholders, and would not fit where 64-bit signed integers are kept."""
READABLE_ARRAYS = 64
"""How many short arrays are kept; real files have a handful per architecture."""
READABLE_ARRAY = 4096
"""Arrays of numbers up to this length are kept in ``GgufHeader.arrays`` (head counts per layer, say)."""
GGML_NAME = 64
"""``GGML_MAX_NAME``: llama.cpp refuses tensor names of this many bytes or more."""

_SCALARS = {
    0: ("uint8", struct.Struct("<B")),
    1: ("int8", struct.Struct("<b")),
    2: ("uint16", struct.Struct("<H")),
    3: ("int16", struct.Struct("<h")),
    4: ("uint32", struct.Struct("<I")),
    5: ("int32", struct.Struct("<i")),
    6: ("float32", struct.Struct("<f")),
    7: ("bool", struct.Struct("<B")),
    10: ("uint64", struct.Struct("<Q")),
    11: ("int64", struct.Struct("<q")),
    12: ("float64", struct.Struct("<d")),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF header says. Shapes are in the order of the file, the fastest dimension first; offsets and sizes in bytes.

    Numbers that JSON does not know (infinities and NaN) are kept in ``metadata`` as text.
    """

    version: int
    alignment: int
    metadata: Mapping[str, Scalar | ArraySummary]
    arrays: Mapping[str, tuple[int | float | bool, ...]]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Where each metadata key, with its type and value, begins and ends in the file."""
    warnings: tuple[str, ...] = field(default=())

    @property
    def architecture(self) -> str | None:
        """``general.architecture``."""
        return self.text("general.architecture")

    @property
    def kind(self) -> str | None:
        """``general.type``: ``model``, ``adapter``, ``mmproj``, ``imatrix`` …; older files do not say."""
        return self.text("general.type")

    @property
    def parameters(self) -> int:
        """The sum of the elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def split(self) -> tuple[int, int] | None:
        """The number of this shard, from 0, and of how many; ``None`` for a file that is whole."""
        number, count = self.integer("split.no"), self.integer("split.count")
        return None if number is None or count is None or count <= 1 else (number, count)

    @property
    def context_length(self) -> int | None:
        """How many tokens the model was made for; ``None`` where that is missing or absurd."""
        length = self.integer(f"{self.architecture}.context_length")
        return length if length and 0 < length < MAX_CONTEXT else None

    @property
    def quantization(self) -> str | None:
        """The name of ``general.file_type``; where that is missing, the tensor type that holds most bytes; ``None`` if unknown."""
        if not self.tensors:
            return None
        code = self.integer("general.file_type")
        if code is not None and (name := ggml.FILE_TYPES.get(code & ~ggml.GUESSED)):
            return name
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
        return max(sizes, key=lambda name: sizes[name])

    def text(self, key: str) -> str | None:
        """Give a string from the metadata; ``None`` if it is absent or of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def integer(self, key: str) -> int | None:
        """Give an integer from the metadata; ``None`` if it is absent or of another type."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def report(self) -> FileReport:
        """Reduce the header to what the registry keeps."""
        return FileReport(
            format="gguf",
            metadata=self.metadata,
            tensors=len(self.tensors),
            parameters=self.parameters,
            architecture=self.architecture,
            quantization=self.quantization,
            warnings=self.warnings,
        )


def read_gguf_header(reader: Readable, size: int, *, name: str) -> GgufHeader:
    """Read the header from ``reader``; ``size`` is that of the whole file in bytes, of which only the header is read."""
    return _HeaderReader(Cursor(reader, size, name)).read()


class _HeaderReader:
    """Takes the header apart in the order in which it is written."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._metadata: dict[str, Scalar | ArraySummary] = {}
        self._arrays: dict[str, tuple[int | float | bool, ...]] = {}
        self._spans: dict[str, tuple[int, int]] = {}
        self._warnings: list[str] = []
        self._kept = 0  # bytes of text

    def read(self) -> GgufHeader:
        version = self._read_version()
        cursor = self._cursor
        tensor_count = cursor.count("the number of tensors")
        key_count = cursor.count("the number of metadata keys")
        # The least that a tensor and a key take: empty names, one dimension, a one-byte value.
        self._check_count("tensors", tensor_count, MAX_TENSORS, 32)
        self._check_count("metadata keys", key_count, MAX_KEYS, 13)
        for _ in range(key_count):
            self._read_key()
        alignment = self._alignment()
        tensors = [self._read_tensor(alignment) for _ in range(tensor_count)]
        data_offset = -(-cursor.offset // alignment) * alignment
        placed = self._place(tensors, data_offset, alignment)
        return GgufHeader(
            version, alignment, self._metadata, self._arrays, placed, data_offset, self._spans, tuple(self._warnings)
        )

    def _read_version(self) -> int:
        cursor = self._cursor
        magic = cursor.take(4, "the magic number")
        if magic != MAGIC:
            cursor.fail("gguf-magic", f"does not start with GGUF but with {magic!r}", hint="it is not a GGUF file")
        version = int(cursor.number(struct.Struct("<I"), "the version"))
        if int.from_bytes(version.to_bytes(4, "little"), "big") in range(1, 1 << 16) and version >= 1 << 16:
            cursor.fail(
                "gguf-big-endian",
                "is a big-endian GGUF file, which little-endian machines cannot load",
                hint="get the little-endian file, or convert it with gguf-convert-endian",
            )
        if version not in VERSIONS:
            hint = "convert the model anew with a current llama.cpp" if version < VERSIONS[0] else None
            cursor.fail("gguf-version", f"has GGUF version {version}; versions 2 and 3 are known", hint=hint)
        return version

    def _check_count(self, what: str, count: int, cap: int, least: int) -> None:
        if count * least > self._cursor.left:
            self._cursor.fail("gguf-count", f"promises {count:,} {what}, more than the file can hold")
        if count > cap:
            self._cursor.fail("gguf-count", f"has {count:,} {what}, more than the {cap:,} that are allowed")

    def _name(self, what: str, rule: str) -> str:
        raw = self._cursor.text(MAX_KEY, what)
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidModelFile(self._cursor.name, rule, f"{what} is not UTF-8: {raw[:80]!r}") from error
        if not name or not name.isprintable():
            self._cursor.fail(rule, f"{what} is empty or not printable: {raw[:80]!r}")
        return name

    def _read_key(self) -> None:
        cursor = self._cursor
        start = cursor.offset
        key = self._name("the name of a metadata key", "gguf-key")
        if key in self._metadata:
            cursor.fail("gguf-duplicate-key", f"the metadata key {key[:120]!r} appears twice")
        kind = int(cursor.number(_SCALARS[4][1], f"the type of {key}"))
        if kind == _ARRAY:
            self._metadata[key] = self._read_array(key)
        elif kind == _STRING:
            self._metadata[key] = self._read_text(key)
        elif kind in _SCALARS:
            self._metadata[key] = self._read_scalar(key, kind)
        else:
            cursor.fail("gguf-value-type", f"{key} has the unknown value type {kind}")
        self._spans[key] = (start, cursor.offset)

    def _read_text(self, key: str) -> str:
        raw = self._cursor.text(MAX_TEXT - self._kept, key)
        self._kept += len(raw)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self._warnings.append(f"{key} is not valid UTF-8")
            return raw.decode("utf-8", "replace")

    def _read_scalar(self, key: str, kind: int) -> Scalar:
        value = self._cursor.number(_SCALARS[kind][1], key)
        if kind == _BOOL:
            if value not in {0, 1}:
                self._cursor.fail("gguf-bool", f"{key} is a truth value of {value}")
            return bool(value)
        return value if math.isfinite(value) else str(value)

    def _read_array(self, key: str) -> ArraySummary:
        cursor = self._cursor
        kind = int(cursor.number(_SCALARS[4][1], f"the element type of {key}"))
        length = cursor.count(f"the length of {key}")
        if kind == _ARRAY:
            cursor.fail("gguf-nested-array", f"{key} is an array of arrays")
        if kind == _STRING:
            self._check_array(key, length, MAX_STRINGS, 8)
            return ArraySummary("string", length, Digest.sha256(cursor.skip_strings(length, key)))
        if kind not in _SCALARS:
            cursor.fail("gguf-value-type", f"{key} is an array of the unknown value type {kind}")
        element, form = _SCALARS[kind]
        self._check_array(key, length, MAX_ARRAY, form.size)
        kept = sum(len(values) for values in self._arrays.values())
        if length > READABLE_ARRAY or kept + length > READABLE_ARRAY * 16 or len(self._arrays) >= READABLE_ARRAYS:
            return ArraySummary(element, length, Digest.sha256(cursor.skip(length * form.size, key)))
        body = cursor.take(length * form.size, key)
        values = [value for (value,) in form.iter_unpack(body)]
        self._arrays[key] = tuple(map(bool, values)) if kind == _BOOL else tuple(values)
        return ArraySummary(element, length, Digest.of_bytes(body))

    def _check_array(self, key: str, length: int, cap: int, least: int) -> None:
        if length * least > self._cursor.left:
            self._cursor.fail("gguf-array-length", f"{key} promises {length:,} elements, more than the file can hold")
        if length > cap:
            self._cursor.fail("gguf-array-length", f"{key} has {length:,} elements, more than the {cap:,} allowed")

    def _alignment(self) -> int:
        alignment = self._metadata.get("general.alignment", 32)
        whole = isinstance(alignment, int) and not isinstance(alignment, bool)
        if not whole or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):  # type: ignore[operator]
            self._cursor.fail(
                "gguf-alignment",
                f"general.alignment is {str(alignment)[:80]}, not a power of two up to {MAX_ALIGNMENT:,}",
            )
        return int(alignment)  # type: ignore[arg-type]  # `whole` says so

    def _read_tensor(self, alignment: int) -> TensorInfo:
        """Read one tensor's description; its offset is still relative to the data."""
        cursor = self._cursor
        name = self._name("the name of a tensor", "gguf-tensor-name")
        dimensions = int(cursor.number(_SCALARS[4][1], f"the dimensions of {name}"))
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            cursor.fail("gguf-dimensions", f"the tensor {name} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
        shape = tuple(cursor.count(f"the shape of {name}") for _ in range(dimensions))
        if 0 in shape:
            cursor.fail("gguf-dimensions", f"the tensor {name} has a dimension of zero: {shape}")
        kind = self._tensor_type(name, int(cursor.number(_SCALARS[4][1], f"the type of {name}")))
        if shape[0] % kind.block:
            cursor.fail(
                "gguf-block",
                f"the rows of the tensor {name} have {shape[0]:,} elements, not whole blocks of {kind.block}",
            )
        offset = cursor.count(f"the offset of {name}")
        if offset % alignment:
            cursor.fail("gguf-offset", f"the tensor {name} starts at {offset:,}, not a multiple of {alignment}")
        return TensorInfo(name, kind.name, shape, offset, math.prod(shape) // kind.block * kind.size)

    def _tensor_type(self, name: str, code: int) -> ggml.TensorType:
        kind = ggml.TENSOR_TYPES.get(code)
        if kind is None:
            removed = ggml.REMOVED_TENSOR_TYPES.get(code)
            self._cursor.fail(
                "gguf-tensor-type",
                f"the tensor {name} has the type {code}, "
                + (f"{removed}, which ggml no longer has" if removed else "which is unknown here"),
                hint="get the model quantized anew" if removed else "a newer release of modelvault may know it",
            )
        return kind

    def _place(self, tensors: list[TensorInfo], data_offset: int, alignment: int) -> tuple[TensorInfo, ...]:
        """Turn relative into absolute offsets; check that all lie within the file, side by side."""
        cursor = self._cursor
        if len({tensor.name for tensor in tensors}) != len(tensors):
            names = sorted(tensor.name for tensor in tensors)
            twice = next(name for name, after in itertools.pairwise(names) if name == after)
            cursor.fail("gguf-duplicate-tensor", f"the tensor {twice} appears twice")
        placed = tuple(
            TensorInfo(tensor.name, tensor.dtype, tensor.shape, data_offset + tensor.offset, tensor.size)
            for tensor in tensors
        )
        end, before, gaps = data_offset, "the header", 0
        for tensor in sorted(placed, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                cursor.fail("gguf-overlap", f"the tensor {tensor.name} begins within {before}")
            if tensor.offset + tensor.size > cursor.size:
                cursor.fail(
                    "gguf-truncated",
                    f"the file has {cursor.size:,} bytes, but the tensor {tensor.name} ends at {tensor.offset + tensor.size:,}",
                    hint="the file is incomplete: download it again",
                )
            gaps += tensor.offset - end >= alignment
            end, before = tensor.offset + tensor.size, f"the tensor {tensor.name}"
        self._warn(placed, gaps, cursor.size - end, alignment)
        return placed

    def _warn(self, tensors: tuple[TensorInfo, ...], gaps: int, trailing: int, alignment: int) -> None:
        if not tensors:
            self._warnings.append("no tensors: it holds a vocabulary or metadata only")
        elif trailing >= alignment:
            self._warnings.append(f"{trailing:,} bytes follow the last tensor")
        if gaps:
            self._warnings.append(f"unused bytes before {gaps} tensors; llama.cpp expects none")
        long = [tensor.name for tensor in tensors if len(tensor.name.encode()) >= GGML_NAME]
        if long:
            self._warnings.append(f"llama.cpp refuses tensor names of {GGML_NAME} bytes or more: {long[0][:120]}")
