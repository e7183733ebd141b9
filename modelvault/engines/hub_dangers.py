"""What a Hugging Face hub cache can suffer from, and what the engines that load from it cannot do on this machine."""

from collections.abc import Iterator
from pathlib import Path

from modelvault.engines.base import Surroundings
from modelvault.engines.hub_cache import read_reference
from modelvault.engines.programs import gpus
from modelvault.errors import EngineRefused
from modelvault.results.engines import Finding, Level

_QUANTIZED = (7, 5)
"""The least compute capability for which vLLM has kernels for AWQ and GPTQ."""
_OFF = {"", "0", "false", "no", "off"}


def cards(around: Surroundings) -> Iterator[Finding]:
    """Say what vLLM can run on the graphics cards of this machine; nothing where ``nvidia-smi`` tells of none."""
    for number, card in enumerate(gpus(around) or ()):
        capability = ".".join(map(str, card.capability)) or "unknown"
        said = f"GPU {number} ({card.name}) has compute capability {capability}"
        if card.capability and card.capability < _QUANTIZED:
            yield Finding(
                "vllm",
                Level.DANGER,
                f"{said}: below 7.5 vLLM runs neither AWQ nor GPTQ",
                "serve a GGUF there, with Ollama or llama.cpp",
            )
        else:
            yield Finding("vllm", Level.OK, said)


def offline_word(around: Surroundings) -> Iterator[Finding]:
    """Warn of the words that mean offline to all but TGI."""
    value = around.environment.get("HF_HUB_OFFLINE", "")
    if value.lower() not in _OFF and value != "1":
        what = f"HF_HUB_OFFLINE is {value!r}, and TGI takes nothing but 1 for offline"
        yield Finding("tgi", Level.NOTE, what, "set HF_HUB_OFFLINE=1")


def in_cache(subject: str, directory: Path) -> Iterator[Finding]:
    """Look for repositories that the hub's client cannot use offline. Raises ``OSError``."""
    dangling: list[Path] = []
    for folder in sorted(directory.glob("models--*")):
        yield from _reference(subject, folder)
        dangling += (path for path in folder.glob("snapshots/**/*") if path.is_symlink() and not path.exists())
    if dangling:
        more = f" and {len(dangling) - 1} more" if len(dangling) > 1 else ""
        yield Finding(
            subject,
            Level.DANGER,
            f"{dangling[0]}{more} leads nowhere: its model is found, and then cannot be loaded",
            "install or download it again",
        )


def _reference(subject: str, folder: Path) -> Iterator[Finding]:
    """Look at the commit that a repository's ``main`` is, if it has one."""
    path = folder / "refs/main"
    try:
        commit = read_reference(path)
    except EngineRefused as error:
        yield Finding(subject, Level.NOTE, error.message, error.hint)
        return
    if commit is None:
        return
    if commit != commit.strip():
        what = f"{path} ends in white space: the hub's client then does not find the model"
        yield Finding(
            subject, Level.DANGER, what, "write the commit there without a newline, or install the model again"
        )
    elif not (folder / "snapshots" / commit).is_dir():
        what = f"{path} names a commit that is not there: a download that was not finished"
        yield Finding(subject, Level.NOTE, what, "install or download the model again, or remove its directory")
