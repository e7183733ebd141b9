"""The vault and its layout: what is listed is whole, what is needed stays, what the registry missed is caught up with."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from registry_values import mirrored

from modelvault.artifact import Digest, FileSpec, Model, ModelName, Origin, Recipe, Traits
from modelvault.config import Config
from modelvault.errors import DigestMismatch, ModelvaultError, PartlyDone, UsageProblem, VaultDamaged, VaultLocked
from modelvault.eventlog import Event, EventLog
from modelvault.fsio import hash_file
from modelvault.locks import FileLock
from modelvault.modelpack import OCI_LAYOUT, store_form
from modelvault.operations.list_ import list_models
from modelvault.operations.publishing import is_published
from modelvault.operations.registry import rebuild
from modelvault.operations.rm import remove
from modelvault.progress import NoProgress
from modelvault.registry import Registry
from modelvault.results.models import RebuildResult
from modelvault.store import Store
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
    with pytest.raises(VaultDamaged, match="not in the vault"):
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
        assert [kind for _, kind, _ in mirrored(vault.registry)] == ["vault-created", "trust", "trust"]


def install(name: str = "tiny") -> dict[str, Any]:
    place = {"engine": "folder", "directory": "/srv", "installed_name": name}
    return {**place, "model": name, "manifest": f"sha256:{'1' * 64}"}


def test_an_event_is_applied_before_the_next_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if an older event of a slower process is applied last: what it installed would be back after its removal."""
    config = Config(lock_wait=0)
    with Vault.open(tmp_path, config=config) as slow, Vault.open(tmp_path, config=config) as quick:
        assert slow.registry.installs() == quick.registry.installs() == ()
        append = slow.events.append

        def interrupted(kind: str, data: Mapping[str, Any]) -> Event:
            event = append(kind, data)
            with pytest.raises(VaultLocked):
                quick.record("uninstall", install())
            return event

        monkeypatch.setattr(slow.events, "append", interrupted)
        slow.record("install", install())
        quick.record("uninstall", install())
        assert quick.registry.installs() == ()


def test_what_a_killed_process_logged_comes_first(tmp_path: Path) -> None:
    """Breaks if the event of a process that was killed before it applied it undoes what others logged after it."""
    with Vault.open(tmp_path, config=Config()) as vault:
        assert vault.registry.installs() == ()
        vault.events.append("install", install())
        vault.record("uninstall", install())
        assert vault.registry.installs() == ()
    with Vault.open(tmp_path, config=Config()) as vault:
        assert vault.registry.installs() == ()
        assert len(vault.registry.installs(removed=True)) == 1


def rebuild_registry(vault: Vault) -> RebuildResult:
    """Rebuild; the weights in these tests are none, which costs their metadata and nothing else."""
    with pytest.raises(PartlyDone) as caught:
        rebuild(vault, NoProgress())
    assert isinstance(caught.value.result, RebuildResult)
    return caught.value.result


def cut(log: Path) -> None:
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))


def edit(log: Path) -> None:
    first, newline, last = log.read_bytes().rstrip(b"\n").rpartition(b"\n")
    log.write_bytes(first + newline + last.replace(b'"sequence":20', b'"sequence":10') + b"\n")


def replace(log: Path) -> None:
    log.unlink()
    other = EventLog(log)
    other.append("vault-created", {"vault": "another"})
    for number in range(9):
        other.append("trust", {"key": str(number)})


@pytest.mark.parametrize("change", [cut, edit, replace])
@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_log_that_lost_something_is_noticed(tmp_path: Path, change: Callable[[Path], None], rebuilt: bool) -> None:
    """Breaks if an older copy of the log, an edited last line or another vault's log ends the protection against old bundles."""
    imported = {"index": "0", "label": "models", "sequence": 20, "key": "sha256:1", "models": []}
    with Vault.open(tmp_path, config=Config()) as vault:
        vault.publish(model("a", put(vault.store, b"weights", "a.gguf")), {})
        vault.record("bundle-imported", imported)
        assert not vault.history_lost
    change(tmp_path / "events.jsonl")
    if rebuilt:
        with Vault.open(tmp_path, config=Config()) as vault:
            rebuild_registry(vault)
    with Vault.open(tmp_path, config=Config()) as vault:
        assert vault.history_lost
        vault.record("check", {"model": "a", "outcome": "ok"})
    with Vault.open(tmp_path, config=Config()) as vault:
        assert vault.history_lost
        assert [number for number, _, _ in mirrored(vault.registry)] == [event.number for event in vault.events.read()]
        vault.accept_lost_history()
        assert not vault.history_lost


def test_a_lost_list_is_restored_from_the_log(tmp_path: Path) -> None:
    """Breaks if the loss of index.json costs every model, though their manifests are there and the log names them."""
    with Vault.open(tmp_path, config=Config()) as vault:
        for name in ("a", "b", "gone"):
            vault.publish(model(name, put(vault.store, name.encode(), "a.gguf")), {})
        vault.publish(model("b", put(vault.store, b"newer", "a.gguf")), {})
        remove(vault, ModelName("gone"))
        before, index = vault.store.models(), (tmp_path / "index.json").read_bytes()
    for damage in (None, b"{"):
        (tmp_path / "index.json").unlink()
        if damage:
            (tmp_path / "index.json").write_bytes(damage)
        with Vault.prospective(tmp_path, config=Config()) as vault:
            assert rebuild_registry(vault).listed == ("a", "b")
            assert vault.store.models() == before
        assert (tmp_path / "index.json").read_bytes() == index
    assert (tmp_path / "index.json.damaged").read_bytes() == b"{"


def test_a_lost_list_that_the_log_does_not_know_is_not_made_up(tmp_path: Path) -> None:
    """Breaks if an empty list takes the place of a lost one: `gc` would then delete every model."""
    with Vault.open(tmp_path, config=Config()) as vault:
        vault.publish(model("a", put(vault.store, b"weights", "a.gguf")), {})
    (tmp_path / "index.json").unlink()
    (tmp_path / "events.jsonl").unlink()
    with Vault.prospective(tmp_path, config=Config()) as vault, pytest.raises(VaultDamaged, match="is gone"):
        rebuild(vault, NoProgress())
    assert not (tmp_path / "index.json").exists()


def test_what_other_programs_listed_stays(store: Store) -> None:
    """Breaks if publishing or removing a model takes an image out of the layout that another program put there."""
    store.add(model("a", put(store, b"weights", "a.gguf")))
    foreign = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": f"sha256:{'0' * 64}", "size": 2}
    index = json.loads((store.root / "index.json").read_bytes())
    index["manifests"].insert(0, foreign)
    (store.root / "index.json").write_text(json.dumps(index))
    store.add(model("b", put(store, b"weights", "b.gguf")))
    store.remove(ModelName("a"))
    assert [entry.name.text for entry in store.entries()] == ["b"]
    assert store.foreign() == (foreign,)


def test_a_crash_while_publishing_is_made_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a model is taken for published though its event was never logged: the log could not restore the list."""
    with Vault.open(tmp_path, config=Config()) as vault:
        wanted = model("a", put(vault.store, b"weights", "a.gguf"))
        with monkeypatch.context() as patch:
            patch.setattr(vault, "record", interrupt)
            with pytest.raises(KeyboardInterrupt):
                vault.publish(wanted, {})
        assert not is_published(vault, store_form(wanted))
        vault.publish(wanted, {})
        assert is_published(vault, store_form(wanted))


@pytest.mark.parametrize(
    ("owner", "step"), [(Vault, "record"), (Store, "remove"), (Registry, "forget_model"), (Store, "unneeded")]
)
def test_a_crash_while_removing_brings_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, step: str
) -> None:
    """Breaks if a model that was already gone is listed again after a crash in `rm` and the loss of index.json."""
    with Vault.open(tmp_path, config=Config()) as vault:
        for name in ("a", "gone"):
            vault.publish(model(name, put(vault.store, name.encode(), "a.gguf")), {})

        done = getattr(owner, step)

        def crash_after(*arguments: Any) -> None:
            done(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, step, crash_after)
            with pytest.raises(KeyboardInterrupt):
                remove(vault, ModelName("gone"))
    (tmp_path / "index.json").unlink()
    with Vault.prospective(tmp_path, config=Config()) as vault:
        assert rebuild_registry(vault).listed == ("a",)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_blob_that_was_replaced_is_not_moved_aside(store: Store) -> None:
    """Breaks if a sound blob is taken away that another process brought while `verify` read the damaged one."""
    file = put(store, b"weights", "a.gguf")
    path = store.blob_path(file.digest)
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    seen = path.stat()
    put(store, b"weights", "a.gguf")
    assert not store.set_aside(file.digest, seen)
    assert hash_file(path) == file.digest
    assert store.set_aside(file.digest, path.stat())
    assert not path.exists()


def test_readers_change_nothing(tmp_path: Path) -> None:
    """Breaks if a command that only looks writes into a vault: one on a read-only medium, or half made by a crash."""
    (tmp_path / "oci-layout").write_bytes(OCI_LAYOUT)
    with Vault.existing(tmp_path, config=Config()) as vault:
        assert list_models(vault).models == ()
    assert [path.name for path in tmp_path.iterdir()] == ["oci-layout"]
    put_blob = tmp_path / "blobs" / "sha256" / ("0" * 64)
    put_blob.parent.mkdir(parents=True)
    put_blob.touch()
    with Vault.existing(tmp_path, config=Config()) as vault, pytest.raises(VaultDamaged, match="is gone"):
        list_models(vault)


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
        Vault.existing(tmp_path / "typo", config=Config())
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
    with FileLock(path):
        path.unlink()
    with FileLock(path), pytest.raises(VaultLocked), FileLock(path):
        pass
