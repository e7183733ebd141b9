"""A set of files, fetched together into ``partial/``: locks, room on disk, the crew, the results."""

import contextlib
import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from modelvault.artifact import Digest
from modelvault.errors import VaultLocked
from modelvault.filesystem import free_space, no_space, no_space_at
from modelvault.fsio import allow_open_files
from modelvault.locks import locked_directory
from modelvault.progress import Progress
from modelvault.transfer.crew import Crew
from modelvault.transfer.local import take_over
from modelvault.transfer.partial import Partial
from modelvault.transfer.values import Fetched, TransferOptions, Wanted

SMALL = 64 << 20
"""Bytes up to which a file that another process has under way is fetched a second time, beside that, rather than waited for."""

_BESIDE = "+"


def beside(partial: Path) -> list[Path]:
    """List where files were fetched a second time: nobody goes on with those that no process holds."""
    return sorted(path for path in partial.glob(f"*{_BESIDE}*") if path.is_dir())


@dataclass(frozen=True, slots=True)
class _Held:
    """The directory of a transfer, and the lock that makes it ours."""

    directory: Path
    lock: contextlib.ExitStack


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
        self._held: dict[str, _Held] = {}

    def __enter__(self) -> Self:
        """Lock every file. Raises ``VaultLocked`` when another process keeps one for longer than ``lock_wait``.

        Files are locked until all of them are here, which may take hours, and models share small ones: those are not waited for. The
        largest is, however small: by it, two pulls of one model know each other.
        """
        allow_open_files(len(self._wanted))  # every lock is one
        # In one order for everybody, so that two processes that want the same files cannot wait for each other.
        in_order = sorted(self._wanted, key=lambda wanted: (-wanted.size, wanted.key))
        try:
            with no_space_at(self._home):
                for wanted in in_order:
                    if wanted.key not in self._held:
                        waits = wanted.size > SMALL or wanted is in_order[0]
                        self._held[wanted.key] = self._lock(wanted) if waits else self._lock_somewhere(wanted)
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
        partials = {key: Partial(self._held[key].directory, wanted) for key, wanted in wanting.items()}
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
                found = take_over(wanted, self._held[key].directory, self._progress)
                if isinstance(found, Fetched):
                    linked[key] = found
                else:
                    wanting[key] = found
        return linked, wanting

    def discard(self, fetched: Fetched) -> None:
        """Remove what is left of a transfer after its data was published, or is not needed any more."""
        self._remove(fetched.data.parent.name.partition(_BESIDE)[0])

    def drop(self, wanted: Wanted) -> None:
        """Leave a file away that turned out not to be needed, and remove what there is of its transfer."""
        self._wanted = tuple(other for other in self._wanted if other.path != wanted.path)
        self._remove(wanted.key)

    def _remove(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is None:
            return  # another path of the same content came first
        with held.lock:
            shutil.rmtree(held.directory)

    def _lock(self, wanted: Wanted) -> _Held:
        return self._lock_in(self._home / wanted.key, wanted, self._options.lock_wait)

    def _lock_somewhere(self, wanted: Wanted) -> _Held:
        """Lock a file where it is always fetched, or beside that if another process has it: the first of some places that is free."""
        for number in itertools.count(1):
            name = wanted.key if number == 1 else f"{wanted.key}{_BESIDE}{number}"
            with contextlib.suppress(VaultLocked):
                return self._lock_in(self._home / name, wanted, wait=0)
        raise AssertionError

    def _lock_in(self, directory: Path, wanted: Wanted, wait: float) -> _Held:
        stack = contextlib.ExitStack()
        what = f"the transfer of {wanted.path}"
        stack.enter_context(locked_directory(directory, wait=wait, what=what, on_wait=self._progress.log))
        if wanted.model:
            (directory / "model").write_text(wanted.model, encoding="utf-8")
        return _Held(directory, stack)

    def _unlock(self) -> None:
        for key, held in self._held.items():
            with held.lock:
                if held.directory.name != key:  # the next run may find the file elsewhere, and this would be left
                    shutil.rmtree(held.directory, ignore_errors=True)
        self._held.clear()

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
