"""The quantizations of a repository: which there are, how they are judged, and which is meant."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelvault.artifact import ModelName, SourceFile
from modelvault.errors import UsageProblem
from modelvault.formats.ggml import FILE_TYPES
from modelvault.formats.gguf_names import projector_among
from modelvault.formats.quantizations import QUANTIZATIONS, USUAL, judge, nominal_bits
from modelvault.sources.quantizations import QuantizationWanted, choices, find, nearest, sets
from modelvault.sources.selection import Wish, open_choice, select


def listing(**sizes: int) -> list[SourceFile]:
    """Files of one model, by quantization, as bartowski names them."""
    return [SourceFile(f"M-8B-{name.removeprefix('_')}.gguf", size, None) for name, size in sizes.items()]


def named(*paths: str) -> list[SourceFile]:
    return [SourceFile(path, 1000 + number, None) for number, path in enumerate(paths)]


LLAMA = listing(
    Q2_K=3_179_131_904, Q4_K_M=4_920_739_232, Q4_K_L=5_310_632_352, Q8_0=8_540_775_840, F32=32_131_000_000
)  # fmt: skip


def test_a_split_set_is_one_choice() -> None:
    """Breaks if somebody is asked which third of a model he wants."""
    files = named("Q8_0/M-Q8_0-00001-of-00003.gguf", "Q8_0/M-Q8_0-00002-of-00003.gguf", "Q8_0/M-Q8_0-00003-of-00003.gguf", "M-Q4_K_M.gguf")  # fmt: skip
    listed = choices(sets(files))
    assert [(choice.name, choice.files) for choice in listed] == [("Q4_K_M", 1), ("Q8_0", 3)]
    assert listed[1].size == sum(file.size for file in files[:3])


def test_what_is_no_model_is_no_choice() -> None:
    """Breaks if an importance matrix or a draft is offered, or a repository that holds nothing else hides it."""
    aside = named("mmproj-M-f16.gguf", "M.imatrix.gguf", "M-MTP-Q8_0.gguf", "M-draft-Q4_0.gguf", "lora/M-Q8_0.gguf")
    assert [entry.name for entry in sets([*aside, *named("M-Q4_K_M.gguf", "Other-Q8_0.gguf")])] == ["Q4_K_M", "Q8_0"]
    assert [entry.name for entry in sets(named("Draft-Q4_0.gguf", "Draft-Q8_0.gguf"))] == ["Q4_0", "Q8_0"]
    assert sets(named("mmproj.gguf", "README.md")) == ()
    one = [*aside, *named("M-Q4_K_M.gguf")]
    assert open_choice(one, Wish()) == ()
    assert {file.path for file in select(one, Wish()).files} == {"M-Q4_K_M.gguf", "mmproj-M-f16.gguf"}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"), "mmproj-F16.gguf"),
        (("mmproj-F32.gguf", "mmproj-bf16.gguf"), "mmproj-bf16.gguf"),
        (("mmproj-Q8_0.gguf",), "mmproj-Q8_0.gguf"),
        (("M-mmproj.f16.gguf", "mmproj-bf16.gguf"), "M-mmproj.f16.gguf"),
        (("M-Q4_K_M.gguf",), None),
    ],
)
def test_one_projector_comes_along(names: tuple[str, ...], chosen: str | None) -> None:
    """Breaks if a model that sees comes blind, or with three times the same eyes."""
    assert projector_among(names) == chosen


def test_bits_per_weight() -> None:
    """Breaks if the table shows another number than the sizes say, or one that nothing says."""
    computed = {choice.name: choice.bits for choice in choices(sets(LLAMA), 8_030_261_312)}
    assert computed == {"Q2_K": 3.17, "Q4_K_M": 4.9, "Q4_K_L": 5.29, "Q8_0": 8.51, "F32": 32.01}
    from_sizes = {choice.name: choice.bits for choice in choices(sets(LLAMA))}
    assert from_sizes["Q4_K_M"] == pytest.approx(4.9, abs=0.02)
    assert {choice.bits for choice in choices(sets(listing(Q2_K=3, Q4_K_M=4)))} == {None}
    # gpt-oss: the experts stay as they are, whatever the name says.
    mixed = choices(sets(listing(F16=13_792_638_784, Q4_K_M=11_624_759_200, Q8_0=12_109_566_560)))
    assert {choice.bits for choice in mixed} == {None}
    assert {choice.bits for choice in choices(sets(listing(F16=0, Q4_K_M=0)))} == {None}


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [("Q4", ["Q4_K_M", "Q4_K_L"]), ("q4km", ["Q4_K_M"]), ("K_M", ["Q4_K_M"]), ("Q5_K_M", ["Q4_K_M"]), ("zzz", [])],
)
def test_the_nearest_is_suggested(wanted: str, meant: list[str]) -> None:
    """Breaks if a slip of the finger is answered with a list alone."""
    assert nearest(wanted, ["Q2_K", "Q4_K_M", "Q4_K_L", "Q8_0"])[: len(meant) or None] == meant
    with pytest.raises(UsageProblem) as caught:
        find(sets(LLAMA), wanted)
    assert ("did you mean" in str(caught.value.hint)) is bool(meant)
    assert "Q8_0" in str(caught.value.hint)
    assert len(caught.value.data["choices"]) == len(LLAMA)


def test_two_models_of_one_quantization() -> None:
    """Breaks if one of two models is taken by chance, or neither can be named."""
    files = named("a-Q4_K_M.gguf", "b-Q4_K_M.gguf", "b-Q8_0.gguf")
    assert [entry.name for entry in sets(files)] == ["a-Q4_K_M", "b-Q4_K_M", "Q8_0"]
    with pytest.raises(QuantizationWanted, match="of 2 models") as caught:
        find(sets(files), "q4_k_m")
    assert caught.value.hint == "choose one with --quant: a-Q4_K_M, b-Q4_K_M"
    assert [file.path for file in find(sets(files), "B-Q4_K_M").files] == ["b-Q4_K_M.gguf"]


def test_the_folder_may_say_it() -> None:
    """Breaks if files that are called alike in folders for each quantization cannot be told apart."""
    files = named("Q4_K_M/model.gguf", "Q8_0/model.gguf")
    assert [entry.name for entry in sets(files)] == ["Q4_K_M", "Q8_0"]
    assert [file.path for file in select(files, Wish("Q8_0")).files] == ["Q8_0/model.gguf"]


@given(
    st.lists(st.sampled_from([*QUANTIZATIONS, "UD-Q4_K_XL", "Q6_K_L"]), min_size=1, max_size=6, unique=True),
    st.booleans(),
)
def test_every_choice_can_be_chosen(names: list[str], lower: bool) -> None:
    """Breaks if the table offers a name that --quant or a model's name does not take."""
    files = named(*(f"M-{name.lower() if lower else name}.gguf" for name in names))
    for choice in choices(sets(files)):
        (chosen,) = select(files, Wish(choice.name)).files
        assert chosen.path.upper() == f"M-{choice.name}.GGUF".upper()
        assert ModelName(f"org/m:{choice.name}").quant == choice.name


def test_judgements() -> None:
    """Breaks if a judgement does not fit a terminal beside the rest, or a quantization of llama.cpp has none."""
    assert USUAL in QUANTIZATIONS
    told = {
        name: judge(name) for name in [*QUANTIZATIONS, "UD-IQ2_XXS", "UD-Q4_K_XL", "Q4_K_L", "Q5_K_L", "UD-Q8_K_XL"]
    }
    assert all(len(text) <= 42 for text in told.values())
    assert told["Q4_K_M"] == "good balance; the usual choice"
    assert told["Q4_K_L"] == "Q4_K_M with finer embeddings"
    assert told["UD-Q4_K_XL"] == "Q4_K_M with more bits where they matter"
    assert judge("nonsense") == ""
    rare = {"NVFP4", "Q1_0"}
    assert [name for name in FILE_TYPES.values() if name not in QUANTIZATIONS and name not in rare] == []


def test_better_is_larger() -> None:
    """Breaks if a number in the table is mistyped: within a family more bits are more bits."""
    for family in (r"Q\d_K(_[SML])?|Q8_0", r"IQ\d_\w+", r"F32|F16"):
        members = [entry for name, entry in QUANTIZATIONS.items() if re.fullmatch(family, name)]
        assert [entry.bits for entry in members] == sorted((entry.bits for entry in members), reverse=True)
    assert nominal_bits("UD-Q4_K_M") == nominal_bits("Q4_K_M")
    assert nominal_bits("nonsense") is None
