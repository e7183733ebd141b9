"""What becomes of the outcome where nobody can take it, and of signals when all is done."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import PROGRAM, Machine

TO_NOWHERE = ["catalog", "catalog --json", "list", "list --json", "--help", "catalog --help"]


@pytest.mark.parametrize("command", TO_NOWHERE)
def test_an_output_that_is_full(machine: Callable[..., Machine], command: str) -> None:
    """Breaks if a full disk below `modelvault list > FILE` ends in a traceback, or in exit code 0."""
    pc = machine("pc")
    pc.run("keys", "new", "default")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            (*PROGRAM, *command.split()),
            env=pc.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "error: cannot write the output: no space left on device\n")


@pytest.mark.parametrize("command", ["catalog", "catalog --json"])
def test_an_output_that_nobody_reads(machine: Callable[..., Machine], command: str) -> None:
    """Breaks if `modelvault list | head` shows more than head does."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            (*PROGRAM, *command.split()),
            env=machine("pc").environment(),
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


def test_an_output_that_is_closed(machine: Callable[..., Machine]) -> None:
    """Breaks if a job that closed its output cannot run a command, or a file of the vault gets the output's number."""
    done = subprocess.run(
        ("sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, "catalog"),
        env=machine("pc").environment(),
        stderr=subprocess.PIPE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


LAST_MOMENT = """
import os, signal, sys, threading
from modelvault.cli import main

def late():
    threading.main_thread().join()
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=late).start()
sys.argv = ["modelvault", "--version"]
main()
"""


def test_ctrl_c_at_the_very_end(machine: Callable[..., Machine]) -> None:
    """Breaks if Ctrl-C while Python waits for its threads shows where it was waiting."""
    done = subprocess.run(
        [sys.executable, "-c", LAST_MOMENT],
        env=machine("pc").environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-2, "")
    assert done.stdout.startswith("modelvault ")
