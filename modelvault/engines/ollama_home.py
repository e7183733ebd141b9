"""Where an Ollama on this machine keeps its models, found without asking a server.

In this order: ``OLLAMA_MODELS``, the systemd unit (from systemd itself; where that does not run, from the unit's files), the home of the
service's user, ours, and that of the user who called sudo.
"""

import contextlib
import pwd
import shlex
from collections.abc import Iterator
from pathlib import Path

from modelvault.engines.base import Surroundings
from modelvault.engines.processes import said_by

_UNIT = "ollama.service"
_SYSTEMCTL_SECONDS = 5.0
_BELOW_HOME = ".ollama/models"
# systemd.unit(5), the strongest first.
_UNIT_PATHS = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system")
_MAX_FILE = 1 << 20  # bytes

Settings = list[tuple[str, str]]
"""Assignments of a unit's ``[Service]`` section, in their order."""


def find_models(around: Surroundings) -> Path | None:
    """Find the models directory of the Ollama on this machine, if there is one."""
    for look in (_from_environment, _from_systemd, _from_unit_files, _from_homes):
        if directory := look(around):
            return directory
    return default_models(around) if around.program("ollama") else None


def default_models(around: Surroundings) -> Path:
    """Ollama's own default: below the home of whoever starts the server."""
    return around.home / _BELOW_HOME


def _from_environment(around: Surroundings) -> Path | None:
    return _models_path(around.environment.get("OLLAMA_MODELS", ""))


def _models_path(value: str) -> Path | None:
    """Read a value as Ollama does (``envconfig.Var``): without blanks and quotes around it, and with a ``~`` that means nothing."""
    value = value.strip().strip("\"'")
    return Path(value).absolute() if value else None


def _from_homes(around: Surroundings) -> Path | None:
    homes = [around.root / "usr/share/ollama", around.home]
    if caller := around.environment.get("SUDO_USER"):
        with contextlib.suppress(KeyError):
            homes.append(Path(pwd.getpwnam(caller).pw_dir))
    return next((home / _BELOW_HOME for home in homes if _is_directory(home / _BELOW_HOME)), None)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError:  # another user's home: not ours to find
        return False


# -- the unit ----------------------------------------------------------------------------------------------------------


def _from_systemd(around: Surroundings) -> Path | None:
    systemctl = around.program("systemctl")
    if systemctl is None:
        return None
    command = [systemctl, "show", _UNIT, "--property=LoadState,User,Environment,EnvironmentFiles"]
    shown = said_by(command, around.environment, seconds=_SYSTEMCTL_SECONDS)
    if shown is None:
        return None  # without systemd as the init system the command exists but fails
    settings = [(key, value) for key, _, value in (line.partition("=") for line in shown.splitlines())]
    if ("LoadState", "loaded") not in settings:
        return None
    # Shown as: EnvironmentFiles=/etc/default/ollama (ignore_errors=yes)
    named = [("EnvironmentFile", value.rpartition(" (")[0]) for key, value in settings if key == "EnvironmentFiles"]
    return _models_of(around, [*settings, *named])


def _from_unit_files(around: Surroundings) -> Path | None:
    directories = [around.root / path for path in _UNIT_PATHS]
    unit = next((path for directory in directories if (path := directory / _UNIT).is_file()), None)
    if unit is None:
        return None
    # Of files with the same name the strongest directory's counts; all are read in the order of their names.
    drop_ins = {path.name: path for directory in reversed(directories) for path in directory.glob(f"{_UNIT}.d/*.conf")}
    files = [unit, *(drop_ins[name] for name in sorted(drop_ins))]
    return _models_of(around, [setting for file in files for setting in _service_settings(file)])


def _service_settings(file: Path) -> Iterator[tuple[str, str]]:
    """Read the ``[Service]`` section of a unit's file; an empty assignment comes, too, since it takes back those before it."""
    section = ""
    for line in _text_of(file).replace("\\\n", " ").splitlines():
        text = line.strip()
        if text.startswith("["):
            section = text
        elif section == "[Service]" and "=" in text and text[0] not in "#;":
            key, _, value = text.partition("=")
            yield key.strip(), value.strip()


def _models_of(around: Surroundings, settings: Settings) -> Path | None:
    """Say where a unit's server keeps its models: its variables decide, else its user's home."""
    user, variables, files = "root", dict[str, str](), list[str]()
    for key, value in settings:
        if key == "User" and value:
            user = value
        elif key == "Environment":
            variables = variables | _assignments(value) if value else {}
        elif key == "EnvironmentFile":
            files = [*files, value.removeprefix("-")] if value else []
    for name in files:
        # What such a file says beats Environment=.
        for line in _text_of(around.root / name.lstrip("/")).splitlines():
            if not line.lstrip().startswith(("#", ";")):
                variables |= _assignments(line)
    if models := _models_path(variables.get("OLLAMA_MODELS", "")):
        return models
    with contextlib.suppress(KeyError):
        return Path(variables.get("HOME") or pwd.getpwnam(user).pw_dir) / _BELOW_HOME
    return None


def _assignments(text: str) -> dict[str, str]:
    """Split ``"A=b c" D=e`` as systemd does; what cannot be split, or holds one of systemd's specifiers, is left out."""
    try:
        words = shlex.split(text)
    except ValueError:
        return {}
    return {
        name: value for name, equals, value in (word.partition("=") for word in words) if equals and "%" not in value
    }


def _text_of(file: Path) -> str:
    """Read a small file of the system; one that is not there or not for us says nothing."""
    try:
        with file.open(encoding="utf-8", errors="replace") as reader:
            return reader.read(_MAX_FILE)
    except OSError:
        return ""
