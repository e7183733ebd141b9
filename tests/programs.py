"""Programs of the system that tests compare with."""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Skip, or fail where everything has to be there."""
    reason = f"{what} is not installed: run scripts/setup-packages"
    if os.environ.get("MODELVAULT_REQUIRE_ENGINES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def require_program(name: str) -> str:
    """Find a program; else skip or fail."""
    return shutil.which(name) or missing(name)


@contextlib.contextmanager
def alone(what: str) -> Iterator[None]:
    """Wait until no other test on this machine is in such a block: groups of xdist have been lost without a word before."""
    with Path(tempfile.gettempdir(), f"modelvault-tests-{os.geteuid()}-{what}.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def ended(
    command: Sequence[str], environment: Mapping[str, str], directory: str | Path | None = None, *, seconds: float = 600
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end; after so many seconds it is stuck, and killed with all that it started."""
    with subprocess.Popen(
        command,
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
