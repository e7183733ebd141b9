"""Ollama's HTTP API, as much of it as installing needs, as release 0.24.0 has it.

``http.client`` goes to the address that the user typed and nowhere else: no proxy, no redirection.
"""

import contextlib
import http.client
import json
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from modelvault.artifact import Digest
from modelvault.errors import EngineRefused, UsageProblem

_SECONDS = 600.0
"""Without a byte. The server hashes, and in some releases rewrites, tens of gigabytes before it answers."""
_MAX_ANSWER = 64 << 20  # bytes


def parse_address(text: str) -> str:
    """Give ``http://host:port``, lower case, of what the user typed. Raises ``UsageProblem``."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    bare = parts.path in {"", "/"} and not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not bare:
        raise UsageProblem(f"not the address of a server: {text[:120]!r}", hint="write http://HOST:11434")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")


class OllamaClient:
    """One server. Every method raises ``EngineRefused`` for what it, or the network, has against a request."""

    def __init__(self, address: str) -> None:
        """Remember the address: ``http://host:port``."""
        self._address = address

    def models(self) -> dict[str, str]:
        """Map the names of all models to the digests of their manifests (``sha256:…``)."""
        listed = self._json("GET", "/api/tags").get("models")
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
        with self._asked("HEAD", f"/api/blobs/{digest}") as answer:
            if answer.status not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
                raise self._refused(answer)
            return answer.status == HTTPStatus.OK

    def send_blob(self, digest: Digest, size: int, blocks: Iterable[bytes]) -> bool:
        """Send a blob of ``size`` bytes; ``False`` if the server found that they do not have the digest."""
        with self._asked("POST", f"/api/blobs/{digest}", blocks, {"Content-Length": str(size)}) as answer:
            if answer.status == HTTPStatus.BAD_REQUEST and b"digest mismatch" in answer.peek():
                return False
            if answer.status not in {HTTPStatus.OK, HTTPStatus.CREATED}:
                raise self._refused(answer)
            return True

    def create(self, request: dict[str, Any]) -> None:
        """Have a model made, and listen until it is: errors come in a stream that begins with 200."""
        last: object = None
        with self._asked("POST", "/api/create", json.dumps(request | {"stream": True}).encode()) as answer:
            if answer.status != HTTPStatus.OK:
                raise self._refused(answer)
            while line := answer.readline(_MAX_ANSWER):
                said = _decoded(line)
                if error := said.get("error"):
                    raise EngineRefused(f"Ollama at {self._address} refused the model: {str(error)[:500]}")
                last = said.get("status", last)
        if last != "success":
            raise EngineRefused(
                f"Ollama at {self._address} stopped before the model was made; the last it said was {str(last)[:200]!r}",
                hint="run the same command again; the server's log may say more",
            )

    def modelfile(self, name: str) -> str:
        """Give the Modelfile that the server shows of a model."""
        return str(self._json("POST", "/api/show", {"model": name}).get("modelfile") or "")

    def delete(self, name: str) -> None:
        """Remove a model."""
        self._json("DELETE", "/api/delete", {"model": name})

    def _json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        with self._asked(method, path, None if body is None else json.dumps(body).encode()) as answer:
            if answer.status != HTTPStatus.OK:
                raise self._refused(answer)
            return _decoded(answer.read(_MAX_ANSWER))

    @contextlib.contextmanager
    def _asked(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(self._address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            with contextlib.closing(kind(parts.hostname or "", parts.port, timeout=_SECONDS)) as connection:
                connection.request(method, path, body, headers or {})
                with connection.getresponse() as answer:
                    yield answer
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise EngineRefused(
                f"Ollama at {self._address} cannot be reached: {reason.lower()}",
                hint="is the server running, and does it listen there (its OLLAMA_HOST)?",
            ) from error

    def _refused(self, answer: http.client.HTTPResponse) -> EngineRefused:
        said = _decoded(answer.read(_MAX_ANSWER)).get("error") or answer.reason
        return EngineRefused(f"Ollama at {self._address} answered {answer.status}: {str(said)[:500]}")


def _decoded(data: bytes) -> dict[str, Any]:
    """Read a JSON object; anything else counts as an empty one."""
    try:
        document = json.loads(data)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
