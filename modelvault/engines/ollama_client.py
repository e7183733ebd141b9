"""Ollama's HTTP API, as much of it as installing and trying out need, as release 0.24.0 has it."""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from modelvault.artifact import Digest
from modelvault.engines.completion import Completion, Stopwatch
from modelvault.engines.http_client import SECONDS, Server, decoded, is_loopback, parse_address
from modelvault.errors import EngineRefused, UsageProblem

PORT = 11434
_LAST_PORT = 65535
_MAX_LINE = 64 << 20  # bytes
_NANOSECONDS = 1e9


def own_address(environment: Mapping[str, str] = os.environ) -> str | None:
    """Give the address of this machine's server: what ``OLLAMA_HOST`` says, else the usual one; ``None`` if that is another machine's.

    The variable takes addresses in any form (envconfig.Host): ``host``, ``:port``, ``0.0.0.0``, ``http://host``.
    """
    text = environment.get("OLLAMA_HOST", "").strip().strip("\"'")
    scheme, there, rest = text.partition("://")
    if not there:
        scheme, rest = "http", text
    host, colon, port = rest.partition("/")[0].rpartition(":")
    if not port.isdecimal() or (host.count(":") and not host.endswith("]")):  # an IPv6 address without a port
        host, colon, port = rest.partition("/")[0], "", ""
    host = host.strip("[]")
    if not colon or int(port) > _LAST_PORT:
        port = {"http": "80", "https": "443"}[scheme] if there and scheme in {"http", "https"} else str(PORT)
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (nothing is bound here)
    try:
        address = parse_address(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
    except UsageProblem:
        return None
    return address if is_loopback(address) else None


class OllamaClient:
    """One server. Every method raises ``EngineRefused`` for what it, or the network, has against a request."""

    def __init__(self, address: str, *, seconds: float = SECONDS) -> None:
        """Remember the address: ``http://host:port``; ``seconds`` is how long a silent server is listened to."""
        self._server = Server("Ollama", address, seconds=seconds)

    @property
    def address(self) -> str:
        """Where the server is."""
        return self._server.address

    def version(self) -> str:
        """Give the server's release. Raises ``EngineRefused`` for one that is not Ollama, too."""
        said = self._server.json("GET", "/api/version").get("version")
        if not isinstance(said, str) or not said:
            raise EngineRefused(f"what answers at {self._server.address} is not Ollama")
        return said[:80]

    def models(self) -> dict[str, str]:
        """Map the names of all models to the digests of their manifests (``sha256:…``)."""
        listed = self._server.json("GET", "/api/tags").get("models")
        found = {}
        for entry in listed if isinstance(listed, list) else []:
            name, digest = (entry.get("name"), entry.get("digest")) if isinstance(entry, dict) else (None, None)
            # The digest has no algorithm in front of it here; a cloud model's may be empty.
            if isinstance(name, str) and isinstance(digest, str):
                with contextlib.suppress(ValueError):
                    found[name] = str(Digest.sha256(digest.removeprefix("sha256:")))
        return found

    def has_blob(self, digest: Digest) -> bool:
        """Ask whether the server has a blob."""
        with self._server.asked("HEAD", f"/api/blobs/{digest}") as answer:
            if answer.status not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
                raise self._server.refused(answer)
            return answer.status == HTTPStatus.OK

    def send_blob(self, digest: Digest, size: int, blocks: Iterable[bytes]) -> bool:
        """Send a blob of ``size`` bytes; ``False`` if the server found that they do not have the digest."""
        with self._server.asked("POST", f"/api/blobs/{digest}", blocks, {"Content-Length": str(size)}) as answer:
            if answer.status == HTTPStatus.BAD_REQUEST and b"digest mismatch" in answer.peek():
                return False
            if answer.status not in {HTTPStatus.OK, HTTPStatus.CREATED}:
                raise self._server.refused(answer)
            return True

    def create(self, request: dict[str, Any]) -> None:
        """Have a model made, and listen until it is: errors come in a stream that begins with 200."""
        last: object = None
        with self._server.asked("POST", "/api/create", json.dumps(request | {"stream": True}).encode()) as answer:
            if answer.status != HTTPStatus.OK:
                raise self._server.refused(answer)
            while line := answer.readline(_MAX_LINE):
                said = decoded(line)
                if error := said.get("error"):
                    raise EngineRefused(f"{self._server.where} refused the model: {str(error)[:500]}")
                last = said.get("status", last)
        if last != "success":
            raise EngineRefused(
                f"{self._server.where} stopped before the model was made; the last it said was {str(last)[:200]!r}",
                hint="run the same command again; the server's log may say more",
            )

    def modelfile(self, name: str) -> str:
        """Give the Modelfile that the server shows of a model."""
        return str(self._server.json("POST", "/api/show", {"model": name}).get("modelfile") or "")

    def delete(self, name: str) -> None:
        """Remove a model."""
        self._server.json("DELETE", "/api/delete", {"model": name})

    def generate(self, model: str, prompt: str, tokens: int) -> Completion:
        """Have a prompt answered through the model's own template; errors come in a stream that begins with 200."""
        body = {"model": model, "prompt": prompt, "options": {"num_predict": tokens, "temperature": 0}}
        watch = Stopwatch()
        last: dict[str, Any] = {}
        with self._server.asked("POST", "/api/generate", json.dumps(body).encode()) as answer:
            if answer.status != HTTPStatus.OK:
                raise self._server.refused(answer)
            for line in self._server.lines(answer):
                said = decoded(line)
                if error := said.get("error"):
                    raise EngineRefused(
                        f"{self._server.where} broke off: {str(error)[:500]}", hint="look at the server's log"
                    )
                for key in ("thinking", "response"):
                    watch.hear(piece if isinstance(piece := said.get(key), str) else "")
                last = said or last
        count, loading = last.get("eval_count"), last.get("load_duration")
        return watch.stop(
            count if type(count) is int and count > 0 else None,
            loading=loading / _NANOSECONDS if type(loading) is int else None,
        )
