"""Configuration, resolved once and passed in: flag over environment variable over ``config.toml`` over default."""

import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from modelvault.errors import UsageProblem

_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?)\s*([kmgtp]?)(i?)b?", re.IGNORECASE)
_TOO_LARGE = 1 << 63  # no file has as many bytes
_POWER = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}

VOLUME_SIZE = (4 << 30) - (64 << 20)
"""Default uncompressed bytes of a volume: 4 GiB less room for expansion, so that FAT32 takes the file."""

MAX_CONNECTIONS = 64


def parse_size(text: str) -> int:
    """Read ``20M``, ``4GiB``, ``1.5 GB`` or plain bytes. ``K M G T`` are powers of 1000; with ``i``, of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageProblem(f"not a size: {text[:40]!r}", hint="write 500M, 20GB or 4GiB")
    number, prefix, binary = match.groups()
    size = int(Fraction(number) * (1024 if binary else 1000) ** _POWER[prefix.lower()])
    if not 0 < size < _TOO_LARGE:
        raise UsageProblem(f"not a size: {text[:40]!r}", hint="sizes are larger than zero and less than 8 EiB")
    return size


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set. Each field is a key of ``config.toml`` and an environment variable ``MODELVAULT_<FIELD>``.

    ``endpoint`` are hubs in the order in which they are asked; none: what the Hub's client thinks.
    """

    endpoint: tuple[str, ...] = ()
    ollama_registry: str | None = None
    connections: int = 8
    limit_rate: int | None = None
    volume_size: int = VOLUME_SIZE
    label: str = "models"
    site: str | None = None
    catalog: str | None = None
    lock_wait: float = 10.0

    def override(self, **values: Any) -> "Config":
        """Give a copy in which the values that are not ``None`` (the flags that were typed) win."""
        return replace(self, **{key: value for key, value in values.items() if value is not None})


def _connections(value: Any) -> int:
    number = int(value)
    if not 1 <= number <= MAX_CONNECTIONS:
        raise ValueError(f"not from 1 to {MAX_CONNECTIONS}")
    return number


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ValueError("not a number of seconds")
    return seconds


def _addresses(value: Any) -> tuple[str, ...]:
    found = value.replace(",", " ").split() if isinstance(value, str) else value
    if not found or not all(isinstance(address, str) and address for address in found):
        raise ValueError("not a list of addresses")
    return tuple(found)


def _size(value: Any) -> int:
    return parse_size(str(value))


@dataclass(frozen=True, slots=True)
class _Setting:
    """How a key is read, of which types it may be in a file (a variable is always text), and what is expected."""

    read: Callable[[Any], Any]
    types: tuple[type, ...]
    expected: str


_SETTINGS = {
    "endpoint": _Setting(
        _addresses, (str, list), 'an address in quotes, as "https://huggingface.co", or several in brackets'
    ),
    "ollama_registry": _Setting(str, (str,), 'an address in quotes, as "https://registry.ollama.ai"'),
    "connections": _Setting(_connections, (int,), f"a whole number from 1 to {MAX_CONNECTIONS}"),
    "limit_rate": _Setting(_size, (str, int), "bytes per second, as 20M"),
    "volume_size": _Setting(_size, (str, int), "a size, as 4GiB"),
    "label": _Setting(str, (str,), 'a word in quotes, as "models"'),
    "site": _Setting(str, (str,), 'a word in quotes, as "lab-7"'),
    "catalog": _Setting(str, (str,), 'a directory in quotes, as "/srv/catalog"'),
    "lock_wait": _Setting(_seconds, (int, float), "seconds, as 10"),
}


def load_config(home: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read ``<home>/config.toml`` and the environment. Raises ``UsageProblem`` that names the file, the key and the value."""
    values: dict[str, Any] = {}
    file = home / "config.toml"
    if file.is_file():
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageProblem(f"{file}: {error}", hint="correct the file or remove it") from error
        for key, value in table.items():
            if key not in _SETTINGS:
                raise UsageProblem(f"{file}: unknown key {key!r}", hint=f"known keys: {', '.join(sorted(_SETTINGS))}")
            if type(value) not in _SETTINGS[key].types:
                raise _invalid(str(file), key, value)
        values |= {key: (table[key], str(file)) for key in table}
    for key in _SETTINGS:
        variable = f"MODELVAULT_{key.upper()}"
        if environment.get(variable):  # empty counts as unset
            values[key] = (environment[variable], variable)
    read: dict[str, Any] = {}
    for key, (value, where) in values.items():
        try:
            read[key] = _SETTINGS[key].read(value)
        except (ValueError, TypeError, OverflowError, UsageProblem) as error:
            raise _invalid(where, key, value) from error
    return Config(**read)


def _invalid(where: str, key: str, value: object) -> UsageProblem:
    return UsageProblem(f"{where}: not a valid {key}: {value!r}", hint=f"write {_SETTINGS[key].expected}")


def default_home(environment: Mapping[str, str] = os.environ) -> Path:
    """Decide where the vault lies: ``MODELVAULT_HOME``, else ``/var/lib/modelvault`` for root, else the user's data directory."""
    if chosen := environment.get("MODELVAULT_HOME"):
        return Path(chosen).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/modelvault")
    # Imported here: `modelvault --help` must not pay for it, and MODELVAULT_HOME makes it unnecessary.
    from platformdirs import user_data_path  # noqa: PLC0415

    return user_data_path("modelvault")


def config_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Find the directory of the user's own configuration: ``XDG_CONFIG_HOME``, else the platform's."""
    if chosen := environment.get("XDG_CONFIG_HOME"):  # honored on every platform
        return Path(chosen).expanduser().absolute() / "modelvault"
    from platformdirs import user_config_path  # noqa: PLC0415 (as above)

    return user_config_path("modelvault")


def sudo_hint(home: Path, environment: Mapping[str, str] = os.environ) -> str | None:
    """Point to the invoking user's vault where ``sudo`` has led to root's."""
    user = environment.get("SUDO_USER")
    if os.geteuid() != 0 or not user or environment.get("MODELVAULT_HOME"):
        return None
    return f"under sudo the vault is {home}; {user} has another one, which MODELVAULT_HOME would name"
