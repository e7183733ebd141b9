"""The question which quantization is wanted: on a terminal, beside it, and what is typed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_hub import FaultyHub
from machines import Machine
from refusals import failed
from terminals import on_terminal, screen

from modelvault.artifact import SourceFile
from modelvault.cli.choosing import _meant, lines
from modelvault.cli.console import human_size
from modelvault.results.models import QuantChoice
from modelvault.sources.quantizations import choices, sets

QUESTION = b"which one? (number or name, 1 to 3): "


@pytest.fixture
def hub(tiny_gguf: Path, tmp_path: Path) -> Iterator[FaultyHub]:
    """A repository as publishers fill it; every file of it is the same small model."""
    folder = tmp_path / "repository"
    folder.mkdir()
    weights = next(tiny_gguf.glob("*.gguf"))
    for name in ("M-Q4_K_M", "M-Q8_0", "M-f16", "M-mtp-Q8_0", "M-imatrix", "mmproj-M-f16", "mmproj-M-bf16"):
        shutil.copy(weights, folder / f"{name}.gguf")
    with FaultyHub({"org/m-GGUF": folder}) as hub:
        hub.repositories["org/m-GGUF"].info["gguf"] = {"total": 1_000_000}
        yield hub


@pytest.mark.parametrize(("typed", "chosen"), [("2", "Q4_K_M"), ("q8_0", "Q8_0"), ("1", "F16")])
def test_a_person_chooses(machine: Callable[..., Machine], hub: FaultyHub, typed: str, chosen: str) -> None:
    """Breaks if the number or name that is typed pulls another one, or the model is not called by it."""
    pc = machine("pc", hub.url)
    shown = on_terminal(pc, "pull", "org/m-GGUF", answers=[(QUESTION, f"{typed}\n".encode())], code=0)
    assert f"org/m-GGUF:{chosen}: 2 files" in shown
    files = {file["path"] for file in pc.json("show", f"org/m-GGUF:{chosen}").result["files"]}
    assert files == {"mmproj-M-f16.gguf", f"M-{'f16' if chosen == 'F16' else chosen}.gguf"}


def test_what_the_terminal_shows(machine: Callable[..., Machine], hub: FaultyHub, tmp_path: Path) -> None:
    """Breaks if a mistyped answer ends the pull, or the table is not one of 80 columns."""
    pc = machine("pc", hub.url, NO_COLOR="1")
    answers = [(QUESTION, b"Q5\n"), (QUESTION, b"4\n"), (QUESTION, b"Q8_0\n")]
    shown = screen(on_terminal(pc, "pull", "org/m-GGUF", "--dry-run", answers=answers, code=0))
    weights = (tmp_path / "repository" / "M-Q8_0.gguf").stat().st_size
    size, bits = human_size(weights), f"{weights * 8 / 1_000_000:.1f}".rjust(4)
    assert shown[:9] == [
        "looking up org/m-GGUF",
        f"   quantization  {'size':>{len(size)}}  bits",
        f"1  F16           {size}  {bits}  unquantized",
        f"2  Q4_K_M        {size}  {bits}  good balance; the usual choice",
        f"3  Q8_0          {size}  {bits}  as good as unquantized; large",
        "which one? (number or name, 1 to 3): Q5",
        "not one of them: Q5",
        "which one? (number or name, 1 to 3): 4",
        "not one of them: 4",
    ]
    assert max(map(len, shown)) <= 80
    assert any(line.startswith("org/m-GGUF:Q8_0: org/m-GGUF at ") for line in shown)


@pytest.mark.parametrize(
    ("key", "code", "said"),
    [(b"\x03", 130, "error: interrupted"), (b"\x04", 2, "choose one with --quant: F16, Q4_K_M, Q8_0")],
    ids=["ctrl-c", "ctrl-d"],
)
def test_a_person_leaves(machine: Callable[..., Machine], hub: FaultyHub, key: bytes, code: int, said: str) -> None:
    """Breaks if who does not want to choose gets something all the same, or is told of a defect."""
    pc = machine("pc", hub.url, NO_COLOR="1")
    shown = on_terminal(pc, "pull", "org/m-GGUF", answers=[(QUESTION, key)], code=code)
    assert said in shown
    assert "internal error" not in shown
    assert pc.models() == set()


def test_nobody_can_be_asked(machine: Callable[..., Machine], hub: FaultyHub) -> None:
    """Breaks if a script hangs at a question, or gets no list to choose from."""
    pc = machine("pc", hub.url)
    piped = pc.run("pull", "org/m-GGUF", code=2)
    assert "2  Q4_K_M" in piped.err
    assert "good balance" in piped.err
    assert "which one" not in piped.err
    error = failed(pc, "pull", "org/m-GGUF", code=2)
    assert (error["code"], error["hint"]) == ("quantization-wanted", "choose one with --quant: F16, Q4_K_M, Q8_0")
    assert [choice["name"] for choice in error["data"]["choices"]] == ["F16", "Q4_K_M", "Q8_0"]
    assert all(choice.keys() == {"name", "size", "files", "bits", "judgement"} for choice in error["data"]["choices"])
    unknown = failed(pc, "pull", "org/m-GGUF", "--quant", "Q4_K_S", code=2)
    assert unknown["message"] == "no Q4_K_S in the repository"
    assert unknown["hint"].startswith("did you mean Q4_K_M")


def test_an_answer_that_is_no_number() -> None:
    """Breaks if digits of other scripts, or numbers beyond the list, choose something or end in a traceback."""
    listed = choices(sets([SourceFile(f"m-{name}.gguf", 1, None) for name in ("Q2_K", "Q8_0")]))
    for answer in ("0", "3", "-1", "\u0661", "\u00b2", "9" * 5000, "1.0", "Q2"):
        assert _meant(answer, listed) is None
    assert _meant("02", listed) is None
    assert _meant("q2_k", listed) == "Q2_K"


def test_the_longest_table_fits() -> None:
    """Breaks if a judgement is folded on an ordinary terminal."""
    listed = [QuantChoice("UD-IQ2_XXS", 999_000_000_000, 9, 2.38, "IQ2_XXS with more bits where they matter")] * 40
    laid_out = lines(listed, 80)
    assert len(laid_out) == 41
    assert max(map(len, laid_out)) <= 80
