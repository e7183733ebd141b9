"""The vault: the opened store, registry, event log, keys and configuration that the operations work on."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from modelvault import filesystem
from modelvault.artifact import Digest, FileReport, Model, ModelName, Recipe, StoredModel
from modelvault.config import Config, load_config, sudo_hint
from modelvault.errors import ModelvaultError, UsageProblem
from modelvault.eventlog import Event, EventLog
from modelvault.locks import FileLock
from modelvault.modelpack import decode_recipe, encode_recipe
from modelvault.policy import FILE_NAME, Policy, load_policies
from modelvault.store import Store

if TYPE_CHECKING:
    from modelvault.keys import KeyRing
    from modelvault.modelpack import IndexEntry
    from modelvault.registry import History, InstallRow, Registry


RESERVE = 2 << 20
"""Bytes that must be free to change what the vault lists. Where the disk cannot back a page of SQLite's shared memory (file systems
that copy on write, or have blocks smaller than a page), writing to it does not fail but ends the process with SIGBUS."""


_OWN = {
    *("blobs", "bundles", "keys", "partial", "receipts", "config.toml", "index.json", "oci-layout", "events.jsonl"),
    FILE_NAME,
    *("registry.sqlite", "registry.sqlite-wal", "registry.sqlite-shm", "registry.sqlite-journal"),
    *("lock", "index.lock", "index.json.damaged", "lost+found"),
}
"""What may lie where a vault is made: parts of one, as after a crash, and what every fresh file system has."""

_CREATED = "vault-created"
_LOST = "history-lost"
_ACCEPTED = "lost-history-accepted"


def lost_in(log: Iterable[Event]) -> bool:
    """Whether a log is not that of the vault's beginning, or lacks what the registry once saw, and nobody has accepted that."""
    lost = True
    for event in log:
        if event.kind == _ACCEPTED or (event.kind == _CREATED and event.number == 1):
            lost = False
        elif event.kind == _LOST:
            lost = True
    return lost


class Vault:
    """One vault on one machine, on either side of the gap. Use it as a context manager."""

    def __init__(self, root: Path, config: Config, log: Callable[[str], object] | None = None) -> None:
        """Wire the parts together; ``open`` is the way in. ``log`` is told when another process is waited for."""
        self.root = root
        self.config = config
        self._log = log
        self.store = Store(root)
        self.events = EventLog(root / "events.jsonl", wait=config.lock_wait)
        self.partial = root / "partial"
        self.bundle_journals = self.partial / "bundles"
        self.bundles = root / "bundles"
        self.receipts = root / "receipts"
        self.registry_file = root / "registry.sqlite"
        self._registry: Registry | None = None

    @classmethod
    def open(cls, root: Path, *, config: Config | None = None, log: Callable[[str], object] | None = None) -> Self:
        """Open the vault in ``root``; an absent one is made. Raises ``UsageProblem`` where something else lies."""
        vault = cls.prospective(root, config=config, log=log)
        vault.create()
        return vault

    @classmethod
    def existing(cls, root: Path, *, config: Config | None = None, log: Callable[[str], object] | None = None) -> Self:
        """Open the vault in ``root`` as it is: whoever only reads changes nothing. Raises ``UsageProblem`` where there is none."""
        vault = cls.prospective(root, config=config, log=log)
        vault.require()
        return vault

    @classmethod
    def prospective(
        cls, root: Path, *, config: Config | None = None, log: Callable[[str], object] | None = None
    ) -> Self:
        """Look at a vault that need not exist: nothing is made before ``create``, so that a plan leaves nothing behind."""
        if root.exists() and not root.is_dir():
            raise UsageProblem(
                f"{root} is not a directory, so there is no vault in it",
                hint="set MODELVAULT_HOME to the vault that you mean",
                path=str(root),
            )
        return cls(root, config or load_config(root), log)

    def require(self) -> None:
        """Raise ``UsageProblem`` where there is no vault, be it whole or not."""
        if not self.store.exists:
            raise UsageProblem(
                f"there is no vault in {self.root}",
                hint=sudo_hint(self.root)
                or "set MODELVAULT_HOME to the vault that you mean; `modelvault pull` or `import` make a new one",
                path=str(self.root),
            )

    @property
    def writable(self) -> bool:
        """Whether the vault lies where this process may write."""
        return os.access(self.root, os.W_OK)

    def create(self) -> None:
        """Make what is not there yet of the vault. Raises ``UsageProblem`` where something else lies."""
        with filesystem.no_space_at(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if not self.store.whole:
                self._require_room()
                # Of two processes that make one vault, the later must not put an empty list over the other's first model.
                with self._lock("index.lock", shared=False):
                    if not self.store.exists and self.events.last() is None:
                        # Before the layout: a log that does not begin so, beside models, is not the one that they came with.
                        self.events.append(_CREATED, {"vault": uuid.uuid4().hex})
                    self.store.create()
            self.partial.mkdir(exist_ok=True)

    def _require_room(self) -> None:
        """Refuse to make a vault among the files of somebody else, as in a home or on a drive with other things."""
        foreign = sorted(
            path.name for path in self.root.iterdir() if path.name not in _OWN and not path.name.startswith(".")
        )
        if foreign and not self.store.exists:
            raise UsageProblem(
                f"{self.root} holds other things ({', '.join(foreign[:3])}) and no vault: none is made there",
                hint="set MODELVAULT_HOME to the vault that you mean, or to an empty directory for a new one",
                path=str(self.root),
            )

    @classmethod
    def keys_of(cls, root: Path) -> "KeyRing | None":
        """Give the keys of the vault in ``root``, if there is one; nothing is made."""
        vault = cls(root, Config())
        return vault.keys if vault.store.exists else None

    def __enter__(self) -> Self:
        """Open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the registry."""
        self.close_registry()

    def close_registry(self) -> None:
        """Close the registry; it is opened again when next asked for."""
        if self._registry is not None:
            self._registry.close()
            self._registry = None

    @property
    def registry(self) -> "Registry":
        """The registry; opened when first asked for."""
        if self._registry is None:
            if not self.registry_file.exists() and self.store.entries():
                raise ModelvaultError(
                    f"the registry of the vault in {self.root} is missing",
                    hint="run `modelvault registry rebuild`: it restores it from the layout and the event log",
                    path=str(self.registry_file),
                )
            # SQLAlchemy takes a fifth of a second to import, and `list` needs only the layout.
            from modelvault.registry import Registry  # noqa: PLC0415

            self._registry = Registry.open(self.registry_file, wait=self.config.lock_wait)
            if not self._registry.read_only and not self._registry.ends_with(self.events.last()):
                with self._registry.history() as history:
                    self._catch_up(history)
        return self._registry

    def _catch_up(self, history: "History") -> None:
        """Apply what the log has and the registry missed, as after a crash between the two.

        A log that lacks what the registry has seen was cut short, edited or replaced. That is noted in it, since `import` relies on it.
        """
        if history.ends_with(self.events.last()):
            return
        known = history.last
        if lost := history.follow(self.events.read):
            history.apply(self.events.append(_LOST, {"events": lost, "known": known}))

    @cached_property
    def keys(self) -> "KeyRing":
        """The signing keys and the trusted ones."""
        from modelvault.keys import KeyRing  # noqa: PLC0415 (cryptography is slow to import, and few commands need it)

        return KeyRing(self.root / "keys")

    @cached_property
    def policies(self) -> tuple[Policy, ...]:
        """The rules that hold here: the machine's and the vault's own. Raises ``UsageProblem`` for a file that cannot be read."""
        return load_policies(self.root)

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """Change what the vault lists: one process at a time, for moments; bundles under way do not mind.

        Raises ``VaultLocked`` (exit 11) when another process keeps the lock for longer than ``lock_wait``, ``NoSpace`` where there is
        hardly room left for the vault's books.
        """
        filesystem.require_space(self.root, RESERVE)
        with self.holding(), self._lock("index.lock", shared=False):
            yield

    @contextlib.contextmanager
    def removing(self) -> Iterator[None]:
        """Have the vault alone, to remove something from it. Raises ``VaultLocked``, as while a bundle is written."""
        with self._lock("lock", shared=False), self._lock("index.lock", shared=False):
            yield

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Keep what is in the vault from being removed; any number of processes may. Raises ``VaultLocked``."""
        with self._lock("lock", shared=True):
            yield

    def _lock(self, name: str, *, shared: bool) -> FileLock:
        wait = self.config.lock_wait
        what = f"the vault in {self.root}"
        return FileLock(self.root / name, shared=shared, wait=wait, what=what, on_wait=self._log)

    def set_aside(self, digest: Digest, seen: os.stat_result) -> Path | None:
        """Move a damaged blob aside, unless it is no longer the file that was ``seen``. Raises ``VaultLocked``, ``OSError``."""
        with self._lock("index.lock", shared=False):
            return self.store.set_aside(digest, seen)

    def installs(self, model: ModelName | None = None) -> "tuple[InstallRow, ...]":
        """Give what is installed, of one model or all; a vault that does not exist yet has installed nothing."""
        return self.registry.installs(model) if self.store.exists else ()

    def record(self, kind: str, data: Mapping[str, Any]) -> Event:
        """Write an event to the log and into the registry, which follows the log's order; one that cannot take it is an error."""
        with self.registry.history() as history:
            self._catch_up(history)
            event = self.events.append(kind, data)
            if event.number == history.last + 1:
                history.apply(event)
            else:  # a process that still has the registry from before a rebuild logged something in between
                self._catch_up(history)
            return event

    def publish(
        self,
        model: Model,
        reports: Mapping[str, FileReport],
        noted: Mapping[str, Any] | None = None,
        documents: tuple[bytes, bytes] | None = None,
    ) -> StoredModel:
        """List a model whose blobs are in place. Needs ``publishing``. Layout first: what the registry misses, `registry rebuild` finds there.

        What is ``noted`` of how it came goes into the log: the ``bundle`` that brought it (its ``label``, its ``sequence``, the fingerprint of
        the ``key`` that signed it), or the ``revision`` that was asked for. ``documents`` as for ``Store.add``.
        """
        registry = self.registry
        stored = self.store.add(model, documents)
        # The event first: where the registry has a model, the log has it, too.
        data: dict[str, Any] = {"model": model.name.text, "manifest": str(stored.manifest)}
        if model.recipe is not None:
            data["recipe"] = encode_recipe(model.recipe)  # the one thing that only the list of models has
        data |= noted or {}
        event = self.record("model-published", data)
        registry.record_model(stored, reports, event.time)
        return stored

    def restore_list(self) -> tuple[str, ...]:
        """List again what the event log says was published; give the names. Needs ``publishing``.

        Raises what is wrong with the log, or with the list if the log knows of no model.
        """
        published: dict[ModelName, tuple[Digest, Recipe | None]] = {}
        for event in self.events.read():
            if event.kind == "model-published":
                recipe = event.data.get("recipe")
                manifest = Digest.parse(event.data["manifest"])
                published[ModelName(event.data["model"])] = manifest, decode_recipe(recipe) if recipe else None
            elif event.kind == "model-removed":
                published.pop(ModelName(event.data["model"]), None)
        self.store.restore(published)
        return tuple(entry.name.text for entry in self.store.entries())

    def model(self, name: ModelName) -> StoredModel:
        """Read a model by name. Raises as ``entry`` does, and for documents that are damaged."""
        return self.store.load(self.entry(name))

    def entry(self, name: ModelName) -> "IndexEntry":
        """Find a model by its exact name, or by one that means it. Raises ``UsageProblem`` naming what there is."""
        entries = {entry.name.text: entry for entry in self.store.entries()}
        entry = entries.get(name.text)
        if entry is None:
            folded = [text for text in entries if text.casefold() == name.text.casefold()]
            entry = entries[folded[0]] if len(folded) == 1 else None
        if entry is None:
            near = [text for text in entries if name.repository.casefold() in text.casefold()]
            hint = f"did you mean {', '.join(near[:5])}?" if near else "`modelvault list` shows what is there"
            raise UsageProblem(f"no model {name} in the vault {self.root}", hint=hint, model=name.text)
        return entry

    def select(self, names: Sequence[ModelName]) -> tuple[StoredModel, ...]:
        """Give the models of these names, or all of them if none is named; each once."""
        if not names:
            return self.store.models()
        chosen = {stored.model.name: stored for stored in map(self.model, names)}
        return tuple(chosen.values())

    @property
    def history_lost(self) -> bool:
        """Whether there are models, but the log is not all that it was since the vault's beginning: replay protection is gone with it.

        Noticed where it does not begin as it should, or where the registry has seen events that it lacks.
        """
        if self.registry_file.exists():
            _ = self.registry  # compares itself with the log when it is opened
        return lost_in(self.events.read()) and bool(self.store.entries())

    def accept_lost_history(self) -> None:
        """Note that a person decided to go on without the old log."""
        self.record(_ACCEPTED, {})
