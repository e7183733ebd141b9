"""What somebody meets who tries things out: a vault in the wrong place, a damaged file, a half-written bundle."""

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_hub import FaultyHub
from machines import Machine, flip_bit, only_bundle, trust
from make_models import make_large_gguf
from refusals import blob_of, failed, succeeded


@pytest.fixture
def pc(machine: Callable[..., Machine], tiny_gguf: Path) -> Machine:
    """A connected machine with a model."""
    made = machine("pc")
    made.run("add", tiny_gguf, "--name", "tiny")
    return made


def test_no_vault_among_other_things(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if a mistyped MODELVAULT_HOME scatters a vault over somebody's directory."""
    pc = machine("pc")
    pc.vault.mkdir()
    (pc.vault / "thesis.tex").touch()
    error = failed(pc, "add", tiny_gguf, "--name", "tiny", code=2)
    assert "thesis.tex" in error["message"]
    assert [path.name for path in pc.vault.iterdir()] == ["thesis.tex"]
    assert "no vault in" in failed(pc, "list", code=2)["message"]
    (pc.vault / "thesis.tex").rename(pc.vault / "config.toml")
    succeeded(pc, "add", tiny_gguf, "--name", "tiny")


def test_a_damaged_file_is_known_until_it_came_again(
    machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path
) -> None:
    """Breaks if `list` calls a damaged model whole, or the pull that mends it says that it had nothing to do."""
    with FaultyHub({"org/tiny": tiny_gguf}) as hub:
        pc = machine("pc", hub.url)
        pc.run("pull", "org/tiny")
        assert "in the vault already" in pc.run("pull", "org/tiny").out
        blob = blob_of(pc, "org/tiny", ".gguf")
        size = blob.stat().st_size
        blob.chmod(0o644)
        flip_bit(blob, size - 1)
        message = failed(pc, "verify", code=12)["message"]
        assert f"moved aside as .damaged-{blob.name}" in message
        assert "which `modelvault gc` frees" in message
        for command in (("list",), ("show", "org/tiny")):
            (warning,) = pc.json(*command).document["warnings"]
            assert warning.startswith("org/tiny is not whole: it lacks tiny-Q8_0.gguf; pull")
        result = succeeded(pc, "pull", "org/tiny")
        assert (result["unchanged"], result["received"]) == (False, size)
        assert pc.json("list").document["warnings"] == []
        assert succeeded(pc, "rm", "org/tiny")["freeable"] == succeeded(pc, "gc", "--dry-run")["size"]
        assert succeeded(pc, "gc")["size"] > 2 * size  # the damaged one with it


def test_files_count_once(pc: Machine, tiny_gguf: Path) -> None:
    """Breaks if the total of `list` is more than the vault holds, since two names share their files."""
    size = succeeded(pc, "list")["size"]
    pc.run("add", tiny_gguf, "--name", "twin")
    assert succeeded(pc, "list")["size"] == size == sum(path.stat().st_size for path in tiny_gguf.iterdir())


def test_show_without_a_registry(pc: Machine) -> None:
    """Breaks if what the manifest says of a model cannot be read because the registry is gone."""
    whole = succeeded(pc, "show", "tiny")
    (pc.vault / "registry.sqlite").unlink()
    document = pc.json("show", "tiny").document
    assert document["result"]["files"] == whole["files"]
    assert "registry rebuild" in document["warnings"][0]
    shown = pc.run("show", "tiny").out
    assert all(f"  {file['digest']}\n" in shown for file in whole["files"])
    assert max(len(line) for line in shown.splitlines() if str(pc.vault) not in line) <= 80


def test_verify_what_can_only_be_read(pc: Machine, as_root: None) -> None:
    """Breaks if a vault on a write-protected disk cannot be verified."""
    mount = ["mount", "--bind", str(pc.vault), str(pc.vault)]
    subprocess.run(mount, check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(pc.vault)], check=True)
        document = pc.json("verify").document
    finally:
        subprocess.run(["umount", str(pc.vault)], check=True)
    assert document["result"]["damage"] == []
    (warning,) = document["warnings"]
    assert "can only be read" in warning


def test_what_is_not_all_of_a_bundle(pc: Machine, tmp_path: Path) -> None:
    """Breaks if `inspect` shows a bundle that lacks volumes, or its end, as if it were whole."""
    pc.run("bundle", "--to", tmp_path)
    bundle = only_bundle(tmp_path)
    (item,) = succeeded(pc, "inspect", bundle)["items"]
    assert (item["finished"], item["missing"]) == (True, [])
    assert "NOT" not in pc.run("inspect", bundle).out
    (bundle / "volume-0001.tar.zst").unlink()
    (item,) = succeeded(pc, "inspect", bundle)["items"]
    assert (item["finished"], item["missing"]) == (True, [1])
    assert "NOT all of it; not here: volume 1" in pc.run("inspect", bundle).out
    (bundle / "SHA256SUMS").unlink()
    assert "NOT finished" in pc.run("inspect", bundle).out


def test_inspect_of_a_drive(pc: Machine, tmp_path: Path, tiny_gguf: Path) -> None:
    """Breaks if `inspect` takes a drive with bundles for a repository without weights, or a model beside a bundle for a drive."""
    drive = tmp_path / "my drive"
    drive.mkdir()
    pc.run("bundle", "--to", drive)
    bundle = only_bundle(drive)
    error = failed(pc, "inspect", drive, code=2)
    assert f"{drive} is no model: it is where bundles lie: {bundle.name}" in error["message"]
    assert f"`modelvault verify '{bundle}'`" in error["hint"]
    shutil.copytree(tiny_gguf, drive, dirs_exist_ok=True)
    (item,) = succeeded(pc, "inspect", drive)["items"]
    assert item["format"] == "gguf"


def test_inspect_of_several_models(pc: Machine, tmp_path: Path, tiny_gguf: Path) -> None:
    """Breaks if `inspect` calls sound, as one model, what `add` refuses."""
    for name in ("one", "other"):
        shutil.copytree(tiny_gguf, tmp_path / "models" / name)
    (warning,) = pc.json("inspect", tmp_path / "models").document["warnings"]
    refused = failed(pc, "add", tmp_path / "models", "--name", "both", code=2)["message"]
    assert "is not one model: it has weights in one, other" in refused
    assert warning.startswith(refused)


def test_what_looks_like_a_bundle(pc: Machine, machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if an empty directory or a link on the drive makes `import` ask which bundle is meant."""
    drive = tmp_path / "drive"
    drive.mkdir()
    pc.run("bundle", "--to", drive)
    bundle = only_bundle(drive)
    server = machine("server")
    trust(server, pc, bundle)
    (drive / "empty.mvbundle").mkdir()
    (drive / "link.mvbundle").symlink_to(bundle.name)
    (imported,) = succeeded(server, "import", drive)["imports"]
    assert imported["bundle"]["path"] == str(bundle)


def test_an_import_under_way_is_listed(pc: Machine, machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if the bytes of an import that lacks a volume take room in the vault that nothing accounts for."""
    make_large_gguf(tmp_path / "large.gguf", 6_000_000)
    pc.run("add", tmp_path / "large.gguf", "--name", "large")
    pc.run("bundle", "large", "--to", tmp_path, "--volume-size", "2MiB")
    bundle = only_bundle(tmp_path)
    server = machine("server")
    trust(server, pc, bundle)
    last = max(bundle.glob("volume-*.tar.zst"))
    last.rename(tmp_path / last.name)
    server.run("import", bundle, code=3)
    (part,) = succeeded(server, "list")["partial"]
    assert part["name"] == bundle.name
    assert 0 < part["here"] < part["size"]
    assert f"not complete yet: {bundle.name}" in server.run("list").out
    shutil.move(tmp_path / last.name, last)
    server.run("import", bundle)
    assert succeeded(server, "list")["partial"] == []


def test_the_key_called_default_signs(pc: Machine, tmp_path: Path) -> None:
    """Breaks if a second key makes every plain `bundle` ask which one signs, though one of them is the first."""
    pc.run("keys", "new", "default")
    pc.run("keys", "new", "release-2026")
    assert succeeded(pc, "bundle", "--to", tmp_path)["key"] == "default"


def test_what_is_printed_to_be_typed_can_be_typed(pc: Machine, machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if the next command that is shown means another path, as soon as the path has a space."""
    drive = tmp_path / "my drive"
    drive.mkdir()
    server = machine("server")
    shown = pc.run("bundle", "--to", drive).out
    bundle = only_bundle(drive)
    commands = [
        shlex.split(line.removesuffix("(once)")) for line in shown.splitlines() if line.startswith("  modelvault")
    ]
    assert commands == [
        ["modelvault", "keys", "trust", str(bundle / "default.pub")],
        ["modelvault", "import", str(bundle)],
    ]
    # A machine on which nothing was done yet is told the same way in.
    assert shlex.join(commands[0]) in failed(server, "verify", bundle, code=14)["hint"]


def test_trusted_keys_are_no_own_ones(pc: Machine, machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Breaks if a server that trusts a key is told that there are no keys."""
    server = machine("server")
    pc.run("bundle", "--to", tmp_path)
    trust(server, pc, only_bundle(tmp_path))
    shown = server.run("keys", "show").out
    assert ("no keys of its own" in shown, "keys list" in shown) == (True, True)
