"""Judging a model by the names of its files."""

import pytest

from modelvault.errors import InvalidModelFile, PolicyRefused
from modelvault.inspect import check_listing

REPOSITORY = ["config.json", "tokenizer.json", "README.md"]
SHARDS = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]


@pytest.mark.parametrize(
    "paths",
    [
        ["model-Q4_K_M.gguf"],
        ["a/model-00001-of-00002.gguf", "a/model-00002-of-00002.gguf", "mmproj-F16.gguf"],
        [*REPOSITORY, "model.safetensors"],
        [*REPOSITORY, *SHARDS, "model.safetensors.index.json"],
        ["config.json", "qwen.tiktoken", "model.safetensors"],
        ["params.json", "tekken.json", "consolidated.safetensors"],
        ["adapter_config.json", "adapter_model.safetensors"],
        ["model_index.json", "unet/model.safetensors"],
        ["modeling_tiny.py", "README.md", "LICENSE"],
    ],
)
def test_complete_models_pass(paths: list[str]) -> None:
    """If it fails, a model that engines load cannot be pulled."""
    check_listing(paths, allow_pickle=False)


@pytest.mark.parametrize(
    ("rule", "paths"),
    [
        ("no-weights", []),
        ("no-weights", REPOSITORY),
        ("no-weights", [*REPOSITORY, "modeling_tiny.py"]),
        ("no-weights", ["README.md"]),
        ("missing-shard", [*REPOSITORY, SHARDS[0], SHARDS[2]]),
        ("missing-shard", ["q4/model-00001-of-00002.gguf", "q8/model-00002-of-00002.gguf"]),
        ("shard-number", ["model-00003-of-00002.gguf"]),
        ("shard-number", ["model-00000-of-00001.gguf"]),
        ("missing-config", ["tokenizer.json", "model.safetensors"]),
        ("missing-config", ["sub/config.json", "tokenizer.json", "model.safetensors"]),
        ("missing-tokenizer", ["config.json", "tokenizer_config.json", "model.safetensors"]),
    ],
)
def test_incomplete_models_are_refused(rule: str, paths: list[str]) -> None:
    """If it fails, hours are spent on pulling a model that no engine loads."""
    with pytest.raises(InvalidModelFile) as caught:
        check_listing(paths, allow_pickle=False)
    assert caught.value.rule == rule


def test_the_missing_shards_are_named() -> None:
    """If it fails, the user does not learn what to look for."""
    with pytest.raises(InvalidModelFile, match=r"^model-00002-of-00003\.safetensors: is missing: 1 of 3"):
        check_listing([*REPOSITORY, SHARDS[0], SHARDS[2]], allow_pickle=False)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "b.PTH", "c.ckpt", "d.pkl", "e.pickle"])
def test_pickles_are_refused_by_policy(name: str) -> None:
    """If it fails, files that run code when loaded cross the gap."""
    with pytest.raises(PolicyRefused) as caught:
        check_listing([*REPOSITORY, "model.safetensors", f"sub/{name}"], allow_pickle=False)
    assert caught.value.exit_code == 17
    assert caught.value.data["files"] == [f"sub/{name}"]
    check_listing([*REPOSITORY, "model.safetensors", f"sub/{name}"], allow_pickle=True)


def test_pickles_count_as_weights_where_allowed() -> None:
    """If it fails, ``--allow-pickle`` is of no use for repositories of the old kind."""
    check_listing([*REPOSITORY, "pytorch_model.bin"], allow_pickle=True)


def test_a_huge_shard_count_is_cheap() -> None:
    """If it fails, a name with many shards makes a message of a megabyte."""
    with pytest.raises(InvalidModelFile) as caught:
        check_listing(["m-00001-of-99999.gguf"], allow_pickle=False)
    assert len(caught.value.message) < 300
