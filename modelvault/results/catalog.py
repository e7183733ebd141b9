"""Results about the catalog."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class CatalogLine:
    """One short name. ``parameters`` as its publisher says (``8.0B``), ``context`` in tokens, ``languages`` by their codes in ISO 639.

    ``size`` is an estimate of the weights, in bytes; ``model`` is shared by all formats of a model; ``acceptance``: its license asks to be accepted; ``file`` is where the entry stands.
    """

    name: str
    model: str
    title: str
    repository: str
    revision: str | None
    quant: str | None
    format: str
    parameters: str
    size: int
    context: int
    languages: tuple[str, ...]
    license: str
    gated: bool
    acceptance: bool
    verified: bool
    file: Path


@dataclass(frozen=True, slots=True)
class CatalogResult:
    """The catalog, or what of it was searched for. Entries that replace others, and files that could not be read, are warnings."""

    entries: tuple[CatalogLine, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CatalogShow:
    """One short name, the ``others`` of its model in other formats, and what travels with it: a Modelfile without FROM, flags of vLLM."""

    entry: CatalogLine
    others: tuple[CatalogLine, ...]
    modelfile: str | None
    vllm_arguments: tuple[str, ...]
    warnings: tuple[str, ...] = ()
