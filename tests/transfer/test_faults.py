"""A hub that misbehaves, the real client, real transfers: what recovers, what does not, and where the token goes."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from faulty_hub import Faults, FaultyHub, Refusals

from modelvault.artifact import Digest
from modelvault.errors import DigestMismatch, ModelvaultError, SourceUnavailable
from modelvault.progress import NoProgress
from modelvault.sources.hub import HubSource
from modelvault.transfer import Fetched, TransferOptions, Transfers, Wanted

TOKEN = "hf_secret"
MODEL = "model.gguf"
SIZE = 24 << 20
# More attempts than any fault here has refusals in all: chance may give them all to one connection.
OPTIONS = TransferOptions(connections=4, attempts=8, backoff=0.01)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    folder = tmp_path / "folder"
    (folder / "sub dir").mkdir(parents=True)
    (folder / MODEL).write_bytes(os.urandom(SIZE))
    (folder / "config.json").write_bytes(b'{"model_type": "llama"}')
    (folder / "sub dir" / "100% #1.txt").write_bytes(b"odd names are quoted")
    (folder / "empty").write_bytes(b"")
    with FaultyHub({"org/name": folder}) as hub:
        yield hub


def pull(hub: FaultyHub, home: Path, *, token: str | None = TOKEN) -> tuple[Fetched, ...]:
    source = HubSource(hub.url, token=token, connections=OPTIONS.connections)
    try:
        snapshot = source.snapshot("org/name", None)
        wanted = [
            Wanted(file.path, file.size, file.digest, partial(source.open_range, snapshot, file))
            for file in snapshot.files
        ]
        with Transfers(home, wanted, OPTIONS, NoProgress()) as transfers:
            return transfers.run()
    finally:
        source.close()


def drop(faults: Faults) -> None:
    faults.drop_after, faults.drop_times = 300_000, 20


def reset(faults: Faults) -> None:
    faults.drop_after, faults.drop_times, faults.drop_hard = 300_000, 20, True


def too_many(faults: Faults) -> None:
    faults.refusals.append(Refusals(429, 5, {"Retry-After": "0"}))


def broken(faults: Faults) -> None:
    faults.refusals.extend([Refusals(500, 3), Refusals(503, 3)])


def slow(faults: Faults) -> None:
    faults.rate = 8_000_000


def no_ranges(faults: Faults) -> None:
    faults.ignore_range = True


def signed(faults: Faults) -> None:
    faults.redirect = True


def expiring(faults: Faults) -> None:
    faults.redirect, faults.signed_uses = True, 2


def everything(faults: Faults) -> None:
    expiring(faults)
    broken(faults)
    drop(faults)


@pytest.mark.parametrize(
    "fault", [drop, reset, too_many, broken, slow, no_ranges, signed, expiring, everything], ids=lambda f: f.__name__
)
def test_recovers(hub: FaultyHub, tmp_path: Path, fault: Callable[[Faults], None]) -> None:
    """A hub that is busy, cut off or moves its files must cost time, not the model; and the token stays with the hub."""
    fault(hub.faults)
    results = {result.path: result for result in pull(hub, tmp_path / "partial")}
    files = hub.repositories["org/name"].files
    assert results.keys() == files.keys()
    for path, result in results.items():
        assert result.data.read_bytes() == files[path].local.read_bytes()
        assert result.sha256 == Digest.sha256(files[path].sha256)
    assert all(request.headers.get("authorization") == f"Bearer {TOKEN}" for request in hub.asked("hub"))
    assert [r for r in hub.asked("storage") if "authorization" in r.headers or TOKEN in str(r)] == []
    assert bool(hub.asked("storage")) == hub.faults.redirect
    assert all(request.headers.get("accept-encoding") == "identity" for request in hub.asked("storage"))


def test_a_signed_address_is_asked_for_once_per_file(hub: FaultyHub, tmp_path: Path) -> None:
    """Resolving anew for each range would meet the hub's rate limit and cost a round trip each time."""
    signed(hub.faults)
    pull(hub, tmp_path / "partial")
    resolves = [request for request in hub.asked("hub") if request.path.endswith(MODEL)]
    assert len(resolves) <= OPTIONS.connections < len(hub.asked("storage"))


def test_wrong_bytes_of_the_right_size(hub: FaultyHub, tmp_path: Path) -> None:
    """A flipped bit ends with exit 12 and the file's name; the rerun recovers once the source is right."""
    hub.faults.flip[MODEL] = 20_000_000
    with pytest.raises(DigestMismatch, match=MODEL) as caught:
        pull(hub, tmp_path / "partial")
    assert caught.value.exit_code == 12
    assert caught.value.data["expected"] == f"sha256:{hub.repositories['org/name'].files[MODEL].sha256}"
    hub.faults.flip.clear()
    assert len(pull(hub, tmp_path / "partial")) == 4


def gated(faults: Faults) -> None:
    faults.gated["org/name"] = "hf_other"


def other_commit(faults: Faults) -> None:
    faults.headers["X-Repo-Commit"] = "0" * 40


def encoded(faults: Faults) -> None:
    faults.headers["Content-Encoding"] = "gzip"


def same_byte(faults: Faults) -> None:
    # More often than any number of attempts, but not for ever: a pull that wrongly goes on ends well, and fails the test.
    faults.ignore_range, faults.drop_after, faults.drop_times = True, 300_000, 100


def other_range(faults: Faults) -> None:
    faults.headers["Content-Range"] = f"bytes 0-5/{SIZE}"


def too_short(faults: Faults) -> None:
    faults.shorten["config.json"] = 3


def dead_storage(faults: Faults) -> None:
    faults.redirect, faults.storage_status = True, 403


def busy_for_ever(faults: Faults) -> None:
    faults.refusals.append(Refusals(503, 10_000))


def patience_of_a_day(faults: Faults) -> None:
    faults.refusals.append(Refusals(429, 10_000, {"Retry-After": "86400"}))


def not_there(faults: Faults) -> None:
    faults.refusals.append(Refusals(404, 10_000, {"X-Error-Code": "EntryNotFound"}))


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (gated, "the account of the token has no access"),
        (other_commit, "answers with commit 0000"),
        (encoded, "arrive encoded as gzip"),
        (same_byte, "the connection to 127.0.0.1 broke"),
        (other_range, "sent the range"),
        (too_short, "config.json: the connection to 127.0.0.1 broke"),
        (dead_storage, "localhost refuses the address"),
        (busy_for_ever, "the source answers 503"),
        (patience_of_a_day, "wait for 86400 seconds"),
        (not_there, "has no file"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_ends_with_a_clear_error(hub: FaultyHub, tmp_path: Path, fault: Callable[[Faults], None], says: str) -> None:
    """What no retry mends ends with exit 10 and the reason; what is mended afterwards goes on."""
    fault(hub.faults)
    with pytest.raises(SourceUnavailable, match=says.replace(".", r"\.")) as caught:
        pull(hub, tmp_path / "partial")
    assert caught.value.exit_code == 10
    hub.faults = Faults()
    assert len(pull(hub, tmp_path / "partial")) == 4


def test_gated_without_a_token(hub: FaultyHub, tmp_path: Path) -> None:
    """The user has to learn which page to visit and how to log in."""
    hub.faults.gated["org/name"] = TOKEN
    with pytest.raises(SourceUnavailable, match="gated") as caught:
        pull(hub, tmp_path / "partial", token=None)
    assert "https://huggingface.co/org/name" in str(caught.value.hint)
    assert "HF_TOKEN" in str(caught.value.hint)
    assert len(pull(hub, tmp_path / "partial")) == 4


def test_a_hub_that_vanishes(hub: FaultyHub, tmp_path: Path) -> None:
    """A connection refused in the middle is retried for a while, and then says who does not answer."""
    source = HubSource(hub.url)
    snapshot = source.snapshot("org/name", None)
    hub.__exit__(None, None, None)
    wanted = [Wanted(f.path, f.size, f.digest, partial(source.open_range, snapshot, f)) for f in snapshot.files]
    with (
        Transfers(tmp_path / "partial", wanted, OPTIONS, NoProgress()) as transfers,
        pytest.raises(ModelvaultError, match=r"no connection to 127\.0\.0\.1"),
    ):
        transfers.run()
    source.close()
