"""Opening what is to be inspected, and recognising what is no model file at all."""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from modelvault.errors import InvalidModelFile, PolicyRefused

HEAD = 1024
"""How many bytes from the start of a file are enough to tell what it is."""

_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head)\b", re.IGNORECASE | re.DOTALL
)
_MAY_BE_HTML = {".html", ".htm", ".md", ".svg", ".xml"}
# A pickle of protocol 2 to 5 starts with the opcode PROTO and its number; PyTorch since 1.6 zips one called data.pkl.
_PICKLE = re.compile(rb"\x80[\x02-\x05]|PK\x03\x04.{26,512}data\.pkl", re.DOTALL)

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"})
"""Files of these names hold Python pickles: loading one runs whatever code its author put in."""


@contextlib.contextmanager
def open_file(path: Path, name: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file unbuffered and give it with its size in bytes. Symlinks are followed: hub caches consist of them.

    Raises ``InvalidModelFile`` (rule ``not-regular``) for devices and pipes, and ``OSError`` if it cannot be read.
    """
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModelFile(name, "not-regular", "is not a regular file")
        yield file, status.st_size


def read_head(path: Path, name: str) -> bytes:
    """Read the first bytes of a file, at most ``HEAD``."""
    with open_file(path, name) as (file, _):
        return file.read(HEAD)


def refuse_impostors(head: bytes, name: str) -> None:
    """Raise ``InvalidModelFile`` for what downloads leave behind in place of a file (``lfs-pointer``, ``html-page``)."""
    if head.startswith(_LFS):
        raise InvalidModelFile(
            name,
            "lfs-pointer",
            "is a Git LFS pointer, not the file it points at",
            hint="the repository was cloned without git-lfs: run `git lfs pull` in it, or pull it with modelvault",
        )
    if PurePosixPath(name).suffix.lower() not in _MAY_BE_HTML and _HTML.match(head):
        raise InvalidModelFile(
            name,
            "html-page",
            "is an HTML page, probably an error or login page saved under the name of the file",
            hint="download the file again, and look at what the address answers in a browser",
        )


def refuse_empty(head: bytes, name: str) -> None:
    """Raise ``InvalidModelFile`` (rule ``empty-file``) where a file that must have content has none."""
    if not head:
        raise InvalidModelFile(name, "empty-file", "is empty", hint="download the file again")


def is_pickle(head: bytes) -> bool:
    """Tell from its first bytes whether a file is a Python pickle or a PyTorch archive that holds one."""
    return _PICKLE.match(head) is not None


def pickle_refused(names: list[str]) -> PolicyRefused:
    """Build the error that names the pickle files of a model."""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
    return PolicyRefused(
        f"pickle files can run any code when they are loaded: {shown}",
        hint="leave them out (a pull takes --exclude; for `add`, a folder without them), or accept the risk with --allow-pickle",
        files=names,
    )
