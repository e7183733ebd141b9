"""What a GGUF file is for, by its name alone: a model's weights, its projector, or something that lies beside them. Pure.

Sources: ``common/preset.cpp`` of llama.cpp for projectors and drafts; for the rest the names that repositories give such files.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

_DRAFT = re.compile(r"(?:mtp|dspark|dflash)-")
_BESIDE = re.compile(r"(?:^|[^a-z])(?:lora|adapter|imatrix|draft|mtp)(?:[^a-z]|$)", re.IGNORECASE)
_F16 = re.compile(r"(?:^|[^b])f16", re.IGNORECASE)
_BF16 = re.compile(r"bf16", re.IGNORECASE)


def is_gguf(path: str) -> bool:
    """Tell a GGUF by its name."""
    return path.lower().endswith(".gguf")


def is_projector(path: str) -> bool:
    """Tell a vision or audio projector, as llama.cpp does: by ``mmproj``, here in any case."""
    return "mmproj" in PurePosixPath(path).name.lower()


def is_draft(path: str) -> bool:
    """Tell a draft model, which llama.cpp takes for the one beside it."""
    return bool(_DRAFT.match(PurePosixPath(path).name))


def models_among(paths: Sequence[str]) -> list[str]:
    """Give the GGUF files that hold a model's weights, in their order.

    Projectors never do. Drafts, and files with ``lora``, ``adapter``, ``imatrix``, ``draft`` or ``mtp`` as a word of their path, do only
    where nothing else is there.
    """
    weights = [path for path in paths if is_gguf(path) and not is_projector(path)]
    return [path for path in weights if not is_draft(path) and not _BESIDE.search(path)] or weights


def projector_among(paths: Sequence[str]) -> str | None:
    """Choose a projector as the engines do: the F16 one, else BF16, else the first."""
    found = [path for path in paths if is_gguf(path) and is_projector(path)]
    for kind in (_F16, _BF16):
        if match := next((path for path in found if kind.search(PurePosixPath(path).name)), None):
            return match
    return found[0] if found else None
