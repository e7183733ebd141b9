"""The values that stages exchange: what they accept becomes file names, so what they refuse matters."""

from contextlib import suppress
from itertools import chain, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelvault.artifact import (
    Algorithm,
    Digest,
    FileRole,
    FileSpec,
    Model,
    ModelName,
    Origin,
    Traits,
    check_relative_path,
    file_role,
    looks_like_path,
)
from modelvault.errors import UsageProblem

ZERO = Digest.sha256("0" * 64)


@given(st.binary())
def test_digest_survives_text(data: bytes) -> None:
    """Breaks if a digest read back is another one."""
    digest = Digest.of_bytes(data)
    assert Digest.parse(str(digest)) == digest


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "md5:" + "0" * 32, "0" * 64, "sha256:../x"]
)
def test_digest_refuses(text: str) -> None:
    """Breaks if something else than lower-case hex could become the name of a blob."""
    with pytest.raises(ValueError, match=r"digest|Algorithm"):
        Digest.parse(text)


def test_git_digest_has_its_own_length() -> None:
    """Breaks if git's SHA-1 and SHA-256 can be mixed up."""
    assert Digest(Algorithm.GIT_SHA1, "0" * 40).hex == "0" * 40
    with pytest.raises(ValueError, match="git-sha1"):
        Digest(Algorithm.GIT_SHA1, "0" * 64)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("llama-3.1-8b", (None, "llama-3.1-8b", None)),
        ("org/name", ("org", "name", None)),
        ("org/name:Q4_K_M", ("org", "name", "Q4_K_M")),
        ("_a/b__c", ("_a", "b__c", None)),
    ],
)
def test_name_parts(text: str, parts: tuple[str | None, str, str | None]) -> None:
    """Breaks if a name that the Hub admits is refused or taken apart wrongly."""
    name = ModelName(text)
    assert (name.organization, name.repository, name.quant) == parts
    assert "/" not in name.file_name
    assert ":" not in name.file_name


@pytest.mark.parametrize(
    ("text", "parts", "hub_id", "file_name"),
    [
        ("ollama:llama3.1", (None, "llama3.1", "latest"), "ollama/llama3.1-latest", "ollama@llama3.1@latest"),
        ("ollama:me/a--b:8B", ("me", "a--b", "8B"), "ollama/me-a--b-8B", "ollama@me--a-+b@8B"),
        (
            "ollama:hub:5000/me/a:q",
            ("me", "a", "q"),
            "ollama/hub-5000-me-a-q",
            "ollama@hub@5000--me--a@q",
        ),
    ],
)
def test_ollama_name_parts(text: str, parts: tuple[str | None, str, str], hub_id: str, file_name: str) -> None:
    """Breaks if a model from Ollama gets no directory, or another model's, in an engine that knows the Hub's names only."""
    name = ModelName(text)
    assert (name.organization, name.repository, name.quant) == parts
    assert (name.hub_id, name.file_name) == (hub_id, file_name)
    assert ModelName(name.text) == name


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("ollama:llama3.1", "ollama:llama3.1:latest"),
        ("ollama:library/llama3.1:8b", "ollama:llama3.1:8b"),
        ("ollama:registry.ollama.ai/library/llama3.1:8b", "ollama:llama3.1:8b"),
        ("ollama:me/x", "ollama:me/x:latest"),
        ("ollama:hf.co/org/X-GGUF:X-Q4_K_M.gguf", "ollama:hf.co/org/X-GGUF:X-Q4_K_M.gguf"),
        ("ollama:localhost:5000/library/x:1", "ollama:localhost:5000/library/x:1"),
    ],
)
def test_an_ollama_name_is_listed_in_one_way(text: str, listed: str) -> None:
    """Breaks if a model is in the vault twice, or not found, since Ollama's names can be written in several ways."""
    assert ModelName(text).text == listed
    assert ModelName(text) == ModelName(listed)
    assert not looks_like_path(text)


def test_file_names() -> None:
    """Breaks if two models share a directory, where the second would replace the first; or if common names are not pretty."""
    pretty = {
        "org/name": "org--name",
        "org/name:Q4_K_M": "org--name--Q4_K_M",
        "llama-3.1-8b": "llama-3.1-8b",
        "a:b": "a@b",
    }
    assert {text: ModelName(text).file_name for text in pretty} == pretty
    names = set()
    for text in map("".join, chain.from_iterable(product("a-/:", repeat=length) for length in range(1, 7))):
        for prefix in ("", "ollama:"):
            with suppress(UsageProblem):
                names.add(ModelName(prefix + text))
    assert len({name.file_name for name in names}) == len(names) > 100


@pytest.mark.parametrize(
    "text",
    [
        *("", "/x", "a/b/c", "../x", "a/..", ".hidden", "a b", "a:b:c", "ä", "-x", "a\n", "x" * 97),
        *("x.gguf", "user/x.gguf", "x.safetensors", "user/x:y.mvbundle"),
        *("ollama:", "ollama:a/b/c/d", "ollama:hub:5000/x", "ollama:x:cloud", "ollama:../x", "ollama:a:b:c/d/e"),
        *("ollama:hub:x/a/b", "ollama:" + "h" * 200 + "/a/b", "Ollama:a:b", "ollama:a:"),
    ],
)
def test_name_refuses(text: str) -> None:
    """Breaks if a name could leave a directory, or be taken for an option or a path."""
    with pytest.raises(UsageProblem):
        ModelName(text)


@pytest.mark.parametrize("path", ["a", "a/b.gguf", "ä/ö.json", "a..b", "...", "-x"])
def test_relative_path_accepts(path: str) -> None:
    """Breaks if ordinary files of repositories are refused."""
    assert check_relative_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a",
        "a//b",
        "a/",
        ".",
        "..",
        "a/../b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "a\u202eb",
        "x" * 256,
        "a/" * 600 + "a",
    ],
)
def test_relative_path_refuses(path: str) -> None:
    """Breaks if a path from a drive or a server could leave its root or fool a terminal."""
    with pytest.raises(ValueError, match="safe relative path"):
        check_relative_path(path)


@given(st.text())
def test_accepted_paths_stay_inside(path: str) -> None:
    """Breaks if any text that is accepted climbs out of its root."""
    try:
        parts = check_relative_path(path).split("/")
    except ValueError:
        return
    assert all(part not in {"", ".", ".."} for part in parts)


def test_files_that_differ_only_in_case_are_refused() -> None:
    """Breaks if two files of a model would fall onto each other on a drive that folds case."""
    files = (FileSpec("README.md", 1, ZERO), FileSpec("readme.md", 1, ZERO))
    with pytest.raises(UsageProblem, match="only in case"):
        Model(ModelName("a"), Origin("folder"), files, Traits("gguf"))


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("model.safetensors", FileRole.WEIGHT),
        ("x-Q4_K_M.gguf", FileRole.WEIGHT),
        ("tokenizer.json", FileRole.CONFIG),
        ("chat_template.jinja", FileRole.CONFIG),
        ("modeling_x.py", FileRole.CODE),
        ("README.md", FileRole.DOC),
        ("LICENSE.txt", FileRole.DOC),
    ],
)
def test_file_role(path: str, role: FileRole) -> None:
    """Breaks if a layer gets the wrong ModelPack media type."""
    assert file_role(path) is role


@pytest.mark.parametrize(
    ("argument", "path"),
    [("/x", True), ("./x", True), ("../x", True), ("~/x", True), ("x.mvbundle", True), ("x.gguf", True), ("x.safetensors", True),
     ("org/name", False), ("llama-3.1-8b", False), ("org/name:Q4", False)],
)  # fmt: skip
def test_paths_and_names(argument: str, path: bool) -> None:
    """Breaks if the documented rule, what is a path and what a name, does not hold."""
    assert looks_like_path(argument) is path
