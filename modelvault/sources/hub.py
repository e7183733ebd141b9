"""The Hugging Face Hub, or a mirror that speaks its protocol. The only module that imports huggingface_hub.

huggingface_hub does names, tokens, listings and errors; the bytes go through ``sources.http``, because the client fetches
a file over one connection, from the start, and checks no digest.
"""

import contextlib
import itertools
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

# Read when huggingface_hub is imported; without it the client reports which agent runs it.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import httpx2
import urllib3
from huggingface_hub import HfApi, ModelInfo, constants, hf_hub_url, is_offline_mode, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but loaded lazily

from modelvault import __version__
from modelvault.artifact import Algorithm, Digest, SourceFile, check_link
from modelvault.errors import SourceUnavailable, Transient, UsageProblem
from modelvault.sources import Snapshot
from modelvault.sources.certificates import certificates
from modelvault.sources.http import RangeStream, Web, check_range, chunk_size, is_address, proxy_for, retry_after
from modelvault.sources.redirects import Redirects
from modelvault.sources.refusal import Asked, refusal

_T = TypeVar("_T")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_ATTEMPTS = 5
_PATIENCE = 300.0  # seconds that the listing waits if the hub asks for it
_MAX_FILES = 100_000  # files and folders of a repository; the Hub itself advises to stay below that
_MAX_REQUESTS = 2_000  # for one model: pages of 50 files, and room for retries; the Hub's pages have 1000
_OK = {200, 206}
_BUSY = {408, 425, 429, 500, 502, 503, 504}


class HubSource:
    """A ``Source`` over the Hub's protocol."""

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        token: str | None = None,
        connections: int = 8,
        patience: float = _PATIENCE,
    ) -> None:
        """Prepare; nothing is sent. ``endpoint`` beats ``HF_ENDPOINT``, ``token`` beats ``HF_TOKEN`` and the stored login.

        ``patience`` is for how many seconds a busy hub may ask us to wait before it lists anything.
        """
        self._patience = patience
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        if not is_address(self.endpoint):
            raise UsageProblem(
                f"not an endpoint: {self.endpoint!r}", hint="an endpoint looks like https://huggingface.co"
            )
        proxy_for(self.endpoint)  # one that is no address must be named as such, before either client meets it
        token = token or None
        context = certificates()
        set_client_factory(lambda: _client(context, itertools.count(1)))
        self._headers = build_hf_headers(token=token, library_name="modelvault", library_version=__version__)
        self._api = HfApi(endpoint=self.endpoint, token=token, library_name="modelvault", library_version=__version__)
        self._web = Web(context, connections)
        self._redirects = Redirects(self._web, self.endpoint, self._headers["user-agent"])

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        """Pin the revision and list its files. Raises ``SourceUnavailable`` with a hint for the case at hand."""
        asked = Asked(self.endpoint, repository, revision, None, token="authorization" in self._headers)
        info = _listed(asked, lambda: self._api.model_info(repository, revision=revision, timeout=30.0), self._patience)
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit):
            raise SourceUnavailable(f"{self.endpoint} names no commit for {repository}", hint="is it a hub?")
        files = _listed(
            asked,
            lambda: _files(self._api.list_repo_tree(repository, recursive=True, revision=commit)),
            0.0,
            attempts=1,
        )
        return Snapshot(
            repository=repository,
            commit=commit,
            files=files,
            license=_license(info),
            gated=bool(info.gated),
            parameters=_parameters(info),
            license_link=_license_link(info),
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
        url = hf_hub_url(snapshot.repository, file.path, revision=snapshot.commit, endpoint=self.endpoint)
        reached = self._redirects.open(
            url, wanted, lambda address: self._ask(snapshot, address, wanted), what=file.path
        )
        try:
            self._check(reached.response, snapshot, file, self.endpoint if reached.at_home else reached.host)
            check_range(reached.response, start, stop, file.size)
        except BaseException:
            reached.response.close()
            raise
        return reached.response, reached.host

    def _ask(self, snapshot: Snapshot, url: str, wanted: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """Ask the hub itself, with the token."""
        response = self._web.get(url, {**self._headers, **wanted})
        self._check_commit(response, snapshot)
        return response

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


# -- the listing


def _listed(asked: Asked, call: Callable[[], _T], patience: float, attempts: int = _ATTEMPTS) -> _T:
    """Call huggingface_hub; its errors become ours. ``model_info`` does not retry by itself, so that is done here."""
    for attempt in range(1, attempts + 1):
        try:
            return call()
        except OfflineModeIsEnabled as error:
            raise _offline(asked.endpoint) from error
        except HfHubHTTPError as error:
            status, headers = error.response.status_code, error.response.headers
            wait = retry_after(headers)
            if status not in _BUSY or attempt == attempts or (wait or 0.0) > patience:
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


def _license_link(info: ModelInfo) -> str | None:
    """Read where the license's text lies. A file of the repository is no link: it comes along."""
    card = info.card_data
    link = card.get("license_link") if card is not None else None
    if not isinstance(link, str):
        return None
    with contextlib.suppress(UsageProblem):  # a garbled one counts as none, as above
        return check_link(link.strip())
    return None


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


def _client(context: ssl.SSLContext, requests: Iterator[int]) -> httpx2.Client:
    def before(request: httpx2.Request) -> None:
        if is_offline_mode():
            raise OfflineModeIsEnabled(f"cannot reach {request.url}")
        if next(requests) > _MAX_REQUESTS:  # a listing of pages without files, each leading to the next, never ends
            raise ValueError(f"its listing has more than {_MAX_REQUESTS:,} pages")
        # huggingface_hub asks for no time limit at all in its listings; a dead connection would hang for ever.
        request.extensions["timeout"] = httpx2.Timeout(30.0).as_dict()

    return httpx2.Client(event_hooks={"request": [before]}, follow_redirects=True, timeout=30.0, verify=context)
