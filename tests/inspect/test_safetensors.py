"""The safetensors reader, with the library of Hugging Face as the judge."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from modelvault.errors import InvalidModelFile
from modelvault.inspect.safetensors import (
    DTYPE_BITS,
    MAX_HEADER,
    SafetensorsHeader,
    read_safetensors,
    read_safetensors_header,
)

deserialize: Any = safetensors.deserialize  # it has no annotations


def encode(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(begin: int, end: int, *, dtype: Any = "U8", shape: Any = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def read(data: bytes) -> SafetensorsHeader:
    return read_safetensors_header(io.BytesIO(data), len(data), name="model.safetensors")


A, B = entry(0, 8), entry(8, 16)
GOOD = encode({"__metadata__": {"format": "pt"}, "a": A, "b": B}, bytes(16))
TWICE = b'{"a":%s,"a":%s}' % (json.dumps(A).encode(), json.dumps(B).encode())
REFUSED_BY_BOTH: dict[str, tuple[str, bytes]] = {
    "empty": ("safetensors-truncated", b""),
    "seven bytes": ("safetensors-truncated", bytes(7)),
    "header past the end": ("safetensors-truncated", struct.pack("<Q", 100) + b"{}"),
    "header of 2^64-1 bytes": ("safetensors-truncated", struct.pack("<Q", (1 << 64) - 1) + b"{}"),
    "header cut off": ("safetensors-truncated", GOOD[:40]),
    "data cut off": ("safetensors-truncated", GOOD[:-1]),
    "trailing bytes": ("safetensors-trailing", GOOD + b"x"),
    "no JSON": ("safetensors-header", encode(b"{nonsense}")),
    "not UTF-8": ("safetensors-header", encode(b'{"\xff":1}')),
    "a list": ("safetensors-header", encode(b"[]")),
    "deep nesting": ("safetensors-header", encode(b'{"a":' * 100_000)),
    "a gap": ("safetensors-gap", encode({"a": A, "b": entry(9, 17)}, bytes(17))),
    "a gap at the start": ("safetensors-gap", encode({"b": B}, bytes(16))),
    "an overlap": ("safetensors-overlap", encode({"a": A, "b": entry(7, 15)}, bytes(16))),
    "unknown type": ("safetensors-dtype", encode({"a": entry(0, 8, dtype="Q4")}, bytes(8))),
    "type is no text": ("safetensors-dtype", encode({"a": entry(0, 8, dtype=["U8"])}, bytes(8))),
    "shape and offsets differ": ("safetensors-offsets", encode({"a": entry(0, 8, shape=[9])}, bytes(8))),
    "shape overflows": ("safetensors-offsets", encode({"a": entry(0, 8, shape=[1 << 62, 8])}, bytes(8))),
    "negative shape": ("safetensors-shape", encode({"a": entry(0, 8, shape=[-8])}, bytes(8))),
    "fractional shape": ("safetensors-shape", encode({"a": entry(0, 8, shape=[8.0])}, bytes(8))),
    "half a byte": ("safetensors-offsets", encode({"a": entry(0, 1, dtype="F4", shape=[3])}, bytes(1))),
    "offsets swapped": (
        "safetensors-offsets",
        encode({"a": {"dtype": "U8", "shape": [8], "data_offsets": [8, 0]}}, bytes(8)),
    ),
    "three offsets": (
        "safetensors-offsets",
        encode({"a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8, 8]}}, bytes(8)),
    ),
    "no type": ("safetensors-entry", encode({"a": {"shape": [8], "data_offsets": [0, 8]}}, bytes(8))),
    "metadata with numbers": ("safetensors-metadata", encode({"__metadata__": {"a": 1}, "a": A}, bytes(8))),
}
REFUSED_BY_US: dict[str, tuple[str, bytes]] = {
    "duplicate keys": ("safetensors-header", encode(TWICE, bytes(16))),
    "leading space": ("safetensors-header", encode(b" " + json.dumps({"a": A}).encode(), bytes(8))),
    "name with a line break": ("safetensors-tensor-name", encode({"a\nb": A}, bytes(8))),
    "large header": ("safetensors-header-size", encode(b'{"a":1}'.ljust(MAX_HEADER + 1), b"")),
    "excess of structure": ("safetensors-header", encode(b'{"a":[' + b"0," * 4_000_000 + b"0]}")),
}


@pytest.mark.parametrize("case", [*REFUSED_BY_BOTH, *REFUSED_BY_US])
def test_spoiled_file_is_refused_by_its_rule(case: str) -> None:
    """If it fails, a damaged or hostile file passes, or the user is told the wrong reason."""
    rule, data = (REFUSED_BY_BOTH | REFUSED_BY_US)[case]
    with pytest.raises(InvalidModelFile) as caught:
        read(data)
    assert caught.value.rule == rule, caught.value.message


@pytest.mark.parametrize("case", REFUSED_BY_BOTH)
def test_the_library_refuses_it_too(case: str) -> None:
    """If it fails, we refuse what engines load."""
    with pytest.raises(safetensors.SafetensorError):
        deserialize(REFUSED_BY_BOTH[case][1])


def test_types_are_those_of_the_library() -> None:
    """If it fails, a type has other bits than in the library, or the library has learned a new one."""
    for name, bits in DTYPE_BITS.items():
        ((_, item),) = deserialize(encode({"a": entry(0, bits, dtype=name, shape=[8])}, bytes(bits)))
        assert item["dtype"] == name
    with pytest.raises(safetensors.SafetensorError) as caught:
        deserialize(encode({"a": entry(0, 8, dtype="?")}, bytes(8)))
    assert {name for name in str(caught.value).split("`") if name.replace("_", "").isupper()} == set(DTYPE_BITS)


def test_agrees_with_the_library(tmp_path: Path) -> None:
    """If it fails, good files are misread: the library reads other names, shapes or values from the same bytes."""
    path = tmp_path / "model.safetensors"
    arrays: dict[str, Any] = {
        "half": np.ones((3, 5), np.float16),
        "../../x": np.arange(7, dtype=np.int32),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(1.5, np.float64),
    }
    safetensors.numpy.save_file(arrays, path, {"format": "np", "note": "ä"})
    header = read_safetensors(path)
    data = path.read_bytes()
    assert header.metadata == {"format": "np", "note": "ä"}
    assert {item.name: item.shape for item in header.tensors} == {name: value.shape for name, value in arrays.items()}
    for item in header.tensors:
        assert data[item.offset : item.offset + item.size] == arrays[item.name].tobytes()
    assert header.report().parameters == 15 + 7 + 0 + 1


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(1, 255)), max_size=3),
    st.integers(0, len(GOOD)),
)
def test_any_damage_is_refused_or_accepted_by_both(flips: list[tuple[int, int]], length: int) -> None:
    """If it fails, some damage crashes the reader with another exception, or we accept what the library refuses."""
    data = bytearray(GOOD)
    for position, mask in flips:
        data[position] ^= mask
    damaged = bytes(data if length % 2 else data[:length])
    try:
        header = read(damaged)
    except InvalidModelFile:
        return
    theirs = {name: tuple(item["shape"]) for name, item in deserialize(damaged)}
    assert theirs == {item.name: item.shape for item in header.tensors}


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["a", "__metadata__", "b"]),
        _JSON | st.fixed_dictionaries({"dtype": _JSON, "shape": _JSON, "data_offsets": _JSON}),
    )
)
def test_any_json_is_refused_or_accepted_cleanly(header: dict[str, Any]) -> None:
    """If it fails, some JSON crashes the reader with another exception."""
    data = encode(header)
    try:
        read(data)
    except InvalidModelFile:
        return
    deserialize(data)
