"""What tests of faults share: how a command must fail, and commands that are stopped in the middle."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machines import PROGRAM, SECONDS, Machine, Ran

ENVELOPE = {"schema", "command", "status", "result", "warnings", "error"}
ERROR = {"code", "exit_code", "message", "hint", "data"}


def failed(machine: Machine, *arguments: str | Path, code: int) -> dict[str, Any]:
    """Run a command that must fail; give the error of its ``--json`` envelope, which must help and keep to its form."""
    ran = machine.json(*arguments, code=code)
    document = ran.document
    assert document.keys() == ENVELOPE, ran
    error: dict[str, Any] = document["error"]
    assert error.keys() == ERROR, ran
    assert (document["schema"], document["status"], error["exit_code"]) == ("modelvault/1", "error", code), ran
    assert error["hint"], f"nothing says what to do next: {ran}"
    assert error["message"], ran
    assert not error["message"].endswith("."), ran
    return error


def succeeded(machine: Machine, *arguments: str | Path) -> dict[str, Any]:
    """Run a command that must work; give its result, in an envelope that keeps to its form."""
    ran = machine.json(*arguments)
    assert ran.document.keys() == ENVELOPE, ran
    assert (ran.document["status"], ran.document["error"]) == ("ok", None), ran
    return ran.result


@dataclass(frozen=True)
class Running:
    """A command that was started, with a process of its own."""

    process: "subprocess.Popen[str]"
    arguments: tuple[str, ...]

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    def end(self, code: int) -> Ran:
        """Wait for its end and check its exit code."""
        out, err = self.process.communicate(timeout=SECONDS)
        ran = Ran(self.arguments, self.process.returncode, out, err)
        assert ran.code == code, f"expected exit code {code}: {ran}"
        assert "Traceback" not in ran.err, str(ran)
        return ran

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait until something is so, or the command has ended."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None and not reached():
            assert time.monotonic() < deadline, f"{self.arguments} never got there"


@contextlib.contextmanager
def running(machine: Machine, *arguments: str | Path) -> Iterator[Running]:
    """Start ``modelvault`` with its output kept; it is ended by its process id in any case."""
    command = tuple(map(str, arguments))
    process = subprocess.Popen(
        (*PROGRAM, *command),
        env=machine.environment(),
        cwd=machine.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Running(process, command)
        finally:
            process.kill()


def interrupted(ran: Ran) -> None:
    """Check what is said after Ctrl-C or SIGTERM."""
    assert "error: interrupted" in ran.err, ran
    assert "hint: run the same command again" in ran.err, ran


def blobs(machine: Machine) -> dict[str, bytes]:
    """All blobs of a vault, by name."""
    return {path.name: path.read_bytes() for path in (machine.vault / "blobs" / "sha256").iterdir()}


def blob_of(machine: Machine, model: str, suffix: str) -> Path:
    """The blob of the one file of a model that ends so."""
    files = machine.json("show", model).result["files"]
    (digest,) = [str(file["digest"]) for file in files if file["path"].endswith(suffix)]
    return machine.vault / "blobs" / "sha256" / digest.removeprefix("sha256:")


def tree(directory: Path) -> dict[str, bytes]:
    """All files below a directory, by path."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def fill(directory: Path, leave: int) -> Path:
    """Fill a file system until about ``leave`` bytes are free, or none at all; give the file that does it."""
    status = os.statvfs(directory)
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        size = max((status.f_bfree * status.f_frsize - leave) * 9 // 10, 1)
        os.posix_fallocate(file.fileno(), 0, size)
        file.seek(size)
        with contextlib.suppress(OSError):  # it is full: what we came for
            while os.statvfs(directory).f_bfree * status.f_frsize > leave:
                file.write(bytes(status.f_frsize))
    return filler
