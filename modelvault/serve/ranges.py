"""A file's bytes over HTTP: one range or all of it, in large pieces, stopped when the client goes."""

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from modelvault.errors import ModelvaultError
from modelvault.fsio import open_regular

_PIECE = 2 << 20
"""Bytes read and sent at once. Starlette's FileResponse takes 64 KiB, and a thread switch for each."""

_BYTES = re.compile(r"bytes=\s*(\d*)\s*-\s*(\d*)\s*", re.ASCII)
_DIGITS_MAX = 19  # 2**63 has as many


class UnsatisfiableRange(Exception):
    """The range that was asked for lies past the end of the file (HTTP 416)."""


@dataclass(frozen=True, slots=True)
class Span:
    """Some bytes of a file: from ``start``, ``length`` of them."""

    start: int
    length: int

    def content_range(self, size: int) -> str:
        """Write the header ``Content-Range`` for a file of ``size`` bytes."""
        return f"bytes {self.start}-{self.start + self.length - 1}/{size}"


def parse_range(header: str | None, size: int) -> Span | None:
    """Read the header ``Range`` for a file of ``size`` bytes (RFC 9110, section 14).

    ``None`` means the whole file: no header, several ranges, or one that makes no sense, which a server may ignore. Raises
    ``UnsatisfiableRange``.
    """
    match = _BYTES.fullmatch(header) if header else None
    if match is None:
        return None
    first, last = match.groups()
    if (not first and not last) or max(len(first), len(last)) > _DIGITS_MAX:
        return None
    if not first:
        length = min(int(last), size)
        if length == 0:
            raise UnsatisfiableRange
        return Span(size - length, length)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        raise UnsatisfiableRange
    end = min(int(last), size - 1) if last else size - 1
    return Span(start, end - start + 1)


class FileBytes(Response):
    """A response of some bytes of a file, none of them held longer than it takes to send them."""

    def __init__(self, path: Path, span: Span, *, status_code: int, headers: Mapping[str, str]) -> None:
        """Prepare to send ``span`` of ``path``; ``headers`` must not hold Content-Length."""
        super().__init__(
            status_code=status_code,
            headers={**headers, "content-length": str(span.length)},
            media_type="application/octet-stream",
        )
        self._path = path
        self._span = span

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the headers and, unless it was a HEAD, the bytes. A file that ends early breaks the connection."""
        start: dict[str, object] = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body"})
            return
        with open_regular(self._path) as descriptor:
            await send(start)
            gone = asyncio.ensure_future(_disconnected(receive))
            try:
                await self._send_bytes(descriptor, send, gone)
            finally:
                gone.cancel()

    async def _send_bytes(self, descriptor: int, send: Send, gone: "asyncio.Future[None]") -> None:
        loop = asyncio.get_running_loop()
        offset, remaining = self._span.start, self._span.length
        # A server drops what it is given for a client that has gone, without a word: without the check, a cancelled
        # download of 40 GB would be read to its end.
        while remaining and not gone.done():
            data = await loop.run_in_executor(None, os.pread, descriptor, min(remaining, _PIECE), offset)
            if not data:
                raise ModelvaultError(f"{self._path} ends at {offset} bytes, {remaining} too early")
            offset += len(data)
            remaining -= len(data)
            await send({"type": "http.response.body", "body": data, "more_body": remaining > 0})
        if not self._span.length:
            await send({"type": "http.response.body"})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
