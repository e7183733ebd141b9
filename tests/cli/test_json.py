"""The ``--json`` envelope of every command: its keys are frozen, since other programs rely on them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_hub import FaultyHub
from generate_docs import commands, help_of
from loopback import document, events, loopback
from machines import Machine, only_bundle, trust_site
from result_keys import RESULTS, fits, shape

from modelvault.results.bundles import Damage

FROZEN = Path(__file__).with_name("json_keys.json")
ANSWERS = {
    "/v1/models": document({"data": [{"id": "tiny"}]}),
    "/v1/completions": events({"choices": [{"text": "x"}]}),
}
ENVELOPE = ["schema", "command", "status", "result", "warnings", "error"]


def test_keys_are_frozen() -> None:
    """Breaks if a key of a result goes or gets another name; a new key is added to json_keys.json on purpose."""
    shapes = {command: shape(kind) for command, kind in RESULTS.items()}
    if "MODELVAULT_FREEZE" in os.environ:
        FROZEN.write_text(json.dumps(shapes, indent=1, sort_keys=True) + "\n")
    assert shapes == json.loads(FROZEN.read_text()), (
        "if the new keys are meant: MODELVAULT_FREEZE=1 pytest tests/cli/test_json.py"
    )


def test_every_command_is_frozen() -> None:
    """Breaks if the results of a new command are neither frozen nor documented."""
    names = set()
    for name in commands(help_of()):
        names |= {f"{name} {inner}" for inner in commands(help_of(name))} or {name}
    assert names == {command.partition(" --")[0] for command in RESULTS}


@pytest.mark.parametrize(
    ("value", "sound"),
    [({"where": "a", "problem": "b", "models": ["c"]}, True), ({"where": "a", "problem": "b"}, False), ([], False)]
    + [({"where": "a", "problem": "b", "models": models}, False) for models in (None, "c", [1])],
)
def test_a_shape_takes_nothing_else(value: object, sound: bool) -> None:
    """Breaks if the next test cannot fail."""
    assert fits(Damage, value) == sound


def test_commands_print_what_is_documented(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if a command prints another result than the one that is frozen and documented for it."""
    drive = tmp_path / "drive"
    drive.mkdir()
    server = machine("server")
    folder = server.root / "models"
    noted = set()

    def note(who: Machine, *arguments: str | Path) -> None:
        printed = who.json(*arguments).document
        assert list(printed) == ENVELOPE
        assert printed["schema"] == "modelvault/1"
        assert printed["status"] == "ok"
        command = printed["command"]
        for flag in ("--dry-run", "--all", "--update"):
            if flag in arguments and f"{printed['command']} {flag}" in RESULTS:
                command = f"{printed['command']} {flag}"
        assert fits(RESULTS[command], printed["result"]), printed
        noted.add(command)

    with FaultyHub({"demo/tiny-GGUF": tiny_gguf}) as hub:
        pc = machine("pc", hub.url)
        (pc.root / "modelvault.toml").write_text('[[model]]\nname = "demo/tiny-GGUF"\n')
        for line in ("pull demo/tiny-GGUF --dry-run", "pull demo/tiny-GGUF", "pull --all", "outdated", "pull --update"):
            note(pc, *line.split())
    note(pc, "add", tiny_gguf, "--name", "tiny")
    for folder_or_file in (tiny_gguf, tiny_gguf.parent):
        note(pc, "inspect", folder_or_file)
    for word in ("list", "verify"):
        note(pc, word)
    note(pc, "keys", "new", "default")
    note(pc, "bundle", "tiny", "--to", drive, "--dry-run")
    note(pc, "bundle", "tiny", "--to", drive)
    for words in ("keys list", "keys show", "policy show", "policy check", "policy accept tiny"):
        note(pc, *words.split())
    note(pc, "inspect", only_bundle(drive))
    note(pc, "verify", only_bundle(drive))
    fingerprint = pc.json("keys", "show").result["keys"][0]["fingerprint"]
    note(server, "doctor", "--engine", f"folder={folder}")
    note(server, "keys", "trust", only_bundle(drive) / "default.pub", "--fingerprint", fingerprint)
    note(server, "import", drive, "--dry-run", "--engine", f"folder={folder}")
    note(server, "import", drive, "--engine", f"folder={folder}")
    note(server, "receipt", "write", drive, "--site", "lab")
    trust_site(pc, drive / "lab.pub", server)
    note(pc, "receipt", "add", drive)
    note(pc, "receipt", "list")
    note(pc, "receipt", "show", "lab")
    note(server, "show", "tiny")
    note(server, "install", "tiny", "--engine", f"folder={folder}")
    with loopback(ANSWERS) as engine:
        note(server, "smoke", "tiny", "--url", engine.address)
    note(server, "installs")
    note(server, "uninstall", "tiny", "--engine", f"folder={folder}")
    server.run("install", "tiny", "--engine", f"llamacpp={folder}")
    for line in (
        "fit tiny --gpu 24GiB",
        "recipe tiny --engine llamacpp --gpu 24GiB",
        "registry rebuild",
        "rm tiny",
        "gc",
        "catalog",
        "catalog search korean",
        "catalog show qwen2.5-7b",
    ):
        note(server, *line.split())
    note(server, "keys", "revoke", "default")
    assert noted == RESULTS.keys() - {"serve"}


def test_errors_have_the_same_envelope(machine: Callable[..., Machine]) -> None:
    """Breaks if a failing command prints no document, or one that says nothing."""
    machine("pc").json("catalog")
    document = machine("pc").json("show", "nothing", code=2).document
    assert list(document) == ENVELOPE
    assert document["status"] == "error"
    assert document["error"].keys() == {"code", "exit_code", "message", "hint", "data"}
    assert document["error"]["exit_code"] == 2
