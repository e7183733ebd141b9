"""Ranges of bytes over HTTP with urllib3: proxies and certificates as the environment says, nothing retried here.

urllib3 moves bytes four times as fast as the client that huggingface_hub uses (docs/explanation/dependencies.md).
"""

import contextlib
import email.utils
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from modelvault.errors import RangesIgnored, SourceUnavailable, Transient

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
"""Seconds without a single byte after which a connection counts as broken."""

_CHUNK_MIN = 64 << 10
_CHUNK_MAX = 1 << 20
_DRAIN = 64 << 10
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_RATE_LIMIT = re.compile(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")  # RateLimit: "api";r=0;t=55, as the Hub sends it
_PORTS = {"http": 80, "https": 443}


def origin(url: str) -> tuple[str, str, int]:
    """Give scheme, host and port: what must be equal for a token to be sent."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def is_address(url: str) -> bool:
    """Tell whether this is the address of something on the web."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an address in them, a port that is none
        return False


def chunk_size(size: int) -> int:
    """Give the bytes to read at once from a file of ``size`` bytes: few enough that a killed process loses little."""
    return min(max(1 << max((size >> 10).bit_length() - 1, 0), _CHUNK_MIN), _CHUNK_MAX)


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Read how many seconds a server asks us to wait: ``Retry-After`` (seconds or a date), or the Hub's ``RateLimit``."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    if value:
        try:
            moment = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None  # neither of the two forms that the standard knows: as if it were not there
        return max(moment.timestamp() - (time.time() if now is None else now), 0.0)
    match = _RATE_LIMIT.search(headers.get("ratelimit", ""))
    return float(match[1]) if match else None


class Web:
    """urllib3's connection pools, one set for each proxy that the environment names. Safe in any thread."""

    def __init__(self, context: ssl.SSLContext, connections: int) -> None:
        """Prepare for that many connections at once; opens none."""
        self._context = context
        self._connections = connections
        self._managers: dict[str | None, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def get(self, url: str, headers: Mapping[str, str]) -> urllib3.BaseHTTPResponse:
        """Ask, and return as soon as the headers are here; redirects are the caller's. Raises ``Transient``."""
        try:
            return self._manager(url).request(
                "GET",
                url,
                headers=dict(headers),
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except LocationValueError as error:
            raise SourceUnavailable(
                f"cannot ask for {_shown(url)}: {error}", hint="check the address, and HTTPS_PROXY and HTTP_PROXY"
            ) from error
        except (HTTPError, OSError) as error:
            raise _failure(error, origin(url)[1]) from error

    def close(self) -> None:
        """Close all connections that are not in use."""
        with self._lock:
            for manager in self._managers.values():
                manager.clear()

    def _manager(self, url: str) -> urllib3.PoolManager:
        proxy = proxy_for(url)
        with self._lock:
            if proxy not in self._managers:
                self._managers[proxy] = self._new_manager(proxy)
            return self._managers[proxy]

    def _new_manager(self, proxy: str | None) -> urllib3.PoolManager:
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT)
        if proxy is None:
            return urllib3.PoolManager(maxsize=self._connections, timeout=timeout, ssl_context=self._context)
        parts = urlsplit(proxy)
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
        return urllib3.ProxyManager(
            proxy,
            maxsize=self._connections,
            timeout=timeout,
            ssl_context=self._context,
            proxy_headers=urllib3.make_headers(proxy_basic_auth=login) if login else None,
        )


def proxy_for(url: str) -> str | None:
    """Look up the proxy for an address: ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY``, in either case.

    Raises ``SourceUnavailable`` where what they name is no proxy that speaks HTTP.
    """
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not is_address(proxy):
        raise SourceUnavailable(
            f"the environment names what is no proxy for {parts.hostname}: {proxy.rpartition('@')[2]!r}",
            hint="correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, as http://proxy:3128, or unset it",
        )
    return proxy


def dismiss(response: urllib3.BaseHTTPResponse) -> None:
    """Finish with an answer whose body nobody wants; the connection is kept where that costs little."""
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) <= _DRAIN:
        response.drain_conn()
        response.release_conn()
    else:
        response.close()


def check_range(response: urllib3.BaseHTTPResponse, start: int, stop: int, size: int) -> None:
    """Make sure that the body of a 200 or 206 is the bytes ``start`` to ``stop`` of a file of ``size`` bytes, as they are.

    Raises ``RangesIgnored``, ``Transient``, or ``SourceUnavailable`` where something on the way encodes the bytes.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", ""}:
        raise SourceUnavailable(
            f"the bytes arrive encoded as {encoding}, though they were asked for as they are",
            hint="a proxy on the way may do that; go around it with NO_PROXY",
        )
    whole = start == 0 and stop == size
    if response.status == HTTPStatus.OK and not whole:
        raise RangesIgnored
    length = response.headers.get("content-length")
    if length is not None and length != str(stop - start):
        raise Transient(f"the source announced {length} bytes, not {stop - start}")
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        given = response.headers.get("content-range", "")
        match = _CONTENT_RANGE.fullmatch(given.strip())
        right = match and (int(match[1]), int(match[2])) == (start, stop - 1) and match[3] in {"*", str(size)}
        if not right:
            raise Transient(f"the source sent the range {given!r}, not {start}-{stop - 1} of {size}")


class RangeStream:
    """The body of a ranged request as a context manager; connects on entry."""

    def __init__(self, connect: Callable[[], tuple[urllib3.BaseHTTPResponse, str]], length: int, chunk: int) -> None:
        """Prepare to read ``length`` bytes in chunks of ``chunk`` from the answer and host that ``connect`` gives."""
        self._connect = connect
        self._length = length
        self._chunk = chunk
        self._host = "the source"
        self._response: urllib3.BaseHTTPResponse | None = None
        self._complete = False

    def __enter__(self) -> Iterator[bytes]:
        """Connect; the iterator raises ``Transient`` if the bytes end early or do not end in time."""
        self._response, self._host = self._connect()
        return self._read(self._response)

    def __exit__(self, *_: object) -> None:
        """Give the connection back if everything was read, close it otherwise."""
        if self._response is not None:
            if self._complete:
                self._response.release_conn()
            else:
                self._response.close()

    def abort(self) -> None:
        """Wake a thread that waits for bytes; it meets ``Transient``."""
        if self._response is not None:
            # The three ways in which urllib3 and the system say that there is nothing left to shut down.
            with contextlib.suppress(ValueError, RuntimeError, OSError):
                self._response.shutdown()

    def _read(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        left = self._length
        try:
            for chunk in response.stream(self._chunk, decode_content=False):
                left -= len(chunk)
                if left < 0:
                    raise Transient("the source sent more bytes than it announced")
                self._complete = left == 0
                yield chunk
        except (HTTPError, OSError) as error:
            raise _failure(error, self._host) from error
        if left:
            raise Transient(f"the connection ended {left} bytes early")


def _shown(url: str) -> str:
    """Give the address without its query, which may hold a signature, and without a login."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


# In this order: the narrow ones first.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (SSLError, "the encrypted connection to {host} failed"),
    (ProxyError, "the proxy for {host} does not answer"),
    (NameResolutionError, "the name {host} cannot be resolved"),
    (NewConnectionError, "no connection to {host}"),
    (ConnectTimeoutError, "no connection to {host}"),
    (ReadTimeoutError, f"{{host}} sent nothing for {READ_TIMEOUT:.0f} seconds"),
    (Exception, "the connection to {host} broke"),
)


def _failure(error: HTTPError | OSError, host: str) -> Transient | SourceUnavailable:
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return SourceUnavailable(
            f"{host} shows a certificate that is not trusted here: {error}",
            hint="if a proxy of your organization signs it, name its certificates with SSL_CERT_FILE",
        )
    return Transient(next(reason for kind, reason in _REASONS if isinstance(error, kind)).format(host=host))
