"""The drives of one run: which of them has room, which is full, fails or is changed for the next one, and which gets its sums."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from modelvault import filesystem
from modelvault.bundle import drive
from modelvault.bundle.drives import Wanted, check, known_ids, lacking, probe, survey, worst_case
from modelvault.bundle.index import INDEX_FILE, name_volumes, volume_name
from modelvault.bundle.journal import Journal
from modelvault.bundle.readback import DriveLostData
from modelvault.bundle.readme import readme
from modelvault.bundle.restore import LIST_FILE, SCRIPT_FILE, restore_list, restore_script
from modelvault.bundle.target import Target, check_place
from modelvault.bundle.written import Order
from modelvault.errors import ModelvaultError, NoSpace, of_the_system
from modelvault.progress import Progress

README = "README.txt"


class Targets:
    """The drives of one run, in the order in which they are filled."""

    def __init__(self, order: Order, journal: Journal, progress: Progress) -> None:
        """Prepare; nothing is touched yet."""
        self._order = order
        self._index = order.index
        self._options = order.options
        self._journal = journal
        self._progress = progress
        self._documents = _documents(order)
        self._here: list[Target] = []
        self._taken_out: list[Target] = []
        self._lay: dict[int, Target] = {}
        self._slot = probe(filesystem.existing_parent(order.options.directories[0])).mount

    def begin(self, wanted: Sequence[Wanted]) -> None:
        """Get every drive ready; ``wanted`` says which volume is gone on with on which of them."""
        for directory in self._options.directories:
            self._here.append(self._target(directory))
        self._lay = {volume.number: self._here[volume.on] for volume in wanted if volume.on is not None}
        for target in self._here:
            with self._giving_up(target):
                self._begin(target, [volume.number for volume in wanted if self._lay.get(volume.number) is not target])

    def live(self) -> list[Target]:
        """Give the drives that are here and did not fail."""
        return [target for target in self._here if target.problem is None]

    def every(self) -> tuple[Target, ...]:
        """Give all drives of this run, those that were taken out and those that failed included."""
        return (*self._taken_out, *self._here)

    def holding(self, number: int) -> Target | None:
        """Give the drive that a volume lay on when the run began; ``None`` if there was none, or it cannot be used any more."""
        target = self._lay.get(number)
        return target if target in self.live() else None

    def with_room(self, number: int) -> Target:
        """Choose the first drive with room for a volume. Raises ``NoSpace``, or an error of the last drive."""
        needed = worst_case(self._index.volumes[number - 1])
        while (target := self._first_with_room(needed)) is None:
            if self._options.swap is None:
                raise self._full(number)
            self._swap(number, self._options.swap)
        return target

    def make_way(self, target: Target, number: int, error: ModelvaultError) -> None:
        """Get ready to begin a volume again on another drive; raises the error if there is none for it."""
        if error.data.get("path") != str(target.directory):
            raise error  # it is the vault's own disk that is full
        if isinstance(error, drive.DriveFailed):
            self._give_up(target, error)
            return
        needed = worst_case(self._index.volumes[number - 1])
        target.full = True
        if self._options.swap is None and self._first_with_room(needed) is None:
            raise error
        with self._giving_up(target):
            target.forget([number])

    def finish(self) -> None:
        """Finish every drive that is here; then raise what went wrong with one of them."""
        lost = None
        for target in filter(lambda target: target.begun, self.live()):
            try:
                with self._giving_up(target):
                    self._finish_one(target)
            except DriveLostData as error:
                lost = lost or error
        for target in self.live():
            if target.full and not target.volumes:
                with self._giving_up(target):
                    target.clear(self._numbers)
        if lost is not None:
            if any(target.finished and target.volumes for target in self.live()):
                lost.hint = f"{lost.hint}, and run the same command with that in its place: what the others hold counts"
            raise lost

    @property
    def _numbers(self) -> range:
        return range(1, len(self._index.volumes) + 1)

    # ── getting one ready ──

    def _target(self, directory: Path) -> Target:
        """Tell which drive is there: one of an earlier run, or a new one."""
        given = {target.id for target in self._here}
        (known,) = known_ids(self._journal, [directory])
        return Target(directory, self._documents, drive.new_id() if known is None or known in given else known)

    def _begin(self, target: Target, elsewhere: Collection[int]) -> None:
        """Get a drive ready, without what it holds of volumes that are not to be gone on with there."""
        resumes = self._journal.knows(target.id)
        self._journal.meet(target.id, target.directory)
        target.begin(self._progress, resumes=resumes)
        target.forget(elsewhere)

    # ── full, or failing ──

    def _first_with_room(self, needed: int) -> Target | None:
        for target in self.live():
            with self._giving_up(target):
                if target.has_room(needed):
                    return target
        return None

    def _full(self, number: int) -> ModelvaultError:
        directories = [target.directory for target in self.live()]
        wanted = survey(self._index, self._journal, directories)[number - 1 :]
        found = [probe(directory.parent) for directory in directories]
        return lacking(wanted, found) or NoSpace(
            f"no space left for {volume_name(number)}", hint="name one more drive with --to"
        )

    @contextlib.contextmanager
    def _giving_up(self, target: Target) -> Iterator[None]:
        """Go on without a drive that fails or is full inside the block, as long as there is another one."""
        try:
            yield
        except drive.DriveFailed as error:
            self._give_up(target, error)
        except NoSpace as error:
            at_fault = error.data.get("path") == str(target.directory)
            if not at_fault or (self._options.swap is None and self.live() == [target]):
                raise
            self._progress.log(f"{error.message}: nothing more is written there")
            target.full = True

    def _give_up(self, target: Target, error: ModelvaultError) -> None:
        """Say what is safe on a drive that failed. Raises the error if it was the last one."""
        safe = self._journal.closed_on(target.id)
        target.problem = f"{error.message}; {f'{name_volumes(safe)} on it {_are(safe)} safe' if safe else 'nothing on it is complete'}"
        if self.live():
            self._progress.log(f"{target.problem}; writing goes on without it")
            return
        elsewhere = f"; to go on with another drive, name it with --to and add --sequence {self._index.sequence}"
        raise drive.DriveFailed(
            target.problem, hint=f"{error.hint}{elsewhere if safe else ''}", path=str(target.directory), safe=list(safe)
        ) from error

    # ── one slot ──

    def _swap(self, number: int, ask: Callable[[str], None]) -> None:
        """Finish the drive that is full, and have the user put another one in its place."""
        (target,) = self._here
        place = target.directory.parent
        with self._giving_up(target):
            if target.volumes:
                self._finish_one(target)
            elif not self._journal.closed_on(target.id):
                target.clear(self._numbers)
        if target.volumes:
            self._taken_out.append(target)
        sums = "" if target.finished else ", but no room for its sums"
        holds = f"is full, with {name_volumes(target.numbers)} on it{sums}" if target.volumes else "has no room"
        message = f"{place} {holds}: unmount it, and mount the next drive there for {volume_name(number)}"
        while True:
            ask(message)
            self._here = []
            self._here = [self._target(target.directory)]
            try:
                self._check_next(number)
                self._begin(self._here[0], self._numbers)
            except ModelvaultError as error:
                message = f"that does not do: {error.message}"
            except OSError as error:
                message = f"that does not do: {of_the_system(error).message}"
            else:
                return

    def _check_next(self, number: int) -> None:
        """Refuse a drive that cannot be the next one. Raises ``ModelvaultError`` or ``OSError``."""
        (target,) = self._here
        place = target.directory.parent
        found = probe(place)
        if self._slot and found.mount and found.mount != self._slot and self._slot.is_relative_to(found.mount):
            raise ModelvaultError(f"nothing is mounted at {self._slot}")
        wanted = survey(self._index, self._journal, [target.directory])
        # A complete one that is not safe elsewhere: what this drive has of it is not to be removed.
        if there := [at.number for at in wanted if self._journal.closed(at.number) and not at.gone]:
            taken_out = target.id in {taken.id for taken in self._taken_out}
            other = "" if taken_out else " (to go on with that drive, break this off and run the same command again)"
            raise ModelvaultError(f"{name_volumes(there)} of this bundle {_are(there)} on it already{other}")
        check_place(target.directory, self._order.raw, ours=self._journal.knows(target.id))
        check(found, max(map(worst_case, self._index.volumes)))
        needed = worst_case(self._index.volumes[number - 1]) + target.documents_size
        if found.free < needed:
            raise ModelvaultError(f"{needed - found.free:,} bytes are missing on it for {volume_name(number)}")

    # ── the end ──

    def _finish_one(self, target: Target) -> None:
        try:
            target.finish(self._order.signer, self._progress, compare=self._options.read_back)
        except DriveLostData:
            for number in target.numbers:
                self._journal.reopen(number)
            raise
        self._journal.finish(target.id, target.numbers, compared=self._options.read_back)


def _are(numbers: Sequence[int]) -> str:
    return "is" if len(numbers) == 1 else "are"


def _documents(order: Order) -> dict[str, bytes]:
    """What every drive gets before its first volume, in this order."""
    return {
        INDEX_FILE: order.raw,
        f"{INDEX_FILE}.sig": order.signer.sign(order.raw),
        README: readme(order.index, order.signer.name, read_back=order.options.read_back),
        SCRIPT_FILE: restore_script(),
        LIST_FILE: restore_list(order.index),
        f"{order.signer.name}.pub": order.signer.public_pem,
    }
