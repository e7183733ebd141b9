"""Which files of a repository make the model: the listings are those of well-known kinds of repositories."""

import pytest

from modelvault.artifact import SourceFile
from modelvault.errors import UsageProblem
from modelvault.sources.quantizations import quant_of
from modelvault.sources.selection import Wish, select


def listing(*paths: str) -> list[SourceFile]:
    return [SourceFile(path, len(path), None) for path in paths]


def chosen(files: list[SourceFile], **wish: object) -> set[str]:
    return {file.path for file in select(files, Wish(**wish)).files}  # type: ignore[arg-type]  # keywords of the test


GGUF = listing(
    ".gitattributes", "README.md", "config.json", "M-Q4_K_M.gguf", "M-Q4_K_S.gguf", "M-Q4_K_M_L.gguf", "M-IQ4_XS.gguf",
    "M-f16.gguf", "M.imatrix", "mmproj-M-f16.gguf", "M-Q8_0/M-Q8_0-00001-of-00002.gguf", "M-Q8_0/M-Q8_0-00002-of-00002.gguf",
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "quant"),
    [
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("model.IQ2_XXS.gguf", "IQ2_XXS"),
        ("gemma-2-27b-it-UD-Q2_K_XL.gguf", "UD-Q2_K_XL"),
        ("x-BF16.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("SmolLM_Q8_0.gguf", "Q8_0"),
        ("model.gguf", None),
        ("Qwen2.gguf", None),
    ],
)
def test_quantization_in_a_name(path: str, quant: str | None) -> None:
    """Breaks if a publisher's way of naming files is not understood."""
    assert quant_of(path) == quant


def test_one_quantization() -> None:
    """Breaks if --quant takes a neighbour whose name only begins the same, or leaves the README."""
    assert chosen(GGUF, quant="Q4_K_M") == {"README.md", "config.json", "M-Q4_K_M.gguf", "mmproj-M-f16.gguf"}
    assert chosen(GGUF, quant="q8_0", exclude=("*mmproj*",)) == {
        "README.md", "config.json", "M-Q8_0/M-Q8_0-00001-of-00002.gguf", "M-Q8_0/M-Q8_0-00002-of-00002.gguf",
    }  # fmt: skip


def test_several_quantizations_are_a_question() -> None:
    """Breaks if we guess: 40 GB of the wrong file is a lost day."""
    with pytest.raises(UsageProblem) as caught:
        select(GGUF, Wish())
    assert caught.value.hint is not None
    assert "Q4_K_M" in caught.value.hint
    with pytest.raises(UsageProblem, match="no Q2_K"):
        select(GGUF, Wish(quant="Q2_K"))


def test_only_one_quantization_needs_no_flag() -> None:
    """Breaks if an unambiguous repository asks a question."""
    assert chosen(listing("a-Q8_0.gguf", "README.md")) == {"a-Q8_0.gguf", "README.md"}


SAFETENSORS = listing(
    "config.json", "tokenizer.json", "generation_config.json", "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "consolidated.safetensors",
    "original/consolidated.00.pth", "onnx/model.onnx", "modeling_x.py", ".gitattributes", "chat_template.jinja",
)  # fmt: skip


def test_the_same_weights_twice_come_once() -> None:
    """Breaks if a pull doubles its way, or if the tokenizer or a template is filtered out."""
    assert chosen(SAFETENSORS) == {
        "config.json", "tokenizer.json", "generation_config.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "model.safetensors.index.json", "modeling_x.py", "chat_template.jinja",
    }  # fmt: skip
    assert "pytorch_model.bin" in {file.path for file in select(SAFETENSORS, Wish()).left_out}


def test_a_gguf_beside_safetensors_is_asked_for() -> None:
    """Breaks if a repository that holds both forms gives half of each."""
    both = [*SAFETENSORS, *listing("model.gguf")]
    assert "model.gguf" not in chosen(both)
    assert "model-00001-of-00002.safetensors" in chosen(both)
    assert chosen([*SAFETENSORS, *listing("model-Q8_0.gguf")], quant="Q8_0") == {
        "config.json", "tokenizer.json", "generation_config.json", "modeling_x.py", "chat_template.jinja",
        "model-Q8_0.gguf",
    }  # fmt: skip


def test_pickle_alone_is_not_hidden() -> None:
    """Breaks if a repository of pickles looks as if it had no weights: the policy must be able to name them."""
    assert "pytorch_model.bin" in chosen(listing("config.json", "tokenizer.json", "pytorch_model.bin"))


def test_globs() -> None:
    """Breaks if --include does not beat the defaults, or --exclude does not beat --include."""
    assert chosen(SAFETENSORS, include=("*.bin",)) == {"pytorch_model.bin"}
    assert chosen(SAFETENSORS, include=("*.json",), exclude=("tokenizer*",)) == {
        "config.json", "generation_config.json", "model.safetensors.index.json",
    }  # fmt: skip
    with pytest.raises(UsageProblem, match="no file"):
        select(SAFETENSORS, Wish(include=("nothing*",)))


def test_quant_without_gguf() -> None:
    """Breaks if --quant on a safetensors repository is silently ignored."""
    with pytest.raises(UsageProblem, match="no GGUF"):
        select(SAFETENSORS, Wish(quant="Q4_K_M"))
