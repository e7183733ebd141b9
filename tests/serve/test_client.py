"""The real client and the real command line of the Hugging Face Hub against our server."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, close_session, constants, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder
from serve_hub import NEW, OLD, QUANTS, Hub

from modelvault.artifact import Digest


@pytest.fixture(autouse=True)
def quiet_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep the client from calling home, from looking for another store than ours, and from leaving connections open."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield
    close_session()


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=False)


def read_all(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.relative_to(folder).parts
    }


def test_model_info_pins_the_newest_commit(api: HfApi) -> None:
    """``pull`` asks this first; a wrong commit would mix files of two revisions."""
    info = api.model_info("org/tiny")
    assert (info.id, info.author, info.sha) == ("org/tiny", "org", NEW)
    assert info.card_data is not None
    assert info.card_data.license == "apache-2.0"
    assert info.tags == ["safetensors", "license:apache-2.0"]
    assert not info.gated
    assert api.model_info("org/tiny", revision="main").sha == NEW
    old = api.model_info("org/tiny", revision=OLD)
    assert old.sha == OLD
    assert [sibling.rfilename for sibling in old.siblings or []] == ["README.md"]


def test_blobs_carry_sizes_and_digests(api: HfApi, hub: Hub) -> None:
    """Without the digests a client cannot verify what it downloads."""
    siblings = {
        sibling.rfilename: sibling for sibling in api.model_info("org/tiny", files_metadata=True).siblings or []
    }
    assert set(siblings) == set(hub.files["org/tiny"])
    for path, data in hub.files["org/tiny"].items():
        lfs = siblings[path].lfs
        assert siblings[path].size == len(data)
        assert (lfs is not None) == path.endswith(".safetensors")
        if lfs is not None:
            assert (lfs.sha256, lfs.size) == (Digest.of_bytes(data).hex, len(data))


def test_tree_lists_files_and_folders(api: HfApi, hub: Hub) -> None:
    """This is the listing that every download of a whole model starts from."""
    whole = list(api.list_repo_tree("org/tiny", recursive=True, expand=True))
    assert {entry.path for entry in whole if isinstance(entry, RepoFile)} == set(hub.files["org/tiny"])
    assert [entry.path for entry in whole if isinstance(entry, RepoFolder)] == ["sub", "sub/deep"]
    top = [entry.path for entry in api.list_repo_tree("org/tiny")]
    assert top == ["README.md", "config.json", "empty.txt", "model.safetensors", "sub"]
    below = [entry.path for entry in api.list_repo_tree("org/tiny", "sub", recursive=True)]
    assert below == ["sub/deep", "sub/deep/tokenizer.json", "sub/\u00fcber \u00a7%25.txt"]


def test_listing_spans_pages(api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository of more files than a page must not lose the rest."""
    monkeypatch.setattr("modelvault.serve.app.PAGE", 2)
    assert len(list(api.list_repo_tree("org/tiny", recursive=True))) == 8


def test_paths_info_gives_what_was_asked_for(api: HfApi) -> None:
    """``hf`` looks single files up this way."""
    found = api.get_paths_info("org/tiny", ["config.json", "sub", "missing"], expand=True)
    assert [(type(entry), entry.path) for entry in found] == [(RepoFile, "config.json"), (RepoFolder, "sub")]
    assert api.get_paths_info("org/tiny", "README.md", revision=OLD)[0].path == "README.md"


def test_refs_and_existence(api: HfApi) -> None:
    """The client checks both before it reads."""
    refs = api.list_repo_refs("org/tiny")
    assert [(branch.name, branch.target_commit) for branch in refs.branches] == [("main", NEW)]
    assert api.repo_exists("org/tiny")
    assert not api.repo_exists("org/none")
    assert api.file_exists("org/tiny", "config.json")
    assert not api.file_exists("org/tiny", "config.yaml")
    assert api.revision_exists("org/tiny", OLD)
    assert not api.revision_exists("org/tiny", "f" * 40)


def test_models_are_listed_and_searched(api: HfApi) -> None:
    """Someone at another machine wants to see what there is."""
    assert [model.id for model in api.list_models()] == ["local", "old-tiny", "org/tiny", "org/tiny-GGUF", "tiny-q4"]
    assert [model.id for model in api.list_models(search="gguf")] == ["org/tiny-GGUF"]
    assert [model.id for model in api.list_models(author="org")] == ["org/tiny", "org/tiny-GGUF"]
    assert [model.id for model in api.list_models(filter="gguf")] == ["org/tiny-GGUF", "tiny-q4"]
    assert len(list(api.list_models(limit=1))) == 1


def test_quants_of_one_commit_are_one_repository(api: HfApi, hub: Hub, tmp_path: Path) -> None:
    """Two quantizations pulled separately come from one repository, and are found there again."""
    snapshot_download("org/tiny-GGUF", endpoint=hub.url, local_dir=tmp_path, token=False)
    assert read_all(tmp_path) == hub.files["org/tiny-GGUF"]
    assert api.model_info("org/tiny-GGUF").sha == QUANTS


@pytest.mark.parametrize("repository", ["org/tiny", "local", "tiny-q4"])
def test_snapshot_is_the_model(hub: Hub, tmp_path: Path, repository: str) -> None:
    """Whole models arrive byte for byte, also the one that never was on the Hub and has a short name."""
    cached = Path(snapshot_download(repository, endpoint=hub.url, cache_dir=tmp_path, token=False))
    assert read_all(cached) == hub.files[repository]
    assert cached.name == (NEW if repository == "org/tiny" else cached.name)
    if repository == "org/tiny":
        names = {path.name for path in (tmp_path / "models--org--tiny/blobs").iterdir()}
        assert Digest.of_bytes(hub.files["org/tiny"]["model.safetensors"]).hex in names


def test_folder_model_has_its_manifest_as_commit(api: HfApi, hub: Hub) -> None:
    """An engine's cache needs a commit; this is the one that import uses too."""
    stored = next(stored for stored in hub.shelf.stored if stored.model.name.text == "local")
    assert api.model_info("local").sha == stored.manifest.hex[:40]


def test_file_metadata_names_digest_and_commit(hub: Hub) -> None:
    """Our own ``pull`` and the client's cache both go by these headers."""
    weights = get_hf_file_metadata(hf_hub_url("org/tiny", "model.safetensors", endpoint=hub.url), token=False)
    assert weights.etag == Digest.of_bytes(hub.files["org/tiny"]["model.safetensors"]).hex
    assert (weights.commit_hash, weights.size) == (NEW, 5_000_003)
    assert weights.xet_file_data is None
    config = get_hf_file_metadata(hf_hub_url("org/tiny", "config.json", endpoint=hub.url), token=False)
    assert config.etag is not None
    assert (len(config.etag), config.size) == (40, 24)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda api: api.model_info("org/none"), RepositoryNotFoundError),
        (lambda api: api.model_info("none"), RepositoryNotFoundError),
        (lambda api: api.model_info("org/tiny", revision="v1"), RevisionNotFoundError),
        (lambda api: api.model_info("org/tiny", revision="refs/pr/1"), RevisionNotFoundError),
        (lambda api: list(api.list_repo_tree("org/none")), RepositoryNotFoundError),
        (lambda api: list(api.list_repo_tree("org/tiny", revision="v1")), RevisionNotFoundError),
        (lambda api: list(api.list_repo_tree("org/tiny", "none")), RemoteEntryNotFoundError),
        (lambda api: api.get_paths_info("org/none", "a"), RepositoryNotFoundError),
        (lambda api: api.hf_hub_download("org/tiny", "none.json"), RemoteEntryNotFoundError),
        (lambda api: api.hf_hub_download("org/none", "a.json"), RepositoryNotFoundError),
        (lambda api: api.hf_hub_download("org/tiny", "a.json", revision="v1"), RevisionNotFoundError),
    ],
)
def test_errors_are_the_clients_own(
    api: HfApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[[HfApi], object],
    error: type[HfHubHTTPError],
) -> None:
    """The exit code and the hint that a user sees hang on the client raising the right class."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(error):
        call(api)


def test_hf_command_downloads(hub: Hub, tmp_path: Path) -> None:
    """The promise of the manual: ``HF_ENDPOINT=... hf download org/tiny`` works."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    hf = Path(sys.executable).with_name("hf")
    whole = [str(hf), "download", "org/tiny", "--local-dir", str(tmp_path / "whole")]
    done = subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert read_all(tmp_path / "whole") == hub.files["org/tiny"]
    one = [str(hf), "download", "org/tiny-GGUF", "tiny-Q8_0.gguf", "--local-dir", str(tmp_path / "one")]
    done = subprocess.run(one, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert read_all(tmp_path / "one") == {"tiny-Q8_0.gguf": hub.files["org/tiny-GGUF"]["tiny-Q8_0.gguf"]}
