"""Which files of a repository make the model that was asked for. Pure: listings in, listings out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from modelvault.artifact import FileRole, SourceFile, file_role
from modelvault.errors import UsageProblem

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

_QUANT_IN_NAME = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|F16|F32|FP16|FP32))(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.[a-z]+$)", re.IGNORECASE)


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


def quant_of(path: str) -> str | None:
    """Read the quantization out of a GGUF's file name: ``…-Q4_K_M.gguf`` or ``…-Q4_K_M-00001-of-00003.gguf``."""
    found = _QUANT_IN_NAME.findall(_SHARD.sub("", PurePosixPath(path).name))
    return str(found[-1]).upper() if found else None


def is_projector(path: str) -> bool:
    """Tell by its name whether a GGUF is a vision projector rather than a language model."""
    return "mmproj" in PurePosixPath(path).name.casefold()


def quants(files: Sequence[SourceFile]) -> dict[str, int]:
    """List the quantizations of a GGUF repository with the bytes of each, smallest first."""
    sizes: dict[str, int] = {}
    for file in files:
        if file.path.lower().endswith(".gguf") and not is_projector(file.path):
            key = quant_of(file.path) or PurePosixPath(file.path).stem
            sizes[key] = sizes.get(key, 0) + file.size
    return dict(sorted(sizes.items(), key=lambda item: item[1]))


def select(files: Sequence[SourceFile], wish: Wish) -> Selection:
    """Choose the files of a model.

    ``include`` globs beat every default; ``exclude`` globs beat ``include``. Raises ``UsageProblem`` when a quantization is not
    there, when there are several and none was named, or when nothing is left.
    """
    candidates = [file for file in files if not _matches(file.path, wish.exclude)]
    if wish.include:
        candidates = [file for file in candidates if _matches(file.path, wish.include)]
    else:
        candidates = [file for file in candidates if not _matches(file.path, _NEVER)]
    chosen = _choose_quant(candidates, wish)
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


def _matches(path: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(path, glob) or fnmatchcase(PurePosixPath(path).name, glob) for glob in globs)


def _choose_quant(files: list[SourceFile], wish: Wish) -> list[SourceFile]:
    weights = [file for file in files if file.path.lower().endswith(".gguf")]
    if _top_safetensors(files) and not wish.quant and not wish.include:
        # A GGUF beside a whole safetensors model is another form of the same weights.
        return [file for file in files if file not in weights]
    models = [file for file in weights if not is_projector(file.path)]
    others = [file for file in files if file not in weights]
    if not models:
        if wish.quant:
            raise UsageProblem(
                f"--quant {wish.quant}: the repository has no GGUF file",
                hint="leave --quant away: the repository has one set of weights",
            )
        return files
    if wish.quant:
        wanted = wish.quant.upper()
        chosen = [file for file in models if (quant_of(file.path) or "") == wanted]
        if not chosen:
            known = ", ".join(quants(models))
            raise UsageProblem(f"no {wish.quant} in the repository", hint=f"there are: {known}", quants=quants(models))
    elif len(_sets(models)) == 1 or wish.include:
        chosen = models
    else:
        known = ", ".join(quants(models))
        raise UsageProblem(
            "the repository has several quantizations", hint=f"choose one with --quant: {known}", quants=quants(models)
        )
    if len(_sets(chosen)) > 1 and not wish.include:
        names = ", ".join(sorted({_SHARD.sub("", file.path) for file in chosen})[:8])
        raise UsageProblem(f"more than one model file matches: {names}", hint="choose one with --include")
    projectors = [file for file in weights if is_projector(file.path)] if wish.include else []
    return [file for file in others if not _belongs_to_other_weights(file)] + chosen + projectors


def _sets(files: Sequence[SourceFile]) -> set[str]:
    """Name the models among GGUF files: all shards of a split model count as one."""
    return {_SHARD.sub("", file.path) for file in files}


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
