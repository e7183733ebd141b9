"""What may be typed: values that are empty or out of bounds, and names, paths and addresses that stand in for one another."""

from collections.abc import Callable
from pathlib import Path

import pytest
from machines import Machine
from refusals import failed, succeeded


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("inspect", ""), "PATH"),
        (("add", "", "--name", "x"), "PATH"),
        (("import", ""), "PATH"),
        (("keys", "trust", ""), "PATH"),
        (("show", ""), "MODEL"),
        (("pull", "org/name", "--endpoint", ""), "--endpoint"),
        (("pull", "org/name", "--limit-rate", ""), "--limit-rate"),
        (("pull", "org/name", "--include", "*", "--include", ""), "--include"),
        (("bundle", "--to", "/tmp", "--label", ""), "--label"),
        (("bundle", "--to", ""), "--to"),
        (("install", "x", "--as", ""), "--as"),
    ],
    ids=" ".join,
)
def test_no_value_is_empty(machine: Callable[..., Machine], arguments: tuple[str, ...], named: str) -> None:
    """Breaks if a variable that a script never set means the current directory, the default or the real hub."""
    pc = machine("pc")
    assert f"'{named}': it is empty" in pc.run(*arguments, code=2).err
    assert not pc.vault.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("pull", "a", "--connections", "0"), "'0' is not a whole number from 1 to 64"),
        (("pull", "a", "--connections", "many"), "'many' is not a whole number from 1 to 64"),
        (("serve", "--port", "65536"), "'65536' is not a whole number from 0 to 65535"),
        (("bundle", "--to", "/tmp", "--sequence", "0"), "'0' is not a whole number from 1 on"),
    ],
    ids=" ".join,
)
def test_numbers(machine: Callable[..., Machine], arguments: tuple[str, ...], said: str) -> None:
    """Breaks if a number out of bounds is answered in a library's words."""
    assert said in machine("pc").run(*arguments, code=2).err


def test_what_pull_is_not_for(machine: Callable[..., Machine]) -> None:
    """Breaks if a path or the address of a page ends with `not a model name` alone."""
    pc = machine("pc")
    assert "modelvault add /tmp --name" in failed(pc, "pull", "/tmp", code=2)["hint"]
    page = "https://huggingface.co/acme/big-ST/tree/main"
    assert failed(pc, "pull", page, code=2)["hint"].startswith("write acme/big-ST;")


def test_a_directory_called_as_a_model(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if `verify ssd` beside the directory ssd does not say how the directory is meant."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    (pc.root / "ssd").mkdir()
    assert "write ./ssd" in failed(pc, "verify", "ssd", code=2)["hint"]


def test_a_folder_of_models(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if several models in one folder silently become one that no engine loads."""
    pc = machine("pc")
    for name in ("a", "b"):
        (tmp_path / "models" / name).mkdir(parents=True)
        weights = next(tiny_gguf.glob("*.gguf"))
        (tmp_path / "models" / name / weights.name).write_bytes(weights.read_bytes())
    hint = failed(pc, "add", tmp_path / "models", "--name", "both", code=2)["hint"]
    assert f"modelvault add {tmp_path / 'models' / 'a'} --name" in hint
    assert succeeded(pc, "add", tmp_path / "models" / "a", "--name", "a")["model"]["files"] == 1


def test_what_is_no_public_key(machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if a private key that was given by mistake is called damaged, or a bundle in place of its key is just refused."""
    pc = machine("pc")
    pc.run("keys", "new", "default")
    private = pc.vault / "keys" / "default.key"
    error = failed(pc, "keys", "trust", private, code=2)
    assert "private key" in error["message"]
    assert f"modelvault keys trust {private.with_suffix('.pub')}" in error["hint"]
    (tmp_path / "my drive").mkdir()
    assert "NAME.pub" in failed(pc, "keys", "trust", tmp_path / "my drive", code=2)["hint"]
    (tmp_path / "my drive" / "pc.pub").touch()
    assert f"'{tmp_path / 'my drive' / 'pc.pub'}'" in failed(pc, "keys", "trust", tmp_path / "my drive", code=2)["hint"]


@pytest.mark.parametrize(
    ("words", "command", "said"),
    [
        (("list", "--bogus"), "list", "No such option: --bogus"),
        (("show",), "show", "Missing argument 'MODEL'"),
        (("keys", "forget"), "keys", "No such command 'forget'"),
        (("fit", "x", "--users", "0"), "fit", "not a whole number"),
    ],
)
def test_a_program_reads_what_was_wrong_with_its_line(
    words: tuple[str, ...], command: str, said: str, machine: Callable[..., Machine]
) -> None:
    """Breaks if a script that asked for JSON finds nothing on standard output, and has to guess from the exit code."""
    ran = machine("pc").json(*words, code=2)
    assert (ran.document["command"], ran.document["error"]["code"], ran.err) == (command, "usage", "")
    assert said in ran.document["error"]["message"]
    assert f"modelvault {command} -h" in ran.document["error"]["hint"]
