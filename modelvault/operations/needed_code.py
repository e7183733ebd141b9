"""Code that models name and that lies in other repositories: where it is to be had, and which models lack it."""

import contextlib
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from modelvault.artifact import StoredModel, Traits
from modelvault.engines.remote_code import code_named_by
from modelvault.errors import EngineRefused, ModelvaultError
from modelvault.formats.remote_code import CODE_FORMAT
from modelvault.vault import Vault


def find_code(vault: Vault, repository: str, files: Collection[str], coming: Iterable[StoredModel]) -> StoredModel:
    """Find a model that has these files of a repository: one that is ``coming``, or one in the vault. Raises ``EngineRefused``."""
    for candidate in (*coming, *_stored(vault)):
        if _has(candidate, repository, files):
            return candidate
    raise EngineRefused(
        f"code from another repository is needed, {repository} ({', '.join(files)}), which is neither in the vault nor with the engine",
        hint=f"on the connected side: `{pull_command(repository)}`, and bundle that with the model; "
        "for an engine that knows the model without its code there is --engine folder=DIR",
        repository=repository,
    )


def code_alone(stored: StoredModel) -> StoredModel:
    """Reduce a model to its code, as an engine gets it for another model; its manifest stays what identifies it."""
    code = tuple(file for file in stored.model.files if file.path.endswith(".py"))
    return replace(stored, model=replace(stored.model, files=code, traits=Traits(CODE_FORMAT), recipe=None))


def pull_command(repository: str) -> str:
    """Give the line that brings the code of a repository into a vault."""
    return shlex.join(["modelvault", "pull", repository, "--include", "*.py"])


def left_behind(vault: Vault, models: Sequence[StoredModel]) -> Iterator[str]:
    """Warn of models of a bundle whose code lies in a repository that is not in it."""
    for stored in models:
        model = stored.model
        try:
            named = code_named_by(model, vault.store.blob_path, model.origin.repository or model.name.hub_id)
        except EngineRefused as error:
            yield error.message
            continue
        for repository, files in named.others.items():
            if not any(_has(other, repository, files) for other in models):
                yield (
                    f"{model.name} needs code of {repository}, which is not in this bundle and has to be at the site already: "
                    f"else `{pull_command(repository)}`, and bundle both"
                )


def _stored(vault: Vault) -> Iterator[StoredModel]:
    for entry in vault.store.entries():
        # One whose documents are damaged is what `verify` is about, and has no code for us.
        with contextlib.suppress(ModelvaultError):
            yield vault.store.load(entry)


def _has(stored: StoredModel, repository: str, files: Collection[str]) -> bool:
    names = {stored.model.origin.repository, stored.model.name.hub_id}
    return repository in names and {file.path for file in stored.model.files}.issuperset(files)
