"""A models directory of Ollama's on this machine as a source. Nothing in it is changed, and nothing in it is taken on trust."""

import difflib
import stat
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest, SourceFile
from modelvault.errors import DigestMismatch, SourceUnavailable, UsageProblem
from modelvault.formats.ollama import (
    MANIFEST_FILE,
    MAX_MANIFEST,
    blob_path,
    decode_manifest,
    existing_names,
    listed_files,
)
from modelvault.ollama_name import OllamaName
from modelvault.sources import Snapshot

_MOST_NAMED = 5


class OllamaStore:
    """The models of one store, by Ollama's names."""

    def __init__(self, directory: Path) -> None:
        """Look at a models directory. Raises ``UsageProblem`` if it is none."""
        if not (directory / "manifests").is_dir():
            raise UsageProblem(
                f"{directory} is not a store of Ollama's: it has no directory of manifests",
                hint="name it with --store DIR: it is what OLLAMA_MODELS says, or .ollama/models in the home of Ollama's user",
                path=str(directory),
            )
        self.directory = directory

    def find(self, name: OllamaName) -> OllamaName:
        """Give the name as the store spells it. Raises ``SourceUnavailable`` that suggests the nearest."""
        names = existing_names(self.directory)
        found = name.folded_onto(names)
        if found not in names:
            shown = [str(other) for other in names]
            near = difflib.get_close_matches(str(name), shown, n=_MOST_NAMED) or shown[:_MOST_NAMED]
            hint = f"did you mean {' or '.join(near)}?" if near else "it holds no models at all"
            raise SourceUnavailable(
                f"the store {self.directory} has no model {name}", hint=f"{hint} `ollama list` shows what is there"
            )
        return found

    def snapshot(self, name: OllamaName) -> Snapshot:
        """List the files of a model, having looked that each is there. Raises ``SourceUnavailable`` or ``DigestMismatch``."""
        path = self.directory / "manifests" / name.path
        try:
            # Through links, which some people share their stores by; what comes of it has to be a manifest.
            data = fsio.read_regular(path.resolve(), limit=MAX_MANIFEST)
            manifest = decode_manifest(data)
        except (ValueError, fsio.NotRegular, fsio.TooLarge) as error:
            raise DigestMismatch(
                f"{path} is no manifest: {error}", hint=f"bring the model again: ollama pull {name}", path=str(path)
            ) from error
        commit = Digest.of_bytes(data).hex
        files = listed_files(manifest, commit, len(data))
        snapshot = Snapshot(name.repository, commit, files, license=None, gated=False)
        for file in files:
            self._look(name, file)
        return snapshot

    def place_of(self, name: OllamaName, file: SourceFile) -> Path:
        """Say where a file lies."""
        if file.path == MANIFEST_FILE:
            return self.directory / "manifests" / name.path
        if file.digest is None:
            raise ValueError(f"{file.path} has no digest")
        return self.directory / blob_path(file.digest)

    def _look(self, name: OllamaName, file: SourceFile) -> None:
        place = self.place_of(name, file)
        try:
            status = place.stat()
        except FileNotFoundError as error:
            raise SourceUnavailable(
                f"{name} is not whole in the store: {place} is missing ({file.path})",
                hint=f"bring what is missing: ollama pull {name}",
                path=str(place),
            ) from error
        if not stat.S_ISREG(status.st_mode) or status.st_size != file.size:
            raise DigestMismatch(
                f"{place} ({file.path}) has {status.st_size:,} bytes, not the {file.size:,} that the manifest of {name} says",
                hint=f"it is damaged: remove it, and bring it again with ollama pull {name}",
                path=str(place),
            )
