"""A process that writes or receives a bundle; the tests kill it.

Usage: run_once.py write INDEX VAULT DRIVE | run_once.py receive BUNDLE VAULT STAGING. A line on stdout per frame. With
``TEAR=<n>`` in the environment the process writes half of its n-th frame and then kills itself with SIGKILL.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from modelvault.bundle.format import decode
from modelvault.bundle.reader import open_bundle
from modelvault.bundle.receive import receive
from modelvault.bundle.writer import write_bundle
from modelvault.bundle.written import WriteOptions
from modelvault.keys import KeyRing
from modelvault.progress import NoTask


def say(*words: object) -> None:
    """Tell the test, at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


class Lines:
    """Progress as lines."""

    def log(self, message: str) -> None:
        say("log", message)

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> NoTask:
        return LinesTask()


class LinesTask(NoTask):
    """A line for every step."""

    def advance(self, amount: int) -> None:
        say("frame", amount)


def tear(after: int) -> None:
    """Let the n-th large write happen by half, and then die."""
    left = [after]

    def half(descriptor: int, data: bytes | memoryview) -> bool:
        if len(data) < 1 << 18:
            return False
        left[0] -= 1
        return left[0] == 0

    real_write, real_writev = os.pwrite, os.pwritev

    def pwrite(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if half(descriptor, data):
            real_write(descriptor, memoryview(data)[: len(data) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real_write(descriptor, data, offset)

    def pwritev(descriptor: int, parts: Sequence[bytes | memoryview], offset: int) -> int:
        joined = b"".join(bytes(part) for part in parts)
        if half(descriptor, joined):
            real_write(descriptor, joined[: len(joined) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real_writev(descriptor, parts, offset)

    os.pwrite = pwrite  # type: ignore[assignment]  # the fault, in this process only
    os.pwritev = pwritev  # type: ignore[assignment]  # as above


def main(verb: str, source: str, vault: str, target: str) -> None:
    """Do it once."""
    if "TEAR" in os.environ:
        tear(int(os.environ["TEAR"]))
    home = Path(vault)
    keys = KeyRing(home / "keys")
    if verb == "write":
        index = decode(Path(source).read_bytes())
        directories = tuple(Path(drive) / index.directory_name for drive in target.split(os.pathsep))
        options = WriteOptions(directories, home / "partial", threads=2)
        write_bundle(index, options, lambda digest: home / "blobs" / digest.hex, keys.signer(), Lines())
    else:
        bundle = open_bundle(Path(source), keys.verify)
        received = receive(bundle, bundle.index.sizes.keys(), Path(target), Lines(), threads=2)
        say("read", received.read, "resumed", received.resumed, "failed", len(received.failed))


if __name__ == "__main__":
    main(*sys.argv[1:])
