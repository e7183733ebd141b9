"""The policy's rules over what is known of a model, and its files: what they may say and what is refused."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelvault.artifact import Digest, FileSpec, Model, ModelName, Origin, Traits
from modelvault.errors import UsageProblem
from modelvault.policy import Candidate, judge, load_policies, wants_acceptance

COMMIT = "a" * 40
AWQ = Candidate(
    name=ModelName("Acme/Chat-AWQ"),
    origin=Origin("hub", "Acme/Chat-AWQ", COMMIT),
    license="CC-BY-NC-4.0",
    sizes={"model.safetensors": 4_000_000_000, "config.json": 700},
    inspected=True,
    quantization="AWQ 4-bit g128",
)
GGUF = replace(AWQ, name=ModelName("Acme/Chat-GGUF:Q4_K_M"), sizes={"chat-Q4_K_M.gguf": 2_000}, quantization="Q4_K_M")
FOLDER = replace(AWQ, name=ModelName("ours"), origin=Origin("folder"), license=None)
PICKLED = replace(AWQ, pickles=("a.bin",))
HARMFUL = replace(PICKLED, dangerous=("a.bin: posix.system",))
CODE = replace(AWQ, code=("config.json: AutoModel = modeling.Chat",))


def named(table: str, *, commit: str | None = None, model: str = "acme/chat-awq") -> str:
    """A rule that is waived for one model."""
    pin = f'\ncommit = "{commit}"' if commit else ""
    return f'[{table}]\nallow = "exceptions"\n[[{table}.exceptions]]\nmodel = "{model}"\nwhy = "reviewed"{pin}\n'


def broken(tmp_path: Path, text: str, candidate: Candidate) -> list[tuple[str, str]]:
    """The rules that a candidate breaks, with the values."""
    (tmp_path / "policy.toml").write_text(text)
    policies = load_policies(tmp_path, tmp_path / "none.toml")
    return [(violation.rule, violation.value) for violation in judge(policies, candidate)]


@pytest.mark.parametrize(
    ("text", "candidate", "expected"),
    [
        ("", AWQ, []),
        ('sources = ["hub"]', AWQ, []),
        ('sources = ["folder", "ollama"]', AWQ, [("sources", "hub")]),
        ('sources = ["hub"]', FOLDER, [("sources", "folder")]),
        ('organizations = ["acme"]', AWQ, []),
        ('organizations = ["a*e"]', AWQ, []),
        ('organizations = ["other", "acme-labs"]', AWQ, [("organizations", "Acme")]),
        ('organizations = ["acme/chat-*"]', AWQ, []),
        ('organizations = ["acme/code-*"]', AWQ, [("organizations", "Acme")]),
        ('organizations = ["*"]', FOLDER, [("organizations", "ours")]),
        ('organizations = ["us"]', replace(FOLDER, name=ModelName("us/ours")), []),
        ('organizations = ["library"]', replace(AWQ, origin=Origin("ollama", "registry.ollama.ai/library/a")), []),
        ('organizations = ["library/a"]', replace(AWQ, origin=Origin("ollama", "registry.ollama.ai/library/a")), []),
        (
            'organizations = ["library"]',
            replace(AWQ, origin=Origin("ollama", "other.example/library/a")),
            [("organizations", "other.example/library")],
        ),
        ('formats = ["safetensors"]', AWQ, []),
        ('formats = ["gguf", "awq"]', AWQ, []),
        ('formats = ["gguf", "awq"]', GGUF, []),
        ('formats = ["gguf"]', AWQ, [("formats", "safetensors")]),
        ('formats = ["gguf", "gptq"]', AWQ, [("formats", "AWQ 4-bit g128")]),
        ('formats = ["gptq"]', replace(AWQ, quantization=None), [("formats", "not known")]),
        ('formats = ["gptq"]', replace(AWQ, inspected=False, quantization=None), []),
        ('formats = ["gguf"]', replace(AWQ, inspected=False), [("formats", "safetensors")]),
        ('formats = ["safetensors"]', replace(AWQ, sizes={"a.safetensors": 1, "b/m.ONNX": 1}), [("formats", "onnx")]),
        ('formats = ["gguf"]', replace(PICKLED, sizes={"a.bin": 1}), []),
        ('largest_model = "5GB"', AWQ, []),
        ("largest_model = 4000000700", AWQ, []),
        ("largest_model = 4000000699", AWQ, [("largest_model", "4000000700")]),
        ('[licenses]\nallow = ["cc-*"]', AWQ, []),
        ('[licenses]\nallow = ["mit"]', AWQ, [("licenses.allow", "CC-BY-NC-4.0")]),
        ('[licenses]\nallow = ["*"]', FOLDER, []),
        ('[licenses]\nallow = ["mit"]', FOLDER, [("licenses.allow", "unknown")]),
        ('[licenses]\nallow = ["mit", "unknown"]', FOLDER, []),
        ('[licenses]\nallow = ["mit"]', replace(FOLDER, license_pending=True), []),
        ('[licenses]\ndeny = ["*-nc-*"]', AWQ, [("licenses.deny", "CC-BY-NC-4.0")]),
        ('[licenses]\ndeny = ["mit"]', AWQ, []),
        ('[licenses]\naccept = ["cc*"]', AWQ, [("licenses.accept", "CC-BY-NC-4.0")]),
        ('[licenses]\naccept = ["cc*"]', replace(AWQ, accepted=True), []),
        ('[licenses]\naccept = ["llama*"]', AWQ, []),
        ('[pickle]\nallow = "never"', AWQ, []),
        ('[pickle]\nallow = "never"', PICKLED, [("pickle.allow", "a.bin")]),
        ('[pickle]\nallow = "exceptions"', PICKLED, [("pickle.allow", "a.bin")]),
        ('[pickle]\nallow = "scanned"', PICKLED, []),
        ('[pickle]\nallow = "scanned"', HARMFUL, [("pickle.allow", "a.bin: posix.system")]),
        (named("pickle"), HARMFUL, []),
        (named("pickle").replace('exceptions"', 'scanned"', 1), HARMFUL, []),
        (named("pickle", commit=COMMIT), HARMFUL, []),
        (named("pickle", commit="b" * 40), PICKLED, [("pickle.allow", "a.bin")]),
        (named("pickle", model="acme/other"), PICKLED, [("pickle.allow", "a.bin")]),
        ("", HARMFUL, [("pickle.allow", "a.bin: posix.system")]),
        ("", CODE, []),
        ('[remote_code]\nallow = "always"', CODE, []),
        ('[remote_code]\nallow = "never"', CODE, [("remote_code.allow", "config.json: AutoModel = modeling.Chat")]),
        ('[remote_code]\nallow = "never"', AWQ, []),
        (named("remote_code"), CODE, []),
        (named("remote_code", model="other"), CODE, [("remote_code.allow", "config.json: AutoModel = modeling.Chat")]),
    ],
)
def test_rules(tmp_path: Path, text: str, candidate: Candidate, expected: list[tuple[str, str]]) -> None:
    """Breaks if a rule lets through what it forbids, or forbids what it lets through."""
    assert broken(tmp_path, text, candidate) == expected


def test_everything_that_is_broken_is_named(tmp_path: Path) -> None:
    """Breaks if a user mends one violation after the other, each time after another try."""
    text = 'organizations = ["x"]\nlargest_model = 1\n[licenses]\nallow = ["mit"]\ndeny = ["cc-*"]\naccept = ["*"]\n'
    found = broken(
        tmp_path, text + '[pickle]\nallow = "never"\n[remote_code]\nallow = "never"\n', replace(HARMFUL, code=CODE.code)
    )
    assert [rule for rule, _ in found] == [
        *("organizations", "largest_model", "licenses.allow", "licenses.deny", "licenses.accept"),
        *("pickle.allow", "remote_code.allow"),
    ]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_neither_file_loosens_the_other(tmp_path: Path, order: tuple[int, int]) -> None:
    """Breaks if the owner of a vault can waive what the machine's administrator forbids, or the other way round."""
    texts = (
        named("pickle") + '[licenses]\nallow = ["cc-*"]\n',
        '[pickle]\nallow = "never"\n[licenses]\ndeny = ["cc-*"]\n',
    )
    machine, vault = tmp_path / "machine.toml", tmp_path / "policy.toml"
    for file, number in zip((machine, vault), order, strict=True):
        file.write_text(texts[number])
    strict = (machine, vault)[order.index(1)]
    violations = judge(load_policies(tmp_path, machine), HARMFUL)
    assert [(item.rule, item.file) for item in violations] == [("licenses.deny", strict), ("pickle.allow", strict)]


def test_an_exception_in_one_file_is_enough_where_the_other_is_silent(tmp_path: Path) -> None:
    """Breaks if a machine's policy that says nothing of pickles forbids what the vault's allows by name."""
    machine = tmp_path / "machine.toml"
    machine.write_text('organizations = ["acme"]\n')
    (tmp_path / "policy.toml").write_text(named("pickle"))
    assert judge(load_policies(tmp_path, machine), HARMFUL) == ()


@pytest.mark.parametrize(("name", "exempt"), [("acme/old", False), ("Acme/Chat-AWQ:Q4", True), ("chat", True)])
def test_an_exception_is_for_where_a_model_is_from(tmp_path: Path, name: str, exempt: bool) -> None:
    """Breaks if a model gets around the policy under the name of another that was reviewed, or a reviewed one loses that by its name."""
    (tmp_path / "policy.toml").write_text(named("pickle") if exempt else named("pickle", model="acme/old"))
    candidate = replace(HARMFUL, name=ModelName(name))
    assert (judge(load_policies(tmp_path, tmp_path / "none.toml"), candidate) == ()) == exempt


def test_who_wants_a_license_accepted(tmp_path: Path) -> None:
    """Breaks if a user is asked for what no rule asks, or not asked for what one does."""
    (tmp_path / "policy.toml").write_text('[licenses]\naccept = ["llama*", "unknown"]\n')
    policies = load_policies(tmp_path, tmp_path / "none.toml")
    asked = {name: bool(wants_acceptance(policies, name)) for name in ("Llama3.1", "mit", None)}
    assert asked == {"Llama3.1": True, "mit": False, None: True}


def test_a_manifest_tells_what_is_judged() -> None:
    """Breaks if a model of a bundle is judged by less than its manifest says."""
    files = (FileSpec("model.safetensors", 7, Digest.of_bytes(b"")),)
    model = Model(
        ModelName("a/b"), Origin("hub", "a/b", COMMIT), files, Traits("safetensors", quantization="FP8"), "mit"
    )
    expected = Candidate(model.name, model.origin, "mit", {"model.safetensors": 7}, inspected=True, quantization="FP8")
    assert Candidate.of(model) == expected
    assert expected.method == "fp8"


# ── the files ──


@pytest.mark.parametrize(
    ("text", "named_in_error"),
    [
        ('organisations = ["a"]', "organisations"),
        ("organizations = []", "organizations"),
        ('organizations = "acme"', "organizations"),
        ('organizations = ["a\\u0007"]', r"organizations\[0\]"),
        ('formats = ["gguff"]', "gguff"),
        ('formats = ["pickle"]', "pickle"),
        ('sources = ["web"]', "web"),
        ('largest_model = "big"', "largest_model: not a size: 'big'"),
        ("largest_model = 0", "largest_model: not a size"),
        ("largest_model = 1.5", "largest_model"),
        ('[licenses]\nallowed = ["mit"]', "licenses: Object contains unknown field `allowed`"),
        ('[licenses]\nallow = "mit"', "licenses.allow"),
        ('pickle = "never"', "pickle: Expected `object"),
        ("[pickle]", "pickle.allow is missing"),
        ('[pickle]\nallow = "sometimes"', "pickle.allow"),
        ('[pickle]\nallow = "exceptions"\nexceptions = [{model = "a"}]', r"pickle.exceptions\[0\].why is missing"),
        ('[pickle]\nallow = "exceptions"\nexceptions = [{model = "a", why = ""}]', r"pickle.exceptions\[0\].why"),
        ('[pickle]\nallow = "exceptions"\nexceptions = [{model = "a", why = "b", commit = "main"}]', "commit"),
        ('[pickle]\nallow = "never"\nexceptions = [{model = "a", why = "b"}]', "pickle.exceptions: there are none"),
        ('[remote_code]\nallow = "always"\nexceptions = [{model = "a", why = "b"}]', "remote_code.exceptions"),
        ('[remote_code]\nallow = "scanned"', "remote_code.allow"),
        ("sources = [", "not valid TOML"),
        ('sources = ["hub"]\nsources = ["hub"]', "not valid TOML.*sources"),
    ],
)
def test_a_file_that_breaks_the_schema(tmp_path: Path, text: str, named_in_error: str) -> None:
    """Breaks if a misspelled rule silently does not hold, or the error does not say where to look."""
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(UsageProblem, match=named_in_error) as caught:
        load_policies(tmp_path, tmp_path / "none.toml")
    assert caught.value.message.startswith(f"{file}: ")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("max_size = 1", "sources, organizations, formats, largest_model"),
        ("[licenses]\nallowed = []", "the keys there are allow, deny, accept;"),
        ('[pickle]\nallow = "exceptions"\nexceptions = [{name = "a"}]', "the keys there are model, why, commit;"),
    ],
)
def test_an_unknown_key_is_answered_with_those_that_there_are(tmp_path: Path, text: str, keys: str) -> None:
    """Breaks if somebody without the documentation at hand has to guess what a key is called."""
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(UsageProblem) as caught:
        load_policies(tmp_path, tmp_path / "none.toml")
    assert keys in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["directory", "dangling", "not UTF-8", "loop", "too large"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, kind: str) -> None:
    """Breaks if rules do not hold because their file is a broken link, a directory or in another encoding."""
    file = tmp_path / "machine.toml"
    if kind == "directory":
        file.mkdir()
    elif kind in {"dangling", "loop"}:
        file.symlink_to(tmp_path / "nowhere" if kind == "dangling" else file)
    else:
        file.write_bytes(b'organizations = ["\xff"]' if kind == "not UTF-8" else b"#" * (2 << 20))
    with pytest.raises(UsageProblem, match=str(file)):
        load_policies(tmp_path, file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search every directory")
def test_a_directory_that_may_not_be_searched_hides_no_rules(tmp_path: Path) -> None:
    """Breaks if the machine's rules hold for everybody but those who may not read them."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    try:
        with pytest.raises(UsageProblem, match="cannot be read"):
            load_policies(tmp_path, closed / "policy.toml")
    finally:
        closed.chmod(0o700)


def test_no_file_has_no_rules(tmp_path: Path) -> None:
    """Breaks if a vault without a policy cannot be used."""
    assert load_policies(tmp_path, tmp_path / "nowhere" / "policy.toml") == ()


@given(text=st.text(max_size=200))
def test_any_text_is_refused_or_read(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Breaks if something odd in a policy ends in a traceback."""
    folder = tmp_path_factory.mktemp("policy")
    (folder / "policy.toml").write_text(text, encoding="utf-8")
    with contextlib.suppress(UsageProblem):
        load_policies(folder, folder / "none.toml")
