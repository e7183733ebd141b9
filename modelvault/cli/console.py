"""What a person sees while something runs: tqdm bars on a terminal, a few plain lines anywhere else."""

import os
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from modelvault.errors import Interrupted, UsageProblem
from modelvault.progress import Progress, Task

if TYPE_CHECKING:
    from tqdm import tqdm

_CODE = re.compile(r"`[^`]*`")
_GLUE = "\0"  # in no text that is shown
_LINE_EVERY = 10.0  # seconds between plain progress lines of the task for the whole


def human_size(size: float) -> str:
    """Write bytes for people, in powers of 1000 as drives and the Hub count: ``4.92 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 999.5:  # noqa: PLR2004 (what is rounded to 1000 is 1 of the next unit)
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.2f} TB"


def human_time(seconds: float) -> str:
    """Write a duration for people: ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if seconds < 10:  # noqa: PLR2004 (below ten seconds a decimal tells something)
        return f"{seconds:.1f} s"
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: ``1 volume``, ``3 volumes``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def terminal_width(stream: TextIO) -> int:
    """Give the columns of a terminal."""
    return os.get_terminal_size(stream.fileno()).columns or 80  # one that was never given a size says 0


def wrapped(text: str, stream: TextIO) -> str:
    """Break prose at the width of a terminal; elsewhere it stays on one line.

    A command in backticks is never broken, nor one on an indented line of its own.
    """
    if not stream.isatty():
        return text
    width = terminal_width(stream)
    lines = (_CODE.sub(lambda code: code[0].replace(" ", _GLUE), line) for line in text.split("\n"))
    broken = (
        line
        if line.startswith("  ")
        else textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in lines
    )
    return "\n".join(broken).replace(_GLUE, " ")


class _Bar:
    """A task as a tqdm bar. tqdm's own lock makes ``update`` safe from any thread."""

    def __init__(self, bar: "tqdm[Any]", stream: TextIO) -> None:
        self._bar = bar
        self._stream = stream
        self._lock = threading.Lock()

    def advance(self, amount: int) -> None:
        with self._lock:
            self._bar.update(amount)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if error is None or not self._bar.leave:
                self._bar.close()
                return
            # What went wrong is said next, and on lines of its own: nothing stays of the bars, nor of the ^C among them.
            self._bar.leave = False
            self._bar.close()
            self._stream.write("\x1b[J")


class BarProgress:
    """Bars on a terminal: one for the whole, one for each active file, which goes when the file is done."""

    def __init__(self, stream: TextIO) -> None:
        """Draw on ``stream``, a terminal."""
        self._stream = stream

    def log(self, message: str) -> None:
        """Print a line above the bars."""
        from tqdm import tqdm

        tqdm.write(wrapped(message, self._stream), file=self._stream)

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> Task:
        """Open a bar with rate and time left."""
        from tqdm import tqdm

        width = 30
        shown = label if len(label) <= width else "…" + label[-width + 1 :]
        bar = tqdm(
            desc=shown,
            total=total,
            initial=done,
            unit="B",
            unit_scale=True,
            leave=overall,
            file=self._stream,
            ncols=_columns(self._stream),
            mininterval=0.2,
        )
        bar.dynamic_ncols = lambda stream: (_columns(stream), None)  # type: ignore[assignment]  # tqdm asks it at each drawing
        return _Bar(bar, self._stream)


def _columns(stream: TextIO) -> int:
    """Give the width of a bar: the terminal's, less the ^C that it shows at the end of one and must not wrap."""
    return terminal_width(stream) - 3


class _Lines:
    """A task as plain lines: one now and then, one at the end."""

    def __init__(self, label: str, total: int, done: int, stream: TextIO) -> None:
        self._label = label
        self._total = total
        self._start = done
        self._done = done
        self._stream = stream
        self._begun = time.monotonic()
        self._next = self._begun + _LINE_EVERY
        self._lock = threading.Lock()

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + _LINE_EVERY
            rate = max((self._done - self._start) / (now - self._begun), 1)
            left = human_time((self._total - self._done) / rate)
            percent = 100 * self._done // max(self._total, 1)
            line = f"{self._label}: {percent}% of {human_size(self._total)}, {human_size(rate)}/s, {left} left"
            print(line, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._done > self._start:
            seconds = max(time.monotonic() - self._begun, 1e-3)
            rate = human_size((self._done - self._start) / seconds)
            moved = human_size(self._done - self._start)
            print(f"{self._label}: {moved} in {human_time(seconds)} ({rate}/s)", file=self._stream, flush=True)


class LineProgress:
    """Plain log lines where stderr is no terminal; single files stay silent."""

    def __init__(self, stream: TextIO) -> None:
        """Print to ``stream``."""
        self._stream = stream

    def log(self, message: str) -> None:
        """Print a line."""
        print(message, file=self._stream, flush=True)

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> Task:
        """Report the task for the whole; be silent about its parts."""
        from modelvault.progress import NoTask

        return _Lines(label, total, done, self._stream) if overall else NoTask()


def console_progress() -> BarProgress | LineProgress:
    """Choose by what stderr is."""
    return BarProgress(sys.stderr) if sys.stderr.isatty() else LineProgress(sys.stderr)


def ask(question: str) -> str | None:
    """Ask for a line on the terminal; ``None`` where nobody can be asked, or Ctrl-D was the answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    answer = ""
    try:
        print(f"{question}: ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
    finally:
        if not answer:  # the cursor stands behind the question, or the ^C
            print(file=sys.stderr)
    return answer.strip() or None


def consent_prompt() -> Callable[[str], bool] | None:
    """Give a function that asks a question and tells whether the answer was yes; ``None`` where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: (ask(question) or "").casefold() in {"y", "yes"}


def drive_prompt(progress: Progress) -> Callable[[str], None]:
    """Give a function that says which drive is wanted, and comes back when the user has pressed Enter.

    Raises ``UsageProblem`` where nobody can be asked. The function raises ``Interrupted`` when there is no answer.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageProblem(
            "--swap needs a terminal: somebody has to change the drives",
            hint="run it on a terminal, or name all drives: --to A --to B",
        )

    def ask(message: str) -> None:
        progress.log(f"{message}; then press Enter")
        if not sys.stdin.readline():
            raise Interrupted(
                "nobody changed the drive", hint="run the same command again: it goes on where it stopped"
            )

    return ask
