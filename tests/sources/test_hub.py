"""Pinning and listing over the Hub's protocol, with the real client against a real server."""

import hashlib
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_hub import FaultyHub, Refusals
from huggingface_hub import constants

from modelvault.artifact import Algorithm, Digest, SourceFile
from modelvault.errors import SourceUnavailable, Transient, UsageProblem
from modelvault.sources import Snapshot, Source
from modelvault.sources.hub import HubSource


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    folder = tmp_path / "folder"
    (folder / "nested" / "deep").mkdir(parents=True)
    (folder / "model.gguf").write_bytes(b"GGUF" * 1000)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "nested" / "deep" / "a.txt").write_bytes(b"a")
    (folder / "nested" / "b.txt").write_bytes(b"b")
    with FaultyHub({"org/name": folder}, page_size=2) as hub:
        yield hub


def snapshot(hub: FaultyHub, repository: str = "org/name", revision: str | None = None, **options: str) -> Snapshot:
    source: Source = HubSource(hub.url, **options)  # type: ignore[arg-type]
    try:
        return source.snapshot(repository, revision)
    finally:
        source.close()


def test_the_listing(hub: FaultyHub) -> None:
    """All pages, all folders, the right promise for each kind of file; and not a byte of them downloaded."""
    result = snapshot(hub)
    assert result.commit == hub.commit("org/name")
    assert result.files == (
        SourceFile("config.json", 2, Digest(Algorithm.GIT_SHA1, "9e26dfeeb6e641a33dae4961196235bdb965b21b")),
        SourceFile("model.gguf", 4000, Digest.sha256(hashlib.sha256(b"GGUF" * 1000).hexdigest())),
        SourceFile("nested/b.txt", 1, Digest(Algorithm.GIT_SHA1, hashlib.sha1(b"blob 1\0b").hexdigest())),
        SourceFile("nested/deep/a.txt", 1, Digest(Algorithm.GIT_SHA1, hashlib.sha1(b"blob 1\0a").hexdigest())),
    )
    assert [request for request in hub.asked() if "resolve" in request.path] == []
    assert len([request for request in hub.asked() if "/tree/" in request.path]) > 1


def test_nothing_else_is_asked_for(hub: FaultyHub) -> None:
    """The client would report the program that runs it; a user who carries models to isolated sites minds."""
    snapshot(hub)
    assert {request.path.split("?")[0].split("/")[2] for request in hub.asked()} == {"models"}


def test_a_revision_is_pinned(hub: FaultyHub) -> None:
    """A branch that moves during the transfer would give a model made of two."""
    assert snapshot(hub, revision="main").commit == hub.commit("org/name")
    listings = [request.path for request in hub.asked() if "/tree/" in request.path]
    assert listings
    assert all(hub.commit("org/name") in path for path in listings)


@pytest.mark.parametrize(
    ("info", "license_"),
    [
        ({}, None),
        ({"tags": ["gguf", "license:apache-2.0"]}, "apache-2.0"),
        ({"cardData": {"license": "mit"}, "tags": ["license:other"]}, "mit"),
        ({"cardData": {"license": "other", "license_name": "llama3.1"}}, "llama3.1"),
        ({"cardData": {"license": ["mit"]}, "tags": ["license:mit"]}, "mit"),
        ({"cardData": {"license": "gar\nbled"}, "tags": ["license:mit"]}, "mit"),
    ],
)
def test_the_license(hub: FaultyHub, info: dict[str, object], license_: str | None) -> None:
    """The license travels with the model: across the gap nobody can look it up."""
    hub.repositories["org/name"].info = info
    assert snapshot(hub).license == license_


def test_gated_is_seen_and_listed(hub: FaultyHub) -> None:
    """A plan can be made before access is granted, as on the Hub."""
    hub.faults.gated["org/name"] = "hf_granted"
    assert snapshot(hub).gated
    assert snapshot(hub, token="hf_granted").files


def refused(
    hub: FaultyHub, repository: str = "org/name", revision: str | None = None, **options: str
) -> tuple[str, str]:
    with pytest.raises(SourceUnavailable) as caught:
        snapshot(hub, repository, revision, **options)
    assert caught.value.exit_code == 10
    return caught.value.message, caught.value.hint or ""


def test_unknown_repository(hub: FaultyHub) -> None:
    """It may be a typing error or a private repository: the hint has to name both."""
    message, hint = refused(hub, "org/nmae")
    assert "has no model org/nmae" in message
    assert "spelling" in hint
    assert "HF_TOKEN" in hint


def test_unknown_revision(hub: FaultyHub) -> None:
    """The repository exists: only the revision is to be corrected."""
    message, hint = refused(hub, revision="v9")
    assert "has no revision 'v9'" in message
    assert "--revision" in hint


def test_private_with_and_without_the_token(hub: FaultyHub) -> None:
    """The token has to reach the listing."""
    hub.faults.private["org/name"] = "hf_mine"
    assert "HF_TOKEN" in refused(hub)[1]
    assert "token may read it" in refused(hub, token="hf_other")[1]
    assert snapshot(hub, token="hf_mine").files


def test_a_token_that_is_not_accepted(hub: FaultyHub) -> None:
    """An expired login must not look like a missing repository."""
    hub.faults.valid_tokens = {"hf_new"}
    assert "does not accept the token" in refused(hub, token="hf_old")[0]


def test_the_environment_gives_token_and_endpoint(hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is logged in for `hf` is logged in here; and the option beats the variable."""
    hub.faults.private["org/name"] = "hf_mine"
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    source = HubSource()
    assert source.endpoint == hub.url
    assert source.snapshot("org/name", None).files
    source.close()
    assert HubSource("http://127.0.0.1:9/").endpoint == "http://127.0.0.1:9"


def test_a_busy_hub_is_asked_again(hub: FaultyHub) -> None:
    """The client does not do that by itself for the model's information."""
    hub.faults.refusals += [
        Refusals(429, 1, {"Retry-After": "0"}, "api"),
        Refusals(503, 1, {"Retry-After": "0"}, "api"),
    ]
    assert snapshot(hub).files


def test_a_hub_that_stays_busy(hub: FaultyHub) -> None:
    """It must end, and say that the fault is not the user's."""
    hub.faults.refusals.append(Refusals(500, 1000, {"Retry-After": "0"}, "api"))
    assert "status 500" in refused(hub)[0]
    hub.faults.refusals[0] = Refusals(429, 1000, {"Retry-After": "100000"}, "api")
    assert "too many requests" in refused(hub)[0]


def test_offline_mode(hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE that lies in a profile is easily forgotten."""
    source = HubSource(hub.url)
    result = source.snapshot("org/name", None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.forget()
    assert "HF_HUB_OFFLINE" in refused(hub)[1]
    with pytest.raises(SourceUnavailable, match="offline mode"), source.open_range(result, result.files[0], 0, 2):
        pass
    source.close()
    assert hub.asked() == []


def test_an_endpoint_that_nobody_serves() -> None:
    """On an isolated machine `pull` must say at once that there is no network, and what to do there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        source = HubSource(f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(SourceUnavailable, match="cannot reach http://127") as caught:
            source.snapshot("org/name", None)
        assert "import a bundle" in str(caught.value.hint)
        source.close()


def test_an_endpoint_that_is_none() -> None:
    """A host name without a scheme is the usual mistake."""
    with pytest.raises(UsageProblem, match="not an endpoint"):
        HubSource("mirror.example")


@pytest.mark.parametrize(
    ("info", "path"), [({"sha": None}, None), ({"sha": "main"}, None), ({}, "../../etc/passwd"), ({}, "a//b")]
)
def test_a_hub_that_cannot_be_believed(hub: FaultyHub, info: dict[str, object], path: str | None) -> None:
    """What a hub lists becomes file names: nothing that leaves the folder may pass."""
    repository = hub.repositories["org/name"]
    repository.info = info
    if path is not None:
        object.__setattr__(repository.files["config.json"], "path", path)
    message, _ = refused(hub)
    assert "names no commit" in message or "does not answer like a hub" in message


@pytest.mark.parametrize("name", ["a--b/c", "a/b/c", "-a/b"])
def test_names_that_the_hub_does_not_allow(hub: FaultyHub, name: str) -> None:
    """The client refuses them before it asks: that must be an error for the user, no traceback."""
    assert "not the name of a repository" in refused(hub, name)[0]


def test_through_a_proxy(hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing and bytes go through two clients: both have to heed the proxy."""
    hub.page_size = 1000  # the address of a next page would name the hub itself
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    source = HubSource("http://hub.invalid")
    result = source.snapshot("org/name", None)
    with source.open_range(result, result.files[1], 4, 12) as chunks:
        assert b"".join(chunks) == b"GGUFGGUF"
    source.close()
    paths = [request.path for request in hub.asked() if request.method == "GET"]
    assert paths
    assert all(path.startswith("http://hub.invalid/") for path in paths)


@pytest.mark.parametrize("proxy", ["http://[bad", "proxy.example:port", "socks5://127.0.0.1:1080", "http://"])
def test_a_proxy_that_is_none(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    """A mistake in a variable must be named, not be taken for a defect or for a hub that does not answer."""
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(SourceUnavailable, match="no proxy for hub") as caught:
        HubSource("http://hub.invalid")
    assert "HTTP_PROXY" in str(caught.value.hint)


@pytest.mark.parametrize("location", ["http://[bad", "http://storage:port/a", "file:///etc/passwd"])
def test_a_redirect_to_what_is_no_address(hub: FaultyHub, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    """A broken header of the hub's is the hub's fault: no retry mends it, and it is no defect of this program."""
    hub.faults.redirect = True
    monkeypatch.setattr(hub, "sign", lambda *_: location)
    source = HubSource(hub.url)
    result = source.snapshot("org/name", None)
    redirected = pytest.raises(SourceUnavailable, match="redirects to what is no address")
    with redirected, source.open_range(result, result.files[1], 0, 100):
        pass
    source.close()


def test_a_listing_without_end(hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror whose last page leads back to the first would keep a pull busy until the memory is full."""
    monkeypatch.setattr("modelvault.sources.hub._MAX_FILES", 100)
    hub.faults.endless = True
    assert "lists more than 100 files" in refused(hub)[0]
    assert len(hub.asked()) < 100


def test_a_listing_of_empty_pages(hub: FaultyHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror whose pages are empty, each leading to the next, would keep a pull busy for ever."""
    monkeypatch.setattr("modelvault.sources.hub._MAX_REQUESTS", 20)
    hub.faults.endless = True
    hub.page_size = 0
    assert "more than 20 pages" in refused(hub)[0]
    assert len(hub.asked()) <= 20


def test_a_certificate_bundle_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wrong path in the environment must be named, not end in a traceback."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(UsageProblem, match="REQUESTS_CA_BUNDLE"):
        HubSource("https://hub.example")


def test_a_range_that_the_hub_does_not_have(hub: FaultyHub) -> None:
    """416 is an answer that no retry changes."""
    source = HubSource(hub.url)
    result = source.snapshot("org/name", None)
    longer = SourceFile("model.gguf", 9000, None)
    with pytest.raises(SourceUnavailable, match="416"), source.open_range(result, longer, 5000, 6000):
        pass
    source.close()


def test_a_body_that_ends_early_is_transient(hub: FaultyHub) -> None:
    """Fewer bytes than announced are the most common fault of all: a retry mends it."""
    hub.faults.drop_after = 10
    source = HubSource(hub.url)
    result = source.snapshot("org/name", None)
    with pytest.raises(Transient), source.open_range(result, result.files[1], 0, 4000) as chunks:
        list(chunks)
    source.close()


def test_the_package_alone_is_light() -> None:
    """The protocol is imported where the network is forbidden: huggingface_hub must not come with it."""
    code = "import sys, modelvault.sources, modelvault.transfer; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
