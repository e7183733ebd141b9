"""Engines as servers: where each listens by itself, which API it speaks, by which names it may know an install, and how it is started.

Ports are those of each program's own default (engines' releases as in ``docs/how-to/engines.md``).
"""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Protocol

from modelvault.engines.base import InstallRecord, Owner, Surroundings
from modelvault.engines.completion import Completion
from modelvault.engines.gguf_parts import served_gguf, served_projector
from modelvault.engines.http_client import Server
from modelvault.engines.ollama_client import OllamaClient, own_address
from modelvault.engines.openai_client import OpenAiClient
from modelvault.engines.processes import EngineMissing, Launch, running
from modelvault.errors import EngineRefused, UsageProblem

_LOOPBACK = "127.0.0.1"
_CONTEXT = "512"  # tokens; enough for a few, and little memory beside the model's own
_LOOK_SECONDS = 5.0  # for a word of a server that is starting


class Client(Protocol):
    """A server that can be asked what it has, and for a few tokens. All methods raise ``EngineRefused``."""

    def listed(self) -> Mapping[str, str | None]:
        """Map the names of the server's models to the digests of their manifests, where it tells them."""

    def complete(self, model: str, prompt: str, tokens: int) -> Completion:
        """Have a prompt completed."""


@dataclass(frozen=True, slots=True)
class _Ollama:
    client: OllamaClient

    def listed(self) -> Mapping[str, str | None]:
        return dict(self.client.models())

    def complete(self, model: str, prompt: str, tokens: int) -> Completion:
        return self.client.generate(model, prompt, tokens)


@dataclass(frozen=True, slots=True)
class _OpenAi:
    client: OpenAiClient

    def listed(self) -> Mapping[str, str | None]:
        return dict.fromkeys(self.client.models())

    def complete(self, model: str, prompt: str, tokens: int) -> Completion:
        return self.client.complete(model, prompt, tokens)


@dataclass(frozen=True, slots=True)
class Kind:
    """How an engine serves: its ``title``, its usual ``port``, and the program that can be started for an install of it, if any."""

    title: str
    port: int | None = None
    program: str | None = None


_KINDS: Mapping[str, Kind] = {
    "ollama": Kind("Ollama", program="ollama"),
    "ollama-api": Kind("Ollama"),
    "vllm": Kind("vLLM", 8000),
    "llamacpp": Kind("llama.cpp", 8080, "llama-server"),
    "tgi": Kind("TGI", 3000),
    "sglang": Kind("SGLang", 30000),
    "textgen": Kind("text-generation-webui", 5000),
    "tabbyapi": Kind("TabbyAPI", 5000),
    "folder": Kind("the server", program="llama-server"),
}


def kind_of(record: InstallRecord) -> Kind:
    """Say how the engine of an install serves; one without a server of its own (ExLlama) may be behind any."""
    return _KINDS.get(record.engine, Kind("the server"))


def usual_address(record: InstallRecord) -> str | None:
    """Give the address at which the engine of an install is to be sought where nobody named one; only ever this machine's, or the recorded."""
    if record.remote:
        return record.directory
    if record.engine == "ollama":
        return own_address()
    port = kind_of(record).port
    return f"http://{_LOOPBACK}:{port}" if port else None


def client_at(record: InstallRecord, address: str, *, seconds: float) -> Client:
    """Speak with the server of an install. A key for it, if it wants one, is in ``MODELVAULT_API_KEY``."""
    if record.engine in {"ollama", "ollama-api"}:
        return _Ollama(OllamaClient(address, seconds=seconds))
    key = os.environ.get("MODELVAULT_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return _OpenAi(OpenAiClient(Server(kind_of(record).title, address, seconds=seconds, headers=headers)))


def names_of(record: InstallRecord) -> set[str]:
    """Collect the names by which a server may list an install: ours, the vault's, or a path to it, as of programs started by path."""
    names = {record.installed_name, record.model}
    for file in record.files:
        path = PurePosixPath(file.path)
        for part in (path, *path.parents[:-1]):
            names |= {str(part), str(PurePosixPath(record.directory) / part)}
    return names


# -- starting ----------------------------------------------------------------------------------------------------------


def program_of(record: InstallRecord) -> str:
    """Name the program that serves an install. Raises ``UsageProblem`` where none is started from here."""
    kind = kind_of(record)
    if kind.program is None or record.remote:
        raise UsageProblem(
            f"modelvault starts Ollama and llama.cpp, and not {kind.title}",
            hint="start it yourself, and say where it listens: --url http://127.0.0.1:PORT",
        )
    return kind.program


@contextlib.contextmanager
def started(record: InstallRecord, program: str | None, *, seconds: float) -> Iterator[str]:
    """Start the engine of an install on a free port of this machine, as the user whom the install belongs to; give the address.

    ``program`` is its file, else it is sought on the PATH. Raises ``UsageProblem`` for an engine that cannot be started here,
    ``EngineMissing`` without the program, ``EngineRefused`` if it does not start.
    """
    name = program_of(record)
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        address = f"http://{_LOOPBACK}:{probe.getsockname()[1]}"
    make = _ollama if name == "ollama" else _llama_server
    with running(make(record, _found(name, program), address), seconds=seconds):
        yield address


def _found(name: str, program: str | None) -> str:
    found = Surroundings().program(program or name)
    if found is None:
        raise EngineMissing(
            f"there is no program {program or name} that could be started",
            hint="name it: --program PATH; or start the server yourself, and leave out --start",
        )
    return str(Path(found).absolute())


def _ollama(record: InstallRecord, program: str, address: str) -> Launch:
    client = OllamaClient(address, seconds=_LOOK_SECONDS)

    def ready() -> bool:
        return bool(client.version())

    variables = {
        "OLLAMA_MODELS": record.directory,
        "OLLAMA_HOST": address.removeprefix("http://"),
        # Another server may be at work in the same directory: its downloads under way are not ours to prune.
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_NO_CLOUD": "1",
    }
    return Launch("Ollama", (program, "serve"), ready, variables, _user_for(record))


def _llama_server(record: InstallRecord, program: str, address: str) -> Launch:
    server = Server("llama.cpp", address, seconds=_LOOK_SECONDS)

    def ready() -> bool:
        return server.status("/health") == HTTPStatus.OK

    paths = [file.path for file in record.files]
    weights, projector = served_gguf(paths), served_projector(paths)
    if weights is None:
        raise UsageProblem(
            f"{record.installed_name} has no GGUF file, and llama.cpp loads nothing else",
            hint="start its server yourself, and say where it listens: --url http://127.0.0.1:PORT",
        )
    command = [program, "--offline", "--host", _LOOPBACK, "--port", address.rpartition(":")[2]]
    command += ["--model", str(Path(record.directory, weights)), "--alias", record.installed_name]
    command += ["--mmproj", str(Path(record.directory, projector))] if projector else []
    return Launch("llama.cpp", (*command, "--ctx-size", _CONTEXT), ready, user=_user_for(record))


def _user_for(record: InstallRecord) -> Owner | None:
    """Give the owner of an install's directory, where root would start the engine: root need not read what others may have put there."""
    if os.geteuid() != 0:
        return None
    try:
        status = Path(record.directory).stat()
    except OSError as error:
        raise EngineRefused(
            f"the directory of the install cannot be looked into: {record.directory}: {(error.strerror or str(error)).lower()}",
            hint="`modelvault installs` shows what is still there",
        ) from error
    return Owner(status.st_uid, status.st_gid) if status.st_uid else None
