r"""Ollama's Modelfile: parse, validate, write. Pure.

The grammar is that of ``parser/parser.go`` in Ollama's source: an instruction is a word (in any case) and a value; a value is bare,
``"…"`` or ``\"\"\"…\"\"\"``, has no escapes, and ends at the first line end at which its quotes are closed; ``#`` starts a
comment only where an instruction could start. Control, format and space characters other than the blank, the tab and line ends are
dropped from values and hardly allowed elsewhere, as there (``strconv.IsPrint``).
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from ctypes import c_float
from dataclasses import dataclass, field
from decimal import Decimal

from modelvault.errors import UsageProblem
from modelvault.formats.go_template import fault_in

KEYWORDS = (
    "FROM",
    "LICENSE",
    "TEMPLATE",
    "SYSTEM",
    "ADAPTER",
    "DRAFT",
    "RENDERER",
    "PARSER",
    "PARAMETER",
    "MESSAGE",
    "REQUIRES",
)
ROLES = ("system", "user", "assistant")
INTEGERS = frozenset(
    {
        "num_ctx",
        "num_batch",
        "num_gpu",
        "main_gpu",
        "num_thread",
        "draft_num_predict",
        "num_keep",
        "seed",
        "num_predict",
        "top_k",
        "repeat_last_n",
    }
)
FLOATS = frozenset(
    {
        "top_p",
        "min_p",
        "typical_p",
        "temperature",
        "repeat_penalty",
        "presence_penalty",
        "frequency_penalty",
    }
)
BOOLEANS = frozenset({"use_mmap"})
LISTS = frozenset({"stop"})
DEPRECATED = frozenset(
    {
        "penalize_newline",
        "low_vram",
        "f16_kv",
        "logits_all",
        "vocab_only",
        "use_mlock",
        "mirostat",
        "mirostat_tau",
        "mirostat_eta",
    }
)
"""Parameters that Ollama knew once, and passes over today (``deprecatedParameters`` in its parser)."""
_TRUE = {"1", "t", "T", "TRUE", "true", "True"}  # strconv.ParseBool
_FALSE = {"0", "f", "F", "FALSE", "false", "False"}
_INTEGER = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NUMBER, _WORDS = r"(?:0|[1-9][0-9]*)", r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
# golang.org/x/mod/semver: parts may be missing from the right; numbers have no zeros in front, in a pre-release neither.
_VERSION = re.compile(
    rf"v?{_NUMBER}(?:\.{_NUMBER}(?:\.{_NUMBER}(?:-(?!(?:[0-9A-Za-z-]+\.)*0[0-9]+(?:[.+]|\Z)){_WORDS})?(?:\+{_WORDS})?)?)?"
)
_DROPPED = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"}
_NOT_KEPT = "\0"  # stands for all of them while we read
_BLANK = " \t" + _NOT_KEPT
_LINE_END = re.compile(r"[\r\n]|\Z")
_WORD = re.compile(r"\0?([A-Za-z]+)(?=[ \t])")  # the first character may be one that is dropped, no other
_ARGUMENT = re.compile(r"[ \t]([A-Za-z0-9_]+)(?=[ \t])")
_QUOTES = tuple((re.compile(quotes), re.compile(rf"{quotes}[ \t\0]*(?=[\r\n]|\Z)")) for quotes in (r'"\0*"\0*"', '"'))


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. ``argument`` is the name of a PARAMETER or the role of a MESSAGE; ``line`` counts from one."""

    keyword: str
    value: str
    argument: str | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Modelfile:
    """A parsed and validated Modelfile."""

    instructions: tuple[Instruction, ...] = ()

    def last(self, keyword: str) -> str | None:
        """Give the value of an instruction of which the last one wins."""
        return next((entry.value for entry in reversed(self.instructions) if entry.keyword == keyword), None)

    def all(self, keyword: str) -> tuple[str, ...]:
        """Give the values of an instruction that may be repeated."""
        return tuple(entry.value for entry in self.instructions if entry.keyword == keyword)

    @property
    def messages(self) -> tuple[tuple[str, str], ...]:
        """The example conversation: role and content."""
        return tuple((entry.argument or "", entry.value) for entry in self.instructions if entry.keyword == "MESSAGE")

    @property
    def parameters(self) -> Mapping[str, tuple[str, ...]]:
        """The parameters by name, as typed: all of them for ``stop``, the last one for the others. Without the ``deprecated`` ones."""
        table: dict[str, tuple[str, ...]] = {}
        for entry in self.instructions:
            if entry.keyword == "PARAMETER" and entry.argument and entry.argument not in DEPRECATED:
                before = table.get(entry.argument, ()) if entry.argument in LISTS else ()
                table[entry.argument] = (*before, entry.value)
        return table

    @property
    def deprecated(self) -> tuple[str, ...]:
        """The names of parameters that Ollama knew once: they are taken, and have no effect."""
        names = (entry.argument for entry in self.instructions if entry.keyword == "PARAMETER")
        return tuple(dict.fromkeys(name for name in names if name in DEPRECATED))


def parse(text: str) -> Modelfile:
    """Read a Modelfile; FROM may be missing. Raises ``UsageProblem`` with the number of the line."""
    text = "".join(character if _is_kept(character) else _NOT_KEPT for character in text.removeprefix("\ufeff"))
    instructions = []
    at = 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
        elif text[at] == "#":
            at = _line_end(text, at)
        else:
            instruction, at = _instruction(text, at)
            validate(instruction)
            instructions.append(instruction)
    return Modelfile(tuple(instructions))


def _is_kept(character: str) -> bool:
    # ``isprintable`` would drop the emoji of this year, too, which the interpreter's tables do not have yet.
    return character in " \t\r\n" or unicodedata.category(character) not in _DROPPED


def _instruction(text: str, at: int) -> tuple[Instruction, int]:
    line = _line_number(text, at)
    word = _WORD.match(text, at)
    keyword = word.group(1).upper() if word else text[at : _line_end(text, at)].split(maxsplit=1)[0]
    if word is None or keyword not in KEYWORDS:
        known = ", ".join(KEYWORDS)
        shown = keyword[:40].replace(_NOT_KEPT, "?")
        raise _problem(line, f"not an instruction: {shown!r}", f"an instruction is one of {known}, and a value")
    at = word.end()
    argument = None
    if keyword in {"PARAMETER", "MESSAGE"}:
        match = _ARGUMENT.match(text, at)
        if match is None:
            raise _problem(line, f"{keyword} needs one blank, a name and a value")
        argument, at = match.group(1), match.end()
    value, at = _value(text, at, line)
    return Instruction(keyword, value, argument, line), at


def _value(text: str, at: int, line: int) -> tuple[str, int]:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    for opening, closing in _QUOTES:
        if opened := opening.match(text, at):
            closed = closing.search(text, opened.end())
            if closed is None:
                raise _problem(line, f"the quotes {opened.group().replace(_NOT_KEPT, '')} are not closed")
            return text[opened.end() : closed.start()].replace(_NOT_KEPT, ""), closed.end()
    end = _line_end(text, at)
    return text[at:end].replace(_NOT_KEPT, "").strip(), end


def _line_end(text: str, at: int) -> int:
    match = _LINE_END.search(text, at)
    return match.start() if match else len(text)


def _line_number(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _problem(line: int, message: str, hint: str | None = None) -> UsageProblem:
    return UsageProblem(f"modelfile line {line}: {message}", hint=hint, line=line)


def validate(instruction: Instruction) -> None:
    """Raise ``UsageProblem`` for a role, a parameter, a template or a version that Ollama would not take."""
    line, value = instruction.line, instruction.value
    if instruction.keyword == "MESSAGE" and instruction.argument not in ROLES:
        raise _problem(line, f"not a role: {instruction.argument!r}", f"roles are {', '.join(ROLES)}")
    if instruction.keyword == "TEMPLATE" and (fault := fault_in(value)):
        raise _problem(line, f"the template is broken: {fault}")
    if instruction.keyword == "REQUIRES" and not _VERSION.fullmatch(value):
        raise _problem(line, f"not a version: {value[:40]!r}", "versions look like 0.24.0")
    if instruction.keyword == "PARAMETER":
        try:
            encode_parameter(instruction.argument or "", value)
        except ValueError as error:
            hint = f"known parameters: {', '.join(sorted(INTEGERS | FLOATS | BOOLEANS | LISTS))}"
            raise _problem(line, str(error), hint) from error


def encode_parameter(name: str, value: str) -> str:
    """Write a parameter's value as Ollama's JSON has it (but for ``stop`` and deprecated ones, which stay as they are).

    Raises ``ValueError`` for an unknown name or a value of the wrong type.
    """
    if name in INTEGERS:
        if not _INTEGER.fullmatch(value) or not -(1 << 63) <= int(value) < 1 << 63:
            raise ValueError(f"{name} is a whole number, not {value[:40]!r}")
        return str(int(value))
    if name in FLOATS:
        return _encode_float(name, value)
    if name in BOOLEANS:
        if value not in _TRUE | _FALSE:
            raise ValueError(f"{name} is true or false, not {value[:40]!r}")
        return "true" if value in _TRUE else "false"
    if name in LISTS or name in DEPRECATED:
        return value
    raise ValueError(f"unknown parameter {name[:40]!r}")


def _encode_float(name: str, value: str) -> str:
    """Write a float32 as Go's encoding/json does: the shortest digits that give it back, an exponent only for extremes."""
    number = _float32(value) if _FLOAT.fullmatch(value) else math.inf
    if math.isinf(number):
        raise ValueError(f"{name} is a number, not {value[:40]!r}")
    shortest = next(
        digits for digits in (f"{number:.{precision}e}" for precision in range(9)) if _float32(digits) == number
    )
    plain = Decimal(shortest)
    if plain and not Decimal("1e-6") <= abs(plain) < Decimal("1e21"):
        mantissa, _, exponent = shortest.partition("e")
        return f"{mantissa}e{exponent[0]}{exponent[1:].lstrip('0')}"
    return format(plain, "f")


def _float32(text: str) -> float:
    """Round to the nearest float32; what is larger than any becomes infinite."""
    return c_float(float(text)).value


def render(modelfile: Modelfile, from_: str | None) -> str:
    """Write the Modelfile with ``from_`` in its FROM line, or without one; ``parse`` gives the same instructions back.

    Raises ``UsageProblem`` for a value that the grammar cannot express.
    """
    lines = [] if from_ is None else [f"FROM {from_}"]
    for entry in modelfile.instructions:
        if entry.keyword != "FROM":
            words = [entry.keyword, entry.argument] if entry.argument else [entry.keyword]
            lines.append(" ".join([*words, _quoted(entry)]))
    return "\n".join(lines) + "\n"


def _quoted(entry: Instruction) -> str:
    for quotes in ("", '"', '"""'):
        candidate = f"{quotes}{entry.value}{quotes}"
        try:
            value, end = _value(candidate + "\n", 0, entry.line)
        except UsageProblem:
            continue
        if value == entry.value and end == len(candidate):
            return candidate
    raise _problem(entry.line, f"the value of {entry.keyword} cannot be quoted: it holds quotes at the end of a line")
