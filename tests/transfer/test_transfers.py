"""Transfers from sources in memory: resume, damage on disk, wrong sources, locks, room."""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from modelvault.artifact import Algorithm, Digest
from modelvault.errors import (
    DigestMismatch,
    ModelvaultError,
    NoSpace,
    PolicyRefused,
    RangesIgnored,
    SourceUnavailable,
    Transient,
    VaultLocked,
)
from modelvault.progress import NoProgress
from modelvault.transfer import Fetched, TransferOptions, Transfers, Wanted, beside
from modelvault.transfer import transfers as transfers_module
from modelvault.transfer.frontier import Frontier
from modelvault.transfer.geometry import piece_size
from modelvault.transfer.partial import Partial, Sink

FAST = TransferOptions(connections=4, attempts=3, backoff=0.0, lock_wait=0.0)
ONE = TransferOptions(connections=1, attempts=3, backoff=0.0, lock_wait=0.0)


class Log(NoProgress):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


class Memory:
    """A source of one file. ``before`` may raise; it sees the range and the number of the request."""

    def __init__(self, path: str, content: bytes, *, chunk: int = 50_000) -> None:
        self.path = path
        self.content = content
        self.chunk = chunk
        self.asked: list[tuple[int, int]] = []
        self.before: Callable[[int, int, int], None] = lambda _start, _stop, _number: None
        self.cut: int | None = None  # bytes after which every body ends early
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def open(self, start: int, stop: int) -> Iterator[Iterator[bytes]]:
        with self._lock:
            self.asked.append((start, stop))
            number = len(self.asked)
        self.before(start, stop, number)
        yield self._chunks(start, stop)

    def _chunks(self, start: int, stop: int) -> Iterator[bytes]:
        end = stop if self.cut is None else min(stop, start + self.cut)
        for position in range(start, end, self.chunk):
            yield self.content[position : min(position + self.chunk, end)]
        if end < stop:
            raise Transient("the connection broke")

    def wanted(self, digest: Digest | None = None) -> Wanted:
        return Wanted(self.path, len(self.content), digest or Digest.of_bytes(self.content), self.open)


def fetch(home: Path, *wanted: Wanted, options: TransferOptions = FAST, log: Log | None = None) -> tuple[Fetched, ...]:
    with Transfers(home, wanted, options, log or Log()) as transfers:
        return transfers.run()


def content(size: int) -> bytes:
    return os.urandom(size)


def test_files_of_all_sizes_arrive(tmp_path: Path) -> None:
    """The plain case: empty, tiny, one piece and a bit, many spans; with every kind of promise."""
    sizes = [0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 20 << 20]
    sources = [Memory(f"file-{size}", content(size)) for size in sizes]
    git = Digest(Algorithm.GIT_SHA1, hashlib.sha1(b"blob 1\0" + sources[1].content).hexdigest())
    unpromised = Wanted("unpromised", 1, None, sources[1].open, identity="org/name@commit")
    wanted = [source.wanted() for source in sources]
    wanted[1] = sources[1].wanted(git)
    results = fetch(tmp_path, *wanted, unpromised)
    assert [result.path for result in results] == [file.path for file in (*wanted, unpromised)]
    for result, source in zip(results, [*sources, sources[1]], strict=True):
        assert result.data.read_bytes() == source.content
        assert result.sha256 == Digest.of_bytes(source.content)
        assert (result.received, result.reused) == (result.size, 0)
    assert len(sources[-1].asked) > 1


def test_equal_content_is_fetched_once(tmp_path: Path) -> None:
    """Two paths of one blob must not cost its bytes twice, nor trip over each other's lock."""
    source = Memory("a", content(100_000))
    twin = Wanted("b", 100_000, Digest.of_bytes(source.content), source.open)
    with Transfers(tmp_path, [source.wanted(), twin], FAST, Log()) as transfers:
        first, second = transfers.run()
        assert first.data == second.data
        assert (first.received, second.received, second.reused) == (100_000, 0, 100_000)
        transfers.discard(first)
        transfers.discard(second)
    assert len(source.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_discard_after_the_data_was_published(tmp_path: Path) -> None:
    """What is left in partial/ after a rename into the store would be taken for a transfer under way."""
    source = Memory("a", content(1000))
    with Transfers(tmp_path / "partial", [source.wanted()], FAST, Log()) as transfers:
        (fetched,) = transfers.run()
        fetched.data.rename(tmp_path / "blob")
        transfers.discard(fetched)
    assert list((tmp_path / "partial").iterdir()) == []
    assert (tmp_path / "blob").read_bytes() == source.content


def test_resume_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    """The reason for all this: hours of transfer must survive a failure."""
    source = Memory("a", content(32 << 20))

    def fail_late(_start: int, _stop: int, number: int) -> None:
        if number > 3:
            raise PolicyRefused("stop here")

    source.before = fail_late
    with pytest.raises(PolicyRefused):
        fetch(tmp_path, source.wanted(), options=ONE)
    before = sum(stop - start for start, stop in source.asked[:-1])
    assert before > 0
    source.asked.clear()
    source.before = lambda _start, _stop, _number: None
    (result,) = fetch(tmp_path, source.wanted())
    assert result.reused == before
    assert sum(stop - start for start, stop in source.asked) == len(source.content) - before == result.received
    assert result.data.read_bytes() == source.content


def test_a_finished_partial_is_only_verified(tmp_path: Path) -> None:
    """A run that was killed between the last byte and the publication must not fetch anything."""
    source = Memory("a", content(3 << 20))
    fetch(tmp_path, source.wanted())
    source.asked.clear()
    (result,) = fetch(tmp_path, source.wanted())
    assert source.asked == []
    assert (result.received, result.reused) == (0, len(source.content))


def test_a_range_that_changed_on_disk_is_named_and_fetched_again(tmp_path: Path) -> None:
    """One bad sector must cost one piece, not the whole file, and the user must hear of it."""
    source = Memory("model.gguf", content(5 << 20))
    (result,) = fetch(tmp_path, source.wanted())
    damaged = bytearray(source.content)
    damaged[200_000] ^= 0x10
    result.data.write_bytes(damaged)
    source.asked.clear()
    log = Log()
    (result,) = fetch(tmp_path, source.wanted(), log=log)
    assert source.asked == [(196_608, 262_144)]
    assert log.lines == ["model.gguf: bytes 196608-262143 changed on disk, fetching them again"]
    assert result.data.read_bytes() == source.content


@pytest.mark.parametrize("damage", ["cut", "gone", "journal"])
def test_damage_that_goes_deeper(tmp_path: Path, damage: str) -> None:
    """A partial whose files were cut or removed must lead to the right bytes, never to a crash or to zeros."""
    source = Memory("a", content(5 << 20))
    (result,) = fetch(tmp_path, source.wanted())
    if damage == "cut":
        os.truncate(result.data, 1_000_000)
    elif damage == "gone":
        result.data.unlink()
    else:
        result.data.with_name("journal").write_bytes(b"\xff" * 500)
    (result,) = fetch(tmp_path, source.wanted())
    assert result.data.read_bytes() == source.content


def test_a_range_that_changes_during_the_run(tmp_path: Path) -> None:
    """The digest is wrong though the source is right: the piece has to be found, not the source blamed."""
    source = Memory("a", content(3 << 20))
    wanted = source.wanted()
    partial = Partial(tmp_path, wanted)
    log = Log()

    def fill() -> None:
        while span := partial.claim(1):
            sink = Sink(partial, span.start)
            sink.write(source.content[span.start : span.stop])
            partial.release(span)

    with partial:
        partial.allocate()
        fill()
        with partial.data.open("r+b") as file:
            file.seek(100_000)
            file.write(bytes([source.content[100_000] ^ 1]))
        digest = Frontier(partial, log, fill).run()
    assert digest == wanted.digest
    assert log.lines == ["a: bytes 65536-131071 changed on disk, fetching them again"]
    assert partial.data.read_bytes() == source.content


def test_a_disk_that_never_keeps_what_was_written(tmp_path: Path) -> None:
    """Fetching for ever would be the other way to fail."""
    source = Memory("a", content(100_000))
    partial = Partial(tmp_path, source.wanted())

    def fill() -> None:
        while span := partial.claim(1):
            sink = Sink(partial, span.start)
            sink.write(source.content[span.start : span.stop])
            partial.release(span)
        os.pwrite(partial.descriptor, bytes([source.content[0] ^ 1]), 0)

    with partial:
        fill()
        with pytest.raises(ModelvaultError, match="keeps changing"):
            Frontier(partial, Log(), fill).run()


def test_wrong_bytes_are_refused_and_fetched_anew(tmp_path: Path) -> None:
    """A flipped byte that is accepted is what this program exists to prevent; a rerun must recover."""
    good, bad = Memory("good", content(3 << 20)), Memory("bad", content(3 << 20))
    promised = Digest.of_bytes(bad.content)
    original = bad.content
    bad.content = original[:1_000_000] + bytes([original[1_000_000] ^ 1]) + original[1_000_001:]
    wrong = Digest.of_bytes(bad.content)
    with pytest.raises(DigestMismatch) as caught:
        fetch(tmp_path, good.wanted(), bad.wanted(promised))
    assert caught.value.data == {"path": "bad", "expected": str(promised), "actual": str(wrong)}
    bad.content = original
    bad.asked.clear()
    _, result = fetch(tmp_path, good.wanted(), bad.wanted(promised))
    assert result.received == len(original)
    assert result.data.read_bytes() == original


def test_a_wrong_git_digest_is_refused(tmp_path: Path) -> None:
    """Small files have only git's digest: it has to be compared as well."""
    source = Memory("config.json", b"{}")
    with pytest.raises(DigestMismatch) as caught:
        fetch(tmp_path, source.wanted(Digest(Algorithm.GIT_SHA1, "0" * 40)))
    assert caught.value.data["actual"] == "git-sha1:9e26dfeeb6e641a33dae4961196235bdb965b21b"


def test_a_source_without_ranges_is_read_from_the_start(tmp_path: Path) -> None:
    """Such a server must work, and what is here already must not be written again."""
    source = Memory("a", content(32 << 20))

    def whole_only(start: int, stop: int, number: int) -> None:
        if number > 2 and (start, stop) != (0, len(source.content)):
            raise RangesIgnored

    source.before = whole_only
    (result,) = fetch(tmp_path, source.wanted())
    assert source.asked.count((0, len(source.content))) == 1
    assert result.data.read_bytes() == source.content
    assert result.received > len(source.content)


def test_a_source_without_ranges_that_drops_connections(tmp_path: Path) -> None:
    """Each attempt gets a little further; as long as it does, it goes on."""
    source = Memory("a", content(8 << 20))
    source.cut = 0

    def whole_only(start: int, stop: int, _number: int) -> None:
        if (start, stop) != (0, len(source.content)):
            raise RangesIgnored
        assert source.cut is not None
        source.cut += 3 << 20

    source.before = whole_only
    (result,) = fetch(tmp_path, source.wanted())
    assert result.data.read_bytes() == source.content


def test_a_source_that_serves_nothing_at_all(tmp_path: Path) -> None:
    """It must end with an error, not in a loop."""
    source = Memory("a", content(100))

    def never(_start: int, _stop: int, _number: int) -> None:
        raise RangesIgnored

    source.before = never
    with pytest.raises(SourceUnavailable, match="neither ranges nor the whole file"):
        fetch(tmp_path, source.wanted())


def test_dropped_connections_go_on_where_they_were(tmp_path: Path) -> None:
    """Dropped in the middle of a piece, again and again: every byte counts as progress and none is asked for twice."""
    source = Memory("a", content(2 << 20), chunk=7000)
    source.cut = 20_000
    (result,) = fetch(tmp_path, source.wanted())
    assert result.received == len(source.content)
    assert result.data.read_bytes() == source.content


def test_giving_up_says_how_far_it_came(tmp_path: Path) -> None:
    """After bounded failures without a byte the user learns what is here and what to do."""
    source = Memory("a", content(32 << 20))

    def dead(_start: int, _stop: int, number: int) -> None:
        if number > 2:
            raise Transient("no connection to the hub")

    source.before = dead
    with pytest.raises(SourceUnavailable, match="no connection to the hub") as caught:
        fetch(tmp_path, source.wanted(), options=ONE)
    assert caught.value.data["here"] == sum(stop - start for start, stop in source.asked[:2])
    assert len(source.asked) == 2 + ONE.attempts
    assert caught.value.hint == "run the same command again: it goes on where it stopped"


def test_a_server_that_asks_for_too_much_patience(tmp_path: Path) -> None:
    """A wait of a day must be an error now, not a process that seems to hang."""
    source = Memory("a", content(100))

    def tomorrow(_start: int, _stop: int, _number: int) -> None:
        raise Transient("the source answers 429", retry_after=86_400)

    source.before = tomorrow
    with pytest.raises(SourceUnavailable, match="wait for 86400 seconds"):
        fetch(tmp_path, source.wanted())
    assert len(source.asked) == 1


def test_a_body_that_is_too_long_is_not_written(tmp_path: Path) -> None:
    """Bytes beyond the range would land in pieces that are not this request's."""
    source = Memory("a", content(300_000))
    other = Memory("b", content(300_001), chunk=70_000)
    wanted = Wanted("a", 300_000, source.wanted().digest, lambda start, stop: other.open(start, stop + 1))
    with pytest.raises(SourceUnavailable, match="more bytes than were asked for"):
        fetch(tmp_path, wanted)


def test_an_error_that_no_retry_mends_ends_everything(tmp_path: Path) -> None:
    """A refused file must not leave the others downloading for hours."""
    refused, slow = Memory("refused", content(100)), Memory("slow", content(8 << 20))

    def refuse(_start: int, _stop: int, _number: int) -> None:
        raise SourceUnavailable("gated")

    def wait(_start: int, _stop: int, _number: int) -> None:
        raise Transient("slow down", retry_after=500)

    refused.before, slow.before = refuse, wait
    with pytest.raises(SourceUnavailable, match="gated"):
        fetch(tmp_path, refused.wanted(), slow.wanted())


def test_a_blocked_read_is_cut_short(tmp_path: Path) -> None:
    """After an error elsewhere, a thread that waits for a silent server would keep the program for half a minute."""
    entered, aborted = threading.Event(), threading.Event()

    class Silent:
        def __enter__(self) -> Iterator[bytes]:
            return self._read()

        def _read(self) -> Iterator[bytes]:
            entered.set()
            if aborted.wait(60):
                raise Transient("cut")
            yield b""

        def __exit__(self, *_: object) -> None: ...

        def abort(self) -> None:
            aborted.set()

    refused = Memory("refused", content(100))

    def refuse(_start: int, _stop: int, _number: int) -> None:
        entered.wait(60)
        raise SourceUnavailable("gated")

    refused.before = refuse
    silent = Wanted("silent", 10, Digest.of_bytes(b"x"), lambda _start, _stop: Silent())
    with pytest.raises(SourceUnavailable, match="gated"):
        fetch(tmp_path, refused.wanted(), silent)
    assert aborted.is_set()


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writers in one partial file would mix their pieces."""
    monkeypatch.setattr(transfers_module, "SMALL", 999)
    source = Memory("a", content(1000))
    with Transfers(tmp_path, [source.wanted()], FAST, Log()):
        with (
            pytest.raises(VaultLocked, match="the transfer of a is in use"),
            Transfers(tmp_path, [Memory("b", content(2000)).wanted(), source.wanted()], FAST, Log()),
        ):
            pass
        fetch(tmp_path, Memory("b", content(2000)).wanted())  # whose lock the refused one let go again


def test_small_files_are_not_waited_for(tmp_path: Path) -> None:
    """Breaks if a pull of hours keeps the README that its model shares with others from every other pull."""
    shared = content(900)
    readme = [Memory("README.md", shared) for _ in range(3)]
    large = [Memory(f"{number}.gguf", content(1000 + number)) for number in range(3)]
    with contextlib.ExitStack() as stack:
        pulls = [
            stack.enter_context(Transfers(tmp_path, [big.wanted(), small.wanted()], FAST, Log()))
            for big, small in zip(large, readme, strict=True)
        ]
        found = [pull.run() for pull in pulls]
        assert len({item.data for fetched in found for item in fetched}) == 6
        assert {fetched[1].data.read_bytes() for fetched in found} == {shared}
        pulls[1].discard(found[1][1])
        assert not found[1][1].data.exists()
    # What could be gone on with stays, and nothing beside it.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {source.wanted().key for source in (*large, readme[0])}
    )


def test_what_is_refused_leaves_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if second transfers pile up: only a process that was killed leaves one, which is gone on with where it is needed again."""
    monkeypatch.setattr(transfers_module, "SMALL", 999)
    small, large = Memory("README.md", content(900)), Memory("a.gguf", content(1000))
    with Transfers(tmp_path, [large.wanted(), small.wanted()], FAST, Log()):
        left = tmp_path / f"{small.wanted().key}+2"
        left.mkdir()
        with Transfers(tmp_path, [Memory("b.gguf", content(2000)).wanted(), small.wanted()], FAST, Log()):
            assert beside(tmp_path) == [left]
        assert beside(tmp_path) == []


def test_a_full_disk_is_met_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tenth hour is too late; and the user must learn how much is missing."""
    source = Memory("a", content(3 << 20))
    monkeypatch.setattr(transfers_module, "free_space", lambda _path: 1000)
    with pytest.raises(NoSpace) as caught:
        fetch(tmp_path, source.wanted())
    assert caught.value.data["needed"] == len(source.content)
    assert source.asked == []


def test_progress_adds_up(tmp_path: Path) -> None:
    """A bar that ends anywhere but at its total is a bar that nobody trusts."""
    source = Memory("a", content(5 << 20))
    (result,) = fetch(tmp_path, source.wanted())
    journal = result.data.with_name("journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:30]))

    class Counting(Log):
        def __init__(self) -> None:
            super().__init__()
            self.tasks: list[Counter] = []

        def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> "Counter":
            self.tasks.append(Counter(label, total, done))
            return self.tasks[-1]

    progress = Counting()
    fetch(tmp_path, source.wanted(), log=progress)
    assert [task.label for task in progress.tasks] == ["total", "a"]
    for task in progress.tasks:
        assert task.began < task.done == task.total == len(source.content)
        assert task.ended


class Counter(contextlib.AbstractContextManager["Counter"]):
    """A task that counts."""

    def __init__(self, label: str, total: int, done: int) -> None:
        self.label, self.total, self.began, self.done, self.ended = label, total, done, done, False
        self._lock = threading.Lock()

    def advance(self, amount: int) -> None:
        with self._lock:
            self.done += amount

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True


def test_many_files(tmp_path: Path) -> None:
    """More files than a process may hold open at three descriptors each must still go through."""
    sources = [Memory(f"file-{number}", b"%d" % number) for number in range(400)]
    results = fetch(tmp_path, *(source.wanted() for source in sources))
    assert [result.data.read_bytes() for result in results] == [source.content for source in sources]


def test_pieces_of_small_files_are_one_request(tmp_path: Path) -> None:
    """A request for every 64 KiB would make a distant hub slow."""
    source = Memory("a", content(3 << 20))
    fetch(tmp_path, source.wanted())
    assert source.asked == [(0, 3 << 20)]
    assert piece_size(3 << 20) == 64 << 10
