"""A short campaign: kills, flipped bits, drives that fill up or are pulled out, at random. The long one is ``scripts/campaign``."""

import random
from pathlib import Path

import campaign
import pytest
from campaign_kinds import finished_on
from campaign_world import Outcome


def _run(place: Path, counts: dict[str, int]) -> None:
    seed = random.randrange(1 << 32)
    results = campaign.campaign(place, counts, seed, workers=1)
    assert sum(map(len, results.values())) == sum(counts.values())
    defects = [
        f"{name}: {outcome}\n{outcome.note}" for name, each in results.items() for outcome in each if outcome.defect
    ]
    assert not defects, "\n".join([f"seed {seed}", campaign.report(results), *defects])


def test_killed_and_flipped(tmp_path: Path) -> None:
    """Breaks if a kill or a flipped bit loses something, or has something listed or installed that is not right."""
    _run(tmp_path, {"kills": 4, "flips": 8})


@pytest.mark.usefixtures("as_root")
def test_filled_and_pulled_out(tmp_path: Path) -> None:
    """The same for drives that somebody else fills, and for drives that go away and come back."""
    _run(tmp_path, {"drives": 6})


def test_a_drive_that_was_pulled_too_early_does_not_count(tmp_path: Path) -> None:
    """Breaks if a drive counts that went away after a volume was signed and before that was noted: the others have all of it."""
    for drive, names in (
        ("a", ("volume-0001.json", "volume-0001.json.sig")),
        ("b", ("volume-0001.json", "SHA256SUMS")),
    ):
        (tmp_path / drive / "x.mvbundle").mkdir(parents=True)
        for name in names:
            (tmp_path / drive / "x.mvbundle" / name).touch()
    assert finished_on([tmp_path / "a", tmp_path / "b"]) == [tmp_path / "b/x.mvbundle"]


def test_a_defect_does_not_go_unseen() -> None:
    """Breaks if the campaign would call itself passed with a loss, a wrong install, or damage that nobody mentioned."""
    good = Outcome(detected=True, recovered=True)
    assert not campaign.failed({"kind": [good]})
    for bad in (
        Outcome(detected=True),
        Outcome(detected=True, recovered=True, wrong=True),
        Outcome(recovered=True),
    ):
        assert campaign.failed({"kind": [good, bad]})
