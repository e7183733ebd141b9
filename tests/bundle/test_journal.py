"""The journal of a bundle under way: what a crash left of it is used as far as it can be read."""

from pathlib import Path

from modelvault.bundle.journal import Journal
from modelvault.bundle.table import Frame


def test_foreign_bytes_within_a_line(tmp_path: Path) -> None:
    """Breaks if a power cut that leaves zeros within a line makes the bundle impossible to go on with."""
    frames = [Frame(offset, 10, "0" * 64, 10, "1" * 64) for offset in (0, 10, 20)]
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.begin(b"index", (tmp_path,))
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
    journal.begin(b"index", (a,))
    with journal:
        for volume in (1, 2, 3):
            journal.begin_volume(volume, a)
            journal.add_frame(volume, Frame(0, 10, "0" * 64, 10, "1" * 64))
        for volume in (1, 2):
            journal.close_volume(volume)
        journal.reopen(2)
    again = Journal(path)
    again.begin(b"index", (b,))
    assert again.closed_in(a) == (1,)
    assert [volume for volume in (1, 2, 3) if again.gone(volume, {b})] == [1]
    assert not again.any_gone({a})
    with again:
        again.finish(a)
    last = Journal(path)
    assert last.finished(1)
    assert not last.finished(2)
    assert last.any_gone({a}), "the drive may be elsewhere now"
    with last:
        last.reset(1, 0)
    assert not Journal(path).any_gone({b})
    assert (path / "target").read_bytes().split(b"\0") == [bytes(a), bytes(b)]
