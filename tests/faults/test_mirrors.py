"""Several hubs that stand in for one another, with the installed program: one that is down, one that dies, one that lies."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faulty_hub import FaultyHub, Refusals
from large_model import LARGE, SIZE
from machines import Machine, flip_bit
from refusals import failed, running, succeeded


@pytest.fixture
def hubs(large: Path) -> Iterator[tuple[FaultyHub, FaultyHub]]:
    """Two hubs with the same repository at the same commit, the first of which is slow."""
    with FaultyHub({"org/large": large}, send_buffer=16 << 10) as first, FaultyHub({"org/large": large}) as second:
        first.faults.rate = 3_000_000
        yield first, second


def client(machine: Callable[..., Machine], *hubs: FaultyHub) -> Machine:
    return machine("pc", MODELVAULT_ENDPOINT=",".join(hub.url for hub in hubs))


def test_the_first_is_asked_first(hubs: tuple[FaultyHub, FaultyHub], machine: Callable[..., Machine]) -> None:
    """Breaks if the order that the user wrote is not the order in which hubs are asked."""
    slow, fast = hubs
    succeeded(client(machine, fast, slow), "pull", "org/large")
    assert not slow.asked()


@pytest.mark.parametrize("gone", ["down", "unknown", "busy"])
def test_one_that_does_not_answer(
    hubs: tuple[FaultyHub, FaultyHub], machine: Callable[..., Machine], gone: str, tmp_path: Path
) -> None:
    """Breaks if a mirror that is down, or has not got the model, keeps it from coming."""
    first, second = hubs
    if gone == "busy":
        first.faults.refusals.append(Refusals(503, 1000, {"retry-after": "0"}, where="api"))
    with FaultyHub({"org/other": tmp_path}) as other:
        if gone == "unknown":
            first = other
        pc = client(machine, first, second)
        if gone == "down":
            pc = machine("pc", MODELVAULT_ENDPOINT=f"http://127.0.0.1:1,{second.url}")
        ran = pc.run("pull", "org/large")
    assert f"asking {second.url}" in ran.err
    assert pc.models() == {"org/large"}


def test_one_that_fails_on_the_way(hubs: tuple[FaultyHub, FaultyHub], machine: Callable[..., Machine]) -> None:
    """Breaks if what the first one sent is fetched again, or if the pull ends with it."""
    first, second = hubs
    size = first.repositories["org/large"].files[LARGE].size
    reached = first.reached(LARGE, size // 3)
    with running(client(machine, first, second), "pull", "org/large") as pull:
        assert reached.wait(60)
        first.faults.refusals.append(Refusals(500, 100_000))
        first.faults.drop_after = 0
        first.faults.rate = None
        ran = pull.end(0)
    assert f"going on with {second.url}" in ran.err
    assert second.bytes_sent(LARGE) < size * 0.75


def test_the_last_one_fails_in_its_turn(large: Path, machine: Callable[..., Machine]) -> None:
    """Breaks if a pull ends with the last of them although the first one is there again."""
    with FaultyHub({"org/large": large}) as first, FaultyHub({"org/large": large}) as second:
        first.faults.refusals.append(Refusals(503, 12))
        second.faults.refusals.append(Refusals(503, 100_000))
        ran = client(machine, first, second).run("pull", "org/large")
    assert f"going on with {second.url}" in ran.err
    assert f"going on with {first.url}" in ran.err


def test_one_that_lists_other_digests(
    hubs: tuple[FaultyHub, FaultyHub], machine: Callable[..., Machine], large: Path, tmp_path: Path
) -> None:
    """Breaks if mirrors that disagree about a commit are both believed."""
    first, _ = hubs
    shutil.copytree(large, tmp_path / "forged")
    flip_bit(tmp_path / "forged" / LARGE, SIZE // 2)
    with FaultyHub({"org/large": tmp_path / "forged"}) as liar:
        liar.repositories["org/large"].commit = first.commit("org/large")
        first.faults.refusals.append(Refusals(500, 100_000))
        error = failed(client(machine, first, liar), "pull", "org/large", code=12)
    assert f"{liar.url} lists another {LARGE}" in error["message"]
    assert not liar.bytes_sent(LARGE)


def test_one_that_has_what_is_wanted(
    machine: Callable[..., Machine], large: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    """Breaks if a machine that has one quantization of many cannot stand in for that one."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    shutil.copytree(tiny_gguf, whole)
    shutil.copy(large / LARGE, whole / LARGE)
    part.mkdir()
    shutil.copy(large / LARGE, part / LARGE)
    with FaultyHub({"org/large": whole}) as first, FaultyHub({"org/large": part}) as second:
        second.repositories["org/large"].commit = first.commit("org/large")
        first.faults.refusals.append(Refusals(500, 100_000))
        pc = client(machine, first, second)
        succeeded(pc, "pull", "org/large", "--include", LARGE)
        assert second.bytes_sent(LARGE) > SIZE * 0.9


def test_none_that_answers(machine: Callable[..., Machine]) -> None:
    """Breaks if the last word is not that of the last one asked."""
    pc = machine("pc", MODELVAULT_ENDPOINT="http://127.0.0.1:1,http://127.0.0.1:2")
    assert "127.0.0.1:2" in failed(pc, "pull", "org/large", code=10)["message"]
