"""Choosing drives: what a mount table says, what a file system can take, which volume goes where."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelvault.artifact import Digest
from modelvault.bundle.drive import DriveFailed, faults
from modelvault.bundle.drives import (
    MAX_FAT,
    Drive,
    Lying,
    Mount,
    Wanted,
    assign,
    check,
    find,
    lacking,
    measure,
    mount_at,
    parse_mounts,
    probe,
)
from modelvault.bundle.journal import Noted
from modelvault.bundle.written import Written, WrittenDrive
from modelvault.config import VOLUME_SIZE
from modelvault.errors import UsageProblem
from modelvault.operations.drives import drive_warnings

MOUNTINFO = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 8:17 / /media/usb rw,nosuid shared:20 - vfat /dev/sdb1 rw,fmask=0022
41 22 8:33 / /media/my\040stick rw - exfat /dev/sdc1 rw
42 22 0:40 / /media/usb/inner ro master:3 propagate_from:2 - iso9660 /dev/sr0 ro
43 22 8:49 / /media/usb rw - ntfs3 /dev/sdd1 rw
this is no line of a mount table
44 22 - ext4
"""


def drive(number: int, free: int, *, device: int | None = None, kind: str | None = "ext4", ro: bool = False) -> Drive:
    """A drive as it might be found."""
    return Drive(Path(f"/media/{number}"), number if device is None else device, free, kind, ro)


def test_mount_table() -> None:
    """Breaks if a stick's file system is taken for another one's: of the mount around it, before it, or with a blank in its name."""
    mounts = parse_mounts(MOUNTINFO)
    assert len(mounts) == 5
    kinds = {
        "/home": "ext4",
        "/media/usb": "ntfs3",
        "/media/usb/deep/down": "ntfs3",
        "/media/usb2": "ext4",
        "/media/usb/inner/x": "iso9660",
        "/media/my stick": "exfat",
    }
    found = {path: mount_at(Path(path), mounts) for path in kinds}
    assert {path: mount.kind for path, mount in found.items() if mount} == kinds
    assert found["/media/usb/deep/down"] == Mount(Path("/media/usb"), "ntfs3")
    assert mount_at(Path("/home"), parse_mounts("")) is None


@given(st.text())
def test_any_mount_table(text: str) -> None:
    """Breaks if what some kernel writes there stops a bundle."""
    mount_at(Path("/media/usb"), parse_mounts(text))


def test_limits_of_file_systems() -> None:
    """Breaks if FAT32 is found to take no file of 4 GiB after hours, or if it is refused the volumes that it does take."""
    (mount,) = parse_mounts("40 22 8:17 / /media/usb rw - vfat /dev/sdb1 rw")
    stick = drive(1, 1 << 40, kind=mount.kind)
    check(stick, MAX_FAT)
    check(stick, VOLUME_SIZE + (VOLUME_SIZE >> 10) + (512 << 10))  # the worst case of the default
    with pytest.raises(UsageProblem, match="4 GiB") as caught:
        check(stick, MAX_FAT + 1)
    assert "--volume-size 2GiB" in (caught.value.hint or "")
    check(drive(1, 1 << 40, kind="exfat"), MAX_FAT + 1)
    check(drive(1, 1 << 40, kind=None), MAX_FAT + 1)
    with pytest.raises(DriveFailed, match="read-only"):
        check(drive(1, 1 << 40, ro=True), 1)


def test_in_the_order_given() -> None:
    """Breaks if a volume does not go to the first drive with room for all of it."""
    found = [drive(0, 25), drive(1, 100)]
    wanted = [Wanted(1, 20, 20), Wanted(2, 20, 20), Wanted(3, 20, 20), Wanted(4, 5, 5)]
    assigned = assign(wanted, found)
    assert [[volume.number for volume in volumes] for volumes in assigned.volumes] == [[1, 4], [2, 3]]
    assert lacking(wanted, found) is None


def test_two_places_on_one_drive() -> None:
    """Breaks if the room of one file system is counted twice."""
    found = [drive(0, 30, device=7), drive(1, 30, device=7)]
    wanted = [Wanted(1, 20, 20), Wanted(2, 20, 20)]
    error = lacking(wanted, found)
    assert error is not None
    assert error.data == {"needed": 40, "free": 30, "missing": 10}


def test_what_lies_there_and_what_is_gone() -> None:
    """Breaks if what an earlier run wrote is counted again, or a drive that is not here is asked to take it."""
    wanted = [Wanted(1, 0, 20, gone=True), Wanted(2, 5, 20, on=1), Wanted(3, 20, 20)]
    assigned = assign(wanted, [drive(0, 19), drive(1, 25)])
    assert assigned.volumes == ((), (wanted[1], wanted[2]))
    # Begun where there is no room for the rest of it any more: another drive takes all of it.
    assigned = assign([Wanted(1, 15, 20, on=0)], [drive(0, 10), drive(1, 25)])
    assert assigned.volumes == ((), (Wanted(1, 15, 20, on=0),))


def test_room_in_pieces() -> None:
    """Breaks if drives with enough room in all, and on none for a whole volume, are said to lack nothing."""
    error = lacking([Wanted(1, 20, 20)], [drive(0, 15), drive(1, 15)])
    assert error is not None
    assert error.exit_code == 15
    assert error.data["missing"] == 20
    assert "/media/0 and /media/1" in error.message


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.lists(st.integers(0, 200), min_size=1, max_size=4))
def test_no_drive_is_overfilled(sizes: list[int], rooms: list[int]) -> None:
    """Breaks if a drive gets more than it has room for, or a volume goes nowhere though a drive could take it."""
    found = [drive(number, room) for number, room in enumerate(rooms)]
    wanted = [Wanted(number, size, size) for number, size in enumerate(sizes, 1)]
    assigned = assign(wanted, found)
    left = [
        room - sum(volume.whole for volume in volumes) for room, volumes in zip(rooms, assigned.volumes, strict=True)
    ]
    assert min(left) >= 0
    assert all(volume.whole > room for volume in assigned.left_over for room in left)
    placed = [volume.number for volumes in assigned.volumes for volume in volumes]
    assert sorted([*placed, *(volume.number for volume in assigned.left_over)]) == [w.number for w in wanted]


@pytest.mark.parametrize("name", ["EIO", "EROFS", "ENODEV", "ENOMEDIUM", "EUCLEAN", "ETIMEDOUT", "ESHUTDOWN"])
def test_what_a_drive_that_went_away_says(tmp_path: Path, name: str) -> None:
    """Breaks if one of the ways in which systems say that a drive is gone ends a bundle though another drive could go on."""
    code = getattr(errno, name)
    with pytest.raises(DriveFailed, match=os.strerror(code).lower()), faults(tmp_path, needed=lambda: 0):
        raise OSError(code, os.strerror(code))


def test_measure_leaves_nothing(tmp_path: Path) -> None:
    """Breaks if the measured write stays on the drive, or says nothing."""
    assert probe(tmp_path).free > 0
    speed = measure(tmp_path)
    assert speed is not None
    assert speed.write > 0
    assert speed.read > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("noted", "here", "expected"),
    [
        # Nothing noted: what lies there is gone on with.
        (Noted(None, closed=False, length=0), [Lying("a", 0), Lying("b", 5)], (1, False)),
        (Noted(None, closed=False, length=0), [Lying("a", 0)], (None, False)),
        # Begun on b.
        (Noted("b", closed=False, length=10), [Lying("a", 10), Lying("b", 3)], (1, False)),
        (Noted("b", closed=False, length=10), [Lying("a", 0), Lying("b", 0)], (None, False)),
        (Noted("b", closed=False, length=10), [Lying("a", 0)], (None, False)),
        # Complete on b, which is here: with all of it, less, more, nothing.
        (Noted("b", closed=True, length=10), [Lying("a", 10), Lying("b", 10)], (1, False)),
        (Noted("b", closed=True, length=10), [Lying("a", 4), Lying("b", 3)], (1, False)),
        (Noted("b", closed=True, length=10), [Lying("a", 0), Lying("b", 11)], (1, False)),
        (Noted("b", closed=True, length=10), [Lying("a", 0), Lying("b", 0)], (None, False)),
        (Noted("b", closed=True, length=10), [Lying("a", 10), Lying("b", 3)], (0, False)),
        # Complete on b, which is not here: nothing, all, or a part of it lies elsewhere.
        (Noted("b", closed=True, length=10), [Lying("a", 0)], (None, True)),
        (Noted("b", closed=True, length=10), [Lying(None, 0)], (None, True)),
        (Noted("b", closed=True, length=10), [Lying("a", 4), Lying(None, 0)], (None, True)),
        (Noted("b", closed=True, length=10), [Lying("a", 4), Lying(None, 10)], (1, False)),
        (Noted("b", closed=True, length=10), [Lying(None, 4)], (0, False)),
    ],
)
def test_where_a_volume_is(noted: Noted, here: list[Lying], expected: tuple[int | None, bool]) -> None:
    """Breaks if a volume counts as safe that may be lost, or one that is safe is written again."""
    assert find(noted, here) == expected


def test_what_is_said_of_drives_without_sums() -> None:
    """Breaks if a drive that is here and full is said to be away, or if volumes of an earlier run count in silence."""
    here = WrittenDrive(Path("/media/a/x"), (1,), 10, here=True, finished=False, read_back=False)
    away = WrittenDrive(Path("/media/b/x"), (2, 3), 20, here=False, finished=False, read_back=False)
    safe = WrittenDrive(Path("/media/c/x"), (4,), 20, here=False, finished=True, read_back=True, earlier=True)
    swapped = WrittenDrive(Path("/media/c/x"), (5,), 20, here=False, finished=True, read_back=True)
    drives = (here, away, safe, swapped)
    written = Written(Path("/media/a/x"), Digest.of_bytes(b""), 5, 30, 30, 0, False, 1.0, 1.0, drives)
    full, gone, elsewhere = drive_warnings(written)
    assert full.startswith("/media/a has no room left: it has volume 1, ")
    assert gone.startswith("the drive that was at /media/b is not here: it has volumes 2 to 3, ")
    assert elsewhere.startswith("volume 4 lies on the drive that was at /media/c: it is not here")
