"""A bundle as the vault remembers it."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from modelvault.artifact import FileSpec, Model, ModelName, Origin, Traits
from modelvault.bundle.drive import failed
from modelvault.bundle.index import MIN_VOLUME
from modelvault.bundle.target import Target
from modelvault.config import Config
from modelvault.errors import PartlyDone, UsageProblem
from modelvault.keys import Signer
from modelvault.operations.bundle import BundleRequest, bundle
from modelvault.progress import NoTask, Progress
from modelvault.results.bundles import BundleResult
from modelvault.vault import Vault


class Quiet:
    """Progress that remembers what was logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> NoTask:
        return NoTask()


def add_model(vault: Vault) -> None:
    """Put a model of two volumes into a vault."""
    data = random.Random(1).randbytes(2 * MIN_VOLUME)
    spec = FileSpec("a.gguf", len(data), vault.store.put_bytes(data))
    with vault.publishing():
        vault.publish(Model(ModelName("one"), Origin("folder"), (spec,), Traits("gguf")), {})


def test_a_drive_without_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a bundle counts as done, and as sent to its site, though a drive that holds a part of it failed; or it never does."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    has_room, finish = Target.has_room, Target.finish

    def one_volume(self: Target, needed: int) -> bool:
        return (self.directory.parent != a or not self.volumes) and has_room(self, needed)

    def fail(self: Target, signer: Signer, progress: Progress, *, compare: bool) -> None:
        if self.directory.parent == a:
            raise failed(self.directory, "it is gone")
        finish(self, signer, progress, compare=compare)

    monkeypatch.setattr(Target, "has_room", one_volume)
    with Vault.open(tmp_path / "vault", config=Config()) as vault:
        add_model(vault)
        request = BundleRequest((), (a, b), volume_size=MIN_VOLUME, site="lab", assume_sent=True)

        def sites() -> list[object]:
            return [event.data.get("site") for event in vault.events.read() if event.kind == "bundle-written"]

        with monkeypatch.context() as patched:
            patched.setattr(Target, "finish", fail)
            with pytest.raises(PartlyDone) as caught:
                bundle(vault, request, Quiet())
        assert sites() == [None]
        result = caught.value.result
        assert isinstance(result, BundleResult)
        assert any("without sums" in warning for warning in result.warnings)
        again = bundle(vault, request, Quiet())
        assert isinstance(again, BundleResult)
        assert (again.sequence, again.read_back) == (result.sequence, True)
        assert again.resumed > 0
        assert sites() == [None, "lab"]


def test_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a bundle that one key began is gone on with by another, or if nobody says why it is not."""

    def broken(self: Target, signer: Signer, progress: Progress, *, compare: bool) -> None:
        raise KeyboardInterrupt

    with Vault.open(tmp_path / "vault", config=Config()) as vault:
        add_model(vault)
        for name in ("default", "second"):
            vault.keys.new(name)
        request = BundleRequest((), (tmp_path,), volume_size=MIN_VOLUME)
        with monkeypatch.context() as patched:
            patched.setattr(Target, "finish", broken)
            with pytest.raises(KeyboardInterrupt):
                bundle(vault, request, Quiet())
        (begun,) = tmp_path.glob("*.mvbundle")
        sequence = int(begun.stem.split("-")[1])
        for dry_run in (True, False):
            with pytest.raises(UsageProblem, match="another key"):
                bundle(vault, replace(request, key="second", sequence=sequence, dry_run=dry_run), Quiet())
        progress = Quiet()
        other = bundle(vault, replace(request, key="second"), progress)
        assert isinstance(other, BundleResult)
        assert (other.sequence > sequence, other.resumed) == (True, 0)
        assert any(str(begun) in line and "another key" in line for line in progress.lines)
        again = bundle(vault, request, Quiet())
        assert isinstance(again, BundleResult)
        assert (again.sequence, again.resumed) == (sequence, again.content_size)


def test_an_answer_is_for_the_site_that_asked(tmp_path: Path) -> None:
    """Breaks if options that say what goes into a bundle are dropped without a word where a request says it."""
    with Vault.open(tmp_path / "vault", config=Config()) as vault:
        answer = BundleRequest((), (tmp_path,), answer=tmp_path / "x.request.json")
        for request in (
            replace(answer, names=(ModelName("one"),)),
            replace(answer, site="lab"),
            replace(answer, assume_sent=True),
        ):
            with pytest.raises(UsageProblem, match="--answer takes no"):
                bundle(vault, request, Quiet())
