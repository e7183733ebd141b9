"""The docs tell the truth: generated pages are current, links lead somewhere, every command and file is mentioned."""

import re
import subprocess
import sys
from pathlib import Path

import generate_docs
import pytest

from modelvault.config import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_generated_pages_are_current() -> None:
    """Breaks if a command's help or an error class changed without its page."""
    checked = subprocess.run(
        [sys.executable, ROOT / "scripts" / "generate_docs.py", "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Breaks if a page points to one that was moved."""
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_every_page_is_reached_from_the_readme() -> None:
    """Breaks if a page is written that nobody can find."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[2:] if str(page.relative_to(ROOT)) not in readme] == []


def test_every_setting_is_documented() -> None:
    """Breaks if a key of config.toml exists that the reference does not name."""
    text = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
    for name in Config.__slots__:
        assert f"`{name}`" in text
        assert f"MODELVAULT_{name.upper()}" in text


def test_pages_that_the_code_names_exist() -> None:
    """Breaks if a comment or a message of the program points to a page that was moved or never written."""
    named = {
        (file.name, page)
        for folder in ("modelvault", "scripts", "tests")
        for file in (ROOT / folder).rglob("*.py")
        for page in re.findall(r"(?<![\w/])docs/[\w/.-]+\.md", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert [(file, page) for file, page in sorted(named) if not (ROOT / page).exists()] == []


def test_every_variable_is_documented() -> None:
    """Breaks if the program reads a variable of the environment that the reference does not name."""
    read = {
        name
        for file in (ROOT / "modelvault").rglob("*.py")
        for name in re.findall(
            r'"((?:MODELVAULT|HF|OLLAMA|XDG|SSL|REQUESTS|CURL|SUDO)_[A-Z_]+|NO_COLOR)"',
            file.read_text(encoding="utf-8"),
        )
    }
    text = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
    assert len(read) > 8
    assert [name for name in sorted(read) if f"`{name}" not in text] == []


def test_commands_in_the_docs_exist() -> None:
    """Breaks if a page tells people to type a command that is not there."""
    known = set(generate_docs.commands(generate_docs.help_of()))
    found = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = "\n".join(re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
        typed = re.findall(r"`modelvault ([a-z]+)", text) + re.findall(
            r"^(?:\$ )?modelvault ([a-z]+)", fenced, re.MULTILINE
        )
        assert set(typed) <= known, page
        found |= set(typed)
    assert len(found) > 10


def test_the_package_has_no_machine_in_it() -> None:
    """Breaks if a path of somebody's machine or a registry's address gets into the project."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    files = [
        name for name in listed if name.endswith((".py", ".md", ".toml", ".txt", ".sh")) and (ROOT / name).exists()
    ]
    assert "modelvault/__init__.py" in files
    for name in files:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert (
            not re.search(r"/work/|/root/(?!\.ollama)|index-url|files\.pythonhosted", text)
            or name == "tests/test_docs.py"
        ), name
