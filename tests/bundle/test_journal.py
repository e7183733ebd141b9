"""The journal of a bundle under way: what a crash left of it is used as far as it can be read."""

from pathlib import Path

from modelvault.bundle.journal import Journal
from modelvault.bundle.table import Frame


def test_foreign_bytes_within_a_line(tmp_path: Path) -> None:
    """Breaks if a power cut that leaves zeros within a line makes the bundle impossible to go on with."""
    frames = [Frame(offset, 10, "0" * 64, 10, "1" * 64) for offset in (0, 10, 20)]
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.begin(b"index", tmp_path)
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
