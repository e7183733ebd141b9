"""The server itself: raw HTTP, hostile requests, damage in the vault, clients that go away, start and end."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from serve_hub import NEW, QUANTS, FolderShelf, Hub, serving
from starlette.routing import Route

from modelvault.artifact import Digest, Origin
from modelvault.errors import UsageProblem
from modelvault.serve import HubServer, create_app, run

WEIGHTS = "/org/tiny/resolve/main/model.safetensors"


def ask(
    port: int, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    """Send one request as it stands: nothing is quoted, normalized or retried."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_get_and_head_agree(hub: Hub) -> None:
    """A client plans by HEAD what it then gets."""
    data = hub.files["org/tiny"]["model.safetensors"]
    head, nothing = ask(hub.port, "HEAD", WEIGHTS)
    got, body = ask(hub.port, "GET", WEIGHTS)
    assert (head.status, nothing) == (200, b"")
    assert (got.status, body) == (200, data)
    etag = f'"{Digest.of_bytes(data).hex}"'
    for answer in (head, got):
        assert answer.headers["Content-Length"] == str(len(data))
        assert answer.headers["ETag"] == answer.headers["X-Linked-Etag"] == etag
        assert answer.headers["X-Linked-Size"] == str(len(data))
        assert answer.headers["X-Repo-Commit"] == NEW
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert "X-Xet-Hash" not in answer.headers
    plain, _ = ask(hub.port, "HEAD", "/org/tiny/resolve/main/config.json")
    assert "X-Linked-Etag" not in plain.headers


@pytest.mark.parametrize(
    ("header", "first", "last"), [("0-9", 0, 9), ("4999993-", 4999993, 5000002), ("-10", 4999993, 5000002)]
)
def test_ranges_are_served(hub: Hub, header: str, first: int, last: int) -> None:
    """Resuming, and several connections per file, live on this."""
    data = hub.files["org/tiny"]["model.safetensors"]
    answer, body = ask(hub.port, "GET", WEIGHTS, {"Range": f"bytes={header}"})
    assert (answer.status, body) == (206, data[first : last + 1])
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(data)}"
    head, _ = ask(hub.port, "HEAD", WEIGHTS, {"Range": f"bytes={header}"})
    assert (head.status, head.headers["Content-Length"]) == (206, str(len(body)))


def test_past_the_end_is_416(hub: Hub) -> None:
    """The answer that a client which has everything expects."""
    answer, body = ask(hub.port, "GET", WEIGHTS, {"Range": "bytes=5000003-"})
    assert (answer.status, body) == (416, b"")
    assert answer.headers["Content-Range"] == "bytes */5000003"


def test_range_of_another_version_gives_the_whole_file(hub: Hub) -> None:
    """If-Range keeps a client from mixing the bytes of two files."""
    data = hub.files["org/tiny"]["model.safetensors"]
    wrong, body = ask(hub.port, "GET", WEIGHTS, {"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (wrong.status, len(body)) == (200, len(data))
    etag = f'"{Digest.of_bytes(data).hex}"'
    right, body = ask(hub.port, "GET", WEIGHTS, {"Range": "bytes=0-9", "If-Range": etag})
    assert (right.status, body) == (206, data[:10])


def test_parallel_ranges_make_the_file(hub: Hub) -> None:
    """Many connections at once must not disturb one another's offsets."""
    data = hub.files["org/tiny"]["model.safetensors"]
    step = 300_007
    ranges = [f"bytes={start}-{min(start + step, len(data)) - 1}" for start in range(0, len(data), step)]
    with ThreadPoolExecutor(8) as pool:
        pieces = pool.map(lambda wanted: ask(hub.port, "GET", WEIGHTS, {"Range": wanted})[1], ranges)
        assert b"".join(pieces) == data


def test_empty_file(hub: Hub) -> None:
    """No byte at all is a valid file too."""
    answer, body = ask(hub.port, "GET", "/org/tiny/resolve/main/empty.txt")
    assert (answer.status, body, answer.headers["Content-Length"]) == (200, b"", "0")


@pytest.mark.parametrize(
    "path",
    [
        "/org/tiny/resolve/main/../../../../../../etc/passwd",
        "/org/tiny/resolve/main/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/org/tiny/resolve/main/..%2f..%2f..%2fetc%2fpasswd",
        "/org/tiny/resolve/main//etc/passwd",
        "/org/tiny/resolve/main/%2Fetc%2Fpasswd",
        "/org/tiny/resolve/main/config.json%00",
        "/org/tiny/resolve/main/config.json%0d%0aX-Evil:%201",
        "/org/tiny/resolve/main/%ff%fe",
        "/org/tiny/resolve/main/",
        "/org/tiny/resolve/../tiny/config.json",
        "/../../etc/passwd",
        "/..%2f/..%2f/resolve/main/etc/passwd",
        "/api/models/..%2f..%2f",
        "/api/models/org/tiny/tree/main/..",
        "/api/models/org/tiny/tree/main/%2e%2e",
        "/registry.sqlite",
        "/",
    ],
)
def test_no_path_leaves_the_listing(hub: Hub, path: str) -> None:
    """Whoever reaches the port must not read a file that is no model's."""
    for method in ("GET", "HEAD"):
        answer, body = ask(hub.port, method, path)
        assert answer.status == 404
        assert b"root:" not in body
        assert "X-Evil" not in answer.headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", [WEIGHTS, "/api/models/org/tiny", "/api/models/org/tiny/tree/main", "/api/models"])
def test_nothing_can_be_written(hub: Hub, method: str, path: str) -> None:
    """The endpoints are read-only."""
    answer, _ = ask(hub.port, method, path, body=b"x")
    assert answer.status == 405


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b'{"paths": ["config.json"], "expand": true}', "application/json; charset=utf-8", 200),
        (b"paths=config.json&expand=true", "application/x-www-form-urlencoded", 200),
        (b'{"paths": "config.json"}', "application/json", 400),
        (b'{"paths": [1]}', "application/json", 400),
        (b"{}", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"\xff\xfe=", "application/x-www-form-urlencoded", 400),
        (b"&" * (5 << 20), "application/x-www-form-urlencoded", 413),
    ],
)
def test_paths_info_reads_forms_and_json(hub: Hub, body: bytes, content_type: str, status: int) -> None:
    """The two official clients send different forms; anything else is refused, whatever its size or depth."""
    answer, said = ask(hub.port, "POST", "/api/models/org/tiny/paths-info/main", {"Content-Type": content_type}, body)
    assert answer.status == status
    if status == 200:
        assert [entry["path"] for entry in json.loads(said)] == ["config.json"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=99999999999999999999", "cursor=%00", "cursor=~"]
)
def test_odd_pages_are_no_error_of_ours(hub: Hub, query: str) -> None:
    """Numbers out of range must not end in a traceback or an endless walk."""
    answer, body = ask(hub.port, "GET", f"/api/models/org/tiny/tree/main?{query}")
    assert answer.status == 200
    assert isinstance(json.loads(body), list)


def test_damaged_vault_is_our_fault_and_keeps_its_paths(shelf: FolderShelf) -> None:
    """A blob that is gone or has another size must not reach a client as a shorter file."""
    short = shelf.add("short", Origin("hub", "org/short", NEW), {"a.gguf": b"12345"})
    gone = shelf.add("gone", Origin("hub", "org/gone", QUANTS), {"a.gguf": b"678"})
    local = shelf.add("local", Origin("folder"), {"a.json": b"9"})
    shelf.blob_path(short.model.files[0].digest).write_bytes(b"1234")
    shelf.blob_path(gone.model.files[0].digest).unlink()
    shelf.blob_path(local.model.files[0].digest).unlink()
    with serving(shelf) as server:
        port = int(server.url.rpartition(":")[2])
        for path in ("/org/short/resolve/main/a.gguf", "/org/gone/resolve/main/a.gguf", "/api/models/local/tree/main"):
            answer, body = ask(port, "GET", path)
            assert answer.status == 500
            assert str(shelf.folder).encode() not in body
            assert str(shelf.folder) not in str(answer.headers)
        assert ask(port, "GET", "/api/models")[0].status == 200


def test_file_that_shrinks_breaks_the_connection(shelf: FolderShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short body with a proper end would look like a whole file to a careless client."""
    shelf.add("big", Origin("hub", "org/big", NEW), {"a.gguf": bytes(3 << 20)})
    pread = os.pread
    monkeypatch.setattr("os.pread", lambda descriptor, size, offset: b"" if offset else pread(descriptor, size, offset))
    with serving(shelf) as server, pytest.raises(http.client.IncompleteRead):
        ask(int(server.url.rpartition(":")[2]), "GET", "/org/big/resolve/main/a.gguf")


def test_reading_stops_when_the_client_goes(shelf: FolderShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled download of 40 GB must not be read to its end for nobody."""
    size = 512 << 20
    stored = shelf.add("big", Origin("hub", "org/big", NEW), {"a.gguf": b"x"})
    file = stored.model.files[0]
    with shelf.blob_path(file.digest).open("r+b") as sparse:
        sparse.truncate(size)
    object.__setattr__(file, "size", size)
    offsets: list[int] = []
    pread = os.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        offsets.append(offset)
        return pread(descriptor, length, offset)

    monkeypatch.setattr("os.pread", counted)
    with serving(shelf) as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=30) as client:
            client.sendall(b"GET /org/big/resolve/main/a.gguf HTTP/1.1\r\nHost: hub\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
    # The server has ended, having waited for what was under way. What the sockets' buffers take is read before it knows.
    assert max(offsets) < 64 << 20


def test_new_models_are_seen_without_restart(shelf: FolderShelf) -> None:
    """What was pulled while the server runs can be fetched from it."""
    with serving(shelf) as server:
        port = int(server.url.rpartition(":")[2])
        assert ask(port, "GET", "/api/models/late")[0].status == 404
        shelf.add("late", Origin("folder"), {"a.json": b"{}"})
        assert ask(port, "GET", "/api/models/late")[0].status == 200


def test_taken_port_is_a_usage_problem(hub: Hub, shelf: FolderShelf) -> None:
    """Starting the server twice is a common mistake; the hint names the way out."""
    with pytest.raises(UsageProblem, match=str(hub.port)) as caught:
        run(create_app(shelf), "127.0.0.1", hub.port, lambda url: None)
    assert "--port" in (caught.value.hint or "")
    with pytest.raises(UsageProblem, match="70000"):
        HubServer(create_app(shelf), "127.0.0.1", 70000)


@pytest.mark.parametrize("host", ["", "nohost.invalid", "a" * 300])
def test_a_host_that_is_none(shelf: FolderShelf, host: str) -> None:
    """The port is not to blame, and the resolver's numbers are not the system's: what is wrong must be said."""
    with pytest.raises(UsageProblem, match="no such address") as caught:
        HubServer(create_app(shelf), host)
    assert "--host" in (caught.value.hint or "")


def test_every_endpoint_is_documented(shelf: FolderShelf) -> None:
    """The page is the contract for programs that are not ours."""
    page = (Path(__file__).parents[2] / "docs/reference/serve.md").read_text(encoding="utf-8")
    routes = [route for route in create_app(shelf).routes if isinstance(route, Route)]
    paths = {route.path.replace(":path}", "}").replace("{organization}/{name}", "{id}") for route in routes}
    for path in paths:
        assert f" {path.replace('{name}', '{id}')}`" in page, path


def test_small_answers_are_not_held_back(shelf: FolderShelf) -> None:
    """asyncio sends at once (TCP_NODELAY) only if the socket names its protocol; else each answer takes 40 ms."""
    server = HubServer(create_app(shelf))
    with server._socket as listener:
        assert listener.proto == socket.IPPROTO_TCP


SCRIPT = """
import sys
from pathlib import Path
from modelvault.serve import create_app, run

class Shelf:
    def entries(self):
        return []

run(create_app(Shelf()), sys.argv[1], 0, lambda url: print(url, flush=True))
print("ended", flush=True)
"""


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_ctrl_c_ends_it_quietly(host: str) -> None:
    """The user ends the server with Ctrl-C: no traceback, and the caller goes on."""
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    command = [sys.executable, "-c", SCRIPT, host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            shown = f"[{host}]" if ":" in host else host
            assert url.startswith(f"http://{shown}:")
            with closing(http.client.HTTPConnection(host, int(url.rpartition(":")[2]), timeout=30)) as connection:
                connection.request("GET", "/api/models")
                assert connection.getresponse().read() == b"[]"
            process.send_signal(signal.SIGINT)
            said, complained = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, said, complained) == (0, "ended\n", "")


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_missing_extra_is_said(missing: str, tmp_path: Path) -> None:
    """Without the extra, the user reads what to install instead of a traceback."""
    code = f"""
import sys
sys.modules[{missing!r}] = None
from modelvault.errors import UsageProblem
try:
    import modelvault.serve
except UsageProblem as error:
    print(error.message, error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert missing in done.stdout
    assert "pip install starlette uvicorn" in done.stdout
