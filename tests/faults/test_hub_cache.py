"""What the Hub's own client has on this machine is taken over: by ``add --from-hf-cache``, and by a pull, which looks there first."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_hub import FaultyHub
from machines import SECONDS, Machine, flip_bit
from make_models import make_gguf, make_sharded_safetensors
from refusals import failed, succeeded

NAME = "org/sharded"
OFFLINE = {"HF_HUB_OFFLINE": "1"}
DOWNLOAD = "import sys; from huggingface_hub import snapshot_download; snapshot_download(sys.argv[1], allow_patterns=sys.argv[2:] or None)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    make_sharded_safetensors(folder)
    return folder


@pytest.fixture
def hub(folder: Path, tmp_path: Path) -> Iterator[FaultyHub]:
    quants = tmp_path / "quants"
    quants.mkdir()
    make_gguf(quants / "m-Q8_0.gguf")
    make_gguf(quants / "m-Q4_K_M.gguf")
    with FaultyHub({NAME: folder, "org/quants": quants}) as hub:
        yield hub


@pytest.fixture
def pc(hub: FaultyHub, machine: Callable[..., Machine]) -> Machine:
    return machine("pc", endpoint=hub.url)


def download(pc: Machine, repository: str, *patterns: str) -> Path:
    """Have the real client download; give the folder of its cache."""
    environment = {**pc.environment(), "HF_HUB_DISABLE_XET": "1"}
    subprocess.run(
        [sys.executable, "-c", DOWNLOAD, repository, *patterns], env=environment, check=True, timeout=SECONDS
    )
    (cache,) = (pc.root / "home").glob(f"huggingface/hub/models--{repository.replace('/', '--')}")
    return cache


def weights(cache: Path) -> list[Path]:
    """The blobs of weights in a repository of a cache."""
    return sorted(path for path in (cache / "blobs").iterdir() if len(path.name) == 64)


def offline(pc: Machine) -> Machine:
    return Machine(pc.root, variables=OFFLINE)


def test_it_is_the_model_that_a_pull_brings(pc: Machine, machine: Callable[..., Machine], hub: FaultyHub) -> None:
    """Breaks if what was taken over is another model than what was pulled, or lies on the disk twice."""
    cache = download(pc, NAME)
    result = succeeded(pc, "add", "--from-hf-cache", NAME)
    assert result["model"]["name"] == NAME
    assert result["linked"] == sum(path.stat().st_size for path in weights(cache))
    for path in weights(cache):
        assert path.samefile(pc.vault / "blobs" / "sha256" / path.name)
    pulled = succeeded(machine("other", endpoint=hub.url), "pull", NAME)
    assert result["model"] == pulled["model"]
    assert pc.run("list").out.count(NAME) == 1
    pc.run("verify")
    assert succeeded(pc, "pull", NAME)["unchanged"] is True


def test_without_a_network(pc: Machine) -> None:
    """Breaks if an isolated machine cannot take over what it has, or does not say that nobody compared it."""
    download(pc, NAME)
    ran = offline(pc).json("add", "--from-hf-cache", NAME, "--name", "mine")
    assert "not compared with the Hub" in " ".join(ran.document["warnings"])
    assert (ran.result["model"]["name"], ran.result["model"]["source"]) == ("mine", f"hub:{NAME}")


@pytest.mark.parametrize("size", [64, 40])
def test_a_damaged_blob(pc: Machine, size: int) -> None:
    """Breaks if a name in the cache is believed: of a large file, or of a small one."""
    cache = download(pc, NAME)
    blob = next(path for path in sorted((cache / "blobs").iterdir()) if len(path.name) == size)
    blob.chmod(0o644)
    flip_bit(blob, blob.stat().st_size // 2)
    error = failed(offline(pc), "add", "--from-hf-cache", NAME, code=12)
    assert str(cache / "snapshots") in error["message"]
    assert pc.models() == set()
    # A pull takes what is sound from there, and the rest from the hub.
    result = succeeded(pc, "pull", NAME)
    assert 0 < result["received"] < result["model"]["size"]
    pc.run("verify")


def test_a_pull_looks_there_first(pc: Machine, hub: FaultyHub) -> None:
    """Breaks if what lies on the machine is downloaded again."""
    first = sorted(
        path.name for path in next(iter(hub.repositories[NAME].files.values())).local.parent.glob("*-00001-*")
    )
    cache = download(pc, NAME, "*-00001-*")
    hub.forget()
    plan = succeeded(pc, "pull", NAME, "--dry-run")
    found = {file["path"]: file["copy"] for file in plan["files"] if file["copy"]}
    assert list(found) == first
    assert plan["to_download"] == plan["total"] - weights(cache)[0].stat().st_size
    assert "in the Hub's cache" in pc.run("pull", NAME, "--dry-run").out
    result = succeeded(pc, "pull", NAME)
    assert hub.bytes_sent(first[0]) == 0
    assert result["received"] == plan["to_download"]
    assert weights(cache)[0].stat().st_nlink == 2


SHARE = """
import hashlib, sys
from pathlib import Path
from huggingface_hub.utils._shared_blobs import publish_blob_to_shared_store
for path in map(Path, sys.argv[2:]):
    name = hashlib.sha256(path.name.encode()).hexdigest()  # as arbitrary as the hash of Xet that stands there
    size = path.stat().st_size
    assert publish_blob_to_shared_store(blob_path=str(path), xet_hash=name, cache_dir=sys.argv[1], expected_size=size)
"""
"""Only what comes over Xet gets into the store; with no server of that kind to be had, the client's own function is called."""


def test_the_shared_store(pc: Machine) -> None:
    """Breaks if a blob that is a link into the store of the whole cache becomes a link in the vault, or is not found."""
    cache = download(pc, NAME)
    subprocess.run([sys.executable, "-c", SHARE, cache.parent, *weights(cache)], check=True, timeout=SECONDS)
    assert all(blob.is_symlink() for blob in weights(cache))
    assert succeeded(offline(pc), "add", "--from-hf-cache", NAME)["linked"] > 0
    assert not [path for path in (pc.vault / "blobs" / "sha256").iterdir() if path.is_symlink()]
    shutil.rmtree(cache.parent / "blobs")
    pc.run("verify")


def test_a_part_of_a_repository(pc: Machine) -> None:
    """Breaks if a model with missing shards is taken over, or if it is not said what brings the rest."""
    download(pc, NAME, "*-00001-*", "*.json")
    assert failed(offline(pc), "add", "--from-hf-cache", NAME, code=13)["hint"]
    download(pc, "org/quants", "m-Q8_0.gguf")
    ran = pc.json("add", "--from-hf-cache", "org/quants:Q8_0")
    assert ran.result["model"]["name"] == "org/quants:Q8_0"


def test_what_is_not_there(pc: Machine) -> None:
    """Breaks if a name that is not there is not answered with what is, or several quantizations not with the choices."""
    download(pc, "org/quants")
    assert "org/quants" in failed(pc, "add", "--from-hf-cache", "org/quant", code=10)["hint"]
    error = failed(offline(pc), "add", "--from-hf-cache", "org/quants", code=2)
    assert {choice["name"] for choice in error["data"]["choices"]} == {"Q8_0", "Q4_K_M"}
    assert "--revision" in failed(pc, "add", "--from-hf-cache", "org/quants:Q8_0", "--revision", "v9", code=10)["hint"]
    assert "add --from-ollama" in failed(pc, "add", "--from-hf-cache", "ollama:x", code=2)["hint"]
    nowhere = failed(pc, "add", "--from-hf-cache", "org/quants:Q8_0", "--store", pc.root / "nowhere", code=10)
    assert "no models at all" in nowhere["hint"]


def test_a_cache_that_disagrees_with_the_hub(pc: Machine, hub: FaultyHub, tmp_path: Path, folder: Path) -> None:
    """Breaks if a cache that somebody altered, names and all, is believed where the Hub says otherwise."""
    shutil.copytree(folder, tmp_path / "altered")
    path = next((tmp_path / "altered").glob("*-00001-*"))
    flip_bit(path, path.stat().st_size - 100)
    with FaultyHub({NAME: tmp_path / "altered"}) as other:
        other.repositories[NAME].commit = hub.commit(NAME)
        download(Machine(pc.root, other.url), NAME)
    error = failed(pc, "add", "--from-hf-cache", NAME, code=12)
    assert path.name in error["message"]
    assert "what the Hub lists" in error["message"]


def test_a_file_that_somebody_put_there(pc: Machine) -> None:
    """Breaks if code or weights that the Hub does not have become part of the Hub's model."""
    cache = download(pc, NAME)
    (root,) = (cache / "snapshots").iterdir()
    (root / "modeling_x.py").write_text("import os")
    assert "modeling_x.py is in the cache, but not in" in failed(pc, "add", "--from-hf-cache", NAME, code=12)["message"]
    error = failed(offline(pc), "add", "--from-hf-cache", NAME, code=12)
    assert "nothing vouches for modeling_x.py" in error["message"]
    assert not pc.models()
