"""Transfers that are killed, interrupted, or run out of room: real processes, a real hub, a real file system."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_hub import FaultyHub

from modelvault.artifact import Digest
from modelvault.errors import NoSpace
from modelvault.progress import NoProgress
from modelvault.transfer import TransferOptions, Transfers, Wanted
from modelvault.transfer.journal import read_claims

SIZE = 208 << 20
MODEL = "model.gguf"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyHub]:
    folder = tmp_path_factory.mktemp("hub")
    with (folder / MODEL).open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(os.urandom(1 << 20))
    # A small buffer: what the kernel takes from the server and never gives to the client is no request of ours.
    with FaultyHub({"org/name": folder}, send_buffer=16 << 10) as hub:
        hub.faults.redirect = True
        yield hub
    shutil.rmtree(folder)


def start(hub: FaultyHub, home: Path) -> "subprocess.Popen[bytes]":
    script = Path(__file__).with_name("fetch_once.py")
    return subprocess.Popen([sys.executable, str(script), hub.url, "org/name", str(home)])


def data_of(home: Path) -> Path:
    (data,) = home.glob("*/data")
    return data


def test_killed_at_random_moments(hub: FaultyHub, tmp_path: Path) -> None:
    """The promise of the design: SIGKILL at any moment costs at most 1 % of the file again."""
    hub.forget()
    hub.faults.rate = 20_000_000
    seed = random.randrange(1 << 32)
    moments = sorted(random.Random(seed).sample(range(SIZE // 100, SIZE * 9 // 10), 2))
    for moment in moments:
        reached = hub.reached(MODEL, moment)
        process = start(hub, tmp_path)
        assert reached.wait(120), seed
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    hub.faults.rate = None
    assert start(hub, tmp_path).wait(120) == 0
    again = hub.bytes_sent(MODEL) - SIZE
    assert 0 <= again <= SIZE // 100 * len(moments), (seed, moments, again)
    data = data_of(tmp_path).read_bytes()
    assert str(Digest.of_bytes(data)).endswith(hub.repositories["org/name"].files[MODEL].sha256)


def test_interrupted_with_ctrl_c(hub: FaultyHub, tmp_path: Path) -> None:
    """Ctrl-C while all servers are silent ends the process at once and keeps what is there."""
    hub.forget()
    hub.faults.hold = threading.Event()
    reached = hub.reached(MODEL, 32 << 20)
    process = start(hub, tmp_path)
    assert reached.wait(120)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    hub.faults.hold.set()
    assert len(read_claims(data_of(tmp_path).with_name("journal"), SIZE)) > 100


@pytest.mark.root
def test_a_full_disk_and_then_room(tmp_path: Path) -> None:
    """A full disk ends with exit 15 and the missing bytes; after space was made the same command finishes."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4 for a small file system")
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(48 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a loop device here")
    try:
        _fill_and_free(mount)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def _fill_and_free(mount: Path) -> None:
    content = os.urandom(20 << 20)
    filler = mount / "filler"
    filler.write_bytes(bytes(24 << 20))
    wanted = Wanted("a", len(content), Digest.of_bytes(content), lambda start, stop: _Slice(content[start:stop]))
    with Transfers(mount / "partial", [wanted], TransferOptions(), NoProgress()) as transfers:
        with pytest.raises(NoSpace) as caught:
            transfers.run()
        assert 0 < caught.value.data["missing"] < len(content)
        filler.unlink()
        (fetched,) = transfers.run()
        assert fetched.data.read_bytes() == content


class _Slice:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def __enter__(self) -> Iterator[bytes]:
        return iter([self._data[at : at + (1 << 20)] for at in range(0, len(self._data), 1 << 20)])

    def __exit__(self, *_: object) -> None: ...
