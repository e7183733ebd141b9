"""What a person sees: units, tables, bars on a terminal, plain lines elsewhere."""

import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from faulty_hub import FaultyHub
from hypothesis import given
from hypothesis import strategies as st
from machines import SECONDS, Machine
from make_models import make_large_gguf
from refusals import failed
from terminals import on_terminal, screen

from modelvault.cli.console import LineProgress, counted, human_size, human_time, wrapped
from modelvault.cli.run import printable, run
from modelvault.cli.tables import fit, table


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_400, "999 kB"),
        (999_600, "1 MB"),
        (999.6, "1 kB"),
        (4_920_000_000, "4.92 GB"),
        (700 * 10**9, "700 GB"),
        (12 * 10**11, "1.20 TB"),
    ],
)
def test_sizes(size: float, text: str) -> None:
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
def test_tables_fit_the_terminal(rows: list[tuple[str, str, str]]) -> None:
    """Breaks if a long name pushes the other columns off the terminal."""
    assert all(len(line) <= 80 for line in fit(("model", "format", "size"), rows, right=(2,), width=80))


def test_wide_tables_fit_the_terminal() -> None:
    """Breaks if the row that one looks for, of an install that is damaged, is the one that is too wide."""
    header = ("model", "engine", "name", "directory", "linked", "intact", "tried")
    row = (
        "organization/a-model-GGUF:Q4_K_M",
        "llamacpp",
        "a-model-gguf",
        "/srv/models/llamacpp",
        "reflink",
        "damaged",
        "2026-11-27 failed",
    )
    assert max(len(line) for line in fit(header, [row], right=(), width=80)) <= 80


def test_names_are_folded_at_their_joints() -> None:
    """Breaks if a name in a narrow table is torn in the middle of a word where it could be read."""
    shown = list(fit(("model", "size"), [("organization/a-model-of-some-length", "4 GB")], right=(), width=30))
    assert [line.split()[0] for line in shown[1:]] == ["organization/a-model-of-", "some-length"]


def test_tables_lose_nothing() -> None:
    """Breaks if a name that is too long for the terminal cannot be read there, or is cut where a program reads it."""
    name = "organization/" + "0123456789" * 9
    folded = list(fit(("model", "format"), [(name, "gguf")], right=(), width=60))
    assert [line[-4:] for line in folded if "gguf" in line] == ["gguf"]
    assert "".join(line[:54].strip() for line in folded[1:]) == name
    assert list(table(("model", "format"), [(name, "gguf")]))[1] == f"{name}  gguf"


def test_a_vault_where_none_can_be(machine: Callable[..., Machine]) -> None:
    """Breaks if a mistyped MODELVAULT_HOME ends with the system's words alone."""
    assert "MODELVAULT_HOME" in failed(machine("pc", MODELVAULT_HOME="/proc/x"), "keys", "new", code=1)["hint"]


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


def test_the_screen_after_ctrl_c(machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if what to do next stands among what is left of the bars, or of the ^C that the terminal shows among them."""
    folder = tmp_path / "model"
    folder.mkdir()
    make_large_gguf(folder / "large-Q8_0.gguf", 30_000_000)
    with FaultyHub({"org/large": folder}, send_buffer=16 << 10) as hub:
        hub.faults.rate = 1_000_000
        reached = hub.reached("large-Q8_0.gguf", 5_000_000)

        def type_ctrl_c(leader: int) -> None:
            assert reached.wait(60)
            os.write(leader, b"\x03")

        shown = on_terminal(machine("pc", hub.url), "pull", "org/large", then=type_ctrl_c)
    assert "total:" in shown
    assert "^C" in shown
    assert screen(shown) == [
        "looking up org/large",
        "error: interrupted",
        "hint: run the same command again: it goes on where it stopped",
    ]


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


def test_the_screen_after_a_server_was_stopped(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if the prompt of the shell follows on the ^C that the terminal shows."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    def type_ctrl_c(leader: int) -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"GET /api/models HTTP/1.0\r\n\r\n")
                assert client.recv(100)  # by now Ctrl-C is the server's
                break
        os.write(leader, b"\x03")

    shown = on_terminal(pc, "serve", "--port", str(port), then=type_ctrl_c)
    assert shown.endswith("^C\r\nstopped\r\n")


def test_prose_is_wrapped_on_a_terminal_only() -> None:
    """Breaks if a long warning is cut up by the terminal in the middle of words, or a command to copy by us."""
    text = "tiny goes into no engine; to install it: `modelvault install org/a-rather-long-name --engine ollama=/srv/models`"
    assert wrapped(text, io.StringIO()) == text
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with os.fdopen(follower, "w") as stream:
        lines = wrapped(text, stream).split("\n")
        command = "type one of:\n  modelvault uninstall org/a-rather-long-name --engine ollama=/srv/models"
        assert wrapped(command, stream) == command
    os.close(leader)
    assert lines == [
        "tiny goes into no engine; to install it:",
        "  `modelvault install org/a-rather-long-name --engine ollama=/srv/models`",
    ]


@pytest.mark.parametrize(
    ("key", "said"),
    [(b"\x03", "error: interrupted"), (b"\x04", "hint: run `modelvault keys show` on")],
    ids=["ctrl-c", "ctrl-d"],
)
def test_no_answer_to_the_fingerprint(machine: Callable[..., Machine], key: bytes, said: str) -> None:
    """Breaks if who does not know the fingerprint, and leaves, is told of a defect."""
    pc = machine("pc", NO_COLOR="1")
    pc.run("keys", "new", "default")
    public_key = pc.vault / "keys" / "default.pub"
    shown = on_terminal(pc, "keys", "trust", public_key, answers=[(b"was made: ", key)])
    assert said in shown
    assert "\r\nerror:" in shown
    assert "internal error" not in shown


def test_narrow_terminals_keep_words_whole() -> None:
    """Breaks if a table becomes a column of letters where a terminal is a narrow pane."""
    rows = [("organization/a-model-with-a-long-name", "safetensors", "Q4_K_M", "4.92 GB")]
    shown = list(fit(("model", "format", "quantization", "size"), rows, right=(3,), width=20))
    assert "safetensors" in shown[1]
    assert "quantization" in shown[0]
    assert len(shown) < 6


@pytest.mark.parametrize(
    ("command", "goes_on"), [("pull", True), ("import", True), ("install", False), ("verify", False)]
)
def test_interrupted(command: str, capsys: pytest.CaptureFixture[str], *, goes_on: bool) -> None:
    """Breaks if somebody who ends a copy of 40 GB is told that it goes on where it stopped."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(typer.Exit) as left:
            run(command, as_json=False, work=interrupted, render=lambda _: ())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert left.value.exit_code == 130
    said = capsys.readouterr().err
    assert "run the same command again" in said
    assert ("it goes on where it stopped" in said) is goes_on
