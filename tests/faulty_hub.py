"""A hub on 127.0.0.1 that serves folders by the Hub's protocol, with faults that can be switched on.

Real sockets, real HTTP/1.1, real digests: huggingface_hub itself works against it. A second port plays the storage that signed
addresses lead to.

Example::

    with FaultyHub({"org/name": folder}) as hub:
        hub.faults.drop_after = 100_000
        HubSource(hub.url).snapshot("org/name", None)
        hub.bytes_sent("model.gguf")
"""

import contextlib
import hashlib
import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".gguf", ".safetensors", ".bin")
_BLOCK = 64 << 10
Owner = TypeVar("Owner")


@dataclass
class Refusals:
    """The next ``times`` requests for bytes are answered with ``status``; ``times`` may be raised again at any time."""

    status: int
    times: int
    headers: Mapping[str, str] = field(default_factory=dict)
    where: str = "bytes"  # or "api": requests for model information; or a revision: those for it
    body: bytes = b""


@dataclass
class Faults:
    """What goes wrong; everything may be changed while the hub runs."""

    drop_after: int | None = None  # bytes of a body after which the connection is closed
    drop_times: int | None = None  # how often; None: always
    drop_hard: bool = False  # with a reset instead of an orderly end
    refusals: list[Refusals] = field(default_factory=list)
    rate: int | None = None  # bytes a second for each connection
    ignore_range: bool = False
    redirect: bool = False  # large files are answered with a signed address at the storage's origin
    signed_uses: int | None = None  # after so many requests a signed address is refused with 403
    storage_status: int | None = None  # the storage answers every request with this
    flip: dict[str, int] = field(default_factory=dict)  # path: offset of a byte that is sent wrong
    shorten: dict[str, int] = field(default_factory=dict)  # path: bytes by which the announced body is too short
    gated: dict[str, str] = field(default_factory=dict)  # repository: the token that may read it
    private: dict[str, str] = field(default_factory=dict)
    valid_tokens: set[str] | None = None  # None: any token is accepted
    headers: dict[str, str] = field(default_factory=dict)  # laid over those of every answer that carries bytes
    endless: bool = False  # the last page of a listing leads back to the first
    hold: threading.Event | None = None  # bodies stop half-way until it is set


@dataclass(frozen=True)
class Request:
    """One request as it arrived. ``origin`` is ``hub`` or ``storage``; header names are lower case."""

    origin: str
    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def range(self) -> tuple[int, int | None] | None:
        """The bytes asked for: start and exclusive stop."""
        text = self.headers.get("range", "")
        if not text.startswith("bytes="):
            return None
        first, _, last = text.removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1 if last else None


@dataclass(frozen=True)
class _File:
    path: str
    local: Path
    size: int
    sha256: str
    git_sha1: str
    lfs: bool

    def entry(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": self.path, "size": self.size, "oid": self.git_sha1}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 130}
        return entry

    def sibling(self) -> dict[str, Any]:
        sibling: dict[str, Any] = {"rfilename": self.path, "size": self.size, "blobId": self.git_sha1}
        if self.lfs:
            sibling["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": 130}
        return sibling


def _scan(folder: Path, path: Path) -> _File:
    size = path.stat().st_size
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            git.update(block)
    name = path.relative_to(folder).as_posix()
    lfs = name.endswith(LFS_SUFFIXES)
    oid = git.hexdigest()
    if lfs:  # as on the Hub, the git hash of such a file is that of its pointer
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256.hexdigest()}\nsize {size}\n".encode()
        oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False).hexdigest()
    return _File(name, path, size, sha256.hexdigest(), oid, lfs)


class Served(ThreadingHTTPServer, Generic[Owner]):
    """A port on 127.0.0.1 in a thread of its own, for ``owner``, who knows it as ``origin``; handlers answer in threads."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(
        self,
        owner: Owner,
        origin: str,
        handler: type[BaseHTTPRequestHandler],
        *,
        port: int = 0,
        send_buffer: int | None = None,
    ) -> None:
        """Bind the port."""
        self.owner = owner
        self.origin = origin
        self._send_buffer = send_buffer
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        super().__init__(("127.0.0.1", port), handler)

    def begin(self) -> None:
        """Serve."""
        self._thread.start()

    def end(self) -> None:
        """Cut all connections and wait for the threads."""
        self.shutdown()
        with self._open_lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self._thread.join()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._send_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
        with self._open_lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that vanish are what these tests are about. Other errors show as a broken answer."""


class Repository:
    """A folder as the hub sees it: its files, and a commit that follows from them."""

    def __init__(self, folder: Path) -> None:
        """Read and hash everything below ``folder``."""
        found = (_scan(folder, path) for path in sorted(folder.rglob("*")) if path.is_file())
        self.files = {file.path: file for file in found}
        listing = "".join(f"{file.path}\0{file.sha256}\n" for file in self.files.values())
        self.commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        self.info: dict[str, Any] = {}  # laid over the model information: tags, cardData, gated

    def entries(self) -> list[dict[str, Any]]:
        """List files and folders as the tree endpoint does."""
        folders = {parent.as_posix() for path in self.files for parent in Path(path).parents} - {"."}
        listed = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)]
        return listed + [file.entry() for file in self.files.values()]


class FaultyHub:
    """The hub, for a ``with`` block. ``send_buffer`` keeps the kernel from taking bytes that the client never asks for."""

    def __init__(
        self, folders: Mapping[str, Path], *, send_buffer: int | None = None, page_size: int = 1000, port: int = 0
    ) -> None:
        """Scan the folders and bind two ports on 127.0.0.1."""
        self.repositories = {name: Repository(folder) for name, folder in folders.items()}
        self.versions: dict[tuple[str, str], Repository] = {}
        self.faults = Faults()
        self.requests: list[Request] = []
        self.page_size = page_size
        self.lock = threading.Lock()
        self.signatures: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._watched: list[tuple[str, int, threading.Event]] = []
        self._hub = Served(self, "hub", _Handler, port=port, send_buffer=send_buffer)
        self._storage = Served(self, "storage", _Handler, send_buffer=send_buffer)
        self.url = f"http://127.0.0.1:{self._hub.server_address[1]}"
        # Another name for the same machine: a client that compares only addresses would be found out.
        self.storage_url = f"http://localhost:{self._storage.server_address[1]}"

    def __enter__(self) -> Self:
        """Serve."""
        self._hub.begin()
        self._storage.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut all connections and wait for the threads."""
        if self.faults.hold is not None:
            self.faults.hold.set()
        self._hub.end()
        self._storage.end()

    # -- what tests ask

    def publish(self, repository: str, folder: Path) -> str:
        """Make a new version of a repository the one of its main branch; the old one stays known by its commit, which is given."""
        before = self.repositories[repository]
        self.versions[repository, before.commit] = before
        self.repositories[repository] = Repository(folder)
        return before.commit

    def commit(self, repository: str) -> str:
        """Give the commit that every revision of a repository points to."""
        return self.repositories[repository].commit

    def bytes_sent(self, path: str) -> int:
        """Tell how many bytes of a file's body went out, from both origins together."""
        with self.lock:
            return self._sent.get(path, 0)

    def ranges(self, path: str) -> list[tuple[int, int | None]]:
        """Give the ranges that were asked for of a file; a request without one is from 0 to the end."""
        return [
            request.range or (0, None)
            for request in self.asked()
            if request.method == "GET" and unquote(urlsplit(request.path).path).endswith("/" + path)
        ]

    def asked(self, origin: str | None = None) -> list[Request]:
        """Give the requests so far, of one origin or of both."""
        with self.lock:
            return [request for request in self.requests if origin in {None, request.origin}]

    def reached(self, path: str, amount: int) -> threading.Event:
        """Give an event that is set once that many bytes of a file's body went out."""
        event = threading.Event()
        with self.lock:
            self._watched.append((path, amount, event))
        return event

    def forget(self) -> None:
        """Begin to count anew."""
        with self.lock:
            self._sent.clear()
            self.requests.clear()

    # -- what the handlers use

    def count(self, path: str, amount: int) -> None:
        """Count body bytes."""
        with self.lock:
            self._sent[path] = self._sent.get(path, 0) + amount
            for watched, enough, event in self._watched:
                if watched == path and self._sent[path] >= enough:
                    event.set()

    def refuse_now(self, where: str) -> Refusals | None:
        """Take the next refusal that is due."""
        with self.lock:
            for refusal in self.faults.refusals:
                if refusal.where == where and refusal.times > 0:
                    refusal.times -= 1
                    return refusal
        return None

    def drop_now(self) -> int | None:
        """Tell after how many bytes this body is to be cut."""
        with self.lock:
            faults = self.faults
            if faults.drop_after is None or faults.drop_times == 0:
                return None
            if faults.drop_times is not None:
                faults.drop_times -= 1
            return faults.drop_after

    def sign(self, repository: str, path: str) -> str:
        """Make a signed address at the storage."""
        signature = secrets.token_hex(8)
        with self.lock:
            self.signatures[signature] = 0
        return f"{self.storage_url}/blobs/{quote(repository)}/{quote(path)}?signature={signature}"

    def use(self, signature: str) -> bool:
        """Count a use of a signed address; ``False`` if it has run out."""
        with self.lock:
            used = self.signatures.get(signature)
            if used is None or (self.faults.signed_uses is not None and used >= self.faults.signed_uses):
                return False
            self.signatures[signature] = used + 1
            return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Served[FaultyHub]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the base class's)
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    # -- routes

    def _answer(self) -> None:
        hub = self.server.owner
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with hub.lock:
            hub.requests.append(Request(self.server.origin, self.command, self.path, headers))
        parts = urlsplit(self.path)
        segments = [unquote(segment) for segment in parts.path.split("/")[1:]]
        if self.server.origin == "storage":
            self._storage(segments, parse_qs(parts.query))
        elif segments[:2] == ["api", "models"]:
            self._api(segments[2:], parse_qs(parts.query), body)
        elif "resolve" in segments:
            at = segments.index("resolve")
            self._resolve("/".join(segments[:at]), segments[at + 1], "/".join(segments[at + 2 :]))
        else:
            self._error(404, "RepoNotFound")

    def _api(self, segments: list[str], query: dict[str, list[str]], body: bytes) -> None:
        hub = self.server.owner
        if refusal := hub.refuse_now("api"):
            self._error(refusal.status, headers=refusal.headers)
            return
        verbs = [index for index, segment in enumerate(segments) if segment in {"revision", "tree", "paths-info"}]
        at = verbs[0] if verbs else len(segments)
        name = "/".join(segments[:at])
        repository = self._admitted(name, gated=False)
        if repository is None:
            return
        verb, revision = (segments[at], segments[at + 1]) if verbs else ("revision", "main")
        if refusal := hub.refuse_now(revision):
            self._error(refusal.status, headers=refusal.headers)
            return
        repository = hub.versions.get((name, revision), repository)
        if (name, revision) not in hub.versions and revision not in {"main", repository.commit}:
            self._error(404, "RevisionNotFound")
        elif verb == "tree":
            self._tree(repository, "/".join(segments[at + 2 :]), query)
        elif verb == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            self._json([entry for entry in repository.entries() if entry["path"] in wanted])
        else:
            siblings = [file.sibling() for file in repository.files.values()]
            info = {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, "tags": []}
            gated = {"gated": "manual" if name in hub.faults.gated else False}
            self._json({**info, "private": name in hub.faults.private, **gated, **repository.info})

    def _tree(self, repository: Repository, below: str, query: dict[str, list[str]]) -> None:
        hub = self.server.owner
        entries = [entry for entry in repository.entries() if not below or entry["path"].startswith(below + "/")]
        if query.get("recursive", ["false"])[0].lower() not in {"true", "1"}:
            depth = below.count("/") + 1 if below else 0
            entries = [entry for entry in entries if entry["path"].count("/") == depth]
        begin = int(query.get("cursor", ["0"])[0])
        end = begin + hub.page_size
        headers = {}
        if end < len(entries) or hub.faults.endless:
            end = end if end < len(entries) else 0
            address = urlsplit(self.path)
            headers["Link"] = f'<{hub.url}{address.path}?recursive=true&cursor={end}>; rel="next"'
        self._json(entries[begin:end], headers)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        hub = self.server.owner
        if refusal := hub.refuse_now("bytes"):
            self._error(refusal.status, headers=refusal.headers)
            return
        repository = self._admitted(name, gated=True)
        if repository is None:
            return
        repository = hub.versions.get((name, revision), repository)
        commit = {"X-Repo-Commit": repository.commit}
        if (name, revision) not in hub.versions and revision not in {"main", repository.commit}:
            self._error(404, "RevisionNotFound")
        elif path not in repository.files:
            self._error(404, "EntryNotFound", commit)
        else:
            file = repository.files[path]
            headers = {**commit, "ETag": f'"{file.sha256 if file.lfs else file.git_sha1}"'}
            if file.lfs:
                headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
            if file.lfs and hub.faults.redirect:
                self._empty(302, {**headers, "Location": hub.sign(name, path)})
            else:
                self._bytes(file, headers)

    def _storage(self, segments: list[str], query: dict[str, list[str]]) -> None:
        hub = self.server.owner
        if hub.faults.storage_status is not None:
            self._error(hub.faults.storage_status)
            return
        if not hub.use(query.get("signature", [""])[0]):
            self._error(403)
            return
        for name, repository in hub.repositories.items():
            prefix = name.split("/")
            if segments[1 : 1 + len(prefix)] == prefix:
                file = repository.files["/".join(segments[1 + len(prefix) :])]
                self._bytes(file, {"ETag": f'"{file.sha256}"'})
                return
        self._error(404)

    def _admitted(self, name: str, *, gated: bool) -> Repository | None:
        faults = self.server.owner.faults
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        token = token if scheme == "Bearer" else ""
        if token and faults.valid_tokens is not None and token not in faults.valid_tokens:
            self._error(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        elif name not in self.server.owner.repositories or faults.private.get(name, token) != token:
            self._error(401 if not token else 404, "RepoNotFound")
        elif gated and faults.gated.get(name, token) != token:
            self._error(403 if token else 401, "GatedRepo")
        else:
            return self.server.owner.repositories[name]
        return None

    # -- answers

    def _empty(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _error(self, status: int, code: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
        self._empty(status, {**named, **(headers or {})})

    def _json(self, value: object, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, text)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _bytes(self, file: _File, headers: Mapping[str, str]) -> None:
        faults = self.server.owner.faults
        asked = None if faults.ignore_range else Request("", "", "", {"range": self.headers.get("range", "")}).range
        start, stop = asked or (0, None)
        stop = file.size if stop is None else min(stop, file.size)
        if asked and start >= file.size:
            self._empty(416, {**headers, "Content-Range": f"bytes */{file.size}"})
            return
        self.send_response(206 if asked else 200)
        described = {"Accept-Ranges": "bytes", "Content-Length": str(stop - start), **headers}
        if asked:
            described["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        for name, value in {**described, **faults.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._body(file, start, stop)

    def _body(self, file: _File, start: int, stop: int) -> None:
        hub = self.server.owner
        cut = hub.drop_now()
        stop -= hub.faults.shorten.get(file.path, 0)
        end = stop if cut is None else min(stop, start + cut)
        flip = hub.faults.flip.get(file.path)
        began = time.monotonic()
        sent = 0
        for block in file_blocks(file.local, start, end):
            position = start + sent
            if flip is not None and position <= flip < position + len(block):
                block[flip - position] ^= 1
            self.connection.sendall(block)
            hub.count(file.path, len(block))
            sent += len(block)
            if hub.faults.hold is not None and sent * 2 >= stop - start:
                hub.faults.hold.wait()
            if hub.faults.rate is not None:
                time.sleep(max(began + sent / hub.faults.rate - time.monotonic(), 0))
        if end < stop or file.path in hub.faults.shorten:
            self.close_connection = True
        if end < stop and hub.faults.drop_hard:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def file_blocks(path: Path, start: int, stop: int) -> Iterator[bytearray]:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < stop and (block := file.read(min(_BLOCK, stop - start))):
            start += len(block)
            yield bytearray(block)
