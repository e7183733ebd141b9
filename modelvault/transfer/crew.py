"""The threads of a transfer: workers that fetch spans, and one follower of the frontier for each active file."""

import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from modelvault.artifact import Digest
from modelvault.errors import RangesIgnored, SourceUnavailable, Transient
from modelvault.filesystem import no_space_at
from modelvault.progress import Progress, Task
from modelvault.transfer.frontier import Frontier
from modelvault.transfer.geometry import connections_for
from modelvault.transfer.limiter import RateLimiter
from modelvault.transfer.partial import Partial, Sink, Span
from modelvault.transfer.values import Abortable, Nearby, TransferOptions

_LINGER = (
    2.0  # seconds that a thread gets to notice the end; one that connects to a dead host takes longer and does no harm
)
_WORTH_A_WORD = 5.0  # seconds: a pause that a user would wonder about
_SAID = 300.0  # seconds for which a line holds: longer than an outage that is sat out, shorter than until the next one


@dataclass(frozen=True, slots=True)
class _Job:
    partial: Partial
    span: Span
    task: Task


class Crew:
    """Fetches a number of partial files with a number of connections. Used once: ``run``."""

    def __init__(
        self, partials: Iterable[Partial], options: TransferOptions, progress: Progress, overall: Task
    ) -> None:
        """Prepare; small files go first, since many of them together keep all connections busy."""
        self._options = options
        self._progress = progress
        self._overall = overall
        self._limiter = RateLimiter(options.limit_rate)
        self._connections = connections_for(options.connections, options.limit_rate)
        self._pending = deque(sorted(partials, key=lambda partial: partial.size))
        self._active: dict[Partial, Task] = {}
        self._verified: dict[Partial, Digest] = {}
        self._streams: set[Abortable] = set()
        self._threads: list[threading.Thread] = []
        self._change = threading.Condition()
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._said: dict[str, float] = {}  # reason: when it may be said again

    def run(self) -> dict[Partial, Digest]:
        """Return the SHA-256 of every file once all are here, verified and synced; else raise the first error."""
        try:
            with self._change:
                for _ in range(self._connections):
                    self._start(self._work)
                while not self._over():
                    self._change.wait()
        finally:
            self._end()
        if self._error is not None:
            raise self._error
        return self._verified

    def _over(self) -> bool:
        return self._error is not None or not (self._pending or self._active)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        # A daemon: a thread that hangs in a connection attempt must not keep an interrupted process alive.
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _end(self) -> None:
        """Stop all threads: at the end, after the first error, or on Ctrl-C."""
        self._stop.set()
        with self._change:
            finished = self._error is None and not (self._pending or self._active)
            streams, partials = list(self._streams), list(self._active)
            self._change.notify_all()
        for partial in partials:
            partial.stop()
        for stream in streams:
            stream.abort()
        deadline = time.monotonic() + _LINGER
        for thread in self._threads:
            thread.join(None if finished else max(deadline - time.monotonic(), 0.0))

    def _fail(self, error: BaseException) -> None:
        with self._change:
            self._error = self._error or error
            self._change.notify_all()

    # -- workers

    def _work(self) -> None:
        try:
            while (job := self._next_job()) is not None:
                self._do(job)
        except BaseException as error:  # noqa: BLE001 (a thread's errors are raised by run)
            self._fail(error)

    def _do(self, job: _Job) -> None:
        try:
            with no_space_at(job.partial.directory), job.partial:
                self._fetch(job)
        except BaseException as error:  # noqa: BLE001 (a thread's errors are raised by run)
            self._fail(error)
        finally:  # after the error is known: nobody else may begin where this one gave up
            job.partial.release(job.span)
            self._wake()

    def _next_job(self) -> _Job | None:
        with self._change:
            while not self._stop.is_set() and not self._over():
                for partial, task in self._active.items():
                    if span := partial.claim(self._connections):
                        return _Job(partial, span, task)
                if self._pending and len(self._active) <= self._connections:
                    self._activate(self._pending.popleft())
                else:
                    self._change.wait()
        return None

    def _activate(self, partial: Partial) -> None:
        with no_space_at(partial.directory), contextlib.ExitStack() as stack:
            stack.enter_context(partial)
            task = self._progress.task(partial.wanted.path, partial.size, done=partial.reused)
            self._active[partial] = stack.enter_context(task)
            self._start(self._follow, partial, stack.pop_all())

    def _follow(self, partial: Partial, stack: contextlib.ExitStack) -> None:
        try:
            with stack, no_space_at(partial.directory):
                digest = Frontier(partial, self._progress, self._wake).run()
            if digest is not None:
                self._verified[partial] = digest
        except BaseException as error:  # noqa: BLE001 (a thread's errors are raised by run)
            self._fail(error)
        finally:
            with self._change:
                del self._active[partial]
                self._change.notify_all()

    def _wake(self) -> None:
        with self._change:
            self._change.notify_all()

    # -- one span

    def _fetch(self, job: _Job) -> None:
        """Fetch one span, however often the source fails, as long as now and then a byte comes."""
        sink = Sink(job.partial, job.span.start)
        failures = 0
        while sink.position < job.span.stop and not self._stop.is_set():
            before = sink.progress
            try:
                self._stream(job, sink)
            except RangesIgnored as error:
                if job.span.whole:
                    raise self._gave_up(job, "the source sends neither ranges nor the whole file") from error
                job.partial.sequential = True
                return
            except Transient as error:
                failures = 0 if sink.progress > before else failures + 1
                self._pause(job, error, failures)
                if job.span.whole:
                    sink.restart()

    def _stream(self, job: _Job, sink: Sink) -> None:
        stream = job.partial.wanted.open(sink.position, job.span.stop)
        nearby = isinstance(stream, Nearby)
        came = 0
        try:
            with self._opened(stream) as chunks:
                for chunk in chunks:
                    if self._stop.is_set():
                        return
                    if len(chunk) > job.span.stop - sink.position:
                        raise Transient("the source sent more bytes than were asked for")
                    came += len(chunk)
                    if done := sink.write(chunk):
                        job.task.advance(done)
                        self._overall.advance(done)
                    if not nearby and (delay := self._limiter.delay(len(chunk))):
                        self._stop.wait(delay)
        finally:
            job.partial.count_came(came, nearby=nearby)
        if sink.position < job.span.stop:
            raise Transient("the source sent fewer bytes than were asked for")

    @contextlib.contextmanager
    def _opened(self, stream: AbstractContextManager[Iterator[bytes]]) -> Iterator[Iterator[bytes]]:
        """Open a stream in a way that ``_end`` can cut short."""
        with stream as chunks:
            if not isinstance(stream, Abortable):
                yield chunks
                return
            with self._change:
                self._streams.add(stream)
            try:
                yield chunks
            finally:
                with self._change:
                    self._streams.discard(stream)

    def _pause(self, job: _Job, error: Transient, failures: int) -> None:
        """Wait before the next attempt, or give up."""
        options = self._options
        asked = error.retry_after or 0.0
        if failures >= options.attempts or asked > options.patience:
            wait = f" and asks us to wait for {asked:.0f} seconds" if asked > options.patience else ""
            raise self._gave_up(job, f"{error.reason}{wait}") from error
        delay = min(options.backoff * 2 ** max(failures - 1, 0), options.backoff_limit)
        delay = max(delay * random.uniform(0.5, 1.0), asked)  # noqa: S311 (spreads retries, hides nothing)
        if delay >= _WORTH_A_WORD:
            self._say(error.reason, delay)
        self._stop.wait(delay)

    def _say(self, reason: str, delay: float) -> None:
        """Log why nothing comes, once for all connections and files that meet it."""
        with self._change:
            now = time.monotonic()
            known = now < self._said.get(reason, now)
            if not known:
                self._said[reason] = now + _SAID
        if not known:
            self._progress.log(f"{reason}; trying again in {delay:.0f} s")

    def _gave_up(self, job: _Job, reason: str) -> SourceUnavailable:
        partial = job.partial
        here = partial.bytes_here()
        return SourceUnavailable(
            f"{partial.wanted.path}: {reason} ({here:,} of {partial.size:,} bytes are here)",
            hint="run the same command again: it goes on where it stopped",
            path=partial.wanted.path,
            here=here,
            size=partial.size,
        )
