"""What the adapters share in looking at an install and in clearing it away."""

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path

from modelvault.artifact import Digest
from modelvault.engines.base import InstalledFile, InstallRecord
from modelvault.engines.ground import hash_file


def check_file(path: Path, file: InstalledFile, fresh: Mapping[str, Path]) -> str | None:
    """Say what is wrong with what should be ``file`` at ``path``; ``None`` if nothing is.

    ``fresh`` gives, by digest, files whose bytes were hashed a moment ago: a hard link to one of them is that very file, and is
    not read again.
    """
    size, digest = file.size, file.digest
    try:
        status = path.stat()
        if status.st_size != size:
            return f"{path} has {status.st_size:,} bytes, not {size:,}"
        if digest in fresh and os.path.samestat(status, fresh[digest].stat()):
            return None
        if hash_file(path) != Digest.parse(digest):
            return f"{path}: its content changed (expected {digest})"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {(error.strerror or str(error)).lower()}"
    return None


def check_files(record: InstallRecord, fresh: Mapping[str, Path]) -> list[str]:
    """Hash every file of a record and list what is wrong; see ``check_file``."""
    problems = (check_file(Path(record.directory) / file.path, file, fresh) for file in record.files)
    return [problem for problem in problems if problem]


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
