"""The documents about the registry and the event log say what the code does."""

import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from registry_values import TIME, Logged, applied, install_record, report, stored

from modelvault.eventlog import EventLog
from modelvault.registry import Registry
from modelvault.registry.replay import _EFFECTS
from modelvault.registry.schema import HEAD, Base

_DOCS = Path(__file__).parents[2] / "docs"
_REFERENCE = (_DOCS / "reference" / "registry.md").read_text(encoding="utf-8")
_FORMAT = (_DOCS / "formats" / "vault.md").read_text(encoding="utf-8")
_TYPES = {int: "INTEGER", float: "REAL"}
_QUERIES = re.findall(r"```sql\n(.*?)```", _REFERENCE, re.DOTALL)


def _documented() -> dict[str, dict[str, str]]:
    """Read the tables of the page: column and its documented type, by table."""
    tables: dict[str, dict[str, str]] = {}
    for section in re.split(r"^## ", _REFERENCE, flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", section, re.MULTILINE)
        if rows:
            tables[section.split("\n", 1)[0].strip()] = dict(rows)
    return tables


def test_every_table_and_column_is_documented() -> None:
    """If this fails, docs/reference/registry.md lacks a table or column, or names one that is gone, or its type is wrong."""
    documented = _documented()
    assert {name: set(columns) for name, columns in documented.items()} == {
        name: {column.name for column in table.columns} for name, table in Base.metadata.tables.items()
    }
    for name, table in Base.metadata.tables.items():
        for column in table.columns:
            text = documented[name][column.name]
            assert text.startswith(_TYPES.get(column.type.python_type, "TEXT")), f"{name}.{column.name}"
            assert ("NULL" in text) == bool(column.nullable), f"{name}.{column.name}"
            assert ("key" in text) == column.primary_key, f"{name}.{column.name}"
    assert f"`{HEAD}`" in _REFERENCE


def test_there_are_queries() -> None:
    """If this fails, the next test tests nothing."""
    assert len(_QUERIES) >= 5


@pytest.mark.parametrize("query", _QUERIES)
def test_the_documented_queries_answer(tmp_path: Path, query: str) -> None:
    """If this fails, a query in docs/reference/registry.md does not run, or finds nothing where it should."""
    path = tmp_path / "registry.sqlite"
    with Registry.open(path) as registry:
        registry.record_model(stored("first"), {"model.gguf": report()}, TIME)
        registry.record_model(stored("second"), {}, TIME)
        imported = {"key": "k", "label": "models", "sequence": 1, "index": "0", "models": ["first"]}
        accepted = {"license": "llama3.1", "model": "first", "user": "root", "how": "prompt"}
        applied(
            registry,
            Logged(1, "install", install_record()),
            Logged(2, "bundle-imported", imported),
            Logged(3, "license-accepted", accepted),
        )
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        assert connection.execute(query).fetchall()
    finally:
        connection.close()


def test_every_kind_of_event_is_specified() -> None:
    """If this fails, another program cannot read an event that changes the registry."""
    written = {
        kind
        for file in (_DOCS.parent / "modelvault").rglob("*.py")
        for kind in re.findall(r'(?:record|events\.append)\(\s*"([a-z-]+)"', file.read_text(encoding="utf-8"))
    }
    assert len(written) > 5
    for kind in (*_EFFECTS, "recovered", *sorted(written)):
        assert re.search(rf"^\| [^|]*`{kind}`[^|]* \|", _FORMAT, re.MULTILINE), kind


def test_the_documented_verifier_agrees(tmp_path: Path) -> None:
    """If this fails, the verifier in docs/formats/vault.md rejects a sound log or accepts a changed one."""
    (script,) = re.findall(r"python3 - <<'END'\n(.*?)END\n", _FORMAT, re.DOTALL)
    log = EventLog(tmp_path / "events.jsonl")
    for kind in ("key-new", "trust", "revoke"):
        log.append(kind, {"key": "ü", "name": "n"})
    command = [sys.executable, "-X", "dev", "-W", "ignore::ResourceWarning", "-c", script]
    sound = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert sound.returncode == 0, sound.stderr
    assert sound.stdout.startswith("3 ")
    log.path.write_bytes(log.path.read_bytes().replace(b"trust", b"tryst"))
    changed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "line 3" in changed.stderr
