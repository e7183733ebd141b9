"""What is plainly wrong with a TEMPLATE, which Ollama would only say when the model is to be run. Pure.

Not a parser of Go's text/template: it knows where actions begin and end and which of them need an ``end``; a mistyped name it does not see.
"""

import re
from itertools import takewhile

_OPEN = re.compile(r"\{\{(?:-[ \t\r\n])?")
_COMMENT = re.compile(r"/\*.*?\*/(?:[ \t\r\n]-)?\}\}", re.DOTALL)
# What may stand between the braces: quoted strings, raw strings, characters, anything else; the end belongs to it.
_ACTION = re.compile(r"""((?:"(?:\\.|[^"\\\n])*"|`[^`]*`|'(?:\\.|[^'\\\n])*'|(?!\}\})[^"`'])*)\}\}""", re.DOTALL)
_BLOCKS = {"if", "range", "with", "define", "block"}


def fault_in(text: str) -> str | None:
    """Say what is wrong with a template; ``None`` if nothing is that shows."""
    opened: list[str] = []
    at = 0
    while begin := _OPEN.search(text, at):
        shown = text[begin.start() : begin.start() + 20].splitlines()[0]
        action = (_COMMENT if text.startswith("/*", begin.end()) else _ACTION).match(text, begin.end())
        if action is None:
            return f"{shown!r} is not closed"
        at = action.end()
        if action.re is _ACTION and (fault := _fault_of(action.group(1), opened)):
            return f"{shown!r}: {fault}"
    return f"{{{{ {opened[-1]} }}}} has no {{{{ end }}}}" if opened else None


def _fault_of(action: str, opened: list[str]) -> str | None:
    """Look at one action, and keep account of what is ``opened``."""
    # A minus with a blank before it takes away the blanks behind the action.
    text = action.removesuffix("-").strip() if action[-2:-1].isspace() or action == "-" else action.strip()
    word = "".join(takewhile(str.isalpha, text))
    rest = text[len(word) :].strip()
    if not text:
        return "nothing is in it"
    if word in _BLOCKS:
        if not rest:
            return f"{word} needs a value"
        opened.append(word)
    elif word == "end":
        if not opened:
            return "nothing is open that it could end"
        opened.pop()
    elif word == "else" and (not opened or opened[-1] not in {"if", "range", "with"}):
        return "no if, range or with is open"
    elif word in {"break", "continue"} and "range" not in opened:
        return "no range is open"
    return None
