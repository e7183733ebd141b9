"""A set of files, fetched together into ``partial/``: locks, room on disk, the crew, the results."""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from modelvault.artifact import Digest
from modelvault.filesystem import free_space, no_space, no_space_at
from modelvault.fsio import allow_open_files
from modelvault.locks import locked_directory
from modelvault.progress import Progress
from modelvault.transfer.crew import Crew
from modelvault.transfer.local import take_over
from modelvault.transfer.partial import Partial
from modelvault.transfer.values import Fetched, TransferOptions, Wanted


class Transfers:
    """Files under way, for a ``with`` block, in which they belong to this process.

    Example::

        with Transfers(vault / "partial", wanted, TransferOptions(), progress) as transfers:
            for fetched in transfers.run():
                publish(fetched.data, ...)  # renamed away
                transfers.discard(fetched)
    """

    def __init__(self, partial: Path, wanted: Sequence[Wanted], options: TransferOptions, progress: Progress) -> None:
        """Prepare. Files that promise the same digest are fetched once."""
        self._home = partial
        self._wanted = tuple(wanted)
        self._options = options
        self._progress = progress
        self._locks: dict[str, contextlib.ExitStack] = {}

    def __enter__(self) -> Self:
        """Lock every file. Raises ``VaultLocked`` when another process keeps one for longer than ``lock_wait``."""
        allow_open_files(len(self._wanted))  # every lock is one
        # In one order for everybody, so that two processes that want the same files cannot wait for each other.
        try:
            with no_space_at(self._home):
                for wanted in sorted(self._wanted, key=lambda wanted: wanted.key):
                    if wanted.key not in self._locks:
                        self._locks[wanted.key] = self._lock(wanted)
        except BaseException:
            self._unlock()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go; what was not discarded stays for the next run."""
        self._unlock()

    def run(self) -> tuple[Fetched, ...]:
        """Fetch what is missing; return one result for each wanted file, in their order, verified and synced.

        Raises ``SourceUnavailable``, ``DigestMismatch``, ``NoSpace`` or what a source raised. What arrived stays for the next
        run, except for a file that does not have the digest that was promised.
        """
        first = {wanted.key: wanted for wanted in reversed(self._wanted)}
        linked, wanting = self._take_over(first)
        partials = {key: Partial(self._home / key, wanted) for key, wanted in wanting.items()}
        self._make_room(list(partials.values()))
        total = sum(partial.size for partial in partials.values())
        done = sum(partial.reused for partial in partials.values())
        with self._progress.task("total", total, done=done, overall=True) as overall:
            digests = Crew(partials.values(), self._options, self._progress, overall).run()
        return tuple(
            replace(linked[wanted.key], path=wanted.path)
            if wanted.key in linked
            else _result(wanted, partials[wanted.key], digests[partials[wanted.key]], first=first[wanted.key] is wanted)
            for wanted in self._wanted
        )

    def _take_over(self, first: Mapping[str, Wanted]) -> tuple[dict[str, Fetched], dict[str, Wanted]]:
        """Link what lies on this machine; give that, and what is still to be fetched."""
        linked: dict[str, Fetched] = {}
        wanting: dict[str, Wanted] = {}
        with no_space_at(self._home):
            for key, wanted in first.items():
                found = take_over(wanted, self._home / key, self._progress)
                if isinstance(found, Fetched):
                    linked[key] = found
                else:
                    wanting[key] = found
        return linked, wanting

    def discard(self, fetched: Fetched) -> None:
        """Remove what is left of a transfer after its data was published, or is not needed any more."""
        self._remove(fetched.data.parent.name)

    def drop(self, wanted: Wanted) -> None:
        """Leave a file away that turned out not to be needed, and remove what there is of its transfer."""
        self._wanted = tuple(other for other in self._wanted if other.path != wanted.path)
        self._remove(wanted.key)

    def _remove(self, key: str) -> None:
        lock = self._locks.pop(key, None)
        if lock is None:
            return  # another path of the same content came first
        with lock:
            shutil.rmtree(self._home / key)

    def _lock(self, wanted: Wanted) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        directory, wait, what = self._home / wanted.key, self._options.lock_wait, f"the transfer of {wanted.path}"
        stack.enter_context(locked_directory(directory, wait=wait, what=what, on_wait=self._progress.log))
        if wanted.model:
            (directory / "model").write_text(wanted.model, encoding="utf-8")
        return stack

    def _unlock(self) -> None:
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()

    def _make_room(self, partials: Sequence[Partial]) -> None:
        """Meet a full disk now, not in the tenth hour."""
        needed = sum(partial.unallocated() for partial in partials)
        if needed > free_space(self._home):
            raise no_space(self._home, needed=needed)
        with no_space_at(self._home, needed=needed):
            for partial in partials:
                with partial:
                    partial.allocate()


def _result(wanted: Wanted, partial: Partial, sha256: Digest, *, first: bool) -> Fetched:
    return Fetched(
        path=wanted.path,
        data=partial.data,
        size=wanted.size,
        sha256=sha256,
        received=partial.received if first else 0,
        reused=partial.reused if first else wanted.size,
    )
