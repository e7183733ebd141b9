"""The Modelfile grammar, as Ollama's own parser has it."""

import struct
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelvault.errors import UsageProblem
from modelvault.formats.go_template import fault_in
from modelvault.formats.modelfile import (
    FLOATS,
    INTEGERS,
    KEYWORDS,
    ROLES,
    Instruction,
    Modelfile,
    encode_parameter,
    parse,
    render,
)

TEXT = st.text(
    st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]) | st.sampled_from('"\n\t #'), max_size=40
)


def go_prints(character: str) -> bool:
    """``strconv.IsPrint``, but that what no Unicode table of ours has yet counts as printable."""
    return character == " " or unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"}


def printable(text: str) -> str:
    return "".join(character for character in text if go_prints(character) or character in "\t\r\n")


def go_unquote(text: str) -> str | None:
    """``unquote`` in Ollama's parser/parser.go; ``None`` where it says that quotes are open."""
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            closed = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if closed else None
    return text


def go_parse(text: str) -> list[tuple[str, str, str | None]] | None:  # noqa: PLR0912 (it mirrors the original, state by state)
    """``ParseFile`` of Ollama 0.24.0, written down from its source state by state; ``None`` where that gives an error.

    It shares nothing with our parser, which knows no states. What it knows of the values of parameters is ours.
    """
    state, buffer, keyword, argument = "nil", "", "", None
    found: list[tuple[str, str, str | None]] = []

    def end_value() -> bool:
        value = go_unquote(buffer.strip())
        if value is None:
            return False
        found.append((keyword.upper(), value, argument))
        return True

    for rune in text.removeprefix("\ufeff"):
        blank, line_end = rune in " \t", rune in "\r\n"
        kept = rune
        match state:
            case "nil":
                following = "comment" if rune == "#" else "nil" if blank or line_end else "name"
            case "comment":
                following = "nil" if line_end else "comment"
            case "name":
                if not (blank or (rune.isascii() and rune.isalpha())):
                    return None
                following = "value" if blank else "name"
            case "parameter" | "message":
                word = rune.isascii() and (rune.isalpha() or (state == "parameter" and (rune.isdigit() or rune == "_")))
                if not (blank or word):
                    return None
                following = "value" if blank else state
            case _:
                following = "nil" if blank or line_end else "value"
        if following != state:
            if state == "name":
                keyword, argument = buffer.lower(), None
                if keyword.upper() not in KEYWORDS:
                    return None
                following = keyword if keyword in {"parameter", "message"} else following
            elif state in {"parameter", "message"}:
                argument = buffer
                if not argument:  # which is said a step later there: unknown parameter ''
                    return None
            elif state == "value" and (blank or not end_value()):
                buffer += rune
                continue
            buffer, state = "", following
            if blank or line_end or rune == "#":
                kept = ""
        if kept and go_prints(kept):
            buffer += kept
    if state == "value":
        return found if end_value() else None
    return found if state in {"nil", "comment"} else None


INSTRUCTIONS = st.one_of(
    st.builds(Instruction, st.sampled_from(["SYSTEM", "LICENSE", "RENDERER", "PARSER"]), TEXT.map(printable)),
    st.builds(Instruction, st.just("TEMPLATE"), TEXT.map(printable).filter(lambda text: fault_in(text) is None)),
    st.builds(Instruction, st.just("MESSAGE"), TEXT.map(printable), st.sampled_from(ROLES)),
    st.builds(Instruction, st.just("PARAMETER"), TEXT.map(printable), st.just("stop")),
    st.builds(
        Instruction, st.just("PARAMETER"), st.integers(-(2**63), 2**63 - 1).map(str), st.sampled_from(sorted(INTEGERS))
    ),
    st.builds(Instruction, st.just("REQUIRES"), st.just("0.24.0")),
)


@given(st.lists(INSTRUCTIONS, max_size=6))
def test_round_trip(instructions: list[Instruction]) -> None:
    """What is kept for the record must be what was installed; a value that cannot be written must be refused, not bent."""
    modelfile, refused = Modelfile(tuple(instructions)), ""
    try:
        text = render(modelfile, "/models/tiny.gguf")
    except UsageProblem as refusal:
        refused = refusal.message
    if refused:
        assert "cannot be quoted" in refused
        assert any('"' in entry.value for entry in instructions)
        return
    first, *rest = parse(text).instructions
    assert first == Instruction("FROM", "/models/tiny.gguf")
    assert tuple(rest) == modelfile.instructions


QUOTES_AND_SPACE = ['"', '"""', " ", "  ", "\t", "\n", "\r\n", "#", "\\"]
WORDS = [
    "SYSTEM ",
    "sYstem ",
    "MESSAGE user ",
    "PARAMETER stop ",
    "LICENSE ",
    "PARAMETER ",
    "FROM ./x\n",
    "REQUIRES",
    "x",
]
ODD = ["\u00a0", "\u200b", "\ufeff", "é", "\U0001fae8", "\u0378", "\ue000", "\x0b", "\0"]
PIECES = st.sampled_from([*QUOTES_AND_SPACE, *WORDS, *ODD])


@settings(max_examples=300)
@example('SYSTEM "a\nLICENSE x"\n')
@example('SYSTEM """""\nLICENSE """ x\n')
@given(st.lists(PIECES | st.text(max_size=3), max_size=14).map("".join))
def test_it_reads_what_ollama_reads(text: str) -> None:
    """What a user's Modelfile means must not depend on who reads it: quotes, comments and line ends are where readers differ."""
    theirs = go_parse(text)
    try:
        ours = [(entry.keyword, entry.value, entry.argument) for entry in parse(text).instructions]
    except UsageProblem as refusal:
        # What an instruction may say is checked later there; the states know keywords and quotes only.
        values = ("not a role", "not a version", "unknown parameter", "whole number", "is a number", "true or false")
        assert theirs is None or any(said in refusal.message for said in values), refusal.message  # noqa: PT017
    else:
        assert ours == theirs


@given(st.text(max_size=80))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """A user's file may hold anything; a traceback is no answer."""
    refused = None
    try:
        parse(text)
    except UsageProblem as refusal:
        refused = refusal.message
    assert refused is None or refused.startswith("modelfile line ")


def test_grammar() -> None:
    """Each line here was compared with Ollama's parser."""
    text = (
        "# a comment\r\n"
        "from ./x.gguf\n"
        '  TEMPLATE """{{ .System }}\n'
        '# no comment\n"quoted" """\n'
        "system You are # terse\n"
        'PARAMETER stop "<|end|>"\n'
        "PARAMETER stop  two words \n"
        "PARAMETER\tnum_ctx 8192\n"
        'SYSTEM "two\nlines"\n'
        "MESSAGE user What?\n"
        'MESSAGE assistant ""\n'
        "LICENSE zero\u200bwidth"
    )
    modelfile = parse(text)
    assert modelfile.last("TEMPLATE") == '{{ .System }}\n# no comment\n"quoted" '
    assert modelfile.all("SYSTEM") == ("You are # terse", "two\nlines")
    assert modelfile.parameters == {"stop": ("<|end|>", "two words"), "num_ctx": ("8192",)}
    assert modelfile.messages == (("user", "What?"), ("assistant", ""))
    assert modelfile.last("FROM") == "./x.gguf"
    assert modelfile.last("LICENSE") == "zerowidth"
    assert parse("\ufeffSYSTEM x").last("SYSTEM") == "x"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("SYSTEM x\nPARAMETER tempratur 1", 2, "unknown parameter 'tempratur'"),
        ("\n\nPARAMETER num_ctx many", 3, "num_ctx is a whole number"),
        ("PARAMETER temperature hot", 1, "temperature is a number"),
        ("PARAMETER temperature inf", 1, "temperature is a number"),
        ("PARAMETER temperature 1e39", 1, "temperature is a number"),
        ("PARAMETER temperature 1e999", 1, "temperature is a number"),
        ("PARAMETER use_mmap maybe", 1, "use_mmap is true or false"),
        ("PARAMETER num_ctx", 1, "needs one blank, a name and a value"),
        ("PARAMETER  num_ctx 1", 1, "needs one blank, a name and a value"),
        ("MESSAGE robot hello", 1, "not a role"),
        ("REQUIRES soon", 1, "not a version"),
        ("REQUIRES 1.02.3", 1, "not a version"),
        ('TEMPLATE """{{ .System }}\n{{ if .Prompt }}"""', 1, "the template is broken: {{ if }} has no {{ end }}"),
        ("REQUIRES 1.2.3-x.01", 1, "not a version"),
        ("SYSTEM x\nGREETING y", 2, "not an instruction: 'GREETING'"),
        ("SYSTEM", 1, "not an instruction: 'SYSTEM'"),
        ('SYSTEM x\nTEMPLATE """\nnever\nclosed', 2, "not closed"),
        ('SYSTEM "never closed', 1, "not closed"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, line: int, message: str) -> None:
    """A typing error in line 40 of a Modelfile is found by its number."""
    with pytest.raises(UsageProblem) as refusal:
        parse(text)
    assert refusal.value.message.startswith(f"modelfile line {line}: ")
    assert message in refusal.value.message


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("1.0", "1"),
        ("0.7", "0.7"),
        ("1", "1"),
        (".5", "0.5"),
        ("5.", "5"),
        ("1e-7", "1e-7"),
        ("0.000001", "0.000001"),
        ("1e21", "1e+21"),
        ("123456789", "123456790"),
        ("0.1000000001", "0.1"),
        ("-0.0", "-0"),
        ("0", "0"),
    ],
)
def test_floats_are_written_as_go_writes_them(value: str, encoded: str) -> None:
    """Another spelling is another blob than Ollama's own, for the same parameters."""
    assert encode_parameter("temperature", value) == encoded


@example(3.4025001647762064e38, "temperature")  # its first four digits are more than any float32
@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from(sorted(FLOATS)))
def test_floats_keep_their_value(number: float, name: str) -> None:
    """The shortest digits must still be the same float32."""
    encoded = encode_parameter(name, repr(number))
    assert struct.pack("<f", float(encoded)) == struct.pack("<f", number)


def test_deprecated_parameters() -> None:
    """Old Modelfiles have them. Ollama takes and forgets them, and so do we; they stay in what is kept for the record."""
    modelfile = parse("PARAMETER mirostat 2\nPARAMETER top_k 4\nPARAMETER low_vram true\nPARAMETER mirostat 1\n")
    assert modelfile.parameters == {"top_k": ("4",)}
    assert modelfile.deprecated == ("mirostat", "low_vram")
    assert parse(render(modelfile, "x")).deprecated == modelfile.deprecated


def test_booleans() -> None:
    """Go's ``ParseBool`` takes more spellings than ``true``."""
    assert [encode_parameter("use_mmap", value) for value in ("T", "1", "FALSE", "0")] == [
        "true",
        "true",
        "false",
        "false",
    ]
