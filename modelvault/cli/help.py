"""How a command explains itself, and what it takes."""

import re
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand

_DIGITS = re.compile("[0-9]{1,20}")  # more than any number here may have


class Command(TyperCommand):
    """A command that calls its argument MODEL, not ``MODEL <list[str]>`` as Typer does: Python's types tell a user nothing.

    No value that is given may be empty: a script's variable that was never set must not mean the current directory, or the default.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Make the command, hush the types of its arguments, and look at the values first."""
        super().__init__(*arguments, **options)
        for param in self.params:
            if isinstance(param, TyperArgument):
                param.display_type_rich = _nothing  # type: ignore[method-assign]  # Typer lets nobody choose the class
            param.process_value = _never_empty(param)  # type: ignore[method-assign]  # as above


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Make the parser of an option that takes a whole number, from ``least`` to ``most``."""
    bounds = f"from {least}" + (f" to {most}" if most else " on")

    def parse(text: str) -> int:
        number = int(text) if _DIGITS.fullmatch(text) else -1
        if number < least or (most is not None and number > most):
            raise typer.BadParameter(f"{text[:120]!r} is not a whole number {bounds}")
        return number

    return parse


def option_size(option: str, text: str) -> int:
    """Read the size that an option was given, in bytes. Raises ``UsageProblem`` that names the option."""
    from modelvault.config import parse_size
    from modelvault.errors import UsageProblem

    try:
        return parse_size(text)
    except UsageProblem as error:
        raise UsageProblem(f"{option}: {error.message}", hint=error.hint) from error


def _nothing(*_: object, **__: object) -> None:
    return None


def _never_empty(param: Any) -> Any:
    process = param.process_value

    def look(context: Any, value: Any) -> Any:
        if "" in (value if isinstance(value, list | tuple) else (value,)):
            raise typer.BadParameter("it is empty", ctx=context, param=param)
        return process(context, value)

    return look
