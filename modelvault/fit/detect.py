"""The cards that are meant: those that the user names, or those of this machine, as ``nvidia-smi`` lists them."""

import shutil
import subprocess
from collections.abc import Sequence

from modelvault.errors import UsageProblem
from modelvault.fit.cards import MIB, Device, parse_gpus

_FIELDS = 3
_SECONDS = 20


def devices_of(specs: Sequence[str]) -> tuple[Device, ...]:
    """Read ``--gpu``; ``auto``, and nothing, look at this machine. Raises ``UsageProblem``."""
    named = tuple(spec for spec in specs if spec != "auto")
    if named and len(named) < len(specs):
        raise UsageProblem("--gpu auto stands alone", hint="leave it away, or name all cards")
    return parse_gpus(named) if named else detect_gpus()


def detect_gpus() -> tuple[Device, ...]:
    """Ask ``nvidia-smi`` for name, memory and compute capability of every card. Raises ``UsageProblem`` where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise UsageProblem(
            "no graphics card of NVIDIA was found on this machine (there is no nvidia-smi)",
            hint="say what there is: --gpu 24GiB, --gpu 2x4090, --gpu mac-64, --gpu cpu-64",
        )
    command = [program, "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        devices = tuple(_device(line) for line in done.stdout.splitlines() if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UsageProblem(f"nvidia-smi does not list the cards: {error}", hint="name them: --gpu 24GiB") from error
    if not devices:
        raise UsageProblem("nvidia-smi lists no card", hint="name what there is: --gpu 24GiB")
    return devices


def _device(line: str) -> Device:
    fields = [field.strip() for field in line.rsplit(",", _FIELDS - 1)]
    if len(fields) != _FIELDS:
        raise ValueError(f"an unexpected line: {line[:80]!r}")
    name, memory, capability = fields
    known = capability.replace(".", "", 1).isdecimal()
    return Device(name.removeprefix("NVIDIA "), int(memory) * MIB, capability=float(capability) if known else None)
