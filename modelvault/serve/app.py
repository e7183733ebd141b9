"""The Hub protocol, as far as reading models needs it, over a vault. Paths and answers: ``docs/reference/serve.md``.

A request never names a file: it names a repository, a revision and a path of the vault's listing, and what the listing does not
hold does not exist.
"""

import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from modelvault.errors import ModelvaultError, VaultDamaged
from modelvault.serve.ranges import FileBytes, Span, UnsatisfiableRange, parse_range
from modelvault.serve.repositories import (
    FileViews,
    HubFile,
    Models,
    Shelf,
    Snapshot,
    at_revision,
    repositories,
    snapshots,
    tree_hashes,
)

PAGE = 1000
"""Most entries of one page of a tree, and most models of one listing."""

_LOG = logging.getLogger(__name__)
_COUNT = re.compile(r"[0-9]{1,6}")
_LARGEST_FORM = 4 << 20  # bytes of a paths-info request


class NotServed(Exception):
    """What was asked for is not here. ``code`` is the Hub's ``X-Error-Code``, by which its client picks the exception."""

    def __init__(self, status: int, message: str, *, code: str | None = None, commit: str | None = None) -> None:
        """Keep what the answer will say."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.commit = commit


def create_app(shelf: Shelf) -> Starlette:
    """Give the application that serves ``shelf``. It keeps no state but what it has read already."""
    hub = _Hub(shelf)
    routes = [Route("/api/models", hub.list_models)]
    for model in ("{name}", "{organization}/{name}"):
        api = f"/api/models/{model}"
        routes += [
            Route(api, hub.model_info),
            Route(f"{api}/revision/{{revision:path}}", hub.model_info),
            Route(f"{api}/refs", hub.refs),
            Route(f"{api}/tree/{{revision}}", hub.tree),
            Route(f"{api}/tree/{{revision}}/{{path:path}}", hub.tree),
            Route(f"{api}/paths-info/{{revision:path}}", hub.paths_info, methods=["POST"]),
            Route(f"/{model}/resolve/{{revision}}/{{path:path}}", hub.resolve),
        ]
    handlers: dict[Any, Callable[[Request, Any], Response | Awaitable[Response]]] = {
        NotServed: _not_served,
        ModelvaultError: _vault_failed,
        OSError: _vault_failed,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    # What is not there is not there: a redirect from "/x/" to "/x" would name addresses that nobody asked for.
    app.router.redirect_slashes = False
    return app


class _Hub:
    """The endpoints. Those that are not ``async`` run in a thread, since the vault reads from disk."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._models = Models(shelf)
        self._views = FileViews(shelf)

    def _snapshots(self, request: Request) -> list[Snapshot]:
        parameters = request.path_params
        organization = parameters.get("organization")
        repository = f"{organization}/{parameters['name']}" if organization else parameters["name"]
        found = snapshots(self._models.by_age(), repository)
        if not found:
            raise NotServed(404, f"Repository not found: {repository}", code="RepoNotFound")
        return found

    def _snapshot(self, request: Request) -> Snapshot:
        revision = request.path_params.get("revision", "main")
        snapshot = at_revision(self._snapshots(request), revision)
        if snapshot is None:
            raise NotServed(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return snapshot

    def list_models(self, request: Request) -> Response:
        """``GET /api/models?search=&author=&filter=&limit=``."""
        query = request.query_params
        search, author = query.get("search", "").casefold(), query.get("author")
        wanted = set(query.getlist("filter"))
        limit = min(_number(query.get("limit"), PAGE), PAGE)
        models = self._models.by_age()
        answer: list[dict[str, Any]] = []
        for repository in repositories(models):
            if search not in repository.casefold() or (author is not None and _author(repository) != author):
                continue
            snapshot = snapshots(models, repository)[-1]
            if wanted <= set(snapshot.tags) and len(answer) < limit:
                answer.append(_summary(snapshot))
        return JSONResponse(answer)

    def model_info(self, request: Request) -> Response:
        """``GET /api/models/{id}[/revision/{rev}][?blobs=true]``."""
        snapshot = self._snapshot(request)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in snapshot.files]
        if _flag(request.query_params.get("blobs")):
            siblings = [_sibling(self._views.view(file)) for file in snapshot.files.values()]
        return JSONResponse({**_summary(snapshot), "siblings": siblings})

    def refs(self, request: Request) -> Response:
        """``GET /api/models/{id}/refs``: the one branch that there is."""
        newest = self._snapshots(request)[-1]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": newest.commit}
        return JSONResponse({"branches": [main], "converts": [], "tags": []})

    def tree(self, request: Request) -> Response:
        """``GET /api/models/{id}/tree/{rev}[/{path}]?recursive=&expand=&limit=&cursor=``."""
        snapshot = self._snapshot(request)
        query = request.query_params
        entries = self._entries(snapshot, expand=_flag(query.get("expand")))
        folder = request.path_params.get("path", "").strip("/")
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise _no_entry(folder, snapshot)
        prefix = f"{folder}/" if folder else ""
        deep = _flag(query.get("recursive"))
        listed = [
            path for path in sorted(entries) if path.startswith(prefix) and (deep or "/" not in path[len(prefix) :])
        ]
        after = query.get("cursor")
        if after is not None:
            listed = [path for path in listed if path > after]
        limit = max(1, min(_number(query.get("limit"), PAGE), PAGE))
        headers = _headers(snapshot)
        if len(listed) > limit:
            following = request.url.include_query_params(cursor=listed[limit - 1])
            headers["Link"] = f'<{following}>; rel="next"'
        return JSONResponse([entries[path] for path in listed[:limit]], headers=headers)

    async def paths_info(self, request: Request) -> Response:
        """``POST /api/models/{id}/paths-info/{rev}`` with the field ``paths``; unknown paths are left out, as on the Hub."""
        paths, expand = _asked_paths(await _body(request), request.headers.get("content-type", ""))
        return await run_in_threadpool(self._paths_info, request, paths, expand=expand)

    def _paths_info(self, request: Request, paths: list[str], *, expand: bool) -> Response:
        snapshot = self._snapshot(request)
        entries = self._entries(snapshot, expand=expand)
        asked = dict.fromkeys(path.strip("/") for path in paths)
        return JSONResponse([entries[path] for path in asked if path in entries], headers=_headers(snapshot))

    def _entries(self, snapshot: Snapshot, *, expand: bool) -> dict[str, dict[str, Any]]:
        """Give every file and directory of a snapshot, by path, as the tree endpoint shows them."""
        views = [self._views.view(file) for file in snapshot.files.values()]
        entries = {view.path: _tree_file(view) for view in views}
        for folder, oid in tree_hashes({view.path: view.oid for view in views}).items():
            if folder:
                entries[folder] = {"type": "directory", "oid": oid, "size": 0, "path": folder}
        if expand:
            # A vault does not know who committed a file and when: the keys are there, as the client expects them, empty.
            for entry in entries.values():
                entry["lastCommit"] = None
        return entries

    def resolve(self, request: Request) -> Response:
        """``GET`` or ``HEAD /{id}/resolve/{rev}/{path}``: the bytes, or one range of them."""
        snapshot = self._snapshot(request)
        path = request.path_params["path"]
        file = snapshot.files.get(path)
        if file is None:
            raise _no_entry(path, snapshot)
        view = self._views.view(file)
        blob = self._shelf.blob_path(view.blob)
        on_disk = blob.stat().st_size
        if on_disk != view.size:
            raise VaultDamaged(f"{blob}: it has {on_disk:,} bytes instead of {view.size:,}", path=str(blob))
        etag = f'"{view.etag}"'
        headers = {
            **_headers(snapshot),
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rpartition('/')[2], safe='')}",
            "X-Content-Type-Options": "nosniff",
        }
        if view.is_lfs:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(view.size)}
        try:
            # A range of another version of the file would be mixed with what the client has: give it the whole one.
            current = request.headers.get("if-range") in {None, etag}
            span = parse_range(request.headers.get("range"), view.size) if current else None
        except UnsatisfiableRange:
            return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{view.size}"})
        if span is None:
            return FileBytes(blob, Span(0, view.size), status_code=200, headers=headers)
        headers["Content-Range"] = span.content_range(view.size)
        return FileBytes(blob, span, status_code=206, headers=headers)


def _headers(snapshot: Snapshot) -> dict[str, str]:
    return {"X-Repo-Commit": snapshot.commit}


def _author(repository: str) -> str | None:
    organization, slash, _ = repository.partition("/")
    return organization if slash else None


def _summary(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "_id": snapshot.commit[:24],
        "id": snapshot.repository,
        "modelId": snapshot.repository,
        "author": _author(snapshot.repository),
        "sha": snapshot.commit,
        "private": False,
        "gated": False,
        "disabled": False,
        "tags": list(snapshot.tags),
        "cardData": {"license": snapshot.license} if snapshot.license else {},
    }


def _sibling(view: HubFile) -> dict[str, Any]:
    lfs = {"sha256": view.blob.hex, "size": view.size, "pointerSize": view.pointer_size}
    plain = {"rfilename": view.path, "size": view.size, "blobId": view.oid}
    return {**plain, "lfs": lfs} if view.is_lfs else plain


def _tree_file(view: HubFile) -> dict[str, Any]:
    lfs = {"oid": view.blob.hex, "size": view.size, "pointerSize": view.pointer_size}
    plain = {"type": "file", "oid": view.oid, "size": view.size, "path": view.path}
    return {**plain, "lfs": lfs} if view.is_lfs else plain


def _flag(value: str | None) -> bool:
    return value is not None and value.lower() in {"true", "1"}


def _number(value: str | None, default: int) -> int:
    return int(value) if value is not None and _COUNT.fullmatch(value) else default


async def _body(request: Request) -> bytes:
    pieces = bytearray()
    async for piece in request.stream():
        pieces += piece
        if len(pieces) > _LARGEST_FORM:
            raise NotServed(413, "The request is too large")
    return bytes(pieces)


def _asked_paths(body: bytes, content_type: str) -> tuple[list[str], bool]:
    """Read ``paths`` and ``expand`` from a form (the Python client) or from JSON (the JavaScript one)."""
    try:
        if content_type.partition(";")[0].strip() == "application/json":
            document = json.loads(body)
            paths, expand = document["paths"], document.get("expand") is True
        else:
            form = parse_qs(body.decode("utf-8"), strict_parsing=False)
            paths, expand = form.get("paths", []), _flag(form.get("expand", [""])[0])
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ValueError("paths is not a list of strings")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise NotServed(400, f"The request cannot be read: {type(error).__name__}") from error
    return paths, expand


def _no_entry(path: str, snapshot: Snapshot) -> NotServed:
    return NotServed(404, f"Entry not found: {path}", code="EntryNotFound", commit=snapshot.commit)


def _error(status: int, message: str, extra: dict[str, str]) -> Response:
    # The message may quote the request, and a header's value is one line of Latin-1 that ends in no space.
    plain = "".join(character if character.isprintable() else "?" for character in message)
    text = plain.encode("ascii", "backslashreplace").decode("ascii")[:400].strip()
    return JSONResponse({"error": text}, status_code=status, headers={"X-Error-Message": text, **extra})


def _not_served(_request: Request, error: NotServed) -> Response:
    named = {"X-Error-Code": error.code, "X-Repo-Commit": error.commit}
    return _error(error.status, error.message, {key: value for key, value in named.items() if value is not None})


def _vault_failed(request: Request, error: ModelvaultError | OSError) -> Response:
    """Tell the client that it is our fault, and whoever runs the server what it was: paths of this machine stay on it."""
    _LOG.error("%s %s: %s", request.method, request.url.path, error)
    kind = error.slug if isinstance(error, ModelvaultError) else error.strerror or "not readable"
    return _error(500, f"The vault cannot give what it lists: {kind}", {})
