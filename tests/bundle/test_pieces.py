"""A bundle that arrives in pieces: on several drives, in any order, damaged and mended. What has arrived is kept, and stays as it is."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_world import MIB, Log, World, flip
from drives import carry, lose
from evil_signer import rewritten

from modelvault.artifact import Digest
from modelvault.bundle import pipeline
from modelvault.bundle.check import verify_bundle
from modelvault.bundle.index import Span
from modelvault.bundle.plan import PlanOptions, plan_patch
from modelvault.bundle.ranges import Ranges
from modelvault.bundle.reader import OpenBundle, open_bundle
from modelvault.bundle.receive import Received, receive
from modelvault.bundle.staging import Arrival, Staging
from modelvault.bundle.written import Written

Pristine = tuple[World, Written]
SCRIPT = Path(__file__).with_name("run_once.py")


def opened(world: World, *places: Path) -> OpenBundle:
    """Open the parts of a bundle that lie in these places."""
    return replace(open_bundle(places[0], world.keys.verify), places=places)


def take(bundle: OpenBundle, staging: Path, *patches: OpenBundle) -> Received:
    """Receive everything, and see that what counts as complete is."""
    received = receive(bundle, bundle.index.sizes.keys(), staging, Log(), patches=patches, threads=2)
    for digest, path in received.blobs.items():
        assert Digest.of_bytes(path.read_bytes()) == digest
    return received


def patch(world: World, original: OpenBundle, spans: Sequence[Span], drive: Path) -> OpenBundle:
    """Write a bundle of just these pieces."""
    index = plan_patch(original.index, original.digest, spans, PlanOptions("models-patch", 1, 4 * MIB))
    return world.open(world.write(index, drive=drive))


def gaps(bundle: OpenBundle, staging: Path) -> list[Span]:
    """What has not arrived of a bundle."""
    there = Staging(staging).ranges()
    return [
        Span(blob.digest, *gap)
        for blob in bundle.index.blobs
        for gap in there.get(blob.digest, Ranges()).gaps(0, blob.size)
    ]


@pytest.fixture
def drives(pristine: Pristine, tmp_path: Path) -> tuple[Path, Path]:
    """The bundle on two drives: the largest file begins on the first and ends on the second."""
    bundle = pristine[1].directory
    return carry(bundle, tmp_path / "a", [1]), carry(bundle, tmp_path / "b", [2, 3])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("at_once", [True, False])
def test_two_drives(
    pristine: Pristine, drives: tuple[Path, Path], tmp_path: Path, order: tuple[int, int], at_once: bool
) -> None:
    """Breaks if drives have to come in order or together, or if one is read again for what it gave before."""
    world, staging = pristine[0], tmp_path / "staging"
    first, second = (drives[place] for place in order)
    if at_once:
        received = take(opened(world, first, second), staging)
        assert (received.failed, received.waiting, received.resumed) == ({}, {}, 0)
        return
    part = take(opened(world, first), staging)
    missing = {0: (2, 3), 1: (1,)}[order[0]]
    assert part.failed == {}
    assert {number for numbers in part.waiting.values() for number in numbers} <= set(missing)
    assert part.waiting
    whole = take(opened(world, second), staging)
    assert (whole.failed, whole.waiting) == ({}, {})
    assert whole.blobs.keys() == opened(world, first).index.sizes.keys()
    assert part.read + whole.read == opened(world, first).index.size
    assert whole.resumed == part.read


@pytest.mark.parametrize("moment", [2, 4])
def test_killed_between_drives(pristine: Pristine, drives: tuple[Path, Path], tmp_path: Path, moment: int) -> None:
    """Breaks if SIGKILL in the middle of the second drive loses what the first one gave, or lets a torn frame pass."""
    world, staging = pristine[0], tmp_path / "staging"
    command = [sys.executable, str(SCRIPT), "receive"]
    take(opened(world, drives[1]), staging)
    arguments = [str(drives[0]), str(world.root / "vault"), str(staging)]
    for fault in ({"TEAR": "1"}, {}):
        with subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, text=True, env=os.environ | fault
        ) as process:
            assert process.stdout is not None
            for count, _ in enumerate(process.stdout, 1):
                if count == moment:
                    process.send_signal(signal.SIGKILL)
            process.wait(60)
    whole = take(opened(world, drives[0]), staging)
    assert (whole.failed, whole.waiting) == ({}, {})


def test_a_good_copy_elsewhere(pristine: Pristine, tmp_path: Path) -> None:
    """Breaks if a damaged frame on one drive costs a model though another drive has the same volume whole."""
    world, written = pristine
    one, two = (carry(written.directory, tmp_path / name, [1, 2, 3]) for name in ("a", "b"))
    flip(one / "volume-0002.tar.zst")
    flip(two / "volume-0003.tar.zst")
    (one / "volume-0001.json").write_bytes(b"{}")
    both = opened(world, one, two)
    check = verify_bundle(both, Log())
    assert {(finding.volume, finding.place) for finding in check.findings} == {(1, one), (2, one), (3, two)}
    assert check.bad == frozenset()
    received = take(both, tmp_path / "staging")
    assert (received.failed, received.waiting) == ({}, {})


def frame_of(bundle: OpenBundle, number: int) -> int:
    """A frame of a volume that holds data of a large file alone."""
    return next(position for position, plan in enumerate(bundle.plans(number)) if plan.own is not None)


@pytest.mark.parametrize("later", [True, False])
def test_a_damaged_frame_is_mended(pristine: Pristine, bundle: Path, tmp_path: Path, later: bool) -> None:
    """Breaks if a patch does not mend what it was written for, together with the bundle or after it, or brings more than that."""
    world, staging = pristine[0], tmp_path / "staging"
    flip(bundle / "volume-0001.tar.zst")
    flip(bundle / "volume-0002.tar.zst")
    damaged = opened(world, bundle)
    check = verify_bundle(damaged, Log())
    spans = [
        Span(blob.digest, *gap) for blob in damaged.index.blobs for gap in check.good[blob.digest].gaps(0, blob.size)
    ]
    assert 0 < sum(span.length for span in spans) < damaged.index.size
    mending = patch(world, damaged, spans, tmp_path / "patch")
    if later:
        part = take(damaged, staging)
        assert part.failed.keys() == check.bad
        assert sorted(gaps(damaged, staging), key=str) == sorted(spans, key=str)
        alone = replace(open_bundle(staging, world.keys.verify), places=(staging,))
        assert alone.digest == damaged.digest
        whole = take(alone, staging, mending)
        assert whole.read == sum(span.length for span in spans)
    else:
        whole = take(damaged, staging, mending)
    assert (whole.failed, whole.waiting) == ({}, {})
    assert whole.blobs.keys() == damaged.index.sizes.keys()
    assert not verify_bundle(damaged, Log(), patches=[mending]).bad


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_lost_volume_is_mended(pristine: Pristine, bundle: Path, tmp_path: Path, number: int) -> None:
    """Breaks if a patch cannot stand in for a whole volume."""
    world, staging = pristine[0], tmp_path / "staging"
    lose(bundle, number)
    damaged = opened(world, bundle)
    part = take(damaged, staging)
    assert part.failed == {}
    assert set(part.waiting.values()) == {(number,)}
    mending = patch(world, damaged, gaps(damaged, staging), tmp_path / "patch")
    whole = take(damaged, staging, mending)
    assert (whole.failed, whole.waiting) == ({}, {})


def test_pieces_that_overlap(pristine: Pristine, bundle: Path, tmp_path: Path) -> None:
    """Breaks if a patch cut otherwise than the bundle's frames leaves a gap, or writes over what was hashed already."""
    world, staging = pristine[0], tmp_path / "staging"
    lose(bundle, 2)
    damaged = opened(world, bundle)
    take(damaged, staging)
    largest = max(damaged.index.blobs, key=lambda blob: blob.size)
    (gap,) = [span for span in gaps(damaged, staging) if span.blob == largest.digest]
    assert 0 < gap.offset < gap.end < largest.size
    wider = Span(largest.digest, gap.offset - 1000, gap.length + 2000)
    rest = [span for span in gaps(damaged, staging) if span.blob != largest.digest]
    mending = patch(world, damaged, [wider, *rest], tmp_path / "patch")
    whole = take(damaged, staging, mending)
    assert (whole.failed, whole.waiting) == ({}, {})
    assert whole.read == gap.length + sum(span.length for span in rest)


def test_what_arrived_is_not_written_over(pristine: Pristine, bundle: Path, tmp_path: Path) -> None:
    """Breaks if a signer can put other bytes under a blob after it was judged, or if an evil patch is taken for the blob."""
    world, staging = pristine[0], tmp_path / "staging"
    lose(bundle, 2)
    damaged = opened(world, bundle)
    take(damaged, staging)
    largest = max(damaged.index.blobs, key=lambda blob: blob.size)
    spans = gaps(damaged, staging)
    (gap,) = [span for span in spans if span.blob == largest.digest]
    assert gap.end < largest.size
    # Not all of it: whoever writes would notice.
    everything = [Span(largest.digest, 0, largest.size - 1), *(span for span in spans if span != gap)]
    mending = patch(world, damaged, everything, tmp_path / "patch")
    # Among what arrived from the bundle itself.
    rewritten(mending.places[0], world, 1, lambda _, data: data[:-1] + b"!" if len(data) > MIB else data)
    whole = take(damaged, staging, mending)
    assert (whole.failed, whole.waiting) == ({}, {})
    assert whole.read == sum(span.length for span in spans)

    shutil.rmtree(staging)
    wrong = take(opened(world, carry(bundle, tmp_path / "last", [3])), staging, mending)
    assert largest.digest in wrong.failed
    # None of it is believed any more: the next run takes all of it from whoever has it.
    assert (staging / largest.digest.hex).stat().st_size == 0
    assert Span(largest.digest, 0, largest.size) in gaps(damaged, staging)
    assert take(damaged, staging, patch(world, damaged, spans, tmp_path / "good")).failed == {}


def test_a_wrong_blob_that_is_being_synced(
    pristine: Pristine, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if the models beside it are lost, since its file goes while a sync of it is still to come."""
    world = pristine[0]
    rewritten(bundle, world, 2, lambda _, data: data[:-1] + b"!" if len(data) > MIB else data)
    sync = pipeline._sync

    def late(path: Path) -> None:
        time.sleep(0.1)
        sync(path)

    monkeypatch.setattr(pipeline, "_sync", late)
    monkeypatch.setattr(pipeline, "_SYNC_EVERY", 1)
    received = take(opened(world, bundle), tmp_path / "staging")
    largest = max(world.plan().blobs, key=lambda blob: blob.size)
    assert largest.digest in received.failed
    assert received.blobs


def test_staging_that_changed(pristine: Pristine, drives: tuple[Path, Path], tmp_path: Path) -> None:
    """Breaks if what rotted on our own disk between two drives is published, or costs more than to bring that drive again."""
    world, staging = pristine[0], tmp_path / "staging"
    take(opened(world, drives[1]), staging)
    largest = max(opened(world, drives[0]).index.blobs, key=lambda blob: blob.size)
    flip(staging / largest.digest.hex, largest.size - 10)
    part = take(opened(world, drives[0]), staging)
    assert part.failed == {}
    assert largest.digest in part.waiting
    assert take(opened(world, drives[1]), staging).failed == {}
    assert gaps(opened(world, drives[0]), staging) == []


def garble(log: Path) -> None:
    log.write_bytes(b"\xff\x00 nonsense\n" + log.read_bytes()[:-30])


def forget(log: Path) -> None:
    log.unlink()


def promise(log: Path) -> None:
    lines = log.read_bytes().splitlines()
    blob, *_ = lines[-1].split()
    log.write_bytes(b"%s 0 9999999 %s\n%s 99999999999 5 %s\n" % (blob, b"0" * 64, blob, b"0" * 64))


@pytest.mark.parametrize("deed", [garble, forget, promise])
def test_a_log_that_lies(
    pristine: Pristine, drives: tuple[Path, Path], tmp_path: Path, deed: Callable[[Path], None]
) -> None:
    """Breaks if a log that was torn, lost or says what is not so costs more than reading a drive again."""
    world, staging = pristine[0], tmp_path / "staging"
    take(opened(world, drives[1]), staging)
    deed(staging / "received.log")
    whole = take(opened(world, *drives), staging)
    assert (whole.failed, whole.waiting) == ({}, {})


@pytest.fixture(autouse=True)
def no_descriptor_stays_open() -> Iterator[None]:
    """Breaks if a run leaves files open: there may be thousands of frames."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


@pytest.mark.parametrize("number", [2, 3])
def test_a_patch_that_does_not_belong(pristine: Pristine, bundle: Path, tmp_path: Path, number: int) -> None:
    """Breaks if wrong bytes in a patch by a trusted key pass verify, or if the original is blamed for them."""
    world = pristine[0]
    staging = tmp_path / "staging"
    lose(bundle, number)
    damaged = opened(world, bundle)
    largest = max(damaged.index.blobs, key=lambda blob: blob.size)
    take(damaged, staging)
    mending = patch(world, damaged, gaps(damaged, staging), tmp_path / "patch")
    rewritten(mending.places[0], world, 1, lambda _, data: data[:-1] + b"!" if len(data) > MIB else data)
    check = verify_bundle(damaged, Log(), patches=[mending])
    assert largest.digest in check.bad
    assert {finding.blobs for finding in check.findings} == {(blob,) for blob in check.bad}
    assert {finding.bundle for finding in check.findings} == {mending.digest}
    assert all("with what this patch holds of it" in finding.reason for finding in check.findings)
    failed = take(damaged, staging, mending).failed
    assert failed.keys() == check.bad
    assert " of the patch: with what it holds" in failed[largest.digest]


def test_what_is_wrong_is_named_once(
    pristine: Pristine, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if each wrong blob costs another look through the log of what arrived: a bundle of thousands would take hours."""
    reads = 0
    arrivals = Staging.arrivals

    def counted(self: Staging) -> list[Arrival]:
        nonlocal reads
        reads += 1
        return arrivals(self)

    monkeypatch.setattr(Staging, "arrivals", counted)
    for number in (1, 2, 3):
        rewritten(bundle, pristine[0], number, lambda _, data: data[:-1] + b"!" if len(data) > MIB else data)
    received = take(opened(pristine[0], bundle), tmp_path / "staging")
    assert received.failed
    assert reads == 1
