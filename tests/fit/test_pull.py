"""``pull --fit`` and ``import``: what does not fit the cards is not pulled unasked, and is told of where it is installed."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_hub import FaultyHub
from machines import Machine, only_bundle, trust
from make_models import make_gguf
from refusals import failed, succeeded
from shape_models import Q4_K, QWEN2_3B, make_shape

LARGE = replace(QWEN2_3B, layers=6, vocabulary=8192)
LARGE_ONES = ("model-Q8_0.gguf", "model-Q4_K_M.gguf")
HEADERS = 8_000_000
"""More than their headers have, less than any of their weights."""


def sent(hub: FaultyHub) -> int:
    """Bytes of the large files that were read at the hub."""
    return sum(hub.bytes_sent(name) for name in LARGE_ONES)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHub]:
    """A repository with four quantizations, two of them as long as real ones of a small model."""
    folder = tmp_path_factory.mktemp("repository")
    make_shape(folder / "model-Q8_0.gguf", LARGE)
    make_shape(folder / "model-Q4_K_M.gguf", replace(LARGE, kind=Q4_K))
    make_gguf(folder / "model-F16.gguf")
    make_gguf(folder / "model-Q2_K.gguf")
    with FaultyHub({"org/name": folder}) as hub:
        yield hub


@pytest.fixture
def pc(hub: FaultyHub, machine: Callable[..., Machine]) -> Machine:
    return machine("pc", endpoint=hub.url)


@pytest.mark.parametrize(
    ("cards", "chosen"), [("24GiB", "Q8_0"), ("1150MiB", "Q4_K_M"), ("800MiB", "Q2_K"), ("2x1200MiB", "Q8_0")]
)
def test_the_cards_choose(pc: Machine, hub: FaultyHub, cards: str, chosen: str) -> None:
    """Breaks if --quant auto takes one that does not fit, a smaller one than need be, or an unquantized one."""
    before = sent(hub)
    plan = succeeded(pc, "pull", "org/name", "--quant", "auto", "--fit", cards, "--dry-run")
    assert (plan["name"], [file["path"] for file in plan["files"] if file["path"].endswith(".gguf")]) == (
        f"org/name:{chosen}",
        [f"model-{chosen}.gguf"],
    )
    assert plan["fits"].startswith("fits on ")
    assert sent(hub) - before < HEADERS
    assert not pc.vault.exists()


def test_what_does_not_fit_is_not_pulled(pc: Machine, hub: FaultyHub) -> None:
    """Breaks if forty gigabytes are pulled for a card of twenty-four."""
    before = sent(hub)
    error = failed(pc, "pull", "org/name", "--quant", "Q8_0", "--fit", "1150MiB", code=17)
    assert "org/name:Q8_0 does not fit whole on 1150MiB" in error["message"]
    assert any("Q4_K_M" in other for other in error["data"]["instead"])
    assert "--force" in error["hint"]
    assert sent(hub) - before < HEADERS
    assert not pc.vault.exists()
    error = failed(pc, "pull", "org/name", "--quant", "auto", "--fit", "300MiB", code=17)
    assert "no quantization of org/name fits" in error["message"]
    forced = succeeded(pc, "pull", "org/name", "--quant", "Q8_0", "--fit", "1150MiB", "--force", "--dry-run")
    assert forced["fits"].startswith("does not fit")


def test_what_fits_is_pulled(pc: Machine) -> None:
    """Breaks if the choice of the cards is not what then comes, under its name."""
    result = succeeded(pc, "pull", "org/name", "--quant", "auto", "--fit", "800MiB", "--context", "512")
    assert result["model"]["name"] == "org/name:Q2_K"
    assert result["plan"]["fits"] == "fits on 800MiB with 512 tokens of context"
    assert pc.models() == {"org/name:Q2_K"}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--quant", "auto"), 2, "know the cards"),
        (("--quant", "Q8_0", "--fit", "rtx9999"), 2, "no card of that name"),
        (("--quant", "Q8_0", "--force"), 2, "belong to --fit"),
        (("--quant", "Q8_0", "--context", "512"), 2, "belong to --fit"),
    ],
)
def test_bad_requests(pc: Machine, options: tuple[str, ...], code: int, words: str) -> None:
    """Breaks if a wish without sense is answered with a download."""
    ran = pc.run("pull", "org/name", *options, code=code)
    assert words in ran.err
    assert not pc.vault.exists()


def test_nothing_to_choose_from(machine: Callable[..., Machine], tiny_awq: Path) -> None:
    """Breaks if --quant auto of a repository without GGUF ends otherwise than by saying so; --fit alone works there."""
    with FaultyHub({"org/awq": tiny_awq}) as hub:
        pc = machine("pc", endpoint=hub.url)
        assert "no GGUF" in failed(pc, "pull", "org/awq", "--quant", "auto", "--fit", "24GiB", code=2)["message"]
        error = failed(pc, "pull", "org/awq", "--fit", "v100-32", code=17)
        assert "AWQ" in error["message"]
        assert succeeded(pc, "pull", "org/awq", "--fit", "24GiB")["plan"]["fits"].startswith("fits on 24GiB")


def test_import_warns_of_this_machines_cards(
    machine: Callable[..., Machine], tiny_gguf: Path, tiny_awq: Path, tmp_path: Path
) -> None:
    """Breaks if a model is installed without a word where no card can hold or run it, or if there are words where one can."""
    pc, drive = machine("pc"), tmp_path / "drive"
    drive.mkdir()
    pc.run("add", tiny_gguf, "--name", "tiny")
    pc.run("add", tiny_awq, "--name", "org/awq")
    pc.run("bundle", "--to", drive)
    engines = ("--engine", f"llamacpp={tmp_path / 'models'}", "--engine", f"vllm={tmp_path / 'hub'}")
    said = {}
    for card in ("Tesla V100, 300, 7.0", "NVIDIA H100, 81559, 9.0"):
        programs = tmp_path / card[:4]
        programs.mkdir()
        (programs / "nvidia-smi").write_text(f"#!/bin/sh\necho '{card}'\n")
        (programs / "nvidia-smi").chmod(0o755)
        server = Machine(tmp_path / f"server-{card[:4]}", variables={"PATH": f"{programs}:/usr/bin:/bin"})
        trust(server, pc, only_bundle(drive))
        said[card] = " ".join(server.json("import", drive, *engines).document["warnings"])
    tight, ample = said.values()
    assert "tiny does not fit" in tight
    assert "AWQ" in tight
    assert "fit" not in ample
