"""The journal of a bundle under way: what a crash left of it is used as far as it can be read."""

from pathlib import Path

from modelvault.bundle.journal import Journal, Noted
from modelvault.bundle.table import Frame


def test_foreign_bytes_within_a_line(tmp_path: Path) -> None:
    """Breaks if a power cut that leaves zeros within a line makes the bundle impossible to go on with."""
    frames = [Frame(offset, 10, "0" * 64, 10, "1" * 64) for offset in (0, 10, 20)]
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.begin(b"index", (tmp_path,), "key")
    with journal:
        for frame in frames:
            journal.add_frame(1, frame)
    file = path / "frames.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = b"[" + bytes(len(lines[1]) - 3) + b"]\n"
    file.write_bytes(b"".join(lines))
    with Journal(path) as again:
        assert again.frames(1) == (frames[0],)
        again.add_frame(1, frames[1])
    with Journal(path) as once_more:
        assert once_more.frames(1) == tuple(frames[:2])


def test_where_volumes_are(tmp_path: Path) -> None:
    """Breaks if a volume that is safe on another drive is forgotten by the next run, or one that is not safe counts as such."""
    a, b = tmp_path / "a", tmp_path / "b"
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.begin(b"index", (a,), "key")
    with journal:
        journal.meet("one", a)
        for volume in (1, 2, 3):
            journal.begin_volume(volume, "one")
            journal.add_frame(volume, Frame(0, 10, "0" * 64, 10, "1" * 64))
        for volume in (1, 2):
            journal.close_volume(volume)
        journal.reopen(2)
    again = Journal(path)
    again.begin(b"index", (b,), "key")
    assert again.closed_on("one") == (1,)
    assert again.noted(1) == Noted("one", closed=True, length=10)
    assert again.noted(2) == Noted("one", closed=False, length=10)
    assert again.noted(4) == Noted(None, closed=False, length=0)
    with again:
        again.meet("two", a)  # in the same place
        assert again.closed_on("two") == ()
        again.finish("one", (1, 2), compared=False)
    last = Journal(path)
    assert last.finished(1)
    assert not last.compared(1)
    assert not last.finished(2)
    assert last.knows("two")
    with last:
        last.meet("one", b)
        assert not last.finished(1), "its sums are about to go"
        assert last.directory("one") == b
        last.finish("one", (1,), compared=True)
        assert last.compared(1)
        last.reset(1, 0)
    assert Journal(path).closed_on("one") == ()
    assert not Journal(path).finished(1)
    assert (path / "target").read_bytes().split(b"\0") == [bytes(a), bytes(b)]
