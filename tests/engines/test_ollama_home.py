"""Where the Ollama of a machine keeps its models. A wrong answer installs tens of gigabytes where no server looks."""

import os
import pwd
import shlex
from pathlib import Path

import pytest

from modelvault.engines import Surroundings, engines
from modelvault.engines.ollama_home import find_models


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    (tmp_path / "bin").mkdir()
    return Surroundings({"PATH": str(tmp_path / "bin")}, tmp_path / "home", tmp_path / "root")


def with_variables(around: Surroundings, **variables: str) -> Surroundings:
    return Surroundings({**around.environment, **variables}, around.home, around.root)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def systemctl(around: Surroundings, *lines: str) -> None:
    path = Path(around.environment["PATH"]) / "systemctl"
    write(path, "#!/bin/sh\nprintf '%s\\n' " + shlex.join(lines) + "\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("value", "path"), [("/data", "/data"), (' "/my data" ', "/my data"), ("~/x", f"{Path.cwd()}/~/x")]
)
def test_the_variable_is_read_as_ollama_reads_it(around: Surroundings, value: str, path: str) -> None:
    """A ``~`` that no shell has replaced means nothing to Ollama; quotes around the value are taken off."""
    assert find_models(with_variables(around, OLLAMA_MODELS=value)) == Path(path)


@pytest.mark.parametrize("value", ["", " ", '""'])
def test_an_empty_variable_is_none(around: Surroundings, value: str) -> None:
    """It must not become the current directory."""
    assert find_models(with_variables(around, OLLAMA_MODELS=value)) is None


def test_systemd_is_asked(around: Surroundings) -> None:
    """Drop-ins and files of variables are where admins put OLLAMA_MODELS, and ``Environment`` does not show the latter."""
    write(around.root / "etc/default/ollama", "# where\nOLLAMA_MODELS='/srv/from file'\nbroken'\n")
    shown = ["LoadState=loaded", "User=root", "Environment=OLLAMA_MODELS=/srv/unit OLLAMA_HOST=0.0.0.0"]
    systemctl(around, *shown)
    assert find_models(around) == Path("/srv/unit")
    systemctl(around, *shown, "EnvironmentFiles=/etc/default/ollama (ignore_errors=yes)")
    assert find_models(around) == Path("/srv/from file")
    systemctl(around, "LoadState=loaded", "User=root", "Environment=")
    assert find_models(around) == Path("/root/.ollama/models")


UNIT = """[Unit]
Description=Ollama Service
Environment=OLLAMA_MODELS=/not/this

[Service]
ExecStart=/usr/local/bin/ollama serve
User=root
Environment="PATH=/usr/bin" \\
  OLLAMA_KEEP_ALIVE=5m
"""


def test_the_units_files_are_read_where_systemd_does_not_run(around: Surroundings) -> None:
    """In a rescue system or an image that is being built nobody answers ``systemctl show``."""
    lower, upper = around.root / "usr/lib/systemd/system", around.root / "etc/systemd/system"
    write(lower / "ollama.service", UNIT)
    assert find_models(around) == Path("/root/.ollama/models")
    write(upper / "ollama.service", UNIT.replace("User=root", "User=root\nEnvironment=HOME=/srv/ollama"))
    assert find_models(around) == Path("/srv/ollama/.ollama/models")
    write(upper / "ollama.service.d/override.conf", '[Service]\nEnvironment="OLLAMA_MODELS=/data/my models"\n')
    assert find_models(around) == Path("/data/my models")
    write(lower / "ollama.service.d/override.conf", "[Service]\nEnvironment=OLLAMA_MODELS=/weaker\n")
    assert find_models(around) == Path("/data/my models")
    write(lower / "ollama.service.d/zz.conf", "[Service]\n; a comment\nEnvironment=OLLAMA_MODELS=/later\n")
    assert find_models(around) == Path("/later")
    write(upper / "ollama.service.d/zzz.conf", "[Service]\nEnvironment=\nEnvironmentFile=-/etc/ollama.env\n")
    assert find_models(around) == Path("/root/.ollama/models")
    write(around.root / "etc/ollama.env", "OLLAMA_MODELS=/from/file\n")
    assert find_models(around) == Path("/from/file")
    systemctl(around, "LoadState=loaded", "User=root", "Environment=OLLAMA_MODELS=/asked")
    assert find_models(around) == Path("/asked")


@pytest.mark.parametrize("value", ["OLLAMA_MODELS=%h/models", "'OLLAMA_MODELS=/open", "OLLAMA_MODELS"])
def test_what_cannot_be_read_in_a_unit_is_passed_over(around: Surroundings, value: str) -> None:
    """Half an understanding of a unit must not end in a directory called ``%h``."""
    write(around.root / "etc/systemd/system/ollama.service", f"[Service]\nUser=root\nEnvironment={value}\n")
    assert find_models(around) == Path("/root/.ollama/models")


def test_a_unit_of_an_unknown_user(around: Surroundings) -> None:
    """The usual homes decide then."""
    write(around.root / "etc/systemd/system/ollama.service", "[Service]\nUser=nobody-here\n")
    assert find_models(around) is None
    (around.home / ".ollama/models").mkdir(parents=True)
    assert find_models(around) == around.home / ".ollama/models"


def test_under_sudo_the_callers_home_counts(around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs Ollama as himself and imports with sudo would else fill root's home, which his server never sees."""
    entry = pwd.getpwuid(os.getuid())
    caller = around.root / "home/someone"
    (caller / ".ollama/models").mkdir(parents=True)
    changed = pwd.struct_passwd((*entry[:5], str(caller), entry.pw_shell))
    monkeypatch.setattr(pwd, "getpwnam", lambda name: {"someone": changed}[name])
    sudo = with_variables(around, SUDO_USER="someone")
    assert find_models(sudo) == caller / ".ollama/models"
    assert find_models(with_variables(around, SUDO_USER="stranger")) is None
    (around.home / ".ollama/models").mkdir(parents=True)
    assert find_models(sudo) == around.home / ".ollama/models"


def test_the_adapter_says_the_same(around: Surroundings) -> None:
    """What is found is what an install without a directory fills."""
    named = with_variables(around, OLLAMA_MODELS="/data")
    target = engines(named)["ollama"].detect()
    assert target is not None
    assert target.directory == find_models(named)
