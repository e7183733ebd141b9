"""``show``: everything that the vault knows about one model."""

from modelvault.artifact import ModelName
from modelvault.operations.summaries import install_line, summarize
from modelvault.results import FileLine, ShowResult
from modelvault.vault import Vault


def show(vault: Vault, name: ModelName) -> ShowResult:
    """Sum up a model. Raises ``UsageProblem`` if there is none of that name."""
    stored = vault.model(name)
    model = stored.model
    row = vault.registry.model(model.name)
    checks = vault.registry.checks(model.name)
    installs = vault.registry.installs(model.name)
    metadata = vault.registry.metadata(model.name)
    several = len({line.path for line in metadata}) > 1
    return ShowResult(
        vault=vault.root,
        model=summarize(stored),
        files=tuple(FileLine(file.path, file.size, file.digest, file.upstream) for file in model.files),
        metadata={(f"{line.path}: {line.key}" if several else line.key): line.value for line in metadata},
        modelfile=model.recipe.modelfile if model.recipe else None,
        installs=tuple(map(install_line, installs)),
        published_at=row.published_at if row else None,
        last_check=f"{checks[0].checked_at} ({checks[0].outcome})" if checks else None,
    )
