"""Write the parts of ``docs/reference`` that follow from the code: ``python scripts/generate_docs.py [--check]``.

``--check`` changes nothing and fails if a page is out of date; a test runs it.
"""

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import result_keys

import modelvault
from modelvault import errors

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"
NOTE = "<!-- Written by scripts/generate_docs.py: change the code, then run it. -->\n"


def help_of(*command: str) -> str:
    """Ask the installed program for the help of a command, laid out for 80 columns."""
    environment = {**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1"}
    shown = subprocess.run(
        [sys.executable, "-m", "modelvault", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return shown.stdout.replace("python -m modelvault", "modelvault").rstrip()


def commands(help_text: str) -> list[str]:
    """Read the names of the subcommands out of a help text."""
    _, _, block = help_text.partition("Commands:\n")
    return [line.split()[0] for line in block.splitlines() if line.startswith("  ") and not line.startswith("   ")]


def command_reference() -> str:
    """The help of every command, as one page."""
    top = help_of()
    parts = [
        NOTE,
        "# Commands\n",
        "Every command takes `--json` and ends with one of the [exit codes](exit-codes.md).\n",
    ]
    parts.append(f"```text\n{top}\n```\n")
    for name in commands(top):
        text = help_of(name)
        below = commands(text)
        if not below:
            parts.append(f"## modelvault {name}\n\n```text\n{text}\n```\n")
        parts += [f"## modelvault {name} {inner}\n\n```text\n{help_of(name, inner)}\n```\n" for inner in below]
    return "\n".join(parts)


def _classes(base: type[errors.ModelvaultError]) -> list[type[errors.ModelvaultError]]:
    found = [base]
    for inner in base.__subclasses__():
        found += _classes(inner)
    return found


def exit_codes() -> str:
    """The tables of exit codes and of ``error.code``, from the classes of all modules."""
    for module in pkgutil.walk_packages(modelvault.__path__, "modelvault."):
        if not module.name.startswith(("modelvault.__main__", "modelvault.registry.migrations")):
            importlib.import_module(module.name)
    kinds = sorted(_classes(errors.ModelvaultError), key=lambda kind: (kind.exit_code, kind.slug))
    meanings = {0: "done"} | {kind.exit_code: kind.meaning for kind in kinds}
    lines = [NOTE, "# Exit codes\n", "Warnings never change the exit code.\n", "| code | meaning |", "| --- | --- |"]
    lines += [f"| {code} | {meaning} |" for code, meaning in meanings.items()]
    lines += [
        "\nIn `--json`, `error.code` says more:\n",
        "| `error.code` | exit code | what happened |",
        "| --- | --- | --- |",
    ]
    lines += [f"| `{kind.slug}` | {kind.exit_code} | {_first_sentence(kind)} |" for kind in kinds]
    return "\n".join(lines) + "\n"


def _first_sentence(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].replace("``", "`").partition(". ")[0].rstrip(".")


def main() -> int:
    """Write the pages, or compare them."""
    pages = {
        "cli.md": command_reference(),
        "exit-codes.md": exit_codes(),
        "results.md": f"{NOTE}\n{result_keys.page()}",
    }
    stale = [name for name, text in pages.items() if not _is(REFERENCE / name, text)]
    if "--check" in sys.argv:
        if stale:
            print(f"out of date: {', '.join(stale)}; run python scripts/generate_docs.py", file=sys.stderr)
        return bool(stale)
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (REFERENCE / name).write_text(pages[name], encoding="utf-8")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
