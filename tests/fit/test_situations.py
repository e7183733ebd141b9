"""The questions that people ask, with the hardware they have."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from known_shapes import QWEN_3B, QWEN_7B, llama_70b

from modelvault.fit.answer import Answer, Question, Verdict, answer, together
from modelvault.fit.cards import parse_gpus
from modelvault.fit.shape import Shape

Q4_K_M, Q5_K_M, Q8_0, F16, AWQ = 42.5, 49.9, 75.0, 141.1, 39.8
QUANTS = (("Q2_K", int(26.4e9)), ("IQ2_XXS", int(19.1e9)), ("Q4_K_M", int(42.5e9)))


def ask(shape: Shape, engine: str, gpus: Sequence[str], **more: object) -> Answer:
    return answer(Question(shape, engine, parse_gpus(gpus), **more))  # type: ignore[arg-type]


def test_70b_on_one_4090() -> None:
    """Forty gigabytes for a card of 24: said before the pull, with what would do instead."""
    reply = ask(llama_70b(Q4_K_M), "llamacpp", ["4090"], quants=QUANTS)
    assert reply.verdict is Verdict.PARTLY
    assert 35 <= (reply.gpu_layers or 0) <= 48
    assert reply.all_layers == 81
    assert any(other.startswith("IQ2_XXS") for other in reply.instead)
    assert "2 cards of this kind" in reply.instead


def test_70b_awq_on_two_v100() -> None:
    """A V100 loads AWQ nowhere; GGUF runs there."""
    reply = ask(llama_70b(AWQ), "vllm", ["2xv100-32"], method="awq")
    assert reply.verdict is Verdict.REFUSED
    assert "7.5" in reply.headline
    assert any("GGUF" in other for other in reply.instead)
    assert ask(llama_70b(Q4_K_M), "llamacpp", ["2xv100-32"], context=8192).verdict is Verdict.FITS
    assert ask(llama_70b(Q8_0), "llamacpp", ["2xv100-32"]).verdict is Verdict.PARTLY


@pytest.mark.parametrize("context", [4096, 8192])
def test_70b_awq_on_one_a100(context: int) -> None:
    """The length and the number of conversations are what the user has to pass on."""
    reply = ask(llama_70b(AWQ), "vllm", ["a100-80"], method="awq", context=context)
    assert reply.verdict is Verdict.FITS
    assert reply.longest > 65_536
    assert (reply.concurrency or 0) > 8


def test_70b_at_full_precision() -> None:
    """One A100 is too small, two are tight."""
    one = ask(llama_70b(F16), "vllm", ["a100-80"])
    assert one.verdict is Verdict.NOT
    assert "2 cards of this kind" in one.instead
    two = ask(llama_70b(F16), "vllm", ["2xa100-80"], context=4096)
    assert two.verdict is Verdict.FITS
    assert two.parallel == 2
    assert (two.concurrency or 99) < 10


def test_two_models_on_six_gigabytes() -> None:
    """The smaller one whole, and the number of layers of the other."""
    question = Question(QWEN_3B, "llamacpp", parse_gpus(["4050"]), context=4096)
    (_, three), (_, seven) = together([("3b", QWEN_3B), ("7b", QWEN_7B)], question)
    assert three.verdict is Verdict.FITS
    assert seven.verdict is Verdict.PARTLY
    assert 0 < (seven.gpu_layers or 0) < (seven.all_layers or 0)


def test_two_models_in_main_memory() -> None:
    """Each fits alone, but they share the memory."""
    question = Question(QWEN_3B, "llamacpp", parse_gpus(["cpu-64"]), context=4096)
    replies = [reply for _, reply in together([("a", llama_70b(Q4_K_M)), ("b", llama_70b(Q4_K_M))], question)]
    assert sorted(reply.verdict for reply in replies) == sorted([Verdict.FITS, Verdict.NOT])


def test_a_card_that_was_detected_is_computed_as_the_one_that_is_named() -> None:
    """What nvidia-smi calls an A100 gets the batches of one."""
    question = Question(llama_70b(AWQ), "vllm", parse_gpus(["a100-80"]), method="awq")
    detected = tuple(replace(device, name="A100-SXM4-80GB") for device in question.devices)
    named, found = answer(question), answer(replace(question, devices=detected))
    assert [load.parts for load in named.loads] == [load.parts for load in found.loads]


@pytest.mark.parametrize("size", [Q4_K_M, Q5_K_M])
def test_70b_on_a_mac(size: float) -> None:
    """Unified memory is shared with the system; above three quarters macOS has to be told."""
    reply = ask(llama_70b(size), "llamacpp", ["mac-64"], context=8192)
    assert reply.verdict is Verdict.FITS
    assert any("iogpu.wired_limit_mb" in note for note in reply.notes) == (size == Q5_K_M)
    assert ask(llama_70b(Q8_0), "llamacpp", ["mac-64"]).verdict is Verdict.NOT


def test_many_users_on_ollama() -> None:
    """Ten people at once wait in a queue; that has to be said."""
    reply = ask(QWEN_3B, "ollama", ["4090"], users=10, context=2048)
    assert any("vLLM" in note for note in reply.notes)
    assert not any("vLLM" in note for note in ask(QWEN_3B, "ollama", ["4090"], context=2048).notes)


def test_an_unknown_architecture_says_so() -> None:
    """Weights are exact whatever the architecture; the rest must not be made up."""
    strange = Shape(
        "strange", QWEN_3B.layers, 1, 1, False, 1, 1, 1, 1, unknown=("the cache of the architecture strange",)
    )
    reply = ask(strange, "llamacpp", ["4090"])
    assert any("the cache of the architecture strange" in note for note in reply.notes)
    assert {part.name: part.exact for part in reply.loads[0].parts}["cache"] is False


def test_what_takes_no_cache_fits_where_its_weights_do() -> None:
    """A model without attention, or one whose cache cannot be told, is not refused for that."""
    without = replace(QWEN_3B, layers=tuple(replace(layer, attention=None) for layer in QWEN_3B.layers))
    reply = ask(without, "vllm", ["a100-80"])
    assert (reply.verdict, reply.concurrency) == (Verdict.FITS, None)
    assert ask(without, "vllm", ["a100-80"], users=500).verdict is Verdict.FITS
    assert ask(replace(without, output_weights=90 * 10**9), "vllm", ["a100-80"]).verdict is Verdict.NOT


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_longer_context_than_the_models_own(engine: str) -> None:
    """These engines end at once when they are told so; llama.cpp goes on, and is only warned of."""
    reply = ask(replace(QWEN_3B, context=32768), engine, ["a100-80"], context=65536)
    assert reply.verdict is Verdict.REFUSED
    assert reply.instead == ("32,768 tokens of context",)
    assert ask(replace(QWEN_3B, context=32768), "llamacpp", ["a100-80"], context=65536).verdict is Verdict.FITS


def test_each_engine_refuses_by_its_own_name() -> None:
    """What vLLM does not load another engine may, and nobody is told of an engine that he did not ask about."""
    question = Question(QWEN_3B, "tgi", parse_gpus(["4090"]), method="exl2")
    assert answer(question).verdict is Verdict.FITS
    refused = answer(replace(question, engine="sglang", refused="SGLang cannot load EXL2"))
    assert (refused.verdict, refused.headline) == (Verdict.REFUSED, "SGLang cannot load EXL2")
    assert answer(replace(question, engine="sglang", devices=parse_gpus(["cpu-64"]))).headline.startswith("SGLang")
