"""Generate a few tokens from a GGUF file with the real llama.cpp: ``python scripts/generate.py MODEL.gguf PROMPT``."""

import json
import sys
from pathlib import Path

import xllamacpp


def generate(model: Path, prompt: str, *, tokens: int = 16) -> str:
    """Load the model on the CPU and complete the prompt greedily."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx = 256
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.verbosity = 0
    answer = xllamacpp.Server(parameters).handle_completions(
        {"prompt": prompt, "n_predict": tokens, "max_tokens": tokens, "temperature": 0}
    )
    if isinstance(answer, str):
        answer = json.loads(answer)
    text: str = answer["choices"][0]["text"] if "choices" in answer else answer["content"]
    return text


if __name__ == "__main__":
    model, prompt = Path(sys.argv[1]), sys.argv[2]
    text = generate(model, prompt)
    if not text:
        sys.exit(f"error: llama.cpp generated nothing from {model}")
    print(f"llama.cpp loaded {model}")
    print(f"  prompt:    {prompt!r}")
    print(f"  generated: {text!r}")
