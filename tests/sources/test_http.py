"""The pure parts of reading ranges over HTTP."""

import pytest
import urllib3
from urllib3.response import HTTPResponse

from modelvault.errors import RangesIgnored, SourceUnavailable, Transient
from modelvault.sources.http import check_range, chunk_size, origin, proxy_for, retry_after


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://hub.example/a", "https://HUB.example:443/b?c", True),
        ("https://hub.example/a", "http://hub.example/a", False),
        ("https://hub.example/a", "https://hub.example:8443/a", False),
        ("https://hub.example/a", "https://cdn.hub.example/a", False),
        ("https://hub.example/a", "https://hub.example@evil.example/a", False),
    ],
)
def test_origins(one: str, other: str, same: bool) -> None:
    """The token goes where the origin is equal: a mistake here gives it away."""
    assert (origin(one) == origin(other)) is same


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "17"}, 17.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:02:00 GMT"}, 20.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"ratelimit": '"api";r=9;t=55'}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """Asking again too early prolongs the ban; not at all loses the transfer."""
    assert retry_after(headers, now=100.0) == seconds


def response(status: int, **headers: str) -> urllib3.BaseHTTPResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HTTPResponse(status=status, headers=named, preload_content=False)


def test_answers_that_carry_the_range() -> None:
    """The good cases: a range, a range of unknown total, the whole file."""
    check_range(response(206, content_range="bytes 10-19/100", content_length="10"), 10, 20, 100)
    check_range(response(206, content_range="bytes 10-19/*"), 10, 20, 100)
    check_range(response(200, content_length="100", content_encoding="identity"), 0, 100, 100)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (response(200, content_length="100"), RangesIgnored),
        (response(206), Transient),
        (response(206, content_range="bytes 0-9/100"), Transient),
        (response(206, content_range="bytes 10-20/100"), Transient),
        (response(206, content_range="bytes 10-19/101"), Transient),
        (response(206, content_range="bytes 10-19/100", content_length="11"), Transient),
        (response(206, content_range="bytes 10-19/100", content_encoding="br"), SourceUnavailable),
    ],
)
def test_answers_that_carry_something_else(answer: urllib3.BaseHTTPResponse, error: type[Exception]) -> None:
    """Bytes of another range written in this one's place would be found only after the whole file."""
    with pytest.raises(error):
        check_range(answer, 10, 20, 100)


def test_chunks_grow_with_the_file() -> None:
    """Large chunks are fast; in a small file a killed process would lose too much with them."""
    assert chunk_size(100) == chunk_size(100 << 20) == 64 << 10
    assert chunk_size(250 << 20) == 128 << 10
    assert chunk_size(40 << 30) == 1 << 20


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many companies reach the Hub through a proxy only, and their mirror without one only."""
    monkeypatch.setenv("https_proxy", "proxy.example:3128")
    monkeypatch.setenv("no_proxy", "mirror.example,127.0.0.1")
    assert proxy_for("https://hub.example/a") == "http://proxy.example:3128"
    assert proxy_for("https://mirror.example/a") is None
    assert proxy_for("http://hub.example/a") is None
