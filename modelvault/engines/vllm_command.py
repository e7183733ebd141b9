"""The line that starts vLLM, for models in the hub's cache and in plain directories."""

import shlex
from collections.abc import Sequence

_QUIET = "HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1"


def serve(model: str, arguments: Sequence[str], settings: str = "") -> str:
    """Give the line that serves a model by name or path, offline and quiet; ``settings`` are more variables, each after a space."""
    return f"{_QUIET}{settings} {shlex.join(['vllm', 'serve', model, *arguments])}"
