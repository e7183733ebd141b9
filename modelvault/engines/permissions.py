"""What another user may read or write, judged by owners and modes, since only that user could try it."""

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

from modelvault.engines.base import Owner
from modelvault.engines.processes import groups_of

READ, WRITE, ENTER = stat.S_IROTH, stat.S_IWOTH, stat.S_IXOTH
_ACL = "system.posix_acl_access"
_MOST_ENTRIES = 20_000
"""Of a directory; a store of models has fewer, and in one that has more nobody waits for the rest to be looked at."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A user, with all groups."""

    owner: Owner
    groups: Collection[int]

    @classmethod
    def of(cls, owner: Owner) -> Self:
        """Look up a user's groups."""
        return cls(owner, frozenset(groups_of(owner)))

    def may(self, path: Path, wanted: int) -> bool:
        """Tell whether the user has all bits of ``wanted`` on a file or directory itself. Raises ``OSError``.

        Root may everything, and where an access list says more than the mode, nothing is held against the user.
        """
        if self.owner.uid == 0 or _has_access_list(path):
            return True
        status = path.stat()
        shift = 6 if status.st_uid == self.owner.uid else 3 if status.st_gid in self.groups else 0
        return (status.st_mode >> shift) & wanted == wanted

    def barred(self, directory: Path) -> Path | None:
        """Give the topmost directory that keeps the user from entering and listing ``directory``. Raises ``OSError``."""
        real = directory.resolve()
        for path in (*reversed(real.parents), real):
            if not self.may(path, ENTER if path != real else READ | ENTER):
                return path
        return None

    def unreadable(self, directory: Path) -> list[Path]:
        """List what below ``directory`` the user cannot read; of a directory, nothing in it. Raises ``OSError``."""
        return [path for path in islice(_below(directory), _MOST_ENTRIES) if not self._reads(path)]

    def _reads(self, path: Path) -> bool:
        try:
            return self.may(path, READ | ENTER if path.is_dir() else READ)
        except FileNotFoundError:  # a link to nothing, or gone meanwhile
            return True


def _below(directory: Path) -> Iterator[Path]:
    for root, directories, files in os.walk(directory):
        yield from (Path(root, name) for name in (*directories, *files))


def _has_access_list(path: Path) -> bool:
    if hasattr(os, "getxattr"):
        with contextlib.suppress(OSError):
            return bool(os.getxattr(path, _ACL))
    return False
