"""How a command explains itself."""

from typing import Any

from typer.core import TyperArgument, TyperCommand


class Command(TyperCommand):
    """A command that calls its argument MODEL, not ``MODEL <list[str]>`` as Typer does: Python's types tell a user nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Make the command, and hush the types of its arguments."""
        super().__init__(*arguments, **options)
        for param in self.params:
            if isinstance(param, TyperArgument):
                param.display_type_rich = _nothing  # type: ignore[method-assign]  # Typer lets nobody choose the class


def _nothing(*_: object, **__: object) -> None:
    return None
