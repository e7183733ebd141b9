"""What ``auto_map`` says."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelvault.formats.remote_code import CodeNeeds, CodeReference, code_needs, code_references, read_code_map, shorten

OWN, OTHER = CodeReference("modeling_x.py"), CodeReference("modeling_x.py", "org/other")


@pytest.mark.parametrize(
    ("value", "references"),
    [
        (None, ()),
        ({"AutoModel": "modeling_x.Model"}, (OWN,)),
        ({"AutoModel": "org/other--modeling_x.Model", "AutoConfig": "modeling_x.Config"}, (OTHER, OWN)),
        ({"AutoTokenizer": ["modeling_x.Slow", None]}, (OWN,)),
        (["modeling_x.Slow", "org/other--modeling_x.Fast"], (OWN, OTHER)),
        ({"AutoImageProcessor": {"pil": "modeling_x.A", "torchvision": "modeling_x.B"}}, (OWN,)),
        ({"AutoModel": "code/modeling_x.Model"}, (CodeReference("code/modeling_x.py"),)),
        ({"AutoModel": "gpt2--modeling_x.Model"}, (CodeReference("modeling_x.py", "gpt2"),)),
    ],
)
def test_references(value: Any, references: tuple[CodeReference, ...]) -> None:
    """All forms that transformers reads; one that is passed over is a model that does not load."""
    assert code_references({"auto_map": value}) == references


@pytest.mark.parametrize(
    "text",
    ["../up.X", "/etc/x.X", "org/../other--a.B", "a--b--c.D", "org/other--../a.B", "a", "", ".x", "a.b.C", "a/./b.C"],
)
def test_what_is_no_reference(text: str) -> None:
    """It becomes the name of a file that is not there, and never a path or a repository."""
    assert code_references({"auto_map": {"AutoModel": text}}) == (CodeReference(text),)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=9,
)


@given(value=JSON)
def test_any_value_is_read(value: Any) -> None:
    """Anybody may have written it."""
    for reference in code_references({"auto_map": value}):
        assert reference.repository is None or ".." not in reference.file


def test_parts_and_pipelines_name_code_as_well() -> None:
    """A model of text and pictures may have its maps in its parts; a pipeline of its own is run like any other code."""
    document = {
        "text_config": {"auto_map": {"AutoConfig": "modeling_x.Config"}},
        "custom_pipelines": {"task": {"impl": "org/other--modeling_x.Pipeline"}, "odd": 1},
    }
    assert code_references(document) == (OWN, OTHER)


def test_what_is_needed() -> None:
    """A repository that names itself needs no other."""
    more = CodeReference("b.py", "org/other")
    references = (OTHER, more, OWN, CodeReference("gone.py"))
    needs = code_needs(references, ["modeling_x.py"])
    assert needs == CodeNeeds(("modeling_x.py",), ("gone.py",), {"org/other": ("modeling_x.py", "b.py")})
    assert code_needs(references, ["modeling_x.py"], "org/other").others == {}
    assert needs.runs
    assert not code_needs((CodeReference("gone.py"),), []).runs


def test_files_without_a_map_are_not_judged() -> None:
    """A tokenizer's configuration may hold what a strict reader refuses, as long as nothing depends on it."""
    assert read_code_map(rb'{"a": "\ud800"}') == ()
    with pytest.raises(ValueError, match="valid JSON"):
        read_code_map(b'{"auto_map": ')


def test_many_names_are_shortened() -> None:
    """A warning stays one line."""
    assert shorten(["a", "b" * 500, "c", "d", "e"]) == f"a, {'b' * 120}, c and 2 more"
