"""The registry's tables and queries, over real SQLite files."""

import contextlib
import json
import math
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_values import (
    LATER,
    TIME,
    Logged,
    applied,
    followed,
    install_record,
    mirrored,
    report,
    stored,
)

from modelvault.artifact import Digest, ModelName, Recipe, Scalar
from modelvault.registry import BundleRow, CheckRow, EventNotUnderstood, Registry, RegistryDamaged
from modelvault.registry.convert import scalar_text, scalar_value

NAME = ModelName("org/tiny:Q4_K_M")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """An empty registry."""
    with Registry.open(tmp_path / "registry.sqlite") as opened:
        yield opened


def _rows(registry: Registry, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(registry.path)) as connection:
        return connection.execute(query).fetchall()


def _column(registry: Registry, query: str) -> list[object]:
    return [row[0] for row in _rows(registry, query)]


def _files(registry: Registry) -> list[tuple[object, ...]]:
    columns = "path, size, digest, upstream, format, architecture, quantization, tensors, parameters, warnings"
    return _rows(registry, f"SELECT {columns} FROM files ORDER BY path")


# ── models ──


def test_a_model_comes_back_as_it_was_recorded(registry: Registry) -> None:
    """If this fails, list, show and bundle work from something other than what was published."""
    model = stored(recipe=Recipe("tiny", "PARAMETER temperature 0.5\n", ("--max-model-len", "4096")))
    registry.record_model(model, {"model.gguf": report()}, TIME)
    row = registry.model(NAME)
    assert row is not None
    assert row.stored == model
    assert (row.name, row.manifest, row.size, row.published_at) == (NAME, model.manifest, model.model.size, TIME)
    assert registry.models() == (row,)


def test_files_say_what_inspection_found(registry: Registry) -> None:
    """If this fails, show cannot tell the quantization of a file or what inspection warned about."""
    registry.record_model(stored(), {"model.gguf": report()}, TIME)
    readme, weights = _files(registry)
    assert readme == ("README.md", 3, str(Digest.of_bytes(b"hi\n")), "git-sha1:" + "a" * 40, *(None,) * 6)
    digest = str(Digest.of_bytes(b"weights"))
    traits = ("gguf", "llama", "Q4_K_M", 3, 1_000, '["one tensor has no name"]')
    assert weights == ("model.gguf", 7, digest, digest, *traits)


def test_every_metadata_value_comes_back(registry: Registry) -> None:
    """If this fails, a metadata key is lost or changes its type on the way through the database."""
    registry.record_model(stored(), {"model.gguf": report()}, TIME)
    rows = registry.metadata(NAME)
    assert {row.key: row.value for row in rows} == report().metadata
    assert [row.key for row in rows] == sorted(report().metadata)
    assert {row.path for row in rows} == {"model.gguf"}


@given(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
)
def test_scalars_survive_their_text_form(value: Scalar) -> None:
    """If this fails, some metadata value reads back as another."""
    back = scalar_value(*scalar_text(value))
    assert back == value
    assert type(back) is type(value)


def test_nan_is_a_value() -> None:
    """If this fails, a model with a NaN in its metadata cannot be recorded."""
    back = scalar_value(*scalar_text(math.nan))
    assert isinstance(back, float)
    assert math.isnan(back)


@pytest.mark.parametrize(
    ("kind", "text"), [("null", "x"), ("integer", "x"), ("boolean", "1"), ("other", "x"), ("string", None)]
)
def test_scalars_nobody_wrote_are_refused(kind: str, text: str | None) -> None:
    """If this fails, an edited database gives wrong values instead of an error."""
    with pytest.raises(ValueError, match=r".+"):
        scalar_value(kind, text)


@settings(max_examples=25)
@given(st.text(st.characters(), max_size=50), st.text(st.characters(), max_size=50))
def test_any_text_can_be_recorded(key: str, value: str) -> None:
    """If this fails, a hostile or odd string in a model file (a lone surrogate, NUL) stops its publication."""
    with tempfile.TemporaryDirectory() as folder, Registry.open(Path(folder, "registry.sqlite")) as registry:
        registry.record_model(stored(), {"model.gguf": replace(report(), metadata={key: value})}, TIME)
        (row,) = registry.metadata(NAME)
        assert row.value == value.encode("utf-8", "backslashreplace").decode("utf-8")


def test_recording_again_replaces(registry: Registry) -> None:
    """If this fails, a model pulled again at a newer revision keeps files of the old one."""
    registry.record_model(stored(weights=b"old"), {"model.gguf": report()}, TIME)
    newer = stored(weights=b"new")
    registry.record_model(newer, {}, LATER)
    (row,) = registry.models()
    assert (row.stored, row.published_at) == (newer, LATER)
    assert registry.metadata(NAME) == ()
    assert str(Digest.of_bytes(b"old")) not in _column(registry, "SELECT digest FROM blobs")


def test_forgetting_keeps_what_others_share(registry: Registry) -> None:
    """If this fails, removing one model makes the registry forget blobs that another still has."""
    registry.record_model(stored("first"), {"model.gguf": report()}, TIME)
    registry.record_model(stored("second"), {}, TIME)
    registry.forget_model(ModelName("first"))
    registry.forget_model(ModelName("never-there"))
    assert [row.name.text for row in registry.models()] == ["second"]
    assert len(_column(registry, "SELECT digest FROM blobs")) == 2
    registry.forget_model(ModelName("second"))
    for table in ("models", "files", "blobs", "metadata"):
        assert _column(registry, f"SELECT 1 FROM {table}") == []


def test_a_report_of_no_file_is_a_mistake(registry: Registry) -> None:
    """If this fails, reports under wrong paths are dropped without a word."""
    with pytest.raises(ValueError, match="other"):
        registry.record_model(stored(), {"other.gguf": report()}, TIME)
    assert registry.models() == ()


# ── history ──


def test_an_event_is_applied_once(registry: Registry) -> None:
    """If this fails, catching up with the log records installs and imports twice."""
    events = [
        Logged(1, "install", install_record()),
        Logged(2, "bundle-imported", {"key": "k", "label": "models", "sequence": 4, "index": "sha256:0"}),
        Logged(3, "check", {"model": NAME.text, "outcome": "ok"}),
    ]
    assert followed(registry, *events[:2]) == followed(registry, *events) == followed(registry, *events) == 0
    assert len(registry.installs()) == len(registry.bundles()) == len(registry.checks(NAME)) == 1
    assert registry.ends_with(events[-1])
    assert not registry.ends_with(None)
    assert mirrored(registry) == [(event.number, event.kind, event.data) for event in events]


def test_another_log_takes_the_place_of_all_history(registry: Registry) -> None:
    """If this fails, a vault whose event log was replaced shows installs, checks and imports that its log knows nothing of."""
    first = Logged(1, "vault-created", {"vault": "a"})
    imported = {"key": "k", "label": "models", "sequence": 4, "index": "sha256:0"}
    followed(registry, first, Logged(2, "install", install_record()), Logged(3, "bundle-imported", imported))
    other = Logged(2, "check", {"model": NAME.text, "outcome": "ok"})
    assert not registry.ends_with(other)
    assert followed(registry, first, other) == 2
    assert not registry.installs(removed=True)
    assert not registry.bundles()
    assert len(registry.checks(NAME)) == 1
    assert registry.ends_with(other)


def test_a_log_that_was_cut_takes_nothing_that_happened(registry: Registry) -> None:
    """If this fails, losing the log costs the knowledge of what lies in the engines, or the loss goes unnoticed."""
    events = [
        Logged(1, "install", install_record()),
        Logged(2, "trust", {"key": "a"}),
        Logged(3, "trust", {"key": "b"}),
    ]
    followed(registry, *events)
    assert followed(registry, *events[:1]) == 2
    assert registry.ends_with(events[0])
    assert followed(registry) == 1
    assert registry.ends_with(None)
    assert len(registry.installs()) == 1


def test_unknown_kinds_are_only_mirrored(registry: Registry) -> None:
    """If this fails, an older version cannot rebuild from a log that a newer one wrote."""
    applied(registry, Logged(1, "from-the-future", {"anything": [1]}))
    assert len(mirrored(registry)) == 1


@pytest.mark.parametrize(
    "event",
    [
        Logged(1, "install", {"engine": "ollama"}),
        Logged(1, "uninstall", {"engine": 1, "directory": "d", "installed_name": "n"}),
        Logged(1, "check", {"outcome": "ok"}),
        Logged(1, "license-accepted", {"license": "mit", "model": "a", "user": "root"}),
        Logged(1, "bundle-imported", {"key": "k", "label": "l", "sequence": "4", "index": "i"}),
        Logged(1, "bundle-imported", {"key": "k", "label": "l", "sequence": True, "index": "i"}),
        Logged(1, "bundle-written", {"key": "k", "label": "l", "sequence": 4, "index": "i", "models": [1]}),
        Logged(1, "model-published", {"model": "x"}),
        Logged(1, "smoke", {"model": "x", "outcome": "ok"}),
        Logged(1, "smoke", {**install_record(), "address": "a", "outcome": "ok", "rate": "fast"}),
    ],
)
def test_an_event_that_lacks_something_is_refused_whole(registry: Registry, event: Logged) -> None:
    """If this fails, a malformed event is half applied: mirrored, but without its effect."""
    with pytest.raises(EventNotUnderstood, match=r"event 1 \("):
        applied(registry, event)
    assert mirrored(registry) == []


def test_installs_are_kept_until_removed(registry: Registry) -> None:
    """If this fails, verify and uninstall do not know what lies in an engine."""
    applied(registry, Logged(1, "install", install_record()))
    applied(registry, Logged(2, "install", install_record("other:latest", "other")))
    first, second = registry.installs()
    assert first.record == install_record()
    assert (first.engine, first.installed_name, first.model) == ("ollama", "tiny:latest", NAME.text)
    assert (first.installed_at, first.removed_at) == (TIME, None)
    assert registry.installs(ModelName("other")) == (second,)
    place = {"engine": "ollama", "directory": "/srv/ollama/models", "installed_name": "tiny:latest"}
    applied(registry, Logged(3, "uninstall", place, LATER))
    applied(registry, Logged(4, "uninstall", place, LATER))
    assert registry.installs() == (second,)
    assert [row.removed_at for row in registry.installs(removed=True)] == [LATER, None]


def test_installing_again_under_a_name_ends_the_former(registry: Registry) -> None:
    """If this fails, one name in an engine is listed with two models, or the second install is refused."""
    applied(registry, Logged(1, "install", install_record()))
    applied(registry, Logged(2, "install", install_record(model="org/newer"), LATER))
    (present,) = registry.installs()
    assert present.model == "org/newer"
    assert [row.removed_at for row in registry.installs(removed=True)] == [LATER, None]
    applied(registry, Logged(3, "uninstall", install_record(), LATER))
    assert registry.installs() == ()


def test_a_directory_in_another_encoding_can_be_installed_into(registry: Registry) -> None:
    """If this fails, an install into a directory whose name is not UTF-8 is done but cannot be recorded or removed."""
    record = install_record() | {"directory": "/srv/\udcff"}
    applied(registry, Logged(1, "install", record))
    (row,) = registry.installs()
    assert row.record == record
    applied(registry, Logged(2, "uninstall", record, LATER))
    assert registry.installs() == ()


def smoke(outcome: str = "ok", **changes: object) -> dict[str, object]:
    """The data of a smoke test's event, of the install that ``install_record`` gives."""
    record = install_record()
    keys = ("engine", "directory", "model", "manifest", "installed_name")
    numbers = {"first_token": 0.5, "rate": 20, "tokens": 16}
    return {key: record[key] for key in keys} | {
        "address": "http://127.0.0.1:1",
        "outcome": outcome,
        **numbers,
        **changes,
    }


def test_smoke_tests_come_back_newest_first(registry: Registry) -> None:
    """If this fails, show tells that a model runs which no longer does."""
    applied(registry, Logged(1, "install", install_record()), Logged(2, "smoke", smoke(detail=None)))
    applied(registry, Logged(3, "smoke", smoke("failed", detail="no answer", first_token=None, rate=None), LATER))
    applied(registry, Logged(4, "smoke", smoke(model="other", installed_name="other"), LATER))
    newest, oldest = registry.smokes(NAME)
    assert (newest.outcome, newest.detail, newest.first_token, newest.rate) == ("failed", "no answer", None, None)
    assert (oldest.outcome, oldest.detail, oldest.first_token, oldest.rate) == ("ok", None, 0.5, 20.0)
    assert len(registry.smokes()) == 3
    (install,) = registry.installs()
    assert [row.is_of(install) for row in registry.smokes()] == [False, True, True]


def test_a_smoke_test_is_of_one_install(registry: Registry) -> None:
    """If this fails, what ran before an install was made anew passes for a proof that the new one runs."""
    applied(registry, Logged(1, "install", install_record()), Logged(2, "smoke", smoke()))
    applied(registry, Logged(3, "install", install_record() | {"manifest": "sha256:" + "2" * 64}, LATER))
    (install,) = registry.installs()
    assert not any(row.is_of(install) for row in registry.smokes())
    applied(registry, Logged(4, "install", install_record(), LATER))
    (install,) = registry.installs()
    assert not any(row.is_of(install) for row in registry.smokes())


def test_sequences_are_per_key_label_and_direction(registry: Registry) -> None:
    """If this fails, an old bundle can be replayed, or a sequence is given out twice."""
    for number, (kind, key, label, sequence) in enumerate(
        [
            ("bundle-written", "a", "models", 5),
            ("bundle-imported", "a", "models", 9),
            ("bundle-imported", "a", "models", 8),
            ("bundle-imported", "a", "other", 99),
            ("bundle-imported", None, "models", 77),
        ],
        start=1,
    ):
        applied(registry, Logged(number, kind, {"key": key, "label": label, "sequence": sequence, "index": "sha256:0"}))
    assert registry.last_sequence("a", "models", "written") == 5
    assert registry.last_sequence("a", "models", "imported") == 9
    assert registry.last_sequence("b", "models", "imported") is None


def test_bundles_come_back_as_recorded(registry: Registry) -> None:
    """If this fails, the record of what was carried where is wrong."""
    data = {"key": "k", "label": "models", "sequence": 3, "index": "0", "path": "/media/ssd/models-3.mvbundle"}
    applied(registry, Logged(1, "bundle-written", data | {"models": ["a", "org/b"]}))
    applied(
        registry, Logged(2, "bundle-imported", {"key": None, "label": "models", "sequence": 4, "index": "1"}, LATER)
    )
    assert registry.bundles() == (
        BundleRow("written", "0", "models", 3, "k", TIME, "/media/ssd/models-3.mvbundle", ("a", "org/b")),
        BundleRow("imported", "1", "models", 4, None, LATER),
    )


def test_checks_come_back_newest_first(registry: Registry) -> None:
    """If this fails, show reports an old verification as the current state."""
    damage = {"model": NAME.text, "outcome": "damaged", "detail": "model.gguf has another digest"}
    applied(registry, Logged(1, "check", damage, LATER))
    applied(registry, Logged(2, "check", {"model": NAME.text, "outcome": "ok"}, TIME))
    applied(registry, Logged(3, "check", {"model": "other", "outcome": "ok"}, LATER))
    assert registry.checks(NAME) == (
        CheckRow(NAME.text, LATER, "damaged", "model.gguf has another digest"),
        CheckRow(NAME.text, TIME, "ok"),
    )


def test_history_outlives_the_model(registry: Registry) -> None:
    """If this fails, removing a model erases that it was ever checked or installed."""
    registry.record_model(stored(), {}, TIME)
    applied(registry, Logged(1, "check", {"model": NAME.text, "outcome": "ok"}))
    applied(registry, Logged(2, "install", install_record()))
    registry.forget_model(NAME)
    assert len(registry.checks(NAME)) == len(registry.installs(NAME)) == 1


# ── the file ──


def test_rebuild_restores_everything(tmp_path: Path) -> None:
    """If this fails, a lost registry costs the record of installs, imports or times of publication."""
    path = tmp_path / "registry.sqlite"
    events = [
        Logged(1, "model-published", {"model": NAME.text, "manifest": str(stored().manifest)}, TIME),
        Logged(2, "install", install_record()),
        Logged(3, "bundle-imported", {"key": "k", "label": "models", "sequence": 4, "index": "sha256:0"}),
        Logged(4, "uninstall", install_record(), LATER),
        Logged(5, "check", {"model": NAME.text, "outcome": "ok"}, LATER),
        Logged(6, "smoke", smoke(), LATER),
    ]

    def state(registry: Registry) -> tuple[object, ...]:
        return (
            registry.models(),
            _files(registry),
            registry.metadata(NAME),
            registry.installs(removed=True),
            registry.bundles(),
            registry.checks(NAME),
            registry.smokes(),
            mirrored(registry),
        )

    with Registry.open(path) as registry:
        registry.record_model(stored(), {"model.gguf": report()}, TIME)
        for event in events:
            applied(registry, event)
        before = state(registry)
    path.write_bytes(b"this is no database")
    with Registry.rebuild(path) as registry:
        registry.record_model(stored(), {"model.gguf": report()}, LATER)
        applied(registry, *events)
    with Registry.open(path) as registry:
        assert state(registry) == before
    assert sorted(file.name for file in tmp_path.iterdir()) == [".registry.sqlite.lock", "registry.sqlite"]


def test_a_failed_rebuild_leaves_the_old_registry(tmp_path: Path) -> None:
    """If this fails, an interrupted rebuild replaces a registry by half of one."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry:
        registry.record_model(stored(), {}, TIME)
    with pytest.raises(KeyboardInterrupt), Registry.rebuild(path):
        raise KeyboardInterrupt
    with Registry.open(path) as registry:
        assert len(registry.models()) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [".registry.sqlite.lock", "registry.sqlite"]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE models SET manifest='sha256:nonsense'",
        "UPDATE models SET name='../..'",
        "UPDATE files SET path='../../etc/passwd' WHERE path='README.md'",
        "UPDATE models SET recipe='[]'",
    ],
)
def test_rows_that_nobody_wrote_are_damage(registry: Registry, change: str) -> None:
    """If this fails, an edited registry crashes the program, or makes it use a path outside the model."""
    registry.record_model(stored(), {}, TIME)
    connection = sqlite3.connect(registry.path)
    connection.execute(change)
    connection.commit()
    connection.close()
    with pytest.raises(RegistryDamaged) as caught:
        registry.models()
    assert "registry rebuild" in str(caught.value.hint)


def test_sqlite3_reads_it_without_us(registry: Registry) -> None:
    """If this fails, the queries in docs/reference/registry.md do not work for other programs."""
    registry.record_model(stored(), {"model.gguf": report()}, TIME)
    applied(registry, Logged(1, "install", install_record()))
    assert _column(registry, "SELECT value FROM metadata WHERE key='llama.context_length'") == ["4096"]
    assert _column(registry, "SELECT sum(size) FROM files WHERE model='org/tiny:Q4_K_M'") == [10]
    (record,) = _column(registry, "SELECT json_extract(record, '$.modelfile') FROM installs WHERE removed_at IS NULL")
    assert record == json.loads(json.dumps(install_record()))["modelfile"]
