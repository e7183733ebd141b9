"""A small HTTP server on loopback that says what a test wants it to say, as a server of an engine does that is well or broken."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

EVENTS = "text/event-stream"


@dataclass(frozen=True)
class Answer:
    """What is said to one path. ``pieces`` are sent one by one in chunks; then the connection may ``hang``, or be ``cut``."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    pieces: tuple[bytes, ...] | None = None
    hang: bool = False
    cut: bool = False
    raw: bytes = b""  # instead of HTTP
    again: bool = False  # the last piece for ever


@dataclass
class Loopback:
    """A running server, and what it was asked: method, path, headers and JSON body."""

    address: str
    asked: list[tuple[str, str, Mapping[str, str], Any]] = field(default_factory=list)

    def bodies(self, path: str) -> list[Any]:
        """Give the bodies that were sent to a path."""
        return [body for _, where, _, body in self.asked if where == path]


def document(value: object, status: int = 200) -> Answer:
    """Answer with a JSON document."""
    return Answer(status, json.dumps(value).encode())


def events(*values: object, end: bool = True, **options: Any) -> Answer:
    """Answer with a stream of events, as OpenAI's API does."""
    pieces = [b"data: %s\n\n" % json.dumps(value).encode() for value in values]
    return Answer(kind=EVENTS, pieces=(*pieces, *([b"data: [DONE]\n\n"] if end else [])), **options)


@contextlib.contextmanager
def loopback(answers: Mapping[str, Answer]) -> Iterator[Loopback]:
    """Serve ``answers`` by path; 404 for all others."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.asked.append((self.command, self.path, dict(self.headers), json.loads(body) if body else None))
            said = answers.get(self.path, document({"error": {"message": "no such page"}}, 404))
            self.close_connection = True
            if said.raw:
                self.wfile.write(said.raw)
                return
            if said.status == 0:  # nothing at all
                over.wait()
                return
            self.send_response(said.status)
            self.send_header("Content-Type", said.kind)
            if said.pieces is None:
                self.send_header("Content-Length", str(len(said.body) + (10 if said.cut else 0)))
                self.end_headers()
                self.wfile.write(said.body)
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in said.pieces:
                self.chunk(piece)
            while said.again and not over.is_set():
                self.chunk(said.pieces[-1])
            if said.hang:
                over.wait()
            if not said.cut:
                self.chunk(b"")

        def chunk(self, data: bytes) -> None:
            with contextlib.suppress(OSError):  # the client has heard enough
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                return
            over.set()

        do_GET = do_POST = answer  # noqa: N815 (names of the library)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        server = Loopback(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            over.set()
            listener.shutdown()
            thread.join()
