"""Ollama's registry protocol, against a registry that the real Ollama pulls from as well (tests/road/test_ollama_source.py)."""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from faulty_hub import Refusals
from ollama_registry import Faults, OllamaRegistry
from ollama_stores import TEXTS, write_model

from modelvault.errors import DigestMismatch, SourceUnavailable, Transient, UsageProblem
from modelvault.progress import NoProgress
from modelvault.sources import Snapshot, Source
from modelvault.sources.ollama import OllamaSource
from modelvault.transfer import Fetched, TransferOptions, Transfers, Wanted

NAME = "registry.ollama.ai/library/tiny:q8_0"
SIZE = 3 << 20
OPTIONS = TransferOptions(connections=4, attempts=4, backoff=0.01)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[OllamaRegistry]:
    """A registry with one model, whose bytes are no GGUF: that is not the source's to judge."""
    models = tmp_path / "models"
    write_model(models, "tiny:q8_0", [("model", os.urandom(SIZE)), *TEXTS])
    with OllamaRegistry(models) as registry:
        yield registry


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A key as `ollama serve` makes one."""
    path = tmp_path / "id_ed25519"
    secret = Ed25519PrivateKey.generate()
    path.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return path


@pytest.fixture
def nobody(tmp_path: Path) -> Path:
    """Where a key would be."""
    return tmp_path / "no-key"


def snapshot(registry: OllamaRegistry, key: Path, name: str = NAME, revision: str | None = None) -> Snapshot:
    source: Source = OllamaSource(registry.url, key=key)
    try:
        return source.snapshot(name, revision)
    finally:
        source.close()


def pull(registry: OllamaRegistry, home: Path, key: Path, options: TransferOptions = OPTIONS) -> dict[str, Fetched]:
    source = OllamaSource(registry.url, key=key, connections=options.connections)
    try:
        found = source.snapshot(NAME, None)
        wanted = [
            Wanted(file.path, file.size, file.digest, partial(source.open_range, found, file)) for file in found.files
        ]
        with Transfers(home, wanted, options, NoProgress()) as transfers:
            return {item.path: item for item in transfers.run()}
    finally:
        source.close()


def refused(registry: OllamaRegistry, key: Path, name: str = NAME, revision: str | None = None) -> tuple[str, str]:
    with pytest.raises(SourceUnavailable) as caught:
        snapshot(registry, key, name, revision)
    assert caught.value.exit_code == 10
    return caught.value.message, caught.value.hint or ""


# ── the manifest ──


def test_the_listing(registry: OllamaRegistry, nobody: Path) -> None:
    """Breaks if a layer gets no file, or the tag is not pinned to the manifest that it names now; no blob may be fetched for that."""
    found = snapshot(registry, nobody)
    manifest = registry.manifest("tiny", "q8_0")
    assert found.commit == hashlib.sha256(manifest).hexdigest()
    assert (found.repository, found.license, found.gated) == ("registry.ollama.ai/library/tiny", None, False)
    named = {layer["digest"] for layer in [json.loads(manifest)["config"], *json.loads(manifest)["layers"]]}
    assert {str(file.digest) for file in found.files} == named | {f"sha256:{found.commit}"}
    assert [file.path for file in found.files] == [
        "LICENSE",
        "LICENSE-2",
        "model.gguf",
        "ollama/config.json",
        "ollama/manifest.json",
        "ollama/messages.json",
        "ollama/params.json",
        "ollama/system",
        "ollama/template",
    ]
    assert [request.path for request in registry.asked()] == ["/v2/library/tiny/manifests/q8_0"]


def test_a_revision_is_a_promise(registry: OllamaRegistry, nobody: Path) -> None:
    """Breaks if a tag that was moved is taken for what a lock file or a person pinned, or what the registry still has is not found."""
    before, commit = registry.manifest("tiny", "q8_0"), snapshot(registry, nobody).commit
    assert snapshot(registry, nobody, revision=f"sha256:{commit}").commit == commit
    write_model(registry.models, "tiny:q8_0", [("model", b"another")])
    moved = snapshot(registry, nobody).commit
    message, hint = refused(registry, nobody, revision=commit)
    assert f"is at {moved} by now" in message
    assert "--revision" in hint
    registry.faults.kept.append(before)
    assert snapshot(registry, nobody, revision=commit).commit == commit
    registry.faults.refusals.append(Refusals(503, 1, {"Retry-After": "0"}, "blobs"))
    assert snapshot(registry, nobody, revision=commit).commit == commit


@pytest.mark.parametrize("revision", ["main", "sha256:", "0" * 63, "sha256:../x", "q8_0"])
def test_a_revision_that_is_none(registry: OllamaRegistry, nobody: Path, revision: str) -> None:
    """Breaks if a tag that is given as a revision is passed over, or becomes a part of an address."""
    with pytest.raises(UsageProblem, match="not a revision") as caught:
        snapshot(registry, nobody, revision=revision)
    assert "ollama:NAME:TAG" in str(caught.value.hint)
    assert registry.asked() == []


@pytest.mark.parametrize("name", ["registry.ollama.ai/library/tiny:q9", "registry.ollama.ai/library/tyni:q8_0"])
def test_unknown_names(registry: OllamaRegistry, nobody: Path, name: str) -> None:
    """Breaks if a typing error leads nowhere: the page that lists the tags is the way out."""
    message, hint = refused(registry, nobody, name)
    assert "has no model t" in message
    assert "/tags" in hint


@pytest.mark.parametrize(
    "manifest",
    [
        b"<!DOCTYPE html><html>",
        b"[]",
        b"{}",
        b'{"schemaVersion":2,"config":{},"layers":[]}',
        b'{"schemaVersion":1}',
        b"\xff",
    ]
    + [
        json.dumps(
            {"schemaVersion": 2, "config": {"mediaType": "c", "digest": digest, "size": size}, "layers": []}
        ).encode()
        for digest, size in (("sha256:../../x", 1), ("git-sha1:" + "0" * 40, 1), ("sha256:" + "0" * 64, -1))
    ],
)
def test_a_manifest_that_is_none(registry: OllamaRegistry, nobody: Path, manifest: bytes) -> None:
    """Breaks if the login page of a network, or a digest that leaves the vault, is taken for a model."""
    registry.faults.manifest = manifest
    assert "does not answer like a registry" in refused(registry, nobody)[0]


def test_a_manifest_of_another_digest(registry: OllamaRegistry, nobody: Path) -> None:
    """Breaks if what a proxy made of the manifest becomes the root of what is trusted, though the registry said what it is."""
    registry.faults.promised = "sha256:" + "0" * 64
    with pytest.raises(DigestMismatch, match="promised the manifest"):
        snapshot(registry, nobody)
    registry.faults.promised = "sha256:" + hashlib.sha256(registry.manifest("tiny", "q8_0")).hexdigest()
    assert snapshot(registry, nobody).files


def test_a_busy_registry_is_asked_again(registry: OllamaRegistry, nobody: Path) -> None:
    """Breaks if a moment's overload ends a pull that would take hours, or an endless one never does."""
    registry.faults.refusals.append(Refusals(429, 2, {"Retry-After": "0"}, "manifests"))
    assert snapshot(registry, nobody).files
    registry.faults.refusals[0] = Refusals(503, 1000, {"Retry-After": "0"}, "manifests")
    assert "503" in refused(registry, nobody)[0]
    registry.faults.refusals[0] = Refusals(429, 1000, {"Retry-After": "100000"}, "manifests")
    assert "429" in refused(registry, nobody)[0]


def test_a_registry_that_says_why(registry: OllamaRegistry, nobody: Path) -> None:
    """Breaks if what the registry has to say (such as: you need a newer version) never reaches the user."""
    registry.faults.refusals.append(
        Refusals(412, 1, {}, "manifests", b'{"errors":[{"message":"a newer version is needed"}]}')
    )
    assert "status 412: a newer version is needed" in refused(registry, nobody)[0]


def test_nobody_there(nobody: Path) -> None:
    """Breaks if an isolated machine does not say at once that there is no network, and what to do there."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        source = OllamaSource(f"http://127.0.0.1:{bound.getsockname()[1]}", key=nobody)
        with pytest.raises(SourceUnavailable, match="cannot reach http://127") as caught:
            source.snapshot(NAME, None)
        assert "--from-ollama" in str(caught.value.hint)
        source.close()


@pytest.mark.parametrize("address", ["registry.example", "ftp://registry", "http://[bad"])
def test_an_address_that_is_none(address: str) -> None:
    """Breaks if a host without a scheme, the usual mistake, ends in a traceback."""
    with pytest.raises(UsageProblem, match="not the address of a registry"):
        OllamaSource(address)


# ── bytes ──


def check(pulled: dict[str, Fetched], registry: OllamaRegistry) -> None:
    digest, size = registry.layer("tiny", "q8_0", "model")
    assert str(pulled["model.gguf"].sha256) == digest
    assert pulled["model.gguf"].data.stat().st_size == size
    assert pulled["ollama/manifest.json"].data.read_bytes() == registry.manifest("tiny", "q8_0")


def here(faults: Faults) -> None:
    faults.bytes_at = "here"


def location(faults: Faults) -> None:
    faults.bytes_at = "location"


def drop(faults: Faults) -> None:
    faults.drop_after, faults.drop_times = 100_000, 12


def too_many(faults: Faults) -> None:
    faults.refusals += [Refusals(429, 3, {"Retry-After": "0"}, where) for where in ("blobs", "storage")]


def expiring(faults: Faults) -> None:
    faults.located_uses = 2


def expiring_location(faults: Faults) -> None:
    faults.bytes_at, faults.located_uses = "location", 2


def no_length(faults: Faults) -> None:
    faults.no_length = True


def whole_files(faults: Faults) -> None:
    faults.ignore_range = True


def whole_files_here(faults: Faults) -> None:
    faults.ignore_range, faults.bytes_at = True, "here"


@pytest.mark.parametrize(
    "spoil",
    [here, location, drop, too_many, expiring, expiring_location, no_length, whole_files, whole_files_here],
    ids=lambda spoil: spoil.__name__,
)
@pytest.mark.parametrize("tokens", [False, True], ids=["open", "tokens"])
def test_what_recovers(
    registry: OllamaRegistry, tmp_path: Path, key: Path, spoil: Callable[[Faults], None], tokens: bool
) -> None:
    """Breaks if a registry that is like some real one, or has a bad day, cannot be pulled from."""
    registry.faults.tokens = tokens
    spoil(registry.faults)
    check(pull(registry, tmp_path / "home", key), registry)


def test_a_wrong_byte(registry: OllamaRegistry, tmp_path: Path, nobody: Path) -> None:
    """Breaks if bytes are taken that do not have the layer's digest, or if the next attempt does not begin anew."""
    digest, _ = registry.layer("tiny", "q8_0", "model")
    registry.faults.flip[digest] = SIZE // 2
    with pytest.raises(DigestMismatch, match=r"model\.gguf: the source promised"):
        pull(registry, tmp_path / "home", nobody)
    registry.faults.flip.clear()
    check(pull(registry, tmp_path / "home", nobody), registry)


def test_a_blob_that_is_missing(registry: OllamaRegistry, tmp_path: Path, nobody: Path) -> None:
    """Breaks if a registry that lost a layer is asked for it for ever."""
    digest, _ = registry.layer("tiny", "q8_0", "model")
    (registry.models / "blobs" / digest.replace(":", "-")).unlink()
    with pytest.raises(SourceUnavailable, match=r"refuses model\.gguf .*404: blob unknown"):
        pull(registry, tmp_path / "home", nobody)


def test_a_storage_that_refuses(registry: OllamaRegistry, tmp_path: Path, nobody: Path) -> None:
    """Breaks if a firewall in front of the storage shows as a loop, or does not name the host that is to be let through."""
    registry.faults.storage_status = 403
    with pytest.raises(SourceUnavailable, match="localhost refuses the address"):
        pull(registry, tmp_path / "home", nobody)


# ── tokens ──


def test_the_token_stays_with_the_registry(registry: OllamaRegistry, tmp_path: Path, key: Path) -> None:
    """Breaks if the storage, or anybody that a registry redirects to, gets what opens private models."""
    registry.faults.tokens = True
    check(pull(registry, tmp_path / "home", key), registry)
    assert len(registry.signers) == 1
    assert len(registry.asked("storage")) > 1
    assert all("authorization" not in request.headers for request in registry.asked("storage"))
    exchanges = [request for request in registry.asked() if request.path.startswith("/token")]
    assert len(exchanges) == 1


def test_a_token_that_runs_out(registry: OllamaRegistry, tmp_path: Path, key: Path) -> None:
    """Breaks if a pull of many hours ends when its token does."""
    registry.faults.tokens, registry.faults.token_uses, registry.faults.bytes_at = True, 2, "here"
    # One connection: with several, others might use a new token up before the first request that it was fetched for.
    check(pull(registry, tmp_path / "home", key, replace(OPTIONS, connections=1)), registry)
    assert len([request for request in registry.asked() if request.path.startswith("/token")]) > 1


def test_without_a_key(registry: OllamaRegistry, nobody: Path) -> None:
    """Breaks if a registry that gives tokens to anybody wants a key that only Ollama makes; or if nothing says what is missing."""
    registry.faults.tokens = True
    message, hint = refused(registry, nobody)
    assert "gives no token to anybody" in message
    assert "signin" in hint
    registry.faults.anonymous = True
    assert snapshot(registry, nobody).files


def test_a_realm_elsewhere(registry: OllamaRegistry, key: Path) -> None:
    """Breaks if a signature goes to another host than the one that was asked for, which could use it."""
    registry.faults.tokens = True
    for realm in (f"{registry.storage_url}/token", "https://127.0.0.1/token", f"https://{registry.host}/token"):
        registry.faults.realm = realm
        assert "for a token" in refused(registry, key)[0]
    assert registry.asked("storage") == []


@pytest.mark.parametrize("challenge", ["", 'Basic realm="x"', "Bearer", 'Bearer realm="nowhere"', 'Bearer realm=",x'])
def test_a_login_that_is_not_ollamas(registry: OllamaRegistry, key: Path, challenge: str) -> None:
    """Breaks if a registry of another kind ends in a traceback."""
    registry.faults.refusals.append(Refusals(401, 1, {"WWW-Authenticate": challenge}, "manifests"))
    assert "login that is not Ollama's" in refused(registry, key)[0]


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'{"token":"a\\nb"}', b'{"token":5}', b"<html>"])
def test_a_token_that_is_none(registry: OllamaRegistry, key: Path, answer: bytes) -> None:
    """Breaks if what a broken registry calls a token gets into a header."""
    registry.faults.tokens = True
    registry.faults.refusals.append(Refusals(200, 1, {}, "token", answer))
    assert "does not answer like a registry" in refused(registry, key)[0]


def test_a_token_that_does_not_help(registry: OllamaRegistry, key: Path) -> None:
    """Breaks if a token that the registry gave and does not accept makes us ask for the next one for ever."""
    registry.faults.tokens, registry.faults.token_uses = True, 0
    message, hint = refused(registry, key)
    assert "refuses access" in message
    assert "~/.ollama" in hint
    assert len([request for request in registry.asked() if request.path.startswith("/token")]) == 1


def test_a_key_that_is_none(registry: OllamaRegistry, tmp_path: Path) -> None:
    """Breaks if a file that is no key of Ollama's is met as a defect of ours."""
    registry.faults.tokens = True
    path = tmp_path / "id"
    secret = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    for content in (b"nonsense", secret):
        path.write_bytes(content)
        assert "is no key that Ollama could use" in refused(registry, path)[0]


def test_a_busy_token_service_is_asked_again(registry: OllamaRegistry, key: Path) -> None:
    """Breaks if an overload of the one service costs what the other would have given."""
    registry.faults.tokens = True
    registry.faults.refusals.append(Refusals(503, 1, {"Retry-After": "0"}, "token"))
    assert snapshot(registry, key).files


def test_a_body_that_ends_early_is_transient(registry: OllamaRegistry, nobody: Path) -> None:
    """Breaks if half a layer passes for one."""
    registry.faults.drop_after = 10
    source = OllamaSource(registry.url, key=nobody)
    found = source.snapshot(NAME, None)
    file = next(file for file in found.files if file.path == "model.gguf")
    with pytest.raises(Transient), source.open_range(found, file, 0, 4000) as chunks:
        list(chunks)
    source.close()


def test_from_https_to_http(registry: OllamaRegistry, nobody: Path) -> None:
    """Breaks if a registry that was asked over HTTPS can have its manifest, which nothing else vouches for, read in plain text."""
    source = OllamaSource("https://registry.invalid", key=nobody)
    with pytest.raises(SourceUnavailable, match="redirects to plain HTTP"):
        source._redirects.lead("https://registry.invalid/v2/a/b/blobs/c", registry.url)
    source.close()
