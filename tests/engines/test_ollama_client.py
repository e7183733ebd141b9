"""Ollama's HTTP API, against a server that says what a test wants it to say."""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from modelvault.artifact import Digest
from modelvault.engines import engines, parse_target
from modelvault.engines.http_client import parse_address
from modelvault.engines.ollama_client import OllamaClient
from modelvault.errors import EngineRefused, UsageProblem

DIGEST = Digest.of_bytes(b"x")


@dataclass
class Said:
    """What a server answers to everything, and what it was asked."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)


@contextlib.contextmanager
def saying(said: Said) -> Iterator[OllamaClient]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            said.asked.append((self.command, self.path, body))
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said.body)

        do_GET = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815 (names of the library)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield OllamaClient(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (200, b'{"status":"parsing GGUF"}\n{"error":"no disk"}\n{"status":"success"}\n', "refused the model: no disk"),
        (200, b'{"status":"writing manifest"}\n', "stopped before the model was made.*writing manifest"),
        (200, b"", "stopped before the model was made"),
        (200, b'<html>\n[1]\n"success"\n', "stopped before the model was made"),
        (400, b'{"error":"invalid model name"}', "answered 400: invalid model name"),
        (502, b"<html>", "answered 502"),
        (302, b"", "answered 302"),
    ],
)
def test_creation_that_fails(status: int, body: bytes, reason: str) -> None:
    """The stream begins with 200 long before the server knows whether it can: only its last word counts."""
    said = Said(status, body, {"Location": "http://127.0.0.1:1/elsewhere"} if status == 302 else {})
    with saying(said) as client, pytest.raises(EngineRefused, match=reason):
        client.create({"model": "x"})
    assert len(said.asked) == 1


def test_creation() -> None:
    """The one end that is good, and what was asked for it."""
    said = Said(200, b'{"status":"using existing layer"}\n{"status":"success"}\n')
    with saying(said) as client:
        client.create({"model": "x"})
    ((method, path, body),) = said.asked
    assert (method, path, json.loads(body)) == ("POST", "/api/create", {"model": "x", "stream": True})


def test_blobs() -> None:
    """What the server refuses for its digest is the vault's damage; all else is the server's."""
    with saying(Said(400, b'{"error":"digest mismatch, expected \\"a\\", got \\"b\\""}')) as client:
        assert client.send_blob(DIGEST, 1, iter([b"x"])) is False
    with saying(Said(507, b'{"error":"no space left on device"}')) as client:
        with pytest.raises(EngineRefused, match="no space left"):
            client.send_blob(DIGEST, 1, iter([b"x"]))
        with pytest.raises(EngineRefused, match="answered 507"):
            client.has_blob(DIGEST)
    said = Said(201, b"")
    with saying(said) as client:
        assert client.send_blob(DIGEST, 4, iter([b"ab", b"cd"])) is True
    assert said.asked == [("POST", f"/api/blobs/{DIGEST}", b"abcd")]


def test_models() -> None:
    """A cloud's models have no digest; whatever is listed must not keep ours from being seen."""
    listed = (
        b'{"models":[{"name":"a:b","digest":"%s"},{"name":"c:cloud","digest":""},{"name":7},3]}' % DIGEST.hex.encode()
    )
    with saying(Said(200, listed)) as client:
        assert client.models() == {"a:b": str(DIGEST)}
    with saying(Said(200, b'{"models":null}')) as client:
        assert client.models() == {}


def test_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the isolated side nothing is spoken to but the address that was typed."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with saying(Said(200, b'{"models":[]}')) as client:
        assert client.models() == {}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://Host:11434/", "http://host:11434"),
        ("https://ollama.example", "https://ollama.example"),
        ("http://[::1]:11434", "http://[::1]:11434"),
    ],
)
def test_addresses(text: str, address: str) -> None:
    """The record's place: the same server must always be written the same way."""
    assert parse_address(text) == address
    target = parse_target(f"ollama={text}", engines())
    assert (target.engine, target.place) == ("ollama-api", address)
    assert parse_target(f"ollama-api={address}", engines()) == target


@pytest.mark.parametrize(
    "text",
    ["http://", "http://h:x", "http://h/api", "http://user:word@h:1", "http://[::1", "http://h:1?x", "http://h:99999"],
)
def test_what_is_no_address(text: str) -> None:
    """Above all no password, which would be kept in the record."""
    with pytest.raises(UsageProblem, match="not the address"):
        parse_target(f"ollama={text}", engines())
