"""What is known of the quantizations of GGUF by their names: how many bits a weight takes, and what they are good for.

``bits`` are those of Llama 3.1 8B as llama.cpp quantizes it (its ``tools/quantize/README.md``), metadata and the larger types of
some tensors included; small models with large vocabularies take more.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quantization:
    """One quantization: bits per weight in a model of ordinary shape, and a judgement of one line."""

    bits: float
    judgement: str


QUANTIZATIONS = {
    "F32": Quantization(32.0, "unquantized, twice as large as need be"),
    "F16": Quantization(16.0, "unquantized"),
    "BF16": Quantization(16.0, "unquantized, as most models are trained"),
    "Q8_0": Quantization(8.5, "as good as unquantized; large"),
    "Q6_K": Quantization(6.56, "very near the original"),
    "Q5_K_M": Quantization(5.7, "high quality, where there is room"),
    "Q5_K_S": Quantization(5.57, "high quality, a little smaller"),
    "Q5_1": Quantization(6.0, "old; Q5_K_M is better and smaller"),
    "Q5_0": Quantization(5.5, "old; Q5_K_S is better"),
    "Q4_K_M": Quantization(4.89, "good balance; the usual choice"),
    "Q4_K_S": Quantization(4.67, "a little smaller and worse than Q4_K_M"),
    "Q4_1": Quantization(5.1, "old; Q4_K_M is better and smaller"),
    "Q4_0": Quantization(4.66, "old, but fast on ARM processors"),
    "IQ4_NL": Quantization(4.68, "like Q4_K_S; fast on ARM processors"),
    "IQ4_XS": Quantization(4.46, "near Q4_K_S, smaller; slow on processors"),
    "Q3_K_XL": Quantization(4.6, "Q3_K_L with finer embeddings"),
    "Q3_K_L": Quantization(4.3, "noticeably worse; where Q4 has no room"),
    "Q3_K_M": Quantization(4.0, "noticeably worse; where Q4 has no room"),
    "Q3_K_S": Quantization(3.64, "low quality; IQ3_M is better"),
    "IQ3_M": Quantization(3.76, "low quality, good for its size"),
    "IQ3_S": Quantization(3.66, "low quality, good for its size"),
    "IQ3_XS": Quantization(3.5, "low quality, better than Q3_K_S"),
    "IQ3_XXS": Quantization(3.25, "low quality, good for its size"),
    "Q2_K": Quantization(3.16, "very low quality; for very large models"),
    "Q2_K_S": Quantization(2.97, "very low quality; for very large models"),
    "IQ2_M": Quantization(2.93, "very low quality; for very large models"),
    "IQ2_S": Quantization(2.74, "very low quality; for very large models"),
    "IQ2_XS": Quantization(2.59, "very low quality; for very large models"),
    "IQ2_XXS": Quantization(2.38, "very low quality; for very large models"),
    "IQ1_M": Quantization(2.15, "hardly usable; a last resort"),
    "IQ1_S": Quantization(2.0, "hardly usable; a last resort"),
    "TQ2_0": Quantization(2.06, "only for models that were trained ternary"),
    "TQ1_0": Quantization(1.69, "only for models that were trained ternary"),
    "MXFP4": Quantization(4.25, "as gpt-oss was trained"),
    "MXFP4_MOE": Quantization(4.25, "as gpt-oss was trained"),
}
"""By the name that file names use."""

UNQUANTIZED = frozenset({"F32", "F16", "BF16", "FP32", "FP16"})
"""Names of weights as they were trained, or wider."""

USUAL = "Q4_K_M"
"""What most people take where they have the choice."""

_ALIASES = {"FP16": "F16", "FP32": "F32", "Q2_K_XS": "Q2_K_S", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # fmt: skip
_DYNAMIC = "UD-"
_FINER = ("_L", "_XL")  # as Q4_K_L: embeddings and output in a finer type than in Q4_K_M


def judge(name: str) -> str:
    """Give a judgement of one line; empty for a name that says nothing."""
    plain = name.removeprefix(_DYNAMIC)
    known = QUANTIZATIONS.get(_ALIASES.get(plain, plain))
    if known is not None and plain == name:
        return known.judgement
    base = next((plain.removesuffix(end) for end in _FINER if plain.endswith(end)), plain)
    near = next((near for near in (base + "_M", base) if near in QUANTIZATIONS), None)
    if plain != name:  # Unsloth's, which keep important layers in more bits
        return f"{near or plain} with more bits where they matter" if near or known else ""
    return f"{near} with finer embeddings" if near else ""


def nominal_bits(name: str) -> float | None:
    """Give the bits per weight that a quantization of this name usually has; ``None`` if it is not known."""
    plain = name.removeprefix(_DYNAMIC)
    known = QUANTIZATIONS.get(_ALIASES.get(plain, plain))
    return known.bits if known else None
