"""``restore.sh``: a bundle is taken apart without modelvault, in every shell that a server may have."""

import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bundle_world import flip, noise, small_world
from hypothesis import given
from hypothesis import strategies as st
from machines import small_disk
from make_vectors import Made, source
from programs import missing
from vector_files import Key, bundle, pack

from modelvault.artifact import Digest, ModelName
from modelvault.bundle.index import Blob, Index, Span, volume_name
from modelvault.bundle.plan import PlanOptions, plan_index, plan_patch
from modelvault.bundle.restore import restore_list, restore_script

MIB = 1 << 20
KEY = Key("restore")
SHELLS = ("dash", "bash", "busybox")
CONFIG = noise(3000, 1)
LARGE = noise(9 * MIB + 12345, 2)
ODD = "sub dir/ü%41 'q\" $(x) `y` *.txt"
FILES = {
    "org/large:Q4": {"config.json": CONFIG, "model.safetensors": LARGE},
    "small": {"config.json": CONFIG, "empty": b"", ODD: b"odd", "-rf": b"dash", "a/b/c/deep.bin": noise(70_000, 4)},
}


@dataclass(frozen=True)
class Shell:
    """A shell, and the programs that it finds."""

    command: tuple[str, ...]
    path: str

    def run(self, script: Path, *arguments: str | Path, code: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run a script to its end and check its exit code."""
        command = [*self.command, str(script), *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, env={"PATH": self.path}, check=False, timeout=120)
        assert ran.returncode == code, f"{ran.returncode}\n{ran.stdout}\n{ran.stderr}"
        return ran

    def with_program(self, name: str, directory: Path, script: str) -> "Shell":
        """Give a shell that finds a script before the real program, which the script may run as ``$real``."""
        directory.mkdir(exist_ok=True)
        real = shlex.quote(str(shutil.which(name, path=self.path)))
        program = directory / name
        program.write_text(f"#!/bin/sh\nreal={real}\n{script}\n")
        program.chmod(0o755)
        return Shell(self.command, f"{directory}{os.pathsep}{self.path}")


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory with busybox's programs and no others, but for zstd and openssl."""
    program = shutil.which("busybox")
    if program is None:
        missing("busybox")
    directory = tmp_path_factory.mktemp("busybox")
    listed = subprocess.run([str(program), "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in set(listed) - {"zstd", "openssl"}:
        (directory / name).symlink_to(str(program))
    for name in ("zstd", "openssl"):
        (directory / name).symlink_to(str(shutil.which(name)))
    return str(directory)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> Shell:
    """Each of the shells."""
    if request.param == "busybox":
        directory = request.getfixturevalue("busybox")
        return Shell((f"{directory}/sh",), directory)
    if shutil.which(request.param) is None:
        missing(request.param)
    return Shell((request.param,), os.defpath)


@pytest.fixture
def dash() -> Shell:
    """The strictest of them, where one is enough."""
    if shutil.which("dash") is None:
        missing("dash")
    return Shell(("dash",), os.defpath)


def test_what_modelvault_wrote(tmp_path: Path, shell: Shell) -> None:
    """Breaks if the writer's own bundles cannot be restored: its files, its frames, its signature of the sums."""
    world = small_world(tmp_path)
    world.write(world.plan())
    script = world.drive / world.plan().directory_name / "restore.sh"
    ran = shell.run(script, "--key", script.with_name("sender.pub"), "--files", tmp_path / "files", tmp_path / "out")
    assert "signature checked" in ran.stdout
    assert all(line in ran.stdout for line in world.signer.info.spelled)
    assert blobs(tmp_path / "out") == {blob.digest.hex for blob in world.plan().blobs}
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["org--large", "small"]


@dataclass(frozen=True)
class Trip:
    """A bundle, and the directory with all of it."""

    made: Made
    directory: Path

    @property
    def index(self) -> Index:
        return self.made.index

    @property
    def key(self) -> Path:
        return self.directory.parent / "carried.pub"

    def drive(self, place: Path, volumes: Iterable[int]) -> Path:
        """Put some of the volumes on a drive of their own."""
        names = {volume_name(number) for number in volumes}
        place.mkdir(parents=True)
        for file in self.directory.iterdir():
            if not file.name.startswith(("volume-", "SHA256SUMS")) or file.name in names:
                shutil.copy(file, place)
        sign(place)
        return place


def sign(directory: Path, key: Key = KEY) -> None:
    """Write the sums of what lies on a drive, and their signature."""
    (directory / "SHA256SUMS").unlink(missing_ok=True)
    (directory / "SHA256SUMS.sig").unlink(missing_ok=True)
    files = sorted(file for file in directory.iterdir() if file.is_file())
    sums = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files).encode()
    for name, data in key.sign("SHA256SUMS", sums).items():
        assert isinstance(data, bytes)
        (directory / name).write_bytes(data)


def lay_out(made: Made, directory: Path) -> Trip:
    """Write a bundle to a drive, as modelvault does."""
    directory.mkdir(parents=True)
    for name, data in made.files.items():
        assert isinstance(data, bytes)
        (directory / name).write_bytes(data)
    (directory / "restore.sh").write_bytes(restore_script())
    (directory / "restore.list").write_bytes(restore_list(made.index))
    sign(directory)
    trip = Trip(made, directory)
    command = ["openssl", "pkey", "-pubin", "-inform", "DER", "-out", str(trip.key)]
    subprocess.run(command, input=KEY.der, check=True)
    return trip


def build(
    models: dict[str, dict[str, bytes]], held: Iterable[bytes] = (), store: Callable[[bytes], bytes] = pack
) -> Made:
    """Bundle models."""
    sources = [source(name, files) for name, files in models.items()]
    blobs = {digest: data for _, known in sources for digest, data in known.items()}
    options = PlanOptions("models", 7, 5 * MIB)
    index = plan_index([model for model, _ in sources], options, held=[Digest.of_bytes(data) for data in held])
    return Made(index, blobs, bundle(index, blobs, KEY, store))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Trip:
    """A bundle of two models in three volumes; nobody may change it."""
    return lay_out(build(FILES), tmp_path_factory.mktemp("restore") / "models-7.mvbundle")


@pytest.fixture
def trip(pristine: Trip, tmp_path: Path) -> Trip:
    """A copy of it."""
    shutil.copy(pristine.key, tmp_path)
    return Trip(pristine.made, shutil.copytree(pristine.directory, tmp_path / pristine.directory.name))


def blobs(out: Path) -> set[str]:
    """The names of the blobs in OUT, each compared with its content."""
    names = set()
    for file in (out / "blobs" / "sha256").iterdir():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name
        names.add(file.name)
    return names


def all_blobs(index: Index) -> set[str]:
    return {blob.digest.hex for blob in (*index.blobs, *index.base)}


def named(directory: Path) -> dict[str, bytes]:
    """The files below a directory by path."""
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_it_restores_layout_and_files_in_every_shell(pristine: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if a server with nothing but a POSIX shell cannot have its models."""
    out, files = tmp_path / "o u t", tmp_path / "fi les"
    ran = shell.run(pristine.directory / "restore.sh", "--key", pristine.key, "--files", files, out)
    assert "signature checked" in ran.stdout
    assert ran.stderr == ""
    assert blobs(out) == all_blobs(pristine.index)
    assert {file.name for file in out.iterdir()} == {"oci-layout", "index.json", "blobs"}
    assert named(files / "org--large--Q4") == FILES["org/large:Q4"]
    assert named(files / "small") == FILES["small"]
    large = out / "blobs" / "sha256" / Digest.of_bytes(LARGE).hex
    assert large.stat().st_ino == (files / "org--large--Q4" / "model.safetensors").stat().st_ino
    again = shell.run(pristine.directory / "restore.sh", "--key", pristine.key, "--files", files, out)
    assert "extracting" not in again.stdout


def test_without_a_key_it_says_so(pristine: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if somebody could take an unchecked signature for a checked one."""
    ran = shell.run(pristine.directory / "restore.sh", "--only", "small", tmp_path / "out")
    assert "signature NOT checked" in ran.stdout
    assert blobs(tmp_path / "out") == {blob.digest.hex for blob in pristine.index.models[1].blobs}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_drives_one_after_the_other(pristine: Trip, dash: Shell, tmp_path: Path, order: tuple[int, ...]) -> None:
    """Breaks if volumes on several drives must come in order, or what an earlier run restored is lost."""
    drives = [pristine.drive(tmp_path / f"drive{number}", [number]) for number in (1, 2, 3)]
    out = tmp_path / "out"
    for position, drive in enumerate(order):
        code = 0 if position == 2 else 3
        ran = dash.run(drives[drive] / "restore.sh", "--key", pristine.key, out, code=code)
        assert ran.stdout.count("extracting") == 1
    assert blobs(out) == all_blobs(pristine.index)


def test_drives_together(pristine: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if several drives at once are not put together, whichever holds what."""
    first = pristine.drive(tmp_path / "first drive", [1, 3])
    second = pristine.drive(tmp_path / "second drive", [2])
    shell.run(first / "restore.sh", "--key", pristine.key, tmp_path / "out", second, first)
    assert blobs(tmp_path / "out") == all_blobs(pristine.index)


def test_killed_at_any_moment_it_goes_on(pristine: Trip, dash: Shell, tmp_path: Path) -> None:
    """Breaks if an interrupted run leaves something that the next takes for whole."""
    out = tmp_path / "out"
    command = [*dash.command, str(pristine.directory / "restore.sh"), str(out)]
    for line in range(5, 11):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={"PATH": dash.path}, start_new_session=True)
        assert process.stdout is not None
        with process.stdout:
            for _ in range(line):
                process.stdout.readline()
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    dash.run(pristine.directory / "restore.sh", "--key", pristine.key, out)
    assert blobs(out) == all_blobs(pristine.index)


def test_a_damaged_volume_costs_what_lies_in_it(trip: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if damage is extracted, or costs more than the volume; the sound copy on another drive counts."""
    sound = trip.drive(tmp_path / "sound", [2])
    flip(trip.directory / volume_name(2))
    ran = shell.run(
        trip.directory / "restore.sh", "--key", trip.key, "--files", tmp_path / "files", tmp_path / "out", code=3
    )
    assert "volume 2 is damaged" in ran.stdout
    assert "whole: small" in ran.stdout
    assert "waiting: org/large:Q4" in ran.stdout
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["small"]
    shell.run(trip.directory / "restore.sh", "--key", trip.key, tmp_path / "out", trip.directory, sound)
    assert blobs(tmp_path / "out") == all_blobs(trip.index)


def rewrite(trip: Trip, change: Callable[[str], str]) -> None:
    """Change restore.list and sign again: what somebody with the key, or with an unchecked drive, can do."""
    path = trip.directory / "restore.list"
    path.write_bytes(change(path.read_text()).encode("latin-1"))
    sign(trip.directory)


HOSTILE: dict[str, Callable[[str], str]] = {
    "up": lambda text: text.replace(" empty\n", " ../empty\n"),
    "up-inside": lambda text: text.replace(" empty\n", " a/../../empty\n"),
    "up-encoded": lambda text: text.replace(" empty\n", " %2E%2E/empty\n"),
    "slash-encoded": lambda text: text.replace(" empty\n", " a%2F..%2Fempty\n"),
    "absolute": lambda text: text.replace(" empty\n", " /etc/empty\n"),
    "empty-part": lambda text: text.replace(" empty\n", " a//empty\n"),
    "dot": lambda text: text.replace(" empty\n", " ./empty\n"),
    "no-path": lambda text: text.replace(" empty\n", " \n"),
    "space": lambda text: text.replace(" empty\n", " empty x\n"),
    "tab": lambda text: text.replace(" empty\n", " em\tpty\n"),
    "newline-encoded": lambda text: text.replace(" empty\n", " em%0Apty\n"),
    "escape-encoded": lambda text: text.replace(" empty\n", " em%1Bpty\n"),
    "half-encoded": lambda text: text.replace(" empty\n", " empty%4\n"),
    "substitution": lambda text: text.replace(" empty\n", " $(touch${IFS}x)\n"),
    "high-byte": lambda text: text.replace(" empty\n", " empt\xff\n"),
    "nul": lambda text: text.replace(" empty\n", " emp\0ty\n"),
    "carriage-return": lambda text: text.replace("\n", "\r\n"),
    "model-up": lambda text: text.replace(" small\n", " ../small\n"),
    "model-dots": lambda text: text.replace(" small\n", " ..\n"),
    "digest-path": lambda text: text.replace(Digest.of_bytes(b"").hex, "../" * 20 + "etcx"),
    "digest-upper": lambda text: text.replace(Digest.of_bytes(b"").hex, Digest.of_bytes(b"").hex.upper()),
    "number-octal": lambda text: text.replace("document 1 ", "document 01 "),
    "number-long": lambda text: text.replace(" 9449529 ", " 99999999999999999999 "),
    "number-sum": lambda text: text.replace(" 9449529 ", " $((1)) "),
    "volumes": lambda text: text.replace(" 3\nmodel", " 999999999\nmodel"),
    "other-index": lambda text: text.replace(text.split(" ")[3], "0" * 64),
    "no-end": lambda text: text.removesuffix("end\n"),
    "other-format": lambda text: text.replace("restore/1", "restore/2"),
    "two-bundles": lambda text: text.replace("model 1", "bundle x 1 " + "0" * 64 + " 1\nmodel 1"),
    "unknown-line": lambda text: text.replace("end\n", "eval 1\nend\n"),
    "layout-path": lambda text: text.replace(" oci-layout\n", " ../oci-layout\n"),
}


@pytest.mark.parametrize("shell", ["dash", "busybox"], indirect=True)  # GNU's grep, and busybox's
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_lists_are_refused(trip: Trip, shell: Shell, tmp_path: Path, name: str) -> None:
    """Breaks if a list that is not modelvault's gets the script to do anything, even with a good signature."""
    before = (trip.directory / "restore.list").read_bytes()
    rewrite(trip, HOSTILE[name])
    assert (trip.directory / "restore.list").read_bytes() != before
    ran = shell.run(trip.directory / "restore.sh", "--files", tmp_path / "files", tmp_path / "out", code=14)
    assert "the bundle is refused" in ran.stderr
    assert not blobs(tmp_path / "out")
    assert not (tmp_path / "files").exists()


def test_a_wrong_or_missing_signature_is_refused(trip: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if anything is extracted that the named key did not sign."""
    out = tmp_path / "out"
    sign(trip.directory, Key("somebody else"))
    ran = shell.run(trip.directory / "restore.sh", "--key", trip.key, out, code=14)
    assert "not by that key" in ran.stderr
    (trip.directory / "SHA256SUMS.sig").unlink()
    assert "not signed" in shell.run(trip.directory / "restore.sh", "--key", trip.key, out, code=14).stderr
    assert not blobs(out)


def test_what_was_changed_after_signing_is_refused(trip: Trip, dash: Shell, tmp_path: Path) -> None:
    """Breaks if sums or list can be swapped under a good signature, or a bundle without sums counts as whole."""
    sums, listed = trip.directory / "SHA256SUMS", trip.directory / "restore.list"
    whole = sums.read_bytes()
    listed.write_bytes(listed.read_bytes().replace(b"empty", b"EMPTY"))
    assert "damaged" in dash.run(trip.directory / "restore.sh", "--key", trip.key, tmp_path / "out", code=12).stderr
    sums.write_bytes(whole.replace(b"  restore.list", b"  ../restore.list"))
    dash.run(trip.directory / "restore.sh", "--key", trip.key, tmp_path / "out", code=14)
    assert "refused" in dash.run(trip.directory / "restore.sh", tmp_path / "out", code=14).stderr
    sums.unlink()
    assert "not written to its end" in dash.run(trip.directory / "restore.sh", tmp_path / "out", code=1).stderr


def test_thin_bundles_count_what_is_there(tmp_path: Path, shell: Shell) -> None:
    """Breaks if a thin bundle cannot be restored over its base, or something is extracted where the base is not whole."""
    base = lay_out(
        build({"small": FILES["small"], "old": {"model.safetensors": LARGE}}), tmp_path / "a" / "models-7.mvbundle"
    )
    thin = lay_out(build({"org/large:Q4": FILES["org/large:Q4"]}, held=[LARGE]), tmp_path / "b" / "models-8.mvbundle")
    assert thin.index.base == (Blob(Digest.of_bytes(LARGE), len(LARGE)),)
    ran = shell.run(thin.directory / "restore.sh", tmp_path / "alone", code=10)
    assert "model.safetensors of org/large:Q4" in ran.stderr
    assert not blobs(tmp_path / "alone")
    shell.run(base.directory / "restore.sh", tmp_path / "out")
    shell.run(thin.directory / "restore.sh", "--files", tmp_path / "files", tmp_path / "out")
    assert blobs(tmp_path / "out") == all_blobs(base.index) | all_blobs(thin.index)
    assert named(tmp_path / "files" / "org--large--Q4") == FILES["org/large:Q4"]
    assert len(list((tmp_path / "out").glob("index.json.before-*"))) == 1


def test_an_update_replaces_what_changed(tmp_path: Path, shell: Shell) -> None:
    """Breaks if an update cannot be restored over what it updates, or if a file that is not ours is overwritten."""
    old = {"config.json": noise(2000, 7), "config.json.restoring": b"kept", "model.safetensors": LARGE}
    new = {"config.json": CONFIG, "model.safetensors": LARGE, "new.txt": b"new"}
    base = lay_out(build({"org/large": old}), tmp_path / "a" / "models-7.mvbundle")
    thin = lay_out(build({"org/large": new}, held=[LARGE]), tmp_path / "b" / "models-8.mvbundle")
    files, out = tmp_path / "files", tmp_path / "out"
    shell.run(base.directory / "restore.sh", "--files", files, out)
    update = (thin.directory / "restore.sh", "--files", files, out)
    mine = files / "org--large" / "new.txt"
    mine.write_text("notes of somebody")
    assert f"{mine} is in the way" in shell.run(*update, code=1).stderr
    assert mine.read_text() == "notes of somebody"
    mine.unlink()
    shell.run(*update)
    assert named(files / "org--large") == {**old, **new}
    assert blobs(out) == all_blobs(base.index) | all_blobs(thin.index)


def test_patches_are_left_to_modelvault(pristine: Trip, dash: Shell, tmp_path: Path) -> None:
    """Breaks if pieces of another bundle are taken for whole files."""
    made = pristine.made
    spans = list(spans_of(made.index, 2))
    index = plan_patch(made.index, Digest.of_bytes(made.raw), spans, PlanOptions("models-patch", 8, 5 * MIB))
    patch = lay_out(Made(index, made.blobs, bundle(index, made.blobs, KEY)), tmp_path / "models-patch-8.mvbundle")
    assert "only modelvault" in dash.run(patch.directory / "restore.sh", tmp_path / "out", code=1).stderr


def spans_of(index: Index, number: int) -> Iterator[Span]:
    for member in index.volumes[number - 1]:
        if member.is_blob:
            yield Span(member.digest, member.offset, member.size)


def test_drives_of_two_bundles_are_not_mixed(pristine: Trip, dash: Shell, tmp_path: Path) -> None:
    """Breaks if a volume of another bundle could stand in for one of this."""
    other = lay_out(build({"small": FILES["small"]}), tmp_path / "other" / "models-7.mvbundle")
    ran = dash.run(pristine.directory / "restore.sh", tmp_path / "out", pristine.directory, other.directory, code=2)
    assert "different bundles" in ran.stderr


def test_links_in_its_way_are_not_followed(pristine: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if somebody else's symlink in OUT or --files leads what root writes elsewhere."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "precious").write_bytes(b"precious")
    script = pristine.directory / "restore.sh"
    for place in ("blobs", "blobs/sha256", ".restore", ".restore/parts", ".restore/held"):
        out = tmp_path / place.replace("/", "-")
        (out / place).parent.mkdir(parents=True)
        (out / ".restore").mkdir(exist_ok=True) if place != ".restore" else None
        (out / place).symlink_to(victim)
        (out / "oci-layout").touch()
        assert "symbolic link" in shell.run(script, out, code=1).stderr
    out = tmp_path / "out"
    shell.run(script, out)
    for place in ("org--large--Q4", "small/a", "small/empty"):
        files = tmp_path / f"files-{place.replace('/', '-')}"
        (files / place).parent.mkdir(parents=True)
        (files / place).symlink_to(victim / "precious" if place.endswith("empty") else victim)
        shell.run(script, "--files", files, out, code=1)
    assert named(victim) == {"precious": b"precious"}


def test_hostile_volumes_are_refused(trip: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if a tar with a link gets anything out of its own staging directory; nobody checked the signature here."""
    name = trip.directory / volume_name(1)
    evil = tmp_path / "evil"
    evil.mkdir()
    (tmp_path / "victim").write_bytes(b"precious")
    (evil / "oci-layout").symlink_to(tmp_path / "victim")
    packed = subprocess.run(["tar", "-C", str(evil), "-cf", "-", "oci-layout"], capture_output=True, check=True).stdout
    name.write_bytes(subprocess.run(["zstd", "-c"], input=packed, capture_output=True, check=True).stdout)
    sign(trip.directory)
    ran = shell.run(trip.directory / "restore.sh", tmp_path / "out", code=14)
    assert "the bundle is refused" in ran.stderr
    assert not blobs(tmp_path / "out")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_volume_cannot_reach_out_of_staging(shell: Shell, tmp_path: Path) -> None:
    """Breaks if files that lie elsewhere are taken for the volume's, through a directory that its tar makes a link."""
    trip = lay_out(build({"small": FILES["small"]}), tmp_path / "bundle" / "models-7.mvbundle")
    evil, victim = tmp_path / "evil", tmp_path / "victim"
    (victim / "sha256").mkdir(parents=True)
    for blob in trip.index.blobs:
        (victim / "sha256" / blob.digest.hex).write_bytes(trip.made.blobs[blob.digest])
    shell.run(trip.directory / "restore.sh", tmp_path / "good")
    evil.mkdir()
    for name in ("oci-layout", "index.json"):
        shutil.copy(tmp_path / "good" / name, evil)
    (evil / "blobs").symlink_to(victim)
    packed = subprocess.run(["tar", "-C", str(evil), "-cf", "-", "."], capture_output=True, check=True).stdout
    volume = subprocess.run(["zstd", "-c"], input=packed, capture_output=True, check=True).stdout
    (trip.directory / volume_name(1)).write_bytes(volume)
    sign(trip.directory)
    before = named(victim)
    shell.run(trip.directory / "restore.sh", tmp_path / "out", code=14)
    assert named(victim) == before
    assert not blobs(tmp_path / "out")


def test_a_slice_that_was_joined_already_is_dropped(pristine: Trip, dash: Shell, tmp_path: Path) -> None:
    """Breaks if a kill between joining a slice and removing it makes the next run cut off what came after."""
    first = pristine.drive(tmp_path / "first", [1, 2])
    last = pristine.drive(tmp_path / "last", [3])
    dash.run(first / "restore.sh", tmp_path / "out", code=3)
    (begun,) = (tmp_path / "out" / ".restore" / "parts").iterdir()
    slices = [member for members in pristine.index.volumes for member in members if member.digest.hex == begun.name]
    held = tmp_path / "out" / ".restore" / "held" / f"{begun.name}.0"
    held.write_bytes(pristine.made.blobs[slices[0].digest][: slices[0].size])
    dash.run(last / "restore.sh", tmp_path / "out")
    assert blobs(tmp_path / "out") == all_blobs(pristine.index)


def test_a_part_that_is_too_long_starts_again(pristine: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if what can never become whole counts as arrived: such a model was given up, its remains were removed, exit code 0."""
    digest = Digest.of_bytes(LARGE).hex
    parts = tmp_path / "out" / ".restore" / "parts"
    parts.mkdir(parents=True)
    (parts / digest).write_bytes(bytes(len(LARGE) + 1))
    shell.run(pristine.directory / "restore.sh", tmp_path / "out")
    assert blobs(tmp_path / "out") == all_blobs(pristine.index)


def test_a_slice_that_a_power_cut_emptied_is_extracted_again(pristine: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if a name without its content counts as arrived, so that no later run can ever join the file."""
    held = tmp_path / "out" / ".restore" / "held"
    held.mkdir(parents=True)
    for member in (member for members in pristine.index.volumes for member in members if member.offset):
        (held / f"{member.digest.hex}.{member.offset}").touch()
    assert list(held.iterdir())
    shell.run(pristine.directory / "restore.sh", tmp_path / "out")
    assert blobs(tmp_path / "out") == all_blobs(pristine.index)


def test_a_model_that_waits_is_never_success(trip: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if the exit code says that all is well when every volume is sound and a model is not whole all the same."""
    digest = Digest.of_bytes(LARGE).hex
    rewrite(trip, lambda text: "".join(line for line in text.splitlines(True) if not line.startswith("slice 3 ")))
    for _ in range(2):
        ran = shell.run(trip.directory / "restore.sh", tmp_path / "out", code=3)
        assert "waiting: org/large:Q4" in ran.stdout
        assert "whole: small" in ran.stdout
        assert (tmp_path / "out" / ".restore" / "parts" / digest).stat().st_size > 0


def test_a_drive_that_changes_after_it_was_checked(trip: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if zstd or tar see a byte that was not checked: a drive may answer otherwise when it is read again."""
    evil = tmp_path / "evil.tar.zst"
    packed = subprocess.run(["tar", "-cf", "-", evil.parent / trip.key.name], capture_output=True, check=True).stdout
    evil.write_bytes(subprocess.run(["zstd", "-c"], input=packed, capture_output=True, check=True).stdout)
    # by the time that zstd begins, the volume it is to unpack is another one on the drive
    swap = f'case $seen in "") cp {evil} {trip.directory}/{volume_name(1)} ;; esac\nexec "$real" "$@"'
    changing = shell.with_program("zstd", tmp_path / "bin", f"seen=$(ls {tmp_path}/out/blobs/sha256)\n{swap}")
    changing.run(trip.directory / "restore.sh", "--key", trip.key, tmp_path / "out")
    assert (trip.directory / volume_name(1)).read_bytes() == evil.read_bytes()
    assert blobs(tmp_path / "out") == all_blobs(trip.index)


def test_one_run_at_a_time(pristine: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if two runs work in the same directory: each would remove what the other is about to use."""
    script, out, gate, reached = pristine.directory / "restore.sh", tmp_path / "out", tmp_path / "gate", tmp_path / "in"
    os.mkfifo(gate)
    os.mkfifo(reached)
    wait = f"if mkdir {tmp_path}/once; then : > {reached}; read -r _ < {gate}; fi"
    slow = shell.with_program("zstd", tmp_path / "bin", f'{wait}\nexec "$real" "$@"')
    with subprocess.Popen(
        [*slow.command, script, "--only", "small", out], env={"PATH": slow.path}, stdout=subprocess.DEVNULL
    ) as first:
        reached.read_bytes()
        try:
            assert f"another run is at work in {out}: process {first.pid} " in shell.run(script, out, code=1).stderr
        finally:
            gate.write_text("go on\n")
    assert first.returncode == 0
    shell.run(script, out)


def test_whose_lock_it_is(pristine: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if a killed run's lock keeps the next one out, or a lock is taken from somebody who may be alive."""
    with subprocess.Popen(["true"]) as gone:
        pass
    here = platform.node()
    lock = tmp_path / "out" / ".restore" / "lock"
    lock.mkdir(parents=True)
    for owner in ("", f"{os.getpid()} {here}", f"{gone.pid} not-{here}", f"../../x {here}"):
        (lock / "owner").write_text(owner)
        ran = shell.run(pristine.directory / "restore.sh", tmp_path / "out", code=1)
        assert f"if there is none, remove {lock}" in ran.stderr
    (lock / "owner").write_text(f"{gone.pid} {here}")
    shell.run(pristine.directory / "restore.sh", tmp_path / "out")
    assert blobs(tmp_path / "out") == all_blobs(pristine.index)


def test_the_verdict_comes_after_sync(pristine: Trip, dash: Shell, tmp_path: Path) -> None:
    """Breaks if "whole" is said of what a power cut, or a disk that is pulled out at once, would undo."""
    seen = tmp_path / "seen"
    noting = dash.with_program("sync", tmp_path / "bin", f'ls {tmp_path}/out/blobs/sha256 > {seen}\nexec "$real"')
    noting.run(pristine.directory / "restore.sh", tmp_path / "out")
    assert set(seen.read_text().split()) == all_blobs(pristine.index)


def test_every_model_has_a_directory_of_its_own(shell: Shell, tmp_path: Path) -> None:
    """Breaks if two names share a directory, or it is called otherwise than ``modelvault install --engine folder`` does."""
    names = ("a/b", "a--b", "a/b:c", "a--b:c", "a:c", "a---b", "a-/b")
    trip = lay_out(
        build({name: {"config.json": name.encode()} for name in names}), tmp_path / "bundle" / "models-7.mvbundle"
    )
    shell.run(trip.directory / "restore.sh", "--files", tmp_path / "files", tmp_path / "out")
    assert named(tmp_path / "files") == {f"{ModelName(name).file_name}/config.json": name.encode() for name in names}


def test_a_lying_blob_gets_no_name(trip: Trip, dash: Shell, tmp_path: Path) -> None:
    """Breaks if a file gets a name in OUT that its content does not have, because all sums around it are right."""
    blobs_of_another = dict(trip.made.blobs)
    blobs_of_another[Digest.of_bytes(b"odd")] = b"ODD"
    for name, data in bundle(trip.index, blobs_of_another, KEY).items():
        assert isinstance(data, bytes)
        (trip.directory / name).write_bytes(data)
    sign(trip.directory)
    ran = dash.run(trip.directory / "restore.sh", "--key", trip.key, tmp_path / "out", code=12)
    assert f"damaged: {Digest.of_bytes(b'odd').hex}" in ran.stderr
    assert blobs(tmp_path / "out") == all_blobs(trip.index) - {Digest.of_bytes(b"odd").hex}


def test_usage(pristine: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if a slip on the command line does anything but say so."""
    script = pristine.directory / "restore.sh"
    for wrong in (
        [],
        ["--what"],
        ["--key"],
        ["--key", tmp_path / "none", tmp_path / "out"],
        ["--only", "none", tmp_path / "out"],
    ):
        shell.run(script, *wrong, code=2)
    shell.run(script, tmp_path / "out", tmp_path / "nothing", code=2)
    assert "usage" in shell.run(script, "--help").stdout
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert "holds something else" in shell.run(script, tmp_path / "mine", code=2).stderr


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_the_disk_need_not_hold_twice_as_much(pristine: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if slices are joined beside themselves: a disk of the models' size and one volume's has to do."""
    size = sum(blob.size for blob in pristine.index.blobs)
    volume = max(sum(member.size for member in members) for members in pristine.index.volumes)
    overhead = 3 * MIB  # of ext4 itself
    assert 2 * size > size + volume + overhead
    with small_disk(tmp_path / "image", tmp_path / "disk", size + volume + overhead) as disk:
        free = os.statvfs(disk)
        assert free.f_bavail * free.f_frsize < size + volume
        shell.run(pristine.directory / "restore.sh", "--key", pristine.key, "--files", disk / "files", disk / "out")
        assert blobs(disk / "out") == all_blobs(pristine.index)


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_a_full_disk_is_told_and_mended(pristine: Trip, dash: Shell, tmp_path: Path) -> None:
    """Breaks if a full disk ends in half a model, or room made later does not help."""
    with small_disk(tmp_path / "image", tmp_path / "disk", 12 * MIB) as disk:
        (disk / "ballast").write_bytes(bytes(4 * MIB))
        ran = dash.run(pristine.directory / "restore.sh", disk / "out", code=15)
        assert "make room" in ran.stderr
        (disk / "ballast").unlink()
        dash.run(pristine.directory / "restore.sh", "--only", "small", disk / "out")


@pytest.mark.root
@pytest.mark.usefixtures("as_root")
def test_files_are_moved_where_links_do_not_work(pristine: Trip, shell: Shell, tmp_path: Path) -> None:
    """Breaks if --files needs hard links, or loses a file that two models share."""
    out = tmp_path / "out"
    with small_disk(tmp_path / "image", tmp_path / "disk", 30 * MIB) as disk:
        shell.run(pristine.directory / "restore.sh", "--files", disk / "files", out)
        assert named(disk / "files" / "org--large--Q4") == FILES["org/large:Q4"]
        assert named(disk / "files" / "small") == FILES["small"]
    assert blobs(out) == {blob.digest.hex for entry in pristine.index.models for blob in entry.blobs[:2]}


def test_the_script_is_plain(tmp_path: Path) -> None:
    """Breaks if the script needs more than POSIX: every shell of ours can parse it, and shellcheck has nothing to say."""
    script = tmp_path / "restore.sh"
    script.write_bytes(restore_script())
    assert b"eval" not in restore_script()
    program = shutil.which("shellcheck")
    if program is None:
        missing("shellcheck")
    subprocess.run([str(program), "--shell=sh", str(script)], check=True)


PATHS = st.text(st.characters(exclude_categories=["C"], exclude_characters="/\\"), min_size=1, max_size=30).filter(
    lambda part: part not in {".", ".."}
)


@given(st.lists(PATHS, min_size=1, max_size=3).map("/".join))
def test_every_path_of_a_model_is_one_word_of_a_line(path: str) -> None:
    """Breaks if a file's name could break a line of the list, or be taken for something else."""
    model, known = source("m", {path: b"x"})
    index = plan_index([model], PlanOptions("models", 7, 5 * MIB))
    (line,) = [line for line in restore_list(index).decode("ascii").splitlines() if line.startswith("file ")]
    *fields, encoded = line.split(" ")
    assert fields == ["file", "1", Digest.of_bytes(b"x").hex, "1"]
    assert not set(encoded) & set("\\$`'\"*?[;&|<>() \t")
    assert known
