"""The API that most engines share, after OpenAI's: ``/v1/models``, ``/v1/completions``, ``/v1/chat/completions``.

vLLM, llama.cpp, TGI, SGLang, TabbyAPI and text-generation-webui speak it, each with its own way to fail.
"""

import http.client
import json
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from modelvault.engines.completion import Completion, Stopwatch
from modelvault.engines.http_client import Server, decoded, error_in
from modelvault.errors import EngineRefused

_NOT_THERE = {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}
_DATA = b"data:"
_END = b"[DONE]"


class OpenAiClient:
    """One server. Every method raises ``EngineRefused``."""

    def __init__(self, server: Server) -> None:
        """Speak with ``server``."""
        self._server = server

    def models(self) -> tuple[str, ...]:
        """List the names by which the server knows its models."""
        answer = self._server.json("GET", "/v1/models")
        listed = answer.get("data")
        if not isinstance(listed, list):
            raise EngineRefused(
                f"{self._server.where} gives no list of models at /v1/models{_because(answer)}",
                hint="is that the address of an engine, and of its API?",
            )
        return tuple(entry["id"] for entry in listed if isinstance(entry, dict) and isinstance(entry.get("id"), str))

    def complete(self, model: str, prompt: str, tokens: int) -> Completion:
        """Have a prompt completed; where the server only chats, answered."""
        asked = {
            "model": model,
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        done = self._stream("/v1/completions", {**asked, "prompt": prompt}, or_chat=True)
        if done is None:
            chat = {**asked, "messages": [{"role": "user", "content": prompt}]}
            done = self._stream("/v1/chat/completions", chat, or_chat=False)
        return done or Stopwatch().stop()

    def _stream(self, path: str, body: Mapping[str, Any], *, or_chat: bool) -> Completion | None:
        """Listen to one completion; ``None`` where the server has no such thing and ``or_chat`` may be tried."""
        watch = Stopwatch()
        count: int | None = None
        with self._server.asked("POST", path, json.dumps(body).encode()) as answer:
            if or_chat and answer.status in _NOT_THERE:
                return None
            if answer.status != HTTPStatus.OK:
                raise self._server.refused(answer)
            for said in self._documents(answer):
                if error := error_in(said):
                    raise EngineRefused(f"{self._server.where} broke off: {error}", hint="look at the server's log")
                watch.hear(_text(said))
                usage = said.get("usage")
                told = usage.get("completion_tokens") if isinstance(usage, dict) else None
                count = told if type(told) is int and told > 0 else count
        return watch.stop(count)

    def _documents(self, answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
        """Give the documents of a stream of events; a server that does not stream sends one and nothing else."""
        if not (answer.getheader("Content-Type") or "").startswith("text/event-stream"):
            yield self._server.whole(answer)
            return
        for line in self._server.lines(answer):
            data = line.removeprefix(_DATA).strip()
            if data == _END:
                return
            # Between events servers send empty lines, comments to keep the connection, and the names of events.
            if line.startswith(_DATA) or data.startswith(b"{"):
                yield decoded(data)


def _because(answer: Mapping[str, Any]) -> str:
    said = error_in(answer)
    return f": {said}" if said else ""


def _text(said: Mapping[str, Any]) -> str:
    """Find the piece of text in one document; what a model thinks counts as well as what it says."""
    choices = said.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return ""
    message = choice.get("delta") or choice.get("message")
    message = message if isinstance(message, dict) else {}
    pieces = (choice.get("text"), *(message.get(key) for key in ("reasoning_content", "reasoning", "content")))
    return "".join(piece for piece in pieces if isinstance(piece, str))
