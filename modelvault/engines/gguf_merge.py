"""Shards of a split GGUF joined into the one file that Ollama takes, in flat memory.

The result depends on the shards alone, so that a repeat finds it where it lies. It has the first shard's metadata, byte for byte,
less the keys ``split.…``; then the tensors in the order of the shards, as ``llama-gguf-split --merge`` writes them. The ``gguf``
package is of no use here: its reader takes seconds for the 128k words of a vocabulary.
"""

import contextlib
import hashlib
import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest, TensorInfo
from modelvault.engines.place import Wanted, check_source, damaged
from modelvault.errors import DigestMismatch, InvalidModelFile
from modelvault.formats.ggml import TENSOR_TYPES
from modelvault.formats.gguf import MAGIC, GgufHeader, read_gguf_header

_BLOCK = 4 << 20  # bytes; all that is ever held of the tensors
_SPLIT = "split."
_CODES = {kind.name: code for code, kind in TENSOR_TYPES.items()}
_UINT32, _UINT64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Merge:
    """What the one file will be: its ``header``, padded, and the tensors of each shard in the order of their offsets there."""

    shards: tuple[Wanted, ...]
    tensors: tuple[tuple[TensorInfo, ...], ...]
    header: bytes
    alignment: int

    @property
    def size(self) -> int:
        """The bytes of the whole file."""
        return len(self.header) + sum(
            _padded(tensor.size, self.alignment) for shard in self.tensors for tensor in shard
        )


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def read_header(wanted: Wanted) -> GgufHeader:
    """Read the GGUF header of a file of the vault. Raises ``InvalidModelFile``, ``DigestMismatch`` if it is not there, ``OSError``."""
    check_source(wanted)
    with _opened(wanted.source) as reader:
        return read_gguf_header(reader, wanted.file.size, name=wanted.file.path)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    with fsio.open_regular(path) as descriptor, io.FileIO(descriptor, closefd=False) as reader:
        yield reader


def plan_merge(shards: Sequence[Wanted]) -> Merge:
    """Read the headers of all shards, in their order, and write the header of the whole.

    Raises ``InvalidModelFile`` for shards that do not belong together, and as ``read_header`` does.
    """
    headers = [read_header(shard) for shard in shards]
    for number, (shard, header) in enumerate(zip(shards, headers, strict=True)):
        if header.split != (number, len(shards)):
            said = f"shard {header.split[0] + 1} of {header.split[1]}" if header.split else "not a shard"
            detail = f"should be shard {number + 1} of {len(shards)}; its metadata say that it is {said}"
            raise InvalidModelFile(shard.file.path, "gguf-split-name", detail)
    tensors = tuple(tuple(sorted(header.tensors, key=lambda tensor: tensor.offset)) for header in headers)
    promised, found = headers[0].integer("split.tensors.count"), sum(map(len, tensors))
    if promised is not None and promised != found:
        detail = f"promises {promised:,} tensors in all shards; they have {found:,}"
        raise InvalidModelFile(shards[0].file.path, "gguf-split-tensors", detail)
    merge = Merge(tuple(shards), tensors, _header(shards[0], headers[0], tensors), headers[0].alignment)
    read_gguf_header(io.BytesIO(merge.header), merge.size, name=shards[0].file.path)
    return merge


def _header(shard: Wanted, header: GgufHeader, tensors: Sequence[Sequence[TensorInfo]]) -> bytes:
    with fsio.open_regular(shard.source) as descriptor:
        keys = [
            fsio.read_exactly(descriptor, start, end - start)
            for key, (start, end) in header.spans.items()
            if not key.startswith(_SPLIT)
        ]
    infos, offset = [], 0
    for tensor in (tensor for held in tensors for tensor in held):
        infos.append(_info(tensor, offset))
        offset += _padded(tensor.size, header.alignment)
    counts = _UINT32.pack(header.version) + _UINT64.pack(len(infos)) + _UINT64.pack(len(keys))
    joined = b"".join((MAGIC, counts, *keys, *infos))
    return joined.ljust(_padded(len(joined), header.alignment), b"\0")


def _info(tensor: TensorInfo, offset: int) -> bytes:
    name = tensor.name.encode("utf-8")
    shape = b"".join(map(_UINT64.pack, tensor.shape))
    kind = _UINT32.pack(_CODES[tensor.dtype])
    return b"".join((_UINT64.pack(len(name)), name, _UINT32.pack(len(tensor.shape)), shape, kind, _UINT64.pack(offset)))


def digest_of(merge: Merge, on_bytes: Callable[[int], object]) -> Digest:
    """Compute the digest that the one file would have, without writing it. Raises ``DigestMismatch`` for a damaged shard."""
    state = hashlib.sha256()
    for block in merged_blocks(merge):
        state.update(block)
        on_bytes(len(block))
    return Digest.sha256(state.hexdigest())


def merged_blocks(merge: Merge) -> Iterator[bytes]:
    """Give the one file block by block. Raises ``DigestMismatch`` at the end of a damaged shard."""
    return _blocks(merge, {})


def write_merged(merge: Merge, path: Path, on_bytes: Callable[[int], object]) -> Digest:
    """Write the one file at ``path``, which is new, sync it, read it again and give its digest.

    Raises ``DigestMismatch`` for a shard that is not what it was, and where a tensor in the file is not what it is in its shard.
    """
    read: dict[str, str] = {}
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        offset = 0
        for block in _blocks(merge, read):
            fsio.write_all(descriptor, block, offset)
            fsio.start_writeback(descriptor, offset, len(block))
            offset += len(block)
            on_bytes(len(block))
        os.fsync(descriptor)
        fsio.forget_cached(descriptor)
        # Not by its path, which the owner of the directory could give to another file.
        digest, written = _read_back(descriptor, merge.shards[0].file.path)
    finally:
        os.close(descriptor)
    if written != read:
        wrong = sorted(name for name in read if written.get(name) != read[name])
        raise DigestMismatch(
            f"{len(wrong)} tensors were not written as they were read, {', '.join(wrong[:3])} among them",
            hint="run the same command again; if that does not help, look at the medium of that directory",
        )
    return digest


def _blocks(merge: Merge, digests: dict[str, str]) -> Iterator[bytes]:
    """Give the one file block by block, and the digest of each tensor by name. Every shard is read once, all of it, and compared."""
    yield merge.header
    for shard, tensors in zip(merge.shards, merge.tensors, strict=True):
        check_source(shard)
        # Hashing lets go of the interpreter: the two hashes keep two processors busy.
        with _opened(shard.source) as reader, ThreadPoolExecutor(1) as beside:
            whole = hashlib.sha256()
            for tensor in tensors:
                for block in _read(reader, tensor.offset - reader.tell()):
                    whole.update(block)
                state = hashlib.sha256()
                for block in _read(reader, tensor.size):
                    other = beside.submit(whole.update, block)
                    state.update(block)
                    yield block
                    other.result()
                digests[tensor.name] = state.hexdigest()
                if padding := -tensor.size % merge.alignment:
                    yield bytes(padding)
            for block in _read(reader, shard.file.size - reader.tell()):
                whole.update(block)
        if whole.hexdigest() != shard.file.digest.hex:
            raise damaged(shard)


def _read(reader: io.FileIO, length: int) -> Iterator[bytes]:
    """Read ``length`` bytes; fewer at the end of the file, whose digest is wrong then."""
    while length > 0 and (block := reader.read(min(length, _BLOCK))):
        length -= len(block)
        yield block


def _read_back(descriptor: int, name: str) -> tuple[Digest, dict[str, str]]:
    """Read the file that was written, by its own header: its digest, and that of each tensor by name."""
    whole, digests = hashlib.sha256(), {}
    with io.FileIO(descriptor, closefd=False) as reader, ThreadPoolExecutor(1) as beside:
        size = os.fstat(descriptor).st_size
        header = read_gguf_header(reader, size, name=name)
        reader.seek(0)
        for tensor in sorted(header.tensors, key=lambda tensor: tensor.offset):
            for block in _read(reader, tensor.offset - reader.tell()):
                whole.update(block)
            state = hashlib.sha256()
            for block in _read(reader, tensor.size):
                other = beside.submit(whole.update, block)
                state.update(block)
                other.result()
            digests[tensor.name] = state.hexdigest()
        for block in _read(reader, size - reader.tell()):
            whole.update(block)
    return Digest.sha256(whole.hexdigest()), digests
