"""What ``quantization_config`` says, and what follows from it for the tensors.

The rules are those of the loaders: vLLM's ``model_executor/layers/quantization`` and AutoAWQ's and GPTQModel's configurations.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from modelvault.artifact import TensorInfo
from modelvault.errors import InvalidModelFile

AWQ_BITS = 4
AWQ_GROUPS = (-1, 32, 64, 128)
GPTQ_BITS = (2, 3, 4, 8)
VLLM_GPTQ_BITS = (4, 8)


_FP8_BITS = 8
_MATRIX = 2  # dimensions


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a repository is quantized: the raw method, a canonical name for people, bits and group size where they are known."""

    method: str
    name: str
    bits: int | None = None
    group: int | None = None
    warnings: tuple[str, ...] = field(default=())

    def agrees_with(self, other: "Quantization") -> bool:
        """Tell whether two files could describe the same weights; what one of them does not say is no contradiction."""
        same = self.method.partition("_")[0] == other.method.partition("_")[0]  # modelopt, modelopt_fp4
        return same and all(
            mine is None or theirs is None or mine == theirs
            for mine, theirs in ((self.bits, other.bits), (self.group, other.group))
        )


@dataclass(frozen=True, slots=True)
class _Section:
    """A quantization section and where it stands, for errors."""

    content: Mapping[str, Any]
    where: str

    def fail(self, rule: str, detail: str) -> NoReturn:
        raise InvalidModelFile(self.where, rule, detail, hint="ask the publisher for a repository that loads")

    def integer(self, *keys: str) -> int | None:
        value = next((self.content[key] for key in keys if key in self.content), None)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def text(self, *keys: str) -> str | None:
        value = next((self.content[key] for key in keys if key in self.content), None)
        return value if isinstance(value, str) else None


def read_quantization(content: Mapping[str, Any], where: str, *, assume: str | None = None) -> Quantization:
    """Read a quantization section of the file ``where``; ``assume`` is the method of a file whose name implies it.

    Raises ``InvalidModelFile``: ``quantization-method`` where none is named (engines then take the packed weights for plain ones),
    ``quantization-awq`` and ``quantization-gptq`` for what no loader of those takes.
    """
    section = _Section(content, where)
    method = section.text("quant_method") or assume
    if not method:
        section.fail(
            "quantization-method", "quantization_config names no quant_method: engines would load it as unquantized"
        )
    reader = _METHODS.get(method.lower().replace("_", "-"))
    return (
        reader(section)
        if reader
        else Quantization(method, method, section.integer("bits"), section.integer("group_size"))
    )


def _group_suffix(group: int) -> str:
    return " per-channel" if group == -1 else f" g{group}"


def _awq(section: _Section) -> Quantization:
    bits, group = section.integer("w_bit", "bits"), section.integer("q_group_size", "group_size")
    if bits != AWQ_BITS:
        section.fail("quantization-awq", f"AWQ has 4 bits, this one says {bits}")
    if group not in AWQ_GROUPS:
        section.fail("quantization-awq", f"AWQ has a group_size of -1, 32, 64 or 128, this one says {group}")
    if not isinstance(section.content.get("zero_point"), bool):
        section.fail("quantization-awq", "AWQ must say whether it has a zero_point")
    return Quantization("awq", f"AWQ 4-bit{_group_suffix(group)}", bits, group)


def _gptq(section: _Section) -> Quantization:
    bits, group = section.integer("bits"), section.integer("group_size")
    if bits not in GPTQ_BITS:
        section.fail("quantization-gptq", f"GPTQ has 2, 3, 4 or 8 bits, this one says {bits}")
    if group is None or group < -1 or group == 0:
        section.fail("quantization-gptq", f"GPTQ needs a group_size, this one says {group}")
    if not isinstance(section.content.get("desc_act", False), bool):
        section.fail("quantization-gptq", "desc_act is not a truth value")
    warnings = []
    if bits not in VLLM_GPTQ_BITS:
        warnings.append(f"vLLM takes GPTQ of 4 or 8 bits, not of {bits}")
    if section.content.get("sym", True) is not True:
        warnings.append("vLLM takes symmetric GPTQ only")
    return Quantization("gptq", f"GPTQ {bits}-bit{_group_suffix(group)}", bits, group, tuple(warnings))


def _compressed_tensors(section: _Section) -> Quantization:
    groups = section.content.get("config_groups")
    first = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = first.get("weights") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(weights, dict):
        return Quantization("compressed-tensors", "compressed-tensors")
    inner = _Section(weights, section.where)
    bits, group = inner.integer("num_bits"), inner.integer("group_size")
    inputs = first.get("input_activations")
    activations = _Section(inputs, section.where).integer("num_bits") if isinstance(inputs, dict) else None
    if inner.text("type") == "float" and bits == activations == _FP8_BITS:
        scheme = " FP8"
    else:
        scheme = f" W{bits}A{activations or 16}" if bits else ""
    name = f"compressed-tensors{scheme}{f' g{group}' if group and group > 0 else ''}"
    return Quantization("compressed-tensors", name, bits, group)


def _fp8(_section: _Section) -> Quantization:
    return Quantization("fp8", "FP8", bits=_FP8_BITS)


def _modelopt(section: _Section) -> Quantization:
    inner = section.content.get("quantization")
    algorithm = section.text("quant_algo")
    if algorithm is None and isinstance(inner, dict):
        algorithm = _Section(inner, section.where).text("quant_algo")
    return Quantization("modelopt", f"ModelOpt {algorithm}" if algorithm else "ModelOpt")


def _mxfp4(_section: _Section) -> Quantization:
    return Quantization("mxfp4", "MXFP4", bits=4)


def _exllama(section: _Section) -> Quantization:
    method = str(section.text("quant_method")).lower()
    bits = section.content.get("bits")
    rate = f" {bits:g} bpw" if isinstance(bits, int | float) and not isinstance(bits, bool) else ""
    warning = f"vLLM does not take {method.upper()}; ExLlama and TabbyAPI do"
    return Quantization(method, f"{method.upper()}{rate}", warnings=(warning,))


def _bitsandbytes(section: _Section) -> Quantization:
    eight = section.content.get("load_in_8bit") is True or section.content.get("_load_in_8bit") is True
    bits = 8 if eight else 4
    warning = "vLLM 0.33 no longer takes bitsandbytes"
    return Quantization("bitsandbytes", f"bitsandbytes {bits}-bit", bits, warnings=(warning,))


_METHODS: Mapping[str, Callable[[_Section], Quantization]] = {
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "modelopt": _modelopt,
    "modelopt-fp4": _modelopt,
    "mxfp4": _mxfp4,
    "exl2": _exllama,
    "exl3": _exllama,
    "bitsandbytes": _bitsandbytes,
}

# What stands beside packed weights and is no parameter of the model: scales, zero points, orders, and packed shapes.
_AUXILIARY = (
    "scales",
    "qzeros",
    "g_idx",
    "scale",
    "scale_inv",
    "weight_scale",
    "weight_scale_2",
    "weight_scale_inv",
    "weight_global_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
    "input_scale",
    "input_global_scale",
    "activation_scale",
    "output_scale",
    "k_scale",
    "v_scale",
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "invperm",
    "q_perm",
    "q_invperm",
    "q_scale",
    "q_scale_max",
    "q_groups",
)
_DEFAULT_BITS = 4


def count_parameters(tensors: Iterable[TensorInfo], *, bits: int | None = None) -> int:
    """Sum the elements of all tensors as they were before quantization.

    ``bits`` is what the configuration says; without it, it is inferred from the shapes of scales and zero points (AWQ, GPTQ).
    """
    table = {tensor.name: tensor for tensor in tensors}
    return sum(_parameters(tensor, table, bits) for tensor in table.values())


def _parameters(tensor: TensorInfo, table: Mapping[str, TensorInfo], bits: int | None) -> int:
    elements = math.prod(tensor.shape)
    stem, _, last = tensor.name.rpartition(".")
    if last in _AUXILIARY or last.startswith("quant_state") or last.endswith(("_scales", "_scale_inv")):
        return 0
    if last in {"qweight", "weight_packed"} and tensor.dtype in {"I32", "U32"}:
        return elements * 32 // (bits or _packed_bits(stem, table))
    if tensor.dtype == "U8" and (last.endswith(("_blocks", "_packed")) or f"{stem}.weight_scale_2" in table):
        return elements * 2  # MXFP4 and NVFP4: two to a byte
    return elements


def _packed_bits(stem: str, table: Mapping[str, TensorInfo]) -> int:
    """Infer the bits of packed weights: zero points are packed like them, scales are not."""
    zeros, scales = table.get(f"{stem}.qzeros"), table.get(f"{stem}.scales")
    if zeros is None or scales is None or not zeros.shape or not scales.shape or not scales.shape[-1]:
        return _DEFAULT_BITS
    bits = 32 * zeros.shape[-1] // scales.shape[-1]
    return bits if bits in GPTQ_BITS else _DEFAULT_BITS


def check_tensors(tensors: Mapping[str, TensorInfo], quantization: Quantization | None, where: str) -> None:
    """Hold the tensors of a whole repository against its configuration ``where``; a missing shard shows here too.

    Raises ``InvalidModelFile``: ``quantization-missing`` for packed weights that no configuration announces,
    ``quantization-tensors`` for announced ones that are absent, incomplete or of other dimensions.
    """
    packed = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    if packed and quantization is None:
        raise InvalidModelFile(
            where,
            "quantization-missing",
            "the weights are packed (qweight), but there is no quantization_config",
            hint="engines would take them for unquantized ones; ask the publisher for the missing configuration",
        )
    if quantization is None or quantization.method not in {"awq", "gptq"}:
        return
    if not packed:
        name = quantization.name
        raise InvalidModelFile(where, "quantization-tensors", f"announces {name}, but no tensor is named qweight")
    parts = ("scales", "qzeros") if quantization.method == "awq" else ("scales",)
    for stem in packed:
        for part in parts:
            if f"{stem}.{part}" not in tensors:
                detail = f"{stem}.qweight is there, {stem}.{part} is not"
                raise InvalidModelFile(where, "quantization-tensors", detail, hint="a shard may be missing")
        if quantization.method == "awq":
            _check_awq_shapes(stem, tensors, quantization, where)


def _check_awq_shapes(stem: str, tensors: Mapping[str, TensorInfo], quantization: Quantization, where: str) -> None:
    """``qweight`` is (inputs, outputs / 8), ``scales`` is (inputs / group, outputs)."""
    weight, scales = tensors[f"{stem}.qweight"].shape, tensors[f"{stem}.scales"].shape
    if len(weight) != _MATRIX or len(scales) != _MATRIX:
        return  # stacked experts have shapes of their own
    group = weight[0] if quantization.group in {None, -1} else quantization.group
    if weight[1] * 8 != scales[1] or group is None or scales[0] * group != weight[0]:
        detail = f"{stem} has a qweight of {weight} and scales of {scales}, which is not {quantization.name}"
        raise InvalidModelFile(where, "quantization-tensors", detail)
