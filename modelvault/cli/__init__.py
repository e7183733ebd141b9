"""The command line: parse, call one operation, render. No logic lives here, and nothing heavy is imported to show help."""

import atexit
import gc
import os
import signal
import sys

_COLLECT_EVERY = 100_000  # objects; Python's own 700 would look through everything that is imported many times over


def main() -> None:
    """Run the command line; the console script and ``python -m modelvault`` enter here."""
    gc.set_threshold(_COLLECT_EVERY)
    atexit.register(gc.freeze)  # and at the end everything goes anyway: Python need not look for what is garbage
    if sys.stdout is None:  # closed: a file of the vault must not get its number
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8", closefd=False)
    try:
        try:
            # Imported late: the package must be importable (by the docs, by tests) without Typer building every command.
            from modelvault.cli.app import app

            if "--json" in sys.argv:
                from modelvault.cli.run import with_documents

                with_documents(app)
            app()
        finally:
            _let_go()
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:  # all others are the commands': this one is of what they print
        # What could not be written must not be tried again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # a reader that has seen enough, as `head`
            print(f"error: cannot write the output: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        sys.exit(1)


def _let_go() -> None:
    """From here on a signal ends the process silently: Python would wait for its threads, and show where it was."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):  # one that was ignored from the beginning stays so
            signal.signal(number, signal.SIG_DFL)
