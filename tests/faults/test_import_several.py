"""Several models, several bundles, several imports at the same moment: what fails costs only itself, and the newest stays."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from imports import GGUF, SHARDED, Delivery, Shipment, digests, ship, whole_in_ollama
from machines import SECONDS, Machine, Ran, flip_bit, only_bundle, small_disk, trust
from make_models import make_gguf_repository

from modelvault.errors import PartlyDone, TrustRefused
from modelvault.locks import FileLock
from modelvault.operations.import_ import ImportRequest, import_bundles
from modelvault.operations.install import Placement
from modelvault.progress import NoProgress
from modelvault.vault import Vault


@pytest.fixture(scope="module")
def shipment(tmp_path_factory: pytest.TempPathFactory) -> Shipment:
    return ship(tmp_path_factory.mktemp("shipment"))


@pytest.fixture
def delivery(shipment: Shipment, tmp_path: Path) -> Delivery:
    return shipment.deliver(tmp_path)


class Ages:
    """Two bundles of one label, made one after the other, of models that changed in between; and a server that trusts both."""

    def __init__(self, pc: Machine, server: Machine, root: Path) -> None:
        drive = root / "drive"
        drive.mkdir()
        for age, sequence in (("old", 10), ("new", 20)):
            folder = root / age
            make_gguf_repository(folder, name=age)
            for name in ("first", "second"):
                pc.run("add", folder, "--name", name)
            pc.run("bundle", "--to", drive, "--sequence", str(sequence))
        self.old, self.new = drive / "models-10.mvbundle", drive / "models-20.mvbundle"
        self.pc, self.server = pc, server
        trust(server, pc, self.new)

    def manifests(self) -> dict[str, str]:
        """What the vault lists."""
        return {model["name"]: model["manifest"] for model in self.server.json("list").result["models"]}


@pytest.fixture
def ages(machine: Callable[..., Machine], tmp_path: Path) -> Ages:
    return Ages(machine("pc"), machine("server"), tmp_path)


def wants(process: "subprocess.Popen[bytes]", lock: Path) -> bool:
    """Whether a process has a lock's file open: it holds the lock, or waits for it."""
    try:
        return any(path.readlink() == lock for path in Path(f"/proc/{process.pid}/fd").iterdir())
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("here", [False, True], ids=["to be received", "all here"])
def test_the_newer_of_two_imports_stays(ages: Ages, here: bool) -> None:
    """Breaks if an older bundle, being imported when a newer one is, is published over it: its weakness would be back."""
    server = Machine(ages.server.root, variables={"MODELVAULT_LOCK_WAIT": str(SECONDS)})
    if here:
        other = ages.pc.root / "again"
        other.mkdir()
        # The same blobs under other names: nothing of the older bundle has to be read.
        make_gguf_repository(other / "old", name="old")
        server.run("add", other / "old", "--name", "kept")
    lock = server.vault / "index.lock"
    key = ages.pc.json("keys", "show").result["keys"][0]["fingerprint"]
    newer = {"index": "0" * 64, "label": "models", "sequence": 20, "key": key, "path": str(ages.new), "models": []}
    with Vault.open(server.vault) as vault, server.started("import", ages.old) as older:
        with FileLock(lock):
            deadline = time.monotonic() + SECONDS
            while not wants(older, lock):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pytest.fail(f"it did not wait for the vault: {older.wait(0.02)}")
                assert time.monotonic() < deadline
            vault.record("bundle-imported", newer)  # what the newer import did in the meantime
        assert older.wait(SECONDS) == TrustRefused.exit_code
    assert set(ages.manifests()) == ({"kept"} if here else set())


def test_an_engine_keeps_the_newer_of_two_imports(ages: Ages) -> None:
    """Breaks if an import that was overtaken between the vault and the engine still installs its older model there."""
    engine = ages.server.root / "models"
    placement = Placement.parse([f"folder={engine}"])

    class Overtaken(NoProgress):
        """Imports the newer bundle when the older import sets out to install."""

        done = False

        def log(self, message: str) -> None:
            if message.startswith("installing first") and not self.done:
                self.done = True
                with Vault.open(ages.server.vault) as other:
                    import_bundles(other, ImportRequest((ages.new,), placement=placement), NoProgress())

    progress = Overtaken()
    with Vault.open(ages.server.vault) as vault, pytest.raises((PartlyDone,)) as refused:
        import_bundles(vault, ImportRequest((ages.old,), placement=placement), progress)
    assert progress.done
    assert any("replaced in the vault by another import" in reason for reason in refused.value.data["failed"])
    newest = digests(ages.server.root.parent / "new")
    assert digests(engine / "second").items() >= newest.items()


def outcomes(ran: Ran) -> list[dict[str, str]]:
    """What became of each model, by bundle."""
    return [{model["name"]: model["outcome"] for model in one["models"]} for one in ran.result["imports"]]


def test_an_obstacle_in_the_vault_costs_one_model(delivery: Delivery) -> None:
    """Breaks if what the system has against one blob keeps the other models from being published and installed."""
    weights = digests(delivery.shipment.folders[GGUF])["tiny-Q8_0.gguf"]
    delivery.server.run("gc")
    obstacle = delivery.server.vault / "blobs" / "sha256" / weights
    obstacle.mkdir(parents=True)
    ran = delivery.server.json("import", delivery.bundle, *delivery.engines, code=3)
    assert outcomes(ran) == [{GGUF: "refused", SHARDED: "installed"}]
    (failed,) = ran.document["error"]["data"]["failed"]
    assert failed.startswith(f"{GGUF}: ")
    assert weights in failed
    obstacle.rmdir()
    done = delivery.server.json("import", delivery.bundle, *delivery.engines)
    assert outcomes(done) == [{GGUF: "installed", SHARDED: "installed already"}]
    # What was received before lay there all the time.
    assert done.result["imports"][0]["resumed"] > 0


def test_two_models_fail_for_different_reasons(delivery: Delivery) -> None:
    """Breaks if only the first of several failures decides what a script is told, or if a reason gets lost."""
    flip_bit(delivery.bundle / "volume-0002.tar.zst", 100_000)
    taken = delivery.ollama / "manifests/registry.ollama.ai/library/tiny/q8_0"
    taken.parent.mkdir(parents=True)
    taken.write_text("{}")
    ran = delivery.server.json("import", delivery.bundle, *delivery.engines, code=3)
    assert outcomes(ran) == [{GGUF: "received", SHARDED: "refused"}]
    error = ran.document["error"]
    assert ran.document["status"] == "partial"
    assert {line.replace(":", " ").split()[0] for line in error["data"]["failed"]} == {GGUF, SHARDED}
    assert error["message"].startswith("2 of 2 models")


def test_one_model_in_two_bundles(delivery: Delivery, tmp_path: Path) -> None:
    """Breaks if a damaged bundle hides that another one brought its model, or the other way round."""
    pc, drive = Machine(Path(shutil.copytree(delivery.shipment.pc.root, tmp_path / "pc"))), tmp_path / "other"
    drive.mkdir()
    pc.run("bundle", GGUF, "--to", drive, "--label", "other")
    good = only_bundle(drive)
    for name in ("volume-0004.tar.zst", "volume-0003.tar.zst"):
        (delivery.bundle / name).unlink()
    only = ("--only", GGUF, "--engine", f"ollama={delivery.ollama}")
    ran = delivery.server.json("import", delivery.bundle, good, *only, code=3)
    assert outcomes(ran) == [{GGUF: "waiting"}, {GGUF: "installed"}]
    assert ran.document["error"]["message"] == f"1 of 2 models still wait for volumes: {GGUF}"
    assert list(whole_in_ollama(delivery.ollama)) == [GGUF]


def test_a_repeated_import_says_so(delivery: Delivery) -> None:
    """Breaks if a repeat claims to have received and installed what was there already, at so many bytes a second."""
    first = delivery.server.run("import", delivery.bundle, *delivery.engines)
    assert "verified and received" in first.out
    assert "/s)" not in first.out
    again = delivery.server.run("import", delivery.bundle, *delivery.engines)
    assert "everything was here already" in again.out
    assert again.out.count("installed already") == 2
    assert again.out.count("there already") == 2
    assert "received 0 B" not in again.out


@pytest.mark.parametrize(("options", "words"), [((), "--only"), (("--only", GGUF), "parameter")])
def test_a_modelfile_is_judged_first(delivery: Delivery, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    """Breaks if a Modelfile for nobody, or one that Ollama would not take, costs hours of reading before it is noticed."""
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text("PARAMETER no_such 1\n")
    given = ("--engine", f"ollama={delivery.ollama}", "--modelfile", str(modelfile), *options)
    ran = delivery.server.run("import", delivery.bundle, *given, code=2)
    assert words in ran.err
    assert delivery.server.models() == set()


def test_a_modelfile_of_the_users(delivery: Delivery, tmp_path: Path) -> None:
    """Breaks if import cannot give a model the template that its bundle lacks."""
    modelfile = tmp_path / "Modelfile"
    modelfile.write_text("SYSTEM from the user\n")
    only = ("--only", GGUF, "--engine", f"ollama={delivery.ollama}", "--modelfile", modelfile)
    delivery.server.run("import", delivery.bundle, *only)
    assert b"from the user" in {path.read_bytes() for path in (delivery.ollama / "blobs").iterdir()}


def test_no_engine_takes_it(delivery: Delivery) -> None:
    """Breaks if a user whose server has only a hub cache does not learn why a GGUF went nowhere, and what to type."""
    server = Machine(delivery.server.root, variables={"HF_HUB_CACHE": str(delivery.cache)})
    delivery.cache.mkdir()
    ran = server.json("import", delivery.bundle, "--only", GGUF)
    (warning,) = ran.document["warnings"]
    assert f"found here: vllm ({delivery.cache})" in warning
    assert "vllm: vLLM" not in warning
    assert f"`modelvault install {GGUF} --engine ollama`" in warning
    refused = server.run("install", GGUF, code=16)
    assert f"`modelvault install {GGUF} --engine ollama`" in refused.err
    server.run("install", GGUF, "--engine", "ollama")
    named = server.run("install", GGUF, "--engine", f"vllm={delivery.cache}", code=16)
    assert "vllm: vLLM" not in named.err


@pytest.mark.root
def test_a_plan_says_what_is_free(delivery: Delivery, as_root: None, tmp_path: Path) -> None:
    """Breaks if somebody learns only after an hour that the engine's disk is too small, or cannot plan for that reason."""
    with small_disk(tmp_path / "image", tmp_path / "disk", 4 << 20) as disk:
        target = disk / "models"
        ran = delivery.server.json("import", delivery.bundle, "--engine", f"folder={target}", "--dry-run")
        assert not target.exists()
    (imported,) = ran.result["imports"]
    vault, engine = imported["disks"]
    assert vault["path"] == str(delivery.server.vault)
    assert vault["needed"] < vault["free"]
    assert engine["path"] == str(target)
    assert engine["needed"] > engine["free"]
    assert any(str(target) in warning and "free" in warning for warning in ran.document["warnings"])
