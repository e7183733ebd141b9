"""What goes wrong on the way from an Ollama registry into the vault, with the installed program."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_hub import Refusals
from machines import Machine
from make_models import make_large_gguf
from ollama_registry import OllamaRegistry
from ollama_stores import PARAMS, TEXTS, write_model
from refusals import blobs, failed, running, succeeded

SIZE = 150_000_000
LARGE, TINY = "ollama:large:f16", "ollama:tiny:q8_0"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Iterator[Path]:
    """A store with a model that takes a while, and a small one."""
    folder = tmp_path_factory.mktemp("ollama")
    make_large_gguf(folder / "large.gguf", SIZE)
    write_model(folder / "models", "large:f16", [("model", folder / "large.gguf"), *TEXTS])
    write_model(folder / "models", "tiny:q8_0", [("model", next(tiny_gguf.glob("*.gguf"))), *TEXTS])
    yield folder / "models"
    shutil.rmtree(folder)


@pytest.fixture
def registry(models: Path) -> Iterator[OllamaRegistry]:
    # A small buffer: what the kernel takes from the server and never gives to the client is no request of ours.
    with OllamaRegistry(models, send_buffer=16 << 10) as registry:
        yield registry


@pytest.fixture
def pc(machine: Callable[..., Machine], registry: OllamaRegistry) -> Machine:
    """A machine for which the registry is Ollama's own."""
    return machine("pc", MODELVAULT_OLLAMA_REGISTRY=registry.url)


def test_killed_and_resumed(registry: OllamaRegistry, pc: Machine) -> None:
    """Breaks if what arrived before a kill -9 is fetched again: at most 1 % of the file may be."""
    registry.faults.rate = 5_000_000
    digest, size = registry.layer("large", "f16", "model")
    reached = registry.reached(digest, size // 2)
    with running(pc, "pull", LARGE) as pull:
        assert reached.wait(60)
        pull.signal(signal.SIGKILL)
        pull.end(-signal.SIGKILL)
    assert pc.models() == set()
    assert blobs(pc) == {}
    registry.faults.rate = None
    result = succeeded(pc, "pull", LARGE)
    assert result["reused"] > size // 3
    again = registry.bytes_sent(digest) - size
    assert 0 <= again <= size // 100, again
    assert len({request.path for request in registry.asked("storage") if digest in request.path}) > 1, "one connection"
    pc.run("verify")


def test_a_wrong_byte(registry: OllamaRegistry, pc: Machine) -> None:
    """Breaks if a damaged layer is published or not named, or if the next run does not mend it."""
    digest, _ = registry.layer("tiny", "q8_0", "model")
    registry.faults.flip[digest] = 700_000
    error = failed(pc, "pull", TINY, code=12)
    assert error["data"]["path"] == "model.gguf"
    assert error["data"]["expected"] == digest
    assert (pc.models(), blobs(pc)) == (set(), {})
    registry.faults.flip.clear()
    succeeded(pc, "pull", TINY)
    pc.run("verify")


@pytest.mark.parametrize("name", ["ollama:tiny:q9", "ollama:tiny", "ollama:tyni:q8_0", "ollama:me/tiny:q8_0"])
def test_unknown_names(registry: OllamaRegistry, pc: Machine, name: str) -> None:
    """Breaks if a typing error is not told from a registry that is not there, or leads nowhere."""
    error = failed(pc, "pull", name, code=10)
    assert "has no model" in error["message"]
    assert f"https://ollama.com/{'me' if '/' in name else 'library'}/" in error["hint"]
    assert not (pc.vault / "blobs").exists()


@pytest.mark.parametrize("option", [("--quant", "q8_0"), ("--include", "*.gguf"), ("--exclude", "LICENSE")])
def test_what_is_for_the_hub_alone(pc: Machine, option: tuple[str, str]) -> None:
    """Breaks if a choice among the files of a tag is taken and then passed over in silence."""
    assert "comes as it is" in failed(pc, "pull", TINY, *option, code=2)["message"]


def test_a_revision(registry: OllamaRegistry, pc: Machine) -> None:
    """Breaks if a pinned model is another one when the tag was moved."""
    commit = succeeded(pc, "pull", TINY, "--dry-run")["commit"]
    assert "the tag was moved" in failed(pc, "pull", TINY, "--revision", "0" * 64, code=10)["hint"]
    succeeded(pc, "pull", TINY, "--revision", commit)


def test_a_project_locks_what_the_tag_named(
    registry: OllamaRegistry, pc: Machine, machine: Callable[..., Machine], tmp_path: Path, tiny_gguf: Path
) -> None:
    """Breaks if a lock does not lead to the same model on another machine, since it knows no tag, or the tag was moved."""
    models, weights = tmp_path / "models", next(tiny_gguf.glob("*.gguf"))
    write_model(models, "tiny:q8_0", [("model", weights), *TEXTS])
    registry.models = models
    project = tmp_path / "project.toml"
    project.write_text('[[model]]\nname = "ollama:library/tiny:q8_0"\n')
    pull = ("pull", "--all", "--file", project)
    (first,) = succeeded(pc, *pull)["models"]
    registry.faults.kept.append(registry.manifest("tiny", "q8_0"))
    write_model(models, "tiny:q8_0", [("model", weights)])
    (second,) = succeeded(machine("second", MODELVAULT_OLLAMA_REGISTRY=registry.url), *pull)["models"]
    assert (second["name"], second["commit"]) == (first["name"], first["commit"])
    registry.faults.kept.clear()
    ran = machine("third", MODELVAULT_OLLAMA_REGISTRY=registry.url).run(*pull, code=10)
    assert "the tag was moved" in ran.out + ran.err
    (moved,) = succeeded(pc, *pull, "--update")["models"]
    assert (moved["before"], moved["commit"] != first["commit"]) == (first["commit"], True)


def test_what_is_no_gguf_model(registry: OllamaRegistry, pc: Machine, tmp_path: Path) -> None:
    """Breaks if a model that no other engine, and no vault, can do anything with is refused only after it was downloaded."""
    models = tmp_path / "models"
    write_model(models, "cloudy:1", [("license", b"x")], remote_host="https://ollama.com")
    write_model(models, "tensors:1", [("tensor", b"x" * 1000), ("json", b"{}")])
    registry.models = models
    for name in ("ollama:cloudy:1", "ollama:tensors:1"):
        error = failed(pc, "pull", name, code=13)
        assert error["data"]["rule"] == "ollama-model"
    assert not any("/blobs/" in request.path for request in registry.asked())


def test_what_the_layers_hold(registry: OllamaRegistry, pc: Machine, tmp_path: Path, tiny_gguf: Path) -> None:
    """Breaks if a layer that is not what its kind says gets into the vault, or an old parameter keeps a model out of it."""
    models, weights = tmp_path / "models", next(tiny_gguf.glob("*.gguf"))
    write_model(models, "odd:params", [("model", weights), ("params", b"[]")])
    write_model(models, "odd:weights", [("model", b"GGML" + b"x" * 100)])
    write_model(
        models, "odd:old", [("model", weights), ("params", PARAMS), ("prompt", b"{{ .Prompt }}"), ("embed", b"x")]
    )
    registry.models = models
    assert failed(pc, "pull", "ollama:odd:params", code=13)["data"]["rule"] == "ollama-layer"
    assert failed(pc, "pull", "ollama:odd:weights", code=13)["data"]["rule"] == "gguf-magic"
    assert any("PARAMETER num_gqa" in warning for warning in succeeded(pc, "pull", "ollama:odd:old")["warnings"])
    modelfile = succeeded(pc, "show", "ollama:odd:old")["modelfile"]
    assert "num_gqa" not in modelfile
    assert "TEMPLATE {{ .Prompt }}" in modelfile


def test_the_address_of_a_page(pc: Machine) -> None:
    """Breaks if what people copy out of the browser does not lead to the command that they want."""
    error = failed(pc, "pull", "https://ollama.com/library/llama3.1:8b", code=2)
    assert "write ollama:library/llama3.1:8b" in error["hint"]
    assert "ollama:llama3.1:8b" in failed(pc, "pull", "llama3.1:8b", code=2)["hint"]


def test_a_registry_by_its_host(registry: OllamaRegistry, machine: Callable[..., Machine]) -> None:
    """Breaks if a registry on this machine is asked over HTTPS, which none speaks, or one elsewhere in plain text unasked."""
    pc = machine("alone")
    name = f"ollama:{registry.host}/library/tiny:q8_0"
    assert succeeded(pc, "pull", name)["model"]["name"] == name
    succeeded(pc, "pull", TINY, "--endpoint", registry.url)
    error = failed(pc, "pull", "ollama:registry.invalid/library/tiny:q8_0", code=10)
    assert "https://registry.invalid" in error["message"]
    assert pc.models() == {name, TINY}


def test_every_name_that_is_listed_is_taken(
    registry: OllamaRegistry, pc: Machine, machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """Breaks if a command does not take a name that `list` prints, in any of the ways to write it."""
    succeeded(pc, "pull", "ollama:library/tiny:q8_0")
    (name,) = pc.models()
    assert name == TINY
    drive = tmp_path / "drive"
    drive.mkdir()
    for written in (TINY, "ollama:registry.ollama.ai/library/tiny:q8_0", "ollama:TINY:Q8_0"):
        assert succeeded(pc, "show", written)["model"]["name"] == TINY
        succeeded(pc, "verify", written)
    succeeded(pc, "pull", TINY)
    assert succeeded(pc, "fit", TINY, "--gpu", "24GiB")["models"][0]["model"] == TINY
    succeeded(pc, "install", TINY, "--engine", f"folder={tmp_path / 'folder'}")
    assert (tmp_path / "folder/ollama@tiny@q8_0/model.gguf").exists()
    succeeded(pc, "install", TINY, "--engine", f"llamacpp={tmp_path / 'llama'}")
    succeeded(pc, "install", TINY, "--engine", f"sglang={tmp_path / 'hub'}")
    assert (tmp_path / "hub/models--ollama--tiny-q8_0/refs/main").exists()
    succeeded(pc, "uninstall", TINY, "--engine", f"sglang={tmp_path / 'hub'}")
    succeeded(pc, "bundle", TINY, "--to", drive)
    server = machine("server")
    server.run("import", drive, "--allow-unsigned", "--only", TINY, "--engine", f"folder={tmp_path / 'there'}")
    assert server.models() == {TINY}
    succeeded(pc, "registry", "rebuild")
    assert pc.models() == {TINY}
    succeeded(pc, "rm", TINY)


def test_a_registry_with_a_bad_day(registry: OllamaRegistry, pc: Machine) -> None:
    """Breaks if drops, tokens, expired addresses and overload together end a pull that could go on."""
    registry.faults.tokens = registry.faults.anonymous = True
    registry.faults.drop_after, registry.faults.drop_times, registry.faults.located_uses = 300_000, 5, 3
    registry.faults.refusals += [
        Refusals(429, 2, {"Retry-After": "0"}, where) for where in ("manifests", "blobs", "storage", "token")
    ]
    succeeded(pc, "pull", TINY)
    assert registry.faults.drop_times == 0
    assert {refusal.where: refusal.times for refusal in registry.faults.refusals if refusal.times > 0} == {}
    pc.run("verify")
