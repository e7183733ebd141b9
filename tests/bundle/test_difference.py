"""Indexes that hold less than their models need: thin bundles and patches. Pure."""

import json
from typing import Any

import pytest
from bundle_world import MIB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_values import edited, indexes, source

from modelvault.artifact import Digest
from modelvault.bundle import layout
from modelvault.bundle.format import decode, encode
from modelvault.bundle.index import PATCH, THIN, BundleRefused, Index, Span, check_label, merged
from modelvault.bundle.papers import PaperRefused
from modelvault.bundle.plan import PlanOptions, patch_label, plan_index, plan_patch

SLOW = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
SIZES = [5000, 3 * MIB, 0, 9 * MIB]
OPTIONS = PlanOptions("models", 7, 4 * MIB)


def spans_of(index: Index) -> list[Span]:
    """What the volumes hold of blobs, in order."""
    members = (member for members in index.volumes for member in members if member.is_blob)
    return [Span(member.digest, member.offset, member.size) for member in members]


def test_bundles_that_need_nothing_new() -> None:
    """Breaks if a bundle of plain format v1 is not the same bytes any more: what version 0.1.0 wrote for these models."""
    models = [source("a", SIZES), source("b/c:Q4", [7, 5 << 30, 40 * MIB])]
    index = plan_index(models, PlanOptions("models", 7, 64 * MIB))
    assert Digest.of_bytes(encode(index)).hex == "d9da9bd71ea02bf630c65f1847e3e159afd055f1815137cd270f00e22fe6dc95"


@given(st.lists(st.integers(0, 9 * MIB), max_size=5), st.randoms(use_true_random=False))
@SLOW
def test_thin_bundles(sizes: list[int], random: Any) -> None:
    """Breaks if a thin bundle leaves out what the site lacks or a document, forgets to name what it left out, or does not come back."""
    models = [source("a", sizes), source("b", sizes[:2])]
    whole = plan_index(models, OPTIONS)
    held = {blob.digest for blob in whole.blobs if random.random() < 0.5}
    index = plan_index(models, OPTIONS, held=held | {Digest.of_bytes(b"of another model")})
    documents = {blob for entry in index.models for blob in entry.blobs[:2]}
    assert set(index.base) == {blob for blob in whole.blobs if blob.digest in held} - documents
    assert set(index.blobs) == set(whole.blobs) - set(index.base)
    assert index.models == whole.models
    assert merged(spans_of(index)) == merged(Span(blob.digest, 0, blob.size) for blob in index.blobs)
    assert index.requires == ((THIN,) if index.base else ())
    assert decode(encode(index)) == index
    assert index.base or index == whole


@given(indexes(), st.data())
@SLOW
def test_patches(original: Index, data: st.DataObject) -> None:
    """Breaks if a patch holds other bytes than those asked for, breaks a rule of volumes, or does not come back."""
    blobs = [blob for blob in original.blobs if blob.size]
    spans = []
    for blob in data.draw(st.lists(st.sampled_from(blobs), min_size=1, max_size=6)):
        offset = data.draw(st.integers(0, blob.size - 1))
        spans.append(Span(blob.digest, offset, data.draw(st.integers(1, blob.size - offset))))
    digest = Digest.of_bytes(encode(original))
    options = PlanOptions(patch_label(original.label), 9, original.volume_size)
    index = plan_patch(original, digest, spans, options)
    assert merged(spans_of(index)) == merged(spans)
    assert (index.patches, index.requires) == (digest, (PATCH,))
    assert {entry.name for entry in index.models} == set(original.needing({span.blob for span in spans}))
    assert set(index.blobs) == {blob for blob in original.blobs if any(span.blob == blob.digest for span in spans)}
    assert decode(encode(index)) == index
    for members in index.volumes:
        assert layout.volume_length(members) <= index.volume_size


def test_patch_of_nothing_there() -> None:
    """Breaks if a request can name bytes that the bundle does not have."""
    original = plan_index([source("a", SIZES)], OPTIONS)
    blob = original.blobs[-1]
    for span in (
        Span(blob.digest, blob.size - 1, 2),
        Span(blob.digest, -1, 1),
        Span(blob.digest, 1 << 52, 1),
        Span(Digest.of_bytes(b"another"), 0, 1),
    ):
        with pytest.raises(PaperRefused, match="does not have"):
            plan_patch(original, Digest.of_bytes(encode(original)), [span], OPTIONS)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}[A-Za-z0-9]", fullmatch=True))
def test_labels_of_patches(label: str) -> None:
    """Breaks if the label of a patch is none that a bundle may have."""
    assert check_label(patch_label(label)).endswith("-patch")


def hostile_thin() -> dict[str, bytes]:
    """Thin bundles that are not."""
    whole = plan_index([source("a", SIZES)], OPTIONS)
    left = whole.blobs[3]
    data = encode(plan_index([source("a", SIZES)], OPTIONS, held={left.digest}))
    document = json.loads(data)
    (base,) = document["base"]
    config = document["blobs"][1]
    return {
        "unannounced": edited(data, requires=[]),
        "announced for nothing": edited(encode(whole), requires=[THIN]),
        "announced twice": edited(data, requires=[THIN, THIN]),
        "left out and there": edited(data, base=[base, document["blobs"][2]]),
        "left out twice": edited(data, base=[base, base]),
        "another size": edited(data, base=[{**base, "size": 1}]),
        "nobody needs it": edited(data, base=[base, {"digest": "sha256:" + "0" * 64, "size": 1}]),
        "a document left out": edited(
            data, base=[base, config], blobs=[blob for blob in document["blobs"] if blob != config]
        ),
        "an empty base": edited(encode(whole), base=[], requires=[]),
        "not left out": edited(data, base=..., requires=[]),
        "thin and a patch": edited(data, patches="sha256:" + "0" * 64, requires=[THIN, PATCH]),
    }


def hostile_patches() -> dict[str, bytes]:
    """Patches that are not."""
    models = [source("a", SIZES), source("b", [4242])]
    original = plan_index(models, OPTIONS)
    large = original.blobs[-2]
    spans = [Span(large.digest, 0, MIB), Span(large.digest, 2 * MIB, MIB)]
    data = encode(plan_patch(original, Digest.of_bytes(b"x"), spans, OPTIONS))
    document = json.loads(data)
    members = document["volumes"][0]["members"]

    def volume(*rest: dict[str, Any]) -> bytes:
        return edited(data, volumes=[{"members": [*members[:2], *rest]}])

    def slice_of(offset: int, size: int) -> dict[str, Any]:
        return {**members[3], "path": f"slices/sha256/{large.digest.hex}/{offset:016d}", "offset": offset, "size": size}

    assert encode(decode(data)) == data
    assert decode(volume(slice_of(MIB, MIB))).patches
    return {
        "unannounced": edited(data, requires=[]),
        "of nothing": edited(data, patches=...),
        "of sha1": edited(data, patches="git-sha1:" + "0" * 40),
        "overlap": volume(slice_of(MIB, MIB), slice_of(2 * MIB - 512, MIB)),
        "descending": volume(slice_of(2 * MIB, MIB), slice_of(MIB, MIB)),
        "beyond the end": volume(slice_of(large.size - 10, 20)),
        "a blob without a piece": edited(
            data,
            blobs=[*document["blobs"], {"digest": str(original.blobs[-1].digest), "size": original.blobs[-1].size}],
        ),
        "a model without a piece": edited(data, models=json.loads(encode(original))["models"]),
        "blob of another size": edited(data, blobs=[{**document["blobs"][0], "size": large.size + 1}]),
    }


@pytest.mark.parametrize("what", [*hostile_thin(), *hostile_patches()])
def test_hostile_differences(what: str) -> None:
    """Breaks if an index that says less than it needs, or more, is believed: each is refused with exit 14."""
    with pytest.raises(BundleRefused) as caught:
        decode({**hostile_thin(), **hostile_patches()}[what])
    assert caught.value.exit_code == 14
