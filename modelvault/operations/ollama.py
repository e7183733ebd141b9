"""What is particular about a model from Ollama, whether it comes from a registry or from a store."""

import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import FileReport, Recipe, SourceFile
from modelvault.errors import InvalidModelFile
from modelvault.formats.ollama import CONFIG_FILE, MANIFEST_FILE, MAX_MANIFEST, decode_manifest
from modelvault.formats.ollama_layers import MAX_TEXT, TEXTS, modelfile_of
from modelvault.ollama_name import DEFAULT_HOST, OllamaName

_MODEL = "model.gguf"


def registry_address(name: OllamaName, configured: str | None) -> str:
    """Find the registry of a name: the one that was ``configured`` in place of Ollama's own, else the name's host.

    Plain HTTP is for this very machine alone, where the user does not write it out.
    """
    if name.host.lower() == DEFAULT_HOST:
        return configured or f"https://{DEFAULT_HOST}"
    return f"{'http' if _is_loopback(name.host.partition(':')[0]) else 'https'}://{name.host}"


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_layers(name: str, files: Sequence[SourceFile]) -> None:
    """Refuse, before any byte is fetched, what is no GGUF model. Raises ``InvalidModelFile`` (rule ``ollama-model``)."""
    if not any(file.path == _MODEL for file in files):
        raise InvalidModelFile(
            name,
            "ollama-model",
            f"none of its {len(files)} layers is a GGUF model: it runs in Ollama's cloud, or is kept tensor by tensor",
            hint="take another tag of it, or its GGUF or safetensors from the Hub: modelvault pull org/name",
        )


def recipe_in_layers(name: OllamaName, files: Mapping[str, Path]) -> tuple[Recipe, tuple[str, ...]]:
    """Make the recipe of a model from its layers, with warnings of what no Modelfile can say; ``files`` maps paths to bytes.

    Raises ``InvalidModelFile`` (rule ``ollama-layer``) for layers that Ollama could not read either.
    """
    try:
        manifest = decode_manifest(fsio.read_regular(files[MANIFEST_FILE], limit=MAX_MANIFEST))
        wanted = {path for path, layer in manifest.files().items() if layer.kind in TEXTS} | {CONFIG_FILE}
        small = {path for path in wanted if files[path].stat().st_size <= MAX_TEXT}
        text, unsaid = modelfile_of(manifest, {path: files[path].read_bytes() for path in small})
    except ValueError as error:
        raise InvalidModelFile(
            str(name), "ollama-layer", f"one of its layers is not what it should be: {error}"
        ) from error
    warnings = []
    if lost := [*unsaid, *sorted(wanted - small)]:
        warnings.append(
            f"its Modelfile leaves out {', '.join(lost)}, which none can say today; Ollama itself gets the layers as they are"
        )
    return Recipe(ollama_name=str(name), modelfile=text or None), tuple(warnings)


def license_of(reports: Mapping[str, FileReport]) -> str | None:
    """Give the license that the weights name, if they do: Ollama has its text only."""
    report = reports.get(_MODEL)
    named = report.metadata.get("general.license") if report else None
    return named if isinstance(named, str) and named and named.isprintable() else None
