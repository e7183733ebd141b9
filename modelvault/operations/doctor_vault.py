"""What ``doctor`` says of the vault: is it there, whose is it, and are its list, its log, its registry and its keys in order.

All is only looked at: a vault that is opened in the usual way would mend its registry, and note in its log what that has lost.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from modelvault import filesystem
from modelvault.artifact import StoredModel
from modelvault.config import sudo_hint
from modelvault.engines import Owner
from modelvault.errors import ModelvaultError, VaultLocked, of_the_system
from modelvault.eventlog import Event
from modelvault.results.engines import Finding, Level
from modelvault.vault import RESERVE, Vault, lost_in

if TYPE_CHECKING:
    from modelvault.registry import InstallRow

_FAR = timedelta(days=1)
"""By how much a clock has to be off to be worth a word: a wrong time zone is not."""


@dataclass(slots=True)
class VaultLook:
    """What was found: a ``blob`` to try links with, the ``largest`` model in bytes, the ``installs`` as far as the registry tells."""

    findings: list[Finding] = field(default_factory=list)
    blob: Path | None = None
    largest: int = 0
    installs: "tuple[InstallRow, ...]" = ()

    def note(self, subject: str, what: str, advice: str | None = None) -> None:
        """Note something that is worth knowing."""
        self.findings.append(Finding(subject, Level.NOTE, what, advice))

    def danger(self, subject: str, error: ModelvaultError, *, blocks: bool = True) -> None:
        """Note something that is wrong."""
        self.findings.append(Finding(subject, Level.DANGER, error.message, error.hint, blocks))

    def ok(self, subject: str, what: str) -> None:
        """Note something that is as it should be."""
        self.findings.append(Finding(subject, Level.OK, what))


def look_at(vault: Vault) -> VaultLook:
    """Look at a vault, which need not exist."""
    look = VaultLook()
    events: tuple[Event, ...] = ()
    try:
        _ground(look, vault)
        if vault.store.exists:
            models = _models(look, vault)
            events = _history(look, vault, models)
            _keys(look, vault)
    except OSError as error:
        look.danger("vault", of_the_system(error))
    _clock(look, events)
    return look


def _ground(look: VaultLook, vault: Vault) -> None:
    """Say where it lies, whose it is, and whether this user can write there. Raises ``OSError``."""
    root = vault.root
    there = filesystem.existing_parent(root)
    status, free = there.stat(), filesystem.free_space(root)
    owner = Owner(status.st_uid, status.st_gid)
    if os.statvfs(there).f_flag & os.ST_RDONLY or not os.access(there, os.W_OK | os.X_OK):
        why = "its file system is mounted read-only" if os.access(there, os.X_OK) and os.geteuid() == 0 else ""
        why = why or f"{there} belongs to {owner}"
        hint = "run the command as its owner, or choose another vault with MODELVAULT_HOME"
        look.danger("vault", ModelvaultError(f"{root}: this user cannot write there: {why}", hint=hint))
    elif free < RESERVE:
        look.danger("vault", filesystem.no_space(root, needed=RESERVE))
    if not vault.store.exists:
        look.note("vault", f"there is none in {root} yet: `pull`, `add` and `import` make it", sudo_hint(root))
    else:
        look.ok("vault", f"in {root}; belongs to {owner}; {free / 1e9:,.1f} GB free")
    if filesystem.on_network_file_system(root):
        look.note("vault", "it lies on a network file system: everything works, and locks are only as good as that")


def _models(look: VaultLook, vault: Vault) -> tuple[StoredModel, ...]:
    """Say whether the list of models, and every manifest in it, can be read. Raises ``OSError``."""
    try:
        models, damaged = vault.store.survey()
    except ModelvaultError as error:
        look.danger("vault", error)
        return ()
    for entry, problem in damaged.items():
        what = ModelvaultError(f"{entry.name}: {problem.message}", hint=problem.hint)
        look.danger("vault", what, blocks=False)
    for stored in models:
        if lost := vault.store.lacks(stored.model):
            what = ModelvaultError(f"{stored.model.name} lacks {lost[0]}", hint="pull, add or import it again")
            look.danger("vault", what, blocks=False)
    look.ok("vault", f"models that it lists: {len(models)}")
    look.largest = max((stored.model.size for stored in models), default=0)
    look.blob = next((vault.store.blob_path(digest) for digest, _ in vault.store.blobs()), None)
    return models


def _history(look: VaultLook, vault: Vault, models: Sequence[StoredModel]) -> tuple[Event, ...]:
    """Say whether the event log is whole, and the registry in step with it. Raises ``OSError``."""
    try:
        events = tuple(vault.events.read())
    except ModelvaultError as error:
        look.danger("event log", error)
        return ()
    agrees = _registry(look, vault, models, events)
    if models and (not agrees or lost_in(events)):
        lost = ModelvaultError(
            "it lacks what this vault once recorded, and with it the protection against older bundles",
            hint="put a copy of events.jsonl back, or import once with --allow-older",
        )
        look.danger("event log", lost, blocks=False)
    else:
        look.ok("event log", f"whole; events in it: {len(events)}")
    return events


def _registry(look: VaultLook, vault: Vault, models: Sequence[StoredModel], events: Sequence[Event]) -> bool:
    """Look at the registry; give whether the log has all that it has seen."""
    rebuild = "`modelvault registry rebuild` makes it anew"
    if not vault.registry_file.exists():
        if models:
            look.danger("registry", ModelvaultError(f"{vault.registry_file} is missing", hint=rebuild))
        return True
    from modelvault.registry import Registry, RegistryUnreadable  # noqa: PLC0415 (SQLAlchemy is slow to import)

    try:
        with Registry.look(vault.registry_file, wait=0) as registry:
            look.installs = registry.installs()
            known = {row.name: row.manifest for row in registry.models()}
            last = registry.last_event
            agrees = last == 0 or (last <= len(events) and registry.ends_with(events[last - 1]))
    except (VaultLocked, RegistryUnreadable) as error:
        look.note("registry", error.message, error.hint)
        return True
    except ModelvaultError as error:
        look.danger("registry", error)
        return True
    if known != {stored.model.name: stored.manifest for stored in models}:
        look.note("registry", "it does not know the models that the vault lists", rebuild)
    else:
        look.ok("registry", f"in order; models in it: {len(known)}, installs: {len(look.installs)}")
    return agrees


def _keys(look: VaultLook, vault: Vault) -> None:
    """Say which keys count. Raises ``OSError``."""
    try:
        for problem in vault.keys.broken():
            look.danger("keys", ModelvaultError(problem), blocks=False)
        keys = vault.keys.list()
    except PermissionError as error:
        look.note("keys", f"this user cannot read them: {error.filename}")
        return
    own = ", ".join(key.name for key in keys if key.own)
    trusted = ", ".join(key.name for key in keys if not key.own)
    if keys:
        look.ok("keys", "; ".join(filter(None, (own and f"signs as {own}", trusted and f"trusts {trusted}"))))
    else:
        look.note("keys", "none: `bundle` makes one to sign with; `import` takes only what a trusted key signed")


def _clock(look: VaultLook, events: Sequence[Event]) -> None:
    """Compare the clock with what has happened: with this program's files, with the log, with the sequences of bundles."""
    now = datetime.now(UTC)
    past = [("this program was installed", datetime.fromtimestamp(Path(__file__).stat().st_mtime, UTC))]
    past += [("the vault's last event was logged", moment) for moment in _times(events[-1:])]
    past += [("a bundle was numbered", moment) for moment in _sequences(events)]
    for what, moment in past:
        if moment > now + _FAR:
            said = f"it says {now:%Y-%m-%d %H:%M} (UTC), but {what} on {moment:%Y-%m-%d}"
            look.note("clock", said, "set it: dates in the log, and the numbers of receipts and bundles, come from it")
            return
    look.ok("clock", f"{now:%Y-%m-%d %H:%M} (UTC), later than all that is recorded")


def _times(events: Sequence[Event]) -> Iterator[datetime]:
    for event in events:
        try:
            yield datetime.fromisoformat(event.time).astimezone(UTC)
        except ValueError:
            continue


def _sequences(events: Sequence[Event]) -> Iterator[datetime]:
    """Read sequences as the moments that they are made from."""
    for event in events:
        sequence = event.data.get("sequence")
        if event.kind in {"bundle-written", "bundle-imported"} and isinstance(sequence, int):
            try:
                yield datetime.fromtimestamp(sequence, UTC)
            except (OverflowError, ValueError, OSError):  # chosen by hand
                continue
