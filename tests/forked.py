"""Commands that begin with their imports behind them: most of the time that a test takes is Python importing the same libraries again.

A process imports what modelvault imports, then forks for each command, which from there on is a process like any other: its own
environment, directory, output and exit. What a test kills, isolates or measures is started as users start it, by ``machines.PROGRAM``, and
so is everything if ``MODELVAULT_TEST_FORK=0``. Not imported ahead is what reads the environment when it is imported: huggingface_hub.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_LIBRARIES = ("typer", "typer.main", "typer._adapters", "rich.console", "sqlalchemy.orm", "sqlalchemy.dialects.sqlite", "gguf", "msgspec", "tqdm")  # fmt: skip
_READS_ENVIRONMENT = ("modelvault.sources.hub", "modelvault.sources.certificates", "modelvault.__main__", "modelvault.serve")  # fmt: skip
_LENGTH = struct.Struct("!I")
_OUTPUTS = 3


class Forker:
    """The process that forks, for one pytest worker; started by the first command, ended with the worker."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""
        self._directory = tempfile.TemporaryDirectory(prefix="fork-")

    def run(
        self, argv: Sequence[str], environment: Mapping[str, str], directory: Path, seconds: float
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, as ``subprocess.run`` does; it is killed after so many seconds."""
        self._start()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, Path(os.devnull).open() as nothing:
            request = json.dumps({"argv": list(argv), "environment": dict(environment), "directory": str(directory)})
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(seconds)
                connection.connect(self._address)
                message = request.encode("utf-8", "surrogateescape")
                socket.send_fds(
                    connection, [_LENGTH.pack(len(message))], [nothing.fileno(), out.fileno(), err.fileno()]
                )
                connection.sendall(message)
                (pid,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
                try:
                    (status,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
                except TimeoutError:
                    os.kill(pid, signal.SIGKILL)
                    raise subprocess.TimeoutExpired(list(argv), seconds) from None
            for file in (out, err):
                file.seek(0)
            texts = [file.read().decode() for file in (out, err)]
        return subprocess.CompletedProcess(list(argv), os.waitstatus_to_exitcode(status), *texts)

    def _start(self) -> None:
        if self._process is not None:
            return
        self._address = str(Path(self._directory.name) / "socket")
        environment = {key: os.environ[key] for key in ("PATH",) if key in os.environ}
        environment |= {
            "LC_ALL": "C.UTF-8",
            "PYTHONWARNINGS": "error",
            "OPENBLAS_NUM_THREADS": "1",
            "HOME": "/nonexistent",
        }
        command = [sys.executable, __file__, self._address]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the process that forks did not start"

    def end(self) -> None:
        """End the process that forks."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._directory.cleanup()


def _exactly(connection: socket.socket, length: int) -> bytes:
    found = b""
    while len(found) < length:
        chunk = connection.recv(length - len(found))
        if not chunk:
            raise ConnectionError("the process that forks is gone")
        found += chunk
    return found


# ── the process that forks ──


def _serve(address: str) -> None:
    _import_ahead()
    gc.collect()
    gc.freeze()  # what was imported is garbage to nobody, and stays shared
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        os.write(1, b"ready\n")
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _attend(connection)
                return  # the command's own process; it goes on to the end of Python, as any other
            connection.close()


def _import_ahead() -> None:
    for name in _LIBRARIES:
        importlib.import_module(name)
    import modelvault  # noqa: PLC0415

    for module in pkgutil.walk_packages(modelvault.__path__, "modelvault."):
        if not module.name.startswith((*_READS_ENVIRONMENT, "modelvault.registry.migrations")):
            importlib.import_module(module.name)


def _attend(connection: socket.socket) -> None:
    """Fork the command, wait for it, and tell how it ended. Returns in the command's process alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    (length,), descriptors = _received(connection)
    request = json.loads(_exactly(connection, length).decode("utf-8", "surrogateescape"))
    pid = os.fork()
    if pid:
        connection.sendall(_LENGTH.pack(pid))
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            connection.sendall(_LENGTH.pack(status))
        os._exit(0)
    connection.close()
    _become(request, descriptors)


def _received(connection: socket.socket) -> tuple[tuple[int], list[int]]:
    message, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, _OUTPUTS)
    return _LENGTH.unpack(message), list(descriptors)


def _become(request: Mapping[str, object], descriptors: Sequence[int]) -> None:
    """Take on the environment of the command, and run it."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, encoding="utf-8", errors=errors, closefd=False, buffering=1 if number == 2 else -1)
        for number, mode, errors in (
            (0, "r", "surrogateescape"),
            (1, "w", "surrogateescape"),
            (2, "w", "backslashreplace"),
        )
    )
    environment, argv = request["environment"], request["argv"]
    assert isinstance(environment, dict)
    assert isinstance(argv, list)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(str(request["directory"]))
    random.seed()
    from modelvault.cli import main  # noqa: PLC0415

    sys.argv = ["modelvault", *argv]
    main()


if __name__ == "__main__":
    _serve(sys.argv[1])  # returns in the processes of commands alone, which end here
