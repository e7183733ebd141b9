"""What ``import`` and ``install`` say and record: names that two models would get, repetitions, plans that come true."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from drives import carry, lose
from imports import whole_in_ollama
from machines import Machine, only_bundle, small_disk, trust
from make_models import make_gguf_repository

from modelvault.artifact import Digest, ModelName
from modelvault.results.installs import Outcome
from modelvault.vault import RESERVE, Vault

ALICE, BOB = "alice/foo:Q8_0", "bob/foo:Q8_0"


@dataclass(frozen=True)
class World:
    """A bundle of two models that Ollama would call the same, and a server that trusts it."""

    pc: Machine
    server: Machine
    bundle: Path

    @property
    def ollama(self) -> str:
        return f"ollama={self.server.root / 'ollama'}"

    def imported(self, *options: str | Path, code: int = 0) -> dict[str, Any]:
        """Import into Ollama; give the outcome of the one bundle, and the error."""
        ran = self.server.json("import", self.bundle, "--engine", self.ollama, *options, code=code)
        outcome: dict[str, Any] = ran.result["imports"][0] | {"error": ran.document["error"]}
        return outcome

    def events(self, kind: str) -> int:
        """How many events of a kind the server's log has."""
        return sum(json.loads(line)["kind"] == kind for line in self.log())

    def log(self) -> list[str]:
        """The lines of the server's log."""
        return (self.server.vault / "events.jsonl").read_text().splitlines()


def fates(outcome: dict[str, Any]) -> dict[str, str]:
    return {model["name"]: model["outcome"] for model in outcome["models"]}


def reason(outcome: dict[str, Any], name: str) -> str:
    (found,) = [str(model["reason"]) for model in outcome["models"] if model["name"] == name]
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    pc, server, drive = Machine(root / "pc"), Machine(root / "server"), root / "drive"
    for place in (pc.root, server.root, drive):
        place.mkdir()
    for name in (ALICE, BOB):
        folder = root / name.partition("/")[0]
        make_gguf_repository(folder, name=folder.name)
        pc.run("add", folder, "--name", name)
    pc.run("bundle", "--to", drive, "--volume-size", "2MiB")
    trust(server, pc, only_bundle(drive))
    return World(pc, server, only_bundle(drive))


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    shutil.copytree(made.server.root, tmp_path / "server")
    bundle = Path(shutil.copytree(made.bundle, tmp_path / "drive" / made.bundle.name))
    return World(made.pc, Machine(tmp_path / "server"), bundle)


def test_two_models_never_share_a_name(world: World) -> None:
    """Breaks if the second of two models that get one name in an engine destroys the first, and both are called installed."""
    planned, done = world.imported("--dry-run", code=3), world.imported(code=3)
    assert fates(planned) == {ALICE: Outcome.WOULD_BE_INSTALLED, BOB: Outcome.WOULD_BE_RECEIVED}
    assert fates(done) == {ALICE: Outcome.INSTALLED, BOB: Outcome.RECEIVED}
    for outcome in (planned, done):
        assert reason(outcome, BOB).startswith(f"{BOB} would get the name of {ALICE} in ollama")
        assert f"--only {BOB} --as OTHER" in outcome["error"]["hint"]
    assert list(whole_in_ollama(world.server.root / "ollama")) == ["foo"]
    assert world.server.json("show", ALICE).result["installs"]
    # What is told to be typed works; and by now alice's is an install of another model.
    alone = world.imported("--only", BOB, code=16)
    assert f"modelvault uninstall foo:q8_0 --engine {world.ollama}" in alone["error"]["hint"]
    assert fates(world.imported("--only", BOB, "--as", "other")) == {BOB: Outcome.INSTALLED}
    assert sorted(whole_in_ollama(world.server.root / "ollama")) == ["foo", "other"]


def test_another_models_install_stays(world: World) -> None:
    """Breaks if a model whose name in an engine is taken by another model's install replaces that without a word."""
    world.server.run("import", world.bundle)
    engine = ("--engine", f"folder={world.server.root / 'models'}", "--as", "mine")
    world.server.run("install", ALICE, *engine)
    before = world.server.json("show", ALICE).result["installs"]
    for options in (("--dry-run",), ()):
        error = world.server.json("install", BOB, *engine, *options, code=16).document["error"]
        assert f"mine in {world.server.root / 'models'} is the install of {ALICE}" in error["message"]
        assert f"modelvault uninstall mine {engine[0]} {engine[1]}" in error["hint"]
    assert world.server.json("show", ALICE).result["installs"] == before
    world.server.run("uninstall", "mine", *engine[:2])
    world.server.run("install", BOB, *engine)


def test_repetitions_are_no_history(world: World) -> None:
    """Breaks if the log and `show` say that a model was installed or imported when it was only verified."""
    command = ("--only", ALICE)
    assert fates(world.imported(*command)) == {ALICE: Outcome.INSTALLED}
    assert fates(world.imported(*command)) == {ALICE: Outcome.INSTALLED_ALREADY}
    world.server.run("install", ALICE, "--engine", world.ollama)
    assert world.events("install") == 1
    for _ in range(2):
        world.server.run("import", world.bundle)
    assert world.events("bundle-imported") == 1
    next((world.server.root / "ollama/manifests").rglob("q8_0")).unlink()
    world.server.run("install", ALICE, "--engine", world.ollama)
    assert world.events("install") == 2


def test_a_bundle_that_came_model_by_model(world: World, tmp_path: Path) -> None:
    """Breaks if nothing protects from older bundles after the newest one came in parts, each with `--only`."""
    world.server.run("import", world.bundle, "--only", ALICE)
    assert world.events("bundle-imported") == 0
    world.server.run("import", world.bundle, "--only", BOB)
    assert world.events("bundle-imported") == 1
    for options in ((), ("--only", BOB)):
        world.server.run("import", world.bundle, *options)
    (record,) = (json.loads(line) for line in world.log() if '"bundle-imported"' in line)
    assert record["data"]["models"] == [ALICE, BOB]
    pc, older = Machine(Path(shutil.copytree(world.pc.root, tmp_path / "pc"))), tmp_path / "older"
    older.mkdir()
    pc.run("bundle", "--to", older, "--sequence", "1")
    assert "sequence 1" in world.server.run("import", only_bundle(older), code=14).err


def test_records_of_later_versions(world: World) -> None:
    """Breaks if an install that a later version recorded, with more to say, can be neither repeated nor removed."""
    world.imported("--only", ALICE)
    events = (world.server.vault / "events.jsonl").read_text().splitlines()
    (recorded,) = [json.loads(line)["data"] for line in events if json.loads(line)["kind"] == "install"]
    with Vault.existing(world.server.vault) as vault:
        vault.record("install", recorded | {"more": 1})
    world.server.run("install", ALICE, "--engine", world.ollama)
    with Vault.existing(world.server.vault) as vault:
        vault.record("install", recorded | {"files": 1})
    for command in (("install", ALICE), ("uninstall", ALICE)):
        error = world.server.json(*command, "--engine", world.ollama, code=13).document["error"]
        assert "record of the install foo:q8_0" in error["message"]
        assert "registry rebuild" in error["hint"]


def test_a_manifest_of_a_later_version(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if what this version does not know in a signed manifest is dropped: the model listed would be another than the one signed."""
    pc, server, drive = machine("pc"), machine("server"), tmp_path / "drive"
    drive.mkdir()
    pc.run("add", tiny_gguf, "--name", "tiny")
    with Vault.existing(pc.vault) as vault:
        stored = vault.model(ModelName("tiny"))
        document = json.loads(vault.store.read_document(stored.manifest))
        config = vault.store.read_document(Digest.parse(document["config"]["digest"]))
        document["annotations"]["dev.modelvault.of-tomorrow"] = "1"
        with vault.publishing():
            signed = vault.publish(stored.model, {}, documents=(json.dumps(document).encode(), config))
    assert signed.manifest != stored.manifest
    pc.run("bundle", "--to", drive)
    trust(server, pc, only_bundle(drive))
    for new in (True, False):
        (imported,) = server.json("import", only_bundle(drive)).result["imports"]
        assert bool(imported["models"][0]["new_bytes"]) is new
        assert server.json("gc").result["blobs"] == 0
    server.run("verify")
    server.run("registry", "rebuild")
    (listed,) = server.json("list").result["models"]
    assert listed["manifest"] == str(signed.manifest)


def test_a_plan_knows_what_is_not_here(world: World) -> None:
    """Breaks if a plan promises a model of which a volume is missing, or if nothing read is said of a model that was refused."""
    last = json.loads((world.bundle / "bundle.json").read_bytes())["volumes"]
    lose(world.bundle, len(last))
    planned, done = (world.imported("--only", BOB, *options, code=3) for options in (["--dry-run"], []))
    assert fates(planned) == {BOB: Outcome.WOULD_WAIT}
    assert fates(done) == {BOB: Outcome.WAITING}
    assert reason(planned, BOB) == reason(done, BOB)
    assert planned["wanted"] == done["wanted"] == [len(last)]
    again = world.server.run("import", world.bundle, "--only", BOB, code=3)
    assert "everything was here" not in again.out
    assert again.out.count(f"{BOB}: ") == 0, again


def test_a_damaged_list_is_met_first(world: World) -> None:
    """Breaks if hours are spent on receiving what then cannot be listed."""
    world.server.run("import", world.bundle, "--only", ALICE)
    (world.server.vault / "index.json").write_text("{")
    ran = world.server.json("import", world.bundle, code=13)
    assert "registry rebuild" in ran.document["error"]["hint"]
    assert not list((world.server.vault / "partial").iterdir())


@pytest.mark.root
def test_plan_and_import_agree_on_the_room(world: World, tmp_path: Path, as_root: None) -> None:
    """Breaks if a plan that fits ends without room, or if a model that is in the vault is refused since another has no room."""
    with small_disk(tmp_path / "disk.img", tmp_path / "disk", 24 << 20) as disk:
        shutil.copytree(world.server.vault, disk / "vault")
        server = Machine(world.server.root, variables={"MODELVAULT_HOME": str(disk / "vault")})
        server.run("import", world.bundle, "--only", ALICE)
        (needed,) = server.json("import", world.bundle, "--dry-run").result["imports"][0]["disks"]
        new = shutil.disk_usage(disk).free
        with (disk / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, new - needed["needed"] + (RESERVE >> 1))
        plan = server.json("import", world.bundle, "--dry-run")
        assert any("are needed" in warning for warning in plan.document["warnings"]), plan
        other = World(world.pc, server, world.bundle)
        assert fates(other.imported(code=3)) == {ALICE: Outcome.INSTALLED, BOB: Outcome.REFUSED}
        assert not list((disk / "vault/partial").glob("*/received.log"))
        assert fates(other.imported("--only", ALICE)) == {ALICE: Outcome.INSTALLED_ALREADY}


def test_whose_signature(world: World) -> None:
    """Breaks if one is told to trust a key that is trusted, or a key that signed nothing."""
    index, signature = world.bundle / "bundle.json", world.bundle / "bundle.json.sig"
    text = index.read_bytes()
    index.write_bytes(text.replace(b'"sequence":', b'"sequence":1'))
    error = world.server.json("import", world.bundle, code=14).document["error"]
    assert "does not fit bundle.json: it was changed after default signed it" in error["message"]
    assert "keys trust" not in error["hint"]
    index.write_bytes(text)
    signature.unlink()
    error = world.server.json("import", world.bundle, code=14).document["error"]
    assert error["message"] == f"{world.bundle} has no signature (bundle.json.sig is missing)"
    assert "keys trust" not in error["hint"]


def test_a_plan_of_nothing(world: World) -> None:
    """Breaks if a dry run of what is all here reads as if something would be, or had been, done."""
    world.imported("--only", ALICE)
    for command in (("import", world.bundle, "--only", ALICE), ("install", ALICE)):
        out = world.server.run(*command, "--engine", world.ollama, "--dry-run").out
        assert "nothing to do" in out
        assert "would" not in out


def test_a_bundle_is_planned_of_what_is_there(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if `bundle --dry-run` promises what the vault has lost."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    largest = max((pc.vault / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    largest.unlink()
    error = pc.json("bundle", "--to", tmp_path, "--dry-run", code=12).document["error"]
    assert f"{largest.name}) is missing from the vault" in error["message"]


def test_the_drives_of_two_models(world: World, tmp_path: Path) -> None:
    """Breaks if a model of which all is here waits with the other one, whose volumes come later."""
    first = carry(world.bundle, tmp_path / "first", [1])
    ran = world.server.json("import", first, "--only", ALICE, "--only", BOB, code=3)
    assert set(fates(ran.result["imports"][0]).values()) <= {Outcome.RECEIVED, Outcome.WAITING}
    world.server.run("import", world.bundle, "--only", ALICE, "--only", BOB)
    assert world.server.models() == {ALICE, BOB}


def test_a_version_that_gives_way_is_named(machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if a bundle of another label puts an older version in the place of a newer one, in vault and engine, without a word."""
    pc, server = machine("pc"), machine("server")
    bundles, manifests = [], []
    for number, (label, sequence) in enumerate((("old", "100"), ("new", "200")), 1):
        folder, drive = tmp_path / label, tmp_path / f"{label}-drive"
        drive.mkdir()
        make_gguf_repository(folder, name="tiny", seed=number)
        manifests.append(pc.json("add", folder, "--name", "tiny").result["model"]["manifest"].partition(":")[2][:12])
        pc.run("bundle", "--to", drive, "--label", label, "--sequence", sequence)
        bundles.append(only_bundle(drive))
    old, new = bundles
    trust(server, pc, old)
    engine = ("--engine", f"folder={server.root / 'models'}")
    server.run("import", old, *engine)
    forth = f"the version that bundle old/100 brought ({manifests[0]})"
    back = f"the version that bundle new/200 brought ({manifests[1]})"
    for bundle, version, older in ((new, forth, 0), (old, back, 1)):
        planned = server.json("import", bundle, *engine, "--dry-run")
        (outcome,) = planned.result["imports"]
        assert [line["replaces"] for line in (*outcome["models"], *outcome["installs"])] == [version, version]
        for options, verb in ((["--dry-run"], "would replace"), ([], "replaces")):
            ran = server.run("import", bundle, *engine, *options)
            assert f"  tiny {verb} {version}" in ran.out
            assert f"  tiny in folder {verb} {version}" in ran.out
            assert ran.err.count("older, by its sequence, than new/200") == older
    assert "replaces" not in server.run("import", old, *engine).out


def test_two_names_of_one_model(machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if every import fails once the same files are in the vault under two names, which an engine calls the same."""
    pc, server, drive = machine("pc"), machine("server"), tmp_path / "drive"
    drive.mkdir()
    names, engine = ("demo/tiny", "demo/tiny:Q8_0"), ("--engine", f"ollama={server.root / 'ollama'}")
    for seed in (1, 2):
        make_gguf_repository(tmp_path / str(seed), name="tiny", seed=seed)
        for name in names:
            pc.run("add", tmp_path / str(seed), "--name", name)
        pc.run("bundle", "--to", drive, "--sequence", str(seed))
    old, new = sorted(drive.glob("*.mvbundle"))
    trust(server, pc, old)
    # The second name comes first, so that the update meets an install that is recorded under it.
    server.run("import", old, "--only", names[1], *engine)
    for bundle, outcomes in (
        (old, [Outcome.INSTALLED_ALREADY] * 2),
        (new, [Outcome.INSTALLED, Outcome.INSTALLED_ALREADY]),
    ):
        planned, done = (
            server.json("import", bundle, *engine, *options).result["imports"][0] for options in (["--dry-run"], [])
        )
        assert list(fates(done).values()) == outcomes
        assert set(fates(planned)) == set(names)
        assert list(whole_in_ollama(server.root / "ollama")) == ["tiny"]
    (install,) = server.json("installs").result["installs"]
    assert install["model"] == names[1]
    events = (server.vault / "events.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "install" for line in events) == 2
    server.run("install", names[0], *engine)
    server.run("rm", names[1])
    server.run("install", names[0], *engine)
    (install,) = server.json("installs").result["installs"]
    assert install["model"] == names[0]
