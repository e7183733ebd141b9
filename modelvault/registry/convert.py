"""Between the stages' values and the rows of the tables."""

import json
from collections.abc import Iterator
from typing import Any

from modelvault.artifact import (
    ArraySummary,
    Digest,
    FileReport,
    FileSpec,
    Model,
    ModelName,
    Origin,
    Scalar,
    StoredModel,
    Traits,
)
from modelvault.modelpack import decode_recipe, encode_recipe
from modelvault.registry.rows import (
    AcceptanceRow,
    BundleRow,
    CheckRow,
    Delivered,
    InstallRow,
    MetadataRow,
    ModelRow,
    PublishedRow,
    SmokeRow,
)
from modelvault.registry.schema import (
    BundleTable,
    CheckTable,
    EventTable,
    FileTable,
    InstallTable,
    MetadataTable,
    ModelTable,
    SmokeTable,
)

Values = dict[str, Any]


def dump(document: object) -> str:
    """Write JSON for a column: keys sorted, so that equal facts are equal text."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def model_values(stored: StoredModel, published_at: str) -> Values:
    """Lay a model out as a row of ``models``."""
    model = stored.model
    return {
        "name": model.name.text,
        "manifest": str(stored.manifest),
        "manifest_size": stored.manifest_size,
        "source_kind": model.origin.kind,
        "source_repository": model.origin.repository,
        "source_commit": model.origin.commit,
        "license": model.license,
        "license_link": model.license_link,
        "format": model.traits.format,
        "architecture": model.traits.architecture,
        "quantization": model.traits.quantization,
        "parameters": model.traits.parameters,
        "context_length": model.traits.context_length,
        "size": model.size,
        "recipe": None if model.recipe is None else encode_recipe(model.recipe),
        "published_at": published_at,
    }


def file_values(name: ModelName, file: FileSpec, report: FileReport | None) -> Values:
    """Lay a file out as a row of ``files``."""
    return {
        "model": name.text,
        "path": file.path,
        "size": file.size,
        "digest": str(file.digest),
        "upstream": None if file.upstream is None else str(file.upstream),
        "format": None if report is None else report.format,
        "architecture": None if report is None else report.architecture,
        "quantization": None if report is None else report.quantization,
        "tensors": None if report is None else report.tensors,
        "parameters": None if report is None else report.parameters,
        "warnings": None if report is None else dump(list(report.warnings)),
    }


def metadata_values(name: ModelName, path: str, report: FileReport) -> Iterator[Values]:
    """Lay the metadata of a file out as rows of ``metadata``."""
    for key, value in report.metadata.items():
        row: Values = {"model": name.text, "path": path, "key": key, "value": None}
        row |= {"array_element": None, "array_length": None, "array_digest": None}
        if isinstance(value, ArraySummary):
            row["type"] = "array"
            row |= {"array_element": value.element, "array_length": value.length, "array_digest": str(value.digest)}
        else:
            row["type"], row["value"] = scalar_text(value)
        yield row


def scalar_text(value: Scalar) -> tuple[str, str | None]:
    """Write a scalar as its type and text. Text, since 64-bit unsigned and NaN do not fit SQLite's own types."""
    match value:
        case None:
            return "null", None
        case bool():
            return "boolean", "true" if value else "false"
        case int():
            return "integer", str(value)
        case float():
            return "float", repr(value)
        case str():
            return "string", value


def scalar_value(kind: str, text: str | None) -> Scalar:
    """Read a scalar back. Raises ``ValueError`` for a type or text that ``scalar_text`` does not write."""
    if kind == "null" and text is None:
        return None
    if text is not None:
        match kind:
            case "boolean" if text in {"true", "false"}:
                return text == "true"
            case "integer":
                return int(text)
            case "float":
                return float(text)
            case "string":
                return text
    raise ValueError(f"not a value of the type {kind!r}: {text!r}")


def model_row(row: ModelTable) -> ModelRow:
    """Read a model. Like all of these, raises ``ValueError``, ``TypeError`` or ``ModelvaultError`` for a row that we did not write."""
    model = Model(
        name=ModelName(row.name),
        origin=Origin(row.source_kind, row.source_repository, row.source_commit),
        files=tuple(FileSpec(file.path, file.size, Digest.parse(file.digest), _upstream(file)) for file in row.files),
        traits=Traits(row.format, row.architecture, row.quantization, row.parameters, row.context_length),
        license=row.license,
        recipe=None if row.recipe is None else decode_recipe(row.recipe),
        license_link=row.license_link,
    )
    return ModelRow(StoredModel(model, Digest.parse(row.manifest), row.manifest_size), row.published_at)


def _upstream(row: FileTable) -> Digest | None:
    return None if row.upstream is None else Digest.parse(row.upstream)


def metadata_row(row: MetadataTable) -> MetadataRow:
    """Read a metadata key."""
    value: Scalar | ArraySummary
    if row.type != "array":
        value = scalar_value(row.type, row.value)
    elif row.array_element is None or row.array_length is None or row.array_digest is None:
        raise ValueError(f"the array {row.key!r} is not described")
    else:
        value = ArraySummary(row.array_element, row.array_length, Digest.parse(row.array_digest))
    return MetadataRow(ModelName(row.model), row.path, row.key, value)


def check_row(row: CheckTable) -> CheckRow:
    """Read a check."""
    return CheckRow(row.model, row.checked_at, row.outcome, row.detail)


def acceptance_row(row: EventTable) -> AcceptanceRow:
    """Read the acceptance of a license."""
    data = _table(row.data)
    license_name, model, user, how = (str(data.get(key)) for key in ("license", "model", "user", "how"))
    return AcceptanceRow(license_name, model, user, how, row.time)


def published_row(row: EventTable) -> PublishedRow:
    """Read the event that a model was published."""
    data = _table(row.data)
    revision = data.get("revision")
    return PublishedRow(_delivered(data.get("bundle")), revision if isinstance(revision, str) else None)


def _delivered(bundle: Any) -> Delivered | None:
    match bundle:
        case {"label": str(label), "sequence": int(sequence), "key": str() | None as key}:
            return Delivered(label, sequence, key)
        case _:
            return None


def bundle_row(row: BundleTable) -> BundleRow:
    """Read a bundle."""
    return BundleRow(
        direction="written" if row.direction == "written" else "imported",
        index_digest=row.index_digest,
        label=row.label,
        sequence=row.sequence,
        key_fingerprint=row.key_fingerprint,
        recorded_at=row.recorded_at,
        path=row.path,
        models=tuple(str(name) for name in json.loads(row.models)),
    )


def install_row(row: InstallTable) -> InstallRow:
    """Read an install."""
    return InstallRow(
        engine=row.engine,
        directory=row.directory,
        model=row.model,
        manifest=row.manifest,
        installed_name=row.installed_name,
        record=_table(row.record),
        installed_at=row.installed_at,
        removed_at=row.removed_at,
    )


def smoke_row(row: SmokeTable) -> SmokeRow:
    """Read a smoke test."""
    return SmokeRow(
        engine=row.engine,
        directory=row.directory,
        model=row.model,
        manifest=row.manifest,
        installed_name=row.installed_name,
        outcome=row.outcome,
        smoked_at=row.smoked_at,
        address=row.address,
        detail=row.detail,
        first_token=row.first_token,
        rate=row.rate,
    )


def _table(text: str) -> dict[str, Any]:
    document = json.loads(text)
    if not isinstance(document, dict):
        raise TypeError("a JSON column does not hold an object")
    return document
