"""Reading the Modelfile that a user names."""

from pathlib import Path

from modelvault import fsio
from modelvault.errors import UsageProblem

_LIMIT = 1 << 20  # bytes


def read_modelfile(path: Path) -> str:
    """Read an Ollama Modelfile. Raises ``UsageProblem`` if it cannot be read or is no text."""
    hint = "name an Ollama Modelfile"
    try:
        return fsio.read_regular(path.expanduser(), limit=_LIMIT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageProblem(f"{path} is not UTF-8 text", hint=hint) from error
    except (fsio.NotRegular, fsio.TooLarge) as error:
        raise UsageProblem(error.message, hint=hint) from error
    except OSError as error:
        raise UsageProblem(f"{path}: {(error.strerror or str(error)).lower()}", hint=hint) from error
