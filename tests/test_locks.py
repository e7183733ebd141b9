"""Locks keep other processes out, and end with whoever holds them."""

import subprocess
import sys
from pathlib import Path

import pytest

from modelvault.errors import VaultLocked
from modelvault.locks import FileLock


def test_a_wait_is_reported_once(tmp_path: Path) -> None:
    """Breaks if a command that waits for another one looks as if it hung, or says so twenty times a second."""
    said: list[str] = []
    held = FileLock(tmp_path / "lock")
    held.__enter__()

    def let_go(message: str) -> None:
        said.append(message)
        held.__exit__(None, None, None)

    with FileLock(tmp_path / "lock", wait=60, what="the vault", on_wait=let_go):
        assert said == ["waiting for another modelvault that uses the vault"]


def test_lock_keeps_another_process_out(tmp_path: Path) -> None:
    """Breaks if two processes could publish at once, or a dead one keeps the lock."""
    path = tmp_path / "lock"
    code = "import sys; from pathlib import Path; from modelvault.locks import FileLock\nwith FileLock(Path(sys.argv[1])):\n print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(VaultLocked), FileLock(path):
            pass
        other.kill()
        other.wait()
    with FileLock(path):
        pass


def test_shared_locks_share(tmp_path: Path) -> None:
    """Breaks if two bundles could not be written at once, or one could be removed under."""
    path = tmp_path / "lock"
    with (
        FileLock(path, shared=True),
        FileLock(path, shared=True),
        pytest.raises(VaultLocked),
        FileLock(path),
    ):
        pass
