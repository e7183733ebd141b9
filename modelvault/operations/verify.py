"""``verify`` of models at rest: read every byte again."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelvault import fsio
from modelvault.artifact import Digest, ModelName
from modelvault.engines import InstallRecord
from modelvault.errors import DigestMismatch, Interrupted, ModelvaultError, UsageProblem, in_words
from modelvault.modelpack import IndexEntry
from modelvault.operations.summaries import repair
from modelvault.progress import Progress
from modelvault.results.bundles import Damage, VerifyResult
from modelvault.vault import Vault

if TYPE_CHECKING:
    from modelvault.registry import InstallRow

_MOST_THREADS = 8
_READ_ONLY = "the vault can only be read: it was not locked meanwhile, and the outcome is not recorded"
_HISTORY_LOST = (
    "the event log lacks what this vault once recorded, and with it the protection against older bundles: "
    "put a copy of events.jsonl back, or import once with --allow-older"
)


def verify(vault: Vault, names: Sequence[ModelName], progress: Progress) -> VerifyResult:
    """Hash every blob of the named models again, or of all; what is damaged is moved aside, so that nothing uses it any more.

    Raises ``DigestMismatch`` (exit 12) with the result if anything is damaged, ``UsageProblem`` for names that there are not.
    """
    begun = time.monotonic()
    with vault.holding() if vault.writable else contextlib.nullcontext():
        entries = [_entry(vault, name) for name in names] or list(vault.store.entries())
        sizes: dict[Digest, int] = {}
        needed_by: dict[Digest, list[str]] = {}
        damage = []
        for entry in entries:
            try:
                blobs = vault.store.blobs_of(entry.manifest)
            except ModelvaultError as error:
                damage.append(Damage(str(vault.store.blob_path(entry.manifest)), error.message, (entry.name.text,)))
                continue
            for digest, size in blobs.items():
                sizes[digest] = size
                needed_by.setdefault(digest, []).append(entry.name.text)
        problems = _hash_all(vault, sizes, progress)
        shared = _sharing(vault, problems) if problems else ()
        damage += [
            Damage(str(vault.store.blob_path(digest)), problem, tuple(needed_by[digest]))
            for digest, problem in problems.items()
        ]
        result = VerifyResult(
            subject=", ".join(entry.name.text for entry in entries) if names else "models in the vault",
            signer=None,
            unit="blob",
            checked=len(sizes),
            size=sum(sizes.values()),
            seconds=time.monotonic() - begun,
            damage=tuple(damage),
            warnings=tuple(map(_also_damaged, shared)),
        )
        if vault.writable:
            result = _recorded(vault, result, [entry.name.text for entry in entries])
        else:
            result = replace(result, warnings=(*result.warnings, _READ_ONLY))
    return _judged(result, shared)


def _entry(vault: Vault, name: ModelName) -> IndexEntry:
    try:
        return vault.entry(name)
    except UsageProblem as error:
        if Path(name.text).exists():
            error.hint = f"for what lies in the directory of that name, write ./{name}"
        raise


def _sharing(vault: Vault, blobs: Iterable[Digest]) -> "tuple[InstallRow, ...]":
    """Find the installs that have a damaged file by hard link: it is the same file there, and what comes into the vault anew is not."""
    places = {
        str(digest): (vault.store.blob_path(digest), vault.store.aside_path(digest))  # an earlier run may have moved it
        for digest in blobs
    }
    try:
        return tuple(row for row in vault.installs() if _shares(row, places))
    except ModelvaultError:  # a registry that cannot be read hides nothing of the damage
        return ()


def _shares(row: "InstallRow", places: Mapping[str, Sequence[Path]]) -> bool:
    try:
        record = InstallRecord.from_json(row.record)
    except ModelvaultError:  # nor does a record; `verify --installs` says what is wrong with it
        return False
    return not record.remote and any(
        _is_same(Path(record.directory, file.path), place)
        for file in record.files
        for place in places.get(file.digest, ())
    )


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _also_damaged(row: "InstallRow") -> str:
    return f"also damaged, since it is the same file there: {row.installed_name} in {row.engine} ({row.directory})"


def _judged(result: VerifyResult, shared: "Sequence[InstallRow]") -> VerifyResult:
    if not result.damage:
        return result
    first = result.damage[0]
    models = sorted({model for item in result.damage for model in item.models})
    hint = f"pull or import the affected models again: {', '.join(models[:5])}"
    if shared:
        row = shared[0]
        hint += (
            f"; that mends no install: after it, `modelvault verify --installs` shows those that are damaged, and "
            f"`{repair(row.model, row.engine, row.directory)}` mends {row.installed_name}"
        )
    raise DigestMismatch(
        f"{result.subject}: {len(result.damage)} damaged, the first is {first.where}: {first.problem}",
        hint=hint,
        result=result,
        installs=[f"{row.installed_name} in {row.engine} ({row.directory})" for row in shared],
    )


def _hash_all(vault: Vault, sizes: Mapping[Digest, int], progress: Progress) -> dict[Digest, str]:
    """Hash blobs in parallel and say what is wrong with those that are not sound."""
    stop = threading.Event()
    with (
        progress.task("verifying", sum(sizes.values()), overall=True) as task,
        ThreadPoolExecutor(_threads()) as pool,
    ):

        def advance(amount: int) -> None:
            if stop.is_set():
                raise Interrupted("interrupted")
            task.advance(amount)

        # The largest first, so that no thread is left alone with it at the end.
        order = sorted(sizes, key=lambda digest: sizes[digest], reverse=True)
        try:
            found = zip(order, pool.map(lambda digest: _problem(vault, digest, advance), order), strict=True)
            return {digest: problem for digest, problem in found if problem}
        finally:
            stop.set()  # after Ctrl-C the pool would wait for the blobs under way, which may have 50 GB


def _threads() -> int:
    """Tell how many blobs are hashed at once: more than eight no disk feeds."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _MOST_THREADS)


def _problem(vault: Vault, digest: Digest, advance: Callable[[int], None]) -> str | None:
    path = vault.store.blob_path(digest)
    try:
        seen = path.stat()
        actual = fsio.hash_file(path, advance)
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read: {(error.strerror or str(error)).lower()}"
    if actual == digest:
        return None
    try:
        with in_words():
            aside = vault.set_aside(digest, seen)
    except ModelvaultError as error:
        return f"its SHA-256 is {actual.hex}, and it cannot be moved aside: {error.message}"
    # Where it is another file than before, somebody has brought it anew meanwhile.
    if aside is None:
        return _problem(vault, digest, advance)
    return f"its SHA-256 is {actual.hex}; it was moved aside as {aside.name}, which `modelvault gc` frees"


def _recorded(vault: Vault, result: VerifyResult, names: Sequence[str]) -> VerifyResult:
    """Write the outcome down. Where that cannot be done, damage that was found is more important than the record of it."""
    try:
        if vault.history_lost:
            result = replace(result, warnings=(*result.warnings, _HISTORY_LOST))
        for name in names:
            found = [item.problem for item in result.damage if name in item.models]
            outcome = {"model": name, "outcome": "damaged" if found else "ok", "detail": "; ".join(found[:5]) or None}
            vault.record("check", outcome)
    except ModelvaultError as error:
        if not result.damage:
            raise
        return replace(result, warnings=(*result.warnings, f"the outcome could not be recorded: {error.message}"))
    return result
