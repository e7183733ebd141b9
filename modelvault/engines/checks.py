"""What the adapters share in looking at an install and in clearing it away."""

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from modelvault.artifact import Digest
from modelvault.engines.base import InstalledFile, InstallRecord
from modelvault.fsio import hash_file

_EDITABLE = 64 << 20  # bytes


def check_file(path: Path, file: InstalledFile, fresh: Mapping[str, Path], *, hashed: bool = True) -> str | None:
    """Say what is wrong with what should be ``file`` at ``path``; ``None`` if nothing is.

    ``fresh`` gives, by digest, files whose bytes were hashed a moment ago: a hard link to one of them is that very file, and is
    not read again. Without ``hashed`` the size alone decides.
    """
    size, digest = file.size, file.digest
    try:
        status = path.stat()
        if status.st_size != size:
            return f"{path} has {status.st_size:,} bytes, not {size:,}"
        if not hashed or (digest in fresh and os.path.samestat(status, fresh[digest].stat())):
            return None
        if hash_file(path) != Digest.parse(digest):
            return f"{path}: its content changed (expected {digest})"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {(error.strerror or str(error)).lower()}"
    return None


def check_files(record: InstallRecord, fresh: Mapping[str, Path], *, hashed: bool = True) -> list[str]:
    """Look at every file of a record and list what is wrong; see ``check_file``."""
    problems = (check_file(Path(record.directory) / file.path, file, fresh, hashed=hashed) for file in record.files)
    return [problem for problem in problems if problem]


def is_changed(path: Path, file: InstalledFile) -> bool:
    """Whether something lies at ``path`` that is not what was installed there.

    Of large files the size decides: nobody edits weights by hand, and hashing 70 GB only to remove them helps nobody.
    """
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
        return True
    return file.size <= _EDITABLE and hash_file(path) != Digest.parse(file.digest)


def remove_empty(directory: Path, root: Path) -> None:
    """Remove ``directory`` and those above it that are empty, up to ``root``, which stays."""
    while directory != root and root in directory.parents:
        with contextlib.suppress(FileNotFoundError):
            try:
                directory.rmdir()
            except OSError as error:
                if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                    return
                raise
        directory = directory.parent
