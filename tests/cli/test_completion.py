"""What the shell offers: asked for as a shell asks, by the environment of the console script."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from machines import Machine

SCRIPT = Path(sys.executable).with_name("modelvault")


def offered(machine: Machine, typed: str) -> list[str]:
    """Ask as bash does for what may follow; the last word is the incomplete one."""
    words = typed.split(" ")
    asked = {"_MODELVAULT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    shown = subprocess.run(
        [SCRIPT], capture_output=True, text=True, check=True, env=machine.environment() | asked, cwd=machine.root
    )
    assert shown.stderr == ""
    return shown.stdout.split()


@pytest.fixture
def pc(machine: Callable[..., Machine], tiny_gguf: Path) -> Machine:
    made = machine("pc")
    for name in ("llama-tiny", "org/other"):
        made.run("add", tiny_gguf, "--name", name)
    return made


def test_models_of_the_vault(pc: Machine) -> None:
    """Breaks if a long name has to be typed, or copied from `list`."""
    for command in ("show", "rm", "verify", "bundle", "install", "uninstall", "smoke"):
        assert offered(pc, f"modelvault {command} ") == ["llama-tiny", "org/other"], command
        assert offered(pc, f"modelvault {command} or") == ["org/other"], command


def test_names_engines_and_links(pc: Machine) -> None:
    """Breaks if the words that a command knows are not offered."""
    assert {"qwen2.5-7b", "qwen2.5-7b-awq"} <= set(offered(pc, "modelvault pull qwen"))
    names = ["exllama", "folder", "llamacpp", "ollama", "ollama-api", "sglang", "tabbyapi", "textgen", "tgi", "vllm"]
    for command in (
        "import --engine",
        "install llama-tiny --engine",
        "uninstall llama-tiny --engine",
        "doctor --engine",
    ):
        assert offered(pc, f"modelvault {command} ") == names, command
    assert offered(pc, "modelvault import --link ") == ["auto", "copy", "hard", "reflink"]
    assert offered(pc, "modelvault import --link re") == ["reflink"]


def test_trouble_offers_nothing(machine: Callable[..., Machine], pc: Machine) -> None:
    """Breaks if pressing Tab beside a broken vault, or none, prints a traceback into the line that is being typed."""
    assert offered(machine("other"), "modelvault show ") == []
    (pc.vault / "index.json").write_text("{")
    assert offered(pc, "modelvault show ") == []
