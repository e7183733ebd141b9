"""A few tokens from a server: their text, and how long they took."""

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model said. Times in seconds from the request on, rates in tokens per second, absent where they cannot be told.

    ``loading`` is the part of ``first_token`` in which the engine loaded the model, if it says so.
    """

    text: str
    tokens: int
    first_token: float | None
    rate: float | None
    loading: float | None = None


class Stopwatch:
    """Listens to a stream of tokens. Starts when it is made: right before the request."""

    def __init__(self) -> None:
        """Start."""
        self._begun = time.monotonic()
        self._parts: list[str] = []
        self._first = self._last = 0.0

    def hear(self, text: str) -> None:
        """Note a piece of the answer; an empty one tells nothing."""
        if not text:
            return
        self._last = time.monotonic()
        if not self._parts:
            self._first = self._last
        self._parts.append(text)

    def stop(self, tokens: int | None = None, *, loading: float | None = None) -> Completion:
        """Sum up. Without the server's own count of ``tokens``, each piece of a stream is one."""
        count = tokens or len(self._parts)
        took = self._last - self._first
        # A server that does not stream says all at once: then there is no time between tokens to be told.
        streamed = len(self._parts) > 1 and took > 0
        return Completion(
            text="".join(self._parts),
            tokens=count,
            first_token=round(self._first - self._begun, 4) if self._parts else None,
            rate=round((count - 1) / took, 2) if streamed else None,
            loading=None if loading is None else round(loading, 4),
        )
