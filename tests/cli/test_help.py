"""Help: every command explains itself with an example, on 80 columns, and without loading what it runs."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from generate_docs import commands, help_of
from machines import Machine

HEAVY = {
    "huggingface_hub",
    "sqlalchemy",
    "alembic",
    "gguf",
    "numpy",
    "cryptography",
    "zstandard",
    "msgspec",
    "urllib3",
    "tqdm",
    "uvicorn",
}


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name in commands(help_of()):
        below = commands(help_of(name))
        found += [(name, inner) for inner in below] if below else [(name,)]
    return found


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_every_command_has_an_example_and_fits(command: tuple[str, ...]) -> None:
    """Breaks if a command leaves the user without an example or `--json`, or its help is wider than a terminal."""
    text = help_of(*command)
    assert "Example" in text
    assert f"modelvault {' '.join(command)}" in text.split("Example", 1)[1]
    assert "--json" in text
    assert [line for line in text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_placeholders_are_upper_case(command: tuple[str, ...]) -> None:
    """Breaks if a placeholder is a Python type, or looks like a word to be typed as it is."""
    text = help_of(*command)
    assert re.search(r"<\w", text) is None
    placeholders = re.findall(r"^  --[\w-]+ (\S+)", text.partition("Options:")[2], re.MULTILINE) + re.findall(
        r"[{\[](.+)[}\]]", text.splitlines()[0].partition("[OPTIONS]")[2]
    )
    assert [word for word in placeholders if word != word.upper() and word != "auto|hard|reflink|copy"] == []


@pytest.mark.parametrize(
    "group", [(), ("keys",), ("receipt",), ("registry",)], ids=lambda group: group[0] if group else "modelvault"
)
def test_summaries_are_not_cut(group: tuple[str, ...]) -> None:
    """Breaks if a command's one-line summary is too long for the list of commands."""
    assert "..." not in help_of(*group).partition("Commands:")[2]


@pytest.mark.parametrize(
    "arguments", [("--version",), ("--help",), ("pull", "--help"), ("import", "--help")], ids=" ".join
)
def test_help_is_light(arguments: tuple[str, ...]) -> None:
    """Breaks if help or completion waits for libraries that only a running command needs."""
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "modelvault", *arguments], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in shown.stderr.splitlines()}
    assert imported & HEAVY == set()


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("pull", "--nonsense", "x"), ("bundle",), ("pull", "a", "--connections", "0")],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(machine: Callable[..., Machine], arguments: tuple[str, ...]) -> None:
    """Breaks if a script cannot tell a typing mistake from a failure."""
    assert "Usage:" in machine("pc").run(*arguments, code=2).err


def test_completion_is_offered() -> None:
    """Breaks if shells cannot complete commands: the console script prints what bash has to source."""
    script = Path(sys.executable).with_name("modelvault")
    environment = {**os.environ, "_MODELVAULT_COMPLETE": "source_bash"}
    shown = subprocess.run([script], capture_output=True, text=True, check=True, env=environment)
    assert "complete" in shown.stdout
