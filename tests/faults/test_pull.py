"""What goes wrong on the way from the hub into the vault, with the installed program."""

import json
import random
import shutil
import signal
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from faulty_hub import FaultyHub
from large_model import LARGE
from machines import Machine, flip_bit, small_disk
from make_models import make_awq, make_large_gguf, make_sharded_safetensors
from refusals import blobs, failed, fill, interrupted, running, succeeded

from modelvault.transfer.geometry import piece_size
from modelvault.transfer.journal import read_claims

TINY = "tiny-Q8_0.gguf"


@pytest.fixture
def slow(large: Path) -> Iterator[FaultyHub]:
    """A hub whose every connection is slow, so that a pull can be met in the middle."""
    # A small buffer: what the kernel takes from the server and never gives to the client is no request of ours.
    with FaultyHub({"org/large": large}, send_buffer=16 << 10) as hub:
        hub.faults.rate = 10_000_000
        yield hub


def partial_data(machine: Machine, size: int) -> Path:
    """The data file of the one large transfer under way."""
    (data,) = [path for path in machine.vault.glob("partial/*/data") if path.stat().st_size == size]
    return data


# ── killed, interrupted ──


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_ended_at_a_random_moment(slow: FaultyHub, machine: Callable[..., Machine], number: signal.Signals) -> None:
    """The promise of the design: whatever ends a pull, at most 1 % of the file is fetched again, and nothing half is listed."""
    pc = machine("pc", slow.url)
    size = slow.repositories["org/large"].files[LARGE].size
    moment = random.randrange(size // 10, size * 8 // 10)
    reached = slow.reached(LARGE, moment)
    with running(pc, "pull", "org/large") as pull:
        assert reached.wait(60), moment
        pull.signal(number)
        ran = pull.end(-number if number is signal.SIGKILL else 130)
    if number is not signal.SIGKILL:
        interrupted(ran)
    assert pc.models() == set()
    assert blobs(pc) == {}, f"something was published by a pull that ended at byte {moment}"
    slow.faults.rate = None
    result = succeeded(pc, "pull", "org/large")
    assert result["reused"] > 0
    again = slow.bytes_sent(LARGE) - size
    assert 0 <= again <= size // 100, f"{again} bytes again after the end at byte {moment}"
    pc.run("verify")
    assert list((pc.vault / "partial").glob("*/data")) == []


def test_a_plan_that_does_not_fit(
    slow: FaultyHub, machine: Callable[..., Machine], tmp_path: Path, as_root: None
) -> None:
    """Breaks if `--dry-run` promises what the pull then refuses for lack of room."""
    with small_disk(tmp_path / "image", tmp_path / "disk", 64 << 20) as disk:
        pc = machine("pc", slow.url, MODELVAULT_HOME=str(disk / "vault"))
        ran = pc.run("pull", "org/large", "--dry-run")
        assert "warning: no space left on the file system of" in ran.err
        assert "bytes are missing" in ran.err
        failed(pc, "pull", "org/large", code=15)


def test_what_is_under_way_is_listed(slow: FaultyHub, machine: Callable[..., Machine]) -> None:
    """Breaks if gigabytes that lie in the vault, or a pull in another window, show nowhere; and a plan must not count them twice."""
    pc = machine("pc", slow.url)
    size = slow.repositories["org/large"].files[LARGE].size
    reached = slow.reached(LARGE, size // 2)
    with running(pc, "pull", "org/large") as pull:
        assert reached.wait(60)
        (part,) = succeeded(pc, "list")["partial"]
        assert (part["name"], part["size"]) == ("org/large", size)
        assert 0 < part["here"] < size
        pull.signal(signal.SIGKILL)
        pull.end(-signal.SIGKILL)
    assert "not complete yet: org/large, " in pc.run("list").out
    slow.faults.rate = None
    succeeded(pc, "pull", "org/large")
    assert succeeded(pc, "list")["partial"] == []


def test_interrupted_with_json(slow: FaultyHub, machine: Callable[..., Machine]) -> None:
    """Breaks if a program that reads ``--json`` cannot tell an interrupted pull from a failed one."""
    pc = machine("pc", slow.url)
    reached = slow.reached(LARGE, 1_000_000)
    with running(pc, "pull", "org/large", "--json") as pull:
        assert reached.wait(60)
        pull.signal(signal.SIGINT)
        document = json.loads(pull.end(130).out)
    assert (document["status"], document["error"]["code"]) == ("error", "interrupted")


def test_a_finished_range_changes_on_disk(slow: FaultyHub, machine: Callable[..., Machine]) -> None:
    """Breaks if what an earlier run wrote is believed unseen: the range must be named, and that range alone fetched again."""
    pc = machine("pc", slow.url)
    size = slow.repositories["org/large"].files[LARGE].size
    reached = slow.reached(LARGE, size // 3)
    with running(pc, "pull", "org/large") as pull:
        assert reached.wait(60)
        pull.signal(signal.SIGKILL)
        pull.end(-signal.SIGKILL)
    data = partial_data(pc, size)
    piece = piece_size(size)
    index = random.choice(sorted(read_claims(data.with_name("journal"), size)))
    flip_bit(data, index * piece + random.randrange(min(piece, size - index * piece)))
    slow.faults.rate = None
    ran = pc.run("pull", "org/large")
    assert f"{LARGE}: bytes {index * piece}-{min((index + 1) * piece, size) - 1} changed on disk" in ran.err, ran
    assert slow.bytes_sent(LARGE) - size <= size // 100 + piece
    pc.run("verify")


# ── wrong bytes ──


def test_a_flipped_byte_of_the_right_size(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if bytes are published that are not those that the hub promised."""
    with FaultyHub({"org/tiny": tiny_gguf}) as hub:
        pc = machine("pc", hub.url)
        hub.faults.flip[TINY] = 700_000
        error = failed(pc, "pull", "org/tiny", code=12)
        assert error["code"] == "digest-mismatch"
        assert error["data"]["path"] == TINY
        assert TINY in error["message"]
        assert pc.models() == set()
        assert blobs(pc) == {}
        ran = pc.run("pull", "org/tiny", code=12)
        assert f"error: {TINY}: the source promised" in ran.err
        assert "\nhint: run the same command again" in ran.err
        hub.faults.flip.clear()
        succeeded(pc, "pull", "org/tiny")
    pc.run("verify")


def test_a_flipped_byte_of_a_small_file(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if files without a SHA-256 at the hub, which have a git digest, are taken as they come."""
    with FaultyHub({"org/tiny": tiny_gguf}) as hub:
        hub.faults.flip["README.md"] = 3
        pc = machine("pc", hub.url)
        assert "README.md" in failed(pc, "pull", "org/tiny", code=12)["message"]
        assert pc.models() == set()


# ── refused by the source ──


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (("org/nothing",), {}, ("has no model org/nothing", "check the spelling")),
        (("org/tiny", "--revision", "v9"), {}, ("has no revision 'v9'", "--revision")),
        (("org/gated",), {}, ("org/gated is gated", "accept the conditions", "HF_TOKEN")),
        (("org/gated",), {"HF_TOKEN": "hf_other"}, ("has no access", "ask for access")),
        (("org/tiny",), {"HF_HUB_OFFLINE": "1"}, ("offline mode is on", "unset HF_HUB_OFFLINE")),
        (("org/tiny", "--endpoint", "http://127.0.0.1:1"), {}, ("cannot reach http://127.0.0.1:1", "--endpoint")),
    ],
    ids=["unknown", "revision", "gated", "no access", "offline", "unreachable"],
)
def test_the_source_refuses(
    machine: Callable[..., Machine],
    tiny_gguf: Path,
    arguments: tuple[str, ...],
    variables: Mapping[str, str],
    words: tuple[str, ...],
) -> None:
    """Breaks if a refusal is not told from the others: each has its own way out."""
    with FaultyHub({"org/tiny": tiny_gguf, "org/gated": tiny_gguf}) as hub:
        hub.faults.gated["org/gated"] = "hf_right"
        pc = machine("pc", hub.url, **variables)
        error = failed(pc, "pull", *arguments, code=10)
        assert error["code"] == "source"
        assert all(word in f"{error['message']}\n{error['hint']}" for word in words), error
        assert pc.models() == set()


def test_a_token_opens_the_gate(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if the hint about gated models is followed and does not help."""
    with FaultyHub({"org/gated": tiny_gguf}) as hub:
        hub.faults.gated["org/gated"] = "hf_right"
        result = succeeded(machine("pc", hub.url, HF_TOKEN="hf_right"), "pull", "org/gated")
    assert any("gated" in warning for warning in result["warnings"])


@pytest.mark.parametrize("endpoint", ["ftp://hub", "http://[bad", "hub.local"])
def test_what_is_no_endpoint(machine: Callable[..., Machine], endpoint: str) -> None:
    """Breaks if a mistyped address ends in a traceback, or in a wait for a host that cannot be."""
    assert "endpoint" in failed(machine("pc"), "pull", "org/tiny", "--endpoint", endpoint, code=2)["message"]


def test_a_login_page_instead_of_the_hub(machine: Callable[..., Machine], tiny_gguf: Path) -> None:
    """Breaks if a hotel's login page, which answers everything, is taken for a hub or for a bug."""
    with FaultyHub({"org/tiny": tiny_gguf}) as hub:
        hub.repositories["org/tiny"].info = {"sha": None}
        assert "names no commit" in failed(machine("pc", hub.url), "pull", "org/tiny", code=10)["message"]


# ── invalid files ──


def truncated(folder: Path, gguf: Path) -> None:
    (folder / TINY).write_bytes((gguf / TINY).read_bytes()[:-1000])


def no_gguf(folder: Path, gguf: Path) -> None:
    (folder / TINY).write_bytes(b"GGML" + (gguf / TINY).read_bytes()[4:])


def hostile(folder: Path, _: Path) -> None:
    (folder / TINY).write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60) + bytes(100))


def pointer(folder: Path, _: Path) -> None:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1453024\n"
    (folder / TINY).write_text(text)


def page(folder: Path, _: Path) -> None:
    (folder / TINY).write_text("<!DOCTYPE html>\n<html><body>Please log in</body></html>\n")


def missing_shard(folder: Path, _: Path) -> None:
    make_sharded_safetensors(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def duplicate_keys(folder: Path, _: Path) -> None:
    make_awq(folder)
    tensor = '"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}'
    header = f"{{{tensor},{tensor}}}".encode()
    header += b" " * (-len(header) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2))


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (truncated, "gguf-truncated"),
        (no_gguf, "gguf-magic"),
        (hostile, "gguf-count"),
        (pointer, "lfs-pointer"),
        (page, "html-page"),
        (missing_shard, "missing-shard"),
        (duplicate_keys, "safetensors-header"),
    ],
)
def test_an_invalid_file(
    machine: Callable[..., Machine],
    tiny_gguf: Path,
    tmp_path: Path,
    spoil: Callable[[Path, Path], None],
    rule: str,
) -> None:
    """Breaks if what no engine could load, or what would harm one, gets into a vault by any door, or the rule is not named."""
    folder = tmp_path / "spoiled"
    folder.mkdir()
    spoil(folder, tiny_gguf)
    with FaultyHub({"org/spoiled": folder}) as hub:
        pc = machine("pc", hub.url)
        for command in (("pull", "org/spoiled"), ("add", folder, "--name", "spoiled"), ("inspect", folder)):
            error = failed(pc, *command, code=13)
            assert error["code"] == "invalid-model-file"
            assert error["data"]["rule"] == rule, error
            assert f"(rule: {rule})" in error["message"]
    assert pc.models() == set()
    assert blobs(pc) == {}


def test_pickle(machine: Callable[..., Machine], tiny_awq: Path, tmp_path: Path) -> None:
    """Breaks if a file that runs code when it is loaded gets in unasked; it must be refused before it is downloaded."""
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_awq, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with FaultyHub({"org/pickled": folder}) as hub:
        pc = machine("pc", hub.url)
        for command in (("pull", "org/pickled"), ("add", folder, "--name", "pickled")):
            error = failed(pc, *command, code=17)
            assert error["code"] == "policy"
            assert "pytorch_model.bin" in error["message"]
            assert "--allow-pickle" in error["hint"]
        assert hub.bytes_sent("pytorch_model.bin") == 0
    assert pc.models() == set()


# ── no space ──


def test_a_full_disk(machine: Callable[..., Machine], tmp_path: Path, as_root: None) -> None:
    """Breaks if a full disk does not say how much is missing, or if making room is not enough to go on."""
    folder = tmp_path / "model"
    folder.mkdir()
    make_large_gguf(folder / LARGE, 30_000_000)
    with (
        FaultyHub({"org/large": folder}) as hub,
        small_disk(tmp_path / "image", tmp_path / "disk", 64 << 20) as disk,
    ):
        pc = machine("pc", hub.url, MODELVAULT_HOME=str(disk / "vault"))
        filler = fill(disk, 10_000_000)
        error = failed(pc, "pull", "org/large", code=15)
        assert error["code"] == "no-space"
        assert 0 < error["data"]["missing"] < 30_000_000
        assert f"{error['data']['missing']:,} bytes are missing" in error["message"]
        assert pc.models() == set()
        filler.unlink()
        succeeded(pc, "pull", "org/large")
        pc.run("verify")


def test_a_disk_that_fills_up_meanwhile(machine: Callable[..., Machine], tmp_path: Path, as_root: None) -> None:
    """Breaks if room that vanishes at the very end, for the registry and the log, leaves half a model or costs the download."""
    folder = tmp_path / "model"
    folder.mkdir()
    make_large_gguf(folder / LARGE, 30_000_000)
    size = (folder / LARGE).stat().st_size
    with (
        FaultyHub({"org/large": folder}) as hub,
        small_disk(tmp_path / "image", tmp_path / "disk", 64 << 20) as disk,
    ):
        pc = machine("pc", hub.url, MODELVAULT_HOME=str(disk / "vault"))
        hub.faults.rate = 5_000_000
        reached = hub.reached(LARGE, 5_000_000)
        with running(pc, "pull", "org/large") as pull:
            assert reached.wait(60)
            filler = fill(disk, 0)
            ran = pull.end(15)
        assert "hint: free some space" in ran.err
        assert pc.models() == set()
        filler.unlink()
        hub.faults.rate = None
        succeeded(pc, "pull", "org/large")
        # A file this small has pieces of more than a thousandth, and each connection may lose one.
        assert hub.bytes_sent(LARGE) - size <= size // 10
        pc.run("verify")
