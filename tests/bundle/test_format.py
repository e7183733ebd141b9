"""The pure part: index, tar, frames, frame table, codec."""

import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from bundle_world import MIB, World, noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_values import edited, indexes, source

from modelvault.artifact import Digest
from modelvault.bundle import layout
from modelvault.bundle.codec import compress, decompress
from modelvault.bundle.format import canonical_json, decode, encode
from modelvault.bundle.index import (
    MAX_INDEX,
    MAX_MEMBER,
    MAX_SEQUENCE,
    MAX_VOLUME,
    BundleRefused,
    BundleTooNew,
    Index,
    name_volumes,
)
from modelvault.bundle.layout import END, FRAME, OWN_FRAMES, Literal
from modelvault.bundle.plan import PlanOptions, next_sequence, plan_index
from modelvault.bundle.table import Frame, FrameTable, decode_table, encode_table
from modelvault.bundle.written import Written
from modelvault.errors import UsageProblem


@given(indexes())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_plan_is_valid_and_round_trips(index: Index) -> None:
    """Whatever is planned passes the reader's own rules and comes back equal: writer and reader agree on the format."""
    assert decode(encode(index)) == index
    for members in index.volumes:
        assert layout.volume_length(members) <= index.volume_size
        assert all(member.size <= MAX_MEMBER for member in members)


@given(indexes())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_frames_tile_the_tar(index: Index) -> None:
    """Frames hold the whole tar in order, none above its limit, none mixing large data with anything else."""
    for members in index.volumes:
        plans = list(layout.frames(members))
        assert sum(plan.length for plan in plans) == layout.volume_length(members)
        for plan in plans:
            assert 0 < plan.length <= FRAME
            assert plan.length == sum(part.length for part in plan.parts)
            large = [piece for piece in plan.pieces if piece.member.size >= OWN_FRAMES]
            assert not large or plan.own is not None
        last = plans[-1].parts[-1]
        assert isinstance(last, Literal)
        assert last.data == END


@given(st.lists(st.integers(0, 5000), max_size=5))
def test_headers_are_what_tarfile_writes(sizes: list[int]) -> None:
    """Our headers are ordinary ustar: Python's tarfile reads every field as we meant it."""
    index = plan_index([source("m", sizes)], PlanOptions("models", 1, 2 * MIB))
    (members,) = index.volumes
    data = bytearray()
    for plan in layout.frames(members):
        for part in plan.parts:
            data += part.data if isinstance(part, Literal) else b"x" * part.length
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as archive:
        found = archive.getmembers()
    assert [(entry.name, entry.size) for entry in found] == [(member.path, member.size) for member in members]
    for entry in found:
        assert entry.isreg()
        assert (entry.mode, entry.uid, entry.gid, entry.mtime) == (0o444, 0, 0, 0)
        assert (entry.uname, entry.gname, entry.linkname) == ("", "", "")


def test_header_bytes(tmp_path: Path) -> None:
    """The very bytes that GNU tar writes for such a file in ustar format, so that no reader is surprised."""
    name = "slices/sha256/" + "a" * 64 + "/0000000000000000"
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x" * 70_000)
    options = ["--format=ustar", "--owner=0", "--group=0", "--numeric-owner", "--mode=0444", "--mtime=@0"]
    made = subprocess.run(["tar", *options, "-cf", "-", name], cwd=tmp_path, capture_output=True, check=True)
    assert layout.header(name, 70_000) == made.stdout[:512]


@pytest.mark.parametrize(("path", "size"), [("a" * 101, 0), ("a", 8**11), ("a", -1)])
def test_header_limits(path: str, size: int) -> None:
    """A header that ustar cannot hold is refused, not truncated."""
    with pytest.raises(ValueError, match="no ustar header"):
        layout.header(path, size)


@given(st.binary(max_size=3000) | st.integers(0, 2 * MIB).map(lambda size: noise(size, size)))
@settings(max_examples=40)
def test_codec_round_trip(content: bytes) -> None:
    """What is compressed comes back, whichever way it was stored, in at most the stored limit."""
    stored = b"".join(bytes(part) for part in compress(bytearray(content)))
    assert decompress(stored, len(content)) == content
    for wrong in (len(content) + 1, len(content) - 1):
        with pytest.raises(BundleRefused):
            decompress(stored, wrong)


def test_codec_refuses_what_follows() -> None:
    """A second frame or stray bytes behind a frame are refused: python-zstandard alone would pass over them."""
    stored = b"".join(bytes(part) for part in compress(bytearray(b"one")))
    for extra in (stored, b"x", b"\0" * 100):
        with pytest.raises(BundleRefused):
            decompress(stored + extra, 3)


def hostile_indexes(data: bytes) -> dict[str, bytes]:
    document = json.loads(data)

    def member(volume: int, position: int, **changes: Any) -> bytes:
        volumes = json.loads(json.dumps(document["volumes"]))
        volumes[volume]["members"][position] |= changes
        return edited(data, volumes=volumes)

    def dropped(volume: int, position: int) -> bytes:
        volumes = json.loads(json.dumps(document["volumes"]))
        del volumes[volume]["members"][position]
        return edited(data, volumes=volumes)

    volumes = document["volumes"]
    again = [*volumes[:-1], {"members": [*volumes[-1]["members"], volumes[-1]["members"][-1]]}]
    return {
        "empty": b"",
        "not json": b"{",
        "not utf-8": b'{"format":"\xff"}',
        "lone surrogate": edited(data).replace(b'"label":"models"', b'"label":"\\ud800"'),
        "list": b"[]",
        "spaces": json.dumps(document, sort_keys=True).encode(),
        "key twice": data.replace(b'"label":"models"', b'"label":"other","label":"models"'),
        "unknown key": edited(data, comment="hello"),
        "missing key": edited(data, blobs=...),
        "deep": b'{"format":"modelvault-bundle/1","requires":[],"z":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "many containers": b'{"format":"modelvault-bundle/1","requires":[' + b"[]," * 5_000_000 + b"[]]}",
        "many requirements": edited(data, requires=["a/1"] * 5000),
        "requirement of another type": edited(data, requires=[1]),
        "shell in a requirement": edited(data, requires=["a b; rm/1"]),
        "label with a slash": edited(data, label="../x"),
        "sequence zero": edited(data, sequence=0),
        "sequence negative": edited(data, sequence=-1),
        "sequence a float": edited(data, sequence=7.5),
        "sequence huge": edited(data, sequence=1 << 70),
        "tiny volumes": edited(data, volume_size=512),
        "volumes without end": edited(data, volume_size=MAX_VOLUME + 1),
        "volumes longer than they say": edited(data, volume_size=2 * MIB),
        "no volumes": edited(data, volumes=[]),
        "empty volume": edited(data, volumes=[*volumes, {"members": []}]),
        "no models": edited(data, models=[]),
        "two models of one name": edited(data, models=[document["models"][0]] * 2),
        "manifest of nothing": edited(data, models=[{**document["models"][0], "manifest": "{}"}]),
        "config of another": edited(
            data, models=[{**document["models"][0], "config": document["models"][1]["config"]}]
        ),
        "bad model name": edited(data, models=[{**document["models"][0], "name": "../../etc"}]),
        "recipe unknown": edited(data, models=[{**document["models"][0], "recipe": '{"run":"rm"}'}]),
        "blob twice": edited(data, blobs=[*document["blobs"], document["blobs"][0]]),
        "blob of another size": edited(data, blobs=[{**document["blobs"][0], "size": 5}, *document["blobs"][1:]]),
        "blob nobody needs": edited(data, blobs=[*document["blobs"], {"digest": "sha256:" + "0" * 64, "size": 1}]),
        "blob of sha1": edited(data, blobs=[{"digest": "git-sha1:" + "0" * 40, "size": 1}]),
        "path outside": member(0, 2, path="../../../etc/passwd"),
        "path absolute": member(0, 2, path="/etc/passwd"),
        "path of another": member(0, 2, path=volumes[0]["members"][3]["path"]),
        "member too long": member(0, 2, size=1 << 40),
        "member negative": member(0, 2, size=-1),
        "offset beyond": member(0, 2, offset=512),
        "oci-layout of another": member(0, 0, digest="sha256:" + "0" * 64),
        "index.json huge": member(0, 1, size=1 << 30),
        "no oci-layout": dropped(0, 0),
        "no index.json": dropped(0, 1),
        "member missing": dropped(0, 4),
        "slice missing": dropped(-1, 0),
        "member twice": edited(data, volumes=again),
    }


def test_hostile_indexes(pristine: tuple[World, Written]) -> None:
    """Nothing but a valid index is decoded, whoever signed it; each of these is refused with exit 14."""
    data = (pristine[1].directory / "bundle.json").read_bytes()
    assert encode(decode(data)) == data
    for what, hostile in hostile_indexes(data).items():
        with pytest.raises(BundleRefused) as caught:
            decode(hostile)
        assert caught.value.exit_code == 14, what
    with pytest.raises(BundleRefused):
        decode(b" " * (MAX_INDEX + 1))


def test_later_formats_are_named(pristine: tuple[World, Written]) -> None:
    """A bundle of the future is refused with what it needs and which version has it."""
    data = (pristine[1].directory / "bundle.json").read_bytes()
    with pytest.raises(BundleTooNew, match="thin") as caught:
        decode(edited(data, requires=["thin/0.4"], thin_base="x"))
    assert "0.4" in (caught.value.hint or "")
    with pytest.raises(BundleTooNew, match="modelvault-bundle/2"):
        decode(edited(data, format="modelvault-bundle/2"))


def table(plans: list[layout.FramePlan], **changes: Any) -> bytes:
    """A table over made-up stored frames."""
    frames, offset = [], 0
    for plan in plans:
        frames.append(Frame(offset, 10, "1" * 64, plan.length, "2" * 64))
        offset += 10
    return edited(encode_table(FrameTable(Digest.of_bytes(b"index"), 1, tuple(frames))), **changes)


def test_frame_tables(pristine: tuple[World, Written]) -> None:
    """A table must have the very frames that the index implies, end to end; anything else is refused."""
    plans = list(layout.frames(pristine[0].plan().volumes[0]))
    index = Digest.of_bytes(b"index")
    good = table(plans)
    decoded = decode_table(good, index, 1, plans)
    assert encode_table(decoded) == good
    rows = json.loads(good)["frames"]

    def row(position: int, column: int, value: Any) -> bytes:
        changed = json.loads(json.dumps(rows))
        changed[position][column] = value
        return table(plans, frames=changed)

    hostile = {
        "another volume": table(plans, volume=2),
        "another index": table(plans, index="sha256:" + "0" * 64),
        "another format": table(plans, format="x"),
        "another size": table(plans, size=11),
        "fewer frames": table(plans, frames=rows[:-1]),
        "more frames": table(plans, frames=[*rows, rows[-1]]),
        "a gap": row(1, 0, 11),
        "an overlap": row(1, 0, 5),
        "a bomb": row(0, 3, 1 << 40),
        "a frame too long": row(len(rows) - 1, 1, 1 << 40),
        "an empty frame": row(0, 1, 0),
        "no digest": row(0, 2, "../../etc"),
        "no content digest": row(0, 4, "2" * 63),
        "unknown key": table(plans, more=1),
        "spaces": json.dumps(json.loads(good), sort_keys=True).encode(),
        "deep": b"[" * 200_000,
        "empty": b"",
    }
    for data in hostile.values():
        with pytest.raises(BundleRefused):
            decode_table(data, index, 1, plans)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(0, MAX_SEQUENCE) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_canonical_json(document: object) -> None:
    """Breaks if the one form of JSON is not the one that the format's page promises, whichever library writes it."""
    promised = json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    assert canonical_json(document) == promised.encode()


@given(st.sets(st.integers(1, 30), min_size=1))
def test_volumes_are_named(numbers: set[int]) -> None:
    """Breaks if a line for people leaves a volume out or names one too many."""
    said = name_volumes(sorted(numbers))
    runs = [run.split(" to ") for run in said.removeprefix("volumes ").removeprefix("volume ").split(", ")]
    named = {number for run in runs if run[0].isdigit() for number in range(int(run[0]), int(run[-1].split()[0]) + 1)}
    assert named == numbers if "others" not in said else named < numbers


def test_plan_refusals() -> None:
    """Requests that make no bundle are usage errors with a hint, not surprises while writing."""
    good = PlanOptions("models", 1, 8 * MIB)
    with pytest.raises(UsageProblem):
        plan_index([], good)
    with pytest.raises(UsageProblem):
        plan_index([source("a", [1]), source("A", [2])], good)
    for bad in (
        PlanOptions("a/b", 1, 8 * MIB),
        PlanOptions("a", 0, 8 * MIB),
        PlanOptions("a", 1, 4096),
        PlanOptions("a", 1, MAX_VOLUME + 1),
    ):
        with pytest.raises(UsageProblem):
            plan_index([source("a", [1])], bad)
    for sizes, volume_size in ((range(30_000), 8 * MIB), ([100 << 30], 2 * MIB)):
        with pytest.raises(UsageProblem):
            plan_index([source("a", sizes)], PlanOptions("models", 1, volume_size))


def test_plan_does_not_depend_on_order() -> None:
    """The same models in another order give the same index: a resumed run must find its own."""
    models = [source("a", [10, 5 * MIB]), source("b", [7])]
    options = PlanOptions("models", 1, 4 * MIB)
    assert plan_index(models, options) == plan_index(models[::-1], options)
    other = plan_index(models, PlanOptions("models", 2, 4 * MIB))
    assert other.same_content(plan_index(models, options))
    assert not other.same_content(plan_index(models[:1], options))


def test_sequences() -> None:
    """A clock that went backwards does not make a bundle that the other side refuses as older."""
    assert next_sequence(0, 1000.7) == 1000
    assert next_sequence(5000, 1000.7) == 5001
