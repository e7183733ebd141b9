"""Migrations: from nothing and from older schemas to this one, all or nothing; newer ones refused."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from registry_values import TIME, Logged, applied, install_record, report, stored
from sqlalchemy import NullPool, create_engine, event

from modelvault.errors import UsageProblem
from modelvault.registry import Registry, RegistryDamaged, RegistryUnreadable, migrate, replay
from modelvault.registry.connection import Access
from modelvault.registry.schema import HEAD, REVISIONS, Base

NAME = "org/old"
_NEXT = f"""
import sqlalchemy as sa
from alembic import op
revision = "9999"
down_revision = "{HEAD}"
def upgrade():
    with op.batch_alter_table("models", recreate="always") as batch:
        batch.add_column(sa.Column("stars", sa.Integer()))
"""


def _schema(path: Path) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE sql NOT NULL AND name != 'alembic_version'"
        )
        # A table that a migration rebuilt has its name in quotes.
        return {name: " ".join(sql.replace('"', "").split()) for name, sql in rows}


def _migrated(path: Path, revision: str) -> None:
    """Make a registry of an older schema, by the migrations alone."""
    access = Access(path, 10.0, lambda _: False)
    engine = access.engine()
    event.listen(engine, "connect", migrate._without_foreign_keys)
    with contextlib.closing(access.connect()) as connection:
        connection.execute(f"PRAGMA journal_mode={access.journal_mode}")
    migrate.run_migrations(engine, path, revision)
    engine.dispose()


def test_migrations_lead_to_the_declared_schema(tmp_path: Path) -> None:
    """If this fails, a table was changed without a migration: registries made before lack it, and new ones have it."""
    _migrated(tmp_path / "migrated.sqlite", HEAD)
    engine = create_engine(f"sqlite:///{tmp_path / 'migrated.sqlite'}", poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    with Registry.open(tmp_path / "new.sqlite"):
        pass
    # Alembic does not compare CHECK constraints and partial indexes; the text does.
    assert _schema(tmp_path / "migrated.sqlite") == _schema(tmp_path / "new.sqlite")
    for pragma in ("application_id", "journal_mode", "user_version"):
        values = set()
        for name in ("migrated", "new"):
            with contextlib.closing(sqlite3.connect(tmp_path / f"{name}.sqlite")) as connection:
                values.add(connection.execute(f"PRAGMA {pragma}").fetchone())
        assert len(values) == 1, pragma


def test_the_revisions_are_known() -> None:
    """If this fails, a migration was added that opening does not run, or one is missing from the package."""
    config = Config()
    config.set_main_option("script_location", str(migrate._MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [HEAD]
    assert tuple(step.revision for step in script.walk_revisions())[::-1] == REVISIONS


def _next_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str = _NEXT) -> None:
    """Turn this program into the next version, which has one migration more."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate._MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "r9999_stars.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(migrate, "_MIGRATIONS", folder)
    monkeypatch.setattr(migrate, "HEAD", "9999")
    monkeypatch.setattr(migrate, "REVISIONS", (*REVISIONS, "9999"))


def test_an_older_registry_is_migrated_and_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, an upgrade of modelvault loses the registry, or empties the tables that refer to a rebuilt one."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry:
        registry.record_model(stored(), {"model.gguf": report()}, TIME)
    _next_version(monkeypatch, tmp_path)
    with Registry.open(path) as registry:
        (row,) = registry.models()
        assert len(row.stored.model.files) == 2
        assert len(registry.metadata(row.name)) == len(report().metadata)
    assert "stars" in _schema(path)["models"]


def test_events_from_a_newer_version_get_their_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, smoke tests that an older version rebuilt from the log as unknown events are lost for the newer one."""
    path = tmp_path / "registry.sqlite"
    record = install_record() | {"directory": "/srv/\udcff"}
    data = {**record, "address": "http://127.0.0.1:1", "outcome": "ok", "first_token": 0.5, "rate": None}
    _migrated(path, "0001")
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "HEAD", "0001")
        patch.setattr(replay, "_EFFECTS", {})
        with Registry.open(path) as registry:
            applied(registry, Logged(1, "smoke", data), Logged(2, "from-the-future", {}))
    with Registry.open(path) as registry:
        (row,) = registry.smokes()
    assert (row.directory, row.outcome, row.first_token, row.smoked_at) == ("/srv/\\udcff", "ok", 0.5, TIME)


def test_a_registry_of_the_first_schema_gets_the_column(tmp_path: Path) -> None:
    """If this fails, a vault of an earlier version cannot be opened, or loses what its registry holds."""
    path = tmp_path / "registry.sqlite"
    _migrated(path, "0001")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        row = (NAME, f"sha256:{'0' * 64}", 1, "folder", None, None, "mit", "gguf", *(None,) * 4, 0, None, TIME)
        connection.execute(f"INSERT INTO models VALUES ({', '.join('?' * len(row))})", row)
        connection.commit()
    with Registry.open(path) as registry:
        (model,) = registry.models()
    assert (model.name.text, model.stored.model.license, model.stored.model.license_link) == (NAME, "mit", None)


def test_a_newer_registry_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, an older modelvault writes into a schema that it does not know."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path):
        pass
    with monkeypatch.context() as patch:
        _next_version(patch, tmp_path)
        with Registry.open(path):
            pass
    with pytest.raises(UsageProblem, match=rf"newer modelvault \(schema 9999, this one knows {HEAD}\)"):
        Registry.open(path)


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        ('    op.execute("INSERT INTO nowhere VALUES (1)")\n', RegistryDamaged),
        ('    op.execute("UPDATE files SET digest=1")\n', RegistryDamaged),
        ("    raise KeyboardInterrupt\n", KeyboardInterrupt),
    ],
)
def test_a_failed_migration_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str, error: type[BaseException]
) -> None:
    """If this fails, a migration that was cut short leaves a schema that no version knows."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry:
        registry.record_model(stored(), {}, TIME)
        before = _schema(path)
    with monkeypatch.context() as patch:
        _next_version(patch, tmp_path, _NEXT + failure)
        with pytest.raises(error):
            Registry.open(path)
    assert _schema(path) == before
    with Registry.open(path) as registry:
        assert len(registry.models()) == 1


def test_an_older_registry_that_may_not_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails, an ordinary user gets a traceback after root upgraded modelvault."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path):
        pass
    _next_version(monkeypatch, tmp_path)
    monkeypatch.setattr(Access, "read_only", property(lambda _: True))
    with pytest.raises(RegistryUnreadable, match="older modelvault"):
        Registry.open(path)


def test_an_empty_file_becomes_a_registry(tmp_path: Path) -> None:
    """If this fails, a first run that was killed while it made the file blocks all later ones."""
    path = tmp_path / "registry.sqlite"
    path.touch()
    with Registry.open(path) as registry:
        assert registry.models() == ()


def test_a_registry_without_its_schema_number_is_damage(tmp_path: Path) -> None:
    """If this fails, a registry of unknown schema is written to."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM alembic_version")
        connection.commit()
    with pytest.raises(RegistryDamaged, match="which schema"):
        Registry.open(path)
