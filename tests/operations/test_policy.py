"""The policy where it counts: at pull, add, bundle and import; licenses that are to be accepted; what ``policy`` says."""

import collections
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faulty_hub import FaultyHub
from huggingface_hub import constants
from machines import Machine, only_bundle, trust
from make_models import make_gguf_repository
from ollama_registry import OllamaRegistry
from ollama_stores import TEXTS, write_model
from refusals import failed, succeeded
from terminals import on_terminal

from modelvault.artifact import ModelName
from modelvault.errors import ModelvaultError, PolicyRefused, UsageProblem
from modelvault.operations.add import AddRequest, add
from modelvault.operations.adopt_ollama import OllamaAdoption, adopt_from_ollama, ollama_name
from modelvault.operations.bundle import BundleRequest, bundle
from modelvault.operations.import_ import ImportRequest, import_bundles
from modelvault.operations.pull import PullRequest, pull
from modelvault.progress import NoProgress
from modelvault.sources.selection import Wish
from modelvault.vault import Vault

MODEL, OTHER = "evil/chat", "good/tiny"
CARD = "---\nlicense: cc-by-nc-4.0\nlicense_link: https://license.example/nc\n---\n"
CODE = "config.json: AutoModelForCausalLM = modeling_chat.Chat"


class Harmful:
    """Runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/never",)


@dataclass(frozen=True)
class World:
    """A model with everything that rules are about: as a folder, on a hub, in the vault of a PC, and in a bundle; and a server."""

    folder: Path
    hub: FaultyHub
    pc: Machine
    bundle: Path
    server: Machine


def make_model(folder: Path, awq: Path, payload: object) -> None:
    """Make a model with remote code, a pickle by name and one in disguise."""
    shutil.copytree(awq, folder)
    (folder / "README.md").write_text(CARD)
    config = json.loads((folder / "config.json").read_bytes())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_chat.Chat"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_chat.py").write_text("class Chat: ...\n")
    (folder / "head.pt").write_bytes(pickle.dumps(payload))
    (folder / "vectors.dat").write_bytes(pickle.dumps(payload))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_awq: Path) -> Any:
    root = tmp_path_factory.mktemp("policy")
    pc, server, drive = Machine(root / "pc"), Machine(root / "server"), root / "drive"
    for place in (pc.root, server.root, drive):
        place.mkdir()
    make_model(root / "chat", tiny_awq, collections.OrderedDict(a=1))
    make_gguf_repository(root / "tiny")
    pc.run("add", root / "chat", "--name", MODEL, "--allow-pickle")
    pc.run("add", root / "tiny", "--name", OTHER)
    pc.run("bundle", "--to", drive)
    trust(server, pc, only_bundle(drive))
    with FaultyHub({MODEL: root / "chat", OTHER: root / "tiny"}) as hub:
        hub.repositories[MODEL].info["cardData"] = {"license": "cc-by-nc-4.0"}
        yield World(root / "chat", hub, pc, only_bundle(drive), server)


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


def vault_with(policy: str, root: Path, like: Machine | None = None) -> Vault:
    """Make a vault, or a copy of a machine's, with a policy of its own."""
    if like is not None:
        shutil.copytree(like.vault, root)
    root.mkdir(exist_ok=True)
    (root / "policy.toml").write_text(policy)
    return Vault.prospective(root)


def at_pull(world: World, policy: str, root: Path) -> None:
    with vault_with(policy, root / "vault") as vault:
        request = PullRequest(ModelName(MODEL), wish=Wish(include=("*",)), endpoint=world.hub.url, allow_pickle=True)
        try:
            pull(vault, request, NoProgress())
        except ModelvaultError:
            assert names(vault) == set()
            raise


def at_add(world: World, policy: str, root: Path) -> None:
    with vault_with(policy, root / "vault") as vault:
        vault.create()
        add(vault, AddRequest(world.folder, ModelName(MODEL), allow_pickle=True), NoProgress())


def at_bundle(world: World, policy: str, root: Path) -> None:
    (root / "drive").mkdir()
    with vault_with(policy, root / "vault", world.pc) as vault:
        try:
            bundle(vault, BundleRequest((), (root / "drive",)), NoProgress())
        except ModelvaultError:
            assert list((root / "drive").iterdir()) == []
            raise


def at_import(world: World, policy: str, root: Path) -> None:
    with vault_with(policy, root / "vault", world.server) as vault:
        try:
            import_bundles(vault, ImportRequest((world.bundle,), only=(ModelName(MODEL),)), NoProgress())
        except ModelvaultError:
            assert names(vault) == set()
            raise


def names(vault: Vault) -> set[str]:
    return {entry.name.text for entry in vault.store.entries()} if vault.store.exists else set()


EVERYWHERE = {"pull": at_pull, "add": at_add, "bundle": at_bundle, "import": at_import}


def exceptions(table: str, model: str) -> str:
    return f'[{table}]\nallow = "exceptions"\n[[{table}.exceptions]]\nmodel = "{model}"\nwhy = "reviewed"\n'


RULES = [
    ('sources = ["ollama"]', "sources", None),
    ('organizations = ["good"]', "organizations", "evil"),
    ('formats = ["gguf"]', "formats", "safetensors"),
    ('formats = ["gguf", "gptq"]', "formats", "AWQ 4-bit g128"),
    ('largest_model = "1kB"', "largest_model", None),
    ('[licenses]\nallow = ["apache-2.0"]', "licenses.allow", "cc-by-nc-4.0"),
    ('[licenses]\ndeny = ["*-nc-*"]', "licenses.deny", "cc-by-nc-4.0"),
    ('[licenses]\naccept = ["cc-*"]', "licenses.accept", "cc-by-nc-4.0"),
    ('[pickle]\nallow = "never"', "pickle.allow", "head.pt"),
    (exceptions("pickle", "evil/other"), "pickle.allow", "head.pt"),
    ('[remote_code]\nallow = "never"', "remote_code.allow", CODE),
    (exceptions("remote_code", "evil/other"), "remote_code.allow", CODE),
]
FINE = [
    'sources = ["hub", "folder"]',
    'organizations = ["good", "ev*"]',
    'formats = ["gguf", "awq"]',
    'largest_model = "1GB"',
    '[licenses]\nallow = ["cc-*", "apache-2.0"]\ndeny = ["gpl-*"]\naccept = ["llama*"]',
    '[pickle]\nallow = "scanned"',
    exceptions("pickle", "Evil/Chat"),
    exceptions("remote_code", MODEL),
]


@pytest.mark.parametrize("where", EVERYWHERE)
@pytest.mark.parametrize(("policy", "rule", "value"), RULES, ids=[rule[0].replace("\n", " ") for rule in RULES])
def test_each_rule_holds_at_each_place(
    world: World, tmp_path: Path, where: str, policy: str, rule: str, value: str | None
) -> None:
    """Breaks if what a rule forbids gets through one of the four doors, or the refusal does not say which rule, where and why."""
    with pytest.raises(PolicyRefused) as caught:
        EVERYWHERE[where](world, policy, tmp_path)
    error = caught.value
    assert error.exit_code == 17
    (violation,) = [item for item in error.data["violations"] if item["model"] == MODEL]
    assert violation["rule"] == rule
    assert violation["file"] == str(tmp_path / "vault" / "policy.toml")
    assert str(value or "") in violation["value"]
    for part in (MODEL, rule, violation["file"]):
        assert part in error.message
    assert "modelvault policy show" in str(error.hint)


@pytest.mark.parametrize("where", EVERYWHERE)
@pytest.mark.parametrize("policy", FINE, ids=[policy.replace("\n", " ") for policy in FINE])
def test_what_is_allowed_gets_through(world: World, tmp_path: Path, where: str, policy: str) -> None:
    """Breaks if a rule forbids what it allows, at one of the four doors."""
    EVERYWHERE[where](world, policy, tmp_path)


@pytest.mark.parametrize("where", EVERYWHERE)
def test_a_policy_that_cannot_be_read_stops_everything(world: World, tmp_path: Path, where: str) -> None:
    """Breaks if a typing error in the policy lets models through unjudged."""
    with pytest.raises(UsageProblem, match=r"policy\.toml: .*`organisations`"):
        EVERYWHERE[where](world, 'organisations = ["good"]', tmp_path)


def test_before_the_download(world: World, tmp_path: Path) -> None:
    """Breaks if hundreds of gigabytes are fetched to be refused for what the listing says; and only one violation is named at a time."""
    world.hub.forget()
    policy = 'organizations = ["good"]\nlargest_model = 1\n[licenses]\nallow = ["mit"]\n[pickle]\nallow = "never"\n'
    with pytest.raises(PolicyRefused) as caught:
        at_pull(world, policy, tmp_path)
    rules = [item["rule"] for item in caught.value.data["violations"]]
    assert rules == ["organizations", "largest_model", "licenses.allow", "pickle.allow"]
    assert not [request for request in world.hub.asked() if "/resolve/" in request.path]
    assert not (tmp_path / "vault" / "partial").exists()


def test_a_bundle_names_every_model_that_may_not_go(world: World, tmp_path: Path) -> None:
    """Breaks if models are found out one after the other."""
    with pytest.raises(PolicyRefused) as caught:
        at_bundle(world, 'organizations = ["nobody"]', tmp_path)
    assert [item["model"] for item in caught.value.data["violations"]] == [MODEL, OTHER]


# ── pickles ──


@pytest.mark.parametrize(
    ("policy", "flag", "said"),
    [
        ("", False, "pickle files can run any code when they are loaded: head.pt"),
        ("", True, None),
        ('[pickle]\nallow = "never"\n', False, "pickle files are never allowed: head.pt"),
        ('[pickle]\nallow = "never"\n', True, "pickle files are never allowed: head.pt"),
        (exceptions("pickle", MODEL), False, "pickle files can run any code when they are loaded: head.pt"),
        (exceptions("pickle", MODEL), True, None),
    ],
)
def test_the_flag_reaches_as_far_as_the_policy(
    world: World, tmp_path: Path, policy: str, flag: bool, said: str | None
) -> None:
    """Breaks if --allow-pickle is stronger than the policy, or an exception needs no flag."""
    with vault_with(policy, tmp_path / "vault") as vault:
        vault.create()
        request = AddRequest(world.folder, ModelName(MODEL), allow_pickle=flag)
        if said is None:
            add(vault, request, NoProgress())
        else:
            with pytest.raises(PolicyRefused) as caught:
                add(vault, request, NoProgress())
            assert said in caught.value.message


def test_harmful_pickles(machine: Callable[..., Machine], tiny_awq: Path, tmp_path: Path) -> None:
    """Breaks if a pickle that runs commands comes in without an exception that names the model, or the finding is not kept and shown."""
    pc, server, drive = machine("pc"), machine("server"), tmp_path / "drive"
    drive.mkdir()
    make_model(tmp_path / "chat", tiny_awq, Harmful())
    command = ("add", tmp_path / "chat", "--name", MODEL, "--allow-pickle")
    error = failed(pc, *command, code=17)
    assert "head.pt: posix.system" in error["message"]
    assert "pickle.exceptions" in error["hint"]
    assert pc.models() == set()
    (pc.vault / "policy.toml").write_text(exceptions("pickle", MODEL))
    added = succeeded(pc, *command)
    assert any("head.pt: posix.system" in warning for warning in added["warnings"])
    assert "dangerous: head.pt: posix.system" in pc.json("show", MODEL).result["pickle_scan"]
    assert pc.json("show", MODEL).result["last_check"] is None
    pc.run("registry", "rebuild")
    assert "dangerous: head.pt: posix.system" in pc.json("show", MODEL).result["pickle_scan"]
    pc.run("bundle", "--to", drive)
    trust(server, pc, only_bundle(drive))
    error = failed(server, "import", drive, code=17)
    assert "posix.system" in error["message"]
    assert server.models() == set()
    (server.vault / "policy.toml").write_text(exceptions("pickle", MODEL))
    server.run("import", drive)
    assert "dangerous" in server.json("show", MODEL).result["pickle_scan"]
    assert not Path("/tmp/never").exists()


# ── Ollama's doors ──


@pytest.mark.parametrize("where", ["registry", "store"])
@pytest.mark.parametrize(
    ("policy", "rule", "before"),
    [
        ('sources = ["hub"]', "sources", True),
        ('organizations = ["acme"]', "organizations", True),
        ('largest_model = "1kB"', "largest_model", True),
        # What the license is called says the file itself.
        ('[licenses]\nallow = ["mit"]', "licenses.allow", False),
        ('[licenses]\naccept = ["apache-*"]', "licenses.accept", False),
        ('organizations = ["library"]\n[licenses]\nallow = ["apache-2.0"]', None, False),
    ],
)
def test_models_of_ollama(
    tiny_gguf: Path, tmp_path: Path, where: str, policy: str, rule: str | None, before: bool
) -> None:
    """Breaks if what a rule forbids gets in from an Ollama registry or an Ollama store."""
    store = tmp_path / "store"
    write_model(store, "tiny:q8_0", [("model", next(tiny_gguf.glob("*.gguf"))), *TEXTS])
    with OllamaRegistry(store) as registry, vault_with(policy, tmp_path / "vault") as vault:

        def bring() -> None:
            if where == "registry":
                pull(vault, PullRequest(ModelName("ollama:tiny:q8_0"), endpoint=registry.url), NoProgress())
            else:
                vault.create()
                adopt_from_ollama(vault, OllamaAdoption(ollama_name("tiny:q8_0"), store), NoProgress())

        if rule is None:
            bring()
            assert names(vault) == {"ollama:tiny:q8_0"}
            return
        with pytest.raises(PolicyRefused) as caught:
            bring()
        assert [item["rule"] for item in caught.value.data["violations"]] == [rule]
        assert names(vault) == set()
        if before:
            assert registry.bytes_sent(registry.layer("tiny", "q8_0", "model")[0]) == 0


# ── import: one refused, the others not ──


@pytest.mark.parametrize("policy", ['organizations = ["good"]', '[remote_code]\nallow = "never"'])
def test_a_refused_model_stops_no_other(world: World, tmp_path: Path, policy: str) -> None:
    """Breaks if one model that the site does not want keeps it from the others, or from refusing older bundles."""
    shutil.copytree(world.server.root, tmp_path / "server")
    server = Machine(tmp_path / "server")
    (server.vault / "policy.toml").write_text(policy)
    for dry_run, fate in ((True, "would be "), (False, "")):
        ran = server.json(
            "import", world.bundle, *(["--dry-run"] if dry_run else []), code=3 if "org" in policy or not dry_run else 0
        )
        (result,) = ran.result["imports"]
        fates = {model["name"]: model["outcome"] for model in result["models"]}
        assert fates[OTHER] == f"{fate}received"
        if "org" in policy or not dry_run:
            assert fates[MODEL] == f"{fate}refused"
            (reason,) = [model["reason"] for model in result["models"] if model["name"] == MODEL]
            assert str(server.vault / "policy.toml") in reason
    assert server.models() == {OTHER}
    events = [json.loads(line) for line in (server.vault / "events.jsonl").read_text().splitlines()]
    assert [event["data"]["models"] for event in events if event["kind"] == "bundle-imported"] == [[OTHER]]
    again = server.json("import", world.bundle, code=3).result["imports"][0]
    assert {model["name"]: model["outcome"] for model in again["models"]}[OTHER] == "here already"
    (server.vault / "policy.toml").unlink()
    server.run("import", world.bundle)
    assert server.models() == {MODEL, OTHER}


def test_what_is_refused_is_not_waited_for(world: World, tmp_path: Path) -> None:
    """Breaks if older bundles stay admitted after `--only` brought all that the policy lets in."""
    shutil.copytree(world.server.root, tmp_path / "server")
    server = Machine(tmp_path / "server")
    (server.vault / "policy.toml").write_text('organizations = ["good"]')
    server.run("import", world.bundle, "--only", OTHER)
    events = [json.loads(line) for line in (server.vault / "events.jsonl").read_text().splitlines()]
    assert [event["data"]["models"] for event in events if event["kind"] == "bundle-imported"] == [[OTHER]]


# ── licenses ──


def llama(hub: FaultyHub) -> None:
    hub.repositories[OTHER].info["cardData"] = {
        "license": "other",
        "license_name": "llama3.1",
        "license_link": "https://llama.example/license",
    }


def test_a_license_that_a_policy_wants_accepted(world: World, machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if a script brings a model in whose license nobody accepted, or the acceptance is not kept, found again and shown."""
    llama(world.hub)
    pc, server, drive = machine("pc", world.hub.url), machine("server"), tmp_path / "drive"
    drive.mkdir()
    pc.vault.mkdir()
    (pc.vault / "policy.toml").write_text('[licenses]\naccept = ["llama*"]\n')
    for dry_run in ((), ("--dry-run",)):
        error = failed(pc, "pull", OTHER, *dry_run, code=17)
        assert "llama3.1" in error["message"]
        assert "--accept-license" in error["hint"]
    pc.run("pull", OTHER, "--accept-license")
    shown = pc.json("show", OTHER).result
    assert (shown["model"]["license"], shown["license_link"]) == ("llama3.1", "https://llama.example/license")
    assert shown["license_files"] == ["LICENSE"]
    assert "(--accept-license)" in shown["accepted"]
    pc.run("registry", "rebuild")
    assert pc.json("show", OTHER).result == shown
    (event,) = (json.loads(line) for line in (pc.vault / "events.jsonl").read_text().splitlines() if "accepted" in line)
    assert event["data"]["texts"].keys() == {"LICENSE"}
    assert event["data"]["page"] == "https://llama.example/license"
    pc.run("pull", OTHER)  # once is enough
    pc.run("bundle", "--to", drive)
    trust(server, pc, only_bundle(drive))
    (server.vault / "policy.toml").write_text('[licenses]\naccept = ["llama*"]\n')
    assert "--accept-license" in failed(server, "import", drive, code=17)["hint"]
    server.run("import", drive, "--accept-license")
    assert server.json("show", OTHER).result["license_link"] == "https://llama.example/license"
    assert "(--accept-license)" in server.json("show", OTHER).result["accepted"]


def test_a_license_that_is_accepted_later(world: World, tmp_path: Path) -> None:
    """Breaks if a rule that is written after the models came in cannot be satisfied without bringing them again."""
    shutil.copytree(world.pc.root, tmp_path / "pc")
    pc = Machine(tmp_path / "pc")
    (pc.vault / "policy.toml").write_text('[licenses]\naccept = ["cc-*"]\n')
    (tmp_path / "drive").mkdir()
    assert "modelvault policy accept" in failed(pc, "bundle", "--to", tmp_path / "drive", code=17)["hint"]
    first, second = (succeeded(pc, "policy", "accept", MODEL)["accepted"][0] for _ in range(2))
    assert (first["license"], first["already"], second["already"]) == ("cc-by-nc-4.0", False, True)
    assert first["page"] == "https://license.example/nc"
    pc.run("bundle", "--to", tmp_path / "drive")


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b"yes\n", 0, "every digest verified"),
        (b"no\n", 17, "was not accepted"),
        (b"\x04", 17, "was not accepted"),
        (b"\x03", 130, "interrupted"),
    ],
    ids=["yes", "no", "ctrl-d", "ctrl-c"],
)
def test_the_question(world: World, machine: Callable[..., Machine], answer: bytes, code: int, said: str) -> None:
    """Breaks if a person on a terminal is not asked, is taken for having agreed, or is asked a second time."""
    llama(world.hub)
    pc = machine("pc", world.hub.url)
    pc.vault.mkdir()
    (pc.vault / "policy.toml").write_text('[licenses]\naccept = ["llama*"]\n')
    shown = on_terminal(pc, "pull", OTHER, answers=[(b"yes or no: ", answer)], code=code)
    assert "https://llama.example/license" in shown.replace("\r\n  ", " ")
    assert said in shown
    if code == 0:
        assert "(prompt)" in pc.json("show", OTHER).result["accepted"]
        assert "yes or no" not in on_terminal(pc, "pull", OTHER, code=0)
    else:
        assert pc.models() == set()


def test_an_open_license_asks_nobody(world: World, machine: Callable[..., Machine]) -> None:
    """Breaks if pulling a model under an open license waits for an answer."""
    pc = machine("pc", world.hub.url)
    assert "yes or no" not in on_terminal(pc, "pull", OTHER, code=0)
    assert pc.json("show", OTHER).result["accepted"] is None


def test_other_licenses_are_not_accepted_along(world: World, tmp_path: Path) -> None:
    """Breaks if to accept one model's unnamed license counts for every other that has no name, or no license, either."""
    folders = []
    for name in ("a", "b"):
        folders.append(Path(shutil.copytree(world.folder, tmp_path / name)))
        (folders[-1] / "README.md").write_text("---\nlicense: other\n---\n")
    with vault_with('[licenses]\naccept = ["*"]\n', tmp_path / "vault") as vault:
        vault.create()
        add(vault, AddRequest(folders[0], ModelName("a"), allow_pickle=True, accept_license=True), NoProgress())
        with pytest.raises(PolicyRefused, match=r"license is other, which nobody has accepted"):
            add(vault, AddRequest(folders[1], ModelName("b"), allow_pickle=True), NoProgress())
        with pytest.raises(PolicyRefused, match="was not accepted"):
            add(vault, AddRequest(folders[1], ModelName("b"), allow_pickle=True, consent=lambda _: False), NoProgress())


# ── what `policy` says ──


def test_show_and_check(world: World, tmp_path: Path) -> None:
    """Breaks if an administrator does not see which rules hold, or which models of the vault break them."""
    shutil.copytree(world.pc.root, tmp_path / "pc")
    pc = Machine(tmp_path / "pc")
    nothing = pc.json("policy", "check").result
    assert (nothing["files"], nothing["violations"], nothing["checked"]) == ([], [], [MODEL, OTHER])
    assert "there is none" in pc.run("policy", "show").out
    file = pc.vault / "policy.toml"
    file.write_text(f'organizations = ["good"]\n{exceptions("pickle", "evil/old")}')
    shown = pc.run("policy", "show").out
    for part in (str(file), "organizations = good", "pickle.allow = exceptions", "but not for evil/old: reviewed"):
        assert part in shown
    ran = pc.json("policy", "check", code=17)
    found = [(line["model"], line["rule"], line["value"], line["file"]) for line in ran.result["violations"]]
    pickles = "head.pt, vectors.dat"
    assert found == [(MODEL, "organizations", "evil", str(file)), (MODEL, "pickle.allow", pickles, str(file))]
    assert "2 models checked, 1 against the rules" in pc.run("policy", "check", code=17).out
    assert pc.json("policy", "check", OTHER).result["violations"] == []
    failed(pc, "policy", "check", "nobody/nothing", code=2)
    file.write_text("organisations = 1")
    assert f"{file}: " in failed(pc, "policy", "check", code=2)["message"]
    pc.run("list")  # what only reads needs no policy


@pytest.mark.root
def test_the_machines_policy(world: World, tmp_path: Path, as_root: None) -> None:
    """Breaks if the rules that root wrote for the machine do not hold for every vault on it."""
    shutil.copytree("/etc", tmp_path / "etc", symlinks=True)
    (tmp_path / "etc" / "modelvault").mkdir()
    (tmp_path / "etc" / "modelvault" / "policy.toml").write_text('organizations = ["good"]\n')
    shutil.copytree(world.pc.root, tmp_path / "pc")
    pc = Machine(tmp_path / "pc")
    (pc.vault / "policy.toml").write_text('organizations = ["evil", "good"]\n')
    mounted = ("unshare", "--mount", "sh", "-c", f'mount --bind {tmp_path / "etc"} /etc && exec "$@"', "sh")
    ran = pc.run("policy", "check", "--json", code=17, prefix=mounted)
    assert [line["file"] for line in ran.result["violations"]] == ["/etc/modelvault/policy.toml"]
    pc.run("policy", "check")


# ── chat templates ──


def test_a_hostile_template_is_told_of_at_every_door(
    machine: Callable[..., Machine], tiny_awq: Path, tmp_path: Path
) -> None:
    """Breaks if a template that leaves the template passes one of the doors without a word."""
    folder, drive = tmp_path / "model", tmp_path / "drive"
    drive.mkdir()
    shutil.copytree(tiny_awq, folder)
    (folder / "chat_template.jinja").write_text("{{ cycler.__init__.__globals__.os.popen('id').read() }}")
    with FaultyHub({"org/model": folder}) as hub:
        pc, server = machine("pc", hub.url), machine("server")
        warned = [pc.json("inspect", folder), pc.json("pull", "org/model"), pc.json("add", folder, "--name", "again")]
    pc.run("bundle", "org/model", "--to", drive)
    trust(server, pc, only_bundle(drive))
    warned.append(server.json("import", drive))
    for ran in warned:
        assert any(
            "chat_template.jinja: the chat template has what none needs" in text for text in ran.document["warnings"]
        ), ran
    assert any(text.startswith("org/model: chat_template.jinja") for text in warned[-1].document["warnings"])
