"""Reading: damage and malice on the drive, one file at a time. Nothing wrong is ever handed on."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from bundle_world import MIB, Log, World, flip, noise
from evil_signer import rewritten

from modelvault.artifact import Digest
from modelvault.bundle import layout
from modelvault.bundle.check import verify_bundle
from modelvault.bundle.format import canonical_json
from modelvault.bundle.index import BundleRefused
from modelvault.bundle.layout import Literal
from modelvault.bundle.reader import OpenBundle, open_bundle
from modelvault.bundle.receive import Received, receive
from modelvault.bundle.written import Written
from modelvault.errors import ModelvaultError, TrustRefused, UsageProblem
from modelvault.keys import KeyRing

Pristine = tuple[World, Written]


def take(bundle: OpenBundle, staging: Path) -> Received:
    return receive(bundle, bundle.index.sizes.keys(), staging, Log(), threads=2)


def assert_right(received: Received) -> None:
    for digest, path in received.blobs.items():
        assert Digest.of_bytes(path.read_bytes()) == digest


def test_receive_everything(pristine: Pristine, tmp_path: Path) -> None:
    """Every blob arrives, byte for byte; nothing else is written anywhere."""
    world, written = pristine
    opened = world.open(written)
    assert opened.signer is not None
    assert opened.signer.fingerprint == world.signer.fingerprint
    received = take(opened, tmp_path / "staging")
    assert received.failed == {}
    assert received.blobs.keys() == opened.index.sizes.keys()
    assert_right(received)
    names = {path.name for path in (tmp_path / "staging").iterdir()}
    assert names == {digest.hex for digest in received.blobs} | {"bundle.json", "bundle.json.sig", "received.log"}


def test_receive_some(pristine: Pristine, tmp_path: Path) -> None:
    """Only what is asked for is read: the volumes that do not hold it may be absent."""
    world, written = pristine
    opened = world.open(written)
    blobs = [blob.digest for blob in opened.index.models[1].blobs]
    received = receive(opened, blobs, tmp_path / "staging", Log())
    assert set(received.blobs) == set(blobs)
    assert received.read == sum(opened.index.sizes[blob] for blob in blobs)
    with pytest.raises(UsageProblem):
        receive(opened, [Digest.of_bytes(b"?")], tmp_path / "staging", Log())


def test_verify_sound(pristine: Pristine) -> None:
    """An undamaged bundle has no findings, signed or not."""
    world, written = pristine
    for verify in (world.keys.verify, None):
        check = verify_bundle(open_bundle(written.directory, verify), Log())
        assert check.sound
        assert (check.volumes, check.missing, check.bad) == (written.volumes, (), frozenset())
        assert check.size == written.stored


@pytest.mark.parametrize("name", ["bundle.json", "bundle.json.sig"])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.999])
def test_flipped_bit_in_the_index(pristine: Pristine, bundle: Path, name: str, where: float) -> None:
    """One bit of the index or of its signature: refused with exit 14 before anything is parsed."""
    path = bundle / name
    flip(path, int(path.stat().st_size * where))
    with pytest.raises(TrustRefused) as caught:
        open_bundle(bundle, pristine[0].keys.verify)
    assert caught.value.exit_code == 14


@pytest.mark.parametrize("name", ["volume-0002.json", "volume-0002.json.sig"])
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_flipped_bit_in_a_table(pristine: Pristine, bundle: Path, tmp_path: Path, name: str, where: float) -> None:
    """One bit of a frame table or its signature: the volume is not used, what lies elsewhere arrives."""
    path = bundle / name
    flip(path, int(path.stat().st_size * where))
    opened = open_bundle(bundle, pristine[0].keys.verify)
    lost = {member.digest for member in opened.index.volumes[1] if member.size}
    received = take(opened, tmp_path / "staging")
    assert received.failed.keys() == lost
    assert all("volume 2" in reason for reason in received.failed.values())
    assert_right(received)
    check = verify_bundle(opened, Log())
    assert check.bad == lost
    assert [finding.volume for finding in check.findings] == [2]


def test_flipped_bit_in_every_frame(pristine: Pristine, bundle: Path, tmp_path: Path) -> None:
    """One bit in any frame: volume and frame are named, only the blobs in it or beside it are lost, the drive's copy stays as it is."""
    opened = open_bundle(bundle, pristine[0].keys.verify)
    for number in range(1, len(opened.index.volumes) + 1):
        rows = json.loads((bundle / f"volume-{number:04d}.json").read_bytes())["frames"]
        volume = bundle / f"volume-{number:04d}.tar.zst"
        for position, plan in enumerate(opened.plans(number)):
            place = rows[position][0] + rows[position][1] // 2
            flip(volume, place)
            staging = tmp_path / f"{number}-{position}"
            received = take(opened, staging)
            plans = opened.plans(number)
            # Headers or padding in a frame of their own are compared with the data beside them.
            touched = (plan,) if plan.pieces else plans[max(position - 1, 0) : position + 2]
            lost = {piece.digest for each in touched for piece in each.pieces if piece.member.is_blob}
            assert received.failed.keys() == lost, received.failed
            assert all(
                reason == f"volume {number}, frame {position + 1}: it is damaged" for reason in received.failed.values()
            )
            assert_right(received)
            assert received.blobs.keys() == opened.index.sizes.keys() - lost
            shutil.rmtree(staging)
            (finding,) = verify_bundle(opened, Log()).findings
            assert (finding.volume, finding.frame) == (number, position + 1)
            flip(volume, place)


def test_damage_is_mended_by_a_second_copy(pristine: Pristine, bundle: Path, tmp_path: Path) -> None:
    """What arrived before is kept: after the drive was mended only the rest is read."""
    opened = open_bundle(bundle, pristine[0].keys.verify)
    volume = bundle / "volume-0002.tar.zst"
    flip(volume)
    first = take(opened, tmp_path / "staging")
    assert first.failed
    flip(volume)
    second = take(opened, tmp_path / "staging")
    assert second.failed == {}
    assert second.resumed >= 5 * MIB
    assert_right(second)


@pytest.mark.parametrize("what", ["volume-0002.tar.zst", "volume-0002.json", "volume-0002.json.sig"])
@pytest.mark.parametrize("how", ["missing", "fifo", "link", "directory", "empty", "huge"])
def test_wrong_kind_of_file(pristine: Pristine, bundle: Path, tmp_path: Path, what: str, how: str) -> None:
    """A file that is absent or no regular file stops the models that need it, in bounded time and memory, and no others."""
    replace(bundle / what, how)
    opened = open_bundle(bundle, pristine[0].keys.verify)
    received = take(opened, tmp_path / "staging")
    lost = {member.digest for member in opened.index.volumes[1] if member.size}
    assert (received.waiting if how == "missing" else received.failed).keys() == lost
    assert_right(received)
    check = verify_bundle(opened, Log())
    assert check.bad == lost
    assert (2 in check.missing) == (how == "missing")


@pytest.mark.parametrize("what", ["bundle.json", "bundle.json.sig"])
@pytest.mark.parametrize("how", ["fifo", "link", "directory", "empty", "huge"])
@pytest.mark.parametrize("signed", [True, False])
def test_wrong_kind_of_index(pristine: Pristine, bundle: Path, what: str, how: str, signed: bool) -> None:
    """A FIFO, a link, a gigabyte in place of the index: refused at once; without signatures the same limits hold."""
    replace(bundle / what, how)
    verify = pristine[0].keys.verify if signed else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if what == "bundle.json.sig" and not signed:
        assert open_bundle(bundle, verify).signer is None
        return
    with pytest.raises(TrustRefused) as caught:
        open_bundle(bundle, verify)
    assert caught.value.exit_code == 14
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def replace(path: Path, how: str) -> None:
    """Put something else in the place of a file."""
    original = path.rename(path.with_name("original"))
    if how == "fifo":
        os.mkfifo(path)
    elif how == "link":
        path.symlink_to(original)
    elif how == "directory":
        path.mkdir()
    elif how == "empty":
        path.touch()
    elif how == "huge":
        path.touch()
        os.truncate(path, 1 << 30)


@pytest.mark.parametrize("finished", [True, False])
def test_volumes_that_are_not_there(pristine: Pristine, bundle: Path, tmp_path: Path, finished: bool) -> None:
    """Breaks if what was never written is told as damage of the drive, or once for every blob instead of once."""
    if not finished:
        (bundle / "SHA256SUMS").unlink()
    (bundle / "volume-0002.json").unlink()
    (bundle / "volume-0003.tar.zst").unlink()
    opened = open_bundle(bundle, pristine[0].keys.verify)
    assert opened.finished == finished
    said = "volumes 2 to 3 are missing" if finished else "volumes 2 to 3 are not written yet"
    assert opened.lack == said
    check = verify_bundle(opened, Log())
    assert (check.missing, check.findings, check.sound) == ((2, 3), (), False)
    log = Log()
    received = receive(opened, opened.index.sizes.keys(), tmp_path / "staging", log)
    assert received.failed == {}
    assert received.waiting.keys() == check.bad
    assert set(received.waiting.values()) <= {(2,), (3,), (2, 3)}
    assert log.lines == []


def test_no_bundle(tmp_path: Path) -> None:
    """A directory without an index, or no directory, is a usage error."""
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UsageProblem):
            open_bundle(path, None)


def test_unsigned_and_unknown(pristine: Pristine, bundle: Path, tmp_path: Path) -> None:
    """No signature, or one by a key that is not trusted here: exit 14. The refusal does not tell the right fingerprint."""
    with pytest.raises(TrustRefused) as caught:
        open_bundle(bundle, KeyRing(tmp_path / "none").verify)
    shown = f"{caught.value.message} {caught.value.hint} {caught.value.data}"
    assert pristine[0].signer.fingerprint.removeprefix("sha256:") not in shown
    (bundle / "bundle.json.sig").unlink()
    with pytest.raises(TrustRefused, match="no signature"):
        open_bundle(bundle, pristine[0].keys.verify)


def test_table_by_another_trusted_key(pristine: Pristine, bundle: Path, tmp_path: Path) -> None:
    """A table that another trusted key signed does not count: one bundle, one signer."""
    world = pristine[0]
    ring = KeyRing(tmp_path / "keys")
    other = ring.new("other")
    ring.trust("sender", world.signer.public_pem, world.signer.fingerprint)
    table = bundle / "volume-0001.json"
    table.with_name("volume-0001.json.sig").write_bytes(other.sign(table.read_bytes()))
    received = take(open_bundle(bundle, ring.verify), tmp_path / "staging")
    assert any("another key" in reason for reason in received.failed.values())


def test_volumes_of_two_bundles(pristine: Pristine, bundle: Path, tmp_path: Path) -> None:
    """A volume of another bundle of the same key does not pass for ours."""
    world = pristine[0]
    other = world.write(world.plan(sequence=8), drive=tmp_path / "other")
    for name in ("volume-0002.tar.zst", "volume-0002.json", "volume-0002.json.sig"):
        shutil.copy(other.directory / name, bundle / name)
    received = take(open_bundle(bundle, world.keys.verify), tmp_path / "staging")
    assert received.failed
    assert all("volume 2" in reason for reason in received.failed.values())


def test_bytes_behind_the_last_frame(pristine: Pristine, bundle: Path, tmp_path: Path) -> None:
    """Bytes that no frame vouches for are never read, and verify tells of them."""
    with (bundle / "volume-0001.tar.zst").open("ab") as file:
        file.write(b"more")
    opened = open_bundle(bundle, pristine[0].keys.verify)
    assert take(opened, tmp_path / "staging").failed == {}
    (finding,) = verify_bundle(opened, Log()).findings
    assert "4 bytes follow" in finding.reason


def test_cut_volume(pristine: Pristine, bundle: Path, tmp_path: Path) -> None:
    """A volume that was cut short keeps what lies before the cut."""
    volume = bundle / "volume-0001.tar.zst"
    os.truncate(volume, volume.stat().st_size - 600_000)
    opened = open_bundle(bundle, pristine[0].keys.verify)
    received = take(opened, tmp_path / "staging")
    assert received.failed
    assert all("cut off" in reason for reason in received.failed.values())
    assert received.blobs
    assert_right(received)


def _header(content: bytes, start: int, length: int, value: bytes) -> bytes:
    """Change a field of the header that begins at ``start`` of the last two kilobytes, with a right checksum."""
    block = bytearray(content[-512:])
    block[start : start + length] = value.ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return content[:-512] + bytes(block)


HOSTILE_HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "dot dot": lambda content: _header(content, 0, 100, b"../../../../tmp/evil"),
    "absolute": lambda content: _header(content, 0, 100, b"/tmp/evil"),
    "another name": lambda content: _header(content, 0, 100, b"blobs/sha256/" + b"0" * 64),
    "symlink": lambda content: _header(content, 156, 1, b"2"),
    "hard link": lambda content: _header(content, 156, 1, b"1"),
    "device": lambda content: _header(content, 156, 1, b"3"),
    "fifo": lambda content: _header(content, 156, 1, b"6"),
    "link name": lambda content: _header(content, 157, 100, b"/etc/passwd"),
    "size": lambda content: _header(content, 124, 12, b"77777777777\0"),
    "mode": lambda content: _header(content, 100, 8, b"0004777\0"),
    "owner name": lambda content: _header(content, 265, 32, b"root"),
    "prefix": lambda content: _header(content, 345, 155, b"/etc"),
    "zeros": lambda content: content[:-512] + bytes(512),
    "noise": lambda content: content[:-512] + noise(512, 5),
}


@pytest.mark.parametrize("what", HOSTILE_HEADERS)
@pytest.mark.parametrize("signed", [True, False])
def test_hostile_headers(pristine: Pristine, bundle: Path, tmp_path: Path, what: str, signed: bool) -> None:
    """A header other than the index asks for, in a volume with valid hashes and signature: the frame is refused."""
    world = pristine[0]
    opened = open_bundle(bundle, world.keys.verify if signed else None)
    plans = opened.plans(2)
    # The frame before a large member ends with that member's header.
    position = next(place for place, plan in enumerate(plans[1:]) if plan.own is not None)
    before = set(tmp_path.rglob("*"))
    rewritten(bundle, world, 2, lambda place, data: HOSTILE_HEADERS[what](data) if place == position else data)
    received = take(opened, tmp_path / "staging")
    check = verify_bundle(opened, Log())
    (finding,) = check.findings
    assert (finding.volume, finding.frame) == (2, position + 1)
    assert "headers" in finding.reason
    assert_right(received)
    after = {path for path in tmp_path.rglob("*") if (tmp_path / "staging") not in (path, *path.parents)}
    assert after == before


def test_hostile_content(pristine: Pristine, bundle: Path, tmp_path: Path) -> None:
    """Data with valid frame hashes and signature but not the blob's digest: only the blob's own digest can tell, and does."""
    world = pristine[0]
    opened = open_bundle(bundle, world.keys.verify)
    position, plan = next((place, plan) for place, plan in enumerate(opened.plans(2)) if plan.own is not None)
    own = plan.own
    assert own is not None
    rewritten(bundle, world, 2, lambda place, data: b"\x00" + data[1:] if place == position else data)
    received = take(opened, tmp_path / "staging")
    assert received.failed.keys() == {own.digest}
    name = opened.index.called(own.digest)
    assert name == "model.safetensors of org/large"
    assert name in received.failed[own.digest]
    (finding,) = verify_bundle(opened, Log()).findings
    assert name in finding.reason
    again = take(opened, tmp_path / "staging")
    assert again.failed.keys() == {own.digest}


def bombs() -> dict[str, bytes]:
    zeros = bytes(64 * MIB)
    no_size = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    return {
        "more than it says": zstandard.ZstdCompressor().compress(zeros),
        "no size": no_size,
        "two frames": zstandard.ZstdCompressor().compress(b"a") * 2,
        "skippable": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd",
        "a size that lies": b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + b"\x01\x00\x00",
        "not zstd": b"\x1f\x8b\x08\x00" + bytes(20),
        "empty frame": zstandard.ZstdCompressor().compress(b""),
        "one byte": b"\x28",
    }


@pytest.mark.parametrize("what", bombs())
@pytest.mark.parametrize("signed", [True, False])
def test_bombs(pristine: Pristine, bundle: Path, tmp_path: Path, what: str, signed: bool) -> None:
    """A frame that is not exactly the content it should be is refused before it takes up memory, though its hash is right."""
    world = pristine[0]
    opened = open_bundle(bundle, world.keys.verify if signed else None)
    document = json.loads((bundle / "volume-0001.json").read_bytes())
    volume = (bundle / "volume-0001.tar.zst").read_bytes()
    bomb = bombs()[what]
    offset = 0
    stored = b""
    for position, row in enumerate(document["frames"]):
        data = bomb if position == 1 else volume[row[0] : row[0] + row[1]]
        row[:3] = [offset, len(data), Digest.of_bytes(data).hex]
        stored += data
        offset += len(data)
    document["size"] = offset
    table = canonical_json(document)
    (bundle / "volume-0001.json").write_bytes(table)
    (bundle / "volume-0001.json.sig").write_bytes(world.signer.sign(table))
    (bundle / "volume-0001.tar.zst").write_bytes(stored)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    received = take(opened, tmp_path / "staging")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB
    lost = {piece.digest for piece in opened.plans(1)[1].pieces}
    assert received.failed.keys() == lost
    assert all("volume 1, frame 2" in reason for reason in received.failed.values())
    assert_right(received)


def test_staging_is_not_believed(pristine: Pristine, tmp_path: Path) -> None:
    """What an interrupted import left is hashed again: a byte that changed on disk meanwhile is read anew from the drive."""
    world, written = pristine
    opened = world.open(written)
    staging = tmp_path / "staging"
    assert take(opened, staging).failed == {}
    largest = max(opened.index.blobs, key=lambda blob: blob.size)
    flip(staging / largest.digest.hex, 5 * MIB)
    received = take(opened, staging)
    assert received.failed == {}
    assert_right(received)
    assert 0 < received.read < largest.size
    with (staging / "received.log").open("ab") as file:
        file.write(b"2 ")
    assert take(opened, staging).failed == {}


def test_everything_else_raises_our_errors(pristine: Pristine, bundle: Path) -> None:
    """An index that cannot be read at all says so, without blaming the bundle."""
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (bundle / "bundle.json").chmod(0)
    with pytest.raises(ModelvaultError, match="cannot read") as caught:
        open_bundle(bundle, pristine[0].keys.verify)
    assert not isinstance(caught.value, BundleRefused)


def test_literals_cover_what_is_not_data(pristine: Pristine) -> None:
    """Every byte of a volume's tar is either a piece of a blob or compared with what the index implies."""
    opened = pristine[0].open(pristine[1])
    for number, members in enumerate(opened.index.volumes, 1):
        literal = sum(part.length for plan in opened.plans(number) for part in plan.parts if isinstance(part, Literal))
        assert literal == layout.volume_length(members) - sum(member.size for member in members)
