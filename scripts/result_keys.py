"""What the ``result`` of every command holds, read from the dataclasses in ``modelvault/results/``: as a page, and as a shape for tests."""

import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from modelvault.artifact import Digest, ModelName
from modelvault.results import bundles, catalog, engines, fit, installs, models, papers, policy, project, updates

RESULTS: Mapping[str, type] = {
    "add": models.AddResult,
    "bundle": bundles.BundleResult,
    "bundle --dry-run": bundles.BundlePlan,
    "catalog list": catalog.CatalogResult,
    "catalog search": catalog.CatalogResult,
    "catalog show": catalog.CatalogShow,
    "doctor": engines.DoctorResult,
    "fit": fit.FitResult,
    "gc": models.GcResult,
    "import": installs.ImportsResult,
    "inspect": bundles.InspectResult,
    "install": installs.InstallResult,
    "installs": installs.InstallsResult,
    "keys list": papers.KeysResult,
    "keys new": papers.KeysResult,
    "keys revoke": papers.KeysResult,
    "keys show": papers.KeysResult,
    "keys trust": papers.KeysResult,
    "list": models.ListResult,
    "policy accept": policy.AcceptResult,
    "policy check": policy.PolicyCheck,
    "policy show": policy.PolicyResult,
    "outdated": updates.OutdatedResult,
    "pull": models.PullResult,
    "pull --all": project.ProjectResult,
    "pull --dry-run": models.PullPlan,
    "pull --update": updates.UpdateResult,
    "receipt add": papers.ReceiptResult,
    "receipt list": papers.ReceiptsResult,
    "receipt show": papers.ReceiptResult,
    "receipt write": papers.ReceiptWritten,
    "recipe": fit.RecipeResult,
    "registry rebuild": models.RebuildResult,
    "rm": models.RemoveResult,
    "serve": types.NoneType,
    "show": models.ShowResult,
    "smoke": engines.SmokeResult,
    "uninstall": installs.UninstallResult,
    "verify": bundles.VerifyResult,
}
"""By command, and by ``--dry-run`` where that gives another result."""

_WORDS = {str: "text", Path: "text", Digest: "text", ModelName: "text", types.NoneType: "null"}
_WORDS |= {int: "integer", float: "number", bool: "`true` or `false`"}


def _parts(hint: Any) -> tuple[Any, ...]:
    """Take a type apart into what it may be."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.get_args(hint)
    return (hint,)


def _keys(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def shape(hint: Any) -> Any:
    """Reduce a type to its keys. A list has one element; where there are several kinds of objects, the shape says which."""
    parts = [part for part in _parts(hint) if part is not types.NoneType]
    objects = {part.__name__: shape(part) for part in parts if is_dataclass(part) and part is not hint}
    if objects:
        return objects if len(objects) > 1 else next(iter(objects.values()))
    if typing.get_origin(hint) is tuple:
        return [shape(typing.get_args(hint)[0])]
    if hint is types.NoneType or not is_dataclass(hint) or hint in _WORDS:
        return "by key" if typing.get_origin(hint) is Mapping else "value"
    return {name: shape(inner) for name, inner in _keys(typing.cast("type", hint)).items()}


def fits(hint: Any, value: Any) -> bool:
    """Tell whether a part of a printed document is what the type says: the same keys, in the same order, at every depth."""
    return any(_fits(part, value) for part in _parts(hint))


def _fits(hint: Any, value: Any) -> bool:
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list) and all(fits(typing.get_args(hint)[0], item) for item in value)
    if typing.get_origin(hint) is Mapping:
        return isinstance(value, dict)
    if hint in _WORDS or issubclass(hint, Enum):
        kind = {Path: str, Digest: str, ModelName: str, float: (int, float)}.get(hint, hint)
        return isinstance(value, str if issubclass(hint, Enum) else kind)
    keys = _keys(hint)
    return isinstance(value, dict) and list(value) == list(keys) and all(fits(keys[key], value[key]) for key in keys)


def _words(hint: Any) -> str:
    """Write a type as JSON has it."""
    if len(_parts(hint)) > 1:
        return " or ".join(dict.fromkeys(map(_words, _parts(hint))))
    if typing.get_origin(hint) is tuple:
        return f"list of {_words(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is Mapping:
        return "object"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(f"`{member.value}`" for member in hint)
    return _WORDS.get(hint) or (f"[{hint.__name__}](#{hint.__name__.lower()})" if is_dataclass(hint) else "object")


def _reached(kinds: list[type]) -> Iterator[type]:
    """List the objects that results consist of, each before those in it."""
    seen: list[Any] = []
    while kinds:
        kind = kinds.pop(0)
        if kind in seen or kind in _WORDS or not is_dataclass(kind):
            kinds = [*typing.get_args(kind), *kinds] if typing.get_args(kind) else kinds
            continue
        seen.append(kind)
        yield kind
        kinds = [*_keys(kind).values(), *kinds]


def page() -> str:
    """Write the page of all results."""
    lines = ["# Results\n", "What `result` holds in the [`--json`](json.md) document of each command.\n"]
    lines += ["| command | result |", "| --- | --- |"]
    lines += [f"| `{command}` | {_words(kind)} |" for command, kind in RESULTS.items()]
    for kind in _reached(list(RESULTS.values())):
        text = (kind.__doc__ or "").replace("``", "`")
        lines += [f"\n## {kind.__name__}\n", *(line.strip() for line in text.strip().splitlines())]
        lines += ["", "| key | value |", "| --- | --- |"]
        lines += [f"| `{name}` | {_words(hint)} |" for name, hint in _keys(kind).items()]
    return "\n".join(lines) + "\n"
