"""A pseudo-terminal on which the installed program is run: what it showed, what a person typed."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from machines import PROGRAM, Machine


def on_terminal(
    machine: Machine,
    *arguments: str | Path,
    columns: int = 80,
    then: Callable[[int], None] | None = None,
    answers: Sequence[tuple[bytes, bytes]] = (),
    code: int | None = None,
) -> str:
    """Run a command on a pseudo-terminal and give what it showed; check its exit code, if one is named.

    ``then`` may type into it meanwhile; of each of ``answers`` in turn, the second is typed once the first was shown.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))  # a new one has no size at all
    environment = machine.environment() | {"TERM": "xterm-256color"}
    del environment["COLUMNS"]  # the terminal knows
    shown = b""
    waiting, seen = list(answers), 0

    def read() -> None:
        nonlocal shown, seen
        with contextlib.suppress(OSError):  # Linux: EIO when the other side is closed
            while piece := os.read(leader, 65536):
                shown += piece
                while waiting and waiting[0][0] in shown[seen:]:
                    question, typed = waiting.pop(0)
                    seen = shown.index(question, seen) + len(question)
                    os.write(leader, typed)

    with subprocess.Popen(
        ("setsid", "--ctty", *PROGRAM, *map(str, arguments)),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
        cwd=machine.root,
    ) as process:
        os.close(follower)
        reader = threading.Thread(target=read)
        reader.start()
        if then is not None:
            then(leader)
    reader.join()
    os.close(leader)
    assert code in {None, process.returncode}, f"ended with {process.returncode}:\n{shown.decode()}"
    return shown.decode()


def screen(shown: str, columns: int = 80) -> list[str]:
    """Give the lines that a terminal shows after all that was sent to it."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for code, character in re.findall(r"\x1b\[[\d;]*([A-Za-z])|(.)", shown, re.DOTALL):
        if code == "A":
            row -= 1
        elif code == "J":
            rows[row + 1 :] = []
            rows[row][column:] = []
        elif character == "\r":
            column = 0
        elif character == "\n" or (character and column == columns):
            row, column = row + 1, column if character == "\n" else 0
        rows += [[] for _ in range(row + 1 - len(rows))]
        if character and character not in "\r\n":
            rows[row] += " " * (column + 1 - len(rows[row]))
            rows[row][column] = character
            column += 1
    return [line for line in ("".join(cells).rstrip() for cells in rows) if line]
