"""How an engine is started so that a model which fits really does: flags and environment from the answer. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelvault.errors import UsageProblem
from modelvault.fit import vllm
from modelvault.fit.answer import Answer, Question
from modelvault.fit.cards import Kind

_PORTS = {"vllm": 8000, "llamacpp": 8080, "ollama": 11434, "sglang": 30000, "tgi": 3000}
_QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
_IMAGES = {
    "vllm": "vllm/vllm-openai",
    "llamacpp": "ghcr.io/ggml-org/llama.cpp:server-cuda",
    "ollama": "ollama/ollama",
    "sglang": "lmsysorg/sglang",
    "tgi": "ghcr.io/huggingface/text-generation-inference",
}
_ON_PROCESSOR = {"ghcr.io/ggml-org/llama.cpp:server-cuda": "ghcr.io/ggml-org/llama.cpp:server"}
_FP8 = {"vllm": "fp8", "sglang": "fp8_e4m3", "tgi": "fp8_e4m3fn"}
"""How each spells a cache of 8-bit floats: ``--kv-cache-dtype``."""
MAX_REPLICAS = 64


@dataclass(frozen=True, slots=True)
class Installed:
    """Where an engine finds the model: its ``directory`` of models, the ``name`` it goes by, the ``file`` of a GGUF, its own ``arguments``."""

    directory: str
    name: str
    file: str | None = None
    projector: str | None = None
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """One server: what is run with which environment. ``gpus`` are the numbers of its cards; ``image`` is for a container.

    ``inside`` is the directory under which a container sees ``directory``; ``then`` what a user types when it runs. ``starts``: whether the
    image starts the program by itself and is to be given its arguments alone.
    """

    engine: str
    title: str
    program: tuple[str, ...]
    environment: Mapping[str, str]
    port: int
    directory: str
    image: str
    inside: str
    gpus: tuple[int, ...] = ()
    on_cards: bool = True
    starts: bool = False
    then: str | None = None


def launches(question: Question, reply: Answer, installed: Installed, *, replicas: int = 1) -> tuple[Launch, ...]:
    """Give a server for each replica, each with cards and a port of its own. Raises ``UsageProblem``."""
    if question.engine not in _PORTS:
        raise UsageProblem(f"there is no recipe for {question.engine}", hint=f"there are some for {', '.join(_PORTS)}")
    first = _BUILDERS[question.engine](question, reply, installed)
    cards = reply.parallel if question.engine in {"vllm", "sglang", "tgi"} else len(question.devices)
    on_cards = question.devices[0].kind is Kind.GPU
    several = replicas > 1 and on_cards
    return tuple(
        replace(
            first,
            title=first.title if replicas == 1 else f"{first.title}-{number + 1}",
            program=_on_port(first, first.port + number),
            environment=_on_port_too(first, first.port + number),
            port=first.port + number,
            gpus=tuple(range(number * cards, (number + 1) * cards)) if several else (),
            image=_ON_PROCESSOR.get(first.image, first.image) if not on_cards else first.image,
            on_cards=on_cards,
        )
        for number in range(replicas)
    )


def _on_port(launch: Launch, port: int) -> tuple[str, ...]:
    if launch.engine == "ollama":
        return launch.program
    host = "--hostname" if launch.engine == "tgi" else "--host"
    return (*launch.program, host, "127.0.0.1", "--port", str(port))


def _on_port_too(launch: Launch, port: int) -> Mapping[str, str]:
    if launch.engine != "ollama":
        return launch.environment
    return {**launch.environment, "OLLAMA_HOST": f"127.0.0.1:{port}"}


def _title(installed: Installed) -> str:
    return installed.name.replace("/", "--").replace(":", "--").lower()


def _vllm(question: Question, reply: Answer, installed: Installed) -> Launch:
    flags: list[str] = []
    if reply.parallel > 1:
        flags += ["--tensor-parallel-size", str(reply.parallel)]
    flags += ["--max-model-len", str(reply.context), "--gpu-memory-utilization", f"{vllm.UTILIZATION:.2f}"]
    if question.users > 1:
        flags += ["--max-num-seqs", str(question.users)]
    flags += _cache_type(question)
    return Launch(
        engine="vllm",
        title=f"vllm-{_title(installed)}",
        program=("vllm", "serve", *_served(installed), *flags, *_others(installed.arguments, flags)),
        environment={**_QUIET, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_CACHE": installed.directory},
        port=_PORTS["vllm"],
        directory=installed.directory,
        image=_IMAGES["vllm"],
        inside="/models",
    )


def _cache_type(question: Question) -> list[str]:
    return ["--kv-cache-dtype", _FP8[question.engine]] if question.kv_type == "fp8" else []


def _served(installed: Installed) -> list[str]:
    """Name the model; GGUF is loaded by the path of its file, which would then be its name in the API."""
    return [installed.file, "--served-model-name", installed.name] if installed.file else [installed.name]


def _others(arguments: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Keep what the model's own recipe says, unless the fit decides it."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        starts = argument.startswith("--")
        skip = (argument.partition("=")[0] in flags) if starts else skip
        if not skip:
            kept.append(argument)
    return kept


def _sglang(question: Question, reply: Answer, installed: Installed) -> Launch:
    # Its share of a card is without activations and graphs, unlike vLLM's: it chooses better than we could.
    flags = ["--context-length", str(reply.context)]
    if reply.parallel > 1:
        flags += ["--tp-size", str(reply.parallel)]
    if question.users > 1:
        flags += ["--max-running-requests", str(question.users)]
    flags += _cache_type(question)
    return replace(
        _vllm(question, reply, installed),
        engine="sglang",
        title=f"sglang-{_title(installed)}",
        program=(
            *("python", "-m", "sglang.launch_server", "--model-path", *_served(installed)),
            *(*flags, *_others(installed.arguments, flags)),
        ),
        environment={**_QUIET, "HF_HUB_CACHE": installed.directory},
        port=_PORTS["sglang"],
        image=_IMAGES["sglang"],
    )


def _tgi(question: Question, reply: Answer, installed: Installed) -> Launch:
    flags = ["--max-total-tokens", str(reply.context), "--max-input-tokens", str(reply.context - 1)]
    if reply.parallel > 1:
        flags += ["--num-shard", str(reply.parallel)]
    if question.users > 1:
        flags += ["--max-concurrent-requests", str(max(question.users, 128))]
    flags += _cache_type(question)
    return replace(
        _vllm(question, reply, installed),
        engine="tgi",
        title=f"tgi-{_title(installed)}",
        program=(
            *("text-generation-launcher", "--model-id", installed.name, "--usage-stats", "off"),
            *(*flags, *_others(installed.arguments, flags)),
        ),
        environment={**_QUIET, "HF_HOME": installed.directory},
        port=_PORTS["tgi"],
        image=_IMAGES["tgi"],
        inside="/data",
        starts=True,
    )


def _llamacpp(question: Question, reply: Answer, installed: Installed) -> Launch:
    if installed.file is None:
        raise UsageProblem(
            f"{installed.name} has no GGUF file there", hint="`modelvault installs` lists what is installed"
        )
    flags = ["-m", installed.file]
    if installed.projector:
        flags += ["--mmproj", installed.projector]
    flags += ["--alias", installed.name, "-c", str(reply.context * question.users), "--parallel", str(question.users)]
    if reply.gpu_layers is not None:
        flags += ["-ngl", str(reply.gpu_layers)]
    if question.kv_type and question.kv_type != "f16":
        flags += ["-fa", "on", "--cache-type-k", question.kv_type, "--cache-type-v", question.kv_type]
    return Launch(
        engine="llamacpp",
        title=f"llama-{_title(installed)}",
        program=("llama-server", "--offline", *flags),
        environment={},
        port=_PORTS["llamacpp"],
        directory=installed.directory,
        image=_IMAGES["llamacpp"],
        inside="/models",
    )


def _ollama(question: Question, reply: Answer, installed: Installed) -> Launch:
    environment = {
        "OLLAMA_MODELS": installed.directory,
        "OLLAMA_CONTEXT_LENGTH": str(reply.context),
        "OLLAMA_NUM_PARALLEL": str(question.users),
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_NO_CLOUD": "1",
    }
    if question.kv_type and question.kv_type != "f16":
        environment |= {"OLLAMA_FLASH_ATTENTION": "1", "OLLAMA_KV_CACHE_TYPE": question.kv_type}
    return Launch(
        engine="ollama",
        title=f"ollama-{_title(installed)}",
        program=("ollama", "serve"),
        environment=environment,
        port=_PORTS["ollama"],
        directory=installed.directory,
        image=_IMAGES["ollama"],
        inside="/models",
        then=f"ollama run {installed.name}",
    )


_BUILDERS: Mapping[str, Any] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "tgi": _tgi,
    "llamacpp": _llamacpp,
    "ollama": _ollama,
}
