"""Generate a few tokens from a GGUF file with the real llama.cpp: ``python scripts/generate.py MODEL.gguf PROMPT [TOKENS]``."""

import json
import os
import sys

import xllamacpp


def load(model: str) -> xllamacpp.Server:
    """Load the model on the CPU."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.n_ctx = 256
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.verbosity = 0
    return xllamacpp.Server(parameters)


def complete(server: xllamacpp.Server, prompt: str, tokens: int) -> str:
    """Complete the prompt greedily."""
    answer = server.handle_completions({"prompt": prompt, "n_predict": tokens, "max_tokens": tokens, "temperature": 0})
    if isinstance(answer, str):
        answer = json.loads(answer)
    text: str = answer["choices"][0]["text"] if "choices" in answer else answer["content"]
    return text


if __name__ == "__main__":
    model, prompt, *more = sys.argv[1:]
    server = load(model)
    text = complete(server, prompt, int(more[0]) if more else 16)
    if text:
        print(f"llama.cpp loaded {model}")
        print(f"  prompt:    {prompt!r}")
        print(f"  generated: {text!r}", flush=True)
    else:
        print(f"error: llama.cpp generated nothing from {model}", file=sys.stderr, flush=True)
    os._exit(0 if text else 1)  # not by way of the server's destructor, which may wait for ever
