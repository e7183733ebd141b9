"""A launch as a command line, a systemd unit, a compose file, and the nginx in front of several. Pure: text out."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence

from modelvault.fit.launch import Launch

FORMS = ("command", "systemd", "compose")
_PROXY_PORT = 8088
_IN_CONTAINER = {"llama-server": "/app/llama-server"}
"""Where a program lies in its project's image, if not on the path."""


def render(launches: Sequence[Launch], form: str, programs: Mapping[str, str], user: str | None) -> dict[str, str]:
    """Give texts by file name; ``programs`` are absolute paths by program, for a unit, and ``user`` is whom it runs as."""
    if form == "command":
        texts = {f"{launch.title}.sh": _command(launch) for launch in launches}
    elif form == "systemd":
        texts = {f"{launch.title}.service": _unit(launch, programs, user) for launch in launches}
    else:
        texts = {"compose.yaml": _compose(launches)}
    if len(launches) > 1:
        texts["nginx.conf"] = _nginx(launches)
    return texts


def _environment(launch: Launch) -> dict[str, str]:
    cards = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, launch.gpus))} if launch.gpus else {}
    return {**launch.environment, **cards}


def _command(launch: Launch) -> str:
    lines = ["#!/bin/sh"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in _environment(launch).items()]
    words = [shlex.quote(word) for word in launch.program]
    lines.append("exec " + " \\\n    ".join(_grouped(words)))
    if launch.then:
        lines.append(f"# then: {launch.then}")
    return "\n".join(lines) + "\n"


def _grouped(words: Sequence[str]) -> Iterator[str]:
    """Put each flag with its value on a line."""
    line: list[str] = []
    for word in words:
        if line and word.startswith("-"):
            yield " ".join(line)
            line = []
        line.append(word)
    yield " ".join(line)


def _quoted(text: str) -> str:
    """Quote for systemd: backslashes, quotes, and the signs that it replaces."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _unit(launch: Launch, programs: Mapping[str, str], user: str | None) -> str:
    program = [programs.get(launch.program[0], f"/usr/local/bin/{launch.program[0]}"), *launch.program[1:]]
    words = " \\\n    ".join(_grouped([_in_unit(word) for word in program]))
    environment = [f"Environment={_quoted(f'{name}={value}')}" for name, value in _environment(launch).items()]
    return "\n".join(
        [
            "[Unit]",
            f"Description={launch.title}".replace("%", "%%"),
            "After=network.target",
            "",
            "[Service]",
            *([f"User={user}"] if user else []),
            *environment,
            f"ExecStart={words}",
            "Restart=on-failure",
            "RestartSec=5",
            "",
            "[Install]",
            "WantedBy=multi-user.target",
            "",
        ]
    )


def _in_unit(word: str) -> str:
    plain = all(character.isalnum() or character in "-_./:=,+@" for character in word)
    # In ExecStart a dollar sign would be a variable.
    return word if plain else _quoted(word).replace("$", "$$")


def _compose(launches: Sequence[Launch]) -> str:
    services = {launch.title: _service(launch) for launch in launches}
    return "\n".join(_yaml({"services": services}, 0)) + "\n"


def _service(launch: Launch) -> dict[str, object]:
    def seen(text: str) -> str:
        # Compose would take a dollar sign for a variable.
        return text.replace(launch.directory, launch.inside).replace("$", "$$")

    words = [seen(word) for word in launch.program]
    listening = ["0.0.0.0" if word == "127.0.0.1" else word for word in words]  # noqa: S104 (inside the container)
    environment = {name: seen(value).replace("127.0.0.1", "0.0.0.0") for name, value in launch.environment.items()}  # noqa: S104
    devices: dict[str, object] = {"driver": "nvidia", "capabilities": ["gpu"]}
    devices |= {"device_ids": list(map(str, launch.gpus))} if launch.gpus else {"count": "all"}
    return {
        "image": launch.image,
        **({} if launch.starts else {"entrypoint": [_IN_CONTAINER.get(listening[0], listening[0])]}),
        "command": listening[1:],
        **({"environment": environment} if environment else {}),
        "volumes": [f"{launch.directory}:{launch.inside}:ro"],
        "ports": [f"127.0.0.1:{launch.port}:{launch.port}"],
        "ipc": "host",
        "restart": "unless-stopped",
        **({"deploy": {"resources": {"reservations": {"devices": [devices]}}}} if launch.on_cards else {}),
    }


def _yaml(value: object, depth: int) -> Iterator[str]:
    """Write YAML with JSON's scalars, which are YAML's too."""
    space = "  " * depth
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list):
                yield f"{space}{key}:"
                yield from _yaml(item, depth + 1)
            else:
                yield f"{space}{key}: {json.dumps(item)}"
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                first, *rest = _yaml(item, depth + 1)
                yield f"{space}- {first.lstrip()}"
                yield from rest
            else:
                yield f"{space}- {json.dumps(item)}"


def _nginx(launches: Sequence[Launch]) -> str:
    name = launches[0].title.rpartition("-")[0].replace(".", "_")
    servers = "\n".join(f"    server 127.0.0.1:{launch.port};" for launch in launches)
    return f"""upstream {name} {{
    least_conn;
{servers}
}}

server {{
    listen 127.0.0.1:{_PROXY_PORT};
    location / {{
        proxy_pass http://{name};
        proxy_buffering off;
        proxy_read_timeout 600s;
    }}
}}
"""
