"""``show``: everything that the vault knows about one model."""

from dataclasses import replace

from modelvault.artifact import ModelName, StoredModel
from modelvault.errors import ModelvaultError
from modelvault.operations.summaries import install_line, lack_warning, summarize
from modelvault.results.models import FileLine, ShowResult
from modelvault.vault import Vault


def show(vault: Vault, name: ModelName) -> ShowResult:
    """Sum up a model; what only a broken registry knows is left out, with a warning. Raises ``UsageProblem`` if there is none of that name."""
    stored = vault.model(name)
    told = _told(stored, vault)
    try:
        return _known(told, vault, stored.model.name)
    except ModelvaultError as error:
        unknown = f"{error.message}: installs, checks and metadata are not shown; {error.hint}"
        return replace(told, warnings=(*told.warnings, unknown))


def _known(told: ShowResult, vault: Vault, name: ModelName) -> ShowResult:
    """Add what the registry knows. Raises what is wrong with it."""
    row = vault.registry.model(name)
    checks = vault.registry.checks(name)
    metadata = vault.registry.metadata(name)
    smokes = vault.registry.smokes(name)
    several = len({line.path for line in metadata}) > 1
    return replace(
        told,
        metadata={(f"{line.path}: {line.key}" if several else line.key): line.value for line in metadata},
        installs=tuple(install_line(install, smokes) for install in vault.registry.installs(name)),
        published_at=row.published_at if row else None,
        last_check=f"{checks[0].checked_at} ({checks[0].outcome})" if checks else None,
    )


def _told(stored: StoredModel, vault: Vault) -> ShowResult:
    """Give what the model's manifest tells."""
    model = stored.model
    return ShowResult(
        vault=vault.root,
        model=summarize(stored),
        files=tuple(FileLine(file.path, file.size, file.digest, file.upstream) for file in model.files),
        metadata={},
        modelfile=model.recipe.modelfile if model.recipe else None,
        installs=(),
        published_at=None,
        last_check=None,
        warnings=lack_warning(vault, stored),
    )
