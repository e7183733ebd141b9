"""What is the hub cache's alone: names, commits, links, references, and what vLLM cannot load."""

import hashlib
from pathlib import Path

import pytest
from engine_cases import COMMIT, Case, contents

from modelvault.artifact import Algorithm, Digest, FileSpec, Origin, Traits
from modelvault.engines import InstallRecord, LinkMode, hub_engine
from modelvault.errors import EngineRefused, UsageProblem
from modelvault.modelpack import store_form

HUB = Origin("hub", "org/tiny", COMMIT)


def install(case: Case, origin: Origin = HUB, **options: object) -> InstallRecord:
    stored = options.pop("stored", None) or case.stored(origin=origin)
    return case.engine.install(case.request(stored, **options))  # type: ignore[arg-type]  # tests pass what they like


def test_the_layout_is_the_hubs(vllm: Case) -> None:
    """vLLM resolves ``org/tiny`` through exactly these paths; a newline in the reference makes it unreadable."""
    record = install(vllm)
    root = vllm.directory / "models--org--tiny"
    assert (root / "refs/main").read_bytes() == COMMIT.encode()
    assert record.installed_name == "org/tiny"
    nested = root / "snapshots" / COMMIT / "nested/extra.json"
    assert str(nested.readlink()).startswith("../../../blobs/")
    assert nested.read_bytes() == b'{"nested": true}'
    assert record.arguments == ("--max-model-len", "256")
    (step,) = vllm.engine.recipe(record)
    assert step.endswith("vllm serve org/tiny --max-model-len 256")
    assert f"HF_HUB_CACHE={vllm.directory}" in step
    assert "HF_HUB_OFFLINE=1" in step


def test_blobs_are_named_by_the_hubs_etag(vllm: Case) -> None:
    """The real client then finds them and downloads nothing again."""
    stored = vllm.stored(origin=HUB)
    files = []
    for file in stored.model.files:
        data = vllm.blobs.path(file.digest).read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        upstream = file.digest if file.path.endswith(".safetensors") else Digest(Algorithm.GIT_SHA1, git)
        files.append(FileSpec(file.path, file.size, file.digest, upstream))
    model = type(stored.model)(stored.model.name, HUB, tuple(files), stored.model.traits)
    record = install(vllm, stored=store_form(model))
    blobs = {path.name for path in (vllm.directory / "models--org--tiny/blobs").iterdir()}
    assert blobs == {(file.upstream or file.digest).hex for file in files}
    assert vllm.engine.verify(record) == []


@pytest.mark.parametrize(
    ("name", "origin", "chosen", "repository"),
    [
        ("llama", Origin("folder"), None, "llama"),
        ("org/llama:X", Origin("folder"), None, "org/llama"),
        ("short", HUB, None, "org/tiny"),
        ("short", HUB, "my/own", "my/own"),
    ],
)
def test_repository_names(vllm: Case, name: str, origin: Origin, chosen: str | None, repository: str) -> None:
    """What the user types after ``vllm serve``."""
    stored = vllm.stored(name, origin=origin)
    plan = vllm.engine.plan(vllm.request(stored, name=chosen))
    assert plan.installed_name == repository


@pytest.mark.parametrize("name", ["a--b", "a..b", "a/b/c", "x.git", "-a", "a.", "", "a b", "a" * 97])
def test_names_that_the_hub_client_would_not_take(vllm: Case, name: str) -> None:
    """vLLM would say "Invalid repository ID" for an install that looks fine."""
    if name:
        with pytest.raises(UsageProblem, match="not a repository name"):
            vllm.engine.plan(vllm.request(name=name))


def test_a_model_without_commit_gets_its_manifests(vllm: Case) -> None:
    """Forty hex digits are what the hub client takes for a commit."""
    stored = vllm.stored()
    install(vllm, stored=stored)
    assert (vllm.directory / "models--org--tiny/refs/main").read_text() == stored.manifest.hex[:40]


@pytest.mark.parametrize(
    ("content", "quantization", "reason"),
    [
        ({"a.gguf": b"GGUF"}, None, "no config.json and no tokenizer"),
        ({"a.gguf": b"GGUF", "config.json": b"{}"}, None, "no tokenizer: put them into one folder"),
        ({"a-00001-of-00002.gguf": b"GGUF", "config.json": b"{}", "tokenizer.json": b"{}"}, None, "1 are not here"),
        (
            {f"a-0000{number}-of-00002.gguf": b"%d" % number for number in (1, 2)}
            | {"config.json": b"{}", "tokenizer.json": b"{}"},
            None,
            "answers with rubbish: join the parts",
        ),
        ({"a.gguf": b"1", "b.gguf": b"2", "config.json": b"{}", "tokenizer.json": b"{}"}, None, "vLLM takes one"),
        ({"sub/model.safetensors": b"x", "config.json": b"{}"}, None, "lie in folders"),
        ({"model-00001-of-00002.safetensors": b"x", "config.json": b"{}"}, "awq", "1 are not here"),
        ({"model-00003-of-00002.safetensors": b"x", "config.json": b"{}"}, "awq", "shard 3 of 2"),
        ({"params.json": b"{}", "model.safetensors": b"x"}, None, "no config.json"),
        ({"model.bin": b"x", "config.json": b"{}"}, None, "has none"),
        ({"model.safetensors": b"x"}, "awq", "no config.json"),
        ({"model.safetensors": b"x", "config.json": b"{}"}, "exl2", "EXL2"),
        ({"model.safetensors": b"x", "config.json": b"{}"}, "EXL3", "EXL3"),
        ({"model.safetensors": b"x", "config.json": b"{}"}, "bitsandbytes 4-bit", "bitsandbytes"),
    ],
)
def test_what_is_refused(vllm: Case, content: dict[str, bytes], quantization: str | None, reason: str) -> None:
    """An install that cannot be served is worse than a refusal: the error comes hours later, from vLLM."""
    stored = vllm.blobs.model("org/tiny", content, traits=Traits("x", quantization=quantization))
    with pytest.raises(EngineRefused, match=reason):
        vllm.engine.install(vllm.request(stored))
    assert not vllm.directory.exists()


INDEX = b'{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'


def test_what_the_index_names_must_be_there(vllm: Case) -> None:
    """vLLM itself would say so only when it loads; and of a quantized model without the index, not at all."""
    content = {"config.json": b"{}", "one.safetensors": b"x", "model.safetensors.index.json": INDEX}
    stored = vllm.blobs.model("org/tiny", content, traits=Traits("safetensors", quantization="awq"))
    with pytest.raises(EngineRefused, match=r"two\.safetensors, which is not here \(1 of 2 files\)") as refusal:
        vllm.engine.install(vllm.request(stored))
    assert refusal.value.hint
    folder = Case("folder", vllm.blobs, vllm.directory)
    with pytest.raises(EngineRefused, match="not here"):
        folder.engine.install(folder.request(stored))
    assert contents(vllm.directory) == {}


def test_a_second_copy_of_the_weights_stays_out(vllm: Case) -> None:
    """vLLM would read ``consolidated.safetensors`` and nothing else, in another format; alone, it is the model."""
    content = {"config.json": b"{}", "model.safetensors": b"x", "consolidated.safetensors": b"y"}
    record = install(vllm, stored=vllm.blobs.model("org/tiny", content))
    assert "consolidated" not in str(record.files)
    native = {"params.json": b"{}", "consolidated.safetensors": b"y", "tekken.json": b"{}"}
    assert "consolidated" in str(install(vllm, stored=vllm.blobs.model("org/native", native)).files)


@pytest.mark.parametrize("below", ["", "Q8_0/"])
def test_gguf_is_served_by_its_path(vllm: Case, below: str) -> None:
    """The plugin takes a file, and looks for configuration and tokenizer in the directory that it lies in."""
    content = {name: name.encode() for name in (f"{below}a.gguf", "mmproj-F16.gguf", "config.json", "tokenizer.json")}
    stored = vllm.blobs.model("org/tiny:Q8_0", content, traits=Traits("gguf"))
    (warning,) = vllm.engine.plan(vllm.request(stored)).warnings
    assert "vllm-gguf-plugin" in warning
    (line,) = vllm.engine.recipe(install(vllm, stored=stored))
    command = line.partition("vllm serve ")[2].split()
    assert Path(command[0]).read_bytes() == f"{below}a.gguf".encode()
    assert command[1:3] == ["--served-model-name", "org/tiny"]
    config = Path(command[0]).parent if not below else Path(command[command.index("--hf-config-path") + 1])
    assert {"config.json", "tokenizer.json"} <= {path.name for path in config.iterdir()}


def test_main_moves_with_a_warning_and_back(vllm: Case) -> None:
    """Somebody's older download of the repository must come back to light when ours goes."""
    other = "f" * 40
    root = vllm.directory / "models--org--tiny"
    (root / "snapshots" / other).mkdir(parents=True)
    (root / "snapshots" / other / "config.json").write_text("{}")
    (root / "refs").mkdir()
    (root / "refs/main").write_text(other)
    before = contents(vllm.directory)
    (warning,) = vllm.engine.plan(vllm.request(vllm.stored(origin=HUB))).warnings
    assert other in warning
    record = install(vllm)
    assert install(vllm, previous=record) == record
    assert (root / "refs/main").read_text() == COMMIT
    vllm.engine.uninstall(record)
    assert contents(vllm.directory) == before


def test_a_moved_reference_is_found(vllm: Case) -> None:
    """After ``hf download`` of a newer commit, vLLM serves that one: ``verify`` must say so, and removal must not touch it."""
    record = install(vllm)
    reference = vllm.directory / "models--org--tiny/refs/main"
    reference.write_text("e" * 40)
    assert any("refs/main" in problem for problem in vllm.engine.verify(record))
    vllm.engine.uninstall(record)
    assert reference.read_text() == "e" * 40


def test_a_partial_download_of_the_same_commit_is_completed(vllm: Case) -> None:
    """What was there stays theirs: it is neither replaced nor removed."""
    root = vllm.directory / "models--org--tiny"
    stored = vllm.stored(origin=HUB)
    config = next(file for file in stored.model.files if file.path == "config.json")
    (root / "blobs").mkdir(parents=True)
    (root / "snapshots" / COMMIT).mkdir(parents=True)
    (root / "blobs" / "theirs").write_bytes(vllm.blobs.path(config.digest).read_bytes())
    (root / "snapshots" / COMMIT / "config.json").symlink_to("../../blobs/theirs")
    before = contents(vllm.directory)
    record = install(vllm, link=LinkMode.COPY)
    assert vllm.engine.verify(record) == []
    assert {file.link for file in record.files if file.path.endswith("config.json")} == {"present"}
    assert vllm.visible() == {"models--org--tiny"}
    vllm.engine.uninstall(record)
    assert contents(vllm.directory) == before


def test_a_link_that_leads_elsewhere_is_found(vllm: Case) -> None:
    """A snapshot whose weights are another file's serves another model."""
    record = install(vllm)
    name = vllm.directory / f"models--org--tiny/snapshots/{COMMIT}/model.safetensors"
    name.unlink()
    name.symlink_to("config.json")
    (problem,) = vllm.engine.verify(record)
    assert "does not lead to" in problem
    assert vllm.engine.verify(install(vllm, previous=record)) == []


def test_two_models_of_one_repository(vllm: Case) -> None:
    """Two selections of one commit share a snapshot; whoever goes first leaves the other whole, whoever goes last cleans up."""
    whole = vllm.stored("org/tiny", origin=HUB)
    some = vllm.blobs.model(
        "org/tiny-some",
        {
            file.path: vllm.blobs.path(file.digest).read_bytes()
            for file in whole.model.files
            if "nested" not in file.path
        },
        origin=HUB,
    )
    first, second = install(vllm, stored=whole, link=LinkMode.COPY), install(vllm, stored=some, link=LinkMode.COPY)
    assert {file.link for file in second.files} == {"present"}
    vllm.engine.uninstall(first)
    assert vllm.engine.verify(second) == []
    vllm.engine.uninstall(second)
    assert contents(vllm.directory) == {}


def test_without_symbolic_links(vllm: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT and exFAT have none; the hub client then reads real files from the snapshot."""
    monkeypatch.setattr(hub_engine, "can_symlink", lambda _: False)
    record = install(vllm)
    assert not (vllm.directory / "models--org--tiny/blobs").exists()
    assert all("/blobs/" not in file.path for file in record.files)
    assert vllm.visible() == {"models--org--tiny"}
    assert vllm.engine.verify(record) == []
    assert install(vllm, previous=record) == record
    vllm.engine.uninstall(record)
    assert contents(vllm.directory) == {}


def test_a_marker_that_is_none_is_refused(vllm: Case) -> None:
    """Whoever may write the cache could otherwise tell us what to remove."""
    record = install(vllm)
    (marker,) = (vllm.directory / "models--org--tiny").glob(".modelvault-*.json")
    for text in (
        "[]",
        "{",
        '{"format": "x"}',
        marker.read_text().replace("models--org", "../../models--org"),
        "[" * 100_000,
    ):
        marker.write_text(text)
        with pytest.raises(EngineRefused, match="is in the way"):
            vllm.engine.uninstall(record)


def test_a_shared_store_of_the_client_is_followed(vllm: Case, tmp_path: Path) -> None:
    """Newer clients make a blob a link into a store of their own: it is theirs, and good as it is."""
    stored = vllm.stored(origin=HUB)
    weights = max(stored.model.files, key=lambda file: file.size)
    shared = tmp_path / "shared"
    shared.write_bytes(vllm.blobs.path(weights.digest).read_bytes())
    blob = vllm.directory / "models--org--tiny/blobs" / weights.digest.hex
    blob.parent.mkdir(parents=True)
    blob.symlink_to(shared)
    record = install(vllm, stored=stored)
    assert blob.is_symlink()
    assert vllm.engine.verify(record) == []
    vllm.engine.uninstall(record)
    assert blob.is_symlink()
    shared.unlink()
    record = install(vllm, stored=stored)
    assert not blob.is_symlink()
    assert vllm.engine.verify(record) == []


@pytest.mark.parametrize("way", ["name", "blob"])
def test_an_edited_file_is_kept(vllm: Case, way: str) -> None:
    """A config.json that somebody tuned, in place of the link or through it, is theirs."""
    record = install(vllm, link=LinkMode.COPY)
    name = vllm.directory / f"models--org--tiny/snapshots/{COMMIT}/config.json"
    if way == "name":
        name.unlink()
    name.write_text('{"tuned": true}')
    removal = vllm.engine.uninstall(record)
    assert removal.kept == (str(name),)
    assert name.read_text() == '{"tuned": true}'
    assert not (vllm.directory / "models--org--tiny/refs").exists()
