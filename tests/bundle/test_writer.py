"""Writing: what lies on the drive afterwards, and what the plain tools make of it."""

import errno
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from bundle_world import MIB, Log, World, contents, flip, noise

from modelvault import modelpack
from modelvault.artifact import Digest
from modelvault.bundle.check import verify_bundle
from modelvault.bundle.index import Index
from modelvault.bundle.journal import find_unfinished
from modelvault.bundle.readback import DriveLostData, read_back
from modelvault.bundle.reader import load_table, open_bundle
from modelvault.bundle.receive import receive
from modelvault.bundle.table import FrameTable
from modelvault.bundle.writer import write_bundle
from modelvault.bundle.written import Written
from modelvault.errors import DigestMismatch, UsageProblem, VaultLocked
from modelvault.progress import NoTask


def test_layout_on_the_drive(pristine: tuple[World, Written]) -> None:
    """The files that the design names lie there, and nothing else; the journal is gone."""
    world, written = pristine
    volumes = [f"volume-{number:04d}" for number in range(1, written.volumes + 1)]
    expected = {"bundle.json", "bundle.json.sig", "README.txt", "SHA256SUMS", "SHA256SUMS.sig", "sender.pub"}
    expected |= {"restore.sh", "restore.list"}
    expected |= {name + end for name in volumes for end in (".tar.zst", ".json", ".json.sig")}
    assert {path.name for path in written.directory.iterdir()} == expected
    assert written.volumes == 3
    assert list(world.journals.iterdir()) == []
    assert find_unfinished(world.journals) == ()


def test_equal_inputs_equal_bytes(pristine: tuple[World, Written], tmp_path: Path) -> None:
    """Two runs over the same models, options and sequence give the same bytes, whatever the number of threads."""
    world, written = pristine
    again = world.write(world.plan(), drive=tmp_path)
    assert contents(again.directory) == contents(written.directory)


def test_sums_without_read_back(pristine: tuple[World, Written], tmp_path: Path) -> None:
    """Without read-back the sums are those of what was written: the same ones, since nothing was lost."""
    world, written = pristine
    unread = world.write(world.plan(), drive=tmp_path, read_back=False)
    assert not unread.read_back
    one = set((unread.directory / "SHA256SUMS").read_text().splitlines())
    other = set((written.directory / "SHA256SUMS").read_text().splitlines())
    assert {line.split()[1] for line in one ^ other} == {"README.txt"}
    assert "not read back" in (unread.directory / "README.txt").read_text().replace("\n   ", " ")


def test_readme_fits_a_terminal(pristine: tuple[World, Written]) -> None:
    """Breaks if the prose of README.txt runs out of a window of 80 columns; commands are as long as they must be."""
    lines = (pristine[1].directory / "README.txt").read_text().splitlines()
    assert all(len(line) <= 78 for line in lines if not line.startswith(" " * 5))


def readme_commands(directory: Path) -> str:
    """The indented commands of README.txt, as somebody without modelvault would type them; modelvault's own left out."""
    lines = (directory / "README.txt").read_text().splitlines()
    typed = [line for line in lines if line.startswith(" " * 5) and not line.startswith(" " * 12)]
    return "\n".join(line for line in typed if "modelvault" not in line)


@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_readme_commands_restore(pristine: tuple[World, Written], tmp_path: Path, shell: str) -> None:
    """The commands of README.txt, run as they stand, verify and restore every blob with the plain tools."""
    world, written = pristine
    (tmp_path / "DIR").mkdir()
    script = readme_commands(written.directory).replace("DIR", str(tmp_path / "DIR"))
    for command in ("sha256sum -c", "openssl pkeyutl -verify", "zstd -dc", "cat "):
        assert command in script
    ran = subprocess.run(
        [shell, "-e", "-c", script], cwd=written.directory, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("Signature Verified Successfully") == 1
    assert "FAILED" not in ran.stdout
    index = world.plan()
    restored = tmp_path / "DIR"
    assert {path.name for path in (restored / "blobs" / "sha256").iterdir()} == {
        blob.digest.hex for blob in index.blobs
    }
    for blob in index.blobs:
        data = (restored / "blobs" / "sha256" / blob.digest.hex).read_bytes()
        assert Digest.of_bytes(data) == blob.digest
    assert (restored / "oci-layout").read_bytes() == modelpack.OCI_LAYOUT
    names = [entry.name.text for entry in modelpack.decode_index((restored / "index.json").read_bytes())]
    assert names == ["org/large", "small"]
    assert list((restored / "slices" / "sha256").iterdir()) == []


def test_plain_tar_reads_every_volume(pristine: tuple[World, Written]) -> None:
    """Each volume alone is a tar that the real tar lists without a complaint."""
    _, written = pristine
    for volume in sorted(written.directory.glob("*.tar.zst")):
        packed = subprocess.run(["zstd", "-dc", volume], capture_output=True, check=True)
        listed = subprocess.run(["tar", "-tvf", "-"], input=packed.stdout, capture_output=True, check=True)
        assert listed.stderr == b""
        assert all(line.startswith(b"-r--r--r-- 0/0") for line in listed.stdout.splitlines())


def test_rotten_blob(world: World, tmp_path: Path) -> None:
    """A blob that rotted in the vault is named, exit 12; no volume with a piece of it stays signed; mended, it goes on."""
    index = world.plan()
    large = max(index.blobs, key=lambda blob: blob.size)
    path = world.blob_path(large.digest)
    good = path.read_bytes()
    flip(path)
    with pytest.raises(DigestMismatch, match=large.digest.hex) as caught:
        world.write(index)
    assert caught.value.exit_code == 12
    assert "org/large" in caught.value.message
    directory = world.drive / index.directory_name
    for number in index.volumes_of({large.digest}):
        assert not (directory / f"volume-{number:04d}.json").exists()
        assert not (directory / f"volume-{number:04d}.json.sig").exists()
    assert not (directory / "SHA256SUMS").exists()
    path.write_bytes(good)
    written = world.write(index)
    undisturbed = world.write(index, drive=tmp_path / "other")
    assert contents(written.directory) == contents(undisturbed.directory)


@pytest.mark.parametrize("change", ["shorter", "missing"])
def test_blob_gone_before_the_start(world: World, change: str) -> None:
    """A blob that is not all there is found before the first byte is written to the drive."""
    index = world.plan()
    path = world.blob_path(index.blobs[-1].digest)
    if change == "missing":
        path.unlink()
    else:
        os.truncate(path, 5)
    with pytest.raises(DigestMismatch):
        world.write(index)
    assert list(world.drive.iterdir()) == []


def test_foreign_directory(world: World) -> None:
    """A directory that holds something else is not written into: two bundles never mix."""
    index = world.plan()
    directory = world.drive / index.directory_name
    directory.mkdir()
    (directory / "letter.txt").write_text("mine")
    with pytest.raises(UsageProblem, match="something else"):
        world.write(index)
    assert (directory / "letter.txt").read_text() == "mine"


def test_same_sequence_other_content(world: World) -> None:
    """A pinned sequence with other models does not overwrite the bundle of that name."""
    before = contents(world.write(world.plan()).directory)
    world.add("third", {"x.gguf": noise(1000, 9)})
    index = world.plan()
    with pytest.raises(UsageProblem, match="something else"):
        world.write(index)
    assert contents(world.drive / index.directory_name) == before


def test_links_on_the_drive_are_not_followed(world: World, tmp_path: Path) -> None:
    """Someone puts links where a resumed run would write: the files they point to stay as they are."""
    index = world.plan()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    _stop_at(world, index, 2)
    directory = world.drive / index.directory_name
    for name in ("volume-0001.tar.zst", "volume-0002.tar.zst", "bundle.json", "volume-0001.json"):
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(victim)
    os.mkfifo(directory / "volume-0003.tar.zst")
    written = world.write(index)
    assert victim.read_text() == "untouched"
    assert contents(written.directory) == contents(world.write(index, drive=tmp_path / "other").directory)


class _Stop(Exception):
    pass


class _StopAt(Log):
    """Breaks the run off after so many frames."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> NoTask:
        return _Counter(self)


class _Counter(NoTask):
    def __init__(self, stop: _StopAt) -> None:
        self.stop = stop

    def advance(self, amount: int) -> None:
        self.stop.frames -= 1
        if self.stop.frames < 0:
            raise _Stop


def _stop_at(world: World, index: Index, frames: int) -> None:
    with pytest.raises(_Stop):
        world.write(index, log=_StopAt(frames))


def test_resume_after_every_frame(world: World, tmp_path: Path) -> None:
    """Broken off at any frame, the next run goes on and the result is the one of an undisturbed run."""
    index = world.plan()
    whole = world.write(index, drive=tmp_path / "whole", read_back=False)
    bundle = open_bundle(whole.directory, None)
    frames = sum(len(bundle.plans(number)) for number in range(1, whole.volumes + 1))
    for stop in range(frames):
        drive = tmp_path / f"drive-{stop}"
        with pytest.raises(_Stop):
            world.write(index, drive=drive, log=_StopAt(stop), read_back=False)
        (unfinished,) = find_unfinished(world.journals)
        assert unfinished.index == index
        assert unfinished.directories == (drive / index.directory_name,)
        log = Log()
        written = world.write(index, drive=drive, log=log, read_back=False)
        assert written.resumed > 0
        assert log.lines == []
        assert contents(written.directory) == contents(whole.directory)


def test_resume_reads_nothing_foreign(world: World, tmp_path: Path) -> None:
    """Whatever is edited in an unfinished bundle is noticed, said, and written again; the result is as if it never was."""
    index = world.plan()
    whole = contents(world.write(index, drive=tmp_path / "whole").directory)
    for name in ("volume-0001.tar.zst", "volume-0002.tar.zst", "bundle.json", "volume-0001.json", "sender.pub"):
        drive = tmp_path / f"edited-{name}"
        with pytest.raises(_Stop):
            world.write(index, drive=drive, log=_StopAt(6))
        flip(drive / index.directory_name / name)
        log = Log()
        written = world.write(index, drive=drive, log=log)
        assert contents(written.directory) == whole
        if not name.startswith("volume-0001.j"):
            assert any(name in line for line in log.lines), (name, log.lines)


def test_resume_with_a_blob_that_rotted_since(world: World) -> None:
    """Frames are edited on the drive and the verified blob rotted in the vault: rewriting must not sign the rot."""
    index = world.plan()
    large = max(index.blobs, key=lambda blob: blob.size)
    last = index.volumes_of({large.digest})[-1]
    _stop_at(world, index, 7)
    directory = world.drive / index.directory_name
    flip(directory / f"volume-{last:04d}.tar.zst")
    flip(world.blob_path(large.digest), large.size - 1000)
    with pytest.raises(DigestMismatch, match=large.digest.hex):
        world.write(index)
    assert not (directory / f"volume-{last:04d}.json.sig").exists()


def test_leftovers_of_a_kill_are_swept(world: World) -> None:
    """Breaks if temporary files of a killed run travel with the bundle, or foreign ones stop it."""
    index = world.plan()
    _stop_at(world, index, 2)
    directory = world.drive / index.directory_name
    (directory / ".bundle.json.0123456789ab.tmp").write_bytes(b"half")
    (directory / ".volume-0001.json.0123456789ab.tmp").mkdir()
    written = world.write(index)
    assert [path.name for path in written.directory.glob(".*")] == [".volume-0001.json.0123456789ab.tmp"]


def test_resume_elsewhere(world: World, tmp_path: Path) -> None:
    """The drive comes back empty, or is another one: everything is written again, nothing is assumed."""
    index = world.plan()
    _stop_at(world, index, 2)  # no volume is complete
    log = Log()
    written = world.write(index, drive=tmp_path / "other", log=log)
    assert written.resumed == 0
    assert verify_bundle(world.open(written), Log()).sound
    (line,) = log.lines
    assert "is written again" in line


def test_torn_journal(world: World) -> None:
    """A journal whose last line was cut in the middle costs that frame and no more."""
    index = world.plan()
    _stop_at(world, index, 5)
    (unfinished,) = find_unfinished(world.journals)
    journal = unfinished.journal / "frames.jsonl"
    os.truncate(journal, journal.stat().st_size - 7)
    written = world.write(index)
    assert written.resumed > 0
    assert verify_bundle(world.open(written), Log()).sound


def test_journal_of_another_version(world: World) -> None:
    """What another version began and we cannot read does not keep us from writing bundles."""
    index = world.plan()
    _stop_at(world, index, 2)
    (unfinished,) = find_unfinished(world.journals)
    (unfinished.journal / "bundle.json").write_bytes(b'{"format":"modelvault-bundle/9","requires":[]}')
    assert find_unfinished(world.journals) == ()


def test_read_back_finds_a_drive_that_lost_data(world: World) -> None:
    """A stick that gives back other bytes than it was given is named, with volume and frame, exit 12."""
    index = world.plan()
    written = world.write(index)
    bundle = world.open(written)
    tables = _tables(world, written)
    documents = {"bundle.json": (written.directory / "bundle.json").read_bytes()}
    assert read_back(written.directory, tables, documents, Log())
    flip(written.directory / "volume-0002.tar.zst")
    with pytest.raises(DriveLostData, match=r"volume-0002.*frame 2") as caught:
        read_back(written.directory, tables, documents, Log())
    assert caught.value.exit_code == 12
    os.truncate(written.directory / "volume-0001.tar.zst", 100)
    with pytest.raises(DriveLostData, match="ends within frame 1"):
        read_back(written.directory, tables, documents, Log())
    assert bundle.signer is not None
    for size, found in ((10, "cut off"), (1 << 40, "differs from")):  # a terabyte of it would not fit the memory
        os.truncate(written.directory / "bundle.json", size)
        with pytest.raises(DriveLostData, match=f"bundle.json: it.*{found}"):
            read_back(written.directory, [], documents, Log())


def _tables(world: World, written: Written) -> list[FrameTable]:
    bundle = world.open(written)
    return [load_table(bundle, number, bundle.plans(number)) for number in range(1, written.volumes + 1)]


def test_read_back_on_an_older_system(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a drive counts as failing since Linux before 5.10 refuses to read directly where a file ends, which is not aligned."""
    preadv = os.preadv

    def strict(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset % 512:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return preadv(descriptor, buffers, offset)

    written = world.write(world.plan(), read_back=False)
    tables = _tables(world, written)
    monkeypatch.setattr(os, "preadv", strict)
    documents = {"bundle.json": (written.directory / "bundle.json").read_bytes()}
    assert read_back(written.directory, tables, documents, Log())
    volume = written.directory / "volume-0001.tar.zst"
    assert volume.stat().st_size % 512
    with volume.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DriveLostData, match="longer than what was written"):
        read_back(written.directory, tables, documents, Log())


def test_two_writers(world: World) -> None:
    """Two processes on one bundle: the second is told, and harms nothing."""
    index = world.plan()

    class Second(Log):
        tried = False

        def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> NoTask:
            if not self.tried:
                self.tried = True
                with pytest.raises(VaultLocked):
                    world.write(index)
            return NoTask()

    second = Second()
    written = write_bundle(index, world.options(index), world.blob_path, world.signer, second)
    assert second.tried
    assert verify_bundle(world.open(written), Log()).sound


def test_long_members(tmp_path: Path) -> None:
    """Members of several frames: noise is stored raw and hardly grows, what compresses shrinks, and both arrive."""
    world = World(tmp_path)
    world.add("long", {"noise": noise(33 * MIB + 777, 4), "plain": b"0123456789abcdef" * (17 * MIB // 16)})
    index = world.plan(volume_size=64 * MIB)
    written = world.write(index)
    (volume,) = world.open(written).index.volumes
    assert [len(frame.pieces) for frame in world.open(written).plans(1)] == [4, 1, 1, 1, 0, 1, 1, 0]
    assert 33 * MIB < written.stored < 34 * MIB
    assert max(member.size for member in volume) == 33 * MIB + 777
    received = receive(world.open(written), index.sizes.keys(), tmp_path / "staging", Log())
    assert received.failed == {}
    for digest, path in received.blobs.items():
        assert Digest.of_bytes(path.read_bytes()) == digest
