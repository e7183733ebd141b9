"""Programs of engines as processes: asked for a word and bounded in time, or run as a server for a while and ended for certain."""

import contextlib
import os
import pwd
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelvault.engines.base import Owner
from modelvault.errors import EngineRefused

_POLL = 0.05  # seconds between two looks at a server that is starting or ending
_END_SECONDS = 20.0  # Ollama ends the processes that hold its models before it ends itself
_LAST_WORDS = 64 << 10  # bytes of a log in which it is sought why a server did not start
_LAST_LINES = 4  # of it are shown
_LINE = 200  # characters of each
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class EngineMissing(EngineRefused):
    """The program of an engine is not there, or may not be run."""

    slug = "engine-missing"


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Give an environment in which a program finds no proxy: what we ask it for is on this machine."""
    return {name: value for name, value in environment.items() if name.lower() not in _PROXIES}


def said_by(command: Sequence[str], environment: Mapping[str, str], *, seconds: float) -> str | None:
    """Run a program for what it prints, on either stream; ``None`` if it cannot be run, fails, or takes longer than ``seconds``."""
    try:
        process = subprocess.Popen(
            list(command),
            env=without_proxies(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
    except OSError:
        return None
    with process:
        try:
            said, _ = process.communicate(timeout=seconds)
        except BaseException as error:
            # A wrapper script's child would keep the pipe open, and us waiting.
            _kill_group(process)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                return None
            raise
    return said.decode("utf-8", "replace") if process.returncode == 0 else None


@dataclass(frozen=True, slots=True)
class Launch:
    """A server to be started: ``ready`` tells, by asking it, whether it can be used. ``user`` is who it runs as, if not ourselves."""

    title: str
    command: tuple[str, ...]
    ready: Callable[[], bool]
    variables: Mapping[str, str] = field(default_factory=dict)
    user: Owner | None = None


@contextlib.contextmanager
def running(launch: Launch, *, seconds: float) -> Iterator[None]:
    """Start a server, wait until it is ready, and end it and all that it started when the block ends, however it ends.

    It gets a home of its own that goes with it. Raises ``EngineRefused`` with its last words if it is not ready after ``seconds``.
    """
    with tempfile.TemporaryDirectory(prefix="modelvault-engine-") as name:
        home = Path(name)
        with tempfile.TemporaryFile() as log:
            process = _start(launch, home, log.fileno())
            try:
                _wait(launch, process, seconds, log.fileno())
                try:
                    yield
                except EngineRefused as error:
                    # The log goes with the server.
                    words = _last_words(log.fileno())
                    error.hint = f"the last that {launch.title} said: {words}" if words else error.hint
                    raise
            finally:
                _end(process)


def _start(launch: Launch, home: Path, log: int) -> "subprocess.Popen[bytes]":
    groups: list[int] | None = None
    if launch.user is not None:
        os.chown(home, launch.user.uid, launch.user.gid)
        groups = groups_of(launch.user)
    try:
        return subprocess.Popen(
            launch.command,
            env={**without_proxies(os.environ), "HOME": str(home), **launch.variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            start_new_session=True,
            user=launch.user.uid if launch.user else None,
            group=launch.user.gid if launch.user else None,
            extra_groups=groups,
        )
    except OSError as error:
        whom = f" as {launch.user}" if launch.user else ""
        raise EngineMissing(
            f"{launch.title} cannot be started{whom}: {launch.command[0]}: {(error.strerror or str(error)).lower()}",
            hint="name the program, where that user can run it: --program PATH",
            program=launch.command[0],
        ) from error


def groups_of(owner: Owner) -> list[int]:
    """List the groups of a user: graphics cards often belong to one."""
    try:
        name = pwd.getpwuid(owner.uid).pw_name
    except KeyError:  # a number that has no name here, as of a container's user
        return [owner.gid]
    return os.getgrouplist(name, owner.gid)


def _wait(launch: Launch, process: "subprocess.Popen[bytes]", seconds: float, log: int) -> None:
    deadline = time.monotonic() + seconds
    while not _is_ready(launch):
        code = _ended_with(process)
        if code is not None or time.monotonic() > deadline:
            how = f"ended with {code}" if code is not None else f"was not ready within {seconds:g} seconds"
            words = _last_words(log)
            raise EngineRefused(
                f"{launch.title} did not start: it {how}" + (f"; it said: {words}" if words else ""),
                hint=f"start it by hand to see more: `{shlex.join(launch.command)}`",
            )
        time.sleep(_POLL)


def _is_ready(launch: Launch) -> bool:
    try:
        return launch.ready()
    except EngineRefused:
        return False


def _last_words(log: int) -> str:
    """Give the last lines of a log, on one line."""
    size = os.fstat(log).st_size
    text = os.pread(log, _LAST_WORDS, max(size - _LAST_WORDS, 0)).decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()][-_LAST_LINES:]
    return " | ".join(line if len(line) <= _LINE else f"{line[:_LINE]}…" for line in lines)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask a server to end; what is then left of it and of its children is killed."""
    try:
        os.kill(process.pid, signal.SIGTERM)  # not terminate(), which would reap a process that has ended
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline and _ended_with(process) is None:
            time.sleep(_POLL)
    finally:
        _kill_group(process)
        process.wait()


def _ended_with(process: "subprocess.Popen[bytes]") -> int | None:
    """Give the exit code of a process that has ended. Unreaped, it keeps its number: the group cannot be somebody else's yet."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return process.poll()
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
