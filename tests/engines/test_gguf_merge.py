"""Joining the shards of a split GGUF."""

import hashlib
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from engine_cases import Blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from split_models import split_model, whole_model

from modelvault.artifact import FileSpec
from modelvault.engines.gguf_merge import Merge, digest_of, plan_merge, write_merged
from modelvault.engines.place import Wanted
from modelvault.errors import DigestMismatch, InvalidModelFile
from modelvault.inspect.gguf import read_gguf


def wanted(blobs: Blobs, files: tuple[FileSpec, ...]) -> list[Wanted]:
    return [Wanted(blobs.path(file.digest), file) for file in files]


def ignore(_: int) -> None:
    pass


def tensors(path: Path) -> dict[str, str]:
    """Map tensors to what the ``gguf`` package reads of them."""
    return {
        tensor.name: f"{tensor.tensor_type.name} {tensor.shape.tolist()} {hashlib.sha256(tensor.data.tobytes()).hexdigest()}"
        for tensor in gguf.GGUFReader(path).tensors
    }


def test_the_result_is_the_model(blobs: Blobs, tmp_path: Path) -> None:
    """One byte of metadata or of a tensor less, and the engine serves another model, or none."""
    shards = wanted(blobs, split_model(blobs, tmp_path / "shards").model.files)
    merge = plan_merge(shards)
    read: list[int] = []
    digest = write_merged(merge, tmp_path / "merged.gguf", read.append)
    merged, whole = read_gguf(tmp_path / "merged.gguf"), read_gguf(whole_model(tmp_path))
    assert merged.metadata == whole.metadata
    assert merged.warnings == ()
    assert merged.split is None
    assert tensors(tmp_path / "merged.gguf") == tensors(tmp_path / "whole.gguf")
    assert [tensor.name for tensor in merged.tensors] == [tensor.name for tensor in whole.tensors]
    assert (tmp_path / "merged.gguf").stat().st_size == merge.size == sum(read)
    assert hashlib.sha256((tmp_path / "merged.gguf").read_bytes()).hexdigest() == digest.hex
    assert digest_of(merge, ignore) == digest


def test_the_number_of_shards_does_not_matter(blobs: Blobs, tmp_path: Path) -> None:
    """The same model from other hands is the same blob; a repeat finds it there."""
    digests = set()
    for shards in (2, 3, 5):
        model = split_model(blobs, tmp_path / str(shards), shards=shards).model
        digests.add(digest_of(plan_merge(wanted(blobs, model.files)), ignore))
    assert len(digests) == 1


@pytest.mark.parametrize("spoil", ["order", "twice", "foreign"])
def test_shards_that_do_not_belong_together(blobs: Blobs, tmp_path: Path, spoil: str) -> None:
    """Shards of two models have the same names often enough."""
    files = split_model(blobs, tmp_path / "one").model.files
    other = split_model(blobs, tmp_path / "two", shards=2, seed=1).model.files
    chosen = {"order": files[::-1], "twice": (files[0], files[0], files[2]), "foreign": (files[0], other[1], files[2])}
    with pytest.raises(InvalidModelFile) as refused:
        plan_merge(wanted(blobs, chosen[spoil]))
    assert refused.value.rule == "gguf-split-name"


def test_the_same_tensor_in_two_shards(blobs: Blobs, tmp_path: Path) -> None:
    """llama.cpp would refuse the result."""
    files = split_model(blobs, tmp_path / "one", shards=2).model.files
    data = bytearray(blobs.path(files[1].digest).read_bytes())
    at = blobs.path(files[0].digest).read_bytes()
    name = read_gguf(blobs.path(files[0].digest), name="x").tensors[-1].name.encode()
    mine = read_gguf(blobs.path(files[1].digest), name="x").tensors
    same = next(tensor.name.encode() for tensor in mine if len(tensor.name) == len(name))
    assert name in at
    data[data.index(same) : data.index(same) + len(same)] = name
    spoiled = FileSpec(files[1].path, len(data), blobs.add(bytes(data)))
    with pytest.raises(InvalidModelFile) as refused:
        plan_merge(wanted(blobs, (files[0], spoiled)))
    assert refused.value.rule == "gguf-duplicate-tensor"


@settings(max_examples=20)
@given(where=st.floats(0, 1, exclude_max=True), shard=st.integers(0, 2))
def test_a_flipped_bit_in_a_shard(tmp_path_factory: pytest.TempPathFactory, where: float, shard: int) -> None:
    """The vault's copy went bad: what is made of it must never get a name."""
    place = tmp_path_factory.mktemp("flip")
    blobs = Blobs(place / "vault")
    files = split_model(blobs, place / "shards").model.files
    merge = plan_merge(wanted(blobs, files))
    path = blobs.path(files[shard].digest)
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(DigestMismatch, match="no longer has the digest"):
        write_merged(merge, place / "merged.gguf", ignore)
    with pytest.raises(DigestMismatch, match="no longer has the digest"):
        digest_of(merge, ignore)


def test_a_tensor_that_is_not_where_the_header_says(blobs: Blobs, tmp_path: Path) -> None:
    """A mistake in joining must be found by reading the result, not by the user of the model."""
    merge = plan_merge(wanted(blobs, split_model(blobs, tmp_path / "shards").model.files))
    every = [tensor for shard in merge.tensors for tensor in shard]
    one, other = (
        next(tensor.name.encode() for tensor in every if tensor.name == name)
        for name in ("blk.0.ffn_gate.weight", "blk.1.ffn_gate.weight")
    )
    header = merge.header.replace(one, b"-" * len(one)).replace(other, one).replace(b"-" * len(one), other)
    wrong = Merge(merge.shards, merge.tensors, header, merge.alignment)
    with pytest.raises(DigestMismatch, match="2 tensors were not written as they were read"):
        write_merged(wrong, tmp_path / "merged.gguf", ignore)


def test_memory_is_flat(tmp_path: Path) -> None:
    """Shards of 40 GB each need not fit into memory."""
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from modelvault.artifact import FileSpec; from modelvault.engines.place import Wanted; from modelvault.fsio import hash_file\n"
        "from modelvault.engines.gguf_merge import plan_merge, write_merged\n"
        "paths = sorted(Path(sys.argv[1]).glob('*.gguf'))\n"
        "shards = [Wanted(path, FileSpec(path.name, path.stat().st_size, hash_file(path))) for path in paths]\n"
        "merge = plan_merge(shards)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_merged(merge, Path(sys.argv[1], 'merged'), lambda _: None)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    for number in range(2):
        writer = gguf.GGUFWriter(tmp_path / f"x-{number + 1:05d}-of-00002.gguf", "llama")
        for key, value in (("no", number), ("count", 2)):
            writer.add_uint16(f"split.{key}", value)
        writer.add_tensor(f"blk.{number}.weight", np.zeros((4096, 4096), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000, "kilobytes; the file has 128 MiB"
