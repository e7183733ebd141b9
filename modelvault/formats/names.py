"""The names that files beside the weights have in a repository, at its top level."""

import fnmatch
from collections.abc import Iterable

CONFIGS = ("config.json", "params.json", "adapter_config.json")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model*",
    "tokenizer_model*",
    "tekken.json",
    "*.tiktoken",
    "tiktoken.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece*.model",
)


def has_tokenizer(names: Iterable[str]) -> bool:
    """Tell whether one of the files is a tokenizer."""
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in _TOKENIZERS)
