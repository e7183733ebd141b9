"""Whole models: real small ones pass, and each way in which repositories break is refused by its rule."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_models
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_models import SMALL, Shape

from modelvault.artifact import ArraySummary, Digest, Traits
from modelvault.errors import InvalidModelFile, PolicyRefused
from modelvault.inspect import ModelReport, inspect_file, inspect_model

PARAMETERS = 1356032
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 980904\n"


def report(folder: Path, *, allow_pickle: bool = False) -> ModelReport:
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return inspect_model(files, allow_pickle=allow_pickle)


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; ``None`` removes one."""
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture
def awq(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "awq", tmp_path / "awq"))


@pytest.fixture
def sharded(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "sharded", tmp_path / "sharded"))


@pytest.fixture
def split(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "split", tmp_path / "split"))


@pytest.mark.parametrize(
    ("name", "traits"),
    [
        ("gguf", Traits("gguf", "llama", "Q8_0", PARAMETERS, 512)),
        ("split", Traits("gguf", "llama", "Q8_0", PARAMETERS, 512)),
        ("awq", Traits("safetensors", "LlamaForCausalLM", "AWQ 4-bit g128", PARAMETERS, 512)),
        ("sharded", Traits("safetensors", "LlamaForCausalLM", "F16", PARAMETERS, 512)),
    ],
)
def test_traits_of_sound_models(models: Path, name: str, traits: Traits) -> None:
    """If it fails, sound models are refused or described wrongly; all four hold the same weights."""
    found = report(models / name)
    assert found.traits == traits
    assert found.warnings == ()


def test_reports_cover_every_weight_file(models: Path) -> None:
    """If it fails, the registry lacks the metadata of some files."""
    found = report(models / "sharded")
    assert list(found.reports) == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert sum(item.parameters for item in found.reports.values()) == PARAMETERS
    metadata = report(models / "gguf").reports["tiny-Q8_0.gguf"].metadata
    assert metadata["general.name"] == "tiny"
    assert isinstance(metadata["tokenizer.ggml.tokens"], ArraySummary)
    assert isinstance(metadata["tokenizer.ggml.tokens"].digest, Digest)


def test_a_folder_of_several_quants(models: Path, tmp_path: Path) -> None:
    """If it fails, a projector or the order of the files decides what a model is called."""
    shutil.copy(models / "gguf" / "tiny-Q8_0.gguf", tmp_path / "b-Q8_0.gguf")
    make_models.make_gguf(tmp_path / "a-mmproj.gguf", shape=Shape(layers=1))
    make_models.make_gguf(tmp_path / "c.gguf", shape=Shape(layers=4))
    assert report(tmp_path).traits.parameters == PARAMETERS


Break = Callable[[Path], object]
BROKEN_AWQ: dict[str, tuple[str, Break]] = {
    "pointer as weights": ("lfs-pointer", lambda d: (d / "model.safetensors").write_bytes(LFS)),
    "pointer as tokenizer": ("lfs-pointer", lambda d: (d / "tokenizer.json").write_bytes(LFS)),
    "web page as config": ("html-page", lambda d: (d / "config.json").write_text("\n<!DOCTYPE html><html>")),
    "empty config": ("empty-file", lambda d: (d / "config.json").write_bytes(b"")),
    "empty weights": ("empty-file", lambda d: (d / "model.safetensors").write_bytes(b"")),
    "no config": ("missing-config", lambda d: (d / "config.json").unlink()),
    "no tokenizer": ("missing-tokenizer", lambda d: (d / "tokenizer.json").unlink()),
    "cut off": ("safetensors-truncated", lambda d: os.truncate(d / "model.safetensors", 500_000)),
    "deep config": ("config-json", lambda d: (d / "config.json").write_text('{"a":' * 100_000)),
    "config with a key twice": ("config-json", lambda d: (d / "config.json").write_text('{"a":1,"a":2}')),
    "config with a lone surrogate": ("config-json", lambda d: (d / "config.json").write_text(r'{"a":"\ud800"}')),
    "config with a long number": ("config-json", lambda d: (d / "config.json").write_text('{"a":%s}' % ("9" * 9999))),
    "config with NaN": ("config-json", lambda d: (d / "config.json").write_text('{"a":NaN}')),
    "config that is a list": ("config-json", lambda d: (d / "config.json").write_text("[]")),
    "huge config": ("config-json", lambda d: os.truncate(d / "config.json", 1 << 30)),
    "quantization that is a list": ("config-json", lambda d: change(d / "config.json", quantization_config=[])),
    "empty quantization": ("quantization-method", lambda d: change(d / "config.json", quantization_config={})),
    "quantization removed": ("quantization-missing", lambda d: change(d / "config.json", quantization_config=None)),
    "other group size": (
        "quantization-tensors",
        lambda d: change(
            d / "config.json",
            quantization_config={"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True},
        ),
    ),
    "contradicting file": (
        "quantization-conflict",
        lambda d: change(d / "quantize_config.json", bits=8, group_size=128, desc_act=False, sym=True),
    ),
    "contradicting group": (
        "quantization-conflict",
        lambda d: change(d / "quant_config.json", w_bit=4, q_group_size=64, zero_point=True),
    ),
    "index of a missing shard": (
        "missing-shard",
        lambda d: change(d / "model.safetensors.index.json", weight_map={"a": "model-1.safetensors"}),
    ),
    "index without a map": ("index-json", lambda d: change(d / "model.safetensors.index.json", metadata={})),
    "index with a number": (
        "index-json",
        lambda d: change(d / "model.safetensors.index.json", weight_map={"a": 1}),
    ),
}


@pytest.mark.parametrize("case", BROKEN_AWQ)
def test_broken_repository_is_refused_by_its_rule(awq: Path, case: str) -> None:
    """If it fails, a repository that engines cannot load, or load as rubbish, crosses the gap."""
    rule, spoil = BROKEN_AWQ[case]
    spoil(awq)
    with pytest.raises(InvalidModelFile) as caught:
        report(awq)
    assert caught.value.rule == rule, caught.value.message


_ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=6,
)
_METHODS = st.sampled_from(["awq", "gptq", "fp8", "modelopt", "exl2", "compressed-tensors", "bitsandbytes", "x"])
_QUANTIZATIONS = st.fixed_dictionaries(
    {"quant_method": _METHODS | _ANYTHING},
    optional=dict.fromkeys(["bits", "group_size", "zero_point", "config_groups", "quantization", "sym"], _ANYTHING),
)
_CONFIGS = st.fixed_dictionaries(
    {"quantization_config": _QUANTIZATIONS | _ANYTHING},
    optional=dict.fromkeys(
        ["architectures", "model_type", "auto_map", "num_hidden_layers", "text_config", "max_position_embeddings"],
        _ANYTHING,
    ),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=_CONFIGS)
def test_any_config_is_refused_or_read(awq: Path, config: dict[str, Any]) -> None:
    """If it fails, some value of an unexpected type in config.json crashes inspection."""
    (awq / "config.json").write_text(json.dumps(config))
    try:
        found = report(awq)
    except InvalidModelFile:
        return
    assert found.traits.format == "safetensors"


def test_a_second_file_that_agrees_is_fine(awq: Path) -> None:
    """If it fails, the many AWQ repositories with a quant_config.json beside config.json are refused."""
    change(awq / "quant_config.json", w_bit=4, q_group_size=128, zero_point=True, version="GEMM")
    assert report(awq).traits.quantization == "AWQ 4-bit g128"


def test_quantization_in_its_own_file_only(awq: Path) -> None:
    """If it fails, older AWQ repositories, which vLLM loads, are taken for unquantized."""
    change(awq / "config.json", quantization_config=None)
    change(awq / "quant_config.json", w_bit=4, q_group_size=128, zero_point=True)
    assert report(awq).traits.quantization == "AWQ 4-bit g128"


def test_index_against_shards(sharded: Path) -> None:
    """If it fails, shards that were mixed up or swapped go unnoticed."""
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "model-00001-of-00003.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidModelFile, match="lm_head") as caught:
        report(sharded)
    assert caught.value.rule == "index-tensor"


def test_missing_shard_without_an_index(sharded: Path) -> None:
    """If it fails, the case that vLLM loads silently and answers with rubbish slips through."""
    (sharded / "model.safetensors.index.json").unlink()
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InvalidModelFile) as caught:
        report(sharded)
    assert caught.value.rule == "missing-shard"


def test_missing_layers_without_an_index_are_a_warning(sharded: Path) -> None:
    """If it fails, the loss of a file with a name of its own is not even mentioned."""
    (sharded / "model.safetensors.index.json").unlink()
    change(sharded / "config.json", num_hidden_layers=5)
    assert any("3 of 5 layers" in warning for warning in report(sharded).warnings)


def test_missing_layers_of_a_quantized_model_are_refused(awq: Path) -> None:
    """If it fails, a lost file with a name of its own is what vLLM loads silently; a single whole file never counts as a part."""
    change(awq / "config.json", num_hidden_layers=5)
    assert any("3 of 5 layers" in warning for warning in report(awq).warnings)
    (awq / "model.safetensors").rename(awq / "first.safetensors")
    with pytest.raises(InvalidModelFile, match="3 of 5 layers") as caught:
        report(awq)
    assert caught.value.rule == "missing-layers"


def test_stray_weights_are_a_warning(sharded: Path) -> None:
    """If it fails, a consolidated.safetensors takes the place of the model in vLLM unannounced."""
    shutil.copy(sharded / "model-00001-of-00003.safetensors", sharded / "consolidated.safetensors")
    shutil.copy(sharded / "model-00001-of-00003.safetensors", sharded / "extra.safetensors")
    found = report(sharded)
    assert any("consolidated.safetensors lies beside" in warning for warning in found.warnings)
    assert any("does not name extra.safetensors" in warning for warning in found.warnings)
    assert found.traits.parameters == PARAMETERS


def test_remote_code_is_a_warning(awq: Path) -> None:
    """If it fails, the user learns only at serving time that the model wants to run code, of its own or of a second repository."""
    change(awq / "config.json", auto_map={"AutoModel": "org/other--modeling.Model", "AutoConfig": ["a.B", None]})
    change(awq / "tokenizer_config.json", auto_map=["a.Slow", "b.Fast"])
    (awq / "a.py").write_text("class B: ...")
    own, lacking, other = report(awq).warnings
    assert "(a.py)" in own
    assert "--trust-remote-code" in own
    assert "(b.py)" in lacking
    assert "`modelvault pull org/other --include '*.py'`" in other


def test_code_of_the_repository_itself(awq: Path) -> None:
    """If it fails, a repository that names itself, as saved ones do, is said to need a second one."""
    change(awq / "config.json", auto_map={"AutoModel": "org/tiny--modeling.Model"})
    files = {path.name: path for path in awq.iterdir()}
    (warning,) = inspect_model(files, repository="org/tiny").warnings
    assert "modeling.py" in warning
    assert "another repository" not in warning


def test_a_broken_map_of_code(awq: Path) -> None:
    """If it fails, a tokenizer's configuration that no engine can read passes, or one without an auto_map is held to more than it must."""
    (awq / "tokenizer_config.json").write_text('{"auto_map": {}, "auto_map": {}}')
    with pytest.raises(InvalidModelFile, match="appears twice"):
        report(awq)
    (awq / "tokenizer_config.json").write_text(r'{"mark": "\ud800"}')
    assert report(awq).warnings == ()


def test_code_alone_is_taken(tmp_path: Path) -> None:
    """If it fails, the code that another repository's model needs cannot cross the gap."""
    (tmp_path / "modeling.py").write_text("class Model: ...")
    (tmp_path / "README.md").write_text("# code")
    assert report(tmp_path).traits == Traits("code")


def test_pickle_in_disguise_is_refused(awq: Path) -> None:
    """If it fails, a pickle needs only another name to cross the gap."""
    (awq / "data.dat").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(awq / "torch.weights", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([]))
    with pytest.raises(PolicyRefused) as caught:
        report(awq)
    assert sorted(caught.value.data["files"]) == ["data.dat", "torch.weights"]
    assert report(awq, allow_pickle=True).traits.quantization == "AWQ 4-bit g128"


def test_shards_of_two_sets(split: Path, tmp_path: Path) -> None:
    """If it fails, shards of different models with matching names are taken for one model."""
    other = tmp_path / "other"
    first, *_ = make_models.make_split_gguf(other, shards=3, seed=1)
    make_models.make_gguf(tmp_path / "whole.gguf")
    shutil.copy(first, split / "tiny-00002-of-00003.gguf")
    with pytest.raises(InvalidModelFile) as caught:
        report(split)
    assert caught.value.rule == "gguf-split-name"


def test_a_split_that_lost_tensors(split: Path) -> None:
    """If it fails, a set whose shards come from different splits passes."""
    path = split / "tiny-00001-of-00003.gguf"
    data = path.read_bytes()
    at = data.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(InvalidModelFile) as caught:
        report(split)
    assert caught.value.rule == "gguf-split-tensors"


def test_renamed_shard_is_refused_but_a_blob_is_not(split: Path) -> None:
    """If it fails, llama.cpp does not find the other shards, or shards in the vault cannot be verified."""
    shard = split / "tiny-00001-of-00003.gguf"
    with pytest.raises(InvalidModelFile) as caught:
        inspect_file(shard, name="tiny.gguf")
    assert caught.value.rule == "gguf-split-name"
    assert inspect_file(shard, name="data").tensors > 0


def test_files_are_known_by_content(models: Path, tmp_path: Path) -> None:
    """If it fails, blobs, which have no suffix, cannot be inspected."""
    for source, kind in (
        (models / "gguf" / "tiny-Q8_0.gguf", "gguf"),
        (models / "awq" / "model.safetensors", "safetensors"),
    ):
        blob = tmp_path / kind
        blob.symlink_to(source)  # as in a hub cache
        assert inspect_file(blob).format == kind


@pytest.mark.parametrize(
    ("rule", "name", "content"),
    [
        ("lfs-pointer", "a.gguf", LFS),
        ("html-page", "a.gguf", b"<!-- 403 -->\n<html><body>Forbidden"),
        ("empty-file", "a.gguf", b""),
        ("gguf-magic", "a.gguf", b"not a model"),
        ("safetensors-truncated", "a.safetensors", b"not a model"),
        ("unknown-format", "a.txt", b"not a model"),
        ("unknown-format", "a.txt", pickle.dumps(1)),
    ],
)
def test_impostors(tmp_path: Path, rule: str, name: str, content: bytes) -> None:
    """If it fails, what downloads leave behind in place of a model gets a message that helps nobody."""
    path = tmp_path / "data"
    path.write_bytes(content)
    with pytest.raises(InvalidModelFile, match=f"^{name}: ") as caught:
        inspect_file(path, name=name)
    assert caught.value.rule == rule


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """If it fails, inspection waits for ever for a writer."""
    os.mkfifo(tmp_path / "a.gguf")
    with pytest.raises(InvalidModelFile) as caught:
        inspect_file(tmp_path / "a.gguf")
    assert caught.value.rule == "not-regular"


def test_small_shape_is_what_the_reports_say() -> None:
    """If it fails, the parameter count above is of another model."""
    tokens = make_models.make_vocabulary().size
    layer = 2 * SMALL.hidden**2 + 2 * SMALL.key_value * SMALL.hidden + 3 * SMALL.hidden * SMALL.feed_forward
    norms = (2 * SMALL.layers + 1) * SMALL.hidden
    assert 2 * tokens * SMALL.hidden + SMALL.layers * layer + norms == PARAMETERS
