"""The shape of a model wherever it lies: in the vault, in a file or folder, or still at the Hub, of which only headers are read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from modelvault.artifact import ModelName, SourceFile, TensorInfo
from modelvault.errors import InvalidModelFile, UsageProblem
from modelvault.fit.gguf_shape import gguf_shape
from modelvault.fit.shape import Shape
from modelvault.fit.transformers_shape import transformers_shape
from modelvault.formats.cursor import Readable
from modelvault.formats.gguf import read_gguf_header
from modelvault.formats.gguf_names import is_gguf, is_projector, models_among
from modelvault.formats.shards import shard_sets
from modelvault.inspect.documents import parse_object, read_all
from modelvault.inspect.quantization import read_quantization
from modelvault.inspect.safetensors import read_safetensors_header
from modelvault.progress import Progress
from modelvault.sources import Snapshot, Source
from modelvault.sources.folder import FolderSource
from modelvault.sources.quantizations import sets
from modelvault.sources.remote_file import RemoteFile
from modelvault.sources.selection import Wish, select
from modelvault.vault import Vault

_CONFIG = "config.json"
_MAX_CONFIG = 4 << 20
_CONSOLIDATED = "consolidated.safetensors"

Opener = Callable[[], AbstractContextManager[Readable]]


@dataclass(frozen=True, slots=True)
class Described:
    """A model's shape. ``method`` is its quantization's method for vLLM, ``quants`` the quantizations beside it, with their bytes."""

    name: str
    shape: Shape
    gguf: bool
    method: str | None = None
    quants: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a model, wherever it lies."""

    path: str
    size: int
    open: Opener


@contextmanager
def _opened(path: Path) -> Iterator[Readable]:
    with path.open("rb", buffering=0) as file:
        yield file


@contextmanager
def _remote(source: Source, snapshot: Snapshot, file: SourceFile) -> Iterator[Readable]:
    yield RemoteFile(source, snapshot, file)


def described_file(path: Path) -> Described:
    """Describe a GGUF file (its other shards are looked for beside it) or a model's folder. Raises ``UsageProblem``, ``InvalidModelFile``."""
    if not path.exists():
        raise UsageProblem(f"{path} does not exist", hint="name a .gguf file, a model's folder, or a model by its name")
    if path.is_dir():
        listed = FolderSource(path).files()
        return _described(path.name, [_local(path / file.path, file.path) for file in listed])
    files = [_local(path, path.name)]
    shards = next(iter(shard_sets([path.name])), None)
    if shards is not None:
        names = [shards.file(number) for number in range(1, shards.total + 1)]
        if missing := [name for name in names if not (path.parent / name).exists()]:
            raise UsageProblem(f"{missing[0]} is not beside {path.name}", hint="all shards are needed to tell its size")
        files = [_local(path.parent / name, name) for name in names]
    return _described(path.name, files)


def _local(place: Path, path: str) -> _File:
    return _File(path, place.stat().st_size, lambda: _opened(place))


def described_model(vault: Vault, name: ModelName) -> Described:
    """Describe a model of the vault."""
    stored = vault.model(name)
    files = [_local(vault.store.blob_path(file.digest), file.path) for file in stored.model.files]
    return _described(name.text, files)


def described_remote(name: str, snapshot: Snapshot, wish: Wish, source: Source, progress: Progress) -> Described:
    """Describe what a pull would bring, from the first megabytes of its weights. Raises ``SourceUnavailable`` and as ``select`` does."""
    chosen = select(snapshot.files, wish).files

    def opener(file: SourceFile) -> Opener:
        return lambda: _remote(source, snapshot, file)

    progress.log(f"reading the headers of {snapshot.repository}")
    found = _described(name, [_File(file.path, file.size, opener(file)) for file in chosen])
    others = {one.name: one.size for one in sets(snapshot.files)} if found.gguf else {}
    return Described(found.name, found.shape, found.gguf, found.method, others)


def _described(name: str, files: Sequence[_File]) -> Described:
    ggufs = sorted((file for file in files if is_gguf(file.path)), key=lambda file: file.path)
    if ggufs:
        return Described(name, _gguf(ggufs), gguf=True)
    weights = [
        file
        for file in files
        if file.path.endswith(".safetensors") and "/" not in file.path and file.path != _CONSOLIDATED
    ]
    if not weights:
        raise UsageProblem(
            f"{name} has no GGUF or safetensors file whose header says how large it is",
            hint="memory is computed from headers, not guessed from names",
        )
    return _transformers(name, files, weights)


def _gguf(files: Sequence[_File]) -> Shape:
    models = models_among([file.path for file in files]) or [file.path for file in files]
    sets = shard_sets(models)
    first = set(sets[0].files) if sets else {models[0]}
    headers = []
    for file in files:
        if file.path in first:
            with file.open() as reader:
                headers.append(read_gguf_header(reader, file.size, name=file.path))
    return gguf_shape(headers, projector=sum(file.size for file in files if is_projector(file.path)))


def _transformers(name: str, files: Sequence[_File], weights: Sequence[_File]) -> Described:
    config = next((file for file in files if file.path == _CONFIG), None)
    if config is None or config.size > _MAX_CONFIG:
        raise InvalidModelFile(
            _CONFIG, "missing-config", "is missing or far too large", hint="pull the whole repository"
        )
    with config.open() as reader:
        document = parse_object(read_all(reader.read, config.size), _CONFIG, "config-json")
    section = document.get("quantization_config") or document.get("compression_config")
    quantization = read_quantization(section, _CONFIG) if isinstance(section, dict) else None
    tensors: list[TensorInfo] = []
    for file in weights:
        with file.open() as reader:
            tensors += read_safetensors_header(reader, file.size, name=file.path).tensors
    shape = transformers_shape(document, tensors, quantization.name if quantization else None)
    return Described(name, shape, gguf=False, method=quantization.method if quantization else None)
