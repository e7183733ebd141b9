"""``installs`` and ``verify --installs``: the list of what is in engines, and whether it still is what was installed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from machines import Machine, flip_bit, only_bundle
from refusals import blob_of, failed


def states(machine: Machine, *options: str) -> dict[str, Any]:
    return {line["engine"]: line for line in machine.json("installs", *options).result["installs"]}


def test_installs_are_listed_and_checked(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if nobody can tell what lies in which engine, or if damage there passes for intact."""
    server = machine("server")
    server.run("add", tiny_gguf, "--name", "org/tiny")
    assert "nothing is installed" in server.run("installs").out
    places = {name: server.root / name for name in ("ollama", "llamacpp")}
    server.run("install", "org/tiny", "--engine", f"ollama={places['ollama']}")
    server.run("install", "org/tiny", "--engine", f"llamacpp={places['llamacpp']}", "--link", "copy")
    listed = states(server)
    assert {name: (line["directory"], line["link"]) for name, line in listed.items()} == {
        "ollama": (str(places["ollama"]), "hard link"),
        "llamacpp": (str(places["llamacpp"]), "copy"),
    }
    shown = server.run("installs", "--check").out
    assert shown.count("intact") == 2
    verdict = server.json("verify", "--installs").result
    assert (verdict["checked"], verdict["damage"]) == (2, [])

    (weights,) = places["llamacpp"].rglob("*.gguf")
    flip_bit(weights, weights.stat().st_size // 2)
    assert states(server)["llamacpp"]["problems"] == []  # the size is right: only reading tells
    for command in (("installs", "--check"), ("verify", "--installs"), ("verify", "--installs", "org/tiny")):
        document = server.json(*command, code=12).document
        assert str(weights) in document["error"]["message"]
        assert f"--engine llamacpp={places['llamacpp']}" in document["error"]["hint"]
    assert "damaged: org--tiny in llamacpp" in server.run("installs", "--check", code=12).out
    weights.unlink()
    (problem,) = states(server)["llamacpp"]["problems"]
    assert "is missing" in problem
    server.run("install", "org/tiny", "--engine", f"llamacpp={places['llamacpp']}", "--link", "copy")
    server.run("installs", "--check")


def test_what_cannot_be_verified(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if a wrong name, or a bundle's path, passes for intact installs."""
    server = machine("server")
    server.run("add", tiny_gguf, "--name", "tiny")
    assert "not installed" in server.json("verify", "--installs", "tiny", code=2).document["error"]["message"]
    assert "not for a bundle" in server.json("verify", "--installs", "./x", code=2).document["error"]["message"]


def test_damage_that_an_engine_shares(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if a damaged file that is hard-linked into an engine stays there unsaid, once the vault has a sound one again."""
    pc, server, drive = machine("pc"), machine("server"), tmp_path / "drive"
    drive.mkdir()
    pc.run("add", tiny_gguf, "--name", "org/tiny")
    pc.run("bundle", "--to", drive)
    bundle, ollama = only_bundle(drive), server.root / "ollama"
    taken = ("import", bundle, "--allow-unsigned")
    server.run(*taken, "--engine", f"ollama={ollama}")
    server.run("install", "org/tiny", "--engine", f"folder={server.root / 'copied'}", "--link", "copy")
    blob = blob_of(server, "org/tiny", ".gguf")
    blob.chmod(0o644)
    flip_bit(blob, blob.stat().st_size // 2)

    command = f"modelvault install org/tiny --engine ollama={ollama}"
    for run in ("moved aside", "moved aside before"):
        document = server.json("verify", code=12).document
        (place,) = document["error"]["data"]["installs"]
        assert place == f"tiny:q8_0 in ollama ({ollama})", run
        (warning,) = document["warnings"]
        assert warning == f"also damaged, since it is the same file there: {place}"
        assert f"`{command}` mends" in document["error"]["hint"]
    server.run(*taken)
    server.run("verify")
    failed(server, "verify", "--installs", code=12)
    server.run(*command.split()[1:])
    server.run("verify", "--installs")
    (placed,) = ollama.glob(f"blobs/sha256-{blob.name}")
    assert placed.samefile(blob)
