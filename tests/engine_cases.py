"""What the engines' tests share: a vault of a few blobs, a model per adapter, and a look at a directory as the engine sees it."""

import contextlib
import fcntl
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelvault.artifact import Digest, FileSpec, Model, ModelName, Origin, Recipe, StoredModel, Traits
from modelvault.engines import Engine, InstallRequest, LinkKind, Surroundings, Target, engines
from modelvault.fsio import hash_file
from modelvault.modelpack import store_form

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 5000  # more than one block of a copy would be slow in dozens of crash points

_GGUF = {"q8/tiny-Q8_0.gguf": b"GGUF" + WEIGHTS, "mmproj-F16.gguf": b"GGUF projector", "README.md": b"# tiny\n"}
_EXLLAMA = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
}
_HUB = {
    **_EXLLAMA,
    "tokenizer.model": b"{}",  # the same content: one blob
    "nested/extra.json": b'{"nested": true}',
}
_CONTENT: dict[str, dict[str, bytes]] = {
    "ollama": {"tiny-Q8_0.gguf": b"GGUF" + WEIGHTS, "README.md": b"# tiny\n"},
    "vllm": _HUB,
    "folder": {"config.json": b"{}", "model.safetensors": WEIGHTS, "nested/extra.json": b'{"nested": true}'},
    "llamacpp": _GGUF,
    "tgi": {**_HUB, "consolidated.safetensors": b"the same weights again"},
    "sglang": _HUB,
    "textgen": _GGUF,
    "tabbyapi": _EXLLAMA,
    "exllama": _EXLLAMA,
}
_TRAITS = {"gguf": Traits("gguf", "llama", "Q8_0", 1_234_567)} | {
    name: Traits("safetensors", "llama", quantization, 1_234_567)
    for name, quantization in (("hub", None), ("exllama", "exl3"))
}
_KIND = {"ollama": "gguf", "llamacpp": "gguf", "textgen": "gguf", "tabbyapi": "exllama", "exllama": "exllama"}
HUBS = ("vllm", "tgi", "sglang")
MODELFILE = 'TEMPLATE """{{ .Prompt }}"""\nPARAMETER temperature 0.7\nPARAMETER stop <end>\nLICENSE """one\ntwo"""\n'
NAMES = tuple(_CONTENT)


@dataclass(frozen=True)
class Blobs:
    """A vault reduced to what the engines need of it: blobs by digest, mode 0444."""

    root: Path

    def add(self, data: bytes) -> Digest:
        """Store a blob."""
        digest = Digest.of_bytes(data)
        path = self.path(digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o444)
        return digest

    def path(self, digest: Digest) -> Path:
        """Find a blob."""
        return self.root / "blobs" / "sha256" / digest.hex

    def model(self, name: str, content: Mapping[str, bytes], **changes: Any) -> StoredModel:
        """Store files as a model; ``changes`` are fields of ``Model``."""
        files = tuple(FileSpec(path, len(data), self.add(data)) for path, data in content.items())
        fields: dict[str, Any] = {"origin": Origin("folder"), "traits": Traits("safetensors")} | changes
        return store_form(Model(ModelName(name), files=files, **fields))

    def intact(self) -> bool:
        """Tell whether every blob still is what its name says, is read-only, and belongs to whom the vault belongs."""
        owner = self.root.stat().st_uid
        return all(
            hash_file(path).hex == path.name and path.stat().st_mode & 0o777 == 0o444 and path.stat().st_uid == owner
            for path in (self.root / "blobs" / "sha256").iterdir()
        )


@dataclass(frozen=True)
class Case:
    """One adapter with a model for it."""

    name: str
    blobs: Blobs
    directory: Path

    @property
    def engine(self) -> Engine:
        """The adapter, in surroundings where nothing is installed."""
        return engines(Surroundings({}, self.directory.parent / "home", self.directory.parent / "root"))[self.name]

    def stored(self, name: str = "org/tiny:Q8_0", *, weights: bytes | None = None, **changes: Any) -> StoredModel:
        """Store the adapter's model, with other ``weights`` if given; ``changes`` are fields of ``Model``."""
        content = dict(_CONTENT[self.name])
        if weights is not None:
            content[max(content, key=lambda path: len(content[path]))] = weights
        traits = _TRAITS[_KIND.get(self.name, "hub")]
        recipe = Recipe(modelfile=MODELFILE, vllm_arguments=("--max-model-len", "256"))
        return self.blobs.model(name, content, **({"traits": traits, "recipe": recipe} | changes))

    def newer(self) -> StoredModel:
        """Store another version of the adapter's model, of the same size."""
        return self.stored(weights=max(_CONTENT[self.name].values(), key=len)[::-1])

    def request(self, stored: StoredModel | None = None, **options: Any) -> InstallRequest:
        """Ask for an install into the case's directory."""
        return InstallRequest(stored or self.stored(), self.blobs.path, Target(self.name, self.directory), **options)

    def visible(self) -> set[str]:
        """Name the models that the engine would offer; fails the test if one of them is not whole."""
        if self.name in HUBS:
            return _hub_models(self.directory)
        return _LOOK[self.name](self.directory)

    def served(self) -> list[Path]:
        """Find the weights that the engine would load."""
        if self.name in HUBS:
            return list(_hub_weights(self.directory))
        if self.name == "ollama":
            return list(_ollama_weights(self.directory))
        below = self.directory / ("models" if self.name == "textgen" else "")
        return [
            path
            for pattern in ("*/*.safetensors", "*/*.gguf")
            for path in below.glob(pattern)
            if "mmproj" not in path.name
        ]


def _ollama_weights(directory: Path) -> Iterator[Path]:
    for path in directory.glob("manifests/*/*/*/*"):
        for layer in json.loads(path.read_bytes())["layers"]:
            if layer["mediaType"] == "application/vnd.ollama.image.model":
                yield directory / "blobs" / layer["digest"].replace(":", "-")


def _hub_weights(directory: Path) -> Iterator[Path]:
    for path in directory.glob("**/models--*/refs/main"):
        yield path.parents[1] / "snapshots" / path.read_text(encoding="ascii") / "model.safetensors"


def _ollama_models(directory: Path) -> set[str]:
    names = set()
    for path in directory.glob("manifests/*/*/*/*"):
        manifest = json.loads(path.read_bytes())
        for layer in (manifest["config"], *manifest["layers"]):
            blob = directory / "blobs" / layer["digest"].replace(":", "-")
            assert blob.stat().st_size == layer["size"], f"{path}: {blob}"
            assert str(hash_file(blob)) == layer["digest"], f"{path}: {blob}"
        names.add("/".join(path.parts[-2:]))
    return names


def _hub_models(directory: Path) -> set[str]:
    names = set()
    for path in directory.glob("**/models--*/refs/main"):
        snapshot = path.parents[1] / "snapshots" / path.read_text(encoding="ascii")
        _check_content(snapshot, _HUB)
        names.add(path.parents[1].name)
    return names


def _folder_models(directory: Path) -> set[str]:
    names = {path.name for path in directory.glob("*") if not path.name.startswith(".")}
    for name in names:
        _check_content(directory / name, _CONTENT["folder"])
    return names


def _exllama_models(directory: Path) -> set[str]:
    """Every directory with a config.json, hidden ones included."""
    names = {path.parent.name for path in directory.glob("*/config.json")}
    for name in names:
        _check_content(directory / name, _EXLLAMA)
    return names


def _llamacpp_models(directory: Path) -> set[str]:
    """Every directory with a GGUF file in itself, hidden ones included, and the files at the top."""
    names = {path.parent.name for path in directory.glob("*/*.gguf")} | {path.name for path in directory.glob("*.gguf")}
    for name in names:
        _check_content(directory / name, _FLAT)
    return names


def _textgen_models(directory: Path) -> set[str]:
    """Every GGUF file below models, with a projector beside."""
    files = list((directory / "models").rglob("*.gguf"))
    names = {file.relative_to(directory / "models").as_posix() for file in files}
    for file in files:
        _check_content(file.parent, {"tiny-Q8_0.gguf": _FLAT["tiny-Q8_0.gguf"]})
        projector = directory / "mmproj" / f"{file.parent.name}--mmproj-F16.gguf"
        assert projector.read_bytes() == _FLAT["mmproj-F16.gguf"]
    return names


_FLAT = {Path(path).name: data for path, data in _GGUF.items() if path.endswith(".gguf")}
_LOOK = {
    "ollama": _ollama_models,
    "folder": _folder_models,
    "llamacpp": _llamacpp_models,
    "textgen": _textgen_models,
    "tabbyapi": _exllama_models,
    "exllama": _exllama_models,
}


def _check_content(root: Path, content: Mapping[str, bytes]) -> None:
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert found - {".modelvault.json"} == set(content)
    for path, data in content.items():
        assert (root / path).stat().st_size == len(data), path


def tree(directory: Path) -> dict[str, tuple[object, ...]]:
    """Describe everything below a directory, times included, so that any change shows."""
    if not directory.exists():
        return {}
    found: dict[str, tuple[object, ...]] = {}
    for path in (directory, *sorted(directory.rglob("*"))):
        status = path.lstat()
        key = path.relative_to(directory).as_posix()
        found[key] = (status.st_ino, status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, status.st_nlink)
    return found


def contents(directory: Path) -> dict[str, str]:
    """Map the files and links below a directory to their content, regardless of inodes and times."""
    return {
        path.relative_to(directory).as_posix(): str(path.readlink()) if path.is_symlink() else hash_file(path).hex
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def link_is_true(kind: str, path: Path, source: Path) -> bool:
    """Tell whether a file got where it is in the way that was recorded."""
    same = not path.is_symlink() and path.samefile(source)
    if kind == LinkKind.SYMLINK:
        return path.is_symlink()
    if kind == LinkKind.HARD:
        return same
    return not same and not path.is_symlink() and shares_blocks(path) == (kind == LinkKind.REFLINK)


def shares_blocks(path: Path) -> bool:
    """Ask the file system whether the first extent of a file is another file's, too (FIEMAP, linux/fiemap.h)."""
    request = bytearray(struct.pack("=QQLLLL", 0, 1 << 62, 1, 0, 1, 0) + bytes(56))  # FIEMAP_FLAG_SYNC, room for one
    with path.open("rb") as file, contextlib.suppress(OSError):  # tmpfs knows no such question, and shares none
        fcntl.ioctl(file, 0xC020660B, request)  # FS_IOC_FIEMAP
    return bool(struct.unpack_from("=L", request, 32 + 40)[0] & 0x2000)  # FIEMAP_EXTENT_SHARED
