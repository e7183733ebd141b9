"""The frame around every command: run one operation, render its result or its error, end with the right exit code."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from typer.exceptions import TyperException

from modelvault.cli.console import console_progress, wrapped
from modelvault.errors import Interrupted, ModelvaultError, PartlyDone, UsageProblem, of_the_system
from modelvault.progress import Progress

Result = TypeVar("Result")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


_RESUMED = {"pull", "add", "bundle", "import"}
"""Commands that keep what they did when they are interrupted; the others begin anew."""


def run(
    command: str, as_json: bool, work: Callable[[Progress], Result], render: Callable[[Result], Iterable[str]]
) -> None:
    """Do ``work``, print what it returns, leave with its exit code. ``render`` gives the text, line by line."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        result = work(console_progress())
    except KeyboardInterrupt:
        on = ": it goes on where it stopped" if command in _RESUMED else ""
        _fail(command, as_json, Interrupted("interrupted", hint=f"run the same command again{on}"))
    except ModelvaultError as error:
        if error.result is not None and not as_json:
            _print_lines(render(error.result))  # type: ignore[arg-type]  # an error carries its own command's result
        _fail(command, as_json, error)
    except OSError as error:
        _fail(command, as_json, of_the_system(error))
    except Exception as error:
        if "MODELVAULT_TRACEBACK" in os.environ:
            raise
        what = f"{type(error).__name__}: {error}"
        hint = "this is a defect of modelvault: run it again with MODELVAULT_TRACEBACK=1 and report what it prints"
        _fail(command, as_json, ModelvaultError(f"internal error: {what}", hint=hint))
    warnings = warnings_of(result)
    if as_json:
        _print_json(command, "ok", result, warnings, None)
        return
    _print_lines(render(result))
    for warning in warnings:
        _say("warning", warning)


def with_documents(app: typer.Typer) -> NoReturn:
    """Run the command line for a program that reads JSON: what makes no sense on it is answered with a document as well."""
    try:
        sys.exit(app(standalone_mode=False))
    except TyperException as error:
        context = getattr(error, "ctx", None)
        names: list[str] = []
        while context is not None and context.parent is not None:
            names.insert(0, context.info_name)
            context = context.parent
        hint = f"`{' '.join(['modelvault', *names])} -h` shows what it takes"
        try:
            _fail(" ".join(names), True, UsageProblem(error.format_message().rstrip("."), hint=hint))
        except typer.Exit as ended:
            sys.exit(ended.exit_code)
    except typer.Abort:
        _say("error", "nobody answered")
        sys.exit(1)


def warnings_of(result: object) -> list[str]:
    """Collect the warnings of a result, each once, in order."""
    found = list(getattr(result, "warnings", ()))
    for part in (*getattr(result, "imports", ()), getattr(result, "receipt", None)):
        found += getattr(part, "warnings", ())
    return list(dict.fromkeys(found))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(command: str, as_json: bool, error: ModelvaultError) -> NoReturn:
    if as_json:
        status = "partial" if isinstance(error, PartlyDone) else "error"
        facts = {"code": error.slug, "exit_code": error.exit_code, "message": error.message, "hint": error.hint}
        from modelvault.results import plain

        facts["data"] = plain(error.data)
        _print_json(command, status, error.result, warnings_of(error.result), facts)
    else:
        for warning in warnings_of(error.result):
            _say("warning", warning)
        _say("error", error.message)
        if error.hint:
            _say("hint", error.hint)
    raise typer.Exit(error.exit_code)


_COLORS = {"error": typer.colors.RED, "warning": typer.colors.YELLOW, "hint": typer.colors.CYAN}


def _say(kind: str, text: str) -> None:
    label = f"{kind}:"
    said = wrapped(f"{label} {printable(text)}", sys.stderr)
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        said = typer.style(label, fg=_COLORS[kind]) + said.removeprefix(label)
    print(said, file=sys.stderr)


def printable(text: str) -> str:
    """Show control characters as escapes: names from a drive or a server must not drive the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(printable(line))


def _print_json(command: str, status: str, result: object, warnings: list[str], error: dict[str, Any] | None) -> None:
    from modelvault.results import SCHEMA, plain

    envelope = {
        "schema": SCHEMA,
        "command": command,
        "status": status,
        "result": plain(result),
        "warnings": warnings,
        "error": error,
    }
    print(json.dumps(envelope, indent=2, ensure_ascii=True, allow_nan=False))
