"""The ``--json`` envelope of every command: its keys are frozen, since other programs rely on them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faulty_hub import FaultyHub
from machines import Machine, only_bundle, trust

FROZEN = Path(__file__).with_name("json_keys.json")
ENVELOPE = ["schema", "command", "status", "result", "warnings", "error"]


def shape(value: Any) -> Any:
    """Reduce a result to its keys: what is a list becomes the shape of its first element."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "value"


def test_keys_are_frozen(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if a key of a result goes or gets another name; a new key is added to json_keys.json on purpose."""
    drive = tmp_path / "drive"
    drive.mkdir()
    server = machine("server")
    folder = server.root / "models"
    found: dict[str, Any] = {}

    def note(who: Machine, *arguments: str | Path) -> None:
        document = who.json(*arguments).document
        assert list(document) == ENVELOPE
        assert document["schema"] == "modelvault/1"
        assert document["status"] == "ok"
        variant = " --dry-run" if "--dry-run" in arguments else ""
        found[document["command"] + variant] = shape(document["result"])

    with FaultyHub({"demo/tiny-GGUF": tiny_gguf}) as hub:
        pc = machine("pc", hub.url)
        note(pc, "pull", "demo/tiny-GGUF", "--dry-run")
        note(pc, "pull", "demo/tiny-GGUF")
    note(pc, "add", tiny_gguf, "--name", "tiny")
    note(pc, "inspect", tiny_gguf)
    note(pc, "list")
    note(pc, "verify")
    note(pc, "keys", "new", "default")
    note(pc, "bundle", "tiny", "--to", drive, "--dry-run")
    note(pc, "bundle", "tiny", "--to", drive)
    note(pc, "keys", "list")
    note(pc, "keys", "show")
    trust(server, pc, only_bundle(drive))
    note(server, "import", drive, "--dry-run", "--engine", f"folder={folder}")
    note(server, "import", drive, "--engine", f"folder={folder}")
    note(server, "show", "tiny")
    note(server, "install", "tiny", "--engine", f"folder={folder}")
    note(server, "uninstall", "tiny", "--engine", f"folder={folder}")
    note(server, "registry", "rebuild")
    note(server, "rm", "tiny")
    note(server, "gc")
    note(server, "catalog")
    note(server, "keys", "revoke", "default")
    found["show"]["metadata"] = found["inspect"]["items"][0]["metadata"] = "by key"
    if "MODELVAULT_FREEZE" in os.environ:
        FROZEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(FROZEN.read_text()), (
        "if the new keys are meant: MODELVAULT_FREEZE=1 pytest tests/cli/test_json.py"
    )


def test_errors_have_the_same_envelope(machine: Callable[..., Machine]) -> None:
    """Breaks if a failing command prints no document, or one that says nothing."""
    machine("pc").json("catalog")
    document = machine("pc").json("show", "nothing", code=2).document
    assert list(document) == ENVELOPE
    assert document["status"] == "error"
    assert document["error"].keys() == {"code", "exit_code", "message", "hint", "data"}
    assert document["error"]["exit_code"] == 2
