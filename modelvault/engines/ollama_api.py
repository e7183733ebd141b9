"""Ollama behind an address: a server on another machine or in a container, whose directories cannot be reached.

Files travel by ``POST /api/blobs/<digest>``, which the server hashes, and ``POST /api/create`` makes the model of them. What the
server has on its disk is its own affair: ``verify`` can only ask whether it has the blobs, and the manifest under the same digest.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelvault.artifact import Digest, Model
from modelvault.engines import ollama_store as store
from modelvault.engines.base import (
    NOTHING_FRESH,
    InstalledFile,
    InstallPlan,
    InstallRecord,
    InstallRequest,
    LinkKind,
    LinkMode,
    PlannedFile,
    Removal,
    Target,
)
from modelvault.engines.gguf_merge import digest_of, merged_blocks
from modelvault.engines.ollama_client import OllamaClient
from modelvault.engines.ollama_layout import UNKNOWN, Layout, lay_out, name_for, refusal
from modelvault.engines.place import Wanted, check_source, damaged
from modelvault.errors import EngineRefused, UsageProblem
from modelvault.ollama_name import OllamaName

_BLOCK = 1 << 20
_BLOB = re.compile(r"sha256-([0-9a-f]{64})")


class OllamaApiEngine:
    """The adapter for an Ollama server that is reached by its HTTP API; unlike the others it needs the engine to run."""

    name = "ollama-api"

    def detect(self) -> None:
        """Look for nothing: nobody is asked over the network whom the user did not name."""

    def default(self) -> None:
        """Offer nothing: the user has to say the address."""

    def accepts(self, model: Model) -> str | None:
        """Take what Ollama takes."""
        return refusal(model)

    def plugin_for(self, model: Model) -> str | None:  # noqa: ARG002
        """Nothing."""
        return None

    def needs(self, request: InstallRequest) -> Mapping[str, tuple[str, ...]]:  # noqa: ARG002
        """Nothing: a GGUF file has no code."""
        return {}

    def installed_name(self, request: InstallRequest) -> str:
        """Give the name for ``ollama run``, spelled as the server has it."""
        return str(self._name(request, _client(request.target).models()))

    def _name(self, request: InstallRequest, models: Mapping[str, str]) -> OllamaName:
        return name_for(request).folded_onto([OllamaName.parse(name) for name in models if _is_name(name)])

    def plan(self, request: InstallRequest) -> InstallPlan:
        """Say what would be sent; the server is asked, and nothing changes there."""
        _check_options(request)
        client, layout = _client(request.target), lay_out(request)
        models = client.models()
        name = self._name(request, models)
        made = self._is_made(request, layout, name, models)
        files = []
        for layer in layout.layers:
            there = made or (layer.data is None and layer.digest != UNKNOWN and client.has_blob(layer.digest))
            kind = LinkKind.PRESENT if there else _kind(layer, layout)
            files.append(PlannedFile(Path(layer.path), layer.digest, layer.size, kind, there=there))
        return InstallPlan(self.name, request.target.directory, str(name), tuple(files), layout.warnings)

    def _is_made(self, request: InstallRequest, layout: Layout, name: OllamaName, models: Mapping[str, str]) -> bool:
        """Tell whether the server has this very model by that name. Raises ``EngineRefused`` if it has another."""
        digest, before = models.get(str(name)), request.previous
        if digest is None:
            return False
        if before is None or before.installed_name != str(name) or digest != before.files[-1].digest:
            raise EngineRefused(
                f"Ollama at {request.target.place} has another model named {name} already",
                hint=f"choose another name with --as, or remove it with: ollama rm {name}",
            )
        return before.manifest == str(request.stored.manifest) and before.modelfile == layout.source(Path())

    def install(self, request: InstallRequest) -> InstallRecord:
        """Send what the server lacks and have it make the model; what it says while it does decides."""
        _check_options(request)
        client, layout = _client(request.target), lay_out(request)
        models = client.models()
        name = self._name(request, models)
        if layout.merge is not None and layout.layers[0].digest == UNKNOWN:
            layout = layout.merged(digest_of(layout.merge, lambda _: None))
        if self._is_made(request, layout, name, models) and request.previous is not None:
            return request.previous
        kinds = {
            layer.digest: self._send(client, request, layout, layer) for layer in layout.layers if layer.data is None
        }
        client.create(_creation(layout, name))
        # Releases from 0.30.0 to 0.34.0 keep a rewritten copy instead of the file that was sent: what the model names is what there is.
        used = set(_BLOB.findall(client.modelfile(str(name))))
        files = [
            InstalledFile(layer.path, str(layer.digest), layer.size, kinds[layer.digest])
            for layer in layout.layers
            if layer.data is None and layer.digest.hex in used
        ]
        made = client.models().get(str(name))
        if made is None:
            raise EngineRefused(f"Ollama at {request.target.place} made {name}, but does not list it")
        return InstallRecord(
            self.name,
            request.target.place,
            str(request.model.name),
            str(request.stored.manifest),
            str(name),
            (*files, InstalledFile(f"manifests/{name.path}", made, 0, LinkKind.WRITE)),
            layout.source(Path()),
        )

    def _send(self, client: OllamaClient, request: InstallRequest, layout: Layout, layer: store.Layer) -> LinkKind:
        if client.has_blob(layer.digest):
            return LinkKind.PRESENT
        if layer.digest in layout.files:
            wanted = Wanted.of(request, layout.files[layer.digest])
            check_source(wanted)
            blocks = _file_blocks(wanted.source)
        elif layout.merge is not None:
            wanted = layout.merge.shards[0]
            blocks = merged_blocks(layout.merge)
        else:
            raise EngineRefused(f"{request.model.name}: its parts are not in the vault yet")
        if not client.send_blob(layer.digest, layer.size, _told(blocks, request.on_bytes)):
            raise damaged(wanted)
        return _kind(layer, layout)

    def verify(self, record: InstallRecord, fresh: Mapping[str, Path] = NOTHING_FRESH) -> list[str]:  # noqa: ARG002 (the protocol's)
        """Ask the server whether it has the model under the digest that it had, and its blobs. It hashes nothing again."""
        client = OllamaClient(record.directory)
        *blobs, manifest = record.files
        listed = client.models().get(record.installed_name)
        problems = []
        if listed is None:
            problems.append(f"{record.directory} has no model {record.installed_name}")
        elif listed != manifest.digest:
            problems.append(f"{record.installed_name} at {record.directory} is another model by now")
        problems += [
            f"{record.directory} lacks the blob {file.digest}"
            for file in blobs
            if not client.has_blob(Digest.parse(file.digest))
        ]
        return problems

    def uninstall(self, record: InstallRecord) -> Removal:
        """Have the server remove the model, if it is still the one that was made."""
        client = OllamaClient(record.directory)
        listed = client.models().get(record.installed_name)
        if listed is None:
            return Removal()
        if listed != record.files[-1].digest:
            return Removal(kept=(record.installed_name,))
        client.delete(record.installed_name)
        return Removal((record.installed_name,))

    def recipe(self, record: InstallRecord) -> list[str]:
        """``ollama run``, told where the server is."""
        return [f"OLLAMA_HOST={shlex.quote(record.directory)} {shlex.join(['ollama', 'run', record.installed_name])}"]


def _client(target: Target) -> OllamaClient:
    return OllamaClient(target.place)


def _check_options(request: InstallRequest) -> None:
    if request.link in {LinkMode.HARD, LinkMode.REFLINK}:
        raise EngineRefused("nothing can be linked over a network", hint="leave out --link")
    if request.owner is not None:
        raise EngineRefused("the server decides to whom its files belong", hint="leave out --owner")


def _kind(layer: store.Layer, layout: Layout) -> LinkKind:
    if layer.data is not None:
        return LinkKind.WRITE
    return LinkKind.COPY if layer.digest in layout.files else LinkKind.MERGE


def _is_name(text: str) -> bool:
    """Tell a name that we could give as well from the cloud's models, which servers list too."""
    try:
        OllamaName.parse(text)
    except UsageProblem:
        return False
    return True


def _file_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as reader:
        while block := reader.read(_BLOCK):
            yield block


def _told(blocks: Iterator[bytes], on_bytes: Callable[[int], object]) -> Iterator[bytes]:
    for block in blocks:
        yield block
        on_bytes(len(block))


def _creation(layout: Layout, name: OllamaName) -> dict[str, Any]:
    """Write the request that makes the model (api.CreateRequest, Ollama 0.24.0)."""
    modelfile = layout.modelfile
    files = {
        layer.media: {layer.origin or layer.media: str(layer.digest)} for layer in layout.layers if layer.data is None
    }
    request: dict[str, Any] = {"model": str(name), "files": files["model"] | files.get("projector", {})}
    if "adapter" in files:
        request["adapters"] = files["adapter"]
    for keyword in ("TEMPLATE", "SYSTEM", "RENDERER", "PARSER", "REQUIRES"):
        if value := modelfile.last(keyword):
            request[keyword.lower()] = value
    if licenses := modelfile.all("LICENSE"):
        request["license"] = list(licenses)
    if modelfile.parameters:
        request["parameters"] = json.loads(store.encode_parameters(modelfile))
    if modelfile.messages:
        request["messages"] = [{"role": role, "content": content} for role, content in modelfile.messages]
    return request
