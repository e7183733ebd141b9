"""The vault and its layout: what is listed is whole, what is needed stays, what the registry missed is caught up with."""

from pathlib import Path

import pytest

from modelvault import fsio
from modelvault.artifact import Digest, FileSpec, Model, ModelName, Origin, Recipe, Traits
from modelvault.config import Config
from modelvault.errors import DigestMismatch, InvalidModelFile, ModelvaultError, UsageProblem, VaultLocked
from modelvault.store import Store, hash_file
from modelvault.vault import Vault


def put(store: Store, data: bytes, path: str) -> FileSpec:
    """Publish bytes as a blob and describe them as a file."""
    temporary = store.root / "temporary"
    temporary.write_bytes(data)
    digest = Digest.of_bytes(data)
    store.publish_blob(temporary, digest)
    return FileSpec(path, len(data), digest)


def model(name: str, *files: FileSpec) -> Model:
    return Model(ModelName(name), Origin("folder"), files, Traits("gguf"), recipe=Recipe(modelfile="SYSTEM hi"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.create()
    return store


def test_layout_is_valid_from_the_start(store: Store) -> None:
    """Breaks if other programs cannot open an empty vault."""
    assert (store.root / "oci-layout").read_bytes() == b'{"imageLayoutVersion":"1.0.0"}'
    assert store.models() == ()


def test_models_come_back(store: Store) -> None:
    """Breaks if a published model is not read back as it was, its recipe included."""
    wanted = model("org/a", put(store, b"weights", "a.gguf"))
    stored = store.add(wanted)
    assert store.find(ModelName("org/a")) == stored
    assert stored.model == wanted
    assert store.find(ModelName("other")) is None


def test_blobs_are_read_only_and_named_by_content(store: Store) -> None:
    """Breaks if a blob can be changed by accident, or lies under another name than its SHA-256."""
    file = put(store, b"weights", "a.gguf")
    path = store.blob_path(file.digest)
    assert path.stat().st_mode & 0o777 == 0o444
    assert hash_file(path) == file.digest


def test_a_model_without_its_blobs_is_not_listed(store: Store) -> None:
    """Breaks if `list` shows what cannot be used."""
    with pytest.raises(InvalidModelFile, match="not in the vault"):
        store.add(model("a", FileSpec("a.gguf", 7, Digest.of_bytes(b"nothing"))))
    assert store.models() == ()


def test_removal_frees_only_what_nothing_needs(store: Store) -> None:
    """Breaks if removing one model costs another its files, or leaves bytes for ever."""
    shared, own = put(store, b"shared", "s.json"), put(store, b"own", "own.gguf")
    store.add(model("a", shared, own))
    store.add(model("b", shared))
    store.remove(ModelName("a"))
    unneeded = store.unneeded()
    assert own.digest in unneeded
    assert shared.digest not in unneeded
    store.remove(ModelName("b"))
    assert shared.digest in store.unneeded()


def test_a_changed_manifest_is_refused(store: Store) -> None:
    """Breaks if a document that rotted at rest is believed."""
    stored = store.add(model("a", put(store, b"weights", "a.gguf")))
    path = store.blob_path(stored.manifest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"a.gguf", b"b.gguf"))
    with pytest.raises(DigestMismatch):
        store.models()
    assert [entry.name.text for entry in store.entries()] == ["a"], "the other models must still be manageable"


def test_a_new_commit_takes_the_name(store: Store) -> None:
    """Breaks if an update leaves two models of one name."""
    store.add(model("a", put(store, b"old", "a.gguf")))
    new = store.add(model("a", put(store, b"new", "a.gguf")))
    assert store.models() == (new,)


def test_the_registry_catches_up(tmp_path: Path) -> None:
    """Breaks if a crash between log and registry is never mended: history would differ between the two."""
    with Vault.open(tmp_path, config=Config()) as vault:
        vault.record("trust", {"key": "sha256:1", "name": "a"})
        vault.events.append("trust", {"key": "sha256:2", "name": "b"})
    with Vault.open(tmp_path, config=Config()) as vault:
        assert [event.kind for event in vault.registry.events()] == ["vault-created", "trust", "trust"]


def test_a_missing_registry_says_what_to_do(tmp_path: Path) -> None:
    """Breaks if an empty registry quietly takes the place of a lost one."""
    with Vault.open(tmp_path, config=Config()) as vault:
        vault.publish(model("a", put(vault.store, b"weights", "a.gguf")), {})
    (tmp_path / "registry.sqlite").unlink()
    with Vault.open(tmp_path, config=Config()) as vault, pytest.raises(ModelvaultError) as caught:
        _ = vault.registry
    assert "registry rebuild" in (caught.value.hint or "")


def test_lost_history_is_noticed(tmp_path: Path) -> None:
    """Breaks if deleting the event log ends the protection against old bundles, at once or after the next event."""
    with Vault.open(tmp_path, config=Config()) as vault:
        seen = [vault.history_lost]
        vault.publish(model("a", put(vault.store, b"weights", "a.gguf")), {})
        seen.append(vault.history_lost)
        vault.events.path.unlink()
        seen.append(vault.history_lost)
        vault.record("check", {"model": "a", "outcome": "ok"})
        seen.append(vault.history_lost)
        vault.accept_lost_history()
        seen.append(vault.history_lost)
    assert seen == [False, False, True, True, False]


def test_looking_makes_no_vault(tmp_path: Path) -> None:
    """Breaks if a plan leaves a vault behind."""
    with Vault.prospective(tmp_path / "vault", config=Config()) as vault:
        assert vault.store.entries() == ()
        assert vault.installs() == ()
    assert not (tmp_path / "vault").exists()


def test_locks(tmp_path: Path) -> None:
    """Breaks if bundling keeps others from publishing, or removal does not wait for both."""
    config = Config(lock_wait=0)
    with Vault.open(tmp_path, config=config) as one, Vault.open(tmp_path, config=config) as two:
        with one.holding(), two.publishing():
            pass
        with one.holding(), pytest.raises(VaultLocked), two.removing():
            pass
        with one.publishing(), pytest.raises(VaultLocked), two.publishing():
            pass


def test_no_vault_is_not_made_by_reading(tmp_path: Path) -> None:
    """Breaks if a typing mistake in MODELVAULT_HOME makes an empty vault that looks like the real one."""
    with pytest.raises(UsageProblem, match="no vault"):
        Vault.open(tmp_path / "typo", config=Config(), create=False)
    assert not (tmp_path / "typo").exists()


def test_names_are_found_as_people_type_them(tmp_path: Path) -> None:
    """Breaks if a name in another case is not found, or an unknown one gets no suggestion."""
    with Vault.open(tmp_path, config=Config()) as vault:
        vault.publish(model("org/Tiny-GGUF", put(vault.store, b"weights", "a.gguf")), {})
        assert vault.model(ModelName("ORG/tiny-gguf")).model.name.text == "org/Tiny-GGUF"
        with pytest.raises(UsageProblem) as caught:
            vault.model(ModelName("tiny"))
        assert "org/Tiny-GGUF" in (caught.value.hint or "")


def test_a_lock_file_may_be_removed(tmp_path: Path) -> None:
    """Breaks if somebody who tidies up lets two processes hold one lock."""
    path = tmp_path / "lock"
    with fsio.FileLock(path):
        path.unlink()
    with fsio.FileLock(path), pytest.raises(VaultLocked), fsio.FileLock(path):
        pass
