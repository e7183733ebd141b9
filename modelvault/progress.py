"""Progress as a protocol: the operations report, only ``cli/`` knows how it looks."""

from types import TracebackType
from typing import Protocol, Self


class Task(Protocol):
    """One thing under way. Used as a context manager; ``advance`` may be called from any thread."""

    def advance(self, amount: int) -> None:
        """Report ``amount`` more units done."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, successfully or not."""


class Progress(Protocol):
    """Where operations report to."""

    def log(self, message: str) -> None:
        """Tell the user one line about something that happened."""

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> Task:
        """Start a task of ``total`` bytes, ``done`` of which were there before; ``overall`` marks the one for the whole."""
        ...


class NoTask:
    """A task that nobody watches."""

    def advance(self, amount: int) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        """Do nothing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""


class NoProgress:
    """Progress that nobody watches."""

    def log(self, message: str) -> None:
        """Do nothing."""

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> Task:  # noqa: ARG002 (the protocol's)
        """Give a task that does nothing."""
        return NoTask()
