"""Looking after a vault: collecting, verifying, removing, keys. What is only looked at stays as it was."""

import os
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from machines import Machine, only_bundle, trust
from refusals import blob_of, failed, interrupted, running, succeeded


def listing(vault: Path) -> dict[str, tuple[int, int]]:
    """Everything in a vault, with its size and the time of its last change."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in vault.rglob("*")}


def test_gc_shows_without_changing_anything(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if `gc --dry-run` leaves lock files behind, or if those of bundles long finished are never collected."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    pc.run("rm", "tiny")
    partial = pc.vault / "partial"
    transfer, journal = partial / f"sha256-{'0' * 64}", partial / "bundles" / ("1" * 64)
    for directory in (transfer, journal):
        directory.mkdir(parents=True)
        (directory / "data").write_bytes(b"x" * 5000)
    for name in ("1", "2"):
        (partial / "bundles" / f"{name * 64}.lock").touch()
    before = listing(pc.vault)
    planned = succeeded(pc, "gc", "--partial", "--dry-run")
    assert listing(pc.vault) == before
    assert set(planned["partial"]) == {transfer.name, journal.name}
    # A journal without its index says nothing: it goes in any case.
    assert succeeded(pc, "gc", "--dry-run")["partial"] == [journal.name]
    (journal / "bundle.json").touch()
    assert succeeded(pc, "gc", "--dry-run")["partial"] == []
    (journal / "bundle.json").unlink()
    done = succeeded(pc, "gc", "--partial")
    assert planned | {"dry_run": False} == done
    assert [path.name for path in partial.rglob("*")] == ["bundles"]


def test_ctrl_c_ends_verify_at_once(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if Ctrl-C waits until the blob under way was read to its end: here a terabyte, in practice minutes."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    blob = blob_of(pc, "tiny", ".gguf")
    blob.unlink()
    blob.touch()
    os.truncate(blob, 1 << 40)
    with running(pc, "verify") as verify:
        counters = Path(f"/proc/{verify.process.pid}/io")
        verify.until(lambda: int(counters.read_text().split()[1]) > 200_000_000)
        verify.signal(signal.SIGINT)
        interrupted(verify.end(130))
    assert blob.stat().st_size == 1 << 40


def test_a_broken_key_costs_only_itself(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if one bad file among the keys keeps every bundle from being verified and imported."""
    pc, server, drive = machine("pc"), machine("server"), tmp_path / "drive"
    drive.mkdir()
    pc.run("add", tiny_gguf, "--name", "tiny")
    pc.run("bundle", "--to", drive)
    bundle = only_bundle(drive)
    trust(server, pc, bundle)
    odd = server.vault / "keys" / "trusted" / "odd.pub"
    odd.write_text("no key")
    for command in (
        ("keys", "list"),
        ("verify", bundle),
        ("import", bundle, "--engine", f"folder={server.root / 'x'}"),
    ):
        warnings = server.json(*command).document["warnings"]
        assert [str(odd) in warning for warning in warnings] == [True], command


def test_rm_says_how_to_uninstall(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if what `rm` prints for a model that is still installed cannot be pasted."""
    pc = machine("pc")
    pc.run("add", tiny_gguf, "--name", "tiny")
    folder = pc.root / "my models"
    pc.run("install", "tiny", "--engine", f"folder={folder}")
    said = pc.run("rm", "tiny").out
    (command,) = [line for line in said.splitlines() if "modelvault uninstall" in line]
    assert list(folder.iterdir())
    pc.run(*shlex.split(command)[1:])
    assert not (folder / "tiny").exists()


def test_the_log_was_cut(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if an older copy of the event log, put back in good faith, lets an older bundle in without a word."""
    pc, server = machine("pc"), machine("server")
    pc.run("add", tiny_gguf, "--name", "tiny")
    for sequence in ("10", "20"):
        (tmp_path / sequence).mkdir()
        pc.run("bundle", "--to", tmp_path / sequence, "--sequence", sequence)
    old, new = (only_bundle(tmp_path / sequence) for sequence in ("10", "20"))
    trust(server, pc, old)
    server.run("import", old)
    shutil.copy(server.vault / "events.jsonl", tmp_path / "copy")
    server.run("import", new)
    shutil.copy(tmp_path / "copy", server.vault / "events.jsonl")
    assert "event log" in server.json("verify").document["warnings"][0]
    assert "--allow-older" in failed(server, "import", old, code=14)["hint"]
    server.run("import", new, "--allow-older")
    assert server.json("verify").document["warnings"] == []
    failed(server, "import", old, code=14)


def test_more_files_than_a_process_may_open(machine: Callable[..., Machine], tiny_gguf: Path, tmp_path: Path) -> None:
    """Breaks if a model with more files than the usual limit of open ones cannot be brought in, carried or installed."""
    folder, drive = tmp_path / "model", tmp_path / "drive"
    drive.mkdir()
    shutil.copytree(tiny_gguf, folder)
    for number in range(200):
        (folder / f"{number}.json").write_text(str(number))
    few = ("bash", "-c", 'ulimit -Sn 100; exec "$0" "$@"')
    pc, server = machine("pc"), machine("server")
    pc.run("add", folder, "--name", "many", prefix=few)
    pc.run("bundle", "--to", drive, prefix=few)
    target = f"folder={server.root / 'models'}"
    server.run("import", drive, "--allow-unsigned", "--engine", target, prefix=few)
    server.run("verify", prefix=few)
    assert len(list((server.root / "models" / "many").glob("[0-9]*.json"))) == 200
    none = ("bash", "-c", 'ulimit -n 100; exec "$0" "$@"')
    refused = machine("other").run("add", folder, "--name", "many", code=1, prefix=none)
    assert "hint: let the process open more files" in refused.err
