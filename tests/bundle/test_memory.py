"""Indexes as large as may be, made to fill the memory: what reads them stays small, in the installed program."""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from imports import MEMORY, measured
from machines import Machine

from modelvault import modelpack
from modelvault.artifact import Digest, FileSpec, Model, ModelName, Origin, Traits
from modelvault.bundle.format import canonical_json, encode
from modelvault.bundle.index import MAX_DOCUMENT, MAX_INDEX, MAX_MEMBER, MAX_VOLUME, member_path
from modelvault.bundle.plan import PlanOptions, SourceModel, plan_index

Document = dict[str, Any]
_REST = 1 << 20  # bytes left free, for what changes besides what is filled in


def source(name: str, files: Sequence[FileSpec]) -> SourceModel:
    """A model whose files exist in name and size only."""
    model = Model(ModelName(name), Origin("folder"), tuple(files), Traits("gguf"))
    return SourceModel(modelpack.store_form(model), modelpack.encode_manifest(model), modelpack.encode_config(model))


def planned(*models: SourceModel, volume_size: int = 4 << 30) -> Document:
    """An honest index, to be changed."""
    document: Document = json.loads(encode(plan_index(models, PlanOptions("models", 7, volume_size))))
    return document


def spec(size: int) -> FileSpec:
    return FileSpec("model.gguf", size, Digest.of_bytes(b"model"))


def fill(items: list[Document], more: Iterable[Document]) -> None:
    """Add as many items as an index takes."""
    room = MAX_INDEX - _REST
    for item in more:
        room -= len(canonical_json(item)) + 1
        if room < 0:
            return
        items.append(item)


def many_members() -> Document:
    """Members as short as their types allow, which belong to nothing."""
    document = planned(source("tiny", [spec(1)]))
    members = document["volumes"][0]["members"]
    fill(members, repeat({"digest": members[0]["digest"], "path": "oci-layout", "size": 0}))
    return document


def tiny_slices() -> Document:
    """A sound index of one file in slices of one byte."""
    count = 65_000
    file = spec(count)
    document = planned(source("tiny", [file]))
    members = document["volumes"][0]["members"]
    members.pop()
    members += (
        {"digest": str(file.digest), "path": member_path(file.digest, offset, 1, count), "size": 1}
        | ({"offset": offset} if offset else {})
        for offset in range(count)
    )
    return document


def tiny_volumes() -> Document:
    """The same, each slice in a volume of its own."""
    document = tiny_slices()
    first = document["volumes"][0]["members"]
    document["volumes"] += ({"members": [member]} for member in first[4:])
    del first[4:]
    return document


def endless_volume() -> Document:
    """A volume of as many frames as may be."""
    size = MAX_VOLUME - MAX_MEMBER
    return planned(source("tiny", [spec(size)]), volume_size=MAX_VOLUME)


def many_models() -> Document:
    """One model under tens of thousands of names."""
    document = planned(source("tiny", [spec(1)]))
    models = document["models"]
    fill(models, ({**models[0], "name": f"m{number}"} for number in range(1 << 20)))
    return document


def long_manifest() -> Document:
    """A manifest of as many pairs as may be, which take most when parsed."""
    document = planned(source("tiny", [spec(1)]))
    pair = '"ab":1,'
    document["models"][0]["manifest"] = "{" + pair * (MAX_DOCUMENT // len(pair) - 1) + '"a":1}'
    return document


def long_reason() -> Document:
    """A value of megabytes that breaks a rule, and must not be printed."""
    document = planned(source("tiny", [spec(1)]))
    manifest = document["models"][0]["manifest"]
    document["models"][0]["manifest"] = manifest.replace("application", "A" * (MAX_DOCUMENT // 4))
    return document


def honest() -> Document:
    """Half a thousand models of sixteen shards, 700 GB of them: nothing may be wrong with that."""
    return planned(
        *(
            source(
                f"org/model-{model}",
                [
                    FileSpec(
                        f"model-{shard:05d}-of-00016.safetensors",
                        90_000_000,
                        Digest.of_bytes(b"%d %d" % (model, shard)),
                    )
                    for shard in range(16)
                ],
            )
            for model in range(500)
        )
    )


def carried(tmp_path: Path, document: Document) -> tuple[Machine, Path]:
    """Lay the index on a drive; nothing else is there."""
    bundle = tmp_path / "models-7.mvbundle"
    bundle.mkdir()
    data = canonical_json(document)
    assert len(data) <= MAX_INDEX
    (bundle / "bundle.json").write_bytes(data)
    return Machine(tmp_path), bundle


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (many_members, 14),
        (tiny_slices, 12),
        (tiny_volumes, 12),
        (endless_volume, 12),
        (many_models, 12),
        (long_manifest, 14),
        (long_reason, 14),
    ],
)
def test_hostile_indexes(tmp_path: Path, make: Callable[[], Document], code: int) -> None:
    """Breaks if an index can be made that takes more memory to refuse, or to find that its volumes are not there, than work takes."""
    machine, bundle = carried(tmp_path, make())
    ran, memory = measured(machine, "import", bundle, "--allow-unsigned", code=code)
    assert memory < MEMORY, f"{memory:,}"
    assert len(ran.err) < 2000


def test_a_large_vault_fits(tmp_path: Path) -> None:
    """Breaks if the limits keep honest bundles out."""
    machine, bundle = carried(tmp_path, honest())
    ran, memory = measured(machine, "inspect", bundle, code=0)
    assert memory < MEMORY, f"{memory:,}"
    assert "org/model-499" in ran.out
