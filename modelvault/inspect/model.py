"""Checks on a model as a whole: what its files say about one another."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modelvault.artifact import FileReport, TensorInfo, Traits
from modelvault.errors import InvalidModelFile
from modelvault.formats.gguf import MAX_CONTEXT, GgufHeader
from modelvault.formats.remote_code import (
    CODE_FORMAT,
    CODE_MAPS,
    MAX_CODE_MAP,
    CodeReference,
    code_needs,
    is_code_alone,
    read_code_map,
    shorten,
)
from modelvault.formats.shards import shard_sets
from modelvault.inspect.advice import Advice, advise
from modelvault.inspect.card import stated_license
from modelvault.inspect.code import MAX_CONFIG
from modelvault.inspect.documents import read_document, read_object, section
from modelvault.inspect.gguf import read_gguf
from modelvault.inspect.listing import check_listing, is_pickle_name, top_level, with_suffix
from modelvault.inspect.quantization import Quantization, check_tensors, count_parameters, read_quantization
from modelvault.inspect.safetensors import SafetensorsHeader, read_safetensors
from modelvault.inspect.source import is_pickle, pickle_refused, read_head, refuse_empty, refuse_impostors
from modelvault.inspect.templates import template_warnings

MAX_INDEX = 32 << 20
"""Bytes; an index has about 100 per tensor."""

CONFIG = "config.json"
_CONFIG_RULE = "config-json"
_INDEX_SUFFIX = ".safetensors.index.json"
_CONSOLIDATED = "consolidated.safetensors"
_SINGLE = "model.safetensors"
# Files beside config.json in which vLLM looks for a quantization: the name, and the method that it implies.
_QUANTIZATION_FILES = {"quant_config.json": "awq", "quantize_config.json": "gptq", "hf_quant_config.json": "modelopt"}
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
_SIDE_KINDS = {"mmproj", "imatrix", "adapter", "vocab"}
_LAYER = re.compile(r"(.*\.(?:layers|h|blocks))\.(\d{1,6})\..*", re.DOTALL)
_MAX_LAYERS = 10_000  # beyond, the numbers in the names are not layers
_PARSED_AS_WEIGHTS = (".gguf", ".safetensors")


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What a model's files say: its traits, one report per weight file, and what is odd but no reason to refuse it.

    ``advice`` is what of that tells what the model could do to whoever runs it; ``warnings`` has its warnings, too. ``license`` and the
    address of its text are what the model card states, else a GGUF file.
    """

    traits: Traits
    reports: Mapping[str, FileReport]
    warnings: tuple[str, ...] = field(default=())
    advice: Advice = field(default_factory=Advice)
    license: str | None = None
    license_link: str | None = None


def inspect_file(path: Path, *, name: str | None = None) -> FileReport:
    """Recognise one weight file by its content and check it; ``path`` is where the bytes are, ``name`` what to call them.

    Raises ``InvalidModelFile`` with the rule that failed, and ``OSError`` if the file cannot be read.
    """
    shown = name or path.name
    head = read_head(path, shown)
    refuse_empty(head, shown)
    refuse_impostors(head, shown)
    if head.startswith(b"GGUF") or shown.lower().endswith(".gguf"):
        report = read_gguf(path, name=shown).report()
        return replace(report, warnings=(*report.warnings, *template_warnings({}, {shown: report})))
    if head[8:9] == b"{" or shown.lower().endswith(".safetensors"):
        return read_safetensors(path, name=shown).report()
    kind = "a Python pickle" if is_pickle(head) else "neither GGUF nor safetensors"
    raise InvalidModelFile(
        shown, "unknown-format", f"is {kind}", hint="models are .gguf files or folders of .safetensors"
    )


def inspect_model(
    files: Mapping[str, Path], *, allow_pickle: bool = False, repository: str | None = None
) -> ModelReport:
    """Check all files of a model, and the model as a whole; ``files`` maps paths within the model to where the bytes lie.

    ``repository`` is where they come from, if that is known: code in it is not another repository's. Raises ``InvalidModelFile`` with the rule that failed, ``PolicyRefused`` for pickles by name or by content, ``OSError``.
    """
    check_listing(list(files), allow_pickle=allow_pickle)
    pickles = _look_at_all(files)
    if pickles and not allow_pickle:
        raise pickle_refused(list(pickles))
    ggufs = {path: read_gguf(files[path], name=path) for path in with_suffix(files, ".gguf")}
    tensors = {path: read_safetensors(files[path], name=path) for path in with_suffix(files, ".safetensors")}
    warnings: list[str] = []
    if is_code_alone(list(files)):
        traits = Traits(CODE_FORMAT)
    elif any(top_level(tensors)):
        traits, warnings = _safetensors_traits(files, {path: tensors[path] for path in top_level(tensors)})
    elif ggufs:
        traits = _gguf_traits(ggufs)
    elif tensors:
        warnings.append("the weights lie in folders; vLLM reads only those beside config.json")
        traits = Traits("safetensors", parameters=sum(header.report().parameters for header in tensors.values()))
    else:
        traits = Traits("pickle")
    reports = {path: header.report() for path, header in (ggufs | tensors).items()}
    _check_split_totals(ggufs)
    warnings += _code(files, repository)
    warnings += [f"{path}: {warning}" for path, report in reports.items() for warning in report.warnings]
    advice = advise(files, reports, pickles)
    return ModelReport(traits, reports, (*warnings, *advice.warnings), advice, *stated_license(files, reports))


def _look_at_all(files: Mapping[str, Path]) -> tuple[str, ...]:
    """Look at the first bytes of every file: no pointers, no error pages. Gives those that are pickles, by name or in disguise."""
    pickles = []
    for path, place in files.items():
        head = read_head(place, path)
        refuse_impostors(head, path)
        if path.lower().endswith((".json", *_PARSED_AS_WEIGHTS)):
            refuse_empty(head, path)
        if is_pickle_name(path) or is_pickle(head):
            pickles.append(path)
    return tuple(pickles)


# ── GGUF ──


def _gguf_traits(headers: Mapping[str, GgufHeader]) -> Traits:
    """Take the traits from the first model; a projector, an adapter or an importance matrix is none unless it is alone."""
    main = next((path for path, header in headers.items() if not _is_side_file(path, header)), next(iter(headers)))
    header = headers[main]
    shards = next((shards.files for shards in shard_sets(headers) if main in shards.files), (main,))
    parameters = sum(headers[path].parameters for path in shards)
    return Traits("gguf", header.architecture, header.quantization, parameters or None, header.context_length)


def _is_side_file(path: str, header: GgufHeader) -> bool:
    return header.kind in _SIDE_KINDS or header.architecture == "clip" or "mmproj" in path.lower()


def _check_split_totals(headers: Mapping[str, GgufHeader]) -> None:
    """The first shard says how many tensors all shards have together."""
    for shards in shard_sets(headers):
        promised = headers[shards.file(1)].integer("split.tensors.count")
        found = sum(len(headers[path].tensors) for path in shards.files)
        if promised is not None and promised != found:
            detail = f"promises {promised:,} tensors in all shards; they have {found:,}"
            hint = "the shards are not of one set: pull them again"
            raise InvalidModelFile(shards.file(1), "gguf-split-tensors", detail, hint=hint)


# ── safetensors ──


def _safetensors_traits(
    files: Mapping[str, Path], headers: Mapping[str, SafetensorsHeader]
) -> tuple[Traits, list[str]]:
    """Check a repository of safetensors, and say what is odd; ``headers`` are those at the top level, which engines load."""
    config = read_object(files[CONFIG], CONFIG, rule=_CONFIG_RULE, limit=MAX_CONFIG) if CONFIG in files else {}
    # Where a tensor is in two files, the model has it once: consolidated.safetensors repeats the others under other names.
    loaded = {path: header for path, header in headers.items() if path != _CONSOLIDATED or len(headers) == 1}
    tensors = {tensor.name: tensor for header in loaded.values() for tensor in header.tensors}
    warnings = []
    if len(loaded) < len(headers):
        warnings.append(f"{_CONSOLIDATED} lies beside other weights: vLLM then reads only that file")
    indexed = [path for path in top_level(with_suffix(files, _INDEX_SUFFIX)) if not path.startswith("consolidated")]
    for path in indexed:
        warnings += _check_index(path, files[path], loaded)
    quantization = _quantization(files, config)
    check_tensors(tensors, quantization, CONFIG)
    if quantization:
        warnings += quantization.warnings
    holes = list(_holes(tensors, config))
    # A single file of the usual name is whole: then the architecture has layers without tensors of their own.
    if holes and quantization and not indexed and list(loaded) != [_SINGLE]:
        hint = "pull the whole repository: vLLM loads what is left of a quantized model without a word, and answers with rubbish"
        raise InvalidModelFile(CONFIG, "missing-layers", holes[0], hint=hint)
    warnings += holes
    traits = Traits(
        "safetensors",
        _architecture(config),
        quantization.name if quantization else _dominant_type(tensors),
        _count(tensors, quantization),
        _context_length(config),
    )
    return traits, warnings


def _check_index(path: str, place: Path, headers: Mapping[str, SafetensorsHeader]) -> list[str]:
    """Every file that the index names is there, and holds the tensors that the index says; warn of files that it does not name."""
    document = read_object(place, path, rule="index-json", limit=MAX_INDEX)
    places = section(document, "weight_map", path, "index-json")
    if not places:
        raise InvalidModelFile(path, "index-json", "has no weight_map")
    names = {file: {tensor.name for tensor in header.tensors} for file, header in headers.items()}
    for tensor, file in places.items():
        if not isinstance(file, str):
            raise InvalidModelFile(path, "index-json", f"the place of {tensor[:120]!r} is not a string")
        if file not in names:
            hint = "pull the whole repository: some engines load what is left without a word"
            raise InvalidModelFile(path, "missing-shard", f"names {file[:120]!r}, which is not there", hint=hint)
        if tensor not in names[file]:
            raise InvalidModelFile(path, "index-tensor", f"the tensor {tensor[:120]!r} is not in {file}, as it says")
    stray = sorted(file for file in names if file not in set(places.values()))
    return [f"{path} does not name {', '.join(stray[:5])}"] if stray else []


def _quantization(files: Mapping[str, Path], config: Mapping[str, Any]) -> Quantization | None:
    """Read all places that may describe a quantization; they must agree."""
    text = section(config, "text_config", CONFIG, _CONFIG_RULE) or {}
    sections = [
        section(config, "quantization_config", CONFIG, _CONFIG_RULE),
        section(config, "compression_config", CONFIG, _CONFIG_RULE),
        section(text, "quantization_config", CONFIG, _CONFIG_RULE),
    ]
    found = [(CONFIG, read_quantization(content, CONFIG)) for content in sections if content is not None]
    for name, method in _QUANTIZATION_FILES.items():
        if name in files:
            content = read_object(files[name], name, rule="quantization-json", limit=MAX_CONFIG)
            # AutoAWQ wrote either name; only GPTQ has desc_act.
            assumed = "awq" if method == "gptq" and "zero_point" in content and "desc_act" not in content else method
            found.append((name, read_quantization(content, name, assume=assumed)))
    for where, other in found[1:]:
        first_where, first = found[0]
        if not first.agrees_with(other):
            detail = f"says {other.name}, {first_where} says {first.name}"
            raise InvalidModelFile(where, "quantization-conflict", detail, hint="remove the file that is wrong")
    return found[0][1] if found else None


def _architecture(config: Mapping[str, Any]) -> str | None:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else config.get("model_type")
    return first if isinstance(first, str) else None


def _context_length(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    for table in (config, text if isinstance(text, dict) else {}):
        for key in _CONTEXT_KEYS:
            value = table.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_CONTEXT:
                return value
    return None


def _count(tensors: Mapping[str, TensorInfo], quantization: Quantization | None) -> int | None:
    if quantization and quantization.method in {"exl2", "exl3"}:
        return None  # the bits differ from layer to layer
    bits = quantization.bits if quantization and quantization.method in {"awq", "gptq", "compressed-tensors"} else None
    return count_parameters(tensors.values(), bits=bits) or None


def _dominant_type(tensors: Mapping[str, TensorInfo]) -> str | None:
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _code(files: Mapping[str, Path], repository: str | None) -> Iterator[str]:
    """Warn of code that the model needs to be run. Raises ``InvalidModelFile``."""
    references: list[CodeReference] = []
    for name in CODE_MAPS:
        if name not in files:
            continue
        try:
            references += read_code_map(read_document(files[name], name, rule=_CONFIG_RULE, limit=MAX_CODE_MAP))
        except ValueError as error:
            raise InvalidModelFile(name, _CONFIG_RULE, str(error)) from error
    needs = code_needs(references, files, repository)
    if needs.own:
        yield (
            f"it comes with code ({shorten(needs.own)}), which engines run only where that is allowed "
            "(--trust-remote-code): read it first"
        )
    if needs.lacking:
        yield f"it names code that is not there ({shorten(needs.lacking)}): engines load it only if they can do without"
    for other in needs.others:
        command = shlex.join(["modelvault", "pull", other, "--include", "*.py"])
        yield f"it needs code from another repository, {other}, which has to come along: `{command}`"


def _holes(tensors: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Iterator[str]:
    """Warn of missing layers. Without an index nothing says which tensors there should be; they are a sign of a missing file."""
    stacks: dict[str, set[int]] = {}
    for name in tensors:
        if match := _LAYER.fullmatch(name):
            stacks.setdefault(match[1], set()).add(int(match[2]))
    expected = config.get("num_hidden_layers")
    for stack, layers in sorted(stacks.items()):
        count = max(layers) + 1
        if stack == "model.layers" and isinstance(expected, int):
            count = max(count, min(expected, _MAX_LAYERS))
        missing = count - len(layers)
        if missing > 0 and count <= _MAX_LAYERS:
            yield f"{missing} of {count} layers in {stack[:120]} have no tensors: a file may be missing"
