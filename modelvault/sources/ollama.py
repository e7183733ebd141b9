"""Ollama's registry, and others that speak its protocol, as the client of release 0.24.0 does (``server/download.go``).

A manifest names the layers by their digests; the bytes lie at the registry, or at storage that it redirects to.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import urllib3

from modelvault import __version__
from modelvault.artifact import Digest, SourceFile
from modelvault.errors import DigestMismatch, SourceUnavailable, Transient, UsageProblem
from modelvault.formats.ollama import MANIFEST_FILE, MANIFEST_TYPE, MAX_MANIFEST, decode_manifest, listed_files
from modelvault.ollama_name import DEFAULT_HOST, OllamaName
from modelvault.sources import Snapshot
from modelvault.sources.certificates import certificates
from modelvault.sources.http import (
    RangeStream,
    Web,
    check_range,
    chunk_size,
    dismiss,
    is_address,
    proxy_for,
    retry_after,
)
from modelvault.sources.ollama_login import BUSY, Login
from modelvault.sources.redirects import Redirects
from modelvault.strictjson import decode_object

_T = TypeVar("_T")
_AGENT = f"modelvault/{__version__}"
_ATTEMPTS = 5
_PATIENCE = 300.0  # seconds that the manifest waits if the registry asks for it
_MAX_ERROR = 64 << 10  # bytes
_DIGEST_HEADERS = ("docker-content-digest", "ollama-content-digest")


class OllamaSource:
    """A ``Source`` over the protocol of Ollama's registries; a repository is ``host/namespace/model:tag``."""

    def __init__(self, endpoint: str, *, connections: int = 8, key: Path | None = None) -> None:
        """Prepare; nothing is sent. ``endpoint`` is the registry's address, ``key`` the file that Ollama signs with."""
        self.endpoint = endpoint.rstrip("/")
        if not is_address(self.endpoint):
            raise UsageProblem(
                f"not the address of a registry: {self.endpoint!r}", hint=f"it looks like https://{DEFAULT_HOST}"
            )
        proxy_for(self.endpoint)  # one that is no address must be named as such
        self._web = Web(certificates(), connections)
        self._login = Login(self._web, self.endpoint, _AGENT, key or Path.home() / ".ollama" / "id_ed25519")
        self._redirects = Redirects(self._web, self.endpoint, _AGENT, encrypted=True)
        self._manifests: dict[str, bytes] = {}

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        """Fetch the manifest of a tag, whose SHA-256 becomes the commit; or the one of the ``revision``, a commit, if one is given.

        Raises ``SourceUnavailable`` with a hint for the case at hand, ``DigestMismatch`` for a manifest that was changed on the way, and
        ``UsageProblem`` for a revision that is none.
        """
        name, wanted = OllamaName.parse(repository), _commit(revision)
        data = self._patiently(lambda: self._manifest(name, wanted))
        commit = Digest.of_bytes(data).hex
        try:
            manifest = decode_manifest(data)
        except ValueError as error:
            raise SourceUnavailable(
                f"{self.endpoint} does not answer like a registry of Ollama's: {error}",
                hint="check the registry's address; a login page of the network may stand between",
            ) from error
        self._manifests[commit] = data
        files = listed_files(manifest, commit, len(data))
        return Snapshot(name.repository, commit, files, license=None, gated=False)

    def open_range(
        self, snapshot: Snapshot, file: SourceFile, start: int, stop: int
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Open a range of a file. Raises ``Transient``, ``RangesIgnored`` or ``SourceUnavailable``, on entry or while reading."""
        if file.path == MANIFEST_FILE:
            return contextlib.nullcontext(iter([self._manifests[snapshot.commit][start:stop]]))
        return RangeStream(
            lambda: self._connect(snapshot, file, start, stop), length=stop - start, chunk=chunk_size(file.size)
        )

    def close(self) -> None:
        """Close the connections."""
        self._web.close()

    # -- the manifest

    def _manifest(self, name: OllamaName, wanted: Digest | None) -> bytes:
        """Fetch the manifest that is ``wanted``, or else the one of the tag."""
        if wanted is not None and (data := self._manifest_blob(name, wanted)) is not None:
            return data
        with self._asked(name, f"manifests/{name.tag}") as response:
            if response.status != HTTPStatus.OK:
                raise self._refusal(name, response)
            data = response.read(MAX_MANIFEST + 1)
        actual = Digest.of_bytes(data)
        for said in filter(None, (response.headers.get(header) for header in _DIGEST_HEADERS)):
            if said != str(actual):
                raise DigestMismatch(
                    f"{name}: the registry promised the manifest {said} and sent {actual}",
                    hint="run the same command again; a proxy on the way may change what it carries",
                    expected=said,
                    actual=str(actual),
                )
        if wanted not in {None, actual}:
            raise SourceUnavailable(
                f"{name} is at {actual.hex} by now, and {self.endpoint} gives no other manifest",
                hint="the tag was moved: leave --revision out to take what it names today",
            )
        return data

    def _manifest_blob(self, name: OllamaName, wanted: Digest) -> bytes | None:
        """Fetch a manifest by its digest, as Ollama's newer client does; ``None`` where the registry does not offer that."""
        try:
            with self._asked(name, f"blobs/{wanted}") as response:
                data = response.read(MAX_MANIFEST + 1) if response.status == HTTPStatus.OK else b""
        except SourceUnavailable:
            return None  # what is really wrong shows when the tag is asked for
        return data if Digest.of_bytes(data) == wanted else None

    @contextlib.contextmanager
    def _asked(self, name: OllamaName, what: str) -> Iterator[urllib3.BaseHTTPResponse]:
        url = f"{self.endpoint}/v2/{name.namespace}/{name.model}/{what}"
        wanted = {"accept": MANIFEST_TYPE, "accept-encoding": "identity"}
        response = self._redirects.open(url, wanted, lambda at: self._ask(at, wanted), what=str(name)).response
        try:
            if response.status in BUSY:
                raise _busy(response)
            yield response
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Transient("the connection broke") from error
        finally:
            response.close()

    def _patiently(self, call: Callable[[], _T]) -> _T:
        """Try again as long as the registry is just busy."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return call()
            except Transient as error:
                if attempt == _ATTEMPTS or (error.retry_after or 0.0) > _PATIENCE:
                    raise SourceUnavailable(
                        f"cannot reach {self.endpoint}: {error.reason}",
                        hint="check the network, HTTPS_PROXY and the registry's address; "
                        "on an isolated machine, import a bundle or use add --from-ollama instead",
                        endpoint=self.endpoint,
                    ) from error
                time.sleep(0.25 * 2**attempt if error.retry_after is None else error.retry_after)
        raise AssertionError("the last attempt returns or raises")

    # -- bytes

    def _connect(
        self, snapshot: Snapshot, file: SourceFile, start: int, stop: int
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Get an answer that carries the range, from the registry or from where it points to, and its host."""
        whole = (start, stop) == (0, file.size)
        wanted = {"accept-encoding": "identity"} | ({} if whole else {"range": f"bytes={start}-{stop - 1}"})
        _, _, path = snapshot.repository.partition("/")
        url = f"{self.endpoint}/v2/{path}/blobs/{file.digest}"
        reached = self._redirects.open(url, wanted, lambda at: self._ask(at, wanted), what=file.path)
        if location := _elsewhere(reached.response, file.size, whole=whole):
            reached.response.close()
            self._redirects.lead(url, location)
            reached = self._redirects.open(url, wanted, lambda at: self._ask(at, wanted), what=file.path)
        response = reached.response
        try:
            if response.status in BUSY:
                raise _busy(response)
            if response.status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
                raise self._blob_refusal(file, reached.host, response)
            check_range(response, start, stop, file.size)
        except BaseException:
            response.close()
            raise
        return response, reached.host

    def _ask(self, url: str, wanted: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """Ask the registry itself, with a token if it wants one."""
        used = self._login.headers()
        response = self._web.get(url, {**used, **wanted})
        if response.status != HTTPStatus.UNAUTHORIZED:
            return response
        dismiss(response)
        self._login.renew(response.headers.get("www-authenticate", ""), used)
        return self._web.get(url, {**self._login.headers(), **wanted})

    # -- refusals

    def _refusal(self, name: OllamaName, response: urllib3.BaseHTTPResponse) -> SourceUnavailable:
        said = _said(response)
        facts = {"endpoint": self.endpoint, "repository": name.repository, "status": response.status}
        if response.status == HTTPStatus.NOT_FOUND:
            page = f"https://ollama.com/{name.namespace}/{name.model}/tags"
            where = f"{page} lists the tags" if name.host.lower() == DEFAULT_HOST else "a tag is written after a colon"
            return SourceUnavailable(
                f"{self.endpoint} has no model {name}", hint=f"check the spelling of name and tag: {where}", **facts
            )
        if response.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return SourceUnavailable(
                f"{self.endpoint} refuses access to {name}{said}",
                hint="check the spelling; a private model needs the key of an account that may read it, in ~/.ollama",
                **facts,
            )
        return SourceUnavailable(
            f"{self.endpoint} refuses {name} (status {response.status}{said})",
            hint="check the registry's address",
            **facts,
        )

    def _blob_refusal(self, file: SourceFile, host: str, response: urllib3.BaseHTTPResponse) -> SourceUnavailable:
        return SourceUnavailable(
            f"{host} refuses {file.path} ({file.digest}; status {response.status}{_said(response)})",
            hint="run the same command again; if that does not help, the registry lacks a part of the model",
            status=response.status,
        )


def _commit(revision: str | None) -> Digest | None:
    """Read a revision, which is a manifest's SHA-256: tags stand in the name."""
    if revision is None:
        return None
    try:
        return Digest.sha256(revision.removeprefix("sha256:"))
    except ValueError as error:
        raise UsageProblem(
            f"not a revision of a model of Ollama's: {revision[:80]!r}",
            hint="it is the SHA-256 of the manifest, 64 hex digits; a tag is written in the name: ollama:NAME:TAG",
        ) from error


def _elsewhere(response: urllib3.BaseHTTPResponse, size: int, *, whole: bool) -> str | None:
    """Say where a registry wants to be asked for ranges: it may answer 200 with a ``Location``, and whatever body."""
    if response.status != HTTPStatus.OK or (whole and response.headers.get("content-length") == str(size)):
        return None
    return response.headers.get("location")


def _busy(response: urllib3.BaseHTTPResponse) -> Transient:
    return Transient(f"the registry answers {response.status}", retry_after=retry_after(response.headers))


def _said(response: urllib3.BaseHTTPResponse) -> str:
    """Give what a registry says about a refusal, for the end of a sentence."""
    try:
        document = decode_object(response.read(_MAX_ERROR))
        errors = document.get("errors")
        first = errors[0] if isinstance(errors, list) and errors else {"message": document.get("error")}
        return f": {str(first['message'])[:500]}" if first.get("message") else ""
    except (ValueError, KeyError, AttributeError, urllib3.exceptions.HTTPError, OSError):
        return ""
