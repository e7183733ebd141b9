"""A vault's worth of random blobs, models over them, and a bundle written from it: what the bundle tests work on."""

import hashlib
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from modelvault import modelpack
from modelvault.artifact import Digest, FileSpec, Model, ModelName, Origin, Recipe, Traits
from modelvault.bundle.index import Index
from modelvault.bundle.plan import PlanOptions, SourceModel, plan_index
from modelvault.bundle.reader import OpenBundle, open_bundle
from modelvault.bundle.writer import write_bundle
from modelvault.bundle.written import WriteOptions, Written
from modelvault.keys import KeyRing, Signer
from modelvault.progress import NoTask

MIB = 1 << 20


class Log:
    """Progress that remembers what was logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> NoTask:
        return NoTask()


@dataclass
class World:
    """The connected side: blobs by digest, models over them, a key ring."""

    root: Path
    models: list[SourceModel] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blobs = self.root / "vault" / "blobs"
        self.blobs.mkdir(parents=True)
        self.journals = self.root / "vault" / "partial"
        self.drive = self.root / "drive"
        self.drive.mkdir()
        self.keys = KeyRing(self.root / "vault" / "keys")
        self.signer: Signer = self.keys.new("sender")

    def blob_path(self, digest: Digest) -> Path:
        return self.blobs / digest.hex

    def blob(self, data: bytes) -> Digest:
        digest = Digest.of_bytes(data)
        self.blob_path(digest).write_bytes(data)
        return digest

    def add(self, name: str, files: dict[str, bytes], recipe: Recipe | None = None) -> Model:
        specs = tuple(FileSpec(path, len(data), self.blob(data)) for path, data in files.items())
        model = Model(ModelName(name), Origin("hub", "org/name", "c" * 40), specs, Traits("gguf"), "mit", recipe)
        manifest, config = modelpack.encode_manifest(model), modelpack.encode_config(model)
        self.blob(manifest)
        self.blob(config)
        self.models.append(SourceModel(modelpack.store_form(model), manifest, config))
        return model

    def plan(self, volume_size: int = 5 * MIB, sequence: int = 7, label: str = "models") -> Index:
        return plan_index(self.models, PlanOptions(label, sequence, volume_size))

    def options(self, index: Index, *, read_back: bool = True, drive: Path | None = None) -> WriteOptions:
        return WriteOptions(((drive or self.drive) / index.directory_name,), self.journals, read_back, threads=2)

    def write(
        self, index: Index, *, read_back: bool = True, drive: Path | None = None, log: Log | None = None
    ) -> Written:
        options = self.options(index, read_back=read_back, drive=drive)
        return write_bundle(index, options, self.blob_path, self.signer, log or Log())

    def open(self, written: Written) -> OpenBundle:
        return open_bundle(written.directory, self.keys.verify)


def noise(size: int, seed: int) -> bytes:
    """Bytes that do not compress; the same for the same seed."""
    return random.Random(seed).randbytes(size)


def small_world(root: Path) -> World:
    """Two models: one with a file across three small volumes and a compressible one, one small; they share a file."""
    world = World(root)
    shared = noise(3000, 1)
    world.add(
        "org/large",
        {
            "config.json": shared,
            "model.safetensors": noise(9 * MIB + 12345, 2),
            "plain.bin": b"modelvault " * (2 * MIB // 11),
        },
    )
    world.add("small", {"config.json": shared, "empty": b"", "s.gguf": noise(1500 * 1024, 3)}, Recipe("small:latest"))
    return world


def contents(directory: Path) -> dict[str, str]:
    """The digest of every file of a directory, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def flip(path: Path, position: int | None = None) -> None:
    """Turn one bit around, in the middle unless told."""
    size = path.stat().st_size
    place = size // 2 if position is None else position % size
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))
        file.flush()
        os.fsync(file.fileno())
