"""Where engines are looked for, and what ``--engine``, ``--owner`` and the link rule make of it."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from engine_cases import Blobs

from modelvault.artifact import FileSpec
from modelvault.engines import InstallRequest, LinkKind, LinkMode, Owner, Surroundings, Target, engines, parse_target
from modelvault.engines.caretaker import resolve_owner
from modelvault.engines.place import Placer, Wanted
from modelvault.errors import UsageProblem


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    (tmp_path / "bin").mkdir()
    return Surroundings({"PATH": str(tmp_path / "bin")}, tmp_path / "home", tmp_path / "root")


def with_program(around: Surroundings, name: str, script: str = "") -> None:
    path = Path(around.environment["PATH"]) / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_nothing_is_detected_where_nothing_is(around: Surroundings) -> None:
    """A false detection would install into a directory that nobody reads."""
    assert {engine.detect() for engine in engines(around).values()} == {None}


def test_ollama_is_found(around: Surroundings) -> None:
    """In this order: the variable, the unit, the service's home, the user's, the program."""
    with_program(around, "ollama")
    home = around.home / ".ollama/models"
    assert engines(around)["ollama"].detect() == Target("ollama", home)
    home.mkdir(parents=True)
    service = around.root / "usr/share/ollama/.ollama/models"
    service.mkdir(parents=True)
    assert engines(around)["ollama"].detect() == Target("ollama", service)
    with_program(around, "systemctl", "echo LoadState=loaded; echo User=root; echo Environment=A=b")
    assert engines(around)["ollama"].detect() == Target("ollama", Path("/root/.ollama/models"))
    shown = '"OLLAMA_MODELS=/srv/my models" PATH=/bin'
    with_program(around, "systemctl", f"echo LoadState=loaded; echo User=ollama; echo 'Environment={shown}'")
    assert engines(around)["ollama"].detect() == Target("ollama", Path("/srv/my models"))
    variable = Surroundings({**around.environment, "OLLAMA_MODELS": "/data"}, around.home, around.root)
    assert engines(variable)["ollama"].detect() == Target("ollama", Path("/data"))


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "echo LoadState=not-found; echo User=; echo Environment=",
        "echo nonsense",
        "echo LoadState=loaded; echo User=nobody-here; echo",
    ],
)
def test_a_machine_without_the_unit(around: Surroundings, script: str) -> None:
    """Containers have ``systemctl`` without systemd."""
    with_program(around, "systemctl", script)
    assert engines(around)["ollama"].detect() is None


def test_vllm_is_found(around: Surroundings) -> None:
    """The hub client's own rules, most special first."""
    vllm = engines(around)["vllm"]
    with_program(around, "vllm")
    assert vllm.detect() == Target("vllm", around.home / ".cache/huggingface/hub")
    for variables, directory in (
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/c", "HF_HOME": "/h"}, "/h/hub"),
        ({"HF_HOME": "/h", "HF_HUB_CACHE": "/x"}, "/x"),
    ):
        assert engines(Surroundings({**variables, "PATH": around.environment["PATH"]}, around.home))[
            "vllm"
        ].detect() == Target("vllm", Path(directory))


def test_parse_target(around: Surroundings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``--engine`` as it is typed."""
    monkeypatch.chdir(tmp_path)
    assert parse_target("ollama=/dir", engines(around)) == Target("ollama", Path("/dir"))
    assert parse_target("folder=sub", engines(around)) == Target("folder", tmp_path / "sub")
    assert parse_target("ollama", engines(around)).directory == around.home / ".ollama/models"
    assert parse_target("vllm", engines(around)).directory == around.home / ".cache/huggingface/hub"
    for text in ("folder", "folder=", "llamacpp", "ollama=", "lmdeploy", ""):
        with pytest.raises(UsageProblem):
            parse_target(text, engines(around))


def test_owner_is_parsed() -> None:
    """``--owner`` takes names and numbers."""
    assert Owner.parse("root") == Owner(0, 0)
    assert Owner.parse("root:root") == Owner(0, 0)
    assert Owner.parse("12:34") == Owner(12, 34)
    for text in ("nobody-here", "root:nobody-here", "", ":", "root:"):
        with pytest.raises(UsageProblem):
            Owner.parse(text)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes directories of others")
def test_root_takes_the_owner_of_the_nearest_directory(tmp_path: Path) -> None:
    """``sudo modelvault import`` into a user's home must not leave root's files there."""
    os.chown(tmp_path, 1234, 4321)
    assert resolve_owner(tmp_path / "a/b/c", None) == Owner(1234, 4321)
    assert resolve_owner(tmp_path, Owner(5, 6)) == Owner(5, 6)


@pytest.mark.root
def test_reflink_for_another_owner(btrfs: Path) -> None:
    """Where the file system can, another user's engine costs no space, and still cannot reach the vault's blob."""
    blobs = Blobs(btrfs / "vault")
    digest = blobs.add(os.urandom(1 << 20))
    wanted = Wanted(blobs.path(digest), FileSpec("a.gguf", 1 << 20, digest))
    directory = btrfs / "engine"
    directory.mkdir()
    request = InstallRequest(
        blobs.model("x", {"a": b"b"}), blobs.path, Target("folder", directory), owner=Owner(1234, 1234)
    )
    placer = Placer(request)
    assert placer.predict(wanted, directory / "later") is LinkKind.REFLINK
    assert list(directory.iterdir()) == []
    assert placer.bring(wanted, directory / "a") is LinkKind.REFLINK
    status = (directory / "a").stat()
    assert (status.st_uid, status.st_mode & 0o777, status.st_nlink) == (1234, 0o644, 1)
    (directory / "a").write_bytes(b"changed")
    assert blobs.intact()
    subprocess.run(["btrfs", "subvolume", "create", str(btrfs / "sub")], check=True, capture_output=True)
    same = Placer(replace(request, owner=Owner(0, 0)))
    assert same.predict(wanted, btrfs / "sub") is LinkKind.REFLINK  # hard links do not cross subvolumes, reflinks do
    assert same.bring(wanted, btrfs / "sub/a") is LinkKind.REFLINK
    only = Placer(replace(request, owner=Owner(0, 0), link=LinkMode.REFLINK))
    assert only.bring(wanted, btrfs / "vault/b") is LinkKind.REFLINK


@pytest.mark.root
def test_bind_mount_of_one_device(tmp_path: Path) -> None:
    """Two mounts of one device look alike to ``stat`` and still cannot be linked: the plan must know."""
    point, blobs = tmp_path / "bound", Blobs(tmp_path / "vault")
    digest = blobs.add(b"blob")
    (tmp_path / "real").mkdir()
    point.mkdir()
    command = ["mount", "--bind", str(tmp_path / "real"), str(point)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("bind mounts need root")
    try:
        placer = Placer(InstallRequest(blobs.model("x", {"a": b"b"}), blobs.path, Target("folder", point)))
        wanted = Wanted(blobs.path(digest), FileSpec("a.gguf", 4, digest))
        assert placer.predict(wanted, point) is LinkKind.COPY
        assert placer.bring(wanted, point / "a") is LinkKind.COPY
        assert placer.predict(wanted, tmp_path / "real") is LinkKind.HARD
    finally:
        subprocess.run(["umount", str(point)], check=True)
