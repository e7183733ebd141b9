"""Machines for end-to-end tests: each is a directory with a vault and a home, on which the installed program is run."""

import atexit
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forked import Forker

PROGRAM = (sys.executable, "-m", "modelvault")
SECONDS = 120
"""After this long a command is stuck, and the test fails."""
FORK = os.environ.get("MODELVAULT_TEST_FORK") != "0"
_FORKER = Forker()
atexit.register(_FORKER.end)


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    command: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The ``--json`` envelope."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    @property
    def result(self) -> dict[str, Any]:
        """The result within the envelope."""
        result: dict[str, Any] = self.document["result"]
        return result

    def __str__(self) -> str:
        return f"{' '.join(self.command)} ended with {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"


@dataclass(frozen=True)
class Machine:
    """One machine: its own vault, home and environment; nothing of the real user's is seen."""

    root: Path
    endpoint: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def vault(self) -> Path:
        return self.root / "vault"

    def environment(self) -> dict[str, str]:
        home = self.root / "home"
        home.mkdir(parents=True, exist_ok=True)
        environment = {
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(home),
            "HF_HOME": str(home / "huggingface"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "MODELVAULT_HOME": str(self.vault),
            "MODELVAULT_LOCK_WAIT": "1",
            "COLUMNS": "80",
            "LC_ALL": "C.UTF-8",
            "PYTHONWARNINGS": "error",
        }
        if self.endpoint:
            environment["HF_ENDPOINT"] = self.endpoint
        if coverage := os.environ.get("COVERAGE_PROCESS_START"):
            environment["COVERAGE_PROCESS_START"] = coverage
        return environment | dict(self.variables)

    def run(self, *arguments: str | Path, code: int = 0, prefix: Sequence[str] = ()) -> Ran:
        """Run ``modelvault`` to its end and check its exit code. ``prefix`` goes before it, as ``unshare --net``."""
        environment = self.environment()
        if prefix or not FORK or "COVERAGE_PROCESS_START" in environment:
            done = subprocess.run(
                (*prefix, *PROGRAM, *map(str, arguments)),
                capture_output=True,
                text=True,
                env=environment,
                cwd=self.root,
                timeout=SECONDS,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        else:
            done = _FORKER.run([str(argument) for argument in arguments], environment, self.root, SECONDS)
        ran = Ran(tuple(map(str, arguments)), done.returncode, done.stdout, done.stderr)
        assert done.returncode == code, f"expected exit code {code}: {ran}"
        assert "Traceback" not in done.stderr, str(ran)
        assert "internal error" not in done.stdout + done.stderr, str(ran)
        return ran

    def json(self, *arguments: str | Path, code: int = 0) -> Ran:
        """Run with ``--json``."""
        return self.run(*arguments, "--json", code=code)

    @contextlib.contextmanager
    def started(self, *arguments: str | Path) -> Iterator["subprocess.Popen[bytes]"]:
        """Start ``modelvault`` in the background, for tests that kill it; it is ended by its process id in any case."""
        process = subprocess.Popen(
            (*PROGRAM, *map(str, arguments)),
            env=self.environment(),
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def models(self) -> set[str]:
        """The names that ``list`` shows; a command that did nothing has not even made a vault."""
        if not self.vault.exists():
            return set()
        return {model["name"] for model in self.json("list").result["models"]}


def trust(machine: Machine, signer: Machine, bundle: Path) -> None:
    """Carry the fingerprint of the signer's key over by hand."""
    fingerprint = signer.json("keys", "show").result["keys"][0]["fingerprint"]
    machine.run("keys", "trust", bundle / "default.pub", "--fingerprint", fingerprint)


def trust_site(machine: Machine, public_key: Path, site: Machine) -> None:
    """Carry the fingerprint of a site's key over by hand."""
    (key,) = (key for key in site.json("keys", "show").result["keys"] if key["role"] == "receipt")
    machine.run("keys", "trust", public_key, "--role", "receipt", "--fingerprint", key["fingerprint"])


def only_bundle(drive: Path) -> Path:
    """The one bundle on a drive."""
    (bundle,) = drive.glob("*.mvbundle")
    return bundle


def flip_bit(path: Path, offset: int, bit: int = 0) -> None:
    """Change one bit, by XOR: overwriting might be a no-op."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


@contextlib.contextmanager
def small_disk(image: Path, mount: Path, size: int, kind: str = "ext4") -> Iterator[Path]:
    """Mount a fresh file system of ``size`` bytes; needs root."""
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True, capture_output=True)
    mount.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        image.unlink()
