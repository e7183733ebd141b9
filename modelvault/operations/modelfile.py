"""Reading the Modelfile that a user names."""

import codecs
from pathlib import Path

from modelvault import fsio
from modelvault.errors import UsageProblem

_LIMIT = 1 << 20  # bytes


def read_modelfile(path: Path) -> str:
    """Read an Ollama Modelfile: UTF-8, or UTF-16 with its mark in front. Raises ``UsageProblem`` if it cannot be read or is no text."""
    hint = "name an Ollama Modelfile"
    try:
        data = fsio.read_regular(path.expanduser(), limit=_LIMIT)
        return data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8")
    except UnicodeDecodeError as error:
        raise UsageProblem(f"{path} is not UTF-8 text", hint=hint) from error
    except (fsio.NotRegular, fsio.TooLarge) as error:
        raise UsageProblem(error.message, hint=hint) from error
    except OSError as error:
        raise UsageProblem(f"{path}: {(error.strerror or str(error)).lower()}", hint=hint) from error
