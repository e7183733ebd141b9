"""``smoke`` against servers that are well and, above all, against those that are not."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import EVENTS, Answer, document, events, loopback
from machines import Machine

from modelvault.artifact import ModelName
from modelvault.errors import EngineRefused, UsageProblem
from modelvault.operations.add import AddRequest, add
from modelvault.operations.install import Placement, install
from modelvault.operations.installs import list_installs
from modelvault.operations.registry import rebuild
from modelvault.operations.show import show
from modelvault.operations.smoke import SmokeOptions, smoke
from modelvault.operations.uninstall import uninstall
from modelvault.progress import NoProgress
from modelvault.results.engines import SmokeResult
from modelvault.vault import Vault

LISTED = document({"object": "list", "data": [{"id": "tiny"}, {"id": "other"}, {"no": "id"}, 7]})
DONE = events(
    {"choices": [{"text": " five,"}]},
    {"choices": [{"text": " six"}]},
    {"choices": [], "usage": {"completion_tokens": 5}},
)
CHAT = events(
    {"choices": [{"delta": {"role": "assistant", "content": None}}]},
    {"choices": [{"delta": {"reasoning_content": "hm"}}]},
    {"choices": [{"delta": {"content": " five"}}]},
)


@pytest.fixture
def vault(tmp_path: Path, tiny_gguf: Path) -> Iterator[Vault]:
    """A vault with one model, installed for llama.cpp."""
    with Vault.open(tmp_path / "vault") as opened:
        add(opened, AddRequest(tiny_gguf, name=ModelName("tiny")), NoProgress())
        put(opened, f"llamacpp={tmp_path / 'llama'}")
        yield opened


def put(vault: Vault, *targets: str) -> None:
    install(vault, ModelName("tiny"), Placement.parse(targets), NoProgress())


def ask(vault: Vault, address: str, **options: Any) -> SmokeResult:
    return smoke(vault, "tiny", SmokeOptions(url=address, **{"timeout": 5.0} | options), NoProgress())


def recorded(vault: Vault) -> list[tuple[str, str | None]]:
    """The outcomes in the event log and in the registry, which must be the same."""
    logged = [(event.data["outcome"], event.data["detail"]) for event in vault.events.read() if event.kind == "smoke"]
    assert [(row.outcome, row.detail) for row in vault.registry.smokes()] == logged[::-1]
    return logged


def test_a_model_answers(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if a model that runs is told as one that does not, or the proof of it is not kept: in the log, in the registry, in what is shown."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("MODELVAULT_API_KEY", "word")
    with loopback({"/v1/models": LISTED, "/v1/completions": DONE}) as server:
        result = ask(vault, f"{server.address}/v1/", prompt="one, two", tokens=7)
    assert (result.text, result.tokens, result.problem) == (" five, six", 5, None)
    assert result.first_token is not None
    assert result.rate is not None
    assert (result.served_as, result.address, result.started) == ("tiny", server.address, False)
    (asked,) = server.bodies("/v1/completions")
    assert {key: asked[key] for key in ("model", "prompt", "max_tokens")} == {
        "model": "tiny",
        "prompt": "one, two",
        "max_tokens": 7,
    }
    assert {headers.get("Authorization") for _, _, headers, _ in server.asked} == {"Bearer word"}
    assert recorded(vault) == [("ok", None)]
    (row,) = vault.registry.smokes()
    assert (row.first_token, row.rate, row.address) == (result.first_token, result.rate, server.address)
    rebuild(vault, NoProgress())
    assert vault.registry.smokes() == (row,)
    told = f"{row.smoked_at} (ok)"
    assert [line.last_smoke for line in show(vault, ModelName("tiny")).installs] == [told]
    assert [line.last_smoke for line in list_installs(vault, NoProgress()).installs] == [told]


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ({"/v1/chat/completions": CHAT}, "hm five"),
        ({"/v1/completions": Answer(405), "/v1/chat/completions": CHAT}, "hm five"),
        ({"/v1/completions": document({"choices": [{"text": "five"}]})}, "five"),
        ({"/v1/chat/completions": document({"choices": [{"message": {"content": "five"}}]})}, "five"),
        ({"/v1/completions": Answer(kind=EVENTS, pieces=(b": ping\n\nevent: x\ndata:", b' {"choices"', b':[{"text":"x"}]}'))}, "x"),
    ],
)  # fmt: skip
def test_dialects(vault: Vault, answers: dict[str, Answer], text: str) -> None:
    """Breaks if an engine that only chats, does not stream, or cuts its events anywhere passes for broken."""
    with loopback({"/v1/models": LISTED, **answers}) as server:
        result = ask(vault, server.address)
    assert result.text == text
    assert result.tokens > 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (events(), "without a single token"),
        (events({"choices": []}, {"choices": [{"text": ""}]}), "without a single token"),
        (document({"choices": [{"text": ""}]}), "without a single token"),
        (document([]), "without a single token"),
        (Answer(body=b"<html>", kind="text/html"), "without a single token"),
        (events({"error": {"message": "out of memory", "code": 500}}), "broke off: out of memory"),
        (events({"choices": [{"text": "a"}]}, {"error": "CUDA error"}), "broke off: CUDA error"),
        (Answer(kind=EVENTS, pieces=(b'data: {"choices":[{"text":"a"}]}\n\n', b'{"error": "no"}\n')), "broke off: no"),
        (document({"object": "error", "message": "bad dtype"}), "broke off: bad dtype"),
        (document({"error": {"message": "no kernel image"}}, 500), "answered 500: no kernel image"),
        (document({"detail": "Not authenticated"}, 401), "answered 401: Not authenticated"),
        (Answer(302), "answered 302"),
        (Answer(0), "did not answer within 0.2 seconds"),
        (events({"choices": [{"text": "a"}]}, end=False, hang=True), "did not answer within 0.2 seconds"),
        (Answer(kind=EVENTS, pieces=(b": ping\n\n",), again=True), "did not answer within 0.2 seconds"),
        (Answer(kind=EVENTS, pieces=(b"data: ", b"a" * (1 << 16)), again=True), "line without end"),
        (events({"choices": [{"text": "a"}]}, end=False, cut=True), "broke off"),
        (Answer(body=b'{"choices":', cut=True), "broke off"),
        (Answer(raw=b"no HTTP\r\n\r\n"), "broke off"),
    ],
)
def test_answers_that_are_none(vault: Vault, answer: Answer, reason: str) -> None:
    """Breaks if a server that fails, however it fails, passes for one that runs the model, keeps the command for ever, or crashes it."""
    with loopback({"/v1/models": LISTED, "/v1/completions": answer}) as server:
        silent = "0.2 seconds" in reason
        with pytest.raises(EngineRefused, match=reason) as caught:
            ask(vault, server.address, timeout=0.2 if silent else 5.0)
    assert caught.value.exit_code == 16
    assert caught.value.hint
    assert isinstance(caught.value.result, SmokeResult)
    assert caught.value.result.problem == caught.value.message
    assert recorded(vault) == [("failed", caught.value.message)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (document({"data": [{"id": "other"}]}), "does not list tiny; it has other"),
        (document({"data": []}), "does not list tiny; it has no models"),
        (document({"data": None}), "no list of models at /v1/models"),
        (document([]), "no list of models"),
        (Answer(body=b"hello", kind="text/plain"), "no list of models"),
        (document({"error": {"message": "loading"}}, 503), "answered 503: loading"),
    ],
)
def test_a_model_that_is_not_listed(vault: Vault, answer: Answer, reason: str) -> None:
    """Breaks if some other model's answer, or some other program's, passes for this one's."""
    with loopback({"/v1/models": answer, "/v1/completions": DONE}) as server:
        with pytest.raises(EngineRefused, match=reason):
            ask(vault, server.address)
        assert server.bodies("/v1/completions") == []
    assert [outcome for outcome, _ in recorded(vault)] == ["failed"]


def test_names_that_servers_give(vault: Vault, tmp_path: Path) -> None:
    """Breaks if a server that was started by path, or under a name of the user's, does not count as having the model."""
    path = tmp_path / "llama/tiny/tiny-Q8_0.gguf"
    for name in (str(path), str(path.parent), "tiny/tiny-Q8_0.gguf"):
        with loopback({"/v1/models": document({"data": [{"id": name}]}), "/v1/completions": DONE}) as server:
            assert ask(vault, server.address).served_as == name
    with loopback({"/v1/models": document({"data": [{"id": "prod"}]}), "/v1/completions": DONE}) as server:
        with pytest.raises(EngineRefused, match="does not list tiny"):
            ask(vault, server.address)
        assert ask(vault, server.address, name="prod").served_as == "prod"
        assert server.bodies("/v1/completions")[0]["model"] == "prod"
        with pytest.raises(EngineRefused, match="does not list dev"):
            ask(vault, server.address, name="dev")


def test_rubbish_gets_a_warning(vault: Vault) -> None:
    """Breaks if what engines generate from weights that they read wrongly passes without a word."""
    with loopback({"/v1/models": LISTED, "/v1/completions": document({"choices": [{"text": " !!!!!!!!"}]})}) as server:
        assert "nothing but '!'" in ask(vault, server.address).warnings[0]


def test_nobody_there(vault: Vault) -> None:
    """Breaks if a server that nobody started is recorded as a model that does not run, or the user is not told how to go on."""
    with loopback({}) as server:
        pass
    with pytest.raises(EngineRefused, match="cannot be reached") as caught:
        ask(vault, server.address)
    assert (caught.value.slug, caught.value.exit_code) == ("engine-unreachable", 16)
    for program, slug in (("/nowhere/llama-server", "engine-missing"), ("/", "engine-missing")):
        with pytest.raises(EngineRefused, match="no program") as caught:
            smoke(vault, "tiny", SmokeOptions(start=True, program=program), NoProgress())
        assert caught.value.slug == slug
    assert recorded(vault) == []


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def is_running(pid: str) -> bool:
    try:
        state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # killed, and nobody's to reap but init's


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo loading; echo no such GPU >&2; exit 3",
            "did not start: it ended with 3; it said: loading | no such GPU",
        ),
        ("kill -9 $$", "did not start: it ended with -9"),
        ("trap '' TERM; sleep 1000 & echo $! >> PIDS; wait", "was not ready within 2 seconds"),
    ],
)
def test_an_engine_that_does_not_start(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    """Breaks if a failing engine keeps its reason to itself, or leaves processes behind."""
    # It does not listen to SIGTERM, and is not asked for long.
    monkeypatch.setattr("modelvault.engines.processes._END_SECONDS", 0.2)
    noted = f"echo $$ > {tmp_path}/pids; {script}"
    options = SmokeOptions(
        start=True, program=program(tmp_path / "server", noted.replace("PIDS", f"{tmp_path}/pids")), timeout=2.0
    )
    with pytest.raises(EngineRefused, match=reason.replace("|", r"\|")) as caught:
        smoke(vault, "tiny", options, NoProgress())
    assert str(tmp_path / "server") in str(caught.value.hint)
    assert [outcome for outcome, _ in recorded(vault)] == ["failed"]
    pids = (tmp_path / "pids").read_text().split()
    assert pids
    assert [pid for pid in pids if is_running(pid)] == []


def test_which_install(vault: Vault, tmp_path: Path) -> None:
    """Breaks if one of several installs is tried out for another, or it is not said how to choose."""
    put(vault, f"folder={tmp_path / 'folder'}")
    with pytest.raises(UsageProblem, match="several places") as caught:
        smoke(vault, "tiny", SmokeOptions(), NoProgress())
    assert f"modelvault smoke tiny --engine folder={tmp_path / 'folder'}" in str(caught.value.hint)
    with loopback({"/v1/models": LISTED, "/v1/completions": DONE}) as server:
        for engine in ("llamacpp", f"llamacpp={tmp_path / 'llama'}"):
            assert ask(vault, server.address, engine=engine).engine == "llamacpp"
    for engine, reason in (
        ("vllm", "not installed in vllm"),
        (f"llamacpp={tmp_path}", "not installed in"),
        ("nothing", "no such engine"),
    ):
        with pytest.raises(UsageProblem, match=reason):
            smoke(vault, "tiny", SmokeOptions(engine=engine), NoProgress())
    with pytest.raises(UsageProblem, match="not known where"):
        smoke(vault, "tiny", SmokeOptions(engine="folder"), NoProgress())
    with pytest.raises(UsageProblem, match="exclude"):
        smoke(vault, "tiny", SmokeOptions(engine="folder", url="http://127.0.0.1:1", start=True), NoProgress())
    uninstall(vault, "tiny", f"folder={tmp_path / 'folder'}")
    uninstall(vault, "tiny", f"llamacpp={tmp_path / 'llama'}")
    with pytest.raises(UsageProblem, match="not installed in any engine"):
        smoke(vault, "tiny", SmokeOptions(), NoProgress())


def test_an_outcome_is_of_what_is_installed_now(vault: Vault, tmp_path: Path) -> None:
    """Breaks if a model that was installed anew passes for tried out."""
    with loopback({"/v1/models": LISTED, "/v1/completions": DONE}) as server:
        ask(vault, server.address)
    uninstall(vault, "tiny", f"llamacpp={tmp_path / 'llama'}")
    put(vault, f"llamacpp={tmp_path / 'llama'}")
    assert [line.last_smoke for line in list_installs(vault, NoProgress()).installs] == [None]


def test_ollama_is_asked_in_its_own_way(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks if Ollama's errors inside a 200 pass for answers, or another directory's model of the same name for this one's."""
    put(vault, f"ollama={tmp_path / 'ollama'}")
    manifest = json.loads(json.dumps(vault.installs()[-1].record))["files"][-1]["digest"]
    listed = document({"models": [{"name": "tiny:q8_0", "digest": manifest.removeprefix("sha256:")}]})
    lines = (b'{"response":" five"}\n', b'{"response":" six","done":true,"eval_count":3,"load_duration":5000000}\n')
    with loopback({"/api/tags": listed, "/api/generate": Answer(pieces=lines)}) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.address)
        result = smoke(vault, "tiny", SmokeOptions(engine="ollama"), NoProgress())
    assert (result.text, result.tokens, result.loading) == (" five six", 3, 0.005)
    thinking = Answer(body=b'{"response":"","thinking":"so"}\n{"done":true}\n')
    with loopback({"/api/tags": listed, "/api/generate": thinking}) as server:
        assert ask(vault, server.address, engine="ollama").text == "so"
    for answer, reason in (
        (Answer(body=b'{"response":"a"}\n{"error":"llama runner process has terminated"}\n'), "runner process"),
        (document({"error": "model requires more system memory"}, 500), "answered 500: model requires more"),
        (Answer(body=b'{"response":"","done":true}\n'), "without a single token"),
    ):
        with (
            loopback({"/api/tags": listed, "/api/generate": answer}) as server,
            pytest.raises(EngineRefused, match=reason),
        ):
            ask(vault, server.address, engine="ollama")
    other = document({"models": [{"name": "tiny:q8_0", "digest": "0" * 64}]})
    with loopback({"/api/tags": other}) as server, pytest.raises(EngineRefused, match="another model by the name"):
        ask(vault, server.address, engine="ollama")
    monkeypatch.setenv("OLLAMA_HOST", "http://other.example:11434")
    with pytest.raises(UsageProblem, match="not known where"):
        smoke(vault, "tiny", SmokeOptions(engine="ollama"), NoProgress())


def test_the_command(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if the command does not say what a person or a script needs: the answer, the times, the right exit code, a hint."""
    server = machine("server", MODELVAULT_API_KEY="")
    server.run("add", tiny_gguf, "--name", "tiny")
    server.run("install", "tiny", "--engine", f"llamacpp={server.root / 'llama'}")
    with loopback({"/v1/models": LISTED, "/v1/completions": DONE}) as engine:
        shown = server.run("smoke", "tiny", "--url", engine.address)
        assert "tiny answers in llamacpp: five, six" in shown.out
        assert "first token  after" in shown.out
        assert "(5 tokens)" in shown.out
    assert "(ok)" in server.run("show", "tiny").out
    with loopback({"/v1/models": LISTED, "/v1/completions": events({"error": "no memory"})}) as engine:
        document = server.json("smoke", "tiny", "--url", engine.address, code=16).document
        assert document["result"]["problem"] == document["error"]["message"]
    assert "(failed)" in server.run("installs").out
    assert "not the address" in server.run("smoke", "tiny", "--url", "localhost:8000", code=2).err
    assert "not a whole number" in server.run("smoke", "tiny", "--tokens", "0", code=2).err
