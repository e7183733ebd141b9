"""What the tests of import share: a drive with a bundle of two models, a server that trusts it, commands that are measured."""

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from machines import Machine, Ran, only_bundle, trust
from make_models import make_gguf_repository, make_large_safetensors

GGUF, SHARDED = "tiny", "org/sharded"
MEMORY = 250_000_000
"""Bytes of memory that a command may take at most, whatever the models' size."""


@dataclass(frozen=True)
class Shipment:
    """A connected machine, the bundle of two models that it wrote, and a server that trusts its key; to be copied, not used."""

    pc: Machine
    bundle: Path
    server: Machine
    folders: dict[str, Path]

    @cached_property
    def fingerprint(self) -> str:
        """Of the signing key: 64 hex digits."""
        shown: str = self.pc.json("keys", "show").result["keys"][0]["fingerprint"]
        return shown.removeprefix("sha256:").replace(" ", "")

    def deliver(self, root: Path) -> "Delivery":
        """Copy the bundle onto a drive and the server into a directory of its own."""
        drive, home = root / "drive", root / "server"
        drive.mkdir()
        bundle = Path(shutil.copytree(self.bundle, drive / self.bundle.name))
        shutil.copytree(self.server.root, home)
        return Delivery(self, bundle, Machine(home))


@dataclass(frozen=True)
class Delivery:
    """A bundle and a server for one test."""

    shipment: Shipment
    bundle: Path
    server: Machine
    ollama: Path = field(init=False)
    cache: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ollama", self.server.root / "ollama")
        object.__setattr__(self, "cache", self.server.root / "hub")

    @property
    def engines(self) -> tuple[str, ...]:
        """The options that name both engines."""
        return ("--engine", f"ollama={self.ollama}", "--engine", f"vllm={self.cache}")

    def tables(self) -> list[dict[str, Any]]:
        """The frame tables, by volume."""
        return [json.loads(path.read_bytes()) for path in sorted(self.bundle.glob("volume-*.json"))]

    def models_in(self, volume: int) -> set[str]:
        """The models of which something lies in a volume, as the index says."""
        index = json.loads((self.bundle / "bundle.json").read_bytes())
        # The path of a blob, or of a slice of it, has the blob's digest in it.
        paths = " ".join(member["path"] for member in index["volumes"][volume - 1]["members"])
        return {
            name
            for name, folder in self.shipment.folders.items()
            if any(digest in paths for digest in digests(folder).values())
        }

    def bring_again(self, name: str) -> None:
        """Put a file of the bundle back as it was written."""
        shutil.copy2(self.shipment.bundle / name, self.bundle / name)

    def installed(self) -> set[str]:
        """The models that the engines have, each of which must be whole."""
        return {GGUF} & set(whole_in_ollama(self.ollama)) | {SHARDED} & set(whole_in_cache(self.cache))


def ship(root: Path) -> Shipment:
    """Make two models of several volumes each, bundle them, and trust the key on a server."""
    folders = {GGUF: root / "tiny-GGUF", SHARDED: root / "sharded"}
    make_gguf_repository(folders[GGUF], name="tiny")
    make_large_safetensors(folders[SHARDED], 5_000_000, shards=3)
    pc, server, drive = Machine(root / "pc"), Machine(root / "server"), root / "drive"
    for path in (pc.root, server.root, drive):
        path.mkdir()
    for name, folder in folders.items():
        pc.run("add", folder, "--name", name)
    pc.run("bundle", "--to", drive, "--volume-size", "2MiB")
    bundle = only_bundle(drive)
    trust(server, pc, bundle)
    return Shipment(pc, bundle, server, folders)


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file of a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def whole_in_ollama(directory: Path) -> Iterator[str]:
    """The names that Ollama would list, having checked every blob of each."""
    for manifest in sorted((directory / "manifests").rglob("*")):
        if manifest.is_file():
            document = json.loads(manifest.read_bytes())
            for layer in (document["config"], *document["layers"]):
                blob = directory / "blobs" / layer["digest"].replace(":", "-")
                data = blob.read_bytes()
                assert len(data) == layer["size"], f"{manifest} lists half a blob: {blob}"
                assert f"sha256:{hashlib.sha256(data).hexdigest()}" == layer["digest"], f"{blob} has other bytes"
            yield manifest.parent.name


def whole_in_cache(directory: Path) -> Iterator[str]:
    """The repositories that the hub's cache has at ``main``, having checked every file of each by its shards' index."""
    for reference in sorted(directory.glob("models--*/refs/main")):
        folder = reference.parents[1]
        snapshot = folder / "snapshots" / reference.read_text()
        index = json.loads((snapshot / "model.safetensors.index.json").read_bytes())
        for name in ("config.json", "tokenizer.json", *set(index["weight_map"].values())):
            path = snapshot / name
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.resolve().name, f"{path} has other bytes"
        yield folder.name.removeprefix("models--").replace("--", "/")


# Linux counts into a process's peak memory what its parent held at the fork, and a test runner holds much: so a small one between.
_LAUNCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:], stdin=subprocess.DEVNULL)
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
sys.exit(code if code >= 0 else 128 - code)
"""


def measured(machine: Machine, *arguments: str | Path, code: int, prefix: Sequence[str] = ()) -> tuple[Ran, int]:
    """Run a command as ``Machine.run`` does; give also its peak memory in bytes."""
    with tempfile.NamedTemporaryFile("r") as peak:
        launcher = (sys.executable, "-c", _LAUNCHER, peak.name, *prefix)
        ran = machine.run(*arguments, code=code, prefix=launcher)
        return ran, int(peak.read())
