"""A folder or a single file on this machine as a source: the same byte ranges as from the Hub, without promises."""

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

from modelvault.artifact import SourceFile
from modelvault.errors import UsageProblem
from modelvault.fsio import open_file_range

_SKIPPED = {".git", ".cache", ".DS_Store", ".gitattributes", ".gitignore", "__pycache__"}


def _refuse(error: OSError) -> NoReturn:
    """Have ``os.walk`` fail where it would pass over a folder that it cannot read: a model must not lose files silently."""
    raise error


class FolderSource:
    """The files of one folder (or one file), by their paths within it. Symbolic links to files are followed."""

    def __init__(self, path: Path) -> None:
        """Look at ``path``; raises ``UsageProblem`` if nothing is there."""
        if not path.exists():
            raise UsageProblem(f"{path} does not exist", hint="name a model folder, a .gguf or a .safetensors file")
        self._root = path if path.is_dir() else path.parent
        self._single = None if path.is_dir() else path.name

    def files(self) -> tuple[SourceFile, ...]:
        """List the files, sorted by path, hidden bookkeeping left out. Raises ``UsageProblem`` for names that no model may have."""
        if self._single is not None:
            return (self._describe(self._single),)
        found = []
        for directory, folders, names in os.walk(self._root, onerror=_refuse, followlinks=False):
            folders[:] = sorted(folder for folder in folders if folder not in _SKIPPED)
            base = Path(directory).relative_to(self._root)
            for folder in folders:
                if Path(directory, folder).is_symlink():
                    raise UsageProblem(
                        f"{Path(directory, folder)} is a link to a folder",
                        hint="such links are not followed: remove it, or put the folder itself there",
                    )
            found += [self._describe((base / name).as_posix()) for name in sorted(names) if name not in _SKIPPED]
        return tuple(found)

    def _describe(self, relative: str) -> SourceFile:
        try:
            status = (self._root / relative).stat()
            file = SourceFile(relative, status.st_size, None)
        except FileNotFoundError as error:
            raise UsageProblem(
                f"{self._root / relative} is a link to nothing", hint="remove the link, or put the file there"
            ) from error
        except ValueError as error:
            raise UsageProblem(f"{self._root}: {error}", hint="rename the file") from error
        if not stat.S_ISREG(status.st_mode):
            raise UsageProblem(
                f"{self._root / relative} is not a regular file",
                hint="name a model folder, a .gguf or a .safetensors file"
                if self._single is not None
                else "a model holds files and folders only: remove it",
            )
        return file

    def identity(self, file: SourceFile) -> str:
        """Name this very state of a file, so that a copy under way is not continued from another one."""
        status = (self._root / file.path).stat()
        return f"{self._root.resolve() / file.path}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"

    def open_range(self, file: SourceFile, start: int, stop: int) -> AbstractContextManager[Iterator[bytes]]:
        """Read bytes ``start`` to ``stop`` of a file. Raises ``SourceUnavailable`` when it has become shorter."""
        return open_file_range(self._root / file.path, file.path, start, stop)
