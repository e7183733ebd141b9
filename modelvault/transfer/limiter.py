"""One rate for all connections together."""

import threading
import time
from collections.abc import Callable


class RateLimiter:
    """A token bucket that threads share. ``rate`` is in bytes a second; ``None`` limits nothing.

    It holds a tenth of a second: enough to smooth the chunks, too little to be seen as a burst.
    """

    def __init__(self, rate: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with a full bucket."""
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._paid_until = clock()

    def delay(self, amount: int) -> float:
        """Book ``amount`` bytes that were read and tell how many seconds to wait before reading more."""
        if self._rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._paid_until = max(self._paid_until, now - 0.1) + amount / self._rate
            return max(self._paid_until - now, 0.0)
