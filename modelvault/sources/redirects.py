"""Redirects, followed by hand: storage behind a source is remembered for each file, and never sees the source's token."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin

import urllib3

from modelvault.errors import SourceUnavailable, Transient
from modelvault.sources.http import Web, dismiss, is_address, origin

_HOPS = 5
_RESOLVES = 3
_REDIRECTS = {301, 302, 303, 307, 308}
_EXPIRED = {401, 403, 404, 410}


@dataclass(frozen=True, slots=True)
class Reached:
    """An answer that is no redirect, and who gave it: the source itself (``at_home``), or storage that it points to."""

    response: urllib3.BaseHTTPResponse
    host: str
    at_home: bool


class Redirects:
    """Finds the bytes behind the addresses of one source. Safe in any thread."""

    def __init__(self, web: Web, home: str, agent: str, *, encrypted: bool = False) -> None:
        """Remember the source's own address, and what to call ourselves elsewhere.

        ``encrypted``: a source that is asked over HTTPS may not send us to plain HTTP. Blobs are verified in any case; what says
        which blobs is not.
        """
        self._web = web
        self._encrypted = encrypted and origin(home)[0] == "https"
        self._home = home
        self._agent = agent
        self._stored: dict[str, str] = {}
        self._lock = threading.Lock()

    def open(
        self, url: str, wanted: Mapping[str, str], ask: Callable[[str], urllib3.BaseHTTPResponse], *, what: str
    ) -> Reached:
        """Follow redirects from ``url``, and from there anew when an address that was remembered has run out.

        ``ask`` asks the source itself, ``wanted`` are the headers for others, ``what`` is what to call the file in errors. Raises
        ``Transient`` or ``SourceUnavailable``.
        """
        for _ in range(_RESOLVES):
            reached, stored = self._follow(url, wanted, ask)
            if stored is None or reached.response.status not in _EXPIRED:
                return reached
            # A signed address that ran out; another thread may have fetched a new one in the meantime.
            dismiss(reached.response)
            self._forget(url, stored)
        raise SourceUnavailable(
            f"{what}: {reached.host} refuses the address that {self._home} signed for it (status {reached.response.status})",
            hint=f"make sure that {reached.host} can be reached from here: a proxy or firewall may stand between",
        )

    def lead(self, url: str, location: str) -> None:
        """Remember that what ``url`` names has its bytes at ``location``."""
        with self._lock:
            self._stored[url] = self._target(url, location)

    def _follow(
        self, url: str, wanted: Mapping[str, str], ask: Callable[[str], urllib3.BaseHTTPResponse]
    ) -> tuple[Reached, str | None]:
        """Give the answer, and the address of storage that it came by, if any."""
        key, home = url, origin(self._home)
        stored = self._stored.get(key)
        url = stored or url
        for _ in range(_HOPS):
            at_home = origin(url) == home
            # The token is for the source alone: the storage behind it has its signature in the address.
            response = ask(url) if at_home else self._web.get(url, {"user-agent": self._agent, **wanted})
            if response.status not in _REDIRECTS:
                return Reached(response, origin(url)[1], at_home), stored
            dismiss(response)
            target = self._target(url, response.headers.get("location", ""))
            if origin(target) != home and stored is None:
                stored = target
                with self._lock:
                    self._stored[key] = target
            url = target
        raise Transient("too many redirects")

    def _forget(self, url: str, stored: str) -> None:
        with self._lock:
            if self._stored.get(url) == stored:
                del self._stored[url]

    def _target(self, url: str, location: str) -> str:
        """Give the address that an answer from ``url`` points to. Raises ``SourceUnavailable`` for what is none."""
        try:
            target = urljoin(url, location)
        except ValueError:  # as in is_address
            target = ""
        if not is_address(target) or (self._encrypted and origin(target)[0] != "https"):
            what = "plain HTTP" if is_address(target) else "what is no address"
            raise SourceUnavailable(
                f"{origin(url)[1]} redirects to {what}: {location[:200]!r}",
                hint="check --endpoint; a proxy or login page of the network may stand between",
            )
        return target
