"""Which code of a request's model an engine on transformers would run, by the files that are in the vault."""

from collections.abc import Callable, Iterable
from pathlib import Path

from modelvault import fsio
from modelvault.artifact import Digest, Model
from modelvault.engines.base import InstallRecord, InstallRequest
from modelvault.engines.hub_cache import COMMIT, folder_of, layout_of, read_reference
from modelvault.errors import EngineRefused
from modelvault.formats.remote_code import (
    CODE_MAPS,
    MAX_CODE_MAP,
    CodeNeeds,
    CodeReference,
    code_needs,
    read_code_map,
    shorten,
)

ALLOW_CODE = "--trust-remote-code"
"""The flag without which vLLM, TGI and SGLang run no such code."""
MODULES = " HF_MODULES_CACHE=~/.cache/huggingface/modules"
"""Where transformers copies the code to, as a setting: the user that the engine runs as has to be able to write there."""


def needed_code(request: InstallRequest, repository: str | None = None) -> CodeNeeds:
    """Say what code the model of a request names; ``repository`` is the name by which the engine will know it.

    Raises ``EngineRefused`` for a file that no engine could read.
    """
    return code_named_by(request.model, request.blob_path, repository)


def code_named_by(model: Model, blob_path: Callable[[Digest], Path], repository: str | None) -> CodeNeeds:
    """Say what code a model names. An import is planned before its files are here: those do not count. Raises ``EngineRefused``."""
    references: list[CodeReference] = []
    files = {file.path: file for file in model.files}
    for name in CODE_MAPS:
        path = blob_path(files[name].digest) if name in files else None
        if path is None or not path.exists():
            continue
        try:
            references += read_code_map(fsio.read_regular(path, limit=MAX_CODE_MAP))
        except (ValueError, fsio.NotRegular, fsio.TooLarge) as error:
            raise EngineRefused(f"{model.name}: {name} cannot be read: {error}") from error
    return code_needs(references, files, repository)


def code_warnings(request: InstallRequest, needs: CodeNeeds, title: str) -> tuple[str, ...]:
    """Say what the user should know of code before the engine is started."""
    model, said = request.model.name, []
    if needs.runs:
        named = [*needs.own, *(f"{file} of {other}" for other, files in needs.others.items() for file in files)]
        said.append(
            f"{model}: {title} runs Python code that comes with it ({shorten(named)}): read that first; it is copied to "
            f"HF_MODULES_CACHE, where the user that {title} runs as must be able to write"
        )
    if needs.lacking:
        said.append(
            f"{model}: it names code that is not there ({shorten(needs.lacking)}): {title} loads it only if it can do without"
        )
    return tuple(said)


def holds_code(directory: Path, below: str, repository: str, files: Iterable[str]) -> bool:
    """Tell whether a hub cache, which lies ``below`` a directory, has files of the main branch of a repository."""
    folder = directory / folder_of(repository, below)
    commit = read_reference(folder / "refs/main")
    if commit is None or not COMMIT.fullmatch(commit):
        return False
    return all((folder / "snapshots" / commit / file).is_file() for file in files)


def lost_code(record: InstallRecord, below: str) -> list[str]:
    """List the code of other repositories that an installed model names, and that is not in the cache."""
    directory, layout = Path(record.directory), layout_of(record)
    references: list[CodeReference] = []
    for name in CODE_MAPS:
        try:
            references += read_code_map(
                fsio.read_regular((directory / layout.snapshot / name).resolve(), limit=MAX_CODE_MAP)
            )
        except FileNotFoundError:
            continue  # most models have few of them
        except (ValueError, OSError, fsio.NotRegular, fsio.TooLarge) as error:
            return [f"{directory / layout.snapshot / name} cannot be read: {error}"]
    others = code_needs(references, (), record.installed_name).others
    return [
        f"it needs the code of {other} ({shorten(files)}), which is not in {directory / below}"
        for other, files in others.items()
        if not holds_code(directory, below, other, files)
    ]
