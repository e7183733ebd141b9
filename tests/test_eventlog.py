"""The event log: a chain that processes can share, that survives crashes and shows every change."""

import base64
import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelvault.errors import NoSpace, UsageProblem, VaultLocked
from modelvault.eventlog import (
    FIRST_PREVIOUS,
    MAX_LINE,
    Event,
    EventLog,
    EventLogDamaged,
    decode_event,
    encode_event,
)
from modelvault.locks import FileLock

_APPENDER = """
import sys
from pathlib import Path
from modelvault.eventlog import EventLog
log = EventLog(Path(sys.argv[1]), wait=60)
for index in range(int(sys.argv[3])):
    event = log.append("test", {"writer": sys.argv[2], "index": index, "padding": "x" * 5000})
    print(event.number, flush=True)
"""


def _start_appender(path: Path, writer: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _APPENDER, str(path), writer, str(count)], stdout=subprocess.PIPE, text=True
    )


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.integers(min_value=1), st.text(), st.text(), st.dictionaries(st.text(), _JSON, max_size=5))
def test_a_line_says_what_was_written(number: int, time: str, kind: str, data: dict[str, object]) -> None:
    """If this fails, an event is not read back as it was logged, or a newline inside it splits a line."""
    event = Event(number, time, kind, data)
    line = encode_event(event, FIRST_PREVIOUS)
    assert b"\n" not in line
    assert decode_event(line) == (event, FIRST_PREVIOUS)


def test_the_format_is_the_documented_one(tmp_path: Path) -> None:
    """If this fails, another program that follows docs/formats/vault.md cannot follow the chain."""
    tick = iter(datetime(2026, 1, 31, 13, 0, second, tzinfo=timezone(timedelta(hours=1))) for second in range(9))
    log = EventLog(tmp_path / "events.jsonl", clock=lambda: next(tick))
    log.append("key-new", {"key": "abc"})
    log.append("install", {"directory": "/srv/\udcff"})
    first, second = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert first == (
        b'{"n":1,"time":"2026-01-31T12:00:00.000Z","kind":"key-new","data":{"key":"abc"},"previous":"'
        + b"0" * 64
        + b'"}'
    )
    assert json.loads(second)["previous"] == hashlib.sha256(first).hexdigest()
    assert b"\\udcff" in second


def test_events_come_back_in_order(tmp_path: Path) -> None:
    """If this fails, rebuild replays something other than what happened."""
    log = EventLog(tmp_path / "events.jsonl")
    assert list(log.read()) == []
    log.path.touch()
    assert list(log.read()) == []
    assert log.last() is None
    written = [log.append("test", {"index": index}) for index in range(5)]
    assert [event.number for event in written] == [1, 2, 3, 4, 5]
    assert list(log.read()) == written
    assert log.last() == written[-1]


def test_a_log_is_continued_by_the_next_process(tmp_path: Path) -> None:
    """If this fails, the chain breaks between two runs of modelvault; long last lines need more than one read."""
    path = tmp_path / "events.jsonl"
    for length in (10, 70_000, 300_000, 5):
        EventLog(path).append("test", {"padding": "x" * length})
    assert [len(event.data["padding"]) for event in EventLog(path).read()] == [10, 70_000, 300_000, 5]


def _cut_line(lines: list[bytes]) -> list[bytes]:
    return [lines[0], *lines[2:]]


def _swap_lines(lines: list[bytes]) -> list[bytes]:
    return [lines[1], lines[0], *lines[2:]]


def _edit_line(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"index":1', b'"index":7'), *lines[2:]]


def _spoil_line(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1][:-3], *lines[2:]]


def _repeat_line(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1], *lines[1:]]


@pytest.mark.parametrize(
    ("change", "line"), [(_cut_line, 2), (_swap_lines, 1), (_edit_line, 3), (_spoil_line, 2), (_repeat_line, 3)]
)
def test_every_change_is_noticed(tmp_path: Path, change: Callable[[list[bytes]], list[bytes]], line: int) -> None:
    """If this fails, someone can take an install or an import out of the record unnoticed."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for index in range(4):
        log.append("test", {"index": index})
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")
    with pytest.raises(EventLogDamaged, match=f"line {line} is damaged") as caught:
        list(log.read())
    assert caught.value.data["line"] == line


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b"null", b"[" * 100_000, b"\xff\xfe", b'{"n":1}'])
def test_a_line_that_is_no_event_is_refused(tmp_path: Path, line: bytes) -> None:
    """If this fails, garbage with a newline crashes the program or is chained over as if it were an event."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(line + b"\n")
    for use in (lambda: list(EventLog(path).read()), lambda: EventLog(path).append("test", {}), EventLog(path).last):
        with pytest.raises(EventLogDamaged):
            use()
    assert path.read_bytes() == line + b"\n"


def test_wrong_types_are_refused(tmp_path: Path) -> None:
    """If this fails, a line with the right keys and wrong values reaches the code that trusts them."""
    good = {"n": 1, "time": "t", "kind": "k", "data": {}, "previous": FIRST_PREVIOUS}
    for key, value in (("n", True), ("n", "1"), ("time", 1), ("kind", None), ("data", []), ("previous", 0)):
        with pytest.raises(ValueError, match="wrong type"):
            decode_event(json.dumps(good | {key: value}).encode())


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_line_is_kept_and_replaced(tmp_path: Path, cut: int) -> None:
    """If this fails, a power loss in the middle of a line stops every later command, or vanishes without a trace."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append("test", {"index": 0})
    log.append("test", {"index": 1})
    whole, last = path.read_bytes().splitlines(keepends=True)
    torn = last[:-cut]
    path.write_bytes(whole + torn)
    assert [event.data["index"] for event in log.read()] == [0]
    log.append("test", {"index": 2})
    first, recovered, third = log.read()
    assert (first.kind, recovered.kind, third.kind) == ("test", "recovered", "test")
    assert recovered.data["bytes"] == len(torn)
    assert base64.b64decode(recovered.data["content"]) == torn
    assert recovered.data["sha256"] == hashlib.sha256(torn).hexdigest()


@pytest.mark.parametrize("torn", [b"\0" * 4096, b"x" * 200_000, b"{"])
def test_a_torn_first_line_is_recovered(tmp_path: Path, torn: bytes) -> None:
    """If this fails, a vault whose very first event was torn (or left as zeros by the file system) cannot log again."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(torn)
    assert EventLog(path).last() is None
    EventLog(path).append("test", {})
    assert [event.kind for event in EventLog(path).read()] == ["recovered", "test"]
    assert path.read_bytes().count(b"\n") == 2


def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    """If this fails, a log that holds one gigantic line is read into memory as a whole."""
    path = tmp_path / "events.jsonl"
    EventLog(path).append("test", {})
    with path.open("r+b") as file:
        file.truncate(4 * MAX_LINE)
    with pytest.raises(EventLogDamaged, match="too long"):
        list(EventLog(path).read())
    with pytest.raises(EventLogDamaged, match="too long"):
        EventLog(path).append("test", {})


def test_what_json_cannot_hold_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    """If this fails, a mistake of a caller tears the log."""
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append("test", {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        log.append("test", {"path": tmp_path})
    with pytest.raises(ValueError, match="JSON compliant"):
        log.append("test", {"value": float("nan")})
    with pytest.raises(UsageProblem):
        log.append("test", {"value": "x" * MAX_LINE})
    assert path.read_bytes() == before


def test_two_processes_make_one_chain(tmp_path: Path) -> None:
    """If this fails, two commands at once lose each other's events or break the chain."""
    path = tmp_path / "events.jsonl"
    writers = [_start_appender(path, name, 40) for name in ("a", "b")]
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    events = list(EventLog(path).read())
    assert len(events) == 80
    for name in ("a", "b"):
        assert [event.data["index"] for event in events if event.data["writer"] == name] == list(range(40))


@pytest.mark.parametrize("acknowledged", [1, 7, 23])
def test_sigkill_loses_nothing_that_was_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    """If this fails, an event that append returned is gone after the process was killed."""
    path = tmp_path / "events.jsonl"
    with _start_appender(path, "victim", 100_000) as writer:
        assert writer.stdout is not None
        for _ in range(acknowledged):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        seen = acknowledged + len(writer.stdout.read().splitlines())
    assert writer.returncode == -signal.SIGKILL
    EventLog(path).append("after", {})
    events = list(EventLog(path).read())
    survived = [event.data["index"] for event in events if event.kind == "test"]
    assert survived == list(range(len(survived)))
    assert len(survived) >= seen - 1  # the last line read may itself be cut short
    assert events[-1].kind == "after"


def test_another_process_that_keeps_the_log_is_waited_for_and_named(tmp_path: Path) -> None:
    """If this fails, a second process writes into the middle of a line instead of exiting with 11."""
    path = tmp_path / "events.jsonl"
    with FileLock(path), pytest.raises(VaultLocked, match="event log"):
        EventLog(path, wait=0).append("test", {})
    EventLog(path, wait=0).append("test", {})


def _append_within_a_small_file_limit(path: str) -> int:
    """Run in a process of its own: a file size limit acts as a full disk does (EFBIG)."""
    import resource  # noqa: PLC0415 (only where it exists)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        EventLog(Path(path)).append("test", {"padding": "x" * 2000})
    except NoSpace:
        return 15
    return 0


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    """If this fails, running out of space tears the log or is not reported as exit 15."""
    path = tmp_path / "events.jsonl"
    EventLog(path).append("test", {})
    before = path.read_bytes()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_append_within_a_small_file_limit, (str(path),)) == 15
        pool.close()
        pool.join()
    assert path.read_bytes() == before


def test_high_water_marks_are_per_key_and_label(tmp_path: Path) -> None:
    """If this fails, an old bundle can be replayed, or a new one under another label is refused."""
    log = EventLog(tmp_path / "events.jsonl")
    for key, label, sequence in (("a", "models", 5), ("a", "models", 9), ("a", "models", 7), ("b", "models", 1)):
        log.append("bundle-imported", {"key": key, "label": label, "sequence": sequence, "index": "sha256:0"})
    log.append("bundle-imported", {"key": None, "label": "models", "sequence": 99, "index": "sha256:0"})
    log.append("bundle-written", {"key": "a", "label": "models", "sequence": 99, "index": "sha256:0"})
    assert log.high_water() == {("a", "models"): 9, ("b", "models"): 1}


def test_an_import_without_its_sequence_is_damage(tmp_path: Path) -> None:
    """If this fails, replay protection silently ignores an import that it cannot read."""
    log = EventLog(tmp_path / "events.jsonl")
    log.append("bundle-imported", {"key": "a", "label": "models"})
    with pytest.raises(EventLogDamaged, match="line 1"):
        log.high_water()


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_no_bytes_crash_a_reader(before: bytes, after: bytes) -> None:
    """If this fails, some content of the file raises something other than the error that names the line."""
    with tempfile.TemporaryDirectory() as folder:
        log = EventLog(Path(folder, "events.jsonl"))
        log.path.write_bytes(before)
        for use in (lambda: list(log.read()), log.last, lambda: log.append("test", {})):
            with contextlib.suppress(EventLogDamaged):
                use()
        with log.path.open("ab") as file:
            file.write(after)
        with contextlib.suppress(EventLogDamaged):
            list(log.read())


def test_times_are_utc_now_by_default(tmp_path: Path) -> None:
    """If this fails, the log carries local times or a clock that stands."""
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    event = EventLog(tmp_path / "events.jsonl").append("test", {})
    assert before <= datetime.fromisoformat(event.time) <= datetime.now(UTC)
    assert event.time.endswith("Z")
    assert os.stat(tmp_path / "events.jsonl").st_mode & 0o022 == 0
