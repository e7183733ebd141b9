"""Reading ``quantization_config``, and counting what was quantized."""

from typing import Any

import pytest

from modelvault.artifact import TensorInfo
from modelvault.errors import InvalidModelFile
from modelvault.inspect.quantization import check_tensors, count_parameters, read_quantization

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def tensor(name: str, dtype: str, *shape: int) -> TensorInfo:
    return TensorInfo(name, dtype, shape, 0, 0)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (AWQ, "AWQ 4-bit g128"),
        (AWQ | {"group_size": -1}, "AWQ 4-bit per-channel"),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "zero_point": False}, "AWQ 4-bit g64"),
        (GPTQ, "GPTQ 4-bit g128"),
        (GPTQ | {"bits": 8, "group_size": -1}, "GPTQ 8-bit per-channel"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "FP8"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "exl2", "bits": 4.65}, "EXL2 4.65 bpw"),
        ({"quant_method": "exl3", "bits": 3.0}, "EXL3 3 bpw"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 8-bit"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt NVFP4"),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}, "ModelOpt FP8"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}}},
            },
            "compressed-tensors W4A16 g128",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {"weights": {"num_bits": 8, "type": "float"}, "input_activations": {"num_bits": 8}}
                },
            },
            "compressed-tensors FP8",
        ),
    ],
)
def test_canonical_names(content: dict[str, Any], name: str) -> None:
    """If it fails, ``list`` and ``show`` call a quantization by a wrong name."""
    assert read_quantization(content, "config.json").name == name


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ({"bits": 4, "group_size": 128}, "quantization-method"),
        ({"quant_method": 7}, "quantization-method"),
        (AWQ | {"bits": 8}, "quantization-awq"),
        (AWQ | {"bits": True}, "quantization-awq"),
        (AWQ | {"group_size": 48}, "quantization-awq"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "quantization-awq"),
        (GPTQ | {"bits": 5}, "quantization-gptq"),
        (GPTQ | {"group_size": 0}, "quantization-gptq"),
        ({"quant_method": "gptq", "bits": 4}, "quantization-gptq"),
        (GPTQ | {"desc_act": "no"}, "quantization-gptq"),
    ],
)
def test_what_no_loader_takes_is_refused(content: dict[str, Any], rule: str) -> None:
    """If it fails, a model that generates rubbish or does not load crosses the gap."""
    with pytest.raises(InvalidModelFile) as caught:
        read_quantization(content, "config.json")
    assert caught.value.rule == rule


@pytest.mark.parametrize("content", [GPTQ | {"bits": 3}, GPTQ | {"sym": False}, {"quant_method": "exl2"}])
def test_what_only_some_engines_take_is_a_warning(content: dict[str, Any]) -> None:
    """If it fails, the user learns only on the isolated side that vLLM does not load the model."""
    assert "vLLM" in read_quantization(content, "config.json").warnings[0]


@pytest.mark.parametrize("bits", [None, 4])
def test_packed_weights_are_counted_unpacked(bits: int | None) -> None:
    """If it fails, an AWQ model of 70B parameters is listed as one of 10B."""
    tensors = [
        tensor("a.qweight", "I32", 256, 64),
        tensor("a.qzeros", "I32", 2, 64),
        tensor("a.scales", "F16", 2, 512),
        tensor("norm.weight", "F16", 256),
    ]
    assert count_parameters(tensors, bits=bits) == 256 * 512 + 256


def test_bits_are_inferred_from_the_shapes() -> None:
    """If it fails, an 8-bit GPTQ file inspected alone is listed with twice its parameters."""
    tensors = [
        tensor("a.qweight", "I32", 64, 512),
        tensor("a.qzeros", "I32", 2, 128),
        tensor("a.scales", "F16", 2, 512),
        tensor("a.g_idx", "I32", 256),
    ]
    assert count_parameters(tensors) == 256 * 512


def test_other_packings() -> None:
    """If it fails, scales are counted as parameters, or two weights in a byte as one."""
    tensors = [
        tensor("a.weight_packed", "I32", 512, 32),
        tensor("a.weight_scale", "BF16", 512, 2),
        tensor("a.weight_shape", "I64", 2),
        tensor("b.weight", "F8_E4M3", 16, 16),
        tensor("b.weight_scale_inv", "F32", 1, 1),
        tensor("experts.down_proj_blocks", "U8", 2, 8, 16),
        tensor("experts.down_proj_scales", "U8", 2, 8),
        tensor("c.weight", "U8", 16, 8),
        tensor("c.weight_scale_2", "F32", 1),
    ]
    assert count_parameters(tensors, bits=4) == 512 * 32 * 8 + 256 + 2 * 8 * 16 * 2 + 256


def _tensors(*tensors: TensorInfo) -> dict[str, TensorInfo]:
    return {item.name: item for item in tensors}


WEIGHT, ZEROS, SCALES = (
    tensor("a.qweight", "I32", 256, 64),
    tensor("a.qzeros", "I32", 2, 64),
    tensor("a.scales", "F16", 2, 512),
)


@pytest.mark.parametrize(
    ("rule", "content", "tensors"),
    [
        ("quantization-missing", None, [WEIGHT, ZEROS, SCALES]),
        ("quantization-tensors", AWQ, [tensor("a.weight", "F16", 256, 512)]),
        ("quantization-tensors", AWQ, [WEIGHT, SCALES]),
        ("quantization-tensors", AWQ, [WEIGHT, ZEROS]),
        ("quantization-tensors", AWQ | {"group_size": 64}, [WEIGHT, ZEROS, SCALES]),
        ("quantization-tensors", AWQ, [tensor("a.qweight", "I32", 256, 32), ZEROS, SCALES]),
        ("quantization-tensors", GPTQ, [WEIGHT, ZEROS]),
    ],
)
def test_tensors_that_contradict_the_configuration(
    rule: str, content: dict[str, Any] | None, tensors: list[TensorInfo]
) -> None:
    """If it fails, packed weights without a configuration, or half of a layer, pass for a model."""
    quantization = read_quantization(content, "config.json") if content else None
    with pytest.raises(InvalidModelFile) as caught:
        check_tensors(_tensors(*tensors), quantization, "config.json")
    assert caught.value.rule == rule


def test_tensors_that_match_pass() -> None:
    """If it fails, sound AWQ and unquantized models are refused."""
    check_tensors(_tensors(WEIGHT, ZEROS, SCALES), read_quantization(AWQ, "config.json"), "config.json")
    check_tensors(_tensors(tensor("a.weight", "F16", 2, 2)), None, "config.json")
