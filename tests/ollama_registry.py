"""An Ollama registry on 127.0.0.1 that serves a models directory by the registry's protocol, with faults that can be switched on.

Real sockets, real HTTP/1.1, real signatures: Ollama itself pulls from it. A second port, under another name of this machine, plays the
storage that it redirects to.

Example::

    with OllamaRegistry(models) as registry:
        registry.faults.drop_after = 100_000
        OllamaSource(registry.url).snapshot("registry.ollama.ai/library/tiny:q8_0", None)
        registry.bytes_sent(digest)
"""

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from faulty_hub import Refusals, Request, Served, file_blocks

SERVICE, NAMESPACE = "the-registry", "library"


@dataclass
class Faults:
    """What goes wrong; everything may be changed while the registry runs. Digests are ``sha256:…``."""

    tokens: bool = False  # 401 without a token, which is given to signed requests
    anonymous: bool = False  # tokens are given to requests that are not signed, too
    realm: str | None = None  # instead of the registry's own
    token_uses: int | None = None  # after so many requests a token is refused
    bytes_at: str = "storage"  # or "here", or "location": 200 with a Location header at the storage
    located_uses: int | None = None  # after so many requests an address at the storage is refused with 403
    storage_status: int | None = None  # the storage answers every request with this
    drop_after: int | None = None  # bytes of a body after which the connection is closed
    drop_times: int | None = None  # how often; None: always
    refusals: list[Refusals] = field(default_factory=list)
    rate: int | None = None  # bytes a second for each connection
    ignore_range: bool = False
    no_length: bool = False  # bodies without Content-Length, ended by the end of the connection
    flip: dict[str, int] = field(default_factory=dict)  # digest: offset of a byte that is sent wrong
    manifest: bytes | None = None  # sent for every tag
    kept: list[bytes] = field(default_factory=list)  # manifests that are given by their digests, as blobs
    promised: str | None = None  # the digest that is said to be the manifest's


class OllamaRegistry:
    """The registry, for a ``with`` block. ``send_buffer`` keeps the kernel from taking bytes that the client never asks for."""

    def __init__(self, models: Path, *, send_buffer: int | None = None) -> None:
        """Serve the store in ``models``, whatever it holds at the moment, from two ports on 127.0.0.1."""
        self.models = models
        self.faults = Faults()
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.tokens: dict[str, int] = {}
        self.located: dict[str, int] = {}
        self.signers: set[str] = set()
        self._sent: dict[str, int] = {}
        self._watched: list[tuple[str, int, threading.Event]] = []
        self._registry = Served(self, "registry", _Handler, send_buffer=send_buffer)
        self._storage = Served(self, "storage", _Handler, send_buffer=send_buffer)
        self.host = f"127.0.0.1:{self._registry.server_address[1]}"
        self.url = f"http://{self.host}"
        self.storage_url = f"http://localhost:{self._storage.server_address[1]}"

    def __enter__(self) -> Self:
        """Serve."""
        self._registry.begin()
        self._storage.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut all connections and wait for the threads."""
        self._registry.end()
        self._storage.end()

    # -- what tests ask

    def manifest(self, model: str, tag: str = "latest") -> bytes:
        """Give the manifest of a model of the default host and namespace."""
        return (self.models / "manifests/registry.ollama.ai" / NAMESPACE / model / tag).read_bytes()

    def layer(self, model: str, tag: str, kind: str) -> tuple[str, int]:
        """Give the digest and the size of a layer."""
        layers = json.loads(self.manifest(model, tag))["layers"]
        (found,) = [layer for layer in layers if layer["mediaType"].endswith(f".{kind}")]
        return found["digest"], found["size"]

    def bytes_sent(self, digest: str) -> int:
        """Tell how many bytes of a blob went out, from both origins together."""
        with self.lock:
            return self._sent.get(digest, 0)

    def asked(self, origin: str | None = None) -> list[Request]:
        """Give the requests so far, of one origin or of both."""
        with self.lock:
            return [request for request in self.requests if origin in {None, request.origin}]

    def reached(self, digest: str, amount: int) -> threading.Event:
        """Give an event that is set once that many bytes of a blob went out."""
        event = threading.Event()
        with self.lock:
            self._watched.append((digest, amount, event))
        return event

    # -- what the handlers use

    def count(self, digest: str, amount: int) -> None:
        """Count body bytes."""
        with self.lock:
            self._sent[digest] = self._sent.get(digest, 0) + amount
            for watched, enough, event in self._watched:
                if watched == digest and self._sent[digest] >= enough:
                    event.set()

    def refuse_now(self, where: str) -> Refusals | None:
        """Take the next refusal that is due: of ``manifests``, ``blobs``, ``storage`` or ``token``."""
        with self.lock:
            for refusal in self.faults.refusals:
                if refusal.where == where and refusal.times > 0:
                    refusal.times -= 1
                    return refusal
        return None

    def drop_now(self) -> int | None:
        """Tell after how many bytes this body is to be cut."""
        with self.lock:
            if self.faults.drop_after is None or self.faults.drop_times == 0:
                return None
            if self.faults.drop_times is not None:
                self.faults.drop_times -= 1
            return self.faults.drop_after

    def new_token(self) -> str:
        """Give a token out."""
        token = secrets.token_hex(8)
        with self.lock:
            self.tokens[token] = 0
        return token

    def locate(self, digest: str) -> str:
        """Make an address at the storage."""
        signature = secrets.token_hex(8)
        with self.lock:
            self.located[signature] = 0
        return f"{self.storage_url}/{digest}?signature={signature}"

    def use(self, key: str, uses: dict[str, int], limit: int | None) -> bool:
        """Count a use of a token or of an address; ``False`` if it was never given out, or has run out."""
        with self.lock:
            used = uses.get(key)
            if used is None or (limit is not None and used >= limit):
                return False
            uses[key] = used + 1
            return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Served[OllamaRegistry]"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the base class's)
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    # -- routes

    def _answer(self) -> None:
        registry = self.server.owner
        headers = {name.lower(): value for name, value in self.headers.items()}
        with registry.lock:
            registry.requests.append(Request(self.server.origin, self.command, self.path, headers))
        path = urlsplit(self.path).path
        parts = path.strip("/").split("/")
        kind = "storage" if self.server.origin == "storage" else "token" if path == "/token" else parts[-2]
        if refusal := registry.refuse_now(kind):
            self._send(refusal.status, refusal.body, refusal.headers)
        elif kind == "storage":
            self._storage(parts[0])
        elif kind == "token":
            self._token()
        elif self._admitted(parts):
            self._manifest(parts) if kind == "manifests" else self._blob(parts[-1])

    def _admitted(self, parts: list[str]) -> bool:
        registry, faults = self.server.owner, self.server.owner.faults
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if not faults.tokens or registry.use(token, registry.tokens, faults.token_uses):
            return True
        realm = faults.realm or f"{registry.url}/token"
        scope = f"repository:{'/'.join(parts[1:3])}:pull"
        challenge = f'Bearer realm="{realm}",service="{SERVICE}",scope="{scope}"'
        self._send(401, b"", {"WWW-Authenticate": challenge})
        return False

    def _token(self) -> None:
        registry = self.server.owner
        query = parse_qs(urlsplit(self.path).query)
        sound = query["service"] == [SERVICE] and len(query["scope"]) == 1 and query["ts"] and query["nonce"]
        if sound and (self._signed() or registry.faults.anonymous):
            self._json({"token": registry.new_token()})
        else:
            self._send(401, b'{"error":"unauthorized"}')

    def _signed(self) -> bool:
        public, _, signature = self.headers.get("authorization", "").partition(":")
        if not signature:
            return False
        key = load_ssh_public_key(f"ssh-ed25519 {public}".encode())
        assert isinstance(key, Ed25519PublicKey)
        nothing = base64.b64encode(hashlib.sha256().hexdigest().encode()).decode()
        signed = f"GET,{self.server.owner.url}{self.path},{nothing}"
        try:
            key.verify(base64.b64decode(signature), signed.encode())
        except InvalidSignature:
            return False
        self.server.owner.signers.add(public)
        return True

    def _manifest(self, parts: list[str]) -> None:
        registry = self.server.owner
        file = registry.models / "manifests/registry.ollama.ai" / "/".join([*parts[1:3], parts[-1]])
        if registry.faults.manifest is None and not file.is_file():
            self._send(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}')
            return
        body = registry.faults.manifest or file.read_bytes()
        promised = registry.faults.promised
        self._send(200, body, {"Docker-Content-Digest": promised} if promised else {})

    def _blob(self, digest: str) -> None:
        registry = self.server.owner
        file = registry.models / "blobs" / digest.replace(":", "-")
        kept = {f"sha256:{hashlib.sha256(manifest).hexdigest()}": manifest for manifest in registry.faults.kept}
        if digest in kept:
            self._send(200, kept[digest])
        elif not file.is_file():
            self._send(404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}')
        elif self.command == "HEAD" or registry.faults.bytes_at == "here":
            self._bytes(digest, file, {"Location": self.path})
        elif registry.faults.bytes_at == "location":
            self._send(200, b"", {"Location": registry.locate(digest)})
        else:
            self._send(307, b"", {"Location": registry.locate(digest)})

    def _storage(self, digest: str) -> None:
        registry, faults = self.server.owner, self.server.owner.faults
        signature = parse_qs(urlsplit(self.path).query).get("signature", [""])[0]
        if faults.storage_status is not None:
            self._send(faults.storage_status, b"")
        elif not registry.use(signature, registry.located, faults.located_uses):
            self._send(403, b"")
        else:
            self._bytes(digest, registry.models / "blobs" / digest.replace(":", "-"), {})

    # -- answers

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _bytes(self, digest: str, file: Path, headers: Mapping[str, str]) -> None:
        faults, size = self.server.owner.faults, file.stat().st_size
        asked = None if faults.ignore_range else Request("", "", "", {"range": self.headers.get("range", "")}).range
        start, stop = asked or (0, None)
        stop = size if stop is None else min(stop, size)
        self.send_response(206 if asked else 200)
        described = dict(headers)
        if faults.no_length and self.command == "GET":
            described["Connection"] = "close"
        else:
            described["Content-Length"] = str(stop - start)
        if asked:
            described["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        for name, value in described.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._body(digest, file, start, stop)

    def _body(self, digest: str, file: Path, start: int, stop: int) -> None:
        registry, cut = self.server.owner, self.server.owner.drop_now()
        flip, began, sent = registry.faults.flip.get(digest), time.monotonic(), 0
        end = stop if cut is None else min(stop, start + cut)
        for block in file_blocks(file, start, end):
            if flip is not None and start + sent <= flip < start + sent + len(block):
                block[flip - start - sent] ^= 1
            self.connection.sendall(block)
            registry.count(digest, len(block))
            sent += len(block)
            if registry.faults.rate is not None:
                time.sleep(max(began + sent / registry.faults.rate - time.monotonic(), 0))
        if end < stop or registry.faults.no_length:
            self.close_connection = True
