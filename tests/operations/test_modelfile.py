"""The Modelfile that a user names."""

from pathlib import Path

import pytest

from modelvault.errors import UsageProblem
from modelvault.operations.modelfile import read_modelfile

TEXT = "SYSTEM \N{WAVING HAND SIGN}\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    """Editors on Windows write UTF-16, or UTF-8 with a mark in front; Ollama reads them, and so must we."""
    path = tmp_path / "Modelfile"
    path.write_bytes(TEXT.encode(encoding))
    assert read_modelfile(path).removeprefix("\ufeff") == TEXT


@pytest.mark.parametrize("data", [b"SYSTEM a\xff\n", b"\xff\xfeS", b"\xfe\xff\xd8\x00"])
def test_what_is_no_text(tmp_path: Path, data: bytes) -> None:
    """A GGUF named by mistake must end in words."""
    path = tmp_path / "Modelfile"
    path.write_bytes(data)
    with pytest.raises(UsageProblem, match="not UTF-8 text"):
        read_modelfile(path)
