"""The Hugging Face Hub, or a mirror that speaks its protocol. The only module that imports huggingface_hub.

huggingface_hub does names, tokens, listings and errors; the bytes go through ``sources.http``, because the client fetches
a file over one connection, from the start, and checks no digest.
"""

import itertools
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar
from urllib.parse import urljoin

# Read when huggingface_hub is imported; without it the client reports which agent runs it.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import httpx2
import urllib3
from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_url, is_offline_mode, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but loaded lazily

from modelvault import __version__
from modelvault.artifact import Algorithm, Digest, SourceFile
from modelvault.errors import SourceUnavailable, Transient, UsageProblem
from modelvault.sources import Snapshot
from modelvault.sources.http import (
    RangeStream,
    Web,
    check_range,
    chunk_size,
    dismiss,
    is_address,
    origin,
    proxy_for,
    retry_after,
)
from modelvault.sources.refusal import Asked, refusal

_T = TypeVar("_T")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_ATTEMPTS = 5
_PATIENCE = 300.0  # seconds that the listing waits if the hub asks for it
_HOPS = 5
_RESOLVES = 3
_MAX_FILES = 100_000  # files and folders of a repository; the Hub itself advises to stay below that
_MAX_REQUESTS = 2_000  # for one model: pages of 50 files, and room for retries; the Hub's pages have 1000
_OK = {200, 206}
_REDIRECTS = {301, 302, 303, 307, 308}
_EXPIRED = {401, 403, 404, 410}
_BUSY = {408, 425, 429, 500, 502, 503, 504}


class HubSource:
    """A ``Source`` over the Hub's protocol."""

    def __init__(self, endpoint: str | None = None, *, token: str | None = None, connections: int = 8) -> None:
        """Prepare; nothing is sent. ``endpoint`` beats ``HF_ENDPOINT``, ``token`` beats ``HF_TOKEN`` and the stored login."""
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        if not is_address(self.endpoint):
            raise UsageProblem(
                f"not an endpoint: {self.endpoint!r}", hint="an endpoint looks like https://huggingface.co"
            )
        proxy_for(self.endpoint)  # one that is no address must be named as such, before either client meets it
        token = token or None
        context = _certificates()
        set_client_factory(lambda: _client(context, itertools.count(1)))
        self._headers = build_hf_headers(token=token, library_name="modelvault", library_version=__version__)
        self._api = HfApi(endpoint=self.endpoint, token=token, library_name="modelvault", library_version=__version__)
        self._web = Web(context, connections)
        self._signed: dict[tuple[str, str, str], str] = {}
        self._lock = threading.Lock()

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        """Pin the revision and list its files. Raises ``SourceUnavailable`` with a hint for the case at hand."""
        asked = Asked(self.endpoint, repository, revision, None, token="authorization" in self._headers)
        info = _listed(asked, lambda: self._api.model_info(repository, revision=revision, timeout=30.0))
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):
            raise SourceUnavailable(f"{self.endpoint} names no commit for {repository}", hint="is it a hub?")
        files = _listed(
            asked, lambda: _files(self._api.list_repo_tree(repository, recursive=True, revision=commit)), attempts=1
        )
        return Snapshot(
            repository=repository,
            commit=commit,
            files=files,
            license=_license(info),
            gated=bool(info.gated),
            parameters=_parameters(info),
        )

    def open_range(
        self, snapshot: Snapshot, file: SourceFile, start: int, stop: int
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Open a range of a file. Raises ``Transient``, ``RangesIgnored`` or ``SourceUnavailable``, on entry or while reading."""
        return RangeStream(
            lambda: self._connect(snapshot, file, start, stop), length=stop - start, chunk=chunk_size(file.size)
        )

    def close(self) -> None:
        """Close the connections."""
        self._web.close()

    # -- bytes

    def _connect(
        self, snapshot: Snapshot, file: SourceFile, start: int, stop: int
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """Get an answer that carries the range, from the hub itself or from the storage that it points to, and its host."""
        if is_offline_mode():
            raise _offline(self.endpoint)
        wanted = {"accept-encoding": "identity"}
        if (start, stop) != (0, file.size):
            wanted["range"] = f"bytes={start}-{stop - 1}"
        for _ in range(_RESOLVES):
            response, signed = self._follow(snapshot, file, wanted)
            host = origin(signed or self.endpoint)[1]
            if signed is None or response.status not in _EXPIRED:
                try:
                    self._check(response, snapshot, file, self.endpoint if signed is None else host)
                    check_range(response, start, stop, file.size)
                except BaseException:
                    response.close()
                    raise
                return response, host
            # A signed address that ran out; another thread may have fetched a new one in the meantime.
            dismiss(response)
            self._forget(snapshot, file, signed)
        raise SourceUnavailable(
            f"{file.path}: {host} refuses the address that {self.endpoint} signed for it (status {response.status})",
            hint=f"make sure that {host} can be reached from here: a proxy or firewall may stand between",
        )

    def _follow(
        self, snapshot: Snapshot, file: SourceFile, wanted: dict[str, str]
    ) -> tuple[urllib3.BaseHTTPResponse, str | None]:
        """Follow redirects by hand; returns the answer, and the signed address if another origin gave it."""
        key = (snapshot.repository, snapshot.commit, file.path)
        home = origin(self.endpoint)
        signed = self._signed.get(key)
        url = signed or hf_hub_url(snapshot.repository, file.path, revision=snapshot.commit, endpoint=self.endpoint)
        for _ in range(_HOPS):
            at_home = origin(url) == home
            # The token is for the hub alone: the storage behind it has its signature in the address.
            identity = self._headers if at_home else {"user-agent": self._headers["user-agent"]}
            response = self._web.get(url, {**identity, **wanted})
            if at_home:
                self._check_commit(response, snapshot)
            if response.status not in _REDIRECTS:
                return response, None if at_home else signed
            dismiss(response)
            target = _redirected(url, response.headers.get("location", ""))
            if origin(target) != home and signed is None:
                signed = target
                with self._lock:
                    self._signed[key] = target
            url = target
        raise Transient("too many redirects")

    def _forget(self, snapshot: Snapshot, file: SourceFile, signed: str) -> None:
        key = (snapshot.repository, snapshot.commit, file.path)
        with self._lock:
            if self._signed.get(key) == signed:
                del self._signed[key]

    def _check_commit(self, response: urllib3.BaseHTTPResponse, snapshot: Snapshot) -> None:
        commit = response.headers.get("x-repo-commit", snapshot.commit)
        if commit != snapshot.commit:
            response.close()
            raise SourceUnavailable(
                f"{self.endpoint} answers with commit {commit} of {snapshot.repository}, not with {snapshot.commit}",
                hint="a cache on the way may be stale; try another endpoint",
            )

    def _check(self, response: urllib3.BaseHTTPResponse, snapshot: Snapshot, file: SourceFile, endpoint: str) -> None:
        if response.status in _BUSY:
            raise Transient(f"the source answers {response.status}", retry_after=retry_after(response.headers))
        if response.status not in _OK:
            token = "authorization" in self._headers
            asked = Asked(endpoint, snapshot.repository, snapshot.commit, file.path, token=token)
            raise refusal(asked, response.status, response.headers)


def _redirected(url: str, location: str) -> str:
    """Give the address that an answer from ``url`` points to."""
    try:
        target = urljoin(url, location)
    except ValueError:  # as in is_address
        target = ""
    if not is_address(target):
        raise SourceUnavailable(
            f"{origin(url)[1]} redirects to what is no address: {location[:200]!r}",
            hint="check --endpoint and HF_ENDPOINT; a proxy or login page of the network may stand between",
        )
    return target


# -- the listing


def _listed(asked: Asked, call: Callable[[], _T], attempts: int = _ATTEMPTS) -> _T:
    """Call huggingface_hub; its errors become ours. ``model_info`` does not retry by itself, so that is done here."""
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except OfflineModeIsEnabled as error:
            raise _offline(asked.endpoint) from error
        except HfHubHTTPError as error:
            status, headers = error.response.status_code, error.response.headers
            wait = retry_after(headers)
            if status not in _BUSY or attempt == attempts or (wait or 0.0) > _PATIENCE:
                raise refusal(asked, status, headers) from error
            time.sleep(0.25 * 2**attempt if wait is None else wait)
        except HFValidationError as error:
            raise SourceUnavailable(f"not the name of a repository: {asked.repository}", hint=str(error)) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise _unreachable(asked.endpoint, error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceUnavailable(
                f"{asked.endpoint} does not answer like a hub: {error}",
                hint="check --endpoint and HF_ENDPOINT; a login page of the network may stand between",
            ) from error
    raise AssertionError("the last attempt returns or raises")


def _files(entries: Any) -> tuple[SourceFile, ...]:
    listed = list(itertools.islice(entries, _MAX_FILES + 1))
    if len(listed) > _MAX_FILES:  # a listing whose last page leads back to the first never ends
        raise ValueError(f"it lists more than {_MAX_FILES:,} files")
    files = [
        SourceFile(
            path=entry.path,
            size=entry.size if entry.lfs is None else entry.lfs.size,
            digest=Digest(Algorithm.GIT_SHA1, entry.blob_id) if entry.lfs is None else Digest.sha256(entry.lfs.sha256),
        )
        for entry in listed
        if isinstance(entry, RepoFile)
    ]
    if len({file.path for file in files}) != len(files):
        raise ValueError("a path is listed twice")
    return tuple(sorted(files, key=lambda file: file.path))


def _license(info: ModelInfo) -> str | None:
    card = info.card_data
    named = card.get("license") if card is not None else None
    if named == "other" and card is not None:
        named = card.get("license_name") or named
    tags = (tag.partition(":")[2] for tag in info.tags or () if tag.startswith("license:"))
    # A garbled one counts as none: anybody may write a card.
    return next((text for text in (named, *tags) if isinstance(text, str) and text and text.isprintable()), None)


def _parameters(info: ModelInfo) -> int | None:
    """Read how many weights the hub has counted in a GGUF repository."""
    total = info.gguf.get("total") if isinstance(info.gguf, dict) else None
    return total if type(total) is int and total > 0 else None


def _offline(endpoint: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"{endpoint} was not asked: offline mode is on", hint="unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE)"
    )


def _unreachable(endpoint: str, error: Exception) -> SourceUnavailable:
    return SourceUnavailable(
        f"cannot reach {endpoint}: {error}",
        hint="check the network, HTTPS_PROXY and --endpoint; on an isolated machine, import a bundle instead",
        endpoint=endpoint,
    )


# -- the client


def _certificates() -> ssl.SSLContext:
    """Trust what the environment names, as curl and requests do; else what httpx2 finds, so that both clients agree."""
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        bundle = os.environ.get(variable)
        if bundle and not os.environ.get("SSL_CERT_FILE"):
            return _context(variable, bundle)
    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        raise UsageProblem(
            f"cannot read the certificates that SSL_CERT_FILE or SSL_CERT_DIR names: {error}",
            hint="correct the variable, or unset it",
        ) from error


def _context(variable: str, bundle: str) -> ssl.SSLContext:
    try:
        if os.path.isdir(bundle):  # noqa: PTH112 (a string from the environment, handed on as it is)
            return ssl.create_default_context(capath=bundle)
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:
        raise UsageProblem(
            f"cannot read the certificates that {variable} names: {error}", hint="correct the variable, or unset it"
        ) from error


def _client(context: ssl.SSLContext, requests: Iterator[int]) -> httpx2.Client:
    def before(request: httpx2.Request) -> None:
        if is_offline_mode():
            raise OfflineModeIsEnabled(f"cannot reach {request.url}")
        if next(requests) > _MAX_REQUESTS:  # a listing of pages without files, each leading to the next, never ends
            raise ValueError(f"its listing has more than {_MAX_REQUESTS:,} pages")
        # huggingface_hub asks for no time limit at all in its listings; a dead connection would hang for ever.
        request.extensions["timeout"] = httpx2.Timeout(30.0).as_dict()

    return httpx2.Client(event_hooks={"request": [before]}, follow_redirects=True, timeout=30.0, verify=context)
