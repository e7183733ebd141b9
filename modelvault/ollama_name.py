"""Names as Ollama gives them: ``[[host/]namespace/]model[:tag]``. Source: ``types/model/name.go`` of Ollama 0.24.0. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from modelvault.errors import UsageProblem

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"


@dataclass(frozen=True, slots=True)
class OllamaName:
    """A fully qualified name in an Ollama store or registry."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``[[host/]namespace/]model[:tag]``. Raises ``UsageProblem`` for what Ollama refuses, reserved tags among them."""
        rest, tag = text, DEFAULT_TAG
        if text.rfind(":") > text.rfind("/"):
            rest, _, tag = text.rpartition(":")
        parts = rest.split("/")
        defaults = [DEFAULT_HOST, DEFAULT_NAMESPACE]
        if len(parts) > len(defaults) + 1:
            raise _bad_name(text, "it has more than three parts")
        host, namespace, model = [*defaults[: 3 - len(parts)], *parts]
        fits = _HOST.fullmatch(host) and _NAMESPACE.fullmatch(namespace) and _PART.fullmatch(model)
        if not fits or not _PART.fullmatch(tag):
            raise _bad_name(
                text, "a part is empty, too long (80 characters) or holds characters that Ollama does not take"
            )
        if tag.lower() in {"cloud", "local"} or tag.lower().endswith("-cloud"):
            raise _bad_name(text, f"Ollama keeps the tag {tag!r} for itself")
        return cls(host, namespace, model, tag)

    def __str__(self) -> str:
        """Give the shortest form, as ``ollama list`` does."""
        parts = [self.host, self.namespace, self.model]
        if self.host.lower() == DEFAULT_HOST:
            parts = parts[1:] if self.namespace.lower() != DEFAULT_NAMESPACE else parts[2:]
        return "/".join(parts) + f":{self.tag}"

    @property
    def repository(self) -> str:
        """The name without its tag, in full: ``host/namespace/model``."""
        return f"{self.host}/{self.namespace}/{self.model}"

    @property
    def path(self) -> str:
        """Where the manifest lies below ``manifests/``."""
        return f"{self.repository}/{self.tag}"

    def folded_onto(self, existing: Iterable["OllamaName"]) -> "OllamaName":
        """Take the spelling that the store has already, part by part.

        Ollama's handlers fold each part onto *any* existing model's (``getExistingName``), in random order: two spellings of
        one part in a store make models come and go.
        """
        names = sorted(existing, key=lambda name: name.path)
        parts = {}
        for part in ("host", "namespace", "model", "tag"):
            mine = getattr(self, part)
            spelled = [getattr(name, part) for name in names if getattr(name, part).lower() == mine.lower()]
            parts[part] = mine if mine in spelled or not spelled else spelled[0]
        return replace(self, **parts)


def _bad_name(text: str, reason: str) -> UsageProblem:
    return UsageProblem(
        f"not a name that Ollama takes: {text[:120]!r}: {reason}", hint="choose one with --as, such as --as llama3.1:8b"
    )
