"""What a person sees: units, tables, bars on a terminal, plain lines elsewhere."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import PROGRAM, Machine

from modelvault.cli.console import LineProgress, counted, human_size, human_time
from modelvault.cli.run import printable
from modelvault.cli.tables import table


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (4_920_000_000, "4.92 GB"),
        (700 * 10**9, "700 GB"),
        (12 * 10**11, "1.20 TB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    """Breaks if sizes are shown in another unit than drives are sold in."""
    assert human_size(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_times(seconds: float, text: str) -> None:
    """Breaks if a duration cannot be read."""
    assert human_time(seconds) == text


def test_counted() -> None:
    """Breaks if one volume becomes `1 volumes`."""
    assert (counted(1, "volume"), counted(2, "volume"), counted(1200, "file")) == (
        "1 volume",
        "2 volumes",
        "1,200 files",
    )


@given(st.lists(st.tuples(st.text(max_size=120), st.text(max_size=12), st.text(max_size=12)), max_size=5))
def test_tables_fit_80_columns(rows: list[tuple[str, str, str]]) -> None:
    """Breaks if a long name pushes the other columns off the terminal."""
    assert all(len(line) <= 80 for line in table(("model", "format", "size"), rows, right=(2,)))


def test_control_characters_do_not_reach_the_terminal() -> None:
    """Breaks if a name from a drive could clear the screen or hide text."""
    assert printable("a\x1b[2Jb\u202ec") == "a\\x1b[2Jb\\u202ec"


def test_lines_report_the_whole_only() -> None:
    """Breaks if a log file is flooded by single files, or says nothing about the whole."""
    stream = io.StringIO()
    progress = LineProgress(stream)
    with progress.task("total", 2000, overall=True) as whole, progress.task("file", 2000) as file:
        file.advance(2000)
        whole.advance(2000)
    assert re.fullmatch(r"total: 2 kB in .* \(.*/s\)\n", stream.getvalue())


def on_terminal(machine: Machine, *arguments: str | Path) -> str:
    """Run a command on a pseudo-terminal and give what it showed."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # a new one has no size at all
    environment = machine.environment() | {"TERM": "xterm-256color"}
    with subprocess.Popen(
        (*PROGRAM, *map(str, arguments)),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
        cwd=machine.root,
    ) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # Linux: EIO when the other side is closed
                break
            if not piece:
                break
            shown += piece
        process.wait()
    os.close(leader)
    return shown.decode()


def test_bars_and_colors_only_on_a_terminal(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if a terminal shows no progress, or a pipe gets bars and escape codes."""
    pc = machine("pc")
    shown = on_terminal(pc, "add", tiny_gguf, "--name", "a")
    assert "100%|" in shown
    assert "\x1b[31merror:" in on_terminal(pc, "show", "nothing")
    piped = machine("other").run("add", tiny_gguf, "--name", "a")
    assert "|" not in piped.err
    assert "\x1b" not in piped.err + piped.out
    failed = machine("other").run("show", "nothing", code=2)
    assert failed.err.startswith("error: ")
    assert "hint: " in failed.err
