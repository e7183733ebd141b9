"""``fit`` as people type it: files, vault and Hub, what is printed, and bad input."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_hub import FaultyHub
from machines import Machine
from make_models import make_gguf, make_split_gguf
from refusals import failed, succeeded
from shape_models import QWEN2_3B, make_shape

LARGE = replace(QWEN2_3B, layers=6, vocabulary=8192)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as long as a real one of some hundred megabytes, all holes."""
    return make_shape(tmp_path_factory.mktemp("shape") / "model-Q8_0.gguf", LARGE)


def test_answer_first(model: Path, machine: Callable[..., Machine]) -> None:
    """Who asks whether it fits must not have to look for the answer."""
    pc = machine("pc")
    said = pc.run("fit", model, "--gpu", "24GiB").out.splitlines()
    assert said[0] == "model-Q8_0.gguf: fits on 24GiB with 8,192 tokens of context"
    assert all(len(line) <= 80 for line in said)
    for part in ("weights", "cache", "compute", "driver", "margin"):
        assert sum(line.split()[:1] == [part] or f" {part} " in line for line in said) >= 1
    assert any("32k" in line and "█" in line for line in said)
    assert not pc.vault.exists()


def test_what_would_fit_instead(model: Path, machine: Callable[..., Machine]) -> None:
    """A no alone helps nobody."""
    result = succeeded(machine("pc"), "fit", model, "--gpu", "1400MiB", "--context", "32768")
    (line,) = result["models"]
    assert line["verdict"] == "fits partly"
    assert 0 < line["gpu_layers"] < line["all_layers"]
    assert any("tokens of context" in other for other in line["instead"])
    assert line["loads"][0]["left"] >= 0


def test_a_model_at_the_hub_is_read_by_its_header(model: Path, machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Forty gigabytes would be pulled to learn that they do not fit."""
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    (folder / model.name).symlink_to(model)
    (folder / "model-Q4_0.gguf").write_bytes(make_gguf_bytes(tmp_path))
    with FaultyHub({"org/name": folder}) as hub:
        pc = machine("pc", endpoint=hub.url)
        (line,) = succeeded(pc, "fit", "org/name", "--quant", "Q8_0", "--gpu", "24GiB", "--all-quants")["models"]
        assert line["weights"] > 500_000_000
        assert {quant["name"] for quant in line["quants"]} == {"Q8_0", "Q4_0"}
        assert 0 < hub.bytes_sent(model.name) < 4_000_000
    assert not pc.vault.exists()


def make_gguf_bytes(place: Path) -> bytes:
    make_gguf(place / "small.gguf")
    return (place / "small.gguf").read_bytes()


def test_all_shards_count(machine: Callable[..., Machine], tmp_path: Path) -> None:
    """A third of the weights fits nearly everywhere."""
    shards = make_split_gguf(tmp_path / "split", shards=3)
    (line,) = succeeded(machine("pc"), "fit", shards[1], "--gpu", "24GiB")["models"]
    assert line["weights"] > sum(path.stat().st_size for path in shards) * 0.9
    shards[2].unlink()
    error = failed(machine("pc"), "fit", shards[0], "--gpu", "24GiB", code=2)
    assert shards[2].name in error["message"]


def test_a_model_of_the_vault(tiny_awq: Path, machine: Callable[..., Machine]) -> None:
    """What is in the vault is asked about by its name, and nothing is looked up elsewhere."""
    pc = machine("pc")
    pc.run("add", tiny_awq, "--name", "tiny-awq")
    (line,) = succeeded(pc, "fit", "tiny-awq", "--gpu", "a100-80")["models"]
    assert line["engine"] == "vllm"
    assert line["verdict"] == "fits"
    (refused,) = succeeded(pc, "fit", "tiny-awq", "--gpu", "2xv100-32")["models"]
    assert refused["verdict"] == "refused"


def test_several_on_one_card(model: Path, tiny_gguf: Path, machine: Callable[..., Machine]) -> None:
    """The small one whole, the other with the layers for which there is room."""
    small = next(tiny_gguf.glob("*.gguf"))
    result = succeeded(machine("pc"), "fit", model, small, "--gpu", "1600MiB", "--context", "512")
    large, tiny = result["models"]
    assert tiny["verdict"] == "fits"
    assert large["verdict"] == "fits partly"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--gpu", "rtx9999"), 2, "no card of that name"),
        (("--gpu", "24"), 2, "no card of that name"),
        ((), 2, "nvidia-smi"),
        (("--gpu", "24GiB", "--engine", "vllm"), 2, "safetensors"),
        (("--gpu", "24GiB", "--kv-type", "q3_q"), 2, "no such cache"),
        (("--gpu", "24GiB", "--engine", "olama"), 2, "not known here"),
        (("--gpu", "24GiB", "--all-quants"), 2, "other quantizations"),
    ],
)
def test_bad_questions(
    arguments: tuple[str, ...], code: int, words: str, model: Path, machine: Callable[..., Machine]
) -> None:
    """A question without sense gets no number."""
    assert words in failed(machine("pc"), "fit", model, *arguments, code=code)["message"]


def test_what_has_no_header(machine: Callable[..., Machine], tmp_path: Path) -> None:
    """Memory is never guessed from a name."""
    path = tmp_path / "llama-70b-Q4_K_M.gguf"
    path.write_bytes(b"no header at all" * 100)
    assert failed(machine("pc"), "fit", path, "--gpu", "24GiB", code=13)["data"]["rule"] == "gguf-magic"
    assert "does not exist" in failed(machine("pc"), "fit", tmp_path / "x.gguf", "--gpu", "24GiB", code=2)["message"]
