"""What each kind of event does to the tables. The same code runs when an event is new and when the registry is rebuilt.

Each function works in the caller's transaction. The keys of an event's data are specified in ``docs/formats/vault.md``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.orm import Session

from modelvault.errors import ModelvaultError
from modelvault.registry.convert import dump
from modelvault.registry.rows import BundleRow, CheckRow, Direction
from modelvault.registry.schema import BundleTable, CheckTable, EventTable, InstallTable, ModelTable, SmokeTable


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


class History:
    """The history that the registry holds, within one transaction. The log is the truth, and this its mirror."""

    def __init__(self, session: Session) -> None:
        """Work in the transaction of ``session``; to change anything it has to be one that writes."""
        self._session = session

    @property
    def last(self) -> int:
        """The number of the newest event that is mirrored; 0: none."""
        return self._session.scalar(select(func.max(EventTable.number))) or 0

    def ends_with(self, event: LoggedEvent | None) -> bool:
        """Whether this is the newest event that is mirrored (``None``: that there is none)."""
        return self.last == 0 if event is None else self.last == event.number and self._mirrors(event)

    def apply(self, event: LoggedEvent) -> None:
        """Mirror an event that follows on ``last`` and do what it says. Unknown kinds are mirrored. Raises ``EventNotUnderstood``."""
        _apply(self._session, event)

    def follow(self, log: Callable[[], Iterable[LoggedEvent]]) -> int:
        """Apply what the log has and the mirror lacks; give the number of events that were mirrored and are no longer in the log.

        What those did is kept where the log was only cut short: it happened. Where another log has taken its place, it goes.
        """
        known, agreed = self.last, 0
        for event in log():
            if event.number > known:
                self.apply(event)
            elif self._mirrors(event):
                agreed = event.number
            else:
                self._begin_anew(log())
                return known - agreed
        gone = delete(EventTable).where(EventTable.number > agreed, EventTable.number <= known)
        self._session.execute(gone.execution_options(synchronize_session=False))
        return known - agreed

    def _begin_anew(self, log: Iterable[LoggedEvent]) -> None:
        for table in (CheckTable, BundleTable, InstallTable, SmokeTable, EventTable):
            self._session.execute(delete(table).execution_options(synchronize_session=False))
        for event in log:
            self.apply(event)

    def _mirrors(self, event: LoggedEvent) -> bool:
        columns = select(EventTable.time, EventTable.kind, EventTable.data).where(EventTable.number == event.number)
        row = self._session.execute(columns).one_or_none()
        return row is not None and tuple(row) == (event.time, event.kind, dump(dict(event.data)))


def _apply(session: Session, event: LoggedEvent) -> None:
    data = dump(dict(event.data))
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


def _smoked(session: Session, data: Mapping[str, Any], when: str) -> None:
    row: dict[str, Any] = {key: _text(data, key) for key in _SMOKE_TEXTS}
    row |= {key: _number(data, key) for key in ("first_token", "rate")}
    row |= {key: _optional(data, key) for key in ("address", "detail")}
    session.execute(insert(SmokeTable), [{**row, "smoked_at": when}])


def _published(session: Session, data: Mapping[str, Any], when: str) -> None:
    """Give a model that was rebuilt from the layout its time back, which the layout does not hold."""
    session.execute(
        update(ModelTable)
        .where(ModelTable.name == _text(data, "model"), ModelTable.manifest == _text(data, "manifest"))
        .values(published_at=when)
        .execution_options(synchronize_session=False)
    )


def _checked(session: Session, data: Mapping[str, Any], when: str) -> None:
    add_check(session, CheckRow(_text(data, "model"), when, _text(data, "outcome"), _optional(data, "detail")))


def _accepted(_session: Session, data: Mapping[str, Any], _when: str) -> None:
    """Look at the acceptance of a license; the mirrored event is all that is kept of it."""
    for key in ("license", "model", "user", "how"):
        _text(data, key)


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


def _number(data: Mapping[str, Any], key: str) -> float | None:
    value = data.get(key)
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise TypeError(f"{key} is not a number: {value!r}")
    return value


_SMOKE_TEXTS = ("engine", "directory", "model", "manifest", "installed_name", "outcome")
_EFFECTS: Mapping[str, Callable[[Session, Mapping[str, Any], str], None]] = {
    "model-published": _published,
    "check": _checked,
    "license-accepted": _accepted,
    "bundle-written": _bundle("written"),
    "bundle-imported": _bundle("imported"),
    "install": add_install,
    "uninstall": end_install,
    "smoke": _smoked,
}
