"""The vault's blobs as an OCI image layout: ``oci-layout``, ``index.json``, ``blobs/sha256/<hex>``.

A blob is written elsewhere on the same file system, verified there, and only then renamed in, mode 0444. Nothing here computes
a digest on the way in: whoever publishes has just computed it from the bytes that were written.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from modelvault import fsio, modelpack
from modelvault.artifact import Digest, Model, ModelName, Recipe, StoredModel
from modelvault.errors import DigestMismatch, InvalidModelFile, ModelvaultError, VaultDamaged

BLOB_MODE = 0o444
_DAMAGED = ".damaged-"

_LIST_LOST = "`modelvault registry rebuild` restores it from the event log; or put a copy of it back"


class Store:
    """One OCI image layout. Changing ``index.json`` needs the vault's lock; adding blobs does not."""

    def __init__(self, root: Path) -> None:
        """Look at the layout in ``root``; ``create`` makes one."""
        self.root = root
        self._blobs = root / "blobs" / "sha256"
        self._index = root / "index.json"

    def create(self) -> None:
        """Make the directories and documents that are not there yet."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        layout = self.root / "oci-layout"
        if not layout.exists():
            fsio.atomic_write(layout, modelpack.OCI_LAYOUT)
        if not self._index.exists():
            self._require_no_blobs()
            self._write(())

    def _require_no_blobs(self) -> None:
        """An empty list beside blobs would have `gc` delete them all."""
        if any(self.blobs()):
            raise VaultDamaged(
                f"{self._index}: the vault has blobs, but the list of its models is gone",
                hint=_LIST_LOST,
                path=str(self._index),
            )

    @property
    def exists(self) -> bool:
        """Whether there is a layout."""
        return (self.root / "oci-layout").is_file()

    @property
    def whole(self) -> bool:
        """Whether ``create`` would have nothing to do."""
        return self.exists and self._blobs.is_dir() and self._index.exists()

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob of a SHA-256 lies, or would lie."""
        if digest.algorithm != "sha256":
            raise ValueError(f"blobs are named by SHA-256, not {digest}")
        return self._blobs / digest.hex

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the blob is there with the right length (its content was verified when it came in)."""
        try:
            return self.blob_path(digest).stat().st_size == size
        except FileNotFoundError:
            return False

    def publish_blob(self, temporary: Path, digest: Digest) -> Path:
        """Rename a verified file of the vault's file system to its place. Raises ``NoSpace`` or ``OSError``."""
        final = self.blob_path(digest)
        fsio.publish(temporary, final, mode=BLOB_MODE)
        return final

    def put_bytes(self, data: bytes) -> Digest:
        """Store a small document as a blob."""
        digest = Digest.of_bytes(data)
        # Compared, not only measured: a document that rotted at rest is mended by publishing its model again.
        if not self.has(digest, len(data)) or self.blob_path(digest).read_bytes() != data:
            fsio.atomic_write(self.blob_path(digest), data, mode=BLOB_MODE)
        return digest

    def read_document(self, digest: Digest) -> bytes:
        """Read a manifest or config and check it against its digest. Raises ``DigestMismatch`` or ``VaultDamaged``."""
        path = self.blob_path(digest)
        try:
            data = fsio.read_regular(path, limit=modelpack.MAX_DOCUMENT)
        except FileNotFoundError as error:
            raise VaultDamaged(
                f"{path}: the vault's index names this blob, but it is not there",
                hint="pull or import the model again, or take it out with `modelvault rm`",
                path=str(path),
            ) from error
        if Digest.of_bytes(data) != digest:
            raise DigestMismatch(
                f"{path} does not have the digest that it is named by",
                hint="it changed on disk: pull or import the model again, or take it out with `modelvault rm`",
                path=str(path),
                expected=str(digest),
                actual=str(Digest.of_bytes(data)),
            )
        return data

    def entries(self) -> tuple[modelpack.IndexEntry, ...]:
        """Read ``index.json`` alone: every model's name and manifest, sorted by name; none where there is no layout yet."""
        return self._read()[0] if self.exists else ()

    def _read(self) -> tuple[tuple[modelpack.IndexEntry, ...], bytes]:
        try:
            data = fsio.read_regular(self._index, limit=modelpack.MAX_DOCUMENT)
        except FileNotFoundError:  # as after a crash while the vault was made
            self._require_no_blobs()
            data = modelpack.encode_entries(())
        try:
            return modelpack.decode_index(data, what=str(self._index)), data
        except InvalidModelFile as error:
            raise VaultDamaged(error.message, hint=_LIST_LOST, path=error.path) from error

    @property
    def listed(self) -> bool:
        """Whether the list of models is there and can be read."""
        try:
            self.entries()
        except VaultDamaged:
            return False
        return True

    def foreign(self) -> tuple[object, ...]:
        """Give what ``index.json`` lists besides models: nobody here knows which blobs that needs."""
        return modelpack.foreign_descriptors(self._read()[1])

    def _write(self, entries: Iterable[modelpack.IndexEntry], foreign: Sequence[object] = ()) -> None:
        fsio.atomic_write(self._index, modelpack.encode_entries(entries, foreign))

    def restore(self, published: Mapping[ModelName, tuple[Digest, Recipe | None]]) -> None:
        """List the models that are known to have been published; the list that could not be read is kept beside the new one.

        Those whose manifest is gone are left out. Raises ``VaultDamaged`` if there are blobs, but none of a published model.
        """
        self._blobs.mkdir(parents=True, exist_ok=True)
        entries = [
            modelpack.IndexEntry(name, manifest, self.blob_path(manifest).stat().st_size, recipe)
            for name, (manifest, recipe) in published.items()
            if self.blob_path(manifest).exists()
        ]
        if not entries:
            self._require_no_blobs()
        if self._index.exists():
            self._index.rename(self._index.with_name("index.json.damaged"))
        self._write(entries)

    def models(self) -> tuple[StoredModel, ...]:
        """Read every model with its manifest and config, sorted by name. Raises for one whose documents are damaged."""
        return tuple(map(self.load, self.entries()))

    def survey(self) -> tuple[tuple[StoredModel, ...], Mapping[modelpack.IndexEntry, ModelvaultError]]:
        """Read every model whose documents are sound, and say of the others what is wrong with them."""
        sound, damaged = [], {}
        for entry in self.entries():
            try:
                sound.append(self.load(entry))
            except ModelvaultError as error:
                damaged[entry] = error
        return tuple(sound), damaged

    def find(self, name: ModelName) -> StoredModel | None:
        """Read one model, or ``None`` if ``index.json`` does not list it."""
        for entry in self.entries():
            if entry.name == name:
                return self.load(entry)
        return None

    def load(self, entry: modelpack.IndexEntry) -> StoredModel:
        """Read a model that is listed from its manifest blob."""
        data = self.read_document(entry.manifest)
        what = str(self.blob_path(entry.manifest))
        config, _ = modelpack.config_digest(data, what=what)
        model = modelpack.decode_manifest(data, self.read_document(config), entry.name, entry.recipe, what=what)
        return StoredModel(model, entry.manifest, len(data))

    def add(self, model: Model, documents: tuple[bytes, bytes] | None = None) -> StoredModel:
        """Publish manifest, config and index entry of a model whose blobs are all there. Replaces one of the same name.

        ``documents`` are the manifest and config that it came with: kept to the byte, since a later version may have written into them
        what this one does not know, and the manifest's digest is the model's identity. ``None``: they are written.
        """
        for file in model.files:
            if not self.has(file.digest, file.size):
                raise VaultDamaged(f"{model.name}: {file.path}: blob {file.digest.short} is not in the vault")
        manifest, config = documents or (modelpack.encode_manifest(model), modelpack.encode_config(model))
        self.put_bytes(config)
        stored = StoredModel(model, self.put_bytes(manifest), len(manifest))
        others = [entry for entry in self.entries() if entry.name != model.name]
        entry = modelpack.IndexEntry(model.name, stored.manifest, stored.manifest_size, model.recipe)
        self._write([*others, entry], self.foreign())
        return stored

    def remove(self, name: ModelName) -> None:
        """Take a model out of ``index.json``; its blobs stay until somebody deletes them."""
        self._write([entry for entry in self.entries() if entry.name != name], self.foreign())

    def blobs(self) -> Iterator[tuple[Digest, int]]:
        """List every blob with its length in bytes; what is not named by a digest is passed over."""
        if not self._blobs.is_dir():
            return
        with os.scandir(self._blobs) as entries:
            for entry in entries:
                try:
                    digest = Digest.sha256(entry.name)
                except ValueError:
                    continue
                yield digest, entry.stat(follow_symlinks=False).st_size

    def blobs_of(self, manifest: Digest) -> dict[Digest, int]:
        """Name the blobs of one model with their length in bytes: its manifest, its config, its files."""
        data = self.read_document(manifest)
        what = str(self.blob_path(manifest))
        config, config_size = modelpack.config_digest(data, what=what)
        model = modelpack.decode_manifest(data, None, ModelName("model"), what=what)
        return {manifest: len(data), config: config_size} | {file.digest: file.size for file in model.files}

    def unneeded(self, without: ModelName | None = None) -> dict[Digest, int]:
        """Name the blobs that no model needs (or would need ``without`` one of them), with their length in bytes.

        Raises ``VaultDamaged`` where that is not known.
        """
        needed: set[Digest] = set()
        for entry in (entry for entry in self.entries() if entry.name != without):
            try:
                needed |= self.blobs_of(entry.manifest).keys()
            except ModelvaultError as error:
                raise VaultDamaged(
                    f"it is not known which blobs {entry.name} needs: {error.message}",
                    hint=f"pull or import {entry.name} again, or take it out with `modelvault rm {entry.name}`, then collect",
                    model=entry.name.text,
                ) from error
        return {digest: size for digest, size in self.blobs() if digest not in needed}

    def freed_by(self, digests: Iterable[Digest]) -> int:
        """Tell how many bytes go with these blobs. What an engine has a hard link to stays until that is gone, too."""
        found = (self.blob_path(digest).stat() for digest in digests)
        return sum(status.st_size for status in found if status.st_nlink == 1)

    def aside_path(self, digest: Digest) -> Path:
        """Say where a blob lies that was set aside."""
        return self._blobs / (_DAMAGED + digest.hex)

    def set_aside(self, digest: Digest, seen: os.stat_result) -> Path | None:
        """Take a blob that turned out to be damaged out of the way, so that nothing takes it for whole any more; say where it lies now.

        ``None``: it is no longer the file that was ``seen``. Nobody may publish meanwhile.
        """
        path = self.blob_path(digest)
        if not os.path.samestat(path.stat(), seen):
            return None
        aside = path.rename(self.aside_path(digest))
        fsio.fsync_directory(path.parent)
        return aside

    def leftovers(self) -> Iterator[Path]:
        """List what was set aside, and what a process that was killed left half written. Only while nobody publishes."""
        for directory in (self.root, self._blobs):
            yield from directory.glob(".*.tmp")
        yield from self._blobs.glob(f"{_DAMAGED}*")

    def freeable(self, without: ModelName | None = None) -> int:
        """Tell how many bytes could be freed: what no model needs (``without`` one of them), and leftovers. Only while nobody publishes."""
        return self.freed_by(self.unneeded(without)) + sum(path.stat().st_size for path in self.leftovers())

    def lacks(self, model: Model) -> tuple[str, ...]:
        """Name the files of a model that are not there in their full length, as after one was set aside."""
        return tuple(file.path for file in model.files if not self.has(file.digest, file.size))

    def delete_blob(self, digest: Digest) -> None:
        """Remove a blob; the caller has made sure that nothing needs it."""
        self.blob_path(digest).unlink(missing_ok=True)
