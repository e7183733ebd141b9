"""Which files of a repository make the model that was asked for. Pure: listings in, listings out."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from modelvault.artifact import FileRole, SourceFile, file_role
from modelvault.errors import UsageProblem
from modelvault.formats.gguf_names import is_gguf, is_projector, projector_among
from modelvault.sources.quantizations import (
    GgufSet,
    QuantizationWanted,
    choices,
    find,
    sets,
)

_NEVER = (
    ".gitattributes",
    ".gitignore",
    "*/.gitattributes",
    "*/.gitignore",
    "*.imatrix",
    "imatrix*.dat",
    "*/imatrix*.dat",
)

# Where safetensors are complete, the same weights in other formats would only double the way.
_BESIDE_SAFETENSORS = (
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.tflite", "*.ot", "*.pkl",
    "original/*", "onnx/*", "openvino/*", "coreml/*", "metal/*",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """What of a repository is wanted: a quantization, globs to take, globs to leave."""

    quant: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """The files that make the model, and those that were left out for a reason other than the user's wish."""

    files: tuple[SourceFile, ...]
    left_out: tuple[SourceFile, ...]


def select(files: Sequence[SourceFile], wish: Wish) -> Selection:
    """Choose the files of a model.

    ``include`` globs beat every default; ``exclude`` globs beat ``include``. Raises ``UsageProblem`` when a quantization is not
    there, when there are several and none was named, or when nothing is left.
    """
    chosen = _choose_quant(_candidates(files, wish), wish)
    if not wish.include:
        chosen = _without_doubles(chosen)
    if not chosen:
        raise UsageProblem(
            "no file of the repository is left after --include, --exclude and --quant",
            hint="run the same command with --dry-run and without filters to see what there is",
        )
    kept = {file.path for file in chosen}
    asked_away = {file.path for file in files if _matches(file.path, wish.exclude)}
    left_out = tuple(file for file in files if file.path not in kept | asked_away and not _matches(file.path, _NEVER))
    return Selection(tuple(chosen), () if wish.include else left_out)


def _candidates(files: Sequence[SourceFile], wish: Wish) -> list[SourceFile]:
    candidates = [file for file in files if not _matches(file.path, wish.exclude)]
    if wish.include:
        return [file for file in candidates if _matches(file.path, wish.include)]
    return [file for file in candidates if not _matches(file.path, _NEVER)]


def _matches(path: str, globs: Sequence[str]) -> bool:
    """Whether a glob is for a path, or for its last part; one that begins with a slash is for whole paths alone."""
    name = PurePosixPath(path).name
    return any(
        fnmatchcase(f"/{path}", glob) if glob.startswith("/") else fnmatchcase(path, glob) or fnmatchcase(name, glob)
        for glob in globs
    )


def open_choice(files: Sequence[SourceFile], wish: Wish) -> tuple[GgufSet, ...]:
    """Give the models of a GGUF repository between which somebody has to choose; none where the wish or the repository leaves no choice."""
    candidates = _candidates(files, wish)
    if wish.quant or wish.include or _top_safetensors(candidates):
        return ()
    found = sets(candidates)
    return found if len(found) > 1 else ()


def quantizations(files: Sequence[SourceFile], wish: Wish) -> tuple[GgufSet, ...]:
    """Give all models of a GGUF repository that the globs leave, smallest first."""
    return sets(_candidates(files, wish))


def _choose_quant(files: list[SourceFile], wish: Wish) -> list[SourceFile]:
    weights = [file for file in files if is_gguf(file.path)]
    if _top_safetensors(files) and not wish.quant and not wish.include:
        # A GGUF beside a whole safetensors model is another form of the same weights.
        return [file for file in files if file not in weights]
    found = sets(weights)
    if not found:
        if wish.quant:
            raise UsageProblem(
                f"--quant {wish.quant}: the repository has no GGUF file",
                hint="leave --quant away: the repository has one set of weights",
            )
        return files
    others = [file for file in files if file not in weights and not _belongs_to_other_weights(file)]
    if wish.include and not wish.quant:
        return others + weights
    if not wish.quant and len(found) > 1:
        raise QuantizationWanted("the repository has several quantizations", choices(found))
    chosen = find(found, wish.quant) if wish.quant else found[0]
    return [*others, *chosen.files, *_projectors(weights, wish)]


def _projectors(files: Sequence[SourceFile], wish: Wish) -> list[SourceFile]:
    """A model that sees needs the projector that lies beside it, once; globs may have chosen otherwise."""
    if wish.include:
        return [file for file in files if is_projector(file.path)]
    best = projector_among([file.path for file in files])
    return [file for file in files if file.path == best]


def _belongs_to_other_weights(file: SourceFile) -> bool:
    return file_role(file.path) is FileRole.WEIGHT or file.path.endswith(".index.json")


def _top_safetensors(files: Sequence[SourceFile]) -> list[str]:
    return [file.path for file in files if "/" not in file.path and file.path.endswith(".safetensors")]


def _without_doubles(files: list[SourceFile]) -> list[SourceFile]:
    top = _top_safetensors(files)
    if not top:
        return files
    consolidated = ("consolidated*",) if any(not path.startswith("consolidated") for path in top) else ()
    return [file for file in files if not _matches(file.path, _BESIDE_SAFETENSORS + consolidated)]
