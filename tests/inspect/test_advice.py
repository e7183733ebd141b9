"""What a model could do to whoever runs it: code of its own, pickles, chat templates; and what it says of its license."""

import argparse
import collections
import gzip
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelvault.artifact import ArraySummary, Digest, FileReport
from modelvault.errors import PolicyRefused
from modelvault.inspect import find_code, find_pickles, inspect_file, inspect_model
from modelvault.inspect.card import stated_license
from modelvault.inspect.gguf import read_gguf
from modelvault.inspect.pickles import MAX_PICKLE, PickleScan, scan_pickles
from modelvault.inspect.template_lint import MAX_TEMPLATE, lint_template
from modelvault.inspect.templates import template_warnings


class Harmful:
    """Runs a command when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/never",)


@pytest.fixture
def awq(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "awq", tmp_path / "awq"))


def files_of(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


# ── code ──


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", {"auto_map": {"AutoModel": "m.M"}}, ["config.json: AutoModel = m.M"]),
        ("config.json", {"auto_map": {"AutoModel": ["o/r--m.M", None]}}, ["config.json: AutoModel = o/r--m.M"]),
        ("config.json", {"auto_map": "m.M"}, ["config.json: auto_map = m.M"]),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "m.M"}}}, ["config.json: AutoModel = m.M"]),
        ("config.json", {"custom_pipelines": {"chat": {"impl": "p.P"}}}, ["config.json: chat = p.P"]),
        ("config.json", {"auto_map": None, "custom_pipelines": None}, []),
        (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["t.T", None]}},
            ["tokenizer_config.json: AutoTokenizer = t.T"],
        ),
        (
            "processor_config.json",
            {"auto_map": {"AutoProcessor": "p.P"}},
            ["processor_config.json: AutoProcessor = p.P"],
        ),
        ("custom_generate/generate.py", {}, ["custom_generate/generate.py"]),
        ("modeling.py", {}, ["modeling.py"]),  # nothing but code is there to be run
        ("sub/config.json", {"auto_map": {"AutoModel": "m.M"}}, []),
    ],
)
def test_code_is_found(tmp_path: Path, name: str, content: object, expected: list[str]) -> None:
    """Breaks if a way in which transformers runs a repository's code is missed, or one is seen where there is none."""
    file = tmp_path / "file"
    file.write_text(json.dumps(content))
    assert list(find_code({name: file})) == expected


def test_python_beside_a_model_is_not_run_by_itself(tmp_path: Path) -> None:
    """Breaks if a policy against code refuses every model that brings a script along."""
    (tmp_path / "config.json").write_text("{}")
    assert find_code(dict.fromkeys(("config.json", "convert.py"), tmp_path / "config.json")) == ()


def test_what_cannot_be_read_may_refer_to_code(tmp_path: Path) -> None:
    """Breaks if a configuration that engines read and we do not slips past the rule about remote code."""
    file = tmp_path / "config.json"
    file.write_text('{"auto\\u005fmap": {"AutoModel": "m.M"}, "a": 1, "a": 2}')
    (found,) = find_code({"config.json": file})
    assert "not known what it refers to" in found


def test_what_is_not_there_is_passed_over(tmp_path: Path) -> None:
    """Breaks if a model that lacks a file cannot even be judged."""
    absent = {"config.json": tmp_path / "absent", "a.dat": tmp_path / "absent", "a.bin": tmp_path / "absent"}
    assert find_code(absent) == ()
    assert find_pickles(absent) == ("a.bin",)


# ── pickles ──


def archive(**members: bytes) -> bytes:
    """A zip as PyTorch writes it; ``_`` in a name stands for ``/``, and ``pkl`` members get their suffix."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, content in members.items():
            path = name.replace("_", "/")
            file.writestr(f"{path}.pkl" if path.endswith("data") else path, content)
    return data.getvalue()


def legacy(payload: object) -> bytes:
    """What ``torch.save`` wrote before PyTorch 1.6: five pickles, then raw tensors."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, payload, ["0"]]
    return b"".join(pickle.dumps(part, 2) for part in parts) + b"\x04\0\0\0\0\0\0\0" + bytes(4096)


HARMLESS = pickle.dumps(collections.OrderedDict(weights=[1.0, 2.0]))
HARM = pickle.dumps(Harmful())


@pytest.mark.parametrize(
    ("content", "dangerous", "suspicious"),
    [
        (HARMLESS, "", ""),
        (pickle.dumps({"a": 1}, 0), "", ""),
        (archive(archive_data=HARMLESS, archive_data_0=b"raw"), "", ""),
        (legacy(collections.OrderedDict(a=1)), "", ""),
        (b"\x00\x01 no pickle at all", "", ""),
        (b"", "", ""),
        (HARM, "posix.system", ""),
        (pickle.dumps(Harmful(), 0), "posix.system", ""),
        (pickle.dumps([1, {"deep": (Harmful(),)}]), "posix.system", ""),
        (HARM[:-1], "posix.system", ""),
        (archive(archive_data=HARM), "posix.system", ""),
        (archive(archive_data=HARMLESS, hidden=HARM), "posix.system", ""),
        (legacy(Harmful()), "posix.system", ""),
        (pickle.dumps(argparse.Namespace(a=1)), "", "argparse.Namespace"),
        (b"\x80\x04\x93.", "cannot be looked through", ""),
        (gzip.compress(HARM), "it is compressed", ""),
        (archive(archive_data=HARM)[:-9], "cannot be looked through", ""),
        (archive(archive_data=bytes(MAX_PICKLE + 1)), "cannot be looked through: archive/data.pkl has", ""),
        (b"\x80\x04B" + (MAX_PICKLE).to_bytes(4, "little") + bytes(MAX_PICKLE) + b"." + HARM, "it has more than", ""),
    ],
    ids=[
        *("harmless", "protocol 0", "archive", "before 1.6", "no pickle", "empty"),
        *(
            "harm",
            "harm in protocol 0",
            "deep",
            "cut short",
            "in an archive",
            "hidden in an archive",
            "harm before 1.6",
        ),
        *("unknown call", "broken", "compressed", "broken archive", "too large a member", "hidden behind ballast"),
    ],
)
def test_pickles(tmp_path: Path, content: bytes, dangerous: str, suspicious: str) -> None:
    """Breaks if a real pickle that runs a command passes for harmless, or what real weights consist of for harmful."""
    file = tmp_path / "blob"
    file.write_bytes(content)
    scan = scan_pickles({"pytorch_model.bin": file})
    assert (len(scan.dangerous), len(scan.suspicious)) == (bool(dangerous), bool(suspicious))
    for found, expected in ((scan.dangerous, dangerous), (scan.suspicious, suspicious)):
        assert all(text.startswith("pytorch_model.bin: ") and expected in text for text in found)
    assert not Path("/tmp/never").exists()


def test_a_scan_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Breaks if the scanner's own log lines get between those of the program."""
    file = tmp_path / "blob"
    file.write_bytes(HARM)
    scan_pickles({"a.bin": file})
    assert capfd.readouterr() == ("", "")


@given(content=st.binary(max_size=300), prefix=st.sampled_from([b"", b"\x80\x04", b"PK\x03\x04", HARM[:40]]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_scanned(content: bytes, prefix: bytes, tmp_path: Path) -> None:
    """Breaks if a garbled file ends in a traceback in place of a finding."""
    file = tmp_path / "blob"
    file.write_bytes(prefix + content)
    assert isinstance(scan_pickles({"a.bin": file}), PickleScan)


def test_a_model_with_pickles(awq: Path) -> None:
    """Breaks if what is found in a model's pickles, by name or in disguise, is not told of."""
    (awq / "optimizer.pt").write_bytes(HARM)
    (awq / "extra.dat").write_bytes(HARMLESS)
    with pytest.raises(PolicyRefused):
        inspect_model(files_of(awq))
    report = inspect_model(files_of(awq), allow_pickle=True)
    assert report.advice.pickles == ("extra.dat", "optimizer.pt") == find_pickles(files_of(awq))
    assert report.advice.dangerous == ("optimizer.pt: posix.system",)
    assert any("optimizer.pt: posix.system" in warning for warning in report.warnings)


# ── chat templates ──

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message.content | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_CPP_PYTHON = (  # the shape of CVE-2024-34359
    "{% for c in [].__class__.__base__.__subclasses__() %}{% if c.__name__ == 'catch_warnings' %}"
    "{{ c.__init__.__globals__['__builtins__'].eval(\"__import__('os').popen('id').read()\") }}{% endif %}{% endfor %}"
)
RERANKER = "{{ cycler.__init__.__globals__.os.popen('id').read() }}"  # the shape of CVE-2026-5760


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (CHATML, ""),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}{% do x.append(1) %}", ""),
        ("{% for m in messages %}{% break %}{% endfor %}{{ raise_exception('no') }}", ""),
        ("{{ tools | map(attribute='name') | list | tojson(indent=4) }}{{ strftime_now('%d') }}", ""),
        ("__init__ outside of any expression {# {% include 'x' %} #}", ""),
        (LLAMA_CPP_PYTHON, "the attribute __class__"),
        (LLAMA_CPP_PYTHON, "the key '__builtins__'"),
        (RERANKER, "the attribute __globals__"),
        ("{{ self._TemplateReference__context }}", "the attribute _TemplateReference__context"),
        ("{{ x | attr(y) }}", "the filter attr"),
        ("{{ x['__cla' 'ss__'] }}", "the key '__class__'"),
        ("{{ x['__cla' ~ 'ss__'] }}", "the key '__class__'"),
        ("{{ x['_' + '_class_' + '_'] }}", "the key '__class__'"),
        ('{{ x["\\x5f\\x5fclass__"] }}', "the key '__class__'"),
        ("{{ messages | map(attribute='__class__') }}", "the text '__class__'"),
        ("{{ __builtins__ }}", "the name __builtins__"),
        ("{% include 'other' %}", "the tag include"),
        ("{% import 'other' as other %}", "the tag import"),
        ("{% from 'other' import thing %}", "the tag import"),
        ("{% extends 'other' %}", "the tag extends"),
        ("{% nonsense %}", "it cannot be parsed: Encountered unknown tag"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "it cannot be parsed: RecursionError"),
        ("{{ " + "9" * 10_000 + " }}", "it cannot be parsed: ValueError"),
        ("x" * (MAX_TEMPLATE + 1), "too many to be looked at"),
    ],
)
def test_templates(template: str, found: str) -> None:
    """Breaks if a template that leaves the template passes unnoticed, or an honest one is warned of."""
    findings = lint_template(template)
    assert any(found in finding for finding in findings) if found else findings == ()


@given(template=st.text(alphabet="{}%#'\"_.[]|()~+ abc\n\\x5f0123", max_size=120))
def test_any_template_is_looked_through(template: str) -> None:
    """Breaks if an odd template ends in a traceback."""
    assert isinstance(lint_template(template), tuple)


def test_real_templates_are_not_warned_of(real_vocabularies: list[Path]) -> None:
    """Breaks if users are warned of what every model has."""
    reports = {path.name: read_gguf(path).report() for path in real_vocabularies}
    assert any("tokenizer.chat_template" in report.metadata for report in reports.values())
    assert template_warnings({}, reports) == ()


def test_every_place_of_a_template_is_looked_at(awq: Path) -> None:
    """Breaks if a template needs only another of its usual places to pass unnoticed."""
    config = json.loads((awq / "tokenizer_config.json").read_bytes())
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": RERANKER}]
    (awq / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": named}))
    (awq / "chat_template.json").write_text(json.dumps({"chat_template": RERANKER}))
    (awq / "chat_template.jinja").write_text(RERANKER)
    (awq / "additional_chat_templates").mkdir()
    (awq / "additional_chat_templates" / "rag.jinja").write_text(RERANKER)
    found = {warning.partition(": the chat")[0] for warning in inspect_model(files_of(awq)).advice.warnings}
    assert found == {
        "tokenizer_config.json (tool_use)",
        "chat_template.json",
        "chat_template.jinja",
        "additional_chat_templates/rag.jinja",
    }


def test_templates_in_gguf_files(tmp_path: Path) -> None:
    """Breaks if the template that llama.cpp and Ollama take from the file is not looked at."""
    path = write_gguf(tmp_path / "evil.gguf", RERANKER)
    *_, warning = inspect_file(path).warnings
    assert "evil.gguf: tokenizer.chat_template: the chat template has what none needs" in warning
    assert inspect_model({"evil.gguf": path}).advice.warnings == (warning,)


def test_many_templates_take_no_time(awq: Path) -> None:
    """Breaks if a model can keep an import busy with templates."""
    for number in range(40):
        (awq / f"{number:02}.jinja").write_text("{{ a }}" * 5_000)
    warnings = inspect_model(files_of(awq)).advice.warnings
    assert any("chat templates were not looked through: they are too long" in warning for warning in warnings)


def write_gguf(path: Path, template: str) -> Path:
    """Write a GGUF file of nothing but metadata."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


# ── the license ──


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model\n", ("apache-2.0", None)),
        ("---\r\nlicense: 'mit'\r\n---\r\n", ("mit", None)),
        (
            "---\ntags:\n- x\nlicense: other\nlicense_name: llama3.1\nlicense_link: https://llama.example/1\n---\n",
            ("llama3.1", "https://llama.example/1"),
        ),
        ("---\nlicense: other\nlicense_link: LICENSE\n---\n", ("other", None)),
        ("---\nlicense: [mit]\n---\n", (None, None)),
        ("---\nlicense:\n- mit\n---\n", (None, None)),
        ("---\nmodel:\n  license: mit\n---\n", (None, None)),
        ("license: mit\n", (None, None)),
        ("---\nlicense: mit\n", (None, None)),
        ("---\nlicense: \x1b[31m\n---\n", (None, None)),
    ],
)
def test_what_a_card_states(tmp_path: Path, card: str, expected: tuple[str | None, str | None]) -> None:
    """Breaks if a license that everybody can read is not recorded, or something else is taken for one."""
    (tmp_path / "README.md").write_text(card, newline="")
    assert stated_license({"README.md": tmp_path / "README.md"}, {}) == expected


def test_what_a_gguf_file_states() -> None:
    """Breaks if a file that comes alone, as most of Ollama's do, has no license."""
    array = ArraySummary("string", 1, Digest.of_bytes(b""))
    stated = {"general.license": "mit", "general.license.link": "https://mit.example"}
    reports = {name: FileReport("gguf", metadata, 0, 0) for name, metadata in (("a", {}), ("b", stated))}
    assert stated_license({}, reports) == ("mit", "https://mit.example")
    garbled = FileReport("gguf", {"general.license": array, "general.license.link": "no address"}, 0, 0)
    assert stated_license({}, {"a": garbled}) == (None, None)
