"""Stores that we filled, in the hands of the real Ollama: an old release, which generates, and a newer one, which cannot here."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_cases import Blobs, contents
from make_models import SENTENCE
from real_engines import OLLAMAS, OllamaServer, ollama_server, require_engine
from split_models import split_model, tiny_model

from modelvault.artifact import StoredModel
from modelvault.engines import InstallRecord, InstallRequest, LinkMode, Owner, Target, engines
from modelvault.engines.chat_templates import families, recognize
from modelvault.engines.ollama_store import human_number
from modelvault.errors import UsageProblem
from modelvault.ollama_name import OllamaName

pytestmark = [pytest.mark.engine, pytest.mark.parametrize("release", OLLAMAS)]
NOBODY = 65534
MODELFILE = (
    "TEMPLATE {{ .Prompt }}\nSYSTEM Answer briefly.\nPARAMETER temperature 0.7\nPARAMETER stop <|end|>\nPARAMETER stop b\n"
    "LICENSE Free\nLICENSE Or not\nMESSAGE user Hi\nMESSAGE assistant Hello\n"
)
PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
TOOLS = PLAIN + "{% if tools %}{{ tools | tojson }}{% endif %}"
THINKING = PLAIN + "{{ '<think>\n</think>' }}"


def install(blobs: Blobs, stored: StoredModel, models: Path, **options: Any) -> InstallRecord:
    return engines()["ollama"].install(InstallRequest(stored, blobs.path, Target("ollama", models), **options))


def generates(server: OllamaServer, name: str, release: str) -> None:
    """Let the model speak, where the release can."""
    if release == "ollama":
        assert SENTENCE.startswith(server.generate(name, "hello", tokens=3))


def left_by(models: Path) -> dict[str, str]:
    """What lies in a store, without the copies of metadata that newer releases keep beside it and clear up when they start."""
    return {path: digest for path, digest in contents(models).items() if not path.startswith("metadata/")}


@pytest.mark.parametrize("shards", [1, 3])
def test_list_and_show(release: str, shards: int, blobs: Blobs, tmp_path: Path) -> None:
    """Everything that we know of a model must be what Ollama says of it, by command and by API."""
    models = tmp_path / "models"
    stored = tiny_model(blobs, tmp_path) if shards == 1 else split_model(blobs, tmp_path / "shards", shards=shards)
    record = install(blobs, stored, models, modelfile=MODELFILE)
    manifest = record.files[-1]
    with ollama_server(models, release=release) as server:
        (line,) = server.run("list").splitlines()[1:]
        assert line.split()[:2] == ["tiny:q8_0", manifest.digest.removeprefix("sha256:")[:12]]
        (listed,) = server.api("/api/tags")["models"]
        assert listed["digest"] == manifest.digest.removeprefix("sha256:")
        assert listed["size"] == sum(file.size for file in record.files[:-1])
        shown = server.api("/api/show", {"model": "tiny:q8_0"})
        expected = {"format": "gguf", "family": "llama", "families": ["llama"], "quantization_level": "Q8_0"}
        assert {key: shown["details"][key] for key in expected} == expected
        assert shown["details"]["parameter_size"] == human_number(stored.model.traits.parameters or 0)
        assert shown["template"] == "{{ .Prompt }}"
        assert (shown["system"], shown["license"]) == ("Answer briefly.", "Free\nOr not")
        assert [message["content"] for message in shown["messages"]] == ["Hi", "Hello"]
        assert shown["capabilities"] == ["completion"]
        assert shown["model_info"]["llama.context_length"] == 512
        assert f"FROM {models / record.files[0].path}\n" in shown["modelfile"]
        said = server.run("show", "tiny:q8_0")
        assert all(word in said for word in ("Q8_0", "Answer briefly.", "0.7", "<|end|>", "Free"))
        generates(server, "tiny:q8_0", release)
    assert engines()["ollama"].verify(record) == []


@pytest.mark.parametrize(("jinja", "knows_more"), [(PLAIN, False), (TOOLS, True), (THINKING, True)])
def test_which_template_is_used(
    release: str,
    jinja: str,
    knows_more: bool,
    blobs: Blobs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ours is for releases that read no other. A newer one must be free to use the file's own where that knows tools or thinking."""
    monkeypatch.setattr("make_models.CHAT_TEMPLATE", jinja)
    models = tmp_path / "models"
    stored = tiny_model(blobs, tmp_path)
    install(blobs, stored, models, name="with-ours")
    install(blobs, stored, models, name="without", modelfile='TEMPLATE ""\n')
    chatml = recognize(jinja)
    assert chatml in families()
    with ollama_server(models, release=release) as server:
        ours, without = (server.api("/api/show", {"model": name}) for name in ("with-ours", "without"))
        if release == "ollama":
            assert (ours["template"], without["template"]) == (chatml and chatml.template, "{{ .Prompt }}")
        else:
            assert ours["template"] == (jinja if knows_more else chatml and chatml.template)
            assert without["template"] == jinja
            assert ours["capabilities"] == without["capabilities"]


def test_pruning_and_removal_leave_the_vault_whole(release: str, blobs: Blobs, tmp_path: Path) -> None:
    """Start-up pruning must spare what we linked; ``cp`` and ``rm`` take names away, never the vault's bytes."""
    models = tmp_path / "models"
    record = install(blobs, tiny_model(blobs, tmp_path), models)
    assert record.files[0].link == "hard link"
    orphan = models / "blobs" / f"sha256-{'0' * 64}"
    orphan.write_bytes(b"of nobody")
    for path in (orphan, *(models / file.path for file in record.files)):
        os.utime(path, (1, 1))
    with ollama_server(models, release=release) as server:
        assert not orphan.exists()
        assert engines()["ollama"].verify(record) == []
        server.run("cp", "tiny:q8_0", "copy")
        server.run("rm", "tiny:q8_0")
        generates(server, "copy", release)
        (tmp_path / "Modelfile").write_text("FROM copy\nSYSTEM x\n")
        server.run("create", "derived", "-f", str(tmp_path / "Modelfile"))
        server.run("rm", "copy", "derived")
    assert blobs.intact()
    assert left_by(models) == {}


@pytest.fixture
def service_store(release: str) -> Iterator[Path]:
    """A models directory of another user, below directories that he may enter."""
    if not os.stat(require_engine(release)).st_mode & 0o001:
        pytest.skip("the ollama binary cannot be run by other users")
    with tempfile.TemporaryDirectory() as place:
        models = Path(place) / "models"
        models.mkdir()
        for path in (Path(place), models):
            os.chown(path, NOBODY, NOBODY)
        yield models


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="filling another user's store needs root")
def test_the_services_user_owns_what_root_installed(
    release: str, blobs: Blobs, tmp_path: Path, service_store: Path
) -> None:
    """The service must be able to derive from, touch, prune and remove what root brought, and cannot reach the vault."""
    models = service_store
    record = install(blobs, tiny_model(blobs, tmp_path), models)
    assert record.files[0].link in {"copy", "reflink"}
    modelfile = models.parent / "Modelfile"
    modelfile.write_text("FROM tiny:q8_0\nSYSTEM x\nPARAMETER temperature 0.1\n")
    aged = [models / file.path for file in record.files if file.path.startswith("blobs/")]
    for path in aged:
        os.utime(path, (1, 1))
    with ollama_server(models, uid=NOBODY, release=release) as server:
        assert engines()["ollama"].verify(record) == []
        server.run("create", "derived", "-f", str(modelfile))
        if release != "ollama":  # older releases leave the time of a blob that they use again
            assert aged[0].stat().st_mtime > 1
        server.run("cp", "derived", "copied")
        generates(server, "copied", release)
        server.run("rm", "tiny:q8_0", "derived")
    with ollama_server(models, uid=NOBODY, release=release) as server:
        assert server.run("list").count("\n") == 2
        generates(server, "copied", release)
        server.run("rm", "copied")
    assert left_by(models) == {}
    # And once more into a directory that by now holds what the service made.
    again = install(blobs, tiny_model(blobs, tmp_path), models, owner=Owner(NOBODY, NOBODY), link=LinkMode.COPY)
    assert engines()["ollama"].verify(again) == []
    assert blobs.intact()


def test_names(release: str, blobs: Blobs, tmp_path: Path) -> None:
    """Names that Ollama refuses, or keeps for itself, would be models that nobody can run; spelled otherwise a name is the same."""
    models = tmp_path / "models"
    stored = tiny_model(blobs, tmp_path)
    install(blobs, stored, models, name="Tiny:Q8_0")
    taken = ["_a", "a" * 80, "hub.local:5000/me/llama:1", "h/n/m:t", "a:b.c-d_e", "local", "x/cloud"]
    with ollama_server(models, release=release) as server:
        for name in taken:
            record = install(blobs, stored, models, name=name)
            server.run("show", record.installed_name)
            assert record.installed_name in server.run("list")
        for name in ("a:", "a b", ".a", "a/b/c/d", "me.too/a", "a" * 81, "../a", "é", "a:b:c", "a/", "a@b"):
            assert server.tried("cp", "tiny:q8_0", name).returncode != 0, name
            with pytest.raises(UsageProblem):
                OllamaName.parse(name)
        for name in ("a:cloud", "a:x-cloud", "a:local", "a:Local"):
            # Ollama makes them, and then means something else by them.
            server.run("cp", "tiny:q8_0", name)
            assert server.tried("show", name).returncode != 0, name
            with pytest.raises(UsageProblem, match="keeps the tag"):
                OllamaName.parse(name)
        before = server.run("list")
        assert install(blobs, stored, models, name="tINY:q8_0").installed_name == "Tiny:Q8_0"
        assert server.run("list").count("\n") == before.count("\n")


def test_a_link_to_nothing(release: str, blobs: Blobs, tmp_path: Path) -> None:
    """Left by somebody's clearing up, it hides all models: who installs must hear why the list is empty."""
    models = tmp_path / "models"
    stored = tiny_model(blobs, tmp_path)
    record = install(blobs, stored, models)
    link = models / "manifests/registry.ollama.ai/library/gone/latest"
    link.parent.mkdir()
    link.symlink_to("/nowhere")
    plan = engines()["ollama"].plan(InstallRequest(stored, blobs.path, Target("ollama", models)))
    assert [warning for warning in plan.warnings if str(link) in warning]
    with ollama_server(models, release=release) as server:
        assert "no such file" in server.tried("list").stderr
        # A model of that name takes the link's place.
        replaced = install(blobs, stored, models, name="gone")
        assert server.run("list").count("\n") == 3
    assert engines()["ollama"].uninstall(replaced).removed
    assert engines()["ollama"].verify(record) == []
    assert not link.is_symlink()


def test_an_uninstall_among_models_of_others(release: str, blobs: Blobs, tmp_path: Path) -> None:
    """What Ollama itself made of our blobs must go on working when our name for them goes."""
    models = tmp_path / "models"
    stored = tiny_model(blobs, tmp_path)
    record = install(blobs, stored, models)
    with ollama_server(models, release=release) as server:
        server.run("cp", "tiny:q8_0", "Other:One")
        (tmp_path / "Modelfile").write_text("FROM tiny:q8_0\nSYSTEM y\n")
        server.run("create", "derived", "-f", str(tmp_path / "Modelfile"))
        removed = engines()["ollama"].uninstall(record).removed
        assert removed == (str(models / record.files[-1].path),)
        listed = {line.split()[0] for line in server.run("list").splitlines()[1:]}
        assert listed == {"Other:One", "derived:latest"}
        generates(server, "derived", release)
    shutil.rmtree(models)
    assert blobs.intact()
