"""Speaking HTTP with one engine's server: to the address that was named and nowhere else, no proxy, no redirection.

``http.client`` follows neither; the isolated side has no need of more.
"""

import contextlib
import http.client
import ipaddress
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from modelvault.errors import EngineRefused, UsageProblem

SECONDS = 600.0
"""Without a byte. A server may load or hash tens of gigabytes, or in some releases rewrite them, before it answers."""

_CONNECT_SECONDS = 10.0
_MAX_ANSWER = 64 << 20  # bytes
_MAX_LINE = 1 << 20  # bytes; a token with all that servers say about it takes some kB
_BLOCK = 64 << 10
_SHOWN = 500  # characters of what a server says


class ServerUnreachable(EngineRefused):
    """No server answers at an engine's address."""

    slug = "engine-unreachable"


def parse_address(text: str) -> str:
    """Give ``http://host:port``, lower case, of what the user typed. Raises ``UsageProblem``."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    bare = parts.path in {"", "/"} and not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not bare:
        raise UsageProblem(f"not the address of a server: {text[:120]!r}", hint="write http://HOST:PORT")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port is not None else "")


def is_loopback(address: str) -> bool:
    """Tell whether an address is this machine's own."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server:
    """One server. Every method raises ``EngineRefused`` for what it, or the network, has against a request."""

    def __init__(
        self, title: str, address: str, *, seconds: float = SECONDS, headers: Mapping[str, str] | None = None
    ) -> None:
        """Remember the address, ``http://host:port``, and the engine's ``title`` for messages; ``seconds`` as ``SECONDS``."""
        self.title = title
        self.address = address
        self._seconds = seconds
        self._headers = dict(headers or {})

    @property
    def where(self) -> str:
        """The server, as messages have it."""
        return f"{self.title} at {self.address}"

    def json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Ask for a JSON object; what is none counts as an empty one."""
        with self.asked(method, path, None if body is None else json.dumps(body).encode()) as answer:
            if answer.status != HTTPStatus.OK:
                raise self.refused(answer)
            return self.whole(answer)

    def status(self, path: str) -> int:
        """Ask for a page's status alone."""
        with self.asked("GET", path) as answer:
            return answer.status

    @contextlib.contextmanager
    def asked(
        self, method: str, path: str, body: bytes | Iterable[bytes] | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request, and listen to the answer inside the block. Raises ``ServerUnreachable`` where nobody takes the connection."""
        typed = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
        with contextlib.closing(self._connected()) as connection:
            try:
                connection.request(method, path, body, typed | self._headers | (headers or {}))
                with connection.getresponse() as answer:
                    yield answer
            except TimeoutError as error:
                raise self._silent() from error
            except (OSError, http.client.HTTPException) as error:
                raise EngineRefused(
                    f"{self.where} broke off: {_reason(error)}", hint="look at the server's log", address=self.address
                ) from error

    def _connected(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.address)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=min(self._seconds, _CONNECT_SECONDS))
        try:
            connection.connect()
        except OSError as error:
            raise ServerUnreachable(
                f"{self.where} cannot be reached: {_reason(error)}",
                hint="is the server running, and does it listen there?",
                address=self.address,
            ) from error
        connection.sock.settimeout(self._seconds)
        return connection

    def lines(self, answer: http.client.HTTPResponse) -> Iterator[bytes]:
        """Give an answer's lines as they come, for as long as a silent server would be listened to, and no longer."""
        deadline = time.monotonic() + self._seconds
        rest = b""
        while block := answer.read1(_BLOCK):
            *whole, rest = (rest + block).split(b"\n")
            yield from whole
            if time.monotonic() > deadline:
                raise self._silent()
            if len(rest) > _MAX_LINE:
                raise EngineRefused(
                    f"{self.where} answered with a line without end", hint="is that the address of an engine?"
                )
        yield rest

    def whole(self, answer: http.client.HTTPResponse) -> dict[str, Any]:
        """Read a JSON object to its end; what is none counts as an empty one."""
        data = answer.read(_MAX_ANSWER)
        if answer.length and len(data) < _MAX_ANSWER:  # http.client says nothing about it
            raise http.client.IncompleteRead(data, answer.length)
        return decoded(data)

    def refused(self, answer: http.client.HTTPResponse) -> EngineRefused:
        """Build the error for an answer that is none."""
        hint = "look at the server's log"
        if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            hint = "where the server asks for a key, put it into MODELVAULT_API_KEY"
        said = error_in(decoded(answer.read(_MAX_ANSWER))) or answer.reason
        return EngineRefused(f"{self.where} answered {answer.status}: {said}", hint=hint, status=answer.status)

    def _silent(self) -> EngineRefused:
        return EngineRefused(
            f"{self.where} did not answer within {self._seconds:g} seconds",
            hint="look at the server's log; one that is busy, or loads a large model, may need more time",
            address=self.address,
        )


def _reason(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "the answer ended too early"
    return str(getattr(error, "strerror", None) or error or type(error).__name__).lower()


def decoded(data: bytes) -> dict[str, Any]:
    """Read a JSON object; anything else counts as an empty one."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def error_in(document: Mapping[str, Any]) -> str | None:
    """Give what a server says is wrong: Ollama in ``error``, OpenAI's dialects in ``error.message``, ``message`` or ``detail``."""
    for key in ("error", "message", "detail"):
        said = document.get(key)
        if isinstance(said, dict):
            said = said.get("message") or said
        if said and (key == "error" or isinstance(said, str)):
            return str(said)[:_SHOWN]
    return None
