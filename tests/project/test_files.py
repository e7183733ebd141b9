"""The project's file and its lock: what they may say, and that the same content is the same bytes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelvault.artifact import Digest, ModelName
from modelvault.errors import UsageProblem
from modelvault.project.lock import Lock, LockedFile, LockedModel, decode_lock, encode_lock, read_lock, write_lock
from modelvault.project.wanted import WantedModel, read_project

PROJECT = """
[[model]]
name = "qwen2.5-7b"

[[model]]
name = "org/m-GGUF"
quant = "Q4_K_M"
revision = "main"
include = ["*.gguf"]
exclude = ["*mmproj*"]
"""


def project(folder: Path, text: str) -> Path:
    file = folder / "modelvault.toml"
    file.write_text(text)
    return file


def test_a_project_is_read_whole(tmp_path: Path) -> None:
    """Breaks if something that a project says does not count."""
    read = read_project(project(tmp_path, PROJECT))
    assert read.models == (
        WantedModel(ModelName("qwen2.5-7b")),
        WantedModel(ModelName("org/m-GGUF"), "Q4_K_M", "main", ("*.gguf",), ("*mmproj*",)),
    )
    assert [str(model) for model in read.models] == ["qwen2.5-7b", "org/m-GGUF:Q4_K_M"]
    assert read.lock == tmp_path / "modelvault.lock"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "model"),
        ("model = []", "model"),
        ('[[model]]\nnam = "x"', "nam"),
        ("[[model]]\nname = 5", "model[0].name"),
        ('[[model]]\nname = "x y"', "model[0].name"),
        ('[[model]]\nname = "a/b/c"', "model[0].name"),
        ('[[model]]\nname = "x"\n[[model]]\nname = "./x.gguf"', "model[1].name"),
        ('[[model]]\nname = "x"\nquant = ""', "model[0].quant"),
        ('[[model]]\nname = "x"\ninclude = "*.gguf"', "model[0].include"),
        ('[[model]]\nname = "o/x:Q4_K_M"\nquant = "Q8_0"', "model[0].quant"),
        ('[[model]]\nname = "x"\n[[model]]\nname = "X"', "model[1].name"),
        ('[[model]]\nname = "o/x:q8_0"\n[[model]]\nname = "o/x"\nquant = "Q8_0"', "model[1].name"),
        ('[[model]]\nname = "x"\n[other]', "other"),
        ("[[model", "not valid TOML"),
    ],
)
def test_what_a_project_may_not_say(tmp_path: Path, text: str, key: str) -> None:
    """Breaks if a typing mistake is passed over, or the error does not lead to it."""
    file = project(tmp_path, text)
    with pytest.raises(UsageProblem) as caught:
        read_project(file)
    assert caught.value.message.startswith(str(file))
    assert key in caught.value.message
    assert caught.value.hint


def test_no_project(tmp_path: Path) -> None:
    """Breaks if `pull --all` in another directory than the project's does not say what is missing."""
    with pytest.raises(UsageProblem, match=r"there is no .*modelvault\.toml") as caught:
        read_project(tmp_path / "modelvault.toml")
    assert "--file" in str(caught.value.hint)


TEXT = st.text(st.characters(exclude_categories=["C"], exclude_characters="/\\"), min_size=1, max_size=12)
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda data: Digest.sha256(data.hex()))
PATHS = st.lists(TEXT.filter(lambda part: part not in {".", ".."}), min_size=1, max_size=3).map("/".join)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,12}", fullmatch=True).filter(lambda name: not name.endswith("gguf"))
WANTED = st.builds(
    WantedModel,
    NAMES.map(ModelName),
    st.none() | TEXT,
    st.none() | TEXT,
    st.lists(TEXT, max_size=2).map(tuple),
    st.just(()),
)
FILES = st.dictionaries(PATHS, st.builds(LockedFile, st.just("x"), st.integers(0, 1 << 62), DIGESTS), min_size=1)
MODELS = st.builds(
    LockedModel,
    WANTED,
    NAMES.map(ModelName),
    st.just("hub"),
    st.just("org/x"),
    st.just("a" * 40),
    FILES.map(
        lambda files: tuple(sorted(LockedFile(path, file.size, file.digest) for path, file in files.items()))
    ),
)  # fmt: skip
LOCKS = st.lists(MODELS, max_size=4, unique_by=(lambda model: model.wanted, lambda model: model.name)).map(
    lambda models: Lock({model.wanted: model for model in models})
)


@given(LOCKS, st.randoms(use_true_random=False))
def test_a_lock_survives_its_file(lock: Lock, random: st.DrawFn) -> None:
    """Breaks if something in a lock does not come back, or its bytes depend on the order in which models came."""
    data = encode_lock(lock)
    assert decode_lock(data) == lock
    shuffled = list(lock.models.values())
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    assert encode_lock(Lock({model.wanted: model for model in shuffled})) == data


def a_lock() -> dict[str, object]:
    wanted = WantedModel(ModelName("x"))
    file = LockedFile("m.gguf", 3, Digest.sha256("0" * 64))
    model = LockedModel(wanted, ModelName("x"), "hub", "o/x", "a" * 40, (file,))
    document: dict[str, object] = json.loads(encode_lock(Lock({wanted: model})))
    return document


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"format"', '"fromat"'),
        ("modelvault.lock/1", "modelvault.lock/2"),
        ('"m.gguf"', '"../m.gguf"'),
        ('"size": 3', '"size": -3'),
        ("0" * 64, "0" * 63),
        ('"x"', '"x y"'),
        ('"source": "hub",', '"source": "hub", "source": "hub",'),
        ("{", "<<<<<<< HEAD\n{"),
    ],
)
def test_what_a_lock_may_not_say(tmp_path: Path, old: str, new: str) -> None:
    """Breaks if a lock that was edited, merged badly or written by a later version is taken for one that says less."""
    file = tmp_path / "modelvault.lock"
    text = json.dumps(a_lock(), indent=2)
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageProblem) as caught:
        read_lock(file)
    assert str(file) in caught.value.message
    assert "--update" in str(caught.value.hint)


def test_an_unchanged_lock_is_not_touched(tmp_path: Path) -> None:
    """Breaks if a build that goes by time stamps sees a change where there is none."""
    file = tmp_path / "modelvault.lock"
    assert read_lock(file) == Lock()
    lock = decode_lock(json.dumps(a_lock()).encode())
    assert write_lock(file, lock)
    before = file.stat()
    assert not write_lock(file, lock)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert file.read_text().endswith("}\n")
