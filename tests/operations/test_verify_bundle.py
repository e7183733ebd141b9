"""``verify`` of a bundle: what it says of what is here, and what a request for the rest does not cost."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from bundle_world import MIB, World, flip, noise

from modelvault.bundle.index import Span
from modelvault.bundle.plan import PlanOptions, plan_patch
from modelvault.bundle.reader import open_bundle
from modelvault.errors import DigestMismatch, ModelvaultError, UsageProblem
from modelvault.keys import Role
from modelvault.operations import verify_bundle
from modelvault.operations.import_ import ImportRequest, import_bundles
from modelvault.operations.keys import make_key
from modelvault.operations.verify_bundle import Wish, verify_paths
from modelvault.progress import NoProgress
from modelvault.results.bundles import VerifyResult
from modelvault.vault import Vault

CANNOT_BE_WRITTEN = Path("/proc")


class Unread(NoProgress):
    """Fails as soon as the reading begins."""

    def task(self, label: str, total: int, *, done: int = 0, overall: bool = False) -> NoReturn:
        pytest.fail(f"{label} began")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """The connected side, with one model."""
    world = World(tmp_path / "world")
    world.add("small", {"config.json": b"{}", "s.gguf": noise(5000, 3)})
    return world


@pytest.fixture
def bundle(world: World) -> Path:
    """A bundle of that model."""
    return world.write(world.plan(), read_back=False).directory


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    """The vault of a site that is called lab."""
    with Vault.open(tmp_path / "vault") as vault:
        make_key(vault, "lab", Role.RECEIPT)
        yield vault


@pytest.mark.skipif(not CANNOT_BE_WRITTEN.is_dir(), reason="/proc stands for a drive that is mounted read-only")
def test_a_place_that_cannot_be_written_is_met_first(bundle: Path, vault: Vault) -> None:
    """Breaks if hours of reading come before the news that the request or receipt could not be written where it was wanted."""
    before = sorted(vault.root.rglob("*"))
    for site, place, words in (
        ("lab", CANNOT_BE_WRITTEN, "cannot write to /proc"),
        ("other", bundle.parent, "called lab, not other"),
        ("lab", bundle.parent / "none", "no directory"),
    ):
        wish = Wish((bundle,), allow_unsigned=True, request=place, site=site)
        with pytest.raises(UsageProblem, match=words):
            verify_paths(vault, wish, Unread())
        order = ImportRequest((bundle,), allow_unsigned=True, receipt=place, site=site)
        with pytest.raises(UsageProblem, match=words):
            import_bundles(vault, order, Unread())
    assert sorted(vault.root.rglob("*")) == before


def test_no_request_for_a_patch(world: World, bundle: Path, vault: Vault) -> None:
    """Breaks if a patch is read for hours before it is said that a request is for the bundle that it mends."""
    original = open_bundle(bundle, world.keys.verify)
    span = Span(original.index.blobs[0].digest, 0, 1)
    index = plan_patch(original.index, original.digest, [span], PlanOptions("models-patch", 1, 4 * MIB))
    wish = Wish((world.write(index).directory,), allow_unsigned=True, request=world.drive)
    with pytest.raises(UsageProblem, match="is a patch"):
        verify_paths(vault, wish, Unread())


def test_a_trial_leaves_nothing(bundle: Path, vault: Vault, tmp_path: Path) -> None:
    """Breaks if the trial whether a request could be written stays on the drive."""
    back = tmp_path / "back"
    back.mkdir()
    result = verify_paths(vault, Wish((bundle,), allow_unsigned=True, request=back), NoProgress())
    assert any("nothing is wanted" in warning for warning in result.warnings)
    assert not list(back.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), UsageProblem("it would be too large")])
def test_a_request_that_fails_costs_no_finding(
    bundle: Path, vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Breaks if what hours of reading found is not told because the request for it could not be written."""
    flip(bundle / "volume-0001.tar.zst")

    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(verify_bundle, "write_paper", fail)
    with pytest.raises(ModelvaultError) as raised:
        verify_paths(vault, Wish((bundle,), allow_unsigned=True, request=tmp_path), NoProgress())
    assert not isinstance(raised.value, DigestMismatch)
    assert isinstance(raised.value.result, VerifyResult)
    assert raised.value.result.damage
