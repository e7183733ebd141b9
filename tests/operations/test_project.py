"""``pull --all``: a project's models come as they are locked, and the lock says the same wherever it is made."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_hub import FaultyHub, Repository
from machines import Machine
from make_models import make_gguf, make_large_gguf
from refusals import failed, running
from serve_hub import serving

from modelvault.artifact import Digest, SourceFile
from modelvault.errors import DigestMismatch
from modelvault.operations.pinning import Pin, check_pinned, pinned
from modelvault.sources import Snapshot
from modelvault.store import Store

ONE, TWO = "org/one-GGUF", "org/two-GGUF"
PROJECT = f"""
[[model]]
name = "{TWO}"
quant = "Q8_0"

[[model]]
name = "{ONE}"
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FaultyHub]:
    """Two repositories; the second has two quantizations."""
    for name, files in (("one", ("m-Q8_0.gguf",)), ("two", ("m-Q8_0.gguf", "m-Q4_K_M.gguf"))):
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            make_gguf(folder / file)
            if name == "two":  # no file of it shall be in the vault before it is pulled
                make_large_gguf(folder / file, 2_000_000)
        (folder / "README.md").write_text(f"# {name}\n")
    with FaultyHub({ONE: tmp_path / "one", TWO: tmp_path / "two"}) as hub:
        yield hub


@pytest.fixture
def pc(machine: Callable[..., Machine], hub: FaultyHub) -> Machine:
    made = machine("pc", hub.url)
    (made.root / "modelvault.toml").write_text(PROJECT)
    return made


def lock_of(machine: Machine) -> Path:
    return machine.root / "modelvault.lock"


def outcomes(result: dict[str, Any]) -> dict[str, str]:
    return {model["name"]: model["outcome"] for model in result["models"]}


def change(hub: FaultyHub, repository: str, folder: Path) -> str:
    """Publish another README: a new commit of the repository. The one before stays reachable by its hash."""
    (folder / "README.md").write_text("# changed\n")
    hub.repositories[repository] = Repository(folder)
    return hub.commit(repository)


def test_a_lock_is_reproducible(machine: Callable[..., Machine], pc: Machine, hub: FaultyHub) -> None:
    """Breaks if the same project and the same sources give other bytes on another machine, or in another order."""
    result = pc.json("pull", "--all").result
    assert outcomes(result) == {f"{TWO}:Q8_0": "pulled", ONE: "pulled"}
    assert result["written"]
    assert pc.models() == {ONE, f"{TWO}:Q8_0"}
    other = machine("other", hub.url)
    models = PROJECT.split("\n\n")
    (other.root / "wanted.toml").write_text("\n\n".join(reversed(models)))
    other.run("pull", "--all", "--file", "wanted.toml")
    lock = lock_of(pc).read_bytes()
    assert (other.root / "wanted.lock").read_bytes() == lock
    document = json.loads(lock)
    assert [model["name"] for model in document["models"]] == [ONE, f"{TWO}:Q8_0"]
    assert {model["commit"] for model in document["models"]} == {hub.commit(ONE), hub.commit(TWO)}
    assert hub.url.encode() not in lock


def test_what_is_locked_and_here_asks_nobody(pc: Machine, hub: FaultyHub) -> None:
    """Breaks if a machine without a network cannot see that it has everything, or the lock changes for nothing."""
    pc.run("pull", "--all")
    before = lock_of(pc).stat()
    hub.forget()
    shown = pc.run("pull", "--all").out
    assert hub.asked() == []
    assert "here already" in shown
    assert "did not change" in shown
    assert lock_of(pc).stat().st_mtime_ns == before.st_mtime_ns


def test_a_locked_commit_comes_again_exactly(
    machine: Callable[..., Machine], pc: Machine, hub: FaultyHub, tmp_path: Path
) -> None:
    """Breaks if a project gets what was published meanwhile, though its lock says otherwise, or cannot have it when it wants to."""
    (pc.root / "modelvault.toml").write_text(f'[[model]]\nname = "{ONE}"\n')
    pc.run("pull", "--all")
    old, lock = hub.commit(ONE), lock_of(pc).read_bytes()
    # A hub that has both commits: a vault into which both were pulled, under two names.
    both = machine("both", hub.url)
    both.run("pull", ONE)
    new = change(hub, ONE, tmp_path / "one")
    both.run("pull", f"{ONE}:Q8_0")
    with serving(Store(both.vault)) as server:
        colleague = machine("colleague", server.url)
        for name in ("modelvault.toml", "modelvault.lock"):
            shutil.copy(pc.root / name, colleague.root / name)
        assert colleague.json("pull", "--all", "--dry-run").result["models"][0]["commit"] == old
        colleague.run("pull", "--all")
        assert (
            colleague.json("show", ONE).result["model"]["manifest"] == pc.json("show", ONE).result["model"]["manifest"]
        )
        assert lock_of(colleague).read_bytes() == lock
        planned = colleague.run("pull", "--all", "--update", "--dry-run").out
        assert f"{old[:12]} -> {new[:12]}" in planned
        assert lock_of(colleague).read_bytes() == lock
        (moved,) = colleague.json("pull", "--all", "--update").result["models"]
    assert (moved["before"], moved["commit"]) == (old, new)
    assert json.loads(lock_of(colleague).read_bytes())["models"][0]["commit"] == new


def test_a_source_without_the_locked_commit(pc: Machine, hub: FaultyHub, tmp_path: Path) -> None:
    """Breaks if what a hub has instead of the locked commit gets into the vault."""
    (pc.root / "modelvault.toml").write_text(f'[[model]]\nname = "{ONE}"\n')
    pc.run("pull", "--all")
    pc.run("rm", ONE)
    old = hub.commit(ONE)
    change(hub, ONE, tmp_path / "one")
    assert old in failed(pc, "pull", "--all", code=10)["message"]
    assert pc.models() == set()


def test_a_mirror_that_answers_with_another_commit() -> None:
    """Breaks if what a mirror says of itself counts more than the lock."""
    files = (SourceFile("a.gguf", 3, Digest.sha256("1" * 64)), SourceFile("b.md", 2, None))
    pin = Pin("o/x", "a" * 40, {"a.gguf": (3, Digest.sha256("1" * 64))})
    chosen = pinned(Snapshot("o/x", "a" * 40, files, None, gated=False), pin)
    assert (chosen.files, chosen.left_out) == (files[:1], files[1:])
    with pytest.raises(DigestMismatch, match="commit"):
        pinned(Snapshot("o/x", "b" * 40, files, None, gated=False), pin)
    with pytest.raises(DigestMismatch, match=r"a\.gguf: the source has no such file"):
        pinned(Snapshot("o/x", "a" * 40, files[1:], None, gated=False), pin)
    with pytest.raises(DigestMismatch, match="4 bytes"):
        pinned(
            Snapshot("o/x", "a" * 40, files, None, gated=False),
            Pin("o/x", "a" * 40, {"b.md": (4, Digest.sha256("2" * 64))}),
        )
    with pytest.raises(DigestMismatch, match="is locked"):
        check_pinned(pin, {"a.gguf": Digest.sha256("3" * 64)})


@pytest.mark.parametrize("part", ["README.md", "m-Q8_0.gguf"])
def test_other_bytes_than_locked_are_refused(pc: Machine, part: str) -> None:
    """Breaks if a source that was changed under a commit, or a mirror that lies, gets its files into the vault."""
    pc.run("pull", "--all")
    document = json.loads(lock_of(pc).read_text())
    (entry,) = (model for model in document["models"] if model["name"] == ONE)
    (file,) = (file for file in entry["files"] if file["path"] == part)
    file["sha256"] = "0" * 64
    lock_of(pc).write_text(json.dumps(document, indent=2) + "\n")
    pc.run("rm", ONE)
    pc.run("gc")
    ran = pc.json("pull", "--all", code=3)
    assert ONE in ran.document["error"]["message"]
    (failure,) = (model for model in ran.result["models"] if model["outcome"] == "failed")
    assert part in failure["reason"]
    assert "is locked" in failure["reason"]
    assert ONE not in pc.models()
    assert json.loads(lock_of(pc).read_text()) == document


def test_models_fail_each_for_itself(pc: Machine, hub: FaultyHub) -> None:
    """Breaks if one model that cannot be had keeps the others away, or what came is not locked."""
    project = pc.root / "modelvault.toml"
    project.write_text(
        PROJECT + f'[[model]]\nname = "org/absent"\n[[model]]\nname = "{TWO}"\n[[model]]\nname = "lama-3.1-8b"\n'
    )
    ran = pc.json("pull", "--all", code=3)
    assert ran.document["status"] == "partial"
    reasons = {model["name"]: model["reason"] for model in ran.result["models"] if model["outcome"] == "failed"}
    assert reasons.keys() == {"org/absent", TWO, "lama-3.1-8b"}
    assert 'write quant = "…" under org/two-GGUF in modelvault.toml; there are Q4_K_M, Q8_0' in reasons[TWO]
    assert "did you mean llama-3.1-8b" in reasons["lama-3.1-8b"]
    assert [model["name"] for model in json.loads(lock_of(pc).read_text())["models"]] == [ONE, f"{TWO}:Q8_0"]
    text = pc.run("pull", "--all", code=3)
    assert "error: 3 of 5 models did not come: org/absent" in text.err
    project.write_text('[[model]]\nname = "org/absent"\n')
    error = failed(pc, "pull", "--all", code=10)
    assert error["code"] == "source"


def test_a_plan_changes_nothing(pc: Machine) -> None:
    """Breaks if --dry-run downloads, makes a vault, or writes a lock."""
    shown = pc.run("pull", "--all", "--dry-run").out
    assert "would pull" in shown
    assert "to download: " in shown
    assert not lock_of(pc).exists()
    assert not pc.vault.exists()


def test_what_is_no_longer_wanted_leaves_the_lock(pc: Machine) -> None:
    """Breaks if a lock keeps what nobody asks for, or what is asked for in another way comes as before."""
    pc.run("pull", "--all")
    project = pc.root / "modelvault.toml"
    project.write_text(f'[[model]]\nname = "{TWO}"\nquant = "Q4_K_M"\n')
    assert outcomes(pc.json("pull", "--all").result) == {f"{TWO}:Q4_K_M": "pulled"}
    assert [model["name"] for model in json.loads(lock_of(pc).read_text())["models"]] == [f"{TWO}:Q4_K_M"]
    lock_of(pc).write_text("<<<<<<< HEAD\n")
    assert "--update" in failed(pc, "pull", "--all", code=2)["hint"]
    pc.run("pull", "--all", "--update")
    assert json.loads(lock_of(pc).read_text())["models"][0]["name"] == f"{TWO}:Q4_K_M"


def test_what_came_before_a_kill_is_locked(pc: Machine, hub: FaultyHub) -> None:
    """Breaks if a power cut in the second of two models loses what is known of the first."""
    pc.run("pull", ONE)
    (pc.root / "modelvault.toml").write_text(f'[[model]]\nname = "{ONE}"\n[[model]]\nname = "{TWO}"\nquant = "Q8_0"\n')
    hub.faults.rate = 20_000
    reached = hub.reached("m-Q8_0.gguf", 1)
    with running(pc, "pull", "--all") as process:
        assert reached.wait(60)
        process.signal(signal.SIGKILL)
        process.end(-signal.SIGKILL)
    assert [model["name"] for model in json.loads(lock_of(pc).read_text())["models"]] == [ONE]
    hub.faults.rate = None
    assert outcomes(pc.json("pull", "--all").result) == {ONE: "here already", f"{TWO}:Q8_0": "pulled"}


@pytest.mark.parametrize(
    "words",
    [("org/x", "--all"), ("--all", "--quant", "Q8_0"), ("org/x", "--update", "--quant", "Q8_0"), ("org/x", "--file", "x.toml"), ("--quant", "Q8_0")],
)  # fmt: skip
def test_options_that_contradict(pc: Machine, words: tuple[str, ...]) -> None:
    """Breaks if an option that cannot count is passed over."""
    assert "Usage:" in pc.run("pull", *words, code=2).err
    assert not os.path.lexists(lock_of(pc))
