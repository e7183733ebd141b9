"""A shelf of real files, and a server over it in a thread of its own."""

import contextlib
import hashlib
import os
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelvault.artifact import (
    Algorithm,
    Digest,
    FileSpec,
    Model,
    ModelName,
    Origin,
    StoredModel,
    Traits,
)
from modelvault.errors import VaultDamaged
from modelvault.modelpack import IndexEntry, encode_manifest, store_form
from modelvault.serve import HubServer, Shelf, create_app

OLD, NEW, QUANTS = "a" * 40, "b" * 40, "c" * 40


def git_blob(data: bytes) -> Digest:
    return Digest(Algorithm.GIT_SHA1, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())


@dataclass
class FolderShelf:
    """Models whose bytes lie in a folder under their digests, as they do in a vault."""

    folder: Path
    stored: list[StoredModel] = field(default_factory=list)
    loads: int = 0

    def entries(self) -> Sequence[IndexEntry]:
        models = sorted(self.stored, key=lambda stored: stored.model.name)
        return [IndexEntry(stored.model.name, stored.manifest, stored.manifest_size, None) for stored in models]

    def load(self, entry: IndexEntry) -> StoredModel:
        self.loads += 1
        found = next(stored for stored in self.stored if stored.model.name == entry.name)
        if not self.blob_path(entry.manifest).exists():
            raise VaultDamaged("it is not there")
        return found

    def blob_path(self, digest: Digest) -> Path:
        return self.folder / digest.hex

    def add(self, name: str, origin: Origin, files: Mapping[str, bytes], *, format_: str = "gguf") -> StoredModel:
        """Take a model in; a source that has a commit promised the digests that the Hub would."""
        specs = []
        for path, data in files.items():
            digest = Digest.of_bytes(data)
            self.blob_path(digest).write_bytes(data)
            upstream = digest if path.endswith((".gguf", ".safetensors")) else git_blob(data)
            specs.append(FileSpec(path, len(data), digest, upstream if origin.commit else None))
        model = Model(ModelName(name), origin, tuple(specs), Traits(format_), license="apache-2.0")
        stored = store_form(model)
        manifest = self.blob_path(stored.manifest)
        manifest.write_bytes(encode_manifest(model))
        # Real time does not pass fast enough between two models of a test to tell them apart.
        os.utime(manifest, ns=(0, len(self.stored)))
        self.stored.append(stored)
        return stored


@dataclass(frozen=True)
class Hub:
    """A running server: what it serves and where."""

    url: str
    shelf: FolderShelf
    files: Mapping[str, Mapping[str, bytes]]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextlib.contextmanager
def serving(shelf: Shelf) -> Iterator[HubServer]:
    server = HubServer(create_app(shelf))
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join()


def fill(shelf: FolderShelf) -> dict[str, dict[str, bytes]]:
    """Put the models of these tests on a shelf; gives the expected files by repository."""
    weights = random.Random(7).randbytes
    readme = b"# Tiny\n"
    tiny = {
        "README.md": readme,
        "config.json": b'{"model_type": "llama"}\n',
        "empty.txt": b"",
        "model.safetensors": weights(5_000_003),
        "sub/deep/tokenizer.json": b'{"a": 1}',
        "sub/\u00fcber \u00a7%25.txt": b"a name that wants quoting",
    }
    q4 = {"README.md": readme, "tiny-Q4_K_M.gguf": weights(300_000)}
    q8 = {"README.md": readme, "tiny-Q8_0.gguf": weights(500_000)}
    local = {"config.json": b"{}", "model.safetensors": weights(1000)}
    shelf.add("old-tiny", Origin("hub", "org/tiny", OLD), {"README.md": b"# Old\n"}, format_="safetensors")
    shelf.add("org/tiny", Origin("hub", "org/tiny", NEW), tiny, format_="safetensors")
    shelf.add("tiny-q4", Origin("hub", "org/tiny-GGUF", QUANTS), q4)
    shelf.add("org/tiny-GGUF:Q8_0", Origin("hub", "org/tiny-GGUF", QUANTS), q8)
    shelf.add("local", Origin("folder"), local, format_="safetensors")
    return {"org/tiny": tiny, "org/tiny-GGUF": q4 | q8, "tiny-q4": q4, "local": local}
