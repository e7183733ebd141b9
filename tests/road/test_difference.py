"""Only the difference travels: receipts, thin bundles and answers, with the installed program."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machines import Machine, trust_site

from modelvault.artifact import Digest
from modelvault.bundle.index import Span
from modelvault.bundle.papers import Request, encode_request
from modelvault.config import Config
from modelvault.operations.keys import site_signer
from modelvault.operations.papers import write_paper
from modelvault.vault import Vault


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    path = tmp_path / "ssd"
    path.mkdir()
    return path


def added(who: Machine, model: Path, name: str) -> None:
    """A model in a machine's vault."""
    who.run("add", model, "--name", name)


def index_of(directory: str) -> dict[str, Any]:
    """The index of a bundle, as JSON."""
    document: dict[str, Any] = json.loads((Path(directory) / "bundle.json").read_bytes())
    return document


def events(who: Machine, kind: str) -> list[dict[str, Any]]:
    """What a vault's log says of one kind."""
    lines = map(json.loads, (who.vault / "events.jsonl").read_text().splitlines())
    return [line["data"] for line in lines if line["kind"] == kind]


def test_only_the_difference_is_written(machine: Callable[..., Machine], tiny_awq: Path, drive: Path) -> None:
    """Breaks if a bundle for a site brings what the site told to have, or the registry loses that it went there."""
    pc, lab = machine("pc"), machine("lab", MODELVAULT_SITE="lab")
    for who in (pc, lab):
        added(who, tiny_awq, "tiny")
    refused = pc.run("bundle", "--for", "lab", "--to", drive, code=2)
    assert "no receipt of lab" in refused.err
    assert "receipt add" in refused.err
    written = lab.run("receipt", "write", drive)
    assert "keys trust" in written.out
    assert "error: " in pc.run("receipt", "add", drive, code=14).err
    trust_site(pc, drive / "lab.pub", lab)
    assert "added: receipt" in pc.run("receipt", "add", drive).out

    changed = drive / "changed"
    changed.mkdir()
    for file in tiny_awq.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    (changed / "README.md").write_bytes(b"# newer\n")
    added(pc, changed, "tiny-2")
    plan = pc.json("bundle", "tiny-2", "--for", "lab", "--to", drive, "--dry-run").result
    thin = pc.json("bundle", "tiny-2", "--for", "lab", "--to", drive).result
    assert (
        plan["left_out"]
        == thin["left_out"]
        == sum(file.stat().st_size for file in tiny_awq.iterdir() if file.name != "README.md")
    )
    document = index_of(thin["directory"])
    assert document["requires"] == ["thin/0.2.0"]
    assert len(document["base"]) == len([file for file in tiny_awq.iterdir() if file.name != "README.md"])
    (event,) = events(pc, "bundle-written")
    assert event["site"] == "lab"
    assert (pc.vault / "bundles" / f"{event['index']}.json").read_bytes() == (
        Path(thin["directory"]) / "bundle.json"
    ).read_bytes()
    before = pc.json("receipt", "list").result, pc.json("receipt", "show", "lab").result
    (pc.vault / "registry.sqlite").unlink()
    assert pc.json("registry", "rebuild").result["bundles"] == 1
    assert before == (pc.json("receipt", "list").result, pc.json("receipt", "show", "lab").result)


def test_sites_that_let_nothing_out(machine: Callable[..., Machine], tiny_awq: Path, drive: Path) -> None:
    """Breaks if what was written for a site is not remembered, also where the bundle lay there already."""
    pc = machine("pc")
    added(pc, tiny_awq, "tiny")
    pc.run("bundle", "--to", drive)
    first = pc.json("bundle", "--for", "lab", "--assume-sent", "--to", drive)
    assert (first.result["there_already"], first.result["left_out"]) == (True, 0)
    second = pc.json("bundle", "--for", "lab", "--assume-sent", "--to", drive).result
    assert second["left_out"] == sum(file.stat().st_size for file in tiny_awq.iterdir())
    assert [event.get("site") for event in events(pc, "bundle-written")] == [None, "lab", "lab"]
    pc.run("bundle", "--assume-sent", "--to", drive, code=2)


def test_answers_are_written(machine: Callable[..., Machine], tiny_awq: Path, drive: Path, tmp_path: Path) -> None:
    """Breaks if the answer to a request is more, or something else, than the pieces it asks for; or another PC answers."""
    pc, lab = machine("pc"), machine("lab")
    added(pc, tiny_awq, "tiny")
    original = Path(pc.json("bundle", "--to", drive).result["directory"])
    index = Digest.of_bytes((original / "bundle.json").read_bytes())
    weights = Digest.of_bytes(next(tiny_awq.glob("*.safetensors")).read_bytes())
    usb = tmp_path / "usb"
    usb.mkdir()
    with Vault.open(lab.vault, config=Config(site="lab")) as vault:
        signer, _ = site_signer(vault, None)
        request = Request("lab", index, "models", 7, (Span(weights, 4096, 1000),))
        write_paper(usb, request.file_name, encode_request(request), signer)
    trust_site(pc, usb / "lab.pub", lab)
    patch = pc.json("bundle", "--answer", usb, "--to", usb).result
    assert patch["patches"] == str(index)
    document = index_of(patch["directory"])
    assert (document["label"], document["requires"]) == ("models-patch", ["patch/0.2.0"])
    members = document["volumes"][0]["members"][2:]
    assert [(member["offset"], member["size"]) for member in members] == [(4096, 1000)]
    written = events(pc, "bundle-written")[-1]
    assert (written["site"], written["patches"]) == ("lab", index.hex)
    pc.run("bundle", "tiny", "--answer", usb, "--to", usb, code=2)

    other = machine("other")
    added(other, tiny_awq, "tiny")
    trust_site(other, usb / "lab.pub", lab)
    assert "did not write" in other.run("bundle", "--answer", usb, "--to", usb, code=10).err
