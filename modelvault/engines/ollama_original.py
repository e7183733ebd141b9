"""Installing a model that came from Ollama: its own manifest, config and layers, byte for byte, not new ones that say the same.

Such a model has all of them as files. The one whose SHA-256 is the model's commit is the manifest.
"""

from modelvault.artifact import Digest, FileSpec
from modelvault.engines.base import InstallRequest
from modelvault.engines.ground import refusals
from modelvault.engines.ollama_layout import Layout, name_for
from modelvault.engines.ollama_store import Layer, dangers, read_manifest
from modelvault.engines.place import Wanted, damaged
from modelvault.errors import InvalidModelFile
from modelvault.formats.modelfile import parse
from modelvault.formats.ollama import CONFIG_FILE, CONFIG_TYPE, Descriptor, OllamaManifest, decode_manifest


def lay_out_original(request: InstallRequest) -> Layout | None:
    """Lay a model out as Ollama had it; ``None`` where it did not come from there, or another Modelfile is wanted.

    Raises ``DigestMismatch`` for a damaged manifest in the vault, ``InvalidModelFile`` for one that names what is not there.
    """
    model = request.model
    if model.origin.kind != "ollama" or request.modelfile is not None:
        return None
    kept = next((file for file in model.files if file.digest.hex == model.origin.commit), None)
    if kept is None:
        return None
    files = {file.digest: file for file in model.files if file != kept}
    manifest = _manifest(Wanted.of(request, kept), files)
    with refusals(request.target.directory):
        warnings = tuple(dangers(request.target.directory))
    return Layout(
        name_for(request),
        parse((model.recipe and model.recipe.modelfile) or ""),
        files,
        tuple(Layer(layer.kind, layer.digest, layer.size) for layer in manifest.layers),
        Layer(CONFIG_TYPE, manifest.config.digest, manifest.config.size),
        merge=None,
        warnings=warnings,
        kept=Wanted.of(request, kept),
    )


def _manifest(kept: Wanted, files: dict[Digest, FileSpec]) -> OllamaManifest:
    if not kept.source.exists():
        # An import is planned before anything was received: then it is enough to know which blobs there will be.
        blobs = {file.path: Descriptor("", file.digest, file.size) for file in files.values()}
        config = blobs.pop(CONFIG_FILE, Descriptor("", kept.file.digest, kept.file.size))
        return OllamaManifest(config, tuple(blobs.values()))
    try:
        with refusals(kept.source):
            data = read_manifest(kept.source)
        if Digest.of_bytes(data) != kept.file.digest:
            raise damaged(kept)
        manifest = decode_manifest(data)
        lacking = next((layer for layer in (manifest.config, *manifest.layers) if layer.digest not in files), None)
        if lacking is not None:
            raise ValueError(f"it names {lacking.digest}, which the model does not have")
    except ValueError as error:
        raise InvalidModelFile(
            kept.file.path, "ollama-manifest", f"is not the manifest of these files: {error}"
        ) from error
    return manifest
