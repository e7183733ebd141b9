"""What each kind of event does to the tables. The same code runs when an event is new and when the registry is rebuilt.

Each function works in the caller's transaction. The keys of an event's data are specified in ``docs/formats/vault.md``.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sqlalchemy import delete, insert, update
from sqlalchemy.orm import Session

from modelvault.errors import ModelvaultError
from modelvault.registry.convert import dump
from modelvault.registry.rows import BundleRow, CheckRow, Direction
from modelvault.registry.schema import BundleTable, CheckTable, EventTable, InstallTable, ModelTable


class LoggedEvent(Protocol):
    """An event as the event log gives it; ``number`` counts from 1, ``time`` is UTC."""

    @property
    def number(self) -> int:
        """Its place in the log."""

    @property
    def time(self) -> str:
        """When it happened."""

    @property
    def kind(self) -> str:
        """What happened."""

    @property
    def data(self) -> Mapping[str, Any]:
        """To what."""


class EventNotUnderstood(ModelvaultError):
    """An event lacks what its kind needs; it was written by another program or an incompatible version."""

    slug = "event-not-understood"


def apply(session: Session, event: LoggedEvent) -> None:
    """Mirror an event and do what it says; once only, however often it is applied. Unknown kinds are mirrored.

    The log is the truth: where the mirror holds another event of the same number, the log was replaced, and the mirror from there
    on describes a log that is gone. Raises ``EventNotUnderstood``.
    """
    data = dump(dict(event.data))
    mirrored = session.get(EventTable, event.number)
    if mirrored is not None:
        if (mirrored.time, mirrored.kind, mirrored.data) == (event.time, event.kind, data):
            return
        session.execute(delete(EventTable).where(EventTable.number >= event.number))
    session.execute(
        insert(EventTable), [{"number": event.number, "time": event.time, "kind": event.kind, "data": data}]
    )
    if event.kind in _EFFECTS:
        try:
            _EFFECTS[event.kind](session, event.data, event.time)
        except (KeyError, TypeError, ValueError) as error:
            raise EventNotUnderstood(
                f"event {event.number} ({event.kind}) is not understood: {error}",
                hint="use the version of modelvault that wrote it, or a newer one",
                number=event.number,
                kind=event.kind,
            ) from error


def add_check(session: Session, check: CheckRow) -> None:
    """Add a check."""
    session.execute(
        insert(CheckTable),
        [
            {
                "model": check.model,
                "blob": check.blob,
                "checked_at": check.checked_at,
                "outcome": check.outcome,
                "detail": check.detail,
            }
        ],
    )


def add_bundle(session: Session, bundle: BundleRow) -> None:
    """Add a bundle."""
    session.execute(
        insert(BundleTable),
        [
            {
                "direction": bundle.direction,
                "index_digest": bundle.index_digest,
                "label": bundle.label,
                "sequence": bundle.sequence,
                "key_fingerprint": bundle.key_fingerprint,
                "path": bundle.path,
                "models": dump(list(bundle.models)),
                "recorded_at": bundle.recorded_at,
            }
        ],
    )


def add_install(session: Session, record: Mapping[str, Any], when: str) -> None:
    """Add an install; one that had the same name in the same directory gave way to it."""
    place = {key: _text(record, key) for key in ("engine", "directory", "installed_name")}
    end_install(session, place, when)
    row = {**place, "model": _text(record, "model"), "manifest": _text(record, "manifest")}
    session.execute(insert(InstallTable), [{**row, "record": dump(dict(record)), "installed_at": when}])


def end_install(session: Session, place: Mapping[str, Any], when: str) -> None:
    """Note that an install was removed; one that was never recorded stays unknown."""
    session.execute(
        update(InstallTable)
        .where(
            InstallTable.engine == _text(place, "engine"),
            InstallTable.directory == _text(place, "directory"),
            InstallTable.installed_name == _text(place, "installed_name"),
            InstallTable.removed_at.is_(None),
        )
        .values(removed_at=when)
        .execution_options(synchronize_session=False)
    )


def _published(session: Session, data: Mapping[str, Any], when: str) -> None:
    """Give a model that was rebuilt from the layout its time back, which the layout does not hold."""
    session.execute(
        update(ModelTable)
        .where(ModelTable.name == _text(data, "model"), ModelTable.manifest == _text(data, "manifest"))
        .values(published_at=when)
        .execution_options(synchronize_session=False)
    )


def _checked(session: Session, data: Mapping[str, Any], when: str) -> None:
    model, blob = _optional(data, "model"), _optional(data, "blob")
    if model is None and blob is None:
        raise ValueError("neither a model nor a blob is named")
    add_check(session, CheckRow(model, blob, when, _text(data, "outcome"), _optional(data, "detail")))


def _bundle(direction: Direction) -> Callable[[Session, Mapping[str, Any], str], None]:
    def effect(session: Session, data: Mapping[str, Any], when: str) -> None:
        sequence, models = data["sequence"], data.get("models", [])
        if not isinstance(sequence, int) or isinstance(sequence, bool):
            raise TypeError(f"not a sequence: {sequence!r}")
        if not isinstance(models, list | tuple) or not all(isinstance(name, str) for name in models):
            raise TypeError(f"not a list of model names: {models!r}")
        row = BundleRow(
            direction=direction,
            index_digest=_text(data, "index"),
            label=_text(data, "label"),
            sequence=sequence,
            key_fingerprint=_optional(data, "key"),
            recorded_at=when,
            path=_optional(data, "path"),
            models=tuple(models),
        )
        add_bundle(session, row)

    return effect


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise TypeError(f"{key} is not text: {value!r}")
    return value


def _optional(data: Mapping[str, Any], key: str) -> str | None:
    return None if data.get(key) is None else _text(data, key)


_EFFECTS: Mapping[str, Callable[[Session, Mapping[str, Any], str], None]] = {
    "model-published": _published,
    "check": _checked,
    "bundle-written": _bundle("written"),
    "bundle-imported": _bundle("imported"),
    "install": add_install,
    "uninstall": end_install,
}
