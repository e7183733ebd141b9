"""Which release of an engine's program is on this machine. Programs are asked for their version, never made to load a model.

vLLM and SGLang are Python packages whose command would import torch first: it is their interpreter that is asked what is installed.
"""

import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelvault.engines.base import Surroundings
from modelvault.engines.processes import said_by

_SECONDS = 10.0
_HEAD = 4096  # bytes of a script in which its interpreter is named
_SHEBANG = re.compile(
    rb"#!\s*(/[^\s]*python[\d.]*)\s*\n|#!/bin/sh\n'''exec' \"?(/[^\"\n]*python[\d.]*)\"?"
)  # as pip writes it
_ASK_PACKAGE = """
import sys
from importlib.metadata import entry_points
found = entry_points(group="console_scripts", name=sys.argv[1])
print("version", next(iter(found)).dist.version)
"""


@dataclass(frozen=True, slots=True)
class Program:
    """An engine's program on this machine; without a ``version`` if it did not tell."""

    path: str
    version: str | None


@dataclass(frozen=True, slots=True)
class _Command:
    """A program's name on the PATH, and how it tells its version: with ``arguments``, or by its Python ``package``."""

    name: str
    tells: re.Pattern[str] = re.compile(r"version:?\s+(\S+)")
    arguments: Sequence[str] = ("--version",)
    package: bool = False


_COMMANDS: Mapping[str, _Command] = {
    "ollama": _Command("ollama", re.compile(r"version is (\S+)")),
    "vllm": _Command("vllm", package=True),
    "llamacpp": _Command("llama-server"),
    "tgi": _Command("text-generation-launcher", re.compile(r"text-generation-launcher\s+(\S+)")),
    "sglang": _Command("sglang", package=True),
}


def find_program(engine: str, around: Surroundings) -> Program | None:
    """Find an engine's program on the PATH, and ask for its version; ``None`` if it is not there, or there is no such program."""
    command = _COMMANDS.get(engine)
    path = around.program(command.name) if command else None
    if command is None or path is None:
        return None
    with socket.socket() as nobody:
        # Ollama would ask its server first: bound and not listening, this address is nobody's while it is asked.
        nobody.bind(("127.0.0.1", 0))
        environment = {
            "HOME": str(around.home),
            **around.environment,
            "OLLAMA_HOST": f"127.0.0.1:{nobody.getsockname()[1]}",
        }
        said = said_by(_question(path, command), environment, seconds=_SECONDS)
    found = command.tells.search(said or "")
    return Program(path, found[1] if found else None)


def _question(path: str, command: _Command) -> list[str]:
    if not command.package:
        return [path, *command.arguments]
    interpreter = _interpreter_of(Path(path))
    # Isolated, and writing no bytecode: nothing is to change on disk.
    return [interpreter, "-I", "-B", "-c", _ASK_PACKAGE, command.name] if interpreter else ["false"]


def _interpreter_of(script: Path) -> str | None:
    """Read which Python runs a script; ``None`` for what is no such script, as a wrapper of somebody's."""
    try:
        with script.open("rb") as reader:
            head = reader.read(_HEAD)
    except OSError:
        return None
    found = _SHEBANG.match(head)
    return (found[1] or found[2]).decode("utf-8", "surrogateescape") if found else None


def release(text: str | None) -> tuple[int, ...] | None:
    """Take a release's numbers apart, to compare them: ``0.17.1-rc0`` counts as what it leads to; ``None`` for a build that has none."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", text or "")
    numbers = tuple(map(int, found[1].split("."))) if found else ()
    return numbers if any(numbers) else None  # 0.0.0 is a build of somebody's own


# -- graphics cards ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA card; ``capability`` as ``(8, 0)``."""

    name: str
    capability: tuple[int, ...]


def gpus(around: Surroundings) -> tuple[Gpu, ...] | None:
    """Ask ``nvidia-smi`` for the cards; ``None`` where there is no such program, or it does not answer."""
    program = around.program("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    said = said_by(command, around.environment, seconds=_SECONDS)
    if said is None:
        return None
    lines = (line.rpartition(",") for line in said.splitlines())
    return tuple(Gpu(name.strip(), release(text.strip()) or ()) for name, comma, text in lines if comma)
