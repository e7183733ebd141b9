"""Several drives, small, odd and dishonest ones, with the installed program."""

import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machines import PROGRAM, SECONDS, Machine, flip_bit, only_bundle, small_disk, trust
from make_models import make_large_gguf
from refusals import failed, fill, running, succeeded, tree

FAKE = Path(__file__).parent.parent / "fake_drive.py"
SMALL = ("--volume-size", "8MiB")
MIB = 1 << 20


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with a model of 40 MB; tests leave nothing under way there."""
    root = tmp_path_factory.mktemp("loaded")
    make_large_gguf(root / "large-Q8_0.gguf", 40_000_000)
    pc = Machine(root)
    pc.run("add", root / "large-Q8_0.gguf", "--name", "large")
    pc.run("keys", "new")
    yield pc
    shutil.rmtree(root)


@pytest.fixture
def disks(tmp_path: Path, as_root: None) -> Iterator[tuple[Path, Path]]:
    """Two drives of 40 MiB: neither takes the bundle alone."""
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(small_disk(tmp_path / f"{n}.img", tmp_path / n, 40 * MIB)) for n in "ab")
        yield a, b


def test_two_drives(loaded: Machine, machine: Callable[..., Machine], disks: tuple[Path, Path]) -> None:
    """Breaks if the plan is not what is done, a rerun writes again, or the other side cannot put the drives together."""
    a, b = disks
    to = ("bundle", "--to", a, "--to", b, *SMALL)
    assert failed(loaded, "bundle", "--to", a, *SMALL, code=15)["data"]["missing"] > MIB
    plan = succeeded(loaded, *to, "--dry-run")
    assert plan["seconds"] > 0
    assert not list(a.glob("*.mvbundle"))
    assert {entry.name for entry in a.iterdir()} == {"lost+found"}
    result = succeeded(loaded, *to)
    # A plan takes it that nothing compresses; what is done is no less.
    assert len(result["drives"][0]["volumes"]) >= len(plan["drives"][0]["volumes"]) > 0
    for drives in (plan["drives"], result["drives"]):
        assert sorted(number for drive in drives for number in drive["volumes"]) == [1, 2, 3, 4, 5, 6]
    assert [drive["path"] for drive in result["drives"]] == [str(a), str(b)]
    assert all(drive["read_back"] and drive["file_system"] == "ext4" for drive in result["drives"])
    assert sum(drive["size"] for drive in result["drives"]) == result["stored_size"]
    assert result["warnings"] == []
    for drive in result["drives"]:
        assert drive["size"] == sum(path.stat().st_size for path in only_bundle(Path(drive["path"])).glob("*.zst"))
    for name, key in (("restore.sh", "restore_sha256"), ("default.pub", "public_key_sha256")):
        said = subprocess.check_output(["sha256sum", only_bundle(b) / name], text=True).split()[0]
        assert said == result[key]
    assert succeeded(loaded, *to)["there_already"]
    shown = loaded.run(*to).out
    assert result["restore_sha256"] in shown
    assert f"modelvault import {only_bundle(a)} {only_bundle(b)}" in shown
    server = machine("server")
    trust(server, loaded, only_bundle(a))
    server.run("import", only_bundle(b), only_bundle(a))
    assert server.models() == {"large"}


def test_lines_fit_a_terminal(loaded: Machine, disks: tuple[Path, Path]) -> None:
    """Breaks if the table of drives runs out of a window of 80 columns."""
    a, b = disks
    master, slave = pty.openpty()
    try:
        subprocess.run(
            [*PROGRAM, "bundle", "--to", str(a), "--to", str(b), *SMALL, "--dry-run"],
            env=loaded.environment(),
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        lines = os.read(master, 1 << 16).decode().splitlines()
    finally:
        os.close(slave)
        os.close(master)
    (header,) = [number for number, line in enumerate(lines) if line.startswith("drive")]
    assert all(len(line) <= 80 for line in lines[header:])
    assert "about" in "".join(lines)


def test_a_place_that_is_no_drive(loaded: Machine, tmp_path: Path, disks: tuple[Path, Path]) -> None:
    """Breaks if a drive that was not mounted goes unnoticed, a read-only one is met late, or one is filled as two."""
    a, b = disks
    (loaded.root / "place").mkdir(exist_ok=True)
    warnings = loaded.json("bundle", "--to", loaded.root / "place", "--dry-run").document["warnings"]
    assert warnings == [f"{loaded.root / 'place'} is on the same file system as the vault: is the drive mounted?"]
    assert "twice" in failed(loaded, "bundle", "--to", a, "--to", a / ".", code=2)["message"]
    (tmp_path / "again").mkdir()
    mount(a, tmp_path / "again")
    try:
        assert "twice" in failed(loaded, "bundle", "--to", a, "--to", tmp_path / "again", code=2)["message"]
    finally:
        subprocess.run(["umount", str(tmp_path / "again")], check=True)
    subprocess.run(["mount", "-o", "remount,ro", str(b)], check=True)
    error = failed(loaded, "bundle", "--to", a, "--to", b, *SMALL, code=1)
    assert str(b) in error["message"]
    assert "read-only" in error["message"]
    failed(loaded, "bundle", "--to", a, "--to", b, *SMALL, "--dry-run", code=1)
    assert not list(a.glob("*.mvbundle"))


def test_full_before_the_first_volume(loaded: Machine, disks: tuple[Path, Path]) -> None:
    """Breaks if a drive that is full already stops the bundle where another has room, or is written to where none has."""
    a, b = disks
    fill(a, 1_000)
    to = ("bundle", "--to", a, "--to", b, "--volume-size", "2MiB")
    error = failed(loaded, *to, code=15)
    assert error["data"]["missing"] > 0
    assert [list(drive.glob("*.mvbundle")) for drive in disks] == [[], []]
    small = loaded.root / "small.gguf"
    make_large_gguf(small, 5_000_000)
    loaded.run("add", small, "--name", "small")
    try:
        result = succeeded(loaded, "bundle", "small", *to[1:])
        assert [bool(drive["volumes"]) for drive in result["drives"]] == [False, True]
        assert not list(a.glob("*.mvbundle"))
    finally:
        loaded.run("rm", "small")


PINNED = ("--sequence", "11", *SMALL)


@pytest.fixture(scope="module")
def undisturbed(loaded: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    """The files of the pinned bundle on one drive, but for the sums, which are each drive's own."""
    drive = tmp_path_factory.mktemp("undisturbed")
    loaded.run("bundle", "--to", drive, *PINNED)
    yield bundle_files(drive)
    shutil.rmtree(drive)


def bundle_files(*drives: Path) -> dict[str, bytes]:
    """What lies on drives of one bundle, whose sums must be right; the same file twice must be the same bytes, and no volume's."""
    found: dict[str, bytes] = {}
    for drive in drives:
        bundle = only_bundle(drive)
        subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=bundle, check=True)
        for name, data in tree(bundle).items():
            if name.startswith("SHA256SUMS"):
                continue
            assert found.setdefault(name, data) == data, name
            assert found[name] is data or not name.startswith("volume-"), f"{name} lies there twice"
    return found


def on_drives(*drives: Path) -> int:
    """How many bytes of volumes are on drives."""
    return sum(path.stat().st_size for drive in drives for path in drive.glob("*.mvbundle/volume-*.tar.zst"))


@pytest.mark.parametrize("gone", [False, True])
def test_a_drive_is_pulled_out(
    loaded: Machine, undisturbed: dict[str, bytes], disks: tuple[Path, Path], tmp_path: Path, gone: bool
) -> None:
    """Breaks if one of two drives that goes away takes the bundle with it, is not told, or cannot be finished later.

    Its mount point may go with it.
    """
    a, b = disks[0], tmp_path / "large"
    b.mkdir()
    to = ("bundle", "--to", a, "--to", b, *PINNED)
    with running(loaded, *to) as bundle:
        bundle.until(lambda: on_drives(a) > 10 * MIB)  # the first volume is closed by then
        subprocess.run(["umount", "--lazy", str(a)], check=True)
        if gone:
            a.rmdir()  # as desktops do
        ran = bundle.end(3)  # what is on the drive lacks its sums
    a.mkdir(exist_ok=not gone)
    try:
        assert not list(a.iterdir()), "something was written where the drive had been"
        assert any(line.startswith("warning: ") and str(a) in line and "safe" in line for line in ran.err.splitlines())
        assert on_drives(b) > 10 * MIB
    finally:
        subprocess.run(["mount", "-o", "loop", str(tmp_path / "a.img"), str(a)], check=True)
    result = succeeded(loaded, *to)
    assert all(drive["volumes"] and drive["read_back"] for drive in result["drives"])
    assert all("same file system" in warning for warning in result["warnings"])
    assert bundle_files(a, b) == undisturbed


def test_a_drive_is_pulled_out_at_once(loaded: Machine, disks: tuple[Path, Path], tmp_path: Path) -> None:
    """Breaks if a drive that failed before anything on it was complete goes unmentioned, or passes for a part of the bundle later."""
    a, b = disks[0], tmp_path / "large"
    b.mkdir()
    to = ("bundle", "--to", a, "--to", b, "--sequence", "12", "--volume-size", "24MiB")
    with running(loaded, *to) as bundle:
        bundle.until(lambda: bool(list(a.glob("*.mvbundle"))))
        bundle.signal(signal.SIGSTOP)
        subprocess.run(["umount", "--lazy", str(a)], check=True)
        bundle.signal(signal.SIGCONT)
        ran = bundle.end(0)
    subprocess.run(["mount", "-o", "loop", str(tmp_path / "a.img"), str(a)], check=True)
    assert any(line.startswith("warning: ") and f"{a}/" in line for line in ran.err.splitlines()), ran
    again = succeeded(loaded, *to)
    assert again["there_already"]
    assert again["directory"] == str(only_bundle(b))
    loaded.run("verify", only_bundle(b))


def test_both_drives_were_edited(loaded: Machine, undisturbed: dict[str, bytes], disks: tuple[Path, Path]) -> None:
    """Breaks if bytes that somebody put on either drive of an unfinished bundle get signed, or a kill costs what was written."""
    a, b = disks
    filler = fill(a, 20 * MIB)  # two volumes
    killed = False
    while not killed:  # it takes a fraction of a second: we may come too late
        for drive in disks:
            shutil.rmtree(drive / "models-11.mvbundle", ignore_errors=True)
        with running(loaded, "bundle", "--to", a, "--to", b, *PINNED) as bundle:
            bundle.until(lambda: on_drives(b) > 0)
            bundle.process.kill()
            killed = bundle.process.wait(SECONDS) == -signal.SIGKILL
    for drive in disks:
        first = min(only_bundle(drive).glob("volume-*.tar.zst"))
        flip_bit(first, first.stat().st_size // 3)
    filler.unlink()
    (only_bundle(b) / "bundle.json").write_bytes(b"{}")
    ran = loaded.run("bundle", "--to", a, "--to", b, *PINNED)
    assert "written again" in ran.err
    assert "written before" in ran.out
    assert bundle_files(a, b) == undisturbed


def test_swap_needs_a_terminal(loaded: Machine, tmp_path: Path) -> None:
    """Breaks if a script waits for ever for somebody to change the drive."""
    error = failed(loaded, "bundle", "--to", tmp_path, "--swap", code=2)
    assert "terminal" in error["message"]


def test_swap(loaded: Machine, machine: Callable[..., Machine], disks: tuple[Path, Path], tmp_path: Path) -> None:
    """Breaks if one slot is not enough for a bundle on two drives, or the same drive is taken twice."""
    place = tmp_path / "slot"
    place.mkdir()
    mount(disks[0], place)
    with on_terminal(loaded, "bundle", "--to", place, "--swap", *SMALL) as terminal:
        terminal.until("press Enter")
        assert (only_bundle(disks[0]) / "SHA256SUMS").exists(), "it may be taken out, and is not finished"
        terminal.answer()  # without changing it
        terminal.until("already; then press Enter")
        subprocess.run(["umount", str(place)], check=True)
        mount(disks[1], place)
        terminal.answer()
        shown = terminal.end()
    try:
        assert "modelvault import" in shown
        assert "once with each of the drives" in shown
        subprocess.run(["umount", str(place)], check=True)
        mount(disks[0], place)
        server = machine("server")
        trust(server, loaded, only_bundle(disks[0]))
        server.run("import", only_bundle(disks[0]), only_bundle(disks[1]))
        assert server.models() == {"large"}
    finally:
        subprocess.run(["umount", str(place)], check=True)


def mount(disk: Path, place: Path) -> None:
    """Put a drive into the slot."""
    subprocess.run(["mount", "--bind", str(disk), str(place)], check=True)


class Terminal:
    """A command on a terminal of its own, and the person before it."""

    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process = process
        self.master = master
        self.shown = ""
        self.seen = 0

    def read(self) -> bool:
        """Take what was printed; false when the command has ended."""
        ready, _, _ = select.select([self.master], [], [], 1)
        if not ready:
            return self.process.poll() is None
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:  # Linux says EIO once the other side is closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def until(self, text: str) -> None:
        """Wait until it says this, after what was waited for before."""
        deadline = time.monotonic() + SECONDS
        while text not in " ".join(self.shown[self.seen :].split()):
            assert self.read(), f"it ended and never said {text!r}: {self.shown}"
            assert time.monotonic() < deadline, self.shown
        self.seen = len(self.shown)

    def answer(self) -> None:
        """Press Enter."""
        os.write(self.master, b"\n")

    def end(self) -> str:
        """Wait for its good end; give all that it printed."""
        while self.read():
            pass
        assert self.process.wait(SECONDS) == 0, self.shown
        return self.shown


@contextlib.contextmanager
def on_terminal(machine: Machine, *arguments: str | Path) -> Iterator[Terminal]:
    """Start ``modelvault`` on a terminal; it is ended by its process id in any case."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        env=machine.environment(),
        cwd=machine.root,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    with process:
        try:
            yield Terminal(process, master)
        finally:
            process.kill()
            os.close(master)


@pytest.mark.parametrize("mode", ["drop", "wrap"])
def test_a_fake_drive(loaded: Machine, tmp_path: Path, as_root: None, mode: str) -> None:
    """Breaks if a stick that is smaller than it claims goes on the trip; a good one then gets all of the bundle."""
    fake, good = tmp_path / "fake", tmp_path / "good"
    fake.mkdir()
    good.mkdir()
    before = written(loaded)
    with fake_drive(fake, 20 * MIB, mode):
        error = failed(loaded, "bundle", "--to", fake, *SMALL, "--sequence", "9", code=12)
        assert error["code"] == "drive-lost-data"
        assert str(fake) in error["message"]
        assert "do not use this drive" in error["hint"]
    assert written(loaded) == before
    result = succeeded(loaded, "bundle", "--to", good, *SMALL, "--sequence", "9")
    assert written(loaded)[-1] == (9, True)
    assert result["drives"][0]["volumes"] == list(range(1, result["volumes"] + 1))
    shutil.rmtree(good)


def test_a_fake_drive_found_out_later(loaded: Machine, tmp_path: Path, as_root: None) -> None:
    """Breaks if verify believes the system's cache about a drive that nobody read back, or the vault says that somebody did."""
    fake = tmp_path / "fake"
    fake.mkdir()
    with fake_drive(fake, 20 * MIB, "drop"):
        loaded.run("bundle", "--to", fake, *SMALL, "--sequence", "10", "--no-readback")
        assert "damaged" in failed(loaded, "verify", only_bundle(fake), code=12)["message"]
    assert written(loaded)[-1] == (10, False)


def written(machine: Machine) -> list[tuple[int, bool]]:
    """The sequences of the bundles that a vault recorded, and whether each was read back."""
    events = map(json.loads, (machine.vault / "events.jsonl").read_text().splitlines())
    facts = (event["data"] for event in events if event["kind"] == "bundle-written")
    return [(fact["sequence"], fact["read_back"]) for fact in facts]


@contextlib.contextmanager
def fake_drive(place: Path, capacity: int, mode: str) -> Iterator[None]:
    """Mount a drive of less capacity than it says."""
    pytest.importorskip("mfusepy")
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no FUSE here")
    process = subprocess.Popen([sys.executable, str(FAKE), str(place), str(capacity), mode])
    try:
        deadline = time.monotonic() + SECONDS
        while not os.path.ismount(place):
            assert process.poll() is None, "the fake drive ended"
            assert time.monotonic() < deadline
        yield
    finally:
        subprocess.run(["umount", str(place)], check=False)
        process.wait(SECONDS)


def test_exfat(loaded: Machine, machine: Callable[..., Machine], tmp_path: Path, as_root: None) -> None:
    """Breaks if what a bundle needs of a file system is more than exFAT has: no modes, no links, no owner."""
    if not (shutil.which("mount.exfat-fuse") and shutil.which("mkfs.exfat") and Path("/dev/fuse").exists()):
        pytest.skip("needs exfat-fuse and exfatprogs: scripts/setup-packages")
    image, place = tmp_path / "image", tmp_path / "stick"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(96 * MIB)
    subprocess.run(["mkfs.exfat", str(image)], check=True, capture_output=True)
    device = subprocess.check_output(["losetup", "--find", "--show", str(image)], text=True).strip()
    try:
        subprocess.run(["mount.exfat-fuse", device, str(place)], check=True, capture_output=True)
        try:
            result = succeeded(loaded, "bundle", "--to", place, *SMALL)
            assert result["read_back"]
            loaded.run("verify", only_bundle(place))
            server = machine("server")
            trust(server, loaded, only_bundle(place))
            server.run("import", only_bundle(place))
            assert server.models() == {"large"}
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
