"""The rate limit, on a clock of its own."""

import pytest

from modelvault.transfer.limiter import RateLimiter


def test_the_rate_holds_over_all_callers() -> None:
    """``--limit-rate`` that counts each connection alone would be exceeded eightfold."""
    now = 100.0
    limiter = RateLimiter(1000, clock=lambda: now)
    booked = 0
    for _ in range(50):
        delay = limiter.delay(200)
        booked += 200
        now += delay
    assert booked / (now - 100.0) == pytest.approx(1000, rel=0.05)


def test_idle_time_is_not_saved_up() -> None:
    """After a pause of an hour the limit would otherwise not hold for an hour."""
    now = 0.0
    limiter = RateLimiter(1000, clock=lambda: now)
    now = 3600.0
    assert limiter.delay(1000) == pytest.approx(0.9)


def test_no_limit_never_waits() -> None:
    """Without the option nothing may slow down."""
    assert RateLimiter(None).delay(1 << 40) == 0.0
