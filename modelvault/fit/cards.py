"""The machines that a model may run on: graphics cards by name, plain sizes, Macs with unified memory, processors alone."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from modelvault.errors import UsageProblem

MIB = 1 << 20
GIB = 1 << 30
MAX_GPUS = 64
_LARGEST = 1 << 50  # bytes; beyond is a slip of the finger


class Kind(StrEnum):
    """What kind of memory weights lie in."""

    GPU = "gpu"
    UNIFIED = "unified"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class Device:
    """One card, or a machine's memory. ``memory`` in bytes, ``bandwidth`` in bytes per second.

    ``capability`` is CUDA's compute capability; ``None`` where it is not known or there is none.
    """

    name: str
    memory: int
    kind: Kind = Kind.GPU
    capability: float | None = None
    bandwidth: int | None = None


def _card(mib: int, capability: float | None, gigabytes: int) -> tuple[int, float | None, int]:
    return mib * MIB, capability, gigabytes * 10**9


# Memory as nvidia-smi (rocm-smi) shows it, compute capability and bandwidth as the makers' data sheets have them.
_CARDS: Mapping[str, tuple[int, float | None, int]] = {
    "1080ti": _card(11264, 6.1, 484),
    "2080ti": _card(11264, 7.5, 616),
    "3060": _card(12288, 8.6, 360),
    "3070": _card(8192, 8.6, 448),
    "3080": _card(10240, 8.6, 760),
    "3090": _card(24576, 8.6, 936),
    "4050": _card(6141, 8.9, 192),
    "4060": _card(8188, 8.9, 272),
    "4060ti-16": _card(16380, 8.9, 288),
    "4070": _card(12282, 8.9, 504),
    "4080": _card(16376, 8.9, 717),
    "4090": _card(24564, 8.9, 1008),
    "5070ti": _card(16303, 12.0, 896),
    "5080": _card(16303, 12.0, 960),
    "5090": _card(32607, 12.0, 1792),
    "a2": _card(15356, 8.6, 200),
    "a10": _card(23028, 8.6, 600),
    "a30": _card(24576, 8.0, 933),
    "a40": _card(46068, 8.6, 696),
    "a4000": _card(16376, 8.6, 448),
    "a5000": _card(24564, 8.6, 768),
    "a6000": _card(49140, 8.6, 768),
    "a100-40": _card(40960, 8.0, 1555),
    "a100-80": _card(81920, 8.0, 1935),
    "b200": _card(183359, 10.0, 8000),
    "h100-80": _card(81559, 9.0, 3350),
    "h100-94": _card(95830, 9.0, 3938),
    "h200": _card(143771, 9.0, 4800),
    "l4": _card(23034, 8.9, 300),
    "l40s": _card(46068, 8.9, 864),
    "mi210": _card(65520, None, 1638),
    "mi300x": _card(196592, None, 5300),
    "p40": _card(24576, 6.1, 347),
    "p100-16": _card(16384, 6.0, 732),
    "rtx6000-ada": _card(49140, 8.9, 960),
    "rtxpro6000": _card(97887, 12.0, 1792),
    "t4": _card(15360, 7.5, 320),
    "v100-16": _card(16384, 7.0, 900),
    "v100-32": _card(32768, 7.0, 900),
}
_ALSO = {"a100": "a100-80", "h100": "h100-80", "v100": "v100-32", "p100": "p100-16", "4060ti": "4060ti-16"}

_COUNT = re.compile(r"(?:(\d{1,3})\s*[x*]\s*)?(.+)")
_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*(ki?b?|mi?b?|gi?b?|ti?b?)", re.IGNORECASE)
_MAKERS = re.compile(r"^(?:(?:nvidia|geforce|tesla|quadro|amd|radeon|instinct|rtx|gtx)[- ]*)+(?=[a-z]*\d)")
_MACHINE = re.compile(r"(mac|cpu)[-_ ]?(\d{1,5})(?:gi?b)?")


def parse_gpus(specs: Sequence[str]) -> tuple[Device, ...]:
    """Read what the user has: ``24GiB``, ``2x32GiB``, ``a100-80``, ``2x4090``, ``mac-64``, ``cpu-128``.

    Raises ``UsageProblem`` for cards that are not known and sizes that no card has; macOS machines and processors stand alone.
    """
    devices = tuple(device for spec in specs for device in _parse(spec))
    kinds = {device.kind for device in devices}
    if len(kinds) > 1 or (len(devices) > 1 and kinds != {Kind.GPU}):
        raise UsageProblem(
            f"{' and '.join(specs)} do not go together", hint="name graphics cards, or one mac-SIZE, or one cpu-SIZE"
        )
    return devices


def _parse(spec: str) -> tuple[Device, ...]:
    text = spec.strip().lower()
    count_text, what = _COUNT.fullmatch(text).groups() if _COUNT.fullmatch(text) else (None, text)  # type: ignore[union-attr]
    count = int(count_text or 1)
    if not 1 <= count <= MAX_GPUS:
        raise UsageProblem(f"--gpu {spec}: not a number of cards", hint=f"from 1 to {MAX_GPUS}, as 2x24GiB")
    if machine := _MACHINE.fullmatch(what):
        kind = Kind.UNIFIED if machine[1] == "mac" else Kind.CPU
        return (Device(what, _sensible(int(machine[2]) * GIB, spec), kind),) * count
    if size := _SIZE.fullmatch(what):
        return (Device(_shown(what), _sensible(_bytes(size[1], size[2]), spec)),) * count
    return (_named(what, spec),) * count


def _named(what: str, spec: str) -> Device:
    name = _MAKERS.sub("", what).replace(" ", "-")
    name = re.sub(r"gi?b$", "", name)
    for candidate in (what, name, what.replace(" ", "")):
        key = _ALSO.get(candidate, candidate)
        if key in _CARDS:
            memory, capability, bandwidth = _CARDS[key]
            return Device(key, memory, capability=capability, bandwidth=bandwidth)
    near = difflib.get_close_matches(name, _CARDS, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    raise UsageProblem(
        f"--gpu {spec}: no card of that name is known",
        hint=f"{meant}its memory does as well: --gpu 24GiB",
        known=list(_CARDS),
    )


def _bytes(number: str, unit: str) -> int:
    unit = unit.lower()
    # Cards are sold by the GB and have GiB: only "24GB" written with both letters and no i is taken at its word.
    base = 1000 if unit.endswith("b") and "i" not in unit and len(unit) > 1 else 1024
    return int(float(number) * base ** " kmgt".index(unit[0]))


def _shown(size: str) -> str:
    return re.sub(r"([kmgt])(i?)(b?)$", lambda match: f"{match[1].upper()}{match[2]}{match[3].upper()}", size)


def _sensible(memory: int, spec: str) -> int:
    if not 256 * MIB <= memory <= _LARGEST:
        raise UsageProblem(f"--gpu {spec}: no card has {memory:,} bytes", hint="write its memory as 24GiB")
    return memory
