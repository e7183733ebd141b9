"""The JSON documents of the vault's OCI image layout: pure encode and decode, standard library only.

A model's manifest is a CNCF ModelPack artifact (https://github.com/modelpack/model-spec): one raw layer per file, annotated with
the file's path. No time stamps, keys in a fixed order: the same files from the same commit give the same digest on any machine.
The model's *name* and recipe are not part of the manifest but annotations of its descriptor in ``index.json``.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from modelvault.artifact import Digest, FileRole, FileSpec, Model, ModelName, Origin, Recipe, StoredModel, Traits
from modelvault.errors import InvalidModelFile, ModelvaultError
from modelvault.strictjson import decode_object

OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
LAYER_TYPES = {
    FileRole.WEIGHT: "application/vnd.cncf.model.weight.v1.raw",
    FileRole.CONFIG: "application/vnd.cncf.model.weight.config.v1.raw",
    FileRole.CODE: "application/vnd.cncf.model.code.v1.raw",
    FileRole.DOC: "application/vnd.cncf.model.doc.v1.raw",
}
FILE_PATH = "org.cncf.model.filepath"
REF_NAME = "org.opencontainers.image.ref.name"
PREFIX = "dev.modelvault."
NAME = PREFIX + "name"
RECIPE = PREFIX + "recipe"
SOURCE = PREFIX + "source"
UPSTREAM = PREFIX + "upstream"
REVISION = "org.opencontainers.image.revision"
LICENSES = "org.opencontainers.image.licenses"
LICENSE_LINK = PREFIX + "license-link"

MAX_DOCUMENT = 16 << 20
"""No manifest, config or index of a layout may be larger than this many bytes."""

# OCI image layout: alphanumerics joined by single separators out of -._:@/+ (or a double hyphen).
_REF_GRAMMAR = re.compile(
    r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*(?:/[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*)*"
)
_ESCAPED = "escaped"


def _dump(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode("utf-8")


def load_object(data: bytes, what: str) -> dict[str, Any]:
    """Decode an untrusted document of a layout, strictly. Raises ``InvalidModelFile`` (rule ``json``)."""
    try:
        if len(data) > MAX_DOCUMENT:
            raise ValueError("it is too large")
        return decode_object(data)
    except ValueError as error:
        raise InvalidModelFile(what, "json", str(error)) from error


def reference_name(name: ModelName) -> str:
    """Give the ``ref.name`` of a model: its name where the OCI grammar admits it, else a form in which all else is ``xHH``."""
    if _REF_GRAMMAR.fullmatch(name.text) and name.organization != _ESCAPED:
        return name.text
    # The x is escaped as well, and so is a name that begins like a form, so that no two names share one.
    escaped = "".join(
        character if (character.isalnum() and character != "x") or character in "/:" else f"x{ord(character):02x}"
        for character in name.text
    )
    return f"{_ESCAPED}/{escaped}"


def encode_config(model: Model) -> bytes:
    """Write the ModelPack config of a model; nothing in it depends on the machine or the time."""
    traits = model.traits
    descriptor: dict[str, Any] = {}
    if model.origin.repository:
        descriptor |= {"name": model.origin.repository, "sourceURL": source_url(model.origin)}
    if model.origin.commit:
        descriptor["revision"] = model.origin.commit
    if model.license:
        descriptor["licenses"] = [model.license]
    config = {
        "architecture": traits.architecture,
        "format": traits.format,
        "quantization": traits.quantization,
        "paramSize": str(traits.parameters) if traits.parameters else None,
    }
    return _dump(
        {
            "descriptor": descriptor,
            "config": {key: value for key, value in config.items() if value is not None},
            "modelfs": {"type": "layers", "diffIds": [str(file.digest) for file in model.files]},
        }
    )


def source_url(origin: Origin) -> str:
    """Name the page of a model's source; canonical, whatever mirror the bytes came through."""
    return (
        f"https://huggingface.co/{origin.repository}" if origin.kind == "hub" else f"{origin.kind}:{origin.repository}"
    )


def encode_manifest(model: Model) -> bytes:
    """Write the manifest of a model. Its SHA-256 is the model's identity."""
    config = encode_config(model)
    annotations = {SOURCE: f"{model.origin.kind}:{model.origin.repository or ''}"}
    if model.origin.commit:
        annotations[REVISION] = model.origin.commit
    if model.license:
        annotations[LICENSES] = model.license
    if model.license_link:
        annotations[LICENSE_LINK] = model.license_link
    if model.traits.context_length:
        annotations[PREFIX + "context-length"] = str(model.traits.context_length)
    return _dump(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": str(Digest.of_bytes(config)), "size": len(config)},
            "layers": [_layer(file) for file in model.files],
            "annotations": annotations,
        }
    )


def _layer(file: FileSpec) -> dict[str, Any]:
    annotations = {FILE_PATH: file.path}
    if file.upstream is not None:
        annotations[UPSTREAM] = str(file.upstream)
    return {
        "mediaType": LAYER_TYPES[file.role],
        "digest": str(file.digest),
        "size": file.size,
        "annotations": annotations,
    }


def store_form(model: Model) -> StoredModel:
    """Give the model together with the digest and size of its manifest."""
    manifest = encode_manifest(model)
    return StoredModel(model, Digest.of_bytes(manifest), len(manifest))


def decode_manifest(
    manifest: bytes, config: bytes | None, name: ModelName, recipe: Recipe | None = None, *, what: str = "manifest"
) -> Model:
    """Read a model back from its manifest and, where it is at hand, its config (which carries the traits).

    Raises ``InvalidModelFile`` for anything that is not a ModelPack manifest as we write them.
    """
    document = load_object(manifest, what)
    try:
        if document["artifactType"] != ARTIFACT_TYPE:
            raise ValueError(f"artifactType is {document['artifactType']!r}")
        if config is not None and Digest.of_bytes(config) != Digest.parse(document["config"]["digest"]):
            raise ValueError("the config has another digest than the manifest says")
        annotations = document.get("annotations", {})
        kind, _, repository = annotations[SOURCE].partition(":")
        context = annotations.get(PREFIX + "context-length")
        files = tuple(_file(layer) for layer in document["layers"])
        traits = _traits(load_object(config, what) if config is not None else {}, int(context) if context else None)
        return Model(
            name=name,
            origin=Origin(kind, repository or None, annotations.get(REVISION)),
            files=files,
            traits=traits,
            license=annotations.get(LICENSES),
            recipe=recipe,
            license_link=annotations.get(LICENSE_LINK),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ModelvaultError) as error:
        raise InvalidModelFile(what, "modelpack-manifest", f"not a model manifest: {error}") from error


def config_digest(manifest: bytes, *, what: str = "manifest") -> tuple[Digest, int]:
    """Read the digest and size in bytes of a manifest's config."""
    document = load_object(manifest, what)
    try:
        return Digest.parse(document["config"]["digest"]), _size(document["config"]["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidModelFile(what, "modelpack-manifest", f"not a model manifest: {error}") from error


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
        raise ValueError(f"not a size: {value!r}")
    return value


def _file(layer: dict[str, Any]) -> FileSpec:
    annotations = layer["annotations"]
    upstream = annotations.get(UPSTREAM)
    digest = Digest.parse(layer["digest"])
    if digest.algorithm != "sha256":
        raise ValueError(f"a layer's digest is {digest}")
    return FileSpec(annotations[FILE_PATH], _size(layer["size"]), digest, Digest.parse(upstream) if upstream else None)


def _traits(config: dict[str, Any], context_length: int | None) -> Traits:
    table = config.get("config", {})
    parameters = table.get("paramSize")
    return Traits(
        format=str(table.get("format", "unknown")),
        architecture=table.get("architecture"),
        quantization=table.get("quantization"),
        parameters=int(parameters) if parameters else None,
        context_length=context_length,
    )


def encode_recipe(recipe: Recipe) -> str:
    """Write a recipe as one line of JSON; keys that are not set are left out."""
    table: dict[str, Any] = {}
    if recipe.ollama_name:
        table["ollama_name"] = recipe.ollama_name
    if recipe.modelfile:
        table["modelfile"] = recipe.modelfile
    if recipe.vllm_arguments:
        table["vllm_arguments"] = list(recipe.vllm_arguments)
    return _dump(table).decode("utf-8")


def decode_recipe(text: str, *, what: str = "recipe") -> Recipe:
    """Read a recipe; raises ``InvalidModelFile`` for unknown keys or types."""
    table = load_object(text.encode("utf-8"), what)
    arguments = table.pop("vllm_arguments", [])
    name = table.pop("ollama_name", None)
    modelfile = table.pop("modelfile", None)
    well_typed = (
        not table
        and isinstance(arguments, list)
        and all(isinstance(argument, str) for argument in arguments)
        and isinstance(name, str | None)
        and isinstance(modelfile, str | None)
    )
    if not well_typed:
        raise InvalidModelFile(what, "recipe", "not a recipe that this version understands")
    return Recipe(name, modelfile, tuple(arguments))


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """What ``index.json`` says of one model: its name, its manifest (digest, size in bytes) and its recipe."""

    name: ModelName
    manifest: Digest
    manifest_size: int
    recipe: Recipe | None = None


def encode_index(models: Iterable[StoredModel]) -> bytes:
    """Write the ``index.json`` that lists these models."""
    return encode_entries(
        IndexEntry(stored.model.name, stored.manifest, stored.manifest_size, stored.model.recipe) for stored in models
    )


def encode_entries(entries: Iterable[IndexEntry], foreign: Sequence[object] = ()) -> bytes:
    """Write ``index.json``: one descriptor per model, sorted by name, then those of other programs as they were."""
    return _dump(
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [
                *(_descriptor(entry) for entry in sorted(entries, key=lambda entry: entry.name)),
                *foreign,
            ],
        }
    )


def _descriptor(entry: IndexEntry) -> dict[str, Any]:
    annotations = {NAME: entry.name.text, REF_NAME: reference_name(entry.name)}
    if entry.recipe is not None:
        annotations[RECIPE] = encode_recipe(entry.recipe)
    return {
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "digest": str(entry.manifest),
        "size": entry.manifest_size,
        "annotations": annotations,
    }


def decode_index(data: bytes, *, what: str = "index.json") -> tuple[IndexEntry, ...]:
    """Read ``index.json``; descriptors that are not models of ours are passed over. Raises ``InvalidModelFile``."""
    document = load_object(data, what)
    try:
        entries = []
        for descriptor in document["manifests"]:
            annotations = descriptor.get("annotations") or {}
            if NAME not in annotations:
                continue
            recipe = annotations.get(RECIPE)
            entries.append(
                IndexEntry(
                    ModelName(annotations[NAME]),
                    Digest.parse(descriptor["digest"]),
                    _size(descriptor["size"]),
                    decode_recipe(recipe, what=what) if recipe else None,
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError, ModelvaultError) as error:
        raise InvalidModelFile(what, "oci-index", f"not an OCI image index: {error}") from error
    return tuple(entries)


def foreign_descriptors(data: bytes) -> tuple[object, ...]:
    """Give what an ``index.json`` that ``decode_index`` takes lists besides models."""
    manifests = load_object(data, "index.json")["manifests"]
    return tuple(descriptor for descriptor in manifests if NAME not in (descriptor.get("annotations") or {}))
