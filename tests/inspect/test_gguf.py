"""The GGUF reader: right on good files, and in the face of bad ones nothing but ``InvalidModelFile``, at once."""

import io
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from imports import measured
from machines import Machine

from modelvault.artifact import ArraySummary, Digest
from modelvault.errors import InvalidModelFile
from modelvault.formats.cursor import MAX_HEADER
from modelvault.formats.ggml import FILE_TYPES, TENSOR_TYPES
from modelvault.formats.gguf import GgufHeader, read_gguf_header
from modelvault.inspect import inspect_file
from modelvault.inspect.gguf import read_gguf

UINT32, STRING, ARRAY, UINT64, BOOL, FLOAT32 = 4, 8, 9, 10, 7, 6


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(name: str, kind: int, length: int, body: bytes) -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", kind, length) + body)


def tensor(name: str, *, shape: tuple[int, ...] = (32, 2), kind: int = 0, offset: int = 0) -> bytes:
    head = text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
    return head + struct.pack("<IQ", kind, offset)


@dataclass(frozen=True)
class File:
    """A GGUF file, part by part, so that a test can spoil one of them."""

    magic: bytes = b"GGUF"
    version: int = 3
    keys: tuple[bytes, ...] = (key("general.architecture", STRING, text("llama")),)
    tensors: tuple[bytes, ...] = (tensor("a"), tensor("b", offset=256))
    key_count: int | None = None
    tensor_count: int | None = None
    data: bytes = bytes(512)
    alignment: int = 32

    def encode(self) -> bytes:
        counts = [
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.keys) if self.key_count is None else self.key_count,
        ]
        head = self.magic + struct.pack("<IQQ", self.version, *counts) + b"".join(self.keys + self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data

    def with_key(self, encoded: bytes) -> "File":
        return replace(self, keys=(*self.keys, encoded))


GOOD = File()


def read(data: bytes, *, size: int | None = None) -> GgufHeader:
    return read_gguf_header(io.BytesIO(data), len(data) if size is None else size, name="model.gguf")


BIG = 1 << 40
SPOILED: dict[str, tuple[str, bytes]] = {
    "other magic": ("gguf-magic", replace(GOOD, magic=b"GGML").encode()),
    "version 1": ("gguf-version", replace(GOOD, version=1).encode()),
    "version 4": ("gguf-version", replace(GOOD, version=4).encode()),
    "big-endian": ("gguf-big-endian", replace(GOOD, version=3 << 24).encode()),
    "only the magic": ("gguf-truncated", b"GGUF"),
    "cut in the counts": ("gguf-truncated", GOOD.encode()[:20]),
    "2^40 keys": ("gguf-count", replace(GOOD, key_count=BIG).encode()),
    "2^64-1 tensors": ("gguf-count", replace(GOOD, tensor_count=(1 << 64) - 1).encode()),
    "one key too many": ("gguf-key", replace(GOOD, tensors=(), key_count=2).encode()),
    "string of 2^63 bytes": ("gguf-truncated", GOOD.with_key(key("x", STRING, struct.pack("<Q", 1 << 63))).encode()),
    "string past the end": ("gguf-truncated", GOOD.with_key(key("x", STRING, struct.pack("<Q", 9999))).encode()),
    "key of 2^64-1 bytes": ("gguf-truncated", GOOD.with_key(struct.pack("<Q", (1 << 64) - 1)).encode()),
    "empty key": ("gguf-key", GOOD.with_key(key("", UINT32, bytes(4))).encode()),
    "key that is not UTF-8": ("gguf-key", GOOD.with_key(key(b"\xff\xfe", UINT32, bytes(4))).encode()),
    "key with a line break": ("gguf-key", GOOD.with_key(key("a\nb", UINT32, bytes(4))).encode()),
    "duplicate key": ("gguf-duplicate-key", GOOD.with_key(GOOD.keys[0]).encode()),
    "unknown value type": ("gguf-value-type", GOOD.with_key(key("x", 13, bytes(8))).encode()),
    "truth value of 2": ("gguf-bool", GOOD.with_key(key("x", BOOL, b"\x02")).encode()),
    "nested array": ("gguf-nested-array", GOOD.with_key(array("x", ARRAY, 1, bytes(12))).encode()),
    "array of an unknown type": ("gguf-value-type", GOOD.with_key(array("x", 99, 1, bytes(12))).encode()),
    "array of 2^40 numbers": ("gguf-array-length", GOOD.with_key(array("x", UINT32, BIG, b"")).encode()),
    "array of 2^61 numbers, which wraps in bytes": (
        "gguf-array-length",
        GOOD.with_key(array("x", UINT64, 1 << 61, b"")).encode(),
    ),
    "array of 2^40 strings": ("gguf-array-length", GOOD.with_key(array("x", STRING, BIG, b"")).encode()),
    "string in an array past the end": (
        "gguf-truncated",
        GOOD.with_key(array("x", STRING, 2, text("a") + struct.pack("<Q", 1 << 62))).encode(),
    ),
    "alignment 0": ("gguf-alignment", GOOD.with_key(key("general.alignment", UINT32, struct.pack("<I", 0))).encode()),
    "alignment 24": ("gguf-alignment", GOOD.with_key(key("general.alignment", UINT32, struct.pack("<I", 24))).encode()),
    "alignment 2^31": (
        "gguf-alignment",
        GOOD.with_key(key("general.alignment", UINT32, struct.pack("<I", 1 << 31))).encode(),
    ),
    "alignment as text": ("gguf-alignment", GOOD.with_key(key("general.alignment", STRING, text("32"))).encode()),
    "alignment true": ("gguf-alignment", GOOD.with_key(key("general.alignment", BOOL, b"\x01")).encode()),
    "no dimensions": ("gguf-dimensions", replace(GOOD, tensors=(tensor("a", shape=()), tensor("b"))).encode()),
    "five dimensions": ("gguf-dimensions", replace(GOOD, tensors=(tensor("a", shape=(1,) * 5),)).encode()),
    "2^32-1 dimensions": (
        "gguf-dimensions",
        replace(GOOD, tensors=(text("a") + struct.pack("<I", (1 << 32) - 1) + bytes(64),)).encode(),
    ),
    "a dimension of zero": ("gguf-dimensions", replace(GOOD, tensors=(tensor("a", shape=(32, 0)),)).encode()),
    "elements that overflow 64 bits": (
        "gguf-truncated",
        replace(GOOD, tensors=(tensor("a", shape=(1 << 32, 1 << 32, 1 << 32)),)).encode(),
    ),
    "elements that wrap to few": (
        "gguf-truncated",
        replace(GOOD, tensors=(tensor("a", shape=((1 << 62) + 8, 4)),)).encode(),
    ),
    "half a block": ("gguf-block", replace(GOOD, tensors=(tensor("a", shape=(48, 2), kind=8),)).encode()),
    "unknown tensor type": ("gguf-tensor-type", replace(GOOD, tensors=(tensor("a", kind=99),)).encode()),
    "removed tensor type": ("gguf-tensor-type", replace(GOOD, tensors=(tensor("a", kind=31),)).encode()),
    "tensor without a name": ("gguf-tensor-name", replace(GOOD, tensors=(tensor(""),)).encode()),
    "duplicate tensor": (
        "gguf-duplicate-tensor",
        replace(GOOD, tensors=(tensor("a"), tensor("a", offset=256))).encode(),
    ),
    "unaligned tensor": ("gguf-offset", replace(GOOD, tensors=(tensor("a"), tensor("b", offset=257))).encode()),
    "overlapping tensors": ("gguf-overlap", replace(GOOD, tensors=(tensor("a"), tensor("b", offset=224))).encode()),
    "the same place twice": ("gguf-overlap", replace(GOOD, tensors=(tensor("a"), tensor("b"))).encode()),
    "offset that wraps into the header": (
        "gguf-truncated",
        replace(GOOD, tensors=(tensor("a", offset=(1 << 64) - 32),)).encode(),
    ),
    "tensor past the end": ("gguf-truncated", GOOD.encode()[:-1]),
    "no data at all": ("gguf-truncated", replace(GOOD, data=b"").encode()),
}


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_header_is_refused_by_its_rule(case: str) -> None:
    """If it fails, a hostile or damaged file passes, or the user is told the wrong reason."""
    rule, data = SPOILED[case]
    with pytest.raises(InvalidModelFile) as caught:
        read(data)
    assert caught.value.rule == rule, caught.value.message


def test_good_header_is_read() -> None:
    """If it fails, the cases above prove nothing: they are spoiled copies of this file."""
    header = read(GOOD.encode())
    assert header.architecture == "llama"
    assert [(tensor.name, tensor.shape, tensor.size) for tensor in header.tensors] == [
        ("a", (32, 2), 256),
        ("b", (32, 2), 256),
    ]
    assert header.tensors[1].offset == header.data_offset + 256
    assert header.parameters == 128
    assert header.warnings == ()


def test_errors_name_file_type_and_version() -> None:
    """If it fails, the user cannot tell what is wrong with which file."""
    with pytest.raises(InvalidModelFile, match=r"model\.gguf: .*tensor a has the type 31, Q4_0_4_4"):
        read(SPOILED["removed tensor type"][1])
    with pytest.raises(InvalidModelFile, match="big-endian"):
        read(SPOILED["big-endian"][1])


def test_oddities_are_warnings() -> None:
    """If it fails, files that engines accept are refused, or odd ones pass without a word."""
    assert "no tensors" in read(replace(GOOD, tensors=(), data=b"").encode()).warnings[0]
    assert "follow the last tensor" in read(replace(GOOD, data=bytes(600)).encode()).warnings[0]
    gap = replace(GOOD, tensors=(tensor("a"), tensor("b", offset=288)), data=bytes(544))
    assert "unused bytes" in read(gap.encode()).warnings[0]
    assert "llama.cpp refuses" in read(replace(GOOD, tensors=(tensor("n" * 64),), data=bytes(256)).encode()).warnings[0]
    assert "not valid UTF-8" in read(GOOD.with_key(key("x", STRING, text(b"\xff"))).encode()).warnings[0]


def test_alignment_of_the_file_holds() -> None:
    """If it fails, files with an alignment of their own are read at wrong offsets."""
    wide = File(
        keys=(key("general.alignment", UINT32, struct.pack("<I", 4096)),),
        tensors=(tensor("a"), tensor("b", offset=4096)),
        data=bytes(4096 + 256),
        alignment=4096,
    )
    assert read(wide.encode()).tensors[1].offset == 8192


def test_arrays_are_summarized_and_short_ones_kept() -> None:
    """If it fails, the registry cannot compare vocabularies, or head counts per layer are lost."""
    numbers, words = struct.pack("<3I", 8, 8, 4), text("ein") + text("") + text("zwei")
    data = GOOD.with_key(array("heads", UINT32, 3, numbers)).with_key(array("words", STRING, 3, words)).encode()
    header = read(data)
    assert header.metadata["heads"] == ArraySummary("uint32", 3, Digest.of_bytes(numbers))
    assert header.metadata["words"] == ArraySummary("string", 3, Digest.of_bytes(words))
    assert header.arrays == {"heads": (8, 8, 4)}


def test_numbers_that_json_lacks_become_text() -> None:
    """If it fails, ``--json`` and the registry meet a NaN that they cannot hold."""
    infinite = key("x", FLOAT32, struct.pack("<f", float("inf")))
    assert read(GOOD.with_key(infinite).encode()).metadata["x"] == "inf"


def test_an_absurd_context_length_is_none() -> None:
    """If it fails, a hostile number overflows the registry's column."""
    absurd = key("llama.context_length", UINT64, struct.pack("<Q", (1 << 64) - 1))
    assert read(GOOD.with_key(absurd).encode()).context_length is None


def test_header_alone_suffices() -> None:
    """If it fails, a file cannot be judged from its first bytes, before the rest is pulled."""
    data = GOOD.encode()
    header = read(data[:-512], size=len(data))
    assert header.tensors == read(data).tensors


def test_source_shorter_than_promised_is_refused() -> None:
    """If it fails, a reader that ends early leads to a crash or an endless loop."""
    with pytest.raises(InvalidModelFile) as caught:
        read(GOOD.encode()[:40], size=4096)
    assert caught.value.rule == "gguf-truncated"


class _Endless(io.RawIOBase):
    """The first bytes of a file and then zeros for ever, as a sparse file of some TB would give."""

    def __init__(self, head: bytes) -> None:
        super().__init__()
        self.head = head
        self.given = 0

    def read(self, size: int = -1, /) -> bytes:
        piece = self.head[self.given : self.given + size].ljust(size, b"\0")
        self.given += size
        return piece


@pytest.mark.parametrize(
    "head",
    [
        b"".join(array(f"a{index}", 0, 1 << 26, b"") for index in range(1)),
        array("strings", STRING, 1 << 40, b""),
        array("numbers", UINT64, 1 << 27, b""),
        key("text", STRING, struct.pack("<Q", 1 << 30)),
    ],
    ids=["bytes", "strings", "numbers", "text"],
)
def test_a_huge_file_is_not_read_through(head: bytes) -> None:
    """If it fails, a sparse file of a terabyte keeps inspection busy or fills the memory."""
    prefix = GOOD.magic + struct.pack("<IQQ", 3, 0, 60_000) + head
    reader = _Endless(prefix)
    with pytest.raises(InvalidModelFile):
        read_gguf_header(reader, 1 << 42, name="huge.gguf")
    assert reader.given <= MAX_HEADER + (2 << 20)


def test_many_short_arrays_take_little_memory(tmp_path: Path) -> None:
    """If it fails, a file of some MB fills the memory: arrays that are worth keeping one by one are not so by the thousands."""
    body = bytes(2000)
    keys = GOOD.keys + tuple(array(f"a{index}", 0, len(body), body) for index in range(20_000))
    path = tmp_path / "arrays.gguf"
    path.write_bytes(replace(GOOD, keys=keys).encode())
    _, peak = measured(Machine(tmp_path), "inspect", path, code=0)
    assert peak < 150_000_000


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=4),
    st.one_of(st.none(), st.integers(0, 800)),
)
def test_any_damage_is_an_invalid_file_or_harmless(flips: list[tuple[int, int]], length: int | None) -> None:
    """If it fails, some damage makes the reader crash with another exception, or hang."""
    rich = GOOD.with_key(array("words", STRING, 3, text("ein") + text("zwei") + text("drei"))).with_key(
        array("heads", UINT32, 3, bytes(12))
    )
    data = bytearray(rich.encode())
    for position, mask in flips:
        data[position] ^= mask
    try:
        header = read(bytes(data[:length]))
    except InvalidModelFile:
        return
    assert all(header.data_offset <= item.offset <= item.offset + item.size <= len(data) for item in header.tensors)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_invalid_file(body: bytes) -> None:
    """If it fails, some bytes make the reader crash with another exception."""
    data = b"GGUF" + struct.pack("<I", 3) + body
    try:
        header = read(data)
    except InvalidModelFile:
        return
    assert header.version == 3


# ── against the gguf package ──


def test_our_numbers_are_those_of_the_gguf_package() -> None:
    """If it fails, a tensor type or file type is missing here or has other dimensions than in ggml."""
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {code: (kind.name, kind.block, kind.size) for code, kind in TENSOR_TYPES.items()} == theirs
    named = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    del named[int(gguf.LlamaFileType.GUESSED)]
    assert named == FILE_TYPES


def _fields(reader: gguf.GGUFReader) -> dict[str, Any]:
    own = {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"}
    return {name: field for name, field in reader.fields.items() if name not in own}


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16", "Q5_1"])
def test_agrees_with_the_gguf_package(tmp_path: Path, kind: str) -> None:
    """If it fails, good files are misread: the package reads other names, shapes, offsets or values from the same bytes."""
    import numpy as np  # noqa: PLC0415 - only here

    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_rope_freq_base(1e6)
    writer.add_causal_attention(value=True)
    writer.add_token_list(["a", "bc", "ä"])
    writer.add_token_scores([0.5, -1.0, 2.0])
    type_ = gguf.GGMLQuantizationType[kind]
    for index in range(3):
        values = np.random.default_rng(index).standard_normal((5, 64 * (index + 1)), np.float32)
        writer.add_tensor(f"t{index}", quantize(values, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    _compare(ours, theirs)
    assert ours.quantization == kind


def _compare(ours: GgufHeader, theirs: gguf.GGUFReader) -> None:
    fields = _fields(theirs)
    assert list(ours.metadata) == list(fields)
    for name, value in ours.metadata.items():
        if isinstance(value, ArraySummary):
            assert value.length == len(fields[name].data)
        else:
            assert value == fields[name].contents()
    for name, values in ours.arrays.items():
        assert list(values) == fields[name].contents()
    assert [(item.name, list(item.shape), item.offset, item.size, item.dtype) for item in ours.tensors] == [
        (item.name, item.shape.tolist(), item.data_offset, item.n_bytes, item.tensor_type.name)
        for item in theirs.tensors
    ]


def test_real_vocabularies_pass(real_vocabularies: list[Path]) -> None:
    """If it fails, files that llama.cpp's own tools wrote are refused."""
    for path in real_vocabularies:
        report = inspect_file(path)
        assert report.architecture in {"bert", "gpt2", "llama", "phi3", "qwen2"}
        assert report.tensors == 0
        assert report.quantization is None
        assert any("no tensors" in warning for warning in report.warnings)
        tokens = report.metadata["tokenizer.ggml.tokens"]
        assert isinstance(tokens, ArraySummary)
        assert tokens.length > 30_000


def test_a_real_vocabulary_agrees_with_the_gguf_package(real_vocabularies: list[Path]) -> None:
    """If it fails, keys of a real tokenizer are misread."""
    smallest = min(real_vocabularies, key=lambda path: path.stat().st_size)
    _compare(read_gguf(smallest), gguf.GGUFReader(smallest))
