"""The quantizations of a GGUF repository: which there are, how large and how good they are, and which one is meant. Pure."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from modelvault.artifact import SourceFile
from modelvault.errors import UsageProblem
from modelvault.formats.gguf_names import models_among
from modelvault.formats.quantizations import USUAL, judge, nominal_bits
from modelvault.results.models import QuantChoice

_QUANT_IN_NAME = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q\d(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|BF16|F16|F32|FP16|FP32))(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.[a-z]+$)", re.IGNORECASE)
_MEASURES = ("F16", "BF16", "Q8_0", "F32")
"""Quantizations in which every weight takes the same bits, or nearly: from the size of one of them follows the number of weights."""

_PLAUSIBLE = (
    0.5,
    2.2,
)  # computed bits over usual ones; small models are above 1, experts that kept their own type far above
_SUGGESTIONS = 3


class QuantizationWanted(UsageProblem):
    """A repository has several quantizations, and none of them was named."""

    slug = "quantization-wanted"

    def __init__(self, message: str, listed: Sequence[QuantChoice]) -> None:
        """Say what there is to choose from."""
        names = ", ".join(choice.name for choice in listed)
        super().__init__(message, hint=f"choose one with --quant: {names}", choices=tuple(listed))


@dataclass(frozen=True, slots=True)
class GgufSet:
    """The weights of one model: a file, or all shards of a split one. ``name`` is what ``--quant`` takes: ``quant``, if that says it all."""

    name: str
    quant: str | None
    files: tuple[SourceFile, ...]

    @property
    def size(self) -> int:
        """The bytes of all its files."""
        return sum(file.size for file in self.files)


def quant_of(path: str) -> str | None:
    """Read the quantization out of a GGUF's file name: ``…-Q4_K_M.gguf`` or ``…-Q4_K_M-00001-of-00003.gguf``."""
    found = _QUANT_IN_NAME.findall(SHARD.sub("", PurePosixPath(path).name))
    return str(found[-1]).upper() if found else None


def sets(files: Sequence[SourceFile]) -> tuple[GgufSet, ...]:
    """Find the models among a repository's files, smallest first; a split one counts once.

    Projectors are none. Adapters, importance matrices, drafts and heads that predict several tokens are none either, where others
    are there. One is called by its quantization, or by its file's name where that says none or is one of several of the same.
    """
    models = set(models_among([file.path for file in files]))
    groups: dict[str, list[SourceFile]] = {}
    for file in (file for file in files if file.path in models):
        groups.setdefault(SHARD.sub("", file.path), []).append(file)
    quants = {base: quant_of(base) or quant_of(str(PurePosixPath(base).parent)) for base in groups}
    often = Counter(quants.values())
    found = []
    for base, members in groups.items():
        quant = quants[base]
        own = quant if quant is not None and often[quant] == 1 else PurePosixPath(base).stem
        found.append(GgufSet(own, quant, tuple(members)))
    return tuple(sorted(found, key=lambda entry: (entry.size, entry.name)))


def choices(found: Sequence[GgufSet], parameters: int | None = None) -> tuple[QuantChoice, ...]:
    """Judge the models of a repository. ``parameters`` is the number of weights, if the source says it; else it may follow from the sizes."""
    counted = parameters or _measured(found)
    return tuple(
        QuantChoice(
            name=entry.name,
            size=entry.size,
            files=len(entry.files),
            bits=round(entry.size * 8 / counted, 2) if counted else None,
            judgement=judge(entry.quant or ""),
        )
        for entry in found
    )


def _measured(found: Sequence[GgufSet]) -> int | None:
    """Compute the number of weights from the size of a set without mixed types; ``None`` where the others contradict that."""
    sizes = {entry.name: entry.size for entry in found}
    measure = next((name for name in _MEASURES if name in sizes), None)
    bits = nominal_bits(measure) if measure else None
    if measure is None or bits is None:
        return None
    counted = int(sizes[measure] * 8 / bits)
    if counted == 0:
        return None
    ratios = [entry.size * 8 / counted / known for entry in found if (known := nominal_bits(entry.name))]
    least, most = _PLAUSIBLE
    return counted if all(least <= ratio <= most for ratio in ratios) else None


def find(found: Sequence[GgufSet], wanted: str) -> GgufSet:
    """Find the set that ``--quant`` names, in any case. Raises ``UsageProblem`` with what there is, the nearest first."""
    key = wanted.upper()
    matches = [entry for entry in found if entry.name.upper() == key]
    if not matches:
        matches = [entry for entry in found if entry.quant == key]
    if len(matches) == 1:
        return matches[0]
    if matches:
        message = f"{wanted} is the quantization of {len(matches)} models of the repository"
        raise QuantizationWanted(message, choices(matches))
    names = [entry.name for entry in found]
    near = nearest(wanted, names)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageProblem(
        f"no {wanted} in the repository", hint=f"{meant}there are: {', '.join(names)}", choices=choices(found)
    )


def nearest(wanted: str, names: Sequence[str]) -> list[str]:
    """Give up to three names that look like what was typed: those that begin or end so first."""
    key = wanted.upper()
    folded = {name.upper(): name for name in names}
    near = [name for name in folded if name.startswith(key) or name.endswith(key)]
    near += [name for name in difflib.get_close_matches(key, folded, n=_SUGGESTIONS) if name not in near]
    near.sort(key=lambda name: name != USUAL)
    return [folded[name] for name in near[:_SUGGESTIONS]]
