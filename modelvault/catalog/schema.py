"""What a catalog file may say: names and types of ``docs/reference/catalog.md``. Unknown keys are errors."""

from typing import Annotated, Literal

import msgspec

Text = Annotated[str, msgspec.Meta(min_length=1)]
Label = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]+\Z")]  # one line
Count = Annotated[int, msgspec.Meta(ge=1)]
Parameters = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,4}(\.[0-9]{1,3})?[MBT]\Z")]
Language = Annotated[str, msgspec.Meta(pattern=r"\A[a-z]{2,3}\Z")]  # ISO 639
Repository = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.-]{1,96}/[A-Za-z0-9_.-]{1,96}\Z")]
Revision = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}\Z")]

Format = Literal["gguf", "safetensors", "awq", "gptq", "fp8", "exl2"]
FORMATS: tuple[Format, ...] = ("gguf", "safetensors", "awq", "gptq", "fp8", "exl2")
"""The kinds of files that a model may come in. The first that an entry has goes by the entry's plain name."""


class Source(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Where a model lies in one format."""

    repository: Repository
    revision: Revision | None = None
    include: tuple[Label, ...] = ()
    exclude: tuple[Label, ...] = ()
    gated: bool | None = None


class Gguf(Source, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A GGUF repository, and which quantization of it."""

    quant: Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.-]+\Z")]


class Exl2(Source, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """An EXL2 repository, whose revisions differ in their bits per weight."""

    bits: Annotated[float, msgspec.Meta(gt=1, le=16)]


class OllamaParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """The parameters that a Modelfile may set (Ollama's ``api.Options``), except ``stop``, which is a list."""

    num_ctx: Count | None = None
    num_batch: Count | None = None
    num_gpu: int | None = None
    num_thread: Count | None = None
    num_keep: int | None = None
    num_predict: int | None = None
    seed: int | None = None
    top_k: int | None = None
    repeat_last_n: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    temperature: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class Ollama(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The recipe for Ollama."""

    name: (
        Annotated[
            str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,79})?\Z")
        ]
        | None
    ) = None
    family: Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9.-]+\Z")] | None = None
    template: Text | None = None
    system: Text | None = None
    stop: tuple[Label, ...] = ()
    parameters: OllamaParameters = OllamaParameters()


class Vllm(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The recipe for vLLM."""

    arguments: tuple[Label, ...]


class Entry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One file: one model, in one or more formats."""

    name: str
    title: Label
    parameters: Parameters
    context: Count
    languages: Annotated[tuple[Language, ...], msgspec.Meta(min_length=1)]
    license: Label
    gated: bool
    verified: bool
    acceptance: bool = False
    gguf: Gguf | None = None
    safetensors: Source | None = None
    awq: Source | None = None
    gptq: Source | None = None
    fp8: Source | None = None
    exl2: Exl2 | None = None
    ollama: Ollama | None = None
    vllm: Vllm | None = None
