"""The grammar of Modelfiles against the real Ollama, which reads the same text and makes layers of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_cases import Blobs
from real_engines import OLLAMAS, OllamaServer, ollama_server
from split_models import tiny_model

from modelvault.engines import InstallRequest, Target, engines
from modelvault.engines.ollama_store import text_layers
from modelvault.errors import UsageProblem
from modelvault.formats.modelfile import parse, render

pytestmark = pytest.mark.engine

TAKEN = {
    "quotes inside": 'SYSTEM say "hi" and go\n',
    "quoted, with quotes inside": 'SYSTEM "a" b"\n',
    "a quote that goes on": 'SYSTEM "a\nLICENSE x"\n',
    "empty": 'SYSTEM ""\nLICENSE y\nPARAMETER stop ""\nMESSAGE user ""\n',
    "three quotes": 'SYSTEM """a\n"b"\n# c\n"""\n',
    "three quotes and a fourth": 'SYSTEM """a""""\n',
    "three quotes, then text": 'SYSTEM """a""" b\nLICENSE """\n',
    "six quotes": 'SYSTEM """"""\nLICENSE z\n',
    "comments": "# SYSTEM no\n   # neither\nSYSTEM yes # kept\n",
    "case": "sYsTeM x\npArAmEtEr top_k 4\n",
    "blanks": "   SYSTEM    padded   \nPARAMETER\ttop_k\t 4\n",
    "line ends of Windows": 'SYSTEM a\r\nLICENSE """x\r\ny"""\r\n',
    "line ends of old": "SYSTEM a\rLICENSE b\r",
    "characters that are dropped": "SYSTEM a\u00a0b\u3000c\u200bd\u2028e\u00adf\x0bg\x00\n",
    "an emoji younger than Python's tables": "SYSTEM \U0001fae8 \U0001f600\n",
    "a mark in front": "\ufeffSYSTEM a\n",
    "numbers": "PARAMETER temperature .5\nPARAMETER top_p 1e-7\nPARAMETER min_p 5.\nPARAMETER seed +5\nPARAMETER repeat_penalty -0\n",
    "repeated": "PARAMETER stop b\nPARAMETER stop a\nPARAMETER top_k 4\nPARAMETER top_k 5\nSYSTEM a\nSYSTEM b\nLICENSE l\nLICENSE l\n",
    "deprecated": "PARAMETER mirostat 1\nPARAMETER use_mlock yes\nPARAMETER top_k 4\n",
    "messages": 'MESSAGE user a: b: c\nMESSAGE assistant """a\nb"""\n',
    "others": "RENDERER qwen3-coder\nPARSER qwen3-coder\nREQUIRES v0.5\n",
    "template": 'TEMPLATE a{{ .Prompt }}\nTEMPLATE """{{ .System }}\n{{ .Prompt }}"""\n',
}
REFUSED = {
    "unknown parameter": "PARAMETER tempratur 1\n",
    "a parameter's case": "PARAMETER TOP_K 4\n",
    "two blanks": "PARAMETER  top_k 4\n",
    "no whole number": "PARAMETER num_ctx 1.0\n",
    "too large": "PARAMETER num_ctx 99999999999999999999\n",
    "no number": "PARAMETER temperature inf\n",
    "too large a number": "PARAMETER temperature 1e39\n",
    "not true": "PARAMETER use_mmap yes\n",
    "open quotes": 'SYSTEM "a\n',
    "open three quotes": 'SYSTEM """a""\n',
    "five quotes": 'SYSTEM """""\nLICENSE """ x\n',
    "role": "MESSAGE robot hi\n",
    "a role's case": "MESSAGE User hi\n",
    "instruction": "GREETING x\n",
    "no value": "SYSTEM\n",
    "version": "REQUIRES 1.02.3\n",
    "open action": "TEMPLATE {{ .X\n",
    "open block": "TEMPLATE {{ if .System }}{{ .Prompt }}\n",
    "an end too many": "TEMPLATE {{ .Prompt }}{{ end }}\n",
}


def texts(models: Path, name: str) -> list[tuple[str, bytes]]:
    """List the layers of a model that are no files, in their order."""
    manifest = json.loads((models / f"manifests/registry.ollama.ai/library/{name}/latest").read_bytes())
    found = [
        (layer["mediaType"].rpartition(".")[2], (models / "blobs" / layer["digest"].replace(":", "-")).read_bytes())
        for layer in manifest["layers"]
    ]
    return [(kind, data) for kind, data in found if kind != "model"]


def ours(text: str) -> list[tuple[str, bytes | None]]:
    return [(layer.media, layer.data) for layer in text_layers(parse(text))]


@pytest.fixture(params=OLLAMAS)
def server(request: pytest.FixtureRequest, blobs: Blobs, tmp_path: Path) -> Iterator[OllamaServer]:
    """A server with a model ``base``, from which others can be made: a newer one takes no files without its other programs."""
    models = tmp_path / "models"
    engines()["ollama"].install(
        InstallRequest(tiny_model(blobs, tmp_path), blobs.path, Target("ollama", models), name="base", modelfile="")
    )
    with ollama_server(models, release=request.param) as running:
        yield running


def test_what_it_takes_we_read_alike(server: OllamaServer, tmp_path: Path) -> None:
    """The same text must give the same layers, byte for byte; so must what we write of it, and what Ollama shows of it."""
    models, file = tmp_path / "models", tmp_path / "Modelfile"
    for title, text in TAKEN.items():
        mark = "\ufeff" if text.startswith("\ufeff") else ""
        for written in (f"{mark}FROM base\n{text.removeprefix(mark)}", render(parse(text), "base")):
            file.write_bytes(written.encode())
            server.run("create", "made", "-f", str(file))
            assert ours(text) == texts(models, "made"), title
        shown = server.run("show", "--modelfile", "made")
        file.write_text(shown.replace(shown[shown.index("\nFROM /") :].splitlines()[1], "FROM base"), newline="")
        again = server.tried("create", "again", "-f", str(file))
        # Ollama does not quote all that it shows; where it reads something else, or nothing, of that, we do, too.
        if again.returncode == 0:
            assert ours(file.read_bytes().decode()) == texts(models, "again"), title
        else:
            with pytest.raises(UsageProblem):
                parse(file.read_bytes().decode())


def test_what_it_refuses_we_refuse(server: OllamaServer, tmp_path: Path) -> None:
    """A model must not be installed from a text that its author could not have tried."""
    file = tmp_path / "Modelfile"
    for title, text in REFUSED.items():
        file.write_text(f"FROM base\n{text}")
        assert server.tried("create", "made", "-f", str(file)).returncode != 0, title
        with pytest.raises(UsageProblem, match="modelfile line"):
            parse(text)
