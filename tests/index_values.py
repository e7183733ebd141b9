"""Indexes without bytes, and documents with other values: what the tests of the formats work on."""

import json
from collections.abc import Sequence
from typing import Any

from bundle_world import MIB
from hypothesis import strategies as st

from modelvault import modelpack
from modelvault.artifact import Digest, FileSpec, Model, ModelName, Origin, Traits
from modelvault.bundle.index import MAX_MEMBER, Index
from modelvault.bundle.layout import FRAME, OWN_FRAMES
from modelvault.bundle.plan import PlanOptions, SourceModel, plan_index

SIZES = st.one_of(
    st.integers(0, 2000),
    st.integers(0, 40 * MIB),
    st.integers(-600, 600).map(lambda near: OWN_FRAMES + near),
    st.integers(-600, 600).map(lambda near: FRAME + near),
    st.integers(0, 3 * MAX_MEMBER),
)


def source(name: str, sizes: Sequence[int]) -> SourceModel:
    """A model whose files exist in name and size only: planning reads no byte."""
    files = tuple(
        FileSpec(f"{position:04d}.bin", size, Digest.of_bytes(f"{name} {position} {size}".encode()))
        for position, size in enumerate(sizes)
    )
    model = Model(ModelName(name), Origin("folder"), files, Traits("gguf"))
    manifest, config = modelpack.encode_manifest(model), modelpack.encode_config(model)
    return SourceModel(modelpack.store_form(model), manifest, config)


@st.composite
def indexes(draw: st.DrawFn) -> Index:
    names = draw(st.lists(st.sampled_from(["a", "b/c", "b/d:Q4_K_M"]), min_size=1, unique=True))
    models = [source(name, draw(st.lists(SIZES, max_size=6))) for name in names]
    volume = draw(st.one_of(st.integers(2 * MIB, 64 * MIB), st.integers(2 * MIB, 6 << 30)))
    return plan_index(
        models, PlanOptions("models", draw(st.integers(1, 1 << 53) | st.just(1)) % (1 << 53) or 1, volume)
    )


def edited(data: bytes, **changes: Any) -> bytes:
    """A document with other values, in canonical form; ``...`` takes a key away."""
    document = json.loads(data) | changes
    document = {key: value for key, value in document.items() if value is not ...}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
