"""What an Ollama on this machine, or its store, can suffer from. Sources: Ollama 0.24.0 to 0.34 (server/routes.go, server/images.go, manifest/)."""

import json
import pwd
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from modelvault.engines import ollama_store as store
from modelvault.engines.base import Owner, Surroundings
from modelvault.engines.http_client import ServerUnreachable
from modelvault.engines.ollama_client import OllamaClient, own_address
from modelvault.engines.processes import said_by
from modelvault.engines.programs import find_program, release
from modelvault.errors import EngineRefused, ModelvaultError
from modelvault.formats.ollama import existing_names, tags
from modelvault.results.engines import Finding, Level

_SECONDS = 5.0
_SAFE = (0, 17, 1)
_BLOB = re.compile(r"sha256-[0-9a-f]{64}")
_PASSING = re.compile(r"sha256-[0-9a-f]{64}-partial.*|\.modelvault-[0-9a-f]+\.tmp")
"""Names of what is under way: Ollama's downloads, our installs."""
_MANY = 3  # are named, the rest is counted


class OllamaHere:
    """The Ollama of this machine: its server is asked once, if there is one, and only on loopback."""

    def __init__(self, around: Surroundings) -> None:
        """Remember where to look."""
        self._around = around
        self._address = own_address(around.environment)

    @cached_property
    def _server(self) -> str | EngineRefused | None:
        """The running server's release; or why it has none to tell; ``None`` where nothing listens."""
        if self._address is None:
            return None
        try:
            return OllamaClient(self._address, seconds=_SECONDS).version()
        except ServerUnreachable:
            return None
        except EngineRefused as error:
            return error

    @cached_property
    def version(self) -> str | None:
        """The release of the server, else of the program."""
        if isinstance(self._server, str):
            return self._server
        program = find_program("ollama", self._around)
        return program.version if program else None

    @cached_property
    def service_user(self) -> Owner | None:
        """As whom the service runs, as systemd says; ``None`` without systemd or the service."""
        systemctl = self._around.program("systemctl")
        if systemctl is None:
            return None
        command = [systemctl, "show", "ollama", "--property=LoadState,User"]
        said = said_by(command, self._around.environment, seconds=_SECONDS) or ""
        table = dict(line.partition("=")[::2] for line in said.splitlines())
        if table.get("LoadState") != "loaded":
            return None
        try:
            entry = pwd.getpwnam(table.get("User") or "root")
        except KeyError:
            return None
        return Owner(entry.pw_uid, entry.pw_gid)

    def releases(self) -> Iterator[Finding]:
        """Say which releases there are, and whether one of them is dangerous."""
        if isinstance(self._server, EngineRefused):
            yield Finding("ollama", Level.NOTE, self._server.message, "does another program listen there?")
        elif self._server is not None:
            yield _release(f"the server at {self._address}", self._server)
        if program := find_program("ollama", self._around):
            yield _release(program.path, program.version)
        host = self._around.environment.get("OLLAMA_HOST")
        if host and self._address is None:
            what = f"OLLAMA_HOST is {host}: a server that is not on this machine is not asked"
            yield Finding("ollama", Level.NOTE, what, "install into it with --engine ollama=http://HOST:11434")

    def in_store(self, subject: str, directory: Path) -> Iterator[Finding]:
        """Look at a store, and whether the server reads another one. Raises ``OSError``."""
        yield from _layout(subject, directory)
        yield from _models(subject, directory)
        if isinstance(self._server, str) and self._address is not None:
            yield from _listed(subject, directory, OllamaClient(self._address, seconds=_SECONDS))


def _release(where: str, version: str | None) -> Finding:
    numbers = release(version)
    if numbers is None:
        what = f"{where} does not tell a release that could be judged: {version or 'none at all'}"
        return Finding("ollama", Level.NOTE, what, "have 0.17.1 or newer: older ones have CVE-2026-7482")
    if numbers < _SAFE:
        return Finding(
            "ollama",
            Level.DANGER,
            f"{where} is Ollama {version}: before 0.17.1 it trusts the offsets that a GGUF file gives (CVE-2026-7482)",
            "update it; until then install only models whose publisher you trust",
        )
    return Finding("ollama", Level.OK, f"{where} is Ollama {version}")


def _layout(subject: str, directory: Path) -> Iterator[Finding]:
    if store.has_second_layout(directory):
        yield Finding(
            subject,
            Level.DANGER,
            "there is a directory manifests-v2: this Ollama may list its models from there, where modelvault writes none",
            "look after an install whether `ollama list` has the model; if not, install through the API: "
            "--engine ollama=http://127.0.0.1:11434",
        )
    if dangling := store.dangling_tags(directory):
        what = f"{_named(dangling)} leads nowhere: Ollama then lists no model at all"
        yield Finding(subject, Level.DANGER, what, "remove it", blocks=True)
    blobs = directory / "blobs"
    names = sorted(path.name for path in blobs.iterdir()) if blobs.is_dir() else []
    strange = [blobs / name for name in names if not (_BLOB.fullmatch(name) or _PASSING.fullmatch(name))]
    if strange:
        yield Finding(
            subject,
            Level.DANGER,
            f"{_named(strange)} has not the name of a blob: Ollama removes it when it starts, unless it is younger than an hour",
            "move it elsewhere if anybody needs it",
        )


def _models(subject: str, directory: Path) -> Iterator[Finding]:
    """Look whether every model's blobs are there."""
    unreadable, lacking, whole = [], [], 0
    for path in tags(directory):
        if path.is_dir() or not path.exists():
            continue
        try:
            manifest = json.loads(store.read_manifest(path))
            digests = [layer["digest"] for layer in (manifest["config"], *manifest["layers"])]
            missing = [digest for digest in digests if not (directory / "blobs" / digest.replace(":", "-")).exists()]
        except (ModelvaultError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            unreadable.append(path)
            continue
        lacking += [path] if missing else []
        whole += not missing
    if whole:
        yield Finding(subject, Level.OK, f"models whose blobs are all there: {whole}")
    if lacking:
        yield Finding(
            subject,
            Level.DANGER,
            f"{_named(lacking)} names blobs that are not there: the model is listed, and `ollama run` tries to download it",
            "install it again, or remove it: ollama rm NAME",
        )
    if unreadable:
        yield Finding(
            subject,
            Level.NOTE,
            f"{_named(unreadable)} is not a manifest: Ollama does not list it, and no longer prunes",
            "install its model again, or remove the file",
        )


def _listed(subject: str, directory: Path, client: OllamaClient) -> Iterator[Finding]:
    """Look whether the server lists what lies in the store."""
    try:
        listed = set(client.models())
    except EngineRefused as error:
        what = f"the server does not list its models: {error.message}"
        yield Finding(subject, Level.DANGER, what, "look at the server's log")
        return
    if unknown := sorted({str(name) for name in existing_names(directory)} - listed):
        yield Finding(
            subject,
            Level.NOTE,
            f"the server at {client.address} does not list {_named(unknown)}: it reads another directory, or cannot read this one",
            "is OLLAMA_MODELS of the server this directory?",
        )


def _named(things: Sequence[object]) -> str:
    """Name the first of several, and count the rest."""
    shown = ", ".join(map(str, things[:_MANY]))
    return shown + (f" and {len(things) - _MANY} more" if len(things) > _MANY else "")
